"""Bodies and a resource that do nothing by themselves, for trees whose behaviour comes from scripts."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from .._trio.child import current_child


async def idle(*_: object) -> None:
    """A body that runs until it is cancelled."""
    await trio.sleep_forever()


async def starter(*_: object, task_status: trio.TaskStatus[None]) -> None:
    """A body that calls `task_status.started()` at once (R17), and then runs until it is cancelled."""
    task_status.started()
    await trio.sleep_forever()


async def echo(*_: object) -> None:
    """A body for a child with a mailbox: it replies to each message with the message's value, until it is cancelled."""
    inbox = current_child().inbox
    while True:  # `async for` would end when it is asked to stop, which is up to the scripts here
        message = await inbox.receive()
        message.reply(message.value)


@asynccontextmanager
async def nothing() -> AsyncGenerator[None, None]:
    """A resource that owns nothing."""
    yield
