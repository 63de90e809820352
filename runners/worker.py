"""The device worker: a stable parent over one restartable context (D1).

`device_worker(...)` is an ordinary `Supervisor` spec. Its one child owns a host with a loaded runner as its resource; the
child's body serves the mailbox. What a stream has got so far belongs to its message, which outlives the incarnation.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn, TypeVar

import trio
from attrs import define, evolve, field, frozen

from supervise import (
    DEVICE,
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Inbox,
    Limit,
    Mailbox,
    Message,
    Ref,
    Refused,
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

_Error = TypeVar("_Error", bound=Exception)

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
    kept, in order, through any restart; a begun stream follows its `on_loss` (D6), and `on_loss="fail"` at the call
    itself is the same. After a death that nobody ordered its streams come back one at a time, and one with which the
    context dies again before it has made a step fails with `PoisonRequest`. Once the worker is down for good everybody
    gets `WorkerDown` (D8); from the `_nowait` forms a full queue is `Backpressure`.

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
    if isinstance(host, type) or not isinstance(host, Host):
        raise TypeError(f"device worker {name!r}: host must be a value with an open method, got {host!r}")
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
    with suppress(ChildStopped, Refused):  # it is down, or failing already
        contexts = (node for node in worker.status().walk() if node.kind == "child")
        if any(context.incarnation == incarnation for context in contexts):
            worker.inject(ContextPoisoned(reason))


@define
class _Record:
    """What a request has got so far. It travels with its message, over incarnations (D6).

    `incarnation`: the last one that made something of it. `replayed`: accepted tokens that were fed to later ones.
    """

    batch: ExecuteBatch
    accepted: list[int] = field(factory=list[int])
    texts: list[str] = field(factory=list[str])
    chunks: int = 0
    replayed: int = 0
    incarnation: int = 0
    suspect: bool = False

    @property
    def name(self) -> str:
        """For errors."""
        return f"request {self.batch.request_id!r}"

    def accept(self, chunk: TokenChunk) -> None:
        """Add the next chunk; one that is not the next is a `ProtocolError`."""
        if not self._is_next(chunk):
            raise self._unexpected(chunk)
        if chunk.incarnation != self.incarnation:
            self.incarnation = chunk.incarnation
            self.replayed += len(self.accepted)
        self.accepted += chunk.token_ids
        self.texts.append(chunk.text)
        self.chunks += 1

    def _is_next(self, chunk: TokenChunk) -> bool:
        room = self.batch.sampling.max_tokens - len(self.accepted)
        something = bool(chunk.token_ids) or chunk.finish_reason is not None
        return chunk.index == len(self.accepted) and len(chunk.token_ids) <= room and something

    def _unexpected(self, chunk: TokenChunk) -> ProtocolError:
        error = ProtocolError(
            f"{self.name}: token {len(self.accepted)} of at most {self.batch.sampling.max_tokens} is next, "
            f"got {len(chunk.token_ids)} tokens from {chunk.index}"
        )
        error.request_ids = (self.batch.request_id,)
        return error

    def usage(self, told: TokenUsage | None) -> TokenUsage:
        """Of the whole request; the runner knows of its own part only."""
        return TokenUsage(input=told.input if told else 0, output=len(self.accepted), replayed=self.replayed)

    def completion(self, last: TokenChunk) -> Completion:
        """All of it."""
        assert last.finish_reason is not None
        assert last.usage is not None
        return Completion(
            request_id=self.batch.request_id,
            text="".join(self.texts),
            token_ids=tuple(self.accepted),
            finish_reason=last.finish_reason,
            usage=last.usage,
        )

    def lost(self, cause: BaseException | None) -> ContextLost:
        """It ends with its context."""
        text = f"{self.name} was lost with incarnation {self.incarnation} of its context, after {self.chunks} chunks"
        return _caused(ContextLost(text, incarnation=self.incarnation, delivered=self.chunks), cause)

    def poisonous(self, cause: BaseException | None) -> PoisonRequest:
        """It ends, because its context did, twice."""
        text = f"{self.name} was in a context that died, and then the only one on trial in the next, which died too"
        return _caused(PoisonRequest(text), cause)


@define(eq=False)
class _Context:
    """The leaf's resource: a session, and the streams that are open in it. A Resume keeps both.

    `since_oom`: the requests that have begun since memory ran out, as long as nothing was made since; otherwise None.
    """

    session: Session
    open: dict[str, Message] = field(factory=dict[str, Message])
    changed: trio.Event = field(factory=trio.Event)
    since_oom: set[str] | None = None

    def put(self, message: Message) -> None:
        """Its stream is open now."""
        request_id = _id(message)
        self.open[request_id] = message
        if self.since_oom is not None:
            self.since_oom.add(request_id)
        message.on_left(lambda: self._left(message))

    def close(self, message: Message) -> None:
        """Its stream is over."""
        del self.open[_id(message)]
        self.changed.set()

    def _left(self, message: Message) -> None:
        """Its caller is gone: its place is free at the next step."""
        if self.open.get(_id(message)) is message:
            self.close(message)
            self.session.drop(_id(message))

    def has_room(self) -> bool:
        """Whether one more may begin; while a suspect is on trial, none may."""
        return len(self.open) < self.session.info.streams and not any(
            _record(message).suspect for message in self.open.values()
        )


@frozen
class _Opener:
    """Opens the host's session for the current incarnation."""

    host: Host
    runner: RunnerSpec

    @asynccontextmanager
    async def __call__(self) -> AsyncGenerator[_Context, None]:
        child = current_child()
        cause = None if child.last_failure is None else repr(child.last_failure)
        async with self.host.open(self.runner, incarnation=child.incarnation, cause=cause) as session:
            context = _Context(session)
            try:
                yield context
            finally:
                context.open.clear()  # whoever leaves from now on has nothing open in this session


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
        self._context = context
        self._session = context.session
        self._open = context.open
        self._inbox = inbox

    async def run(self) -> NoReturn:
        """Serve until the context fails."""
        self._reattach()
        failure: DeviceError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._admit)
                failure = await self._pump()
                nursery.cancel_scope.cancel("the context failed")
        finally:
            self._settle(failure)
        assert failure is not None
        raise failure

    # --- requests

    def _reattach(self) -> None:
        """After a Resume: the streams still open in this session are the head of the queue."""
        for message in self._open.values():
            head = self._inbox.receive_nowait()
            assert head is message, f"{message!r} must be the head of the queue, got {head!r}"

    async def _admit(self) -> None:
        while True:
            await self._room()
            self._take(await self._inbox.receive())

    async def _room(self) -> None:
        """Wait until one more may begin."""
        while not self._context.has_room():
            self._context.changed = trio.Event()
            await self._context.changed.wait()

    def _take(self, message: Message) -> None:
        """Begin a request, or go on with one that comes from another incarnation."""
        try:
            record = message.memo = message.memo or _admitted(message)
            self._check(record)
            self._session.begin(record.batch, record.accepted)
        except (BadRequest, ContextLost) as exc:
            message.fail(exc)
        else:
            self._context.put(message)

    def _check(self, record: _Record) -> None:
        if record.batch.request_id in self._open:
            raise BadRequest(f"request ids in flight must differ, got a second {record.batch.request_id!r}")
        if record.chunks and not self._may_migrate(record):
            raise record.lost(current_child().last_failure)

    def _may_migrate(self, record: _Record) -> bool:
        return record.batch.on_loss == "migrate" and self._session.info.can_continue

    # --- what the session makes

    async def _pump(self) -> DeviceError:
        """Hand out what the session makes until it fails; gives the failure."""
        try:
            while True:
                for item in await self._session.receive():
                    if message := self._open.get(item.request_id):
                        self._hand_out(message, item)
        except OutOfMemory as exc:
            return self._out_of_memory(exc)
        except DeviceError as exc:
            return exc

    def _hand_out(self, message: Message, item: TokenChunk | RequestFailed) -> None:
        if isinstance(item, RequestFailed):
            self._fail(message, item)
            return
        record = _record(message)
        self._accept(record, item)
        if item.finish_reason is not None:
            item = evolve(item, usage=record.usage(item.usage))
        if isinstance(message, StreamMessage):
            message.send_nowait(item)
        if item.finish_reason is not None:
            self._context.close(message)
            message.reply(record.completion(item))

    def _fail(self, message: Message, failed: RequestFailed) -> None:
        """Its own error, which concerns nobody else (D5)."""
        if not isinstance(failed.error, OutOfMemory):
            self._context.since_oom = None
        self._context.close(message)
        message.fail(failed.error)

    def _accept(self, record: _Record, chunk: TokenChunk) -> None:
        """Put a chunk into the record, if it is the next one and of this incarnation (D6)."""
        if chunk.incarnation != self._session.incarnation:
            raise ProtocolError(
                f"{record.name}: a chunk must be of incarnation {self._session.incarnation}, "
                f"got one of {chunk.incarnation}"
            )
        record.accept(chunk)
        self._context.since_oom = None
        if record.suspect:
            record.suspect = False
            self._context.changed.set()

    # --- the end of a context

    def _out_of_memory(self, exc: OutOfMemory) -> DeviceError:
        """The failure, or a worse one if it is the second at the same step: a Resume did not help (D5).

        The same step: nothing was made in between, and the request was there before.
        """
        since, self._context.since_oom = self._context.since_oom, set()
        if since is None or not since.isdisjoint(exc.request_ids):
            return exc
        again = ContextPoisoned(f"memory ran out again at the same step: {exc}")
        again.request_ids = exc.request_ids
        return _caused(again, exc)

    def _settle(self, failure: DeviceError | None) -> None:
        """Say of each open stream what becomes of it; those that say nothing go back to the head of the queue.

        An end that somebody ordered makes nobody a suspect. Without a failure of the session's, and not ordered, it was
        reported from outside, and counts like one.
        """
        if isinstance(failure, OutOfMemory):
            return
        ordered = failure is None and current_child().stopping
        for message in list(self._open.values()):
            record = _record(message)
            if record.suspect and not ordered:
                message.fail(record.poisonous(failure))
            elif record.chunks and not self._may_migrate(record):
                message.fail(record.lost(failure))
            record.suspect = record.suspect or not ordered
            self._session.drop(record.batch.request_id)
        self._open.clear()


def _record(message: Message) -> _Record:
    """Of a message that has been admitted."""
    record: _Record = message.memo
    return record


def _id(message: Message) -> str:
    return _record(message).batch.request_id


def _admitted(message: Message) -> _Record:
    """The record of a new request; its seed is settled now, once (D6).

    The mailbox keeps its message over incarnations; what becomes of a begun stream is said here.
    """
    batch = message.value
    if not isinstance(batch, ExecuteBatch):
        raise BadRequest(f"a request must be an ExecuteBatch, got {batch!r}")
    if batch.sampling.seed is None:
        batch = batch.with_seed(random.getrandbits(63))
    if message.on_loss == "fail":
        batch = evolve(batch, on_loss="fail")
    message.on_loss = "requeue"
    if isinstance(message, StreamMessage):
        message.size = max(message.size, batch.sampling.max_tokens + 1)
    return _Record(batch)


def _caused(exc: _Error, cause: BaseException | None) -> _Error:
    exc.__cause__ = cause
    return exc
