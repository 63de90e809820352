"""Plain lines for a person who watches: what failed, what was decided, which incarnation runs now."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TextIO

from .. import events
from .._core._brief import brief, printable
from .._core.directive import Directive
from . import _words


class LineSink:
    """Writes one line for each event that a person wants to see, to `file`, by default standard error.

    Args:
        file: where to; it must take text.
        times: put the time of day before each line.
        lifecycle: also say when the tree starts, is ready, is asked to stop and has stopped, and why a first start
            failed, with its traceback. Without it the sink is quiet while all is well, and a failed first start is not
            worth a line: whoever opened the tree, or added the child, is told of it anyway.
        tracebacks: write the traceback of every failure that is decided.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        times: bool = False,
        lifecycle: bool = False,
        tracebacks: bool = False,
    ) -> None:
        self._file = file
        self._times = times
        self._lifecycle = lifecycle
        self._tracebacks = tracebacks
        self._failed: events.Failed | None = None
        self._said: BaseException | None = None

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        failed, self._failed = self._failed, None
        if isinstance(event, events.Failed):
            self._failed = event
            return
        if isinstance(event, events.Decided) and event.because == "first start":
            self._failed_to_start(event)
            return
        if isinstance(event, events.Starting):
            self._said = None
        if failed is not None:
            trace = f"\n{_words.trace(failed.exc)}" if self._tracebacks else ""
            self._write(failed, f"failed: {_words.failure(failed.exc)}{trace}")
            if isinstance(event, events.Decided) and event.because == "table" and event.exc is not failed.exc:
                self._write(
                    failed, f"its decider raised {_words.failure(event.exc)}: that goes up in its place"
                )
        text = _text(event) or (_of_the_root(event) if self._lifecycle and "/" not in event.path else None)
        if text is not None:
            self._write(event, text)

    def _failed_to_start(self, event: events.Decided) -> None:
        """Once: the same failure goes up through each supervisor that is itself starting (R16)."""
        if self._lifecycle and event.exc is not self._said:
            self._said = event.exc
            self._write(event, f"failed to start: {_words.failure(event.exc)}\n{_words.trace(event.exc)}")

    def _write(self, event: events.Event, text: str) -> None:
        time = f"{now()} " if self._times else ""
        print(
            f"{time}[{printable(event.path)} #{event.incarnation}] {text}",
            file=self._file or sys.stderr,
            flush=True,
        )


def now() -> str:
    """The local time, as the lines have it."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _text(event: events.Event) -> str | None:
    text: str | None = None
    match event:
        case events.Decided():
            text = _decision(event)
        case events.Ready(incarnation=incarnation) if incarnation > 1:
            text = f"running again, incarnation {incarnation}"
        case events.Resumed():
            text = "resumed with the resource it had"
        case events.BackingOff(delay=delay, attempt=attempt):
            series = f", attempt {attempt}" if attempt > 1 else ""
            text = f"waiting {delay:.2f} s before the next start{series}"
        case events.Overdue(seconds=seconds, stack=stack):
            text = f"has not ended {seconds:.3g} s after it was told to\n{stack}"
        case events.StartOverdue(seconds=seconds, stack=stack, waits_for=waits_for):
            waits = "" if waits_for is None else f", and waits for {waits_for!r}"
            text = f"is not ready after {seconds:.3g} s{waits}\n{stack}"
        case events.StopError(exc=exc):
            text = f"failed while stopping: {_words.failure(exc)}"
        case events.SinkFailed(sink=sink, exc=exc):
            text = f"sink {sink} failed: {brief(exc)}"
        case _:
            pass
    return text


def _of_the_root(event: events.Event) -> str | None:
    """What a whole program's log says of its tree while all is well."""
    text: str | None = None
    match event:
        case events.Starting():
            text = "starts"
        case events.Ready():
            text = "is ready"
        case events.Stopping(reason=reason):
            text = f"is being stopped: {printable(reason)}"
        case events.Returned():
            text = "has done what it was to do, and ends"
        case events.Stopped():
            text = "has stopped"
        case _:
            pass
    return text


def _decision(event: events.Decided) -> str:
    if event.directive is None:
        return f"not decided: {event.because}"
    tag = f" for {event.tag!r}" if event.tag else ""
    instead = f" (instead of {event.instead_of!r})" if event.instead_of is not None else ""
    whom = "nobody above decides" if event.directive is Directive.Escalate else f"decided by {event.by!r}"
    entry = _words.answer(event)
    return f"→ {event.directive!r}{tag}{instead}, {whom}{f' ({entry})' if entry else ''}{_words.consequences(event)}"
