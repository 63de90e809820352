"""Breadth first over every state of a family, so that the trace to a violation is a shortest one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from math import inf

from attrs import define, field, frozen

from supervise._core._code import as_code
from supervise._core.copying import copied
from supervise._core.effect import Request
from supervise._core.machine import Machine
from supervise._core.node import Node
from supervise._core.spec import Child, Pool, Supervisor

from .invariants import check
from .state import Key, key
from .world import BELOW, POLICY, Action, Task, World


@frozen(kw_only=True)
class Freedom:
    """What the environment may do.

    Args:
        failures: the kinds of failure of a leaf that has started.
        starts: the kinds of failure of a start; `ignored` is one too.
        requests: their kinds; the root alone is asked for `restart root`, and to `adopt` one of its other declarations.
        withdraws: the caller of a request may withdraw it.
        waiting: how many inputs may wait at one supervisor before no caller sends another.
        crossing: a stop may meet a report on its way.
        stop: a caller may stop the whole tree at any moment.
        errors: a child on its way out may fail.
        children: an `add` is made only while there are fewer.
    """

    failures: tuple[str, ...] = ("restart", "stop", "escalate")
    starts: tuple[str, ...] = ("restart", "ignored")
    requests: tuple[str, ...] = ()
    withdraws: bool = False
    waiting: int = 2
    crossing: bool = True
    stop: bool = True
    errors: bool = False
    children: int = 3


def actions(world: World, freedom: Freedom) -> Iterator[Action]:
    """All that may happen next."""
    for path, task in world.tasks.items():
        machine = world.machine_of(task.node)
        if machine is not None:
            yield from _supervisor(world, path, task, machine, freedom)
        else:
            yield from _leaf(world, path, task, freedom)
    if freedom.stop and not world.stopped and not world.forest.over:
        yield ("stop",)
    yield from _wakes(world)


def _wakes(world: World) -> Iterator[Action]:
    """The next timers due; one that has been overdue once need not be so again."""
    timers = sorted(world.timers(), key=lambda timer: timer[0])
    for at, machine, node in timers:
        if at == timers[0][0] and not node.waited:
            yield ("wake", machine.path)


def _supervisor(world: World, path: str, task: Task, machine: Machine, freedom: Freedom) -> Iterator[Action]:
    if task.mode == "opening":
        yield ("boot", path, "up")
        if machine.parent is not None:
            yield from (("boot", path, how) for how in freedom.starts)
    elif machine.phase in ("booting", "up") and len(machine.inbox) < freedom.waiting:
        yield from _requests(path, machine, freedom)
        yield from _adoptions(world, path, machine, freedom)
    elif machine.phase == "ending" and machine.parent is None and world.forest.restarting is not None:
        yield from _adoptions(world, path, machine, freedom)
    if freedom.withdraws:
        for place, item in enumerate(machine.inbox):
            if isinstance(item, Request) and not item.withdrawn:
                yield ("withdraw", path, str(place))


def _requests(path: str, machine: Machine, freedom: Freedom) -> Iterator[Action]:
    pool = isinstance(machine.spec, Pool)
    names = [*machine.children, *(() if pool or "extra" in machine.children else ("extra",))]
    for kind in freedom.requests:
        if kind == "add":
            if len(machine.children) < freedom.children:
                yield ("request", path, kind, "")
        elif kind == "status" or (kind == "restart root" and machine.parent is None):
            yield ("request", path, kind, "")
        elif kind not in ("restart root", "adopt"):
            yield from (("request", path, kind, name) for name in names)


def _adoptions(world: World, path: str, machine: Machine, freedom: Freedom) -> Iterator[Action]:
    """The root may adopt each of its other declarations, and a supervisor below then what its parent has adopted.

    One adoption begins when the one before is over, as in the driver.
    """
    if "adopt" not in freedom.requests or world.adopting:
        return
    if machine.parent is None:
        if any(each.spec is not each.node.spec for each in world.forest.machines.values()):
            return
        for number, spec in enumerate(world.declarations):
            if spec is not machine.node.spec:
                yield ("adopt", path, str(number))
    elif machine.spec is not machine.node.spec:
        yield ("adopt", path, "")


def _leaf(world: World, path: str, task: Task, freedom: Freedom) -> Iterator[Action]:
    began = task.crossing if task.mode == "stopping" else task.mode
    if task.mode in ("stopping", "leaving"):
        yield ("end", path)
        if freedom.errors:
            yield ("end", path, "late")
        if not freedom.crossing or task.mode == "leaving":
            return
    if began == "starting":
        yield ("up", path)
        yield from (
            ("fail", path, kind) if kind != "ignored" else ("ignore", path)
            for kind in _starts(world, task, freedom)
        )
    elif began == "up" and (task.mode == "stopping" or _room(world, task.node, freedom)):
        yield ("return", path)
        kinds = freedom.failures if task.mode == "up" else freedom.failures[:1]
        yield from (("fail", path, kind) for kind in kinds if _can(task.node, kind))


def _starts(world: World, task: Task, freedom: Freedom) -> tuple[str, ...]:
    """A failed first start is not judged: one kind of failure is enough there."""
    machine = world.above(task.node)
    assert machine is not None
    judged = task.mode == "starting" and (machine.phase == "up" or machine.parent is not None)
    return (
        freedom.starts if judged else tuple(kind for kind in freedom.starts if kind in ("restart", "ignored"))
    )


def _can(node: Node, kind: str) -> bool:
    """Without a resource there is nothing to keep."""
    owns = isinstance(node.spec, Child) and node.spec.resource is not None
    return owns or not kind.endswith(("free", "charged"))


def _room(world: World, node: Node, freedom: Freedom) -> bool:
    above = world.above(node)
    return above is not None and len(above.inbox) < freedom.waiting


@frozen
class Found:
    """A violation, and the shortest way to it. `specs`: the declaration that the tree opens with, and those that it may adopt."""

    specs: tuple[Supervisor | Pool, ...]
    trace: tuple[Action, ...]
    said: str

    def as_test(self) -> str:
        """A test that fails as long as the machine does this."""
        steps = "".join(f"        {action!r},\n" for action in self.trace)
        said = self.said.replace('"""', "'''")
        specs = ",\n        ".join(as_code(spec, width=100, indent=8) for spec in self.specs)
        for name, decider in (("POLICY", POLICY), ("BELOW", BELOW)):
            for width in (100, inf):
                specs = specs.replace(as_code(decider, width=width, indent=12), name)
        return _TEST.format(said=said, specs=specs, steps=steps)


