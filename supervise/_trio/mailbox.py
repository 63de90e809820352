"""Messages, calls and streams (R29, R30).

A mailbox belongs to a node, not to an incarnation. Nobody ever hangs at one, and nothing is lost without somebody
being told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal, TypeAlias

import outcome
import trio
from trio.lowlevel import Abort, RaiseCancelT, Task, current_task, reschedule, wait_task_rescheduled

from .._core._brief import brief
from .._core.spec import Mailbox, OnLoss
from ..errors import CallLost

_FEW = 16  # husks are not worth sifting out
_IN_A_ROW = 64
"""This many are taken one after the other, if they are there, before the other tasks get a turn: a turn for each would
cost more than the messages."""


class Message:
    """One message, in the hands of the body that took it, which replies to it, fails it or requeues it.

    `value` is what was sent. `memo` is for the body: what it notes there it finds again if the message comes back to a
    later incarnation (None at first).
    """

    __slots__ = ("_inbox", "_state", "memo", "on_loss", "value")

    def __init__(self, value: Any, on_loss: OnLoss, inbox: Inbox | None) -> None:
        self.value = value
        self.on_loss: OnLoss = on_loss
        self._inbox = inbox  # that of the body which took it last
        self._state: Literal["queued", "in hand", "settled", "left"] = "in hand"
        self.memo: Any = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__.lower()} {brief(self.value)} {self._state}>"

    @property
    def left(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self._state == "left"

    def on_left(self, callback: Callable[[], object]) -> None:
        """Have `callback()` called, once, when the caller leaves, or now if it has left; it must not block."""

    def reply(self, value: Any = None) -> None:
        """Answer it. To a caller that has left the reply is dropped quietly."""
        self._settle(outcome.Value(value))

    def fail(self, exc: BaseException) -> None:
        """Answer it with an exception, which the caller's `call` raises."""
        self._settle(outcome.Error(exc))

    def requeue(self) -> None:
        """Put it back at the head of the queue."""
        self._check_in_hand()
        assert self._inbox is not None
        if self._state == "in hand":
            self._inbox._held.pop(self, None)
            self._inbox._mailbox._put_back([self])

    def _check_in_hand(self) -> None:
        if self._state not in ("in hand", "left"):
            raise RuntimeError(f"{brief(self)} is not in hand: it is settled once, by the body that took it")

    def _settle(self, result: outcome.Outcome[Any]) -> None:
        if self._state != "in hand":
            self._check_in_hand()
            return
        assert self._inbox is not None
        self._inbox._held.pop(self, None)
        self._finish(result)

    def _finish(self, _: outcome.Outcome[Any], /) -> None:
        """The end, from whomever: a reply, a loss, a closed mailbox."""
        self._state = "settled"


class Call(Message):
    """A message whose caller waits for the answer."""

    __slots__ = ("_mailbox", "_on_left", "_outcome", "_task")

    _task: Task | None
    _outcome: outcome.Outcome[Any] | None

    def __init__(self, value: Any, on_loss: OnLoss, mailbox: Queue) -> None:
        super().__init__(value, on_loss, None)
        self._state = "queued"
        self._mailbox = mailbox
        self._on_left: tuple[Callable[[], object], ...] = ()
        self._task = self._outcome = None

    def on_left(self, callback: Callable[[], object]) -> None:
        """See `Message.on_left`."""
        if self.left:
            callback()
        else:
            self._on_left += (callback,)

    def _finish(self, result: outcome.Outcome[Any], /) -> None:
        self._state, self._outcome, self._on_left = "settled", result, ()
        if self._task is not None:
            task, self._task = self._task, None
            reschedule(task, result)

    async def _result(self) -> Any:
        """Wait for the answer; a caller who is cancelled takes a queued message with it."""
        if self._outcome is None:
            self._task = current_task()
            return await wait_task_rescheduled(self._abort)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return self._outcome.unwrap()

    def _abort(self, _: RaiseCancelT) -> Abort:
        self._task = None
        self._leave()
        return Abort.SUCCEEDED

    def _leave(self) -> None:
        """The caller goes away."""
        queued = self._state == "queued"
        if self._state != "settled":
            self._state = "left"
        if queued:
            self._mailbox._withdraw()
        if self._inbox is not None:
            self._inbox._held.pop(self, None)
        callbacks, self._on_left = self._on_left, ()
        for callback in callbacks:
            callback()


