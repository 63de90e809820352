"""The declarations that the page compares: in one program that reaches all hosts, or one program on each host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Literal

import trio

from benchmarks.scale.world import Host, World
from supervise import Backoff, Child, Decider, Limit, Stop, Supervisor

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
Body = Callable[..., Awaitable[None]]
ALONE = Decider({"limit": Stop})
"""A child that passes its limit is stopped, and the others go on."""
DEVICE_LIMIT = Limit(3, within=60, of_ready_time=True)
DEFAULT_LIMIT = Limit(3, within=5)


def backoff(jitter: float) -> Backoff:
    """The backoff of everything that may be away for long."""
    return Backoff(initial=0.5, maximum=30, jitter=jitter)


# --- the bodies of devices


async def far(world: World, host: Host, *, task_status: trio.TaskStatus[None]) -> None:
    """A device of another host, ready when it has loaded, as a context of a device worker is."""
    await world.reach(host)
    await world.load()
    task_status.started()
    await world.run(host, silent=True)


async def far_at_once(world: World, host: Host) -> None:
    """The same, ready at once."""
    await world.reach(host)
    await world.load()
    await world.run(host, silent=True)


async def near(world: World, host: Host, *, task_status: trio.TaskStatus[None]) -> None:
    """A device, in a program of its own host; ready when it has loaded."""
    await world.load()
    task_status.started()
    await world.run(host, silent=False)


def device(name: str, body: Body, world: World, host: Host, jitter: float | None) -> Child:
    """One device. Without a jitter it has no backoff."""
    return Child(
        name,
        partial(body, world, host),
        backoff=None if jitter is None else backoff(jitter),
        start_warning=inf,
    )


# --- one program that reaches all hosts


def one_supervisor(
    world: World, *, limit: Limit | None, jitter: float | None, body: Body = far
) -> Supervisor:
    """All devices below one supervisor."""
    them = [
        device(f"{host.name}-{number}", body, world, host, jitter)
        for host in world.hosts
        for number in range(world.size.devices)
    ]
    return Supervisor("fleet", them, limit=limit)


def layers(
    world: World,
    *,
    limit: Limit | None,
    jitter: float | None,
    own: bool = False,
    body: Body = far,
) -> Supervisor:
    """Racks, hosts and devices.

    Args:
        world: whose hosts they are.
        limit: of every supervisor.
        jitter: of the devices' backoff; with None they have no backoff.
        own: whether each device has a supervisor of its own, as the contexts of D12 have.
        body: of the devices.
    """

    def of_host(host: Host) -> Supervisor:
        them: list[Child | Supervisor] = [
            device(f"device-{number}", body, world, host, jitter) for number in range(world.size.devices)
        ]
        if own:
            them = [Supervisor(one.name, [one], limit=limit) for one in them]
        return Supervisor(host.name, them, limit=limit)

    racks = [
        Supervisor(f"rack-{number:02}", map(of_host, world.rack(number)), limit=limit)
        for number in range(world.size.racks)
    ]
    return Supervisor("fleet", racks, limit=limit)


def racks_of_devices(world: World, *, strategy: Strategy) -> Supervisor:
    """Racks with all devices of their hosts below one supervisor."""
    racks = [
        Supervisor(
            f"rack-{rack:02}",
            [
                device(f"{host.name}-{number}", far, world, host, jitter=1)
                for host in world.rack(rack)
                for number in range(world.size.devices)
            ],
            strategy=strategy,
            limit=None,
        )
        for rack in range(world.size.racks)
    ]
    return Supervisor("fleet", racks, limit=None)


# --- one program on each host


def on_a_host(world: World, host: Host) -> Supervisor:
    """The tree of a host: each device has a supervisor of its own, with a limit."""
    them = [
        Supervisor(
            f"device-{number}",
            [device("context", near, world, host, jitter=0.1)],
            limit=DEVICE_LIMIT,
        )
        for number in range(world.size.devices)
    ]
    return Supervisor("host", them, limit=None, decider=ALONE)
