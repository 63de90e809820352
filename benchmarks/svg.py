"""The SVG elements that the pictures need, one on each line, so that a diff shows a change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

INK, FAINT, GRID, CARD = "#24292f", "#6e7781", "#d8dee4", "#ffffff"
DARK = {
    INK: "#e6edf3",
    FAINT: "#9198a1",
    GRID: "#2d333b",
    CARD: "#0d1117",
    "#0969da": "#58a6ff",
    "#cf222e": "#ff7b72",
    "#1a7f37": "#3fb950",
    "#bf8700": "#d29922",
    "#8250df": "#bc8cff",
}
"""What takes the place of a color where the reader's page is dark."""
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


class Picture:
    """A card to draw on: white, and with `dark` a dark one where the reader's page is dark."""

    def __init__(self, width: float, height: float, title: str, *, dark: bool = False) -> None:
        self._size = f'width="{width:g}" height="{height:g}"'
        box = f'viewBox="0 0 {width:g} {height:g}"'
        self._lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {self._size} {box} font-family="{FONT}" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect {self._size} rx="8" fill="{CARD}"/>',
        ]
        if dark:
            self._lines.insert(2, _dark_style())
        self.text(20, 28, title, size=15, weight=600)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        color: str = INK,
        anchor: str = "start",
        size: int = 12,
        weight: int = 400,
    ) -> None:
        """A text whose baseline begins, or ends, at a point."""
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}"'
        self._lines.append(f'<text {place} fill="{color}">{escape(text)}</text>')

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, color: str = GRID, width: float = 1
    ) -> None:
        """A straight line."""
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self._lines.append(f'<line {ends} stroke="{color}" stroke-width="{width:g}"/>')

    def curve(self, points: Sequence[tuple[float, float]], *, color: str, width: float = 2) -> None:
        """Lines from point to point."""
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._lines.append(
            f'<polyline points="{joined}" fill="none" stroke="{color}" stroke-width="{width:g}"/>'
        )

    def ticks(self, xs: Sequence[float], y: float, height: float, *, color: str) -> None:
        """Short upright lines, at a height."""
        strokes = " ".join(f"M{x:.1f} {y - height / 2:.1f}v{height:g}" for x in xs)
        self._lines.append(f'<path d="{strokes}" stroke="{color}" stroke-width="1"/>')

    def dot(self, x: float, y: float, *, color: str, radius: float = 4, hollow: bool = False) -> None:
        """A circle."""
        fill, stroke = (CARD, color) if hollow else (color, CARD)
        place = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"'
        self._lines.append(f'<circle {place} fill="{fill}" stroke="{stroke}" stroke-width="1.5"/>')

    def bar(self, x1: float, y1: float, x2: float, y2: float, *, color: str) -> None:
        """A filled box."""
        place = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
        self._lines.append(f'<rect {place} fill="{color}"/>')

    def __str__(self) -> str:
        return "\n".join([*self._lines, "</svg>", ""])


def _dark_style() -> str:
    rules = "".join(
        f'[{kind}="{color}"]{{{kind}:{other}}}'
        for color, other in DARK.items()
        for kind in ("fill", "stroke")
    )
    return f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"


class Scale:
    """A logarithmic axis: from a number to its place between two ends."""

    def __init__(self, least: float, most: float, begin: float, end: float) -> None:
        self.least, self.most = least, most
        self._begin = begin
        self._per_decade = (end - begin) / (math.log10(most) - math.log10(least))

    def __call__(self, value: float) -> float:
        """The place of a number; a number outside is placed at the end."""
        value = min(max(value, self.least), self.most)
        return self._begin + (math.log10(value) - math.log10(self.least)) * self._per_decade


def spread(places: Sequence[float], apart: float) -> list[float]:
    """The same places, in the same order, moved down until they are `apart` from each other."""
    moved: dict[int, float] = {}
    last = -math.inf
    for index in sorted(range(len(places)), key=places.__getitem__):
        last = moved[index] = max(places[index], last + apart)
    return [moved[index] for index in range(len(places))]
