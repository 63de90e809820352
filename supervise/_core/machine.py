"""One supervisor as a state machine: `handle(input, now, u)` gives the effects, in order, and that is all it does.

A supervisor is an inbox, its children's states, and at most one *act*. Every act is the same thing: stop these one by
one, perhaps wait, start these one by one, finish. While there is an act, what comes in waits in the inbox; a stop from
above alone does not. A retry is an item put at the back of the inbox; a backoff is a state with a due time, no act.
Asking an ancestor is an act that waits for its verdict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, Literal

from attrs import define, field

from .. import errors, events
from . import effect
from .decide import Decider, Verdict, judge
from .directive import Directive, Escalate, Restart, Resume, Stop
from .effect import Effect, Failure, Input, Request
from .limit import Window
from .node import Node, picture
from .spec import Child, Pool, Spec, Supervisor, check_fits

_FEW_TIMERS = 64  # fewer are not worth sifting

ActKind = Literal["boot", "restart", "retry", "add", "start", "stop", "condemn", "done", "limit", "ask", "end"]


class Ledger:
    """What outlives the machines of one tree: the incarnations of paths that have no node now, names given by pools.

    `left`: why they left the tree. `listening`: whether anybody wants events; without a listener none is made.
    """

    __slots__ = ("incarnations", "left", "listening", "members")

    def __init__(self) -> None:
        self.incarnations: dict[str, int] = {}
        self.left: dict[str, BaseException | None] = {}
        self.members: dict[str, int] = {}
        self.listening = True


@define(eq=False)
class Act:
    """What the supervisor is busy with. `stops` and `starts` are taken from their ends."""

    kind: ActKind
    why: str
    node: Node | None = None
    stops: list[Node] = field(factory=list[Node])
    starts: list[Node] = field(factory=list[Node])
    token: Any = None
    delay: float = 0.0
    returned: bool = False
    failure: Failure | None = None
    pending: int = 0


@define(eq=False)
class _Judge:
    """A failure of this child waits to be decided; void if the epoch has changed."""

    node: Node
    epoch: int


@define(eq=False)
class _Done:
    """The child ended by itself and is not to be restarted; void if the epoch has changed."""

    node: Node
    epoch: int


@define(eq=False)
class _Retry:
    """The child is to be started again; void if the epoch has changed. `token`: somebody waits for it."""

    node: Node
    epoch: int
    token: Any = None


class Machine:
    """One supervisor."""

    def __init__(self, node: Node, decider: Decider, ledger: Ledger) -> None:
        assert not isinstance(node.spec, Child)
        self.node = node
        self.spec: Supervisor | Pool = node.spec
        self.path = node.path
        self.decider = decider
        self.ledger = ledger
        self.children: dict[str, Node] = {}
        for spec in self.spec.children:
            self._join(spec)
        self.inbox: deque[_Judge | _Done | _Retry | Request] = deque()
        self.act: Act | None = None
        self.phase: Literal["opening", "booting", "up", "ending", "ended"] = "opening"
        self.window = None if self.spec.limit is None else Window(self.spec.limit)
        self.now = 0.0
        self.u = 0.0
        self.out: list[Effect] = []
        self._timers: list[tuple[float, int, Node]] = []
        self._ticket = 0
        self._mending = 0
        self._mending_since = 0.0
        self._mending_total = 0.0

    def __repr__(self) -> str:
        return f"<machine {self.path!r} {self.phase} act={self.act and self.act.kind} waiting={len(self.inbox)}>"

    def handle(self, item: Input, now: float, u: float = 0.5) -> list[Effect]:
        """Take one input at time `now`; `u` in [0, 1) is the chance for jitter. Gives the effects in order."""
        self.now, self.u, self.out = now, u, []
        _TAKE[type(item)](self, item)
        self._serve()
        return self.out

    def _serve(self) -> None:
        """Go on with the act as far as it goes; when there is none, take what waits."""
        while True:
            self._advance()
            if self.act is not None or self.phase != "up" or not self.inbox:
                return
            item = self.inbox.popleft()
            if isinstance(item, Request):
                _REQUEST[item.kind](self, item)
            elif item.epoch == item.node.epoch:
                _SERVE[type(item)](self, item)

    def _advance(self) -> None:
        while (act := self.act) is not None:
            if act.stops and (act.pending == 0 or isinstance(self.spec, Pool)):
                self._stop(act, act.stops.pop())
            elif act.pending:
                return
            elif act.starts:
                self._start(act, act.starts.pop())
            else:
                _FINISH[act.kind](self, act)

    # --- small tools

    def _emit(self, cls: Callable[..., events.Event], node: Node, **details: Any) -> None:
        if self.ledger.listening:
            event = cls(at=self.now, path=node.path, incarnation=node.incarnation, **details)
            self.out.append(effect.Emit(event))

    def _join(self, spec: Spec) -> Node:
        path = f"{self.path}/{spec.name}"
        node = Node(spec, path, self, self.ledger.incarnations.pop(path, 0))
        self.ledger.left.pop(path, None)
        self.children[spec.name] = node
        return node

    def _leave(self, node: Node, why: BaseException | None) -> None:
        """The node leaves the tree."""
        if self.children.get(node.name) is node:
            del self.children[node.name]
        self._mend(node, mending=False)
        node.epoch += 1
        node.state = "down"
        self._lose(node, why)

    def _lose(self, node: Node, why: BaseException | None) -> None:
        """Nothing but the ledger knows of the node from now on."""
        if not node.dynamic:
            self.ledger.incarnations[node.path] = node.incarnation
            self.ledger.left[node.path] = why
        node.gone, node.why = True, why
        self.out.append(effect.Gone(node, why, removed=True))

    def _down(self, node: Node, state: Literal["down", "condemned"], why: BaseException | None) -> None:
        """The node is down for good, until somebody starts it by hand or a group restart revives it."""
        if node.temporary or isinstance(self.spec, Pool):
            self._leave(node, why)
            return
        self._mend(node, mending=False)
        node.state = state
        if not node.gone:
            node.gone, node.why = True, why
            self.out.append(effect.Gone(node, why))

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
            self.out.append(effect.WakeAt(self, at))

    def _disarm(self, node: Node) -> None:
        node.timer, node.phase = 0, ""

    def _mend(self, node: Node, *, mending: bool) -> None:
        """A restart of this node is in progress, or is not: ready time stands still meanwhile (R14)."""
        if node.mending == mending:
            return
        node.mending = mending
        if mending:
            self._mending += 1
            if self._mending == 1:
                self._mending_since = self.now
        else:
            self._mending -= 1
            if self._mending == 0:
                self._mending_total += self.now - self._mending_since

    def _clock(self) -> float:
        """The time that this supervisor's limit counts."""
        if self.spec.limit is None or not self.spec.limit.of_ready_time:
            return self.now
        return (self._mending_since if self._mending else self.now) - self._mending_total

    def _decided(
        self,
        failure: Failure,
        directive: Directive | None,
        because: events.Because = "table",
        **details: Any,
    ) -> None:
        details = {"tag": failure.tag, "exc": failure.exc, **details}
        self._emit(
            events.Decided, failure.origin, directive=directive, by=self.path, because=because, **details
        )

    def _refuse(self, token: Any, message: str, reason: errors.Reason) -> None:
        if token is not None:
            self.out.append(effect.Reply(token, error=errors.Refused(message, reason=reason)))

    # --- inputs

    def _on_boot(self, boot: effect.Boot) -> None:
        if self.phase != "opening":
            return
        if boot.ignored:
            self._end(effect.Ended(self.node, self.node.incarnation, ignored=True))
        elif boot.problem is not None:
            failure = Failure(boot.problem, self.node, self.path, starting=True)
            self._end(effect.Ended(self.node, self.node.incarnation, failure=failure))
        else:
            self.phase = "booting"
            starts = list(reversed(self.children.values()))
            self.act = Act("boot", f"{self.path!r} is starting", starts=starts)

    def _on_up(self, up: effect.Up) -> None:
        node = up.child
        if node.incarnation != up.incarnation or node.state != "starting" or node.timed_out:
            return
        self._disarm(node)
        self._mend(node, mending=False)
        node.state = "up"
        node.since = self.now
        if node.machine is None:
            self._emit(events.Ready, node, value=up.value)
        self._go_on(node)

    def _go_on(self, node: Node) -> None:
        """The act waited for this node, or it did not."""
        if node.awaited:
            node.awaited = False
            assert self.act is not None
            self.act.pending -= 1

    def _on_exited(self, exited: effect.Exited) -> None:
        node = exited.child
        if node.incarnation != exited.incarnation:
            return
        if node.state == "stopping" or node.timed_out:
            self._report_while_stopping(node, exited)
        elif node.state == "starting":
            self._start_failed(node, self._failure_of(exited))
        elif node.state == "up":
            self._body_is_over(node, exited)

    def _report_while_stopping(self, node: Node, exited: effect.Exited) -> None:
        """It crossed with a stop: an event, never a decision (R19, R23)."""
        if exited.risen is not None:
            return  # the stop that overtook it has reached, or will reach, those who wait for the verdict
        if exited.exc is not None:
            self._emit(events.StopError, node, exc=exited.exc)
        self.out.append(effect.Release(node))

    def _failure_of(self, exited: effect.Exited) -> Failure:
        node = exited.child
        if exited.risen is not None:
            return exited.risen
        exc = exited.exc or errors.ChildReturned(f"permanent child {node.path!r} returned {exited.value!r}")
        return Failure(
            exc,
            node,
            node.path,
            resumable=exited.resumable and node.state == "up",
            progressed=exited.progressed,
            starting=node.state == "starting",
        )

    def _body_is_over(self, node: Node, exited: effect.Exited) -> None:
        if exited.exc is None and exited.risen is None and node.spec.restart != "permanent":
            self._emit(events.Returned, node, value=exited.value)
            self._release(node)
            self.inbox.append(_Done(node, node.epoch))
            return
        self._failed(node, self._failure_of(exited), risen=exited.risen is not None)
        if node.undecided:
            self.inbox.append(_Judge(node, node.epoch))

    def _failed(self, node: Node, failure: Failure, *, risen: bool = False) -> None:
        """Note a failure, and see whether anybody may decide it."""
        node.failure = failure
        node.state = "failed"
        if not risen:
            node.last_failure = failure.exc
            self._emit(events.Failed, node, exc=failure.exc)
        if not isinstance(failure.exc, Exception):
            self._decided(failure, None, "not an Exception")
            self.out.append(effect.Fatal(failure.exc))
        elif self.phase == "ending":
            self._decided(failure, None, "stop")
            self._overrule(node)
        else:
            node.undecided = True

    def _overrule(self, node: Node) -> None:
        """Tell the supervisors that wait for a verdict on this failure that it is settled."""
        if node.machine is not None:
            self.out.append(effect.Tell(node, effect.Verdict(None)))

    def _on_ended(self, ended: effect.Ended) -> None:
        node = ended.child
        if node.incarnation != ended.incarnation or not node.alive:
            return
        self._disarm(node)
        node.alive = False
        node.machine = None
        if node.state == "starting":
            self._start_ended(node, ended)
            return
        if ended.error is not None:
            self._emit(events.StopError, node, exc=ended.error)
        if node.state == "up":
            self._ended_by_itself(node, ended.failure)
            return
        self._emit(events.Stopped, node)
        if node.awaited:
            self._settle(node)

    def _start_ended(self, node: Node, ended: effect.Ended) -> None:
        """A start ended before it was ready."""
        if ended.ignored:
            self._emit(events.Ignored, node)
            self._emit(events.Returned, node)
            self._emit(events.Stopped, node)
            self._ignored(node)
            return
        if node.timed_out:
            timeout = node.spec.start_timeout
            exc: BaseException = errors.StartTimeout(f"{node.path!r} was not ready within {timeout:g} s")
            exc.__context__ = ended.error
            failure = Failure(exc, node, node.path, starting=True)
        else:
            assert ended.failure is not None
            risen = ended.failure
            failure = Failure(risen.exc, node, risen.path, risen.tag, starting=True)
        self._start_failed(node, failure)

    def _ended_by_itself(self, node: Node, failure: Failure | None) -> None:
        """A supervisor ended, normally or not, and nobody had stopped it."""
        if failure is None and node.spec.restart == "permanent":
            exc = errors.ChildReturned(f"permanent supervisor {node.path!r} ended normally")
            failure = Failure(exc, node, node.path)
        if failure is not None:
            self._failed(node, failure)
            self.inbox.append(_Judge(node, node.epoch))
        else:
            node.state = "stopping"
            self._emit(events.Returned, node)
            self._emit(events.Stopped, node)
            self.inbox.append(_Done(node, node.epoch))

    def _on_request(self, request: Request) -> None:
        if self.phase in ("ending", "ended"):
            self._refuse(request.token, f"supervisor {self.path!r} is stopping", "stopping")
        else:
            self.inbox.append(request)

    def _on_stop(self, stop: effect.Stop) -> None:
        if self.phase == "ended":
            return
        failure = None if stop.exc is None else Failure(stop.exc, self.node, self.path)
        if self.act is not None and self.act.kind == "end":
            self.act.returned, self.act.failure = stop.returned, failure
            return
        self._begin_end(stop.reason, returned=stop.returned, failure=failure)

    def _on_verdict(self, verdict: effect.Verdict) -> None:
        act = self.act
        if act is None or act.kind != "ask" or act.node is None:
            return
        node = act.node
        node.undecided = False
        if verdict.directive is Resume:
            self._go_on(node)
            self.act = None
            self._enter_again(node)
        else:
            self._overrule(node)

    def _on_wake(self, _: effect.Wake) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            ticket, node = heappop(timers)[1:]
            if node.timer == ticket:
                _DUE[node.phase](self, node)
        while timers and timers[0][2].timer != timers[0][1]:
            heappop(timers)
        if timers:
            self.out.append(effect.WakeAt(self, timers[0][0]))

    # --- timers

    def _start_is_late(self, node: Node) -> None:
        """A start that hangs is ended, and then it is a failed one (R17)."""
        node.timed_out = True
        node.epoch += 1
        reason = f"start_timeout of {node.spec.start_timeout:g} s passed"
        self._cancel(node, reason)

    def _cancel(self, node: Node, reason: str) -> None:
        if node.machine is not None:
            self._disarm(node)
            self.out.append(effect.Tell(node, effect.Stop(reason)))
            return
        assert isinstance(node.spec, Child)
        self.out.append(effect.Cancel(node, reason))
        node.interval, node.waited = node.spec.grace, 0.0
        self._arm(node, "grace", self.now + node.interval)

    def _drained(self, node: Node) -> None:
        assert isinstance(node.spec, Child)
        self._cancel(node, f"not drained within {node.spec.drain:g} s")

    def _overdue(self, node: Node) -> None:
        """Still there: say so, and wait twice as long until it is said again (R20)."""
        node.waited += node.interval
        node.interval = max(1.0, 2 * node.interval)
        if self.ledger.listening:
            self.out.append(effect.ReportOverdue(node, node.waited))
        self._arm(node, "grace", self.now + node.interval)

    def _release_is_overdue(self, node: Node) -> None:
        self.out.append(effect.Cancel(node, "its resource was not left in time"))
        self._overdue(node)

    def _backed_off(self, node: Node) -> None:
        self._disarm(node)
        self.inbox.append(_Retry(node, node.epoch))

    # --- the steps of an act

    def _start(self, act: Act, node: Node) -> None:
        if node.alive or node.state == "condemned" or self.children.get(node.name) is not node:
            return
        node.incarnation += 1
        node.epoch += 1
        node.state = "starting"
        node.alive = node.awaited = True
        node.timed_out = node.gone = node.undecided = False
        node.failure = None
        act.pending += 1
        if not isinstance(node.spec, Child):
            own = node.spec.decider
            decider = self.decider if own is None else own.over(self.decider)
            node.machine = Machine(node, decider, self.ledger)
        self._emit(events.Starting, node)
        self.out.append(effect.Start(node))
        if node.spec.start_timeout is not None:
            self._arm(node, "start", self.now + node.spec.start_timeout)

    def _stop(self, act: Act, node: Node) -> None:
        """Stop one child of this act's; what becomes of it then is `_settle`'s."""
        node.epoch += 1
        if node.state == "restarting" or not node.alive:
            self._stop_dead(act, node)
            return
        node.awaited = True
        act.pending += 1
        if node.state == "failed":
            self._stop_suspended(act, node)
        elif node.state != "stopping":
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

    def _release(self, node: Node) -> None:
        """Let a suspended leaf leave its resource, within its grace (R9)."""
        assert isinstance(node.spec, Child)
        node.state = "stopping"
        node.interval, node.waited = node.spec.grace, 0.0
        self.out.append(effect.Release(node))
        if node.spec.resource is not None:
            self._arm(node, "release", self.now + node.interval)

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
        elif act.kind in ("restart", "retry") and node.temporary:
            self._leave(node, why)

    # --- verdicts

    def _take_judge(self, item: _Judge) -> None:
        self._judge(item.node, [])

    def _judge(self, node: Node, rest: list[Node]) -> None:
        """Decide the failure of a suspended or dead child. `rest`: what the group had still to start."""
        assert node.failure is not None
        own = node.spec.decider if isinstance(node.spec, Child) else None
        decider = self.decider if own is None else own.over(self.decider)
        verdict = judge(decider, node.failure.exc, node.failure.tag)
        self._adopt(node, verdict)
        because: events.Because = "table"
        if not self._within_own_limit(node, self._final(node, verdict)):
            because = "limit"
            exc = _limit_exceeded(node.path, node.spec.limit, node.failure.exc)
            verdict = judge(decider, exc, "limit", otherwise=Stop)
            self._adopt(node, verdict)
        directive = self._final(node, verdict)
        instead_of = None if directive is verdict.directive else verdict.directive
        self._apply(node, directive, rest, because=because, instead_of=instead_of)

    def _adopt(self, node: Node, verdict: Verdict) -> None:
        """The failure goes on as what the decider made of it: with a tag, or as what the decider itself raised."""
        failure = node.failure
        assert failure is not None
        failure.tag = verdict.tag
        if verdict.exc is not failure.exc:
            failure.exc = verdict.exc
            failure.resumable = False

    def _final(self, node: Node, verdict: Verdict) -> Directive:
        """The directive as the rules allow it here (R7, R8)."""
        directive = verdict.directive
        assert node.failure is not None
        if directive is Resume and not node.failure.resumable:
            directive = Restart
        if directive is Restart and node.temporary:
            directive = Stop
        return directive

    def _within_own_limit(self, node: Node, directive: Directive) -> bool:
        """Charge the leaf's own limit, if it has one and this directive is charged at all (R8, R14)."""
        failure, window = node.failure, node.window
        assert failure is not None
        charged = directive is Restart or (directive is Resume and not failure.progressed)
        return window is None or not charged or window.charge(self.now)

    def _apply(self, node: Node, directive: Directive, rest: list[Node], **details: Any) -> None:
        failure = node.failure
        assert failure is not None
        if directive is Escalate:
            self._escalate(failure, node)
            return
        node.undecided = False
        charged = directive is Restart and not failure.starting
        charged = charged or (directive is Resume and not failure.progressed)
        if charged and not self._charge():
            self._decided(failure, directive, limit=str(self.spec.limit), **details)
            self._overrule(node)
            self._limit_passed(failure.exc, node)
            return
        self._decided(failure, directive, **details)
        if directive is Resume:
            self._enter_again(node)
        elif directive is Stop:
            self._overrule(node)
            self.act = Act("condemn", f"{node.path!r} was condemned", node, [node], rest)
        else:
            self._overrule(node)
            self._restart(node)

    def _charge(self) -> bool:
        return self.window is None or self.window.charge(self._clock())

    def _escalate(self, failure: Failure, node: Node) -> None:
        """Nobody here decides: ask the supervisor above, or, at the root, give up (R11)."""
        if self.node.parent is not None:
            self.act = Act("ask", f"{self.path!r} waits for a verdict", node, pending=1)
            node.awaited = True
            self.out.append(effect.Rise(effect.Exited(self.node, self.node.incarnation, risen=failure)))
            return
        node.undecided = False
        self._decided(failure, Escalate)
        self._overrule(node)
        self._fail(failure)
        self._begin_end(f"{self.path!r} failed: {failure.path!r} escalated")

    def _fail(self, failure: Failure) -> None:
        """The root gives up."""
        self.node.why = failure.exc
        self.out.append(effect.Fail(failure.exc))

    def _enter_again(self, node: Node) -> None:
        node.state = "up"
        node.failure = None
        if node.machine is not None:
            self.out.append(effect.Tell(node, effect.Verdict(Resume)))
        else:
            self._emit(events.Resumed, node)
            self.out.append(effect.Resume(node))

    def _limit_passed(self, cause: BaseException, node: Node) -> None:
        """One restart too many (R14)."""
        if self.spec.on_limit == "shutdown":
            self._begin_end(f"{self.path!r} passed its limit of {self.spec.limit}", first=node, returned=True)
            return
        exc = _limit_exceeded(self.path, self.spec.limit, cause)
        failure = Failure(exc, self.node, self.path, "limit")
        self.node.last_failure = exc
        self._emit(events.Failed, self.node, exc=exc)
        stops = [node] if node.alive or node.state == "failed" else []
        self.act = Act("limit", f"{self.path!r} passed its limit", node, stops, failure=failure)

    # --- restarts

    def _group(self, node: Node) -> list[Node]:
        """Who is restarted with this child, in start order (R13)."""
        if self.spec.strategy == "one_for_one":
            return [node]
        nodes = list(self.children.values())
        return nodes if self.spec.strategy == "one_for_all" else nodes[nodes.index(node) :]

    def _delay(self, node: Node) -> float:
        if node.delays is None:
            return 0.0
        quiet = 0.0 if node.failure is None or node.failure.starting else self.now - node.since
        return node.delays.next(quiet, self.u)

    def _why(self, node: Node) -> str:
        sibling = "" if self.spec.strategy == "one_for_one" else "sibling "
        return f"{self.spec.strategy}: {sibling}{node.path!r} failed"

    def _restart(self, node: Node, *, token: Any = None, again: bool = False) -> None:
        """Stop this child's group and start it again. `again`: a retry, whose wait is over."""
        failed_start = node.failure is not None and node.failure.starting
        delay = 0.0 if again else self._delay(node)
        if failed_start:
            self._restart_later(node, delay)
            return
        self._mend(node, mending=True)
        group = self._group(node)
        for other in group:
            if other is not node and other.state == "restarting":
                delay = max(delay, other.due - self.now)
                self._forget_retry(other)
        stops = [other for other in group if other is not node]
        starts = [other for other in reversed(group) if other.state != "condemned"]
        self.act = Act("restart", self._why(node), node, [*stops, node], starts, token, delay)
        if delay > 0:
            node.charged = True
            self.act.kind, self.act.starts = "retry", []

    def _restart_later(self, node: Node, delay: float) -> None:
        """A start failed in a restart: it ends, and a retry waits its turn (R13)."""
        stops = [node]
        if delay > 0 and self.spec.strategy == "one_for_all":
            stops = [*(other for other in self.children.values() if other is not node and other.alive), node]
        node.charged = False
        self.act = Act("retry", self._why(node), node, stops, delay=delay)

    def _forget_retry(self, node: Node) -> None:
        """The retry of this node is void."""
        node.epoch += 1
        node.state = "down"
        self._disarm(node)
        self._mend(node, mending=False)

    def _take_retry(self, item: _Retry) -> None:
        node = item.node
        if not node.charged and item.token is None and not self._charge():
            node.state = "down"
            self._mend(node, mending=False)
            self._limit_passed(node.last_failure or errors.ChildReturned(node.path), node)
            return
        node.charged = False
        node.epoch += 1
        self._restart(node, token=item.token, again=True)

    def _start_failed(self, node: Node, failure: Failure) -> None:
        """A child did not become ready: a first start fails whoever wanted it, a restart's is judged (R16)."""
        act = self.act
        assert act is not None
        self._disarm(node)
        self._emit(events.StartFailed, node)
        self._failed(node, failure)
        if not node.undecided:
            return  # the whole tree is about to stop, or this supervisor is stopping already
        self._go_on(node)
        if act.kind in ("restart", "condemn"):
            self._reply_start_failed(act.token, failure)
            act.token = None
            self.act = None
            self._judge(node, act.starts)
            return
        node.undecided = False
        self._decided(failure, None, "first start")
        if act.kind == "boot":
            self._begin_end(f"{failure.path!r} failed to start", first=node, failure=failure)
        else:
            act.failure = failure
            act.stops.append(node)

    def _ignored(self, node: Node) -> None:
        self._go_on(node)
        self._down(node, "down", None)

    # --- what an act comes to

    def _finish_boot(self, _: Act) -> None:
        self.act = None
        self.phase = "up"
        self._emit(events.Ready, self.node)
        self.out.append(effect.Rise(effect.Up(self.node, self.node.incarnation)))

    def _finish_restart(self, act: Act) -> None:
        self.act = None
        if act.token is not None:
            self.out.append(effect.Reply(act.token, act.node))

    def _finish_retry(self, act: Act) -> None:
        """All has stopped; now wait, or queue behind what waits already."""
        self.act = None
        node = act.node
        assert node is not None
        node.state = "restarting"
        node.epoch += 1
        self._mend(node, mending=True)
        node.due = self.now
        if act.delay <= 0:
            self.inbox.append(_Retry(node, node.epoch))
            return
        node.due = self.now + act.delay
        self._emit(events.BackingOff, node, delay=act.delay, until=node.due)
        self._arm(node, "backoff", node.due)

    def _finish_request(self, act: Act) -> None:
        self.act = None
        if act.failure is not None:
            self._reply_start_failed(act.token, act.failure)
        else:
            self.out.append(effect.Reply(act.token, act.node))

    def _reply_start_failed(self, token: Any, failure: Failure) -> None:
        if token is not None:
            self.out.append(effect.Reply(token, error=start_failed(failure)))

    def _finish_over(self, act: Act) -> None:
        """A child has ended by itself, or by a verdict; perhaps so does its supervisor (R18)."""
        self.act = None
        node, mode = act.node, self.spec.auto_shutdown
        assert node is not None
        if mode == "never" or not node.spec.significant:
            return
        if mode == "all_significant" and any(map(_is_significant_and_on, self.children.values())):
            return
        why = f"{self.path!r} shuts down: {mode.replace('_', ' ')} child {node.path!r} has ended"
        self._begin_end(why, returned=True)

    def _finish_limit(self, act: Act) -> None:
        assert act.failure is not None
        self.act = None
        if self.node.parent is None:
            self._decided(act.failure, Escalate)
            self._fail(act.failure)
            self._begin_end(act.why)
        else:
            self.act = Act("ask", act.why, pending=1)
            self.out.append(effect.Rise(effect.Exited(self.node, self.node.incarnation, risen=act.failure)))

    def _finish_end(self, act: Act) -> None:
        self.act = None
        self._end(
            effect.Ended(self.node, self.node.incarnation, returned=act.returned, failure=act.failure)
        )

    # --- the end

    def _begin_end(
        self, why: str, *, first: Node | None = None, returned: bool = False, failure: Failure | None = None
    ) -> None:
        """Stop every child in reverse, `first` before them; refuse what waits."""
        self._abandon()
        self.phase = "ending"
        stops = [node for node in self.children.values() if node is not first]
        if first is not None:
            stops.append(first)
        self.act = Act("end", why, stops=stops, returned=returned, failure=failure)

    def _abandon(self) -> None:
        """Whatever is in progress, or waits, is over. A child on its way out is waited for first."""
        message = f"supervisor {self.path!r} is stopping"
        if self.act is not None:
            self._refuse(self.act.token, message, "stopping")
        for item in self.inbox:
            if isinstance(item, Request | _Retry):
                self._refuse(item.token, message, "stopping")
        self.inbox.clear()
        for node in self.children.values():
            node.awaited = False

    def _end(self, ended: effect.Ended) -> None:
        self.phase = "ended"
        declared = set(self.spec.children)
        for node in self.children.values():
            if node.spec in declared:
                self.ledger.incarnations[node.path] = node.incarnation
            else:
                self._lose(node, None)
        self._timers.clear()
        self.out.append(effect.Rise(ended))

    def _take_done(self, item: _Done) -> None:
        node = item.node
        self.act = Act("done", f"{node.path!r} is done", node, [node])

    # --- requests, see R25

    def _find(self, request: Request) -> Node | None:
        node = self.children.get(request.name or "")
        if node is None:
            self._refuse(request.token, f"{self.path!r} has no child {request.name!r}", "not_found")
        return node

    def _take_add(self, request: Request) -> None:
        try:
            spec = self._wanted(request)
        except (TypeError, ValueError, errors.Refused) as problem:
            self.out.append(effect.Reply(request.token, error=problem))
            return
        node = self._join(spec)
        node.dynamic = isinstance(self.spec, Pool) and request.name is None
        self.act = Act("add", f"{node.path!r} is being added", node, starts=[node], token=request.token)

    def _wanted(self, request: Request) -> Spec:
        """The child that is to be added; raises what the caller gets if it cannot be."""
        spec = self._member(self.spec, request) if isinstance(self.spec, Pool) else request.spec
        assert spec is not None
        check_fits(self.spec, spec)
        there = self.children.get(spec.name)
        if there is not None:
            running = there.state not in ("down", "condemned", "restarting")
            message = f"{self.path!r} already has a child {spec.name!r} ({there.state})"
            raise errors.Refused(message, reason="running" if running else "duplicate")
        return spec

    def _member(self, pool: Pool, request: Request) -> Spec:
        if pool.maximum is not None and len(self.children) >= pool.maximum:
            raise errors.Refused(f"pool {self.path!r} is full ({pool.maximum})", reason="full")
        return pool.member(request.name or self._next_name(), request.args)

    def _next_name(self) -> str:
        assert isinstance(self.spec, Pool)
        number = self.ledger.members.get(self.path, 0) + 1
        self.ledger.members[self.path] = number
        return f"{self.spec.template.name}-{number}"

    def _take_restart(self, request: Request) -> None:
        if isinstance(self.spec, Pool):
            self._refuse(request.token, f"members of pool {self.path!r} are not restarted by hand", "pool")
            return
        node = self._find(request)
        if node is None:
            return
        if node.state == "restarting" and node.phase == "backoff":
            self._disarm(node)
            node.epoch += 1
            self._restart(node, token=request.token, again=True)
        elif node.state == "restarting":
            self._refuse(request.token, f"{node.path!r} is restarting", "restarting")
        elif node.state in ("down", "condemned"):
            node.state = "down"
            self.act = Act("start", f"{node.path!r} is started by hand", node, starts=[node], token=request.token)
        else:
            self._refuse(request.token, f"{node.path!r} is running", "running")

    def _take_stop(self, request: Request) -> None:
        node = self._find(request)
        if node is None:
            return
        why = f"{node.path!r} was asked to stop"
        if node.state == "restarting":
            self._cancel_retry(node)
        self.act = Act("stop", why, node, [node], token=request.token)

    def _cancel_retry(self, node: Node) -> None:
        """Stopped by hand while a retry was due: its group stays down, and that is for good now (R13)."""
        group = self._group(node)
        self._forget_retry(node)
        for other in group:
            if other.state == "down" and not other.gone and not other.alive:
                self._down(other, "down", None)

    def _take_remove(self, request: Request) -> None:
        if isinstance(self.spec, Pool):
            self._refuse(request.token, f"members of pool {self.path!r} leave it when they end", "pool")
            return
        node = self._find(request)
        if node is None:
            return
        if node.state == "restarting":
            self._refuse(request.token, f"{node.path!r} is restarting", "restarting")
        elif node.state not in ("down", "condemned"):
            self._refuse(request.token, f"{node.path!r} is running", "running")
        else:
            self._leave(node, None)
            self.out.append(effect.Reply(request.token, node))

    def _take_status(self, request: Request) -> None:
        """A look in its turn; `Forest.status` is the one that never waits (R33)."""
        self.out.append(effect.Reply(request.token, picture(self.node, self.now)))

    def restarts(self, now: float) -> int:
        """How many restarts its limit counts now."""
        if self.window is None:
            return 0
        self.now = now
        return self.window.count(self._clock())


