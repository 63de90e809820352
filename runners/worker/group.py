"""The contexts of one worker in one tree, which take from one mailbox (D12).

A `Group` outlives its contexts, and belongs to the worker's place in a tree: a spec may be used in several trees.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import trio
from attrs import define, field, frozen

from supervise import Message, Ref, Tree

from ..protect import protected
from ..types import RunnerSpec, TokenChunk
from .breaker import Breaker, Circuit, State
from .meter import Meter, outcome_of
from .rates import Rates, RetryBudget
from .record import Loss, Record, are_equal

LOGGER = logging.getLogger("runners.worker")


@frozen(eq=False)
class Replacement:
    """A runner that `replace` has given to a worker. Two are never the same, though their runners may be."""

    runner: RunnerSpec


@protected
@define(eq=False)
class Ends:
    """Counts the ends of the requests to one place of a tree. All groups there share it, so that each end counts once."""

    meters: list[Meter] = field(factory=list[Meter])

    def count(self, request: object, end: str | BaseException) -> None:
        """A request has ended: the observer of the worker's calls."""
        how = outcome_of(request, end, trio.current_time())
        for meter in self.meters:
            meter.ended(how)


@protected
@define(eq=False)
class Group:
    """What the contexts of a worker know of one another.

    `runner`: as declared; None if no worker is. `contexts`: those that serve, by their paths. `replacement`: what `replace` has
    put in place of the declared runner; None until then. `replacing`: whether it is at work. `loss`: the last death of a context.
    `drains_until`: when the worker began to stop, the moment by which the begun streams must have ended; None before. `circuit`: of
    its breaker, if it has one. `meters`: what measures this worker; empty if it is not measured. `ends`: what counts the ends of its
    requests. `_held_back`: the last request that the rate limits have held back.
    """

    runner: RunnerSpec | None = None
    # Each is a `context.Context`, whose module imports this one.
    contexts: dict[str, Any] = field(factory=dict[str, Any])
    replacement: Replacement | None = None
    replacing: bool = False
    loss: Loss = field(factory=Loss)
    drains_until: float | None = None
    rates: Rates = field(factory=Rates)
    budget: RetryBudget = field(factory=RetryBudget)
    circuit: Circuit | None = None
    meters: list[Meter] = field(factory=list[Meter])
    ends: Ends = field(factory=Ends)
    _held_back: object = None

    def enter(self, path: str, context: Any) -> None:
        """A context begins to serve."""
        self.contexts[path] = context

    def leave(self, path: str) -> None:
        """A context has ended. When it was the last of a worker that was stopped, the worker may be started again."""
        del self.contexts[path]
        if not self.contexts:
            self.drains_until, self.loss = None, Loss()

    def drain(self, seconds: float) -> None:
        """The worker begins to stop: all contexts drain at the same time, though they are stopped one after the other (R12)."""
        if self.drains_until is None:
            self.drains_until = trio.current_time() + seconds
            for context in self.contexts.values():
                context.has_changed()

    def dies(self, *, is_apart: bool) -> Loss:
        """A context dies; returns the loss for its streams.

        `is_apart`: whether the context had taken no stream of an earlier loss. If streams of that loss are still undecided, both
        deaths are one loss then: no request was in both contexts, so none is the cause of both.
        """
        if is_apart and self.loss.streams:
            self.loss.is_shared = True
        else:
            self.loss = Loss()
        return self.loss

    def protect_server(self, policy: Breaker | None, path: str) -> None:
        """Keep to this breaker. What the one before has counted is void only if it was another one."""
        if policy is None:
            self.circuit = None
        elif self.circuit is None or self.circuit.policy != policy:
            self.circuit = Circuit(policy, partial(_log_breaker, path, policy))

    def settle(self, record: Record, tokens: int) -> None:
        """A request is complete, and its usage takes the place of its estimate: another one may begin earlier."""
        if record.begun is not None:
            record.begun.rates.settle(record.begun, tokens)
            record.begun = None
            self._look_again()

    def has_open(self, request_id: str) -> bool:
        """Whether a request with this id is open in a context, or is tried again there."""
        return any(
            request_id in context.open or request_id in context.retries for context in self.contexts.values()
        )

    def hold_back(self, message: Message) -> None:
        """The rate limits hold back this request. If its caller leaves, the next one is looked at, which may be smaller."""
        if message.value is not self._held_back:  # a message that was put back comes as another object
            self._held_back = message.value
            message.on_left(self._look_again)

    def _look_again(self) -> None:
        self._held_back = None
        for context in self.contexts.values():
            context.again = 0.0
            context.has_changed()

    def wake(self) -> None:
        """Begun streams went back to the queue: a context that the rate limits hold back may still continue them."""
        for context in self.contexts.values():
            context.has_changed()

    # --- what is measured: without meters only `observe` is called

    def observe(self, worker: Ref) -> None:
        """If this worker is measured, have the end of each request counted: again for each context, since the mailbox may be new."""
        if self.ends.meters:
            worker.observe_calls(self.ends.count)

    def request_begins(self, record: Record) -> None:
        """A request begins in a runner for the first time."""
        if record.sent_at is not None:
            for meter in self.meters:
                meter.begun(trio.current_time() - record.sent_at)

    def request_gets(self, record: Record, chunks: list[TokenChunk], *, first: bool, replayed: int) -> None:
        """A request gets chunks; several that come at once have one gap before them."""
        now, last = trio.current_time(), record.last_at
        record.last_at = now
        since_sent = now - record.sent_at if first and record.sent_at is not None else None
        gap = now - last if last is not None else None
        for meter in self.meters:
            meter.given(chunks, first=since_sent, gap=gap, replayed=replayed)

    def others_wait(self, context: Any, waiting: int) -> bool:
        """Whether this context has its share of the open streams and of those that wait, so that the others are next."""
        if len(self.contexts) == 1 or not waiting:
            return False
        free = [len(other.open) for other in self.contexts.values() if other is context or other.has_room()]
        return len(context.open) * len(free) >= sum(free) + waiting


