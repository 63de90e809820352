"""Plain lines for a person who watches: what failed, what was decided, which incarnation runs now."""

from __future__ import annotations

import sys
from typing import TextIO

from .. import events
from .._core._brief import brief
from .._core.directive import Directive


class LineSink:
    """Writes one line for each event that a person wants to see, to `file`, by default standard error.

    Quiet while all is well: the first start and an ordered stop are not worth a line each. Nor is a failed first start,
    which whoever opened the tree, or added the child, is told of anyway.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._failed: events.Failed | None = None

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        failed, self._failed = self._failed, None
        if isinstance(event, events.Failed):
            self._failed = event
        elif isinstance(event, events.Decided) and event.because == "first start":
            return
        elif failed is not None:
            self._print(failed)
        self._print(event)

    def _print(self, event: events.Event) -> None:
        text = None if event is self._failed else _text(event)
        if text is not None:
            print(f"[{event.path} #{event.incarnation}] {text}", file=self._file or sys.stderr, flush=True)


def _text(event: events.Event) -> str | None:
    text: str | None = None
    match event:
        case events.Failed(exc=exc):
            text = f"failed: {type(exc).__name__}: {exc}"
        case events.Decided():
            text = _decision(event)
        case events.Ready(incarnation=incarnation) if incarnation > 1:
            text = f"running again, incarnation {incarnation}"
        case events.Resumed():
            text = "resumed with the resource it had"
        case events.BackingOff(delay=delay):
            text = f"waiting {delay:.2f} s before the next start"
        case events.Overdue(seconds=seconds, stack=stack):
            text = f"has not ended {seconds:.3g} s after it was told to\n{stack}"
        case events.StopError(exc=exc):
            text = f"failed while stopping: {type(exc).__name__}: {exc}"
        case events.SinkFailed(sink=sink, exc=exc):
            text = f"sink {sink} failed: {brief(exc)}"
        case _:
            pass
    return text


def _decision(event: events.Decided) -> str:
    if event.directive is None:
        return f"not decided: {event.because}"
    tag = f" for {event.tag!r}" if event.tag else ""
    instead = f" (instead of {event.instead_of!r})" if event.instead_of is not None else ""
    passed = f"; that passes its limit of {event.limit}" if event.limit else ""
    whom = "nobody above decides" if event.directive is Directive.Escalate else f"decided by {event.by!r}"
    return f"→ {event.directive!r}{tag}{instead}, {whom}{passed}"
