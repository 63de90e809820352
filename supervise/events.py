"""The closed set of things that happen in a tree, and what a sink is (R31, R32).

They are frozen values; those with no fields of their own take them from `Event` as it is. Per incarnation they form a
grammar:

    Starting StartOverdue*
    ( Ready (Failed Decided Resumed)* ( Failed Decided | Returned | Stopping )?
    | Ignored Returned
    | Overdue* (StopError Overdue*)? ( StartFailed Failed Decided | Stopping ) )?
    Overdue* (Failed Decided)? Overdue* (StopError Overdue*)? StopError?
    Stopped

with BackingOff only between incarnations. Exactly one Decided follows each Failed. `supervise.testing.assert_lifecycle`
checks it.
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
        path: the node, such as `app/llm/context`.
        incarnation: one life of the node, counted from 1.
    """

    at: float
    path: str
    incarnation: int


class Starting(Event):
    """The node is about to start."""


@frozen(slots=False, repr=False, eq=False)
class StartOverdue(Event):
    """It has been starting for `seconds` and is not ready (R17).

    Args:
        seconds: since its start; reported after the child's `start_warning`, then at doubling intervals.
        stack: where its task is.
        waits_for: the path of the node whose `ready()` it waits for, if it does.
    """

    seconds: float
    stack: str = ""
    waits_for: str | None = None


@frozen(slots=False, repr=False, eq=False)
class Ready(Event):
    """It is up: its body runs, or it called `task_status.started(value)`; a supervisor: its last child is up."""

    value: Any = None


class Ignored(Event):
    """It returned `IGNORE` before it was ready: not needed here (R17)."""


class StartFailed(Event):
    """It did not become ready; `Failed` with the failure follows."""


@frozen(slots=False, repr=False, eq=False)
class Failed(Event):
    """Its code let an exception out. A leaf is suspended now, its resource still open, until it is decided."""

    exc: BaseException


@frozen(slots=False, repr=False, eq=False)
class Decided(Event):
    """What becomes of the failure before.

    Args:
        directive: None where nothing was to be decided, see `because`.
        by: the path of the supervisor that applied it.
        because: `table` (a decider's answer), `limit` (the child's own limit was passed), `raised` (a decider raised `exc`,
            which means Escalate, R5), or why nobody decided: `absorbed` (its group was already being restarted), `stop` (a stop was faster), `first start` (R16),
            `not an Exception` (R4).
        instead_of: the decider's answer, where the rules replaced it: Resume without anything to keep, Restart of a
            temporary child.
        limit: the limit of `by` that this decision passed, if it did.
        exc: the failure; what a broken decider raised, if one did (R5).
        decider: the path of the node whose decider gave the answer; None for a built-in rule, or if nobody answered (R2).
        entry: which of its entries did: `tag 'device.oom'`, `class OSError` or `default`; `rule` for a built-in one.
        applied_to: the path of the child of `by` to which the directive was applied, if that is not the node that failed:
            an escalated Stop condemns a whole supervisor (R11).
        attempt: of a Restart with a backoff, which one of its series this is, from 1 (R15).
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
    """Its body is entered again, with the resource it had."""


@frozen(slots=False, repr=False, eq=False)
class Returned(Event):
    """Its body returned, and need not be started again."""

    value: Any = None


@frozen(slots=False, repr=False, eq=False)
class Stopping(Event):
    """It was asked to stop; `reason` says by whom and why (R36)."""

    reason: str


@frozen(slots=False, repr=False, eq=False)
class Overdue(Event):
    """It has been cancelled, or was to leave its resource, for `seconds` and is still there (R20)."""

    seconds: float
    stack: str = ""


@frozen(slots=False, repr=False, eq=False)
class StopError(Event):
    """It failed while it was being stopped, or its resource while it was left: reported, not decided (R23)."""

    exc: BaseException


class Stopped(Event):
    """This incarnation has ended, really."""


@frozen(slots=False, repr=False, eq=False)
class BackingOff(Event):
    """The next incarnation starts `delay` seconds from now, at `until`; the `attempt`th of its series, from 1 (R15)."""

    delay: float
    until: float
    attempt: int = 1


@frozen(slots=False, repr=False, eq=False)
class SinkFailed(Event):
    """A sink raised and gets nothing from now on; `path` is the root's (R31)."""

    sink: str
    exc: BaseException


KINDS: tuple[type[Event], ...] = (
    Starting, StartOverdue, Ready, Ignored, StartFailed, Failed, Decided, Resumed, Returned,
    Stopping, Overdue, StopError, Stopped, BackingOff, SinkFailed,
)  # fmt: skip
"""All of them."""

Sink = Callable[[Event], object]
"""Called with each event, in order, synchronously; it must not block. One that raises is reported once and dropped."""
