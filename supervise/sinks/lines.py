"""Plain lines for a reader: failures, decisions, and incarnations that run again."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TextIO

from .. import events
from .._core._brief import brief, printable
from .._core.directive import Directive
from . import _words


class LineSink:
    """A sink that writes a line for each failure, decision, resume, restart and overdue child (R31).

    Args:
        file: the text file to write to; None is standard error, as it is at each event.
        times: begin each line with the local date and time.
        lifecycle: also write when the tree starts, is ready, is asked to stop and has stopped, and why a first start
            failed, with its traceback. Without it the sink writes nothing while nothing fails, and no line for a failed
            first start, because the caller who opened the tree or added the child gets that error anyway.
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
        self._reported: BaseException | None = None  # the last failed first start

    def __call__(self, event: events.Event) -> None:
        """Write the lines of one event."""
        failed, self._failed = self._failed, None
        if isinstance(event, events.Failed):
            self._failed = event
            return
        if isinstance(event, events.Decided) and event.because == "first start":
            self._failed_to_start(event)
            return
        if isinstance(event, events.Starting):
            self._reported = None
        if failed is not None:
            trace = f"\n{_words.trace(failed.exc)}" if self._tracebacks else ""
            self._write(failed, f"failed: {_words.failure(failed.exc)}{trace}")
            if isinstance(event, events.Decided) and event.because == "table" and event.exc is not failed.exc:
                self._write(
                    failed, f"its decider raised {_words.failure(event.exc)}: that failure goes up instead"
                )
        text = _text(event) or (_of_the_root(event) if self._lifecycle and "/" not in event.path else None)
        if text is not None:
            self._write(event, text)

    def _failed_to_start(self, event: events.Decided) -> None:
        """Write it once, though the same failure goes up through each supervisor that is starting (R16)."""
        if self._lifecycle and event.exc is not self._reported:
            self._reported = event.exc
            self._write(event, f"failed to start: {_words.failure(event.exc)}\n{_words.trace(event.exc)}")

    def _write(self, event: events.Event, text: str) -> None:
        time = f"{now()} " if self._times else ""
        print(
            f"{time}[{printable(event.path)} #{event.incarnation}] {text}",
            file=self._file or sys.stderr,
            flush=True,
        )


def now() -> str:
    """The local date and time, in the format of the lines."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def _text(event: events.Event) -> str | None:
    text: str | None = None
    match event:
        case events.Decided():
            text = _decision(event)
        case events.Ready(incarnation=incarnation) if incarnation > 1:
            text = f"running again, incarnation {incarnation}"
        case events.Resumed():
            text = "resumed with its resource"
        case events.BackingOff(delay=delay, attempt=attempt):
            series = f", attempt {attempt}" if attempt > 1 else ""
            text = f"waiting {delay:.2f} s before the next start{series}"
        case events.Overdue(seconds=seconds, stack=stack):
            text = f"has not ended {seconds:.3g} s after it was ordered to\n{stack}"
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
    """The lines for the life of the whole tree."""
    text: str | None = None
    match event:
        case events.Starting():
            text = "starts"
        case events.Ready():
            text = "is ready"
        case events.Stopping(reason=reason):
            text = f"is being stopped: {printable(reason)}"
        case events.Returned():
            text = "ends normally"
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
    whom = (
        "no supervisor above decides" if event.directive is Directive.Escalate else f"decided by {event.by!r}"
    )
    entry = _words.answer(event)
    return f"→ {event.directive!r}{tag}{instead}, {whom}{f' ({entry})' if entry else ''}{_words.consequences(event)}"
