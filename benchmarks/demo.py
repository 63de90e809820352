"""The moving picture of the README: the tree of `runners.demo`, while its context is killed and its streams continue.

    python -m benchmarks.demo          runs the demo, and draws docs/demo.svg

The picture is that of one real run with real processes, at a lower speed. A viewer that shows no motion, or whose user has asked
for none, shows the whole run at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import trio
from attrs import define, field, frozen

from runners.demo import PROMPTS, Ledger, Strike, declare, read_prompts
from runners.types import TokenChunk
from supervise import open_tree
from supervise.events import Event
from supervise.sinks.data import as_data
from supervise.views.lanes import seconds
from supervise.views.timeline import Lane, Timeline, timelines
from supervise.views.words import branches

PICTURE = Path(__file__).parents[1] / "docs" / "demo.svg"
STREAMS, STRUCK, AT_TOKEN = 4, 1, 70
"""How many streams there are, and at which token of which one the context is killed."""
PLAYED, HELD = 8.0, 4.0
"""In seconds: for how long the run is played, and then its end is shown."""


@frozen
class Run:
    """What is drawn: the states of the nodes, and when each stream had its tokens, in seconds since the run began."""

    states: Timeline
    tokens: Mapping[int, Sequence[float]]
    facts: str


@define
class _Watched(Ledger):
    """A ledger that also keeps the time of each chunk."""

    times: dict[int, list[float]] = field(factory=dict[int, list[float]])

    def accept(self, number: int, chunk: TokenChunk, gap: float) -> None:
        """Count one chunk."""
        super().accept(number, chunk, gap)
        self.times.setdefault(number, []).extend([trio.current_time()] * len(chunk.token_ids))


def record() -> Run:
    """Run the demo without a fault and with one, and compare.

    Raises:
        AssertionError: the streams differ.
    """
    prompts = read_prompts(str(PROMPTS))[:STREAMS]
    whole, _ = _played(_Watched(prompts, seed=0))
    ledger, seen = _played(_Watched(prompts, seed=0, strikes=[Strike("kill", STRUCK, AT_TOKEN)]))
    assert ledger.texts == whole.texts, "the texts differ from those of a run without a fault"
    assert (ledger.restarts, ledger.lost, ledger.duplicated) == (1, 0, 0), ledger.summary()
    data = [as_data(event, number=number, time=event.at) for number, event in enumerate(seen, 1)]
    [states] = timelines(data)
    tokens = {number: [at - states.began for at in times] for number, times in ledger.times.items()}
    count = sum(ledger.tokens.values())
    return Run(states, tokens, f"{count} tokens: none lost, none twice, the same text as without the kill")


def _played(ledger: _Watched) -> tuple[_Watched, list[Event]]:
    seen: list[Event] = []

    async def main() -> None:
        async with open_tree(declare(ledger, at_once=STREAMS, show=False), sinks=[seen.append]) as tree:
            await tree.root.ended()

    trio.run(main)
    return ledger, seen


# --- the picture

_WIDTH, _MARGIN, _ROW, _HEAD = 880.0, 24.0, 32.0, 104.0
_STATE, _LEFT, _RIGHT = 196.0, 320.0, _WIDTH - _MARGIN
"""Where the column of the states begins, and the two ends of the lanes."""
_BEFORE = 0.06
"""Seconds that are shown before the first token. The last token is the end."""
_COLOURS: Final = {
    "card": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "faint": ("#59636e", "#9198a1"),
    "grid": ("#d8dee4", "#30363d"),
    "up": ("#1a7f37", "#3fb950"),
    "trouble": ("#cf222e", "#ff7b72"),
    "starting": ("#9a6700", "#d29922"),
    "token": ("#0969da", "#58a6ff"),
}
"""On a light and on a dark screen."""
_LOOKS: Final = {"up": "up", "failed": "trouble", "starting": "starting", "releasing": "trouble"}


def draw(run: Run) -> str:
    """The picture as the text of an SVG file, in ASCII, without scripts, fonts or anything else from outside the file."""
    return _Picture(run).text()


class _Picture:
    def __init__(self, run: Run) -> None:
        self._run = run
        times = [at for stream in run.tokens.values() for at in stream]
        self._first, self._last = min(times) - _BEFORE, max(times)
        self._lanes = list(branches(run.states.lanes[0], self._below))
        self._bottom = _HEAD + _ROW * (len(self._lanes) + len(run.tokens)) + 12
        self._parts: list[ET.Element] = []
        self._moves: list[str] = []

    def _below(self, lane: Lane) -> list[Lane]:
        return [each for each in self._run.states.lanes if each.path.rpartition("/")[0] == lane.path]

    def _share(self, at: float) -> float:
        """How much of the run that is shown is over at an instant, from 0 to 1."""
        return min(max((at - self._first) / (self._last - self._first), 0.0), 1.0)

    def _x(self, at: float) -> float:
        return _LEFT + self._share(at) * (_RIGHT - _LEFT)

    def _percent(self, at: float) -> float:
        """When an instant of the run comes, as a part of the time that the picture takes."""
        return 100 * self._share(at) * PLAYED / (PLAYED + HELD)

    # --- elements

    def _add(self, kind: str, look: str, text: str = "", **its: float | str) -> ET.Element:
        given = {
            name.replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else value
            for name, value in its.items()
        }
        element = ET.Element(kind, {**given, "class": look})
        element.text = text or None
        self._parts.append(element)
        return element

    def _during(self, element: ET.Element, start: float, end: float) -> None:
        """Show an element only between two instants; without motion it is shown if the end is that of the picture."""
        name = f"m{len(self._moves)}"
        begin, stop = self._percent(start), self._percent(end)
        stays = end >= self._last
        hidden = "" if stays else f"{stop:.2f}%,to{{opacity:0}}"
        self._moves.append(
            f"@keyframes {name}{{from{{opacity:{int(begin <= 0)}}}{begin:.2f}%{{opacity:1}}{hidden}}}"
        )
        element.set("style", f"animation-name:{name}")
        element.set("class", f"{element.get('class')} step{'' if stays else ' past'}")

    # --- parts

    def text(self) -> str:
        """The whole file."""
        for number, (stem, lane) in enumerate(self._lanes):
            self._node(_HEAD + _ROW * (number + 0.5), stem, lane)
        for number, times in sorted(self._run.tokens.items()):
            self._stream(_HEAD + 12 + _ROW * (len(self._lanes) + number + 0.5), number, times)
        self._deaths()
        self._axis()
        self._future()
        self._head()
        self._events()
        height = self._bottom + 124
        root = ET.Element(
            "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {_WIDTH:g} {height:g}"}
        )
        ET.SubElement(root, "title").text = "A context is killed, and its streams continue"
        ET.SubElement(root, "style").text = self._style()
        ET.SubElement(root, "rect", {"width": "100%", "height": "100%", "rx": "10", "class": "card"})
        root.extend(self._parts)
        ET.indent(root, "")
        return ET.tostring(root, encoding="us-ascii").decode() + "\n"

    def _style(self) -> str:
        light, dark = (
            "".join(f".{name}{{fill:{pair[theme]}}}" for name, pair in _COLOURS.items()) for theme in (0, 1)
        )
        total, gone = PLAYED + HELD, f"transform:translateX({_RIGHT - _LEFT:g}px)"
        return "\n".join(
            [
                "text{font:17px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}",
                ".title{font-size:21px;font-weight:600}",
                ".small{font-size:15px}",
                ".past{opacity:0}",
                light,
                f"@media(prefers-color-scheme:dark){{{dark}}}",
                "@media(prefers-reduced-motion:no-preference){",
                f".step{{animation:{total:g}s step-end infinite}}",
                f".future{{animation:{total:g}s linear infinite future}}",
                f"@keyframes future{{from{{transform:none}}{100 * PLAYED / total:.2f}%,to{{{gone}}}}}",
                *self._moves,
                "}",
            ]
        )

    def _head(self) -> None:
        slower = PLAYED / (self._last - self._first)
        self._add("text", "ink title", "A context is killed, and its streams continue", x=_MARGIN, y=40.0)
        words = (
            f"runners.demo, {len(self._run.tokens)} streams at once, {slower:.0f} times slower than it ran"
        )
        self._add("text", "faint small", words, x=_MARGIN, y=66.0)

    def _node(self, y: float, stem: str, lane: Lane) -> None:
        self._add("text", "ink", f"{stem}{lane.path.rpartition('/')[2]}", x=_MARGIN, y=y + 6)
        for part in lane.segments:
            start, end = max(part.start, self._first), min(part.end, self._last)
            if start >= end:
                continue
            look = _LOOKS.get(part.state, "faint")
            word = f"{part.state} #{part.incarnation}" if lane.failures else part.state
            self._during(self._add("text", look, word, x=_STATE, y=y + 6), start, end)
            width = self._x(end) - self._x(start)
            thick = 12.0 if lane.failures else 4.0
            self._add("rect", look, x=self._x(start), y=y - thick / 2, width=max(width, 1.0), height=thick)

    def _stream(self, y: float, number: int, times: Sequence[float]) -> None:
        self._add("text", "ink", f"stream {number + 1}", x=_MARGIN, y=y + 6)
        self._add("rect", "grid", x=_LEFT, y=y, width=_RIGHT - _LEFT, height=1.0)
        for at in sorted({round(self._x(at), 1) for at in times}):
            self._add("rect", "token", x=at, y=y - 8, width=1.6, height=16.0)
        words = f"{len(times)} tokens"
        self._during(self._add("text", "token", words, x=_STATE, y=y + 6), times[-1], self._last)

    def _deaths(self) -> None:
        for lane in self._run.states.lanes:
            for failure in lane.failures:
                x = self._x(failure.at)
                self._add(
                    "rect", "trouble", x=x - 1, y=_HEAD - 16, width=2.0, height=self._bottom - _HEAD + 12
                )
                self._add("text", "trouble small", "SIGKILL", x=x + 6, y=_HEAD - 4)

    def _axis(self) -> None:
        step = next((each for each in (0.5, 0.2, 0.1) if 2 * each < self._last - self._first), 0.05)
        for number in range(int((self._last - self._first) / step) + 1):
            x = self._x(self._first + number * step)
            if x < _RIGHT - 40:
                self._add("text", "faint small", f"{number * step:g} s", x=x, y=self._bottom + 16)

    def _future(self) -> None:
        """What has not happened yet is covered, and the cover moves to the right."""
        box = {"y": f"{_HEAD - 24:g}", "height": f"{self._bottom - _HEAD + 24:g}"}
        # An attribute, since some viewers that show no motion know no `transform` in a style either.
        cover = ET.Element("g", {"class": "future", "transform": f"translate({_RIGHT - _LEFT:g})"})
        wide = f"{_WIDTH - _LEFT + _MARGIN:g}"
        ET.SubElement(cover, "rect", {"class": "card", "x": f"{_LEFT:g}", "width": wide, **box})
        ET.SubElement(cover, "rect", {"class": "faint", "x": f"{_LEFT:g}", "width": "1.5", **box})
        self._parts.append(cover)

    def _events(self) -> None:
        """What the tree reports, each line from its time on, and at last what the streams have got."""
        for line, (at, look, words) in enumerate(self._reports()):
            element = self._add("text", f"{look} small", words, x=_MARGIN, y=self._bottom + 44 + 22 * line)
            self._during(element, at, self._last)

    def _reports(self) -> Iterator[tuple[float, str, str]]:
        [(name, failure)] = [
            (lane.path, failure) for lane in self._run.states.lanes for failure in lane.failures
        ]
        assert failure.again is not None
        yield failure.at, "trouble", f"[{name} #{failure.incarnation}] failed: {failure.error}"
        decided = f"{failure.directive} for {failure.tag!r}, decided by {failure.by!r}"
        yield failure.at, "starting", f"[{name} #{failure.incarnation}] \N{RIGHTWARDS ARROW} {decided}"
        ready = f"is ready again, {seconds(failure.again - failure.at)} after the failure"
        yield failure.again, "up", f"[{name} #{failure.incarnation + 1}] {ready}"
        yield max(times[-1] for times in self._run.tokens.values()), "ink", self._run.facts


def main() -> None:
    """The command."""
    PICTURE.write_text(draw(record()))
    sys.stdout.write(f"{PICTURE}\n")


if __name__ == "__main__":
    main()
