"""Bare Trio with this project's promises about order and nothing else: no machine, no limit, no events, no names.

Each child is ready before the next one starts, and has ended before the next one is stopped, so each start and each stop
takes its own turn of Trio's scheduler; each child has its own scope and a fresh context. A restart takes a turn too. No library
that keeps these promises on Trio can be faster than this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context

import trio

from benchmarks.adapters.trio_floor import Group, Victim
from benchmarks.work import Arrivals, Boom, Memory, Result, Storm, now, percentiles

Body = Callable[[], Awaitable[None]]


class Chain:
    """Children that start and stop one after the other; if one fails, all of them are stopped and started again."""

    def __init__(self, nursery: trio.Nursery, bodies: Sequence[Body]) -> None:
        self._nursery = nursery
        self._bodies = bodies
        self._scopes: list[trio.CancelScope] = []
        self._stopping = False
        self._again = False

    def start_next(self) -> None:
        """Start the next child; it starts the one after it."""
        number = len(self._scopes)
        if number < len(self._bodies):
            scope = trio.CancelScope()
            self._scopes.append(scope)
            copy_context().run(self._nursery.start_soon, self._live, scope, self._bodies[number])

    async def _live(self, scope: trio.CancelScope, body: Body) -> None:
        try:
            with scope:
                self.start_next()
                await body()
        except Boom:
            self._again = True
            self._scopes.remove(scope)
            self.stop_last()
        else:
            self.stop_last()

    def stop_last(self) -> None:
        """Stop the last child; its end stops the one before it."""
        if self._scopes:
            self._scopes.pop().cancel()
        elif self._again:
            self._again = False
            self.start_next()


def start_stop(n: int) -> Result:
    """The chain of starts, and the chain of stops."""
    return trio.run(_start_stop, n)


async def _start_stop(n: int) -> Result:
    everyone = trio.Event()
    arrivals = Arrivals(n, everyone.set)

    async def idle() -> None:
        arrivals.up()
        await trio.sleep_forever()

    memory, begin = Memory(), now()
    async with trio.open_nursery() as nursery:
        chain = Chain(nursery, [idle] * n)
        chain.start_next()
        await everyone.wait()
        up = now()
        kilobytes = memory.per_child(n)
        stop = now()
        chain.stop_last()
    return {"start_s": up - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}


def group(n: int) -> Result:
    """The chain of stops and the chain of starts, after a failure."""
    return trio.run(_group, n)


async def _group(n: int) -> Result:
    group = Group(n)
    async with trio.open_nursery() as nursery:
        Chain(nursery, group.bodies(n)).start_next()
        result = await group.measure()
        nursery.cancel_scope.cancel()
    return result


async def _again(body: Body) -> None:
    """Run the body, again after each failure, in a fresh context; other tasks run in between."""
    task = trio.lowlevel.current_task()
    with trio.CancelScope():
        while True:
            try:
                await body()
            except Boom:
                pass
            else:
                return
            task.context = copy_context()
            await trio.lowlevel.cancel_shielded_checkpoint()


def storm(n: int) -> Result:
    """All incarnations in one task and one scope."""
    return trio.run(_storm, n)


async def _storm(n: int) -> Result:
    async with trio.open_nursery() as nursery:
        storm = Storm(n, nursery.cancel_scope.cancel)

        async def child() -> None:
            if storm.hit():
                raise Boom
            await trio.sleep_forever()

        nursery.start_soon(_again, child)
    return storm.result()


def latency(siblings: int, n: int) -> Result:
    """All incarnations in one task and one scope."""
    return trio.run(_latency, siblings, n)


async def _latency(siblings: int, n: int) -> Result:
    async with trio.open_nursery() as nursery:
        victim = Victim(n, nursery.cancel_scope.cancel)
        for _ in range(siblings):
            nursery.start_soon(_again, trio.sleep_forever)
        nursery.start_soon(_again, victim.body)
    return percentiles(victim.seconds)
