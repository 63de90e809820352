"""One request beside many open streams: what it costs a device worker, and a session of a process, in executed lines.

    python -m benchmarks.streams      the lines of a request beside no other stream, and beside 1,024

The lines are those of all Python code in the process: this project's, Trio's, and the standard library's. They are the same on
any machine, at any load.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Self, cast

import trio
import trio.testing
from attrs import frozen

from runners.hosts.inline import InlineHost
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost, ProcessSession
from runners.hosts.process.parent.connection import Connection
from runners.types import (
    ExecuteBatch,
    FinishReason,
    ModelRunner,
    RunnerInfo,
    RunnerStart,
    SessionRebuildCause,
    TokenChunk,
)
from runners.worker import device_worker
from supervise import Ref, open_tree

MANY = 1024
TIMES = 20
"""Trio orders runnable tasks at random; the least of so many repetitions is always the same."""
STAYS = "stays"
"""The prompt of a request without an answer."""
_AN_HOUR = 3600.0


@frozen
class Patient:
    """An async function with places for many streams; a request with the prompt `STAYS` waits for ever."""

    def build(self, start: RunnerStart) -> ModelRunner:  # noqa: ARG002 - a spec must take it, and this runner is the same at every start
        """Make the runner; it loads nothing."""
        return _PatientRunner()


class _PatientRunner:
    info = RunnerInfo(streams=2 * MANY, runtime="patient")

    async def execute(self, batch: ExecuteBatch) -> AsyncIterator[TokenChunk]:
        if batch.prompt == STAYS:
            await trio.sleep_forever()
        yield TokenChunk(request_id=batch.request_id, index=0, data=0, finish_reason=FinishReason.STOP)

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """Do nothing: the runner has no session."""

    def close(self) -> None:
        """Do nothing: the runner holds nothing."""


@asynccontextmanager
async def beside(streams: int) -> AsyncGenerator[Ref, None]:
    """A worker with so many open streams, each with a deadline of its own."""
    worker = device_worker("patient", Patient(), host=InlineHost(), queue=2 * MANY)
    async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
        for number in range(streams):
            nursery.start_soon(tree[worker].call, _request(f"open {number}", STAYS, number))
        await trio.testing.wait_all_tasks_blocked()
        yield tree[worker]
        nursery.cancel_scope.cancel("measured")


def _request(name: str, prompt: str = "", later: int = 0) -> ExecuteBatch:
    return ExecuteBatch(name, prompt, deadline=trio.current_time() + _AN_HOUR + later)


async def seconds(streams: int, count: int) -> float:
    """The seconds of a request beside so many open streams: the mean of `count` requests, one after the other."""
    async with beside(streams) as worker:
        await worker.call(_request("first"))
        before = time.perf_counter()
        for number in range(count):
            await worker.call(_request(f"{number}"))
        return (time.perf_counter() - before) / count


class Lines:
    """Counts the lines of Python that are executed in a block, in frames that are entered or resumed in it."""

    def __init__(self) -> None:
        self.count = 0
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._step)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _step(self, _frame: FrameType, event: str, _argument: object) -> Any:
        self.count += event == "line"
        return self._step


async def lines_in_a_worker(streams: int) -> int:
    """The lines of a request to a worker that has so many open streams."""
    found = []
    async with beside(streams) as worker:
        for number in range(TIMES):
            request = _request(f"{number}")
            with Lines() as lines:
                await worker.call(request)
                await trio.lowlevel.checkpoint()  # the tasks that the end of the request has woken
            found.append(lines.count)
    return min(found)


class _Silent:
    """The other end of a session whose process never sends anything by itself."""

    pid, dead = 0, False

    def __init__(self) -> None:
        self.sent = 0
        self._comes = trio.Event()
        self._data = b""

    def send_marked(self, frames: dict[int, bytes]) -> None:
        self.sent += len(frames)

    def send(self, data: bytes) -> None:
        """Take a drop."""

    def withdraw(self, mark: int) -> bool:
        return mark < 0

    def answer(self, data: bytes) -> None:
        """Let the session read this."""
        self._data += data
        self._comes.set()

    def read(self) -> bytes | None:
        data, self._data = self._data, b""
        return data or None

    async def wait(self) -> None:
        self._comes = trio.Event()
        await self._comes.wait()


async def lines_in_a_session(streams: int) -> int:
    """The lines of a request to the session of a process in which so many streams are open, and of another that is dropped."""
    peer = _Silent()
    session = ProcessSession(ProcessHost(next_chunk_timeout=_AN_HOUR), cast("Connection", peer), 1)
    session._info = RunnerInfo(streams=2 * MANY)
    for number in range(streams):
        session.begin(_request(f"open {number}", STAYS))
    await trio.testing.wait_all_tasks_blocked()
    found = []
    for number in range(TIMES):
        before = peer.sent
        with Lines() as lines:
            session.begin(_request(f"{number}"))
            while peer.sent == before:
                await trio.lowlevel.checkpoint()
            stream = session._streams[f"{number}"]
            peer.answer(wire.encode(wire.Step([wire.Chunk(stream, 0, (), "x", FinishReason.STOP, None)], [])))
            await session.receive()
            session.begin(_request("dropped"))
            session.drop("dropped")
        found.append(lines.count)
    return min(found)


COUNTS: dict[str, Callable[[int], Any]] = {
    "a request to a worker": lines_in_a_worker,
    "a request to the session of a process": lines_in_a_session,
}


def counts(streams: int) -> dict[str, int]:
    """The lines of a request beside so many open streams, to each of `COUNTS`."""
    return {name: trio.run(count, streams) for name, count in COUNTS.items()}


def main() -> None:
    """Print the lines."""
    none, many = counts(0), counts(MANY)
    for name, lines in none.items():
        print(f"{name}: {lines} lines, beside {MANY} open streams {many[name]}")


if __name__ == "__main__":
    main()
