"""Count the work of a processor for one operation, by Valgrind on a model of it, so that no other load disturbs the numbers.

    python -m benchmarks.counted                  every operation; a quarter of an hour
    python -m benchmarks.counted start stop       these operations
    python -m benchmarks.counted --who trio_task  this project and this contender

Each number is for one child, restart or message: the difference between a larger and a smaller run, divided by the difference
of their sizes. So the start of Python is not counted, but the work of the garbage collector on live objects is. All numbers
are in thousands: instructions, `misses` of the first-level caches and `far` of the last (their sizes are in `CACHES`), and
mispredicted `branches`. If a ratio by the clock is larger than that of the instructions, the others explain it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from time import perf_counter
from unittest.mock import patch

from attrs import frozen

from .measure import ROOT
from .progress import tracked
from .rows import OURS

CACHES = ("--I1=32768,8,64", "--D1=32768,8,64", "--LL=16777216,16,64")
EVENTS = {
    "instructions": ("I refs",),
    "misses": ("I1 misses", "D1 misses"),
    "far": ("LL misses",),
    "branches": ("Mispredicts",),
}


@frozen
class Operation:
    """One thing to count.

    Args:
        function: a function of the adapters that takes a number of children, restarts or messages.
        small, large: the two numbers.
        who: the contenders that can do it, besides this project.
        begin, end: the readings of the clock between which it lies, counted from the last one back; 0: the whole run.
    """

    function: str
    small: int
    large: int
    who: tuple[str, ...]
    begin: int = 0
    end: int = 0


OPERATIONS = {
    "start": Operation("start_stop", 2000, 10_000, ("trio_task", "trio_order"), -4, -3),
    "stop": Operation("start_stop", 1000, 5000, ("trio_task", "trio_order"), -2, -1),
    "storm": Operation("storm", 500, 2000, ("trio_task", "trio_order")),
    "send": Operation("send", 5000, 20_000, ("trio_floor", "trio_deque")),
    "group": Operation("group", 500, 2000, ("trio_floor", "trio_order"), -2, -1),
}

Counts = dict[str, float]


def count(operation: Operation, who: str) -> Counts:
    """The number of each event for one more child, restart or message."""
    small, large = (_between(operation, who, n) for n in (operation.small, operation.large))
    more = operation.large - operation.small
    return {event: (large[event] - small[event]) / more for event in EVENTS}


def _between(operation: Operation, who: str, n: int) -> Counts:
    if not operation.begin:
        return _counted(operation.function, who, n)
    end = 1 + looks(operation.function, who, 10)
    before = _counted(operation.function, who, n, end + operation.begin)
    after = _counted(operation.function, who, n, end + operation.end)
    return {event: after[event] - before[event] for event in EVENTS}


def _counted(function: str, who: str, n: int, until: int = 0) -> Counts:
    """The counts of a process until its adapter has read the clock `until` times; 0: until its end."""
    work = (sys.executable, "-m", "benchmarks.counted", "--until", str(until), "--who", who, function, str(n))
    done = subprocess.run(
        (
            "valgrind",
            "--tool=cachegrind",
            "--cachegrind-out-file=/dev/null",
            "--branch-sim=yes",
            *CACHES,
            *work,
        ),
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    found = re.findall(r"==\d+== (\w[\w ]+): +([\d,]+)", done.stderr)
    numbers = {" ".join(name.split()): int(number.replace(",", "")) for name, number in found}
    return {event: sum(numbers[name] for name in names) for event, names in EVENTS.items()}


def looks(function: str, who: str, n: int, until: int = 0) -> int:
    """Do the work in this process. Returns how often the adapter read the clock; at reading `until` the process ends."""
    seen = 0

    def now() -> float:
        nonlocal seen
        seen += 1
        if seen == until:
            os._exit(0)
        return perf_counter()

    adapters = [import_module(f"benchmarks.adapters.{name}") for name in (who, "trio_floor")]
    with ExitStack() as patched:
        for adapter in adapters:
            patched.enter_context(patch.object(adapter, "now", now))
        vars(adapters[0])[function](n)
    return seen


def as_text(name: str, operation: Operation, everyone: Sequence[str]) -> str:
    """One line for each contender, with our number divided by its number."""
    lines = [f"{name:12}" + "".join(f"{event:>20}" for event in EVENTS)]
    counts = {who: count(operation, who) for who in tracked(name, everyone, len(everyone))}
    for who, theirs in counts.items():
        cells = [_cell(counts[OURS][event], theirs[event]) for event in EVENTS]
        lines.append(f"  {who:10}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _cell(ours: float, theirs: float) -> str:
    times = f" ({ours / theirs:.2f} ×)" if theirs >= 1 else ""
    return f"{theirs / 1000:.2f} k{times}"


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted")
    parser.add_argument("operations", nargs="*", help=f"{', '.join(OPERATIONS)}; default: all of them")
    parser.add_argument("--who", help="this project and this contender only")
    parser.add_argument("--until", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.until is not None:
        function, n = options.operations
        looks(function, options.who, int(n), options.until)
        return
    if unknown := [name for name in options.operations if name not in OPERATIONS]:
        parser.error(f"operations are {', '.join(OPERATIONS)}, got {unknown[0]!r}")
    if shutil.which("valgrind") is None:
        parser.error("this counts with Valgrind, and there is no `valgrind` here")
    for name in options.operations or OPERATIONS:
        operation = OPERATIONS[name]
        who = [one for one in operation.who if options.who in (None, one)]
        print(as_text(name, operation, [OURS, *who]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
