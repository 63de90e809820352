"""The device worker: a stable parent over one restartable context (D1).

`device_worker(...)` is an ordinary `Supervisor` spec. Its one child owns a host with a loaded runner as its resource; the
child's body serves the mailbox. What a stream has got so far belongs to its message, which outlives the incarnation.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field, frozen

from supervise import (
    DEVICE,
    Backoff,
    Child,
    Decider,
    Inbox,
    Limit,
    Mailbox,
    Message,
    Ref,
    StreamMessage,
    Supervisor,
    current_child,
)

from .errors import (
    Backpressure,
    BadRequest,
    ContextLost,
    ContextPoisoned,
    DeviceError,
    OutOfMemory,
    PoisonRequest,
    ProtocolError,
    WorkerDown,
)
from .hosts import Host, RequestFailed, Session
from .hosts.spec import check_runner
from .types import Completion, ExecuteBatch, RunnerInfo, RunnerSpec, TokenChunk, TokenUsage

WORKER_LIMIT = Limit(3, within=60, of_ready_time=True)
WORKER_BACKOFF = Backoff(initial=0.5, factor=2, maximum=15, immediate=1)


def device_worker(
    name: str,
    runner: RunnerSpec,
    *,
    host: Host | None = None,
    queue: int = 1024,
    limit: Limit | None = WORKER_LIMIT,
    backoff: Backoff | None = WORKER_BACKOFF,
    decider: Decider = DEVICE,
    **options: Any,
) -> Supervisor:
    """A supervisor whose front is its one child, `context`: a stable address over one restartable device context.

    Its `stream(batch)` gives `TokenChunk`s, its `call(batch)` a `Completion`, both for an `ExecuteBatch`. What waits is
    kept, in order, through any restart; a begun stream follows its `on_loss` (D6). Once the worker is down for good
    everybody gets `WorkerDown` (D8); from the `_nowait` forms a full queue is `Backpressure`.

    Args:
        name: of the supervisor.
        runner: a runner spec, importable by name (D2).
        host: where the runner lives; None is a `ProcessHost` on the CPU.
        queue: how many requests may wait.
        limit: of restarts; by default 3 within 60 s of ready time, so that a slow load cannot hide a crash loop.
        backoff: by default the first restart is at once, then 0.5 s × 2 up to 15 s.
        decider: by default `DEVICE` (D3).
        options: further arguments of the `Supervisor`.

    Raises:
        TypeError: the runner or the host is none; so for ValueError.
    """
    check_runner(runner)
    if host is None:
        from .hosts.process import ProcessHost  # noqa: PLC0415 - needs msgspec, which other hosts do not

        host = ProcessHost()
    if not isinstance(host, Host):
        raise TypeError(f"device worker {name!r}: host must have an open(), got {host!r}")
    context = Child(
        "context",
        _serve,
        resource=_Opener(host, runner),
        mailbox=Mailbox(queue, on_loss="requeue", stopped=WorkerDown, full=Backpressure),
        backoff=backoff,
        grace=30.0,
    )
    return Supervisor(name, [context], front=context, limit=limit, decider=decider, **options)


def report_poison(worker: Ref, reason: str, incarnation: int) -> None:
    """Tell a worker from outside that its context is poisoned; of a stale incarnation it is ignored (D3)."""
    status = worker.status()
    context = status.children[0] if status.children else status
    if context.state == "up" and context.incarnation == incarnation:
        worker.inject(ContextPoisoned(reason))


@define
class _Record:
    """What a stream has got so far. It travels with the request's message, over incarnations (D6)."""

    batch: ExecuteBatch
    accepted: list[int] = field(factory=list[int])
    texts: list[str] = field(factory=list[str])
    chunks: int = 0
    suspect: bool = False


@define
class _Context:
    """The leaf's resource: a session, and the streams that are open in it, which survive a Resume."""

    session: Session
    open: dict[str, Message] = field(factory=dict[str, Message])


@define
class _Opener:
    """Opens the host's session for the current incarnation."""

    host: Host
    runner: RunnerSpec

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[_Context]:
        child = current_child()
        cause = None if child.last_failure is None else repr(child.last_failure)
        async with self.host.open(self.runner, incarnation=child.incarnation, cause=cause) as session:
            yield _Context(session)


@frozen(kw_only=True)
class ContextState:
    """What `ready()` gives for a worker: which context serves it now.

    Args:
        incarnation: counted from 1.
        pid: of its process; None if it has none of its own.
        info: what its runner declared.
    """

    incarnation: int
    pid: int | None
    info: RunnerInfo


async def _serve(context: _Context, inbox: Inbox, *, task_status: trio.TaskStatus[ContextState]) -> None:
    """The body of the leaf: admit requests while there is room, and hand out what the session makes."""
    session = context.session
    task_status.started(ContextState(incarnation=session.incarnation, pid=session.pid, info=session.info))
    await _Serving(context, inbox).run()


