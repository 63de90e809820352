"""The inputs of a machine and its effects: self-contained values, so that both can be logged and replayed.

An input names a child by its name, since it goes to the machine of that child's supervisor; an effect names it by its path.
Name or path and incarnation identify one life: the incarnation of a name never goes back (R9), so the machine recognises a
report of an earlier incarnation, even after a child has left the tree and another of the same name has joined it.

No code changes one of these values, except the mark of a `Request`. They are not frozen, because attrs sets each attribute
of a frozen instance by a call, and every start and stop creates several of them.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import define, field

from ..events import Event
from .directive import Directive
from .node import Failure
from .spec import Spec

# Inputs. `child` is the name of the child that reports, `incarnation` the life that it reports about.


@define(weakref_slot=False)
class Boot:
    """The supervisor's own task runs, and its `init` has been called: it may have returned `IGNORE`, or raised `problem`."""

    problem: BaseException | None = None
    ignored: bool = False


@define(weakref_slot=False)
class Up:
    """The child is ready, with this value."""

    child: str
    incarnation: int
    value: Any = None


@define(weakref_slot=False)
class Exited:
    """The child's body raised `exc`, or returned `value`; its task waits for `Release` or `Resume`.

    Args:
        child: its name.
        incarnation: the one whose body is over.
        exc: the exception that it raised.
        value: the value that it returned otherwise.
        resumable: whether the body can be entered again, with its resource kept.
        progressed: whether the child has taken a message since it was resumed last.
        risen: from a supervisor: the failure that it passes up, its own or one from below.
    """

    child: str
    incarnation: int
    exc: BaseException | None = None
    value: Any = None
    resumable: bool = False
    progressed: bool = False
    risen: Failure | None = None


@define(weakref_slot=False)
class Ended:
    """The child's task, or the supervisor with everything below it, has ended.

    Args:
        child: its name.
        incarnation: the incarnation that has ended.
        error: the exception that it raised while it was being stopped, or while it left its resource.
        ignored: whether it declined to start, with `IGNORE`.
        returned: whether a supervisor ended normally.
        failure: the failure with which a supervisor, or its start, ended.
    """

    child: str
    incarnation: int
    error: BaseException | None = None
    ignored: bool = False
    returned: bool = False
    failure: Failure | None = None


RequestKind = Literal["add", "stop", "start", "restart", "restart root", "renew", "remove", "adopt", "status"]


@define(eq=False, weakref_slot=False)
class Request:
    """A caller asks for a change. The answer is one `Reply` with its token, unless it is withdrawn before it is served.

    The forest serves `restart root`, since the root has no supervisor. An adoption asks for `renew`: as `restart`, but of members of
    a pool too. A withdrawn request stays in the inbox with `withdrawn` set: taking it out would cost a walk over the whole inbox.
    """

    kind: RequestKind
    token: Any
    name: str | None = None
    spec: Spec | None = None
    args: tuple[Any, ...] = ()
    reason: str | None = None
    withdrawn: bool = False


@define(weakref_slot=False)
class Withdraw:
    """The caller of this request has stopped waiting: the machine does not serve it, unless it has begun to (R25)."""

    request: Request


@define(weakref_slot=False)
class Stop:
    """The supervisor is to stop its children and end.

    `returned`: that counts as a normal end. `exc`: it failed with that. `for_good`: no start follows without a request, so that each
    child is down for good once it has ended (R29); `why`: the failure for which that is so.
    """

    reason: str
    returned: bool = False
    exc: Exception | None = None
    for_good: bool = field(default=False, kw_only=True)
    why: BaseException | None = field(default=None, kw_only=True)


@define(weakref_slot=False)
class Verdict:
    """The directive of an ancestor for the failure that this supervisor passed up; None: it is settled without one for it.

    `for_good`, `why`: as those of the `Stop` that follows in its turn.
    """

    directive: Directive | None
    for_good: bool = field(default=False, kw_only=True)
    why: BaseException | None = field(default=None, kw_only=True)


@define(weakref_slot=False)
class Wake:
    """A time that the machine asked for with `WakeAt` has come."""


Input = Boot | Up | Exited | Ended | Request | Withdraw | Stop | Verdict | Wake

# Effects for the driver. It delivers those that are events to the sinks.


@define(weakref_slot=False)
class Start:
    """Give the child a task; the task of a supervisor sends `Boot` once its nursery is open."""

    path: str
    incarnation: int
    spec: Spec


@define(weakref_slot=False)
class Ask:
    """Ask the leaf to stop; it may drain first (R20)."""

    path: str
    incarnation: int
    reason: str


@define(weakref_slot=False)
class Cancel:
    """Cancel the leaf."""

    path: str
    incarnation: int
    reason: str


@define(weakref_slot=False)
class Release:
    """Let the leaf, whose body is over, leave its resource and end."""

    path: str
    incarnation: int


@define(weakref_slot=False)
class Resume:
    """Let the leaf, whose body is over, enter it again (R8)."""

    path: str
    incarnation: int


@define(weakref_slot=False)
class ReportOverdue:
    """Find out where the child hangs and deliver an `Overdue`, or a `StartOverdue` if it is `starting` (R17, R20)."""

    path: str
    incarnation: int
    seconds: float
    starting: bool = False


@define(weakref_slot=False)
class WakeAt:
    """Send this supervisor's machine a `Wake` at `at`. Only the earliest requested time counts: at its `Wake` the machine asks again."""

    path: str
    at: float


@define(weakref_slot=False)
class Reply:
    """The answer to a request: the path of the child for a change, a `Status` for a status, or an error."""

    token: Any
    value: Any = None
    error: Exception | None = None


@define(weakref_slot=False)
class Gone:
    """The child, and all below it, is down for good, because of `why` if it failed; `removed`: it has left the tree.

    A leaf that has failed may still have to leave its resource.
    """

    path: str
    why: BaseException | None
    removed: bool = False


@define(weakref_slot=False)
class Fatal:
    """A child raised an exception that is not an `Exception`: the whole tree is to stop (R4)."""

    exc: BaseException


@define(weakref_slot=False)
class Fail:
    """No supervisor decided this failure: the tree fails with it once everything has stopped (R11)."""

    exc: BaseException


# Effects for another machine, which the forest hands on as inputs. The driver sees `Rise` too.


@define(weakref_slot=False)
class Rise:
    """A report of the supervisor at this path to its own supervisor; only the driver receives that of the root."""

    path: str
    report: Up | Exited | Ended


@define(weakref_slot=False)
class Order:
    """An input for the machine of a child that is a supervisor."""

    path: str
    order: Stop | Verdict


Effect = (
    Event
    | Start
    | Ask
    | Cancel
    | Release
    | Resume
    | ReportOverdue
    | WakeAt
    | Reply
    | Gone
    | Fatal
    | Fail
    | Rise
    | Order
)
