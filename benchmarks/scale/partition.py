"""A partition between the control program and a rack: who holds a unit of work, on both sides.

Each unit is held by one host at a time. The control program gives a unit to a host, and the host asks for its lease again and
again. Both are real trees: one for the control program, one for each host.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from math import inf
from random import choice, uniform

import trio
from attrs import define, field, frozen

from benchmarks.scale.world import LEASE, MARGIN, ROUND_TRIP, Lost, Size
from supervise import Backoff, Child, Supervisor, open_tree
from supervise.testing import run_virtual

CUT = 60.0
"""Seconds for which the control program and the rack cannot reach each other."""
SETTLED = 30.0
"""Seconds before the cut, and after its end."""
FULL_GRACE = LEASE + MARGIN + 1
DEFAULT_GRACE = 5.0


@frozen(kw_only=True)
class Terms:
    """What both sides keep to.

    Args:
        lease: whether a host gives up its unit when its lease is over.
        waits: whether the control program waits for the end of a lost host's lease, in the exit of the unit's resource.
        grace: of the unit's leaf: how long that exit may take (R9).
    """

    lease: bool
    waits: bool
    grace: float = DEFAULT_GRACE


NO_LEASE, NO_WAIT, CUT_SHORT, FENCED = (
    "no lease",
    "a lease, no wait for its end",
    "a lease, a wait with the default grace",
    "a lease, a wait with a longer grace",
)
TERMS = {
    NO_LEASE: Terms(lease=False, waits=False),
    NO_WAIT: Terms(lease=True, waits=False),
    CUT_SHORT: Terms(lease=True, waits=True),
    FENCED: Terms(lease=True, waits=True, grace=FULL_GRACE),
}


@define(eq=False)
class Link:
    """A unit that was given to a host.

    `answered`: when the control program last answered a question of that host. `is_over`: whether it answers no.
    """

    unit: int
    answered: float
    broken: trio.Event = field(factory=trio.Event)
    is_over: bool = False


@define(eq=False)
class Side:
    """A host, as far as a partition concerns it."""

    number: int
    reachable: bool = True
    link: Link | None = None
    given: trio.Event = field(factory=trio.Event)


Held = tuple[int, int, float, float]
"""The unit, the number of the host, and from when until when the host worked on it."""


class Net:
    """The network between the control program and all hosts."""

    def __init__(self, size: Size, terms: Terms) -> None:
        self.terms = terms
        self.sides = [Side(number) for number in range(size.all_hosts)]
        self.units = size.all_hosts - size.hosts  # one rack is in reserve
        self.held: list[Held] = []
        self.loads = 0
        self._killed = False

    def cut(self, sides: Sequence[Side]) -> None:
        """A switch resets the connections of these hosts: the control program learns of it at once, they do not."""
        for side in sides:
            side.reachable = False
            if side.link is not None:
                side.link.broken.set()

    def heal(self) -> None:
        """All can reach each other again."""
        for side in self.sides:
            side.reachable = True

    # --- the control program

    def kill_control(self) -> None:
        """The control program is killed: nothing of it runs any more, not even an exit, and no host learns of it."""
        self._killed = True
        self.cut(self.sides)

    def start_control(self) -> None:
        """A new control program, which knows nothing of the one before: a host that asks it about a unit gets a no."""
        self._killed = False
        for side in self.sides:
            if side.link is not None:
                side.link.is_over = True
            side.link = None
        self.heal()

    @asynccontextmanager
    async def grant(self, unit: int) -> AsyncGenerator[Link, None]:
        """The resource of a unit: a free host that has been given this unit. Its exit lasts until the host cannot hold it."""
        free = [side for side in self.sides if side.reachable and side.link is None]
        if not free:
            raise Lost(f"no host is free for unit {unit}")
        side = choice(free)
        side.link = link = Link(unit, trio.current_time())
        side.given.set()
        side.given = trio.Event()
        try:
            yield link
        finally:
            try:
                if self.terms.waits and not self._killed:
                    await trio.sleep_until(link.answered + LEASE + MARGIN)
            finally:
                if not self._killed:
                    link.is_over = True
                    side.link = None

    def control(self, *, first: Sequence[Child] = ()) -> Supervisor:
        """The tree of the control program: a leaf for each unit, after those that are `first`."""
        backoff = Backoff(initial=0.5, maximum=30, jitter=1)
        units = [
            Child(
                f"unit-{unit:04}",
                _hold,
                resource=partial(self.grant, unit),
                grace=self.terms.grace,
                backoff=backoff,
            )
            for unit in range(self.units)
        ]
        return Supervisor("control", [*first, *units], limit=None)

    # --- a host

    async def work(self, side: Side) -> None:
        """The body on a host: hold each unit that is given, as long as its lease lasts."""
        link: Link | None = None
        while True:
            if side.link is None or side.link is link:
                await side.given.wait()
            link = side.link
            if link is not None:
                await self._hold_lease(side, link)

    async def _hold_lease(self, side: Side, link: Link) -> None:
        until, begun = 0.0, None
        try:
            while True:
                asked = trio.current_time()
                await trio.sleep(ROUND_TRIP)
                if side.reachable:
                    if link.is_over:
                        return
                    begun = trio.current_time() if begun is None else begun
                    link.answered = trio.current_time()
                    until = asked + LEASE if self.terms.lease else inf
                await trio.sleep(min(LEASE / 4, max(0.0, until - trio.current_time())))
                if trio.current_time() >= until:
                    return
        finally:
            if begun is not None:
                self.held.append((link.unit, side.number, begun, trio.current_time()))

    async def machine(self, side: Side) -> None:
        """The program of a host, with a loaded model and the unit that it holds. The hosts ask at different moments."""
        await trio.sleep(uniform(0, LEASE / 4))
        host = Supervisor("host", [Child("model", self._model), Child("work", self.work, args=[side])])
        async with open_tree(host, sinks=[]):
            await trio.sleep_forever()

    async def _model(self) -> None:
        """A model that was loaded. It goes on whatever becomes of the lease: only the unit must not be held twice."""
        self.loads += 1
        await trio.sleep_forever()


async def old_leases_end(*, task_status: trio.TaskStatus[None]) -> None:
    """A first child that is ready when no host can hold a unit of an earlier control program; the others start after it (R12)."""
    await trio.sleep(LEASE + MARGIN)
    task_status.started()
    await trio.sleep_forever()


async def _hold(link: Link) -> None:
    await link.broken.wait()
    raise Lost("the connection to the host was reset")


@frozen(kw_only=True)
class Parted:
    """What became of the units; times in seconds.

    Args:
        units: how many of them the fault concerned.
        doubled: how many of them two hosts held at the same time.
        longest_double: for how long, at most.
        longest_gap: for how long no host held a unit, at most.
        loads: how many models were loaded after the fault.
        lanes: of the unit that fared worst: for each host that held it, from when until when, counted from the fault.
    """

    units: int
    doubled: int
    longest_double: float
    longest_gap: float
    loads: int
    lanes: list[tuple[float, float]] = field(repr=False)


def part(terms: Terms, size: Size, seed: int = 1) -> Parted:
    """Cut one rack off for a while."""
    return run_virtual(_part, terms, size, seed=seed)


async def _part(terms: Terms, size: Size) -> Parted:
    net = Net(size, terms)
    rack = net.sides[size.hosts : 2 * size.hosts]
    async with trio.open_nursery() as nursery:
        for side in net.sides:
            nursery.start_soon(net.machine, side)
        async with open_tree(net.control(), sinks=[]):
            await trio.sleep(SETTLED)
            at, loads = trio.current_time(), net.loads
            concerned = sum(side.link is not None for side in rack)
            net.cut(rack)
            await trio.sleep(CUT)
            net.heal()
            await trio.sleep(SETTLED)
            nursery.cancel_scope.cancel()
    return _parted(net, concerned, at, net.loads - loads)


AWAY = 5.0
"""Seconds without a control program after it was killed."""
GIVES_AT_ONCE, WAITS_FIRST = "gives units at once", "waits a lease first"
FIRST: dict[str, list[Child]] = {GIVES_AT_ONCE: [], WAITS_FIRST: [Child("leases", old_leases_end)]}


def kill(first: Sequence[Child], size: Size, seed: int = 1) -> Parted:
    """Kill the control program, and start it again. All leases and waits are as they should be."""
    return run_virtual(_kill, first, size, seed=seed)


async def _kill(first: Sequence[Child], size: Size) -> Parted:
    net = Net(size, TERMS[FENCED])
    async with trio.open_nursery() as nursery:
        for side in net.sides:
            nursery.start_soon(net.machine, side)
        async with open_tree(net.control(), sinks=[]):
            await trio.sleep(SETTLED)
            at, loads = trio.current_time(), net.loads
            net.kill_control()
        await trio.sleep(AWAY)
        net.start_control()
        async with open_tree(net.control(first=first), sinks=[]):
            await trio.sleep(SETTLED)
            nursery.cancel_scope.cancel()
    return _parted(net, net.units, at, net.loads - loads)


Times = list[tuple[float, float]]


def _parted(net: Net, concerned: int, at: float, loads: int) -> Parted:
    each: dict[int, Times] = {}
    for unit, _, begun, ended in sorted(net.held, key=lambda one: one[2]):
        each.setdefault(unit, []).append((begun, ended))
    doubles = {unit: _doubled(held) for unit, held in each.items()}
    gaps = {unit: _gap(held) for unit, held in each.items()}
    worst = max(each, key=lambda unit: (doubles[unit], gaps[unit]))
    return Parted(
        units=concerned,
        doubled=sum(seconds > 0 for seconds in doubles.values()),
        longest_double=doubles[worst],
        longest_gap=max(gaps.values()),
        loads=loads,
        lanes=[(begun - at, ended - at) for begun, ended in each[worst]],
    )


def _doubled(held: Times) -> float:
    """The seconds in which two hosts held a unit."""
    return sum(max(0.0, one[1] - other[0]) for one, other in pairwise(held))


def _gap(held: Times) -> float:
    """The longest time in which no host held a unit."""
    return max((max(0.0, other[0] - one[1]) for one, other in pairwise(held)), default=0.0)
