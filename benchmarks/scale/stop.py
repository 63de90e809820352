"""An ordered stop of everything, in which each device finishes the work that it has begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from benchmarks.scale.world import Size
from supervise import Child, Pool, Supervisor, open_tree, stop_requested
from supervise.testing import run_virtual

FINISH = 10.0
"""Seconds that a device needs for the work that it has begun; it may drain for longer than that."""


async def device() -> None:
    """A device that finishes its work when it is asked to stop."""
    await stop_requested()
    await trio.sleep(FINISH)


def _devices(count: int) -> list[Child]:
    return [Child(f"device-{number}", device, drain=2 * FINISH) for number in range(count)]


def _one_program(size: Size) -> list[tuple[Supervisor | Pool, int]]:
    hosts = [Supervisor(f"host-{number:04}", _devices(size.devices)) for number in range(size.all_hosts)]
    return [(Supervisor("fleet", hosts), 0)]


def _a_pool(size: Size) -> list[tuple[Supervisor | Pool, int]]:
    return [(Pool("fleet", Child("device", device, drain=2 * FINISH)), size.all_devices)]


def _on_hosts(size: Size) -> list[tuple[Supervisor | Pool, int]]:
    return [(Supervisor("host", _devices(size.devices)), 0) for _ in range(size.all_hosts)]


STOPS: dict[str, Callable[[Size], list[tuple[Supervisor | Pool, int]]]] = {
    "one program": _one_program,
    "one program, all devices in a pool": _a_pool,
    "a tree on each host": _on_hosts,
}
"""The trees of the programs, and how many members are added to each."""


def stop(programs: Callable[[Size], Sequence[tuple[Supervisor | Pool, int]]], size: Size) -> float:
    """The seconds of a stop of all programs at once."""
    return run_virtual(_stop, programs(size), seed=1)


async def _stop(programs: Sequence[tuple[Supervisor | Pool, int]]) -> float:
    up, go = 0, trio.Event()
    all_up = trio.Event()

    async def program(spec: Supervisor | Pool, members: int) -> None:
        nonlocal up
        async with open_tree(spec, sinks=[]) as tree:
            for _ in range(members):
                await tree.root.add()
            up += 1
            if up == len(programs):
                all_up.set()
            await go.wait()

    async with trio.open_nursery() as nursery:
        for spec, members in programs:
            nursery.start_soon(program, spec, members)
        await all_up.wait()
        at = trio.current_time()
        go.set()
    return trio.current_time() - at
