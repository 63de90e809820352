"""A status as plain data: one row for each node, with times in seconds since 1970."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from attrs import frozen

from .._core._brief import brief_text, class_name
from .._core.status import Status
from .._trio.tree import Tree
from .history import as_json

_JITTER = 0.005
"""Seconds by which the difference between the two clocks may vary from one reading to the next."""


@frozen
class Row:
    """A node as plain data, and the same in JSON."""

    data: dict[str, Any]
    json: str


class Rows:
    """The rows of a running tree. That of a node which has not changed since the last time is not made again."""

    def __init__(self, tree: Tree) -> None:
        self._driver = tree._driver
        self._known: dict[tuple[object, ...], Row] = {}
        self._offset = 0.0

    def read(self, *, now: float, time: float) -> list[Row]:
        """A row for each node, parents first, in start order.

        Args:
            now: the time on Trio's clock.
            time: the same moment in seconds since 1970.
        """
        if abs(time - now - self._offset) > _JITTER:
            self._known.clear()
            self._offset = time - now
        rows = {
            values: self._known.get(values) or self._made(status())
            for values, status in self._driver.forest.glances(now, self._driver.traffic_at)
        }
        self._known = rows
        return list(rows.values())

    def _made(self, status: Status) -> Row:
        data = as_row(status, self._offset)
        return Row(data, as_json(data))


def as_row(node: Status, offset: float) -> dict[str, Any]:
    """One node as plain data; `offset` is the time since 1970, less that on Trio's clock, in seconds."""

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
