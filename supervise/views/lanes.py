"""What of a timeline has room on so many pixels: a scale with ticks, the bars of a lane, and the marks of its failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta, timezone
from math import ceil
from typing import Final

from attrs import define, frozen

from .timeline import Failure, Lane, Segment, State

_THINNEST: Final = 1.0
"""Whatever is shorter shares a column of this width with its neighbours, and the worst state is drawn there."""
_TOGETHER: Final = 7.0
"""Failures closer than so many pixels have one mark."""
_WORST: Final[tuple[State, ...]] = (
    "failed",
    "backing off",
    "starting",
    "stopping",
    "releasing",
    "down",
    "up",
)


def seconds(time: float) -> str:
    """A time in the unit in which people read it: `0.4 ms`, `820 ms`, `1.23 s`, `12 min 3 s`, `5 h 12 min`."""
    if time < 60:  # noqa: PLR2004 - A minute has so many seconds.
        if time < 0.0095:  # noqa: PLR2004 - Below ten milliseconds it has a digit more.
            return f"{1000 * time:.1f} ms".replace("0.0 ms", "0 ms")
        return f"{1000 * time:.0f} ms" if time < 0.9995 else f"{time:.3g} s"  # noqa: PLR2004 - From a second on it is in seconds.
    minutes, rest = divmod(round(time), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


def zone_of(when: float) -> timezone:
    """The local time zone as it was then; it stays the same over a picture, even if the clocks change meanwhile."""
    offset = datetime.fromtimestamp(when).astimezone().utcoffset()
    return timezone(offset or timedelta())


def time_at(when: float, zone: timezone) -> datetime:
    """A time in seconds since 1970 as a date and a time of day."""
    return datetime.fromtimestamp(min(max(when, 0.0), 2e11), zone)


_STEPS: Final = [
    *(factor * unit for unit in (1e-3, 1e-2, 0.1) for factor in (1, 2, 5)),
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400),
]
_DAY: Final = 86400


@frozen
class Scale:
    """From seconds since the run began to pixels.

    Args:
        began: the beginning of the run, in seconds since 1970.
        first: the time at the left end, in seconds since the run began.
        last: the time at the right end, later than `first`.
        left: the left end, in pixels.
        right: the right end.
        zone: in which the ticks are labelled.
    """

    began: float
    first: float
    last: float
    left: float
    right: float
    zone: timezone

    def x(self, at: float) -> float:
        """The place of this time, or the end of the picture that is nearer to it."""
        share = (min(max(at, self.first), self.last) - self.first) / (self.last - self.first)
        return self.left + share * (self.right - self.left)

    def shows(self, at: float) -> bool:
        """Whether this time is between both ends."""
        return self.first <= at <= self.last

    def ticks(self) -> list[tuple[float, str]]:
        """The place and the label of each tick: round times of the local clock."""
        least = (self.last - self.first) * 90 / max(1.0, self.right - self.left)
        step = next((step for step in _STEPS if step >= least), _DAY * ceil(least / _DAY))
        shape = "%H:%M:%S" if step < 60 else "%H:%M" if step < _DAY else "%m-%d"  # noqa: PLR2004 - Whole minutes need no seconds.
        digits = next((digits for digits, unit in ((0, 1), (2, 0.1), (3, 1e-2)) if step >= unit), 4)
        local = self.began + self.zone.utcoffset(None).total_seconds()
        found: list[tuple[float, str]] = []
        number = ceil((local + self.first) / step)
        while (at := number * step - local) <= self.last:
            when = time_at(self.began + at + 5e-5, self.zone)
            label = f"{when:{shape}}" + (f".{when.microsecond // 1000:03}"[:digits] if digits else "")
            found.append((self.x(at), label))
            number += 1
        return found


@frozen
class Bar:
    """A part of a lane in one colour, with its tooltip; the state is the worst of all within it."""

    x: float
    width: float
    state: State
    incarnation: int
    title: str


def bars(scale: Scale, lane: Lane) -> Iterator[Bar]:
    """The bars from left to right. However many segments there are, there is at most one bar for each pixel."""
    for x, group in _columns(scale, lane.segments):
        width = max(_THINNEST, scale.x(group[-1].end) - x)
        worst = min(group, key=lambda segment: _WORST.index(segment.state))
        title = _title(scale, lane, worst)
        if len(group) > 1:
            title += (
                f" (and {len(group) - 1:,} more changes within {seconds(group[-1].end - group[0].start)})"
            )
        yield Bar(x, width, worst.state, worst.incarnation, title)


def _columns(scale: Scale, segments: Iterable[Segment]) -> Iterator[tuple[float, list[Segment]]]:
    """Where each bar begins, and its segments: one with a width of its own, or those that begin within one column.

    A segment has a width of its own only beside the whole column before it. Otherwise each pair of a thin and a wide one would move all
    later bars to the right.
    """
    thin: list[Segment] = []
    left = 0.0
    for segment in segments:
        if segment.end < scale.first or segment.start > scale.last:
            continue
        x = scale.x(segment.start)
        if thin and x >= left + _THINNEST:
            yield left, thin
            thin = []
        begins = max(x, left + _THINNEST) if thin else x
        if scale.x(segment.end) - begins >= _THINNEST:
            if thin:
                yield left, thin
                thin = []
            yield begins, [segment]
        else:
            left = left if thin else x
            thin.append(segment)
    if thin:
        yield left, thin


def _title(scale: Scale, lane: Lane, segment: Segment) -> str:
    start = time_at(scale.began + segment.start, scale.zone)
    why = f": {segment.why}" if segment.why else ""
    took = seconds(segment.end - segment.start)
    return (
        f"{lane.path} #{segment.incarnation} {segment.state} from {start:%H:%M:%S.%f}"[:-3]
        + f" for {took}{why}"
    )


@define
class Cluster:
    """Failures of one node that are so close that they have one mark."""

    x: float
    failures: list[Failure]

    def texts(self, lane: Lane) -> Iterator[str]:
        """What may stand beside the mark, the longest first."""
        last = self.failures[-1]
        times = f"{len(self.failures):,} × " if len(self.failures) > 1 else ""
        name = last.tag or last.error.partition(":")[0]
        to = f" → {last.directive}" if last.directive else ""
        gap = _gap(lane, last)
        yield f"{times}{name}{to} · {gap}"
        yield f"{times}{name} · {gap}"
        yield f"{times}{gap}"
        if times:
            yield f"{len(self.failures):,} ×"

    def title(self, lane: Lane) -> str:
        """The tooltip of the mark: the last failures, one on each line."""
        shown = self.failures[-5:]
        more = (
            [f"{len(self.failures) - len(shown):,} failures before"]
            if len(self.failures) > len(shown)
            else []
        )
        return "\n".join(
            [*more, *(f"{lane.path} #{each.incarnation} {_described(lane, each)}" for each in shown)]
        )


def _described(lane: Lane, failure: Failure) -> str:
    when = "failed to start" if failure.starting else "failed"
    tag = f" [{failure.tag}]" if failure.tag else ""
    to = f" → {failure.directive}" if failure.directive else ""
    by = f" by {failure.by}" if failure.directive and failure.by else ""
    return f"{when}: {failure.error}{tag}{to}{by}; {_gap(lane, failure, 'ready again after ')}"


def _gap(lane: Lane, failure: Failure, before: str = "") -> str:
    if failure.gap is not None:
        return f"{before}{seconds(failure.gap)}"
    return "not started again" if lane.state == "down" else "not ready again"


def clusters(scale: Scale, lane: Lane) -> Iterator[Cluster]:
    """The failures that are shown, in groups that have one mark each."""
    cluster: Cluster | None = None
    for failure in lane.failures:
        if not scale.shows(failure.at):
            continue
        x = scale.x(failure.at)
        if cluster is not None and x - cluster.x < _TOGETHER:
            cluster.failures.append(failure)
            continue
        if cluster is not None:
            yield cluster
        cluster = Cluster(x, [failure])
    if cluster is not None:
        yield cluster
