"""Reports for an operator: the stacks of running tasks, and log records that never hurt the tree."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType

from trio.lowlevel import Task

from .._core._brief import brief
from ..sinks.tracebacks import exc_info, trace

logger = logging.getLogger("supervise")


def tasks_below(task: Task | None) -> list[Task]:
    """A task and all tasks below it; none for None."""
    found = [] if task is None else [task]
    for each in found:
        found += [child for nursery in each.child_nurseries for child in nursery.child_tasks]
    return found


def stack(task: Task | None) -> str:
    """The stack of a task, outermost call first; empty for None."""
    return "" if task is None else stack_of(task.iter_await_frames())


def stack_of(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Frames with their lines, outermost call first; a line instead if they cannot be shown."""
    try:
        return "".join(traceback.StackSummary.extract(frames).format())
    except KeyboardInterrupt:
        raise
    except BaseException as problem:  # noqa: BLE001 - The loader of a user's module is called for its lines, and may raise anything.
        return f"(the stack cannot be shown: {brief(problem)})\n"


def stacks(tasks: Iterable[Task]) -> str:
    """The stacks of tasks, each below the name of its task."""
    return "\n".join(f"{task.name}\n{stack(task)}" for task in tasks)


def complain(level: int, text: str, exc: BaseException | None = None) -> None:
    """Log it. If a handler or a filter raises, write both exceptions to standard error instead (R31)."""
    try:
        logger.log(level, "%s", text, exc_info=exc_info(exc))
    except Exception as second:  # noqa: BLE001 - A handler of the program may raise anything, and a report must not hurt the tree (R31).
        for raised in (exc, second):
            _print(text, raised)


def _print(text: str, exc: BaseException | None) -> None:
    with suppress(Exception):  # Standard error may be closed or None, and a report has nowhere else to go.
        sys.stderr.write(f"{text}\n" if exc is None else f"{text}\n{trace(exc)}\n")
