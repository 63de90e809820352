"""The declaration of a tree: frozen values that validate themselves and are compared by identity."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import FunctionType
from typing import Any, Final, Literal, cast

from attrs import Factory, evolve, field, frozen

from ..errors import ChildStopped, MailboxFull
from ._brief import brief
from ._call import fits_at_a_glance, misfit, wrong_body, wrong_function, wrong_resource
from ._check import check_choice, check_number, did_you_mean, is_a, made, plain, refuse
from ._code import Code
from ._value import Value
from .decide import Decider, Rule
from .limit import Backoff, Limit

_STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
_AUTO_SHUTDOWNS = ("never", "any_significant", "all_significant")
_AS_LIST = {"as list": True}

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

    def __reduce__(self) -> str:
        """Copying and unpickling give this same object."""
        return "IGNORE"


IGNORE: Final = _Ignore()
"""A child returns this before it is ready if it is not needed here; it stays in the tree, not running (R17)."""


def _kind(spec: object) -> str:
    return type(spec).__name__.lower()


def _put(spec: object, name: str, value: object) -> None:
    """Set a field of a frozen value during its construction: a check that notes problems goes on with this value instead."""
    object.__setattr__(spec, name, value)


def _check_name(what: str, spec: Child | Supervisor | Pool) -> None:
    name: object = spec.name
    if not isinstance(name, str):
        refuse(TypeError(f"{what}'s name must be a string, got {brief(name)}"))
        _put(spec, "name", "?")
    elif not name or "/" in name or name != name.strip():
        refuse(
            ValueError(f"{what}'s name must be non-empty, without '/' and outer spaces, got {brief(name)}")
        )
    elif name in (".", ".."):  # in a URL it would lead to another node
        refuse(ValueError(f"{what}'s name must not be '.' or '..', got {brief(name)}"))


def _is_spec(value: object) -> bool:
    return is_a(value, _SPECS)


def _check_as_child(spec: Child | Supervisor | Pool) -> str:
    """Check the fields that every kind of node has. Returns its kind and name, for further messages."""
    made(spec)
    _check_name(_kind(spec), spec)
    what = f"{_kind(spec)} {spec.name!r}"
    if type(spec.restart) is not str or spec.restart not in _RESTART_TYPES:
        check_choice(f"{what}: restart", spec.restart, _RESTART_TYPES)
        _put(spec, "restart", "permanent")
    if spec.significant is not False and spec.significant is not True:
        refuse(TypeError(f"{what}: significant must be a bool, got {brief(spec.significant)}"))
        _put(spec, "significant", False)
    if spec.significant and spec.restart == "permanent":
        refuse(ValueError(f"{what}: significant needs restart 'transient' or 'temporary', got 'permanent'"))
    for name, kind in _PARTS.items():
        part = getattr(spec, name)
        if part is not None and type(part) is not kind:
            _check_part(spec, what, name, kind)
    if spec.start_timeout is not None and not check_number(
        f"{what}: start_timeout", spec.start_timeout, least=0, more=True
    ):
        _put(spec, "start_timeout", None)
    return what


_RESTART_TYPES = ("permanent", "transient", "temporary")
_PARTS: dict[str, type[Any]] = {"decider": Decider, "limit": Limit, "backoff": Backoff}
_EXAMPLES = {
    "decider": "Decider({ConnectionError: Restart})",
    "limit": "Limit(3, within=5)",
    "backoff": "Backoff(initial=0.5)",
    "member_limit": "Limit(3, within=5)",
}


def _check_part(spec: object, what: str, name: str, kind: type[Any]) -> None:
    part = getattr(spec, name)
    if part is None or is_a(part, kind):
        return
    example = f", such as {_EXAMPLES[name]}"
    refuse(TypeError(f"{what}: {name} must be a {kind.__name__} or None, got {brief(part)}{example}"))
    _put(spec, name, None)


def _check_call(spec: object, what: str, given: Iterable[str] | None, why: str) -> None:
    """Check a field that holds a plain function; `given` is None if its arguments are not known yet."""
    name = what.rpartition(" ")[2]
    function = getattr(spec, name)
    wrong = None if function is None else wrong_function(function, why, given)
    if wrong is not None:
        refuse(TypeError(f"{what} {wrong}"))
        _put(spec, name, None)


def _name_of(front: Any) -> Any:
    return front.name if _is_spec(front) else plain(front)


def _front_child(supervisor: Supervisor) -> Spec | None:
    if type(supervisor.front) is not str or type(supervisor.children) is not tuple:
        return None
    return next(
        (child for child in supervisor.children if _is_spec(child) and child.name == supervisor.front), None
    )


def _listed(value: Any) -> Any:
    """A tuple of the items; a value that is no list stays as it is, and its field's check refuses it."""
    if is_a(value, (str, bytes, bytearray, Mapping, AbstractSet, Child, Supervisor, Pool, Rule)):
        return value
    try:
        return tuple(value)
    except Exception:  # noqa: BLE001 - a user's iterator may raise anything
        return value


