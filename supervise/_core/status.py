"""`Status`: the frozen picture of a node and of all nodes below it (R33)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import eq
from typing import Protocol

from attrs import astuple, field, frozen

from ..events import Because
from ._code import Code
from .directive import Directive
from .limit import Limit
from .node import Node, State
from .spec import Child, Pool, Supervisor


@frozen(repr=False)
class Decision(Code):
    """The last decision about a failure of a node (R33).

    Args:
        at: when, in seconds on Trio's clock.
        directive: None if no decider was asked.
        tag: the tag of the failure, if it has one.
        by: the path of the supervisor that applied the directive.
        because: as in `events.Decided`.
    """

    at: float
    directive: Directive | None
    tag: str | None
    by: str
    because: Because


@frozen(kw_only=True, repr=False, eq=False)
class Status(Code):
    """A node and the nodes below it, as they were when `status()` was called (R33).

    Args:
        path: such as `app/llm/context`.
        kind: `child`, `supervisor` or `pool`.
        state: `down`, `starting`, `up`, `failed` (suspended, waiting for a verdict), `stopping`, `releasing` (decided,
            and still leaving its resource, R9), `restarting` (a retry is queued, or due at `due`) or `condemned` (R10).
        incarnation: 0 before its first start.
        restarts: how many its limit still counts: a supervisor's counts those of its children, a leaf's its own.
        limit: the limit that counts them; None if there is none.
        last_failure: the last failure of this node; for a supervisor it may be one from below that it passed up.
        due: when its backoff ends, in seconds on Trio's clock.
        mailbox: how many messages wait; None where there is no mailbox.
        handled: how many messages were taken out of the mailbox, each counted once, plus how many items were put into
            streams, since the node joined the tree; None where there is no mailbox. Its growth over time is a rate.
        waiting_since: when the call or stream at the head of its mailbox was sent, in seconds on Trio's clock; None if no message
            waits, and if the first one is one-way.
        restart: its restart type: `permanent`, `transient` or `temporary`.
        strategy: of a supervisor; None for a leaf and for a pool.
        front: the path of the child at which a supervisor answers; None if it has none (R34).
        since: when its state began, in seconds on Trio's clock; 0 before its first start.
        ready_at: when this incarnation became ready, likewise; None if it did not.
        restarts_total: its starts after the first one, since the tree opened: restarts, and starts by hand.
        failures_total: its failures since the tree opened; each has a `Failed` event.
        decision: the last decision about a failure of it.
        children: those of a supervisor, in start order; empty for a leaf.
    """

    path: str
    kind: str
    state: State
    incarnation: int
    restarts: int = 0
    limit: Limit | None = None
    last_failure: BaseException | None = None
    due: float | None = None
    mailbox: int | None = None
    handled: int | None = None
    waiting_since: float | None = None
    restart: str = "permanent"
    strategy: str | None = None
    front: str | None = None
    since: float = 0.0
    ready_at: float | None = None
    restarts_total: int = 0
    failures_total: int = 0
    decision: Decision | None = None
    children: tuple[Status, ...] = field(default=())

    def walk(self) -> Iterator[Status]:
        """This node and all below it, parents first, in start order."""
        waiting: list[Status] = [self]
        while waiting:
            here = waiting.pop()
            yield here
            waiting.extend(reversed(here.children))

    def __eq__(self, other: object) -> bool:
        if type(other) is not Status:
            return NotImplemented
        return all(map(eq, map(_own, self.walk()), map(_own, other.walk())))

    def __hash__(self) -> int:
        return hash(tuple(map(_own, self.walk())))


def _own(status: Status) -> tuple[object, ...]:
    """Its own fields and the number of its children: in the order of `walk` these determine the whole tree."""
    *own, children = astuple(status, recurse=False)
    return *own, len(children)


Traffic = Callable[[Node], tuple[int | None, int | None, float | None]]
"""Gives the `mailbox`, the `handled` and the `waiting_since` of a node's `Status`."""


def no_traffic(_: Node) -> tuple[None, None, None]:
    """Of a node without a mailbox."""
    return None, None, None


class Supervising(Protocol):
    """The part of a machine that a picture needs."""

    children: dict[str, Node]

    def restarts(self, now: float) -> int:
        """How many restarts its limit counts at `now`."""
        ...


def picture(
    node: Node, machines: Mapping[str, Supervising], now: float, traffic: Traffic = no_traffic
) -> Status:
    """One node and all below it; built bottom up over a list, since a tree may be too deep for recursion. `machines`: by their paths."""
    order = [node]
    for here in order:
        if here.has_machine:
            order += machines[here.path].children.values()
    done: dict[Node, Status] = {}
    for here in reversed(order):
        machine = machines[here.path] if here.has_machine else None
        children = () if machine is None else tuple(map(done.__getitem__, machine.children.values()))
        done[here] = _status(here, machine, now, traffic, children)
    return done[node]


def glances(
    node: Node, machines: Mapping[str, Supervising], now: float, traffic: Traffic
) -> Iterator[tuple[tuple[object, ...], Callable[[], Status]]]:
    """Each node, parents first, in start order, for a reader that comes again and again and keeps what has not changed.

    For each there are values of which one is another whenever its status is, and the function that makes that status, without
    children. The values keep no object of the program alive: the exception is only in it as a number, which another object may have
    had before, but then the count of failures is another one. Of the spec they have what the status shows.
    """
    waiting = [node]
    while waiting:
        here = waiting.pop()
        machine = machines[here.path] if here.has_machine else None
        if machine is not None:
            waiting.extend(reversed(machine.children.values()))
        values = (
            here.path,
            here.number,
            here.spec.limit,
            here.spec.restart,
            None if isinstance(here.spec, Child) else here.spec.front,
            here.spec.strategy if isinstance(here.spec, Supervisor) else None,
            here.state,
            here.phase,
            here.incarnation,
            here.first,
            here.since,
            here.ready_at,
            here.due,
            here.failures,
            id(here.last_failure),
            here.decision,
            _restarts(here, machine, now),
            traffic(here),
        )
        yield values, partial(_status, here, machine, now, traffic, ())


def _status(
    here: Node, machine: Supervising | None, now: float, traffic: Traffic, children: tuple[Status, ...]
) -> Status:
    spec = here.spec
    front = None if isinstance(spec, Child) else spec.front
    waiting, handled, waiting_since = traffic(here)
    return Status(
        path=here.path,
        kind="child" if isinstance(spec, Child) else "pool" if isinstance(spec, Pool) else "supervisor",
        state=here.state,
        incarnation=here.incarnation,
        restarts=_restarts(here, machine, now),
        limit=spec.limit if machine is not None or here.window is not None else None,
        last_failure=here.last_failure,
        due=here.due if here.phase == "backoff" else None,
        mailbox=waiting,
        handled=handled,
        waiting_since=waiting_since,
        restart=spec.restart,
        strategy=spec.strategy if isinstance(spec, Supervisor) else None,
        front=None if front is None else f"{here.path}/{front}",
        since=here.since,
        ready_at=here.ready_at,
        restarts_total=max(0, here.incarnation - here.first - 1),
        failures_total=here.failures,
        decision=None if here.decision is None else Decision(*here.decision),
        children=children,
    )


def _restarts(node: Node, machine: Supervising | None, now: float) -> int:
    if machine is not None:
        return machine.restarts(now)
    return 0 if node.window is None else node.window.count(now)
