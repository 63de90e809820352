"""The driver gives inputs to the machines and carries out their effects: nurseries, tasks, scopes, timers, events.

It makes no decision about a node. All code here is protected against KeyboardInterrupt, including the sinks and deciders that
it calls: an interrupt between two effects would lose the second.
"""

from __future__ import annotations

import contextvars
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from heapq import heapify, heappop, heappush
from math import inf
from random import random
from typing import Any

import outcome
import trio
from trio.lowlevel import Task, enable_ki_protection

from .. import events
from .._core import effect, shortcut
from .._core._brief import brief
from .._core.decide import cause_of, is_decidable, is_interrupt
from .._core.effect import Effect, Input
from .._core.forest import Forest
from .._core.machine import Machine, start_failed
from .._core.node import Node
from .._core.spec import IGNORE, SHARED, Child, Pool, Supervisor
from ..errors import Refused, TreeFailed
from .address import Address, Answer
from .leaf import Leaf, unprotected
from .mailbox import Queue
from .protect import check_stack
from .reports import complain, stack, tasks_below
from .shared import is_unserved, owner_of

forests: ContextVar[Callable[[Supervisor | Pool], Forest]] = ContextVar("supervise.forests", default=Forest)
"""Makes the machines of every tree that is opened in a context; the testing tools set it to record a run."""

_FEW_TIMERS = 64  # up to this many void timers are not swept


class Place:
    """The nursery of a running supervisor, with the tasks of its children, and the time at which its machine wants to wake."""

    __slots__ = ("closed", "machine", "nursery", "wake_at")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.nursery: trio.Nursery | None = None
        self.closed = trio.Event()
        self.wake_at = inf


