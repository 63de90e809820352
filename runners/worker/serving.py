"""The leaf of a device worker: a context that owns a session, and the body that serves requests in it (D5-D7).

The record of a stream belongs to its message, which outlives the incarnation; see `record`. All of this module is protected
from `KeyboardInterrupt`, which between two lines would leave a process running, or a caller without an answer.

How it works
============

The `Context` is the resource of the leaf: the session and its open streams. `_Serving` is one run of the body. Its task
`_pump` passes on what the session makes; beside it run `_admit` (takes requests while there is room), `_watch_rebuilds` (fails
the context when a rebuild request is due), `_watch_deadlines`, `_drain` if the worker has `drain`, and `_watch_silence` if it
has a canary.

The body ends with the failure of the context. After an `OutOfMemory` or a `SessionRebuild` the supervisor resumes it: the next
run of the body finds the same session, and takes up its streams (`_reattach`) or rebuilds it (`_rebuild`). After any other
failure `_settle` decides about each open stream: it moves to the next context, or ends with an error (D6).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Literal

import trio
from attrs import define, evolve, field, frozen
from trio.lowlevel import enable_ki_protection

from supervise import Inbox, Message, StreamMessage, current_child

from ..brief import brief, is_a, one_line, text_of
from ..errors import (
    BadRequest,
    ContextLost,
    ContextPoisoned,
    DeviceError,
    InferenceError,
    OutOfMemory,
    RebuildSuperseded,
    SessionRebuild,
    Timeout,
    WorkerStopping,
)
from ..hosts import Host, RequestFailed, Session
from ..nursery import bare_nursery
from ..protect import Entered, protected
from ..types import ExecuteBatch, RunnerInfo, RunnerSpec, Sampling, SessionRebuildCause, TokenChunk
from .deadlines import Deadlines
from .record import MAX_CHARACTERS, Record, admitted, caused, id_of, record_of

CANARY = ExecuteBatch("canary", "", sampling=Sampling(max_tokens=1, temperature=0, seed=0))
"""The canary: a request for one token that shows whether an idle context still answers (D9). An error is an answer too."""

AT_ONCE = 64
"""The most requests that begin in one turn of the loop; it takes some milliseconds."""


@protected
@define(eq=False)
class RebuildRequest:
    """A rebuild request of an operator, and its outcome (D7).

    `failure`: the failure of the context by which it is carried out. `outcome`: `done`; or `ended`, if the context ended first;
    or an error.
    """

    cause: SessionRebuildCause
    failure: DeviceError | None = None
    outcome: Literal["done", "ended"] | InferenceError | None = None
    answered: trio.Event = field(factory=trio.Event)

    @property
    def wants_restart(self) -> bool:
        """Whether the operator reports a poison: such a context is never rebuilt in place."""
        return self.cause is SessionRebuildCause.CONTEXT_POISONED

    def carry_out(self) -> DeviceError:
        """Returns the failure with which the context is to fail for this request."""
        text = f"a new session was ordered ({self.cause})"
        self.failure = ContextPoisoned(text) if self.wants_restart else SessionRebuild(text)
        return self.failure

    def answer(self, outcome: Literal["done", "ended"] | InferenceError) -> None:
        """Set the outcome and wake the requester."""
        self.outcome = outcome
        self.answered.set()


@protected
@define(eq=False)
class Context:
    """The resource of the leaf: a session, and the streams that are open in it. A Resume keeps both.

    `since_oom`: None until memory runs out; then the requests that have begun since, until the session makes a chunk.
    `waiting`: a rebuild request that waits for the streams that it would lose. `under_way`: the rebuild request for which the
    body has failed.
    `canary_open`: whether the canary's stream is open. `drains`: whether begun streams continue once the worker is asked to
    stop (D13).
    """

    session: Session
    canary: float | None = None
    drains: bool = False
    canary_open: bool = False
    open: dict[str, Message] = field(factory=dict[str, Message])
    since_oom: set[str] | None = None
    waiting: RebuildRequest | None = None
    under_way: RebuildRequest | None = None
    _changed: trio.Event = field(factory=trio.Event)
    # These are kept up to date, so that no request costs more if many other streams are open.
    deadlines: Deadlines = field(init=False)
    _last: Record | None = None  # the stream that was begun last, if it is open
    _staying: set[str] = field(factory=set[str])  # the open streams that would be lost with the session

    def __attrs_post_init__(self) -> None:
        self.deadlines = Deadlines(self.open)

    def put(self, message: Message) -> None:
        """Note that the message's stream is open."""
        record = self._last = record_of(message)
        request_id = record.batch.request_id
        self.open[request_id] = message
        record.leave = self._left
        self.deadlines.add(record)
        self._note(request_id)
        self.has_changed()

    def _note(self, request_id: str) -> None:
        """Note a request that begins now: if it runs out of memory, that is no repetition of the last lack (D5)."""
        if self.since_oom is not None:
            self.since_oom.add(request_id)

    def close(self, message: Message) -> None:
        """Note that the message's stream has ended."""
        self._forget(record_of(message))

    def _forget(self, record: Record) -> None:
        del self.open[record.batch.request_id]
        self._staying.discard(record.batch.request_id)
        if self._last is record:
            self._last = None
        record.leave = None
        self.has_changed()

    def close_all(self) -> None:
        """The session has ended: callers who leave from now on have no stream in it to drop."""
        for message in self.open.values():
            record_of(message).leave = None
        self.open.clear()
        self._staying.clear()
        self._last = None

    def _left(self, record: Record) -> None:
        """The caller has left: drop the stream, so that its place is free at the next step."""
        self._forget(record)
        self.session.drop(record.batch.request_id)

    def is_idle(self) -> bool:
        """Whether no stream and no canary is open, and no rebuild request waits or is under way."""
        return not self.open and not self.canary_open and self.waiting is None and self.under_way is None

    def begin_canary(self) -> None:
        """Begin the canary's stream."""
        self.canary_open = True
        self.session.begin(CANARY)
        self._note(CANARY.request_id)

    def end_canary(self, *, over: bool) -> None:
        """The canary has answered, so the time of silence begins anew. Its place is free only when its stream is `over`."""
        if over:
            self.canary_open = False
        self.has_changed()

    def cancel_canary(self) -> None:
        """Drop the canary, because a request needs its place or the session ends."""
        if self.canary_open:
            self.canary_open = False
            self.session.drop(CANARY.request_id)

    def has_room(self) -> bool:
        """Whether one more stream may begin. None may while a suspect is on trial or a rebuild request waits."""
        return self.waiting is None and len(self.open) < self.session.info.streams and not self._tries()

    def _tries(self) -> bool:
        """Whether a suspect is on trial. It is the stream that was begun last, because none begins after it."""
        return self._last is not None and self._last.suspect

    def may_move(self, record: Record) -> bool:
        """Whether a begun stream may continue in another session."""
        # A begun stream without token ids cannot be continued (D6).
        counts_ids = bool(record.accepted) or not record.chunks
        return counts_ids and record.batch.on_loss == "migrate" and self.session.info.can_continue

    def must_stay(self, record: Record) -> bool:
        """Whether a stream would be lost with its session."""
        return record.chunks > 0 and not self.may_move(record)

    def has_begun(self, record: Record) -> None:
        """Note that an open stream has got its first chunks, which decide whether it must stay."""
        if self.must_stay(record):
            self._staying.add(record.batch.request_id)

    def keeps_any(self) -> bool:
        """Whether a stream is open that would be lost with the session."""
        return bool(self._staying)

    # --- changes of the context, and tasks that wait for one

    def has_changed(self) -> None:
        """Wake the tasks in `change`: there may be room, or a rebuild request, or one may be due."""
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait for the next call of `has_changed`."""
        await self._changed.wait()

    # --- rebuild requests

    def ask(self, cause: SessionRebuildCause) -> RebuildRequest:
        """Add a rebuild request. It supersedes one that waits, unless only that one reports a poison."""
        request = RebuildRequest(cause)
        if self.waiting is not None and self.waiting.wants_restart and not request.wants_restart:
            request.answer(RebuildSuperseded("a restart was ordered just before"))
            return request
        if self.waiting is not None:
            self.waiting.answer(_superseded())
        self.waiting = request
        self.has_changed()
        return request

    def take_back(self) -> None:
        """Let the rebuild request that was just begun wait again. It is superseded if another one waits by now."""
        request, self.under_way = self.under_way, None
        if request is not None and self.waiting is None:
            request.failure = None
            self.waiting = request
        elif request is not None:
            request.answer(_superseded())

    def refuse_rebuild(self) -> None:
        """The worker is being stopped: refuse the rebuild request, unless it reports a poison, which ends the context (D13)."""
        if self.waiting is not None and not self.waiting.wants_restart:
            self.waiting.answer(WorkerStopping("the worker was being stopped"))
            self.waiting = None
            self.has_changed()

    def withdraw(self, request: RebuildRequest) -> None:
        """The requester has left: withdraw the rebuild request, unless it is under way."""
        if self.waiting is request:
            self.waiting = None
            self.has_changed()

    def is_due(self) -> bool:
        """Whether the rebuild request can be carried out: a restart at once, a rebuild when it would lose no stream.

        A rebuild also waits for the one that is under way (D7).
        """
        if self.waiting is None:
            return False
        return self.waiting.wants_restart or (self.under_way is None and not self.keeps_any())

    def carry_out(self) -> DeviceError:
        """Returns the failure that carries the request out. A restart supersedes a rebuild that is under way."""
        assert self.waiting is not None
        if self.under_way is not None:
            self.under_way.answer(
                RebuildSuperseded("a restart was ordered while this rebuild was carried out")
            )
        self.under_way, self.waiting = self.waiting, None
        return self.under_way.carry_out()

    def end(self, *, stopping: bool) -> None:
        """The session has ended: answer every rebuild request."""
        self.close_all()
        for request in (self.under_way, self.waiting):
            if request is not None:
                stopped = stopping and request.failure is None
                request.answer(WorkerStopping("the worker was being stopped") if stopped else "ended")
        self.under_way = self.waiting = None


def _superseded() -> RebuildSuperseded:
    return RebuildSuperseded("another rebuild was ordered before this one had begun")


@protected
@frozen
class Opener:
    """Opens a session of the host for the present incarnation (D2)."""

    host: Host
    runner: RunnerSpec
    canary: float | None = None
    drains: bool = False

    def __call__(self) -> AbstractAsyncContextManager[Context]:
        """A context manager: the `Context` of one incarnation."""
        return Entered(self._opened())

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Context, None]:
        child = current_child()
        cause = None if child.last_failure is None else one_line(brief(child.last_failure))
        async with self.host.open(self.runner, incarnation=child.incarnation, cause=cause) as session:
            context = Context(session, self.canary, self.drains)
            try:
                yield context
            finally:
                context.end(stopping=child.stopping)


@frozen(kw_only=True)
class ContextState:
    """The result of `ready()` and `rebuild()` for a worker: the context that serves now.

    Args:
        incarnation: its number, counted from 1.
        pid: of its process; None if the runner has no process for itself.
        info: the declaration of its runner.
    """

    incarnation: int
    pid: int | None
    info: RunnerInfo
    _context: Context = field(repr=False, eq=False, alias="context")


@enable_ki_protection
async def serve(context: Context, inbox: Inbox, *, task_status: trio.TaskStatus[ContextState]) -> None:
    """The body of the leaf: admit requests while there is room, and give the chunks of the session to their callers."""
    session = context.session
    task_status.started(
        ContextState(incarnation=session.incarnation, pid=session.pid, info=session.info, context=context)
    )
    await _Serving(context, inbox).run()


@protected
class _Serving:
    """One run of the body."""

    def __init__(self, context: Context, inbox: Inbox) -> None:
        self._context = context
        self._session = context.session
        self._incarnation = context.session.incarnation
        self._open = context.open
        self._inbox = inbox
        self._resumed_for = context.under_way  # the rebuild request for which the body was resumed
        self._failure: DeviceError | None = None
        self._scope = self._admission = trio.CancelScope()
        self._draining = False
        self._all_back = False  # no stream that has begun in an earlier session waits in the mailbox

    async def run(self) -> None:
        """Serve until the context fails or, once the worker is asked to stop, until the begun streams have ended."""
        self._reattach()
        try:
            await self._serve()
            while self._goes_on():
                await self._serve()
        finally:
            self._settle(self._failure)
        if self._failure is not None:
            raise self._failure

    async def _serve(self) -> None:
        self._admission = trio.CancelScope()
        async with bare_nursery() as nursery:
            self._scope = nursery.cancel_scope
            nursery.start_soon(self._admit)
            nursery.start_soon(self._watch_rebuilds)
            nursery.start_soon(self._watch_deadlines)
            if self._context.drains:
                nursery.start_soon(self._drain)
            if self._context.canary is not None:
                nursery.start_soon(self._watch_silence, self._context.canary)
            await self._pump()

    def _goes_on(self) -> bool:
        """Whether the body continues, although it was about to end with a failure that is resumed; the supervisor has not seen it.

        There are two races. If the worker is being stopped, the supervisor would not resume the body; its session is sound,
        so it drains (D13). If a stream that the rebuild would lose has just got its first chunk, the rebuild waits for that
        stream (D7).
        """
        drains = self._context.drains and current_child().stopping
        would_be_resumed = is_a(self._failure, OutOfMemory, SessionRebuild)
        waits = is_a(self._failure, SessionRebuild) and self._context.keeps_any()
        if not (waits or (drains and would_be_resumed)):
            return False
        self._context.take_back()
        self._failure = None
        return True

    def _fail(self, failure: DeviceError) -> None:
        """Fail the context; a later failure changes nothing."""
        if self._failure is None:
            self._failure = failure
            self._scope.cancel("the context failed")

    # --- requests

    def _reattach(self) -> None:
        """After a Resume, take the messages of the streams that are open in this session: they are the head of the queue.

        A message that was put back comes as another object, with the same record.
        """
        for request_id, record in [(name, record_of(message)) for name, message in self._open.items()]:
            head = self._inbox.receive_nowait()
            assert head.memo is record, f"{record.name} must be the head of the queue"
            self._open[request_id] = head

    async def _admit(self) -> None:
        await self._rebuild()
        with self._admission:
            while not self._draining:
                await self._room()
                message = await self._inbox.receive()
                if self._has_room() and not self._draining:
                    self._take(message)
                    self._take_more()
                    if self._inbox:
                        await trio.lowlevel.checkpoint()
                else:  # a rebuild or the stop was requested while this task waited for a message
                    message.requeue()
        await self._admit_begun()

    def _take_more(self) -> None:
        """Begin other requests that wait in the same turn of the loop, so that they are in the same step of the runner."""
        with suppress(trio.WouldBlock):
            for _ in range(AT_ONCE - 1):
                if self._has_room():
                    self._take(self._inbox.receive_nowait())

    async def _admit_begun(self) -> None:
        """The worker is being stopped: continue streams that have begun in an earlier session, and refuse others (D13)."""
        while True:
            if not self._inbox:
                self._all_back = True
                self._context.has_changed()
            message = await self._inbox.receive()
            if message.memo is None:
                message.fail(
                    WorkerStopping(f"{current_child().path!r} is being stopped: it begins no more requests")
                )
            elif self._has_room():
                self._take(message)
            else:
                message.requeue()  # so that it is withdrawn if its caller leaves meanwhile
                await self._room()

    async def _drain(self) -> None:
        """Once the worker is asked to stop, begin no more requests, and end with the last begun stream.

        The tree limits the time.
        """
        await current_child().stop_requested()
        self._draining = True
        self._admission.cancel("the worker is being stopped")
        while self._open or not self._all_back:
            await self._context.change()
        self._scope.cancel("all that had begun is done")

    async def _room(self) -> None:
        while not self._has_room():
            await self._context.change()
            # Callers who were answered just now come back meanwhile, and their next requests are in one step.
            await trio.lowlevel.checkpoint()

    def _has_room(self) -> bool:
        """Whether one more stream may begin. A context that has failed has no room, even before the body ends."""
        return self._failure is None and self._context.has_room()

    def _take(self, message: Message) -> None:
        """Begin a request, or continue one that comes from another session."""
        try:
            if message.memo is None:
                message.memo = admitted(message)
            record = record_of(message)
            self._check(record)
            self._context.cancel_canary()
            self._session.begin(record.batch, record.accepted)
        except (BadRequest, ContextLost, Timeout) as exc:
            message.fail(exc)
        else:
            self._context.put(message)

    def _check(self, record: Record) -> None:
        if record.batch.request_id in self._open:
            raise BadRequest(
                f"request ids in flight must differ, got a second {brief(record.batch.request_id)}"
            )
        if self._context.must_stay(record):
            raise record.lost(current_child().last_failure)
        if record.is_late(trio.current_time()):
            raise record.late(current_child().path)

    async def _watch_deadlines(self) -> None:
        """End the open streams whose deadline has passed, and free their places, even if no caller waits for a chunk just now.

        A caller who waits, for an answer, for a chunk or in the queue, gets the `Timeout` from the mailbox, also while the
        context restarts and this task does not run. But the mailbox acts only for a caller who waits.
        """
        while True:
            with trio.move_on_at(self._context.deadlines.first()):
                await self._context.change()
            now = trio.current_time()
            for message in self._context.deadlines.passed(now):
                self._context.close(message)
                self._session.drop(id_of(message))
                message.fail(record_of(message).late(current_child().path))

    async def _watch_silence(self, seconds: float) -> None:
        """After so many seconds without a request begin a canary; never two, and never beside a request (D9).

        The host's deadline for a first chunk applies to it, as to any stream.
        """
        while True:
            with trio.move_on_after(seconds) as silence:
                await self._context.change()
            if silence.cancelled_caught and self._context.is_idle():
                self._context.begin_canary()

    # --- chunks

    async def _pump(self) -> None:
        """Pass on the items of the session until it fails."""
        while self._failure is None:
            try:
                items = await self._session.receive()
            except OutOfMemory as exc:
                # During a rebuild a new session is under way, and charged already.
                if self._context.under_way is None:
                    self._on_out_of_memory(exc)
                continue
            except DeviceError as exc:
                self._fail(exc)
                return
            self._hand_out(items)

    def _hand_out(self, items: Sequence[TokenChunk | RequestFailed]) -> None:
        """Give each caller all items of its stream at once. An item that the protocol does not allow fails the context."""
        made: defaultdict[str, list[Any]] = defaultdict(list)
        for item in items:
            made[item.request_id].append(item)
        try:
            for request_id, of_stream in made.items():
                # A `RequestFailed` is the last item of its stream.
                failed = of_stream.pop() if isinstance(of_stream[-1], RequestFailed) else None
                if of_stream:
                    self._give(request_id, of_stream)
                if failed:
                    self._refuse(failed)
        except DeviceError as exc:
            self._fail(exc)

    def _give(self, request_id: str, chunks: list[TokenChunk]) -> None:
        """Give chunks to their caller, if they are the next ones of an open stream and of this incarnation (D6)."""
        message = self._open.get(request_id)
        if message is None:
            self._on_unowned(request_id, over=chunks[-1].finish_reason is not None)
            return
        record: Record = message.memo
        begins = not record.chunks
        wrong = record.accept(chunks, self._incarnation)
        if chunks:
            if begins:
                self._context.has_begun(record)
            self._context.since_oom = None
            if record.suspect:
                record.suspect = False
                self._context.has_changed()
            if chunks[-1].finish_reason is not None:
                self._finish(message, record, chunks)
            elif isinstance(message, StreamMessage):
                message.send_many_nowait(chunks)
            if record.characters > MAX_CHARACTERS and self._open.get(request_id) is message:
                self._context.close(message)
                self._session.drop(request_id)
                message.fail(record.too_long())
        if wrong is not None:
            raise wrong

    def _on_unowned(self, request_id: str, *, over: bool) -> None:
        """An item came that belongs to no open stream: it is the canary's, or too late."""
        if request_id == CANARY.request_id:
            self._context.end_canary(over=over)

    def _finish(self, message: Message, record: Record, chunks: list[TokenChunk]) -> None:
        """End a stream with its last chunk, whose usage becomes that of the whole request."""
        last = chunks[-1] = evolve(chunks[-1], usage=record.usage(chunks[-1].usage))
        if isinstance(message, StreamMessage):
            message.send_many_nowait(chunks)
        self._context.close(message)
        message.reply(record.completion(last))

    def _refuse(self, failed: RequestFailed) -> None:
        """End a stream with an error of its own; no other stream is affected (D5)."""
        message = self._open.get(failed.request_id)
        if message is None:
            self._on_unowned(failed.request_id, over=True)
            return
        if not is_a(failed.error, OutOfMemory):
            self._context.since_oom = None
        self._context.close(message)
        message.fail(failed.error)

    # --- rebuilds

    async def _watch_rebuilds(self) -> None:
        """Wait until a rebuild request is due, and then fail the context for it (D7)."""
        # After another failure the next run of the body handles the request.
        while self._failure or not self._is_due():
            await self._context.change()
        self._fail(self._context.carry_out())

    def _is_due(self) -> bool:
        """Whether a rebuild request is due. While the worker is being stopped it is refused, unless it reports a poison."""
        if current_child().stopping:
            self._context.refuse_rebuild()
        return self._context.is_due()

    async def _rebuild(self) -> None:
        """Rebuild the session, if the body was resumed for that. No stream is open in it."""
        request, context = self._resumed_for, self._context
        if request is None:
            return
        if request.wants_restart:
            request.answer(RebuildSuperseded("the context was resumed instead of restarted"))
        else:
            outcome = await self._rebuilt(request.cause)
            if context.under_way is not request:  # a restart was ordered meanwhile, and this one answered
                return
            request.answer(outcome)
        self._resumed_for = context.under_way = None
        context.has_changed()  # another request may wait

    async def _rebuilt(self, cause: SessionRebuildCause) -> Literal["done"] | InferenceError:
        try:
            await self._session.rebuild(cause)
        except InferenceError as exc:  # the context fails too: `receive` raises that failure in the pump
            return exc
        return "done"

    # --- the end of a context

    def _on_out_of_memory(self, exc: OutOfMemory) -> None:
        """Memory ran out: fail the context, which is then resumed.

        A context that is being stopped would not be resumed, so it continues (D13).
        """
        failure = self._out_of_memory(exc)
        if not (is_a(failure, OutOfMemory) and current_child().stopping):
            self._fail(failure)

    def _out_of_memory(self, exc: OutOfMemory) -> DeviceError:
        """The failure of the context: `exc`, or a poison if memory ran out twice at one step, where a Resume did not help (D5).

        It is the same step if the session has made no chunk since, and the request was open before.
        """
        since, self._context.since_oom = self._context.since_oom, set()
        if since is None or not since.isdisjoint(exc.request_ids):
            return exc
        again = ContextPoisoned(f"memory ran out again at the same step: {text_of(exc)}")
        again.request_ids = exc.request_ids
        return caused(again, exc)

    def _settle(self, failure: DeviceError | None) -> None:
        """Decide about each open stream: it fails, or goes back to the head of the queue.

        An end that was ordered, a stop or a rebuild, makes no request a suspect. If there is no failure and no order, the
        failure was reported from outside, and counts as one of the context.
        """
        if is_a(failure, OutOfMemory):
            return
        if is_a(failure, SessionRebuild):
            self._inbox.progressed = False  # otherwise the Resume would not be charged to the limit (R8)
        self._context.cancel_canary()
        ordered = self._was_ordered(failure)
        for message in list(self._open.values()):
            record = record_of(message)
            if record.suspect and not ordered:
                message.fail(record.poisonous(failure))
            elif self._context.must_stay(record):
                message.fail(record.lost(failure))
            record.suspect = record.suspect or not ordered
            self._session.drop(record.batch.request_id)
        self._context.close_all()

    def _was_ordered(self, failure: DeviceError | None) -> bool:
        if failure is None:
            return current_child().stopping
        under_way = self._context.under_way
        return under_way is not None and failure is under_way.failure
