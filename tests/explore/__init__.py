"""Visits every state that a supervisor's machine can reach in small trees, and checks what must hold there.

`python -m tests.explore` explores all of `families`; a violation is printed as a test with the shortest
trace that leads to it.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from attrs import frozen

from benchmarks.progress import progress

from .families import FAMILIES
from .world import World

__all__ = ["Explored", "World", "covered", "record", "run"]

_COVERED = Path(__file__).with_name("covered.json")


@frozen
class Explored:
    """What came of one family. `found`: each violation as a test."""

    family: str
    trees: int
    states: int
    transitions: int
    seconds: float
    found: tuple[str, ...]

    @property
    def numbers(self) -> list[int]:
        """What is the same every time."""
        return [self.trees, self.states, self.transitions]


def covered() -> dict[str, dict[str, list[int]]]:
    """Trees, states and transitions of every family, in its full and in its quick form, as they are meant to be."""
    numbers: dict[str, dict[str, list[int]]] = json.loads(_COVERED.read_text())
    return numbers


def record(form: str, explored: Explored) -> None:
    """Take these numbers for what they are meant to be."""
    numbers = covered()
    numbers[form][explored.family] = explored.numbers
    forms = {
        form: ",\n  ".join(f"{json.dumps(name)}: {its[name]}" for name in FAMILIES if name in its)
        for form, its in numbers.items()
    }
    _COVERED.write_text("{" + ",\n".join(f'"{form}": {{\n  {its}\n}}' for form, its in forms.items()) + "}\n")


def run(families: Iterable[str], *, quick: bool = False, processes: int | None = None) -> Iterator[Explored]:
    """Explore one family after the other, each over several processes; with 1, in this one."""
    jobs = {
        family: [(family, number) for number in FAMILIES[family].chosen(quick=quick)] for family in families
    }
    with ExitStack() as stack:
        over: Callable[..., Iterable[Explored]] = map
        if processes != 1:
            pool = multiprocessing.get_context("spawn").Pool(processes)
            over = stack.enter_context(pool).imap_unordered
        step = stack.enter_context(progress("groups of trees", sum(map(len, jobs.values()))))
        for family, its in jobs.items():
            yield _sum(family, over(explore, its), step)


def explore(job: tuple[str, int]) -> Explored:
    """Explore one group of a family."""
    family, number = job
    began = time.perf_counter()
    group = FAMILIES[family].group(number)
    outcome = group.explored()
    found = tuple(violation.as_test() for violation in outcome.found)
    seconds = time.perf_counter() - began
    return Explored(family, len(group.specs), outcome.states, outcome.transitions, seconds, found)


def _sum(family: str, parts: Iterable[Explored], step: Callable[[float], None]) -> Explored:
    began, done = time.perf_counter(), list[Explored]()
    for part in parts:
        done.append(part)
        step(1)
    return Explored(
        family,
        sum(part.trees for part in done),
        sum(part.states for part in done),
        sum(part.transitions for part in done),
        time.perf_counter() - began,
        tuple(found for part in done for found in part.found)[:5],
    )
