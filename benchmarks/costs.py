"""The cost of each operation in counts, not in seconds, so that a test can pin it.

    python -m benchmarks.costs            the present costs, and those pinned in benchmarks/costs.json
    python -m benchmarks.costs --write    pin the present costs, for this version of Python

The counts are: the bytecode instructions, function calls and events of this project's own code; the turns of Trio's scheduler,
which take most of the remaining time; and the bytes that an idle child keeps. They are the same on any machine, at any load.
"""

from __future__ import annotations

import gc
import json
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import trio

import supervise
from supervise import Child, Supervisor, open_tree

from .operations import Meter, operate

PINNED = Path(__file__).with_name("costs.json")
PYTHON = "{}.{}".format(*sys.version_info)
TIMES = 20
"""Trio orders runnable tasks at random; the least of so many repetitions is always the same."""
IDLE = "idle child"
HOME = str(Path(supervise.__file__).parent)
MADE_BY_ATTRS = "<attrs generated methods supervise."

Costs = dict[str, dict[str, int]]
"""`{operation: {"instructions": …, "calls": …, "events": …, "turns": …}}`, and `{IDLE: {"bytes": …}}`."""


class Counts(Meter, trio.abc.Instrument):
    """Counts from `begin` to `end`, and keeps the least of several repetitions, which does no work of a first time."""

    def __init__(self) -> None:
        self.least: Costs = {}
        self._operation = ""
        self._now: Counter[str] = Counter()
        self._before: Any = None

    def begin(self, operation: str) -> None:
        """Start counting, also in frames of this project that are on the stack already."""
        self._operation, self._now = operation, Counter(instructions=0, calls=0, events=0, turns=0)
        self._before = sys.gettrace()
        above: FrameType | None = sys._getframe(1)
        while above is not None:
            if _ours(above.f_code):
                self._watch(above)
            above = above.f_back
        sys.settrace(self._enter)

    def end(self) -> None:
        """Stop counting."""
        sys.settrace(self._before)
        least = self.least.get(self._operation, self._now)
        if 0 < self._now["instructions"] <= least["instructions"]:  # Python 3.12 traces none the first time
            self.least[self._operation] = dict(self._now)
        self._operation = ""

    def before_task_step(self, _: trio.lowlevel.Task) -> None:
        """Count a turn: Trio calls this before each step of a task."""
        self._now["turns"] += 1

    def _enter(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "call" or not _ours(frame.f_code):
            return None
        self._now["calls"] += 1
        self._now["events"] += frame.f_code.co_filename.startswith(MADE_BY_ATTRS + "events.")
        return self._watch(frame)

    def _watch(self, frame: FrameType) -> Any:
        frame.f_trace, frame.f_trace_lines, frame.f_trace_opcodes = self._step, False, True
        return self._step

    def _step(self, _: FrameType, event: str, __: Any) -> Any:
        if event == "opcode" and self._operation:
            self._now["instructions"] += 1
        return self._step


class Peaks(Meter):
    """The most bytes that an operation held at once, including objects made by C code."""

    def __init__(self) -> None:
        self.least: dict[str, int] = {}
        self._operation = ""

    def begin(self, operation: str) -> None:
        """Start tracing allocations."""
        self._operation = operation
        tracemalloc.start(1)

    def end(self) -> None:
        """Stop tracing, and keep the peak."""
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.least[self._operation] = min(peak, self.least.get(self._operation, peak))


def _ours(code: CodeType) -> bool:
    """Whether code belongs to this project, or attrs has generated it for a class of this project."""
    return code.co_filename.startswith((HOME, MADE_BY_ATTRS))


def count(siblings: int = 1, history: int = 1) -> Costs:
    """The counts of every operation."""
    counts = Counts()
    trio.run(_counted, counts, siblings, history)
    return counts.least


def peaks(siblings: int = 1, history: int = 1) -> dict[str, int]:
    """The peak of bytes of every operation."""
    meter = Peaks()
    trio.run(operate, meter, siblings, history, TIMES)
    return meter.least


async def _counted(counts: Counts, siblings: int, history: int) -> None:
    trio.lowlevel.add_instrument(counts)
    await operate(counts, siblings, history, TIMES)


def bytes_of_idle_child(few: int = 100, many: int = 600) -> int:
    """The bytes that one more idle child keeps, including its task and its declaration."""
    return (trio.run(_bytes_of, many) - trio.run(_bytes_of, few)) // (many - few)


async def _bytes_of(n: int) -> int:
    gc.collect()
    tracemalloc.start(1)
    try:
        spec = Supervisor("app", [Child(str(number), trio.sleep_forever) for number in range(n)])
        async with open_tree(spec, sinks=[]):
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def costs() -> Costs:
    """The present costs, in the form in which they are pinned."""
    return {**count(), IDLE: {"bytes": bytes_of_idle_child()}}


def pinned() -> dict[str, Costs]:
    """The pinned costs, for each version of Python."""
    found: dict[str, Costs] = json.loads(PINNED.read_text())
    return found


def main(arguments: list[str]) -> None:
    """Print the costs, or pin them."""
    now = costs()
    was = pinned() if PINNED.exists() else {}
    if arguments == ["--write"]:
        text = json.dumps({**was, PYTHON: now}, indent=1, sort_keys=True)
        PINNED.write_text(f"{text}\n")
    for operation, counted in now.items():
        before = was.get(PYTHON, {}).get(operation, {})
        words = (f"{number} {what} (pinned {before.get(what, 'not')})" for what, number in counted.items())
        print(f"{operation}: {', '.join(words)}")


if __name__ == "__main__":
    main(sys.argv[1:])
