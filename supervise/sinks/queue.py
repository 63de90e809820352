"""A bounded queue between a tree and a sink that is slow (R31)."""

from __future__ import annotations

import trio

from .._core._brief import brief
from ..events import Event


class QueueSink:
    """Holds events for a slow reader: `async for event in sink`. What finds no room is dropped and counted.

    Args:
        size: how many events may wait.
    """

    def __init__(self, size: int = 1000) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"size must be an integer >= 1, got {brief(size)}")
        self._send, self._receive = trio.open_memory_channel[Event](size)
        self.dropped = 0

    def __call__(self, event: Event) -> None:
        """Take one event."""
        try:
            self._send.send_nowait(event)
        except trio.WouldBlock:
            self.dropped += 1

    def close(self) -> None:
        """No more events come: the reader ends when it has read those that wait."""
        self._send.close()

    def __aiter__(self) -> QueueSink:
        return self

    async def __anext__(self) -> Event:
        return await self._receive.__anext__()
