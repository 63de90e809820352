"""Virtual time: sleeping takes no real time, and a seed determines the schedule, so that a run can be repeated."""

from __future__ import annotations

import random
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run

from .._trio.tree import onlookers
from .story import Story

T = TypeVar("T")


class Run:
    """The events of a run, for the report of a test that fails."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.story = Story()

    def report(self) -> str:
        """The story of its trees; empty if no tree ran."""
        if not self.story.count:
            return ""
        return f"run_virtual(…, seed={self.seed}); times are virtual seconds\n{self.story.transcript()}"


last_run: Run | None = None
"""The last run of this test, which the pytest plugin reports."""


def run_virtual(fn: Callable[..., Awaitable[T]], *args: Any, seed: int | None = None) -> T:
    """`trio.run(fn, *args)` on a clock that jumps to the next deadline whenever every task waits.

    It is not for code that waits for real processes, threads or sockets: the clock would jump meanwhile.

    Args:
        fn: an async function.
        args: its positional arguments.
        seed: determines the order in which runnable tasks run, and the jitter of backoffs: the same seed gives the same
            run. None draws a seed from Python's global `random`, so that under Hypothesis a test that draws
            `st.random_module()` explores schedules, and shrinks and replays them.

    Returns the result of `fn`, and raises its exception.
    """
    seed = random.getrandbits(64) if seed is None else seed
    with _reported(seed), _schedule(seed):
        return trio.run(fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def _reported(seed: int) -> Generator[None, None, None]:
    """Keep the events of this run, if the pytest plugin is loaded."""
    global last_run  # noqa: PLW0603 - the plugin reads it here
    if "supervise.testing.plugin" not in sys.modules:
        yield
        return
    last_run = Run(seed)
    token = onlookers.set((last_run.story,))
    try:
        yield
    finally:
        onlookers.reset(token)


@contextmanager
def _schedule(seed: int) -> Generator[None, None, None]:
    """Seed Trio's own random generator, which shuffles each batch of runnable tasks, and let Trio sort the batch first."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate(), random.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # Final to checkers, but tests may set it
    _run._r.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]  # as above
        _run._r.setstate(before[1])
        random.setstate(before[2])