def start_failed(failure: Failure) -> errors.StartFailed:
    """What a caller gets for a start that failed, with its cause."""
    exc = errors.StartFailed(f"{failure.path!r} failed to start: {failure.exc!r}", path=failure.path)
    exc.__cause__ = failure.exc
    return exc


def _limit_exceeded(path: str, limit: object, cause: BaseException) -> errors.LimitExceeded:
    exc = errors.LimitExceeded(f"{path!r} passed its limit of {limit}")
    exc.__cause__ = cause
    return exc


def _is_significant_and_on(node: Node) -> bool:
    return node.spec.significant and node.state not in ("down", "condemned")


_Table = dict[Any, Callable[[Machine, Any], None]]

_TAKE: _Table = {
    effect.Boot: Machine._on_boot,
    effect.Up: Machine._on_up,
    effect.Exited: Machine._on_exited,
    effect.Ended: Machine._on_ended,
    effect.Request: Machine._on_request,
    effect.Stop: Machine._on_stop,
    effect.Verdict: Machine._on_verdict,
    effect.Wake: Machine._on_wake,
}
_SERVE: _Table = {
    _Judge: Machine._take_judge,
    _Done: Machine._take_done,
    _Retry: Machine._take_retry,
}
_REQUEST: _Table = {
    "add": Machine._take_add,
    "stop": Machine._take_stop,
    "restart": Machine._take_restart,
    "remove": Machine._take_remove,
    "status": Machine._take_status,
}
_DUE: _Table = {
    "start": Machine._start_is_late,
    "drain": Machine._drained,
    "grace": Machine._overdue,
    "release": Machine._release_is_overdue,
    "backoff": Machine._backed_off,
}
_FINISH: _Table = {
    "boot": Machine._finish_boot,
    "restart": Machine._finish_restart,
    "retry": Machine._finish_retry,
    "add": Machine._finish_request,
    "start": Machine._finish_request,
    "stop": Machine._finish_request,
    "condemn": Machine._finish_over,
    "done": Machine._finish_over,
    "limit": Machine._finish_limit,
    "end": Machine._finish_end,
}
