"""The task of one leaf: enter the resource, run the body, report. It never raises into its supervisor's nursery.

A KeyboardInterrupt may arrive between any two lines (R4). If it left a leaf's task in the middle of its bookkeeping, the
machine would wait for ever. So this code runs under Trio's protection against it, and calls the child's own code through
`_run`, `_unprotected_result` and `unprotected`, which lift that protection.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, ContextVar
from operator import is_
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

import trio
from trio.lowlevel import (
    Abort,
    Task,
    cancel_shielded_checkpoint,
    current_task,
    disable_ki_protection,
    enable_ki_protection,
    reschedule,
    wait_task_rescheduled,
)

from .._core import effect
from .._core._brief import as_group, brief
from .._core.decide import context_of, is_decidable, set_context, traceback_of
from .._core.spec import IGNORE, Child
from ..errors import ForeignCancelled, StartReturned
from .mailbox import Inbox, Queue
from .protect import check_stack, check_thread

if TYPE_CHECKING:
    from .._core.machine import Machine
    from .._core.node import Node

T = TypeVar("T")


@disable_ki_protection
def unprotected(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Call a user's function without protection: a KeyboardInterrupt may be raised in it."""
    return function(*arguments, **options)


@disable_ki_protection
async def _unprotected_result(function: Callable[[], Awaitable[T]]) -> T:
    """Call a user's async function without protection, and await its result.

    Both are one line, so that no interrupt comes between the making of a coroutine and its first step.
    """
    return await function()


@disable_ki_protection
async def _run(leaf: Leaf) -> Any:
    """Call a leaf's body without protection, and await it. Every idle child has this frame, so it has as few names as possible."""
    return await leaf._call()


@disable_ki_protection
async def _run_with(leaf: Leaf, resource: Any) -> Any:
    """As `_run`, with its resource."""
    return await leaf._call(resource)


class LeafDriver(Protocol):
    """The part of the driver that a leaf needs."""

    context: Context
    tree: Any
    root_task: Task | None

    def now(self) -> float: ...
    def post(self, machine: Machine, item: effect.Input) -> None: ...
    def mailbox_of(self, leaf: Leaf) -> Queue: ...
    def leaf_up(self, leaf: Leaf, value: Any) -> None: ...
    def leaf_restarts_at_once(self, leaf: Leaf, failure: Exception) -> bool: ...
    def leaf_ended(self, leaf: Leaf) -> bool: ...
    def leaf_broke(self, leaf: Leaf, exc: BaseException) -> None: ...
    def callback_failed(self, path: str, exc: BaseException) -> None: ...


