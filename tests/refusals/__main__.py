"""`python -m tests.refusals [PROGRAM…]`: have the system refuse the first calls of each kind to small programs, one kind and number a run."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.progress import tracked

from .programs import PROGRAMS
from .refuse import refusals, run, why_not


def main() -> int:
    """Exit status 1 if a program ended wrong, 2 if nothing can be refused here."""
    parser = argparse.ArgumentParser(prog="python -m tests.refusals", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}; all")
    parser.add_argument("--most", type=int, default=6, metavar="N", help="so many calls of each kind")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    wrong = total = 0
    with ThreadPoolExecutor(options.processes) as pool:
        for name in options.programs or PROGRAMS:
            reason = why_not(name)
            if reason is not None:
                sys.stderr.write(f"python -m tests.refusals: {name}: {reason}\n")
                return 2
            tries = refusals(name, options.most)
            found = zip(tries, pool.map(partial(run, name), tries), strict=True)
            for refusal, ended in tracked(name, found, len(tries)):
                total += 1
                wrong += bool(ended.wrong)
                if ended.wrong:
                    print(f"{name}, {refusal}: {ended.wrong}", flush=True)
    print(f"{total} runs, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
