"""One supervisor as a state machine: `handle(input, now, u)` takes one input and returns the effects of it, in order.

The machine has no clock, no tasks and no randomness of its own: the time and the random number are arguments, and the
driver carries the effects out. So a test can play any order of inputs, the exploration plays all of them, and the same
lines run under the driver.

How it works
============

A supervisor has an inbox, the states of its children, and at most one *act*. An act is always the same walk (`_advance`):
stop these children one by one, start those one by one, finish. The table `act.ACTS` has the differences between a
restart, a request and the end. During an act requests, failures and ends wait in the inbox, so that the
machine does one thing at a time and in the order in which the inputs came (R19). Only a stop from above does not wait: it
empties the inbox, refuses the requests in it, and replaces the act by `end`.

The machine handles an input in three steps. The method `_on_…` of its kind notes the new state of the child: up, failed, or
ended. If the supervisor has to react, that method puts an item into the inbox: a failure to be judged, an end to be weighed,
a retry whose backoff has passed. Then `_serve` continues the act until it needs another input. Without an act it takes the
next item from the inbox and gives it to the method `_serve_…` of its kind, which may begin the next act. (The tables at the
end of this file map inputs, items, requests and timers to their methods.)

A restart, step by step
-----------------------

1. `Exited` comes: the leaf's body has raised. The child is `failed`, and suspended: its task waits, with its resource
   still open. `Failed` goes out and a `Judge` item into the inbox.
2. The item's turn comes: `verdict.decision` asks the deciders. `Decided` goes out.
   - Resume: the leaf enters its body again, and nothing else changes.
   - Escalate asks the supervisor above, as an act that waits for its verdict; at the root the tree fails.
   - Stop begins the act `condemn`, Restart the act `restart`, or `retry` if there is a backoff.
3. The act stops the failed child, which leaves its resource and ends, and then the rest of its group in reverse.
   `Ended` comes for each, and only then does the act stop the next one: two incarnations never run side by side.
4. The act starts the group in order. `Up` comes for each, and only then does the act start the next one.

A start that fails while its group is restarted is judged anew. For such a failure Restart means a retry: it goes to the
back of the inbox, or waits for the child's backoff, and the supervisor serves other items meanwhile.

Guards
======

Inputs come late: a child fails while its stop is on its way, or a timer passes when its child is gone.

- `incarnation` counts the starts of a name and never goes back. The machine drops a report of an earlier incarnation.
- `epoch` changes when the items about a child that wait in the inbox become void: when the child is started, stopped or
  removed. An item keeps the epoch in which it was made, and `_serve` skips it once the child has another. (A `Retry` checks
  the child's state instead, see `act.Retry`.)
- `awaited`: the act waits until this child is up or has ended, and `pending` counts those children. Only an awaited
  child moves the act on when it ends: another child may end by itself at the same time.
- A timer counts only if its number is still the child's own (`timers`).
- `undecided`: the child's failure has its `Failed`, but not yet its `Decided`. Each failure gets exactly one `Decided`
  (R32): an act that stops the child before its verdict reports the failure as absorbed, or as too late.

Invariants
==========

The exploration demands these in every state that it reaches (`tests/explore/invariants.py`).

- A machine starts its children one at a time and stops them one at a time, except that the members of a pool all stop at once.
- `act.pending` is the number of awaited children, and one more while a verdict on the supervisor's own failure is awaited.
- Without an act the inbox is empty, and every child is up, down with nothing before it, backing off, or releasing.
- Each request is answered once, unless it is withdrawn before its turn.
- The machine emits `Gone` once each time a child is down for good, and never while something will start that child again.

Releasing
=========

Only the group of a leaf has to wait while it leaves its resource. Under one_for_one the leaf has no group: it becomes
`releasing`, the supervisor serves other items meanwhile, and the act begins when the leaf has ended (R9, R19). The dict
`releasing` keeps those acts.

Between supervisors
===================

A supervisor below reports to its supervisor as a leaf does: `Up`, `Exited` with the failure that it passes up, `Ended`. It
receives orders by `Order`: a `Stop`, or a `Verdict` on the failure that it passed up. The forest delivers both from a work
list, so that a deep tree causes no deep recursion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import takewhile
from math import inf
from typing import Any, Literal

from .. import errors, events
from . import effect
from ._asked import asked
from ._brief import brief
from .act import ACTS, Act, Done, Judge, Released, Retry, Waiting
from .decide import ROOT, is_decidable
from .directive import Directive, Escalate, Restart, Resume, Stop
from .effect import Effect, Input, Request
from .limit import ReadyTime, Window
from .node import Failure, Memory, Node, Phase, Tombstone
from .spec import Child, Pool, Spec, Supervisor, check_fits
from .status import picture
from .timers import Timers
from .verdict import decision, is_charged, limit_exceeded

_FEW = 64  # an inbox up to this length is not swept of withdrawn requests


class Ledger:
    """The state that all machines of one tree share.

    `listening`: whether the tree has a sink; without one no event is made. `machines`: by its path, the machine of each
    supervisor that was started and has not ended.
    """

    __slots__ = ("listening", "machines")

    def __init__(self) -> None:
        self.listening = True
        self.machines: dict[str, Machine] = {}


class Machine:
    """One supervisor. It changes the nodes of its own children directly; everything else reaches it or leaves it by inputs and effects."""

    def __init__(self, node: Node, ledger: Ledger, parent: Machine | None = None) -> None:
        assert not isinstance(node.spec, Child)
        self.node = node
        self.parent = parent
        self.spec: Supervisor | Pool = node.spec
        self.path = node.path
        self.incarnation = node.incarnation
        self.ledger = ledger
        self.children: dict[str, Node] = {}
        self.joined = 0
        # The names of the children that an adoption has taken out while this supervisor did not run (R38).
        self._taken_out = [] if node.memory is None else node.memory.take_out(self.spec)
        for spec in self.spec.children:
            self._join(spec)
        self.inbox: deque[Waiting] = deque()
        self._sweep_at = _FEW
        self.act: Act | None = None
        self.releasing: dict[Node, Act] = {}  # the act that begins when each of them has ended
        self.retrying: dict[Node, None] = {}  # those that wait for a retry, and some that did
        self.phase: Literal["opening", "booting", "up", "ending", "ended"] = "opening"
        self._count_anew()
        self.now = 0.0
        self.u = 0.0
        self.out: list[Effect] = []
        self.timers = Timers()
        self.fast_act: Act | None = None  # the act of every restart in one step, see `shortcut`

    def __repr__(self) -> str:
        return (
            f"<machine {self.path!r} {self.phase} act={self.act and self.act.kind} waiting={len(self.inbox)}>"
        )

    def handle(self, item: Input, now: float, u: float = 0.5) -> list[Effect]:
        """Handle one input at time `now`; `u` in [0, 1) is the random number for jitter. Returns the effects in order."""
        self.now, self.u, self.out = now, u, []
        _ON_INPUT[type(item)](self, item)
        self._serve()
        return self.out

    def _serve(self) -> None:
        """Continue the act until it waits for an input; without an act, serve the next item of the inbox."""
        while True:
            self._advance()
            if self.act is not None or self.phase != "up" or not self.inbox:
                return
            item = self.inbox.popleft()
            if isinstance(item, Request):
                if not item.withdrawn:
                    _SERVE_REQUEST[item.kind](self, item)
            elif item.holds():
                _SERVE_ITEM[type(item)](self, item)

    def _advance(self) -> None:
        """Continue the act until it waits for a child: one child after the other, except that a pool stops all members at once (R26)."""
        while (act := self.act) is not None:
            if act.stops and (act.pending == 0 or isinstance(self.spec, Pool)):
                self._stop(act, act.stops.pop())
            elif act.pending:
                return
            elif act.starts:
                self._start(act, act.starts.pop())
            else:
                _FINISH[act.kind](self, act)

    # --- inputs

    def _on_boot(self, boot: effect.Boot) -> None:
        if self.phase != "opening":
            return
        if boot.ignored or boot.problem is not None:
            self._refuse_waiting()  # requests that came before `Boot` would never be answered otherwise
        if boot.ignored:
            self._end(effect.Ended(self.node.name, self.node.incarnation, ignored=True))
        elif boot.problem is not None:
            failure = Failure(boot.problem, self.path, self.node.incarnation, self.path)
            self._end(effect.Ended(self.node.name, self.node.incarnation, failure=failure))
        else:
            self.phase = "booting"
            self.out += [effect.Gone(f"{self.path}/{name}", None, removed=True) for name in self._taken_out]
            starts = list(reversed(self.children.values()))
            self.act = Act("boot", starts=starts)

    def _on_up(self, up: effect.Up) -> None:
        node = self.children.get(up.child)
        if node is None or node.incarnation != up.incarnation or node.state != "starting" or node.timed_out:
            return
        self.timers.disarm(node)
        self.note_restart(node, self.now, in_progress=False)
        node.state, node.since, node.ready_at = "up", self.now, self.now
        if self.ledger.listening and node.is_leaf:
            self.out.append(events.Ready(self.now, node.path, node.incarnation, up.value))
        self._stop_awaiting(node)

    def _on_exited(self, exited: effect.Exited) -> None:
        node = self.children.get(exited.child)
        if node is None or node.incarnation != exited.incarnation:
            return
        if node.state == "stopping" or node.timed_out:
            self._report_while_stopping(node, exited)
        elif node.state == "starting":
            self._start_failed(node, self._failure_of(node, exited))
        elif node.state == "up":
            self._body_is_over(node, exited)

    def _report_while_stopping(self, node: Node, exited: effect.Exited) -> None:
        """The child failed after the machine had already ordered its stop: report that, never decide it (R19, R23)."""
        if exited.risen is not None:
            # The supervisors below that wait for this verdict get the stop instead.
            if exited.risen.origin == node.path:
                self._decided(exited.risen, None, "stop")
            return
        if exited.exc is not None:
            self._stop_error(node, exited.exc)
        self.out.append(effect.Release(node.path, node.incarnation))

    def _stop_error(self, node: Node, exc: BaseException) -> None:
        """A failure during a stop is only an event; but an exception that is no `Exception` stops the whole tree even then (R4, R23)."""
        self._emit(events.StopError, node, exc=exc)
        if not is_decidable(exc):
            self.out.append(effect.Fatal(exc))
            self.releasing.pop(node, None)  # the whole tree is about to stop, so no act may start a child
            if self.act is not None:
                self.act.starts.clear()

    def _failure_of(self, node: Node, exited: effect.Exited) -> Failure:
        if exited.risen is not None:
            return exited.risen
        exc = exited.exc
        if exc is None:
            exc = errors.ChildReturned(f"permanent child {node.path!r} returned {brief(exited.value)}")
        return Failure(
            exc,
            node.path,
            node.incarnation,
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
        self._note_failure(node, self._failure_of(node, exited), risen=exited.risen is not None)
        if node.undecided:
            self.inbox.append(Judge(node, node.epoch))

    def _on_ended(self, ended: effect.Ended) -> None:
        node = self.children.get(ended.child)
        if node is None or node.incarnation != ended.incarnation or not node.alive:
            return
        self.timers.disarm(node)
        node.alive = False
        if node.has_machine:
            node.has_machine = False
            del self.ledger.machines[node.path]
        if node.state == "starting":
            self._start_ended(node, ended)
            return
        if ended.error is not None:
            self._stop_error(node, ended.error)
        if node.state == "up":
            self._ended_by_itself(node, ended.failure)
        else:
            self._emit(events.Stopped, node)
        if node.awaited:
            self._child_stopped(node)
        elif self.act is not None and self.act.for_good:
            self._close(self.act, node)
        elif node in self.releasing:
            self.inbox.append(Released(node, node.epoch))

    def _start_ended(self, node: Node, ended: effect.Ended) -> None:
        """A child ended before it was ready."""
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
            failure = Failure(exc, node.path, node.incarnation, node.path, starting=True)
        else:
            assert ended.failure is not None
            risen = ended.failure
            failure = Failure(risen.exc, node.path, node.incarnation, risen.path, starting=True)
        self._start_failed(node, failure)

    def _ignored(self, node: Node) -> None:
        self._stop_awaiting(node)
        self._stay_down(node, "down", None)

    def _ended_by_itself(self, node: Node, failure: Failure | None) -> None:
        """A supervisor below ended, normally or with a failure, without an order to stop."""
        if failure is None and node.spec.restart == "permanent":
            exc = errors.ChildReturned(f"permanent supervisor {node.path!r} ended normally")
            failure = Failure(exc, node.path, node.incarnation, node.path)
        if failure is not None:
            self._note_failure(node, failure)
            self.inbox.append(Judge(node, node.epoch))
        else:
            node.state, node.since = "stopping", self.now
            self._emit(events.Returned, node)
            self._emit(events.Stopped, node)
            self.inbox.append(Done(node, node.epoch))

    def _on_request(self, request: Request) -> None:
        if self.phase in ("ending", "ended"):
            self._refuse(request.token, f"supervisor {self.path!r} is stopping", "stopping")
        else:
            self.inbox.append(request)

    def _on_withdraw(self, withdraw: effect.Withdraw) -> None:
        """Mark the request, and drop the marked ones once the inbox has doubled: a busy supervisor may get many (R31)."""
        withdraw.request.withdrawn = True
        if len(self.inbox) > self._sweep_at:
            self.inbox = deque(
                item for item in self.inbox if not (isinstance(item, Request) and item.withdrawn)
            )
            self._sweep_at = max(_FEW, 2 * len(self.inbox))

    def _on_stop(self, stop: effect.Stop) -> None:
        if self.phase == "ended":
            return
        failure = None if stop.exc is None else Failure(stop.exc, self.path, self.node.incarnation, self.path)
        if self.act is not None and self.act.kind == "end":
            self.act.returned, self.act.failure = stop.returned, failure
            if stop.for_good:
                self._end_for_good(self.act, stop.why)
            return
        self._begin_end(stop.reason, returned=stop.returned, failure=failure, order=stop)

    def _on_verdict(self, verdict: effect.Verdict) -> None:
        act = self.act
        if act is None or act.kind != "ask":
            return
        if verdict.for_good:
            if not act.for_good:  # each supervisor above repeats it as it is stopped
                self._end_for_good(act, verdict.why)
            return
        node = act.node
        if node is None:
            return
        node.undecided = False
        if verdict.directive is Resume:
            self._stop_awaiting(node)
            self.act = None
            self._resume(node)
        else:
            self._settle_below(node)

    def _on_wake(self, _: effect.Wake) -> None:
        for node in self.timers.due(self.now):
            _ON_TIMEOUT[node.phase](self, node)
        at = self.timers.next()
        if at is not None:
            self.out.append(effect.WakeAt(self.path, at))

    # --- items of the inbox

    def _serve_failure(self, item: Judge) -> None:
        self._decide(item.node, [])

    def _serve_done(self, item: Done) -> None:
        node = item.node
        self.act = Act("done", node=node, stops=[node])

    def _serve_released(self, item: Released) -> None:
        self.act = self.releasing.pop(item.node)

    def _serve_retry(self, item: Retry) -> None:
        node = item.node
        if not node.retry_charged and not self.charge(self.now):
            node.state, node.since = "down", self.now
            self.note_restart(node, self.now, in_progress=False)
            assert node.last_failure is not None
            self._limit_passed(node.last_failure, node)
            return
        node.retry_charged = False
        self._restart(node)

    # --- starting a child

    def _start(self, act: Act, node: Node) -> None:
        """Start one child of this act, unless it runs, was condemned, or has left the tree since the act began."""
        if node.alive or node.state == "condemned" or self.children.get(node.name) is not node:
            return
        node.incarnation += 1
        node.epoch += 1
        node.state, node.since, node.ready_at = "starting", self.now, None
        node.alive = node.awaited = True
        node.timed_out = node.gone = node.undecided = False
        node.failure = None
        act.pending += 1
        if self.ready_time is not None and ACTS[act.kind].failed_start == "is judged":
            # A sibling that starts with its group counts too, whichever of them has failed.
            self.note_restart(node, self.now, in_progress=True)
        if not node.is_leaf:
            node.has_machine = True
            self.ledger.machines[node.path] = Machine(node, self.ledger, self)
        if self.ledger.listening:
            reason = None if act.token is None else act.why or None
            self.out.append(events.Starting(self.now, node.path, node.incarnation, reason))
        self.out.append(effect.Start(node.path, node.incarnation, node.spec))
        if node.slow_start:
            node.waited = 0.0
            node.interval = node.spec.start_warning if isinstance(node.spec, Child) else inf
            self._watch_start(node)

    def _watch_start(self, node: Node) -> None:
        """Wake when the start is to be reported as overdue, or has timed out."""
        timeout = inf if node.spec.start_timeout is None else node.spec.start_timeout
        self._arm(node, "start", node.since + min(timeout, node.waited + node.interval))

    def _start_takes_long(self, node: Node) -> None:
        """Report the start as overdue; past its timeout cancel the child, and the start has failed (R17)."""
        timeout = node.spec.start_timeout
        if timeout is None or self.now < node.since + timeout:
            node.waited += node.interval
            node.interval *= 2
            if self.ledger.listening:
                self.out.append(effect.ReportOverdue(node.path, node.incarnation, node.waited, starting=True))
            self._watch_start(node)
            return
        node.timed_out = True
        reason = f"{node.path!r}: start_timeout of {node.spec.start_timeout:g} s passed"
        self._cancel(node, reason)

    def _start_failed(self, node: Node, failure: Failure) -> None:
        """A child did not become ready. During a restart its failure is judged; otherwise the request or the boot fails (R16)."""
        act = self.act
        assert act is not None
        self.timers.disarm(node)
        self._emit(events.StartFailed, node)
        self._note_failure(node, failure)
        if not node.undecided:
            return  # the whole tree is about to stop, or this supervisor is stopping already
        self._stop_awaiting(node)
        row = ACTS[act.kind]
        if row.failed_start == "is judged":
            self._reply_start_failed(act.token, failure)
            self.act = None
            if row.finish == "_weigh_end" and act.node is not None:
                # The judgement replaces this act, but its own child has ended, and that must still be weighed.
                self.inbox.append(Done(act.node, act.node.epoch))
            self._decide(node, act.starts)
            return
        node.undecided = False
        self._decided(failure, None, "first start")
        if row.failed_start == "ends":
            self._begin_end(f"{failure.path!r} failed to start", first=node, failure=failure)
        else:
            act.failure = failure
            act.stops.append(node)

    def _reply_start_failed(self, token: Any, failure: Failure) -> None:
        if token is not None:
            self.out.append(effect.Reply(token, error=start_failed(failure)))

    # --- stopping a child

    def _stop(self, act: Act, node: Node) -> None:
        """Stop one child of this act; `_after_stop` sets its state once it has stopped."""
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
        """The child has no task: it has ended already, or it backs off. The act need not wait for it."""
        self.timers.disarm(node)
        if node.state == "failed":
            self._report_undecided(act, node)
            self._emit(events.Stopped, node)
        if node.state not in ("condemned", "down"):
            self._after_stop(act, node)
        elif not node.gone and act.asked_for(node) and not self._will_be_revived(node):
            self._stay_down(node, "down", None)  # nothing else reports the end of a new child (R38)

    def _stop_suspended(self, act: Act, node: Node) -> None:
        self._report_undecided(act, node)
        if node.has_machine:
            node.state, node.since = "stopping", self.now
            self._order_stop(act, node, act.why)
        else:
            self._release(node)

    def _stop_running(self, act: Act, node: Node) -> None:
        self._emit(events.Stopping, node, reason=act.why)
        starting = node.state == "starting"
        node.state, node.since = "stopping", self.now
        if isinstance(node.spec, Child) and node.spec.drain > 0 and not starting:
            self.out.append(effect.Ask(node.path, node.incarnation, act.why))
            self._arm(node, "drain", self.now + node.spec.drain)
        else:
            self._cancel(node, act.why)

    def _drain_is_over(self, node: Node) -> None:
        assert isinstance(node.spec, Child)
        assert self.act is not None
        self._cancel(node, f"{self.act.why}; not drained within {node.spec.drain:g} s")

    def _cancel(self, node: Node, reason: str) -> None:
        if node.has_machine:
            self.timers.disarm(node)
            self._order_stop(self.act, node, reason)
            return
        assert isinstance(node.spec, Child)
        self.out.append(effect.Cancel(node.path, node.incarnation, reason))
        node.interval, node.waited = node.spec.grace, 0.0
        self._arm(node, "grace", self.now + node.interval)

    def _order_stop(self, act: Act | None, node: Node, reason: str) -> None:
        """Order a supervisor below to stop. The order says whether it stays down until a request starts it (R29)."""
        stop = effect.Stop(reason)
        if act is not None:
            stays_down = act.node is node and ACTS[act.kind].stopped in (
                "down for good",
                "condemned",
                "removed",
            )
            stop.for_good = act.for_good or (stays_down and not self._will_be_revived(node))
            stop.why = act.why_for_good if node.failure is None else node.failure.exc
        self.out.append(effect.Order(node.path, stop))

    def _overdue(self, node: Node) -> None:
        """Report that the child is still there, and double the time until the next report (R20)."""
        node.waited += node.interval
        node.interval = max(1.0, 2 * node.interval)
        if self.ledger.listening:
            self.out.append(effect.ReportOverdue(node.path, node.incarnation, node.waited))
        self._arm(node, "grace", self.now + node.interval)

    def _release(self, node: Node) -> None:
        """Let a suspended leaf leave its resource, within its grace (R9)."""
        assert isinstance(node.spec, Child)
        node.state, node.since = "stopping", self.now
        node.interval, node.waited = node.spec.grace, 0.0
        self.out.append(effect.Release(node.path, node.incarnation))
        if node.spec.resource is not None:
            self._arm(node, "release", self.now + node.interval)

    def _release_is_overdue(self, node: Node) -> None:
        assert isinstance(node.spec, Child)
        self.out.append(
            effect.Cancel(
                node.path,
                node.incarnation,
                f"{node.path!r}: its resource was not left within {node.spec.grace:g} s",
            )
        )
        self._overdue(node)

    def _stop_awaiting(self, node: Node) -> None:
        """Count this node off from those that the act waits for, if it is one of them."""
        if node.awaited:
            node.awaited = False
            assert self.act is not None
            self.act.pending -= 1

    def _child_stopped(self, node: Node) -> None:
        """A child that the act was stopping has ended."""
        assert self.act is not None
        self._stop_awaiting(node)
        self._after_stop(self.act, node)

    def _after_stop(self, act: Act, node: Node) -> None:
        """Set the state of a child that has stopped, according to the act that stopped it."""
        why = None if node.failure is None else node.failure.exc
        node.failure = None
        node.state, node.since = "down", self.now
        stopped = ACTS[act.kind].stopped
        if stopped == "condemned":
            self._stay_down(node, "condemned", why)
        elif stopped == "down for good":
            self._stay_down(node, "down", why)
        elif stopped == "removed" or (stopped == "pending" and node.temporary and not act.asked_for(node)):
            self._remove(node, why)
        elif act.for_good:
            self._close(act, node)

    def _report_undecided(self, act: Act, node: Node) -> None:
        """Report a failure that the act overtook before its verdict (R13, R19)."""
        if node.undecided:
            assert node.failure is not None
            node.undecided = False
            self._decided(node.failure, None, ACTS[act.kind].undecided)
            self._settle_below(node)

    def _settle_below(self, node: Node) -> None:
        """Notify the supervisors below that wait for a verdict on this failure: it is settled."""
        if node.has_machine:
            self.out.append(effect.Order(node.path, effect.Verdict(None)))

    # --- down, and gone

    def _stay_down(self, node: Node, state: Literal["down", "condemned"], why: BaseException | None) -> None:
        """The node is down: for good, unless the retry of a sibling will start it with its group (R13, R29)."""
        if node.temporary or isinstance(self.spec, Pool):
            self._remove(node, why)
            return
        self.note_restart(node, self.now, in_progress=False)
        node.state, node.since = state, self.now
        if not node.gone and (state == "condemned" or not self._will_be_revived(node)):
            node.gone, node.why = True, why
            self.out.append(effect.Gone(node.path, why))

    def _will_be_revived(self, node: Node) -> bool:
        """Whether a sibling waits for a retry that starts this child too."""
        if self.spec.strategy == "one_for_one":
            return False
        for other in list(self.retrying):
            if other.state != "restarting":
                del self.retrying[other]
            elif other is not node and (self.spec.strategy == "one_for_all" or other.number < node.number):
                return True
        return False

    def _remove(self, node: Node, why: BaseException | None) -> None:
        """The node leaves the tree."""
        if self.children.get(node.name) is node:
            del self.children[node.name]
        self.note_restart(node, self.now, in_progress=False)
        self.retrying.pop(node, None)
        node.epoch += 1
        node.state, node.since = "down", self.now
        self._forget(node, why)

    def _forget(self, node: Node, why: BaseException | None) -> None:
        """Leave a tombstone in this supervisor's memory. For names generated by the pool keep only the highest incarnation."""
        memory = self._memory()
        if node.generated_name:
            memory.generated = max(memory.generated, node.incarnation)
        else:
            memory.leave(node, why)
        node.gone, node.why = True, why
        self.out.append(effect.Gone(node.path, why, removed=True))

    def _join(self, spec: Spec, node: Node | None = None) -> Node:
        """Add a child at the end: a new one, or `node`, which takes the declaration `spec`."""
        has_no_group = self.spec.strategy == "one_for_one"
        if node is not None:
            node.adopt(spec, self.node.decider, has_no_group=has_no_group)
        else:
            node = Node(spec, f"{self.path}/{spec.name}", self.node.decider, has_no_group=has_no_group)
            if self.node.memory is not None:
                self.node.memory.recall(node)
        self.joined += 1
        node.number = self.joined
        self.children[spec.name] = node
        return node

    def _memory(self) -> Memory:
        """What this supervisor remembers of its children; made at the first need."""
        if self.node.memory is None:
            self.node.memory = Memory()
        return self.node.memory

    # --- failures

    def _note_failure(self, node: Node, failure: Failure, *, risen: bool = False) -> None:
        """Note a failure. One that no decider may decide is reported at once: one that is no `Exception`, or comes during the end."""
        node.failure = failure
        node.state, node.since = "failed", self.now
        node.last_failure = failure.exc
        if not risen:
            self._report_failure(node, failure.exc)
        if not is_decidable(failure.exc):
            self._fatal(failure)
        elif self.phase == "ending":
            self._decided(failure, None, "stop")
            self._settle_below(node)
        else:
            node.undecided = True
        if self.act is not None and self.act.for_good:
            self._close(self.act, node)

    def _fatal(self, failure: Failure) -> None:
        """No decider is asked about an exception that is no `Exception`: the whole tree stops (R4)."""
        self._decided(failure, None, "not an Exception")
        self.out.append(effect.Fatal(failure.exc))

    def _decide(self, node: Node, rest: list[Node]) -> None:
        """Decide the failure of a suspended or dead child. `rest`: the children that its group has still to start."""
        assert node.failure is not None
        decider = node.decider if isinstance(node.spec, Child) else self.node.decider
        directive, details = decision(node, decider, self.now)
        if directive is None:
            node.undecided = False
            self._fatal(node.failure)
        else:
            self._carry_out(directive, node, rest, details)

    def _carry_out(self, directive: Directive, node: Node, rest: list[Node], details: dict[str, Any]) -> None:
        """Charge the limit, report the decision, and begin the act that it asks for (R8, R10, R14)."""
        failure = node.failure
        assert failure is not None
        if directive is Escalate:
            self._escalate(failure, node, details)
            return
        node.undecided = False
        charged = is_charged(directive, failure)
        if directive is Restart and failure.starting:
            charged = False  # a start that failed is retried, and each retry pays for itself when its turn comes (R13)
        if charged and not self.charge(self.now):
            self._decided(failure, directive, limit=str(self.spec.limit), **details)
            self._settle_below(node)
            self._limit_passed(failure.exc, node)
            return
        delay = 0.0
        if directive is Restart and node.delays is not None:
            ready = 0.0 if node.ready_at is None else self.now - node.ready_at
            delay = node.delays.next(ready, self.u)
            details["attempt"] = node.delays.attempt
        self._decided(failure, directive, **details)
        if directive is Resume:
            self._resume(node)
        elif directive is Stop:
            self._settle_below(node)
            self._begin(Act("condemn", f"{node.path!r} was condemned", node, [node], rest))
        else:
            self._settle_below(node)
            self._restart(node, delay)

    def _begin(self, act: Act) -> None:
        """Begin an act that a verdict asks for: at once, or when its leaf has left its resource.

        Only the group of a leaf has to wait for that. Under one_for_one it has no group, so the supervisor serves other items
        meanwhile (R9, R19).
        """
        node = act.node
        assert node is not None
        is_suspended = self.spec.strategy == "one_for_one" and node.alive and node.state == "failed"
        if is_suspended and isinstance(node.spec, Child) and node.spec.resource is not None:
            self._release(node)
            node.state, node.since = "releasing", self.now
            self.releasing[node] = act
        else:
            self.act = act

    def _escalate(self, failure: Failure, node: Node, details: dict[str, Any]) -> None:
        """Ask the supervisor above for its verdict; at the root, fail the tree (R11)."""
        if self.parent is not None:
            self.act = Act("ask", node=node, pending=1)
            node.awaited = True
            self.out.append(
                effect.Rise(self.path, effect.Exited(self.node.name, self.node.incarnation, risen=failure))
            )
            return
        node.undecided = False
        self._decided(failure, Escalate, **details)
        self._settle_below(node)
        self._fail(failure)
        self._begin_end(f"{self.path!r} failed: {failure.path!r} escalated")

    def _fail(self, failure: Failure) -> None:
        """The root fails, and the tree with it."""
        self.node.why = failure.exc
        self.out.append(effect.Fail(failure.exc))

    def _resume(self, node: Node) -> None:
        """Let the leaf enter its body again; a supervisor passes this verdict down to the leaf that failed (R8, R11)."""
        node.state, node.since = "up", self.now
        node.failure = None
        if node.has_machine:
            self.out.append(effect.Order(node.path, effect.Verdict(Resume)))
        else:
            self._emit(events.Resumed, node)
            self.out.append(effect.Resume(node.path, node.incarnation))

    def _limit_passed(self, cause: BaseException, node: Node) -> None:
        """The limit allows no further restart (R14)."""
        if self.spec.on_limit == "shutdown":
            self._begin_end(f"{self.path!r} passed its limit of {self.spec.limit}", first=node, returned=True)
            return
        exc = limit_exceeded(self.path, self.spec.limit, cause)
        failure = Failure(exc, self.path, self.node.incarnation, self.path, "limit")
        self.act = Act("limit", f"{self.path!r} passed its limit", stops=[node], failure=failure)

    # --- restarts

    def _group(self, node: Node) -> list[Node]:
        """The children that are restarted together with this one, itself included, in start order (R13)."""
        if self.spec.strategy == "one_for_one":
            return [node]
        if self.spec.strategy == "one_for_all":
            return list(self.children.values())
        later = list(takewhile(lambda other: other is not node, reversed(self.children.values())))
        return [node, *reversed(later)]

    def why_restarted(self, node: Node) -> str:
        """The reason given to the children that are stopped because this one failed (R36)."""
        sibling = "" if self.spec.strategy == "one_for_one" else "sibling "
        return f"{self.spec.strategy}: {sibling}{node.path!r} failed"

    def _restart(self, node: Node, delay: float = 0.0) -> None:
        """Stop the group of this child, which failed or whose retry is due; start it again, after its backoff if it has one."""
        if node.failure is not None and node.failure.starting:
            self._restart_later(node, delay)
            return
        self.note_restart(node, self.now, in_progress=True)
        group = stops = self._group(node)
        if len(group) > 1:
            delay = max(delay, self._cancel_retries(group, node))
            stops = [*(other for other in group if other is not node), node]
        if delay > 0:
            node.retry_charged = True
            self._begin(Act("retry", self.why_restarted(node), node, stops, delay=delay))
        else:
            self._begin(Act("restart", self.why_restarted(node), node, stops, group[::-1]))

    def _restart_by_hand(self, node: Node, request: Request) -> None:
        """Stop this child in its place, with its group, and start them again at once (R25)."""
        self.timers.disarm(node)
        self.note_restart(node, self.now, in_progress=True)
        group = self._group(node)
        self._cancel_retries(group, node)
        why = asked(node.path, "restart", request.reason)
        self.act = Act("restart", why, node, group, group[::-1], token=request.token)

    def _cancel_retries(self, group: list[Node], node: Node) -> float:
        """Cancel the retries of a group: its restart starts those children too. Returns the seconds until the latest retry."""
        longest = 0.0
        _revive(group)
        for other in group:
            if other is not node and other.state == "restarting":
                longest = max(longest, other.due - self.now)
                self._cancel_retry(other)
        return longest

    def _restart_later(self, node: Node, delay: float) -> None:
        """A start failed during a restart: end it, and queue its retry or wait for its backoff (R13)."""
        _revive(self._group(node))
        stops = [node]
        if delay > 0 and self.spec.strategy == "one_for_all":
            stops = [*(other for other in self.children.values() if other is not node and other.alive), node]
        node.retry_charged = False
        self._begin(Act("retry", self.why_restarted(node), node, stops, delay=delay))

    def _cancel_retry(self, node: Node) -> None:
        """Cancel this node's retry: a `Retry` in the inbox is skipped unless the node is `restarting` again by then."""
        node.state, node.since = "down", self.now
        self.timers.disarm(node)
        self.note_restart(node, self.now, in_progress=False)

    def _backed_off(self, node: Node) -> None:
        self.timers.disarm(node)
        self.inbox.append(Retry(node, node.epoch))

    # --- requests, see R25

    def _find(self, request: Request) -> Node | None:
        node = self.children.get(request.name or "")
        if node is None:
            self._refuse(request.token, f"{self.path!r} has no child {request.name!r}", "not_found")
        return node

    def _find_static(self, request: Request) -> Node | None:
        """The child that is to be started; a member of a pool cannot be started by hand."""
        if isinstance(self.spec, Pool):
            self._refuse(request.token, f"members of pool {self.path!r} are not started by hand", "pool")
            return None
        return self._find(request)

    def _serve_add(self, request: Request) -> None:
        try:
            spec = self._wanted(request)
        except (TypeError, ValueError, errors.Refused) as problem:
            self.out.append(effect.Reply(request.token, error=problem))
            return
        node = self._join(spec)
        if isinstance(self.spec, Pool):
            node.generated_name = request.name is None
            if not node.generated_name and node.name.rpartition("-")[2].isdecimal():
                # The pool may have generated this name before, also by an earlier template, and the incarnations of a name never
                # go back (R9).
                missing = max(0, self._memory().generated - node.incarnation)
                node.incarnation += missing
                node.first += missing
        self.act = Act("add", request.reason or "", node, starts=[node], token=request.token)

    def _wanted(self, request: Request) -> Spec:
        """The spec of the child that is to be added; raises the caller's error if it cannot be added."""
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
        return pool.member(self._next_name() if request.name is None else request.name, request.args)

    def _next_name(self) -> str:
        assert isinstance(self.spec, Pool)
        memory = self._memory()
        while True:
            memory.members += 1
            name = f"{self.spec.template.name}-{memory.members}"
            if name not in self.children:  # a caller of `add` may have chosen it
                return name

    def _serve_start(self, request: Request) -> None:
        node = self._find_static(request)
        if node is None:
            return
        if node.state == "restarting" and node.phase == "backoff":
            self._restart_by_hand(node, request)
        elif node.state == "restarting":
            self._refuse(request.token, f"{node.path!r} is restarting", "restarting")
        elif node.state in ("down", "condemned"):
            self._start_by_hand(node, request)
        else:
            self._refuse(request.token, f"{node.path!r} is running", "running")

    def _serve_restart(self, request: Request) -> None:
        if self._find_static(request) is not None:
            self._serve_renew(request)

    def _serve_renew(self, request: Request) -> None:
        """Restart a child that has other code, or takes its messages from elsewhere, by another declaration (R38)."""
        node = self._find(request)
        if node is None:
            return
        if node.state in ("down", "condemned"):
            self._start_by_hand(node, request)
        else:
            self._restart_by_hand(node, request)

    def _start_by_hand(self, node: Node, request: Request) -> None:
        node.state, node.since = "down", self.now
        why = asked(node.path, "start", request.reason)
        self.act = Act("start", why, node, starts=[node], token=request.token)

    def _serve_stop(self, request: Request) -> None:
        node = self._find(request)
        if node is None:
            return
        why = asked(node.path, "stop", request.reason)
        if node.state == "restarting":
            self._cancel_retry_by_hand(node)
        afterwards = self.releasing.get(node)
        # The verdict Stop stands: a stop by hand does not turn `condemned` into `down`.
        condemned = afterwards is not None and afterwards.kind == "condemn"
        self.act = Act("condemn" if condemned else "stop", why, node, [node], token=request.token)

    def _cancel_retry_by_hand(self, node: Node) -> None:
        """The child is stopped by hand while its retry is due: the whole group is down for good (R13)."""
        group = self._group(node)
        self._cancel_retry(node)
        for other in group:
            if other.state == "down" and not other.gone and not other.is_new:
                self._stay_down(other, "down", None)

    def _serve_remove(self, request: Request) -> None:
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
            self._remove(node, None)
            self.out.append(effect.Reply(request.token, node.path))

    def _serve_adopt(self, request: Request) -> None:
        """Take another declaration of this supervisor and of its children; nothing is stopped or started by that (R38).

        Children that it does not declare, or declares as another kind of node, must have left the tree before.
        """
        spec, before = request.spec, self.spec
        assert spec is not None
        assert not isinstance(spec, Child)
        for node in self.left_out_by(spec):
            self._refuse(request.token, f"{node.path!r} is still in the tree", "running")
            return
        self.spec = spec
        if self.parent is None:
            self.node.adopt(spec, ROOT, has_no_group=False)
        self._join_anew(before)
        if spec.limit != before.limit:
            self._count_anew()
            for node in self.children.values():
                in_progress = node.restart_in_progress or node.state == "restarting"
                node.restart_in_progress = False
                self.note_restart(node, self.now, in_progress=in_progress)
        self._review_retries()
        self.out.append(effect.Reply(request.token, self.path))

    def _review_retries(self) -> None:
        """Do what the new declaration says about the children that wait for a retry (R38)."""
        for node in self.children.values():
            if node.temporary and _waits(node):
                self._cancel_retry(node)
                node.state = "stopping"  # a temporary child is never restarted: it leaves the tree (R7)
                self.inbox.append(Done(node, node.epoch))
        waiting = [node for node in self.children.values() if node.state == "restarting"]
        self.retrying = {} if self.spec.strategy == "one_for_one" else dict.fromkeys(waiting)
        for node in waiting:
            _revive(self._group(node))
        for node in self.children.values():
            if node.state == "down" and _waits(node) and not self._will_be_revived(node):
                self._retry_alone(node)

    def _retry_alone(self, node: Node) -> None:
        """Start at once a child that waited for the retry of a sibling whose group it has left (R38). That retry was charged (R14)."""
        node.state, node.since, node.due = "restarting", self.now, self.now
        node.retry_charged = True
        if self.spec.strategy != "one_for_one":
            self.retrying[node] = None
        self.note_restart(node, self.now, in_progress=True)
        self.inbox.append(Retry(node, node.epoch))

    def check_added(self, spec: Supervisor | Pool) -> None:
        """Raise `ValueError` if a child that was added at run time, and would stay, does not fit into `spec`."""
        names = {child.name for child in spec.children} | {child.name for child in self.spec.children}
        for name, node in self.children.items():
            if name not in names:
                check_fits(spec, node.spec)

    def left_out_by(self, spec: Supervisor | Pool) -> list[Node]:
        """The children that leave the tree if it adopts `spec`.

        A child that was added at run time leaves only if it does not fit. The check before an adoption (`check_added`) refuses such a
        child, so it was added after that check.
        """
        kinds = {child.name: type(child) for child in spec.children}
        was = {child.name for child in self.spec.children}
        return [
            node
            for name, node in self.children.items()
            if (
                kinds.get(name) is not type(node.spec)
                if name in was or name in kinds
                else not _fits(spec, node.spec)
            )
        ]

    def _join_anew(self, before: Supervisor | Pool) -> None:
        """Put the children into the order of the declaration, the added ones behind them; new ones join, down so far.

        A child that was declared already, but has ended and left the tree, is started only by a restart of this supervisor.
        """
        there = dict(self.children)
        was = {child.name: type(child) for child in before.children}
        self.children.clear()
        self.joined = 0
        for child in self.spec.children:
            if child.name in there or was.get(child.name) is not type(child):
                self._join(child, there.pop(child.name, None))
        for node in there.values():
            self._join(node.spec, node)

    def _serve_status(self, request: Request) -> None:
        """Answer with the status when this request's turn has come; `Forest.status` never waits (R33)."""
        self.out.append(effect.Reply(request.token, picture(self.node, self.ledger.machines, self.now)))

    # --- how an act finishes

    def _finish_boot(self, _: Act) -> None:
        self.act = None
        self.phase = "up"
        self._emit(events.Ready, self.node)
        self.out.append(effect.Rise(self.path, effect.Up(self.node.name, self.node.incarnation)))

    def _finish_restart(self, act: Act) -> None:
        self.act = None
        if act.token is not None:
            assert act.node is not None
            self.out.append(effect.Reply(act.token, act.node.path))

    def _finish_retry(self, act: Act) -> None:
        """Every child of the act has stopped: arm the backoff, or queue the retry behind the items that wait already."""
        self.act = None
        node = act.node
        assert node is not None
        if self.children.get(node.name) is not node:
            return  # it has become temporary meanwhile, and has left the tree (R38)
        node.state, node.since = "restarting", self.now
        if self.spec.strategy != "one_for_one":
            self.retrying[node] = None
        self.note_restart(node, self.now, in_progress=True)
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
            assert act.node is not None
            self.out.append(effect.Reply(act.token, act.node.path))

    def _weigh_end(self, act: Act) -> None:
        """A child has ended by itself, or by a verdict: end the supervisor too if its `auto_shutdown` says so (R18)."""
        self.act = None
        node, mode = act.node, self.spec.auto_shutdown
        assert node is not None
        if act.token is not None:
            self.out.append(effect.Reply(act.token, node.path))
        if not node.spec.significant:
            return
        if mode == "all_significant" and any(map(_is_significant_and_on, self.children.values())):
            return
        why = f"{self.path!r} shuts down: {mode.replace('_', ' ')} child {node.path!r} has ended"
        self._begin_end(why, returned=True)

    def _finish_limit(self, act: Act) -> None:
        """The failed child has stopped: the supervisor itself fails, and passes that failure up (R14)."""
        assert act.failure is not None
        self.act = None
        self.node.last_failure = act.failure.exc
        self._report_failure(self.node, act.failure.exc)
        if self.parent is None:
            self.node.state, self.node.since = "failed", self.now
            self._decided(act.failure, Escalate)
            self._fail(act.failure)
            self._begin_end(act.why)
        else:
            self.act = Act("ask", pending=1)
            self.out.append(
                effect.Rise(
                    self.path, effect.Exited(self.node.name, self.node.incarnation, risen=act.failure)
                )
            )

    def _finish_end(self, act: Act) -> None:
        self.act = None
        self._end(
            effect.Ended(self.node.name, self.node.incarnation, returned=act.returned, failure=act.failure)
        )

    # --- the end

    def _begin_end(
        self,
        why: str,
        *,
        first: Node | None = None,
        returned: bool = False,
        failure: Failure | None = None,
        order: effect.Stop | None = None,
    ) -> None:
        """Stop every child in reverse, `first` before the others, but wait first of all for a child that is already leaving.

        What no `order` asks for is an end of this supervisor by itself, after which only a root never starts again.
        """
        self._refuse_waiting()
        self.phase = "ending"
        stops = sorted(self.children.values(), key=lambda node: 2 if node.leaving else node is first)
        self.act = act = Act("end", why, stops=stops, returned=returned, failure=failure)
        if order is not None and order.for_good:
            self._end_for_good(act, order.why)
        elif order is None and self.parent is None:
            self._end_for_good(act, self.node.why if failure is None else failure.exc)

    def _end_for_good(self, act: Act, why: BaseException | None) -> None:
        """No start follows this end, so the children whose bodies are over are down for good from now on (R29)."""
        act.for_good, act.why_for_good = True, why
        for node in list(self.children.values()):
            if node.state == "restarting":
                self._stop_dead(act, node)
            elif node.has_machine and node.state == "stopping":
                # The order by which it is stopping may have been that of a restart.
                self._order_stop(act, node, act.why)
            else:
                self._close(act, node)

    def _close(self, act: Act, node: Node) -> None:
        """A child whose body is over is down for good at once, also if it has to wait for its turn to leave its resource (R29).

        A supervisor that waits for the verdict on a failure closes its own such children.
        """
        is_over = not node.alive or (node.is_leaf and node.state in ("failed", "releasing"))
        if node.has_machine and node.state == "failed":
            self.out.append(
                effect.Order(node.path, effect.Verdict(None, for_good=True, why=act.why_for_good))
            )
        elif is_over and not node.gone:
            node.gone, node.why = True, act.why_for_good
            self.out.append(effect.Gone(node.path, act.why_for_good))

    def _refuse_waiting(self) -> None:
        """Give up the act and empty the inbox; refuse the requests."""
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
                self.timers.disarm(node)  # the act `end` stops it in its turn

    def _end(self, ended: effect.Ended) -> None:
        self.phase = "ended"
        declared = set(self.spec.children)
        memory = self._memory()
        for node in self.children.values():
            if node.spec in declared:
                memory.declared[node.spec.name] = Tombstone(node, None)
            else:
                self._forget(node, None)
        self.timers.clear()
        self.out.append(effect.Rise(self.path, ended))

    # --- the books

    def _count_anew(self) -> None:
        """Begin to count the restarts that its limit allows."""
        limit = self.spec.limit
        self.window = None if limit is None else Window(limit)
        self.ready_time = ReadyTime() if limit is not None and limit.of_ready_time else None

    def charge(self, now: float) -> bool:
        """Charge the limit with one restart. Returns False, and charges nothing, if it allows no more."""
        return self.window is None or self.window.charge(self._clock(now))

    def _clock(self, now: float) -> float:
        """`now` on the clock of this supervisor's limit: the ready time, if the limit counts that (R14)."""
        return now if self.ready_time is None else self.ready_time.at(now)

    def restarts(self, now: float) -> int:
        """How many restarts its limit counts now."""
        return 0 if self.window is None else self.window.count(self._clock(now))

    def starts_again(self, node: Node) -> bool:
        """Whether the restart or the retry in progress will start this child, which may still run."""
        act = self.act
        if act is None:
            return False
        return node in act.starts or (
            act.kind == "retry" and act.node is not None and node in self._group(act.node)
        )

    def note_restart(self, node: Node, now: float, *, in_progress: bool) -> None:
        """Note that a restart of this child begins or ends; ready time stands still in between (R14)."""
        if self.ready_time is not None and node.restart_in_progress != in_progress:
            node.restart_in_progress = in_progress
            self.ready_time.hold(now, in_progress=in_progress)

    def _arm(self, node: Node, phase: Phase, at: float) -> None:
        """Give this child a timer, instead of its present one."""
        if self.timers.arm(node, phase, at):
            self.out.append(effect.WakeAt(self.path, at))

    def _report_failure(self, node: Node, exc: BaseException) -> None:
        node.failures += 1
        self._emit(events.Failed, node, exc=exc)

    def _emit(self, cls: Callable[..., events.Event], node: Node, **details: Any) -> None:
        if self.ledger.listening:
            self.out.append(cls(at=self.now, path=node.path, incarnation=node.incarnation, **details))

    def _decided(
        self,
        failure: Failure,
        directive: Directive | None,
        because: events.Because = "table",
        **details: Any,
    ) -> None:
        node = self._origin(failure)
        if node is not None:
            node.decision = (self.now, directive, failure.tag, self.path, because)
        if self.ledger.listening:
            where = (self.now, failure.origin, failure.incarnation)
            decided = events.Decided(
                *where, directive, self.path, failure.exc, because, failure.tag, **details
            )
            self.out.append(decided)

    def _origin(self, failure: Failure) -> Node | None:
        """The node that is suspended with a failure; None if it has left the tree."""
        if failure.origin == self.path:
            return self.node
        above, _, name = failure.origin.rpartition("/")
        machine = self.ledger.machines.get(above)
        return None if machine is None else machine.children.get(name)

    def _refuse(self, token: Any, message: str, reason: errors.Reason) -> None:
        if token is not None:
            self.out.append(effect.Reply(token, error=errors.Refused(message, reason=reason)))


