"""Bare Trio without memory channels: a deque and one wake-up, which shows what a mailbox can reach. Messages only.

It takes waiting messages without a checkpoint; a real mailbox must let other tasks run every so many messages.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from benchmarks.adapters.trio_floor import timed_calls, timed_sends
from benchmarks.work import Result

T = TypeVar("T")


class Box(Generic[T]):
    """A queue with one reader."""

    __slots__ = ("_items", "_reader")

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._reader: Task | None = None

    def put(self, item: T) -> None:
        """Add an item."""
        self._items.append(item)
        reader = self._reader
        if reader is not None:
            self._reader = None
            reschedule(reader)

    async def get(self) -> T:
        """Take the next item."""
        while not self._items:
            self._reader = current_task()
            await wait_task_rescheduled(self._give_up)
        return self._items.popleft()

    def _give_up(self, _: object) -> Abort:
        self._reader = None
        return Abort.SUCCEEDED


def call(n: int, callers: int) -> Result:
    """A deque for the requests, and one for the replies of each caller."""
    return trio.run(_call, n, callers)


async def _call(n: int, callers: int) -> Result:
    inbox: Box[tuple[Box[int], int]] = Box()

    async def server() -> None:
        state = 0
        while True:
            reply, value = await inbox.get()
            state += value
            reply.put(state)

    async def caller() -> None:
        replies: Box[int] = Box()
        for _ in range(n // callers):
            inbox.put((replies, 1))
            await replies.get()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        result = await timed_calls(n, callers, caller)
        nursery.cancel_scope.cancel()
    return result


def send(n: int) -> Result:
    """Messages through a deque."""
    return trio.run(_send, n)


async def _send(n: int) -> Result:
    inbox: Box[int] = Box()
    done = trio.Event()

    async def server() -> None:
        state = 0
        while True:
            state += await inbox.get()
            if state == n:
                done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        result = await timed_sends(n, inbox.put, done)
        nursery.cancel_scope.cancel()
    return result


send_many = send
