"""From a failure to a decision: ask the deciders, charge the leaf's own limit, and apply the rules that override the answer.

The machine carries the decision out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import errors, events
from .decide import Decider, Judgement, is_decidable, judge
from .directive import Directive, Restart, Resume, Stop
from .node import Failure, Node


class Decision(NamedTuple):
    """The decision on one failure.

    Args:
        directive: None if the decider raised an exception that is no `Exception`: then the whole tree is to stop (R4).
        details: the fields of `Decided` that say how the decision came about.
    """

    directive: Directive | None
    details: dict[str, Any]


def decision(node: Node, decider: Decider, now: float) -> Decision:
    """Decide the failure of this node. The failure keeps its tag, or the exception that the decider raised (R5, R11)."""
    failure = node.failure
    assert failure is not None
    judgement = judge(decider, failure.exc, failure.tag)
    _adopt(failure, judgement)
    because: events.Because = "table"
    if not _within_own_limit(node, _allowed(node, judgement.directive), now):
        because = "limit"
        exc = limit_exceeded(node.path, node.spec.limit, failure.exc)
        judgement = judge(decider, exc, otherwise=Stop)
        _adopt(failure, judgement)
    if judgement.raised and not is_decidable(judgement.exc):
        return Decision(None, {})
    directive = _allowed(node, judgement.directive)
    details = {
        "because": "raised" if judgement.raised else because,
        "instead_of": None if directive is judgement.directive else judgement.directive,
        "decider": judgement.node or None,
        "entry": None if judgement.raised else judgement.entry,
        "applied_to": None if failure.origin == node.path else node.path,
    }
    return Decision(directive, details)


def _adopt(failure: Failure, judgement: Judgement) -> None:
    """Give the failure its tag, and the exception that the decider raised, if it did: then Resume is impossible."""
    failure.tag = judgement.tag
    if judgement.exc is not failure.exc:
        failure.exc = judgement.exc
        failure.resumable = False


def _allowed(node: Node, directive: Directive) -> Directive:
    """The directive as the rules allow it for this node (R7, R8)."""
    assert node.failure is not None
    if directive is Resume and not node.failure.resumable:
        directive = Restart
    if directive is Restart and node.temporary:
        directive = Stop
    return directive


def _within_own_limit(node: Node, directive: Directive, now: float) -> bool:
    """Charge the leaf's own limit, if it has one and the directive counts. Returns False if it allows no more (R8, R14)."""
    assert node.failure is not None
    return node.window is None or not is_charged(directive, node.failure) or node.window.charge(now)


def is_charged(directive: Directive, failure: Failure) -> bool:
    """Whether a limit counts this decision: every Restart, and a Resume without progress since the last one (R8, R14)."""
    return directive is Restart or (directive is Resume and not failure.progressed)


def limit_exceeded(path: str, limit: object, cause: BaseException) -> errors.LimitExceeded:
    """The error for a passed limit, with the last failure as its cause."""
    exc = errors.LimitExceeded(f"{path!r} passed its limit of {limit}")
    exc.__cause__ = cause
    return exc
