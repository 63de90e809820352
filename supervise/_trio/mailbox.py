"""Messages, calls and streams (R29, R30).

A mailbox belongs to a node, not to an incarnation. Nobody ever hangs at one, and nothing is lost without somebody
being told. Call, message, queue and inbox stand in one file, for most that happens is one step across all four: a caller
who leaves frees a place in the queue, and the message in hand learns of it.

Who waits, and where: a sender for room (`Queue.put`), a caller for its answer (`Call.result`), a consumer for the next
item (`StreamCall.wait`), a body for the next message (`Inbox._wait`), and a body for room in a stream
(`StreamMessage.send`, in a `ParkingLot`). The first four park by hand; each says why. A task is woken before it is forgotten,
because near the end of the stack any call may raise RecursionError. Every class here is protected from KeyboardInterrupt, as
Trio's own channels are: a Ctrl-C between a change and the wake-up that belongs to it would leave a task asleep for ever, or
wake one that does not sleep.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

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
from .._core.decide import set_cause
from .._core.spec import Mailbox, OnLoss
from ..errors import CallLost, ChildStopped, MailboxFull
from .protect import protected

_FEW = 16  # withdrawn calls are not worth sifting out
_IN_A_ROW = 64
"""This many are taken one after the other, if they are there, before the other tasks get a turn: a turn for each would
cost more than the messages."""


_DELIVERED = outcome.Value(None)


def checked_on_loss(on_loss: OnLoss) -> OnLoss:
    """Refuse what is no `on_loss`."""
    check_choice("on_loss", on_loss, ("fail", "requeue"))
    return on_loss


def _error(wanted: type[Exception], otherwise: type[Exception], text: str) -> Exception:
    """One of the classes that a `Mailbox` names. If that cannot be made of a text, ours: somebody waits to be told."""
    try:
        error = wanted(text)
    except BaseException as problem:  # noqa: BLE001 - the user's class may do anything; the note keeps what it did
        error = otherwise(text)
        error.add_note(f"{wanted.__name__} could not be made of this text: {brief(problem)}")
    return error


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

    def __init__(self, value: Any, on_loss: OnLoss, inbox: Inbox | None, call: Call | None = None) -> None:
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

        It is called in the caller's task, just before that goes on, also if this message has been put back meanwhile. If it
        raises, the child fails with that exception, as by `Ref.inject`; while no body of the child runs, an `Exception` is
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

    def taken_again(self, inbox: Inbox) -> Message:
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
    callbacks: list[tuple[Callable[[], object], Inbox]] | None
    hand: Message | None

    def __init__(self, value: Any, on_loss: OnLoss, mailbox: Queue) -> None:
        self.value = value
        self.on_loss: OnLoss = on_loss
        self.mailbox = mailbox
        self.state: Literal["queued", "in hand", "queued again", "left"] = "queued"
        self.callbacks = self.hand = self.memo = self._task = self.answer = None

    def put_back(self) -> None:
        """Nobody has it in hand; it waits in the queue again, if that is open."""
        self.state, self.hand = "queued again", None

    def taken_again(self, inbox: Inbox) -> Message:
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
        """Tell those who wanted to know that the caller has left."""
        callbacks, self.callbacks = self.callbacks, None
        for callback, inbox in callbacks or ():
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
        self, value: Any, on_loss: OnLoss, mailbox: Queue, *, size: int, deadline: float | None
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
            # By hand: a consumer that is cancelled leaves in that very step (`_abort`), so that its message knows before
            # anybody else runs. A task parked in a ParkingLot would leave only when it runs again. Protected.
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
        if not len(buffer) % _IN_A_ROW:
            await self._call.wait()
        if self._call.room:
            self._call.room.unpark()
        return buffer.popleft()


Sent: TypeAlias = tuple[Any, OnLoss | None]
"""What a message is made of that nobody waits for, its value and `on_loss` (None: the mailbox's own), until it is taken: as
long as it waits there is nothing to say of it, and thousands of objects that wait would keep the garbage collector busy."""

Entry: TypeAlias = Call | Message | Sent
"""What stands in the queue. A `Message` is one that nobody waits for and that was put back."""


def _is_withdrawn(entry: Entry) -> bool:
    """Whether the caller has left what is in the queue."""
    return isinstance(entry, Call) and entry.state == "left"


@protected
class Queue:
    """A bounded queue of one node, kept over its incarnations."""

    __slots__ = (
        "_path",
        "_putters",
        "_size",
        "_why",
        "closed",
        "deadline",
        "handled",
        "inbox",
        "on_loss",
        "queue",
        "readers",
        "server",
        "spec",
        "withdrawn",
    )

    def __init__(self, path: str, spec: Mailbox) -> None:
        self.spec = spec
        self.on_loss: OnLoss = spec.on_loss
        self.deadline = spec.deadline
        self._size = spec.size  # none while it is closed
        self.closed = False
        self.handled = 0
        self.server: Task | None = None  # the task that serves it, or is about to
        self.inbox: Inbox | None = None  # the last one
        self._why: BaseException | None = None
        self._path = path
        self.queue: deque[Entry] = deque()
        self.withdrawn = 0  # so many in the queue count no more; they are sifted out when they are half of it
        # Both in the order of their coming; from a plain dict one cannot take the first without passing over all
        # the places of those that were first before.
        self._putters: OrderedDict[Task, Entry] = OrderedDict()
        self.readers: OrderedDict[Task, tuple[Inbox, bool]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.queue) - self.withdrawn

    def put_if_room(self, message: Entry) -> bool:
        """Queue it, if there is room for one more; while others wait for room there is none."""
        if len(self.queue) >= self._size and len(self) >= self._size:
            return False
        for reader in self.readers:
            reschedule(reader)
            del self.readers[reader]
            break
        self.queue.append(message)
        return True

    async def put(self, message: Entry) -> None:
        """Queue it, waiting for room in the order of arrival. Cancelled: it was not queued."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.put_if_room(message):
            return
        if self.closed:
            raise self._refusal()
        task = current_task()
        if task is self.server:
            self.check_others_serve(task)
        self._putters[task] = message

        def abort(_: RaiseCancelT) -> Abort:
            del self._putters[task]
            return Abort.SUCCEEDED

        try:
            # By hand: whoever makes room queues this sender's message in the same step, so that nobody who comes later
            # gets in before it, and `close` wakes it with the refusal. A ParkingLot only wakes. Protected.
            await wait_task_rescheduled(abort)
        except BaseException:
            self._putters.pop(task, None)
            raise

    def withdraw(self) -> None:
        """The caller of one is gone; it stays in the queue, and counts no more, until it is half of all."""
        self.withdrawn += 1
        if self.withdrawn > _FEW and self.withdrawn > len(self.queue) // 2:
            self.queue = deque(entry for entry in self.queue if not _is_withdrawn(entry))
            self.withdrawn = 0
        self.admit()

    def admit(self) -> None:
        """There is room: the senders that waited longest come in."""
        while self._putters and self.put_if_room(next(iter(self._putters.values()))):
            reschedule(self._putters.popitem(last=False)[0])

    def put_back(self, messages: Sequence[Message]) -> None:
        """At the head, in their order, whatever the size."""
        for message in reversed(messages):
            entry = message.back()
            if not self.closed:
                self.queue.appendleft(entry)
                if self.readers:
                    reschedule(self.readers.popitem(last=False)[0])
            elif isinstance(entry, Call):
                entry.finish(outcome.Error(self._refusal()))

    def check_others_serve(self, task: Task) -> None:
        """Whether anybody could serve the mailbox while the child's own task waits at it; `RuntimeError` if not (R30).

        Nobody, if no other task runs in the child, or if the child's own task has waited for messages, and no other has.
        """
        inbox = self.inbox
        if inbox is not None and inbox.is_open:
            if inbox.others_read:
                return
            if not inbox.server_read and any(nursery.child_tasks for nursery in task.child_nurseries):
                return
        raise RuntimeError(
            f"child {self._path!r} would wait for ever: its own task, which serves its mailbox, waits at that mailbox"
        )

    def overflow(self) -> Exception:
        """What those are told who would not wait for room."""
        if self.closed:
            return self._refusal()
        return _error(
            self.spec.full, MailboxFull, f"the mailbox of {self._path!r} is full ({self.spec.size})"
        )

    def _refusal(self) -> Exception:
        text = f"{self._path!r} is down for good" + ("" if self._why is None else f": {brief(self._why)}")
        refusal = _error(self.spec.stopped, ChildStopped, text)
        set_cause(refusal, self._why)
        return refusal

    @contextmanager
    def in_time(self, deadline: float | None, late: Callable[[], object] = lambda: None) -> Generator[None]:
        """Do something until then; past it, `late()` is called, and what the spec calls `late` is raised."""
        if deadline is None:
            yield
            return
        with trio.CancelScope(deadline=deadline) as scope:
            yield
        if scope.cancelled_caught:
            late()
            text = f"{self._path!r} did not answer before the deadline"
            raise _error(self.spec.late, TimeoutError, text)

    def close(self, why: BaseException | None) -> None:
        """The node is down for good: whoever waits is told so (R29)."""
        self.closed, self._why, self._size = True, why, 0
        putters, self._putters = self._putters, OrderedDict()
        queue, self.queue, self.withdrawn = self.queue, deque(), 0
        for entry in queue:
            if isinstance(entry, Call) and entry.state != "left":
                entry.finish(outcome.Error(self._refusal()))
        for task in putters:
            reschedule(task, outcome.Error(self._refusal()))

    def open(self) -> None:
        """The node starts again after all."""
        self.closed, self._why, self._size = False, None, self.spec.size


class Holder(Protocol):
    """The leaf whose body has an inbox, as far as it is needed here."""

    stopping: bool

    @property
    def path(self) -> str: ...
    @property
    def failing(self) -> bool: ...
    def inject(self, exc: BaseException) -> None: ...
    def raised_late(self, exc: BaseException) -> None: ...


@protected
class Inbox:
    """What a body gets of its mailbox: `async for message in inbox`, or `receive`, or `receive_many`.

    The loop ends when the child has been asked to stop and no message waits (R20); `receive` and `receive_many` wait on
    until the child is cancelled. When the body is over its inbox is closed: whoever still reads there gets
    `trio.ClosedResourceError`.
    """

    __slots__ = (
        "_before_turn",
        "_leaf",
        "_reader",
        "held",
        "is_open",
        "mailbox",
        "others_read",
        "progressed",
        "server_read",
    )

    def __init__(self, mailbox: Queue, leaf: Holder) -> None:
        self.mailbox = mailbox
        self.held: dict[Message, None] = {}  # in the order in which they were taken
        self.is_open = True
        self.server_read = self.others_read = (
            False  # whether the child's own task has waited here, or another
        )
        self._reader: Task | None = None  # the last that has waited
        self._before_turn = _IN_A_ROW
        self._leaf = leaf
        self.progressed = False
        mailbox.inbox = self

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self.mailbox)

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Message:
        """As `receive`, but the end when the child has been asked to stop and no message waits."""
        if not self._before_turn:
            await self._give_way()
        self._before_turn -= 1
        return self._take() or await self._wait(True)

    async def receive(self) -> Message:
        """Take the next message, waiting for one.

        Not every call is a checkpoint: of messages that are there already, every 64th in a row is.
        """
        if not self._before_turn:
            await self._give_way()
        self._before_turn -= 1
        return self._take() or await self._wait(False)

    def receive_nowait(self) -> Message:
        """Take the next message, or `trio.WouldBlock`."""
        self._check_open()
        message = self._take()
        if message is None:
            raise trio.WouldBlock
        return message

    async def receive_many(self, maximum: int) -> list[Message]:
        """Take up to `maximum` messages, waiting for the first."""
        check_number("the maximum of receive_many", maximum, least=1, kind=int)
        messages = [await self.receive()]
        while len(messages) < maximum and (message := self._take()) is not None:
            messages.append(message)
        self._before_turn = max(0, self._before_turn + 1 - len(messages))
        return messages

    def _check_open(self) -> None:
        if not self.is_open:
            raise trio.ClosedResourceError(f"the body of {self._leaf.path!r} that had this inbox is over")

    async def _give_way(self) -> None:
        """A turn for the others. A closed inbox comes here each time."""
        self._check_open()
        self._before_turn = _IN_A_ROW
        await trio.lowlevel.checkpoint()
        self._check_open()

    async def _wait(self, ends: bool) -> Message:
        """Take the next message once there is one; the first in a row, since to wait is a turn for the others."""
        task = current_task()
        if task is not self._reader:
            self._is_read_by(task)
        if ends and self._leaf.stopping:
            return self._take_last()
        readers = self.mailbox.readers
        readers[task] = self, ends

        def abort(_: RaiseCancelT) -> Abort:
            del readers[task]
            return Abort.SUCCEEDED

        try:
            # By hand: a reader that finds its message gone goes back to the head of those who wait, and a stop wakes only
            # the readers of one inbox. A ParkingLot can do neither. Protected.
            await wait_task_rescheduled(abort)
            while self.is_open:
                self._before_turn = _IN_A_ROW - 1
                message = self._take()
                if message is not None:
                    return message
                if ends and self._leaf.stopping:
                    break
                readers[task] = self, ends
                # What it was woken for is gone, to somebody who was faster, or with its caller: it has waited longest all the same.
                readers.move_to_end(task, last=False)
                await wait_task_rescheduled(abort)
        except BaseException:
            readers.pop(task, None)
            raise
        return self._take_last()

    def _is_read_by(self, task: Task) -> None:
        self._reader = task
        if task is self.mailbox.server:
            self.server_read = True
        else:
            self.others_read = True

    def _take_last(self) -> Message:
        """Take a message if there is one; there is no waiting for another."""
        self._check_open()
        message = self._take()
        if message is None:
            raise StopAsyncIteration
        return message

    def _take(self) -> Message | None:
        """The next message that somebody still wants is in hand now."""
        mailbox = self.mailbox
        while mailbox.queue:
            entry = mailbox.queue.popleft()
            if isinstance(entry, tuple):
                message = Message(entry[0], entry[1] or mailbox.on_loss, self)
                if message._on_loss == "requeue":
                    self.held[message] = None
                self.progressed = True
                mailbox.handled += 1
            elif entry.state == "queued":
                message = entry.hand = entry.hand_type(entry.value, entry.on_loss, self, entry)
                entry.state = "in hand"
                self.held[message] = None
                self.progressed = True
                mailbox.handled += 1
            elif entry.state == "left":
                mailbox.withdrawn -= 1
                continue
            else:
                message = entry.taken_again(self)
            if mailbox._putters:
                mailbox.admit()
            return message
        return None

    def end_loops(self) -> None:
        """The child has been asked to stop: those who wait in a loop over this inbox need wait no longer."""
        readers = self.mailbox.readers
        for task, (inbox, ends) in list(readers.items()):
            if inbox is self and ends:
                del readers[task]
                reschedule(task)

    def settle(self, path: str, failure: BaseException | None) -> None:
        """The body is over: what it held is lost, or goes back to the head of the queue (R30); nobody takes more here."""
        if not self.is_open:
            return
        self.is_open, self._before_turn = False, 0
        held, self.held = self.held, {}
        back: list[Message] = []
        for message in held:
            call = message._call
            if message._on_loss == "requeue":
                back.append(message)
            elif call is not None:
                message.let_go("lost with its body")
                lost = CallLost(f"{path!r} ended with this message in hand: {brief(failure)}")
                lost.__cause__ = failure
                call.finish(outcome.Error(lost))
        readers = self.mailbox.readers
        for task, (inbox, _) in list(readers.items()):
            if inbox is self:
                del readers[task]
                reschedule(task)
        self.mailbox.put_back(back)

    def fails(self, exc: BaseException) -> None:
        """A callback that this body had registered raised: the child's body, be it a later one, fails with that."""
        now = self.mailbox.inbox
        assert now is not None
        if now.is_open and not now._leaf.failing:
            now._leaf.inject(exc)
        else:
            self._leaf.raised_late(exc)