class StreamMessage(Call):
    """A message with many replies: `send` each, then `reply()` ends the stream, and `fail` fails it (R30)."""

    __slots__ = ("_buffer", "_deadline", "_room", "size")

    _room: trio.lowlevel.ParkingLot | None  # from when somebody waits for room

    def __init__(
        self, value: Any, on_loss: OnLoss, mailbox: Queue, *, size: int, deadline: float | None
    ) -> None:
        super().__init__(value, on_loss, mailbox)
        self.size = size
        self._deadline = deadline
        self._buffer: deque[Any] = deque()
        self._room = None

    def send_nowait(self, item: Any) -> None:
        """Put one item into the stream; `trio.WouldBlock` if the buffer is full. Dropped if the consumer left."""
        self.send_many_nowait((item,))

    def send_many_nowait(self, items: Sequence[Any]) -> None:
        """Put some items into the stream at once, or none of them: as `send_nowait`, and the consumer wakes once."""
        if self._state != "in hand":
            self._check_in_hand()
            return
        if len(self._buffer) + len(items) > self.size:
            raise trio.WouldBlock
        self._buffer.extend(items)
        self._mailbox.handled += len(items)
        if self._task is not None:
            self._wake()

    def _wake(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None
            reschedule(task)

    async def send(self, item: Any) -> None:
        """Put one item into the stream, waiting while its buffer is full. Cancelled: the item was not put."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while len(self._buffer) >= self.size and self._state == "in hand":
            if self._room is None:
                self._room = trio.lowlevel.ParkingLot()
            await self._room.park()
        self.send_nowait(item)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _leave(self) -> None:
        super()._leave()
        self._refuse_room()

    def _finish(self, result: outcome.Outcome[Any], /) -> None:
        self._state, self._outcome, self._on_left = "settled", result, ()
        self._wake()
        self._refuse_room()

    def _refuse_room(self) -> None:
        """Whoever waits for room need wait no longer: the stream is over."""
        if self._room is not None:
            self._room.unpark_all()

    async def _wait(self) -> None:
        """For the next item, or only for the others' turn; `StopAsyncIteration` at the end.

        What was sent before a failure comes first.
        """
        if self._buffer:
            await trio.lowlevel.checkpoint()
        while not self._buffer:
            if isinstance(self._outcome, outcome.Error):
                raise self._outcome.error
            if self._outcome is not None:
                raise StopAsyncIteration
            if self._deadline is None:
                self._task = current_task()
                await wait_task_rescheduled(self._stop_waiting)
            else:
                await self._wait_in_time(self._deadline)

    async def _wait_in_time(self, deadline: float) -> None:
        """For something to come; past the deadline it is as if the consumer had left, but it is told why."""
        try:
            with self._mailbox.in_time(deadline):
                self._task = current_task()
                await wait_task_rescheduled(self._stop_waiting)
        except self._mailbox.spec.late:
            self._leave()
            raise

    def _stop_waiting(self, _: RaiseCancelT) -> Abort:
        self._task = None
        return Abort.SUCCEEDED


class Stream:
    """The consumer's end of a stream: an async iterator; leaving its block early tells the child."""

    __slots__ = ("_buffer", "_message")

    def __init__(self, message: StreamMessage) -> None:
        self._message = message
        self._buffer = message._buffer

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        """The next item. Not every call is a checkpoint: of items that are there already, every 64th in a row is."""
        buffer = self._buffer
        if not len(buffer) % _IN_A_ROW:
            await self._message._wait()
        if self._message._room:
            self._message._room.unpark()
        return buffer.popleft()


Sent: TypeAlias = tuple[Any, OnLoss]
"""What a message is made of that nobody waits for, its value and `on_loss`, until it is taken: as long as it waits there
is nothing to say of it, and thousands of objects that wait would keep the garbage collector busy."""


def _is_husk(entry: Message | Sent) -> bool:
    """Whether the caller has left what is in the queue."""
    return isinstance(entry, Message) and entry._state != "queued"


class Queue:
    """A bounded queue of one node, kept over its incarnations."""

    __slots__ = (
        "_path",
        "_putters",
        "_queue",
        "_readers",
        "_size",
        "_why",
        "_withdrawn",
        "closed",
        "deadline",
        "handled",
        "on_loss",
        "spec",
    )

    def __init__(self, path: str, spec: Mailbox) -> None:
        self.spec = spec
        self.on_loss: OnLoss = spec.on_loss
        self.deadline = spec.deadline
        self._size = spec.size  # none while it is closed
        self.closed = False
        self.handled = 0
        self._why: BaseException | None = None
        self._path = path
        self._queue: deque[Message | Sent] = deque()
        self._withdrawn = 0
        self._putters: deque[tuple[Message | Sent, Task]] = deque()
        self._readers: deque[Task] = deque()

    def __len__(self) -> int:
        return len(self._queue) - self._withdrawn

    def put_if_room(self, message: Message | Sent) -> bool:
        """Queue it, if there is room for one more; while others wait for room there is none."""
        if len(self._queue) >= self._size and len(self) >= self._size:
            return False
        self._queue.append(message)
        if self._readers:
            reschedule(self._readers.popleft())
        return True

    async def put(self, message: Message | Sent) -> None:
        """Queue it, waiting for room in the order of arrival. Cancelled: it was not queued."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.put_if_room(message):
            return
        if self.closed:
            raise self._refusal()
        self._putters.append((message, current_task()))
        await wait_task_rescheduled(lambda _: self._give_up(message))

    def _give_up(self, message: Message | Sent) -> Abort:
        self._putters = deque(entry for entry in self._putters if entry[0] is not message)
        return Abort.SUCCEEDED

    def _withdraw(self) -> None:
        """The caller of one is gone; it stays in the queue as a husk until half of them are."""
        self._withdrawn += 1
        if self._withdrawn > _FEW and self._withdrawn > len(self._queue) // 2:
            self._queue = deque(entry for entry in self._queue if not _is_husk(entry))
            self._withdrawn = 0
        self._admit()

    def _admit(self) -> None:
        """There is room: the senders that waited longest come in."""
        while self._putters and self.put_if_room(self._putters[0][0]):
            reschedule(self._putters.popleft()[1])

    def _put_back(self, messages: Sequence[Message]) -> None:
        """At the head, in their order, whatever the size."""
        for message in reversed(messages):
            if not self.closed:
                message._state = "queued"
                self._queue.appendleft(message)
                if self._readers:
                    reschedule(self._readers.popleft())
            else:
                message._finish(outcome.Error(self._refusal()))

    def overflow(self) -> Exception:
        """What those are told who would not wait for room."""
        if self.closed:
            return self._refusal()
        return self.spec.full(f"the mailbox of {self._path!r} is full ({self.spec.size})")

    def _refusal(self) -> Exception:
        refusal = self.spec.stopped(
            f"{self._path!r} is down for good" + ("" if self._why is None else f": {brief(self._why)}")
        )
        refusal.__cause__ = self._why
        return refusal

    @contextmanager
    def in_time(self, deadline: float | None) -> Generator[None]:
        """Do something until then; past it, what the spec calls `late` is raised."""
        if deadline is None:
            yield
            return
        with trio.CancelScope(deadline=deadline) as scope:
            yield
        if scope.cancelled_caught:
            raise self.spec.late(f"{self._path!r} did not answer before the deadline")

    def close(self, why: BaseException | None) -> None:
        """The node is down for good: whoever waits is told so (R29)."""
        self.closed, self._why, self._size = True, why, 0
        putters, self._putters = self._putters, deque()
        queue, self._queue, self._withdrawn = self._queue, deque(), 0
        for message in queue:
            if isinstance(message, Message) and not _is_husk(message):
                message._finish(outcome.Error(self._refusal()))
        for _, task in putters:
            reschedule(task, outcome.Error(self._refusal()))

    def open(self) -> None:
        """The node starts again after all."""
        self.closed, self._why, self._size = False, None, self.spec.size


class Inbox:
    """What a body gets of its mailbox: `async for message in inbox`, or `receive`, or `receive_many`."""

    __slots__ = ("_before_turn", "_held", "_mailbox", "progressed")

    def __init__(self, mailbox: Queue) -> None:
        self._mailbox = mailbox
        self._held: dict[Message, None] = {}
        self._before_turn = _IN_A_ROW
        self.progressed = False

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self._mailbox)

    def __aiter__(self) -> Inbox:
        return self

    async def receive(self) -> Message:
        """Take the next message, waiting for one.

        Not every call is a checkpoint: of messages that are there already, every 64th in a row is.
        """
        if not self._before_turn:
            self._before_turn = _IN_A_ROW
            await trio.lowlevel.checkpoint()
        self._before_turn -= 1
        return self._take() or await self._wait()

    __anext__ = receive

    def receive_nowait(self) -> Message:
        """Take the next message, or `trio.WouldBlock`."""
        message = self._take()
        if message is None:
            raise trio.WouldBlock
        return message

    async def receive_many(self, maximum: int) -> list[Message]:
        """Take up to `maximum` messages, waiting for the first."""
        messages = [await self.receive()]
        while len(messages) < maximum and (message := self._take()) is not None:
            messages.append(message)
        return messages

    async def _wait(self) -> Message:
        """Take the next message once there is one; the first in a row, since to wait is a turn for the others."""
        readers = self._mailbox._readers
        task = current_task()

        def abort(_: RaiseCancelT) -> Abort:
            readers.remove(task)
            return Abort.SUCCEEDED

        while True:
            self._before_turn = _IN_A_ROW - 1
            readers.append(task)
            await wait_task_rescheduled(abort)
            if (message := self._take()) is not None:
                return message

    def _take(self) -> Message | None:
        """The next message that somebody still wants is in hand now."""
        mailbox = self._mailbox
        while mailbox._queue:
            entry = mailbox._queue.popleft()
            if isinstance(entry, tuple):
                message = Message(entry[0], entry[1], self)
                if message.on_loss == "requeue":
                    self._held[message] = None
                self.progressed = True
                mailbox.handled += 1
            elif entry._state == "queued":
                message = entry
                self._held[message] = None
                if message._inbox is None:
                    self.progressed = True
                    mailbox.handled += 1
                message._state = "in hand"
                message._inbox = self
            else:
                mailbox._withdrawn -= 1
                continue
            if mailbox._putters:
                mailbox._admit()
            return message
        return None

    def settle(self, path: str, failure: BaseException | None) -> None:
        """The body is over: what it held is lost, or goes back to the head of the queue (R30)."""
        held, self._held = list(self._held), {}
        back = [message for message in held if message.on_loss == "requeue" and message._state == "in hand"]
        for message in held:
            if message.on_loss != "requeue" and message._state == "in hand":
                lost = CallLost(f"{path!r} ended with this message in hand: {brief(failure)}")
                lost.__cause__ = failure
                message._finish(outcome.Error(lost))
        self._mailbox._put_back(back)


def call(mailbox: Queue, value: Any, on_loss: OnLoss | None) -> Coroutine[Any, Any, Any]:
    """Send and wait for the reply."""
    message = Call(value, on_loss or mailbox.on_loss, mailbox)
    return _exchange(mailbox, message) if mailbox.deadline is None else _exchange_in_time(mailbox, message)


async def _exchange(mailbox: Queue, message: Call) -> Any:
    if not mailbox.put_if_room(message):
        await mailbox.put(message)
    return await message._result()


async def _exchange_in_time(mailbox: Queue, message: Call) -> Any:
    assert mailbox.deadline is not None
    with mailbox.in_time(mailbox.deadline(message.value)):
        return await _exchange(mailbox, message)


@asynccontextmanager
async def stream(
    mailbox: Queue, value: Any, on_loss: OnLoss | None, size: int, *, wait: bool
) -> AsyncGenerator[Stream, None]:
    """Send and give the stream of replies."""
    deadline = mailbox.deadline(value) if mailbox.deadline else None
    message = StreamMessage(value, on_loss or mailbox.on_loss, mailbox, size=size, deadline=deadline)
    if wait:
        with mailbox.in_time(deadline):
            await mailbox.put(message)
    elif not mailbox.put_if_room(message):
        raise mailbox.overflow()
    try:
        yield Stream(message)
    finally:
        message._leave()
