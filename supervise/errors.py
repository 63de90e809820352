"""The errors that a caller may catch. Misuse raises a plain `TypeError`, `ValueError` or `RuntimeError` instead."""

from __future__ import annotations

from typing import Any, Literal

Reason = Literal["running", "restarting", "duplicate", "not_found", "full", "pool", "stopping"]


class SuperviseError(Exception):
    """The base of this library's errors."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the constructor: it may demand arguments that are not among `args`."""
        return _made_again, (type(self), self.args), self.__dict__


def _made_again(cls: type[SuperviseError], args: tuple[object, ...]) -> SuperviseError:
    return cls.__new__(cls, *args)


class TreeFailed(SuperviseError):
    """The root failed: every decider escalated a failure, or the root passed its limit. The failure is the `__cause__`.

    `open_tree` raises it bare, after everything has stopped in order (R11, R22).
    """


class StartFailed(SuperviseError):
    """A child failed its first start, and so did its supervisor (R16). The child's own failure is the `__cause__`; `path` is its path."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class StartTimeout(SuperviseError):
    """A start took longer than the child's `start_timeout` (R17)."""

    tag = "start.timeout"


class StartReturned(SuperviseError):
    """A child returned before it was ready, and not `IGNORE` (R17)."""

    tag = "start.returned"


class ChildReturned(SuperviseError):
    """A permanent child returned, which counts as a failure (R7)."""

    tag = "returned"


class LimitExceeded(SuperviseError):
    """A limit allows no further restart; the last failure is the `__cause__` (R14)."""

    tag = "limit"


class ForeignCancelled(SuperviseError):
    """A child let out a `Cancelled`, but the library had not stopped it (R6). That `Cancelled` is the `__cause__`."""

    tag = "cancelled.foreign"


class Refused(SuperviseError):
    """The tree cannot serve this request in its present state (R25).

    `reason` is one of `running`, `restarting`, `duplicate`, `not_found`, `full` (a pool's maximum), `pool` (pools have
    no such request) and `stopping`.
    """

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class ChildStopped(SuperviseError):
    """The node is down for good: not running, and nothing will start it by itself (R28, R29)."""


class ChildRestarted(SuperviseError):
    """The incarnation that a `lease` is bound to has ended (R28)."""


class CallLost(SuperviseError):
    """The incarnation that had the message in hand ended without an answer; its failure is the `__cause__` (R30)."""


class MailboxFull(SuperviseError):
    """The mailbox is full, and the sender used a `_nowait` form (R29)."""
