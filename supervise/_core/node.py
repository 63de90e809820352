"""What is known of a child: its node while it is there, its tombstone afterwards, and the failure that it has."""

from __future__ import annotations

from math import inf
from typing import Literal

from attrs import define, field

from .decide import Decider
from .limit import Delays, Window
from .spec import Child, Spec

State = Literal["down", "starting", "up", "failed", "stopping", "releasing", "restarting", "condemned"]
Phase = Literal["", "start", "drain", "grace", "release", "backoff"]


@define(eq=False, weakref_slot=False)
class Failure:
    """An exception on its way up, and what is known of it.

    Args:
        exc: the exception, or what a decider raised on it.
        origin: the path of the node that is suspended with it, or that it counts for.
        incarnation: that of the origin.
        path: where it happened first.
        tag: what a decider has called it so far.
        resumable: whether the body is over and its resource can be kept.
        progressed: whether the leaf has taken a message since it was resumed last.
        starting: whether the node was not ready yet.
    """

    exc: BaseException
    origin: str
    incarnation: int
    path: str
    tag: str | None = None
    resumable: bool = field(default=False, kw_only=True)
    progressed: bool = field(default=False, kw_only=True)
    starting: bool = field(default=False, kw_only=True)


_LEFT = 64  # so many of those who left a supervisor are remembered one by one


class Tombstone:
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
    (R9, R31). `members`: how many names a pool has given. `generated`: the highest incarnation of the members of such names that
    left, since a caller of `add` may give one of those names later.
    """

    __slots__ = ("declared", "floor", "generated", "left", "members")

    def __init__(self) -> None:
        self.declared: dict[str, Tombstone] = {}
        self.left: dict[str, Tombstone] = {}
        self.floor = 0
        self.members = 0
        self.generated = 0

    def leave(self, node: Node, why: BaseException | None) -> None:
        """The node has left the tree."""
        self.left.pop(node.name, None)
        self.left[node.name] = Tombstone(node, why)
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
        "awaited",
        "decider",
        "delays",
        "due",
        "epoch",
        "failure",
        "fast_path",
        "generated_name",
        "gone",
        "has_machine",
        "incarnation",
        "interval",
        "is_leaf",
        "last_failure",
        "memory",
        "path",
        "phase",
        "restart_in_progress",
        "retry_charged",
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

    def __init__(self, spec: Spec, path: str, above: Decider, *, restarts_alone: bool = False) -> None:
        self.spec = spec
        self.decider = above if spec.decider is None else spec.decider.at(path, above)
        self.path = path
        self.is_leaf = isinstance(spec, Child)
        self.incarnation = 0
        self.state: State = "down"
        self.phase: Phase = ""
        self.alive = self.has_machine = self.awaited = self.undecided = False
        self.retry_charged = self.restart_in_progress = self.timed_out = self.gone = self.generated_name = (
            False
        )
        self.epoch = self.timer = 0
        self.since = self.due = self.interval = self.waited = 0.0
        self.failure: Failure | None = None
        self.last_failure: BaseException | None = None
        self.why: BaseException | None = None
        self.memory: Memory | None = None
        self.window = Window(spec.limit) if isinstance(spec, Child) and spec.limit is not None else None
        self.delays = Delays(spec.backoff) if spec.backoff is not None else None
        self.slow_start = spec.start_timeout is not None or (
            isinstance(spec, Child)
            and (spec.takes_task_status or spec.resource is not None)
            and spec.start_warning < inf
        )
        self.fast_path = (
            isinstance(spec, Child)
            and restarts_alone
            and (spec.resource is None and spec.backoff is None and not self.slow_start)
            and spec.restart != "temporary"
        )

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
