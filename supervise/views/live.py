"""A picture of the running tree on a terminal, kept up to date below the output of the program. Needs `rich`.

It is a sink, and a task that polls `tree.status()`. It only writes text to the terminal: the cursor stays visible, and it uses
no other screen and sets no mode. So nothing must be restored, however the program ends.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from time import perf_counter
from typing import Final

import trio
from attrs import frozen
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.segment import Segment

from .. import events
from .._core._brief import printable
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

    def __call__(self, event: events.Event) -> None:
        """Keep the lines of one event."""
        if self._began is None:
            self._began = event.at
        self._tail.time = event.at - self._began
        self._lines(event)

    async def watch(self, tree: Tree) -> None:
        """Draw the tree until cancelled, and then once more."""
        with self._place() as place:
            try:
                while True:
                    before = perf_counter()
                    self._draw(place, tree.status())
                    await trio.sleep(max(_EVERY, _SHARE * (perf_counter() - before)))
            finally:
                self._draw(place, tree.status())

    @contextmanager
    def _place(self) -> Generator[Live]:
        """The place of the picture; the program's own output goes above it."""
        on_terminal = sys.stderr.isatty()
        live = Live(
            console=self._console, auto_refresh=False, redirect_stderr=on_terminal, vertical_overflow="crop"
        )
        with live:
            self._console.show_cursor(show=True)
            yield live

    def _draw(self, place: Live, status: Status) -> None:
        now, (width, height) = trio.current_time(), self._console.size
        lines = panel(
            status, now, self._rates.take(status, now), self._tail.lines, width=width, height=height
        )
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


@frozen
class _Picture:
    """Lines of styled text for `rich`, and an empty line for the cursor."""

    lines: Sequence[Line]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self.lines:
            yield from (Segment(text, console.get_style(style)) for text, style in line)
            yield Segment.line()
        yield Segment("")
