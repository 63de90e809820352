"""When two worlds are the same: what a machine remembers, less what tells only when and how often.

Dropped are absolute times, incarnations, epochs, tickets, tokens and the texts of reasons; kept is whatever makes a
difference to what happens next. That a void item makes none is not taken for granted.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..._core.act import Act, Retry
from ..._core.decide import Decider
from ..._core.effect import Failure, Request
from ..._core.machine import Machine
from ..._core.node import Node
from ..._core.spec import Child, Pool, Supervisor

if TYPE_CHECKING:
    from .world import World

Key = tuple[Any, ...]

KEPT = {
    "alive", "awaited", "charged", "epoch", "failure", "gone", "machine", "mending", "phase", "spec", "state",
    "timed_out", "timer", "undecided", "waited", "window", "due",
}  # fmt: skip
DROPPED = {
    "alone": "an act as good as any other",
    "decider": "goes with the spec",
    "delays": "constant in every family",
    "dynamic": "goes with the kind of supervisor",
    "handle": "the driver's",
    "incarnation": "only whether it is a task's own counts, and that is checked",
    "interval": "goes with `waited`",
    "last_failure": "is reported, and decides nothing",
    "parent": "goes with the place in the tree",
    "path": "likewise",
    "simple": "goes with the spec",
    "since": "no family has a quiet time",
    "why": "is reported, and decides nothing",
}


def nodes(world: World) -> list[Node]:
    """All nodes, parents first, in start order."""
    found = [world.forest.root]
    for node in found:
        if node.machine is not None and node.machine.phase != "ended":
            found += node.machine.children.values()
    return found


def key(world: World) -> Key:
    """Equal for two worlds from which the same can happen."""
    order = nodes(world)
    places = {node: place for place, node in enumerate(order)}
    root = (world.stopped, world.failed, world.forest.over, len(world.asked))
    return (root, *(_node(world, node, places) for node in order))


def _node(world: World, node: Node, places: dict[Node, int]) -> Key:
    task = world.tasks.get(node.path)
    timer = _timer(world, node)
    return (
        node.state,
        (node.alive, node.awaited, node.undecided, node.charged, node.timed_out, node.gone, node.mending),
        _failure(node.failure, places),
        timer,
        node.waited > 0,
        world.words.get(node.path, ""),
        node.path in world.owing,
        None if task is None else (task.mode, task.crossing),
        _left(node.window),
        _name(node),
        None if node.machine is None else _machine(node.machine, places),
    )


def _name(node: Node) -> str:
    """A pool's members are all alike."""
    return "" if node.parent is None or isinstance(node.parent.spec, Pool) else node.spec.name


def _timer(world: World, node: Node) -> Key | None:
    if not node.timer or node.parent is None:
        return None
    due = (at - world.now for at, ticket, _ in node.parent._timers if ticket == node.timer)
    return (node.phase, next(due, None))


def _left(window: Any) -> int | None:
    """How many more a limit allows."""
    return None if window is None else window._limit.restarts - len(window._charged)


def _failure(failure: Failure | None, places: dict[Node, int]) -> Key | None:
    if failure is None:
        return None
    exc = type(failure.exc).__name__, getattr(failure.exc, "tag", None), failure.tag
    how = failure.resumable, failure.progressed, failure.starting
    return (exc, how, places.get(failure.origin, -1))


def _machine(machine: Machine, places: dict[Node, int]) -> Key:
    act = None if machine.act is None else _act(machine.act, places)
    return (
        machine.phase,
        act,
        tuple(_waiting(machine, places)),
        _left(machine.window),
        len(machine.children),
    )


def _act(act: Act, places: dict[Node, int]) -> Key:
    return (
        act.kind,
        None if act.node is None else places.get(act.node, -1),
        tuple(places.get(node, -1) for node in act.stops),
        tuple(places.get(node, -1) for node in act.starts),
        (act.token is not None, act.delay, act.returned, act.pending),
        _failure(act.failure, places),
    )


def _waiting(machine: Machine, places: dict[Node, int]) -> Iterator[Key]:
    for item in machine.inbox:
        if isinstance(item, Request):
            there = machine.children.get(item.name or "")
            yield (item.kind, (item.name == "extra") - 2 if there is None else places[there])
        else:
            token = isinstance(item, Retry) and item.token is not None
            void = item.epoch != item.node.epoch
            yield (type(item).__name__, void, places.get(item.node, -1), token)


_kept: list[object] = []
_numbers: dict[object, int] = {}
_KEPT = (Child, Supervisor, Pool, Decider, BaseException)


def take(world: World) -> bytes:
    """The world as it is now; specs and deciders are kept as they are, exceptions as one of their kind."""
    file = io.BytesIO()
    _Pickler(file, protocol=5).dump(world)
    return file.getvalue()


def restore(taken: bytes) -> World:
    """A world of its own, as it was."""
    world: World = pickle.loads(taken)  # noqa: S301 - our own bytes, of a moment ago
    return world


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: object) -> Any:
        return (_recall, (_number(obj),)) if isinstance(obj, _KEPT) else NotImplemented


def _number(thing: object) -> int:
    """By which a thing is known in the bytes."""
    name = (type(thing), getattr(thing, "tag", None)) if isinstance(thing, BaseException) else id(thing)
    number = _numbers.setdefault(name, len(_kept))
    if number == len(_kept):
        _kept.append(thing)
    return number


def _recall(number: int) -> object:
    return _kept[number]
