"""Bare Trio with the least work for the task: a loop around the body, no order, memory channels.

A restart here is one turn of a loop without a new task. No supervisor that must be informed can be so fast; see `trio_task`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from benchmarks.work import Arrivals, Boom, Memory, Result, Storm, now, percentiles

Body = Callable[[], Awaitable[None]]


async def _again(body: Body) -> None:
    """Run the body, again after each failure."""
    while True:
        try:
            await body()
        except Boom:
            continue
        return


def start_stop(n: int) -> Result:
    """All children in one nursery, cancelled at once."""
    return trio.run(_start_stop, n)


async def _start_stop(n: int) -> Result:
    everyone = trio.Event()
    arrivals = Arrivals(n, everyone.set)

    async def idle() -> None:
        arrivals.up()
        await trio.sleep_forever()

    memory, begin = Memory(), now()
    async with trio.open_nursery() as nursery:
        for _ in range(n):
            nursery.start_soon(_again, idle)
        await everyone.wait()
        up = now()
        kilobytes = memory.per_child(n)
        stop = now()
        nursery.cancel_scope.cancel()
    return {"start_s": up - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}


def storm(n: int) -> Result:
    """Turns of the loop, each with a checkpoint that lets other tasks run."""
    return trio.run(_storm, n)


async def _storm(n: int) -> Result:
    async with trio.open_nursery() as nursery:
        storm = Storm(n, nursery.cancel_scope.cancel)

        async def child() -> None:
            await trio.lowlevel.checkpoint()
            if storm.hit():
                raise Boom
            await trio.sleep_forever()

        nursery.start_soon(_again, child)
    return storm.result()


class Victim:
    """A child that fails every millisecond, and times its restart."""

    def __init__(self, n: int, done: Callable[[], object]) -> None:
        self.seconds: list[float] = []
        self._n = n
        self._done = done
        self._failed: float | None = None

    async def body(self) -> None:
        """One incarnation."""
        if self._failed is not None:
            self.seconds.append(now() - self._failed)
        if len(self.seconds) >= self._n:
            self._done()
        await trio.sleep(0.001)
        self._failed = now()
        raise Boom


def latency(siblings: int, n: int) -> Result:
    """Each restart is a turn of the loop."""
    return trio.run(_latency, siblings, n)


async def _latency(siblings: int, n: int) -> Result:
    async with trio.open_nursery() as nursery:
        victim = Victim(n, nursery.cancel_scope.cancel)
        for _ in range(siblings):
            nursery.start_soon(_again, trio.sleep_forever)
        nursery.start_soon(_again, victim.body)
    return percentiles(victim.seconds)


class Group:
    """A group whose member in the middle fails once, when all are up for the first time."""

    def __init__(self, n: int) -> None:
        self.ready, self.trigger, self.done = trio.Event(), trio.Event(), trio.Event()
        self.crashed = 0.0
        self._first, self._second = Arrivals(n, self.ready.set), Arrivals(n, self.done.set)

    async def member(self) -> None:
        """The body of a member that does not fail."""
        self._arrive()
        await trio.sleep_forever()

    async def culprit(self) -> None:
        """The body of the member that fails, once."""
        self._arrive()
        if self.crashed == 0.0:
            await self.trigger.wait()
            self.crashed = now()
            raise Boom
        await trio.sleep_forever()

    def _arrive(self) -> None:
        (self._second if self.crashed else self._first).up()

    def bodies(self, n: int) -> list[Body]:
        """The bodies of all members, in order."""
        return [self.culprit if number == n // 2 else self.member for number in range(n)]

    async def measure(self) -> Result:
        """Wait until all members are up, let one fail, and wait until all are up again."""
        await self.ready.wait()
        self.trigger.set()
        await self.done.wait()
        return {"s": now() - self.crashed}


def group(n: int) -> Result:
    """A nursery that fails as a whole and is opened again, without an order."""
    return trio.run(_group, n)


async def _group(n: int) -> Result:
    group = Group(n)

    async def incarnations() -> None:
        while True:
            try:
                async with trio.open_nursery() as members:
                    for body in group.bodies(n):
                        members.start_soon(body)
            except* Boom:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(incarnations)
        result = await group.measure()
        nursery.cancel_scope.cancel()
    return result


def call(n: int, callers: int) -> Result:
    """A memory channel for the requests, and one for the replies of each caller."""
    return trio.run(_call, n, callers)


async def _call(n: int, callers: int) -> Result:
    requests, inbox = trio.open_memory_channel[tuple["trio.MemorySendChannel[int]", int]](float("inf"))

    async def server() -> None:
        state = 0
        async for reply, value in inbox:
            state += value
            reply.send_nowait(state)

    async def caller() -> None:
        reply, replies = trio.open_memory_channel[int](1)
        for _ in range(n // callers):
            requests.send_nowait((reply, 1))
            await replies.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_again, server)
        result = await timed_calls(n, callers, caller)
        nursery.cancel_scope.cancel()
    return result


async def timed_calls(n: int, callers: int, caller: Body) -> Result:
    """Time all callers at once, until they have finished."""
    await trio.lowlevel.checkpoint()
    begin = now()
    async with trio.open_nursery() as nursery:
        for _ in range(callers):
            nursery.start_soon(caller)
    return {"per_s": n // callers * callers / (now() - begin)}


def send(n: int) -> Result:
    """Messages through an unbounded memory channel."""
    return trio.run(_send, n)


async def _send(n: int) -> Result:
    messages, inbox = trio.open_memory_channel[int](float("inf"))
    done = trio.Event()

    async def server() -> None:
        state = 0
        async for value in inbox:
            state += value
            if state == n:
                done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_again, server)
        result = await timed_sends(n, messages.send_nowait, done)
        nursery.cancel_scope.cancel()
    return result


async def timed_sends(n: int, put: Callable[[int], object], done: trio.Event) -> Result:
    """Send n messages, and time until all have been taken."""
    await trio.lowlevel.checkpoint()
    begin = now()
    for _ in range(n):
        put(1)
    await done.wait()
    return {"per_s": n / (now() - begin)}


def deep(depth: int) -> Result:
    """Nested nurseries; the exception passes through each."""
    return trio.run(_deep, depth)


async def _deep(depth: int) -> Result:
    ready, trigger = trio.Event(), trio.Event()
    crashed = over = 0.0

    async def level(below: int) -> None:
        nonlocal crashed
        if below == 0:
            ready.set()
            await trigger.wait()
            crashed = now()
            raise Boom
        async with trio.open_nursery() as nursery:
            nursery.start_soon(level, below - 1)

    async def root() -> None:
        nonlocal over
        try:
            await level(depth)
        except* Boom:
            over = now()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(root)
        await ready.wait()
        trigger.set()
    return {"s": over - crashed}


deep_limit = deep
send_many = send
