"""The fast path of a driver against the general path: the same events, and the same state after them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from supervise._core.act import Act
from supervise._core.copying import copied
from supervise._core.machine import Machine
from supervise._core.node import Failure, Node

from .invariants import demand
from .state import key

if TYPE_CHECKING:
    from .world import Action, World


def hold_together(world: World, action: Action) -> None:
    """If a leaf fails or comes up, and no stop is on its way to it: take both paths, each in a copy, and compare.

    Only a leaf with `fast_path` can take the fast path. Its state does not show which path it took when it failed, so
    `up` is tried as if it had been the fast path (`_alone`).
    """
    kind, path = action[:2]
    task = world.tasks[path]
    if task.mode not in ("starting", "up") or not task.node.fast_path:
        return
    fast = copied(world)
    node = fast.tasks[path].node
    if kind == "up":
        above = fast.above(node)
        assert above is not None
        above.fast_act = _alone(above, node)
    is_open = fast.fails_at_once(node, action[2]) if kind == "fail" else fast.is_up_at_once(node)
    if not is_open:
        demand(_state(fast) == _state(world), path, "did not take the fast path, but left something changed")
        return
    general = _by_general_path(world, action)
    demand(
        _emitted(fast) == _emitted(general),
        path,
        "emits on the fast path",
        _emitted(fast),
        "and not",
        _emitted(general),
    )
    demand(_state(fast) == _state(general), path, "is in another state after the fast path")


def _alone(above: Machine, node: Node) -> Act | None:
    """The act that restarts the leaf alone, as if its failure had taken the fast path."""
    act = above.act
    return (
        act if act is not None and act.kind == "restart" and act.node is node and act.token is None else None
    )


def _by_general_path(world: World, action: Action) -> World:
    general = copied(world)
    general.emitted = []
    general.act(action)
    task = general.tasks.get(action[1])
    if action[0] == "fail" and task is not None and task.mode == "leaving":
        general.act(("end", action[1]))
    return general


def _emitted(world: World) -> list[str]:
    return list(map(repr, world.emitted or ()))


def _state(world: World) -> Any:
    """The state, and of each node what is only reported."""
    return key(world), [_reported(node) for node in _nodes(world)]


def _nodes(world: World) -> list[Node]:
    return [task.node for task in world.tasks.values()]


def _reported(node: Node) -> Any:
    return (
        node.path,
        node.incarnation,
        (node.since, node.ready_at, node.failures, node.decision),
        repr(node.last_failure),
        None if node.failure is None else [repr(getattr(node.failure, name)) for name in Failure.__slots__],
        repr(node.why),
    )
