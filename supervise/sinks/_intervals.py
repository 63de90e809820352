"""How long nodes take to start and to recover, from their events: what metrics and traces measure (R31)."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, Final, Literal

from attrs import define, frozen

from .._core.directive import Directive
from ..events import Decided, Event, Failed, Ignored, Ready, Resumed, Starting, Stopped

_MOST: Final = 10_000
"""Recoveries under way that are kept. A node that is removed while it backs off has no further event to end its own."""

Outcome = Literal["ready", "resumed", "ignored", "failed", "given up", "stopped"]


@frozen(kw_only=True)
class Interval:
    """A start or a recovery that is over.

    A start begins with `Starting` and ends when the node is ready, returned `IGNORE`, failed or was stopped. A recovery begins
    with a failure, except that of a first start, and ends when the node is ready again, however many further failures that
    takes; or when it is resumed, or given up: condemned, or escalated to no supervisor. A node that is stopped or removed while it
    backs off has no event for that.

    Args:
        kind: `start` or `recovery`.
        outcome: how it ended; `stopped` also if a restart of the node's supervisor did not bring it back.
        began: its first event.
        ended: its last event.
        decision: the last decision on this node; None for a start that did not fail.
        failures: how many decisions it contains.
    """

    kind: Literal["start", "recovery"]
    outcome: Outcome
    began: Starting | Failed
    ended: Event
    decision: Decided | None = None
    failures: int = 0

    @property
    def seconds(self) -> float:
        """From its first event to its last one, on Trio's clock."""
        return self.ended.at - self.began.at


@define(eq=False)
class _Recovery:
    began: Failed
    number: int
    """That of the failure with which it began, among all events."""
    decision: Decided | None = None
    failures: int = 0

    def over(self, outcome: Outcome, ended: Event) -> Interval:
        return Interval(
            kind="recovery",
            outcome=outcome,
            began=self.began,
            ended=ended,
            decision=self.decision,
            failures=self.failures,
        )


class Intervals:
    """Collects the starts and recoveries of one tree or of several, from all their events in order."""

    def __init__(self) -> None:
        self._count = 0
        self._starts: dict[str, tuple[int, Starting]] = {}
        self._recoveries: dict[str, _Recovery] = {}
        self._above: set[str] = set()
        """The paths of all nodes above those that recover: most nodes have none below them, and need no search. Some may have recovered."""
        self._most_above = _MOST
        self._takers: dict[type[Event], Callable[[Any], list[Interval]]] = {
            Starting: self._starting,
            Ready: self._ready,
            Ignored: lambda event: [
                *self._start_over("ignored", event),
                *self._recovery_over("ignored", event),
            ],
            Failed: self._failed,
            Decided: lambda event: [*self._start_over("failed", event, event), *self._decided(event)],
            Resumed: lambda event: self._recovery_over("resumed", event),
            Stopped: self._stopped,
        }

    def take(self, event: Event) -> list[Interval]:
        """Those that end with this event."""
        self._count += 1
        taker = self._takers.get(type(event))
        return [] if taker is None else taker(event)

    def _starting(self, event: Starting) -> list[Interval]:
        self._starts[event.path] = self._count, event
        return []

    def _ready(self, event: Ready) -> list[Interval]:
        since, _ = self._starts.get(event.path, (0, None))
        ended = [*self._start_over("ready", event), *self._recovery_over("ready", event)]
        # A supervisor that is ready has started all its nodes. One that failed before that and has not recovered does not
        # come back: a member of a pool that was restarted, for instance.
        return [*ended, *self._end_below(event.path, "stopped", event, before=since)]

    def _stopped(self, event: Stopped) -> list[Interval]:
        ended = self._start_over("stopped", event)
        is_root = "/" not in event.path
        return [*ended, *self._end_below(event.path, "stopped", event)] if is_root else ended

    def _failed(self, event: Failed) -> list[Interval]:
        if event.path not in self._recoveries:
            if len(self._recoveries) >= _MOST:
                del self._recoveries[next(iter(self._recoveries))]
            self._recoveries[event.path] = _Recovery(event, self._count)
            self._note_above(event.path)
            if len(self._above) > self._most_above:
                self._above.clear()
                for path in self._recoveries:
                    self._note_above(path)
                self._most_above = 2 * len(self._above) + _MOST
        return []

    def _note_above(self, path: str) -> None:
        while (path := path.rpartition("/")[0]) and path not in self._above:
            self._above.add(path)

    def _start_over(self, outcome: Outcome, ended: Event, decision: Decided | None = None) -> list[Interval]:
        if ended.path not in self._starts:
            return []
        _, began = self._starts.pop(ended.path)
        failures = 0 if decision is None else 1
        return [
            Interval(
                kind="start", outcome=outcome, began=began, ended=ended, decision=decision, failures=failures
            )
        ]

    def _decided(self, event: Decided) -> list[Interval]:
        recovery = self._recoveries.get(event.path)
        if recovery is None:  # this reader came between the two events
            return []
        if event.because == "first start":  # it was never ready, so it has nothing to recover
            del self._recoveries[event.path]
            return []
        recovery.decision = event
        recovery.failures += 1
        if event.because == "stop":
            return self._recovery_over("stopped", event)
        if event.because == "not an Exception" or event.directive in (Directive.Stop, Directive.Escalate):
            given_up = self._recovery_over("given up", event)
            return given_up + self._end_below(event.applied_to or event.path, "given up", event)
        return []

    def _recovery_over(self, outcome: Outcome, event: Event) -> list[Interval]:
        recovery = self._recoveries.pop(event.path, None)
        return [] if recovery is None else [recovery.over(outcome, event)]

    def _end_below(self, path: str, outcome: Outcome, event: Event, *, before: float = inf) -> list[Interval]:
        """End the recoveries of this node and of all nodes below it, if they began before the event with that number."""
        if not self._recoveries:
            self._above.clear()
            return []
        searched = self._recoveries if path in self._above else {path} & self._recoveries.keys()
        ended = [
            each
            for each in searched
            if self._recoveries[each].number < before and (each == path or each.startswith(f"{path}/"))
        ]
        return [self._recoveries.pop(each).over(outcome, event) for each in ended]
