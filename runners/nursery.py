"""A nursery that wraps nothing: `KeyboardInterrupt` and `SystemExit` leave as themselves (R4)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def bare_nursery() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery whose tasks end with its body; they are not meant to raise, so that all that leaves is the body's.

    What is no `Exception` may come out of any task that calls somebody else's code, and leaves as itself too.
    """
    leaving: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - nothing is swallowed: it is raised below, where no group is made of it
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
    """The first in it that nobody decides."""
    found: BaseException | None = group.subgroup((KeyboardInterrupt, SystemExit))
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
