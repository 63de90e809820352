"""What goes into a machine and what comes out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from attrs import define

from ..events import Event
from .directive import Directive
from .spec import Spec

if TYPE_CHECKING:
    from .machine import Machine
    from .node import Node


@define(eq=False)
class Failure:
    """An exception on its way up, and what is known of it.

    `path`: where it happened first. `origin`: the node that is suspended with it, or that it counts for.
    `resumable`: the body is over and its resource can be kept. `progressed`: the leaf has taken a message since its
    last resume. `starting`: the node was not ready yet.
    """

    exc: BaseException
    origin: Node
    path: str
    tag: str | None = None
    resumable: bool = False
    progressed: bool = False
    starting: bool = False


# What goes in. `child` is the node that reports, `incarnation` the life that it reports of.


@define(eq=False)
class Boot:
    """The supervisor's own task is there, and its `init` has been called."""

    problem: BaseException | None = None
    ignored: bool = False


@define(eq=False)
class Up:
    """The child is ready."""

    child: Node
    incarnation: int
    value: Any = None


@define(eq=False)
class Exited:
    """The child's body is over and its task is suspended: it raised `exc`, or else it returned `value`.

    `risen`: from a supervisor, a failure below it, or its own, that it does not decide.
    """

    child: Node
    incarnation: int
    exc: BaseException | None = None
    value: Any = None
    resumable: bool = False
    progressed: bool = False
    risen: Failure | None = None


@define(eq=False)
class Ended:
    """The child is really gone. `error`: what went wrong while it was stopped or left.

    `ignored`: it said `IGNORE`. `returned`: a supervisor ended normally. `failure`: a supervisor, or its start, failed.
    """

    child: Node
    incarnation: int
    error: BaseException | None = None
    ignored: bool = False
    returned: bool = False
    failure: Failure | None = None


RequestKind = Literal["add", "stop", "restart", "remove", "status"]


@define(eq=False)
class Request:
    """Somebody asks for a change; answered by one `Reply` with the same token."""

    kind: RequestKind
    token: Any
    name: str | None = None
    spec: Spec | None = None
    args: tuple[Any, ...] = ()


@define(eq=False)
class Stop:
    """The supervisor is to stop its children, and end; as if by itself if it `returned`, or failed with `exc`."""

    reason: str
    returned: bool = False
    exc: Exception | None = None


@define(eq=False)
class Verdict:
    """An ancestor has decided the failure that this supervisor passed up."""

    directive: Directive | None


@define(eq=False)
class Wake:
    """A time that the machine asked for has come."""


Input = Boot | Up | Exited | Ended | Request | Stop | Verdict | Wake

# What comes out, for the driver. An event is to be delivered.


@define(eq=False)
class _To:
    child: Node


@define(eq=False)
class _Because(_To):
    reason: str


class Start(_To):
    """Give the child a task. A supervisor's boots once its nursery is open."""

    __slots__ = ()


class Ask(_Because):
    """Tell the leaf that it is to stop."""

    __slots__ = ()


class Cancel(_Because):
    """Cancel the leaf."""

    __slots__ = ()


class Release(_To):
    """Let the suspended leaf leave its resource and end."""

    __slots__ = ()


class Resume(_To):
    """Let the suspended leaf enter its body again."""

    __slots__ = ()


@define(eq=False)
class ReportOverdue:
    """Look where the child hangs, and deliver an `Overdue`."""

    child: Node
    seconds: float


@define(eq=False)
class WakeAt:
    """Put a `Wake` in at this time. A later one with an earlier time counts too."""

    machine: Machine
    at: float


@define(eq=False)
class Reply:
    """The answer to a request."""

    token: Any
    value: Any = None
    error: Exception | None = None


@define(eq=False)
class Gone:
    """The node, and all below it, is down for good; `why` if it failed."""

    child: Node
    why: BaseException | None
    removed: bool = False


@define(eq=False)
class _Failing:
    exc: BaseException


class Fatal(_Failing):
    """Something that is not an `Exception` came out of a child: the whole tree is to stop (R4)."""

    __slots__ = ()


class Fail(_Failing):
    """Nobody decided: the tree fails with this, once all has stopped."""

    __slots__ = ()


# What comes out, for another machine: the forest turns it into an input there.


@define(eq=False)
class Rise:
    """For this supervisor's own supervisor, or, from the root, for the driver: it is over."""

    report: Up | Exited | Ended


@define(eq=False)
class Tell:
    """For the machine of a child that is a supervisor."""

    child: Node
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
