"""The timers of one supervisor's children: each child has at most one, for the phase that it is in.

Nothing here emits an effect: the machine asks the driver to wake it, and handles each phase that has timed out.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

from .node import Node, Phase

_FEW = 64  # a heap below this size is not swept


class Timers:
    """A heap of timers. A replaced or disarmed timer stays in it until it reaches the top, or is swept out.

    Each arming has a number, and a node keeps the number of its own timer: any other entry of that node is void.
    """

    __slots__ = ("_heap", "_number", "_sweep_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Node]] = []
        self._number = 0
        self._sweep_at = _FEW

    def arm(self, node: Node, phase: Phase, at: float) -> bool:
        """Give the node a timer instead of its present one. Returns whether it is now the earliest of all."""
        self._number += 1
        node.timer, node.phase = self._number, phase
        if at == inf:
            return False
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heappush(self._heap, (at, self._number, node))
        return self._heap[0][1] == self._number

    def disarm(self, node: Node) -> None:
        """Make the node's timer void, if it has one."""
        node.timer, node.phase = 0, ""

    def due(self, now: float) -> Iterator[Node]:
        """Each node whose timer is due, the earliest first, including timers that are armed during the iteration."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, number, node = heappop(heap)
            if node.timer == number:
                yield node

    def next(self) -> float | None:
        """The time of the earliest timer that is not void; None without one."""
        heap = self._heap
        while heap and heap[0][2].timer != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else None

    def clear(self) -> None:
        """Drop all timers, and the references to nodes that they hold."""
        self._heap.clear()

    def _sweep(self) -> None:
        """Drop the void timers. The next sweep comes when the heap has doubled, so its cost for each arming is constant."""
        self._heap[:] = [timer for timer in self._heap if timer[2].timer == timer[1]]
        heapify(self._heap)
        self._sweep_at = max(_FEW, 2 * len(self._heap))
