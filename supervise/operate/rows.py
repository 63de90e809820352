"""A status as plain data: one row for each node, with times in seconds since 1970."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from .._core._brief import brief_text, class_name
from .._core.status import Status


def as_rows(status: Status, *, now: float, time: float) -> Iterator[dict[str, Any]]:
    """A row for each node, parents first, in start order; one after the other, since all of a large tree are much to hold.

    Args:
        status: of the whole tree.
        now: the time on Trio's clock at which it was taken.
        time: the same moment in seconds since 1970.
    """
    offset = time - now
    return (_row(node, offset) for node in status.walk())


def _row(node: Status, offset: float) -> dict[str, Any]:
    def wall(at: float | None) -> float | None:
        return None if at is None else at + offset

    return {
        "path": node.path,
        "kind": node.kind,
        "state": node.state,
        "incarnation": node.incarnation,
        "restarts": node.restarts,
        "limit": None if node.limit is None else str(node.limit),
        "allowed": None if node.limit is None else node.limit.restarts,
        "failure": None if node.last_failure is None else _failure(node.last_failure),
        "due": wall(node.due),
        "mailbox": node.mailbox,
        "handled": node.handled,
        "restart": node.restart,
        "strategy": node.strategy,
        "front": node.front,
        "since": wall(node.since) if node.incarnation else None,
        "ready_at": wall(node.ready_at),
        "restarts_total": node.restarts_total,
        "failures_total": node.failures_total,
        "decision": None
        if node.decision is None
        else {
            "directive": None if node.decision.directive is None else node.decision.directive.name,
            "tag": node.decision.tag,
            "by": node.decision.by,
            "because": node.decision.because,
            "at": wall(node.decision.at),
        },
    }


def _failure(exc: BaseException) -> dict[str, str]:
    return {"type": class_name(type(exc)), "text": brief_text(exc)}


def waits_for(rows: list[dict[str, Any]], required: Collection[str] = ()) -> list[dict[str, str]]:
    """The nodes for which a tree that is not ready waits, each with its state and the reason; empty if it is ready.

    A tree is ready while its root is up, no child is condemned, and none is in its very first start. A child that is restarted
    does not make it unready, unless `required` names the child: then it has to be up.
    """
    root = rows[0]
    found: dict[str, dict[str, str]] = {}

    def note(row: dict[str, Any], why: str) -> None:
        found.setdefault(row["path"], {"path": row["path"], "state": row["state"], "why": why})

    if root["state"] != "up":
        note(root, f"the root is {root['state']}")
    for row in rows:
        if row["state"] == "condemned":
            note(row, "a decision has stopped it, and it stays down")
        elif row["state"] == "starting" and row["ready_at"] is None and row["restarts_total"] == 0:
            note(row, "it has not been ready yet")
        elif row["path"] in required and row["state"] != "up":
            note(row, "it has to be up")
    there = {row["path"] for row in rows}
    for path in required:
        if path not in there:
            note({"path": path, "state": "not there"}, "it has to be up")
    return list(found.values())
