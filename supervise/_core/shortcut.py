"""The one-step restart: the failure and the restart of a leaf on the fast path, without a trip through the inbox.

A leaf on the fast path has no group, no resource and no backoff (`Node.fast_path`). If its supervisor is idle and its
decider's table answers Restart, `Exited` and `Ended` always cause the same few changes, so the driver may start the next
incarnation in the task of the failed one. The exploration takes both ways in every state in which this one is possible, and
compares their events and the states after them (`tests/explore/ways.py`); a driver that never takes it runs the same trees.

Both functions return the events to deliver. None means that nothing has changed, and that the driver must use `handle`.
"""

from __future__ import annotations

from .. import events
from .act import Act
from .directive import Restart
from .effect import Effect
from .machine import Machine
from .node import Node


def restart_at_once(machine: Machine, node: Node, exc: Exception, now: float) -> list[Effect] | None:
    """`Exited` and `Ended` of a running leaf that failed with `exc`, and the start of its next incarnation."""
    # Without an act the inbox is empty, so this restart overtakes no other item.
    if machine.act is not None or node.state != "up" or not node.fast_path:
        return None
    tag, answer = node.decider.looked_up(exc)
    if answer is None:
        return None
    directive, decider, entry = answer
    if directive is not Restart or not _charge_both(machine, node, now):
        return None
    node.last_failure = exc
    node.decision = (now, Restart, tag, machine.path, "table")
    node.failures += 1
    node.incarnation += 1
    node.state, node.since, node.ready_at, node.awaited = "starting", now, None, True
    if machine.fast_act is None:
        machine.fast_act = Act(
            "restart"
        )  # one for every such restart: it stops no child, so it needs no reason
    machine.act = machine.fast_act
    machine.act.node, machine.act.pending = node, 1
    if machine.ready_time is not None:
        machine.note_restart(node, now, in_progress=True)
    if not machine.ledger.listening:
        return []
    path, life = node.path, node.incarnation
    return [
        events.Failed(now, path, life - 1, exc),
        events.Decided(
            now,
            path,
            life - 1,
            Restart,
            by=machine.path,
            exc=exc,
            because="table",
            tag=tag,
            decider=decider or None,
            entry=entry,
        ),
        events.Stopped(now, path, life - 1),
        events.Starting(now, path, life),
    ]


def up_at_once(machine: Machine, node: Node, now: float) -> list[Effect] | None:
    """`Up` of a leaf that `restart_at_once` has started, if no input has arrived since."""
    act = machine.act
    if act is None or act is not machine.fast_act or act.node is not node or machine.inbox:
        return None
    assert node.state == "starting", node.state  # whatever else could have become of it would have come in
    machine.act = None
    node.state, node.since, node.ready_at, node.awaited = "up", now, now, False
    if machine.ready_time is not None:
        machine.note_restart(node, now, in_progress=False)
    return [events.Ready(now, node.path, node.incarnation)] if machine.ledger.listening else []


def _charge_both(machine: Machine, node: Node, now: float) -> bool:
    """Charge the leaf's own limit and the supervisor's, or neither if one of them allows no more."""
    own = node.window
    if own is not None and not own.allows(now):
        return False
    return machine.charge(now) and (own is None or own.charge(now))