def _log_breaker(path: str, policy: Breaker, state: State) -> None:
    text = {
        "closed": "the server works again",
        "open": f"the server has failed too often, no request begins for {policy.open_for:g} s",
        "half-open": f"the server is tried again with {policy.probes} at once",
    }
    try:
        LOGGER.log(
            logging.WARNING if state == "open" else logging.INFO,
            "[%s] breaker is %s: %s",
            path,
            state,
            text[state],
        )
    except Exception:  # noqa: BLE001 - a user's handler may raise anything, and a broken log must not fail a context
        with suppress(Exception):  # standard error may be closed
            traceback.print_exc(file=sys.stderr)


class Metrics(Protocol):
    """Makes the meters of workers."""

    def meter(self, path: str, group: Group) -> Meter:
        """The meter of the worker at this path; `group` may be kept by a weak reference, for its present state."""
        ...


@define(eq=False)
class Declaration:
    """Stands for one worker as it was declared; the groups of it live as long as it does."""


_GROUPS: WeakKeyDictionary[Tree, WeakKeyDictionary[Declaration, dict[str, Group]]] = WeakKeyDictionary()
_METRICS: WeakKeyDictionary[Tree, list[Metrics]] = WeakKeyDictionary()
_PATHS: WeakKeyDictionary[Tree, dict[str, Group]] = WeakKeyDictionary()
"""The last group at each path."""


def group_of(declaration: Declaration, runner: RunnerSpec, tree: Tree, path: str) -> Group:
    """The group of a worker that stands at this path of the tree. All members of a pool have the same declaration.

    A worker that is declared anew keeps its group (R38), unless its `runner` is another one: contexts of both declarations may serve
    side by side, since each gets the new one with its next restart.
    """
    groups = _GROUPS.setdefault(tree, WeakKeyDictionary()).setdefault(declaration, {})
    last = _PATHS.setdefault(tree, {})
    if path not in groups:
        for known in (groups, last):
            for other in [other for other in known if not _stands(tree, other)]:
                del known[other]
        group = last.get(path)
        if group is None or not are_equal(group.runner, runner):
            group = Group(runner, ends=Ends() if group is None else group.ends)
            group.meters += [metrics.meter(path, group) for metrics in _METRICS.get(tree, ())]
        groups[path] = group
    found = last[path] = groups[path]
    found.ends.meters = found.meters
    found.observe(tree[path])
    return found


def measure(tree: Tree, metrics: Metrics) -> None:
    """Have each worker of a tree measured from now on, also those that are added; nothing changes if they are already."""
    measured = _METRICS.setdefault(tree, [])
    if metrics in measured:
        return
    measured.append(metrics)
    for path, group in _PATHS.get(tree, {}).items():
        if _stands(tree, path):
            group.meters.append(metrics.meter(path, group))
            group.observe(tree[path])


def _stands(tree: Tree, path: str) -> bool:
    try:
        tree[path]
    except KeyError:
        return False
    return True


def group_at(tree: Tree, path: str) -> Group:
    """The group of the worker that was last at this path; an empty one if none was."""
    return _PATHS.get(tree, {}).get(path) or Group()
