"""The tree as its users hold it: `open_tree`, `Tree`, and the `Ref` that is a node's stable address."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from difflib import get_close_matches
from types import TracebackType
from typing import Any, cast

import trio

from .._core import effect
from .._core._brief import brief
from .._core._call import wrong_function
from .._core._check import being_loaded, is_a
from .._core.decide import context_of, is_interrupt, set_context, traceback_of
from .._core.node import Node
from .._core.spec import Child, OnLoss, Pool, Spec, Supervisor, placed_twice, walk
from .._core.status import Status, picture
from ..errors import ChildRestarted, Refused
from ..events import Sink
from ..sinks.log import LoggingSink
from .address import Address, Answer
from .driver import Driver
from .leaf import Leaf, _is_fatal, _without_cancelled, enclosing_child
from .mailbox import OpenStream, Queue, Stream, call, checked_on_loss
from .protect import protected

onlookers: ContextVar[tuple[Sink, ...]] = ContextVar("supervise.onlookers", default=())
"""More sinks for every tree that is opened in a context: the testing tools listen here."""


class Tree:
    """A running tree. `tree[spec]` and `tree["app/store/jobs"]` give addresses."""

    def __init__(self, spec: Supervisor | Pool, sinks: Sequence[Sink]) -> None:
        self._driver = Driver(spec, sinks)
        self._driver.tree = self
        self._spec = spec
        self._paths: dict[Spec, str] = {}
        self._specs: dict[str, Spec] = {}

    def __repr__(self) -> str:
        return f"<tree {self._spec.name!r} {self._driver.forest.root.state}>"

    def _static(self) -> dict[Spec, str]:
        """The path of every declared spec; made when first wanted, with `_specs`, which is the same the other way."""
        if not self._paths:
            self._specs = dict(walk(self._spec))
            self._paths = {
                spec: path for path, node in self._specs.items() for spec in (node, node.origin) if spec
            }
        return self._paths

    def _declared(self, path: str) -> Spec | None:
        """What was declared at a path."""
        self._static()
        return self._specs.get(path)

    def __getitem__(self, key: Spec | str) -> Ref:
        """The address of a node, by its spec or by its path.

        Raises:
            KeyError: the tree has no such node.
        """
        if isinstance(key, str):
            if self._driver.forest.find(key) is None and self._declared(key) is None:
                raise KeyError(f"tree {self._spec.name!r} has no node {key!r}{self._near(key)}")
            return Ref(self, key)
        path = self._static().get(key)
        if path is None:
            raise self._no_such(key)
        return Ref(self, path)

    def _no_such(self, spec: Spec) -> Exception:
        if not isinstance(spec, Child | Supervisor | Pool):
            return TypeError(f"tree[…] takes a path or a spec, got {brief(spec)}")
        others = [path for path, other in self._specs.items() if other.name == spec.name]
        other = f"; another spec of that name stands at {others[0]!r}" if others else ""
        return KeyError(f"tree {self._spec.name!r} has no node for the spec of {spec.name!r}{other}")

    def _near(self, path: str) -> str:
        """What may have been meant: near by, or elsewhere in the tree."""
        root = self._driver.forest.root
        under_root = f"{root.name}/{path}"
        if self._driver.forest.find(under_root) is not None or under_root in self._specs:
            return f"; did you mean {under_root!r}? A path begins with the root"
        first, *names = path.split("/")
        last = path.rpartition("/")[2]
        node: Node | None = root
        for name in names if first == root.name else ():
            below = {} if node is None or node.machine is None else node.machine.children
            near = get_close_matches(name, below, 1)
            if near and near[0] != name:
                assert node is not None
                meant = f"{node.path}/{near[0]}"
                return f"; did you mean {meant!r}?"
            node = below.get(name)
        places = {spec.name: place for place, spec in reversed(self._specs.items())}
        near = get_close_matches(last, places, 1)
        meant = f"; did you mean {places[near[0]]!r}?" if near else ""
        return meant + ("" if first == root.name else f"; a path begins with the root, {root.name!r}")

    @property
    def root(self) -> Ref:
        """The address of the root."""
        return Ref(self, self._spec.name)

    def status(self) -> Status:
        """The whole tree as it stands, at once (R33)."""
        return self._driver.forest.status(trio.current_time(), self._driver.traffic_at)


class Ref:
    """The stable address of a node: cheap, hashable, and good over any number of incarnations (R28)."""

    __slots__ = ("_added", "_queue", "_tree", "path")

    def __init__(self, tree: Tree, path: str, added: Node | None = None) -> None:
        self._tree = tree
        self._added = added
        self._queue: Queue | None = None
        self.path = path

    def __repr__(self) -> str:
        return f"<ref {self.path!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and (self._tree, self.path) == (other._tree, other.path)

    def __hash__(self) -> int:
        return hash((id(self._tree), self.path))

    # --- what it is

    @property
    def _driver(self) -> Driver:
        return self._tree._driver

    def _node(self) -> Node | None:
        return self._tree._driver.forest.find(self.path)

    def _spec(self) -> Spec | None:
        node = self._node()
        return self._tree._declared(self.path) if node is None else node.spec

    def _address(self) -> Address:
        return self._tree._driver.address(self.path)

    def status(self) -> Status:
        """The node, and all below it, as it stands, at once (R33).

        Raises:
            ChildStopped: it is not in the tree now.
        """
        node = self._node()
        if node is None:
            raise self._address().stopped()
        return picture(node, trio.current_time(), self._driver.traffic_at)

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
            if node is not None and node.state == "up":
                leaf = node.handle if isinstance(node.handle, Leaf) else None
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
        return None if path == self.path else Ref(self._tree, path)

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
        node = self._node()
        if node is None or node.machine is None:
            raise Refused(f"{self.path!r} is no running supervisor", reason="not_found")
        self._would_wait_for_itself(self.path)
        if isinstance(node.spec, Pool):
            request = effect.Request("add", Answer(), name=name, args=args)
        else:
            request = effect.Request("add", Answer(), spec=self._checked_spec(args, name))
        added: Node = await self._driver.ask(node.machine, request)
        return Ref(self._tree, added.path, added)

    def _checked_spec(self, args: tuple[Any, ...], name: str | None) -> Spec:
        if len(args) != 1 or name is not None or not isinstance(args[0], Child | Supervisor | Pool):
            raise TypeError(
                f"add to supervisor {self.path!r} takes one Child, Supervisor or Pool, got {brief(args)}"
            )
        spec: Spec = args[0]
        refuse_nonsense(spec)
        static = self._tree._static()
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

        Raises:
            Refused: it is not running.
        """
        if not is_a(exc, Exception):
            raise TypeError(f"inject takes an Exception, got {brief(exc)}")
        node = (self._front() or self)._node()
        if node is None or node.state != "up" or not isinstance(node.handle, Leaf) or node.handle.failing:
            state = "not there" if node is None else "failing" if node.state == "up" else node.state
            raise Refused(f"{self.path!r} is no running leaf ({state})", reason="not_found")
        node.handle.inject(exc)

    @property
    def _above(self) -> str:
        """The path of its supervisor; the root's is empty."""
        return self.path.rpartition("/")[0]

    async def _ask_parent(self, kind: effect.RequestKind) -> Any:
        driver = self._driver
        node = driver.forest.find(self._above)
        if node is None or node.machine is None:
            raise Refused(f"the supervisor of {self.path!r} is not running", reason="not_found")
        return await driver.ask(
            node.machine, effect.Request(kind, Answer(), name=self.path.rpartition("/")[2])
        )

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
        left = _close(self._scope, exc)
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


