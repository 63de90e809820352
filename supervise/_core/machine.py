"""One supervisor as a state machine: `handle(input, now, u)` gives the effects, in order, and that is all it does.

A supervisor is an inbox, its children's states, and at most one *act*. Every act is the same thing: stop these one by
one, perhaps wait, start these one by one, finish. While there is an act, what comes in waits in the inbox; a stop from
above alone does not. A retry is an item put at the back of the inbox; a backoff is a state with a due time, no act.
Asking an ancestor is an act that waits for its verdict.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from math import inf
from typing import Any

from .. import errors, events
from . import effect
from ._brief import brief
from .act import Act, Done, Judge, Released, Retry
from .decide import is_decidable
from .directive import Escalate, Resume
from .effect import Effect, Failure, Input, Request
from .judging import Judging
from .node import Node, picture
from .spec import Child, Pool, Spec, check_fits


class Machine(Judging):
    """One supervisor."""

    def __repr__(self) -> str:
        return (
            f"<machine {self.path!r} {self.phase} act={self.act and self.act.kind} waiting={len(self.inbox)}>"
        )

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
                if not item.withdrawn:
                    _REQUEST[item.kind](self, item)
            elif item.holds():
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
            node.machine = Machine(node, self.ledger)
        if self.ledger.listening:
            self.out.append(events.Starting(self.now, node.path, node.incarnation))
        self.out.append(effect.Start(node))
        if node.slow_start:
            node.since, node.waited = self.now, 0.0
            node.interval = node.spec.start_warning if isinstance(node.spec, Child) else inf
            self._watch_start(node)

    def _watch_start(self, node: Node) -> None:
        """Wake when its start is to be reported, or is late."""
        timeout = inf if node.spec.start_timeout is None else node.spec.start_timeout
        at = node.since + min(timeout, node.waited + node.interval)
        if at < inf:
            self._arm(node, "start", at)

    # --- inputs

    def _on_boot(self, boot: effect.Boot) -> None:
        if self.phase != "opening":
            return
        if boot.ignored or boot.problem is not None:
            self._abandon()  # requests that came before `Boot`: nobody else would answer them
        if boot.ignored:
            self._end(effect.Ended(self.node, self.node.incarnation, ignored=True))
        elif boot.problem is not None:
            failure = Failure(boot.problem, self.node, self.path)
            self._end(effect.Ended(self.node, self.node.incarnation, failure=failure))
        else:
            self.phase = "booting"
            starts = list(reversed(self.children.values()))
            self.act = Act("boot", starts=starts)

    def _on_up(self, up: effect.Up) -> None:
        node = up.child
        if node.incarnation != up.incarnation or node.state != "starting" or node.timed_out:
            return
        self._disarm(node)
        if self._ready_time is not None:
            self._mend(node, mending=False)
        node.state = "up"
        node.since = self.now
        if self.ledger.listening and node.machine is None:
            self.out.append(events.Ready(self.now, node.path, node.incarnation, up.value))
        self._go_on(node)

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
            # The stop has reached, or will reach, those below who wait for the verdict.
            if exited.risen.origin is node:
                self._decided(exited.risen, None, "stop")
            return
        if exited.exc is not None:
            self._stop_error(node, exited.exc)
        self.out.append(effect.Release(node))

    def _stop_error(self, node: Node, exc: BaseException) -> None:
        """A failure while a child is stopped is an event; what is no `Exception` stops the whole tree even then (R4, R23)."""
        self._emit(events.StopError, node, exc=exc)
        if not is_decidable(exc):
            self.out.append(effect.Fatal(exc))
            self.releasing.pop(node, None)  # the whole tree is about to stop: nothing is started any more
            if self.act is not None and self.act.kind == "restart":
                self.act.starts.clear()

    def _failure_of(self, exited: effect.Exited) -> Failure:
        node = exited.child
        if exited.risen is not None:
            return exited.risen
        exc = exited.exc
        if exc is None:
            exc = errors.ChildReturned(f"permanent child {node.path!r} returned {brief(exited.value)}")
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
            self.inbox.append(Done(node, node.epoch))
            return
        self._failed(node, self._failure_of(exited), risen=exited.risen is not None)
        if node.undecided:
            self.inbox.append(Judge(node, node.epoch))

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
            self._stop_error(node, ended.error)
        if node.state == "up":
            self._ended_by_itself(node, ended.failure)
            return
        self._emit(events.Stopped, node)
        if node.awaited:
            self._settle(node)
        elif node in self.releasing:
            self.inbox.append(Released(node, node.epoch))

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
            if ended.error is not None and not is_decidable(ended.error):
                exc = ended.error
            failure = Failure(exc, node, node.path, starting=True)
        else:
            assert ended.failure is not None
            risen = ended.failure
            failure = Failure(risen.exc, node, risen.path, starting=True)
        self._start_failed(node, failure)

    def _ignored(self, node: Node) -> None:
        self._go_on(node)
        self._down(node, "down", None)

    def _ended_by_itself(self, node: Node, failure: Failure | None) -> None:
        """A supervisor ended, normally or not, and nobody had stopped it."""
        if failure is None and node.spec.restart == "permanent":
            exc = errors.ChildReturned(f"permanent supervisor {node.path!r} ended normally")
            failure = Failure(exc, node, node.path)
        if failure is not None:
            self._failed(node, failure)
            self.inbox.append(Judge(node, node.epoch))
        else:
            node.state = "stopping"
            self._emit(events.Returned, node)
            self._emit(events.Stopped, node)
            self.inbox.append(Done(node, node.epoch))

    def _on_request(self, request: Request) -> None:
        if self.phase in ("ending", "ended"):
            self._refuse(request.token, f"supervisor {self.path!r} is stopping", "stopping")
        else:
            self.inbox.append(request)

    def _on_withdraw(self, withdraw: effect.Withdraw) -> None:
        withdraw.request.withdrawn = True

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

    # --- timers that are due

    def _start_takes_long(self, node: Node) -> None:
        """A start that hangs is reported, and past its timeout ended; then it is a failed one (R17)."""
        timeout = node.spec.start_timeout
        if timeout is None or self.now < node.since + timeout:
            node.waited += node.interval
            node.interval *= 2
            if self.ledger.listening:
                self.out.append(effect.ReportOverdue(node, node.waited, starting=True))
            self._watch_start(node)
            return
        node.timed_out = True
        reason = f"{node.path!r}: start_timeout of {node.spec.start_timeout:g} s passed"
        self._cancel(node, reason)

    def _drained(self, node: Node) -> None:
        assert isinstance(node.spec, Child)
        assert self.act is not None
        self._cancel(node, f"{self.act.why}; not drained within {node.spec.drain:g} s")

    def _overdue(self, node: Node) -> None:
        """Still there: say so, and wait twice as long until it is said again (R20)."""
        node.waited += node.interval
        node.interval = max(1.0, 2 * node.interval)
        if self.ledger.listening:
            self.out.append(effect.ReportOverdue(node, node.waited))
        self._arm(node, "grace", self.now + node.interval)

    def _release_is_overdue(self, node: Node) -> None:
        assert isinstance(node.spec, Child)
        self.out.append(
            effect.Cancel(node, f"{node.path!r}: its resource was not left within {node.spec.grace:g} s")
        )
        self._overdue(node)

    def _backed_off(self, node: Node) -> None:
        self._disarm(node)
        self.inbox.append(Retry(node, node.epoch))

    # --- what has waited

    def _take_judge(self, item: Judge) -> None:
        self._judge(item.node, [])

    def _take_done(self, item: Done) -> None:
        node = item.node
        self.act = Act("done", node=node, stops=[node])

    def _take_released(self, item: Released) -> None:
        self.act = self.releasing.pop(item.node)

    def _take_retry(self, item: Retry) -> None:
        node = item.node
        if not node.charged and not self._charge():
            node.state = "down"
            self._mend(node, mending=False)
            assert node.last_failure is not None
            self._limit_passed(node.last_failure, node)
            return
        node.charged = False
        self._restart(node)

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
        self._mend(node, mending=True)
        node.due = self.now
        if act.delay <= 0:
            self.inbox.append(Retry(node, node.epoch))
            return
        node.due = self.now + act.delay
        attempt = 1 if node.delays is None else node.delays.attempt
        self._emit(events.BackingOff, node, delay=act.delay, until=node.due, attempt=attempt)
        self._arm(node, "backoff", node.due)

    def _finish_request(self, act: Act) -> None:
        self.act = None
        if act.failure is not None:
            self._reply_start_failed(act.token, act.failure)
        else:
            self.out.append(effect.Reply(act.token, act.node))

    def _finish_over(self, act: Act) -> None:
        """A child has ended by itself, or by a verdict; perhaps so does its supervisor (R18)."""
        self.act = None
        node, mode = act.node, self.spec.auto_shutdown
        assert node is not None
        if act.token is not None:
            self.out.append(effect.Reply(act.token, node))
        if not node.spec.significant:
            return
        if mode == "all_significant" and any(map(_is_significant_and_on, self.children.values())):
            return
        why = f"{self.path!r} shuts down: {mode.replace('_', ' ')} child {node.path!r} has ended"
        self._begin_end(why, returned=True)

    def _finish_limit(self, act: Act) -> None:
        """The failing child is gone: now the failure is this supervisor's own, and goes up (R14)."""
        assert act.failure is not None
        self.act = None
        self.node.last_failure = act.failure.exc
        self._emit(events.Failed, self.node, exc=act.failure.exc)
        if self.node.parent is None:
            self.node.state = "failed"
            self._decided(act.failure, Escalate)
            self._fail(act.failure)
            self._begin_end(act.why)
        else:
            self.act = Act("ask", pending=1)
            self.out.append(effect.Rise(effect.Exited(self.node, self.node.incarnation, risen=act.failure)))

    def _finish_end(self, act: Act) -> None:
        self.act = None
        self._end(effect.Ended(self.node, self.node.incarnation, returned=act.returned, failure=act.failure))

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
        self.act = Act("add", node=node, starts=[node], token=request.token)

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
        memory = self._memory()
        memory.members += 1
        return f"{self.spec.template.name}-{memory.members}"

    def _take_start(self, request: Request) -> None:
        node = self._find_static(request)
        if node is None:
            return
        if node.state == "restarting" and node.phase == "backoff":
            self._restart_by_hand(node, request.token)
        elif node.state == "restarting":
            self._refuse(request.token, f"{node.path!r} is restarting", "restarting")
        elif node.state in ("down", "condemned"):
            self._start_by_hand(node, request.token)
        else:
            self._refuse(request.token, f"{node.path!r} is running", "running")

    def _take_restart(self, request: Request) -> None:
        node = self._find_static(request)
        if node is None:
            return
        if node.state in ("down", "condemned"):
            self._start_by_hand(node, request.token)
        else:
            self._restart_by_hand(node, request.token)

    def _find_static(self, request: Request) -> Node | None:
        """The child that is to be started; members of a pool are only added."""
        if isinstance(self.spec, Pool):
            self._refuse(request.token, f"members of pool {self.path!r} are not started by hand", "pool")
            return None
        return self._find(request)

    def _start_by_hand(self, node: Node, token: Any) -> None:
        node.state = "down"
        self.act = Act("start", node=node, starts=[node], token=token)

    def _take_stop(self, request: Request) -> None:
        node = self._find(request)
        if node is None:
            return
        why = f"{node.path!r} was asked to stop"
        if node.state == "restarting":
            self._cancel_retry(node)
        afterwards = self.releasing.get(node)
        # A stop by hand does not lift a verdict.
        condemned = afterwards is not None and afterwards.kind == "condemn"
        self.act = Act("condemn" if condemned else "stop", why, node, [node], token=request.token)

    def _cancel_retry(self, node: Node) -> None:
        """Stopped by hand while a retry was due: its group stays down, and that is for good now (R13)."""
        group = self._group(node)
        self._forget_retry(node)
        for other in group:
            if other.state == "down" and not other.gone:
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
        return self.window.count(now if self._ready_time is None else self._ready_time.at(now))


def _is_significant_and_on(node: Node) -> bool:
    return node.spec.significant and node.state not in ("down", "condemned")


_Table = dict[Any, Callable[[Machine, Any], None]]

_TAKE: _Table = {
    effect.Boot: Machine._on_boot,
    effect.Up: Machine._on_up,
    effect.Exited: Machine._on_exited,
    effect.Ended: Machine._on_ended,
    effect.Request: Machine._on_request,
    effect.Withdraw: Machine._on_withdraw,
    effect.Stop: Machine._on_stop,
    effect.Verdict: Machine._on_verdict,
    effect.Wake: Machine._on_wake,
}
_SERVE: _Table = {
    Judge: Machine._take_judge,
    Done: Machine._take_done,
    Retry: Machine._take_retry,
    Released: Machine._take_released,
}
_REQUEST: _Table = {
    "add": Machine._take_add,
    "stop": Machine._take_stop,
    "start": Machine._take_start,
    "restart": Machine._take_restart,
    "remove": Machine._take_remove,
    "status": Machine._take_status,
}
_DUE: _Table = {
    "start": Machine._start_takes_long,
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
