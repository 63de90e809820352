"""How constructors refuse a wrong value: they raise, or, while a whole file is being checked, note the problem and go on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from math import inf
from types import NoneType
from typing import Any, Literal, cast

from ._brief import brief

being_loaded: ContextVar[bool] = ContextVar("being_loaded", default=False)
"""Whether a command is loading the file that declares a tree: no tree may be started meanwhile."""
Listener = Callable[[object], None]
_noted: ContextVar[tuple[list[Exception], Listener] | None] = ContextVar("noted", default=None)


def refuse(problem: Exception) -> Literal[False]:
    """Raise `problem`, or inside `noting` note it and return False."""
    noted = _noted.get()
    if noted is None:
        raise problem
    problems, listener = noted
    listener(problem)
    if str(problem) not in map(str, problems):
        problems.append(problem)
    return False


def made(spec: object) -> None:
    """Inside `noting`, report that a spec is being made; its fields are not checked yet."""
    noted = _noted.get()
    if noted is not None:
        noted[1](spec)


@contextmanager
def noting(listener: Listener = lambda _: None) -> Generator[list[Exception], None, None]:
    """Collect the problems that constructors find instead of raising them, so that one check reports them all.

    `listener` is called in the constructor with each problem, and with each spec that is made, so that it can look at the caller.
    """
    problems: list[Exception] = []
    token = _noted.set((problems, listener))
    try:
        yield problems
    finally:
        _noted.reset(token)


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """Whether the value really is of that class: `isinstance` believes its `__class__`, which may name another."""
    return issubclass(type(value), kind)


def plain(value: object) -> Any:
    """The value; for a subclass of str, int or float, the plain value, since the methods of a subclass may do anything."""
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
    """Refuse a value that is no number, is a bool, lies below `least` (NaN does) or is too large. Returns whether it is right.

    Args:
        what: the name of the value, for the message.
        value: the value to check.
        least: the smallest right value.
        more: `least` itself is wrong.
        finite: infinity is wrong.
        kind: the class of number.
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
    """Refuse a value that is not one of `allowed`. Returns whether it is."""
    if type(value) is str and value in allowed:
        return True
    problem = f"{what} must be one of {', '.join(map(repr, allowed))}, got {brief(value)}"
    return refuse(ValueError(problem + did_you_mean(value, allowed)))


def did_you_mean(value: object, allowed: Iterable[str]) -> str:
    """A hint for a message, if `value` is nearly one of `allowed`."""
    if type(value) is not str or len(value) > _LONGEST:
        return ""
    from difflib import get_close_matches  # noqa: PLC0415 - only a mistyped value needs it, and an import takes time

    near = get_close_matches(value.lower(), list(allowed), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


_LONGEST = 100
_LARGEST = 2**63 - 1
