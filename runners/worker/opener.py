"""What declares a context of a worker, and opens a session of its host for each incarnation."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Literal

from attrs import evolve, field, frozen

from supervise import Backoff, Child, Decider, Limit, Mailbox, Resume, Supervisor, current_child

from ..brief import brief, one_line
from ..hosts import Host, Session
from ..protect import Entered, protected
from ..types import RunnerSpec
from .breaker import Breaker
from .context import Context
from .group import Declaration, group_of
from .serving import serve

if TYPE_CHECKING:
    from supervise.sinks.prometheus import PrometheusSink

    from .metrics import WorkerMetrics

_REBUILDS = Decider({"device.rebuild": Resume})
"""A rebuild request is always a Resume (D7), whatever the decider of the worker says."""


@protected
@frozen(kw_only=True)
class Opener:
    """Declares a context, and opens a session of its host for each incarnation (D2).

    `limit` and `decider` are those of its supervisor, if it is one of several. They and `backoff` make no difference to the session, so
    a declaration in which they differ restarts no context (R38).
    `declared`: whether the runner is the one that the worker was declared with, which `replace` may have replaced since.
    """

    host: Host
    runner: RunnerSpec
    declared: bool = True
    backoff: Backoff | None = field(default=None, eq=False)
    limit: Limit | None = field(default=None, eq=False)
    canary: float | None = None
    drain: float = 0
    is_one_of_several: bool = False
    retries: int = 0
    retry_budget: float | None = None
    breaker: Breaker | None = None
    decider: Decider | None = field(default=None, eq=False)
    declaration: Declaration = field(factory=Declaration, repr=False)

    def child(self, mailbox: Mailbox | Literal["shared"]) -> Child:
        """The leaf whose resource this is."""
        return Child(
            "context",
            serve,
            resource=self,
            mailbox=mailbox,
            backoff=self.backoff,
            decider=_REBUILDS,
            drain=self.drain,
            grace=30.0,
        )

    def supervised(self, name: str) -> Supervisor:
        """The context as one of several (D12): under a supervisor of its own, so that no other context's restart delays its own."""
        context = evolve(self, is_one_of_several=True).child("shared")
        return Supervisor(
            name,
            [context],
            mailbox="shared",
            front=context,
            limit=self.limit,
            backoff=self.backoff,
            decider=self.decider,
        )

    def worker_of(self, path: str) -> str:
        """The path of the worker whose context stands at `path`."""
        above = path.rpartition("/")[0]
        return above.rpartition("/")[0] if self.is_one_of_several else above

    @staticmethod
    def prometheus_metrics(sink: PrometheusSink) -> WorkerMetrics:
        """The metrics of workers, for a sink that finds this resource in its tree."""
        from .metrics import WorkerMetrics  # noqa: PLC0415 - It needs prometheus-client, which is an extra.

        return WorkerMetrics(sink)

    def __call__(self) -> AbstractAsyncContextManager[Context]:
        """A context manager: the `Context` of one incarnation."""
        return Entered(self._opened())

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Context, None]:
        child = current_child()
        cause = None if child.last_failure is None else one_line(brief(child.last_failure))
        group = group_of(self.declaration, self.runner, child.tree, self.worker_of(child.path))
        replacement = group.replacement if self.declared else None
        runner = self.runner if replacement is None else replacement.runner
        async with self.host.open(runner, incarnation=child.incarnation, cause=cause) as session:
            if not isinstance(session, Session):
                raise TypeError(f"a host must open a Session with all its methods, got {brief(session)}")
            context = Context(session, runner, group, self, self.canary, self.drain, replacement)
            group.enter(child.path, context)
            group.protect_server(self.breaker, self.worker_of(child.path))
            try:
                yield context
            finally:
                group.leave(child.path)
                context.end(stopping=child.stopping)
