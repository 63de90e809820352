"""One way to refuse nonsense: raise at once, or, while a whole file is being checked, note it and go on."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from types import NoneType
from typing import Any, Literal, cast

from ._brief import brief

being_loaded: ContextVar[bool] = ContextVar("being_loaded", default=False)
"""Whether a command loads the file in which a tree is declared: nothing may be started meanwhile."""
_noted: ContextVar[list[Exception] | None] = ContextVar("noted", default=None)


def refuse(problem: Exception) -> Literal[False]:
    """Raise `problem`, or note it inside `noting`; False, for what is refused is not right."""
    noted = _noted.get()
    if noted is None:
        raise problem
    if str(problem) not in map(str, noted):
        noted.append(problem)
    return False


@contextmanager
def noting() -> Generator[list[Exception], None, None]:
    """Collect what constructors refuse instead of raising, so that a check finds every problem in one go."""
    problems: list[Exception] = []
    token = _noted.set(problems)
    try:
        yield problems
    finally:
        _noted.reset(token)


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether it really is of that class: `isinstance` believes what an object says in `__class__`."""
    return issubclass(type(value), kind)


def plain(value: object) -> Any:
    """The value itself, but of a subclass of str, int or float the plain value of that: its methods may do anything."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if issubclass(kind, str):
        return str.__str__(cast("str", value))
    if issubclass(kind, int):
        return int.__int__(cast("int", value))
    return float.__float__(cast("float", value)) if issubclass(kind, float) else value


_PLAIN = frozenset({str, int, float, bool, NoneType})


def check_number(
    what: str,
    value: object,
    *,
    least: float,
    more: bool = False,
    finite: bool = False,
    kind: type | tuple[type, ...] = (int, float),
) -> bool:
    """Refuse what is no number, is a bool, lies below `least` (NaN does) or is too large; whether it is right.

    Args:
        what: what it is, for the message.
        value: what came.
        least: the smallest that is right.
        more: `least` itself is not.
        finite: infinity is not right.
        kind: which numbers.
    """
    if type(value) is bool or not is_a(value, kind):
        noun = "an integer" if kind is int else "a number"
        return refuse(TypeError(f"{what} must be {noun}, got {brief(value)}"))
    number: float = plain(value)
    if not (number > least if more else number >= least):
        return refuse(ValueError(f"{what} must be {'>' if more else '>='} {least}, got {brief(value)}"))
    if type(number) is int and number > _LARGEST:
        return refuse(ValueError(f"{what} must be <= {_LARGEST}, got {brief(value)}"))
    if finite and number == inf:
        return refuse(ValueError(f"{what} must be finite, got inf"))
    return True


def check_choice(what: str, value: object, allowed: tuple[str, ...]) -> bool:
    """Refuse what is not one of `allowed`; whether it is."""
    if type(value) is str and value in allowed:
        return True
    said = f"{what} must be one of {', '.join(map(repr, allowed))}, got {brief(value)}"
    return refuse(ValueError(said + did_you_mean(value, allowed)))


def did_you_mean(value: object, allowed: Iterable[str]) -> str:
    """A hint for a message, where one of what is allowed is nearly what came."""
    if type(value) is not str or len(value) > _LONGEST:
        return ""
    from difflib import get_close_matches  # noqa: PLC0415 - only for those who mistype, and imports take time

    near = get_close_matches(value.lower(), list(allowed), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


_LONGEST = 100
_LARGEST = 2**63 - 1
