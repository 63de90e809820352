"""Messages, calls and streams, seen from both ends: the body that has one in hand, and whoever waits for the answer (R30).

`Message` is the body's end and `Call` the caller's; `StreamMessage` and `StreamCall` are those of a stream, whose consumer
reads from a `Stream`. The ends know of the queue and the inbox only what the two protocols here say; `mailbox` has both.

A caller waits for its answer in `Call.result`, a consumer for the next item in `StreamCall.wait`, a body for room in a stream
in `StreamMessage.send`. The first two park by hand; each says why. A task is woken before it is forgotten, because near the
end of the stack any call may raise RecursionError. Every class here is protected from KeyboardInterrupt, as Trio's own
channels are: a Ctrl-C between a change and the wake-up that belongs to it would leave a task asleep for ever, or wake one
that does not sleep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol

import outcome
import trio
from trio.lowlevel import (
    Abort,
    RaiseCancelT,
    Task,
    current_task,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._core._brief import brief
from .._core._check import check_choice, check_number
from .._core.spec import OnLoss
from .protect import has_room_for_others, protected

IN_A_ROW = 64
"""This many are taken one after the other, if they are there, before the other tasks get a turn: a turn for each would
cost more than the messages."""

_DELIVERED = outcome.Value(None)


class MessageQueue(Protocol):
    """What a message and its caller need of the queue that it was sent to."""

    server: Task | None
    handled: int

    def put_back(self, messages: Sequence[Message], /) -> None: ...
    def withdraw(self) -> None: ...
    def check_others_serve(self, task: Task, /) -> None: ...
    def in_time(
        self, deadline: float | None, late: Callable[[], object], /
    ) -> AbstractContextManager[None]: ...


class MessageInbox(Protocol):
    """What a message and its caller need of the inbox of the body that has taken it."""

    is_open: bool
    held: dict[Message, None]

    @property
    def mailbox(self) -> MessageQueue: ...
    def fails(self, exc: BaseException, /) -> None: ...


def checked_on_loss(on_loss: OnLoss) -> OnLoss:
    """Refuse what is no `on_loss`."""
    check_choice("on_loss", on_loss, ("fail", "requeue"))
    return on_loss


@protected
class Message:
    """One message, in the hands of the body that took it, which replies to it, fails it or requeues it.

    Each taking gives an object of its own: one that was put back, by `requeue` or at the end of an incarnation, comes to
    the next body as another object, and whoever still has this one can do nothing with it any more.

    `value` is what was sent. `memo` is for the body: what it notes there it finds again if the message comes back to a
    later incarnation (None at first).
    """

    __slots__ = ("_call", "_inbox", "_on_loss", "_over", "memo", "value")

    state: ClassVar[Literal["put back"]] = "put back"  # as an entry of the queue, see `Entry`
    _over: str  # what has become of it, but for an answer; there once `_inbox` is None

    def __init__(
        self, value: Any, on_loss: OnLoss, inbox: MessageInbox | None, call: Call | None = None
    ) -> None:
        self.value = value
        self._on_loss: OnLoss = on_loss
        self._inbox = inbox  # that of the body which has it in hand
        self._call = call  # None: nobody waits
        self.memo: Any = None

    def __repr__(self) -> str:
        if self.left:
            state = "left"
        elif self._inbox is not None:
            state = "in hand" if self._inbox.is_open else "lost with its body"
        else:
            state = getattr(self, "_over", "answered")
        return f"<{type(self).__name__.lower()} {brief(self.value)} {state}>"

    @property
    def left(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self._call is not None and self._call.state == "left"

    @property
    def on_loss(self) -> OnLoss:
        """What becomes of it if the incarnation ends with it in hand; the body may change its mind."""
        return self._on_loss

    @on_loss.setter
    def on_loss(self, on_loss: OnLoss) -> None:
        self._on_loss = checked_on_loss(on_loss)
        if self._call is None and self._is_in_hand():
            assert self._inbox is not None
            if on_loss == "requeue":
                self._inbox.held[self] = None
            else:
                self._inbox.held.pop(self, None)

    def on_left(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called, once, when the caller leaves, or now if it has left; it must not block.

        It is called in the caller's task, just before that goes on, also if this message has been put back meanwhile; for one
        that is near the end of its stack in Trio's own, in a moment. If it raises, the child fails with that exception, as by `Ref.inject`; while no body of the child runs, an `Exception` is
        logged, and anything else ends the tree.
        """
        call = self._call
        if call is None:
            return
        if call.state == "left":
            callback()
        elif self._inbox is not None:
            call.callbacks = call.callbacks or []
            call.callbacks.append((callback, self._inbox))

    def reply(self, value: Any = None) -> None:
        """Answer it. To a caller that has left the reply is dropped quietly."""
        inbox = self._inbox
        if inbox is None:
            self._refuse()
            return
        if self._call is not None:
            self._call.finish(outcome.Value(value))
        self._inbox = None
        inbox.held.pop(self, None)

    def fail(self, exc: BaseException) -> None:
        """Answer it with an exception, which the caller's `call` raises."""
        result, inbox = outcome.Error(exc), self._inbox
        if inbox is None:
            self._refuse()
            return
        if self._call is not None:
            self._call.finish(result)
        self._inbox = None
        inbox.held.pop(self, None)

    def requeue(self) -> None:
        """Put it back at the head of the queue."""
        inbox = self._inbox
        if inbox is None or not inbox.is_open:
            self._refuse()
            return
        inbox.held.pop(self, None)
        inbox.mailbox.put_back([self])

    def _is_in_hand(self) -> bool:
        return self._inbox is not None and self._inbox.is_open

    def _refuse(self) -> None:
        """It is not in hand; that concerns nobody if the caller has left."""
        if not self.left:
            raise RuntimeError(
                f"{brief(self)} is not in hand: a message is replied to, failed or requeued once, by the body that "
                f"took it"
            )

    def let_go(self, over: str) -> None:
        """Out of these hands, and nobody is answered by it."""
        self._inbox, self._over = None, over

    def back(self) -> Call | Message:
        """What stands for it in the queue, once it was put back: never this object, which somebody may still have."""
        self.let_go("requeued")
        call = self._call
        if call is not None:
            call.value, call.on_loss, call.memo = self.value, self._on_loss, self.memo
            call.put_back()
            return call
        again = Message(self.value, self._on_loss, None)
        again.memo = self.memo
        return again

    def taken_again(self, inbox: MessageInbox) -> Message:
        """Into the next hands."""
        self._inbox = inbox
        inbox.held[self] = None
        return self


