"""The stable address of a node, and what can be asked of it: calls, streams, leases, ends, and changes (R25–R30)."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from types import TracebackType
from typing import Any

import trio

from .._core import effect
from .._core._brief import brief
from .._core._check import is_a
from .._core.node import Node
from .._core.spec import Child, OnLoss, Pool, Spec, Supervisor, placed_twice, walk
from .._core.status import Status, picture
from ..errors import ChildRestarted, Refused
from .address import Address, Answer
from .driver import Driver
from .leaf import Leaf, close_scope, enclosing_child
from .mailbox import OpenStream, Queue, call
from .message import Stream, checked_on_loss
from .protect import check_stack, protected


class Declared:
    """What a tree declares: the spec at each path, and the path of each spec. Made when first wanted."""

    def __init__(self, root: Supervisor | Pool) -> None:
        self._root = root

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """Path to spec."""
        return dict(walk(self._root))

    @cached_property
    def paths(self) -> dict[Spec, str]:
        """Spec to path; also of the spec that another was made over."""
        return {spec: path for path, node in self.specs.items() for spec in (node, node.origin) if spec}


class Ref:
    """The stable address of a node: cheap, hashable, and good over any number of incarnations (R28)."""

    __slots__ = ("_added", "_declared", "_driver", "_queue", "path")

    def __init__(self, driver: Driver, declared: Declared, path: str, added: Node | None = None) -> None:
        self._driver = driver
        self._declared = declared
        self._added = added
        self._queue: Queue | None = None
        self.path = path

    def __repr__(self) -> str:
        return f"<ref {self.path!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and (self._driver, self.path) == (other._driver, other.path)

    def __hash__(self) -> int:
        return hash((id(self._driver), self.path))

    # --- what it is

    def _node(self) -> Node | None:
        return self._driver.forest.find(self.path)

    def _spec(self) -> Spec | None:
        node = self._node()
        return self._declared.specs.get(self.path) if node is None else node.spec

    def _address(self) -> Address:
        return self._driver.address(self.path)

    def status(self) -> Status:
        """The node, and all below it, as it stands, at once (R33).

        Raises:
            ChildStopped: it is not in the tree now.
        """
        node = self._node()
        if node is None:
            raise self._address().stopped()
        return picture(node, self._driver.forest.machines, trio.current_time(), self._driver.traffic_at)

    async def ready(self) -> Any:
        """The value of its current incarnation, waiting over starts and restarts.

        Raises:
            ChildStopped: it is down for good.
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
        """The value of its current incarnation, for a block that is cancelled if that incarnation ends.

        Raises:
            ChildRestarted: the incarnation ended first.
            ChildStopped: the node is down for good.
        """
        return _Lease(self)

    async def ended(self) -> BaseException | None:
        """Wait until the node is down for good; gives the failure that did it, or None (R28)."""
        await trio.lowlevel.checkpoint()
        if self._added is not None and self._added.gone and self._node() is None:
            return self._added.why
        address = self._address()
        ends = address.ends
        while not address.gone and address.ends == ends:  # it may be started again before we run
            await address.wait()
        return address.why

    # --- messages

    def _front(self) -> Ref | None:
        """The node that answers here: the front of a supervisor, and its front in turn (R34)."""
        spec, path = self._spec(), self.path
        while isinstance(spec, Supervisor) and spec.front_child is not None:
            spec = spec.front_child
            path = f"{path}/{spec.name}"
        return None if path == self.path else Ref(self._driver, self._declared, path)

    def _mailbox(self) -> Queue:
        """Its queue. A closed one may be of a node that has left the tree, while another has taken its place."""
        if self._queue is None or self._queue.closed:
            self._queue = self._find_mailbox()
        return self._queue

    def _find_mailbox(self) -> Queue:
        ref = self._front() or self
        address, spec = ref._address(), ref._spec()
        if address.mailbox is not None:
            return address.mailbox
        if isinstance(spec, Child):
            return address.ensure_mailbox(spec)
        if spec is None:
            raise address.stopped()
        raise TypeError(f"{ref.path!r} has no mailbox, and names no child as its front")

    def call(self, value: Any, *, on_loss: OnLoss | None = None) -> Coroutine[Any, Any, Any]:
        """Send a message and wait for its reply.

        Args:
            value: what the child gets as `message.value`.
            on_loss: `fail`: `CallLost` if the incarnation that took it ends first; `requeue`: it goes back to the head
                of the queue (R30); None: as the child's mailbox says.

        Raises:
            ChildStopped: the node is down for good.
            CallLost: see `on_loss`.
            RuntimeError: this is the child's own task, and nobody else would serve the message (R30).
        """
        return call(self._mailbox(), value, on_loss)

    async def send(self, value: Any, *, on_loss: OnLoss | None = None) -> None:
        """Send a message without a reply, waiting while the mailbox is full."""
        mailbox = self._mailbox()
        await mailbox.put((value, None if on_loss is None else checked_on_loss(on_loss)))
        await trio.lowlevel.cancel_shielded_checkpoint()

    def send_nowait(self, value: Any, *, on_loss: OnLoss | None = None) -> None:
        """Send a message without a reply, or raise `MailboxFull`."""
        if on_loss is not None:
            checked_on_loss(on_loss)
        mailbox = self._queue
        if mailbox is None or not mailbox.put_if_room((value, on_loss)):
            mailbox = self._mailbox()
            if not mailbox.put_if_room((value, on_loss)):
                raise mailbox.overflow()

    def stream(
        self, value: Any, *, on_loss: OnLoss | None = None, buffer: int = 64
    ) -> AbstractAsyncContextManager[Stream]:
        """Send a message that has many replies; leaving the block tells the child.

        Args:
            value: as for `call`.
            on_loss: as for `call`.
            buffer: how many replies may wait for the consumer, at least 1.
        """
        return OpenStream(self._mailbox(), value, on_loss, buffer, wait=True)

    def stream_nowait(
        self, value: Any, *, on_loss: OnLoss | None = None, buffer: int = 64
    ) -> AbstractAsyncContextManager[Stream]:
        """Like `stream`, but entering the block raises `MailboxFull` rather than wait."""
        return OpenStream(self._mailbox(), value, on_loss, buffer, wait=False)

    # --- changes, see R25

    async def add(self, *args: Any, name: str | None = None) -> Ref:
        """Add a child and start it: `add(spec)` to a supervisor, `add(*args, name=…)` a member to a pool.

        Added children go last, and are lost when their supervisor restarts. A pool names those without a name. If the
        caller is cancelled before the start has begun, nothing is added; afterwards the child stays.

        Raises:
            StartFailed: it did not start, and is not in the tree.
            Refused: its name is taken, or the pool is full.
        """
        machine = self._driver.forest.machines.get(self.path)
        if machine is None:
            raise Refused(f"{self.path!r} is no running supervisor", reason="not_found")
        self._would_wait_for_itself(self.path)
        if isinstance(machine.spec, Pool):
            request = effect.Request("add", Answer(), name=name, args=args)
        else:
            request = effect.Request("add", Answer(), spec=self._checked_spec(args, name))
        path: str = await self._driver.ask(machine, request)
        added = machine.children.get(path[len(self.path) + 1 :])
        return Ref(self._driver, self._declared, path, added)

    def _checked_spec(self, args: tuple[Any, ...], name: str | None) -> Spec:
        if len(args) != 1 or name is not None or not isinstance(args[0], Child | Supervisor | Pool):
            raise TypeError(
                f"add to supervisor {self.path!r} takes one Child, Supervisor or Pool, got {brief(args)}"
            )
        spec: Spec = args[0]
        refuse_nonsense(spec)
        static = self._declared.paths
        for path, node in walk(spec, self.path):
            if static.get(node, path) != path:
                raise ValueError(f"one spec stands at two places: {static[node]!r} and {path!r}; make two")
        return spec

    async def stop(self) -> None:
        """Stop the node and wait until it has ended. It is merely down: a group restart revives it.

        Stopping the root ends the tree. (The verdict `Stop` is another thing: it condemns.)
        """
        self._would_wait_for_itself(self._above, ended=self.path)
        if not self._above:
            check_stack()
            self._driver.stop(f"{self.path!r} was asked to stop")
            await self._driver.finished.wait()
        else:
            await self._ask_parent("stop")

    async def start(self) -> None:
        """Start a node that is down or condemned, at once if it is backing off; not charged to any limit.

        Raises:
            Refused: it is running, or a member of a pool.
            StartFailed: it did not start, and is down.
        """
        self._would_wait_for_itself(self._above)
        await self._ask_parent("start")

    async def restart(self) -> None:
        """Restart a node in any state; not charged to any limit (R25).

        One that runs is stopped in order, with the group that its supervisor's strategy names, and they are started
        again. One that is down or condemned is started.

        Raises:
            Refused: it is a member of a pool, or the root.
            StartFailed: it did not start. What had run before is judged, and retried, like a failure in any restart.
        """
        self._would_wait_for_itself(self._above, ended=self.path)
        await self._ask_parent("restart")

    async def remove(self) -> None:
        """Take a node that is down out of the tree.

        Raises:
            Refused: it is running or restarting.
        """
        self._would_wait_for_itself(self._above)
        await self._ask_parent("remove")

    def inject(self, exc: Exception) -> None:
        """Have the running leaf fail with `exc`, as if its body had raised it (R27).

        One that drains is running: it ends with `exc`, which is an error of its stop (R23). One that is suspended with
        another failure, which its supervisor has still to decide, fails with `exc` if it is resumed.

        Raises:
            Refused: it is not running.
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

    async def _ask_parent(self, kind: effect.RequestKind) -> Any:
        above, _, name = self.path.rpartition("/")
        machine = self._driver.forest.machines.get(above)
        if machine is None:
            raise Refused(f"the supervisor of {self.path!r} is not running", reason="not_found")
        return await self._driver.ask(machine, effect.Request(kind, Answer(), name=name))

    def _would_wait_for_itself(self, served: str, *, ended: str = "") -> None:
        """Refuse what could never be answered.

        A child cannot wait for its own end, or for the supervisor at `served` while that waits for it to start or to end.

        Raises:
            RuntimeError: it would never be answered.
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
class _Lease(AbstractAsyncContextManager[Any]):
    """See `Ref.lease`. A class, not a generator: a Ctrl-C on the way into one, or out of it, would leave its scope open."""

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


def refuse_nonsense(spec: Spec) -> None:
    """What only shows in the whole: one spec at two places, an `init` that wants arguments."""
    for problem in placed_twice(spec):
        raise ValueError(problem)
    if spec.misfit is not None:
        raise TypeError(spec.misfit)
