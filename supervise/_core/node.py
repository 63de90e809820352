"""One node as its supervisor sees it, and the frozen picture of it that a status gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from operator import eq
from typing import TYPE_CHECKING, Any, Literal

from attrs import astuple, field, frozen

from ._code import Code
from .decide import Decider
from .limit import Delays, Window
from .spec import Child, Pool, Spec

if TYPE_CHECKING:
    from .act import Act
    from .effect import Failure
    from .machine import Machine

State = Literal["down", "starting", "up", "failed", "stopping", "releasing", "restarting", "condemned"]
Phase = Literal["", "start", "drain", "grace", "release", "backoff"]


_LEFT = 64  # so many of those who left a supervisor are remembered one by one


class Past:
    """What is left of a node without a machine: how often it lived, why it left the tree, and what there was below it."""

    __slots__ = ("incarnation", "memory", "why")

    def __init__(self, node: Node, why: BaseException | None) -> None:
        self.incarnation = node.incarnation
        self.memory = node.memory
        self.why = why


class Memory:
    """What a supervisor's node remembers of its children over its own restarts.

    `declared`: of those that its spec declares. `left`: the last of those who left the tree, the oldest first; of all that
    were forgotten `floor` is the highest incarnation, so that no number ever goes back and memory is flat all the same
    (R9, R31). `members`: how many names a pool has given.
    """

    __slots__ = ("declared", "floor", "left", "members")

    def __init__(self) -> None:
        self.declared: dict[str, Past] = {}
        self.left: dict[str, Past] = {}
        self.floor = 0
        self.members = 0

    def leave(self, node: Node, why: BaseException | None) -> None:
        """The node has left the tree."""
        self.left.pop(node.name, None)
        self.left[node.name] = Past(node, why)
        if len(self.left) > _LEFT:
            forgotten = self.left.pop(next(iter(self.left)))
            self.floor = max(self.floor, forgotten.incarnation)

    def recall(self, node: Node) -> None:
        """Tell a node that comes, or comes back, what is known of its name."""
        name = node.spec.name
        past = self.declared.pop(name, None) or self.left.pop(name, None)
        if past is None:
            node.incarnation = self.floor
        else:
            node.incarnation, node.memory = past.incarnation, past.memory


class Node:
    """What a supervisor knows of one child. That supervisor's machine writes here; of the root it is the forest.

    `epoch` changes whenever what waits in the inbox about this child is to be void. `alive`: it has a task.
    `awaited`: the act in progress goes on when it is up, or has ended. `undecided`: its failure waits for a verdict.
    `gone`: it is down for good, and `why` if it failed. `decider`: a leaf's failures are decided by it; of a supervisor,
    those below it. `simple`: its restart concerns nobody else, leaves nothing and waits for nothing; `alone` is the act of
    that. `slow_start`: its start is worth a timer, for it need not be ready as soon as its task runs. `handle` belongs to the driver.
    """

    __slots__ = (
        "alive",
        "alone",
        "awaited",
        "charged",
        "decider",
        "delays",
        "due",
        "dynamic",
        "epoch",
        "failure",
        "gone",
        "handle",
        "incarnation",
        "interval",
        "last_failure",
        "machine",
        "memory",
        "mending",
        "parent",
        "path",
        "phase",
        "simple",
        "since",
        "slow_start",
        "spec",
        "state",
        "timed_out",
        "timer",
        "undecided",
        "waited",
        "why",
        "window",
    )

    def __init__(
        self, spec: Spec, path: str, parent: Machine | None, above: Decider, incarnation: int = 0
    ) -> None:
        self.spec = spec
        self.decider = above if spec.decider is None else spec.decider.at(path, above)
        self.path = path
        self.parent = parent
        self.incarnation = incarnation
        self.state: State = "down"
        self.phase: Phase = ""
        self.alive = self.awaited = self.undecided = False
        self.charged = self.mending = self.timed_out = self.gone = self.dynamic = False
        self.epoch = self.timer = 0
        self.since = self.due = self.interval = self.waited = 0.0
        self.machine: Machine | None = None
        self.failure: Failure | None = None
        self.last_failure: BaseException | None = None
        self.why: BaseException | None = None
        self.alone: Act | None = None
        self.memory: Memory | None = None
        self.window = Window(spec.limit) if isinstance(spec, Child) and spec.limit is not None else None
        self.delays = Delays(spec.backoff) if spec.backoff is not None else None
        self.slow_start = spec.start_timeout is not None or (
            isinstance(spec, Child)
            and (spec.takes_task_status or spec.resource is not None)
            and spec.start_warning < inf
        )
        self.simple = (
            isinstance(spec, Child)
            and parent is not None
            and parent.spec.strategy == "one_for_one"
            and (spec.resource is None and spec.backoff is None and not self.slow_start)
            and spec.restart != "temporary"
        )
        self.handle: Any = None

    def __repr__(self) -> str:
        return f"<node {self.path!r} {self.state} incarnation={self.incarnation}>"

    @property
    def name(self) -> str:
        """Its name among its siblings."""
        return self.spec.name

    @property
    def leaving(self) -> bool:
        """Whether it is on its way out: asked, cancelled or released, or too late with its start."""
        return self.alive and (self.state in ("stopping", "releasing") or self.timed_out)

    @property
    def temporary(self) -> bool:
        """Whether it is never restarted, and leaves the tree when it ends (R7)."""
        return self.spec.restart == "temporary"


@frozen(kw_only=True, repr=False, eq=False)
class Status(Code):
    """A node as it stood when `status()` was called, and those below it (R33).

    Args:
        path: such as `app/llm/context`.
        kind: `child`, `supervisor` or `pool`.
        state: `down`, `starting`, `up`, `failed` (suspended, waiting for a verdict), `stopping`, `releasing` (decided,
            and on its way out of its resource, R9), `restarting` (a retry is queued, or due at `due`) or `condemned` (R10).
        incarnation: 0 before its first start.
        restarts: those that its limit still counts: a supervisor's of its children, a leaf's own.
        last_failure: the last failure of this node; a supervisor's may be one from below that it passed up.
        due: when its backoff ends, in seconds on Trio's clock.
        mailbox: how many messages wait; None where there is no mailbox.
        handled: how many messages were taken out of the mailbox, each counted once, and how many items were put into
            streams, since the node has been there; None where there is no mailbox. What it grows by is a rate.
        children: of a supervisor, in start order.
    """

    path: str
    kind: str
    state: State
    incarnation: int
    restarts: int = 0
    last_failure: BaseException | None = None
    due: float | None = None
    mailbox: int | None = None
    handled: int | None = None
    children: tuple[Status, ...] = field(default=())

    def walk(self) -> Iterator[Status]:
        """This node and all below it, parents first, in start order."""
        waiting: list[Status] = [self]
        while waiting:
            here = waiting.pop()
            yield here
            waiting.extend(reversed(here.children))

    def __eq__(self, other: object) -> bool:
        if type(other) is not Status:
            return NotImplemented
        return all(map(eq, map(_own, self.walk()), map(_own, other.walk())))

    def __hash__(self) -> int:
        return hash(tuple(map(_own, self.walk())))


def _own(status: Status) -> tuple[object, ...]:
    """What it says of itself, and how many are below it: in the order of a walk that makes the whole tree."""
    *own, children = astuple(status, recurse=False)
    return *own, len(children)


Traffic = Callable[["Node"], tuple[int | None, int | None]]
"""What `Status` says of a node's mailbox: how many wait, and how many were handled."""


def picture(node: Node, now: float, traffic: Traffic = lambda _: (None, None)) -> Status:
    """One node and all below it; bottom up over a list, so that no depth is too deep."""
    order = [node]
    for here in order:
        if here.machine is not None:
            order += here.machine.children.values()
    done: dict[Node, Status] = {}
    for here in reversed(order):
        children = (
            () if here.machine is None else tuple(map(done.__getitem__, here.machine.children.values()))
        )
        done[here] = _one(here, now, traffic(here), children)
    return done[node]


def _one(
    node: Node, now: float, traffic: tuple[int | None, int | None], children: tuple[Status, ...]
) -> Status:
    if node.machine is not None:
        restarts = node.machine.restarts(now)
    else:
        restarts = 0 if node.window is None else node.window.count(now)
    return Status(
        path=node.path,
        kind=_kind(node.spec),
        state=node.state,
        incarnation=node.incarnation,
        restarts=restarts,
        last_failure=node.last_failure,
        due=node.due if node.phase == "backoff" else None,
        mailbox=traffic[0],
        handled=traffic[1],
        children=children,
    )


def _kind(spec: Spec) -> str:
    if isinstance(spec, Child):
        return "child"
    return "pool" if isinstance(spec, Pool) else "supervisor"
