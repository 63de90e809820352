"""Run a tree with a picture on the terminal, or with plain lines if the terminal cannot show one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec

from .._core.spec import Pool, Supervisor
from .._trio import last_resort
from .._trio.run import Watch, run_tree
from ..events import Sink
from ..sinks.lines import LineSink


def run_live(
    spec: Supervisor | Pool,
    *,
    hard_exit_after: float | None = None,
    watchdog: float | None = None,
    otherwise: Sink | None = None,
    sinks: Iterable[Sink] = (),
    watches: Iterable[Watch] = (),
    reload: Callable[[], Supervisor | Pool] | None = None,
) -> None:
    """As `run_tree`, with a `LiveView`. If standard output cannot show one, a line gives the reason, and plain lines follow.

    Args:
        spec: the root.
        hard_exit_after: as for `run_tree`.
        watchdog: as for `run_tree`.
        otherwise: the sink for the events if there is no view; None is a `LineSink`.
        sinks: further sinks, with or without a view.
        watches: further functions for the `watch` of `run_tree`, likewise.
        reload: as for `run_tree`.

    Raises:
        The same errors as `run_tree`.
    """
    reason = _why_not()
    if reason is not None:
        last_resort.write(f"supervise: no live view, plain lines instead: {reason}\n")
        given = [otherwise or LineSink(), *sinks]
        run_tree(
            spec,
            sinks=given,
            hard_exit_after=hard_exit_after,
            watchdog=watchdog,
            watch=watches,
            reload=reload,
        )
        return
    from .live import LiveView  # noqa: PLC0415 - it needs rich, which is an extra

    view = LiveView()
    run_tree(
        spec,
        sinks=[view, *sinks],
        hard_exit_after=hard_exit_after,
        watchdog=watchdog,
        watch=[view.watch, *watches],
        reload=reload,
    )


def _why_not() -> str | None:
    if sys.stdout is None or not sys.stdout.isatty():
        return "standard output is not a terminal"
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return f"the terminal cannot move its cursor (TERM is {os.environ.get('TERM', 'not set')})"
    try:
        "│─└…·".encode(sys.stdout.encoding, sys.stdout.errors or "strict")
    except UnicodeError:
        return f"the encoding of standard output, {sys.stdout.encoding}, has no characters for lines"
    if find_spec("rich") is None:
        return "it needs rich: pip install 'trio-supervise[live]'"
    return None
