"""`python -m tests.surroundings [NAME] [--hosts fork,standby,spawn]`: all surroundings, with each start method; a table."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from itertools import product

from benchmarks.progress import tracked

from .cases import CASES
from .driver import Outcome, outcome


def tried(name: str, host: str) -> Outcome:
    """By name, because a case does not travel."""
    return outcome(next(case for case in CASES if case.name == name), host)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.surroundings", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help="only those in whose name this is")
    parser.add_argument("--hosts", default="fork,standby,spawn")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    wanted = [case for case in CASES if options.name in case.name]
    pairs = list(product((case.name for case in wanted), options.hosts.split(",")))
    failed = 0
    with ProcessPoolExecutor(options.processes) as pool:
        found = zip(pairs, pool.map(tried, *zip(*pairs, strict=True)), strict=True)
        for (name, host), result in tracked("surroundings", found, len(pairs)):
            verdict = result.trouble or (result.skipped and f"skipped: {result.skipped}") or "as it should"
            print(f"{name:50} {host:8} {result.seconds:5.1f} s  {verdict}", flush=True)
            failed += bool(result.trouble)
    print(f"{len(pairs)} tried, {failed} went wrong")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