@protected
class Call:
    """The sender's side of a message whose caller waits for the answer. It outlives those who have it in hand."""

    __slots__ = ("_task", "answer", "callbacks", "hand", "mailbox", "memo", "on_loss", "state", "value")

    hand_type: ClassVar[type[Message]] = Message
    _task: Task | None
    answer: outcome.Outcome[Any] | None
    callbacks: list[tuple[Callable[[], object], MessageInbox]] | None
    hand: Message | None

    def __init__(self, value: Any, on_loss: OnLoss, mailbox: MessageQueue) -> None:
        self.value = value
        self.on_loss: OnLoss = on_loss
        self.mailbox = mailbox
        self.state: Literal["queued", "in hand", "queued again", "left"] = "queued"
        self.callbacks = self.hand = self.memo = self._task = self.answer = None

    def put_back(self) -> None:
        """Nobody has it in hand; it waits in the queue again, if that is open."""
        self.state, self.hand = "queued again", None

    def taken_again(self, inbox: MessageInbox) -> Message:
        """Into the next hands."""
        hand = self.hand = self.hand_type(self.value, self.on_loss, inbox, self)
        hand.memo, self.state = self.memo, "in hand"
        inbox.held[hand] = None
        return hand

    def finish(self, result: outcome.Outcome[Any], /) -> None:
        """The end, from whomever: a reply, a loss, a closed mailbox."""
        self.callbacks = self.hand = None  # the hand knows of the call: no cycle is to be left
        task = self._task
        if task is None:
            self.answer = result
        else:  # not kept here: an exception will know of the caller's frame, and that of this
            reschedule(task, result)
            self.answer, self._task = _DELIVERED, None

    async def result(self) -> Any:
        """Wait for the answer; a caller who is cancelled takes a queued message with it."""
        if self.answer is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            answer, self.answer = self.answer, _DELIVERED
            try:
                return answer.unwrap()
            finally:
                del answer
        task = self._task = current_task()
        if task is self.mailbox.server:
            self._check_others_serve(task)
        try:
            # By hand: the answer travels with the wake-up and is kept nowhere, so that an exception leaves no cycle with
            # the caller's frame. Neither Event nor ParkingLot hands anything over. Protected: see `protected`.
            return await wait_task_rescheduled(self._abort)
        except BaseException:
            self._task = None
            self.call_back()
            raise

    def _check_others_serve(self, task: Task) -> None:
        try:
            self.mailbox.check_others_serve(task)
        except RuntimeError:
            self._task = None
            self.leave()
            raise

    def _abort(self, _: RaiseCancelT) -> Abort:
        # No callback is called here: what it raised would end Trio's run, and if it cancelled a scope around this very
        # task, Trio would come here again.
        self._task = None
        self.leave()
        return Abort.SUCCEEDED

    def leave(self) -> None:
        """The caller goes away."""
        if self.answer is not None:
            return
        state, self.state = self.state, "left"
        hand, self.hand = self.hand, None
        if hand is not None:
            assert hand._inbox is not None
            hand._inbox.held.pop(hand, None)
            hand.let_go("left")
        elif state != "left":
            self.mailbox.withdraw()

    def call_back(self) -> None:
        """Tell those who wanted to know that the caller has left.

        A caller that is near the end of its stack has them told from Trio's own task, in a moment: the depth is his, and what
        is told must neither fail for it nor be refused.
        """
        callbacks, self.callbacks = self.callbacks, None
        if callbacks is None:
            return
        if has_room_for_others():
            _call_all(callbacks)
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(_call_all, callbacks)