class Leaf:
    """A leaf and its task; the child's own code sees it as a `CurrentChild`.

    One object serves consecutive incarnations in one task and under one scope, as long as each starts at the end of the one
    before. The scope is made when the start is carried out, before the task runs, so that a stop always finds it.
    """

    __slots__ = (
        "_body_scope",
        "_cancelled",
        "_context",
        "_driver",
        "_error",
        "_failure",
        "_ignored",
        "_inbox",
        "_injected",
        "_leases",
        "_node",
        "_parked",
        "_reported",
        "_scope",
        "_stop_requested",
        "_task",
        "_value",
        "_verdict",
        "facade",
        "incarnation",
        "machine",
        "ready",
        "spec",
        "stopping",
    )

    def __init__(self, driver: LeafDriver, machine: Machine, node: Node) -> None:
        assert isinstance(node.spec, Child)
        self._driver = driver
        self.machine = machine  # that of its supervisor
        self._node = node
        self.spec = (
            node.spec
        )  # of all its incarnations in this task: the node may have another meanwhile (R38)
        self._scope = trio.CancelScope()
        self._cancelled = False
        self._task: Task | None = None
        self._parked: Task | None = None
        self._leases: set[trio.CancelScope] | None = None
        self._context: Context | None = None
        self.facade: Any = None  # its `CurrentChild`, made by `current_child()`
        self.begin_incarnation()

    def begin_incarnation(self) -> None:
        """Reset everything that belongs to one incarnation."""
        self.incarnation = self._node.incarnation
        self.ready = self.stopping = self._ignored = self._reported = False
        self._body_scope: trio.CancelScope | None = None
        self._stop_requested: trio.Event | None = None
        self._verdict: Literal["resume", "release"] | None = None
        self._failure: BaseException | None = None
        self._error: BaseException | None = None
        self._injected: tuple[BaseException, float] | None = (
            None  # an exception, and the time by which the body should raise it
        )
        self._value: Any = None
        self._inbox: Inbox | None = None

    @property
    def path(self) -> str:
        """The path of its node."""
        return self._node.path

    def __repr__(self) -> str:
        return f"<child {self.path!r} incarnation={self.incarnation}>"

    # --- for the child's own code

    @property
    def inbox(self) -> Inbox:
        """Its mailbox; `RuntimeError` if its spec declares none, or its body has not been called yet."""
        if self._inbox is None and self.spec.mailbox is not None:
            raise RuntimeError(
                f"child {self.path!r} has no inbox before its body is called: a resource has none"
            )
        if self._inbox is None:
            raise RuntimeError(f"child {self.path!r} has no mailbox: declare it with mailbox=…")
        return self._inbox

    @property
    def open_inbox(self) -> Inbox | None:
        """The inbox of the body that runs now, if one does."""
        return self._inbox if self._inbox is not None and self._inbox.is_open else None

    @property
    def last_failure(self) -> BaseException | None:
        """The last failure of its node, usually one of an earlier incarnation."""
        return self._node.last_failure

    @property
    def tree(self) -> Any:
        """The tree that it belongs to, which has the addresses of the other nodes."""
        return self._driver.tree

    async def stop_requested(self) -> None:
        """Wait until this child is asked to stop (R20)."""
        if self._stop_requested is None:
            self._stop_requested = trio.Event()
            if self.stopping:
                self._stop_requested.set()
        await self._stop_requested.wait()

    # --- orders of the driver

    def ask(self) -> None:
        self._note_stop()
        if self._inbox is not None:
            self._inbox.end_loops()

    def _note_stop(self) -> None:
        self.stopping = True
        if self._stop_requested is not None:
            self._stop_requested.set()

    def cancel(self, reason: str) -> None:
        self._note_stop()
        self._cancelled = True
        self._scope.cancel(reason)
        if self._inbox is not None:
            self._inbox.end_loops()  # wakes readers in shielded scopes; the others are cancelled already

    def decide(self, verdict: Literal["resume", "release"]) -> None:
        self._verdict = verdict
        if self._parked is not None:
            task, self._parked = self._parked, None
            reschedule(task)

    @property
    def may_go_on(self) -> bool:
        """Whether its code may run on though it is not up: it drains, or it may be resumed."""
        if self.stopping:
            return not self._cancelled
        return self._parked is not None and self.spec.resource is not None and self.ready

    @property
    def failing(self) -> bool:
        """Whether an exception was injected, and the body still has time (`grace`) to raise it."""
        return self._injected is not None and self._driver.now() < self._injected[1]

    def inject(self, exc: BaseException) -> None:
        """Make the body fail with `exc` (R27). An earlier injected exception that it has not raised becomes the context of `exc`."""
        check_thread(self._driver.root_task)
        check_stack()
        if self._injected is not None and self._injected[0] is not exc and context_of(exc) is None:
            set_context(exc, self._injected[0])
        self._injected = exc, self._driver.now() + self.spec.grace
        scope = self._body_scope
        if scope is None:
            scope, self._cancelled = self._scope, True
        scope.cancel(f"injected into {self.path!r}: {brief(exc)}")

    def raised_late(self, exc: BaseException) -> None:
        """A callback of one of its bodies raised after that body was over, or while it was failing."""
        self._driver.callback_failed(self.path, exc)

    # --- its life

    @enable_ki_protection
    async def run(self) -> None:
        """The task of the leaf: one incarnation after another, each in a fresh context (R9). It never raises."""
        current.set(self)
        self._task = task = current_task()
        mailbox: Queue | None = None
        on = True
        try:
            if self.spec.mailbox is not None:
                mailbox = self._driver.mailbox_of(self)
                mailbox.servers[task] = self
            self._scope.__enter__()
            while on:
                turns = task._schedule_points
                exc = value = None
                try:
                    value = await (_run(self) if self.spec.resource is None else self._with_resource())
                except GeneratorExit as caught:
                    exc = _unless_closed(caught)
                except BaseException as caught:  # noqa: BLE001 - The machine decides what every exception of a body means.
                    exc = caught
                if task._cancel_status is not self._scope._cancel_status:
                    exc = await self._close_what_is_open(exc)
                on = self._restarts_at_once(exc) or await self._has_ended(exc, value)
                # Otherwise the exception refers by its traceback to this frame, and this frame to the exception: a cycle.
                exc = None
                if on:
                    await self._refresh(task, shared=task._schedule_points != turns)
            self._scope.__exit__(None, None, None)
        except GeneratorExit:
            raise
        except BaseException as exc:  # noqa: BLE001 - a defect of this library: in the nursery it would cancel the siblings (R24)
            self._driver.leaf_broke(self, exc)
        if mailbox is not None:
            del mailbox.servers[task]

    async def _refresh(self, task: Task, *, shared: bool) -> None:
        """Give the next incarnation a fresh context (R9); checkpoint, unless this one has let other tasks run (`shared`)."""
        if self._context is None:
            self._context = self._driver.context.copy()
            self._context.run(current.set, self)
        fresh = self._context.copy()
        if not shared or not _same(task.context, fresh):
            task.context = fresh
            await cancel_shielded_checkpoint()

    def _restarts_at_once(self, exc: BaseException | None) -> bool:
        """Whether the driver has handled this failure by the one-step restart."""
        if exc is None or self._cancelled or self.spec.resource is not None:
            return False
        if not issubclass(type(exc), Exception):
            return False
        if self._inbox is not None and as_group(exc) is None:
            self._settle_messages(exc)
        return self._driver.leaf_restarts_at_once(self, cast("Exception", exc))

    async def _has_ended(self, exc: BaseException | None, value: Any) -> bool:
        """Report the end of an incarnation. Returns True if the next one is to run in this task."""
        if self.spec.resource is None:
            await self._over(exc, value, resumable=False)
        else:
            await self._resource_is_left(exc, value)
        return self._driver.leaf_ended(self)

    async def _close_what_is_open(self, exc: BaseException | None) -> BaseException | None:
        """As `_close`, for the whole incarnation. Its task ends with it: what was open may be left later, and then it hurts the task."""
        self._cancelled = True
        failure = await _close(self._scope, 0, exc)
        self._scope = trio.CancelScope()
        self._scope.__enter__()
        return failure

    async def _with_resource(self) -> Any:
        """Enter the resource, run the body in it, and leave it."""
        assert self.spec.resource is not None
        async with _Resource(self.path, self.spec.resource) as resource:
            return await self._use(resource)

    async def _resource_is_left(self, left: BaseException | None, value: Any) -> None:
        """Report the outcome of an incarnation with a resource: `left` came out of the exit of that, or out of its enter."""
        if self._reported or self.stopping:
            error = _apart_from(left, self._failure)
            if self.stopping and self._injected is not None:  # while the child drained, but its body was over
                injected = self._injected[0]
                if error is None:
                    error = injected
                elif error is not injected and context_of(error) is None:
                    set_context(error, injected)
            if error is not None and not _is_fatal(self._error):
                self._error = error
            self._settle_messages(left)
        else:
            await self._over(left, value, resumable=False)

    async def _use(self, resource: Any) -> Any:
        """Run the body, again after each Resume. The exception that ends it reaches the resource, a `Cancelled` too (R9)."""
        task = current_task()
        older = len(task.child_nurseries)
        while True:
            exc = value = None
            # An injected failure ends the body, and keeps the resource.
            scope = self._body_scope = trio.CancelScope()
            scope.__enter__()
            if self._injected is not None:
                self.inject(self._injected[0])
            try:
                value = await _run_with(self, resource)
            except GeneratorExit as caught:
                exc = _unless_closed(caught)
            except BaseException as caught:  # noqa: BLE001 - It is raised again below, once the scope has been left.
                exc = caught
            if task._cancel_status is not scope._cancel_status:
                exc = await _close(scope, older, exc)
                break
            scope.__exit__(None, None, None)
            if self._must_pass_through(exc, value):
                break
            if not await self._over(exc, value, resumable=True):
                if self._failure is not None or not self.stopping:
                    exc = self._failure
                break
            # A body that fails at once again and again, with progress, would block the loop without this.
            await cancel_shielded_checkpoint()
        if exc is not None:
            raise exc
        return value

    def _must_pass_through(self, exc: BaseException | None, value: Any) -> bool:
        """Whether the resource must be left before the end of the body is reported.

        A `Cancelled` from a scope that is not this library's may come from a crash inside the resource, and only the exit of
        the resource raises that crash (R6). A child that may return has returned only when its resource is left.
        """
        if self.stopping or self._injected is not None:
            return False
        if exc is not None:
            return _without_cancelled(exc) is None
        return self.spec.restart != "permanent" or value is IGNORE

    @enable_ki_protection
    def _call(self, *arguments: Any) -> Awaitable[Any]:
        """Call the body with its inbox and `args` after `arguments`. Then the leaf is ready, unless it takes `task_status` (R17)."""
        spec = self.spec
        if spec.mailbox is not None:
            assert self._task is not None
            mailbox = self._driver.mailbox_of(self)
            self._inbox = mailbox.inbox_for(self, self._task)
            arguments += (self._inbox,)
        if spec.args:
            arguments += spec.args
        if spec.takes_task_status:
            awaitable = unprotected(spec.body, *arguments, task_status=_Status(self))
            self._check_awaitable(awaitable)
            return awaitable
        awaitable = unprotected(spec.body, *arguments)
        if type(awaitable) is not CoroutineType:
            self._check_awaitable(awaitable)
        if not self.ready:
            self.ready = True
            self._driver.leaf_up(self, None)
        return awaitable  # pyright: ignore[reportUnknownVariableType] - the types that its coroutine sends are unknown

    def _check_awaitable(self, awaitable: object) -> None:
        if not inspect.isawaitable(awaitable):
            raise TypeError(
                f"the body of child {self.path!r} gave {brief(awaitable)}, which cannot be awaited: "
                f"it must be an async function, got {brief(self.spec.body)}"
            )

    @enable_ki_protection
    def up(self, value: Any) -> None:
        """Report that it is ready, with this value (R17)."""
        check_thread(self._driver.root_task)
        check_stack()
        self.ready = True
        self._value = value
        self._driver.leaf_up(self, value)

    async def _over(self, exc: BaseException | None, value: Any, *, resumable: bool) -> bool:
        """Report that the body is over, and wait for the verdict. Returns True if the body is to be entered again."""
        self._failure = exc = self._settled(exc, value, resumable=resumable)
        if self.stopping:
            self._error = exc
        if self.stopping or self._ignored:
            return False
        self._reported = True
        progressed = self._inbox is not None and self._inbox.progressed
        report = effect.Exited(
            self._node.name, self.incarnation, exc, value, resumable=resumable, progressed=progressed
        )
        self._driver.post(self.machine, report)
        while self._verdict is None:
            self._parked = current_task()
            # Parks by hand, because only the verdict may end this wait. A cancellation would end the wait for an Event; a
            # Ctrl-C is deferred, since this code is protected.
            await wait_task_rescheduled(lambda _: Abort.FAILED)
        verdict, self._verdict = self._verdict, None
        self._reported = verdict == "release"
        if self._reported:
            self._settle_messages(exc)
        return verdict == "resume"

    def _settled(self, exc: BaseException | None, value: Any, *, resumable: bool) -> BaseException | None:
        """The failure to report: without `Cancelled`, or the injected one instead. Settles the messages in hand with it."""
        if self._injected is not None and not _is_fatal(exc):
            exc, self._injected = self._injected[0], None
        elif exc is not None:
            rest = _without_cancelled(exc)
            if rest is None and not self.stopping:
                rest = _foreign(exc)
            exc = rest
        elif not self.ready and not self.stopping:
            self._ignored = value is IGNORE
            if not self._ignored:
                exc = StartReturned(f"child {self.path!r} returned {brief(value)} before it was ready")
        self._settle_messages(exc, resumable=resumable and not self.stopping and not self._ignored)
        return exc

    def _settle_messages(self, failure: BaseException | None, *, resumable: bool = False) -> None:
        if self._inbox is not None:
            self._inbox.settle(self.path, failure, resumable=resumable)

    def lease(self) -> trio.CancelScope:
        """A scope that is cancelled when this incarnation has ended (R28)."""
        leases = self._leases = set() if self._leases is None else self._leases
        scope = trio.CancelScope()
        leases.add(scope)
        return scope

    def end_lease(self, scope: trio.CancelScope) -> None:
        """Forget a lease whose block was left before the incarnation ended."""
        if self._leases is not None:
            self._leases.discard(scope)

    def end_leases(self) -> None:
        if self._leases is None:
            return
        leases, self._leases = self._leases, None
        for scope in leases:
            scope.cancel(f"{self.path!r} incarnation {self.incarnation} has ended")

    def ended(self) -> effect.Ended:
        """Its last report, for the machine."""
        return effect.Ended(self._node.name, self.incarnation, self._error, self._ignored)


