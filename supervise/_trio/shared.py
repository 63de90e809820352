"""The mailbox of a supervisor, and the inboxes of the children that take their messages from it (R37).

Each differs from that of one child, in `mailbox`, in three things:

- An entry is promised to the reader that is woken for it. Otherwise a child that does not wait, and comes back sooner than the woken
  one runs, would take the whole of a burst.
- What a failed child had in hand is kept for it until it is decided whether it is resumed, because after a Resume it has the resource
  that it used for these messages, and a sibling has not.
- If the mailbox has an affinity, an entry is handed to the child that took the last one with its key, if that child waits.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import outcome
from trio.lowlevel import Task, current_trio_token, reschedule

from .._core._brief import brief
from .._core.machine import Machine
from .._core.node import Node
from .._core.spec import SHARED, Mailbox, Pool
from .mailbox import Entry, Holder, Inbox, Queue, Report, is_withdrawn
from .message import Call, Message
from .protect import has_room_for_others, protected

_KEYS = 4_096  # how many keys are remembered: those of the last messages


class Handed:
    """An entry that one reader has been woken with, and that is in no queue until that reader runs."""

    __slots__ = ("entry",)

    def __init__(self, entry: Entry) -> None:
        self.entry = entry


@protected
class SharedQueue(Queue):
    """The queue of a supervisor, from which its children take their messages."""

    __slots__ = ("_affinity", "_handed", "_kept", "_last", "promised", "serving")

    shared: ClassVar[bool] = True

    def __init__(self, path: str, spec: Mailbox, report: Report) -> None:
        super().__init__(path, spec, report)
        self.promised = 0  # entries for which a reader has been woken that has not run yet
        self.serving: dict[Inbox, None] = {}  # those of bodies that run, and have not been asked to stop
        # For children whose failure is not decided, or that were resumed; in order, and each is found at once.
        self._kept: dict[Holder, OrderedDict[Call | Message, None]] = {}
        self._handed: dict[Handed, None] = {}
        # By key, the child that took the last message with it.
        self._last: OrderedDict[str | int | bytes, SharedInbox] = OrderedDict()

    def _take(self, spec: Mailbox) -> None:
        super()._take(spec)
        self._affinity = spec.affinity

    def inbox_for(self, leaf: Holder, task: Task) -> SharedInbox:
        """See `Queue.inbox_for`."""
        return SharedInbox(self, leaf, task)

    # --- promises

    def put_if_room(self, message: Entry) -> bool:
        """See `Queue.put_if_room`."""
        if len(self.queue) >= self._size and len(self) >= self._size:
            return False
        if self._affinity is None or not self._hand_over(message):
            self.wake_reader()
            self.queue.append(message)
        return True

    def wake_reader(self) -> None:
        """Wake the reader that has waited longest, if one waits, for an entry that is there or is about to be."""
        for reader, (inbox, _) in self.readers.items():
            reschedule(reader, outcome.Value(True))
            inbox.stops_waiting(reader)
            self.promised += 1
            break

    def break_promise(self) -> None:
        """A woken reader takes nothing after all: the entry is for the next one."""
        self.promised -= 1
        if len(self) > self.promised:
            self.wake_reader()

    # --- affinity

    def _key(self, value: Any) -> str | int | bytes | None:
        """The key of a message. A function that raises is reported and not called again, as a sink is (R31), and no sender sees its error.

        The report comes a moment later, since this may run while Trio cancels a task, and then nothing else may be cancelled.
        """
        assert self._affinity is not None
        if not has_room_for_others():
            return None  # so near the end of its stack a sender would make the function fail
        try:
            return _checked(self._affinity(value))
        except BaseException as exc:  # noqa: BLE001 - A function of the program may raise anything; the report has it.
            failed, self._affinity = self._affinity, None
            text = f"an affinity of {self._path!r} raised, and is dropped: {brief(failed)}"
            current_trio_token().run_sync_soon(self._report, logging.ERROR, text, exc)
            return None

    def _hand_over(self, entry: Entry) -> bool:
        """Hand an entry to the child that took the last one with its key. Returns False if it has none, or that child does not wait."""
        key = self._key(entry[0] if isinstance(entry, tuple) else entry.value)
        inbox = None if key is None else self._last.get(key)
        reader = None if inbox is None else inbox.first_reader()
        if inbox is None or reader is None:
            return False
        handed = Handed(entry)
        self._handed[handed] = None
        reschedule(reader, outcome.Value(handed))
        inbox.stops_waiting(reader)
        return True

    def arrived(self, handed: Handed) -> Entry | None:
        """The reader runs that this entry was handed to. None if its caller has left meanwhile."""
        del self._handed[handed]
        return None if is_withdrawn(handed.entry) else handed.entry

    def forget(self, inbox: SharedInbox) -> None:
        """A body is over, which has no keys any more: its inbox would keep its failure, and all that its frames hold (R31)."""
        for key in [key for key, other in self._last.items() if other is inbox]:
            del self._last[key]

    def remember(self, value: Any, inbox: SharedInbox) -> None:
        """A child has taken a message."""
        key = None if self._affinity is None else self._key(value)
        if key is not None:
            self._last[key] = inbox
            self._last.move_to_end(key)
            if len(self._last) > _KEYS:
                self._last.popitem(last=False)

    # --- what is kept for one child

    def keep(self, leaf: Holder, messages: Sequence[Message]) -> None:
        """Keep what a child had in hand until its failure is decided, before what is kept for it already."""
        if messages:
            kept = self._kept.setdefault(leaf, OrderedDict())
            for message in reversed(messages):
                entry = message.back()
                kept[entry] = None
                kept.move_to_end(entry, last=False)

    def kept_for(self, leaf: Holder) -> OrderedDict[Call | Message, None] | None:
        """What a child that was resumed takes before anything else. Its callers have not left: see `withdraw`."""
        return self._kept.get(leaf)

    def release(self, leaf: Holder) -> None:
        """The child is not resumed: what was kept for it goes back to the head of the queue."""
        for entry in reversed(self._kept.pop(leaf, OrderedDict())):
            self.put_back_entry(entry)

    @property
    def depth(self) -> int:
        """See `Queue.depth`."""
        return len(self) + sum(map(len, self._kept.values()))

    def withdraw(self, call: Call, /) -> None:
        """See `Queue.withdraw`. An entry that is kept, or on its way to a reader, leaves no tombstone."""
        if any(handed.entry is call for handed in self._handed):
            return
        for kept in self._kept.values():
            if call in kept:
                del kept[call]
                return
        super().withdraw(call)

    def close(self, why: BaseException | None) -> None:
        """See `Queue.close`. What is kept for a child that failed ends as what is queued does."""
        for kept in self._kept.values():
            self.queue.extendleft(reversed(kept))
        self._kept.clear()
        super().close(why)


@protected
class SharedInbox(Inbox):
    """The end of one child of a shared mailbox."""

    __slots__ = ("_parked",)

    mailbox: SharedQueue

    def __init__(self, mailbox: SharedQueue, leaf: Holder, task: Task) -> None:
        super().__init__(mailbox, leaf, task)
        self._parked: dict[Task, bool] = {}  # the readers here: the queue may have many others
        if not leaf.stopping:
            mailbox.serving[self] = None

    def __len__(self) -> int:
        kept = self.mailbox.kept_for(self._leaf)
        return len(self.mailbox) + (0 if kept is None else len(kept))

    def _take(self) -> Message | None:
        mailbox = self.mailbox
        if self.relieved:
            return None
        if kept := mailbox.kept_for(self._leaf):
            message = next(iter(kept)).taken_by(self)
            kept.popitem(last=False)
            return message
        if mailbox.promised and len(mailbox) <= mailbox.promised:
            return None
        taken = super()._take()
        if taken is not None:
            mailbox.remember(taken.value, self)
        return taken

    def first_reader(self) -> Task | None:
        """The reader that has waited here longest, if one waits."""
        return next(iter(self._parked), None)

    def _parks(self, task: Task, ends: bool) -> None:
        """A reader parks. If its child is to stop, it waits for its cancellation, not for a message."""
        self._parked[task] = ends
        if self.relieved:
            del self.mailbox.readers[task]

    def stops_waiting(self, task: Task) -> None:
        """See `Inbox.stops_waiting`."""
        super().stops_waiting(task)
        self._parked.pop(task, None)

    def _waiting(self) -> list[tuple[Task, bool]]:
        return list(self._parked.items())

    def _may_take(self, promised: object) -> bool:
        """Whether a woken reader takes its message. If this child is to stop, it is left to a sibling."""
        if self.relieved:
            self._takes_nothing(promised)
            return False
        if not isinstance(promised, Handed):
            self.mailbox.promised -= bool(promised)
            return True
        entry = self.mailbox.arrived(promised)
        if entry is not None:
            self.mailbox.queue.appendleft(entry)  # this reader takes it in the same step
        # Without an entry this reader takes the next message, for which no other reader may have been woken.
        return True

    def _takes_nothing(self, promised: object) -> None:
        if isinstance(promised, Handed):
            entry = self.mailbox.arrived(promised)
            if entry is not None:
                self.mailbox.put_back_entry(entry)
        elif promised:
            self.mailbox.break_promise()

    @property
    def relieved(self) -> bool:
        """See `Inbox.relieved`."""
        return self._leaf.stopping and bool(self.mailbox.serving)

    def end_loops(self) -> None:
        """See `Inbox.end_loops`."""
        self.mailbox.serving.pop(self, None)
        self.mailbox.release(self._leaf)
        super().end_loops()

    def settle(self, path: str, failure: BaseException | None, *, resumable: bool = False) -> None:
        """See `Inbox.settle`."""
        if not resumable:
            self.mailbox.release(self._leaf)
        self.mailbox.serving.pop(self, None)
        self.mailbox.forget(self)
        super().settle(path, failure, resumable=resumable)

    def _put_back(self, messages: list[Message], *, resumable: bool) -> None:
        if resumable:
            self.mailbox.keep(self._leaf, messages)
        else:
            self.mailbox.put_back(messages)


def _checked(key: object) -> str | int | bytes | None:
    """A key whose comparison and hash run no code of the program. Raises TypeError for any other value."""
    if type(key) is str or type(key) is int or type(key) is bytes or key is None:
        return key
    raise TypeError(f"the key of a message must be a str, int, bytes or None, got {brief(key)}")


def owner_of(machine: Machine) -> Machine:
    """The supervisor whose mailbox the children of this one share (R37)."""
    while machine.spec.mailbox is SHARED and machine.parent is not None:
        machine = machine.parent
    return machine


def is_unserved(owner: Machine, machines: Mapping[str, Machine], is_gone: Callable[[Node], bool]) -> bool:
    """Whether nodes share the mailbox of this supervisor, and each of them is gone, or all that share it below.

    Args:
        owner: the supervisor.
        machines: of the tree, by path.
        is_gone: whether a node is down for good.
    """
    found = False
    # One that lives is found at once: children that end by themselves mostly end in their order, and those that are stopped in reverse.
    children = owner.children.values()
    ordered = children if owner.phase == "ending" else reversed(children)
    walks: list[Iterator[Node]] = [iter(() if isinstance(owner.spec, Pool) else ordered)]
    while walks:
        node = next(walks[-1], None)
        if node is None:
            walks.pop()
        elif node.spec.mailbox is SHARED and is_gone(node):
            found = True
        elif node.spec.mailbox is SHARED:
            below = machines.get(node.path)
            if (
                below is None
                or isinstance(below.spec, Pool)
                or not any(map(_shares, below.children.values()))
            ):
                return False
            walks.append(iter(below.children.values()))
    return found


def _shares(node: Node) -> bool:
    return node.spec.mailbox is SHARED
