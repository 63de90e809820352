"""`python -m tests.explore [--family NAME] [--quick] [--check]`: visit every state, and check it."""

from __future__ import annotations

import argparse
import sys

from . import Explored, covered, record, run
from .families import FAMILIES

_HEAD = "family             trees    states  transitions  seconds  violations\n"
_ROW = "{0.family:16}{0.trees:8}{0.states:10}{0.transitions:13}{0.seconds:9.1f}{1:12}{2}\n"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.explore", description=__doc__)
    add = parser.add_argument
    add("--family", action="append", choices=list(FAMILIES), help="may be given more than once")
    add("--quick", action="store_true", help="a few trees of each family, for CI")
    add("--check", action="store_true", help="fail where the numbers are not those of covered.json")
    add("--record", action="store_true", help="write the numbers to covered.json")
    add("--processes", type=int, default=None, metavar="N", help="default: one for each core")
    options = parser.parse_args()
    form = "quick" if options.quick else "full"
    wrong = 0
    sys.stdout.write(_HEAD)
    for one in run(options.family or list(FAMILIES), quick=options.quick, processes=options.processes):
        if options.record:
            record(form, one)
        said = _said(form, one) if options.check else ""
        sys.stdout.write(_ROW.format(one, len(one.found), said) + "".join(f"\n{test}" for test in one.found))
        sys.stdout.flush()
        wrong += len(one.found) + bool(said)
    sys.exit(wrong > 0)


def _said(form: str, one: Explored) -> str:
    expected = covered()[form].get(one.family)
    return "" if expected == one.numbers else f"  expected {expected}"


if __name__ == "__main__":
    main()
