"""The records of a child: its node while it is in the tree, its tombstone afterwards, and its failure."""

from __future__ import annotations

from math import inf
from typing import Literal

from attrs import define, field

from ..events import Because
from .decide import Decider
from .directive import Directive
from .limit import Delays, Window
from .spec import Child, Pool, Spec, Supervisor

State = Literal["down", "starting", "up", "failed", "stopping", "releasing", "restarting", "condemned"]
Phase = Literal["", "start", "drain", "grace", "release", "backoff"]


@define(eq=False, weakref_slot=False)
class Failure:
    """An exception that the deciders judge, here or further up, with the facts that they need.

    Args:
        exc: the exception, or the one that a decider raised on it.
        origin: the path of the node that is suspended with it, or to which it is attributed.
        incarnation: that of the origin.
        path: the path of the node where it happened first.
        tag: the tag that a decider has given it so far.
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


_LEFT = 64  # a supervisor keeps so many tombstones of children that left the tree


class Tombstone:
    """The remains of a node: its kind and numbers, the last decision about it, the memory of those below it.

    `why`: the failure with which it left the tree.
    """

    __slots__ = ("decision", "failures", "first", "incarnation", "kind", "memory", "why")

    def __init__(self, node: Node, why: BaseException | None) -> None:
        self.kind = type(node.spec)
        self.incarnation = node.incarnation
        self.first, self.failures, self.decision = node.first, node.failures, node.decision
        self.memory = node.memory
        self.why = why


class Memory:
    """What a supervisor's node remembers of its children over its own restarts.

    `declared`: tombstones of the children that its spec declares. `left`: tombstones of the last children that left the
    tree, the oldest first; `floor`: the highest incarnation of all that were dropped from `left`, so that no incarnation goes
    back and memory stays flat (R9, R31). `members`: how many names a pool has generated. `generated`: the highest incarnation
    of the members with generated names that left, since a caller of `add` may choose one of those names later.
    """

    __slots__ = ("declared", "floor", "generated", "left", "members")

    def __init__(self) -> None:
        self.declared: dict[str, Tombstone] = {}
        self.left: dict[str, Tombstone] = {}
        self.floor = 0
        self.members = 0
        self.generated = 0

    def leave(self, node: Node, why: BaseException | None) -> None:
        """Keep a tombstone of a node that left the tree."""
        self._keep(node.name, Tombstone(node, why))

    def _keep(self, name: str, tombstone: Tombstone) -> None:
        self.left.pop(name, None)
        self.left[name] = tombstone
        if len(self.left) > _LEFT:
            forgotten = self.left.pop(next(iter(self.left)))
            self.floor = max(self.floor, forgotten.incarnation)

    def take_out(self, spec: Supervisor | Pool) -> list[str]:
        """Take out the children that `spec` does not declare, or declares as another kind of node (R38). Returns their names.

        If a pool was here before, a child of a supervisor may have a name that the pool has generated, so its first incarnation
        comes after those of the pool (R9).
        """
        if not isinstance(spec, Pool):
            self.floor = max(self.floor, self.generated)
        kinds = {child.name: type(child) for child in spec.children}
        names = [name for name, past in self.declared.items() if kinds.get(name) is not past.kind]
        for name in names:
            self._keep(name, self.declared.pop(name))
        return names

    def recall(self, node: Node) -> None:
        """Give a node that joins the tree the incarnation and the memory that its name had."""
        name = node.spec.name
        past = self.declared.pop(name, None) or self.left.pop(name, None)
        if past is None:
            node.incarnation = node.first = self.floor
        else:
            node.incarnation, node.memory = past.incarnation, past.memory
            node.first, node.failures, node.decision = past.first, past.failures, past.decision


class Node:
    """What a supervisor knows of one child.

    The machine of that supervisor writes here; for the root the forest does, besides the root's own machine.

    `epoch`: changes when the items about this child in the inbox become void. `alive`: it has a task. `awaited`: the act in
    progress waits until it is up or has ended. `undecided`: its failure waits for a verdict. `gone`: it is down for good,
    because of `why` if it failed. `decider`: decides a leaf's own failures; a supervisor's decides those below it.
    `fast_path`: it may take the one-step restart: a leaf of one_for_one without resource, backoff or slow start, and not
    temporary. `slow_start`: its start needs a timer, since it need not be ready as soon as its task runs.
    `phase`: the phase that its timer limits. `since`: when its state began. `ready_at`: when this incarnation became ready.
    `failures`: how many there were since the tree opened. `decision`: the last one, see `status.Decision`. `first`: the
    incarnation that its name had before it first joined. `number`: its place in the order in which the children joined.
    """

    __slots__ = (
        "alive",
        "awaited",
        "decider",
        "decision",
        "delays",
        "due",
        "epoch",
        "failure",
        "failures",
        "fast_path",
        "first",
        "generated_name",
        "gone",
        "has_machine",
        "incarnation",
        "interval",
        "is_leaf",
        "last_failure",
        "memory",
        "number",
        "path",
        "phase",
        "ready_at",
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

    def __init__(self, spec: Spec, path: str, above: Decider, *, has_no_group: bool = False) -> None:
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
        self.epoch = self.timer = self.number = self.first = self.failures = 0
        self.ready_at: float | None = None
        self.decision: tuple[float, Directive | None, str | None, str, Because] | None = None
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
            and has_no_group
            and (spec.resource is None and spec.backoff is None and not self.slow_start)
            and spec.restart != "temporary"
        )

    def adopt(self, spec: Spec, above: Decider, *, has_no_group: bool) -> None:
        """Take another declaration, of the same kind of node. What runs is not changed by it (R38)."""
        declared = Node(spec, self.path, above, has_no_group=has_no_group)
        if spec.backoff == self.spec.backoff:
            declared.delays = self.delays
        if spec.limit == self.spec.limit:
            declared.window = self.window
        for name in ("spec", "decider", "delays", "window", "slow_start", "fast_path"):
            setattr(self, name, getattr(declared, name))

    def __repr__(self) -> str:
        return f"<node {self.path!r} {self.state} incarnation={self.incarnation}>"

    @property
    def name(self) -> str:
        """Its name among its siblings."""
        return self.spec.name

    @property
    def is_new(self) -> bool:
        """Whether it has joined by an adoption (R38), and was neither started nor stopped since."""
        return self.state == "down" and self.epoch == 0

    @property
    def leaving(self) -> bool:
        """Whether it is ending: it was asked to stop, cancelled or released, or its start has timed out."""
        return self.alive and (self.state in ("stopping", "releasing") or self.timed_out)

    @property
    def temporary(self) -> bool:
        """Whether it is never restarted, and leaves the tree when it ends (R7)."""
        return self.spec.restart == "temporary"