_TEST = '''\
from supervise import Backoff, Child, Limit, Pool, Supervisor
from tests.explore.world import BELOW, POLICY, World, hold, work


def test_found():
    """{said}"""
    World(
        {specs}
    ).play(
{steps}    )
'''


@define
class Outcome:
    """What an exploration came to."""

    states: int = 0
    transitions: int = 0
    found: list[Found] = field(factory=list[Found])


class Explorer:
    """Visits every state that can be reached from some trees; states that they share are visited once.

    Args:
        specs: their declarations.
        freedom: what the environment may do.
        others: the declarations that each of them may adopt.
        most: it ends when so many violations have been found.
    """

    def __init__(
        self,
        specs: Iterable[Supervisor | Pool],
        freedom: Freedom,
        *,
        others: Sequence[Supervisor | Pool] = (),
        most: int = 5,
    ) -> None:
        self._specs = list(specs)
        self._others = tuple(others)
        self._freedom = freedom
        self._most = most
        self._from: list[tuple[int, Action | int]] = []
        self._seen: set[Key] = set()
        self._frontier: deque[tuple[int, World, list[Action]]] = deque()
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Explore until every state has been seen, or enough violations have been."""
        for number, spec in enumerate(self._specs):
            self._visit(World(spec, *self._others), -1, number)
        while self._frontier and len(self.outcome.found) < self._most:
            self._expand(*self._frontier.popleft())
        self.outcome.states = len(self._seen)
        return self.outcome

    def _expand(self, place: int, world: World, possible: list[Action]) -> None:
        last = len(possible) - 1
        for number, action in enumerate(possible):
            self.outcome.transitions += 1
            here = copied(world) if number < last else world
            try:
                here.do(action)
                self._visit(here, place, action)
            except Exception as exc:
                self._note(place, action, exc)

    def _visit(self, world: World, came_from: int, by: Action | int) -> None:
        """What holds in a state follows from its key, so that a state that was seen needs no second look."""
        here = key(world)
        if here in self._seen:
            return
        self._seen.add(here)
        check(world)
        self._from.append((came_from, by))
        if not world.forest.over:
            possible = list(actions(world, self._freedom))
            if possible:
                self._frontier.append((len(self._from) - 1, world, possible))

    def _note(self, place: int, action: Action, exc: Exception) -> None:
        trace: list[Action] = [action]
        by: Action | int = action
        while place >= 0:
            place, by = self._from[place]
            if not isinstance(by, int):
                trace.append(by)
        assert isinstance(by, int)
        self.outcome.found.append(
            Found((self._specs[by], *self._others), tuple(reversed(trace)), f"{type(exc).__name__}: {exc}")
        )
