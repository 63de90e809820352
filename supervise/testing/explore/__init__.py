"""Visits every state that a supervisor's machine can reach in small trees, and checks what must hold there.

`python -m supervise.testing.explore` explores all of `families`; a violation is printed as a test with the shortest
trace that leads to it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator

from attrs import frozen

from .families import FAMILIES
from .search import Explorer
from .world import World

__all__ = ["Explored", "World", "run"]


@frozen
class Explored:
    """What came of one family. `found`: each violation as a test."""

    family: str
    trees: int
    states: int
    transitions: int
    seconds: float
    found: tuple[str, ...]


def run(families: Iterable[str], *, quick: bool = False, processes: int | None = None) -> Iterator[Explored]:
    """Explore one family after the other, each over several processes; with 1, in this one."""
    if processes == 1:
        for family in families:
            jobs = [(family, number) for number in FAMILIES[family].chosen(quick=quick)]
            yield _sum(family, map(explore, jobs))
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for family in families:
            jobs = [(family, number) for number in FAMILIES[family].chosen(quick=quick)]
            yield _sum(family, pool.imap_unordered(explore, jobs))


def explore(job: tuple[str, int]) -> Explored:
    """Explore one group of a family."""
    family, number = job
    began = time.perf_counter()
    group = FAMILIES[family].group(number)
    outcome = Explorer(group.specs, group.freedom).run()
    found = tuple(violation.as_test() for violation in outcome.found)
    seconds = time.perf_counter() - began
    return Explored(family, len(group.specs), outcome.states, outcome.transitions, seconds, found)


def _sum(family: str, parts: Iterable[Explored]) -> Explored:
    began, done = time.perf_counter(), list(parts)
    return Explored(
        family,
        sum(part.trees for part in done),
        sum(part.states for part in done),
        sum(part.transitions for part in done),
        time.perf_counter() - began,
        tuple(found for part in done for found in part.found)[:5],
    )
