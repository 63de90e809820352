"""`python -m tests.ctrl_c [PROGRAM…]`: SIGINT at every line. `--random N`: N real ones at random moments, and 20 or more of a device worker."""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

from benchmarks.progress import tracked

from . import devices
from .devices import DEVICES
from .fronts import FRONTS
from .programs import PROGRAMS
from .strike import Striker
from .verdict import run, tidy

REAL = {**DEVICES, **FRONTS}
"""The programs that run in real time."""
LEAST = 20
"""Device workers that are interrupted at random moments."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ctrl_c", description=__doc__)
    parser.add_argument(
        "programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join([*PROGRAMS, *REAL])}; all"
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every n-th line")
    parser.add_argument("--twice", type=int, default=0, metavar="N", help="so many pairs of lines as well")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="real signals at random moments")
    parser.add_argument(
        "--show", type=int, default=10, metavar="N", help="so many violations of each program"
    )
    arguments = parser.parse_args()
    if arguments.random:
        from .moments import campaign
        from .moments import devices as interrupt_devices

        wrong = campaign(arguments.random) + interrupt_devices(max(LEAST, arguments.random // 20))
        raise SystemExit(bool(wrong))
    wrong = total = 0
    for name in arguments.programs or [*PROGRAMS, *REAL]:
        found = (
            _device(name, arguments.every)
            if name in REAL
            else _program(name, arguments.every, arguments.twice)
        )
        tried, bad = _search(name, *found, show=arguments.show)
        total, wrong = total + tried, wrong + bad
    print(f"{total} runs, {wrong} violations")
    raise SystemExit(bool(wrong))


Try: TypeAlias = partial[tuple[str | None, Striker]]


def _program(name: str, every: int, twice: int) -> tuple[str | None, int, Sequence[Try]]:
    """A program without a signal: what is wrong, how many lines it has, and what is to be tried."""
    problem, plain = run(PROGRAMS[name])
    chance = random.Random(0)
    strikes: list[tuple[int, ...]] = [(line,) for line in range(1, plain.lines + 1, every)]
    for _ in range(twice):
        first = chance.randint(1, plain.lines)
        strikes.append((first, first + chance.randint(1, 200)))
    return problem, plain.lines, [partial(run, PROGRAMS[name], lines) for lines in strikes]


def _device(name: str, every: int) -> tuple[str | None, int, Sequence[Try]]:
    """Likewise; each line of the source once, however often it is executed."""
    problem, plain = devices.run(REAL[name])
    chance = random.Random()
    start = chance.randrange(every)  # the lines of a run differ anyway, and real runs take their time
    tries = [partial(devices.strike, REAL[name], at) for at in devices.strikes(plain, chance)[start::every]]
    return problem, len(plain.places), tries


def _search(
    name: str, problem: str | None, lines: int, tries: Sequence[Try], *, show: int
) -> tuple[int, int]:
    """Try the lines of one program. Gives how many were tried, and how many were wrong."""
    if problem is not None:
        print(f"{name}: {problem}")
        return 1, 1
    began, unstruck = time.monotonic(), 0
    kinds: Counter[str] = Counter()
    shown = []
    for attempt in tracked(name, tries, len(tries)):
        problem, striker = attempt()
        unstruck += not striker.struck
        if problem is not None:
            kinds[problem.partition(" ")[0]] += 1
            shown.append(f"  at {' and '.join(striker.struck)} {attempt.args[1:]}: {problem}")
            tidy()
    took = time.monotonic() - began
    details = f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})" if kinds else ""
    missed = f", {unstruck} of them never came to their line" if unstruck else ""
    print(
        f"{name}: {lines} lines, {len(tries)} runs in {took:.0f} s{missed}, {kinds.total()} violations{details}"
    )
    print("".join(f"{line}\n" for line in shown[:show]), end="", flush=True)
    return len(tries), kinds.total()


if __name__ == "__main__":
    main()
