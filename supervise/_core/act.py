"""An act, the items that wait in the inbox during it, and ACTS: the table of how the kinds of act differ.

Every act is the same walk: stop these children one by one, start those one by one, finish. The kinds differ in what they
stop and start, in how they finish, and in three answers, which the machine reads from ACTS:

| act | stops | starts | a child it has stopped is | a start that fails is | a failure it meets is | ends with |
|---|---|---|---|---|---|---|
| boot | | all | | the end of this start | | up |
| restart | the group, the failed one first | the group | pending | judged | absorbed | a reply, if asked for |
| retry | the group, or the failed one | | pending | | absorbed | a backoff, or a place in the inbox |
| add | | the new one | removed | the caller's error | stopped | a reply |
| start | | the one | down for good | the caller's error | stopped | a reply |
| stop | the one | | down for good | | stopped | a reply |
| condemn | the one | the rest of its group | condemned | judged | stopped | perhaps the supervisor's own end (R18) |
| done | the one | | down for good | | stopped | perhaps the supervisor's own end (R18) |
| limit | the one | | down | | stopped | the supervisor's own failure (R14) |
| ask | | | | | | an ancestor's verdict, or a stop |
| end | all | | down, or down for good | | stopped | the supervisor's end |

`add` and `start` stop a child only after its start has failed.
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
        finish: the method of the machine that finishes it; empty if it never finishes.
        stopped: the state of a child that it has stopped. `pending`: down, and its start is ahead, but a temporary child
            leaves the tree; `down`: down, without a `Gone`.
        failed_start: the effect of a failed start. `ends`: the supervisor's own start fails; `is judged`: the deciders are
            asked; `is reported`: the caller gets it as an error.
        undecided: `because` in the `Decided` of a failure whose child the act stopped before any verdict.
    """

    finish: str
    stopped: Literal["pending", "removed", "down for good", "condemned", "down"] = "down"
    failed_start: Literal["ends", "is judged", "is reported"] = "is reported"
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
    """One act of a supervisor.

    Args:
        kind: a row of ACTS.
        why: the reason given to the children that it stops.
        node: the child that it is about, if it is about one.
        stops: the children still to be stopped, taken from the end.
        starts: the children still to be started, taken from the end.
        token: that of the request that it serves, whose caller waits for the answer.
        delay: seconds of backoff before a retry.
        returned: of an `end`: whether the supervisor counts as ended normally.
        failure: the failure that the act reports when it finishes.
        for_good: of an `end`: whether no start follows without a request, so that each child is down for good once it has ended.
        why_for_good: the failure for which that is so.
        pending: the number of awaited children, and one more while a verdict on the supervisor's own failure is awaited.
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
    for_good: bool = field(default=False, kw_only=True)
    why_for_good: BaseException | None = field(default=None, kw_only=True)
    pending: int = field(default=0, kw_only=True)

    def asked_for(self, node: Node) -> bool:
        """Whether this act serves a request about this child."""
        return self.token is not None and self.node is node


@define(eq=False, weakref_slot=False)
class _About:
    """An item of the inbox about one child. It is void once the child's epoch has changed."""

    node: Node
    epoch: int

    def holds(self) -> bool:
        """Whether this item is still to be served."""
        return self.epoch == self.node.epoch


class Judge(_About):
    """A failure of this child waits to be decided."""

    __slots__ = ()


class Done(_About):
    """The child ended by itself and is not to be restarted."""

    __slots__ = ()


class Retry(_About):
    """The child is to be started again.

    It holds as long as the child waits for any retry, even if a later failure asked for that retry. So a group restart that
    reaches a waiting child, and whose start of it fails again, leaves two retries in the inbox, as in OTP (R13).
    """

    __slots__ = ()

    def holds(self) -> bool:
        """Whether the child still waits, and not for its backoff."""
        return self.node.state == "restarting" and self.node.phase != "backoff"


class Released(_About):
    """The child has left its resource and ended: the act that a verdict asked for begins."""

    __slots__ = ()


Waiting = Judge | Done | Retry | Released | Request
