"""The leaf of a device worker: a context that owns a session, and the body that serves requests in it (D5-D7).

The record of a stream belongs to its message, which outlives the incarnation; see `record`. All of this module is protected
from `KeyboardInterrupt`, which between two lines would leave a process running, or a caller without an answer.

How it works
============

The `Context` is the resource of the leaf: the session and its open streams. A worker may have several, which know one another
by their `Group`. `_Serving` is one run of the body. Its task `_pump` passes on what the session makes; beside it run `_admit`
(takes requests while there is room), `_watch_rebuilds` (fails the context when a rebuild request is due), `_watch_deadlines`,
`_watch_stop` and `_drain` if the worker has `drain`, and `_watch_silence` if it has a canary.

The body ends with the failure of the context. After an `OutOfMemory` or a `SessionRebuild` the supervisor resumes it: the next
run of the body finds the same session, and takes up its streams (`_reattach`) or rebuilds it (`_rebuild`). After any other
failure `_settle` decides about each open stream: it moves to the next context, or ends with an error (D6).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Literal

import trio
from attrs import evolve, field, frozen
from trio.lowlevel import enable_ki_protection

from supervise import (
    Inbox,
    Message,
    StreamMessage,
    current_child,
)

from ..brief import attribute, brief, is_a, text_of
from ..diagnosis.network import concerns_server, pause_of
from ..errors import (
    BadRequest,
    CircuitOpen,
    ContextLost,
    ContextPoisoned,
    DeviceError,
    InferenceError,
    NetworkError,
    OutOfMemory,
    RateLimited,
    RebuildSuperseded,
    SessionRebuild,
    Timeout,
    WorkerStopping,
)
from ..hosts import RequestFailed
from ..nursery import bare_nursery
from ..protect import protected
from ..types import CANARY, RateLimits, RunnerInfo, SessionRebuildCause, TokenChunk
from .context import Context
from .rates import Begun, retry_delay
from .record import MAX_CHARACTERS, Record, admitted, caused, estimated_tokens, id_of, record_of

AT_ONCE = 64
"""The most requests that begin in one turn of the loop; it takes some milliseconds."""

_LOOK = 0.05
"""Seconds between two looks of a context that is being stopped: at its worker, and at its queue while a request waits there."""


@frozen(kw_only=True)
class ContextState:
    """The result of `ready()` and `rebuild()` for a worker: the context that serves now.

    Args:
        path: of the context in the tree.
        incarnation: its number, counted from 1.
        pid: of its process, on the machine of its host; None if the runner has no process for itself.
        info: the declaration of its runner.
    """

    path: str
    incarnation: int
    pid: int | None
    info: RunnerInfo = field(repr=False)  # too long for the line of the log in which `Ready` has this value
    _context: Context = field(repr=False, eq=False, alias="context")


@enable_ki_protection
async def serve(context: Context, inbox: Inbox, *, task_status: trio.TaskStatus[ContextState]) -> None:
    """The body of the leaf: admit requests while there is room, and give the chunks of the session to their callers."""
    session = context.session
    task_status.started(
        ContextState(
            path=current_child().path,
            incarnation=session.incarnation,
            pid=session.pid,
            info=session.info,
            context=context,
        )
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
        self._meters = context.group.meters
        self._inbox = inbox
        self._resumed_for = context.under_way  # the rebuild request for which the body was resumed
        self._failure: DeviceError | None = None
        self._scope = self._admission = trio.CancelScope()
        self._draining = False
        self._admits_begun = False  # what has begun in an earlier session is open, or waits in the mailbox

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
            nursery.start_soon(self._watch_retries)
            if self._context.drain:
                nursery.start_soon(self._watch_stop)
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
        drains = self._context.drain > 0 and current_child().stopping
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
        context = self._context
        for _ in range(len(self._open) + len(context.retries)):
            try:
                head = self._inbox.receive_nowait()
            except trio.WouldBlock:
                return
            name = id_of(head) if head.memo is not None else ""
            if name in self._open and record_of(self._open[name]) is head.memo:
                self._open[name] = head
            elif name in context.retries and record_of(context.retries[name][1]) is head.memo:
                context.retries[name] = context.retries[name][0], head
            else:  # the caller of one of them is just leaving, and this is the next message
                head.requeue()
                return

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
        context = self._context
        with suppress(trio.WouldBlock):
            for _ in range(AT_ONCE - 1):
                if self._has_room() and not context.group.others_wait(context, len(self._inbox)):
                    self._take(self._inbox.receive_nowait())

    async def _admit_begun(self) -> None:
        """The worker is being stopped: continue streams that have begun in an earlier session, and refuse others (D13).

        If this context alone of several is being stopped, it leaves all of them to the others.
        """
        self._admits_begun = True
        while True:
            if not self._inbox or self._leaves_the_queue():
                self._context.has_changed()
            while self._leaves_the_queue():
                await self._context.change()
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

    def _leaves_the_queue(self) -> bool:
        """Whether others serve what waits: other contexts, which may be restarting just now, or the next incarnation of this one."""
        context = self._context
        alone = context.group.drains_until is None and (
            context.opener.is_one_of_several or not self._is_worker_stopping()
        )
        return alone or self._inbox.relieved

    def _is_worker_stopping(self) -> bool:
        child = current_child()
        return child.tree[self._context.opener.worker_of(child.path)].status().state == "stopping"

    def _are_all_back(self) -> bool:
        """Whether no stream waits in the mailbox that has begun and that this context is to continue."""
        return self._leaves_the_queue() or (self._admits_begun and not self._inbox)

    async def _watch_stop(self) -> None:
        """Have all contexts of a worker that is being stopped drain at the same time.

        While this context alone is being stopped, the worker may be stopped too. The others are asked only when this one has
        ended (R12), so they learn of it from here.
        """
        child, context = current_child(), self._context
        await child.stop_requested()
        context.has_changed()
        while not self._is_worker_stopping():  # noqa: ASYNC110 - A tree has no event for the stop of another node.
            await trio.sleep(_LOOK)
        context.group.drain(context.drain)

    async def _drain(self) -> None:
        """Once the worker is asked to stop, begin no more requests. End with the last begun stream, when asked to stop.

        The tree limits the time of each context, and the group that of all, which are asked one after the other.
        """
        child, context = current_child(), self._context
        while not child.stopping and context.group.drains_until is None:
            await context.change()
        # `_watch_stop` need not have seen the stop yet, and this context must not take itself for the only one that is stopped.
        if child.stopping and self._is_worker_stopping():
            context.group.drain(context.drain)
        self._draining = True
        self._admission.cancel("the worker is being stopped")
        with trio.move_on_at(context.group.drains_until or math.inf):
            while self._open or context.retries or not (self._are_all_back() and child.stopping):
                # While a request waits in the queue, another context may take it, or its caller may leave: neither wakes this task.
                with trio.move_on_after(math.inf if self._admits_begun and not self._inbox else _LOOK):
                    await context.change()
        await child.stop_requested()
        self._scope.cancel("all that had begun is done, or the time is up")

    async def _room(self) -> None:
        while not self._has_room():
            with trio.move_on_at(self._context.again if self._is_held_back() else math.inf):
                await self._context.change()
            self._take_moved()
            # Callers who were answered just now come back meanwhile, and their next requests are in one step.
            await trio.lowlevel.checkpoint()

    def _take_moved(self) -> None:
        """Continue begun streams at the head of the queue, while the rate limits hold back new requests."""
        with suppress(trio.WouldBlock):
            while self._is_held_back() and self._failure is None and self._context.has_room():
                message = self._inbox.receive_nowait()
                if not _has_begun(message):
                    message.requeue()
                    return
                self._take(message)

    def _has_room(self) -> bool:
        """Whether one more stream may begin. A context that has failed has no room, even before the body ends."""
        return self._failure is None and self._context.has_room() and not self._is_held_back()

    def _is_held_back(self) -> bool:
        return self._context.again > 0 and self._context.again > trio.current_time()

    def _exceeds(self, message: Message) -> bool:
        """Whether the rate limits that the runner declares hold a new request back, which then waits in the queue (D14)."""
        if _has_begun(message) or self._may_begin(lambda: estimated_tokens(message.value)):
            return False
        self._context.group.hold_back(message)
        return True

    def _may_begin(self, tokens: Callable[[], int]) -> bool:
        """Whether the rate limits allow a new request now; if not, the context waits until they do."""
        limits, rates, now = self._session.info.limits, self._context.group.rates, trio.current_time()
        if limits is None and not rates.paused_until:
            return True
        limits, wanted = limits or RateLimits(), tokens()
        if limits.tokens is not None and wanted > limits.tokens:
            return True  # it is refused
        self._context.again = rates.next_time(limits, wanted, now)
        return self._context.again <= now

    def _note_rate(self, tokens: int) -> Begun | None:
        """A new request begins, and counts for the limits, if there are any."""
        if self._session.info.limits is None:
            return None
        return self._context.group.rates.note(tokens, trio.current_time())

    def _asks_server(self, record: Record, *, is_first: bool) -> None:
        """A request begins that is new to the server, though it may be tried again."""
        group = self._context.group
        record.begun = self._note_rate(record.batch.estimated_tokens)
        if group.circuit is not None:
            record.ticket = group.circuit.begin()
        if is_first and self._context.opener.retries:
            group.budget.note(trio.current_time())

    def _refused(self, message: Message) -> CircuitOpen | None:
        """The error of a new request that the breaker lets not begin."""
        circuit = self._context.group.circuit
        return None if circuit is None or _has_begun(message) else circuit.refuses(trio.current_time())

    def _take(self, message: Message) -> None:
        """Begin a request, or continue one that comes from another session."""
        if message.memo is not None and record_of(message).begins_again > trio.current_time():
            self._context.retry(message)  # its context has failed meanwhile
            return
        if (refusal := self._refused(message)) is not None:
            message.fail(refusal)
            return
        if self._exceeds(message):
            message.requeue()
            return
        is_new, is_first = not _has_begun(message), message.memo is None
        try:
            if is_first:
                message.memo = admitted(message)
            record = record_of(message)
            self._check(record)
            self._context.cancel_canary()
            self._session.begin(record.batch, record.accepted, confirm=record.loss is not None)
            record.moved, record.opened_by = True, self._context.runner
        except (BadRequest, ContextLost, Timeout) as exc:
            if message.memo is not None:
                record_of(message).settle()
            message.fail(exc)
        else:
            self._context.put(message)
            if is_new:
                self._asks_server(record, is_first=is_first)
            if is_first and self._meters:
                self._context.group.request_begins(record)

    def _check(self, record: Record) -> None:
        if self._context.group.has_open(record.batch.request_id):
            raise BadRequest(
                f"request ids in flight must differ, got a second {brief(record.batch.request_id)}"
            )
        if self._context.must_stay(record):
            raise record.lost(current_child().last_failure)
        if not record.continues_in(self._context.runner):
            raise record.replaced()
        if record.is_late(trio.current_time()):
            raise record.late(current_child().path)
        limits = self._session.info.limits
        if limits is not None and limits.tokens is not None and not record.chunks:
            tokens = record.batch.estimated_tokens
            if tokens > limits.tokens:
                raise BadRequest(
                    f"{record.name} may take {tokens} tokens, and its server takes {limits.tokens} a minute"
                )

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

        Nor does one begin while the rate limits hold back a request: canaries could take for ever what it waits for. The host's
        deadline for a first chunk applies to a canary, as to any stream.
        """
        while True:
            with trio.move_on_after(seconds) as silence:
                await self._context.change()
            circuit = self._context.group.circuit
            works = circuit is None or circuit.state == "closed"
            quiet = silence.cancelled_caught and self._context.is_idle() and works and not self._inbox
            if quiet and self._may_begin(lambda: CANARY.estimated_tokens):
                self._note_rate(CANARY.estimated_tokens)
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
        begins, replayed = not record.chunks, record.replayed
        wrong = record.accept(chunks, self._incarnation)
        if chunks:
            if self._meters:
                replayed = record.replayed - replayed
                self._context.group.request_gets(record, chunks, first=begins, replayed=replayed)
            if begins:
                self._context.has_begun(record)
            self._context.since_oom = None
            if record.loss is not None:
                record.settle()
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
        reported = chunks[-1].usage
        usage = record.usage(reported, self._session.info.price)
        last = chunks[-1] = evolve(chunks[-1], usage=usage)
        if reported is not None:
            self._context.group.settle(record, usage.input + usage.output)
        if record.ticket is not None:
            record.ticket.succeeded()
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
        record = record_of(message)
        if record.ticket is not None and concerns_server(failed.error):
            record.ticket.failed(trio.current_time())
        self._context.close(message)
        self._note_pause(failed.error)
        if self._is_tried_again(record, failed.error):
            record.failures += 1
            record.begins_again = trio.current_time() + retry_delay(record.failures)
            self._context.retry(message)
        else:
            message.fail(failed.error)

    def _is_tried_again(self, record: Record, error: InferenceError) -> bool:
        """Whether a request begins anew after an error of its server, which has given nothing for it yet (D14)."""
        opener, group, now = self._context.opener, self._context.group, trio.current_time()
        is_of_server = is_a(error, NetworkError) and attribute(error, "is_retryable") is True
        if not is_of_server or record.chunks or record.failures >= opener.retries:
            return False
        if group.circuit is not None and group.circuit.state == "open":
            return False
        return opener.retry_budget is None or group.budget.take(opener.retry_budget, now)

    def _note_pause(self, error: InferenceError) -> None:
        """A server said when it accepts a request again: until then none of this worker begins (D14)."""
        if is_a(error, RateLimited) and (seconds := pause_of(error)) is not None:
            rates = self._context.group.rates
            rates.paused_until = max(rates.paused_until, trio.current_time() + seconds)

    async def _watch_retries(self) -> None:
        """Put requests that are tried again back into the queue, each at its time."""
        retries = self._context.retries
        while True:
            due = min((begins for begins, _ in retries.values()), default=math.inf)
            with trio.move_on_at(due):
                await self._context.change()
            for message in reversed(self._context.take_retries(trio.current_time())):
                message.requeue()
                self._context.has_changed()

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
        failure was reported from outside, and counts as one of the context. A stream of an earlier loss that this context had
        not taken stays in that loss.
        """
        if is_a(failure, OutOfMemory):
            return
        if is_a(failure, SessionRebuild):
            self._inbox.progressed = False  # otherwise the Resume would not be charged to the limit (R8)
        self._context.cancel_canary()
        ordered = self._was_ordered(failure)
        for message in reversed(self._context.take_retries(math.inf)):
            message.requeue()
        tried = {
            name
            for name, message in self._open.items()
            if record_of(message).loss is not None and self._session.has_taken(name)
        }
        loss = self._context.group.dies(is_apart=not tried) if self._open and not ordered else None
        for name, message in reversed(self._open.items()):
            record = record_of(message)
            if loss and name in tried and record.suspect:
                message.fail(record.poisonous(failure))
                record.settle()
            elif self._context.must_stay(record):
                message.fail(record.lost(failure))
                record.settle()
            else:
                message.requeue()
                if loss and (record.loss is None or name in tried):
                    loss.add(record)
            self._session.drop(name)
        self._context.close_all()
        self._context.group.wake()

    def _was_ordered(self, failure: DeviceError | None) -> bool:
        if failure is None:
            return current_child().stopping
        under_way = self._context.under_way
        return under_way is not None and failure is under_way.failure


def _has_begun(message: Message) -> bool:
    """Whether a request has begun before, and is not one that is tried again after an error."""
    record: Record | None = message.memo
    return record is not None and not (record.failures and not record.chunks)
