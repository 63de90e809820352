"""Runs the tests against the mutants, in the middle of a pytest session that has collected them."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections import Counter
from contextlib import suppress
from itertools import accumulate

import pytest

from benchmarks.progress import progress

from .reach import Reach

APART = ("test_conformance.py", "test_explore.py", "test_random_trees.py", "test_memory.py")
"""Scenarios are played one by one instead; bugs cannot be planted in a mutant; the last two take minutes."""
GIGABYTE = 1 << 30


class Test:
    """One test that pytest has collected."""

    def __init__(self, item, campaign):
        self.item, self.campaign, self.name = item, campaign, item.nodeid

    def passes(self):
        self.campaign.failed = False
        self.item.config.hook.pytest_runtest_protocol(item=self.item, nextitem=None)
        return not self.campaign.failed


class Campaign:
    """A pytest plugin: takes the place of the loop that runs the tests."""

    def __init__(self, mutants, results, *, processes, seconds, budget):
        self.results, self.processes, self.seconds, self.budget = results, processes, seconds, budget
        self.waiting = [mutant for mutant in mutants if not results.known(mutant)]
        self.failed, self.kills, self.running = False, Counter(), {}
        for row in results.found.values():
            self.count(row)

    def count(self, row):
        """Who has noticed something in a file may do so again, there above all."""
        self.kills[row["by"]] += 1
        self.kills[row["name"].partition(".")[0], row["by"]] += 1

    def pytest_runtest_logreport(self, report):
        self.failed = self.failed or report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session):
        # Not before pytest has seen to the asserts of what these import.
        from .scenarios import all_scenarios
        from .settled import settle

        settle()
        tests = [Test(item, self) for item in session.items if item.path.name not in APART]
        self.find_out(tests + all_scenarios())
        gc.collect()
        gc.freeze()
        with progress("mutants", len(self.waiting)) as step:
            for mutant in self.waiting:
                if len(self.running) == self.processes:
                    self.wait()
                    step(1)
                self.begin(mutant)
            while self.running:
                self.wait()
                step(1)
        return True

    def find_out(self, tests):
        """Which tests reach which lines, and how long they take; one that does not even pass so is left out."""
        reach = Reach(None if self.results.path is None else self.results.path.with_suffix(".reach"))
        reach.measure([test for test in tests if test.name not in reach.took])
        print("".join(f"\nleft out, for it does not pass: {name}" for name in reach.failing))
        self.took = {test: reach.took.get(test.name, 0) for test in tests if test.name not in reach.failing}
        self.took = {test: took for test, took in self.took.items() if took <= self.seconds}
        names = {test.name: test for test in self.took}
        self.reach = {
            path: {line: {names[name] for name in on if name in names} for line, on in lines.items()}
            for path, lines in reach.lines.items()
        }
        print(f"\n{len(self.took)} tests in {sum(self.took.values()):.0f} s, {len(self.waiting)} mutants")

    def those_for(self, mutant):
        """The tests that reach its lines, those first that notice much in little time."""
        lines = self.reach.get(mutant.path.name, {})
        here, around = ({test for line in it for test in lines.get(line, ())} for it in mutant.lines)
        found = here or around
        known = {test: self.kills[mutant.path.stem, test.name] + self.kills[test.name] / 2 for test in found}
        worth = {test: (kills + 0.1) / (self.took[test] + 0.002) for test, kills in known.items()}
        first = sorted(found, key=lambda test: (-worth[test], test.name))
        until = accumulate(self.took[test] for test in first)
        return [test for test, spent in zip(first, until, strict=True) if spent <= self.budget]

    def begin(self, mutant):
        tests = self.those_for(mutant)
        told, tell = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(told)
            self.live(mutant, tests, tell)
        os.close(tell)
        self.running[child] = mutant, tests, told

    def live(self, mutant, tests, tell):
        """In a process of its own: the tests, until one fails."""
        limit = int(10 + 4 * sum(self.took[test] for test in tests))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        resource.setrlimit(resource.RLIMIT_AS, (4 * GIGABYTE, 4 * GIGABYTE))
        signal.alarm(60 + 10 * limit)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        noticed = -1
        with suppress(BaseException):  # what it trips over, it was noticed by
            mutant.put_in()
            for noticed, test in enumerate(tests):  # noqa: B007 - the last one counts
                if not test.passes():
                    break
            else:
                noticed = -2
        os.write(tell, str(noticed).encode())
        os._exit(0)

    def wait(self):
        """For the next one that is done."""
        child, _ = os.wait()
        mutant, tests, told = self.running.pop(child)
        with os.fdopen(told) as file:
            said = file.read()
        if not said:
            self.results.note(mutant, "killed", "time")
        elif said == "-2":
            self.results.note(mutant, "survived")
        else:
            by = tests[int(said)] if int(said) >= 0 else None
            self.count(self.results.note(mutant, "killed", by.name if by else "at once"))
