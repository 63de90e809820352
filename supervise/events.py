"""The closed set of events in a tree, and the type of a sink (R31, R32).

Events are frozen values. Those of one incarnation follow this grammar:

    Starting StartOverdue*
    ( Ready (Failed Decided Resumed)* ( Failed Decided | Returned | Stopping )?
    | Ignored Returned
    | Overdue* (StopError Overdue*)? ( StartFailed Failed Decided | Stopping ) )?
    Overdue* (Failed Decided)? Overdue* (StopError Overdue*)? StopError?
    Stopped

BackingOff stands only between incarnations. Exactly one Decided follows each Failed. `supervise.testing.assert_lifecycle`
checks the grammar. `describe` puts an event into words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import field, frozen

from ._core._brief import brief, failure_line, printable
from ._core._value import Value
from ._core.directive import Directive

Because = Literal["table", "limit", "raised", "absorbed", "stop", "first start", "not an Exception"]


@frozen(slots=False, repr=False, eq=False)
class Event(Value):
    """Something happened to one incarnation of one node.

    Args:
        at: when, in seconds on Trio's clock.
        path: the path of the node, such as `app/llm/context`.
        incarnation: the number of its life, from 1.
    """

    at: float
    path: str
    incarnation: int


@frozen(slots=False, repr=False, eq=False)
class Starting(Event):
    """The node is about to start; `reason` says why if a caller has asked for that (R25)."""

    reason: str | None = None


@frozen(slots=False, repr=False, eq=False)
class StartOverdue(Event):
    """The node has been starting for `seconds` and is not ready (R17).

    Args:
        seconds: the time since its start; reported after the child's `start_warning`, then at doubling intervals.
        stack: the stack of its task.
        waits_for: the path of the node whose `ready()` it awaits; None if it awaits none.
    """

    seconds: float
    stack: str = ""
    waits_for: str | None = None


@frozen(slots=False, repr=False, eq=False)
class Ready(Event):
    """The node is up: a leaf runs its body, or called `task_status.started(value)`; a supervisor's last child is up (R17)."""

    value: Any = None


class Ignored(Event):
    """The node returned `IGNORE` before it was ready: it is not needed here (R17)."""


class StartFailed(Event):
    """The node did not become ready; `Failed` with the failure follows (R16)."""


@frozen(slots=False, repr=False, eq=False)
class Failed(Event):
    """The node's code raised the exception `exc`. A leaf is suspended, with its resource open, until the failure is decided (R8)."""

    exc: BaseException


@frozen(slots=False, repr=False, eq=False)
class Decided(Event):
    """The decision on the preceding `Failed` of this incarnation.

    Args:
        directive: None if no decider was asked, see `because`.
        by: the path of the supervisor that applied the directive.
        because: `table` (a decider's answer), `limit` (the child passed its own limit), `raised` (a decider raised `exc`,
            which means Escalate, R5), or the reason why no decider was asked: `absorbed` (its group was already being
            restarted), `stop` (a stop came first), `first start` (R16), `not an Exception` (R4).
        instead_of: the decider's answer, if the rules replaced it: Resume of a failure that cannot be resumed (R8), or Restart
            of a temporary child (R7).
        limit: the limit of `by` that this decision passed, if it did.
        exc: the failure, or the exception that a broken decider raised (R5).
        tag: the tag of the failure, if it has one (R1).
        decider: the path of the node whose decider answered; None for a built-in rule, or if no decider was asked (R2).
        entry: the entry that answered: `tag 'device.oom'`, `class OSError` or `default`; `rule` for a built-in rule.
        applied_to: the path of the child of `by` to which the directive was applied, if that is not the node that failed:
            an escalated Stop condemns a whole supervisor (R11).
        attempt: for a Restart with a backoff, the number of this delay in its series, from 1 (R15).
    """

    directive: Directive | None
    by: str
    exc: BaseException = field(repr=False)
    because: Because = "table"
    tag: str | None = None
    instead_of: Directive | None = None
    limit: str | None = None
    decider: str | None = None
    entry: str | None = None
    applied_to: str | None = None
    attempt: int | None = None


class Resumed(Event):
    """The leaf enters its body again, with the same resource (R8)."""


@frozen(slots=False, repr=False, eq=False)
class Returned(Event):
    """The node returned `value` or ended normally, and is not restarted (R7)."""

    value: Any = None


@frozen(slots=False, repr=False, eq=False)
class Stopping(Event):
    """The node is being stopped; `reason` says who caused that, and why (R36)."""

    reason: str


@frozen(slots=False, repr=False, eq=False)
class Overdue(Event):
    """The node was cancelled, or ordered to leave its resource, `seconds` ago and has not ended; `stack` is that of its task (R20)."""

    seconds: float
    stack: str = ""


@frozen(slots=False, repr=False, eq=False)
class StopError(Event):
    """The node failed with `exc` while it was being stopped, or its resource while it was left: reported, not decided (R23)."""

    exc: BaseException


class Stopped(Event):
    """This incarnation has ended: its task is gone."""


@frozen(slots=False, repr=False, eq=False)
class BackingOff(Event):
    """The next incarnation starts `delay` seconds from now, at `until`; the `attempt`th of its series, from 1 (R15)."""

    delay: float
    until: float
    attempt: int = 1


