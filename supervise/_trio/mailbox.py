"""The queue of a node and the inbox of a body (R29).

A mailbox belongs to a node, not to an incarnation. No task hangs at one for ever, and no message is lost without an error
for the caller who waits for its answer.

A mailbox that several children share is in `shared`.

A sender waits for room in `Queue.put`, a body for the next message in `Inbox._wait`. Both park by hand, and a comment there
gives the reason. The docstring of `message` describes how tasks are woken, and how these classes are protected from
KeyboardInterrupt.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, ClassVar, Protocol, TypeAlias, cast

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
from .._core._call import wrong_function
from .._core._check import check_number, is_a
from .._core.decide import set_cause
from .._core.spec import Mailbox, OnLoss
from ..errors import CallLost, ChildStopped, MailboxFull
from .message import (
    IN_A_ROW,
    Call,
    CallEnd,
    CallObserver,
    Carrying,
    Message,
    Stream,
    StreamCall,
    checked_on_loss,
)
from .protect import check_room, check_stack, protected

_AFTER_A_WAIT = IN_A_ROW - 1
_FEW = 16  # up to this many withdrawn calls stay in the queue


def _error(wanted: type[Exception], otherwise: type[Exception], text: str) -> Exception:
    """An error of a class that a `Mailbox` names; of our own class if that one makes none, since a caller waits for the error."""
    made: object
    try:
        made = wanted(text)
    except BaseException as problem:  # noqa: BLE001 - a user's class may raise anything; the note keeps it
        made = problem
    if is_a(made, wanted):
        return cast("Exception", made)
    error = otherwise(text)
    error.add_note(f"{wanted.__name__} could not be made of this text: {brief(made)}")
    return error


Sent: TypeAlias = tuple[Any, OnLoss | None]
"""A queued one-way message: its value and `on_loss` (None: that of the mailbox). It becomes a `Message` when a body takes it:
thousands of waiting objects would keep the garbage collector busy, plain tuples do not."""

Entry: TypeAlias = Call | Message | Carrying | Sent
"""An entry of the queue. A `Message` in it is a one-way message that was put back."""


Report: TypeAlias = Callable[[int, str, BaseException | None], object]
"""Reports what code of the program raised, or what is lost, see `Driver.report`. It raises nothing."""


def is_withdrawn(entry: Entry) -> bool:
    """Whether the caller of this entry has left."""
    return isinstance(entry, Call) and entry.state == "left"


@protected
class Queue:
    """The bounded queue of one node, kept over its incarnations."""

    __slots__ = (
        "_path",
        "_putters",
        "_report",
        "_size",
        "_why",
        "carry",
        "closed",
        "deadline",
        "handled",
        "observers",
        "on_loss",
        "queue",
        "readers",
        "servers",
        "spec",
        "withdrawn",
    )

    shared: ClassVar[bool] = False

    def __init__(self, path: str, spec: Mailbox, report: Report) -> None:
        self.closed = False
        self._report = report
        self._take(spec)
        self.handled = 0
        self.observers: tuple[CallObserver, ...] = ()
        self.servers: dict[Task, Holder] = {}  # the own tasks of the children that serve it, or are about to
        self._why: BaseException | None = None
        self._path = path
        self.queue: deque[Entry] = deque()
        self.withdrawn = 0  # tombstones of withdrawn calls in the queue; swept when they are half of it
        # Both in the order of arrival. Taking the first item of a plain dict is slow: it passes over the places of all items
        # removed before.
        self._putters: OrderedDict[Task, Entry] = OrderedDict()
        # True: in a loop, which ends with a stop.
        self.readers: OrderedDict[Task, tuple[Inbox, bool]] = OrderedDict()

    def _take(self, spec: Mailbox) -> None:
        self.spec = spec
        self.on_loss: OnLoss = spec.on_loss
        self.deadline = spec.deadline
        self.carry = spec.carry
        self._size = 0 if self.closed else spec.size

    def adopt(self, spec: Mailbox) -> None:
        """Go on as another declaration says: messages that wait already stay, even beyond a smaller size (R38)."""
        self._take(spec)
        self.admit()

    def __len__(self) -> int:
        return len(self.queue) - self.withdrawn

    def put_if_room(self, message: Entry) -> bool:
        """Queue an entry if there is room; returns whether there was. No room is ever left while senders wait for it."""
        if len(self.queue) >= self._size and len(self) >= self._size:
            return False
        for reader in self.readers:  # as `wake_reader`, without a call on the busiest path
            reschedule(reader)
            del self.readers[reader]
            break
        self.queue.append(message)
        return True

    def one_way(self, value: Any, on_loss: OnLoss | None) -> Entry:
        """The entry of a message without a reply."""
        if self.carry is None:
            return value, on_loss
        return Carrying(value, on_loss or self.on_loss, self.carry())

    def wake_reader(self) -> None:
        """Wake the reader that has waited longest, if one waits."""
        for reader in self.readers:
            reschedule(reader)
            del self.readers[reader]
            break

    async def put(self, message: Entry) -> None:
        """Queue an entry, waiting for room in the order of arrival. If it is cancelled, the entry was not queued."""
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if not self.put_if_room(message):
                await self._put_when_there_is_room(message)
        except BaseException as exc:
            if self.observers and isinstance(message, Call):
                message.report("left" if isinstance(exc, trio.Cancelled) else exc)
            raise

    async def _put_when_there_is_room(self, message: Entry) -> None:
        if self.closed:
            raise self._refusal()
        task = current_task()
        if task in self.servers:
            self.check_others_serve(task)
        self._putters[task] = message

        def abort(_: RaiseCancelT) -> Abort:
            del self._putters[task]
            return Abort.SUCCEEDED

        try:
            # Parks by hand: the code that makes room also queues this sender's message in the same step, so that no later
            # sender overtakes it, and `close` wakes it with an error. A ParkingLot can only wake. Protected.
            await wait_task_rescheduled(abort)
        except BaseException:
            self._putters.pop(task, None)
            raise

    def inbox_for(self, leaf: Holder, task: Task) -> Inbox:
        """The end of a body of this leaf, whose own task is `task`."""
        return Inbox(self, leaf, task)

    @property
    def depth(self) -> int:
        """How many messages wait, for a body or in the queue."""
        return len(self)

    @property
    def waiting_since(self) -> float | None:
        """When the message at the head of the queue was sent; None if none waits, or if it is one-way: those have no time."""
        for entry in self.queue:
            if not is_withdrawn(entry):
                return entry.sent_at if isinstance(entry, Call) else None
        return None

    def withdraw(self, _: Call, /) -> None:
        """A queued caller has left. Its entry stays as a tombstone; the queue is swept when more than half are tombstones."""
        self.withdrawn += 1
        if self.withdrawn > _FEW and self.withdrawn > len(self.queue) // 2:
            # In this order: a value that leaves with the old queue may have a finaliser, and that may ask for the depth of this one.
            self.withdrawn = 0
            self.queue = deque(entry for entry in self.queue if not is_withdrawn(entry))
        self.admit()

    def admit(self) -> None:
        """Queue the messages of waiting senders, the longest waiting first, while there is room."""
        while self._putters and self.put_if_room(next(iter(self._putters.values()))):
            reschedule(self._putters.popitem(last=False)[0])

    def observe(self, observer: CallObserver) -> None:
        """Call the observer at the end of each call and stream from now on; nothing changes if it is called already.

        Raises:
            TypeError: the observer is not a plain function of two arguments.
        """
        wrong = wrong_function(observer, "it is not awaited", ("value", "end"))
        if wrong is not None:
            raise TypeError(f"an observer of calls {wrong}")
        if observer not in self.observers:
            self.observers += (observer,)

    def call_ended(self, value: Any, end: CallEnd, /) -> None:
        """Call the observers. One that raises is reported, and not called again, as a sink: it must not hurt a caller (R31)."""
        for observer in self.observers:
            try:
                observer(value, end)
            except BaseException as exc:  # noqa: BLE001 - An observer of the program may raise anything; the report has it.
                self.observers = tuple(other for other in self.observers if other is not observer)
                text = f"an observer of calls raised, and is dropped: {brief(observer)}"
                self._report(logging.ERROR, text, exc)

    def put_back(self, messages: Sequence[Message]) -> None:
        """Put messages back at the head, in their order, even beyond the size; answer them with an error if the queue is closed."""
        for message in reversed(messages):
            self.put_back_entry(message.back())

    def put_back_entry(self, entry: Entry) -> None:
        """As `put_back`, for one that is an entry already."""
        if not self.closed:
            self.queue.appendleft(entry)
            self.wake_reader()
        elif isinstance(entry, Call):
            entry.finish(outcome.Error(self._refusal()))

    def check_others_serve(self, task: Task) -> None:
        """Raise `RuntimeError` if no task could serve the mailbox while the child's own task waits at it (R30).

        None could if no other task runs in the child, or if only the child's own task has ever waited for messages. Its siblings
        do not count (R37): they may end meanwhile, or wait in the same way.
        """
        server = self.servers[task]
        inbox = server.open_inbox
        if inbox is not None:
            if inbox.others_read:
                return
            if not inbox.server_read and any(nursery.child_tasks for nursery in task.child_nurseries):
                return
        raise RuntimeError(
            f"child {server.path!r} would wait for ever: its own task, which serves its mailbox, waits at that mailbox"
        )

    def overflow(self) -> Exception:
        """The error for a sender that does not wait for room."""
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
        """Run a block until `deadline`; past it call `late()`, and raise the class `late` of the spec."""
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
        """The node is down for good: every caller and sender that waits gets an error (R29).

        The sender of a message without a reply does not wait for it, so a record of the log has the number of those that are lost.
        """
        self.closed, self._why, self._size = True, why, 0
        putters, self._putters = self._putters, OrderedDict()
        queue, self.queue, self.withdrawn = self.queue, deque(), 0
        for entry in queue:
            if isinstance(entry, Call) and entry.state != "left":
                entry.finish(outcome.Error(self._refusal()))
        for task in putters:
            reschedule(task, outcome.Error(self._refusal()))
        lost = sum(not isinstance(entry, Call) for entry in queue)
        if lost:
            text = f"{self._path!r} is down for good; sent messages that waited and are lost: {lost}"
            self._report(logging.WARNING, text, None)

    def open(self) -> None:
        """The node was down for good, but is started again."""
        self.closed, self._why, self._size = False, None, self.spec.size


class Holder(Protocol):
    """The part of a leaf that its inbox needs."""

    stopping: bool

    @property
    def path(self) -> str: ...
    @property
    def open_inbox(self) -> Inbox | None: ...
    @property
    def failing(self) -> bool: ...
    def inject(self, exc: BaseException) -> None: ...
    def raised_late(self, exc: BaseException) -> None: ...


@protected
class Inbox:
    """A body's end of its mailbox: `async for message in inbox`, or `receive`, or `receive_many` (R29, R30).

    The loop ends when the child has been asked to stop and no message waits (R20); `receive` and `receive_many` go on waiting
    until the child is cancelled. When the body is over its inbox is closed: a task that still reads from it gets
    `trio.ClosedResourceError`. `len(inbox)` is the number of messages that wait.
    """

    __slots__ = (
        "_before_turn",
        "_leaf",
        "_reader",
        "_task",
        "held",
        "is_open",
        "mailbox",
        "others_read",
        "progressed",
        "server_read",
    )

    def __init__(self, mailbox: Queue, leaf: Holder, task: Task) -> None:
        self.mailbox = mailbox
        self.held: dict[Message, None] = {}  # in the order in which they were taken
        self.is_open = True
        self.server_read = self.others_read = (
            False  # whether the child's own task, or another, has waited here
        )
        self._reader: Task | None = None  # the last task that has waited here
        self._before_turn = IN_A_ROW
        self._leaf = leaf
        self._task = task  # the child's own
        self.progressed = False

    def __len__(self) -> int:
        """How many messages wait."""
        return len(self.mailbox)

    @property
    def relieved(self) -> bool:
        """Whether this child has been asked to stop while another one goes on serving the mailbox, which it shares (R37)."""
        return False

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> Message:
        """As `receive`, but `StopAsyncIteration` when the child has been asked to stop and no message waits (R20).

        If a sibling serves the same mailbox, the messages that wait are left to it (R37).
        """
        if not self._before_turn:
            await self._give_way()
        self._before_turn -= 1
        return self._take() or await self._wait(True)

    async def receive(self) -> Message:
        """Take the next message, waiting for one.

        A call that finds a message is a checkpoint only every 64th time in a row.

        Raises:
            trio.ClosedResourceError: the body of this inbox is over.
        """
        if not self._before_turn:
            await self._give_way()
        self._before_turn -= 1
        return self._take() or await self._wait(False)

    def receive_nowait(self) -> Message:
        """Take the next message. Raises `trio.WouldBlock` if none waits, `trio.ClosedResourceError` as `receive`."""
        self._check_open()
        message = self._take()
        if message is None:
            raise trio.WouldBlock
        return message

    async def receive_many(self, maximum: int) -> list[Message]:
        """Take up to `maximum` messages, 1 or more, waiting only for the first. Raises as `receive`."""
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
        """Checkpoint, so that other tasks run. For a closed inbox every call comes here, and raises."""
        self._check_open()
        self._before_turn = IN_A_ROW
        await trio.lowlevel.checkpoint()
        self._check_open()

    async def _wait(self, ends: bool) -> Message:  # noqa: C901 - one wait, with all of its ends
        """Wait for a message and take it. Other tasks have run meanwhile, so the count until the next checkpoint starts anew."""
        task = current_task()
        if task is not self._reader:
            self._is_read_by(task)
        if ends and self._leaf.stopping:
            return self._take_last()
        check_room()
        readers = self.mailbox.readers
        readers[task] = self, ends
        if self.mailbox.shared:
            self._parks(task, ends)

        def abort(_: RaiseCancelT) -> Abort:
            self.stops_waiting(task)
            return Abort.SUCCEEDED

        try:
            # Parks by hand, here and below: a reader that finds its message gone goes back to the head of the waiting
            # readers, a stop wakes only the readers of one inbox, and the wake-up carries whether a message is promised. A
            # ParkingLot or an Event can do none of it. Protected, as the whole class is, from KeyboardInterrupt.
            promised = await wait_task_rescheduled(abort)
            while self.is_open:
                if not self.mailbox.shared or self._may_take(promised):
                    self._before_turn = _AFTER_A_WAIT
                    message = self._take()
                    if message is not None:
                        return message
                if ends and self._leaf.stopping:
                    return self._take_last()
                readers[task] = self, ends
                # Another task took the message that woke this reader, or its caller left. This reader still waits longest.
                readers.move_to_end(task, last=False)
                if self.mailbox.shared:
                    self._parks(task, ends)
                promised = await wait_task_rescheduled(abort)
            self._takes_nothing(promised)
        except BaseException:
            self.stops_waiting(task)
            if self.mailbox.queue:  # near the end of its stack it could not take what it was woken for
                self.mailbox.wake_reader()
            raise
        return self._take_last()

    # --- the parts in which `shared.SharedInbox` differs

    def _parks(self, task: Task, ends: bool) -> None:
        """A reader parks."""

    def stops_waiting(self, task: Task) -> None:
        """A reader is woken, or leaves."""
        self.mailbox.readers.pop(task, None)

    def _waiting(self) -> list[tuple[Task, bool]]:
        """The readers that wait here, and whether each is in a loop."""
        return [(task, ends) for task, (inbox, ends) in self.mailbox.readers.items() if inbox is self]

    def _may_take(self, promised: object) -> bool:  # noqa: ARG002 - only a shared queue makes promises
        """Whether a woken reader takes its message."""
        return True

    def _takes_nothing(self, promised: object) -> None:
        """A woken reader finds its inbox closed."""

    def _put_back(self, messages: list[Message], *, resumable: bool) -> None:  # noqa: ARG002 - no other child takes from this queue
        """The body is over, and these messages in hand go back to the head of the queue."""
        self.mailbox.put_back(messages)

    # ---

    def _is_read_by(self, task: Task) -> None:
        self._reader = task
        if task is self._task:
            self.server_read = True
        else:
            self.others_read = True

    def _take_last(self) -> Message:
        """Take a message if there is one, else end the loop. Raises if the inbox is closed."""
        self._check_open()
        message = self._take()
        if message is None:
            raise StopAsyncIteration
        return message

    def _take(self) -> Message | None:
        """Take the next entry whose caller has not left; it is in hand from now on. None if there is none."""
        mailbox = self.mailbox
        while mailbox.queue:
            if mailbox._putters:
                return self._take_and_admit()
            entry = mailbox.queue.popleft()
            try:
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
                    message = entry.taken_by(self)
            except RecursionError:  # it could not be made, near the end of the stack
                mailbox.queue.appendleft(entry)
                raise
            return message
        return None

    def _take_and_admit(self) -> Message | None:
        """As `_take`, which makes room for a sender that waits: an error in the middle would leave that one asleep."""
        check_stack()
        mailbox = self.mailbox
        putters, mailbox._putters = mailbox._putters, OrderedDict()
        try:
            return Inbox._take(self)
        finally:
            mailbox._putters = putters
            mailbox.admit()

    def end_loops(self) -> None:
        """The child has been asked to stop: wake the tasks that wait in a loop over this inbox."""
        self._wake(loops=True)

    def settle(self, path: str, failure: BaseException | None, *, resumable: bool = False) -> None:
        """The body is over: close this inbox; the messages in hand are lost, or go back to the head of the queue (R30).

        Args:
            path: of the child.
            failure: what the body ended with.
            resumable: the failure has still to be decided, and the child may be resumed. This is called again if it is not.
        """
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
        self._wake(loops=False)
        self._put_back(back, resumable=resumable)

    def _wake(self, *, loops: bool) -> None:
        """Wake the tasks that wait here: all, or those in a loop."""
        for task, ends in self._waiting():
            if ends or not loops:
                reschedule(task)
                self.stops_waiting(task)

    def fails(self, exc: BaseException) -> None:
        """A callback that this body registered raised: the present body of the child fails with that, even if it is a later one."""
        path = self._leaf.path
        for server in self.mailbox.servers.values():
            if server.path == path and server.open_inbox is not None and not server.failing:
                server.inject(exc)
                return
        self._leaf.raised_late(exc)


def call(mailbox: Queue, value: Any, on_loss: OnLoss | None) -> Coroutine[Any, Any, Any]:
    """Send a message and wait for the reply."""
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
    """Send a message, and give the stream of replies to a block.

    A class, not a generator: while a generator is entered or left, a Ctrl-C would strike between the block and this code.
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
        check_stack()  # the block is left in this frame, and that must not fail
        mailbox = self._mailbox
        value, on_loss, size = self._arguments
        deadline = mailbox.deadline(value) if mailbox.deadline else None
        call = self._call = StreamCall(value, on_loss, mailbox, size=size, deadline=deadline)
        if self._wait:
            with mailbox.in_time(deadline):
                await mailbox.put(call)
        elif not mailbox.put_if_room(call):
            raise call.refused(mailbox.overflow())
        return Stream(call)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._call is not None
        self._call.close()
