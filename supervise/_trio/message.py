"""Messages, calls and streams, at both ends: the body that has one in hand, and the caller that waits for the answer (R30).

`Message` is the body's end and `Call` the caller's. For a stream they are `StreamMessage` and `StreamCall`, and its consumer
reads from a `Stream`. Both ends know the queue and the inbox only by the two protocols here; `mailbox` implements them.

A caller waits for its answer in `Call.result`, a consumer for the next item in `StreamCall.wait`, a body for room in a stream
in `StreamCall.wait_for_room`. All park by hand, and a comment there gives the reason. The code wakes a task before it
forgets it, because near the end of the stack any call may raise RecursionError. Every class here is protected from
KeyboardInterrupt, as Trio's own channels are: a Ctrl-C between a change and its wake-up would leave a task asleep for ever,
or wake one that does not sleep.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import outcome
import trio
from attrs import frozen
from trio import current_time
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
from .._core._call import wrong_function
from .._core._check import check_choice, check_number
from .._core.spec import OnLoss
from .protect import check_room, check_stack, has_room_for_others, protected

IN_A_ROW = 64
"""So many waiting messages or items are taken before the next checkpoint: a checkpoint for each would cost more than the
messages."""

_DELIVERED = outcome.Value(None)

CallEnd: TypeAlias = Literal["answered", "left"] | BaseException
"""How a call or stream ended: with an answer, because its caller has left, or with an error for it."""

CallObserver: TypeAlias = Callable[[Any, CallEnd], object]
"""It is called at the end of a call or stream with the value that was sent."""


class MessageQueue(Protocol):
    """The part of a queue that a message in it, and its caller, need."""

    handled: int

    @property
    def observers(self) -> Sequence[CallObserver]: ...
    @property
    def carry(self) -> Callable[[], Any] | None: ...
    @property
    def servers(self) -> Mapping[Task, object]: ...

    def put_back(self, messages: Sequence[Message], /) -> None: ...
    def withdraw(self, call: Call, /) -> None: ...
    def call_ended(self, value: Any, end: CallEnd, /) -> None: ...
    def check_others_serve(self, task: Task, /) -> None: ...
    def in_time(
        self, deadline: float | None, late: Callable[[], object], /
    ) -> AbstractContextManager[None]: ...


class MessageInbox(Protocol):
    """The part of an inbox that a message in hand, and its caller, need."""

    is_open: bool
    held: dict[Message, None]

    progressed: bool

    @property
    def mailbox(self) -> MessageQueue: ...
    def fails(self, exc: BaseException, /) -> None: ...


def checked_on_loss(on_loss: OnLoss) -> OnLoss:
    """Refuse a value that is no `on_loss`."""
    check_choice("on_loss", on_loss, ("fail", "requeue"))
    return on_loss


@protected
class Message:
    """One message in hand: the body that took it replies to it, fails it or requeues it, once (R30).

    Each time a message is taken it is a new object. If it was put back, by `requeue` or at the end of an incarnation, the
    next body gets another object, and the methods of this one raise `RuntimeError`.

    `value` is the object that was sent. `memo` belongs to the body, and is None at first: its value is kept when the message
    is put back, for the next body that takes it.
    """

    __slots__ = ("_call", "_carried", "_inbox", "_on_loss", "_over", "memo", "value")

    state: ClassVar[Literal["put back"]] = "put back"  # its state as an entry of the queue, see `Entry`
    _over: str  # how it ended without an answer; set only when `_inbox` is None
    _carried: Any  # set only if something was carried with a one-way message

    def __init__(
        self, value: Any, on_loss: OnLoss, inbox: MessageInbox | None, call: Call | None = None
    ) -> None:
        self.value = value
        self._on_loss: OnLoss = on_loss
        self._inbox = inbox  # the inbox of the body that has it in hand
        self._call = call  # None: a one-way message
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
        """Whether its caller has left, and waits for no answer; False for a one-way message."""
        return self._call is not None and self._call.state == "left"

    @property
    def sent_at(self) -> float | None:
        """When its caller sent it, by Trio's clock; None for a one-way message."""
        return None if self._call is None else self._call.sent_at

    @property
    def carried(self) -> Any:
        """What the mailbox's `carry` returned in the sender's task; None without one (R30)."""
        return getattr(self if self._call is None else self._call, "_carried", None)

    @property
    def on_loss(self) -> OnLoss:
        """`fail` or `requeue`: what happens to it if the incarnation ends with it in hand (R30). The body may change it."""
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
        """Call `callback()` once when the caller leaves, or now if it has left; it must not block (R30).

        It runs in the caller's task, just before that goes on, even if this message has been put back meanwhile. For a caller
        near the end of its stack it runs a moment later, in a system task of Trio. If it raises, the child fails with that
        exception, as by `Ref.inject`. If no body of the child runs then, an `Exception` is logged, and anything else ends the
        tree. A one-way message ignores the callback. Raises TypeError unless it is a plain function.
        """
        wrong = wrong_function(callback, "it is not awaited", None)
        if wrong is not None:
            raise TypeError(f"an on_left callback {wrong}")
        call = self._call
        if call is None:
            return
        if call.state == "left":
            callback()
        elif self._inbox is not None:
            call.callbacks = call.callbacks or []
            call.callbacks.append((callback, self._inbox))

    def reply(self, value: Any = None) -> None:
        """Answer it with `value`. If the caller has left, the reply is dropped. Raises RuntimeError if it is not in hand."""
        inbox = self._inbox
        if inbox is None:
            self._refuse()
            return
        if self._call is not None:
            self._call.finish(outcome.Value(value))
        self._inbox = None
        inbox.held.pop(self, None)

    def fail(self, exc: BaseException) -> None:
        """Answer it with the exception `exc`, which the caller's `call` raises. Raises RuntimeError if it is not in hand."""
        result, inbox = outcome.Error(exc), self._inbox
        if inbox is None:
            self._refuse()
            return
        if self._call is not None:
            self._call.finish(result)
        self._inbox = None
        inbox.held.pop(self, None)

    def requeue(self) -> None:
        """Put it back at the head of the queue, even if that is full. Raises RuntimeError if it is not in hand."""
        inbox = self._inbox
        if inbox is None or not inbox.is_open:
            self._refuse()
            return
        check_stack()  # an error in the middle would leave it neither in hand nor in the queue
        inbox.held.pop(self, None)
        inbox.mailbox.put_back([self])

    def _is_in_hand(self) -> bool:
        return self._inbox is not None and self._inbox.is_open

    def _refuse(self) -> None:
        """Raise RuntimeError, since it is not in hand, unless its caller has left."""
        if not self.left:
            raise RuntimeError(
                f"{brief(self)} is not in hand: a message is replied to, failed or requeued once, by the body that "
                f"took it"
            )

    def let_go(self, over: str) -> None:
        """Take it out of hand without an answer; `over` says how it ended."""
        self._inbox, self._over = None, over

    def back(self) -> Call | Message:
        """The entry that goes back into the queue: never this object, which the body may still hold."""
        self.let_go("requeued")
        call = self._call
        if call is not None:
            call.value, call.on_loss, call.memo = self.value, self._on_loss, self.memo
            call.put_back()
            return call
        again = Message(self.value, self._on_loss, None)
        again.memo, again._carried = self.memo, self.carried
        return again

    def taken_by(self, inbox: MessageInbox) -> Message:
        """This one-way message was put back, and a body takes it again."""
        self._inbox = inbox
        inbox.held[self] = None
        return self


