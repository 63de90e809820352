"""What the supervisors themselves cost: a start of everything, the loss of one rack and its restarts, and a stop, beside bare Trio.

The floor is the same bodies in one nursery, each in a loop that waits and begins again: no supervisors, no order, no limits, no
events. Time is virtual, so the waits of the backoff take no time and only work is measured.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import trio

from benchmarks.scale.trees import backoff
from benchmarks.scale.world import Lost, Size
from benchmarks.work import Memory, now
from supervise import Child, Supervisor, open_tree
from supervise._core.machine import Machine
from supervise.events import Event
from supervise.testing import run_virtual

PHASES = ("start", "lose a rack", "stop")
THRESHOLDS = (50_000, 20, 100)
"""Of the garbage collector, for both ways, as docs/project/performance.md recommends for so many children."""
Measured = dict[str, Any]
"""`{phase: seconds, "kB": of memory for each device}`; or, for each phase, `{"inputs": …, "turns": …, "events": …}`."""


class _Fleet:
    """Devices that run until their host is lost, and how many are up."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.lost = [trio.Event() for _ in range(size.all_hosts)]
        self.up = 0
        self.all_up = trio.Event()

    async def device(self, host: int) -> None:
        """The body of a device."""
        self.up += 1
        if self.up == self.size.all_devices:
            self.all_up.set()
        await self.lost[host].wait()
        raise Lost

    async def lose_rack(self) -> None:
        """Lose the last rack, and wait until all its devices are up again."""
        self.all_up = trio.Event()
        self.up -= self.size.hosts * self.size.devices
        for host in range(self.size.all_hosts - self.size.hosts, self.size.all_hosts):
            event, self.lost[host] = self.lost[host], trio.Event()
            event.set()
        await self.all_up.wait()

    def tree(self) -> Supervisor:
        """Racks, hosts and devices."""
        size, wait = self.size, backoff(1)
        hosts = [
            Supervisor(
                f"host-{number:04}",
                [
                    Child(f"device-{place}", self.device, args=[number], backoff=wait)
                    for place in range(size.devices)
                ],
                limit=None,
            )
            for number in range(size.all_hosts)
        ]
        racks = [
            Supervisor(
                f"rack-{number:02}", hosts[number * size.hosts : (number + 1) * size.hosts], limit=None
            )
            for number in range(size.racks)
        ]
        return Supervisor("fleet", racks, limit=None)


class _Watch:
    """Times the phases, or counts what happens in them."""

    def __init__(self) -> None:
        self.found: Measured = {}

    def end(self, phase: str) -> None:
        """A phase is over; another one begins."""


class _Times(_Watch):
    def __init__(self) -> None:
        super().__init__()
        gc.collect()
        self._at = now()

    def end(self, phase: str) -> None:
        """Note its seconds."""
        self.found[phase] = now() - self._at
        self._at = now()


class _Counts(_Watch, trio.abc.Instrument):
    def __init__(self) -> None:
        super().__init__()
        self.counted = Counter[str]()

    def end(self, phase: str) -> None:
        """Note its counts."""
        self.found[phase] = dict(self.counted)
        self.counted.clear()

    def before_task_step(self, _: trio.lowlevel.Task) -> None:
        """Trio calls this before each turn of a task."""
        self.counted["turns"] += 1

    def event(self, _: Event) -> None:
        """A sink."""
        self.counted["events"] += 1


async def _ours(fleet: _Fleet, watch: _Watch, sinks: list[Callable[[Event], None]]) -> None:
    memory = Memory()
    async with open_tree(fleet.tree(), sinks=sinks):
        await fleet.all_up.wait()
        watch.end(PHASES[0])
        watch.found["kB"] = memory.per_child(fleet.size.all_devices)
        await fleet.lose_rack()
        watch.end(PHASES[1])
    watch.end(PHASES[2])


async def _floor(fleet: _Fleet, watch: _Watch, _: list[Callable[[Event], None]]) -> None:
    memory = Memory()
    async with trio.open_nursery() as nursery:
        for host in range(fleet.size.all_hosts):
            for _place in range(fleet.size.devices):
                nursery.start_soon(_again, partial(fleet.device, host))
        await fleet.all_up.wait()
        watch.end(PHASES[0])
        watch.found["kB"] = memory.per_child(fleet.size.all_devices)
        await fleet.lose_rack()
        watch.end(PHASES[1])
        nursery.cancel_scope.cancel()
    watch.end(PHASES[2])


async def _again(body: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await body()
        except Lost:
            await trio.sleep(random.uniform(0, 1))


WAYS = {"ours": _ours, "floor": _floor}


def timed(way: str, racks: int, hosts: int, devices: int) -> Measured:
    """The seconds of each phase, and the memory; in a process of its own, since memory is that of the process."""

    async def run() -> Measured:
        gc.set_threshold(*THRESHOLDS)
        watch = _Times()
        await WAYS[way](_Fleet(Size(racks, hosts, devices)), watch, [])
        return watch.found

    return run_virtual(run, seed=1)


def counted(way: str, size: Size) -> dict[str, dict[str, int]]:
    """The inputs of all machines, the turns of Trio's scheduler and the events of each phase; the same on every machine."""
    watch, handle = _Counts(), Machine.handle

    def counting(machine: Machine, *args: Any) -> Any:
        watch.counted["inputs"] += 1
        return handle(machine, *args)

    async def run() -> None:
        trio.lowlevel.add_instrument(watch)
        await WAYS[way](_Fleet(size), watch, [watch.event])

    # Every input comes through `handle`, also from the work list of the forest.
    with patch.object(Machine, "handle", counting):
        run_virtual(run, seed=1)
    return {phase: watch.found[phase] for phase in PHASES}
