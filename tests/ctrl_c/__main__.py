"""`python -m tests.ctrl_c [PROGRAM…]`: SIGINT at every line. `--random N`: real ones at random moments."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from .programs import PROGRAMS
from .verdict import run, tidy


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.ctrl_c", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}; all")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every n-th line")
    parser.add_argument("--twice", type=int, default=0, metavar="N", help="so many pairs of lines as well")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="real signals at random moments")
    parser.add_argument(
        "--show", type=int, default=10, metavar="N", help="so many violations of each program"
    )
    arguments = parser.parse_args()
    if arguments.random:
        from .moments import campaign

        raise SystemExit(campaign(arguments.random))
    wrong = total = 0
    for name in arguments.programs or PROGRAMS:
        tried, found = search(name, every=arguments.every, twice=arguments.twice, show=arguments.show)
        total, wrong = total + tried, wrong + found
    print(f"{total} runs, {wrong} violations")
    raise SystemExit(bool(wrong))


def search(name: str, *, every: int, twice: int, show: int) -> tuple[int, int]:
    """Try the lines of one program. Gives how many were tried, and how many were wrong."""
    began, program = time.monotonic(), PROGRAMS[name]
    problem, plain = run(program)
    if problem is not None:
        print(f"{name}: {problem}")
        return 1, 1
    chance = random.Random(0)
    strikes: list[tuple[int, ...]] = [(line,) for line in range(1, plain.lines + 1, every)]
    for _ in range(twice):
        first = chance.randint(1, plain.lines)
        strikes.append((first, first + chance.randint(1, 200)))
    kinds: Counter[str] = Counter()
    shown = []
    for number, lines in enumerate(strikes):
        if sys.stderr.isatty() and not number % 50:
            sys.stderr.write(f"\r{name}: {number} of {len(strikes)}, {kinds.total()} violations\033[K")
        problem, striker = run(program, lines)
        if problem is not None:
            kinds[problem.partition(" ")[0]] += 1
            shown.append(f"  at {' and '.join(striker.struck)} ({lines}): {problem}")
            tidy()
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")
    took = time.monotonic() - began
    details = f" ({', '.join(f'{count} {kind}' for kind, count in kinds.most_common())})" if kinds else ""
    print(
        f"{name}: {plain.lines} lines, {len(strikes)} runs in {took:.0f} s, {kinds.total()} violations{details}"
    )
    print("".join(f"{line}\n" for line in shown[:show]), end="", flush=True)
    return len(strikes), kinds.total()


if __name__ == "__main__":
    main()
