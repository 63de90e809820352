"""All machines of one tree. A work list routes the reports and orders between them, never recursion.

The forest also emits the events of the root, which has no supervisor.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from attrs import evolve

from .. import events
from ..errors import Refused
from . import effect
from ._asked import asked
from .decide import ROOT
from .effect import Effect, Input
from .machine import Ledger, Machine, start_failed
from .node import Memory, Node
from .spec import Child, Pool, Spec, Supervisor
from .status import Status, Traffic, glances, no_traffic, picture

_ROUTED = frozenset({effect.Order, effect.Rise, effect.Fail, effect.Fatal})


class Forest:
    """The machines of one tree, and its root's node. `machines`: those that run, by their paths.

    `one_step`: whether a driver may use the one-step restart instead of `handle` (see `shortcut`). `restarting`: the request that
    has the root restarted, until it is up again.
    """

    one_step = True

    def __init__(self, spec: Supervisor | Pool) -> None:
        self.ledger = Ledger()
        self.machines = self.ledger.machines
        self.root = Node(spec, spec.name, ROOT)
        self.root.has_machine = True
        self.machines[spec.name] = Machine(self.root, self.ledger)
        self.over = False
        self.restarting: effect.Request | None = None

    def start(self, now: float) -> list[Effect]:
        """The effects that start the root; the driver then sends its `Boot`."""
        return self._start_root(now)

    def _start_root(self, now: float, reason: str | None = None) -> list[Effect]:
        root = self.root
        root.incarnation, root.alive = root.incarnation + 1, True
        root.state, root.since, root.ready_at = "starting", now, None
        starting = self._event(events.Starting, now, reason=reason)
        return [*starting, effect.Start(root.path, root.incarnation, root.spec)]

    def handle(self, machine: Machine, item: Input, now: float, u: float = 0.5) -> list[Effect]:
        """Handle one input of a machine. Returns the effects that the driver carries out, in order."""
        out: list[Effect] = []
        if machine.parent is None:
            if isinstance(item, effect.Request) and item.kind == "restart root":
                if self.root.state != "up":
                    return [self._refused(item)]
                self.restarting = item
                item = effect.Stop(asked(self.root.path, "restart", item.reason))
                out = self._root_stops(item.reason, now)
            elif isinstance(item, effect.Request) and item.kind == "adopt" and self.root_waits_for_its_end:
                assert item.spec is not None
                self.root.adopt(item.spec, ROOT, has_no_group=False)  # its next machine begins with it
                return [effect.Reply(item.token, self.root.path)]
            elif isinstance(item, effect.Stop):
                machine = self.machines[self.root.path]  # it may have waited behind the end of the one before
                out = [*self._give_up_restart(), *self._root_stops(item.reason, now)]
                item = evolve(item, for_good=True, why=self.root.why)
        results = machine.handle(item, now, u)
        if not out and _ROUTED.isdisjoint(map(type, results)):
            return results
        return self._route(machine, results, out, now, u)

    def _route(
        self, machine: Machine, results: list[Effect], out: list[Effect], now: float, u: float
    ) -> list[Effect]:
        """Deliver the reports and orders between machines until none is left; add the other effects to `out`."""
        work: deque[tuple[Machine, Input]] = deque()
        while True:
            for result in results:
                if isinstance(result, effect.Order):
                    work.append((self.machines[result.path], result.order))
                elif isinstance(result, effect.Rise):
                    self._rise(machine, result, now, work, out)
                else:
                    out.append(result)
                    if isinstance(result, effect.Fail):
                        out += self._root_stops(f"{self.root.path!r} failed", now)
                    if isinstance(result, effect.Fatal):
                        work.append(self._stop_all(machine, result.exc, now, out))
            if not work:
                return out
            machine, item = work.popleft()
            results = machine.handle(item, now, u)

    def _rise(
        self,
        machine: Machine,
        rise: effect.Rise,
        now: float,
        work: deque[tuple[Machine, Input]],
        out: list[Effect],
    ) -> None:
        parent = machine.parent
        if parent is not None:
            out.append(rise)
            work.append((parent, rise.report))
            return
        out += self._report(rise.report, now)
        out.append(rise)
        if isinstance(rise.report, effect.Ended) and self.restarting is not None:
            out += self._restart_root(now)

    def _report(self, report: effect.Up | effect.Exited | effect.Ended, now: float) -> list[Effect]:
        """The effects of a report of the root: what a supervisor of the root would emit."""
        root = self.root
        if isinstance(report, effect.Up):
            if root.state == "starting":
                root.state, root.since = "up", now
                root.ready_at = now
            return self._answer_restart(effect.Reply(None, root.path))
        assert isinstance(report, effect.Ended)
        out: list[Effect] = []
        root.alive = False
        if self.root_waits_for_its_end:
            return self._event(events.Stopped, now)
        root.state, root.since, self.over = "down", now, True
        answer = effect.Reply(None, root.path)
        if report.failure is not None:
            exc = report.failure.exc
            root.last_failure = root.why = exc
            root.failures += 1
            root.decision = (now, None, None, root.path, "first start")
            out = self._event(events.StartFailed, now) + self._event(events.Failed, now, exc=exc)
            details = {"directive": None, "by": root.path, "because": "first start", "exc": exc}
            out += self._event(events.Decided, now, **details)
            answer = effect.Reply(None, error=start_failed(report.failure))
        elif report.ignored:
            out = self._event(events.Ignored, now) + self._event(events.Returned, now)
        elif report.returned and root.why is None:  # no exception stopped it while it was about to return
            out = self._event(events.Returned, now)
        root.gone = True
        out += self._answer_restart(answer)
        return [*out, *self._event(events.Stopped, now), effect.Gone(root.path, root.why)]

    def _answer_restart(self, reply: effect.Reply) -> list[Effect]:
        """Answer the caller who has the root restarted, if there is one."""
        if self.restarting is None:
            return []
        reply.token, self.restarting = self.restarting.token, None
        return [reply]

    def _stop_all(
        self, machine: Machine, exc: BaseException, now: float, out: list[Effect]
    ) -> tuple[Machine, Input]:
        """Stop the whole tree because of an exception that is no `Exception` (R4)."""
        out += self._give_up_restart()
        root = self.root
        root.why = exc if root.why is None else root.why
        reason = f"{machine.path!r} reported a failure that is not an Exception"
        out += self._root_stops(reason, now)
        return self.machines[root.path], effect.Stop(reason, for_good=True, why=root.why)

    def _restart_root(self, now: float) -> list[Effect]:
        """Give the root a new machine, as a supervisor gives one to a child that is a supervisor (R25)."""
        assert self.restarting is not None
        self.machines[self.root.path] = Machine(self.root, self.ledger)
        return self._start_root(now, asked(self.root.path, "restart", self.restarting.reason))

    @property
    def root_waits_for_its_end(self) -> bool:
        """Whether the root is ending, and starts anew then."""
        return self.restarting is not None and self.root.state == "stopping"

    def _give_up_restart(self) -> list[Effect]:
        """Something stops the tree while its root is restarted: the caller is refused."""
        return [] if self.restarting is None else self._answer_restart(self._refused(self.restarting))

    def _refused(self, request: effect.Request) -> effect.Reply:
        state = self.root.state
        error = Refused(
            f"{self.root.path!r} is {state}", reason="restarting" if state == "starting" else "stopping"
        )
        return effect.Reply(request.token, error=error)

    def _root_stops(self, reason: str, now: float) -> list[Effect]:
        if self.root.state not in ("starting", "up"):
            return []
        self.root.state, self.root.since = "stopping", now
        return self._event(events.Stopping, now, reason=reason)

    def _event(self, cls: Callable[..., events.Event], now: float, **details: Any) -> list[Effect]:
        if not self.ledger.listening:
            return []
        root = self.root
        return [cls(at=now, path=root.path, incarnation=root.incarnation, **details)]

    def find(self, path: str) -> Node | None:
        """The node at a path; None unless it and every supervisor above it are in the tree."""
        if path == self.root.path:
            return self.root
        above, _, name = path.rpartition("/")
        machine = self.machines.get(above)
        return None if machine is None else machine.children.get(name)

    def nodes(self) -> list[Node]:
        """All nodes, parents first, in start order."""
        found: list[Node] = []
        waiting = [self.root]
        while waiting:
            found.append(waiting.pop())
            if found[-1].has_machine:
                waiting.extend(reversed(self.machines[found[-1].path].children.values()))
        return found

    def gone(
        self, path: str, *, ended: bool, failure: BaseException | None
    ) -> tuple[bool, BaseException | None]:
        """Whether the node is down for good, and why: it or a node above it is, and no automatic start is ahead (R29).

        The lowest node that is gone gives the reason; `ended` and `failure` are those of the whole tree. Below a supervisor
        that will start anew, a path is not gone if the spec declares it; a child still running there is reported when it ends.
        """
        found = self.find(path)
        if found is not None and not found.gone and not ended:
            return False, None
        node: Node = self.root
        above: Machine | None = None
        names = path.split("/")
        gone: tuple[bool, BaseException | None] = (ended, failure)
        for depth, name in enumerate(names[1:], 1):
            if node.gone:
                gone = True, node.why
            memory = node.memory
            machine = self.machines[node.path] if node.has_machine else None
            starts_again = machine is None or (above is not None and above.starts_again(node))
            if starts_again and not gone[0]:
                return not _declares(node.spec, names[depth:]), _left(memory, names[depth:], None)
            if machine is None:
                return True, _left(memory, names[depth:], gone[1])
            below = machine.children.get(name)
            if below is None:
                comes = not gone[0] and _declares_anew(node.spec, machine.spec, names[depth:])
                return not comes, _left(memory, [name], None)
            node, above = below, machine
        return (True, node.why) if node.gone else gone

    def status(self, now: float, traffic: Traffic = no_traffic) -> Status:
        """The status of the whole tree (R33)."""
        return picture(self.root, self.machines, now, traffic)

    def glances(
        self, now: float, traffic: Traffic
    ) -> Iterator[tuple[tuple[object, ...], Callable[[], Status]]]:
        """For each node what tells whether its status has changed, and how to make it: see `status.glances`."""
        return glances(self.root, self.machines, now, traffic)


def _left(
    memory: Memory | None, names: Sequence[str], otherwise: BaseException | None
) -> BaseException | None:
    """The failure with which the node of this name, or a node above it, left the tree; `otherwise` if none is remembered."""
    for name in names:
        if memory is None:
            break
        past = memory.left.get(name)
        if past is not None:
            return past.why
        declared = memory.declared.get(name)
        memory = None if declared is None else declared.memory
    return otherwise


def _declares_anew(spec: Spec, taken: Supervisor | Pool, names: Sequence[str]) -> bool:
    """Whether a supervisor is to start a node below it with these names when it takes `spec` in place of `taken` (R38)."""
    return spec is not taken and _declares(spec, names) and not _declares(taken, names[:1])


def _declares(spec: Spec, names: Sequence[str]) -> bool:
    """Whether `spec` declares a node below it with these names."""
    below: Spec | None = spec
    for name in names:
        if below is None or isinstance(below, Child):
            return False
        below = next((child for child in below.children if child.name == name), None)
    return below is not None