def call(mailbox: Queue, value: Any, on_loss: OnLoss | None) -> Coroutine[Any, Any, Any]:
    """Send and wait for the reply."""
    message = Call(value, mailbox.on_loss if on_loss is None else checked_on_loss(on_loss), mailbox)
    return _exchange(mailbox, message) if mailbox.deadline is None else _exchange_in_time(mailbox, message)


@enable_ki_protection
async def _exchange(mailbox: Queue, message: Call) -> Any:
    if not mailbox.put_if_room(message):
        await mailbox.put(message)
    return await message.result()


@enable_ki_protection
async def _exchange_in_time(mailbox: Queue, message: Call) -> Any:
    assert mailbox.deadline is not None
    with mailbox.in_time(mailbox.deadline(message.value)):
        return await _exchange(mailbox, message)


@protected
class OpenStream:
    """Send and give the stream of replies, for a block.

    A class, not a generator: on its way into a generator, or out of it, a Ctrl-C would come between the block and us.
    """

    __slots__ = ("_arguments", "_call", "_mailbox", "_wait")

    def __init__(self, mailbox: Queue, value: Any, on_loss: OnLoss | None, size: int, *, wait: bool) -> None:
        check_number("a stream's buffer", size, least=1, kind=int)
        on_loss = mailbox.on_loss if on_loss is None else checked_on_loss(on_loss)
        self._mailbox = mailbox
        self._arguments = (value, on_loss, size)
        self._wait = wait
        self._call: StreamCall | None = None

    async def __aenter__(self) -> Stream:
        if self._call is not None:
            raise RuntimeError("a stream is entered once")
        mailbox = self._mailbox
        value, on_loss, size = self._arguments
        deadline = mailbox.deadline(value) if mailbox.deadline else None
        call = self._call = StreamCall(value, on_loss, mailbox, size=size, deadline=deadline)
        if self._wait:
            with mailbox.in_time(deadline):
                await mailbox.put(call)
        elif not mailbox.put_if_room(call):
            raise mailbox.overflow()
        return Stream(call)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._call is not None
        self._call.close()