class Driver:
    """The driver of one running tree."""

    def __init__(self, spec: Supervisor | Pool, sinks: Sequence[events.Sink]) -> None:
        self.forest = forests.get()(spec)
        self.addresses: dict[str, Address] = {}
        self.tree: Any = None
        self.body_scope = trio.CancelScope()
        self.settled = trio.Event()
        self.finished = trio.Event()
        self.failure: BaseException | None = None
        self.over = trio.Event()
        self.ending: Callable[[], object] = lambda: None  # called once, when the root begins to stop
        self.is_ending = False
        self.root_task = trio.lowlevel.current_root_task()
        self._interrupted = self._hurried = self._starts_at_once = False
        self._begun = trio.Event()
        self._sinks = list(sinks)
        self.forest.ledger.listening = bool(sinks)
        self.now = trio.lowlevel.current_clock().current_time
        self.context = contextvars.copy_context()
        self._nursery: trio.Nursery | None = None
        self._places: dict[str, Place] = {}
        self.leaves: dict[str, Leaf] = {}
        self._asked: dict[Answer, None] = {}
        self._timers: list[tuple[float, int, Place]] = []
        self._void_timers = 0
        self._timer_scope = trio.CancelScope()
        self._ticket = 0
        self._waiting: deque[tuple[Machine, Input]] = deque()
        self._busy, self._broken = True, False  # inputs wait until `main` begins: a watch may run before
        self._leaving: Leaf | None = None

    @property
    def _root(self) -> Machine:
        return self.forest.machines[self.forest.root.path]

    # --- the tree's own task

    @enable_ki_protection
    async def main(self) -> None:
        """Run the tree, shielded from the scopes outside, until all of it has stopped."""
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as self._nursery:
                    self._nursery.start_soon(self._keep_time, name=f"{self.forest.root.path} (timers)")
                    self._work(self.forest.start(self.now()))
                    self._begun.set()
                    await self.finished.wait()
                    self._timer_scope.cancel("the tree has ended")
        finally:
            self._begun.set()
            self.settled.set()
            self.over.set()

    @enable_ki_protection
    async def end(self, reason: str) -> KeyboardInterrupt | None:
        """Stop the whole tree, and wait until all of it has stopped, even if interrupts arrive. `main` need not have begun.

        Returns the first KeyboardInterrupt that arrived meanwhile: Trio raises it where the main task waits.
        """
        first: KeyboardInterrupt | None = None
        with trio.CancelScope(shield=True):
            while not self.over.is_set():
                try:
                    await self._begun.wait()
                    self.stop(reason)
                    await self.over.wait()
                except KeyboardInterrupt as exc:
                    first = exc if first is None else first
                    self.interrupted()
        return first

    def interrupted(self) -> None:
        """Note a KeyboardInterrupt. The first one stops the tree in order, the second one also ends all draining (R4)."""
        if not self._interrupted:
            self._interrupted = True
            return
        self._hurried = True
        for leaf in reversed(list(self.leaves.values())):
            if leaf.stopping:
                leaf.cancel("a second KeyboardInterrupt")

    @enable_ki_protection
    def stop(self, reason: str) -> None:
        """Stop the whole tree in order."""
        self.post(self._root, effect.Stop(reason))

    # --- inputs

    @enable_ki_protection
    async def ask(self, machine: Machine, request: effect.Request) -> Any:
        """Give the machine a request and wait for the answer; a caller that is cancelled withdraws it (R25)."""
        check_stack()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._broken:
            raise self.cannot_answer()
        self._asked[request.token] = None
        try:
            self.post(machine, request)
            result = await request.token.wait()
        except (trio.Cancelled, KeyboardInterrupt):
            self.post(machine, effect.Withdraw(request))
            raise
        finally:
            del self._asked[request.token]
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    def cannot_answer(self) -> Refused:
        return Refused(f"tree {self.forest.root.path!r} is stopping", reason="stopping")

    @enable_ki_protection
    def post(self, machine: Machine, item: Input) -> None:
        """Give the machine an input and carry out the effects. An input that a sink posts meanwhile waits its turn."""
        if self._broken:
            return
        self._waiting.append((machine, item))
        if not self._busy:
            self._work([])

    def _work(self, effects: list[Effect]) -> None:
        """Carry out effects, then the inputs that have arrived meanwhile and their effects."""
        self._busy = True
        waiting = self._waiting
        try:
            while True:
                for one in effects:
                    _CARRY_OUT[type(one)](self, one)
                if not waiting:
                    break
                machine, item = waiting.popleft()
                u = random()  # noqa: S311 - for jitter, not for a secret
                effects = self.forest.handle(machine, item, self.now(), u)
                if not self.is_ending and self._root.phase == "ending" and self.forest.restarting is None:
                    self.is_ending = True
                    self.ending()
        except BaseException as exc:  # noqa: BLE001 - a defect of this library: stop every leaf, then raise it (R24)
            self._break(exc)
        finally:
            self._busy = False

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Queue all inputs during the block and handle them in order at its end; for tests of inputs that cross."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            if self._waiting:
                self.post(*self._waiting.pop())

    @enable_ki_protection
    def leaf_up(self, leaf: Leaf, value: Any) -> None:
        """Report that the leaf is ready: by the fast path if it was restarted by that, else by `Up`."""
        node, machine = leaf._node, leaf.machine
        emitted = None
        if machine.fast_act is not None and value is None and not self._busy and not self._broken:
            try:
                emitted = shortcut.up_at_once(machine, node, self.now())
            except BaseException as exc:  # noqa: BLE001 - any exception is a defect of this library (R24)
                self._break(exc)
        if emitted is None:
            self.post(machine, effect.Up(node.name, leaf.incarnation, value))
        elif emitted:
            self._work(emitted)
        address = self.addresses.get(node.path)
        if address is not None:
            address.changed()

    @enable_ki_protection
    def leaf_restarts_at_once(self, leaf: Leaf, failure: Exception) -> bool:
        """Try the one-step restart for a leaf that has failed and has left nothing open. Returns whether it was done."""
        if self._busy or self._broken or not self.forest.one_step or leaf.spec is not leaf._node.spec:
            return False
        try:
            emitted = shortcut.restart_at_once(leaf.machine, leaf._node, failure, self.now())
        except BaseException as exc:  # noqa: BLE001 - any exception is a defect of this library (R24)
            self._break(exc)
            return False
        if emitted is None:
            return False
        if leaf._leases is not None:
            leaf.end_leases()
        leaf.begin_incarnation()
        if emitted:
            self._work(emitted)
        return True

    def leaf_broke(self, leaf: Leaf, exc: BaseException) -> None:
        """A defect of this library ended the leaf's task, so its machine will get no `Ended`: break the tree (R24)."""
        if self.leaves.get(leaf._node.path) is leaf:  # or its successor has started
            del self.leaves[leaf._node.path]
        leaf.end_leases()
        self._break(exc)

    def leaf_ended(self, leaf: Leaf) -> bool:
        """Report the end of the leaf, which a sink can inject nothing into. Returns True if its next incarnation runs in the same task."""
        if leaf._leases is not None:
            leaf.end_leases()
        self._leaving, self._starts_at_once = None if leaf._cancelled else leaf, False
        del self.leaves[leaf._node.path]
        self.post(leaf.machine, leaf.ended())
        self._leaving = None
        return self._starts_at_once

    # --- addresses

    @enable_ki_protection
    def address(self, path: str) -> Address:
        """The address of a path, made at the first need.

        No task waits at an address that is down for good, so it is not updated when a start is ahead of its node again (R10,
        R13): that is checked here. A node that is gone gets an address that the driver does not keep: it would keep those
        above it too, which may also be gone, and no effect would ever close them.
        """
        found = self.addresses.get(path)
        if found is not None and not found.gone:
            return found
        gone, why = self.forest.gone(path, ended=self.finished.is_set(), failure=self.failure)
        if not gone:
            if found is None:
                return self._keep(Address(path))
            found.reopen()
        elif found is None:
            found = Address(path)
            found.close(why)
        return found

    def _keep(self, address: Address) -> Address:
        """Keep an address, and register it below those above it, so that they close it with them."""
        self.addresses[address.path] = below = address
        while above := below.path.rpartition("/")[0]:
            known = self.addresses.get(above)
            upper = self.addresses[above] = Address(above) if known is None else known
            upper.below[below.path] = below
            if known is not None:
                break
            below = upper
        return address

    @enable_ki_protection
    def mailbox_of(self, leaf: Leaf) -> Queue:
        """The mailbox that a leaf takes its messages from: its own, or that of its supervisor (R37)."""
        node = leaf._node
        path, spec = node.path, node.spec
        if spec.mailbox is SHARED:
            owner = owner_of(leaf.machine)
            path, spec = owner.path, owner.spec
        address = self.addresses.get(path)
        if address is None:
            address = self._keep(Address(path))
        return address.ensure_mailbox(spec, self.report)

    @enable_ki_protection
    def _changed(self, path: str) -> None:
        address = self.addresses.get(path)
        if address is not None:
            address.changed()

    def traffic_at(self, node: Node) -> tuple[int | None, int | None, float | None]:
        """See `status.Traffic`."""
        if node.spec.mailbox is None or node.spec.mailbox is SHARED:
            return None, None, None
        address = self.addresses.get(node.path)
        mailbox = None if address is None else address.mailbox
        return (0, 0, None) if mailbox is None else (mailbox.depth, mailbox.handled, mailbox.waiting_since)

    def task_of(self, path: str) -> Task | None:
        """The task of a node: that of a leaf's incarnation, or that in which a supervisor's nursery is open; None if it has none."""
        if path in self.leaves:
            return self.leaves[path]._task
        place = self._places.get(path)
        return None if place is None or place.nursery is None else place.nursery.parent_task

    # --- effects

    def deliver(self, event: events.Event) -> None:
        """Give an event to every sink."""
        failed = None
        for sink in self._sinks:
            try:
                sink(event)
            except BaseException as exc:  # noqa: BLE001 - R31: a sink never hurts the tree
                failed = [*(failed or ()), (sink, exc)]
        if failed is not None:
            for sink, _ in failed:  # all of them first, since each report is an event for those that are left
                self._remove_sink(sink)
            for sink, raised in failed:
                self._report_sink(sink, raised)

    @enable_ki_protection
    def subscribe(self, sink: events.Sink) -> Callable[[], None]:
        """See `Tree.subscribe`."""
        if any(other is sink for other in self._sinks):
            raise ValueError(f"the sink gets the events of this tree already: {brief(sink)}")
        self._sinks = [*self._sinks, sink]
        self.forest.ledger.listening = True

        @enable_ki_protection
        def unsubscribe() -> None:
            self._remove_sink(sink)

        return unsubscribe

    def _remove_sink(self, sink: events.Sink) -> None:
        self._sinks = [other for other in self._sinks if other is not sink]
        self.forest.ledger.listening = bool(self._sinks)

    def _report_sink(self, sink: events.Sink, exc: BaseException) -> None:
        root = self.forest.root
        failed = events.SinkFailed(
            at=self.now(), path=root.path, incarnation=root.incarnation, sink=brief(sink), exc=exc
        )
        self.report(logging.ERROR, f"a sink raised, and gets no further events: {brief(sink)}", exc)
        self.deliver(failed)

    @enable_ki_protection
    def report(self, level: int, text: str, exc: BaseException | None = None) -> None:
        """Log it, with what code of the program raised. If that, or what the log raises, is no `Exception`, the tree stops in order (R4)."""
        if exc is not None and not is_decidable(exc):
            self.stop_for(exc, f"{text}: {brief(exc)}")
        try:
            complain(level, text, exc)
        except BaseException as raised:  # noqa: BLE001 - it must not interrupt an effect halfway; the tree stops in order instead (R4)
            self.stop_for(raised, f"the log raised {brief(raised)}")

    @enable_ki_protection
    def stop_for(self, exc: BaseException, reason: str) -> None:
        """Stop the tree in order, and fail it with `exc`, which is no `Exception` and came from code of no child (R4)."""
        if is_interrupt(exc):
            self.interrupted()
        self._fail(exc)
        self.stop(reason)

    def _start(self, one: effect.Start) -> None:
        address = self.addresses.get(one.path)
        if address is not None:
            address.starts(one.spec)
        if isinstance(one.spec, Child):
            if one.spec.mailbox is SHARED:
                self._open_shared(self.forest.machines[one.path.rpartition("/")[0]])
            self._start_leaf(one.path)
        else:
            self._start_supervisor(one.path)

    def _start_supervisor(self, path: str) -> None:
        machine = self.forest.machines.get(path)
        if machine is None:
            # The same step has also stopped it, by an order that waited above it (R19). It had no child to stop, so its
            # machine has ended, and its `Ended` is among the effects that follow.
            return
        self._places[path] = place = Place(machine)
        above = place.machine.parent
        nursery = self._nursery if above is None else self._places[above.path].nursery
        assert nursery is not None
        self._spawn(nursery, self._host, path, place)

    def _start_leaf(self, path: str) -> None:
        above, _, name = path.rpartition("/")
        place = self._places[above]
        node, leaving = place.machine.children[name], self._leaving
        # Its node may have left the tree in this very step, and another one may have got its name.
        if leaving is not None and leaving._node is node and leaving.spec is node.spec:
            self._starts_at_once = True
            self.leaves[path] = leaving
            leaving.begin_incarnation()
            return
        assert place.nursery is not None
        self.leaves[path] = leaf = Leaf(self, place.machine, node)
        self._spawn(place.nursery, leaf.run, path)

    async def spawn(self, run: Callable[[], Awaitable[None]], what: str) -> None:
        """Start a task that belongs to the tree, but to no node. Raises `Refused` if the tree has ended."""
        await self._begun.wait()
        if self.finished.is_set():
            raise self.cannot_answer()
        assert self._nursery is not None
        self._spawn(self._nursery, run, f"{self.forest.root.path} ({what})")

    def _spawn(
        self, nursery: trio.Nursery, run: Callable[..., Awaitable[None]], path: str, *args: Any
    ) -> None:
        """Start a task named by its path, in a copy of the context in which the tree was opened."""
        self.context.run(nursery.start_soon, run, *args, name=path)

    @enable_ki_protection
    async def _host(self, place: Place) -> None:
        """A supervisor's own task: its nursery holds its children's tasks (R35), and what a child has started in it, which ends too."""
        machine = place.machine
        async with trio.open_nursery() as place.nursery:
            if machine.phase == "opening":  # otherwise a stop came first, and there is nothing to boot
                boot = _call_init(machine.spec.init)
                if boot.problem is None or is_decidable(boot.problem):
                    self.post(machine, boot)
                else:
                    self.stop_for(boot.problem, f"init of {machine.path!r} raised {brief(boot.problem)}")
            await place.closed.wait()
            place.nursery.cancel_scope.cancel(f"{machine.path!r} has ended")

    # The leaf of an effect may have ended already: then its `Ended` waits behind the input that caused the effect.

    def _ask(self, one: effect.Ask) -> None:
        leaf = self.leaves.get(one.path)
        if leaf is not None and self._hurried:
            leaf.cancel("a second KeyboardInterrupt")
        elif leaf is not None:
            leaf.ask()

    def _cancel(self, one: effect.Cancel) -> None:
        leaf = self.leaves.get(one.path)
        if leaf is not None:
            leaf.cancel(one.reason)

    def _release(self, one: effect.Release) -> None:
        leaf = self.leaves.get(one.path)
        if leaf is not None:
            leaf.decide("release")

    def _resume(self, one: effect.Resume) -> None:
        leaf = self.leaves.get(one.path)
        if leaf is not None:
            leaf.decide("resume")
        path = one.path
        while path:  # the supervisors that waited for the verdict are up again too (R11)
            self._changed(path)
            path = path.rpartition("/")[0]

    def _report_overdue(self, one: effect.ReportOverdue) -> None:
        leaf = self.leaves.get(one.path)
        task: Task | None = None if leaf is None else leaf._task
        where = (self.now(), one.path, one.incarnation, one.seconds, stack(task))
        if one.starting:
            self.deliver(events.StartOverdue(*where, self._waits_for(task)))
        else:
            self.deliver(events.Overdue(*where))

    def _waits_for(self, task: Task | None) -> str | None:
        """The path of the node that the task, or one below it, waits for: the path of the address in whose `wait` it stands."""
        for each in tasks_below(task):
            # An awaitable of the program is asked for its frame, and may raise anything.
            with suppress(BaseException):
                for frame, _ in each.iter_await_frames():
                    if frame.f_code is Address.wait.__code__:
                        path: str = frame.f_locals["self"].path
                        return path
        return None

    def _open_shared(self, above: Machine) -> None:
        """A child starts that serves a mailbox which it shares."""
        address = self.addresses.get(owner_of(above).path)
        if address is not None:
            address.serve_again()

    def _reply(self, one: effect.Reply) -> None:
        if one.token is not None:
            one.token.set(outcome.Value(one.value) if one.error is None else outcome.Error(one.error))

    @enable_ki_protection
    def _gone(self, one: effect.Gone) -> None:
        """The node and all below it are down for good: close their addresses, which wakes the tasks that wait there."""
        self._look_who_serves(one)
        address = self.addresses.get(one.path)
        if address is None:
            return
        closing = [address]
        for each in closing:
            if one.removed or not each.gone:
                closing += each.below.values()
            each.close(one.why)
        if one.removed:
            for each in closing:
                del self.addresses[each.path]
            above = self.addresses.get(one.path.rpartition("/")[0])
            if above is not None:
                above.below.pop(one.path, None)

    def _look_who_serves(self, one: effect.Gone) -> None:
        """A node is down for good: the mailbox that it shared may have lost the last child that serves it (R37)."""
        above = self.forest.machines.get(one.path.rpartition("/")[0])
        address = None if above is None else self.addresses.get(owner_of(above).path)
        if address is not None and address.mailbox is not None and address.mailbox.shared:
            self.close_or_open(address, one.why)

    @enable_ki_protection
    def close_or_open(self, address: Address, why: BaseException | None = None) -> None:
        """Close a shared mailbox if every child that shares it is down for good, with no start ahead; else open it (R37).

        A pool's stays open, and one that no child shares: the next member, or child, that is added serves it.
        """
        owner = self.forest.machines.get(address.path)
        if owner is None or not is_unserved(owner, self.forest.machines, self._is_gone):
            address.serve_again()
        elif address.mailbox is not None and not address.mailbox.closed:
            address.mailbox.close(why)

    def _is_gone(self, node: Node) -> bool:
        """Whether a node is down for good, and no start of it or above it is ahead."""
        ended = self.finished.is_set()
        return node.gone and self.forest.gone(node.path, ended=ended, failure=self.failure)[0]

    def callback_failed(self, path: str, exc: BaseException) -> None:
        """A callback of a child raised while no body of the child ran that could fail with it (R24, R30)."""
        self.report(logging.ERROR, f"{path!r}: an on_left callback raised after its body was over", exc)

    def _fatal(self, one: effect.Fatal) -> None:
        if is_interrupt(one.exc):
            self.interrupted()
        self._fail(one.exc)

    def _fail_tree(self, one: effect.Fail) -> None:
        failed = TreeFailed(f"{self.forest.root.path!r} failed: {brief(one.exc)}")
        failed.__cause__ = one.exc
        self._fail(failed)

    def _fail(self, exc: BaseException) -> None:
        """Fail the tree with the first of its failures, and cancel the block of `open_tree` at once."""
        if self.failure is None:
            self.failure = exc
            cause = cause_of(exc)
            why = exc if cause is None else cause
            self.body_scope.cancel(f"tree {self.forest.root.path!r} failed: {brief(why)}")

    def _rise(self, one: effect.Rise) -> None:
        """Note that a supervisor is up, or has ended."""
        report = one.report
        if isinstance(report, effect.Up):
            self._changed(one.path)
            if one.path == self.forest.root.path:
                self.settled.set()
        elif isinstance(report, effect.Ended):
            place = self._places.pop(one.path, None)
            if place is not None:  # it has none if it ended within the step that started it
                place.closed.set()
                self._forget_timer(place)
            if self.forest.over and one.path == self.forest.root.path:
                self._finish(report)

    def _finish(self, report: effect.Ended) -> None:
        if report.failure is not None:
            self._fail(start_failed(report.failure))  # the first start, or that of a restart of the root
        self.finished.set()
        self.settled.set()

    # --- time

    def _wake_at(self, one: effect.WakeAt) -> None:
        """Only the earliest time of a machine counts: when it wakes it asks for the next one."""
        place = self._places[one.path]
        if one.at >= place.wake_at:
            return
        self._forget_timer(place)
        place.wake_at = one.at
        self._ticket += 1
        heappush(self._timers, (one.at, self._ticket, place))
        self._timer_scope.deadline = self._timers[0][0]

    def _forget_timer(self, place: Place) -> None:
        """Make its timer void. Void timers are swept out in time, since each keeps a dead supervisor in memory (R31)."""
        if place.wake_at == inf:
            return
        place.wake_at = inf
        self._void_timers += 1
        if self._void_timers > _FEW_TIMERS and 2 * self._void_timers > len(self._timers):
            self._timers = [timer for timer in self._timers if timer[2].wake_at == timer[0]]
            heapify(self._timers)
            self._void_timers = 0

    @enable_ki_protection
    async def _keep_time(self) -> None:
        """Wake each machine at the time that it asked for."""
        while not self.finished.is_set():
            deadline = self._timers[0][0] if self._timers else inf
            with trio.CancelScope(deadline=deadline) as self._timer_scope:
                await trio.sleep_forever()
            now = self.now()
            due: list[Place] = []
            while self._timers and self._timers[0][0] <= now:
                at, _, place = heappop(self._timers)
                if place.wake_at == at:
                    place.wake_at = inf
                    due.append(place)
                else:
                    self._void_timers -= 1
            for place in due:
                self.post(place.machine, effect.Wake())

    # --- a defect of this library itself (R24)

    def _break(self, exc: BaseException) -> None:
        """The machines cannot be trusted after this: stop every leaf, in reverse order, and raise `exc`."""
        if self._broken:
            self.report(logging.ERROR, "the supervision framework broke once more", exc)
            return
        self._broken = self.is_ending = True
        self.ending()
        self._waiting.clear()
        self._fail(exc)
        for answer in self._asked:
            answer.set(outcome.Error(self.cannot_answer()))
        assert self._nursery is not None
        self._nursery.start_soon(self._stop_everything, name=f"{self.forest.root.path} (broken)")

    @enable_ki_protection
    async def _stop_everything(self) -> None:
        order = {node.path: number for number, node in enumerate(self.forest.nodes())}
        for leaf in sorted(self.leaves.values(), key=lambda leaf: order.get(leaf.path, -1), reverse=True):
            leaf.cancel("the supervision framework is broken")
            leaf.decide("release")
            while self.leaves.get(leaf.path) is leaf:  # noqa: ASYNC110 - an Event for each leaf would be kept only for this rare case
                await trio.sleep(0.001)
        for place in self._places.values():
            place.closed.set()
        for address in list(self.addresses.values()):
            address.close(self.failure)
        self.finished.set()


def _call_init(init: Callable[[], object] | None) -> effect.Boot:
    try:
        return effect.Boot(ignored=init is not None and unprotected(init) is IGNORE)
    except BaseException as exc:  # noqa: BLE001 - an Exception is a failed start (R16), anything else stops the tree (R4)
        return effect.Boot(problem=exc)


_CARRY_OUT: dict[type[Any], Callable[[Driver, Any], None]] = {
    **dict.fromkeys(events.KINDS, Driver.deliver),
    effect.Start: Driver._start,
    effect.Ask: Driver._ask,
    effect.Cancel: Driver._cancel,
    effect.Release: Driver._release,
    effect.Resume: Driver._resume,
    effect.ReportOverdue: Driver._report_overdue,
    effect.Reply: Driver._reply,
    effect.Gone: Driver._gone,
    effect.Fatal: Driver._fatal,
    effect.Fail: Driver._fail_tree,
    effect.Rise: Driver._rise,
    effect.WakeAt: Driver._wake_at,
}
