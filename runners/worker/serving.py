"""The leaf of a device worker: a context that owns a session, and the body that serves requests in it (D5-D7).

What a stream has got so far belongs to its message, which outlives the incarnation; see `record`. All of it is protected from
`KeyboardInterrupt`: one between two lines would leave a process, or a caller who is told nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
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
from .record import MAX_CHARACTERS, Record, admitted, caused, id_of, record_of

CANARY = ExecuteBatch("canary", "", sampling=Sampling(max_tokens=1, temperature=0, seed=0))
"""What an idle context is asked, to see that it still answers (D9). Any answer is a sign of life, an error too."""


@protected
@define(eq=False)
class RebuildOrder:
    """An operator's order for a new session, and what has become of it (D7).

    `failure`: what the context fails with for its sake. `outcome`: `done`, or the context `ended` first, or an error.
    """

    cause: SessionRebuildCause
    failure: DeviceError | None = None
    outcome: Literal["done", "ended"] | InferenceError | None = None
    answered: trio.Event = field(factory=trio.Event)

    @property
    def wants_restart(self) -> bool:
        """A poisoned context is never rebuilt in place."""
        return self.cause is SessionRebuildCause.CONTEXT_POISONED

    def carry_out(self) -> DeviceError:
        """Have the context fail for it."""
        text = f"a new session was ordered ({self.cause})"
        self.failure = ContextPoisoned(text) if self.wants_restart else SessionRebuild(text)
        return self.failure

    def answer(self, outcome: Literal["done", "ended"] | InferenceError) -> None:
        """Tell whoever waits."""
        self.outcome = outcome
        self.answered.set()


@protected
@define(eq=False)
class Context:
    """The leaf's resource: a session, and the streams that are open in it. A Resume keeps both.

    `since_oom`: the requests that have begun since memory ran out, as long as nothing was made since; otherwise None.
    `order` waits for the streams that it would disturb; for the one `under_way` the body has failed. `canary_open`: a canary is open.
    `drains`: when it is asked to stop, what has begun goes on (D13).
    """

    session: Session
    canary: float | None = None
    drains: bool = False
    canary_open: bool = False
    open: dict[str, Message] = field(factory=dict[str, Message])
    since_oom: set[str] | None = None
    order: RebuildOrder | None = None
    under_way: RebuildOrder | None = None
    _changed: trio.Event = field(factory=trio.Event)

    def put(self, message: Message) -> None:
        """Its stream is open now."""
        request_id = id_of(message)
        self.open[request_id] = message
        record_of(message).leave = self._left
        self._note(request_id)
        self.has_changed()

    def _note(self, request_id: str) -> None:
        """This begins now: that it lacks memory is not what has been lacking already."""
        if self.since_oom is not None:
            self.since_oom.add(request_id)

    def close(self, message: Message) -> None:
        """Its stream is over."""
        self._forget(record_of(message))

    def _forget(self, record: Record) -> None:
        del self.open[record.batch.request_id]
        record.leave = None
        self.has_changed()

    def close_all(self) -> None:
        """The session is over: whoever leaves from now on has nothing open in it."""
        for message in self.open.values():
            record_of(message).leave = None
        self.open.clear()

    def _left(self, record: Record) -> None:
        """Its caller is gone: its place is free at the next step."""
        self._forget(record)
        self.session.drop(record.batch.request_id)

    def is_idle(self) -> bool:
        """Whether nothing is open, the canary not either, and no new session is wanted or under way."""
        return not self.open and not self.canary_open and self.order is None and self.under_way is None

    def begin_canary(self) -> None:
        """Have the runner make one token for nobody."""
        self.canary_open = True
        self.session.begin(CANARY)
        self._note(CANARY.request_id)

    def end_canary(self, *, over: bool) -> None:
        """The canary has answered: the silence begins anew. Until its stream is over it has a place."""
        if over:
            self.canary_open = False
        self.has_changed()

    def cancel_canary(self) -> None:
        """The canary's place is wanted."""
        if self.canary_open:
            self.canary_open = False
            self.session.drop(CANARY.request_id)

    def next_deadline(self) -> float:
        """When the first of the open streams is late."""
        deadlines = (record_of(message).batch.deadline for message in self.open.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=math.inf)

    def has_room(self) -> bool:
        """Whether one more may begin. While a suspect is on trial, or a new session is wanted, none may."""
        return self.order is None and len(self.open) < self.session.info.streams and not self._tries()

    def _tries(self) -> bool:
        """Whether a suspect is on trial. It is the last that has begun, since behind it no other does."""
        last = next(reversed(self.open.values()), None)
        return last is not None and record_of(last).suspect

    def may_move(self, record: Record) -> bool:
        """Whether a begun stream may go on in another session."""
        counts_ids = (
            bool(record.accepted) or not record.chunks
        )  # a stream without ids cannot be continued (D6)
        return counts_ids and record.batch.on_loss == "migrate" and self.session.info.can_continue

    def must_stay(self, record: Record) -> bool:
        """Whether a stream would be lost with its session."""
        return record.chunks > 0 and not self.may_move(record)

    def keeps_any(self) -> bool:
        """Whether a stream is open that would be lost with the session."""
        return any(self.must_stay(record_of(message)) for message in self.open.values())

    # --- changes, for those who wait for them

    def has_changed(self) -> None:
        """Room, or who stays, or what is wanted."""
        self._changed.set()
        self._changed = trio.Event()

    async def change(self) -> None:
        """Wait for the next."""
        await self._changed.wait()

    # --- what an operator wants

    def ask(self, cause: SessionRebuildCause) -> RebuildOrder:
        """Want a new session; whoever else waited for his is superseded, but for an order that tells of a poison."""
        order = RebuildOrder(cause)
        if self.order is not None and self.order.wants_restart and not order.wants_restart:
            order.answer(RebuildSuperseded("a restart was ordered just before"))
            return order
        if self.order is not None:
            self.order.answer(_superseded())
        self.order = order
        self.has_changed()
        return order

    def take_back(self) -> None:
        """The order that was granted a moment ago, if one was, waits again, unless another does by now."""
        order, self.under_way = self.under_way, None
        if order is not None and self.order is None:
            order.failure = None
            self.order = order
        elif order is not None:
            order.answer(_superseded())

    def refuse_order(self) -> None:
        """The worker is being stopped: no session is made anew any more. A poisoned context ends all the same (D13)."""
        if self.order is not None and not self.order.wants_restart:
            self.order.answer(WorkerStopping("the worker was being stopped"))
            self.order = None
            self.has_changed()

    def withdraw(self, order: RebuildOrder) -> None:
        """Nobody waits for it any more; one that is under way is carried out all the same."""
        if self.order is order:
            self.order = None
            self.has_changed()

    def is_due(self) -> bool:
        """Whether the order can be carried out: a restart at once, else when no stream would be lost by it.

        While another rebuild is being carried out it waits, and has its own after that (D7).
        """
        if self.order is None:
            return False
        return self.order.wants_restart or (self.under_way is None and not self.keeps_any())

    def carry_out(self) -> DeviceError:
        """Have the context fail for the order. A restart makes the rebuild pointless that may be under way."""
        assert self.order is not None
        if self.under_way is not None:
            self.under_way.answer(
                RebuildSuperseded("a restart was ordered while this rebuild was carried out")
            )
        self.under_way, self.order = self.order, None
        return self.under_way.carry_out()

    def end(self, *, stopping: bool) -> None:
        """The session is over, and no order stays unanswered."""
        self.close_all()
        for order in (self.under_way, self.order):
            if order is not None:
                stopped = stopping and order.failure is None
                order.answer(WorkerStopping("the worker was being stopped") if stopped else "ended")
        self.under_way = self.order = None


