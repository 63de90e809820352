"""What a supervisor is busy with, what waits in its inbox, and what outlives it."""

from __future__ import annotations

from typing import Any, Literal

from .effect import Failure, Request
from .node import Node

ActKind = Literal[
    "boot", "restart", "retry", "add", "start", "stop", "condemn", "done", "limit", "ask", "end"
]


class Ledger:
    """What all machines of one tree share. `listening`: whether anybody wants events; without a listener none is made."""

    __slots__ = ("listening",)

    def __init__(self) -> None:
        self.listening = True


class Act:
    """What the supervisor is busy with. `stops` and `starts` are taken from their ends.

    `why`: what those who are stopped are told.
    """

    __slots__ = ("delay", "failure", "kind", "node", "pending", "returned", "starts", "stops", "token", "why")

    def __init__(
        self,
        kind: ActKind,
        why: str = "",
        node: Node | None = None,
        stops: list[Node] | None = None,
        starts: list[Node] | None = None,
        *,
        token: Any = None,
        delay: float = 0.0,
        returned: bool = False,
        failure: Failure | None = None,
        pending: int = 0,
    ) -> None:
        self.kind = kind
        self.why = why
        self.node = node
        self.stops = [] if stops is None else stops
        self.starts = [] if starts is None else starts
        self.token = token
        self.delay = delay
        self.returned = returned
        self.failure = failure
        self.pending = pending

    def asked_for(self, node: Node) -> bool:
        """Whether somebody asked by hand for what is done to this child."""
        return self.token is not None and self.node is node


class _About:
    """Something waits about this child. It is void once the child's epoch has changed."""

    __slots__ = ("epoch", "node")

    def __init__(self, node: Node, epoch: int) -> None:
        self.node = node
        self.epoch = epoch

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
