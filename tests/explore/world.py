"""One tree of bare machines, and an environment that can do only what real tasks, callers and clocks could do."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, Literal

from supervise import events
from supervise._core import effect, shortcut
from supervise._core.copying import Made, copied_among, copies
from supervise._core.decide import Decider
from supervise._core.directive import Directive, Escalate, Restart, Resume, Stop
from supervise._core.effect import Effect, Input
from supervise._core.forest import Forest
from supervise._core.machine import Machine
from supervise._core.node import Node
from supervise._core.spec import Child, Pool, Supervisor
from supervise.testing.lifecycle import _LETTERS, _LIFE

from .invariants import check, demand
from .ways import hold_together

Action = tuple[str, ...]
Mode = Literal["opening", "running", "starting", "up", "kept", "parked", "stopping", "leaving"]

HERE = ("restart", "stop", "escalate", "resume.free", "resume.charged", "resume.lost")
ABOVE = tuple(f"up.{kind}" for kind in HERE)
TABLE: dict[str | type[BaseException], Directive] = {
    "restart": Restart,
    "stop": Stop,
    "escalate": Escalate,
    "resume": Resume,
}
POLICY = Decider({**TABLE, **{f"up.{tag}": directive for tag, directive in TABLE.items()}})
"""What the tag of a failure says is what its supervisor decides; `up.…` is for the supervisor above `BELOW`."""
BELOW = Decider({"up": Escalate, "limit": Escalate})
_NAMES = 12  # collapsed words are short


class Boom(Exception):
    """A failure; its tag names what becomes of it."""

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.tag = tag


class Fatal(BaseException):
    """What no decider decides (R4)."""

    tag = "fatal"


async def work(*_: object) -> None:
    """The body of a leaf; bare machines never run it."""


@asynccontextmanager
async def hold() -> AsyncGenerator[None]:
    """The resource of a leaf; bare machines never enter it."""
    yield


EXTRA = Child("extra", work, grace=float("inf"))
"""What an `add` adds."""


class Task:
    """One incarnation, as its own task knows it.

    `mode` of a leaf: `starting`, `up`, `kept` (suspended, its resource can be kept), `parked` (suspended), `stopping`
    (asked or cancelled), `leaving`. `crossing`: a report that it may still send, of what it did before the stop. `limit`: the one
    that a supervisor counts by.
    """

    __slots__ = ("crossing", "incarnation", "limit", "mode", "node")

    def __init__(self, node: Node, mode: Mode) -> None:
        self.node = node
        self.incarnation = node.incarnation
        self.mode: Mode = mode
        self.crossing: Literal["", "starting", "up"] = ""
        self.limit = node.spec.limit

    @property
    def is_over(self) -> bool:
        """Whether the body has failed or returned, and only the resource has still to be left."""
        return self.node.is_leaf and self.mode in ("kept", "parked", "leaving")


@cache
def _as_short(word: str) -> str:
    """A word that may be followed by the same: what an incarnation that is to end did before makes no difference."""
    word = word.replace("fdu", "").replace("oo", "o").replace("ww", "w")
    return "sp" if word.endswith(("p", "t", "xfd")) and _LIFE.fullmatch(f"{word}z") else word


class World:
    """A forest, its tasks, callers and clock. Plays one action at a time and checks what comes out.

    Args:
        spec: the declaration that it opens with.
        others: those that it may adopt.
    """

    def __init__(self, spec: Supervisor | Pool, *others: Supervisor | Pool) -> None:
        self.declarations = (spec, *others)
        self.forest = Forest(spec)
        self.now = 0.0
        self.tasks: dict[str, Task] = {}
        self.words: dict[str, str] = {}
        self.lives: dict[str, int] = {}
        self.wakes: dict[str, set[float]] = {}
        self.asked: set[int] = set()
        self.adopting: dict[int, tuple[str, Supervisor | Pool]] = {}
        self.tokens = 0
        self.charges: dict[str, int] = {}
        self.owing: set[str] = set()
        self.gone: set[str] = set()
        self.stopped = self.failed = False
        self.emitted: list[events.Event] | None = None
        self.carry_out(self.forest.start(self.now))

    def play(self, *actions: Action) -> World:
        """One action after the other, and every check after each."""
        for action in actions:
            self.do(action)
            check(self)
        return self

    def do(self, action: Action) -> None:
        """One action from outside of the machines. If the fast path is open for it, both paths are taken and compared."""
        if action[0] in ("fail", "up"):
            hold_together(self, action)
        self.act(action)

    def act(self, action: Action) -> None:
        """One action, on the general path."""
        _DO[action[0]](self, *action[1:])

    def handle(self, machine: Machine | None, item: Input) -> None:
        """Put one input in, and carry out what comes of it."""
        assert machine is not None
        self.carry_out(self.forest.handle(machine, item, self.now))
        for each in self.forest.machines.values():
            each.out = []  # done; nothing to copy

    def machine_of(self, node: Node) -> Machine | None:
        """That of a supervisor that runs."""
        return self.forest.machines[node.path] if node.has_machine else None

    def above(self, node: Node) -> Machine | None:
        """Its supervisor's; the root has none."""
        return self.forest.machines.get(node.path.rpartition("/")[0])

    def carry_out(self, effects: list[Effect]) -> None:
        """Carry out the effects as a driver does, and check what must never come out of a machine."""
        for one in effects:
            _CARRY_OUT[type(one)](self, one)
        if self.owing:
            self._pay()

    # --- the fast path

    def fails_at_once(self, node: Node, kind: str) -> bool:
        """The leaf fails on the fast path: the driver only starts its next incarnation. Returns whether the path was open."""
        exc = Boom(kind)
        machine = self.above(node)
        assert machine is not None
        effects = None if kind == "fatal" else shortcut.restart_at_once(machine, node, exc, self.now)
        if effects is None:
            return False
        del self.tasks[node.path]
        self.emitted = []
        self.carry_out([*effects, effect.Start(node.path, node.incarnation, node.spec)])
        return True

    def is_up_at_once(self, node: Node) -> bool:
        """The leaf comes up on the fast path. Returns whether the path was open."""
        machine = self.above(node)
        assert machine is not None
        effects = None if machine.fast_act is None else shortcut.up_at_once(machine, node, self.now)
        if effects is None:
            return False
        self.tasks[node.path].mode = "up"
        self.emitted = []
        self.carry_out(effects)
        return True

    # --- what supervisors, leaves, callers and the clock do

    def _boot(self, path: str, how: str) -> None:
        task = self.tasks[path]
        task.mode = "running"
        problem = None if how in ("up", "ignored") else Boom(how)
        self.handle(self.machine_of(task.node), effect.Boot(problem, ignored=how == "ignored"))

    def _up(self, path: str) -> None:
        task = self.tasks[path]
        if task.mode == "starting":
            task.mode = "up"
        task.crossing = "up" if task.crossing else ""
        self.handle(self.above(task.node), effect.Up(task.node.name, task.incarnation))

    def _ignore(self, path: str) -> None:
        self._leave(path, ignored=True)

    def _end(self, path: str, how: str = "") -> None:
        self._leave(path, error=Boom("late") if how else None)

    def _leave(self, path: str, **how: Any) -> None:
        task = self.tasks.pop(path)
        self.handle(self.above(task.node), effect.Ended(task.node.name, task.incarnation, **how))

    def _fail(self, path: str, kind: str) -> None:
        exc = Fatal() if kind == "fatal" else Boom(kind)
        self._exit(path, exc, resumable=kind.endswith(("free", "charged")), progressed="free" in kind)

    def _return(self, path: str) -> None:
        self._exit(path, None)

    def _exit(
        self, path: str, exc: BaseException | None, *, resumable: bool = False, progressed: bool = False
    ) -> None:
        task = self.tasks[path]
        task.mode = "kept" if resumable and not task.crossing else "parked"
        task.crossing = ""
        exited = effect.Exited(
            task.node.name, task.incarnation, exc, resumable=resumable, progressed=progressed
        )
        self.handle(self.above(task.node), exited)

    def _stop(self) -> None:
        self.stopped = True
        self.handle(self.machine_of(self.forest.root), effect.Stop("a caller wants it"))

    def _request(self, path: str, kind: Any, name: str) -> None:
        self.tokens += 1
        self.asked.add(self.tokens)
        machine = self.machine_of(self.tasks[path].node)
        assert machine is not None
        pool = isinstance(machine.spec, Pool)
        spec = EXTRA if kind == "add" and not pool else None
        self.handle(machine, effect.Request(kind, self.tokens, name=name or None, spec=spec))

    def _adopt(self, path: str, number: str) -> None:
        """A caller has a supervisor adopt a declaration: the root that of this number, another one what its parent has adopted."""
        self.tokens += 1
        self.asked.add(self.tokens)
        node = self.tasks[path].node
        machine = self.machine_of(node)
        assert machine is not None
        spec = node.spec if machine.parent is not None else self.declarations[int(number)]
        assert not isinstance(spec, Child)
        self.adopting[self.tokens] = path, spec
        self.handle(machine, effect.Request("adopt", self.tokens, spec=spec))

    def _withdraw(self, path: str, place: str) -> None:
        """The caller of the request that waits at this place gives up."""
        machine = self.machine_of(self.tasks[path].node)
        assert machine is not None
        request = machine.inbox[int(place)]
        assert isinstance(request, effect.Request)
        self.asked.discard(request.token)
        self.handle(machine, effect.Withdraw(request))

    def _wake(self, path: str) -> None:
        """The next time that this supervisor asked for has come."""
        for task in self.tasks.values():
            task.crossing = ""  # what was on its way has arrived by now
        wakes = self.wakes[path]
        self.now = max(self.now, min(wakes))
        self.wakes[path] = {at for at in wakes if at > self.now}
        self.handle(self.machine_of(self.tasks[path].node), effect.Wake())

    # --- what comes of it

    def _on_event(self, event: events.Event) -> None:
        if self.emitted is not None:
            self.emitted.append(event)
        word = self.words.get(event.path, "")
        if isinstance(event, events.BackingOff):
            demand(not word, event.path, "backs off in the middle of a life")
            return
        self._count(event, word)
        word = _as_short(word + _LETTERS[type(event)])
        if word.endswith("z"):
            demand(_LIFE.fullmatch(word), event.path, "did not live by the grammar:", word)
            word = ""
        demand(word[:1] in ("", "s") and len(word) < _NAMES, event.path, "did not live by the grammar:", word)
        demand(event.incarnation == self.lives[event.path], event.path, "reports another incarnation:", event)
        self.words[event.path] = word

    def _count(self, event: events.Event, word: str) -> None:
        """Count the restarts that a limit is charged with (R8, R14), by the events alone."""
        if isinstance(event, events.Starting):
            demand(not word, event.path, "starts in the middle of a life")
            demand(event.incarnation > self.lives.get(event.path, 0), event.path, "goes back to", event)
            self.lives[event.path] = event.incarnation
            self.charges[event.path] = 0
        elif isinstance(event, events.Decided) and event.directive in (Restart, Resume):
            self._decided(event, word)

    def _decided(self, event: events.Decided, word: str) -> None:
        if event.limit is not None:
            limit = self.tasks[event.by].limit
            assert limit is not None
            demand(self.charges[event.by] == limit.restarts, event.by, "passed its limit early")
        elif event.directive is Restart and "x" in word:
            self.owing.add("/".join(event.path.split("/")[: event.by.count("/") + 2]))
        elif event.directive is Restart or event.tag is None or "free" not in event.tag:
            self.charges[event.by] += 1

    def _on_start(self, one: effect.Start) -> None:
        node = self.forest.find(one.path)
        if (
            node is None
        ):  # the supervisor above has ended in this step too, so its own end is among these effects
            node = Node(one.spec, one.path, POLICY)
            node.incarnation = one.incarnation
            demand(not node.is_leaf, "a leaf below an ended supervisor:", one)
        demand(one.incarnation == node.incarnation and one.spec is node.spec, one.path, "is started as", one)
        demand(node.path not in self.tasks, "two incarnations of", node.path)
        machine = self.above(node)
        if machine is not None:
            demand(self.tasks[machine.path].mode == "running", node.path, "starts without its supervisor")
            self._check_turn(machine, node)
        self.gone.discard(node.path)
        if node.has_machine:
            # Its children are to be started anew. They are gone once more if it is stopped for good before that.
            self.gone = {path for path in self.gone if not path.startswith(f"{node.path}/")}
        self.tasks[node.path] = Task(node, "starting" if node.is_leaf else "opening")

    def _check_turn(self, machine: Machine, node: Node) -> None:
        """A child starts only when the one before is up, and no child is being stopped by an order (R12)."""
        for other in machine.children.values():
            if other is not node and not isinstance(machine.spec, Pool):
                task = self.tasks.get(other.path)
                mode = "" if task is None else task.mode
                demand(mode not in ("starting", "opening", "stopping"), node.path, "starts beside", other)

    def _pay(self) -> None:
        """A retry of a start is one charge when it is made, and none if it is void by then (R14)."""
        for path in list(self.owing):
            above, _, name = path.rpartition("/")
            machine = self.machine_of(self.tasks[above].node)
            assert machine is not None
            node, act = machine.children.get(name), machine.act
            mine = act is not None and act.node is node
            if node is not None and node.retry_charged:
                self.charges[above] += (
                    1  # it was due, and now waits on with a sibling whose group it takes along
                )
            elif act is not None and mine and act.kind == "restart":
                self.charges[above] += act.token is None
            elif mine or (
                node is not None and node.state in ("failed", "stopping", "releasing", "restarting")
            ):
                continue
            self.owing.discard(path)

    def _on_ask(self, one: effect.Ask) -> None:
        task = self._meant(one)
        demand(task.mode == "up", "asked while", task.mode)
        self._order(task.node)

    def _on_cancel(self, one: effect.Cancel) -> None:
        self._order(self._meant(one).node)

    def _meant(self, one: effect.Ask | effect.Cancel | effect.Release | effect.Resume) -> Task:
        """The task that an effect is for."""
        task = self.tasks[one.path]
        demand(task.incarnation == one.incarnation, one.path, "is not the one that is meant:", one)
        return task

    def _order(self, node: Node) -> None:
        """A running leaf is to stop."""
        task = self.tasks[node.path]
        demand(task.mode not in ("kept", "parked"), node.path, "cancelled while it waits for a verdict")
        if task.mode in ("starting", "up"):
            self._check_stop(node)
            task.crossing = "starting" if task.mode == "starting" else "up"
            task.mode = "stopping"

    def _check_stop(self, node: Node) -> None:
        """Stops go one by one, and in reverse (R12)."""
        machine = self.above(node)
        if machine is None or isinstance(machine.spec, Pool) or node.timed_out:
            return
        act, after = machine.act, False
        for other in machine.children.values():
            there = other.path in self.tasks
            ordered = there and other is not node and self._ordered(other)
            demand(not ordered, node.path, "is stopped beside", other)
            if act is not None and act.kind in ("end", "restart", "retry") and act.node is not node:
                demand(not (after and there), node.path, "is stopped before", other)
            after = after or other is node

    def _ordered(self, node: Node) -> bool:
        return self.tasks[node.path].mode == "stopping" or (node.has_machine and node.state == "stopping")

    def _on_release(self, one: effect.Release) -> None:
        task = self._meant(one)
        demand(task.mode in ("kept", "parked"), one.path, "released while", task.mode)
        task.mode = "leaving"

    def _on_resume(self, one: effect.Resume) -> None:
        task = self._meant(one)
        demand(task.mode == "kept", one.path, "resumed while", task.mode)
        task.mode = "up"

    def _on_overdue(self, one: effect.ReportOverdue) -> None:
        kind = events.StartOverdue if one.starting else events.Overdue
        self._on_event(kind(self.now, one.path, one.incarnation, one.seconds))

    def _on_wake_at(self, one: effect.WakeAt) -> None:
        self.wakes.setdefault(one.path, set()).add(one.at)

    def _on_reply(self, one: effect.Reply) -> None:
        demand(one.token in self.asked, "answered twice or never asked:", one.token)
        self.asked.discard(one.token)
        if (adopted := self.adopting.pop(one.token, None)) is not None and one.error is None:
            self._adopted(*adopted)

    def _adopted(self, path: str, spec: Supervisor | Pool) -> None:
        """After an adoption a supervisor has the declaration, its children in the declared order, and a new limit unused (R38)."""
        machine, task = self.forest.machines[path], self.tasks[path]
        demand(task.node.spec is spec, path, "has another declaration")
        if machine.phase == "ending":
            return  # its next incarnation begins with the declaration
        demand(machine.spec is spec, path, "goes by another declaration")
        declared = {child.name: child for child in spec.children}
        order = [name for name in declared if name in machine.children]
        demand(list(machine.children)[: len(order)] == order, path, "has its children in another order")
        for name in order:
            demand(
                machine.children[name].spec is declared[name], machine.children[name], "keeps its declaration"
            )
        if spec.limit != task.limit:
            task.limit, self.charges[path] = spec.limit, 0

    def _on_gone(self, one: effect.Gone) -> None:
        path, node = one.path, self.forest.find(one.path)
        above = self.forest.machines.get(path.rpartition("/")[0])
        # A start of its was pending meanwhile, perhaps by the strategy of an earlier declaration.
        revivable = above is not None and (above.spec.strategy != "one_for_one" or len(self.declarations) > 1)
        demand(one.removed or revivable or path not in self.gone, path, "is gone twice")
        task = self.tasks.get(path)
        demand(task is None or task.is_over or task.node is self.forest.root, path, "is gone but runs")
        demand(node is None or node.state != "restarting", path, "is gone while its start is pending")
        self.gone.add(path)
        if one.removed:
            self.gone.discard(path)

    def _on_fail(self, _: effect.Fail) -> None:
        demand(not self.failed, "the tree fails twice")
        self.failed = True

    def _on_fatal(self, one: effect.Fatal) -> None:
        demand(isinstance(one.exc, Fatal), "no Exception:", one.exc)

    def _on_rise(self, one: effect.Rise) -> None:
        if isinstance(one.report, effect.Ended):
            path = one.path
            del self.tasks[path]
            self.wakes.pop(path, None)
            below = [other for other in self.tasks if other.startswith(f"{path}/")]
            demand(not below, below, "run after the end of", path)
            self.owing = {other for other in self.owing if not other.startswith(f"{path}/")}

    def timers(self) -> Iterator[tuple[float, Machine, Node]]:
        """Every timer that still counts."""
        for machine in self.forest.machines.values():
            for at, ticket, node in machine.timers._heap:
                if node.timer == ticket:
                    yield at, machine, node


