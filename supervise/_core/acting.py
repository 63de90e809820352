"""The steps that every act of a supervisor is made of: stop one child, wait for it, end. A start makes a machine, see there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappush
from typing import TYPE_CHECKING, Any, Literal, cast

from .. import errors, events
from . import effect
from .act import Act, Ledger, Waiting
from .directive import Directive
from .effect import Effect, Failure, Request
from .limit import ReadyTime, Window
from .node import Memory, Node, Past
from .spec import Child, Pool, Spec, Supervisor

_FEW_TIMERS = 64  # fewer are not worth sifting


if TYPE_CHECKING:
    from .machine import Machine


class Acting:
    """A supervisor's state, and what it can do with one child."""

    def __init__(self, node: Node, ledger: Ledger) -> None:
        assert not isinstance(node.spec, Child)
        self.node = node
        self.spec: Supervisor | Pool = node.spec
        self.path = node.path
        self.ledger = ledger
        self.children: dict[str, Node] = {}
        for spec in self.spec.children:
            self._join(spec)
        self.inbox: deque[Waiting] = deque()
        self.act: Act | None = None
        self.releasing: dict[Node, Act] = {}  # the act of each that begins once it has ended
        self.phase: Literal["opening", "booting", "up", "ending", "ended"] = "opening"
        self.window = None if self.spec.limit is None else Window(self.spec.limit)
        self.now = 0.0
        self.u = 0.0
        self.out: list[Effect] = []
        self._timers: list[tuple[float, int, Node]] = []
        self._ticket = 0
        limit = self.spec.limit
        self._ready_time = ReadyTime() if limit is not None and limit.of_ready_time else None

    def _emit(self, cls: Callable[..., events.Event], node: Node, **details: Any) -> None:
        if self.ledger.listening:
            self.out.append(cls(at=self.now, path=node.path, incarnation=node.incarnation, **details))

    def _join(self, spec: Spec) -> Node:
        node = Node(spec, f"{self.path}/{spec.name}", cast("Machine", self), self.node.decider)
        if self.node.memory is not None:
            self.node.memory.recall(node)
        self.children[spec.name] = node
        return node

    def _memory(self) -> Memory:
        """What this supervisor remembers; made when there is something."""
        if self.node.memory is None:
            self.node.memory = Memory()
        return self.node.memory

    def _leave(self, node: Node, why: BaseException | None) -> None:
        """The node leaves the tree."""
        if self.children.get(node.name) is node:
            del self.children[node.name]
        self._mend(node, mending=False)
        node.epoch += 1
        node.state = "down"
        self._lose(node, why)

    def _lose(self, node: Node, why: BaseException | None) -> None:
        """Only memory knows of the node from now on; not of a member whose name will not come again."""
        if not node.dynamic:
            self._memory().leave(node, why)
        node.gone, node.why = True, why
        self.out.append(effect.Gone(node, why, removed=True))

    def _down(self, node: Node, state: Literal["down", "condemned"], why: BaseException | None) -> None:
        """The node is down, and for good, unless a retry that is due will revive it with its group (R13, R29)."""
        if node.temporary or isinstance(self.spec, Pool):
            self._leave(node, why)
            return
        self._mend(node, mending=False)
        node.state = state
        if not node.gone and (state == "condemned" or not self._will_be_revived(node)):
            node.gone, node.why = True, why
            self.out.append(effect.Gone(node, why))

    def _will_be_revived(self, node: Node) -> bool:
        """Whether a sibling waits for a retry that starts this child too."""
        if self.spec.strategy == "one_for_one":
            return False
        for other in self.children.values():
            if other is not node and other.state == "restarting":
                return True
            if other is node and self.spec.strategy == "rest_for_one":
                break
        return False

    def _decided(
        self,
        failure: Failure,
        directive: Directive | None,
        because: events.Because = "table",
        **details: Any,
    ) -> None:
        if self.ledger.listening:
            node = failure.origin
            where = (self.now, node.path, node.incarnation)
            decided = events.Decided(
                *where, directive, self.path, failure.exc, because, failure.tag, **details
            )
            self.out.append(decided)

    def _refuse(self, token: Any, message: str, reason: errors.Reason) -> None:
        if token is not None:
            self.out.append(effect.Reply(token, error=errors.Refused(message, reason=reason)))

    def _mend(self, node: Node, *, mending: bool) -> None:
        """A restart of this node is in progress, or is not: ready time stands still meanwhile (R14)."""
        if self._ready_time is not None and node.mending != mending:
            node.mending = mending
            self._ready_time.hold(self.now, mending=mending)

    def _clock(self) -> float:
        """The time that this supervisor's limit counts."""
        return self.now if self._ready_time is None else self._ready_time.at(self.now)

    # --- timers

    def _arm(self, node: Node, phase: Any, at: float) -> None:
        """The one timer of this node; whatever it had before is void."""
        self._ticket += 1
        node.timer, node.phase = self._ticket, phase
        if at == float("inf"):
            return
        if len(self._timers) > _FEW_TIMERS and len(self._timers) > 4 * len(self.children):
            self._timers = [timer for timer in self._timers if timer[2].timer == timer[1]]
            heapify(self._timers)
        heappush(self._timers, (at, self._ticket, node))
        if self._timers[0][1] == self._ticket:
            self.out.append(effect.WakeAt(cast("Machine", self), at))

    def _disarm(self, node: Node) -> None:
        node.timer, node.phase = 0, ""

    # --- the steps

    def _stop(self, act: Act, node: Node) -> None:
        """Stop one child of this act's; what becomes of it then is `_settle`'s."""
        node.epoch += 1
        if self.releasing:
            self.releasing.pop(node, None)
        if not node.alive:
            self._stop_dead(act, node)
            return
        node.awaited = True
        act.pending += 1
        if node.state == "failed":
            self._stop_suspended(act, node)
        elif node.state not in ("stopping", "releasing"):
            self._stop_running(act, node)

    def _stop_dead(self, act: Act, node: Node) -> None:
        self._disarm(node)
        if node.state == "failed":
            self._settle_failure(act, node)
            self._emit(events.Stopped, node)
        if node.state not in ("condemned", "down"):
            self._become(act, node)

    def _settle_failure(self, act: Act, node: Node) -> None:
        """A failure that no verdict reached in time (R13, R19)."""
        if node.undecided:
            assert node.failure is not None
            node.undecided = False
            self._decided(node.failure, None, "absorbed" if act.kind in ("restart", "retry") else "stop")
            self._overrule(node)

    def _overrule(self, node: Node) -> None:
        """Tell the supervisors that wait for a verdict on this failure that it is settled."""
        if node.machine is not None:
            self.out.append(effect.Tell(node, effect.Verdict(None)))

    def _stop_suspended(self, act: Act, node: Node) -> None:
        self._settle_failure(act, node)
        if node.machine is not None:
            node.state = "stopping"
            self.out.append(effect.Tell(node, effect.Stop(act.why)))
        else:
            self._release(node)

    def _stop_running(self, act: Act, node: Node) -> None:
        self._emit(events.Stopping, node, reason=act.why)
        starting = node.state == "starting"
        node.state = "stopping"
        if isinstance(node.spec, Child) and node.spec.drain > 0 and not starting:
            self.out.append(effect.Ask(node, act.why))
            self._arm(node, "drain", self.now + node.spec.drain)
        else:
            self._cancel(node, act.why)

    def _cancel(self, node: Node, reason: str) -> None:
        if node.machine is not None:
            self._disarm(node)
            self.out.append(effect.Tell(node, effect.Stop(reason)))
            return
        assert isinstance(node.spec, Child)
        self.out.append(effect.Cancel(node, reason))
        node.interval, node.waited = node.spec.grace, 0.0
        self._arm(node, "grace", self.now + node.interval)

    def _release(self, node: Node) -> None:
        """Let a suspended leaf leave its resource, within its grace (R9)."""
        assert isinstance(node.spec, Child)
        node.state = "stopping"
        node.interval, node.waited = node.spec.grace, 0.0
        self.out.append(effect.Release(node))
        if node.spec.resource is not None:
            self._arm(node, "release", self.now + node.interval)

    def _go_on(self, node: Node) -> None:
        """The act waited for this node, or it did not."""
        if node.awaited:
            node.awaited = False
            assert self.act is not None
            self.act.pending -= 1

    def _settle(self, node: Node) -> None:
        """A child that the act was stopping has ended."""
        assert self.act is not None
        self._go_on(node)
        self._become(self.act, node)

    def _become(self, act: Act, node: Node) -> None:
        """What a child is once it has been stopped, by the act that stopped it."""
        why = None if node.failure is None else node.failure.exc
        node.failure = None
        node.state = "down"
        if act.kind == "condemn":
            self._down(node, "condemned", why)
        elif act.kind == "add":
            self._leave(node, why)
        elif act.kind in ("done", "stop", "start"):
            self._down(node, "down", why)
        elif act.kind in ("restart", "retry") and node.temporary and not act.asked_for(node):
            self._leave(node, why)

    # --- the end

    def _begin_end(
        self, why: str, *, first: Node | None = None, returned: bool = False, failure: Failure | None = None
    ) -> None:
        """Stop every child in reverse, `first` before them, and wait even before that for one on its way out."""
        self._abandon()
        self.phase = "ending"
        stops = sorted(self.children.values(), key=lambda node: 2 if node.leaving else node is first)
        self.act = Act("end", why, stops=stops, returned=returned, failure=failure)

    def _abandon(self) -> None:
        """Whatever is in progress, or waits, is over; what waits is refused."""
        message = f"supervisor {self.path!r} is stopping"
        if self.act is not None:
            self._refuse(self.act.token, message, "stopping")
        for item in self.inbox:
            if isinstance(item, Request) and not item.withdrawn:
                self._refuse(item.token, message, "stopping")
        self.inbox.clear()
        for node in self.children.values():
            node.awaited = False
            if node.phase == "start":
                self._disarm(node)  # it is stopped in its turn

    def _end(self, ended: effect.Ended) -> None:
        self.phase = "ended"
        declared = set(self.spec.children)
        memory = self._memory()
        for node in self.children.values():
            if node.spec in declared:
                memory.declared[node.spec.name] = Past(node, None)
            else:
                self._lose(node, None)
        self._timers.clear()
        self.out.append(effect.Rise(ended))
