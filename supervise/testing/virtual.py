"""Virtual time: sleeping takes none, and the schedule is drawn from a seed, so that a run can be replayed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio
import trio.testing
from trio._core import _run

T = TypeVar("T")


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
    with _schedule(random.getrandbits(64) if seed is None else seed):
        return trio.run(fn, *args, clock=trio.testing.MockClock(autojump_threshold=0))


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
