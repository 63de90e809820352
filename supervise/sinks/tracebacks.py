"""The text of an exception's traceback, for lines, records and data; not in the core, because it reads source files."""

from __future__ import annotations

import traceback
from inspect import getattr_static
from types import CodeType, TracebackType

from .._core._brief import as_group, brief, members
from .._core.decide import cause_of, context_of, traceback_of

_MOST_MEMBERS = 10_000


def exc_info(
    exc: BaseException | None,
) -> tuple[type[BaseException], BaseException, TracebackType | None] | None:
    """What `logging` is given to print the traceback of an exception; None without one, or if printing it might not come to an end.

    A tuple: for an exception alone `logging` would call its `__bool__`, and read its `__traceback__`.
    """
    return None if exc is None or _is_endless(exc) else (type(exc), exc, traceback_of(exc))


def _is_endless(exc: BaseException) -> bool:
    """Whether Python might print groups for ever: it prints each member as often as it meets it, and asks the class for the members."""
    waiting, seen, met = [exc], set[int](), 0
    while waiting:
        one = waiting.pop()
        seen.add(id(one))
        waiting += [
            other for other in (cause_of(one), context_of(one)) if other is not None and id(other) not in seen
        ]
        group = as_group(one)
        if group is not None:
            inside = members(group)
            met += len(inside)
            if met > _MOST_MEMBERS or any(
                getattr_static(type(group), name) is not getattr_static(BaseExceptionGroup, name)
                for name in ("exceptions", "__getattribute__")
            ):
                return True
            waiting += inside
    return False


def trace(exc: BaseException) -> str:
    """The traceback of an exception; a line instead if it cannot be printed.

    The text of a stack is kept, for when the next exception comes from the same place: to make it is most of the work.
    """
    try:
        if not _is_plain(exc):
            if _is_endless(exc):
                return (
                    f"(the traceback of {brief(exc)} is not printed: its groups may have members without end)"
                )
            return "".join(traceback.format_exception(exc)).rstrip()
        begin = "Traceback (most recent call last):\n" if exc.__traceback__ is not None else ""
        return f"{begin}{_stack(exc)}{''.join(traceback.format_exception_only(exc))}".rstrip()
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # noqa: BLE001 - A user's exception may raise when it is printed, and a module's loader for its lines.
        return f"(the traceback of {brief(exc)} cannot be printed: {brief(problem)})"


def _is_plain(exc: BaseException) -> bool:
    """Whether its traceback is that of its own stack, and does not depend on the values in it, as suggestions do."""
    return (
        exc.__cause__ is None
        and (exc.__context__ is None or exc.__suppress_context__)
        and not issubclass(
            type(exc), (BaseExceptionGroup, NameError, AttributeError, ImportError, SyntaxError)
        )
    )


_STACKS: dict[tuple[int, ...], tuple[str, list[CodeType]]] = {}
"""Texts of stacks by the numbers of their code objects and instructions. Each keeps its code objects, whose numbers stay theirs."""

_MOST_STACKS = 100


def _stack(exc: BaseException) -> str:
    codes: list[CodeType] = []
    places: list[int] = []
    entry = exc.__traceback__
    while entry is not None:
        code = entry.tb_frame.f_code
        codes.append(code)
        places += (id(code), entry.tb_lasti)
        entry = entry.tb_next
    key = tuple(places)
    known = _STACKS.get(key)
    if known is None:
        text = "".join(traceback.format_tb(exc.__traceback__))
        if len(_STACKS) >= _MOST_STACKS:
            del _STACKS[next(iter(_STACKS))]
        known = _STACKS[key] = text, codes
    return known[0]
