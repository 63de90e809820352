"""`open_tree`, and the `Tree` that gives the addresses of its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from difflib import get_close_matches
from itertools import islice
from types import TracebackType
from typing import cast

import outcome
import trio
from trio.lowlevel import enable_ki_protection

from .._core._brief import brief
from .._core._call import wrong_function
from .._core._check import being_loaded, is_a
from .._core.changes import Change, changes
from .._core.decide import context_of, is_interrupt, set_context
from .._core.node import Node
from .._core.spec import Child, Pool, Spec, Supervisor, walk
from .._core.status import Status
from ..errors import StartFailed
from ..events import Sink
from ..sinks.log import LoggingSink
from .address import Answer
from .adoption import Adoption
from .driver import Driver
from .leaf import _is_fatal, _without_cancelled, close_scope
from .protect import check_stack, protected
from .ref import Declared, Ref, checked_reason, refuse_no_mailbox, refuse_nonsense

onlookers: ContextVar[tuple[Sink, ...]] = ContextVar("supervise.onlookers", default=())
"""More sinks for every tree that is opened in a context; the testing tools set it."""

_SOUGHT = 1_000  # so many names are compared with one that is not found: among 100,000 members it would take a second


class Tree:
    """A running tree. `tree[spec]` and `tree["app/store/jobs"]` give the address of a node (R28)."""

    def __init__(self, spec: Supervisor | Pool, sinks: Sequence[Sink]) -> None:
        self._driver = Driver(spec, sinks)
        self._driver.tree = self
        self._spec = spec
        self._declared = Declared(spec)
        self._adopting = trio.Lock()
        self.declare: Callable[[], Supervisor | Pool] | None = None
        """Makes the declaration anew, if `run_tree` was given such a function as `reload`."""

    def __repr__(self) -> str:
        return f"<tree {self._spec.name!r} {self._driver.forest.root.state}>"

    def __getitem__(self, key: Spec | str) -> Ref:
        """The address of a node; `key` is its spec or its path.

        Raises:
            KeyError: the tree has no such node; the message names a near match, if there is one.
            TypeError: the key is neither a spec nor a string.
        """
        if isinstance(key, str):
            if self._driver.forest.find(key) is None and key not in self._declared.specs:
                raise KeyError(f"tree {self._spec.name!r} has no node {key!r}{self._near(key)}")
            return Ref(self._driver, self._declared, key)
        path = self._declared.paths.get(key) or self._declared.path_of(key)
        if path is None:
            raise self._no_such(key)
        return Ref(self._driver, self._declared, path)

    def _no_such(self, spec: Spec) -> Exception:
        if not isinstance(spec, Child | Supervisor | Pool):
            return TypeError(f"tree[…] takes a path or a spec, got {brief(spec)}")
        others = [path for path, other in self._declared.specs.items() if other.name == spec.name]
        other = f"; another spec of that name stands at {others[0]!r}" if others else ""
        return KeyError(f"tree {self._spec.name!r} has no node for the spec of {spec.name!r}{other}")

    def _near(self, path: str) -> str:
        """A hint at a path that may have been meant: below the right supervisor, or elsewhere in the tree."""
        root, machines = self._driver.forest.root, self._driver.forest.machines
        under_root = f"{root.name}/{path}"
        if self._driver.forest.find(under_root) is not None or under_root in self._declared.specs:
            return f"; did you mean {under_root!r}? A path begins with the root"
        first, *names = path.split("/")
        last = path.rpartition("/")[2]
        node: Node | None = root
        for name in names if first == root.name else ():
            below = {} if node is None or not node.has_machine else machines[node.path].children
            near = get_close_matches(name, islice(below, _SOUGHT), 1)
            if near and near[0] != name:
                assert node is not None
                meant = f"{node.path}/{near[0]}"
                return f"; did you mean {meant!r}?"
            node = below.get(name)
        places = {spec.name: place for place, spec in reversed(self._declared.specs.items())}
        near = get_close_matches(last, islice(places, _SOUGHT), 1)
        meant = f"; did you mean {places[near[0]]!r}?" if near else ""
        return meant + ("" if first == root.name else f"; a path begins with the root, {root.name!r}")

    @property
    def root(self) -> Ref:
        """The address of the root."""
        return Ref(self._driver, self._declared, self._spec.name)

    def subscribe(self, sink: Sink) -> Callable[[], None]:
        """Have a sink called with every event from now on; returns a function that ends this (R31).

        Args:
            sink: as `open_tree` has it: it must not block, and if it raises it is reported once, and dropped.

        Raises:
            TypeError: it cannot be a sink, for example because it is an async function.
            ValueError: it gets the events of this tree already.
        """
        (checked,) = checked_sinks([sink])
        return self._driver.subscribe(checked)

    def changes(self, spec: Supervisor | Pool) -> list[Change]:
        """How the declaration `spec` differs from what runs, and what `adopt` would restart for it; nothing is changed (R38).

        Raises:
            TypeError, ValueError: it cannot be the declaration of this tree, see `adopt`.
        """
        root = check_root(spec)
        if (type(root), root.name) != (type(self._spec), self._spec.name):
            mine = f"{type(self._spec).__name__} {self._spec.name!r}"
            raise ValueError(f"the root must stay {mine}, got {type(root).__name__} {root.name!r}")
        for path, its in walk(root):
            machine = self._driver.forest.machines.get(path)
            if machine is not None and not isinstance(its, Child):
                machine.check_added(its)
        return changes(self._spec, root, self._in_force, self._started_with)

    async def adopt(self, spec: Supervisor | Pool, *, reason: str = "adopt") -> list[Change]:
        """Bring the running tree in line with another declaration, and wait until that is done (R38).

        Children that it does not declare are stopped and leave the tree, new ones are started in their place, and those whose
        body, resource or arguments differ are restarted. All other options are taken at once, without a restart: limits,
        strategies, deciders, backoffs, times, the size of a mailbox. Children that were added while the tree ran stay.

        Two adoptions at once are carried out one after the other. If the caller is cancelled, or is a child that this stops, the
        adoption goes on.

        Args:
            spec: the new root, of the same kind and with the same name.
            reason: why; the events show it.

        Returns:
            The differences, as `changes` gives them.

        Raises:
            StartFailed: a child did not start; all else is done. A new child stays down, a changed one is retried as in any restart.
            ExceptionGroup: several did not start.
            Refused: the tree is stopping, or has ended.
            RuntimeError: a child asked for it that has not started yet: it would wait for its own start.
            TypeError, ValueError: it cannot be the declaration of this tree; then nothing has been changed.
        """
        why = checked_reason(reason)
        self.root._refuse_to_wait_for_itself()
        check_root(spec)
        answer = Answer()

        @enable_ki_protection
        async def run() -> None:
            answer.set(await outcome.acapture(self._adopt, spec, why))

        await self._driver.spawn(run, "adoption")
        result: tuple[list[Change], list[StartFailed]] = await answer.wait()
        found, failed = result
        if len(failed) == 1:
            raise failed[0]
        if failed:
            raise ExceptionGroup("these children did not start", failed)
        return found

    @enable_ki_protection
    async def _adopt(self, spec: Supervisor | Pool, reason: str) -> tuple[list[Change], list[StartFailed]]:
        """Carry out one adoption, after those before it: the lock is that of this task, which goes on if its caller is cancelled."""
        async with self._adopting:
            found = self.changes(spec)
            self._declared.adopt(spec)
            self._spec = spec
            adoption = Adoption(self._driver, self._declared, spec, found, reason)
            return found, await adoption.carry_out()

    async def reload(self, *, reason: str = "reload") -> list[Change]:
        """`adopt` what the function `declare` returns now; `reason` is shown by the events.

        Raises:
            RuntimeError: the tree was started without such a function.
            Exception: what the function raises; nothing has been changed.
            StartFailed, ExceptionGroup, Refused, TypeError, ValueError: as `adopt`.
        """
        if self.declare is None:
            raise RuntimeError(f"tree {self._spec.name!r} was started without reload=…")
        return await self.adopt(self.declare(), reason=reason)

    def _in_force(self, path: str) -> Spec | None:
        """The declaration by which a node is supervised; None if it is not in the tree."""
        machine = self._driver.forest.machines.get(path)
        if machine is not None:
            return machine.spec
        node = self._driver.forest.find(path)
        return None if node is None else node.spec

    def _started_with(self, path: str) -> Spec | None:
        leaf = self._driver.leaves.get(path)
        return None if leaf is None else leaf.spec

    def status(self) -> Status:
        """The status of the whole tree, without waiting (R33)."""
        return self._driver.forest.status(trio.current_time(), self._driver.traffic_at)


def check_root(spec: object) -> Supervisor | Pool:
    """Refuse a root that is no supervisor or pool, and a start while the declaring file is being loaded."""
    if being_loaded.get():
        raise RuntimeError(
            "a tree is started while the file that declares it is loaded: do that under if __name__ == '__main__'"
        )
    if not is_a(spec, (Supervisor, Pool)):
        raise TypeError(f"a tree's root must be a Supervisor or a Pool, got {brief(spec)}")
    root = cast("Supervisor | Pool", spec)
    refuse_nonsense(root)
    refuse_no_mailbox(root)
    return root


def checked_sinks(sinks: Iterable[Sink]) -> list[Sink]:
    """Refuse a value that certainly is no sink, such as an async function, which would never run."""
    try:
        given = list(sinks)
    except TypeError as problem:
        raise TypeError(f"sinks must be a list of functions, got {brief(sinks)}") from problem
    for sink in given:
        wrong = wrong_function(sink, "it is not awaited; use a QueueSink for code that waits", ("event",))
        if wrong is not None:
            raise TypeError(f"a sink {wrong}")
    return given


def open_tree(
    spec: Supervisor | Pool, *, sinks: Iterable[Sink] | None = None
) -> AbstractAsyncContextManager[Tree]:
    """Run a tree around a block: it starts, in order, before the block, and stops, in reverse, after it (R12, R21).

    The children are shielded from scopes outside: a cancellation from there, or the end or an exception of the block, stops
    the tree in order. If the tree fails, the block is cancelled.

    Args:
        spec: the root.
        sinks: functions that are called with every event; None means one `LoggingSink`, an empty list no sink (R31).

    Raises:
        StartFailed: a child failed its first start; the tree has been stopped (R16).
        TreeFailed: the root failed; it leaves bare, with the failure as its cause (R11, R22).
        ExceptionGroup: the tree failed, and the block raised too (R22).
        TypeError, ValueError: the spec or a sink is refused.
        RuntimeError: no Trio task runs here, as in a coroutine of asyncio; or the block is entered a second time.
    """
    return opening(spec, sinks)


def opening(
    spec: Supervisor | Pool, sinks: Iterable[Sink] | None, look: Callable[[Tree], object] = lambda _: None
) -> AbstractAsyncContextManager[Tree]:
    """See `open_tree`; `look(tree)` is called before the tree starts."""
    return _Opening(spec, sinks, look)


@protected
class _Opening(AbstractAsyncContextManager[Tree]):
    """See `open_tree`.

    It is a class with methods protected against KeyboardInterrupt: an interrupt between two lines of a generator, or of the
    manager that `contextlib` makes of it, would leave a tree that no task stops.
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
        if not trio.lowlevel.in_trio_task():
            raise RuntimeError(
                "open_tree needs a Trio task: call it in an async function that trio.run runs; a program for asyncio can "
                "run Trio as its guest"
            )
        check_stack()
        given = [LoggingSink()] if self._sinks is None else checked_sinks(self._sinks)
        tree = Tree(check_root(self._spec), [*given, *onlookers.get()])
        self._look(tree)
        self._driver = driver = tree._driver
        self._nurseries = trio.open_nursery()
        nursery = await self._nurseries.__aenter__()
        nursery.start_soon(driver.main, name=f"{self._spec.name} (tree)")
        driver.body_scope.__enter__()
        raised: BaseException | None = None
        try:
            await driver.settled.wait()
        except BaseException as exc:  # noqa: BLE001 - it is raised again, bare, once everything has stopped
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
            # Python has set the block's exception as context, but that is in the group already, or is only Cancelled.
            set_context(outcome, context)
            del outcome

    async def _leave(self, exc: BaseException | None) -> BaseException | None:
        """Stop the tree in order. Returns the exception for the caller; `exc` is the one that left the block."""
        driver = self._driver
        raised = close_scope(driver.body_scope, exc)
        if raised is not None and is_interrupt(raised):
            driver.interrupted()
        reason = raised.reason if type(raised) is trio.Cancelled else None
        why = "left" if reason is None else f"cancelled: {reason}"
        interrupt = await driver.end(f"the block of open_tree was {why}")
        assert self._nurseries is not None
        await self._nurseries.__aexit__(None, None, None)
        return _what_leaves(driver.failure, raised, interrupt)


def _what_leaves(
    failure: BaseException | None, raised: BaseException | None, interrupt: KeyboardInterrupt | None = None
) -> BaseException | None:
    """The tree's failure, the block's exception, or a group of both (R22); an exception that is no `Exception` leaves bare (R4).

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
