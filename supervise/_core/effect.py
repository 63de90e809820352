"""What goes into a machine and what comes out of it: values that say all they mean, so that both can be logged and replayed.

A child is named by its name in an input, since an input reaches the machine of its supervisor, and by its path in an
effect. Together with the incarnation that is an identity: the number of a name never goes back (R9), so a report of an
earlier incarnation is known as such, even where a child has left the tree and another of the same name has joined it.

Nobody changes one. They are not frozen all the same, since making a frozen one takes a call for each attribute, and a start
or a stop is made of these.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import define

from ..events import Event
from .directive import Directive
from .node import Failure
from .spec import Spec

# Inputs. `child` is the name of the child that reports, `incarnation` the one that it reports of.


@define(weakref_slot=False)
class Boot:
    """The supervisor's own task runs, and its `init` has been called: it returned `IGNORE`, or raised `problem`."""

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
    """The child's body is over and its task waits to be told what comes of that: it raised `exc`, or returned `value`.

    Args:
        child: its name.
        incarnation: the one whose body is over.
        exc: what it raised.
        value: what it returned otherwise.
        resumable: whether the body can be entered again, with its resource kept.
        progressed: whether the child has taken a message since it was resumed last.
        risen: from a supervisor: the failure, one from below or its own, that it passes up.
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
        incarnation: the one that has ended.
        error: what it raised while it was being stopped, or while it left its resource.
        ignored: whether it declined to start, with `IGNORE`.
        returned: whether a supervisor ended normally.
        failure: what a supervisor, or its start, failed with.
    """

    child: str
    incarnation: int
    error: BaseException | None = None
    ignored: bool = False
    returned: bool = False
    failure: Failure | None = None


RequestKind = Literal["add", "stop", "start", "restart", "remove", "status"]


@define(eq=False, weakref_slot=False)
class Request:
    """A caller asks for a change. It is answered by one `Reply` with its token, unless it is withdrawn before it is served.

    It is the one input that is not frozen: a withdrawn request stays in the inbox, marked, since to take it out would cost
    a walk over all others that wait there.
    """

    kind: RequestKind
    token: Any
    name: str | None = None
    spec: Spec | None = None
    args: tuple[Any, ...] = ()
    withdrawn: bool = False


@define(weakref_slot=False)
class Withdraw:
    """The caller of this request no longer waits: it is not served, unless that has begun (R25)."""

    request: Request


@define(weakref_slot=False)
class Stop:
    """The supervisor is to stop its children and end: as if normally if it `returned`, or failed with `exc`."""

    reason: str
    returned: bool = False
    exc: Exception | None = None


@define(weakref_slot=False)
class Verdict:
    """What an ancestor has decided of the failure that this supervisor passed up; None: it is settled, and nothing follows."""

    directive: Directive | None


@define(weakref_slot=False)
class Wake:
    """A time that the machine asked for with `WakeAt` has come."""


Input = Boot | Up | Exited | Ended | Request | Withdraw | Stop | Verdict | Wake

# Effects for the driver. An event among them is to be delivered.


@define(weakref_slot=False)
class Start:
    """Give the child a task; that of a supervisor sends `Boot` once its nursery is open."""

    path: str
    incarnation: int
    spec: Spec


@define(weakref_slot=False)
class Ask:
    """Tell the leaf that it is to stop; it may drain (R20)."""

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
    """Have the leaf whose body is over leave its resource and end."""

    path: str
    incarnation: int


@define(weakref_slot=False)
class Resume:
    """Have the leaf whose body is over enter it again (R8)."""

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
    """Send this supervisor's machine a `Wake` at this time. Only the earliest time asked for counts: woken, it asks again."""

    path: str
    at: float


@define(weakref_slot=False)
class Reply:
    """The answer to a request: for a change the path of the child, for a status the picture, or an error."""

    token: Any
    value: Any = None
    error: Exception | None = None


@define(weakref_slot=False)
class Gone:
    """The child, and all below it, is down for good, because of `why` if it failed; `removed`: it has left the tree."""

    path: str
    why: BaseException | None
    removed: bool = False


@define(weakref_slot=False)
class Fatal:
    """A child raised what is not an `Exception`: the whole tree is to stop (R4)."""

    exc: BaseException


@define(weakref_slot=False)
class Fail:
    """No supervisor decided this failure: the tree fails with it once everything has stopped (R11)."""

    exc: BaseException


# Effects for another machine, which the forest hands on as inputs. The driver sees `Rise` too.


@define(weakref_slot=False)
class Rise:
    """A report of the supervisor at this path to its own supervisor; that of the root is for the driver alone."""

    path: str
    report: Up | Exited | Ended


@define(weakref_slot=False)
class Tell:
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
    | Tell
)
