"""One way to refuse nonsense: raise at once, or, while a whole file is being checked, note it and go on."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from ._brief import brief

_noted: ContextVar[list[Exception] | None] = ContextVar("noted", default=None)


def refuse(problem: Exception) -> None:
    """Raise `problem`, or note it inside `noting`."""
    noted = _noted.get()
    if noted is None:
        raise problem
    if str(problem) not in map(str, noted):
        noted.append(problem)


@contextmanager
def noting() -> Generator[list[Exception], None, None]:
    """Collect what constructors refuse instead of raising, so that a check finds every problem in one go."""
    problems: list[Exception] = []
    token = _noted.set(problems)
    try:
        yield problems
    finally:
        _noted.reset(token)


def check_number(
    what: str, value: object, *, least: float, kind: type | tuple[type, ...] = (int, float)
) -> None:
    """Refuse what is no number, is a bool, or lies below `least` (NaN does)."""
    if isinstance(value, bool) or not isinstance(value, kind):
        noun = "an integer" if kind is int else "a number"
        refuse(TypeError(f"{what} must be {noun}, got {brief(value)}"))
    elif not value >= least:  # type: ignore[operator]  # an int or a float by now
        refuse(ValueError(f"{what} must be >= {least}, got {brief(value)}"))


def check_choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse what is not one of `allowed`."""
    if value not in allowed:
        refuse(ValueError(f"{what} must be one of {', '.join(map(repr, allowed))}, got {brief(value)}"))