@protected
@frozen
class Carrying:
    """A queued one-way message with what its sender gave along; as `Sent`, which has no place for that."""

    state: ClassVar[Literal["carrying"]] = "carrying"
    value: Any
    on_loss: OnLoss
    carried: Any

    def taken_by(self, inbox: MessageInbox) -> Message:
        """A body takes it for the first time."""
        message = Message(self.value, self.on_loss, inbox)
        message._carried = self.carried
        if self.on_loss == "requeue":
            inbox.held[message] = None
        inbox.progressed = True
        inbox.mailbox.handled += 1
        return message


@protected
class Call:
    """The caller's end of a message. It outlives the bodies that have the message in hand."""

    __slots__ = (
        "_carried",
        "_task",
        "answer",
        "callbacks",
        "hand",
        "mailbox",
        "memo",
        "on_loss",
        "sent_at",
        "state",
        "value",
    )

    hand_type: ClassVar[type[Message]] = Message
    _carried: Any  # see `Message.carried`
    _task: Task | None
    answer: outcome.Outcome[Any] | None
    callbacks: list[tuple[Callable[[], object], MessageInbox]] | None
    hand: Message | None

    def __init__(self, value: Any, on_loss: OnLoss, mailbox: MessageQueue) -> None:
        self.value = value
        self.on_loss: OnLoss = on_loss
        self.mailbox = mailbox
        self.sent_at = current_time()
        if mailbox.carry is not None:
            self._carried = mailbox.carry()
        self.state: Literal["queued", "in hand", "queued again", "left"] = "queued"
        self.callbacks = self.hand = self.memo = self._task = self.answer = None

    def put_back(self) -> None:
        """No body has the message in hand any more: it is queued again."""
        self.state, self.hand = "queued again", None

    def taken_by(self, inbox: MessageInbox) -> Message:
        """A body takes the message again, as a new object."""
        hand = self.hand = self.hand_type(self.value, self.on_loss, inbox, self)
        hand.memo, self.state = self.memo, "in hand"
        inbox.held[hand] = None
        return hand

    def finish(self, result: outcome.Outcome[Any], /) -> None:
        """Set the answer: a reply, a loss, or the error of a closed mailbox."""
        self.callbacks = self.hand = None  # the message refers to this call: leave no cycle
        task = self._task
        if task is None:
            self.answer = result
        else:  # not kept here: an exception will refer to the caller's frame, and that frame to this call
            reschedule(task, result)
            self.answer, self._task = _DELIVERED, None
        if self.mailbox.observers:
            self.report(result.error if isinstance(result, outcome.Error) else "answered")

    async def result(self) -> Any:
        """Wait for the answer. A caller that is cancelled withdraws a queued message."""
        if self.answer is not None:
            await trio.lowlevel.cancel_shielded_checkpoint()
            answer, self.answer = self.answer, _DELIVERED
            try:
                return answer.unwrap()
            finally:
                del answer
        task = self._task = current_task()
        if task in self.mailbox.servers:
            self._check_others_serve(task)
        try:
            # Parks by hand: the wake-up carries the answer, which is kept nowhere, so that an exception forms no cycle with
            # the caller's frame. Neither Event nor ParkingLot can pass a value. Protected: see `protected`.
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
            self.call_back()
            raise

    def _abort(self, _: RaiseCancelT) -> Abort:
        # Calls no callback: an exception from it would end Trio's run, and if it cancelled a scope around this very task,
        # Trio would call this function again.
        self._task = None
        self.leave()
        return Abort.SUCCEEDED

    def leave(self) -> None:
        """The caller leaves: withdraw a queued message, and take one in hand from its body."""
        if self.answer is not None:
            return
        state, self.state = self.state, "left"
        hand, self.hand = self.hand, None
        if hand is not None:
            assert hand._inbox is not None
            hand._inbox.held.pop(hand, None)
            hand.let_go("left")
        elif state != "left":
            self.mailbox.withdraw(self)

    def report(self, end: CallEnd) -> None:
        """Report the end of this call to the observers of its mailbox.

        Near the end of the stack a system task of Trio does it a moment later, as in `call_back`.
        """
        if has_room_for_others():
            self.mailbox.call_ended(self.value, end)
        else:
            trio.lowlevel.current_trio_token().run_sync_soon(self.mailbox.call_ended, self.value, end)

    def refused(self, error: Exception) -> Exception:
        """The message did not get into the queue: report its end, and return its error."""
        if self.mailbox.observers:
            self.report(error)
        return error

    def call_back(self) -> None:
        """Report that the caller has left, if it has, and call the callbacks of `Message.on_left`.

        For a caller near the end of its stack a system task of Trio calls them a moment later: the depth is the caller's, and
        must neither make a callback fail nor have it refused.
        """
        if self.state == "left" and self.mailbox.observers:
            self.report("left")
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
        except BaseException as exc:  # noqa: BLE001 - any exception is a failure of that body
            inbox.fails(exc)