@copies(World)
def _copy_world(world: World, made: Made) -> World:
    made[id(world)] = copy = World.__new__(World)
    vars(copy).update(vars(world))
    copy.forest = copied_among(world.forest, made)
    copy.tasks = {path: _copy_task(task, made) for path, task in world.tasks.items()}
    copy.wakes = {path: wakes.copy() for path, wakes in world.wakes.items()}
    copy.emitted = None
    for name in ("words", "lives", "asked", "adopting", "charges", "owing", "gone"):
        setattr(copy, name, getattr(world, name).copy())
    return copy


def _copy_task(task: Task, made: Made) -> Task:
    copy = Task(made[id(task.node)], task.mode)
    copy.incarnation, copy.crossing, copy.limit = task.incarnation, task.crossing, task.limit
    return copy


_DO: dict[str, Callable[..., None]] = {
    "boot": World._boot,
    "up": World._up,
    "ignore": World._ignore,
    "end": World._end,
    "fail": World._fail,
    "return": World._return,
    "stop": World._stop,
    "request": World._request,
    "adopt": World._adopt,
    "withdraw": World._withdraw,
    "wake": World._wake,
}
_CARRY_OUT: dict[type[Any], Callable[[World, Any], None]] = {
    **dict.fromkeys(events.KINDS, World._on_event),
    effect.Start: World._on_start,
    effect.Ask: World._on_ask,
    effect.Cancel: World._on_cancel,
    effect.Release: World._on_release,
    effect.Resume: World._on_resume,
    effect.ReportOverdue: World._on_overdue,
    effect.WakeAt: World._on_wake_at,
    effect.Reply: World._on_reply,
    effect.Gone: World._on_gone,
    effect.Fail: World._on_fail,
    effect.Fatal: World._on_fatal,
    effect.Rise: World._on_rise,
}
