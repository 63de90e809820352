"""The text of an exception's traceback, for lines, records and data; not in the core, because it reads source files."""

from __future__ import annotations

import traceback
from types import CodeType

from .._core._brief import brief


def trace(exc: BaseException) -> str:
    """The traceback of an exception; a line instead if it cannot be printed.

    The text of a stack is kept, for when the next exception comes from the same place: to make it is most of the work.
    """
    try:
        if not _is_plain(exc):
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
