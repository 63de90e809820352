"""When the children of one supervisor are due: each has at most one timer, for the phase that it is in.

It emits nothing: the machine asks to be woken, and does what a phase that has passed asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf

from .node import Node, Phase

_FEW = 64  # fewer are not worth a sweep


class Timers:
    """A heap in which a timer that was replaced or disarmed stays until it comes to the top, or is swept out.

    Each arming has a number, and a node knows that of its own timer: any other entry of that node is void.
    """

    __slots__ = ("_heap", "_number", "_sweep_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Node]] = []
        self._number = 0
        self._sweep_at = _FEW

    def arm(self, node: Node, phase: Phase, at: float) -> bool:
        """Give the node a timer in place of the one that it has. Returns whether it is now the first of all to be due."""
        self._number += 1
        node.timer, node.phase = self._number, phase
        if at == inf:
            return False
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heappush(self._heap, (at, self._number, node))
        return self._heap[0][1] == self._number

    def disarm(self, node: Node) -> None:
        """Whatever timer the node has is void."""
        node.timer, node.phase = 0, ""

    def due(self, now: float) -> Iterator[Node]:
        """Each node whose timer has come, the earliest first; those that are armed meanwhile are among them."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, number, node = heappop(heap)
            if node.timer == number:
                yield node

    def next(self) -> float | None:
        """When the first timer that still counts is due; None without one."""
        heap = self._heap
        while heap and heap[0][2].timer != heap[0][1]:
            heappop(heap)
        return heap[0][0] if heap else None

    def clear(self) -> None:
        """Forget all of them, and the nodes that they hold."""
        self._heap.clear()

    def _sweep(self) -> None:
        """Drop the void ones; the next sweep comes when the heap has doubled, so that each arming pays a constant share."""
        self._heap[:] = [timer for timer in self._heap if timer[2].timer == timer[1]]
        heapify(self._heap)
        self._sweep_at = max(_FEW, 2 * len(self._heap))
