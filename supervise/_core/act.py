"""What a supervisor is busy with, what waits in its inbox meanwhile, and ACTS: what makes one kind of act differ from another.

Every act is the same walk: stop these children one by one, start those one by one, finish. The kinds differ in four
answers only, and wherever the machine needs one of them it reads it here:

| act | stops | starts | a child it has stopped is | a start that fails is | a failure it meets is | ends with |
|---|---|---|---|---|---|---|
| boot | | all | | the end of this start | | up |
| restart | the group, the failed one first | the group | pending | judged | absorbed | a reply, if asked for |
| retry | the group, or the failed one | | pending | | absorbed | a backoff, or a place in the inbox |
| add | | the new one | removed | told to the caller | stopped | a reply |
| start | | the one | down for good | told to the caller | stopped | a reply |
| stop | the one | | down for good | | stopped | a reply |
| condemn | the one | the rest of its group | condemned | judged | stopped | perhaps the supervisor's own end (R18) |
| done | the one | | down for good | | stopped | perhaps the supervisor's own end (R18) |
| limit | the one | | down | | stopped | the supervisor's own failure (R14) |
| ask | | | | | | an ancestor's verdict, or a stop |
| end | all | | down | | stopped | the supervisor's end |

`add` and `start` stop a child only to take back a start that has failed.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from attrs import define, field

from .effect import Request
from .node import Failure, Node

ActKind = Literal[
    "boot", "restart", "retry", "add", "start", "stop", "condemn", "done", "limit", "ask", "end"
]


class Row(NamedTuple):
    """One kind of act.

    Args:
        finish: the method of the machine that it ends with; none if it never finishes.
        stopped: what a child is that it has stopped: `pending` is down with a start before it, unless it is temporary;
            `down` is down with its supervisor, so that nobody needs to be told.
        failed_start: what a start that fails is: the end of its supervisor's start, judged, or told to the caller.
        undecided: what `Decided` says of a failure that no verdict had reached when the act stopped its child.
    """

    finish: str
    stopped: Literal["pending", "removed", "down for good", "condemned", "down"] = "down"
    failed_start: Literal["ends", "is judged", "is told"] = "is told"
    undecided: Literal["absorbed", "stop"] = "stop"


ACTS: dict[ActKind, Row] = {
    "boot": Row("_finish_boot", failed_start="ends"),
    "restart": Row("_finish_restart", "pending", "is judged", "absorbed"),
    "retry": Row("_finish_retry", "pending", undecided="absorbed"),
    "add": Row("_finish_request", "removed"),
    "start": Row("_finish_request", "down for good"),
    "stop": Row("_finish_request", "down for good"),
    "condemn": Row("_weigh_end", "condemned", "is judged"),
    "done": Row("_weigh_end", "down for good"),
    "limit": Row("_finish_limit"),
    "ask": Row(""),
    "end": Row("_finish_end"),
}


@define(eq=False, weakref_slot=False)
class Act:
    """What the supervisor is busy with.

    Args:
        kind: a row of ACTS.
        why: what those that it stops are told.
        node: the child that it is about, if it is about one.
        stops: those still to be stopped, taken from the end.
        starts: those still to be started, taken from the end.
        token: of the request that it serves; whoever made it waits for the answer.
        delay: seconds of backoff before a retry.
        returned: of an end, whether the supervisor counts as ended normally.
        failure: what the act comes to if it has failed.
        pending: how many children are awaited before it goes on.
    """

    kind: ActKind
    why: str = ""
    node: Node | None = None
    stops: list[Node] = field(factory=list[Node])
    starts: list[Node] = field(factory=list[Node])
    token: Any = field(default=None, kw_only=True)
    delay: float = field(default=0.0, kw_only=True)
    returned: bool = field(default=False, kw_only=True)
    failure: Failure | None = field(default=None, kw_only=True)
    pending: int = field(default=0, kw_only=True)

    def asked_for(self, node: Node) -> bool:
        """Whether somebody asked by hand for what is done to this child."""
        return self.token is not None and self.node is node


@define(eq=False, weakref_slot=False)
class _About:
    """Something waits about this child. It is void once the child's epoch has changed."""

    node: Node
    epoch: int

    def holds(self) -> bool:
        """Whether it is still to be served."""
        return self.epoch == self.node.epoch


class Judge(_About):
    """A failure of this child waits to be decided."""

    __slots__ = ()


class Done(_About):
    """The child ended by itself and is not to be restarted."""

    __slots__ = ()


class Retry(_About):
    """The child is to be started again.

    It holds as long as the child waits for any retry, also one that another failure has asked for since: as in OTP, a group
    restart that reaches a waiting child, and whose start of it fails again, makes two retries of one (R13).
    """

    __slots__ = ()

    def holds(self) -> bool:
        """Whether the child still waits, and not for its backoff."""
        return self.node.state == "restarting" and self.node.phase != "backoff"


class Released(_About):
    """The child has left its resource and ended; now begins what a verdict asked for."""

    __slots__ = ()


Waiting = Judge | Done | Retry | Released | Request
