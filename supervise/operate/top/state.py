"""The state of the program, what arrives from the tree, and what is asked of it. Values only: nothing here waits or draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NotRequired, TypedDict

from attrs import evolve, field, frozen

from .rows import Entry, Exc, Picture, Status, View, duration, entries

_KEPT: Final = 300
"""Events that are kept for the tail."""
_TRACES: Final = 200
"""Nodes of which the last failure with its traceback is kept."""
_SPAN: Final = 2.0
"""Seconds over which a rate is taken."""

Verb = Literal["restart", "stop", "start"]


class Event(TypedDict):
    """An event, as `GET /events` gives it; it has further keys, which differ by `kind`."""

    seq: int
    time: float
    kind: str
    path: str
    incarnation: int
    text: str
    exc: NotRequired[Exc]


class Step(TypedDict):
    """A step of an act."""

    do: str
    path: str


@frozen
class Command:
    """What the program shall do besides drawing: leave, poll at once, or ask the tree.

    Args:
        do: `poll` again at once, or ask for the text `why` or `stack`, for the `trace` of the last failure, for the `plan` of
            an act, or for the `act`.
        path: of the node.
        verb: of a plan or an act.
        reason: of an act.
    """

    do: Literal["quit", "poll", "why", "stack", "trace", "plan", "act"]
    path: str = ""
    verb: Verb = "restart"
    reason: str = ""


@frozen
class Page:
    """What is shown instead of the table.

    Args:
        kind: `details`, `trace` or `stack` of the node `path`, or `help`.
        text: the answer of the tree; None until it comes.
        scroll: the number of lines above the first one shown.
    """

    kind: Literal["details", "trace", "stack", "help"]
    path: str = ""
    text: str | None = None
    scroll: int = 0


@frozen
class Ask:
    """An act that is being prepared: its steps are asked for, then a reason, then a yes; then it is carried out."""

    verb: Verb
    path: str
    stage: Literal["plan", "reason", "confirm", "act"] = "plan"
    steps: Sequence[Step] = ()
    reason: str = ""


@frozen
class Link:
    """The connection: `since` is the time at which it was lost, None while it holds; `why` is the reason."""

    since: float | None = None
    why: str = ""


@frozen(kw_only=True, eq=False)
class State:
    """Everything that the screen shows.

    Args:
        picture: the last status; it is kept while there is no connection.
        ahead: how much the clock of the tree is ahead of ours, in seconds.
        size: columns and lines of the terminal.
        read_only: why no act is possible whatever the tree allows; empty if one is.
        selected: the path of the selected node.
        place: the number of its row when the state was last settled.
        first: the number of the first row shown.
        typing: the text of the filter is being typed.
        pasting: the keys that come are those of a pasted text.
        note: one line about what was just done or refused.
        events: the last ones, the oldest first.
        seen: the number of the last event of the tree that was fetched or passed over.
        traces: the last `Failed` event by path.
        samples: time, number of the last event and the handled messages of the statuses of the last two seconds.
    """

    picture: Picture
    ahead: float = 0.0
    link: Link = field(factory=Link)
    size: tuple[int, int] = (80, 24)
    read_only: str = ""
    view: View = field(factory=View)
    selected: str = ""
    place: int = 0
    first: int = 0
    typing: bool = False
    pasting: bool = False
    tail: bool = True
    note: str = ""
    page: Page | None = None
    ask: Ask | None = None
    events: tuple[Event, ...] = ()
    seen: int = 0
    traces: Mapping[str, Event] = field(factory=dict[str, Event])
    samples: tuple[tuple[float, int, Mapping[str, int]], ...] = ()

    @property
    def shown(self) -> tuple[Entry, ...]:
        """The rows of the table."""
        return entries(self.picture, self.view)

    @property
    def at(self) -> int:
        """The number of the selected row; 0 if it is not shown."""
        for number, entry in enumerate(self.shown):
            if entry.row["path"] == self.selected:
                return number
        return 0

    @property
    def per_second(self) -> float | None:
        """Events per second; None before the second status."""
        if len(self.samples) < 2:  # noqa: PLR2004 - A rate is between two of them.
            return None
        (then, before, _), (now, count, _) = self.samples[0], self.samples[-1]
        return (count - before) / max(now - then, 1e-6)


def rooms(state: State) -> tuple[int, int]:
    """The lines for rows, and those for events: 2 lines are above the rows, a rule above the events, a line at the end."""
    height = state.size[1] - 3
    tail = max(2, height // 4) if state.tail and height > 4 else 0  # noqa: PLR2004 - So few lines are for rows alone.
    return max(1, height - tail - bool(tail)), tail


def settled(state: State) -> State:
    """The state with a selected row that exists and is on the screen."""
    shown, (room, _) = state.shown, rooms(state)
    if not shown:
        return evolve(state, first=0)
    # A node that has left the table gives its place to the one that is there now.
    is_there = any(entry.row["path"] == state.selected for entry in shown)
    at = state.at if is_there else min(state.place, len(shown) - 1)
    first = min(max(0, min(state.first, len(shown) - room)), at)
    return evolve(state, selected=shown[at].row["path"], place=at, first=max(first, at - room + 1))


def opened(status: Status, now: float, *, read_only: str, size: tuple[int, int]) -> State:
    """The first state, after the first answer of the tree."""
    state = State(picture=Picture(status), read_only=read_only, size=size)
    return settled(evolve(state, ahead=status["time"] - now, samples=(_sample(status),)))


def arrived(state: State, status: Status, now: float) -> State:
    """After an answer of the tree. If the connection was lost, a line has the time without it, and what was missed."""
    before = state.picture.status
    restarted = status["pid"] != before["pid"] or status["seq"] < before["seq"]
    samples = () if restarted else state.samples
    while len(samples) > 1 and status["time"] - samples[1][0] >= _SPAN:
        samples = samples[1:]
    samples = (*samples, _sample(status))
    state = evolve(
        state,
        picture=Picture(status, _rates(samples)),
        ahead=status["time"] - now,
        samples=samples,
        seen=0 if restarted else state.seen,
        traces={} if restarted else state.traces,
    )
    if state.link.since is None and not restarted:
        return settled(state)
    what = (
        f"the tree has been started again, pid {status['pid']}"
        if restarted
        else f"{status['seq'] - before['seq']} events meanwhile"
    )
    if state.link.since is not None:
        what = f"connected again after {duration(now - state.link.since)}: {what}"
    return settled(evolve(_marked(state, what, status["time"]), link=Link(), note=what))


def lost(state: State, why: str, now: float) -> State:
    """After a request that did not come through: the last picture stays."""
    return evolve(state, link=Link(now if state.link.since is None else state.link.since, why))


def with_events(state: State, fetched: Iterable[Event], upto: int) -> State:
    """With the events after `seen` that were fetched; of those before the first of them only the number is known."""
    new = [event for event in fetched if event["seq"] > state.seen]
    passed = (new[0]["seq"] if new else upto + 1) - state.seen - 1
    if passed > 0 and state.seen:
        state = _marked(
            state,
            f"{passed:,} more event{'s' * (passed != 1)}",
            new[0]["time"] if new else state.picture.status["time"],
        )
    traces = dict(state.traces)
    for event in new:
        if event["kind"] == "Failed":
            traces.pop(event["path"], None)
            traces[event["path"]] = event
    while len(traces) > _TRACES:
        del traces[next(iter(traces))]
    seen = max([upto, *(event["seq"] for event in new)])
    return evolve(state, events=(*state.events, *new)[-_KEPT:], seen=seen, traces=traces)


def _marked(state: State, text: str, time: float) -> State:
    mark = Event(seq=state.seen, time=time, kind="", path="", incarnation=0, text=text)
    return evolve(state, events=(*state.events, mark)[-_KEPT:])


def answered(state: State, command: Command, answer: Any) -> State:
    """With the answer to a command; it is dropped if nothing on the screen waits for it any more."""
    page, ask = state.page, state.ask
    if command.do in ("plan", "act"):
        if ask is None or (ask.path, ask.verb, ask.stage) != (command.path, command.verb, command.do):
            return (
                evolve(state, note=f"{command.path}: {command.verb} is done")
                if command.do == "act"
                else state
            )
        if command.do == "plan":
            return evolve(state, ask=evolve(ask, stage="reason", steps=tuple(answer)))
        return evolve(state, ask=None, note=f"{command.path}: {command.verb} is done")
    kind = "details" if command.do == "why" else command.do
    if page is None or (page.kind, page.path) != (kind, command.path):
        return state
    return evolve(state, page=evolve(page, text=answer))


def refused(state: State, command: Command, why: str) -> State:
    """With the reason why a command was not carried out."""
    if command.do in ("plan", "act"):
        ask = state.ask
        waited = ask is not None and (ask.path, ask.stage) == (command.path, command.do)
        return evolve(state, ask=None if waited else ask, note=f"{command.path}: not done: {why}")
    return answered(state, command, why)


def _sample(status: Status) -> tuple[float, int, Mapping[str, int]]:
    handled = {row["path"]: row["handled"] for row in status["nodes"] if row["handled"] is not None}
    return status["time"], status["seq"], handled


def _rates(samples: Sequence[tuple[float, int, Mapping[str, int]]]) -> dict[str, float]:
    (then, _, before), (now, _, handled) = samples[0], samples[-1]
    if now <= then:
        return {}
    return {path: max(0, count - before.get(path, count)) / (now - then) for path, count in handled.items()}
