"""The level of an event, and how a line shows its level: in colour on a terminal, as a priority in the journal of systemd."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final, Literal, TextIO

from .._core._asked import is_asked
from .._core.directive import Directive
from ..events import (
    BackingOff,
    Decided,
    Event,
    Failed,
    Overdue,
    SinkFailed,
    Starting,
    StartOverdue,
    StopError,
    Stopping,
)

_OF_DIRECTIVE: Final = {
    None: logging.ERROR,
    Directive.Resume: logging.WARNING,
    Directive.Restart: logging.WARNING,
    Directive.Stop: logging.ERROR,
    Directive.Escalate: logging.CRITICAL,
}
_OF_KIND: Final[dict[type[Event], int]] = {
    Failed: logging.WARNING,  # what becomes of it is the level of its decision
    Overdue: logging.WARNING,
    StartOverdue: logging.WARNING,
    StopError: logging.ERROR,
    SinkFailed: logging.ERROR,
    BackingOff: logging.INFO,
}

Colour = Literal["red", "yellow", "green"]
_START: Final = {"red": "\x1b[31m", "yellow": "\x1b[33m", "green": "\x1b[32m", "dim": "\x1b[2m"}
_END: Final = "\x1b[0m"


def level_of(event: Event) -> int:
    """The level of `logging` for an event. One that reports no trouble has INFO at the root and for a request, else DEBUG (R31)."""
    if isinstance(event, Decided):
        return _OF_DIRECTIVE[event.directive]
    is_detail = "/" in event.path and not is_requested(event)
    return _OF_KIND.get(type(event), logging.DEBUG if is_detail else logging.INFO)


def is_requested(event: Event) -> bool:
    """Whether a request for this very node caused the start or stop that begins with this event (R25)."""
    return isinstance(event, Starting | Stopping) and is_asked(event.reason, event.path)


def line(
    file: TextIO | None,
    level: int,
    text: str,
    *,
    time: str = "",
    node: str = "",
    colour: Colour | None = None,
) -> str:
    """A text as a stream shows it, without its final newline.

    Args:
        file: the stream. If it leads to the journal of systemd, each line begins with its priority (see `man sd-daemon`), and
            the time is left out, because the journal has it. On a terminal the first line has a colour. Elsewhere it is plain.
        level: of `logging`.
        text: may have further lines, such as a traceback.
        time: comes first; empty for none.
        node: comes before the text; empty for none.
        colour: of the text; None is red for an error, yellow for a warning, none for all else.
    """
    when = f"{time} " if time else ""
    who = f"{node} " if node else ""
    if _is_journal(file):
        priority = 3 if level >= logging.ERROR else 4 if level >= logging.WARNING else 6
        return "\n".join(f"<{priority}>{each}" for each in f"{who}{text}".split("\n"))
    if not _has_colours(file):
        return f"{when}{who}{text}"
    if colour is None and level >= logging.WARNING:
        colour = "red" if level >= logging.ERROR else "yellow"
    first, newline, rest = text.partition("\n")
    coloured = f"{_START[colour]}{first}{_END}" if colour else first
    return f"{_START['dim']}{when}{who}{_END}{coloured}{newline}{rest}"


def _is_journal(file: TextIO | None) -> bool:
    """Whether systemd has connected this very stream to its journal: the variable has the stream's device and inode."""
    journal = os.environ.get("JOURNAL_STREAM")
    if not journal or file is None:
        return False
    try:
        stream = os.fstat(file.fileno())
    except (AttributeError, OSError, ValueError):  # it has no descriptor, or is closed
        return False
    return journal == f"{stream.st_dev}:{stream.st_ino}"


def _has_colours(file: TextIO | None) -> bool:
    """Whether it is a terminal with colours; the variables are those of https://no-color.org and https://force-color.org."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR") and (file is sys.stderr or file is sys.stdout):
        return True  # for these two alone: a file that a program has opened stays plain
    is_terminal = file is not None and file.isatty()
    return is_terminal and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