@protected
class StreamMessage(Message):
    """A message with many replies: `send` puts one into the stream, `reply()` ends the stream, `fail` fails it (R30)."""

    __slots__ = ()

    _call: StreamCall

    @property
    def size(self) -> int:
        """How many items may wait for the consumer, at least 1; may be changed."""
        return self._call.size

    @size.setter
    def size(self, size: int) -> None:
        check_number("a stream's buffer", size, least=1, kind=int)
        self._call.size = size
        self._call.look_for_room()

    def send_nowait(self, item: Any) -> None:
        """Put one item into the stream. Raises `trio.WouldBlock` if the buffer is full. The item is dropped if the consumer has left."""
        self.send_many_nowait((item,))

    def send_many_nowait(self, items: Sequence[Any]) -> None:
        """As `send_nowait` for several items: either all are put or none, and the consumer wakes once."""
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
        """Put one item into the stream, waiting while its buffer is full. If it is cancelled, the item was not put."""
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self._call
        while len(call.buffer) >= call.size and self._inbox is not None:
            await call.wait_for_room()
        self.send_nowait(item)
        await trio.lowlevel.cancel_shielded_checkpoint()


@protected
class StreamCall(Call):
    """The consumer's end of the message of a stream."""

    __slots__ = ("_closed", "_deadline", "buffer", "room", "size")

    hand_type = StreamMessage
    room: OrderedDict[Task, None] | None  # the tasks that wait for room, in order; made for the first one

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
        """Wake the tasks that wait for room: there may be some, or the stream may have ended."""
        while self.room:
            self.wake_sender()

    def wake_sender(self) -> None:
        """Wake the task that has waited longest for room."""
        for task in self.room or ():
            reschedule(task)
            del self.room[task]  # type: ignore[union-attr]  # there is one in it
            break

    async def wait_for_room(self) -> None:
        """Wait until there may be room, or the stream has ended."""
        check_room()
        room = self.room = OrderedDict[Task, None]() if self.room is None else self.room
        task = current_task()
        room[task] = None

        def abort(_: RaiseCancelT) -> Abort:
            del room[task]
            return Abort.SUCCEEDED

        try:
            # Parks by hand: a ParkingLot forgets a task before it wakes it, and near the end of the consumer's stack a
            # RecursionError between the two would leave the task asleep for ever. Protected.
            await wait_task_rescheduled(abort)
        except BaseException:
            room.pop(task, None)
            raise

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
        if self.mailbox.observers:
            self.report(result.error if isinstance(result, outcome.Error) else "answered")

    def close(self) -> None:
        """The consumer has left its block."""
        self._closed = True
        self.buffer.clear()
        has_left = self.state == "left"  # at its deadline, and that was reported then
        self.leave()
        self.wake()
        if not has_left:
            self.call_back()

    async def wait(self) -> None:
        """Wait for the next item; if one is buffered, only checkpoint. `StopAsyncIteration` at the end of the stream.

        Items that were sent before a failure come before it.
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
        if task in self.mailbox.servers:
            self.mailbox.check_others_serve(task)
        self._task = task
        try:
            # Parks by hand: at most one task waits, and `_task` lets a second one be refused. A ParkingLot would keep a table
            # for that one task, on the busiest path of a stream. Protected.
            await wait_task_rescheduled(self._abort)
        except BaseException:
            self._task = None
            raise

    async def _park_in_time(self, deadline: float) -> None:
        """As `_park`, but at the deadline leave as the consumer, which gets the error `late`."""
        with self.mailbox.in_time(deadline, self._late):
            await self._park()

    def _late(self) -> None:
        if self.state != "left":  # it has, if this consumer asks for another item after its deadline
            self.leave()
            self.call_back()

    def _abort(self, _: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED


@protected
class Stream:
    """The consumer's end of a stream: an async iterator, for one task at a time; leaving its block notifies the child (R30).

    The next item raises `trio.ClosedResourceError` outside the block, and `trio.BusyResourceError` while another task waits
    for one.
    """

    __slots__ = ("_buffer", "_call")

    def __init__(self, call: StreamCall) -> None:
        self._call = call
        self._buffer = call.buffer

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        """The next item. Of calls that find an item in the buffer only every 64th in a row is a checkpoint.

        Raises:
            CallLost, ChildStopped, TimeoutError: as for `Ref.call`, after the items sent before.
        """
        buffer = self._buffer
        if not len(buffer) % IN_A_ROW:
            await self._call.wait()
        if self._call.room:
            self._call.wake_sender()
        return buffer.popleft()