def check_root(spec: object) -> Supervisor | Pool:
    """A tree's root must be a supervisor."""
    if being_loaded.get():
        raise RuntimeError(
            "a tree is started while the file that declares it is loaded: do that under if __name__ == '__main__'"
        )
    if not is_a(spec, (Supervisor, Pool)):
        raise TypeError(f"a tree's root must be a Supervisor or a Pool, got {brief(spec)}")
    root = cast("Supervisor | Pool", spec)
    refuse_nonsense(root)
    return root


def checked_sinks(sinks: Iterable[Sink]) -> list[Sink]:
    """Refuse what surely is no sink: an async function would be called, and never run."""
    try:
        given = list(sinks)
    except TypeError as problem:
        raise TypeError(f"sinks must be a list of functions, got {brief(sinks)}") from problem
    for sink in given:
        wrong = wrong_function(sink, "it is not awaited; put a QueueSink before what waits", ("event",))
        if wrong is not None:
            raise TypeError(f"a sink {wrong}")
    return given


def open_tree(
    spec: Supervisor | Pool, *, sinks: Iterable[Sink] | None = None
) -> AbstractAsyncContextManager[Tree]:
    """Run a tree around a block: started, in order, before the block; stopped, in reverse, after it (R12, R21).

    The children are shielded from the outside: a cancellation from there, or the block's own end or exception, first
    stops the tree in order. If the tree fails the block is cancelled.

    Args:
        spec: the root.
        sinks: called with every event; None is a `LoggingSink`, an empty one silence (R31).

    Raises:
        StartFailed: a child failed its first start; the tree has been stopped (R16).
        TreeFailed: the root gave up; bare, from the failure (R11, R22).
        ExceptionGroup: the tree failed, and the block raised too.
    """
    return opening(spec, sinks)


