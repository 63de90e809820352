"""The deadlines of the open streams of a context."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush

from supervise import Message

from ..protect import protected
from .record import Record, record_of

_FEW = 64
"""So many deadlines of ended streams are kept before they are removed."""


@protected
class Deadlines:
    """A heap, so that no request costs more if many other streams are open.

    The deadline of a stream that has ended is removed when it comes first, or when most of the heap are such.

    Args:
        open_streams: the messages of the open streams, by request id; the context changes it.
    """

    def __init__(self, open_streams: Mapping[str, Message]) -> None:
        self._open = open_streams
        self._heap: list[tuple[float, str]] = []

    def add(self, record: Record) -> None:
        """Add the deadline of a stream that is open now, if it has one."""
        deadline = record.batch.deadline
        if deadline is None:
            return
        if len(self._heap) > 2 * len(self._open) + _FEW:
            self._heap = [entry for entry in self._heap if self._counts(*entry)]
            heapify(self._heap)
        heappush(self._heap, (deadline, record.batch.request_id))

    def _counts(self, deadline: float, request_id: str) -> bool:
        """Whether an open stream has this id and this deadline."""
        message = self._open.get(request_id)
        return message is not None and record_of(message).batch.deadline == deadline

    def first(self) -> float:
        """The earliest deadline of the open streams; infinity if none has one."""
        while self._heap and not self._counts(*self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def passed(self, now: float) -> Iterator[Message]:
        """The open streams whose deadline has passed. Each must have ended before the next one is taken."""
        while self.first() <= now:
            yield self._open[self._heap[0][1]]
