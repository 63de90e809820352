"""A nursery that lets `KeyboardInterrupt` and `SystemExit` leave without a group around them (R4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def bare_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery whose tasks are cancelled when its body ends.

    An exception of the body leaves bare. The tasks are not meant to raise, but a task that calls a runner's code may let a
    `KeyboardInterrupt` or `SystemExit` through, and that leaves bare too.
    """
    leaving: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below, outside the nursery, which would wrap it
                leaving = error
            nursery.cancel_scope.cancel("the body has ended")
    except BaseExceptionGroup as group:
        leaving = _fatal(group) or leaving
        if leaving is None:
            raise
    finally:
        if leaving is not None:
            raise leaving


def _fatal(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The first `KeyboardInterrupt` or `SystemExit` in a group. No decider sees these."""
    found: BaseException | None = group.subgroup((KeyboardInterrupt, SystemExit))
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