def opening(
    spec: Supervisor | Pool, sinks: Iterable[Sink] | None, look: Callable[[Tree], object] = lambda _: None
) -> AbstractAsyncContextManager[Tree]:
    """See `open_tree`; `look(tree)` is called before anything starts."""
    return _Opening(spec, sinks, look)


@protected
class _Opening(AbstractAsyncContextManager[Tree]):
    """See `open_tree`.

    It is a class, and its methods are protected against KeyboardInterrupt, because one that came between two lines of a
    generator, or of what `contextlib` makes of it, would leave a tree that nobody stops.
    """

    _driver: Driver

    def __init__(
        self, spec: Supervisor | Pool, sinks: Iterable[Sink] | None, look: Callable[[Tree], object]
    ) -> None:
        self._spec = spec
        self._sinks = sinks
        self._look = look
        self._nurseries: AbstractAsyncContextManager[trio.Nursery] | None = None

    def __repr__(self) -> str:
        return f"<open_tree of {brief(getattr(self._spec, 'name', self._spec))}>"

    async def __aenter__(self) -> Tree:
        if self._nurseries is not None:
            raise RuntimeError("open_tree(…) gives a block that is entered once: call it again")
        given = [LoggingSink()] if self._sinks is None else checked_sinks(self._sinks)
        tree = Tree(check_root(self._spec), [*given, *onlookers.get()])
        self._look(tree)
        self._driver = driver = tree._driver
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        self._nursery.start_soon(driver.main, name=f"{self._spec.name} (tree)")
        driver.body_scope.__enter__()
        raised: BaseException | None = None
        try:
            await driver.settled.wait()
        except BaseException as exc:  # noqa: BLE001 - it leaves as itself, once everything has stopped
            raised = exc
        if raised is None and driver.failure is None:
            return tree
        outcome = await self._leave(raised)
        assert outcome is not None
        raise outcome

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        outcome = await self._leave(exc)
        if outcome is None or outcome is exc:
            return outcome is None
        context = context_of(outcome)
        try:
            raise outcome
        finally:
            # Not what the block was left with: that is in the group, or was only Cancelled.
            set_context(outcome, context)
            del outcome

    async def _leave(self, exc: BaseException | None) -> BaseException | None:
        """Stop the tree in order. Gives what leaves the block, which `exc` has left."""
        driver = self._driver
        raised = _close(driver.body_scope, exc)
        if raised is not None and is_interrupt(raised):
            driver.interrupted()
        self._nursery.cancel_scope.shield = True
        reason = raised.reason if type(raised) is trio.Cancelled else None
        why = "left" if reason is None else f"cancelled: {reason}"
        interrupt = await driver.end(f"the block of open_tree was {why}")
        assert self._nurseries is not None
        await self._nurseries.__aexit__(None, None, None)
        return _what_leaves(driver.failure, raised, interrupt)


def _close(scope: trio.CancelScope, exc: BaseException | None) -> BaseException | None:
    """Leave the scope with an exception; gives what is left of it."""
    try:
        caught = scope.__exit__(
            None if exc is None else type(exc), exc, None if exc is None else traceback_of(exc)
        )
    except BaseException as rest:  # noqa: BLE001 - the caller raises it
        return rest
    return None if caught else exc


def _what_leaves(
    failure: BaseException | None, raised: BaseException | None, interrupt: KeyboardInterrupt | None = None
) -> BaseException | None:
    """The tree's failure, the block's exception, or a group of both (R22); what no decider decides leaves bare (R4).

    `interrupt` came while the tree was being stopped.
    """
    real = None if raised is None or _without_cancelled(raised) is None else raised
    known = [exc for exc in (real, failure, interrupt) if exc is not None]
    fatal = next((exc for exc in known if _is_fatal(exc)), None)
    if fatal is not None:
        other = next((exc for exc in known if exc is not fatal), None)
        if context_of(fatal) is None:
            set_context(fatal, other)
        return fatal
    if failure is None or real is None:
        return raised if failure is None else failure
    return BaseExceptionGroup("the tree failed, and so did its block", [real, failure])
