"""A tree as text: pure functions, one line for each node."""

from __future__ import annotations

from collections.abc import Sequence

from .._core.spec import Spec
from .._core.status import Status
from . import words


def declared(spec: Spec) -> str:
    """The tree that `spec` declares, each node with the options that differ from the defaults."""
    rows = [
        (lead + node.label, " · ".join(node.facts()))
        for lead, node in words.branches(words.Declared(spec), words.Declared.below)
    ]
    return columns(rows)


def running(status: Status, now: float) -> str:
    """The running tree: states, incarnations, restarts that the limit counts, waiting messages, last failures.

    Args:
        status: from `tree.status()`.
        now: `trio.current_time()`, for the remaining seconds of a backoff.
    """
    head = ("node", "state", "incarnation", "restarts", "waiting", "last failure")
    rows = [
        (lead + words.name(node), *_standing(node, now))
        for lead, node in words.branches(status, words.children)
    ]
    return columns([head, *rows])


def _standing(status: Status, now: float) -> tuple[str, ...]:
    return (
        words.state(status, now),
        str(status.incarnation or ""),
        words.restarts(status),
        "" if status.mailbox is None else str(status.mailbox),
        words.failure(status),
    )


def columns(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