def _takes_task_status(body: object) -> bool:
    """Whether the function takes `task_status`, as functions for `nursery.start` do."""
    if isinstance(body, FunctionType) and not vars(body):  # not wrapped: much faster than `inspect.signature`
        code = body.__code__
        return "task_status" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        parameters = inspect.signature(body).parameters  # type: ignore[arg-type]  # `wrong_body` refuses it if it is no callable
    except Exception:  # noqa: BLE001 - Some have no signature, and a user's object may raise anything.
        return False
    return "task_status" in parameters


def _is_exception_class(value: object) -> bool:
    return is_a(value, type) and issubclass(cast("type", value), Exception)


@frozen(repr=False, eq=False)
class Mailbox(Code, Value):
    """The mailbox of a child (R29, R30).

    Args:
        size: how many messages may wait, 1 or more; a further sender waits, or gets the error `full` from the `_nowait`
            form.
        on_loss: what happens to a message in hand when the incarnation ends, unless the sender chooses otherwise: `fail`:
            the caller who waits gets `CallLost`; `requeue`: the message goes back to the head of the queue.
        stopped: the class of error for callers who send to, or wait at, a node that is down for good.
        full: the class of error for callers who do not wait for room.
        deadline: `deadline(value)` is the time on Trio's clock at which the caller of that message gets the error `late`
            if it has no answer; None is never. The items of a stream that were sent by then come first.
        late: the class of error for callers past their deadline.
        carry: `carry()` is called in the sender's task for each message, and the body gets what it returns as
            `message.carried`: the context of a trace, for instance. What it raises, the sender gets. None carries nothing.
        affinity: for a mailbox that children share (R37): `affinity(value)` is the key of a message, a str, int, bytes or None. A
            message goes to the child that took the last one with its key, if that child waits for one; None prefers no child.
            If it raises, or returns anything else, that is logged, and it is not called again.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
    """

    size: int = field(default=64, converter=plain)
    on_loss: OnLoss = field(default="fail", kw_only=True, converter=plain)
    stopped: type[Exception] = field(default=ChildStopped, kw_only=True)
    full: type[Exception] = field(default=MailboxFull, kw_only=True)
    deadline: Callable[[Any], float | None] | None = field(default=None, kw_only=True)
    late: type[Exception] = field(default=TimeoutError, kw_only=True)
    carry: Callable[[], Any] | None = field(default=None, kw_only=True)
    affinity: Callable[[Any], str | int | bytes | None] | None = field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not check_number("a mailbox's size", self.size, least=1, kind=int):
            _put(self, "size", 64)
        if not check_choice("a mailbox's on_loss", self.on_loss, ("fail", "requeue")):
            _put(self, "on_loss", "fail")
        _check_call(self, "a mailbox's deadline", ("value",), "it returns the time, and is not awaited")
        _check_call(self, "a mailbox's carry", (), "its result goes with the message, and is not awaited")
        _check_call(self, "a mailbox's affinity", ("value",), "it returns the key, and is not awaited")
        for name, instead in (("stopped", ChildStopped), ("full", MailboxFull), ("late", TimeoutError)):
            value = getattr(self, name)
            if not _is_exception_class(value):
                refuse(TypeError(f"a mailbox's {name} must be an exception class, got {brief(value)}"))
                _put(self, name, instead)