class _Serving:
    """One entering of the body."""

    def __init__(self, context: _Context, inbox: Inbox) -> None:
        self._session = context.session
        self._open = context.open
        self._inbox = inbox
        self._changed = trio.Event()

    async def run(self) -> None:
        """Serve until the context fails."""
        self._reattach()
        failure: DeviceError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._admit)
                try:
                    await self._pump()
                except DeviceError as exc:
                    failure = exc
                nursery.cancel_scope.cancel("the context failed")
        finally:
            self._settle(failure)
        assert failure is not None
        raise failure

    # --- requests

    def _reattach(self) -> None:
        """After a Resume: the streams still open in this session go on; those whose consumers left meanwhile end."""
        before = dict(self._open)
        self._open.clear()
        while self._open.keys() != before.keys() and len(self._inbox):
            message = self._inbox.receive_nowait()
            if before.get(_id(message)) is not message:
                message.requeue()
                break
            self._watch(message)
        for request_id in before.keys() - self._open.keys():
            self._session.drop(request_id)

    async def _admit(self) -> None:
        while True:
            await self._room()
            self._take(await self._inbox.receive())

    async def _room(self) -> None:
        """Wait for a free place, and while a suspect is on trial, for its verdict."""
        while len(self._open) >= self._session.info.streams or any(map(_is_suspect, self._open.values())):
            self._changed = trio.Event()
            await self._changed.wait()

    def _take(self, message: Message) -> None:
        """Begin a request, or go on with one that comes from another incarnation."""
        if message.memo is None:
            if not isinstance(message.value, ExecuteBatch):
                message.fail(BadRequest(f"a request must be an ExecuteBatch, got {message.value!r}"))
                return
            message.memo = _admitted(message)
        record: _Record = message.memo
        if record.batch.request_id in self._open:
            message.fail(
                BadRequest(f"request id {record.batch.request_id!r} is in use by another request in flight")
            )
            return
        try:
            self._session.begin(record.batch, record.accepted)
        except BadRequest as exc:
            message.fail(exc)
            return
        self._watch(message)

    def _watch(self, message: Message) -> None:
        self._open[_id(message)] = message
        if isinstance(message, StreamMessage):
            message.on_left(lambda: self._left(message))

    def _left(self, message: Message) -> None:
        """Its consumer is gone: its place is free at the next step."""
        if self._open.get(_id(message)) is message:
            del self._open[_id(message)]
            self._session.drop(_id(message))
            self._changed.set()

    # --- what the session makes

    async def _pump(self) -> None:
        while True:
            for item in await self._session.receive():
                message = self._open.get(item.request_id)
                if message is not None:
                    self._hand_out(message, item)

    def _hand_out(self, message: Message, item: TokenChunk | RequestFailed) -> None:
        if isinstance(item, RequestFailed):
            self._close(message)
            message.fail(item.error)
            return
        record: _Record = message.memo
        self._accept(record, item)
        if isinstance(message, StreamMessage):
            message.send_nowait(item)
        if item.finish_reason is not None:
            self._close(message)
            message.reply(_completion(record, item))

    def _accept(self, record: _Record, chunk: TokenChunk) -> None:
        """Put a chunk into the record, if it is the next one of this incarnation (D6)."""
        if chunk.incarnation != self._session.incarnation or chunk.index != len(record.accepted):
            raise ProtocolError(
                f"request {record.batch.request_id!r}: the next token has index {len(record.accepted)}, got a chunk of "
                f"incarnation {chunk.incarnation} with index {chunk.index}"
            )
        record.accepted += chunk.token_ids
        record.texts.append(chunk.text)
        record.chunks += 1
        if record.suspect:
            record.suspect = False
            self._changed.set()

    def _close(self, message: Message) -> None:
        del self._open[_id(message)]
        self._changed.set()

    # --- the end of a context

    def _settle(self, failure: DeviceError | None) -> None:
        """Say of each begun stream what becomes of it; those that say nothing go back to the head of the queue.

        `failure` is None when somebody ordered the end; that makes nobody a suspect.
        """
        if isinstance(failure, OutOfMemory):
            return
        on_trial = [message for message in self._open.values() if _is_suspect(message)]
        for message in list(self._open.values()):
            record: _Record = message.memo
            if failure is not None and [message] == on_trial:
                message.fail(_caused(PoisonRequest(f"{_name(record)} has killed a second context"), failure))
            elif record.chunks and not self._may_migrate(record):
                message.fail(_caused(_lost(record, self._session.incarnation), failure))
            record.suspect = failure is not None
        self._open.clear()

    def _may_migrate(self, record: _Record) -> bool:
        return record.batch.on_loss == "migrate" and self._session.info.can_continue


def _id(message: Message) -> str:
    record: _Record | None = message.memo
    return "" if record is None else record.batch.request_id


def _is_suspect(message: Message) -> bool:
    record: _Record = message.memo
    return record.suspect


def _name(record: _Record) -> str:
    return f"request {record.batch.request_id!r}"


def _admitted(message: Message) -> _Record:
    """The record of a new request; its seed is settled now, once (D6)."""
    batch: ExecuteBatch = message.value
    if batch.sampling.seed is None:
        batch = batch.with_seed(random.getrandbits(63))
    if isinstance(message, StreamMessage):
        message.size = max(message.size, batch.sampling.max_tokens + 1)
    return _Record(batch)


def _completion(record: _Record, last: TokenChunk) -> Completion:
    assert last.finish_reason is not None
    usage = last.usage or TokenUsage(output=len(record.accepted))
    text = "".join(record.texts)
    return Completion(
        request_id=record.batch.request_id,
        text=text,
        token_ids=tuple(record.accepted),
        finish_reason=last.finish_reason,
        usage=usage,
    )


def _lost(record: _Record, incarnation: int) -> ContextLost:
    text = f"{_name(record)} was lost with incarnation {incarnation} of its context, after {record.chunks} chunks"
    return ContextLost(text, incarnation=incarnation, delivered=record.chunks)


def _caused(exc: Exception, cause: BaseException | None) -> Exception:
    exc.__cause__ = cause
    return exc
