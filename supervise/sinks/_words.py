"""The words for events, shared by lines and log records."""

from __future__ import annotations

import traceback

from .._core._brief import brief, brief_text, class_name, printable
from .._core.directive import Directive
from ..events import Decided


def failure(exc: BaseException) -> str:
    """An exception in one line."""
    return printable(f"{class_name(type(exc))}: {brief_text(exc)}").removesuffix(": ")


def trace(exc: BaseException) -> str:
    """The traceback of an exception; a line instead if it cannot be printed."""
    try:
        return "".join(traceback.format_exception(exc)).rstrip()
    except Exception as problem:  # noqa: BLE001 - a user's exception may raise when it is printed
        return f"(the traceback of {brief(exc)} cannot be printed: {brief(problem)})"


def answer(event: Decided) -> str:
    """The entry that gave the directive, and its decider; empty if no decider was asked (R2)."""
    if event.directive is None or event.because == "raised":
        return ""
    if event.because == "limit":
        return "its own limit is passed"
    if event.decider is None:
        return "built-in rule" if event.entry == "rule" and event.directive is not Directive.Escalate else ""
    of = "" if event.decider == event.by else f" in the decider of {event.decider!r}"
    return f"{event.entry}{of}"


def consequences(event: Decided) -> str:
    """The further facts of a decision, each after a semicolon."""
    text = ""
    if event.because == "raised":
        text += f"; a decider raised {failure(event.exc)}, and that means Escalate"
    if event.applied_to is not None:
        whole = "all of it is stopped, and stays down" if event.directive is Directive.Stop else "all of it"
        text += f"; it applies to {event.applied_to!r}: {whole}"
    if event.limit:
        text += f"; that passes the limit of {event.by!r}, {event.limit}"
    return text
