"""The closed set of events in a tree, and the type of a sink (R31, R32).

Events are frozen values. Those of one incarnation follow this grammar:

    Starting StartOverdue*
    ( Ready (Failed Decided Resumed)* ( Failed Decided | Returned | Stopping )?
    | Ignored Returned
    | Overdue* (StopError Overdue*)? ( StartFailed Failed Decided | Stopping ) )?
    Overdue* (Failed Decided)? Overdue* (StopError Overdue*)? StopError?
    Stopped

BackingOff stands only between incarnations. Exactly one Decided follows each Failed. `supervise.testing.assert_lifecycle`
checks the grammar.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from attrs import field, frozen

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


class Starting(Event):
    """The node is about to start."""


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
    """The node's code raised an exception. A leaf is suspended, with its resource open, until the failure is decided (R8)."""

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
    """The node returned or ended normally, and is not restarted (R7)."""

    value: Any = None


@frozen(slots=False, repr=False, eq=False)
class Stopping(Event):
    """The node is being stopped; `reason` says who caused that, and why (R36)."""

    reason: str


@frozen(slots=False, repr=False, eq=False)
class Overdue(Event):
    """The node was cancelled, or ordered to leave its resource, `seconds` ago and has not ended (R20)."""

    seconds: float
    stack: str = ""


@frozen(slots=False, repr=False, eq=False)
class StopError(Event):
    """The node failed while it was being stopped, or its resource while it was left: this is reported, not decided (R23)."""

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
    """A sink raised, and gets no further events; `path` is that of the root (R31)."""

    sink: str
    exc: BaseException


KINDS: tuple[type[Event], ...] = (
    Starting, StartOverdue, Ready, Ignored, StartFailed, Failed, Decided, Resumed, Returned,
    Stopping, Overdue, StopError, Stopped, BackingOff, SinkFailed,
)  # fmt: skip
"""All classes of events."""

Sink = Callable[[Event], object]
"""A function that the tree calls with each event, in order; it must not block. If it raises it is reported once, and dropped (R31)."""
