"""What each operation costs, in counts and not in seconds, so that a check can hold it there.

    python -m benchmarks.costs            what it costs now, and what is pinned in benchmarks/costs.json
    python -m benchmarks.costs --write    pin what it costs now, for this version of Python

Counted are, in this project's own code, the bytecode instructions carried out, the functions entered and the events made; the turns
of Trio's scheduler, which is where most of the rest goes; and the bytes that an idle child keeps. They are the same on any
machine, at any load.
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
"""Where two tasks can run Trio tosses a coin: the least of so many is the same every time."""
IDLE = "idle child"
HOME = str(Path(supervise.__file__).parent)
MADE_BY_ATTRS = "<attrs generated methods supervise."

Costs = dict[str, dict[str, int]]
"""`{operation: {"instructions": …, "calls": …, "events": …, "turns": …}}`, and `{IDLE: {"bytes": …}}`."""


class Counts(Meter, trio.abc.Instrument):
    """Counts from `begin` to `end`; of several times the least, which is the one without a first time in it."""

    def __init__(self) -> None:
        self.least: Costs = {}
        self._operation = ""
        self._now: Counter[str] = Counter()
        self._before: Any = None

    def begin(self, operation: str) -> None:
        """It begins; frames of ours that are on the stack already are counted on."""
        self._operation, self._now = operation, Counter(instructions=0, calls=0, events=0, turns=0)
        self._before = sys.gettrace()
        above: FrameType | None = sys._getframe(1)
        while above is not None:
            if _ours(above.f_code):
                self._watch(above)
            above = above.f_back
        sys.settrace(self._enter)

    def end(self) -> None:
        """It is over."""
        sys.settrace(self._before)
        least = self.least.get(self._operation, self._now)
        if 0 < self._now["instructions"] <= least["instructions"]:  # Python 3.12 traces none the first time
            self.least[self._operation] = dict(self._now)
        self._operation = ""

    def before_task_step(self, _: trio.lowlevel.Task) -> None:
        """As Trio's instrument: a task is about to run."""
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
    """The most bytes that an operation held at once beyond what there was: also what C code builds shows here."""

    def __init__(self) -> None:
        self.least: dict[str, int] = {}
        self._operation = ""

    def begin(self, operation: str) -> None:
        """It begins."""
        self._operation = operation
        tracemalloc.start(1)

    def end(self) -> None:
        """It is over."""
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        self.least[self._operation] = min(peak, self.least.get(self._operation, peak))


def _ours(code: CodeType) -> bool:
    """Whether code is this project's, or what attrs has made for it."""
    return code.co_filename.startswith((HOME, MADE_BY_ATTRS))


def count(siblings: int = 1, history: int = 1) -> Costs:
    """The counts of every operation."""
    counts = Counts()
    trio.run(_counted, counts, siblings, history)
    return counts.least


def peaks(siblings: int = 1, history: int = 1) -> dict[str, int]:
    """The bytes of every operation."""
    meter = Peaks()
    trio.run(operate, meter, siblings, history, TIMES)
    return meter.least


async def _counted(counts: Counts, siblings: int, history: int) -> None:
    trio.lowlevel.add_instrument(counts)
    await operate(counts, siblings, history, TIMES)


def bytes_of_idle_child(few: int = 100, many: int = 600) -> int:
    """What one more idle child keeps in memory, Trio's task and its own declaration included."""
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
    """All that is pinned."""
    return {**count(), IDLE: {"bytes": bytes_of_idle_child()}}


def pinned() -> dict[str, Costs]:
    """What is pinned, for each version of Python."""
    found: dict[str, Costs] = json.loads(PINNED.read_text())
    return found


def main(arguments: list[str]) -> None:
    """Print, or pin."""
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
