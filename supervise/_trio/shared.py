"""The mailbox of a supervisor, and the inboxes of the children that take their messages from it (R37).

Each differs from that of one child, in `mailbox`, in two things. An entry is promised to the reader that is woken for it:
otherwise a child that does not wait, and comes back sooner than the woken one runs, would take the whole of a burst. And what a
failed child had in hand is kept for it until it is decided whether it is resumed: after a Resume it has the resource that it
used for these messages, and a sibling has not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import outcome
from trio.lowlevel import Task, reschedule

from .._core.machine import Machine
from .._core.node import Node
from .._core.spec import SHARED, Mailbox, Pool
from .mailbox import Entry, Holder, Inbox, Queue
from .message import Call, Message
from .protect import protected


@protected
class SharedQueue(Queue):
    """The queue of a supervisor, from which its children take their messages."""

    __slots__ = ("_kept", "promised", "serving")

    shared: ClassVar[bool] = True

    def __init__(self, path: str, spec: Mailbox) -> None:
        super().__init__(path, spec)
        self.promised = 0  # entries for which a reader has been woken that has not run yet
        self.serving: dict[Inbox, None] = {}  # those of bodies that run, and have not been asked to stop
        # For children whose failure is not decided, or that were resumed; in order, and each is found at once.
        self._kept: dict[Holder, OrderedDict[Call | Message, None]] = {}

    def inbox_for(self, leaf: Holder, task: Task) -> SharedInbox:
        """See `Queue.inbox_for`."""
        return SharedInbox(self, leaf, task)

    # --- promises

    def put_if_room(self, message: Entry) -> bool:
        """See `Queue.put_if_room`."""
        if len(self.queue) >= self._size and len(self) >= self._size:
            return False
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
        """See `Queue.withdraw`. A kept entry leaves no tombstone."""
        for kept in self._kept.values():
            if call in kept:
                del kept[call]
                return
        super().withdraw(call)

    def close(self, why: BaseException | None) -> None:
        """See `Queue.close`."""
        super().close(why)
        for leaf in list(self._kept):
            self.release(leaf)


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
        if kept := mailbox.kept_for(self._leaf):
            message = next(iter(kept)).taken_by(self)
            kept.popitem(last=False)
            return message
        if self.relieved or (mailbox.promised and len(mailbox) <= mailbox.promised):
            return None
        return super()._take()

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

    def _may_take(self, promised: bool) -> bool:
        """Whether a woken reader takes its message. If this child is to stop, it is left to a sibling."""
        if self.relieved:
            self._takes_nothing(promised)
            return False
        self.mailbox.promised -= bool(promised)
        return True

    def _takes_nothing(self, promised: bool) -> None:
        if promised:
            self.mailbox.break_promise()

    @property
    def relieved(self) -> bool:
        """See `Inbox.relieved`."""
        return self._leaf.stopping and bool(self.mailbox.serving)

    def end_loops(self) -> None:
        """See `Inbox.end_loops`."""
        self.mailbox.serving.pop(self, None)
        self._before_turn = 0  # so that a loop that finds messages asks whether a sibling serves them
        super().end_loops()

    def settle(self, path: str, failure: BaseException | None, *, resumable: bool = False) -> None:
        """See `Inbox.settle`."""
        if not resumable:
            self.mailbox.release(self._leaf)
        self.mailbox.serving.pop(self, None)
        super().settle(path, failure, resumable=resumable)

    def _put_back(self, messages: list[Message], *, resumable: bool) -> None:
        if resumable:
            self.mailbox.keep(self._leaf, messages)
        else:
            self.mailbox.put_back(messages)


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
    walks = [iter(() if isinstance(owner.spec, Pool) else owner.children.values())]
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
