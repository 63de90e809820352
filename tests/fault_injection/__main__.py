"""`python -m tests.fault_injection [PROGRAM…]`: have the system refuse calls of small programs, delay them, or stop the processes at them, one kind and number a run."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.progress import tracked

from .inject import HOW, faults, run, why_not
from .programs import PROGRAMS


def main() -> int:
    """Exit status 1 if a program ended wrong, 2 if nothing can be injected here."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault_injection", description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="PROGRAM", help=f"of {', '.join(PROGRAMS)}; all")
    parser.add_argument("--only", nargs="+", choices=HOW, default=HOW, help="these faults")
    parser.add_argument("--most", type=int, default=6, metavar="N", help="so many calls of each kind")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    wrong = total = 0
    with ThreadPoolExecutor(options.processes) as pool:
        for name in options.programs or PROGRAMS:
            reason = why_not(name)
            if reason is not None:
                sys.stderr.write(f"python -m tests.fault_injection: {name}: {reason}\n")
                return 2
            tries = [fault for fault in faults(name, options.most) if fault.how in options.only]
            found = zip(tries, pool.map(partial(run, name), tries), strict=True)
            for fault, ended in tracked(name, found, len(tries)):
                total += 1
                wrong += bool(ended.wrong)
                if ended.wrong:
                    print(f"{name}, {fault}: {ended.wrong}", flush=True)
    print(f"{total} runs, {wrong} wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
