"""mode 0.7.1: services on asyncio, no messages. Start in order; a crash while it restarts another waits for a 5 s poll."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from mode import Service
from mode.supervisors import OneForAllSupervisor, OneForOneSupervisor

from benchmarks.work import Arrivals, Boom, Memory, Result, Storm, now, percentiles

Body = Callable[[], Awaitable[None]]

logging.disable(logging.CRITICAL)


class _Child(Service):
    def __init__(self, body: Body) -> None:
        self._body = body
        super().__init__()

    @Service.task
    async def _main(self) -> None:
        await self._body()


async def _forever() -> None:
    await asyncio.Event().wait()


async def _supervise(bodies: Sequence[Body], kind: type[Any] = OneForOneSupervisor) -> Any:
    supervisor = kind(max_restarts=1e9, over=1.0)
    supervisor.add(*map(_Child, bodies))  # children given to the constructor would not be connected to it
    await supervisor.start()
    return supervisor


def start_stop(n: int) -> Result:
    """Its children stop in the order of their start."""
    return asyncio.run(_start_stop(n))


async def _start_stop(n: int) -> Result:
    everyone = asyncio.Event()
    arrivals = Arrivals(n, everyone.set)

    async def idle() -> None:
        arrivals.up()
        await _forever()

    memory, begin = Memory(), now()
    supervisor = await _supervise([idle] * n)
    await everyone.wait()
    up = now()
    kilobytes = memory.per_child(n)
    stop = now()
    await supervisor.stop()
    return {"start_s": up - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}


def storm(n: int) -> Result:
    """Restarts of one leaf."""
    return asyncio.run(_storm(n))


async def _storm(n: int) -> Result:
    over = asyncio.Event()
    storm = Storm(n, over.set)

    async def child() -> None:
        if storm.hit():
            raise Boom
        await _forever()

    await _supervise([child])
    await over.wait()
    return storm.result()


def latency(siblings: int, n: int) -> Result:
    """Crashes of the last of many children; it rests 10 ms between them, otherwise it would wait for the poll."""
    return asyncio.run(_latency(siblings, n))


async def _latency(siblings: int, n: int) -> Result:
    over = asyncio.Event()
    seconds: list[float] = []
    crashed: list[float] = []

    async def victim() -> None:
        if crashed:
            seconds.append(now() - crashed[-1])
        if len(seconds) >= n:
            over.set()
        await asyncio.sleep(0.01)
        crashed.append(now())
        raise Boom

    await _supervise([*[_forever] * siblings, victim])
    await over.wait()
    return percentiles(seconds)


def group(n: int) -> Result:
    """A OneForAllSupervisor."""
    return asyncio.run(_group(n))


async def _group(n: int) -> Result:
    ready, trigger, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    first, second = Arrivals(n, ready.set), Arrivals(n, done.set)
    crashed: list[float] = []

    async def member() -> None:
        (second if crashed else first).up()
        await _forever()

    async def culprit() -> None:
        (second if crashed else first).up()
        if not crashed:
            await trigger.wait()
            crashed.append(now())
            raise Boom
        await _forever()

    await _supervise([culprit if number == n // 2 else member for number in range(n)], OneForAllSupervisor)
    await ready.wait()
    await asyncio.sleep(0.05)
    trigger.set()
    await done.wait()
    return {"s": now() - crashed[0]}
