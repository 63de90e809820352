"""Virtual time: sleeping takes none, and the schedule is drawn from a seed, so that a run can be replayed."""

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
    """What is to be told of a run, should its test fail."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.story = Story()

    def told(self) -> str:
        """The story of its trees; empty if there was none."""
        if not self.story.heard:
            return ""
        return f"run_virtual(…, seed={self.seed}); times are virtual seconds\n{self.story.tell()}"


last_run: Run | None = None
"""The last run of this test; the pytest plugin tells its story."""


def run_virtual(fn: Callable[..., Awaitable[T]], *args: Any, seed: int | None = None) -> T:
    """`trio.run(fn, *args)` on a clock that jumps to the next deadline whenever every task waits.

    Not for code that waits for real processes, threads or sockets: the clock would jump meanwhile.

    Args:
        fn: an async function.
        args: for it.
        seed: of the order in which runnable tasks run, and of the jitter of backoffs. The same seed gives the same
            run. None: the schedule follows Python's global `random`, so that under Hypothesis a test that draws
            `st.random_module()` explores schedules, and shrinks and replays them.
    """
    seed = random.getrandbits(64) if seed is None else seed
    with _told(seed), _schedule(seed):
        return trio.run(fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))


@contextmanager
def _told(seed: int) -> Generator[None, None, None]:
    """Keep what there is to tell, where the pytest plugin is there to tell it."""
    global last_run  # noqa: PLW0603 - the plugin looks for it here
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
    """Trio shuffles each batch of runnable tasks by a generator of its own: seed it, and sort the batch first."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate(), random.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # Final to checkers, made to be set by tests
    _run._r.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]  # likewise
        _run._r.setstate(before[1])
        random.setstate(before[2])
