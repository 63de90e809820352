"""A bounded queue between a tree and a slow reader of its events (R31)."""

from __future__ import annotations

import trio

from .._core._brief import brief
from ..events import Event


class QueueSink:
    """A sink that queues events for a slow reader: `async for event in sink`.

    An event for which there is no room is dropped; `dropped` counts these (R31).

    Args:
        size: how many events may wait, 1 or more.

    Raises:
        ValueError: the size is no integer, or less than 1.
    """

    def __init__(self, size: int = 1000) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be an integer >= 1, got {brief(size)}")
        self._send, self._receive = trio.open_memory_channel[Event](size)
        self.dropped = 0

    def __call__(self, event: Event) -> None:
        """Queue one event, or drop it."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1

    def close(self) -> None:
        """End the reader's loop once it has read the events that wait; call it after the tree has ended."""
        self._send.close()

    def __aiter__(self) -> QueueSink:
        return self

    async def __anext__(self) -> Event:
        return await self._receive.__anext__()
