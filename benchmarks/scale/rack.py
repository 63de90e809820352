"""Hosts lose their power and get it back: what each declaration makes of that, and how long a first start takes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio
from attrs import field, frozen

from benchmarks.scale import trees
from benchmarks.scale.world import Host, Series, Size, World
from supervise import StartFailed, Supervisor, Tree, TreeFailed, open_tree
from supervise.errors import LimitExceeded
from supervise.events import Event, Failed
from supervise.testing import run_virtual

OUTAGE = 180.0
"""Seconds without power."""
BYSTANDER_AT = 40.0
"""Seconds after the loss at which a device of another rack fails by itself."""
HORIZON = 3600.0
"""Seconds after which the wait for all devices is given up."""
RESTART_SEC = 0.1
"""Seconds after which a service manager starts a program again; systemd's default."""


class Run:
    """One declaration in one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ended: float | None = None
        self.bystander: Callable[[], object] | None = None
        self.bystander_down: float | None = None
        self.passed: list[tuple[float, str]] = []

    def see(self, event: Event) -> None:
        """A sink: note each limit that is passed."""
        if isinstance(event, Failed) and isinstance(event.exc, LimitExceeded):
            self.passed.append((event.at, event.path))

    async def program(self, spec: Supervisor, bystander: str) -> None:
        """One program with this tree, which is not started again if it ends."""
        try:
            async with open_tree(spec, sinks=[self.see]) as tree:
                self.bystander = _failure_of(tree, bystander)
                await trio.sleep_forever()
        except TreeFailed:
            self.ended = trio.current_time()

    async def machines(self) -> None:
        """The programs of all hosts."""
        async with trio.open_nursery() as nursery:
            for host in self.world.hosts:
                nursery.start_soon(self._machine, host)

    async def _machine(self, host: Host) -> None:
        """The program of one host. Its service manager starts it when the host has booted, and when it has ended."""
        while True:
            await host.back.wait()
            with trio.CancelScope() as power:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_cancel_after, host.lost, power)
                    while True:
                        await self._program_of(host)
                        await trio.sleep(RESTART_SEC)

    async def _program_of(self, host: Host) -> None:
        try:
            async with open_tree(trees.on_a_host(self.world, host), sinks=[]) as tree:
                if host is self.world.hosts[0]:
                    self.bystander = _failure_of(tree, "host/device-0/context")
                await trio.sleep_forever()
        except StartFailed:
            return

    async def fail_bystander(self) -> None:
        """One device fails by itself; note how long it is down."""
        if self.ended is not None:
            return
        assert self.bystander is not None
        devices, host, begin = self.world.size.devices, self.world.hosts[0], trio.current_time()
        self.bystander()
        await host.up.is_at(devices - 1)
        self.world.stopped_healthy -= 1  # this one had to fail
        await host.up.is_at(devices)
        self.bystander_down = trio.current_time() - begin


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _failure_of(tree: Tree, path: str) -> Callable[[], object]:
    return lambda: tree[path].inject(RuntimeError("the program of this device crashed"))


Start = Callable[[Run], Awaitable[None]]
IN_LAYERS = "fleet/rack-00/host-0000/device-0"


def _flat(run: Run, **options: Any) -> Awaitable[None]:
    return run.program(trees.one_supervisor(run.world, **options), "fleet/host-0000-0")


def _layers(run: Run, **options: Any) -> Awaitable[None]:
    path = f"{IN_LAYERS}/device-0" if options.get("own") else IN_LAYERS
    return run.program(trees.layers(run.world, **options), path)


def _group(run: Run, **options: Any) -> Awaitable[None]:
    return run.program(trees.racks_of_devices(run.world, **options), "fleet/rack-00/host-0000-0")


FLAT, FLAT_FREE, DEFAULTS, EACH, ON_HOSTS = (
    "one supervisor, default limit",
    "one supervisor, no limit",
    "racks and hosts, default limits",
    "one supervisor for each device",
    "a tree on each host",
)
DECLARATIONS: dict[str, Start] = {
    FLAT: partial(_flat, limit=trees.DEFAULT_LIMIT, jitter=None),
    FLAT_FREE: partial(_flat, limit=None, jitter=1),
    DEFAULTS: partial(_layers, limit=trees.DEFAULT_LIMIT, jitter=None),
    EACH: partial(_layers, limit=None, jitter=1, own=True),
    ON_HOSTS: Run.machines,
}

GROUPS: dict[str, Start] = {
    "one_for_all": partial(_group, strategy="one_for_all"),
    "rest_for_one": partial(_group, strategy="rest_for_one"),
    "one_for_one": partial(_group, strategy="one_for_one"),
    EACH: DECLARATIONS[EACH],
}
"""How the devices of a rack are below its supervisor, for the loss of one host."""


def storm(jitter: float) -> Start:
    """One supervisor for each device, with this jitter of the backoff."""
    return partial(_layers, limit=None, jitter=jitter, own=True)


@frozen(kw_only=True)
class Outcome:
    """What one declaration made of a loss; times in seconds.

    Args:
        ended: from the loss to the end of the tree; None if it goes on.
        passed: each limit that was passed: when, from the loss on, and the path of its supervisor.
        stopped_healthy: how often a device was stopped whose host had power.
        attempts: connections that were tried from the loss on.
        busiest: the most loads that were asked for within one second.
        peak: the most loads at once.
        given_up: loads that took too long, so that their work was lost.
        bystander: until the device of another rack that failed by itself was up again; None: it never was.
        up: from the power until all devices were up again; None: they never were.
        series: the devices that were up, from the loss on.
        loading: the loads in progress, from the loss on.
    """

    ended: float | None
    passed: list[tuple[float, str]]
    stopped_healthy: int
    attempts: int
    busiest: int
    peak: int
    given_up: int
    bystander: float | None
    up: float | None
    series: Series = field(repr=False)
    loading: Series = field(repr=False)


def lose(
    start: Start, size: Size, *, hosts: Sequence[int] | None = None, queue: bool = True, seed: int = 1
) -> Outcome:
    """Start everything, let hosts lose their power for a while, and see what happens.

    Args:
        start: the programs.
        size: of the fleet.
        hosts: the numbers of those that are lost; None: the second rack, and a device of the first one fails meanwhile.
        queue: whether the file server lets loads wait for a place, from the loss on; before, it does.
        seed: of the schedule and of all chance.
    """
    return run_virtual(_lose, start, size, hosts, queue, seed, seed=seed)


async def _lose(start: Start, size: Size, hosts: Sequence[int] | None, queue: bool, seed: int) -> Outcome:
    world = World(size, seed)
    run = Run(world)
    lost = world.rack(1) if hosts is None else [world.hosts[number] for number in hosts]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.files.serve)
        nursery.start_soon(start, run)
        await world.up.is_at(size.all_devices)
        struck, before = trio.current_time(), world.attempts
        if not queue:
            world.queue = None
        for host in lost:
            host.fail()
        await trio.sleep(BYSTANDER_AT)
        if hosts is None:
            nursery.start_soon(run.fail_bystander)
        await trio.sleep(OUTAGE - BYSTANDER_AT)
        power = trio.current_time()
        for host in lost:
            nursery.start_soon(host.recover)
        with trio.move_on_after(HORIZON):
            await world.up.is_at(size.all_devices)
        outcome = Outcome(
            ended=None if run.ended is None else run.ended - struck,
            passed=[(at - struck, path) for at, path in run.passed],
            stopped_healthy=world.stopped_healthy,
            attempts=world.attempts - before,
            busiest=world.files.busiest(power),
            peak=world.files.loads.most(struck),
            given_up=world.files.given_up,
            bystander=run.bystander_down,
            up=trio.current_time() - power if world.up.now == size.all_devices else None,
            series=_from(world.up.series, struck),
            loading=_from(world.files.loads.series, struck),
        )
        nursery.cancel_scope.cancel()
    return outcome


def _from(series: Series, at: float) -> Series:
    return [(when - at, value) for when, value in series if when >= at]


@frozen(kw_only=True)
class Booted:
    """A first start of everything at once.

    Args:
        up: seconds until all devices were up; None: they were not within the horizon.
        devices: how many were up then.
        peak: the most loads at once.
        given_up: loads that took too long, so that their work was lost.
    """

    up: float | None
    devices: int
    peak: int
    given_up: int


IN_START, AT_ONCE = "one program, ready when loaded", "one program, ready at once"
BOOTS: dict[str, Start] = {
    IN_START: partial(_layers, limit=None, jitter=1, own=True),
    AT_ONCE: partial(_layers, limit=None, jitter=1, own=True, body=trees.far_at_once),
    ON_HOSTS: Run.machines,
}


def boot(start: Start, size: Size, *, queue: bool, horizon: float = HORIZON, seed: int = 1) -> Booted:
    """Start everything at once, for instance after the power of the whole site."""
    return run_virtual(_boot, start, size, queue, horizon, seed, seed=seed)


async def _boot(start: Start, size: Size, queue: bool, horizon: float, seed: int) -> Booted:
    world = World(size, seed)
    if not queue:
        world.queue = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.files.serve)
        nursery.start_soon(start, Run(world))
        with trio.move_on_after(horizon):
            await world.up.is_at(size.all_devices)
        booted = Booted(
            up=trio.current_time() if world.up.now == size.all_devices else None,
            devices=world.up.now,
            peak=world.files.loads.most(0),
            given_up=world.files.given_up,
        )
        nursery.cancel_scope.cancel()
    return booted
