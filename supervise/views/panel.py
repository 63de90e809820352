"""The picture for a terminal, as lines of styled text: pure functions over a `Status`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size

from .._core.status import Status
from . import words

Cell = tuple[str, str]
"""A text, and its style for `rich`."""
Line = list[Cell]

_SPAN: Final = 2.0
"""Seconds over which a rate is taken."""
_ABOVE: Final = 3
"""Lines of the terminal that are left to the program."""
_FRAME: Final = 4
"""Lines for the head of the table, the count of hidden nodes, the rule above the events, and the cursor."""
_GAP: Final = 2
_LEAST: Final = 12
"""The least useful width of a name or a failure, in cells."""
_TWO_DIGITS: Final = 10
_COLUMNS: Final = {
    "node": "<",
    "state": "<",
    "#": ">",
    "restarts": ">",
    "waiting": ">",
    "per s": ">",
    "last failure": "<",
}
_MINIMUM: Final = {"state": len("restarting"), "#": 3, "waiting": 7, "per s": 7}
"""The least widths of columns, so that they do not move while numbers grow."""
_STATES: Final = {
    "up": "green",
    "down": "dim",
    "starting": "yellow",
    "stopping": "yellow",
    "releasing": "yellow",
    "restarting": "bold yellow",
    "failed": "bold red",
    "condemned": "red",
}


class Rates:
    """The messages and stream items that each mailbox handles per second, over the last two seconds."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, dict[str, int]]] = deque()

    def take(self, status: Status, now: float) -> dict[str, float]:
        """The rates by path: the growth of `handled` since the oldest kept status, divided by the time since then."""
        handled = {node.path: node.handled for node in status.walk() if node.handled is not None}
        while len(self._taken) > 1 and now - self._taken[1][0] >= _SPAN:
            self._taken.popleft()
        self._taken.append((now, handled))
        then, before = self._taken[0]
        return {
            path: max(0, count - before.get(path, 0)) / (now - then) if now > then else 0.0
            for path, count in handled.items()
        }


def panel(
    status: Status, now: float, rates: Mapping[str, float], events: Iterable[str], *, width: int, height: int
) -> list[Line]:
    """A line for each node for which there is room, and below them the last events.

    Args:
        status: from `tree.status()`.
        now: `trio.current_time()`, for the remaining seconds of a backoff.
        rates: the messages and items per second by path, from `Rates`.
        events: the last events, a line each.
        width: that of the terminal, in cells; no line is longer.
        height: that of the terminal, in lines; three of them are left to the program.
    """
    last = [[(line, "dim")] for line in list(events)[-max(1, height // 5) :]]
    shown = fitting(status, max(3, height - len(last) - _FRAME - _ABOVE))
    branches = words.branches(status, lambda node: [child for child in node.children if child.path in shown])
    rows = [_row(lead + words.name(node), node, now, rates) for lead, node in branches]
    lines = _table([[(name, "bold") for name in _COLUMNS], *rows], width)
    hidden = [node for node in status.walk() if node.path not in shown]
    lines += [[(_and_more(hidden), "dim")]] if hidden else []
    lines += [[("─" * width, "dim")], *last] if last else []
    return [_cut(line, width) for line in lines]


def fitting(status: Status, room: int) -> set[str]:
    """The paths of the nodes that fit into `room` lines, each with all nodes above it.

    Nodes that are not up or have restarted come first, then the upper ones.
    """
    shown: set[str] = set()
    for node in sorted(status.walk(), key=lambda node: (_is_well(node), node.path.count("/"))):
        missing = _and_above(node.path) - shown
        if len(shown) + len(missing) <= room:
            shown |= missing
        if len(shown) == room:
            break
    return shown


def _is_well(node: Status) -> bool:
    return node.state == "up" and not node.restarts


def _and_more(hidden: Sequence[Status]) -> str:
    troubled = sum(not _is_well(node) for node in hidden)
    return f"… and {len(hidden)} more" + (f", {troubled} of them in trouble" if troubled else "")


def _and_above(path: str) -> set[str]:
    names = path.split("/")
    return {"/".join(names[:count]) for count in range(1, len(names) + 1)}


def _row(label: str, node: Status, now: float, rates: Mapping[str, float]) -> Line:
    due = "" if node.due is None else f"starts in {max(0.0, node.due - now):.1f} s"
    return [
        (label, ""),
        (node.state, _STATES[node.state]),
        (str(node.incarnation or ""), ""),
        (words.restarts(node), "yellow"),
        ("" if node.mailbox is None else str(node.mailbox), ""),
        (_rate(rates.get(node.path)), ""),
        (" · ".join(filter(None, [due, words.failure(node)])), "dim" if node.state == "up" else ""),
    ]


def _rate(rate: float | None) -> str:
    if rate is None:
        return ""
    return f"{rate:.1f}" if 0 < rate < _TWO_DIGITS else f"{rate:.0f}"


def _table(rows: Sequence[Line], width: int) -> list[Line]:
    """The rows as a table: names are cut before a column is left out, and failures take the remaining width."""
    widths = _widths(rows, width)
    gaps = [_GAP] * (len(widths) - 1) + [0]
    places = list(zip(widths, gaps, _COLUMNS.values(), strict=False))
    return [
        [
            (_placed(text, cells, align) + " " * gap, style)
            for (text, style), (cells, gap, align) in zip(row, places, strict=False)
        ]
        for row in rows
    ]


def _widths(rows: Sequence[Line], width: int) -> list[int]:
    natural = [max(cell_len(row[at][0]) for row in rows) for at in range(len(_COLUMNS))]
    wanted = [max(cells, _MINIMUM.get(name, 0)) for name, cells in zip(_COLUMNS, natural, strict=True)]
    wanted[0] = min(wanted[0], max(_LEAST, width * 2 // 5))
    widths: list[int] = []
    for cells in wanted[:-1]:
        if sum(widths) + _GAP * len(widths) + cells > width:
            return widths
        widths.append(cells)
    rest = width - sum(widths) - _GAP * len(widths)
    return [*widths, rest] if rest >= _LEAST else widths


def _placed(text: str, cells: int, align: str) -> str:
    if cell_len(text) > cells:
        return f"{set_cell_size(text, cells - 1)}…"
    space = " " * (cells - cell_len(text))
    return space + text if align == ">" else text + space


def _cut(line: Line, width: int) -> Line:
    """The line, cut to the width of the terminal."""
    cut: Line = []
    for text, style in line:
        left = width - sum(cell_len(done) for done, _ in cut)
        cut.append((text if cell_len(text) <= left else _placed(text, left, "<"), style))
    return cut
