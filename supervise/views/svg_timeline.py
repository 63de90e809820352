"""A timeline as an SVG picture: one lane for each node, without scripts, fonts or anything else from outside the file."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from math import inf
from typing import Final, get_args
from xml.etree import ElementTree as ET

from attrs import define, field

from .lanes import Cluster, Scale, bars, clusters, seconds, time_at, zone_of
from .timeline import Lane, State, Timeline, leading

_MARGIN, _BAR, _ROW, _LABEL = 12.0, 11.0, 17.0, 13.0
"""In pixels: around everything; the height of a bar, of its lane, and of the line of text above it."""
_HEIGHT: Final[dict[str, float]] = {"down": 2.0, "backing off": 5.0}
_COLOURS: Final[dict[str, tuple[str, str]]] = {
    "card": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "grid": ("#e7ebef", "#232a33"),
    "trouble": ("#c1121f", "#ff7b72"),
    "on": ("#10331f", "#d9f2e4"),
    "starting": ("#58a6e8", "#4a93d1"),
    "up": ("#86c9a3", "#2b6b4a"),
    "failed": ("#d1242f", "#f0483e"),
    "releasing": ("#e0b92f", "#d3ab22"),
    "stopping": ("#e07b00", "#e58a1f"),
    "backing-off": ("#8e63c0", "#a57fd6"),
    "down": ("#aab3bc", "#57606a"),
}
"""The fill of each class of element, on a light and on a dark screen."""


def draw(
    timeline: Timeline,
    *,
    width: int = 1000,
    most: int | None = 40,
    start: float | None = None,
    end: float | None = None,
    facts: Iterable[str] = (),
) -> str:
    """The picture as the text of an SVG file, in ASCII.

    Args:
        timeline: of a run, or of a part of its tree; it has a lane.
        width: of the picture, in pixels, 300 or more; its height follows from the lanes.
        most: how many lanes are drawn. Those in trouble and the ones above them come first, and a line below the last lane says
            how many are left out. None draws all.
        start: the left end, in seconds since the run began; None is its beginning.
        end: the right end; None is the end of the run.
        facts: further texts for the line below the title.
    """
    first = 0.0 if start is None else start
    last = max(timeline.end if end is None else end, first + 1e-3)
    lanes = (
        list(timeline.lanes)
        if most is None
        else leading(timeline.lanes, _in_trouble(timeline, first, last), most)
    )
    top = timeline.lanes[0].depth
    step = min(12.0, 0.16 * width / max(1, *(lane.depth - top for lane in lanes)))
    indents = [step * (lane.depth - top) for lane in lanes]
    names = max(indent + _width(lane.name) for lane, indent in zip(lanes, indents, strict=True))
    left = _MARGIN + min(names + 10, 0.36 * width, 320)
    page = _Page(
        float(width), Scale(timeline.began, first, last, left, width - _MARGIN - 4, zone_of(timeline.began))
    )
    page.head(timeline, [*_facts(timeline, first, last), *facts])
    page.axis()
    for lane, indent in zip(lanes, indents, strict=True):
        page.lane(lane, indent)
    page.foot(_left_out(timeline, lanes), axis=len(lanes) > 25)  # noqa: PLR2004 - Then the first axis may be off the screen.
    return page.finished()


def _in_trouble(timeline: Timeline, first: float, last: float) -> list[Lane]:
    """The lanes with something to see, the worst first: not up at the end of the run, then those with the most failures."""

    def trouble(lane: Lane) -> tuple[bool, int, int]:
        failures = sum(first <= failure.at <= last for failure in lane.failures)
        lost = not timeline.ended and failures > 0 and lane.state != "up"
        return lost, failures, sum(first <= note.at <= last for note in lane.notes)

    troubled = [lane for lane in timeline.lanes if any(trouble(lane))]
    return sorted(troubled, key=trouble, reverse=True)


def _left_out(timeline: Timeline, drawn: Sequence[Lane]) -> str:
    """How many lanes are left out, and how many of them failed."""
    missing = {lane.path: lane for lane in timeline.lanes}
    for lane in drawn:
        del missing[lane.path]
    if not missing:
        return ""
    failed = sum(bool(lane.failures) for lane in missing.values())
    which = f"{failed:,} of them failed" if failed else "none of them failed"
    nodes = "more nodes are" if len(missing) > 1 else "more node is"
    return f"{len(missing):,} {nodes} left out, {which}; --all draws every node"


def _facts(timeline: Timeline, first: float, last: float) -> Iterator[str]:
    """The line below the title."""
    zone = zone_of(timeline.began)
    began, end = (time_at(timeline.began + at, zone) for at in (first, last))
    until = f"{end:%H:%M:%S}" if began.date() == end.date() else f"{end:%Y-%m-%d %H:%M:%S}"
    yield f"{began:%Y-%m-%d %H:%M:%S} – {until} {began:%Z}"
    yield f"{len(timeline.lanes):,} node{'s' * (len(timeline.lanes) != 1)}"
    failures = [
        failure for lane in timeline.lanes for failure in lane.failures if first <= failure.at <= last
    ]
    if failures:
        yield f"{len(failures):,} failure{'s' * (len(failures) > 1)}"
        gaps = [failure.gap for failure in failures if failure.gap is not None]
        if gaps:
            yield f"longest recovery {seconds(max(gaps))}"
    else:
        yield "no failures"
    if not timeline.whole:
        yield "earlier events are missing"
    if not timeline.ended and last >= timeline.end:
        yield "had not ended at the last event"


@define
class _Page:
    """A picture that grows downwards."""

    width: float
    scale: Scale
    y: float = _MARGIN
    top: float = 0.0
    parts: list[ET.Element] = field(factory=list[ET.Element])
    ticks: list[tuple[float, str]] = field(factory=list[tuple[float, str]])

    # --- elements

    def rect(self, x: float, y: float, width: float, height: float, look: str, *, title: str = "") -> None:
        """A rectangle, with a tooltip."""
        self._add("rect", title, x=x, y=y, width=width, height=height, look=look)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        look: str = "ink",
        *,
        size: int = 12,
        anchor: str = "",
        title: str = "",
    ) -> None:
        """A line of text, whose base line is at y."""
        more = {"text-anchor": anchor} if anchor else {}
        self._add("text", title, x=x, y=y, look=f"{look} s{size}", **more).text = text

    def _add(self, kind: str, title: str, *, look: str, **attributes: float | str) -> ET.Element:
        its = {
            name: _number(value) if isinstance(value, float) else str(value)
            for name, value in attributes.items()
        }
        element = ET.Element(kind, {**its, "class": look})
        if title:
            ET.SubElement(element, "title").text = title
        self.parts.append(element)
        return element

    # --- parts of the picture

    def head(self, timeline: Timeline, facts: Sequence[str]) -> None:
        """The title, the facts, and the legend of the states."""
        self.y += 16
        self.text(
            _MARGIN,
            self.y,
            _fitting(timeline.lanes[0].path, self.width - 2 * _MARGIN, 16),
            "ink name",
            size=16,
        )
        for line in _lines(facts, " · ", self.width - 2 * _MARGIN):
            self.y += 17
            self.text(_MARGIN, self.y, line, "faint")
        self._legend(timeline)
        self.y += 12

    def _legend(self, timeline: Timeline) -> None:
        """The states that occur, and the marks."""
        x = _MARGIN
        self.y += 19
        used = {segment.state for lane in timeline.lanes for segment in lane.segments}
        labels = [state for state in get_args(State) if state in used]
        labels += ["failure"] * any(lane.failures for lane in timeline.lanes)
        labels += ["warning"] * any(lane.notes for lane in timeline.lanes)
        for label in labels:
            if x > _MARGIN and x + 19 + _width(label) > self.width - _MARGIN:
                x = _MARGIN
                self.y += 16
            if label == "failure":
                self._triangle(x + 7, self.y - 1)
            elif label == "warning":
                self._diamond(x + 7, self.y - 4)
            else:
                height = _HEIGHT.get(label, 9.0)
                self.rect(x, self.y - 4 - height / 2, 14, height, _look(label))
            self.text(x + 19, self.y, label, "faint")
            x += 33 + _width(label)

    def axis(self) -> None:
        """The times, above the lanes; their lines are drawn when the height is known."""
        self.y += 12
        self.ticks = self.scale.ticks()
        self._labels()
        self.y += 6
        self.top = self.y

    def _labels(self) -> None:
        end = -inf
        for x, label in self.ticks:
            half = _width(label, 11) / 2
            place = min(x, self.width - 2 - half)
            if place - half > end:
                self.text(place, self.y, label, "faint", size=11, anchor="middle")
                end = place + half + 6

    def lane(self, lane: Lane, indent: float) -> None:
        """One node: its name, the bars of its states, its failures, and below them a thin line."""
        marks = list(clusters(self.scale, lane))
        self.y += _LABEL if marks else 0
        middle = self.y + _ROW / 2
        room = self.scale.left - _MARGIN - 8
        self.text(
            _MARGIN + indent,
            middle + 4,
            _fitting(lane.name, room - indent),
            "ink name" if lane.parent else "ink",
            title=lane.path,
        )
        last = 1
        for bar in bars(self.scale, lane):
            height = _HEIGHT.get(bar.state, _BAR)
            self.rect(bar.x, middle - height / 2, bar.width, height, _look(bar.state), title=bar.title)
            number = f"#{bar.incarnation}"
            if bar.state == "up" and bar.incarnation != last and bar.width > _width(number, 9) + 6:
                self.text(bar.x + 3, middle + 3.3, number, "on", size=9)
                last = bar.incarnation
        for note in lane.notes:
            if self.scale.shows(note.at):
                self._diamond(self.scale.x(note.at), middle, f"{lane.path} #{note.incarnation} {note.text}")
        self._failures(lane, marks, middle - _BAR / 2)
        self.y += _ROW
        self.rect(_MARGIN, self.y - 0.5, self.width - 2 * _MARGIN, 0.5, "grid")

    def _failures(self, lane: Lane, marks: Sequence[Cluster], y: float) -> None:
        """The marks, and beside each the longest text that has room before the next one."""
        free = 0.0
        for cluster, following in zip_longest(marks, marks[1:]):
            x = cluster.x
            until = self.width - 4 if following is None else following.x - 6
            self._triangle(x, y, cluster.title(lane))
            for text in cluster.texts(lane):
                width = _width(text, 11)
                if x + 6 + width <= until:
                    self.text(x + 6, y - 3, text, "trouble", size=11, title=cluster.title(lane))
                    free = x + 6 + width
                    break
                if following is None and x - 6 - width > max(free + 4, self.scale.left):
                    self.text(x - 6, y - 3, text, "trouble", size=11, anchor="end", title=cluster.title(lane))
                    break
            free = max(free, x + 6)

    def foot(self, line: str, *, axis: bool) -> None:
        """The lines of the axis, its labels once more if the picture is long, and how much is left out."""
        bottom = self.y
        for x, _ in self.ticks:
            self.rect(x, self.top, 1, bottom - self.top, "grid")
            self.parts.insert(0, self.parts.pop())  # below everything else
        if axis:
            self.y += 14
            self._labels()
        for part in _lines(line.split(), " ", self.width - 2 * _MARGIN):
            self.y += 18
            self.text(_MARGIN, self.y, part, "faint")
        self.y += _MARGIN

    def finished(self) -> str:
        """The text of the file; one element on each line, so that a comparison shows what has changed."""
        size = {"width": _number(self.width), "height": _number(self.y)}
        root = ET.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                **size,
                "viewBox": f"0 0 {size['width']} {size['height']}",
            },
        )
        ET.SubElement(root, "style").text = _style()
        ET.SubElement(root, "rect", {**size, "class": "card"})
        root.extend(self.parts)
        ET.indent(root, "")
        text: bytes = ET.tostring(root, encoding="us-ascii")
        return text.decode("ascii") + "\n"

    def _triangle(self, x: float, y: float, title: str = "") -> None:
        self._add("path", title, d=f"M{_number(x - 4)} {_number(y - 7)}h8l-4 7z", look="trouble")

    def _diamond(self, x: float, y: float, title: str = "") -> None:
        self._add("path", title, d=f"M{_number(x)} {_number(y - 5)}l5 5l-5 5l-5 -5z", look="note")


def _style() -> str:
    """The colours of light screens, and those of dark ones, where the reader's system asks for them."""
    font = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif"
    light, dark = (
        "".join(f".{look}{{fill:{colours[number]}}}" for look, colours in _COLOURS.items())
        + f".note{{fill:{_COLOURS['card'][number]};stroke:{_COLOURS['ink'][number]}}}"
        for number in (0, 1)
    )
    sizes = "".join(f".s{size}{{font-size:{size}px}}" for size in (9, 11, 12, 16))
    return (
        f"text{{font-family:{font}}}.name{{font-weight:600}}{sizes}{light}"
        f"@media (prefers-color-scheme: dark){{{dark}}}"
    )


def _look(state: str) -> str:
    return state.replace(" ", "-")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


# --- widths of texts


def _width(text: str, size: float = 12) -> float:
    """A bound of the width of a text in most fonts, in pixels."""
    return size * sum(1.05 if unicodedata.east_asian_width(letter) in "WF" else 0.6 for letter in text)


def _fitting(text: str, room: float, size: float = 12) -> str:
    """The text, or as much of it as has room."""
    if _width(text, size) <= room:
        return text
    while text and _width(f"{text}…", size) > room:
        text = text[:-1]
    return f"{text}…"


def _lines(parts: Iterable[str], between: str, room: float) -> Iterator[str]:
    """The parts in lines that have room."""
    line = ""
    for part in parts:
        longer = f"{line}{between}{part}" if line else part
        if line and _width(longer) > room:
            yield line
            longer = part
        line = longer
    if line:
        yield _fitting(line, room)