def _superseded() -> RebuildSuperseded:
    return RebuildSuperseded("another rebuild was ordered before this one had begun")


@protected
@frozen
class Opener:
    """Opens the host's session for the current incarnation."""

    host: Host
    runner: RunnerSpec
    canary: float | None = None
    drains: bool = False

    def __call__(self) -> AbstractAsyncContextManager[Context]:
        """The resource of one incarnation."""
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
    """What `ready()` gives for a worker: which context serves it now.

    Args:
        incarnation: counted from 1.
        pid: of its process; None if it has none of its own.
        info: what its runner declared.
    """

    incarnation: int
    pid: int | None
    info: RunnerInfo
    _context: Context = field(repr=False, eq=False, alias="context")


@enable_ki_protection
async def serve(context: Context, inbox: Inbox, *, task_status: trio.TaskStatus[ContextState]) -> None:
    """The body of the leaf: admit requests while there is room, and hand out what the session makes."""
    session = context.session
    task_status.started(
        ContextState(incarnation=session.incarnation, pid=session.pid, info=session.info, context=context)
    )
    await _Serving(context, inbox).run()


@protected
class _Serving:
    """One entering of the body."""

    def __init__(self, context: Context, inbox: Inbox) -> None:
        self._context = context
        self._session = context.session
        self._incarnation = context.session.incarnation
        self._open = context.open
        self._inbox = inbox
        self._order = context.under_way  # what it was entered again for
        self._failure: DeviceError | None = None
        self._scope = self._admission = trio.CancelScope()
        self._draining = False
        self._all_back = False  # what has begun in a session before this one: none of it waits any more

    async def run(self) -> None:
        """Serve until the context fails, or, asked to stop, until what has begun is done."""
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
            nursery.start_soon(self._grant)
            nursery.start_soon(self._watch_deadlines)
            if self._context.drains:
                nursery.start_soon(self._drain)
            if self._context.canary is not None:
                nursery.start_soon(self._listen, self._context.canary)
            await self._pump()

    def _goes_on(self) -> bool:
        """Whether the body is to stay after all, though it was on its way out to be resumed; nobody has heard of that yet.

        The worker is being stopped: then nobody resumes it, and in its session, which is sound, it can drain (D13). Or a
        stream that the rebuild would lose has got its first chunk in this very moment: it is waited for (D7).
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
        """The context has failed; the first failure stands."""
        if self._failure is None:
            self._failure = failure
            self._scope.cancel("the context failed")

    # --- requests

    def _reattach(self) -> None:
        """After a Resume: the streams still open in this session are the head of the queue.

        A message that is handed out again may be another object; what it brings along is its record.
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
                else:  # a rebuild, or the stop, was ordered while nobody came
                    message.requeue()
        await self._admit_begun()

    async def _admit_begun(self) -> None:
        """The worker is being stopped: what has begun, in a session before this one, goes on; the rest is refused (D13)."""
        while True:
            if not self._inbox:
                self._all_back = True
                self._context.has_changed()
            message = await self._inbox.receive()
            if message.memo is None:
                message.fail(
                    WorkerStopping(f"{current_child().path!r} is being stopped: it begins nothing any more")
                )
            elif self._has_room():
                self._take(message)
            else:
                message.requeue()  # its caller may leave meanwhile
                await self._room()

    async def _drain(self) -> None:
        """Once asked to stop: begin nothing, and end when what has begun is done. How long that may take the tree says."""
        await current_child().stop_requested()
        self._draining = True
        self._admission.cancel("the worker is being stopped")
        while self._open or not self._all_back:
            await self._context.change()
        self._scope.cancel("all that had begun is done")

    async def _room(self) -> None:
        while not self._has_room():
            await self._context.change()

    def _has_room(self) -> bool:
        """A context that has failed has none, though its end may come a moment later."""
        return self._failure is None and self._context.has_room()

    def _take(self, message: Message) -> None:
        """Begin a request, or go on with one that comes from another session."""
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
        """End the open streams that are late, and free their places, though their consumers are busy with something else.

        Whoever waits, for an answer, for the next chunk or in the queue, is told by the mailbox: it does so while the
        context is restarting, too, and nobody is here to watch. It cannot tell when nobody waits at it.
        """
        while True:
            with trio.move_on_at(self._context.next_deadline()):
                await self._context.change()
            now = trio.current_time()
            for message in [m for m in self._open.values() if record_of(m).is_late(now)]:
                self._context.close(message)
                self._session.drop(id_of(message))
                message.fail(record_of(message).late(current_child().path))

    async def _listen(self, seconds: float) -> None:
        """When nothing was asked for so long, begin a canary; never two, and never beside a request (D9).

        Whether it is silent for too long the host judges, as with any first chunk.
        """
        while True:
            with trio.move_on_after(seconds) as silence:
                await self._context.change()
            if silence.cancelled_caught and self._context.is_idle():
                self._context.begin_canary()

    # --- what the session makes

    async def _pump(self) -> None:
        """Hand out what the session makes until it fails."""
        while self._failure is None:
            try:
                items = await self._session.receive()
            except OutOfMemory as exc:
                # else its cure is under way: a new session, charged already
                if self._context.under_way is None:
                    self._lack(exc)
                continue
            except DeviceError as exc:
                self._fail(exc)
                return
            self._hand_out(items)

    def _hand_out(self, items: Sequence[TokenChunk | RequestFailed]) -> None:
        """Give each caller all that is his at once; what should not be there is the context's failure."""
        made: defaultdict[str, list[Any]] = defaultdict(list)
        for item in items:
            made[item.request_id].append(item)
        try:
            for request_id, his in made.items():
                failed = his.pop() if isinstance(his[-1], RequestFailed) else None  # the last of its stream
                if his:
                    self._give(request_id, his)
                if failed:
                    self._refuse(failed)
        except DeviceError as exc:
            self._fail(exc)

    def _give(self, request_id: str, chunks: list[TokenChunk]) -> None:
        """Chunks, if they are the next of an open stream and of this incarnation (D6)."""
        message = self._open.get(request_id)
        if message is None:
            self._hear(request_id, over=chunks[-1].finish_reason is not None)
            return
        record: Record = message.memo
        wrong = record.accept(chunks, self._incarnation)
        if chunks:
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

    def _hear(self, request_id: str, *, over: bool) -> None:
        """Something came that is no open stream's: of the canary, or too late."""
        if request_id == CANARY.request_id:
            self._context.end_canary(over=over)

    def _finish(self, message: Message, record: Record, chunks: list[TokenChunk]) -> None:
        """The last chunk says what the whole request took."""
        last = chunks[-1] = evolve(chunks[-1], usage=record.usage(chunks[-1].usage))
        if isinstance(message, StreamMessage):
            message.send_many_nowait(chunks)
        self._context.close(message)
        message.reply(record.completion(last))

    def _refuse(self, failed: RequestFailed) -> None:
        """Its own error, which concerns nobody else (D5)."""
        message = self._open.get(failed.request_id)
        if message is None:
            self._hear(failed.request_id, over=True)
            return
        if not is_a(failed.error, OutOfMemory):
            self._context.since_oom = None
        self._context.close(message)
        message.fail(failed.error)

    # --- a new session

    async def _grant(self) -> None:
        """Wait until a new session is wanted, and disturbs nobody; then the context fails, as ordered (D7)."""
        while self._failure or not self._is_due():  # after another failure it is for who comes next
            await self._context.change()
        self._fail(self._context.carry_out())

    def _is_due(self) -> bool:
        """Whether an order is to be carried out. When the worker is being stopped it is refused, unless it tells of a poison."""
        if current_child().stopping:
            self._context.refuse_order()
        return self._context.is_due()

    async def _rebuild(self) -> None:
        """Make the session anew, if this is what the body was entered again for. Nothing is open in it."""
        order, context = self._order, self._context
        if order is None:
            return
        if order.wants_restart:
            order.answer(RebuildSuperseded("the context was resumed instead of restarted"))
        else:
            outcome = await self._rebuilt(order.cause)
            if context.under_way is not order:  # a restart was ordered meanwhile, and this one answered
                return
            order.answer(outcome)
        self._order = context.under_way = None
        context.has_changed()  # another may wait

    async def _rebuilt(self, cause: SessionRebuildCause) -> Literal["done"] | InferenceError:
        try:
            await self._session.rebuild(cause)
        except InferenceError as exc:  # the context fails with it too: the pump hears of it
            return exc
        return "done"

    # --- the end of a context

    def _lack(self, exc: OutOfMemory) -> None:
        """Memory ran out: the context fails, and is then resumed. While it is being stopped nothing resumes it, so it goes on (D13)."""
        failure = self._out_of_memory(exc)
        if not (is_a(failure, OutOfMemory) and current_child().stopping):
            self._fail(failure)

    def _out_of_memory(self, exc: OutOfMemory) -> DeviceError:
        """The failure, or a worse one if it is the second at the same step: a Resume did not help (D5).

        The same step: nothing was made in between, and the request was there before.
        """
        since, self._context.since_oom = self._context.since_oom, set()
        if since is None or not since.isdisjoint(exc.request_ids):
            return exc
        again = ContextPoisoned(f"memory ran out again at the same step: {text_of(exc)}")
        again.request_ids = exc.request_ids
        return caused(again, exc)

    def _settle(self, failure: DeviceError | None) -> None:
        """Say of each open stream what becomes of it; those that say nothing go back to the head of the queue.

        An end that somebody ordered makes nobody a suspect. Without a failure of the session's, and not ordered, it was
        reported from outside, and counts like one.
        """
        if is_a(failure, OutOfMemory):
            return
        if is_a(failure, SessionRebuild):
            self._inbox.progressed = False  # or the Resume would be free of the limit (R8)
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
