"""otpylib 0.5.18: OTP on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from otpylib import atom, gen_server, process, supervisor
from otpylib.module import GEN_SERVER, SUPERVISOR, OTPModule
from otpylib.runtime.backends.asyncio_backend import AsyncIOBackend

from benchmarks.work import Arrivals, Boom, Memory, NotOffered, Result, Storm, now, percentiles

Init = Callable[[], Awaitable[None]]


class _Last:
    """The state that the servers of this run share."""

    crashed = 0.0
    target = -1
    done: asyncio.Event
    task: asyncio.Task[None]


class _Server(metaclass=OTPModule, behavior=GEN_SERVER, version="1.0.0"):
    async def init(self, init: Init | None) -> int:
        if init is not None:
            await init()
        return 0

    async def handle_call(self, value: int, _: Any, state: int) -> tuple[Any, int]:
        return gen_server.Reply(state + value), state + value

    async def handle_cast(self, value: int, state: int) -> tuple[Any, int]:
        if state + value == _Last.target:
            _Last.done.set()
        return gen_server.NoReply(), state + value

    async def handle_info(self, message: Any, state: int) -> tuple[Any, int]:
        if message == "boom":
            _Last.crashed = now()
            raise Boom
        return gen_server.NoReply(), state

    async def terminate(self, _: Any, __: int) -> None:
        pass


class _Supervisor(metaclass=OTPModule, behavior=SUPERVISOR, version="1.0.0"):
    async def init(self, specs_and_options: Any) -> Any:
        return specs_and_options

    async def terminate(self, _: Any, __: Any) -> None:
        pass


async def _supervise(inits: Sequence[Init | None], strategy: Any = supervisor.ONE_FOR_ONE) -> None:
    specs = [
        supervisor.child_spec(id=str(number), module=_Server, args=init, name=f"server-{number}")
        for number, init in enumerate(inits)
    ]
    options = supervisor.options(max_restarts=10**9, max_seconds=1, strategy=strategy)
    await _Supervisor.start_link(init_arg=(specs, options), name="supervisor")


def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    async def main() -> Result:
        backend = AsyncIOBackend()
        await backend.initialize()
        process.use_runtime(backend)
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        async def root() -> None:
            result.set_result(await work())

        await process.spawn(root, mailbox=True)
        return await asyncio.wait_for(result, 60)

    return asyncio.new_event_loop().run_until_complete(
        main()
    )  # asyncio.run would end its processes, and can hang


def start_stop(n: int) -> Result:
    """It has no call for a stop, so this sends it a message, and polls its processes."""
    if n > 10_000:
        raise NotOffered("a supervisor must have started within 5 s")

    async def work() -> Result:
        everyone = asyncio.Event()
        arrivals = Arrivals(n, everyone.set)

        async def up() -> None:
            arrivals.up()

        memory, begin = Memory(), now()
        await _supervise([up] * n)
        await everyone.wait()
        started = now()
        kilobytes = memory.per_child(n)
        stop = now()
        await process.send("supervisor", getattr(supervisor, "SHUTDOWN", atom.ensure("shutdown")))
        while len(process.processes()) > 1:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.001)
        return {"start_s": started - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}

    return _run(work)


async def _crash_soon(turns: int = 20) -> None:
    """Fail after some turns: a child that fails before its supervisor monitors it is lost for good."""
    this = process.self()

    async def later() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        await process.send(this, "boom")

    _Last.task = asyncio.create_task(later())


def storm(n: int) -> Result:
    """Each incarnation fails some turns after it has started."""

    async def work() -> Result:
        over = asyncio.Event()
        storm = Storm(n, over.set)

        async def up() -> None:
            if storm.hit():
                await _crash_soon()

        await _supervise([up])
        await over.wait()
        return storm.result()

    return _run(work)


def latency(siblings: int, n: int) -> Result:
    """Crashes of the last of many children."""

    async def work() -> Result:
        over = asyncio.Event()
        seconds: list[float] = []

        async def victim() -> None:
            if _Last.crashed:
                seconds.append(now() - _Last.crashed)
            if len(seconds) >= n:
                over.set()
            else:
                await process.send_after(0.01, process.self(), "boom")

        await _supervise([*[None] * siblings, victim])
        await over.wait()
        return percentiles(seconds)

    return _run(work)


def group(n: int) -> Result:
    """A one_for_all supervisor."""

    async def work() -> Result:
        ready, done = asyncio.Event(), asyncio.Event()
        first, second = Arrivals(n, ready.set), Arrivals(n, done.set)

        async def up() -> None:
            (second if _Last.crashed else first).up()

        await _supervise([up] * n, supervisor.ONE_FOR_ALL)
        await ready.wait()
        await asyncio.sleep(0.01)
        await process.send(f"server-{n // 2}", "boom")
        await done.wait()
        return {"s": now() - _Last.crashed}

    return _run(work)


def call(n: int, callers: int) -> Result:
    """Calls by gen_server.call."""

    async def work() -> Result:
        await _supervise([None])
        over = asyncio.Event()
        arrivals = Arrivals(callers, over.set)

        async def caller() -> None:
            for _ in range(n // callers):
                await gen_server.call("server-0", 1)
            arrivals.up()

        begin = now()
        for _ in range(callers):
            await process.spawn(caller, mailbox=True)
        await over.wait()
        return {"per_s": n // callers * callers / (now() - begin)}

    return _run(work)


def send(n: int) -> Result:
    """Messages by gen_server.cast."""

    async def work() -> Result:
        _Last.target, _Last.done = n, asyncio.Event()
        await _supervise([None])
        begin = now()
        for _ in range(n):
            await gen_server.cast("server-0", 1)
        await _Last.done.wait()
        return {"per_s": n / (now() - begin)}

    return _run(work)
