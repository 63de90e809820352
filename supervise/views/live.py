"""A picture of the running tree on a terminal, kept up to date below the output of the program. Needs `rich`.

It is a sink, and a task that polls `tree.status()`. It only writes text to the terminal: the cursor stays visible, and it uses
no other screen and sets no mode. So nothing must be restored, however the program ends.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from time import perf_counter
from typing import Final

import trio
from attrs import define, field, frozen
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.segment import Segment

from .. import events
from .._core._brief import failure_line, printable
from .._core.directive import Directive, Escalate, Restart, Resume, Stop
from .._core.status import Status
from .._trio.tree import Tree
from ..sinks.lines import LineSink
from .panel import Line, Rates, panel

_EVERY: Final = 0.25
"""Seconds between two pictures."""
_SHARE: Final = 20
"""Drawing takes at most one twentieth of the time, however large the tree and slow the terminal."""
_EVENTS: Final = 6


class LiveView:
    """Shows the tree, the state of each node, and the last events, four times a second until the tree has ended.

    It is given to `run_tree` twice: `run_tree(spec, sinks=[view], watch=view.watch)`.

    Args:
        console: the console of `rich` to draw on; None is standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._tail = _Tail(_EVENTS)
        self._lines = LineSink(self._tail)
        self._rates = Rates()
        self._began: float | None = None
        self._totals = _Totals()

    def __call__(self, event: events.Event) -> None:
        """Keep the lines of one event."""
        if self._began is None:
            self._began = event.at
        self._tail.time = event.at - self._began
        self._lines(event)
        self._totals.count(event, event.at - self._began)

    async def watch(self, tree: Tree) -> None:
        """Draw the tree until cancelled, and then once more, with a line on what happened in all."""
        with self._place() as place:
            try:
                while True:
                    before = perf_counter()
                    self._draw(place, tree.status())
                    await trio.sleep(max(_EVERY, _SHARE * (perf_counter() - before)))
            finally:
                self._draw(place, tree.status(), self._totals.line())

    @contextmanager
    def _place(self) -> Generator[Live]:
        """The place of the picture; the program's own output goes above it."""
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        live = Live(
            console=self._console, auto_refresh=False, redirect_stderr=on_terminal, vertical_overflow="crop"
        )
        with live:
            self._console.show_cursor(show=True)
            yield live

    def _draw(self, place: Live, status: Status, *last: str) -> None:
        now, (width, height) = trio.current_time(), self._console.size
        lines = panel(
            status, now, self._rates.take(status, now), self._tail.lines, width=width, height=height
        )
        lines += [[(set_cell_size(text, min(width, cell_len(text))), "bold")] for text in last]
        place.update(_Picture(lines), refresh=True)


class _Tail(StringIO):
    """A text file that keeps the last lines written to it, each with its time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.time = 0.0
        self.lines: deque[str] = deque(maxlen=size)
        self._rest = ""

    def write(self, text: str) -> int:
        """Write a text; a line is kept once it is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        self.lines.extend(f"{self.time:7.1f}  {printable(line)}" for line in lines)
        return len(text)


@define
class _Totals:
    """What has happened since the tree began, for the picture that stays: its nodes forget it when they end."""

    _directives: Counter[Directive] = field(factory=Counter[Directive])
    _failure: str = ""

    def count(self, event: events.Event, seconds: float) -> None:
        """Count a decision that was carried out, and keep the last failure."""
        if isinstance(event, events.Failed):
            where = f"{printable(event.path)} #{event.incarnation} after {seconds:.1f} s"
            self._failure = f"of {where}: {failure_line(event.exc)}"
        elif isinstance(event, events.Decided) and event.directive is not None and event.limit is None:
            self._directives[event.directive] += 1

    def line(self) -> str:
        """Such as `in all 4 restarts, 1 resume; last failure of app/feed #4 after 19.9 s: Gone: x`."""
        if not self._failure:
            return "in all no failure"
        words = ((Restart, "restart"), (Resume, "resume"), (Stop, "stop"), (Escalate, "escalation"))
        counted = [
            f"{count} {word}{'s' * (count > 1)}"
            for directive, word in words
            if (count := self._directives[directive])
        ]
        return f"in all {', '.join(counted) or 'no restart'}; last failure {self._failure}"


@frozen
class _Picture:
    """Lines of styled text for `rich`, and an empty line for the cursor."""

    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self.lines:
            yield from (Segment(text, console.get_style(style)) for text, style in line)
            yield Segment.line()
        yield Segment("")
