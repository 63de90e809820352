"""What goes into a machine and what comes out of it.

Plain classes: nobody compares or prints them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ..events import Event
from .directive import Directive
from .node import Failure, Node
from .spec import Spec

if TYPE_CHECKING:
    from .machine import Machine


# What goes in. `child` is the node that reports, `incarnation` the life that it reports of.


class Boot:
    """The supervisor's own task is there, and its `init` has been called."""

    __slots__ = ("ignored", "problem")

    def __init__(self, problem: BaseException | None = None, ignored: bool = False) -> None:
        self.problem = problem
        self.ignored = ignored


class Up:
    """The child is ready."""

    __slots__ = ("child", "incarnation", "value")

    def __init__(self, child: Node, incarnation: int, value: Any = None) -> None:
        self.child = child
        self.incarnation = incarnation
        self.value = value


class Exited:
    """The child's body is over and its task is suspended: it raised `exc`, or else it returned `value`.

    `risen`: from a supervisor, a failure below it, or its own, that it does not decide.
    """

    __slots__ = ("child", "exc", "incarnation", "progressed", "resumable", "risen", "value")

    def __init__(
        self,
        child: Node,
        incarnation: int,
        exc: BaseException | None = None,
        value: Any = None,
        *,
        resumable: bool = False,
        progressed: bool = False,
        risen: Failure | None = None,
    ) -> None:
        self.child = child
        self.incarnation = incarnation
        self.exc = exc
        self.value = value
        self.resumable = resumable
        self.progressed = progressed
        self.risen = risen


class Ended:
    """The child is really gone. `error`: what went wrong while it was stopped or left.

    `ignored`: it said `IGNORE`. `returned`: a supervisor ended normally. `failure`: a supervisor, or its start, failed.
    """

    __slots__ = ("child", "error", "failure", "ignored", "incarnation", "returned")

    def __init__(
        self,
        child: Node,
        incarnation: int,
        error: BaseException | None = None,
        ignored: bool = False,
        *,
        returned: bool = False,
        failure: Failure | None = None,
    ) -> None:
        self.child = child
        self.incarnation = incarnation
        self.error = error
        self.ignored = ignored
        self.returned = returned
        self.failure = failure


RequestKind = Literal["add", "stop", "start", "restart", "remove", "status"]


class Request:
    """Somebody asks for a change; answered by one `Reply` with the same token, unless it is withdrawn before it has begun."""

    __slots__ = ("args", "kind", "name", "spec", "token", "withdrawn")

    def __init__(
        self,
        kind: RequestKind,
        token: Any,
        name: str | None = None,
        spec: Spec | None = None,
        args: tuple[Any, ...] = (),
    ) -> None:
        self.kind = kind
        self.token = token
        self.name = name
        self.spec = spec
        self.args = args
        self.withdrawn = False


class Withdraw:
    """Whoever made this request waits no longer: it is not served, unless it has begun (R25)."""

    __slots__ = ("request",)

    def __init__(self, request: Request) -> None:
        self.request = request


class Stop:
    """The supervisor is to stop its children, and end; as if by itself if it `returned`, or failed with `exc`."""

    __slots__ = ("exc", "reason", "returned")

    def __init__(self, reason: str, returned: bool = False, exc: Exception | None = None) -> None:
        self.reason = reason
        self.returned = returned
        self.exc = exc


class Verdict:
    """An ancestor has decided the failure that this supervisor passed up."""

    __slots__ = ("directive",)

    def __init__(self, directive: Directive | None) -> None:
        self.directive = directive


class Wake:
    """A time that the machine asked for has come."""

    __slots__ = ()


Input = Boot | Up | Exited | Ended | Request | Withdraw | Stop | Verdict | Wake

# What comes out, for the driver. An event is to be delivered.


class _To:
    __slots__ = ("child",)

    def __init__(self, child: Node) -> None:
        self.child = child


class _Because:
    __slots__ = ("child", "reason")

    def __init__(self, child: Node, reason: str) -> None:
        self.child = child
        self.reason = reason


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


class ReportOverdue:
    """Look where the child hangs, and deliver an `Overdue`, or a `StartOverdue` if it is `starting`."""

    __slots__ = ("child", "seconds", "starting")

    def __init__(self, child: Node, seconds: float, *, starting: bool = False) -> None:
        self.child = child
        self.seconds = seconds
        self.starting = starting


class WakeAt:
    """Put a `Wake` in at this time. A later one with an earlier time counts too."""

    __slots__ = ("at", "machine")

    def __init__(self, machine: Machine, at: float) -> None:
        self.machine = machine
        self.at = at


class Reply:
    """The answer to a request."""

    __slots__ = ("error", "token", "value")

    def __init__(self, token: Any, value: Any = None, error: Exception | None = None) -> None:
        self.token = token
        self.value = value
        self.error = error


class Gone:
    """The node, and all below it, is down for good; `why` if it failed."""

    __slots__ = ("child", "removed", "why")

    def __init__(self, child: Node, why: BaseException | None, removed: bool = False) -> None:
        self.child = child
        self.why = why
        self.removed = removed


class _Failing:
    __slots__ = ("exc",)

    def __init__(self, exc: BaseException) -> None:
        self.exc = exc


class Fatal(_Failing):
    """Something that is not an `Exception` came out of a child: the whole tree is to stop (R4)."""

    __slots__ = ()


class Fail(_Failing):
    """Nobody decided: the tree fails with this, once all has stopped."""

    __slots__ = ()


# What comes out, for another machine: the forest turns it into an input there.


class Rise:
    """For this supervisor's own supervisor, or, from the root, for the driver: it is over."""

    __slots__ = ("report",)

    def __init__(self, report: Up | Exited | Ended) -> None:
        self.report = report


class Tell:
    """For the machine of a child that is a supervisor."""

    __slots__ = ("child", "order")

    def __init__(self, child: Node, order: Stop | Verdict) -> None:
        self.child = child
        self.order = order


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
