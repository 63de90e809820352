"""What is planted in mailboxes and addresses: wake-ups, orders, places, and permissions."""

from __future__ import annotations

from .plant import Plant

_MAILBOX = "supervise/_trio/mailbox.py"
_SHARED = "supervise/_trio/shared.py"
_MESSAGE = "supervise/_trio/message.py"
_DRIVER = "supervise/_trio/driver.py"
_LEAF = "supervise/_trio/leaf.py"
_TESTS = (
    "tests/tree/test_messages.py",
    "tests/tree/test_message_misuse.py",
    "tests/tree/test_message_ends.py",
    "tests/tree/test_message_growth.py",
    "tests/tree/test_addresses.py",
    "tests/tree/test_mailboxes.py",
    "tests/tree/test_streams.py",
    "tests/tree/test_shared_mailboxes.py",
    "tests/tree/test_shared_ends.py",
    "tests/tree/test_observed_calls.py",
    "tests/tree/test_affinity.py",
)

MAILBOXES = tuple(
    Plant(name, file, old, new, _TESTS)
    for name, file, old, new in (
        (
            "a lease is not cancelled",
            _LEAF,
            '            scope.cancel(f"{self.path!r} incarnation {self.incarnation} has ended")',
            "            pass",
        ),
        (
            "a lease is not cancelled on the general path",
            _DRIVER,
            "            leaf.end_leases()\n        self._leaving, self",
            "            pass\n        self._leaving, self",
        ),
        (
            "a task that waits for a supervisor is not woken",
            _DRIVER,
            "        if isinstance(report, effect.Up):\n            self._changed(one.path)",
            "        if isinstance(report, effect.Up):\n            pass",
        ),
        (
            "a sender is not woken when the consumer leaves",
            _MESSAGE,
            "    def leave(self) -> None:\n        super().leave()\n        self.look_for_room()",
            "    def leave(self) -> None:\n        super().leave()",
        ),
        (
            "items before a failure are lost",
            _MESSAGE,
            "        self.callbacks = self.hand = None\n        self.wake()",
            "        self.callbacks = self.hand = None\n        self.buffer.clear()\n        self.wake()",
        ),
        (
            "callbacks are lost when a caller leaves at the end of its stack",
            _MESSAGE,
            "        if has_room_for_others():\n            _call_all",
            "        if True:\n            _call_all",
        ),
        (
            "an observer fails at the end of a caller's stack",
            _MESSAGE,
            "        if has_room_for_others():\n            self.mailbox.call_ended",
            "        if True:\n            self.mailbox.call_ended",
        ),
        (
            "a consumer that asks again after its deadline is observed again",
            _MESSAGE,
            '        if self.state != "left":  # it has',
            "        if True:  # it has",
        ),
        (
            "a sender that leaves while it waits for room is not observed",
            _MAILBOX,
            "            if self.observers and isinstance(message, Call):",
            "            if False:",
        ),
        (
            "an observer that raises is called again",
            _MAILBOX,
            "                self.observers = tuple(other for other in self.observers if other is not observer)\n",
            "",
        ),
        (
            "a caller that left stays in the count",
            _MESSAGE,
            '        elif state != "left":\n            self.mailbox.withdraw(self)',
            '        elif state != "left":\n            pass',
        ),
        (
            "a message that is put back wakes no task",
            _MAILBOX,
            "            self.queue.appendleft(entry)\n            self.wake_reader()",
            "            self.queue.appendleft(entry)",
        ),
        (
            "a finaliser of a withdrawn message finds a mailbox with fewer messages than none",
            _MAILBOX,
            "            self.withdrawn = 0\n            self.queue = deque(entry for entry in self.queue if not is_withdrawn(entry))\n",
            "            self.queue = deque(entry for entry in self.queue if not is_withdrawn(entry))\n            self.withdrawn = 0\n",
        ),
        (
            "a withdrawn call makes no room",
            _MAILBOX,
            "            self.queue = deque(entry for entry in self.queue if not is_withdrawn(entry))\n        self.admit()",
            "            self.queue = deque(entry for entry in self.queue if not is_withdrawn(entry))",
        ),
        (
            "a sender at a stream put back is not woken",
            _MESSAGE,
            "        super().put_back()\n        self.look_for_room()",
            "        super().put_back()",
        ),
        (
            "a closed inbox wakes no task",
            _MAILBOX,
            "        self._wake(loops=False)\n        self._put_back(back",
            "        self._put_back(back",
        ),
        (
            "items stay behind a stream",
            _MESSAGE,
            "        self._closed = True\n        self.buffer.clear()",
            "        self._closed = True",
        ),
        (
            "a closed stream wakes no task",
            _MESSAGE,
            "        self.leave()\n        self.wake()\n        if not has_left:",
            "        self.leave()\n        if not has_left:",
        ),
        (
            "callbacks are forgotten",
            _MESSAGE,
            "            self._task = None\n            self.call_back()\n            raise",
            "            self._task = None\n            raise",
        ),
        (
            "a sender that waits for room is not woken at the end",
            _MAILBOX,
            "        for task in putters:\n            reschedule",
            "        for task in ():\n            reschedule",
        ),
        (
            "taking makes no room",
            _MAILBOX,
            "            mailbox._putters = putters\n            mailbox.admit()",
            "            mailbox._putters = putters",
        ),
        (
            "taking many is no taking in a row",
            _MAILBOX,
            "        self._before_turn = max(0, self._before_turn + 1 - len(messages))",
            "",
        ),
        (
            "a memo is lost with its body",
            _MESSAGE,
            "            call.value, call.on_loss, call.memo = self.value, self._on_loss, self.memo",
            "            call.value, call.on_loss, call.memo = self.value, self._on_loss, None",
        ),
        (
            "the memo of a message without a caller is lost",
            _MESSAGE,
            "        again.memo, again._carried = self.memo, self.carried",
            "        again._carried = self.carried",
        ),
        (
            "the end of a supervisor does not reach the addresses below it",
            _DRIVER,
            "            closing += each.below.values()",
            "            pass",
        ),
        (
            "an address is not noted below its supervisor",
            _DRIVER,
            "            upper.below[below.path] = below",
            "",
        ),
        (
            "a node that was down for good stays so when it starts again",
            _DRIVER,
            "        if not gone:\n            if found is None:\n                return self._keep(Address(path))\n            found.reopen()",
            "        if not gone:\n            if found is None:\n                return self._keep(Address(path))",
        ),
        (
            "addresses of nodes that are gone are kept",
            _DRIVER,
            "            found.close(why)\n        return found",
            "            found.close(why)\n            self._keep(found)\n        return found",
        ),
        (
            "a child whose message is withdrawn as it wakes leaves the next one",
            _SHARED,
            "may have been woken.\n        return True\n",
            "may have been woken.\n        return entry is not None\n",
        ),
        (
            "a loop is not woken by a stop",
            _LEAF,
            "            self._inbox.end_loops()\n\n    def _note_stop",
            "            pass\n\n    def _note_stop",
        ),
        (
            "a shielded loop is not woken by a stop",
            _LEAF,
            "            self._inbox.end_loops()  # wakes readers",
            "            pass  # wakes readers",
        ),
        (
            "a child may wait for itself",
            _LEAF,
            "            mailbox.servers[task] = self",
            "            pass",
        ),
        (
            "a stream takes one too many",
            _MESSAGE,
            "        self.size = size\n        self.buffer",
            "        self.size = size + 1\n        self.buffer",
        ),
        (
            "a bigger stream wakes no sender",
            _MESSAGE,
            "        self._call.size = size\n        self._call.look_for_room()",
            "        self._call.size = size",
        ),
        (
            "the task that has waited longest goes to the end",
            _MAILBOX,
            "            readers.move_to_end(task, last=False)\n",
            "",
        ),
        (
            "a woken child has no promise",
            _SHARED,
            "            reschedule(reader, outcome.Value(True))\n            inbox.stops_waiting(reader)\n            self.promised += 1",
            "            reschedule(reader, outcome.Value(False))\n            inbox.stops_waiting(reader)",
        ),
        (
            "the message of a woken child that ended wakes no other",
            _SHARED,
            "        if len(self) > self.promised:\n            self.wake_reader()",
            "        pass",
        ),
        (
            "a promise is not kept",
            _SHARED,
            "        if mailbox.promised and len(mailbox) <= mailbox.promised:\n            return None\n",
            "",
        ),
        (
            "a stopped child takes its siblings' messages",
            _SHARED,
            "        if self.relieved:\n            return None\n        if kept",
            "        if kept",
        ),
        (
            "what is kept for a child that is to stop waits for its end",
            _SHARED,
            "        self.mailbox.release(self._leaf)\n        super().end_loops()",
            "        super().end_loops()",
        ),
        (
            "the last child leaves the mailbox as it is",
            _SHARED,
            "        return self._leaf.stopping and bool(self.mailbox.serving)",
            "        return self._leaf.stopping",
        ),
        (
            "a sibling takes what a resumed child had in hand",
            _SHARED,
            "            self.mailbox.keep(self._leaf, messages)",
            "            self.mailbox.put_back(messages)",
        ),
        (
            "what is kept for a failed child is lost with it",
            _SHARED,
            "        for entry in reversed(self._kept.pop(leaf, OrderedDict())):\n            self.put_back_entry(entry)",
            "        self._kept.pop(leaf, None)",
        ),
        (
            "what is kept for a failed child stays when its caller leaves",
            _SHARED,
            "                del kept[call]\n",
            "",
        ),
        (
            "callers wait for a mailbox whose last child is down",
            _DRIVER,
            "        if owner is None or not is_unserved(owner, self.forest.machines, self._is_gone):",
            "        if True:",
        ),
        (
            "a start that is ahead of a child does not count for its mailbox",
            _DRIVER,
            "        return node.gone and self.forest.gone(node.path, ended=ended, failure=self.failure)[0]",
            "        return node.gone",
        ),
        (
            "a mailbox that was never opened waits for children that are down",
            "supervise/_trio/ref.py",
            "        if mailbox.shared:\n            self._driver.close_or_open(address)\n",
            "",
        ),
        (
            "the address of an added child forgets why it ended",
            "supervise/_trio/ref.py",
            '            self.node = self.machine.children.get(path.rpartition("/")[2])',
            "            self.node = None",
        ),
        (
            "a child that shares through a supervisor does not count",
            _SHARED,
            "            walks.append(iter(below.children.values()))",
            "            pass",
        ),
        (
            "a supervisor that is up serves though its children are down",
            _SHARED,
            "                or not any(map(_shares, below.children.values()))\n",
            "                or True\n",
        ),
        (
            "a message whose caller left on the way to a reader is taken",
            _SHARED,
            "        return None if is_withdrawn(handed.entry) else handed.entry",
            "        return handed.entry",
        ),
        (
            "a caller who leaves while its message is handed over is counted as one in the queue",
            _SHARED,
            "        if any(handed.entry is call for handed in self._handed):\n            return\n",
            "",
        ),
        (
            "a message that was handed to a child which is to stop is lost",
            _SHARED,
            "            if entry is not None:\n                self.mailbox.put_back_entry(entry)\n",
            "",
        ),
        (
            "a key stays with the child that has had it first",
            _SHARED,
            "            self._last[key] = inbox\n",
            "            self._last.setdefault(key, inbox)\n",
        ),
        (
            "a mailbox stays closed when the last child that was down is removed",
            _DRIVER,
            "self._is_gone):\n            address.serve_again()",
            "self._is_gone):\n            pass",
        ),
        (
            "a mailbox stays closed when a child of it starts again",
            _DRIVER,
            "            if one.spec.mailbox is SHARED:\n                self._open_shared",
            "            if False:\n                self._open_shared",
        ),
        (
            "a child that has ended serves its supervisor's mailbox for ever",
            _LEAF,
            "            del mailbox.servers[task]",
            "            pass",
        ),
        (
            "an exception from a callback is a sibling's failure",
            _MAILBOX,
            "            if server.path == path and server.open_inbox",
            "            if server.open_inbox",
        ),
        (
            "an exception from a callback is the caller's",
            _MESSAGE,
            "        except BaseException as exc:  # noqa: BLE001 - any exception is a failure of that body",
            "        except ZeroDivisionError as exc:  # noqa: BLE001 - any exception is a failure of that body",
        ),
        (
            "each sender that leaves looks at all that wait",
            _MAILBOX,
            "            del self._putters[task]\n            return Abort",
            "            self._putters = OrderedDict(each for each in self._putters.items() if each[0] is not task)\n            return Abort",
        ),
        (
            "a stream that was left before its message was queued is not observed",
            _MAILBOX,
            "            if self.observers and isinstance(message, Call):",
            "            if self.observers and isinstance(message, Call) and len(self) >= self._size:",
        ),
        (
            "a second task may wait at a stream",
            _MESSAGE,
            "            if self._task is not None:\n                raise trio.Busy",
            "            if False:\n                raise trio.Busy",
        ),
    )
)
