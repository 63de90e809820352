"""`Ref`, the stable address of a node: calls, streams, leases, waiting for its end, and changes (R25–R30)."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from types import TracebackType
from typing import Any, Literal
from weakref import WeakKeyDictionary, WeakValueDictionary

import outcome
import trio

from .._core import effect
from .._core._asked import asked
from .._core._brief import MOST, brief, shortened
from .._core._check import is_a
from .._core.machine import Machine
from .._core.node import Node
from .._core.rehearsal import Step, rehearse
from .._core.spec import SHARED, Child, Mailbox, OnLoss, Pool, Spec, Supervisor, placed_twice, walk
from .._core.status import Status, picture
from ..errors import ChildRestarted, Refused
from .address import Address, Answer
from .driver import Driver
from .leaf import Leaf, close_scope, enclosing_child
from .mailbox import OpenStream, Queue, call
from .message import CallObserver, Stream, checked_on_loss
from .protect import check_stack, protected
from .reports import complain, stacks, tasks_below


class Declared:
    """The declarations of a tree: the spec at each path, and the path of each spec, both made at the first need."""

    def __init__(self, root: Supervisor | Pool) -> None:
        self._root = root
        # Weak, since an earlier spec keeps its body, and that all of its module (R31); None before the first adoption.
        self._earlier: WeakKeyDictionary[Spec, str] | None = None
        self.through_fronts: WeakValueDictionary[int, Ref] = WeakValueDictionary()
        """By their ids, the addresses that keep the queue of a front: another declaration may name another front (R34)."""

    def adopt(self, root: Supervisor | Pool) -> None:
        """Take the declarations of another root; earlier specs still name their paths, if they are declared (R38)."""
        if self._earlier is None:
            self._earlier = WeakKeyDictionary()
        self._earlier.update(self.paths)
        self._root = root
        del self.paths
        self.__dict__.pop("specs", None)

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """The spec at each path."""
        return dict(walk(self._root))

    @cached_property
    def paths(self) -> dict[Spec, str]:
        """The path of each spec, and of the `origin` that a spec replaces."""
        return {spec: path for path, node in self.specs.items() for spec in (node, node.origin) if spec}

    def look_for_fronts_anew(self) -> None:
        """Have the addresses that send to a front look it up again."""
        while self.through_fronts:
            self.through_fronts.popitem()[1]._queue = _NO_QUEUE

    def path_of(self, spec: Spec) -> str | None:
        """The path of a spec, also of an earlier one; None if it is not declared, or is no spec."""
        path = self.paths.get(spec)
        if path is None and self._earlier is not None and isinstance(spec, Child | Supervisor | Pool):
            path = self._earlier.get(spec)
            return path if path in self.specs else None
        return path


_NO_QUEUE = Queue("", Mailbox(), complain)
_NO_QUEUE.close(None)  # it has no room, so that the fast path of `Ref.send_nowait` needs no check of its own


class Ref:
    """The stable address of a node: cheap, hashable, and valid over any number of incarnations (R28).

    Two are equal if they have the same path in the same tree.
    """

    __slots__ = ("__weakref__", "_added", "_declared", "_driver", "_queue", "path")

    def __init__(self, driver: Driver, declared: Declared, path: str, added: Node | None = None) -> None:
        self._driver = driver
        self._declared = declared
        self._added = added
        self._queue = _NO_QUEUE
        self.path = path

    def __repr__(self) -> str:
        return f"<ref {self.path!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and (self._driver, self.path) == (other._driver, other.path)

    def __hash__(self) -> int:
        return hash((id(self._driver), self.path))

    @property
    def tree(self) -> Any:
        """The tree that the node belongs to, a `Tree`."""
        return self._driver.tree

    # --- its state

    def _node(self) -> Node | None:
        return self._driver.forest.find(self.path)

    def _spec(self) -> Spec | None:
        node = self._node()
        return self._declared.specs.get(self.path) if node is None else node.spec

    def _address(self) -> Address:
        return self._driver.address(self.path)

    def status(self) -> Status:
        """The status of the node and of all below it, without waiting (R33).

        Raises:
            ChildStopped: it is not in the tree.
        """
        node = self._node()
        if node is None:
            raise self._address().stopped()
        return picture(node, self._driver.forest.machines, trio.current_time(), self._driver.traffic_at)

    def stack(self) -> str:
        """The stacks of the node's task and of all tasks below it, each below the name of its task; empty if none runs (R33).

        Each stack ends where its task waits, outermost call first.

        Raises:
            ChildStopped: it is not in the tree.
        """
        if self._node() is None:
            raise self._address().stopped()
        return stacks(tasks_below(self._driver.task_of(self.path)))

    async def ready(self) -> Any:
        """Wait, over starts and restarts, until the node is up. Returns the value given to `task_status.started`, else None (R28).

        Raises:
            ChildStopped: the node is down for good.
        """
        await trio.lowlevel.checkpoint()
        return (await self._up())[1]

    async def _up(self) -> tuple[Leaf | None, Any]:
        front = self._front()
        if front is not None:
            return await front._up()
        address = self._address()
        while True:
            if address.gone:
                raise address.stopped()
            node = self._node()
            leaf = self._driver.leaves.get(self.path)
            # In a tree that broke a node may stay up though its leaf has ended; its address is closed soon.
            if node is not None and node.state == "up" and (leaf is not None or not node.is_leaf):
                return leaf, leaf and leaf._value
            await address.wait()

    def lease(self) -> AbstractAsyncContextManager[Any]:
        """An async context manager: as `ready`, and the block is cancelled if that incarnation ends (R28).

        Raises:
            ChildRestarted: the incarnation ended during the block.
            ChildStopped: the node is down for good.
            TypeError: the node is a supervisor without a front.
        """
        return _Lease(self)

    async def ended(self) -> BaseException | None:
        """Wait until the node is down for good, and has left its resource (R28). Returns the failure that caused it, or None."""
        await trio.lowlevel.checkpoint()
        if self._added is not None and self._added.gone and self._node() is None:
            return self._added.why
        address = self._address()
        ends = address.ends
        while not address.gone and address.ends == ends:  # it may be started again before this task runs
            await address.wait()
        node, leaf = self._node(), self._driver.leaves.get(self.path)
        if leaf is not None and node is not None and node.gone:
            with leaf.lease():  # it still leaves its resource
                await trio.sleep_forever()
        return address.why

    # --- messages

    def _front(self) -> Ref | None:
        """The node that answers at this address: a supervisor's front, followed down to the last one; None if it has none (R34)."""
        spec, path = self._spec(), self.path
        while isinstance(spec, Supervisor) and spec.front_child is not None:
            spec = spec.front_child
            path = f"{path}/{spec.name}"
        return None if path == self.path else Ref(self._driver, self._declared, path)

    def _mailbox(self) -> Queue:
        """Its queue. A closed queue is looked up anew: its node may have left the tree, and another may have its path."""
        if self._queue.closed:
            self._queue = self._find_mailbox()
        return self._queue

    def _find_mailbox(self) -> Queue:
        ref = self._front() or self
        if ref is not self:
            self._declared.through_fronts[id(self)] = self
        address, spec = ref._address(), ref._spec()
        mailbox = address.mailbox
        if mailbox is None:
            if spec is None:
                raise address.stopped()
            mailbox = address.ensure_mailbox(spec, self._driver.report)
        if mailbox.shared:
            self._driver.close_or_open(address)
        return mailbox

    def call(self, value: Any, *, on_loss: OnLoss | None = None) -> Coroutine[Any, Any, Any]:
        """Send a message and wait for its reply; an exception that the child gives to `message.fail` is raised here (R30).

        Args:
            value: any object; the child gets it as `message.value`.
            on_loss: `fail`: raise `CallLost` if the incarnation that took the message ends first; `requeue`: the message
                goes back to the head of the queue (R30); None: as the child's mailbox declares.

        Raises:
            ChildStopped: the node is down for good; or the mailbox's class `stopped`.
            CallLost: see `on_loss`.
            TimeoutError: the mailbox's `deadline` passed; or its class `late`.
            RuntimeError: this is the child's own task, and no other task could serve the message (R30).
            TypeError: the node has no mailbox.
        """
        return call(self._mailbox(), value, on_loss)

    async def send(self, value: Any, *, on_loss: OnLoss | None = None) -> None:
        """Send a message without a reply, waiting while the mailbox is full (R29).

        Args:
            value: as for `call`.
            on_loss: as for `call`; with `fail` the message is lost together with the incarnation that took it.

        Raises:
            The same errors as `call`, except `CallLost` and `TimeoutError`.
        """
        mailbox = self._mailbox()
        await mailbox.put(mailbox.one_way(value, None if on_loss is None else checked_on_loss(on_loss)))
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, value: Any, *, on_loss: OnLoss | None = None) -> None:
        """As `send(value, on_loss=…)`, but raise `MailboxFull`, or the mailbox's class `full`, instead of waiting (R29)."""
        if on_loss is not None:
            checked_on_loss(on_loss)
        mailbox = self._queue
        if mailbox.carry is not None or not mailbox.put_if_room((value, on_loss)):
            mailbox = self._mailbox()
            if not mailbox.put_if_room(mailbox.one_way(value, on_loss)):
                raise mailbox.overflow()

    def stream(
        self, value: Any, *, on_loss: OnLoss | None = None, buffer: int = 64
    ) -> AbstractAsyncContextManager[Stream]:
        """Send a message that has many replies: a context manager that gives the `Stream`; leaving its block notifies the child (R30).

        Args:
            value: as for `call`.
            on_loss: as for `call`.
            buffer: how many replies may wait for the consumer, at least 1.

        Raises:
            The same errors as `call`, on entering the block or on taking an item.
        """
        return OpenStream(self._mailbox(), value, on_loss, buffer, wait=True)

    def stream_nowait(
        self, value: Any, *, on_loss: OnLoss | None = None, buffer: int = 64
    ) -> AbstractAsyncContextManager[Stream]:
        """As `stream(value, on_loss=…, buffer=…)`, but a full mailbox raises `MailboxFull`, or its own class `full`, at once."""
        return OpenStream(self._mailbox(), value, on_loss, buffer, wait=False)

    def observe_calls(self, observer: CallObserver) -> None:
        """Have `observer(value, end)` called at the end of each call and stream that is sent to this address, once for each (R30).

        `value` is what was sent, and `end` is "answered", the error that the caller gets, or "left" if the caller has left,
        also at its deadline. A message that was not queued, because the queue was full or closed, has ended too.

        The observer is called in the task that ends the call; near the end of its stack it is called a moment later. It must
        neither block nor ask the tree for anything. What it raises is logged, and it is not called again; if that is no
        `Exception`, the tree stops in order (R4).
        An observer that is called already is not called twice.

        Raises:
            ChildStopped: the node is not in the tree.
            TypeError: the node has no mailbox, or the observer is not a plain function of two arguments.
        """
        self._mailbox().observe(observer)

    # --- changes, see R25; each may have a reason of its caller, which the events show

    async def add(self, *args: Any, name: str | None = None, reason: str | None = None) -> Ref:
        """Add a child and start it: `add(spec)` to a supervisor, `add(*args, name=…)` a member to a pool; `reason`: see `stop`.

        Waits until the child is ready. An added child is the last in start order, and is lost when its supervisor restarts
        (R25). A pool generates a name if none is given (R26). If the caller is cancelled before the start has begun, nothing
        is added; afterwards the child stays.

        Raises:
            StartFailed: the child did not start, and is not in the tree.
            Refused: its name is taken, the pool is full, or the supervisor is stopping or not running.
            TypeError, ValueError: the spec or the arguments do not fit.
        """
        machine = self._driver.forest.machines.get(self.path)
        if machine is None:
            raise Refused(f"{self.path!r} is no running supervisor", reason="not_found")
        self._would_wait_for_itself(self.path)
        answer = _Addition()
        answer.machine = machine
        if isinstance(machine.spec, Pool):
            request = effect.Request("add", answer, name=name, args=args)
        else:
            request = effect.Request("add", answer, spec=self._checked_spec(args, name))
        request.reason = None if reason is None else checked_reason(reason)
        path: str = await self._driver.ask(machine, request)
        return Ref(self._driver, self._declared, path, answer.node)

    def _checked_spec(self, args: tuple[Any, ...], name: str | None) -> Spec:
        if len(args) != 1 or name is not None or not isinstance(args[0], Child | Supervisor | Pool):
            raise TypeError(
                f"add to supervisor {self.path!r} takes one Child, Supervisor or Pool, got {brief(args)}"
            )
        spec: Spec = args[0]
        refuse_nonsense(spec)
        for path, node in walk(spec, self.path):
            other = self._declared.path_of(node)
            if other not in (None, path):
                raise ValueError(f"one spec stands at two places: {other!r} and {path!r}; make two")
        return spec

    async def stop(self, *, reason: str | None = None) -> None:
        """Stop the node and wait until it has ended (R25). It is `down`, and a restart of its group starts it again.

        Stopping the root ends the tree. The directive `Stop` differs: it leaves the node `condemned` (R10).

        Args:
            reason: why; the events that follow show it, in their own `reason`.

        Raises:
            Refused: the node or its supervisor is not there.
            RuntimeError: the caller runs inside the node, and would wait for its own end.
        """
        self._would_wait_for_itself(self._above, ended=self.path)
        if not self._above:
            check_stack()
            self._driver.stop(asked(self.path, "stop", None if reason is None else checked_reason(reason)))
            await self._driver.finished.wait()
        else:
            await self._ask_parent("stop", reason)

    async def start(self, *, reason: str | None = None) -> None:
        """Start a node that is down or condemned, or that backs off; no limit is charged (R25). Waits until it is ready.

        Args:
            reason: see `stop`.

        Raises:
            Refused: it is running, restarting without a backoff, a member of a pool, or not there.
            StartFailed: it did not start, and is down.
        """
        self._would_wait_for_itself(self._above)
        await self._ask_parent("start", reason)

    async def restart(self, *, reason: str | None = None) -> None:
        """Restart a node in any state; no limit is charged (R25). Waits until it is ready.

        A node that is down or condemned is started. Any other is stopped in order, together with the group that its
        supervisor's strategy names, and the group is started again. The root is stopped whole and started again; if it does
        not start, the tree ends.

        Args:
            reason: see `stop`.

        Raises:
            Refused: it is a member of a pool, or not there; of the root: it is starting or stopping.
            StartFailed: it did not start. If it is not the root and ran before, its failure is judged and retried as in any restart.
        """
        self._would_wait_for_itself(self._above, ended=self.path)
        if self._above:
            await self._ask_parent("restart", reason)
        else:
            root = self._driver.forest.machines[self.path]
            await self._driver.ask(root, self._request("restart root", reason))

    async def remove(self) -> None:
        """Take a node that is down out of the tree (R25).

        Raises:
            Refused: it is running, restarting, a member of a pool, or not there.
        """
        self._would_wait_for_itself(self._above)
        await self._ask_parent("remove")

    def plan(self, verb: Literal["stop", "start", "restart"]) -> list[Step]:
        """The steps that `stop`, `start` or `restart` would take now, in order, without taking them (R25).

        The rules are played on a copy of the tree's state, in which every child starts and ends as it is asked to. What the
        supervisor is doing is played to its end first, since the request would wait for that.

        Raises:
            Refused: the request would be refused.
            ValueError: it is another verb.
        """
        if verb not in ("stop", "start", "restart"):
            raise ValueError(f"verb must be 'stop', 'start' or 'restart', got {brief(verb)}")
        return rehearse(self._driver.forest, verb, self.path, self._driver.now())

    def inject(self, exc: Exception) -> None:
        """Make the running leaf fail with `exc`, as if its body had raised it (R27).

        One that drains is running: it ends with `exc`, which is an error of its stop (R23). One that is suspended with
        another failure, which its supervisor has still to decide, fails with `exc` if it is resumed.

        Raises:
            Refused: it is not running, or is no leaf.
            TypeError: `exc` is no `Exception`.
            RuntimeError: this is another thread than that of the tree.
        """
        if not is_a(exc, Exception):
            raise TypeError(f"inject takes an Exception, got {brief(exc)}")
        ref = self._front() or self
        node, leaf = ref._node(), self._driver.leaves.get(ref.path)
        runs = node is not None and leaf is not None and (node.state == "up" or leaf.may_go_on)
        if node is None or leaf is None or not runs or leaf.failing:
            state = "not there" if node is None else "failing" if runs else node.state
            raise Refused(f"{self.path!r} is no running leaf ({state})", reason="not_found")
        leaf.inject(exc)

    @property
    def _above(self) -> str:
        """The path of its supervisor; the root's is empty."""
        return self.path.rpartition("/")[0]

    async def _ask_parent(self, kind: effect.RequestKind, reason: str | None = None) -> Any:
        machine = self._driver.forest.machines.get(self._above)
        if machine is None:
            raise Refused(f"the supervisor of {self.path!r} is not running", reason="not_found")
        return await self._driver.ask(machine, self._request(kind, reason))

    def _request(self, kind: effect.RequestKind, reason: str | None) -> effect.Request:
        name = self.path.rpartition("/")[2]
        why = None if reason is None else checked_reason(reason)
        return effect.Request(kind, Answer(), name=name, reason=why)

    def _refuse_to_wait_for_itself(self) -> None:
        """As a request to each of the supervisors above the child that asks, which an adoption waits for (R38)."""
        child = enclosing_child(self._driver)
        names = [] if child is None else child.path.split("/")
        for depth in range(1, len(names)):
            self._would_wait_for_itself("/".join(names[:depth]))

    def _would_wait_for_itself(self, served: str, *, ended: str = "") -> None:
        """Refuse a request that would wait for ever.

        A child cannot wait for its own end, or for the supervisor at `served` while that waits for it to start or to end.

        Raises:
            RuntimeError: the child would wait for its own start or end.
            Refused: the child is being stopped.
        """
        child = enclosing_child(self._driver)
        if child is None:
            return
        inside = f"{child.path}/"
        if ended and inside.startswith(f"{ended}/"):
            waits_for = "its own end"
        elif not inside.startswith(f"{served}/"):
            return
        else:
            name = inside[len(served) + 1 :].partition("/")[0]
            branch = self._driver.forest.find(f"{served}/{name}")
            if branch is not None and branch.awaited and branch.leaving:
                raise Refused(
                    f"{served!r} waits for child {child.path!r} to end: it asked to change {self.path!r} from inside",
                    reason="stopping",
                )
            if branch is None or branch.state != "starting":
                return
            waits_for = "its own start"
        raise RuntimeError(
            f"child {child.path!r} would wait for ever, for {waits_for}: it asked to change {self.path!r} from inside"
        )


