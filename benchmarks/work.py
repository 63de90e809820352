"""Tools that all adapters share, to notice the end of the work and to time it. Imports only the standard library."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

now = time.perf_counter

Result = dict[str, float]


class Boom(Exception):
    """The failure of a child."""


class NotOffered(Exception):
    """This contender cannot do the work; the text gives the reason."""


class Memory:
    """The memory of this process from here on."""

    def __init__(self) -> None:
        gc.collect()
        self._before = _kilobytes("VmRSS")

    def per_child(self, n: int) -> float:
        """Kilobytes for each of n children: the peak minus the memory before."""
        return (_kilobytes("VmHWM") - self._before) / n


def _kilobytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise LookupError(name)


class Arrivals:
    """Calls `done` after `n` calls of `up`."""

    def __init__(self, n: int, done: Callable[[], object]) -> None:
        self._left = n
        self._done = done

    def up(self) -> None:
        """Count one more."""
        self._left -= 1
        if self._left == 0:
            self._done()


class Storm:
    """Counts the incarnations of a child that fails at once."""

    def __init__(self, n: int, done: Callable[[], object]) -> None:
        self._n = n
        self._done = done
        self._restarts = -1
        self._begin = self._end = 0.0

    def hit(self) -> bool:
        """Count a new incarnation. Returns whether it is to fail; the last one is to stay."""
        self._restarts += 1
        if self._restarts == 0:
            self._begin = now()
        if self._restarts < self._n:
            return True
        self._end = now()
        self._done()
        return False

    def result(self) -> Result:
        """Restarts a second."""
        return {"per_s": self._n / (self._end - self._begin)}


def percentiles(seconds: Sequence[float]) -> Result:
    """The median and the 99th percentile."""
    ordered = sorted(seconds)
    return {
        "p50_s": ordered[len(ordered) // 2],
        "p99_s": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }
