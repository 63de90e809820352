"""`python -m tests.mutation [--files machine.py act.py] [--results FILE]`: put every mutant in, and see which tests notice.

The mutants are mutmut's. Each is put into a process of its own, forked from one that has collected all tests, and the
tests that reach its lines are run there, the most promising first, until one fails. With a results file, what stands in
it already is not done again.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

import pytest

from .campaign import Campaign
from .mutants import all_mutants
from .results import Results

TESTS = ("tests/core", "tests/tree", "tests/conformance")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    add = parser.add_argument
    add("--files", nargs="+", default=["*.py"], metavar="PATTERN", help="only those of the core's files")
    add("--only", default="", metavar="NAME", help="only mutants whose name begins so")
    add("--every", type=int, default=1, metavar="N", help="a sample: one of N")
    add("--results", type=Path, default=None, help="one mutant a line; go on from there")
    add("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="default: one for each core")
    add("--seconds", type=float, default=2.0, help="slower tests are left out")
    add("--budget", type=float, default=float("inf"), help="how many seconds of tests a mutant is worth")
    add("--again", action="store_true", help="do only those again that have survived")
    add("--least", type=float, default=95.0, help="fail below this percentage")
    options = parser.parse_args()
    mutants = [mutant for mutant in all_mutants(options.files) if mutant.name.startswith(options.only)]
    # In an order that is the same every time, so that those done so far are a fair sample.
    mutants = random.Random(0).sample(mutants, len(mutants) // options.every)
    results = Results(options.results, again=options.again)
    limits = {"processes": options.processes, "seconds": options.seconds, "budget": options.budget}
    campaign = Campaign(mutants, results, **limits)
    pytest.main([*TESTS, "-q", "-p", "no:cacheprovider", "--capture=sys"], plugins=[campaign])
    sys.exit(results.tell(mutants) < options.least)


if __name__ == "__main__":
    main()
