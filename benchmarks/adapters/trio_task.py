"""The least use of bare Trio that a supervisor needs.

Each incarnation is a new task in its own scope, and one task learns of its end through a channel and starts the next. There is no
order, no readiness, no limit. The other works are as in `trio_floor`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio

from benchmarks.adapters.trio_floor import Victim
from benchmarks.work import Arrivals, Boom, Memory, Result, Storm, now, percentiles

Body = Callable[[], Awaitable[None]]


async def supervise(bodies: Sequence[Body]) -> None:
    """Start all children, and each again when it has failed."""
    ends, ended = trio.open_memory_channel[int](float("inf"))

    async def live(number: int) -> None:
        try:
            with trio.CancelScope():
                await bodies[number]()
        except Boom:
            ends.send_nowait(number)

    async with trio.open_nursery() as nursery:
        for number in range(len(bodies)):
            nursery.start_soon(live, number)
        async for number in ended:
            nursery.start_soon(live, number)


def start_stop(n: int) -> Result:
    """All children are cancelled at once."""
    return trio.run(_start_stop, n)


async def _start_stop(n: int) -> Result:
    everyone = trio.Event()
    arrivals = Arrivals(n, everyone.set)

    async def idle() -> None:
        arrivals.up()
        await trio.sleep_forever()

    memory, begin = Memory(), now()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervise, [idle] * n)
        await everyone.wait()
        up = now()
        kilobytes = memory.per_child(n)
        stop = now()
        nursery.cancel_scope.cancel()
    return {"start_s": up - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}


def storm(n: int) -> Result:
    """Each restart takes a task, a message and a wake-up."""
    return trio.run(_storm, n)


async def _storm(n: int) -> Result:
    async with trio.open_nursery() as nursery:
        storm = Storm(n, nursery.cancel_scope.cancel)

        async def child() -> None:
            if storm.hit():
                raise Boom
            await trio.sleep_forever()

        nursery.start_soon(supervise, [child])
    return storm.result()


def latency(siblings: int, n: int) -> Result:
    """Each restart takes a task, a message and a wake-up."""
    return trio.run(_latency, siblings, n)


async def _latency(siblings: int, n: int) -> Result:
    async with trio.open_nursery() as nursery:
        victim = Victim(n, nursery.cancel_scope.cancel)
        nursery.start_soon(supervise, [*[trio.sleep_forever] * siblings, victim.body])
    return percentiles(victim.seconds)
