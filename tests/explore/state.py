"""When two worlds are the same: what a machine remembers, less the fields that only record when and how often.

Dropped are absolute times, incarnations, epochs, tickets, tokens and the texts of reasons; kept is whatever makes a
difference to what happens next. That a void item makes none is not taken for granted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from supervise._core.act import Act
from supervise._core.effect import Request
from supervise._core.machine import Machine
from supervise._core.node import Failure, Node
from supervise._core.spec import Pool, Spec, Supervisor, walk

if TYPE_CHECKING:
    from .world import World

Key = tuple[Any, ...]

KEPT = {
    "alive", "awaited", "retry_charged", "epoch", "failure", "gone", "has_machine", "restart_in_progress", "phase", "spec", "state",
    "timed_out", "timer", "undecided", "waited", "window", "due",
}  # fmt: skip
DROPPED = {
    "decider": "goes with the spec",
    "decision": "is reported, and decides nothing",
    "delays": "constant in every family",
    "failures": "as above",
    "first": "as above",
    "generated_name": "goes with the kind of supervisor",
    "incarnation": "only whether it is a task's own counts, and that is checked",
    "is_leaf": "goes with the spec",
    "interval": "goes with `waited`",
    "last_failure": "is reported, and decides nothing",
    "memory": "numbers and reasons, which are reported and decide nothing",
    "number": "goes with the order of the children",
    "path": "as above",
    "ready_at": "no family has a quiet time",
    "fast_path": "goes with the spec",
    "slow_start": "as above",
    "since": "is reported; a timer of a start is kept itself",
    "why": "is reported, and decides nothing",
}


def nodes(world: World) -> list[Node]:
    """All nodes, parents first, in start order."""
    found = [world.forest.root]
    for node in found:
        machine = world.machine_of(node)
        if machine is not None and machine.phase != "ended":
            found += machine.children.values()
    return found


def key(world: World) -> Key:
    """Equal for two worlds from which the same can happen, and of which the same is demanded."""
    order = nodes(world)
    places = {node: place for place, node in enumerate(order)}
    beside = len(world.tasks) - sum(node.path in world.tasks for node in order)
    restarting = world.forest.restarting is not None
    root = (world.stopped, world.failed, world.forest.over, restarting, len(world.asked), beside)
    return (root, *[_part(_node(world, node, places)) for node in order])


_parts: dict[Key, int] = {}


def _part(key: Key) -> int:
    """A number for each state of one node: there are few of them."""
    return _parts.setdefault(key, len(_parts))


def _node(world: World, node: Node, places: dict[Node, int]) -> Key:
    path = node.path
    task = world.tasks.get(path)
    machine = world.machine_of(node)
    return (
        node.state,
        (
            node.alive,
            node.awaited,
            node.undecided,
            node.retry_charged,
            node.timed_out,
            node.gone,
            node.restart_in_progress,
        ),
        None if node.failure is None else _failure(world, node.failure, places),
        _timer(world, node) if node.timer else None,
        node.waited > 0,
        world.words.get(path, ""),
        path in world.owing,
        path in world.gone,
        None if task is None else (task.mode, task.crossing, task.incarnation == node.incarnation),
        None if node.window is None else _left(node.window),
        (_name(world, node), _declaration(world, node.spec), node.is_new),
        None if machine is None else _machine(world, machine, places),
        _afterwards(world, node, places),
    )


def _afterwards(world: World, node: Node, places: dict[Node, int]) -> Key | None:
    """What begins once it has been released."""
    above = world.above(node)
    act = None if above is None else above.releasing.get(node)
    return None if act is None else _act(world, act, places)


def _name(world: World, node: Node) -> str:
    """A pool's members are all alike."""
    above = world.above(node)
    return "" if above is None or isinstance(above.spec, Pool) else node.spec.name


def _declaration(world: World, spec: Spec) -> int:
    """The number of the declaration that this spec is part of; only an adoption changes it."""
    if len(world.declarations) == 1:
        return 0
    return next((number for number, root in enumerate(world.declarations) if spec in _parts_of(root)), -1)


@cache
def _parts_of(root: Supervisor | Pool) -> frozenset[Spec]:
    return frozenset(spec for _, spec in walk(root))


def _timer(world: World, node: Node) -> Key | None:
    above = world.above(node)
    if above is None:
        return None
    due = (at - world.now for at, ticket, _ in above.timers._heap if ticket == node.timer)
    return (node.phase, next(due, None))


def _left(window: Any) -> int:
    """How many more a limit allows."""
    left: int = window._limit.restarts - len(window._charged)
    return left


def _failure(world: World, failure: Failure, places: dict[Node, int]) -> Key:
    exc = type(failure.exc).__name__, getattr(failure.exc, "tag", None), failure.tag
    how = failure.resumable, failure.progressed, failure.starting
    return (exc, how, _origin(world, failure, places))


def _origin(world: World, failure: Failure, places: dict[Node, int]) -> int:
    node = world.forest.find(failure.origin)
    return -1 if node is None else places.get(node, -1)


def _machine(world: World, machine: Machine, places: dict[Node, int]) -> Key:
    window = machine.window
    return (
        machine.phase,
        None if machine.act is None else _act(world, machine.act, places),
        tuple(_waiting(world, machine, places)) if machine.inbox else (),
        None if window is None else (_left(window), len(window._charged) == world.charges.get(machine.path)),
        len(machine.children),
        _declaration(world, machine.spec),
        0 if machine.ready_time is None else machine.ready_time._held,
        _woken(world, machine),
    )


def _woken(world: World, machine: Machine) -> bool:
    """Whether its timers have been asked for."""
    if not machine.timers._heap:
        return True
    first = min((at for at, ticket, node in machine.timers._heap if node.timer == ticket), default=None)
    return first is None or min(world.wakes.get(machine.path, ()), default=first + 1) <= first


def _act(world: World, act: Act, places: dict[Node, int]) -> Key:
    return (
        act.kind,
        None if act.node is None else places.get(act.node, -1),
        tuple([places.get(node, -1) for node in act.stops]),
        tuple([places.get(node, -1) for node in act.starts]),
        (_token(world, act.token), act.delay, act.returned, act.for_good, act.pending),
        None if act.failure is None else _failure(world, act.failure, places),
    )


def _token(world: World, token: Any) -> bool | None:
    """Whether it still waits for its answer."""
    return None if token is None else token in world.asked


def _waiting(world: World, machine: Machine, places: dict[Node, int]) -> Iterator[Key]:
    for item in machine.inbox:
        if isinstance(item, Request):
            there = machine.children.get(item.name or "")
            place = (item.name == "extra") - 2 if there is None else places[there]
            yield (
                item.kind,
                place,
                None if item.kind != "adopt" else _declaration(world, item.spec),
                None if item.withdrawn else _token(world, item.token),
            )
        else:
            void = item.epoch != item.node.epoch
            yield (type(item).__name__, void, places.get(item.node, -1))