class _Status:
    """The `task_status` of a child: it reports to the machine, not to a nursery."""

    __slots__ = ("_incarnation", "_leaf")

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf
        self._incarnation = leaf.incarnation

    def started(self, value: Any = None) -> None:
        """Report that the child is ready, with this value. A further call has no effect, as that of a body after a Resume."""
        leaf = self._leaf
        # Compare with the node too: after `IGNORE` this leaf is over, and another leaf may run at the node.
        if not leaf.ready and leaf.incarnation == leaf._node.incarnation == self._incarnation:
            leaf.up(value)


def _unless_closed(exc: GeneratorExit) -> BaseException:
    """Raise the GeneratorExit of a coroutine that is being closed, which must not await; return one that a body has raised.

    `close` goes from the inside out and raises a new one in each frame, so its traceback has only the caller's frame. One
    that a body raises comes from a deeper frame, and is a failure like any other that is no `Exception`.
    """
    trace = traceback_of(exc)
    if trace is None or trace.tb_next is None:
        raise exc
    return exc


class _Resource(AbstractAsyncContextManager[Any]):
    """A resource, which is entered and left without protection from KeyboardInterrupt."""

    __slots__ = ("_leave", "_make", "_path")

    _leave: Callable[..., Awaitable[bool | None]]

    def __init__(self, path: str, make: Callable[[], Any]) -> None:
        self._path = path
        self._make = make

    async def __aenter__(self) -> Any:
        manager = unprotected(self._make)
        made: object = manager
        kind: type[object] = type(made)
        if not (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")):
            raise TypeError(
                f"the resource of child {self._path!r} gave {brief(manager)}, which is no async context manager"
            )
        self._leave = manager.__aexit__
        return await _unprotected_result(manager.__aenter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        leaving = self._leave(kind, exc, trace)
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                done: bool | None = await _unprotected_result(lambda: leaving)
            except KeyboardInterrupt as raised:
                if not _is_new(leaving):
                    raise
                interrupt = raised  # it came before the first line of the exit, which must run
            else:
                break
        if interrupt is not None:
            raise interrupt
        return done


def _is_new(awaitable: object) -> bool:
    """Whether it is a coroutine that has not begun."""
    return inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED


def _same(one: Context, other: Context) -> bool:
    """Whether both have the same objects as values; equality is not enough, since 1 equals True."""
    return list(one) == list(other) and all(map(is_, one.values(), other.values()))


def _is_fatal(exc: BaseException | None) -> bool:
    """Whether it is no `Exception`, or is a group that holds one such, `Cancelled` aside (R4)."""
    rest = None if exc is None else _without_cancelled(exc)
    return rest is not None and not is_decidable(rest)


def _without_cancelled(exc: BaseException) -> BaseException | None:
    """The failure without every `Cancelled` in it; None if nothing is left (R3)."""
    group = as_group(exc)
    if group is not None:
        try:
            dropped, rest = BaseExceptionGroup.split(group, trio.Cancelled)
        except Exception:  # noqa: BLE001 - a group that cannot be split, too deep or because of its own `derive`, counts whole
            return exc
        return exc if dropped is None else rest
    return (
        None if type(exc) is trio.Cancelled else exc
    )  # it has no subclasses, and `issubclass` would compare the class


def _foreign(exc: BaseException) -> ForeignCancelled:
    foreign = ForeignCancelled("the child let out a Cancelled, but its supervisor had not stopped it")
    foreign.__cause__ = exc
    return foreign


def _apart_from(left: BaseException | None, failure: BaseException | None) -> BaseException | None:
    """The exception of a resource's exit, without the failure that went in and without `Cancelled`."""
    rest = None if left is None else _without_cancelled(left)
    group = None if rest is None else as_group(rest)
    if group is not None and failure is not None and rest is not failure:
        try:
            return BaseExceptionGroup.split(group, lambda exc: exc is failure)[1]
        except Exception:  # noqa: BLE001 - a group that cannot be split counts whole
            return group
    return None if rest is failure else rest


def enclosing_child(tree: LeafDriver) -> Leaf | None:
    """The child of this tree to which the running task belongs: it is the child's own task, or one below it.

    The nurseries decide that. The context variable is not enough: tasks that a child, or a sink, starts in a nursery
    elsewhere inherit it too.
    """
    task: Task | None = current_task()
    while task is not None:
        leaf = task.context.get(current)
        if isinstance(leaf, Leaf) and leaf._task is task and leaf._driver is tree:
            return leaf
        task = None if task.parent_nursery is None else task.parent_nursery.parent_task
    return None


async def _close(scope: trio.CancelScope, older: int, exc: BaseException | None) -> BaseException | None:
    """Leave a scope though code in it has left scopes or nurseries open, as an async generator does that was not closed.

    They would hold what runs in this task next, and a nursery would end the supervisor's. Returns Trio's error about that, with `exc`
    as its context; or `exc` itself if it is no `Exception` (R4).

    Args:
        scope: the scope.
        older: how many nurseries the task had when the scope was entered.
        exc: what leaves the scope.
    """
    task = current_task()
    while len(task.child_nurseries) > older:
        nursery = task.child_nurseries[-1]
        nursery.cancel_scope.cancel(f"its block in {task.name!r} was not left")
        exc = await nursery._nested_child_finished(exc)
    failure = close_scope(scope, exc)
    return exc if _is_fatal(exc) else failure


def close_scope(scope: trio.CancelScope, exc: BaseException | None) -> BaseException | None:
    """Leave the scope with an exception. Returns the exception that still leaves it, or None."""
    try:
        caught = scope.__exit__(
            None if exc is None else type(exc), exc, None if exc is None else traceback_of(exc)
        )
    except BaseException as rest:  # noqa: BLE001 - `__exit__` raises the rest of a group; the caller decides what to raise
        return rest
    return None if caught else exc


current: ContextVar[Leaf] = ContextVar("supervise.current_child")
"""The leaf whose task this is, or whose task started it."""
