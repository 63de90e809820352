"""triotp 0.2.1: OTP on Trio 0.19. One strategy, one_for_one; restarts are counted for each child."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import logbook
import trio
from triotp import gen_server, mailbox, supervisor

from benchmarks.adapters.trio_floor import Victim, timed_calls
from benchmarks.work import Arrivals, Boom, Memory, Result, Storm, now, percentiles

Body = Callable[[], Awaitable[None]]

MANY = supervisor.options(max_restarts=10**9, max_seconds=1)
NONE = supervisor.options(max_restarts=0, max_seconds=1)

logbook.NullHandler().push_application()


def _child(name: str, task: Callable[..., Awaitable[None]], *args: Any) -> Any:
    return supervisor.child_spec(
        id=name, task=task, args=list(args), restart=supervisor.restart_strategy.PERMANENT
    )


def _run(work: Callable[..., Awaitable[Result]], *args: Any) -> Result:
    async def main() -> Result:
        mailbox._init()
        return await work(*args)

    return trio.run(main)


async def _supervise(nursery: trio.Nursery, bodies: Sequence[Body]) -> None:
    children = [_child(str(number), body) for number, body in enumerate(bodies)]
    await nursery.start(supervisor.start, children, MANY)


def start_stop(n: int) -> Result:
    """It reports its start before its children run, and cancels all of them at once."""
    return _run(_start_stop, n)


async def _start_stop(n: int) -> Result:
    everyone = trio.Event()
    arrivals = Arrivals(n, everyone.set)

    async def idle() -> None:
        arrivals.up()
        await trio.sleep_forever()

    memory, begin = Memory(), now()
    async with trio.open_nursery() as nursery:
        await _supervise(nursery, [idle] * n)
        await everyone.wait()
        up = now()
        kilobytes = memory.per_child(n)
        stop = now()
        nursery.cancel_scope.cancel()
    return {"start_s": up - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}


def storm(n: int) -> Result:
    """Restarts of one leaf."""
    return _run(_storm, n)


async def _storm(n: int) -> Result:
    async with trio.open_nursery() as nursery:
        storm = Storm(n, nursery.cancel_scope.cancel)

        async def child() -> None:
            if storm.hit():
                raise Boom
            await trio.sleep_forever()

        await _supervise(nursery, [child])
    return storm.result()


def latency(siblings: int, n: int) -> Result:
    """Crashes of the last of many children."""
    return _run(_latency, siblings, n)


async def _latency(siblings: int, n: int) -> Result:
    async with trio.open_nursery() as nursery:
        victim = Victim(n, nursery.cancel_scope.cancel)
        await _supervise(nursery, [*[trio.sleep_forever] * siblings, victim.body])
    return percentiles(victim.seconds)


class _Server:
    """The module of a server that sums its messages."""

    __name__ = "server"

    def __init__(self, target: int) -> None:
        self._target = target
        self.done = trio.Event()

    async def init(self, _: Any) -> int:
        return 0

    async def handle_call(self, value: int, _: Any, state: int) -> tuple[Any, int]:
        return gen_server.Reply(state + value), state + value

    async def handle_cast(self, value: int, state: int) -> tuple[Any, int]:
        if state + value == self._target:
            self.done.set()
        return gen_server.NoReply(), state + value


def call(n: int, callers: int) -> Result:
    """Calls by gen_server.call."""
    return _run(_call, n, callers)


async def _call(n: int, callers: int) -> Result:
    async def caller() -> None:
        for _ in range(n // callers):
            await gen_server.call("server", 1)

    async with trio.open_nursery() as nursery:
        await _supervise(nursery, [partial(gen_server.start, _Server(n), None, "server")])
        await trio.sleep(0.01)
        result = await timed_calls(n, callers, caller)
        nursery.cancel_scope.cancel()
    return result


def send(n: int) -> Result:
    """Messages by gen_server.cast, which waits until the message is taken."""
    return _run(_send, n)


async def _send(n: int) -> Result:
    server = _Server(n)
    async with trio.open_nursery() as nursery:
        await _supervise(nursery, [partial(gen_server.start, server, None, "server")])
        await trio.sleep(0.01)
        begin = now()
        for _ in range(n):
            await gen_server.cast("server", 1)
        await server.done.wait()
        seconds = now() - begin
        nursery.cancel_scope.cancel()
    return {"per_s": n / seconds}


def deep(depth: int) -> Result:
    """No supervisor allows a restart."""
    return _run(_deep, depth)


async def _deep(depth: int) -> Result:
    ready, trigger = trio.Event(), trio.Event()
    crashed = over = 0.0

    async def leaf() -> None:
        nonlocal crashed
        ready.set()
        await trigger.wait()
        crashed = now()
        raise Boom

    child = _child("leaf", leaf)
    for level in range(depth):
        child = _child(str(level), supervisor.start, [child], NONE)

    async def root() -> None:
        nonlocal over
        try:
            await supervisor.start([child], NONE)
        except Exception:  # noqa: BLE001 - whatever the root raises, the measurement ends with it
            over = now()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(root)
        await ready.wait()
        trigger.set()
    return {"s": over - crashed}


deep_limit = deep