def _fits(spec: Supervisor | Pool, child: Spec) -> bool:
    try:
        check_fits(spec, child)
    except ValueError:
        return False
    return True


def _is_significant_and_on(node: Node) -> bool:
    return node.spec.significant and node.state not in ("down", "condemned")


def _waits(node: Node) -> bool:
    """Whether a retry will start this child: its own, or that of a sibling (R13)."""
    return node.state == "restarting" or (node.state == "down" and not node.gone and not node.is_new)


def _revive(group: list[Node]) -> None:
    """Revoke `gone` for the children of the group that are down: a start is ahead of them (R13, R29)."""
    for node in group:
        if node.state == "down":
            node.gone, node.why = False, None


def start_failed(failure: Failure) -> errors.StartFailed:
    """The error that a caller gets for a failed start, with the failure as its cause."""
    exc = errors.StartFailed(f"{failure.path!r} failed to start: {brief(failure.exc)}", path=failure.path)
    exc.__cause__ = failure.exc
    return exc


_Table = dict[Any, Callable[[Machine, Any], None]]

_ON_INPUT: _Table = {
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
_SERVE_ITEM: _Table = {
    Judge: Machine._serve_failure,
    Done: Machine._serve_done,
    Retry: Machine._serve_retry,
    Released: Machine._serve_released,
}
_SERVE_REQUEST: _Table = {
    "add": Machine._serve_add,
    "stop": Machine._serve_stop,
    "start": Machine._serve_start,
    "restart": Machine._serve_restart,
    "renew": Machine._serve_renew,
    "remove": Machine._serve_remove,
    "adopt": Machine._serve_adopt,
    "status": Machine._serve_status,
}
_ON_TIMEOUT: _Table = {
    "start": Machine._start_takes_long,
    "drain": Machine._drain_is_over,
    "grace": Machine._overdue,
    "release": Machine._release_is_overdue,
    "backoff": Machine._backed_off,
}
_FINISH: _Table = {kind: getattr(Machine, row.finish) for kind, row in ACTS.items() if row.finish}