@protected
class _Addition(Answer):
    """The answer to a request to add a child: also the node, which may have left the tree before the caller runs again."""

    __slots__ = ("machine", "node")

    machine: Machine
    node: Node | None

    def set(self, result: outcome.Outcome[Any]) -> None:
        """See `Answer.set`."""
        if isinstance(result, outcome.Value):
            path: str = result.value
            self.node = self.machine.children.get(path.rpartition("/")[2])
        super().set(result)


@protected
class _Lease(AbstractAsyncContextManager[Any]):
    """See `Ref.lease`. A class, not a generator: a Ctrl-C while a generator is entered or left would leave its scope open."""

    __slots__ = ("_entered", "_leaf", "_ref", "_scope", "_which")

    _leaf: Leaf
    _scope: trio.CancelScope
    _which: int

    def __init__(self, ref: Ref) -> None:
        self._ref = ref
        self._entered = False

    async def __aenter__(self) -> Any:
        if self._entered:
            raise RuntimeError("a lease is entered once")
        self._entered = True
        leaf, value = await self._ref._up()
        if leaf is None:
            raise TypeError(
                f"{self._ref.path!r} is a supervisor without a front: there is no incarnation to lease"
            )
        self._leaf, self._which, self._scope = leaf, leaf.incarnation, leaf.lease()
        self._scope.__enter__()
        return value

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._leaf.end_lease(self._scope)
        left = close_scope(self._scope, exc)
        if self._scope.cancelled_caught and left is None:
            raise ChildRestarted(f"{self._leaf.path!r} incarnation {self._which} ended during the lease")
        if left is None or left is exc:
            return left is None
        raise left


def checked_reason(reason: object) -> str:
    """The reason that a caller gives for a request; of a long one the events show both ends."""
    if isinstance(reason, str):
        return shortened(reason, MOST)
    raise TypeError(f"reason must be a str or None, got {brief(reason)}")


def refuse_nonsense(spec: Spec) -> None:
    """Refuse the faults of a whole tree: one spec at two places, or an `init` that needs arguments."""
    for _, problem in placed_twice(spec):
        raise ValueError(problem)
    if spec.misfit is not None:
        raise TypeError(spec.misfit)


def refuse_no_mailbox(root: Spec) -> None:
    """Refuse a root that shares the mailbox of its supervisor, since it has none."""
    if root.mailbox is SHARED:
        raise ValueError(f"the root {root.name!r} is to share the mailbox of its supervisor, but has none")
