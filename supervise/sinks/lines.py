"""Plain lines for a reader: failures, decisions, and incarnations that run again."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Final, TextIO

from .. import events
from .._core._brief import failure_line, printable
from ._levels import Colour, is_requested, level_of, line
from .tracebacks import trace


class LineSink:
    """A sink that writes a line for each failure, decision, resume, restart and overdue child (R31).

    On a terminal lines have colours, unless `NO_COLOR` is set or `TERM` is `dumb`; `FORCE_COLOR` asks for them on standard error or
    output that is no terminal. In the journal of systemd (`JOURNAL_STREAM`) lines have their priority, and no time. This is
    decided at each event.

    Args:
        file: the text file to write to; None is standard error, as it is at each event.
        times: begin each line with the local date and time.
        lifecycle: also write when the tree starts, is ready, is asked to stop and has stopped, each request to stop, start
            or restart a node, with its reason, and why a first start failed, with its traceback. Without it the sink writes
            nothing while nothing fails, and no line for a failed first start, because the caller who opened the tree or added
            the child gets that error anyway.
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
            # Its decision says how bad a failure is. A reader who asks the journal for errors alone gets both lines.
            level = max(level_of(failed), level_of(event))
            traced = f"\n{trace(failed.exc)}" if self._tracebacks else ""
            self._write(failed, level, f"{events.describe(failed)}{traced}")
            if isinstance(event, events.Decided) and event.because == "table" and event.exc is not failed.exc:
                words = f"its decider raised {failure_line(event.exc)}: that failure goes up instead"
                self._write(failed, level, words)
        if self._is_shown(event):
            stack = f"\n{event.stack}" if isinstance(event, events.Overdue | events.StartOverdue) else ""
            self._write(event, level_of(event), f"{events.describe(event)}{stack}")

    def _is_shown(self, event: events.Event) -> bool:
        if isinstance(event, _OF_ANY_NODE) or (isinstance(event, events.Ready) and event.incarnation > 1):
            return True
        is_of_the_root = "/" not in event.path and isinstance(event, _OF_THE_ROOT)
        return self._lifecycle and (is_of_the_root or is_requested(event))

    def _failed_to_start(self, event: events.Decided) -> None:
        """Write it once, though the same failure goes up through each supervisor that is starting (R16)."""
        if self._lifecycle and event.exc is not self._reported:
            self._reported = event.exc
            text = f"failed to start: {failure_line(event.exc)}\n{trace(event.exc)}"
            self._write(event, level_of(event), text)

    def _write(self, event: events.Event, level: int, text: str) -> None:
        file = sys.stderr if self._file is None else self._file
        if file is None:  # the program was started without it, and `print` would take standard output instead
            return
        node = f"[{printable(event.path)} #{event.incarnation}]"
        time = now() if self._times else ""
        shown = line(file, level, text, time=time, node=node, colour=_COLOURS.get(type(event)))
        print(shown, file=file, flush=True)


def now() -> str:
    """The local date and time, in the format of the lines."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


_COLOURS: Final[dict[type[events.Event], Colour]] = {
    events.Failed: "red",
    events.BackingOff: "yellow",
    events.Ready: "green",
    events.Resumed: "green",
}
"""Where it is not that of the level."""
_OF_ANY_NODE = (
    events.Decided,
    events.Resumed,
    events.BackingOff,
    events.Overdue,
    events.StartOverdue,
    events.StopError,
    events.SinkFailed,
)
_OF_THE_ROOT = (
    events.Starting,
    events.Ready,
    events.Stopping,
    events.Returned,
    events.Stopped,
    events.Adopting,
    events.Adopted,
)
