"""The world around the trees: racks of hosts that lose their power, and one file server from which every device loads.

The trees, their supervisors and their tasks are real. The bodies of the leaves follow this world, and time is virtual.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Generator
from contextlib import contextmanager
from heapq import heappop, heappush
from math import inf

import trio
from attrs import field, frozen

LOAD = 8.0
"""Seconds of one load of a device that has its full share of the file server."""
TIMEOUT = 60.0
"""Seconds after which a load is given up."""
CONNECT = 3.0
"""Seconds after which a connection to a host without power fails."""
ROUND_TRIP = 0.001
"""Seconds until a host answers, or refuses a connection because its programs do not run yet."""
BOOT = 30.0
"""Seconds from a host's power to its programs."""
LEASE, MARGIN = 10.0, 2.0
"""The seconds of D16: a host that was silent for a lease is lost; its device is free when the margin is over too."""

Series = list[tuple[float, int]]
"""A number over time: when it changed, and its value from then on."""


@frozen
class Size:
    """How many racks there are, hosts in a rack, and devices in a host."""

    racks: int = 25
    hosts: int = 40
    devices: int = 8

    @property
    def all_hosts(self) -> int:
        """The hosts of all racks."""
        return self.racks * self.hosts

    @property
    def all_devices(self) -> int:
        """The devices of all racks."""
        return self.all_hosts * self.devices


class Lost(ConnectionError):
    """The connection to a host or to its device has ended."""


@frozen(eq=False)
class Count:
    """A number that changes over time."""

    series: Series = field(factory=lambda: [(0.0, 0)])
    _awaited: dict[int, trio.Event] = field(factory=dict[int, trio.Event])

    @property
    def now(self) -> int:
        """The present number."""
        return self.series[-1][1]

    def add(self, more: int) -> None:
        """Change it."""
        at = trio.current_time()
        value = self.now + more
        if self.series[-1][0] == at:
            self.series.pop()
        self.series.append((at, value))
        if value in self._awaited:
            self._awaited.pop(value).set()

    async def is_at(self, value: int) -> None:
        """Wait until it is this number."""
        if self.now != value:
            await self._awaited.setdefault(value, trio.Event()).wait()

    @contextmanager
    def one_more(self) -> Generator[None, None, None]:
        """One more during the block."""
        self.add(1)
        try:
            yield
        finally:
            self.add(-1)

    def most(self, since: float) -> int:
        """The highest number from a moment on."""
        return max((value for at, value in self.series if at >= since), default=self.now)


class FileServer:
    """Serves `places` loads at full speed; more than that share it equally."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.loads = Count()
        self.given_up = 0
        self.asked: list[float] = []
        self._share = 0.0  # the seconds of work that a load which began at 0 would have by now
        self._at = 0.0
        self._ends: list[tuple[float, int, trio.Event]] = []
        self._ticket = 0
        self._changed = trio.Event()

    async def read(self) -> None:
        """One load. Raises TimeoutError if it takes longer than `TIMEOUT`: what was read is thrown away then."""
        self._advance()
        done, self._ticket = trio.Event(), self._ticket + 1
        heappush(self._ends, (self._share + LOAD, self._ticket, done))
        with trio.move_on_after(TIMEOUT), self.loads.one_more():
            self._changed.set()
            try:
                await done.wait()
            finally:
                self._advance()
                self._changed.set()
        if not done.is_set():
            self.given_up += 1
            raise TimeoutError(f"a load took longer than {TIMEOUT:g} s")

    def _advance(self) -> None:
        now = trio.current_time()
        self._share += (now - self._at) * self._speed
        self._at = now

    @property
    def _speed(self) -> float:
        return min(1.0, self.places / max(1, self.loads.now))

    def busiest(self, since: float, seconds: float = 1.0) -> int:
        """The most loads that were asked for within some seconds, from a moment on."""
        asked = [at for at in self.asked if at >= since]
        return max((bisect(asked, at + seconds) - number for number, at in enumerate(asked)), default=0)

    async def serve(self) -> None:
        """End each load when its work is done. A load that was given up stays in the heap, and nothing waits for its end."""
        while True:
            self._changed = trio.Event()
            self._advance()
            while self._ends and self._ends[0][0] <= self._share + 1e-9:
                heappop(self._ends)[2].set()
            wait = (self._ends[0][0] - self._share) / self._speed if self._ends else inf
            with trio.move_on_after(wait):
                await self._changed.wait()


class Host:
    """A machine with power or without, whose programs run or do not."""

    def __init__(self, name: str, rack: int) -> None:
        self.name = name
        self.rack = rack
        self.power = self.runs = True
        self.up = Count()
        self.lost = trio.Event()
        self.back = trio.Event()
        self.back.set()

    def fail(self) -> None:
        """The power fails."""
        self.power = self.runs = False
        self.back = trio.Event()
        self.lost.set()

    async def recover(self) -> None:
        """The power comes back, and later the programs run."""
        self.power, self.lost = True, trio.Event()
        await trio.sleep(BOOT)
        self.runs = True
        self.back.set()


class World:
    """All hosts, the file server, and what is counted."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size = size
        self.hosts = [Host(f"host-{number:04}", number // size.hosts) for number in range(size.all_hosts)]
        self.files = FileServer(size.hosts)
        self.queue: trio.CapacityLimiter | None = trio.CapacityLimiter(size.hosts)
        self.up = Count()
        self.attempts = 0
        self.stopped_healthy = 0
        self.random = random.Random(seed)

    def rack(self, number: int) -> list[Host]:
        """The hosts of one rack."""
        return [host for host in self.hosts if host.rack == number]

    async def reach(self, host: Host) -> None:
        """Connect to a host."""
        self.attempts += 1
        await trio.sleep(ROUND_TRIP if host.power else CONNECT)
        if not host.runs:
            raise Lost(f"{host.name} does not answer")

    async def load(self) -> None:
        """Load one device; where there is a queue in front of the file server, after those before it."""
        self.files.asked.append(trio.current_time())
        if self.queue is None:
            await self.files.read()
            return
        async with self.queue:
            await self.files.read()

    async def run(self, host: Host, *, silent: bool) -> None:
        """A loaded device runs until its host is lost.

        Args:
            host: where it is.
            silent: whether a program on another host watches the device, so that the loss is noticed at the end of a lease, of which
                up to a quarter has passed already.
        """
        with self.up.one_more(), host.up.one_more():
            try:
                await host.lost.wait()
            except trio.Cancelled:
                self.stopped_healthy += host.power
                raise
        if silent:
            await trio.sleep(self.random.uniform(0.75, 1) * LEASE)
        raise Lost(f"{host.name} is lost")
