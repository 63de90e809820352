"""A tree of bare machines, without tasks, a real clock, or the code of the driver; the caller provides the leaves."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any, Literal, TypeAlias

import outcome

from .. import errors, events
from .._core import effect
from .._core.forest import Forest
from .._core.machine import Machine, start_failed
from .._core.node import Node
from .._core.spec import IGNORE, Child, Pool, Supervisor
from .._core.status import Status

Verdict = Literal["resume", "release"]


class BareLeaf:
    """Plays one incarnation of a leaf: it receives orders, and reports to its machine.

    This class ends as soon as it is cancelled or its failure is decided, and does not drain.
    """

    def __init__(self, tree: BareTree, node: Node) -> None:
        self.tree = tree
        self.machine = tree.forest.machines[node.path.rpartition("/")[0]]
        self.node = node
        self.incarnation = node.incarnation

    def asked(self) -> None:
        """It is asked to stop, and may drain."""

    def cancel(self) -> None:
        """It is cancelled."""
        self.ended()

    def decide(self, verdict: Verdict) -> None:  # noqa: ARG002 - this class ends after any verdict
        """The verdict on its failure: resume its body, or leave its resource and end."""
        self.ended()

    def up(self) -> None:
        """Report that it is ready."""
        self.tree.post(self.machine, effect.Up(self.node.name, self.incarnation))

    def exited(
        self, exc: BaseException | None = None, value: object = None, *, resumable: bool = False
    ) -> None:
        """Report that its body is over; it then waits for `decide`."""
        exited = effect.Exited(self.node.name, self.incarnation, exc, value, resumable=resumable)
        self.tree.post(self.machine, exited)

    def ended(self, error: BaseException | None = None, *, ignored: bool = False) -> None:
        """Report that it has ended."""
        self.tree.post(self.machine, effect.Ended(self.node.name, self.incarnation, error, ignored))


Due: TypeAlias = tuple[float, int, Callable[[], None], Callable[[], bool]]
"""When, behind which others, what is to be done, and whether that still stands."""


def first(_: int) -> int:
    """The thing that was put down before the others."""
    return 0


class BareTree:
    """Real machines, a number as clock, and a queue of inputs.

    Args:
        spec: the root.
        part: makes what stands for the current incarnation of a leaf.
        saw: gets every event.
        u: what every backoff's jitter makes of itself, in [0, 1); 0.5 is none.
        pick: which of so many things that are due at one moment comes next, as an index; what comes out the same whatever it
            says was left to no schedule. By default the first, in the order in which they were put down.
    """

    def __init__(
        self,
        spec: Supervisor | Pool,
        leaf: Callable[[BareTree, Node], BareLeaf],
        sink: Callable[[events.Event], object],
        *,
        u: float = 0.5,
        pick: Callable[[int], int] = first,
    ) -> None:
        self.forest = Forest(spec)
        self.now = 0.0
        self.failure: errors.StartFailed | None = None
        self.leaves: dict[str, BareLeaf] = {}
        self._leaf = leaf
        self._sink = sink
        self._u = u
        self._due: list[Due] = []
        self._ticket = 0
        self._pick = pick
        self._wakes: dict[Machine, float] = {}
        self._inputs: deque[tuple[Machine, effect.Input]] = deque()

    def start(self) -> None:
        """Start the root. If its first start fails, `failure` is that error."""
        self._carry_out(self.forest.start(self.now))

    def run(self) -> None:
        """Run until the tree is over, or neither an input nor an action is left."""
        while not self.forest.over and (self._inputs or self._due):
            if self._inputs:
                self._carry_out(self.forest.handle(*self._inputs.popleft(), self.now, self._u))
            else:
                self._next()

    def _next(self) -> None:
        """One of the things that are due first; those that are void by now are none."""
        self.now = self._due[0][0]
        same: list[Due] = []
        while self._due and self._due[0][0] == self.now:
            one = heappop(self._due)
            if one[3]():
                same.append(one)
        chosen = same.pop(self._pick(len(same)) if len(same) > 1 else 0) if same else None
        for other in same:
            heappush(self._due, other)
        if chosen is not None:
            chosen[2]()

    def at(self, when: float, action: Callable[[], None], stands: Callable[[], bool] = lambda: True) -> None:
        """Have something done at a time, if it stands then."""
        self._ticket += 1
        if when < inf:
            heappush(self._due, (when, self._ticket, action, stands))

    def post(self, machine: Machine, item: effect.Input) -> None:
        """Queue an input. The outcome of a request is given to `set` of its token."""
        self._inputs.append((machine, item))

    def status(self) -> Status:
        """The status of the whole tree."""
        return self.forest.status(self.now)

    def _carry_out(self, effects: list[effect.Effect]) -> None:
        for one in effects:
            match one:
                case events.Event():
                    self._sink(one)
                case effect.Start():
                    self._start(one)
                case effect.WakeAt(path=path, at=at):
                    self._wake_at(self.forest.machines.get(path), at)
                case effect.Ask(path=path):
                    self.leaves[path].asked()
                case effect.Cancel(path=path):
                    self.leaves[path].cancel()
                case effect.Release(path=path):
                    self.leaves[path].decide("release")
                case effect.Resume(path=path):
                    self.leaves[path].decide("resume")
                case effect.ReportOverdue(path=path, incarnation=incarnation, seconds=seconds):
                    kind = events.StartOverdue if one.starting else events.Overdue
                    self._sink(kind(self.now, path, incarnation, seconds))
                case _:
                    self._answer(one)

    def _wake_at(self, machine: Machine | None, at: float) -> None:
        """A machine asks again for whatever is left when it is woken, so only its earliest time counts.

        None: it has ended within the step in which it asked.
        """
        if machine is None or at >= self._wakes.get(machine, inf):
            return
        self._wakes[machine] = at

        def wake() -> None:
            del self._wakes[machine]
            self.post(machine, effect.Wake())

        self.at(at, wake, lambda: self._wakes.get(machine) == at)

    def _answer(self, one: effect.Effect) -> None:
        """Answer the request of a caller, or note the end of the root. A bare tree has no addresses that an effect could change."""
        if isinstance(one, effect.Reply) and one.token is not None:
            one.token.set(outcome.Value(one.value) if one.error is None else outcome.Error(one.error))
        elif isinstance(one, effect.Rise) and isinstance(one.report, effect.Ended):
            failure = one.report.failure
            if one.path == self.forest.root.path and failure is not None:
                self.failure = start_failed(failure)

    def _start(self, one: effect.Start) -> None:
        if isinstance(one.spec, Child):
            node = self.forest.find(one.path)
            assert node is not None
            self.leaves[one.path] = self._leaf(self, node)
        elif one.path in self.forest.machines:  # otherwise it has ended within the step that started it
            self.post(self.forest.machines[one.path], _boot(one.spec))


def _boot(spec: Any) -> effect.Boot:
    try:
        return effect.Boot(ignored=spec.init is not None and spec.init() is IGNORE)
    except Exception as exc:  # noqa: BLE001 - any exception is a failed start (R16)
        return effect.Boot(problem=exc)
