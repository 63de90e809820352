"""`python -m supervise.testing.explore [--family NAME] [--quick]`: visit every state, and check it."""

from __future__ import annotations

import argparse
import sys

from . import run
from .families import FAMILIES

_HEAD = "family             trees    states  transitions  seconds  violations\n"
_ROW = "{0.family:16}{0.trees:8}{0.states:10}{0.transitions:13}{0.seconds:9.1f}{1:12}\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m supervise.testing.explore", description=__doc__)
    add = parser.add_argument
    add("--family", action="append", choices=list(FAMILIES), help="may be given more than once")
    add("--quick", action="store_true", help="a few trees of the smaller families, for CI")
    add("--processes", type=int, default=None, metavar="N", help="default: one for each core")
    options = parser.parse_args()
    found = 0
    sys.stdout.write(_HEAD)
    for one in run(options.family or list(FAMILIES), quick=options.quick, processes=options.processes):
        sys.stdout.write(_ROW.format(one, len(one.found)) + "".join(f"\n{test}" for test in one.found))
        sys.stdout.flush()
        found += len(one.found)
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