SHARED: Literal["shared"] = "shared"
"""The `mailbox` of a child that takes its messages from the mailbox of its supervisor (R37)."""


def _mailbox(value: Mailbox | int | str | None) -> Mailbox | Literal["shared"] | None:
    if value is None or is_a(value, Mailbox):
        return cast("Mailbox | None", value)
    if not is_a(value, str):
        return Mailbox(cast("int", value))
    if plain(value) != SHARED:
        what = f"a mailbox must be a size, a Mailbox or {SHARED!r}, got {brief(value)}"
        refuse(ValueError(what + did_you_mean(value, (SHARED,))))
    return SHARED


@frozen(eq=False, repr=False, kw_only=True)
class _AsChild(Code):
    restart: RestartType = field(default="permanent", converter=plain)
    significant: bool = False
    start_timeout: float | None = field(default=None, converter=plain)
    backoff: Backoff | None = None
    decider: Decider | None = None
    origin: Any = field(default=None, repr=False)
    """The spec that this one replaces, which stays its address (`FaultPlan.over` makes such specs)."""
    misfit: str | None = field(default=None, init=False, repr=False)
    """Why its body, or its `init`, needs more arguments; None if it does not, or if that is not known."""


@frozen(eq=False, repr=False)
class Child(_AsChild):
    """A leaf: an async function, with an optional resource and mailbox.

    It is called as `body([resource], [inbox], *args)`. If it takes `task_status` it is ready when it calls
    `task_status.started(value)`, else as soon as its resource is entered and its body runs (R17).

    Args:
        name: unique among its siblings; not empty, without `/` and outer spaces.
        body: an async function for Trio, or a `functools.partial` of one.
        resource: a function without arguments that makes an async context manager; it is entered anew for each
            incarnation, and Resume keeps it (R8, R9).
        mailbox: how many messages may wait (R29), or a `Mailbox`; "shared": the child takes its messages from the mailbox of
            its supervisor (R37); None: the child has none.
        args: further positional arguments of the body.
        restart: `permanent`: its return is a failure tagged `returned`; `transient`: restarted after failures only;
            `temporary`: never restarted, and leaves the tree when it ends (R7).
        significant: its own end may end its supervisor, see `auto_shutdown` (R18); not for a `permanent` child.
        start_timeout: the seconds in which it must become ready (R17); None is no timeout.
        start_warning: seconds after which a start in progress is reported, with its stack, and again at doubling
            intervals (R17); more than 0, may be `inf`.
        drain: seconds between the request to stop and the cancel; 0 cancels at once (R20).
        grace: seconds between the cancel and the report that it is overdue (R20).
        limit: its own limit; passing it is a failure tagged `limit`, which means Stop by default (R14); None is no limit.
        backoff: how long to wait before a restart (R15); None restarts at once.
        decider: the decider that is asked before its supervisor's (R2); None asks only that one.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
    """

    name: str = field(converter=plain)
    body: Body
    resource: Resource | None = field(default=None, kw_only=True)
    mailbox: Mailbox | Literal["shared"] | None = field(default=None, converter=_mailbox, kw_only=True)
    args: tuple[Any, ...] = field(default=(), converter=_listed, kw_only=True, metadata=_AS_LIST)
    drain: float = field(default=0.0, kw_only=True, converter=plain)
    grace: float = field(default=5.0, kw_only=True, converter=plain)
    start_warning: float = field(default=30.0, kw_only=True, converter=plain)
    limit: Limit | None = field(default=None, kw_only=True)
    takes_task_status: bool = field(
        init=False, repr=False, default=Factory(lambda self: _takes_task_status(self.body), takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        what = _check_as_child(self)
        self._check_functions(what)
        if isinstance(self.mailbox, Mailbox) and self.mailbox.affinity is not None:
            refuse(
                ValueError(
                    f"{what}: its own mailbox must not have an affinity; one that it shares, its supervisor's, may"
                )
            )
            _put(self, "mailbox", evolve(self.mailbox, affinity=None))
        if type(self.args) is not tuple:
            refuse(TypeError(f"{what}: args must be a tuple or list of arguments, got {brief(self.args)}"))
            _put(self, "args", ())
            _put(self, "body", _refused)  # so that its arguments cause no second problem
        times = (
            ("drain", self.drain, 0.0),
            ("grace", self.grace, 5.0),
            ("start_warning", self.start_warning, 30.0),
        )
        for name, seconds, instead in times:
            if (type(seconds) is not float or not seconds > 0) and not check_number(
                f"{what}: {name}", seconds, least=0, more=name == "start_warning"
            ):
                _put(self, name, instead)
        self._check_arguments()

    def _check_functions(self, what: str) -> None:
        """Refuse a body or a resource that certainly cannot work."""
        wrong = wrong_body(self.body)
        if wrong is not None:
            refuse(TypeError(f"{what}: body {wrong}"))
            _put(self, "body", _refused)
            _put(self, "takes_task_status", False)
        wrong = None if self.resource is None else wrong_resource(self.resource)
        if wrong is not None:
            refuse(TypeError(f"{what}: resource {wrong}"))

    def _check_arguments(self) -> None:
        """Refuse too many arguments for the body. Too few are only noted, since a pool gives its template more later."""
        count = (self.resource is not None) + (self.mailbox is not None) + len(self.args)
        if fits_at_a_glance(self.body, count, task_status=self.takes_task_status):
            return
        given = ["resource"] * (self.resource is not None) + ["inbox"] * (self.mailbox is not None)
        given += [f"args[{number}]" for number in range(len(self.args))]
        why = misfit(self.body, given, task_status=self.takes_task_status)
        if why is None:
            return
        problem = f"child {self.name!r}: body {why}{self._advice(why)}"
        if misfit(self.body, given, task_status=self.takes_task_status, some=True) is not None:
            refuse(TypeError(problem))
        else:
            _put(self, "misfit", problem)

    def _advice(self, why: str) -> str:
        if "too many positional" in why and (self.mailbox is not None or self.resource is not None):
            return "; it gets " + " and ".join(
                [f"its {name}" for name in ("resource", "mailbox") if getattr(self, name) is not None]
            )
        if "'inbox'" in why and self.mailbox is None:
            return "; declare mailbox=…"
        return ""


@frozen(eq=False, repr=False)
class Supervisor(_AsChild):
    """A node that starts its children in order, stops them in reverse, and decides what a failure means.

    Args:
        name: unique among its siblings; not empty, without `/` and outer spaces.
        children: the specs of its children, in start order (R12).
        strategy: the children that are restarted with a failed one: `one_for_one` none, `one_for_all` all, `rest_for_one`
            those after it (R13).
        limit: passing it is a failure of this supervisor (R14); None is no limit.
        on_limit: `escalate`: that failure goes up; `shutdown`: the supervisor stops its children and ends normally, as in
            OTP.
        auto_shutdown: `any_significant`: the supervisor ends normally when a significant child has ended;
            `all_significant`: when all of them have; `never` (R18).
        front: the name or spec of the child that answers at this supervisor's address (R34); None: no child does.
        mailbox: instead of a front, a mailbox at this address, from which its children with `mailbox="shared"` take their
            messages (R37): how many may wait, or a `Mailbox`; "shared": those children take from the mailbox that this
            supervisor shares, which is that of its own supervisor.
        init: a plain function, called before each start of the children; it may return `IGNORE` (R17), or raise, which is a
            failed start.
        restart, significant, start_timeout, backoff, decider: as for `Child`; `decider` also decides for the nodes below.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range; two children of one name; an unknown `front`.
    """

    name: str = field(converter=plain)
    children: tuple[Spec, ...] = field(converter=_listed, metadata=_AS_LIST)
    strategy: Strategy = field(default="one_for_one", kw_only=True, converter=plain)
    limit: Limit | None = field(default=Limit(3, within=5), kw_only=True)
    on_limit: OnLimit = field(default="escalate", kw_only=True, converter=plain)
    auto_shutdown: AutoShutdown = field(default="never", kw_only=True, converter=plain)
    front: str | None = field(default=None, kw_only=True, converter=_name_of)
    mailbox: Mailbox | Literal["shared"] | None = field(default=None, converter=_mailbox, kw_only=True)
    init: Callable[..., object] | None = field(default=None, kw_only=True)

    front_child: Spec | None = field(init=False, repr=False, default=Factory(_front_child, takes_self=True))
    """The child that `front` names."""

    def __attrs_post_init__(self) -> None:
        what = _check_as_child(self)
        self._check_children(what)
        if not check_choice(f"{what}: strategy", self.strategy, _STRATEGIES):
            _put(self, "strategy", "one_for_one")
        _check_supervisor(self, what)
        names = Counter([child.name for child in self.children])
        if len(names) < len(self.children):
            for name in (name for name, count in names.items() if count > 1):
                refuse(ValueError(f"{what} has two children named {name!r}"))
        if self.front is not None and (type(self.front) is not str or self.front not in names):
            problem = (
                f"{what}: front must be one of its children ({', '.join(names)}), got {brief(self.front)}"
            )
            refuse(ValueError(problem + did_you_mean(self.front, names)))
            _put(self, "front", None)
        if self.front is not None and isinstance(self.mailbox, Mailbox):
            refuse(ValueError(f"{what} must have a front or a mailbox at its address, got both"))

    def _check_children(self, what: str) -> None:
        children: Any = self.children
        if type(children) is not tuple:
            problem = f"{what}: children must be a list of Child, Supervisor and Pool, got {brief(children)}"
            one = "; write it in brackets" if _is_spec(children) else ""
            refuse(TypeError(problem + one))
            _put(self, "children", (children,) if one else ())
        for child in self.children:
            if not _is_spec(child):
                refuse(
                    TypeError(f"{what}: each child must be a Child or Supervisor or Pool, got {brief(child)}")
                )
        if not all(map(_is_spec, self.children)):
            _put(self, "children", tuple(filter(_is_spec, self.children)))
        for child in self.children:
            if child.misfit is not None:
                refuse(TypeError(child.misfit))


@frozen(eq=False, repr=False)
class Pool(_AsChild):
    """A dynamic supervisor: one template, whose members are added and end at run time (R26).

    Its strategy is one_for_one. It stops its members all at once, in no order, and is empty after a restart. A member leaves
    the pool when it has ended for good.

    Args:
        name: unique among its siblings; not empty, without `/` and outer spaces.
        template: the spec of every member; each gets its own name, and the arguments that `add` gives to its body, or to
            its `init` if it is a supervisor.
        maximum: the most members, 1 or more; a further one is refused with the reason `full` (R25); None is no maximum.
        member_limit: the limit of each member that is a `Child` without its own, so that one bad member cannot take the pool
            down; None is no limit.
        limit: the limit of all members together; None, the default, is no limit.
        on_limit, auto_shutdown, mailbox, init, restart, significant, start_timeout, backoff, decider: as for `Supervisor`.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
    """

    name: str = field(converter=plain)
    template: Spec
    maximum: int | None = field(default=None, kw_only=True, converter=plain)
    member_limit: Limit | None = field(default=Limit(3, within=5), kw_only=True)
    limit: Limit | None = field(default=None, kw_only=True)
    on_limit: OnLimit = field(default="escalate", kw_only=True, converter=plain)
    auto_shutdown: AutoShutdown = field(default="never", kw_only=True, converter=plain)
    mailbox: Mailbox | Literal["shared"] | None = field(default=None, converter=_mailbox, kw_only=True)
    init: Callable[..., object] | None = field(default=None, kw_only=True)

    children: tuple[Spec, ...] = field(default=(), init=False, repr=False)
    strategy: Strategy = field(default="one_for_one", init=False, repr=False)
    front: str | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        what = _check_as_child(self)
        if not _is_spec(self.template):
            refuse(
                TypeError(
                    f"{what}: template must be a Child or Supervisor or Pool, got {brief(self.template)}"
                )
            )
            _put(self, "template", Child("?", _refused))
        _check_part(self, what, "member_limit", Limit)
        if self.maximum is not None and not check_number(f"{what}: maximum", self.maximum, least=1, kind=int):
            _put(self, "maximum", None)
        _check_supervisor(self, what)

    def member(self, name: str, args: Sequence[Any]) -> Spec:
        """The template with its own name, and with `args` for its body or its `init`. Raises TypeError if they do not fit."""
        template = self.template
        if args and _is_spec(args[0]):
            raise TypeError(
                f"pool {self.name!r} makes its members from its template: add takes their arguments, got {brief(args[0])}"
            )
        member: Spec
        if isinstance(template, Child):
            member = evolve(template, name=name, args=(*template.args, *args), limit=self._limit_of_members)
        elif args and template.init is None:
            raise TypeError(
                f"pool {self.name!r}: a member without an init takes no arguments, got {brief(args)}"
            )
        else:
            member = evolve(
                template, name=name, init=partial(template.init, *args) if template.init else None
            )
        if member.misfit is not None:
            raise TypeError(f"pool {self.name!r}: {member.misfit}")
        return member

    @property
    def _limit_of_members(self) -> Limit | None:
        return self.member_limit if self.template.limit is None else self.template.limit

    def pattern(self) -> Spec:
        """The spec of every member, before its name and arguments."""
        if isinstance(self.template, Child):
            return evolve(self.template, limit=self._limit_of_members)
        return self.template


Spec = Child | Supervisor | Pool
_SPECS = (Child, Supervisor, Pool)


async def _refused(*_: object) -> None:
    """Replaces a refused body, while a whole file is checked."""


def check_fits(supervisor: Supervisor | Pool, child: Spec) -> None:
    """Refuse a significant child of a supervisor that never shuts down by itself (R18), and messages from no mailbox (R37)."""
    what = f"{_kind(supervisor)} {supervisor.name!r}: child {child.name!r}"
    if child.mailbox is SHARED and supervisor.mailbox is None:
        refuse(
            ValueError(
                f"{what} is to take the messages of its supervisor, which has no mailbox: declare mailbox=… there too"
            )
        )
    if child.significant and supervisor.auto_shutdown == "never":
        allowed = "'any_significant' or 'all_significant'"
        refuse(ValueError(f"{what}: significant needs auto_shutdown {allowed}, got 'never'"))


def _check_supervisor(spec: Supervisor | Pool, what: str) -> None:
    if not check_choice(f"{what}: on_limit", spec.on_limit, ("escalate", "shutdown")):
        _put(spec, "on_limit", "escalate")
    if not check_choice(f"{what}: auto_shutdown", spec.auto_shutdown, _AUTO_SHUTDOWNS):
        _put(spec, "auto_shutdown", "never")
    for child in (spec.template,) if isinstance(spec, Pool) else spec.children:
        if child.significant or child.mailbox is SHARED:
            check_fits(spec, child)
    why = None if spec.init is None else misfit(spec.init, ())
    if why is not None:
        _put(spec, "misfit", f"{what}: init {why}")
        if misfit(spec.init, (), some=True) is not None:
            # It fits also no arguments that a pool's `add` may give it.
            refuse(TypeError(spec.misfit))
    _check_call(spec, f"{what}: init", None, "it is called before the children start, and is not awaited")


def walk(spec: Spec, path: str = "") -> Iterator[tuple[str, Spec]]:
    """Every node of a tree with its path, parents first, in start order."""
    waiting = [(f"{path}/{spec.name}" if path else spec.name, spec)]
    while waiting:
        here, node = waiting.pop()
        yield here, node
        if not isinstance(node, Child):
            waiting += [(f"{here}/{child.name}", child) for child in reversed(node.children)]


def placed_twice(spec: Spec) -> Iterable[tuple[Spec, str]]:
    """Each spec object that stands at two places of a tree, with one line: a spec is an address, so it must be unique."""
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
            yield node, f"one spec stands at two places: {first!r} and {path!r}; make two"
