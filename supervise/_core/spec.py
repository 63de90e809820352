"""What a tree is, before it runs: frozen values that validate themselves and are compared by identity."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import FunctionType
from typing import Any, Final, Literal

from attrs import Factory, evolve, field, frozen

from ..errors import ChildStopped, MailboxFull
from ._brief import brief
from ._check import check_choice, check_number, refuse
from ._code import Code
from ._value import Value
from .decide import Decider
from .limit import Backoff, Limit

RestartType = Literal["permanent", "transient", "temporary"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]
OnLoss = Literal["fail", "requeue"]
OnLimit = Literal["escalate", "shutdown"]
Body = Callable[..., Awaitable[object]]
Resource = Callable[[], AbstractAsyncContextManager[Any]]


class _Ignore:
    """The type of `IGNORE`."""

    def __repr__(self) -> str:
        return "IGNORE"


IGNORE: Final = _Ignore()
"""Returned by a child before it is ready: not needed here; it stays in the tree, not running (R17)."""


def _kind(spec: object) -> str:
    return type(spec).__name__.lower()


def _check_name(what: str, name: object) -> None:
    if not isinstance(name, str):
        refuse(TypeError(f"{what}'s name must be a string, got {name!r}"))
    elif not name or "/" in name or name != name.strip():
        refuse(ValueError(f"{what}'s name must be non-empty, without '/' and outer spaces, got {name!r}"))


def _check_type(what: str, value: object, allowed: type | tuple[type, ...]) -> None:
    if not isinstance(value, allowed):
        names = " or ".join(t.__name__ for t in (allowed if isinstance(allowed, tuple) else (allowed,)))
        refuse(TypeError(f"{what} must be a {names}, got {brief(value)}".replace("NoneType", "None")))


def _check_as_child(spec: Child | Supervisor | Pool) -> None:
    """What every kind of node has as somebody's child."""
    what = f"{_kind(spec)} {spec.name!r}"
    _check_name(_kind(spec), spec.name)
    check_choice(f"{what}: restart", spec.restart, ("permanent", "transient", "temporary"))
    if spec.significant is not False:
        _check_type(f"{what}: significant", spec.significant, bool)
    if spec.significant and spec.restart == "permanent":
        refuse(ValueError(f"{what}: significant needs restart 'transient' or 'temporary', got 'permanent'"))
    for part, kind in ((spec.decider, Decider), (spec.limit, Limit), (spec.backoff, Backoff)):
        if part is not None and not isinstance(part, kind):
            name = kind.__name__
            refuse(TypeError(f"{what}: {name.lower()} must be a {name} or None, got {brief(part)}"))
    if spec.start_timeout is not None:
        check_number(f"{what}: start_timeout", spec.start_timeout, least=0)


def _name_of(front: Spec | str | None) -> str | None:
    return front.name if isinstance(front, Child | Supervisor | Pool) else front


def _front_child(supervisor: Supervisor) -> Spec | None:
    named = (child for child in supervisor.children if getattr(child, "name", None) == supervisor.front)
    return None if supervisor.front is None else next(named, None)


def _takes_task_status(body: object) -> bool:
    """Whether the function takes `task_status`, as those for `nursery.start` do."""
    if isinstance(body, FunctionType) and not vars(
        body
    ):  # nothing wrapped: a look does, where a signature takes long
        code = body.__code__
        return "task_status" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        parameters = inspect.signature(body).parameters  # type: ignore[arg-type]  # refused just below if no callable
    except (TypeError, ValueError):
        return False
    return "task_status" in parameters


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