@enable_ki_protection
def _call_all(callbacks: list[tuple[Callable[[], object], MessageInbox]]) -> None:
    for callback, inbox in callbacks:
        try:
            callback()
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it is a failure of that body
            inbox.fails(exc)


@protected
class StreamMessage(Message):
    """A message with many replies: `send` each, then `reply()` ends the stream, and `fail` fails it (R30)."""

    __slots__ = ()

    _call: StreamCall

    @property
    def size(self) -> int:
        """How many items may wait for the consumer; at least 1."""
        return self._call.size

    @size.setter
    def size(self, size: int) -> None:
        check_number("a stream's buffer", size, least=1, kind=int)
        self._call.size = size
        self._call.look_for_room()

    def send_nowait(self, item: Any) -> None:
        """Put one item into the stream; `trio.WouldBlock` if the buffer is full. Dropped if the consumer left."""
        self.send_many_nowait((item,))

    def send_many_nowait(self, items: Sequence[Any]) -> None:
        """Put some items into the stream at once, or none of them: as `send_nowait`, and the consumer wakes once."""
        call = self._call
        if self._inbox is None:
            self._refuse()
            return
        if len(call.buffer) + len(items) > call.size:
            raise trio.WouldBlock
        call.buffer.extend(items)
        call.mailbox.handled += len(items)
        if call._task is not None:
            call.wake()

    async def send(self, item: Any) -> None:
        """Put one item into the stream, waiting while its buffer is full. Cancelled: the item was not put."""
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._call
        while len(call.buffer) >= call.size and self._inbox is not None:
            if call.room is None:
                call.room = trio.lowlevel.ParkingLot()
            await call.room.park()
        self.send_nowait(item)
        await trio.lowlevel.cancel_shielded_checkpoint()


@protected
class StreamCall(Call):
    """The consumer's side of a stream."""

    __slots__ = ("_closed", "_deadline", "buffer", "room", "size")

    hand_type = StreamMessage
    room: trio.lowlevel.ParkingLot | None  # from when somebody waits for room

    def __init__(
        self, value: Any, on_loss: OnLoss, mailbox: MessageQueue, *, size: int, deadline: float | None
    ) -> None:
        super().__init__(value, on_loss, mailbox)
        self.size = size
        self.buffer: deque[Any] = deque()
        self.room = None
        self._deadline = deadline
        self._closed = False

    def wake(self) -> None:
        if self._task is not None:
            reschedule(self._task)
            self._task = None

    def look_for_room(self) -> None:
        """Whoever waits for room looks again: there may be some, or it need wait no longer."""
        if self.room is not None:
            self.room.unpark_all()

    def put_back(self) -> None:
        super().put_back()
        self.look_for_room()

    def leave(self) -> None:
        super().leave()
        self.look_for_room()

    def finish(self, result: outcome.Outcome[Any], /) -> None:
        self.answer = result
        self.callbacks = self.hand = None
        self.wake()
        self.look_for_room()

    def close(self) -> None:
        """The consumer has left its block."""
        self._closed = True
        self.buffer.clear()
        self.leave()
        self.wake()
        self.call_back()

    async def wait(self) -> None:
        """For the next item, or only for the others' turn; `StopAsyncIteration` at the end.

        What was sent before a failure comes first.
        """
        if self.buffer:
            await trio.lowlevel.checkpoint()
        while not self.buffer:
            if self._closed:
                raise trio.ClosedResourceError("the block of this stream was left")
            if isinstance(self.answer, outcome.Error):
                raise self.answer.error
            if self.answer is not None:
                raise StopAsyncIteration
            if self._task is not None:
                raise trio.BusyResourceError("another task waits for the next item of this stream already")
            if self._deadline is None:
                await self._park()
            else:
                await self._park_in_time(self._deadline)

    async def _park(self) -> None:
        task = current_task()
        if task is self.mailbox.server:
            self.mailbox.check_others_serve(task)
        self._task = task
        try:
            # By hand: at most one task waits, for each item that has not come yet, and `_task` says so to a second one. A
            # ParkingLot would keep a table for one entry, on the busiest path of a stream. Protected.
            await wait_task_rescheduled(self._abort)
        except BaseException:
            self._task = None
            raise

    async def _park_in_time(self, deadline: float) -> None:
        """For something to come; past the deadline it is as if the consumer had left, but it is told why."""
        with self.mailbox.in_time(deadline, self._late):
            await self._park()

    def _late(self) -> None:
        self.leave()
        self.call_back()

    def _abort(self, _: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED


@protected
class Stream:
    """The consumer's end of a stream: an async iterator, for one task at a time; leaving its block early tells the child.

    Asked for items outside its block it raises `trio.ClosedResourceError`, and `trio.BusyResourceError` while another task
    waits for the next one.
    """

    __slots__ = ("_buffer", "_call")

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._buffer = call.buffer

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        """The next item. Not every call is a checkpoint: of items that are there already, every 64th in a row is."""
        buffer = self._buffer
        if not len(buffer) % IN_A_ROW:
            await self._call.wait()
        if self._call.room:
            self._call.room.unpark()
        return buffer.popleft()
