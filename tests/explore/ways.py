"""The short ways that a driver may take, held against the long ones: the same events, and the same state after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervise._core.act import Act
from supervise._core.machine import Machine
from supervise._core.node import Failure, Node

from .copying import copied
from .invariants import demand
from .state import key

if TYPE_CHECKING:
    from .world import Action, World


def hold_together(world: World, action: Action) -> None:
    """Where a leaf fails, or is up, and has no stop to heed: go both ways, each in a copy, and compare.

    Only what is `simple` has a short way; which of the two it has gone when it failed, its state does not tell.
    """
    kind, path = action[:2]
    task = world.tasks[path]
    if task.mode not in ("starting", "up") or not task.node.fast_path:
        return
    short = copied(world)
    node = short.tasks[path].node
    if kind == "up":
        above = short.above(node)
        assert above is not None
        above.fast_act = _alone(above, node)
    told = short.fails_at_once(node, action[2]) if kind == "fail" else short.is_up_at_once(node)
    if not told:
        demand(_seen(short) == _seen(world), path, "did not go the short way, but left something changed")
        return
    long = _the_long_way(world, action)
    demand(_said(short) == _said(long), path, "says by the short way", _said(short), "and not", _said(long))
    demand(_seen(short) == _seen(long), path, "is somewhere else by the short way")


def _alone(above: Machine, node: Node) -> Act | None:
    """The act that restarts it, as if it had gone the short way."""
    act = above.act
    return (
        act if act is not None and act.kind == "restart" and act.node is node and act.token is None else None
    )


def _the_long_way(world: World, action: Action) -> World:
    long = copied(world)
    long.heard = []
    long.act(action)
    task = long.tasks.get(action[1])
    if action[0] == "fail" and task is not None and task.mode == "leaving":
        long.act(("end", action[1]))
    return long


def _said(world: World) -> list[str]:
    return list(map(repr, world.heard or ()))


def _seen(world: World) -> Any:
    """The state, and of each node what is only reported."""
    return key(world), [_reported(node) for node in _nodes(world)]


def _nodes(world: World) -> list[Node]:
    return [task.node for task in world.tasks.values()]


def _reported(node: Node) -> Any:
    return (
        node.path,
        node.incarnation,
        node.since,
        repr(node.last_failure),
        None if node.failure is None else [repr(getattr(node.failure, name)) for name in Failure.__slots__],
        repr(node.why),
    )
