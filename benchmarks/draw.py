"""The pictures: the comparison, and the growth of costs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .growth import FEW, HISTORY, SIBLINGS, Curves
from .measure import Results
from .rows import OURS, ROWS, Row
from .svg import FAINT, GRID, INK, Picture, Scale, spread
from .table import Line, number

MET, MISSED, ERLANG, PEER = "#1a7f37", "#cf222e", "#8250df", "#8c959f"
COLORS = (
    "#0969da",
    "#1a7f37",
    "#bf8700",
    "#cf222e",
    "#8250df",
    "#bf3989",
    "#0a7ea4",
    "#57606a",
    "#953800",
    "#116329",
)
TOP, STEP, LEFT, WIDTH = 96, 30, 400, 960


def comparison(results: Results) -> str:
    """Each row against bare Trio; further to the right is better."""
    lines = [Line(row, results) for row in ROWS if _compares(row)]
    lines = [line for line in lines if line.ratio is not None]
    picture = Picture(
        WIDTH, TOP + STEP * len(lines) + 40, "trio-supervise against bare Trio doing the same work"
    )
    scale = Scale(1 / 16, 64, LEFT, WIDTH - 50)
    _legend(picture)
    _grid(picture, scale, TOP + STEP * len(lines))
    for place, line in enumerate(lines):
        _row(picture, scale, TOP + STEP * (place + 0.5), line)
    about = results["about"]
    versions = ", ".join(about["versions"][name] for name in (OURS, "erlang") if name in about["versions"])
    picture.text(
        20,
        TOP + STEP * len(lines) + 26,
        f"{versions}; {about['machine']}; {about['at'][:10]}",
        color=FAINT,
        size=11,
    )
    return str(picture)


def _compares(row: Row) -> bool:
    return row.reference is not None and row.reference.startswith("trio")


def _legend(picture: Picture) -> None:
    entries = (
        (MET, False, "this project, target met"),
        (MISSED, False, "target missed"),
        (ERLANG, True, "Erlang/OTP"),
    )
    x = 20.0
    for color, hollow, words in entries:
        picture.dot(x + 5, 50, color=color, radius=5, hollow=hollow)
        picture.text(x + 15, 54, words, color=FAINT)
        x += 30 + 6.5 * len(words)
    picture.dot(x + 5, 50, color=PEER, radius=3)
    picture.text(x + 15, 54, "other libraries", color=FAINT)
    picture.line(x + 130, 43, x + 130, 57, color=INK, width=2)
    picture.text(x + 137, 54, "target", color=FAINT)


def _grid(picture: Picture, scale: Scale, bottom: float) -> None:
    for power in range(-4, 7, 2):
        times = 2.0**power
        picture.line(scale(times), TOP, scale(times), bottom, color=FAINT if power == 0 else GRID)
        words = (
            "same as Trio" if power == 0 else f"{times:g} × better" if power > 0 else f"{1 / times:g} × worse"
        )
        if times in (scale.least, scale.most):
            words += ", or more"  # a value outside is drawn at the end
        picture.text(scale(times), TOP - 8, words, color=FAINT, anchor="middle", size=11)


def _row(picture: Picture, scale: Scale, y: float, line: Line) -> None:
    """The dots of the contenders, that of this project last and on top."""
    row = line.row
    assert row.target is not None
    assert line.ratio is not None
    picture.text(20, y + 4, row.title)
    reference = line.value(row.reference or "")
    for contender in line.contenders:
        value = line.value(contender)
        if value and reference and not contender.startswith("trio") and contender != OURS:
            erlang = contender == "erlang"
            place = scale(_better(row, value / reference))
            picture.dot(place, y, color=ERLANG if erlang else PEER, radius=5 if erlang else 3, hollow=erlang)
    color = MET if line.met else MISSED
    picture.line(scale(1), y, scale(_better(row, line.ratio)), y, color=color, width=3)
    picture.dot(scale(_better(row, line.ratio)), y, color=color, radius=6)
    target = scale(_better(row, row.target))
    picture.line(target, y - 9, target, y + 9, color=INK, width=2)


def _better(row: Row, ratio: float) -> float:
    """The factor by which a ratio is better than the reference."""
    return ratio if row.more_is_better else 1 / ratio


def growth(curves: Curves) -> str:
    """The cost of each operation by the number of siblings, and by the number of earlier restarts."""
    plot = _Plot(curves)
    plot.panel(60, SIBLINGS, curves["siblings"], "siblings")
    ends = plot.panel(440, HISTORY, curves["history"], f"restarts before, among {FEW} siblings")
    plot.names(ends)
    return str(plot.picture)


_End = tuple[str, float, str]
"""The end of a curve: its name, its height and its color."""


class _Plot:
    """Panels side by side, with one vertical axis."""

    TOP, BOTTOM, PANEL = 60, 410, 270

    def __init__(self, curves: Curves) -> None:
        self.picture = Picture(
            WIDTH, 470, "What one operation costs, by the number of siblings and by the past"
        )
        values = [
            value for curve in curves.values() for points in curve.values() for value in points if value
        ]
        least, most = (
            10 ** whole(math.log10(end))
            for whole, end in ((math.floor, min(values)), (math.ceil, max(values)))
        )
        self._vertical = Scale(least, most, self.BOTTOM, self.TOP)

    def panel(
        self, left: float, ticks: Sequence[int], curves: dict[str, list[float | None]], words: str
    ) -> list[_End]:
        """Draw one set of curves. Returns the end of each."""
        picture, vertical = self.picture, self._vertical
        horizontal = Scale(ticks[0], ticks[-1], left, left + self.PANEL)
        for tick in ticks:
            picture.line(horizontal(tick), self.TOP, horizontal(tick), self.BOTTOM)
            picture.text(
                horizontal(tick), self.BOTTOM + 16, f"{tick:,}", color=FAINT, anchor="middle", size=11
            )
        picture.text(left + self.PANEL / 2, self.BOTTOM + 38, words, color=FAINT, anchor="middle")
        self._seconds(left)
        ends = []
        for (name, values), color in zip(curves.items(), COLORS * 2, strict=False):
            points = [(horizontal(x), vertical(y)) for x, y in zip(ticks, values, strict=False) if y]
            picture.curve(points, color=color)
            ends.append((name, points[-1][1], color))
        return ends

    def _seconds(self, left: float) -> None:
        value = self._vertical.least
        while value <= self._vertical.most * 1.01:
            y = self._vertical(value)
            self.picture.line(left, y, left + self.PANEL, y)
            self.picture.text(left - 6, y + 4, number(value, "s"), color=FAINT, anchor="end", size=11)
            value *= 10

    def names(self, ends: Sequence[_End]) -> None:
        """Write the names of the curves beside the last panel."""
        right = 440 + self.PANEL
        for (name, y, color), place in zip(ends, spread([y for _, y, _ in ends], 16), strict=True):
            self.picture.line(right + 4, y, right + 20, place, color=color)
            self.picture.text(right + 24, place + 4, name, color=color)
