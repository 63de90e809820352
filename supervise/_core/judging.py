"""What becomes of a failure: the verdict, its price, and the restart that follows (R7–R16)."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from .. import errors, events
from . import effect
from ._brief import brief
from .act import Act, Done
from .acting import Acting
from .decide import Verdict, is_decidable, judge
from .directive import Directive, Escalate, Restart, Resume, Stop
from .effect import Effect, Failure
from .node import Node
from .spec import Child


class Judging(Acting):
    """Decides failures, and carries the decision as far as the next act."""

    def _failed(self, node: Node, failure: Failure, *, risen: bool = False) -> None:
        """Note a failure, and see whether anybody may decide it."""
        node.failure = failure
        node.state = "failed"
        node.last_failure = failure.exc
        if not risen:
            self._emit(events.Failed, node, exc=failure.exc)
        if not is_decidable(failure.exc):
            self._fatal(failure)
        elif self.phase == "ending":
            self._decided(failure, None, "stop")
            self._overrule(node)
        else:
            node.undecided = True

    def _fatal(self, failure: Failure) -> None:
        """Nobody decides what is no `Exception`: the whole tree stops (R4)."""
        self._decided(failure, None, "not an Exception")
        self.out.append(effect.Fatal(failure.exc))

    def _judge(self, node: Node, rest: list[Node]) -> None:
        """Decide the failure of a suspended or dead child. `rest`: what the group had still to start."""
        assert node.failure is not None
        decider = node.decider if isinstance(node.spec, Child) else self.node.decider
        verdict = judge(decider, node.failure.exc, node.failure.tag)
        self._adopt(node, verdict)
        because: events.Because = "table"
        if not self._within_own_limit(node, self._final(node, verdict)):
            because = "limit"
            exc = _limit_exceeded(node.path, node.spec.limit, node.failure.exc)
            verdict = judge(decider, exc, "limit", otherwise=Stop)
            self._adopt(node, verdict)
        if verdict.raised and not is_decidable(verdict.exc):
            node.undecided = False
            self._fatal(node.failure)
            return
        directive = self._final(node, verdict)
        details = {
            "because": "raised" if verdict.raised else because,
            "instead_of": None if directive is verdict.directive else verdict.directive,
            "decider": verdict.node or None,
            "entry": None if verdict.raised else verdict.entry,
            "applied_to": None if node.failure.origin is node else node.path,
        }
        self._apply(node, directive, rest, details)

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

    def _apply(self, node: Node, directive: Directive, rest: list[Node], details: dict[str, Any]) -> None:
        failure = node.failure
        assert failure is not None
        if directive is Escalate:
            self._escalate(failure, node, details)
            return
        node.undecided = False
        charged = directive is Restart and not failure.starting
        charged = charged or (directive is Resume and not failure.progressed)
        if charged and not self._charge():
            self._decided(failure, directive, limit=str(self.spec.limit), **details)
            self._overrule(node)
            self._limit_passed(failure.exc, node)
            return
        delay = self._delay(node) if directive is Restart else 0.0
        if directive is Restart and node.delays is not None:
            details["attempt"] = node.delays.attempt
        self._decided(failure, directive, **details)
        if directive is Resume:
            self._enter_again(node)
        elif directive is Stop:
            self._overrule(node)
            self._begin(Act("condemn", f"{node.path!r} was condemned", node, [node], rest))
        else:
            self._overrule(node)
            self._restart(node, delay)

    def _begin(self, act: Act) -> None:
        """Begin an act that a verdict asks for, at once, or, if it concerns one leaf that has still to be released, when that has ended.

        How long a leaf takes to leave its resource concerns nobody else: the supervisor serves others meanwhile (R9, R19).
        """
        node = act.node
        assert node is not None
        alone = self.spec.strategy == "one_for_one" and node.alive and node.state == "failed"
        if alone and isinstance(node.spec, Child) and node.spec.resource is not None:
            self._stop_suspended(act, node)
            node.state = "releasing"
            self.releasing[node] = act
        else:
            self.act = act

    def _charge(self) -> bool:
        return self.window is None or self.window.charge(self._clock())

    def _escalate(self, failure: Failure, node: Node, details: dict[str, Any]) -> None:
        """Nobody here decides: ask the supervisor above, or, at the root, give up (R11)."""
        if self.node.parent is not None:
            self.act = Act("ask", node=node, pending=1)
            node.awaited = True
            self.out.append(effect.Rise(effect.Exited(self.node, self.node.incarnation, risen=failure)))
            return
        node.undecided = False
        self._decided(failure, Escalate, **details)
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
        self.act = Act("limit", f"{self.path!r} passed its limit", stops=[node], failure=failure)

    # --- the short way

    def restart_at_once(self, node: Node, exc: Exception, now: float) -> list[Effect] | None:
        """`Exited` and `Ended` in one step, for a running leaf that has failed and leaves nothing, if Restart is all there is to it.

        Gives the events, behind which its next incarnation starts; None, and nothing has changed: it has to go the long
        way. The exploration holds the two ways against each other in every state.
        """
        if self.act is not None or node.state != "up" or not node.simple:
            return None  # without an act nothing waits
        tag, answer = node.decider.looked_up(exc)
        if answer is None:
            return None
        directive, decider, entry = answer
        if directive is not Restart or not self._charge_both(node, now):
            return None
        node.last_failure = exc
        node.incarnation += 1
        node.state, node.awaited = "starting", True
        if node.alone is None:
            node.alone = Act("restart", self._why(node), node)
        self.act = node.alone
        self.act.pending = 1
        if self._ready_time is not None:
            self.now = now
            self._mend(node, mending=True)
        if not self.ledger.listening:
            return []
        path, life = node.path, node.incarnation
        return [
            events.Failed(now, path, life - 1, exc),
            events.Decided(
                now,
                path,
                life - 1,
                Restart,
                by=self.path,
                exc=exc,
                because="table",
                tag=tag,
                decider=decider or None,
                entry=entry,
            ),
            events.Stopped(now, path, life - 1),
            events.Starting(now, path, life),
        ]

    def up_at_once(self, node: Node, now: float) -> list[Effect] | None:
        """`Up` of a leaf that `restart_at_once` had started, if nothing waits for that; otherwise None, and nothing has changed."""
        if self.act is not node.alone or node.alone is None or self.inbox or node.state != "starting":
            return None
        self.act = None
        node.state, node.awaited, node.since = "up", False, now
        if self._ready_time is not None:
            self.now = now
            self._mend(node, mending=False)
        return [events.Ready(now, node.path, node.incarnation)] if self.ledger.listening else []

    def _charge_both(self, node: Node, now: float) -> bool:
        """Charge the leaf's own limit and the supervisor's, if both allow one more."""
        own, window = node.window, self.window
        if own is not None and not own.allows(now):
            return False
        self.now = now
        if window is not None and not window.charge(now if self._ready_time is None else self._clock()):
            return False
        return own is None or own.charge(now)

    # --- restarts

    def _group(self, node: Node) -> list[Node]:
        """Who is restarted with this child, in start order (R13)."""
        if self.spec.strategy == "one_for_one":
            return [node]
        if self.spec.strategy == "one_for_all":
            return list(self.children.values())
        later = list(takewhile(lambda other: other is not node, reversed(self.children.values())))
        return [node, *reversed(later)]

    def _delay(self, node: Node) -> float:
        if node.delays is None:
            return 0.0
        quiet = 0.0 if node.failure is None or node.failure.starting else self.now - node.since
        return node.delays.next(quiet, self.u)

    def _why(self, node: Node) -> str:
        sibling = "" if self.spec.strategy == "one_for_one" else "sibling "
        return f"{self.spec.strategy}: {sibling}{node.path!r} failed"

    def _restart(self, node: Node, delay: float = 0.0) -> None:
        """Stop the group of this child, which has failed or whose retry is due, wait, and start it again."""
        if node.failure is not None and node.failure.starting:
            self._restart_later(node, delay)
            return
        self._mend(node, mending=True)
        group = stops = self._group(node)
        if len(group) > 1:
            delay = max(delay, self._forget_retries(group, node))
            stops = [*(other for other in group if other is not node), node]
        if delay > 0:
            node.charged = True
            self._begin(Act("retry", self._why(node), node, stops, delay=delay))
        else:
            self._begin(Act("restart", self._why(node), node, stops, group[::-1]))

    def _restart_by_hand(self, node: Node, token: Any) -> None:
        """Stop this child in its place, with its group, and start them again at once (R25)."""
        self._disarm(node)
        self._mend(node, mending=True)
        group = self._group(node)
        self._forget_retries(group, node)
        why = f"{node.path!r} was asked to restart"
        self.act = Act("restart", why, node, group, group[::-1], token=token)

    def _forget_retries(self, group: list[Node], node: Node) -> float:
        """A restart of the group takes along those that are down or whose retry is due; the seconds until the last retry."""
        longest = 0.0
        _revive(group)
        for other in group:
            if other is not node and other.state == "restarting":
                longest = max(longest, other.due - self.now)
                self._forget_retry(other)
        return longest

    def _restart_later(self, node: Node, delay: float) -> None:
        """A start failed in a restart: it ends, and a retry waits its turn (R13)."""
        _revive(self._group(node))
        stops = [node]
        if delay > 0 and self.spec.strategy == "one_for_all":
            stops = [*(other for other in self.children.values() if other is not node and other.alive), node]
        node.charged = False
        self._begin(Act("retry", self._why(node), node, stops, delay=delay))

    def _forget_retry(self, node: Node) -> None:
        """The retry of this node is off; the stop that follows makes void what waits of it."""
        node.state = "down"
        self._disarm(node)
        self._mend(node, mending=False)

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
            self.act = None
            if act.kind == "condemn" and act.node is not None:
                # The end of the condemned child, which may be that of this supervisor, has still to be weighed (R18).
                self.inbox.append(Done(act.node, act.node.epoch))
            self._judge(node, act.starts)
            return
        node.undecided = False
        self._decided(failure, None, "first start")
        if act.kind == "boot":
            self._begin_end(f"{failure.path!r} failed to start", first=node, failure=failure)
        else:
            act.failure = failure
            act.stops.append(node)

    def _reply_start_failed(self, token: Any, failure: Failure) -> None:
        if token is not None:
            self.out.append(effect.Reply(token, error=start_failed(failure)))


def _revive(group: list[Node]) -> None:
    """Those of the group that are down have a start before them again (R13, R29)."""
    for node in group:
        if node.state == "down":
            node.gone, node.why = False, None


def start_failed(failure: Failure) -> errors.StartFailed:
    """What a caller gets for a start that failed, with its cause."""
    exc = errors.StartFailed(f"{failure.path!r} failed to start: {brief(failure.exc)}", path=failure.path)
    exc.__cause__ = failure.exc
    return exc


def _limit_exceeded(path: str, limit: object, cause: BaseException) -> errors.LimitExceeded:
    exc = errors.LimitExceeded(f"{path!r} passed its limit of {limit}")
    exc.__cause__ = cause
    return exc
