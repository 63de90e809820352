"""Predicts the events of a tree under a fault plan, without running any of its code.

The machines are the real ones. Generators play the children, which do nothing but follow their scripts. They share no code
with the driver and the leaf of a real tree, so that the two can be compared.
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
from .bare import BareLeaf, BareTree, Verdict, first
from .faults import Act, Fail, FaultPlan, Hang, Return, Script, checked_spec

Wait = tuple[Literal["open", "shielded", "parked"], float]
"""How a child waits, and until when: a cancel ends an open wait, a verdict a parked one."""
Steps = Generator[Wait, str, Any]


def simulate(
    spec: Supervisor | Pool, plan: FaultPlan | None = None, *, stop_at: float = 3600.0, u: float = 0.5
) -> list[events.Event]:
    """All events of a tree whose children only follow the scripts of `plan`, from time 0 until it has stopped.

    The bodies, resources and messages of the real tree do not run, and an `Overdue` has no stack. Events at the same time in
    branches that do not wait for each other have one order here, and may have another in a real run.

    Args:
        spec: a tree, without the plan over it.
        plan: the faults; None for none.
        stop_at: the time in seconds at which the tree is stopped, if it has not ended; 0 or more, finite.
        u: the random number for the jitter of every backoff, in [0, 1); 0.5 means no jitter.

    Raises:
        ValueError: the plan does not fit the tree, see `FaultPlan.over`; or a number is out of range.
        TypeError: an argument is of another type.
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
    """A bare tree whose children follow their scripts."""

    def __init__(
        self, spec: Supervisor | Pool, plan: FaultPlan, u: float, *, pick: Callable[[int], int] = first
    ) -> None:
        self.seen: list[events.Event] = []
        super().__init__(spec, partial(_Player, self), self.seen.append, u=u, pick=pick)
        self.plan = plan

    def run(self) -> None:
        """Run it from its start."""
        self.start()
        super().run()

    def stop(self) -> None:
        """Stop it, as the end of the block of `open_tree` does."""
        self.post(self.forest.machines[self.forest.root.path], effect.Stop("the block of open_tree was left"))


class _Cancelled(BaseException):
    """Raised in an open wait by a cancel."""


class _Player(BareLeaf):
    """Plays one incarnation of a child."""

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

    # --- orders

    def asked(self) -> None:
        """It is asked to stop, and may drain."""
        self.stopping = True
        self._deliver("open", "asked")

    def cancel(self) -> None:
        """End the present open wait and every later one."""
        self.stopping = self.cancelled = True
        self._deliver("open", "cancelled")

    def decide(self, verdict: Verdict) -> None:
        """Its failure is decided."""
        self.verdict = verdict
        self._deliver("parked", "decided")

    def _deliver(self, waiting: str, order: str) -> None:
        if self._wait[0] == waiting:
            self._go_on_at(self.world.now, order)

    def _go_on_at(self, when: float, reason: str) -> None:
        """Go on at a time, unless another order makes it go on before."""
        turn = self._turn
        self.world.at(when, lambda: self._go_on(reason), lambda: self._turn == turn)

    def _go_on(self, reason: str) -> None:
        """Run up to its next wait, which ends at its time at the latest."""
        self._turn += 1
        self._wait = ("shielded", inf)
        try:
            self._wait = next(self._life) if self._turn == 1 else self._life.send(reason)
        except StopIteration:
            return
        self._go_on_at(self._wait[1], "time")

    # --- waits

    def _open(self, until: float) -> Steps:
        """Wait until a time, or an order before it; returns the reason why the wait ended."""
        if self.cancelled:
            raise _Cancelled
        reason = yield ("open", until)
        if reason == "cancelled":
            raise _Cancelled
        return reason

    def _shielded(self, until: float) -> Steps:
        while self.world.now < until:
            yield ("shielded", until)

    def _do(self, act: Act | None, wait: Callable[[float], Steps]) -> Steps:
        """Perform an act from its beginning. Returns the value of a Return."""
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
        except BaseException as caught:  # noqa: BLE001 - as a real leaf reports
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
            except BaseException as caught:  # noqa: BLE001 - as a real leaf reports
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
        """Run the body once; if it is cancelled, perform the `stop` of its script."""
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
        """Idle until the act of this entry is due, or until the drain of its script is over."""
        act: Act | None = self.script.entry(self.entries)
        self.entries += 1
        due = inf if act is None else self.world.now + act.after
        drained = inf
        while self.world.now < min(due, drained):
            reason = yield from self._open(min(due, drained))
            if reason == "asked" and self.script.drain is not None:
                drained = self.world.now + self.script.drain.after
        final = self.script.drain if drained <= self.world.now else act
        while isinstance(final, Hang):
            yield from self._open(inf)
        return _result(final)

    def _over(self, exc: BaseException | None, value: Any, *, resumable: bool) -> Steps:
        """Report that the body is over, and wait for the verdict. Returns whether it is Resume."""
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
    """The outcome of an act whose `after` seconds have passed."""
    if isinstance(act, Fail):
        raise act.fresh()
    return act.value if isinstance(act, Return) else None
