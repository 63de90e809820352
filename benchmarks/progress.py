"""One line on a terminal that shows how far a long command is: how much of how much, for how long, and how long it will take."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
EVERY = 0.2
"""Seconds between two pictures of the line, because drawing it takes some milliseconds."""


@contextmanager
def progress(what: str, total: float) -> Iterator[Callable[[float], None]]:
    """Show the line on standard error while the block runs, and write nothing if standard error is redirected.

    It is drawn at steps only, without a thread, because some of these commands fork, and others measure times.

    Args:
        what: names the work.
        total: how much work there is.

    Yields:
        A function that adds to the work that is done.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - Some of these commands measure their own process, without a terminal.
    from rich.progress import (  # noqa: PLC0415 - Some of these commands measure their own process, without a terminal.
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}:", markup=False),
        MofNCompleteColumn(" of "),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("to go"),
    )
    with Progress(
        *columns,
        console=Console(stderr=True),
        auto_refresh=False,
        speed_estimate_period=3600,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # otherwise rich would write to the terminal what goes to a file
    ) as line:
        task = line.add_task(what, total=total)
        drawn = time.monotonic()

        def step(work: float) -> None:
            nonlocal drawn
            now = time.monotonic()
            is_due = now >= drawn + EVERY
            drawn = now if is_due else drawn
            line.update(task, advance=work, refresh=is_due)

        yield step


def tracked(what: str, items: Iterable[T], total: int) -> Iterator[T]:
    """The items, with `progress` over them: each counts as done when the next one is asked for."""
    with progress(what, total) as step:
        for item in items:
            yield item
            step(1)