@frozen(repr=False, eq=False)
class Mailbox(Code, Value):
    """How a child's mailbox is (R29, R30).

    Args:
        size: how many messages may wait; then the sender waits, or gets `full` from the `_nowait` form.
        on_loss: what becomes of a message in hand when the incarnation ends, unless the sender says otherwise: `fail`
            tells the sender, `requeue` puts it back at the head of the queue.
        stopped: the class of error for those who send to, or wait at, a node that is down for good.
        full: the class of error for those who would not wait.
        deadline: when the caller of a message is told, on Trio's clock, if it has no answer by then: `deadline(value)`,
            None is never. What of a stream was sent by then comes first.
        late: the class of error for those.
    """

    size: int = 64
    on_loss: OnLoss = field(default="fail", kw_only=True)
    stopped: type[Exception] = field(default=ChildStopped, kw_only=True)
    full: type[Exception] = field(default=MailboxFull, kw_only=True)
    deadline: Callable[[Any], float | None] | None = field(default=None, kw_only=True)
    late: type[Exception] = field(default=TimeoutError, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_number("a mailbox's size", self.size, least=1, kind=int)
        check_choice("a mailbox's on_loss", self.on_loss, ("fail", "requeue"))
        if self.deadline is not None and not callable(self.deadline):
            refuse(TypeError(f"a mailbox's deadline must be a function, got {brief(self.deadline)}"))
        for what, value in (("stopped", self.stopped), ("full", self.full), ("late", self.late)):
            if not _is_exception_class(value):
                refuse(TypeError(f"a mailbox's {what} must be an exception class, got {brief(value)}"))


def _mailbox(value: Mailbox | int | None) -> Mailbox | None:
    if value is None or isinstance(value, Mailbox):
        return value
    return Mailbox(value)


@frozen(eq=False, repr=False, kw_only=True)
class _AsChild(Code):
    restart: RestartType = "permanent"
    significant: bool = False
    start_timeout: float | None = None
    backoff: Backoff | None = None
    decider: Decider | None = None
    origin: Any = field(default=None, repr=False)
    """The spec that this one stands for: also its address (`FaultPlan.over` makes such)."""


@frozen(eq=False, repr=False)
class Child(_AsChild):
    """A leaf: an async function, with an optional resource and mailbox.

    It is called as `body([resource], [inbox], *args)`. If it takes `task_status` it is ready when it calls
    `task_status.started(value)`, else as soon as its resource is entered and its body runs (R17).

    Args:
        name: unique among its siblings; no `/`.
        body: any Trio function, also a `functools.partial`.
        resource: makes an async context manager, entered anew for each incarnation; Resume keeps it (R8, R9).
        mailbox: how many messages may wait (R29), or a `Mailbox`; None: it has none.
        args: further positional arguments of the body.
        restart: `permanent`: its return is a failure tagged `returned`; `transient`: restarted after failures only;
            `temporary`: never restarted, and leaves the tree when it ends (R7).
        significant: its own end may end its supervisor, see `auto_shutdown` (R18).
        start_timeout: seconds it may take to become ready; None is no end.
        start_warning: seconds after which a start that is not over is reported, with its stack, and again at doubling
            intervals (R17); may be `inf`.
        drain: seconds between being asked to stop and being cancelled; 0 cancels at once (R20).
        grace: seconds after the cancel until it is reported as overdue.
        limit: its own limit; passing it is a failure tagged `limit`, by default Stop (R14).
        backoff: how long to wait before a restart; None restarts at once.
        decider: asked before its supervisor's (R2).
    """

    name: str
    body: Body
    resource: Resource | None = field(default=None, kw_only=True)
    mailbox: Mailbox | None = field(default=None, converter=_mailbox, kw_only=True)
    args: tuple[Any, ...] = field(default=(), converter=tuple[Any, ...], kw_only=True)
    drain: float = field(default=0.0, kw_only=True)
    grace: float = field(default=5.0, kw_only=True)
    start_warning: float = field(default=30.0, kw_only=True)
    limit: Limit | None = field(default=None, kw_only=True)
    takes_task_status: bool = field(
        init=False, repr=False, default=Factory(lambda self: _takes_task_status(self.body), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        _check_as_child(self)
        if not callable(self.body):
            refuse(TypeError(f"child {self.name!r}: body must be an async function, got {brief(self.body)}"))
        if self.resource is not None and not callable(self.resource):
            refuse(TypeError(f"child {self.name!r}: resource must be a function, got {brief(self.resource)}"))
        times = (("drain", self.drain), ("grace", self.grace), ("start_warning", self.start_warning))
        for name, seconds in times:
            if type(seconds) is not float or not seconds >= 0:
                check_number(f"child {self.name!r}: {name}", seconds, least=0)


@frozen(eq=False, repr=False)
class Supervisor(_AsChild):
    """A node that starts its children in order, stops them in reverse, and decides what a failure means.

    Args:
        name: unique among its siblings; no `/`.
        children: in start order (R12).
        strategy: who is restarted with a child: `one_for_one` nobody, `one_for_all` everybody, `rest_for_one` those
            after it (R13).
        limit: passing it is a failure of this supervisor (R14); None is no limit.
        on_limit: `escalate`: that failure goes up; `shutdown`: it stops its children and ends normally, as in OTP.
        auto_shutdown: end normally when `any_significant` or `all_significant` children have ended (R18).
        front: the name or spec of the child that answers at this supervisor's address (R34).
        init: called before its children start, each time; may return `IGNORE` (R17), or raise (a start failure).
        restart, significant, start_timeout, backoff, decider: as for `Child`; `decider` also serves those below.
    """

    name: str
    children: tuple[Spec, ...] = field(converter=tuple["Spec", ...])
    strategy: Strategy = field(default="one_for_one", kw_only=True)
    limit: Limit | None = field(default=Limit(3, within=5), kw_only=True)
    on_limit: OnLimit = field(default="escalate", kw_only=True)
    auto_shutdown: AutoShutdown = field(default="never", kw_only=True)
    front: str | None = field(default=None, kw_only=True, converter=_name_of)
    init: Callable[..., object] | None = field(default=None, kw_only=True)

    front_child: Spec | None = field(init=False, repr=False, default=Factory(_front_child, takes_self=True))
    """The child that `front` names."""

    def __attrs_post_init__(self) -> None:
        _check_as_child(self)
        what = f"supervisor {self.name!r}"
        for child in self.children:
            if not isinstance(child, _SPECS):
                _check_type(f"{what}: each child", child, _SPECS)
        check_choice(f"{what}: strategy", self.strategy, ("one_for_one", "one_for_all", "rest_for_one"))
        _check_supervisor(self, what)
        names = Counter([child.name for child in self.children if isinstance(child, _SPECS)])
        if len(names) < len(self.children):
            for name in (name for name, count in names.items() if count > 1):
                refuse(ValueError(f"{what} has two children named {name!r}"))
        if self.front is not None and self.front not in names:
            refuse(
                ValueError(
                    f"{what}: front must be one of its children ({', '.join(names)}), got {brief(self.front)}"
                )
            )


@frozen(eq=False, repr=False)
class Pool(_AsChild):
    """A dynamic supervisor: one template, members added and ended at run time (R26).

    One_for_one, unordered concurrent stop, empty after a restart. A member leaves the pool when it has ended for good.

    Args:
        name: unique among its siblings; no `/`.
        template: each member is this child under a name of its own, and with the arguments that `add` gave; where it is
            a supervisor, its `init` gets them.
        maximum: more members are refused; None is no maximum.
        member_limit: of each member that is a `Child`, so that one bad member cannot take the pool down; None is no limit.
        limit: of all members together; None, the default, is no limit.
        on_limit, auto_shutdown, init, restart, significant, start_timeout, backoff, decider: as for `Supervisor`.
    """

    name: str
    template: Spec
    maximum: int | None = field(default=None, kw_only=True)
    member_limit: Limit | None = field(default=Limit(3, within=5), kw_only=True)
    limit: Limit | None = field(default=None, kw_only=True)
    on_limit: OnLimit = field(default="escalate", kw_only=True)
    auto_shutdown: AutoShutdown = field(default="never", kw_only=True)
    init: Callable[..., object] | None = field(default=None, kw_only=True)

    children: tuple[Spec, ...] = field(default=(), init=False, repr=False)
    strategy: Strategy = field(default="one_for_one", init=False, repr=False)
    front: str | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        _check_as_child(self)
        what = f"pool {self.name!r}"
        _check_type(f"{what}: template", self.template, (Child, Supervisor, Pool))
        _check_type(f"{what}: member_limit", self.member_limit, (Limit, type(None)))
        if self.maximum is not None:
            check_number(f"{what}: maximum", self.maximum, least=1, kind=int)
        _check_supervisor(self, what)

    def member(self, name: str, args: Sequence[Any]) -> Spec:
        """The template under a name and with arguments of its own: its body's, or its `init`'s."""
        template = self.template
        if isinstance(template, Child):
            limit = template.limit or self.member_limit
            return evolve(template, name=name, args=(*template.args, *args), limit=limit)
        if args and template.init is None:
            raise TypeError(
                f"pool {self.name!r}: a member without an init takes no arguments, got {brief(args)}"
            )
        return evolve(template, name=name, init=partial(template.init, *args) if template.init else None)


Spec = Child | Supervisor | Pool
_SPECS = (Child, Supervisor, Pool)


def check_fits(supervisor: Supervisor | Pool, child: Spec) -> None:
    """Refuse a significant child where its end could mean nothing."""
    if child.significant and supervisor.auto_shutdown == "never":
        what = f"{_kind(supervisor)} {supervisor.name!r}: child {child.name!r}"
        allowed = "'any_significant' or 'all_significant'"
        refuse(ValueError(f"{what}: significant needs auto_shutdown {allowed}, got 'never'"))


def _check_supervisor(spec: Supervisor | Pool, what: str) -> None:
    check_choice(f"{what}: on_limit", spec.on_limit, ("escalate", "shutdown"))
    check_choice(
        f"{what}: auto_shutdown", spec.auto_shutdown, ("never", "any_significant", "all_significant")
    )
    for child in (spec.template,) if isinstance(spec, Pool) else spec.children:
        if isinstance(child, _SPECS) and child.significant:
            check_fits(spec, child)
    if spec.init is not None and not callable(spec.init):
        refuse(TypeError(f"{what}: init must be a function, got {brief(spec.init)}"))


def walk(spec: Spec, path: str = "") -> Iterator[tuple[str, Spec]]:
    """Every node of a tree with its path, parents first, in start order."""
    waiting = [(f"{path}/{spec.name}" if path else spec.name, spec)]
    while waiting:
        here, node = waiting.pop()
        yield here, node
        if not isinstance(node, Child):
            waiting += [(f"{here}/{child.name}", child) for child in reversed(node.children)]


def placed_twice(spec: Spec) -> Iterable[str]:
    """One line for each spec object that stands at two places of a tree, for a spec is an address."""
    nodes = [spec]
    for node in nodes:
        if not isinstance(node, Child):
            nodes += node.children
    if len(set(nodes)) == len(nodes):
        return
    seen: dict[Spec, str] = {}
    for path, node in walk(spec):
        first = seen.setdefault(node, path)
        if first != path:
            yield f"one spec stands at two places: {first!r} and {path!r}; make two"
