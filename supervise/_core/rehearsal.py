"""What a request would do, played on a copy of the machines: the tree itself does not change (R25)."""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

from attrs import frozen

from .. import errors, events
from . import effect
from ._asked import asked
from .copying import Made, copied_among
from .effect import Effect, Input
from .forest import Forest
from .machine import Machine
from .spec import Child


@frozen
class Step:
    """One step of a plan.

    Args:
        do: `stop` or `start`.
        path: the node that is stopped or started.
    """

    do: Literal["stop", "start"]
    path: str


def rehearse(forest: Forest, verb: Literal["stop", "start", "restart"], path: str, now: float) -> list[Step]:
    """The steps of a request in order, if every child starts and ends as it is asked to.

    What is under way at the supervisor is played first, since the request would wait for it; a failure that waits for its verdict
    is decided then, by the deciders of the tree. Those steps are not in the result.

    Raises:
        Refused: the request would be refused.
    """
    play = _Play(_copied(forest), now)
    play.finish_what_is_under_way()
    play.steps.clear()
    above, _, name = path.rpartition("/")
    root = play.forest.root
    if path == root.path and verb == "stop":
        play.give(play.forest.machines[path], effect.Stop(asked(path, "stop")))
        return play.steps
    machine = play.forest.machines.get(above or path)
    if machine is None or (path == root.path and verb == "start"):
        raise errors.Refused(f"the supervisor of {path!r} is not running", reason="not_found")
    play.give(machine, effect.Request(verb if above else "restart root", _MINE, name=name))
    if play.refusal is not None:
        raise play.refusal
    return play.steps


def _copied(forest: Forest) -> Forest:
    """A plain forest in the same state: one that records what it does would record the rehearsal too."""
    made: Made = {}
    plain = Forest.__new__(Forest)
    plain.ledger = copied_among(forest.ledger, made)
    plain.machines = plain.ledger.machines
    plain.root = copied_among(forest.root, made)
    plain.over = forest.over
    plain.restarting = copied_among(forest.restarting, made)
    return plain


_MINE = object()
"""The token of the rehearsed request: nothing else answers to it."""


class _Play:
    """Real machines, whose children do at once what they are asked to."""

    def __init__(self, forest: Forest, now: float) -> None:
        forest.ledger.listening = True
        self.forest = forest
        self.steps: list[Step] = []
        self.refusal: Exception | None = None
        self._now = now
        self._inputs: deque[tuple[Machine, Input]] = deque()

    def give(self, machine: Machine, item: Input) -> None:
        """Have the machine handle an input, then the answers of the children, until none is left."""
        self._inputs.append((machine, item))
        while self._inputs:
            for one in self.forest.handle(*self._inputs.popleft(), self._now):
                self._carry_out(one)

    def finish_what_is_under_way(self) -> None:
        """Children that start become ready, and those that are stopped end."""
        for node in self.forest.nodes():
            machine = self.forest.machines.get(node.path.rpartition("/")[0])
            if machine is None or not node.alive:
                continue
            if node.has_machine:
                if self.forest.machines[node.path].phase == "opening":
                    self.give(self.forest.machines[node.path], effect.Boot())
            elif node.state == "starting":
                self.give(machine, effect.Up(node.name, node.incarnation))
            elif node.leaving:
                self.give(machine, effect.Ended(node.name, node.incarnation))

    def _carry_out(self, one: Effect) -> None:
        match one:
            case events.Starting(path=path):
                self.steps.append(Step("start", path))
            case events.Stopped(path=path):
                self.steps.append(Step("stop", path))
            case effect.Start():
                self._start(one)
            case effect.Ask() | effect.Cancel() | effect.Release():
                self._answer(one, effect.Ended)
            case effect.Reply(token=token, error=error) if token is _MINE:
                self.refusal = error
            case _:
                pass

    def _start(self, one: effect.Start) -> None:
        if isinstance(one.spec, Child):
            self._answer(one, effect.Up)
        elif one.path in self.forest.machines:  # otherwise it has ended within the step that started it
            self._inputs.append((self.forest.machines[one.path], effect.Boot()))

    def _answer(self, one: Any, report: type[effect.Up | effect.Ended]) -> None:
        above, _, name = one.path.rpartition("/")
        self._inputs.append((self.forest.machines[above], report(name, one.incarnation)))
