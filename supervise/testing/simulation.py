"""What a tree would do under a fault plan, found without running any of its code.

The machines that decide are the real ones; children that do nothing but what their scripts say are played by generators.
Nothing is shared with what runs a real tree, so that each can be held against the other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from math import inf
from typing import Any, Literal

from .. import errors, events
from .._core import effect
from .._core._brief import brief
from .._core._check import check_number
from .._core.node import Node
from .._core.spec import IGNORE, Child, Pool, Supervisor
from .bare import BareTree, Part, Verdict, first
from .faults import Act, Fail, FaultPlan, Hang, Return, Script, checked_spec

Wait = tuple[Literal["open", "shielded", "parked"], float]
"""How a child waits, and until when: an open wait ends when it is cancelled, a parked one when it is told a verdict."""
Steps = Generator[Wait, str, Any]


def simulate(
    spec: Supervisor | Pool, plan: FaultPlan | None = None, *, stop_at: float = 3600.0, u: float = 0.5
) -> list[events.Event]:
    """All events of a tree whose children are idle but for the scripts of `plan`, from time 0 until it has stopped.

    Bodies, resources and messages of the real tree play no part, and `Overdue` has no stack. What happens at one and
    the same time in parts of the tree that do not wait for each other has an order here, but another in a real run.

    Args:
        spec: a tree, without the plan over it.
        plan: what goes wrong; None is nothing.
        stop_at: when the tree is stopped, if it is still there, in seconds.
        u: what every backoff's jitter makes of itself, in [0, 1); 0.5 is none.

    Raises:
        ValueError: the plan does not fit the tree, see `FaultPlan.over`.
    """
    checked_spec(spec, "simulate", Supervisor, Pool)
    if plan is None:
        plan = FaultPlan()
    elif not isinstance(plan, FaultPlan):
        raise TypeError(f"simulate takes a FaultPlan, got {brief(plan)}")
    plan.check(spec)
    check_number("stop_at", stop_at, least=0, finite=True)
    if check_number("u", u, least=0) and not u < 1:
        raise ValueError(f"u must be < 1, got {brief(u)}")
    world = _World(spec, plan, u)
    world.at(stop_at, world.stop)
    world.run()
    return world.seen


class _World(BareTree):
    """A bare tree whose children do what their scripts say."""

    def __init__(
        self, spec: Supervisor | Pool, plan: FaultPlan, u: float, *, pick: Callable[[int], int] = first
    ) -> None:
        self.seen: list[events.Event] = []
        super().__init__(spec, partial(_Player, self), self.seen.append, u=u, pick=pick)
        self.plan = plan

    def run(self) -> None:
        """From its start."""
        self.start()
        super().run()

    def stop(self) -> None:
        """Whoever opened the tree leaves it."""
        self.post(self.forest.machines[self.forest.root.path], effect.Stop("the block of open_tree was left"))


class _Cancelled(BaseException):
    """What an open wait ends with."""


class _Player(Part):
    """One incarnation of a child."""

    def __init__(self, world: _World, tree: BareTree, node: Node) -> None:
        assert isinstance(node.spec, Child)
        super().__init__(tree, node)
        self.world = world
        self.spec = node.spec
        self.script: Script = world.plan.script(node.path, node.incarnation)
        self.ready = self.stopping = self.cancelled = self.reported = self.ignored = False
        self.entries = 0
        self.verdict: str | None = None
        self.failure: BaseException | None = None
        self.error: BaseException | None = None
        self._wait: Wait = ("shielded", inf)
        self._turn = 0
        self._life = self._live()
        self._go_on_at(world.now, "")

    # --- what it is told

    def asked(self) -> None:
        """It may drain."""
        self.stopping = True
        self._tell("open", "asked")

    def cancel(self) -> None:
        """An open wait ends, now and from now on."""
        self.stopping = self.cancelled = True
        self._tell("open", "cancelled")

    def decide(self, verdict: Verdict) -> None:
        """The failure that it waits with is decided."""
        self.verdict = verdict
        self._tell("parked", "decided")

    def _tell(self, waiting: str, told: str) -> None:
        if self._wait[0] == waiting:
            self._go_on_at(self.world.now, told)

    def _go_on_at(self, when: float, told: str) -> None:
        """Unless something else lets it go on before."""
        turn = self._turn
        self.world.at(when, lambda: self._go_on(told), lambda: self._turn == turn)

    def _go_on(self, told: str) -> None:
        """Up to its next wait, which time ends too."""
        self._turn += 1
        self._wait = ("shielded", inf)
        try:
            self._wait = next(self._life) if self._turn == 1 else self._life.send(told)
        except StopIteration:
            return
        self._go_on_at(self._wait[1], "time")

    # --- waits

    def _open(self, until: float) -> Steps:
        """Until a time; gives what it was told before."""
        if self.cancelled:
            raise _Cancelled
        told = yield ("open", until)
        if told == "cancelled":
            raise _Cancelled
        return told

    def _shielded(self, until: float) -> Steps:
        while self.world.now < until:
            yield ("shielded", until)

    def _do(self, act: Act | None, wait: Callable[[float], Steps]) -> Steps:
        """An act from its beginning; what a Return returns."""
        until = (
            self.world.now if act is None else inf if isinstance(act, Hang) else self.world.now + act.after
        )
        while self.world.now < until:
            yield from wait(until)
        return _result(act)

    # --- its life

    def _live(self) -> Steps:
        yield from self._plain() if self.spec.resource is None else self._with_resource()
        self.ended(self.error, ignored=self.ignored)

    def _plain(self) -> Steps:
        exc = value = None
        try:
            value = yield from self._body()
        except BaseException as caught:  # noqa: BLE001 - as a real leaf reports
            exc = caught
        yield from self._over(exc, value, resumable=False)

    def _with_resource(self) -> Steps:
        left = value = None
        try:
            yield from self._do(self.script.enter, self._open)
            try:
                value = yield from self._use()
            finally:
                yield from self._do(self.script.leave, self._shielded)
        except BaseException as caught:  # noqa: BLE001 - likewise
            left = caught
        if not (self.reported or self.stopping):
            yield from self._over(left, value, resumable=False)
        elif left is not self.failure and not isinstance(left, _Cancelled | None):
            self.error = left

    def _use(self) -> Steps:
        while True:
            exc = value = None
            try:
                value = yield from self._body()
            except BaseException as caught:  # noqa: BLE001 - likewise
                exc = caught
            returned = exc is None and (self.spec.restart != "permanent" or value is IGNORE)
            if returned and not self.stopping:
                return value
            if not (yield from self._over(exc, value, resumable=True)):
                if self.failure is not None or not self.stopping:
                    exc = self.failure
                if exc is not None:
                    raise exc
                return value

    def _body(self) -> Steps:
        """The body, once; where it is cancelled, what its script says of that."""
        try:
            if not self.ready:
                value = yield from self._do(self.script.start, self._open)
                if isinstance(self.script.start, Return):
                    return value
                self._up()
            return (yield from self._run())
        except _Cancelled as cancelled:
            left = cancelled
        value = yield from self._do(self.script.stop, self._shielded)
        if isinstance(self.script.stop, Return):
            return value
        raise left

    def _up(self) -> None:
        self.ready = True
        self.up()

    def _run(self) -> Steps:
        """Idle, but for its script: until the act of this entry, or until it has drained."""
        act: Act | None = self.script.entry(self.entries)
        self.entries += 1
        due = inf if act is None else self.world.now + act.after
        drained = inf
        while self.world.now < min(due, drained):
            told = yield from self._open(min(due, drained))
            if told == "asked" and self.script.drain is not None:
                drained = self.world.now + self.script.drain.after
        final = self.script.drain if drained <= self.world.now else act
        while isinstance(final, Hang):
            yield from self._open(inf)
        return _result(final)

    def _over(self, exc: BaseException | None, value: Any, *, resumable: bool) -> Steps:
        """Report, and wait for the verdict; whether it is to resume."""
        self.failure = exc = self._as_failure(exc, value)
        if self.stopping:
            self.error = exc
        if self.stopping or self.ignored:
            return False
        self.reported = True
        self.exited(exc, value, resumable=resumable)
        while self.verdict is None:
            yield ("parked", inf)
        verdict, self.verdict = self.verdict, None
        self.reported = verdict == "release"
        return verdict == "resume"

    def _as_failure(self, exc: BaseException | None, value: Any) -> BaseException | None:
        if isinstance(exc, _Cancelled):
            return None
        if exc is None and not self.ready and not self.stopping:
            self.ignored = value is IGNORE
            if not self.ignored:
                return errors.StartReturned(
                    f"child {self.node.path!r} returned {value!r} before it was ready"
                )
        return exc


def _result(act: Act | None) -> Any:
    """What an act comes to once its time has come."""
    if isinstance(act, Fail):
        raise act.fresh()
    return act.value if isinstance(act, Return) else None
