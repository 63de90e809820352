"""`run_tree`: a tree as a whole program, with signals, an ordered stop and an exit status."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import NoReturn

import trio

from .._core.spec import Pool, Supervisor
from ..errors import StartFailed, TreeFailed
from ..events import Sink
from .tree import Tree, check_root, opening

EX_SOFTWARE = 70
"""The exit status of a tree that failed."""

Watch = Callable[[Tree], Awaitable[object]]

logger = logging.getLogger("supervise")


def run_tree(
    spec: Supervisor | Pool,
    *,
    sinks: Iterable[Sink] | None = None,
    hard_exit_after: float | None = None,
    watch: Watch | None = None,
) -> None:
    """Run a tree until its root ends, and leave the program with its exit status if that is not 0.

    The first SIGINT or SIGTERM stops the tree in order, and then the status is 0. The second one ends the program at
    once with 130 or 143; processes that belong to children die with it.

    Args:
        spec: the root.
        sinks: as for `open_tree`.
        hard_exit_after: seconds that an ordered stop may take; then the stacks of all tasks are written to standard
            error and the program ends with 70. It is the only way past a child that does not yield. None: no end.
        watch: called with the tree as it starts, and cancelled when it has ended; for a view. Like a sink, one that
            raises is reported once and cannot hurt the tree.

    Raises:
        SystemExit: with 70 if the tree failed, with 1 if it never started (one line in the log says why).
    """
    check_root(spec)
    try:
        trio.run(_run, spec, sinks, hard_exit_after, watch)
    except TreeFailed as failed:
        logger.critical("%s", failed, exc_info=failed)
        raise SystemExit(EX_SOFTWARE) from failed
    except StartFailed as failed:
        logger.critical("%s", failed)
        logger.debug("the traceback of the failed start", exc_info=failed)
        raise SystemExit(1) from failed


async def _run(
    spec: Supervisor | Pool, sinks: Iterable[Sink] | None, hard_exit_after: float | None, watch: Watch | None
) -> None:
    raised: BaseException | None = None
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as scope:
            nursery.start_soon(_obey, signals, scope)
            nursery.start_soon(_exit_hard, stopping, hard_exit_after)
            try:
                await _hold(
                    opening(spec, sinks, lambda tree: nursery.start_soon(_watch, watch, tree)), stopping
                )
            except trio.Cancelled:
                raise
            except BaseException as exc:  # noqa: BLE001 - raised below, outside of the nursery, which would wrap it
                raised = exc
        nursery.cancel_scope.cancel("the tree has ended")
    if raised is not None:
        raise raised


async def _hold(opening: AbstractAsyncContextManager[Tree], stopping: trio.Event) -> None:
    async with opening as tree:
        try:
            await tree.root.ended()
        finally:
            stopping.set()


async def _watch(watch: Watch | None, tree: Tree) -> None:
    """Let it look until the tree has ended; an ordered stop too is worth seeing."""
    try:
        if watch is not None:
            await watch(tree)
    except Exception:
        logger.exception("what watched the tree failed; the tree goes on")


async def _obey(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """The first signal stops the tree in order, the second one everything at once."""
    async for number in signals:
        if scope.cancel_called:
            _leave(128 + number)
        scope.cancel(f"{signal.Signals(number).name} asked the program to stop")


async def _exit_hard(stopping: trio.Event, seconds: float | None) -> None:
    await stopping.wait()
    if seconds is None:
        return
    await trio.sleep(seconds)
    sys.stderr.write(f"not stopped within {seconds:g} s; what hangs:\n{_stacks()}")
    _leave(EX_SOFTWARE)


def _leave(status: int) -> NoReturn:
    """End the process now: no interpreter teardown that could wait for anything."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _stacks() -> str:
    """The stacks of all tasks, by name."""
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    parts: list[str] = []
    while waiting:
        task = waiting.pop()
        frames = traceback.StackSummary.extract(task.iter_await_frames())
        parts.append(f"{task.name}\n{''.join(frames.format())}")
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return "\n".join(parts)
