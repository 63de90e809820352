"""Plain lines for a person who watches: what failed, what was decided, which incarnation runs now."""

from __future__ import annotations

import sys
from typing import TextIO

from .. import events
from .._core.directive import Directive


class LineSink:
    """Writes one line for each event that a person wants to see, to `file`, by default standard error.

    Quiet while all is well: the first start and an ordered stop are not worth a line each.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        text = _text(event)
        if text is not None:
            print(f"[{event.path} #{event.incarnation}] {text}", file=self._file or sys.stderr, flush=True)


def _text(event: events.Event) -> str | None:
    match event:
        case events.Failed(exc=exc):
            return f"failed: {type(exc).__name__}: {exc}"
        case events.Decided():
            return _decision(event)
        case events.Ready(incarnation=incarnation) if incarnation > 1:
            return f"running again, incarnation {incarnation}"
        case events.Resumed():
            return "resumed with the resource it had"
        case events.BackingOff(delay=delay):
            return f"waiting {delay:.2f} s before the next start"
        case events.Overdue(seconds=seconds, stack=stack):
            return f"has not ended {seconds:.3g} s after it was told to\n{stack}"
        case events.StopError(exc=exc):
            return f"failed while stopping: {type(exc).__name__}: {exc}"
        case events.SinkFailed(sink=sink, exc=exc):
            return f"sink {sink} failed: {exc!r}"
        case _:
            return None


def _decision(event: events.Decided) -> str:
    if event.directive is None:
        return f"not decided: {event.because}"
    tag = f" for {event.tag!r}" if event.tag else ""
    instead = f" (instead of {event.instead_of!r})" if event.instead_of is not None else ""
    passed = f"; that passes its limit of {event.limit}" if event.limit else ""
    whom = "nobody above decides" if event.directive is Directive.Escalate else f"decided by {event.by!r}"
    return f"→ {event.directive!r}{tag}{instead}, {whom}{passed}"