@frozen(slots=False, repr=False, eq=False)
class SinkFailed(Event):
    """The `sink` of this name raised `exc`, and gets no further events; `path` is that of the root (R31)."""

    sink: str
    exc: BaseException


@frozen(slots=False, repr=False, eq=False)
class Adopting(Event):
    """The tree takes another declaration (R38); `path` is that of the root.

    Args:
        changes: each difference in one line, such as `~ app/db restarts: the code of serve is another`.
        reason: why, in the words of its caller.
    """

    changes: tuple[str, ...]
    reason: str


@frozen(slots=False, repr=False, eq=False)
class Adopted(Event):
    """The tree has taken its new declaration (R38); `path` is that of the root, `failed` are those of nodes that did not start.

    It is not reported if the tree begins to stop before that.
    """

    failed: tuple[str, ...] = ()


KINDS: tuple[type[Event], ...] = (
    Starting, StartOverdue, Ready, Ignored, StartFailed, Failed, Decided, Resumed, Returned,
    Stopping, Overdue, StopError, Stopped, BackingOff, SinkFailed, Adopting, Adopted,
)  # fmt: skip
"""All classes of events."""

Sink = Callable[[Event], object]
"""A function that the tree calls with each event, in order; it must not block. If it raises it is reported once, and dropped (R31)."""


def describe(event: Event) -> str:
    """What happened to the node of an event, in one line without its path and its time (R31).

    All sinks and views use these words. The line does not have the stack or the traceback of an event.
    """
    return printable(_WORDS[type(event)](event))


def _decision(event: Decided) -> str:
    if event.directive is None:
        return f"→ no decision by {event.by!r}: {_UNDECIDED.get(event.because, event.because)}"
    tag = f" for {event.tag!r}" if event.tag else ""
    instead = f" (instead of {event.instead_of!r})" if event.instead_of is not None else ""
    at_the_root = event.directive is Directive.Escalate
    whom = "no supervisor above decides" if at_the_root else f"decided by {event.by!r}"
    return f"→ {event.directive!r}{tag}{instead}, {whom}{_entry(event)}{_consequences(event)}"


_UNDECIDED = {
    "absorbed": "its group was already being restarted",
    "stop": "it was being stopped",
    "first start": "a first start that fails is not decided",
    "not an Exception": "it is not an Exception, and the whole tree stops",
}


def _entry(event: Decided) -> str:
    """The entry that gave the directive, and its decider, in brackets (R2)."""
    if event.because == "raised":
        return ""
    if event.because == "limit":
        return " (its own limit is passed)"
    if event.decider is None:
        is_built_in = event.entry == "rule" and event.directive is not Directive.Escalate
        return " (built-in rule)" if is_built_in else ""
    of = "" if event.decider == event.by else f" in the decider of {event.decider!r}"
    return f" ({event.entry}{of})"


def _consequences(event: Decided) -> str:
    """The further facts of a decision, each after a semicolon."""
    text = ""
    if event.because == "raised":
        text += f"; a decider raised {failure_line(event.exc)}, and that means Escalate"
    if event.applied_to is not None:
        whole = "all of it is stopped, and stays down" if event.directive is Directive.Stop else "all of it"
        text += f"; it applies to {event.applied_to!r}: {whole}"
    if event.limit:
        text += f"; that passes the limit of {event.by!r}, {event.limit}"
    return text


def _with_value(words: str, value: object) -> str:
    return words if value is None else f"{words}: {brief(value)}"


def _not_started(failed: tuple[str, ...]) -> str:
    return f", but these did not start: {', '.join(failed)}" if failed else ""


def _start_overdue(event: StartOverdue) -> str:
    waits = "" if event.waits_for is None else f", and waits for {event.waits_for!r}"
    return f"is not ready after {event.seconds:.3g} s{waits}"


def _backing_off(event: BackingOff) -> str:
    series = f", attempt {event.attempt}" if event.attempt > 1 else ""
    return f"waits {event.delay:.2f} s before the next start{series}"


_WORDS: dict[type[Event], Callable[[Any], str]] = {
    Starting: lambda event: "starts" if event.reason is None else f"starts: {event.reason}",
    StartOverdue: _start_overdue,
    Ready: lambda event: _with_value("is ready" if event.incarnation <= 1 else "is ready again", event.value),
    Ignored: lambda _: "returned IGNORE: it is not needed here",
    StartFailed: lambda _: "did not become ready",
    Failed: lambda event: f"failed: {failure_line(event.exc)}",
    Decided: _decision,
    Resumed: lambda _: "is resumed with its resource",
    Returned: lambda event: _with_value("ended normally", event.value),
    Stopping: lambda event: f"is being stopped: {event.reason}",
    Overdue: lambda event: f"has not ended {event.seconds:.3g} s after it was ordered to",
    StopError: lambda event: f"failed while stopping: {failure_line(event.exc)}",
    Stopped: lambda _: "has stopped",
    BackingOff: _backing_off,
    SinkFailed: lambda event: f"sink {event.sink} failed: {failure_line(event.exc)}",
    Adopting: lambda event: (
        f"takes another declaration: {event.reason} ({' | '.join(event.changes) or 'without a difference'})"
    ),
    Adopted: lambda event: f"has its new declaration{_not_started(event.failed)}",
}
