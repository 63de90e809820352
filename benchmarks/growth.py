"""The growth of costs with the number of siblings, and with the number of earlier restarts."""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import trio

from .measure import run
from .operations import OPERATIONS, Meter, operate
from .progress import tracked
from .work import now

SIBLINGS = (1, 10, 100, 1000, 10_000, 100_000)
HISTORY = (1, 10, 100, 1000, 10_000, 100_000)
FEW = 100
TIMES = 31

Curves = dict[str, dict[str, list[float | None]]]
"""`{"siblings": {operation: [seconds, one for each of SIBLINGS]}, "history": …}`."""


class Clock(Meter):
    """Notes the seconds of each operation."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
        self._operation = ""
        self._begin = 0.0

    def begin(self, operation: str) -> None:
        """Start the time of an operation."""
        self._operation = operation
        self._begin = now()

    def end(self) -> None:
        """Note the time of the operation."""
        seconds = now() - self._begin
        self.seconds[self._operation].append(seconds)


def times(siblings: int, history: int) -> dict[str, float]:
    """The median time of each operation."""
    clock = Clock()
    trio.run(operate, clock, siblings, history, TIMES)
    return {operation: median(seconds) for operation, seconds in clock.seconds.items()}


def curves(*, quick: bool) -> Curves:
    """All curves, each point measured in a separate process."""
    most = 1000 if quick else max(SIBLINGS)
    siblings = [(number, 1) for number in SIBLINGS if number <= most]
    history = [(FEW, number) for number in HISTORY if number <= most]
    points = [*siblings, *history]
    measured = [_point(*point) for point in tracked("points of the curves", points, len(points))]
    return {
        "siblings": _by_operation(measured[: len(siblings)]),
        "history": _by_operation(measured[len(siblings) :]),
    }


def _point(siblings: int, history: int) -> dict[str, Any]:
    code = (
        f"import json; from benchmarks.growth import times; print(json.dumps(times({siblings}, {history})))"
    )
    return run(sys.executable, "-c", code)


def _by_operation(points: list[dict[str, Any]]) -> dict[str, list[float | None]]:
    return {operation: [point.get(operation) for point in points] for operation in OPERATIONS}
