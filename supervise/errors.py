"""What a caller may catch. Misuse is a plain `TypeError`, `ValueError` or `RuntimeError` instead."""

from __future__ import annotations

from typing import Literal

Reason = Literal["running", "restarting", "duplicate", "not_found", "full", "pool", "stopping"]


class SuperviseError(Exception):
    """The base of this library's errors."""


class TreeFailed(SuperviseError):
    """The root gave up: a failure that every decider escalated, or its limit was passed. The failure is the cause.

    Raised bare by `open_tree`, after everything has stopped in order (R11, R22).
    """


class StartFailed(SuperviseError):
    """A child failed its first start, and with it its supervisor's (R16). The child's own failure is the cause."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class StartTimeout(SuperviseError):
    """A start took longer than the child's `start_timeout` (R17)."""

    tag = "start.timeout"


class StartReturned(SuperviseError):
    """A child returned before it was ready, and what it returned is not `IGNORE` (R17)."""

    tag = "start.returned"


class ChildReturned(SuperviseError):
    """A permanent child returned, which it should not (R7)."""

    tag = "returned"


class LimitExceeded(SuperviseError):
    """More restarts than a limit allows; the last failure is the cause (R14)."""

    tag = "limit"


class ForeignCancelled(SuperviseError):
    """A `Cancelled` that is not ours came out of a child that nobody stopped (R6). It is the cause."""

    tag = "cancelled.foreign"


class Refused(SuperviseError):
    """A request that the tree cannot serve as things stand (R25).

    `reason` is one of `running`, `restarting`, `duplicate`, `not_found`, `full` (a pool's maximum), `pool` (pools have
    no such request) and `stopping`.
    """

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class ChildStopped(SuperviseError):
    """The node is down for good: not running, and nothing will start it by itself (R28, R29)."""


class ChildRestarted(SuperviseError):
    """The incarnation that a `lease` held has ended (R28)."""


class CallLost(SuperviseError):
    """The incarnation that had the message in hand ended before it answered; its failure is the cause (R30)."""


class MailboxFull(SuperviseError):
    """The mailbox is full, and the sender did not want to wait (R29)."""
