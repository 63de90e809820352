"""What happened in a run, node by node: lanes of segments and failures, made from events as data. Nothing is drawn here.

The events are those of `docs/operating/events.md`, in any part of a run and of any number of runs: whatever is no event of this schema is
counted and left out, and of a time before its first event nothing is claimed about a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf
from typing import Any, Final, Literal, TypeGuard, cast

from attrs import define, evolve, field, frozen

from .. import events
from .._core._brief import printable
from ..sinks.data import VERSION

State = Literal["starting", "up", "failed", "releasing", "stopping", "backing off", "down"]

ENTERS: Final[Mapping[str, State]] = {
    "Starting": "starting",
    "StartOverdue": "starting",
    "Ready": "up",
    "Failed": "failed",
    "Decided": "releasing",
    "Resumed": "up",
    "Returned": "releasing",
    "Stopping": "stopping",
    "Stopped": "down",
    "BackingOff": "backing off",
}
"""The state in which each kind of event leaves its node; but a decided Resume changes nothing until the node has `Resumed`.

`failed`: it waits for a decision. `releasing`: it has returned, or its failure is decided, and it has not ended yet: it leaves
its resource, or stops its children.
"""

_KINDS: Final = frozenset(kind.__name__ for kind in events.KINDS)


@frozen
class Segment:
    """A node was in one state from `start` until `end`; both are seconds since the run began, and may be equal.

    Args:
        state: one of `State`.
        start: the node was in this state from here on.
        end: the instant at which the next segment begins.
        incarnation: the number of its life; of a node that is down or backs off, that of the last one.
        why: the reason of a stop, or the number of a backoff's attempt; else empty.
    """

    state: State
    start: float
    end: float
    incarnation: int
    why: str = ""


@frozen
class Failure:
    """A node failed.

    Args:
        at: seconds since the run began.
        incarnation: that which failed.
        error: the class and the text of the exception, in one line.
        starting: whether the node was starting.
        tag: None if it has none, or if no decision was seen.
        directive: `Restart`, `Resume`, `Stop` or `Escalate`; None if no decider was asked, or no decision was seen.
        by: the path of the supervisor that applied the directive; None if no decision was seen.
        again: when the node was ready again, seconds since the run began; None if it was not.
    """

    at: float
    incarnation: int
    error: str
    starting: bool = False
    tag: str | None = None
    directive: str | None = None
    by: str | None = None
    again: float | None = None

    @property
    def gap(self) -> float | None:
        """Seconds from the failure until the node was ready again; None if it was not."""
        return None if self.again is None else self.again - self.at


@frozen
class Note:
    """Something else that an operator wants to know: an overdue start or stop, a failure while stopping, a broken sink.

    Args:
        at: seconds since the run began.
        incarnation: of the node.
        text: a sentence without its subject, which is the node.
        waits_for: of an overdue start, the path of the node whose readiness it awaits; else None.
    """

    at: float
    incarnation: int
    text: str
    waits_for: str | None = None


@frozen
class Lane:
    """The history of one node.

    Args:
        path: its path.
        segments: without gaps, from its first event to the end of the run; empty if only nodes below it have events.
        failures: in order.
        notes: in order.
        parent: whether nodes below it have lanes.
    """

    path: str
    segments: tuple[Segment, ...] = ()
    failures: tuple[Failure, ...] = ()
    notes: tuple[Note, ...] = ()
    parent: bool = False

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]

    @property
    def depth(self) -> int:
        """How many nodes are above it."""
        return self.path.count("/")

    @property
    def state(self) -> State | None:
        """Its state at the end; None if it has no events."""
        return self.segments[-1].state if self.segments else None


@frozen
class Timeline:
    """One run of one tree.

    Args:
        began: the time of its first event, in seconds since 1970. All other times are seconds since then, on Trio's clock.
        end: the time of its last event.
        whole: whether the events begin with the first start of the root; otherwise earlier ones are missing.
        lanes: parents first, siblings in the order of their first events; the first lane is the root's.
    """

    began: float
    end: float
    whole: bool
    lanes: tuple[Lane, ...]

    @property
    def ended(self) -> bool:
        """Whether the root has ended."""
        return self.lanes[0].state == "down"

    def below(self, path: str) -> Timeline:
        """The same run with the lanes of this node and of those below it; there may be none. Lanes have their paths with escapes."""
        above = f"{printable(path)}/"
        return evolve(self, lanes=tuple(lane for lane in self.lanes if f"{lane.path}/".startswith(above)))


def leading(lanes: Sequence[Lane], first: Iterable[Lane], most: int) -> list[Lane]:
    """At most so many of the lanes, in their order: the `first` ones and those above them, then others from the top down.

    A lane never stands without those above it, so of a very deep node not even one may be among them.
    """
    known = {lane.path: lane for lane in lanes}
    chosen: set[str] = set()
    for lane in (*first, *sorted(lanes, key=lambda lane: lane.depth)):
        if len(chosen) >= most:
            break
        way = {lane.path[:end] for end in _ends(lane.path)} & known.keys()
        if len(chosen | way) <= most:
            chosen |= way
    return [lane for lane in lanes if lane.path in chosen]


def timelines(data: Iterable[object], left_out: Counter[str] | None = None) -> list[Timeline]:
    """The runs of which these are events, in the order in which they begin.

    A run begins with the first event of a root, with `Starting` of its first incarnation, and where the numbers of its events begin
    again. Events of several trees may be mixed.

    Args:
        data: events as `supervise.sinks.data.as_data` makes them, or `json.loads` of their lines, in order.
        left_out: counts, by a reason in words, what is no event of this schema. Log records are left out silently.
    """
    left_out = Counter() if left_out is None else left_out
    runs: list[_Run] = []
    current: dict[str, _Run] = {}
    for each in data:
        event = _checked(each, left_out)
        if event is None:
            continue
        root = event["path"].partition("/")[0]
        run = current.get(root)
        number = event.get("seq")
        if (
            run is None
            or _begins(event)
            or (type(number) is int and type(run.number) is int and number <= run.number)
        ):
            run = current[root] = _Run(began=event["time"], first=event["at"], whole=_begins(event))
            runs.append(run)
        run.number = number
        run.take(event)
    return [run.timeline() for run in runs]


def _begins(event: Mapping[str, Any]) -> bool:
    """Whether this is the first start of a root."""
    return event["kind"] == "Starting" and event["incarnation"] == 1 and "/" not in event["path"]


def _checked(data: object, left_out: Counter[str]) -> Mapping[str, Any] | None:
    """The event, if it is one: its kind is known, and the keys that every event has have values of their types."""
    if not isinstance(data, Mapping):
        left_out["that are no events"] += 1
        return None
    event = cast("Mapping[str, Any]", data)
    version, kind = event.get("v"), event.get("kind")
    if type(version) is not int or type(kind) is not str:
        left_out["that are no events"] += 1
    elif version != VERSION:
        left_out[f"of version {version}, where this program knows version {VERSION}"] += 1
    elif kind in _KINDS:
        path, incarnation = event.get("path"), event.get("incarnation")
        if (
            type(path) is str
            and all(path.split("/"))
            and type(incarnation) is int
            and _is_time(event.get("at"), least=-_CENTURY)
            and _is_time(event.get("time"), least=0)
        ):
            return event
        left_out["that are no events"] += 1
    elif kind != "Log":
        left_out[f"of the unknown kind {printable(kind)!r}"] += 1
    return None


_CENTURY: Final = 100 * 366 * 86400.0


def _is_time(value: object, *, least: float) -> TypeGuard[float]:
    """Whether this is a number of seconds; NaN is none, and more than a hundred years are none either."""
    return isinstance(value, int | float) and type(value) is not bool and least <= value <= _CENTURY


@define
class _Lane:
    """A lane that grows with each event."""

    path: str
    below: list[_Lane] = field(factory=list["_Lane"])
    segments: list[Segment] = field(factory=list[Segment])
    failures: list[Failure] = field(factory=list[Failure])
    notes: list[Note] = field(factory=list[Note])
    waiting: int = 0
    """How many of the last failures wait for the node to be ready again."""
    due: float = inf
    """When its backoff ends. It may start later than that, if its supervisor starts others before it."""

    def enter(self, state: State, at: float, incarnation: int, why: str = "") -> None:
        """Begin a segment, unless the node is in this state already."""
        self.close(at)
        if self.segments and (self.segments[-1].state, self.segments[-1].incarnation) == (state, incarnation):
            return
        self.segments.append(Segment(state, at, at, incarnation, why))

    def close(self, at: float) -> None:
        """End the last segment; if it is a backoff that was over before, the node has been down since."""
        if not self.segments:
            return
        last = self.segments[-1]
        if last.state == "backing off" and self.due < at:
            self.segments[-1] = evolve(last, end=self.due)
            last = Segment("down", self.due, self.due, last.incarnation)
            self.segments.append(last)
        self.segments[-1] = evolve(last, end=at)

    def walk(self) -> Iterator[_Lane]:
        """This lane and all below it, parents first."""
        waiting: list[_Lane] = [self]
        while waiting:
            here = waiting.pop()
            yield here
            waiting.extend(reversed(here.below))

    def finished(self, end: float) -> Lane:
        """The lane of a run that ends here."""
        self.close(end)
        return Lane(
            self.path, tuple(self.segments), tuple(self.failures), tuple(self.notes), parent=bool(self.below)
        )


@define
class _Run:
    """A run that grows with each event."""

    began: float
    first: float
    whole: bool
    number: Any = None
    now: float = 0.0
    lanes: dict[str, _Lane] = field(factory=dict[str, _Lane])

    def take(self, event: Mapping[str, Any]) -> None:
        """Add one event."""
        self.now = max(self.now, float(event["at"] - self.first))
        lane = self._lane(printable(event["path"]))
        kind, incarnation = event["kind"], event["incarnation"]
        if kind == "Failed":
            starting = bool(lane.segments) and lane.segments[-1].state == "starting"
            lane.failures.append(Failure(self.now, incarnation, _error(event.get("exc")), starting))
            lane.waiting += 1
        elif kind == "Decided" and lane.waiting:
            lane.failures[-1] = evolve(
                lane.failures[-1],
                tag=_text(event.get("tag")),
                directive=_text(event.get("directive")),
                by=_text(event.get("by")),
            )
        elif kind in ("Ready", "Resumed") and lane.waiting:
            for place in range(len(lane.failures) - lane.waiting, len(lane.failures)):
                lane.failures[place] = evolve(lane.failures[place], again=self.now)
            lane.waiting = 0
        elif (note := _note(event)) is not None:
            lane.notes.append(Note(self.now, incarnation, note, _text(event.get("waits_for"))))
        state = ENTERS.get(kind)
        if state is not None and (kind, event.get("directive")) != ("Decided", "Resume"):
            lane.enter(state, self.now, incarnation, _why(event))
            if kind == "BackingOff":
                delay = event.get("delay")
                lane.due = self.now + delay if _is_time(delay, least=0) else inf
            elif kind == "Decided":
                self._stop_between(_text(event.get("by")), lane)
            elif kind == "Stopped":
                self._end_below(lane)

    def _stop_between(self, by: str | None, failed: _Lane) -> None:
        """A supervisor further up has decided: those between it and the failed node stop, without an event until they have (R11)."""
        for end in _ends(failed.path) if by and failed.path.startswith(f"{by}/") else ():
            lane = self.lanes[failed.path[:end]]
            if (
                len(by or "") < end
                and lane is not failed
                and lane.segments
                and lane.segments[-1].state == "up"
            ):
                lane.enter("stopping", self.now, lane.segments[-1].incarnation, f"{failed.path} failed")

    def _end_below(self, lane: _Lane) -> None:
        """A supervisor has ended: so have those below it, also one whose backoff was cut short without an event."""
        for each in lane.walk() if lane.below else ():
            if each is not lane and each.segments:
                each.enter("down", self.now, each.segments[-1].incarnation)

    def _lane(self, path: str) -> _Lane:
        """The lane of a node; those above it are made with it, for their own events may be missing."""
        lane = self.lanes.get(path)
        if lane is not None:
            return lane
        above = None
        for depth in _ends(path):
            here = self.lanes.get(path[:depth])
            if here is None:
                here = self.lanes[path[:depth]] = _Lane(path[:depth])
                if above is not None:
                    above.below.append(here)
            above = here
        assert above is not None
        return above

    def timeline(self) -> Timeline:
        """The run as it is now; the root has the first lane."""
        root = next(iter(self.lanes.values()))
        lanes = tuple(lane.finished(self.now) for lane in root.walk())
        return Timeline(self.began, self.now, self.whole, lanes)


def _ends(path: str) -> Iterator[int]:
    """The length of the path of each node on the way from the root."""
    yield from (place for place, letter in enumerate(path) if letter == "/")
    yield len(path)


def _text(value: object) -> str | None:
    return printable(value) if isinstance(value, str) else None


def _error(exc: object) -> str:
    """An exception in one line."""
    if not isinstance(exc, Mapping):
        return "an unknown failure"
    its = cast("Mapping[str, Any]", exc)
    return f"{_text(its.get('type')) or 'Exception'}: {_text(its.get('text')) or ''}".removesuffix(": ")


def _why(event: Mapping[str, Any]) -> str:
    if event["kind"] == "Stopping":
        return _text(event.get("reason")) or ""
    return (
        f"attempt {event['attempt']}"
        if type(event.get("attempt")) is int and event["kind"] == "BackingOff"
        else ""
    )


def _since(event: Mapping[str, Any]) -> str:
    seconds = event.get("seconds")
    return f"{seconds:g} s" if _is_time(seconds, least=0) else "long"


def _note(event: Mapping[str, Any]) -> str | None:
    """The text of a note; the stacks of some events would have no room, and stand in the file."""
    match event["kind"]:
        case "StartOverdue":
            waits = _text(event.get("waits_for"))
            return f"has been starting for {_since(event)}" + (f", waiting for {waits}" if waits else "")
        case "Overdue":
            return f"has not ended {_since(event)} after it was ordered to"
        case "StopError":
            return f"failed while it was stopped: {_error(event.get('exc'))}"
        case "SinkFailed":
            return f"the sink {_text(event.get('sink'))} failed: {_error(event.get('exc'))}"
        case "Adopting":
            return f"takes another declaration: {_text(event.get('reason'))}"
        case _:
            return None
