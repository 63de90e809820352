"""A tree as text: pure functions, one line for each node."""

from __future__ import annotations

from collections.abc import Sequence

from .._core.spec import Spec
from .._core.status import Status
from . import words


def declared(spec: Spec) -> str:
    """The tree as it was declared: everything that is not as usual."""
    rows = [
        (lead + node.label, " · ".join(node.facts()))
        for lead, node in words.branches(words.Declared(spec), words.Declared.below)
    ]
    return _columns(rows)


def running(status: Status, now: float) -> str:
    """The tree as it stands: states, incarnations, restarts that count, waiting messages, last failures.

    Args:
        status: from `tree.status()`.
        now: `trio.current_time()`, for what is due.
    """
    head = ("node", "state", "incarnation", "restarts", "waiting", "last failure")
    rows = [
        (lead + words.name(node), *_standing(node, now))
        for lead, node in words.branches(status, words.children)
    ]
    return _columns([head, *rows])


def _standing(status: Status, now: float) -> tuple[str, ...]:
    return (
        words.state(status, now),
        str(status.incarnation or ""),
        str(status.restarts or ""),
        "" if status.mailbox is None else str(status.mailbox),
        words.failure(status),
    )


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Each as wide as it must be, the last one as wide as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"
