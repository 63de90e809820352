"""Faults as data: scripts for the incarnations of children, put into a declared tree."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import outcome
import trio
from attrs import evolve, field, frozen

from .._core._brief import brief
from .._core._check import check_number, did_you_mean, is_a
from .._core._code import Code, as_code
from .._core.spec import Body, Child, Pool, Resource, Spec, Supervisor, walk
from .._trio.child import CurrentChild, current_child
from .._trio.leaf import _without_cancelled

S = TypeVar("S", Child, Supervisor, Pool)


class Injected(Exception):
    """A failure that no real code raises; `tag` is its tag (R1), None for none."""

    def __init__(self, *args: object, tag: str | None = None) -> None:
        super().__init__(*args)
        self.tag = tag

    def __repr__(self) -> str:
        given = [*map(repr, self.args), *([f"tag={self.tag!r}"] if self.tag else [])]
        return f"{type(self).__name__}({', '.join(given)})"


@frozen(repr=False)
class Fail(Code):
    """Raise a copy of `exc` after `after` seconds, 0 or more.

    Two are equal if their exceptions print the same.

    Raises:
        TypeError: `exc` is no exception, or `copy.copy` cannot copy it.
        ValueError: `after` is negative.
    """

    exc: BaseException = field(eq=as_code)
    after: float = field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.exc, BaseException):
            raise TypeError(f"Fail takes an exception, got {brief(self.exc)}")
        check_number("after", self.after, least=0)
        self.fresh()

    def fresh(self) -> BaseException:
        """A copy of the exception, without the traceback and context of earlier raises."""
        try:
            return copy.copy(self.exc)
        except Exception as problem:
            raise TypeError(
                f"Fail takes an exception that copy.copy can copy, got {brief(self.exc)}"
            ) from problem


@frozen(repr=False)
class Return(Code):
    """Return `value` after `after` seconds, 0 or more."""

    value: Any = None
    after: float = field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_number("after", self.after, least=0)


@frozen(repr=False)
class Delay(Code):
    """Take `after` seconds, 0 or more, and then go on as without a fault."""

    after: float

    def __attrs_post_init__(self) -> None:
        check_number("after", self.after, least=0)


@frozen(repr=False)
class Hang(Code):
    """Run normally for `after` seconds, 0 or more, then block until cancelled."""

    after: float = field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_number("after", self.after, least=0)


Act = Fail | Return | Delay | Hang


@frozen(kw_only=True, repr=False)
class Script(Code):
    """The faults of one incarnation of a child, phase by phase; None means no fault in that phase.

    Args:
        enter: a Fail, Delay or Hang while its resource is entered, before the real resource is.
        start: a Fail, Delay, Hang or Return before it is ready; Return of `IGNORE` means "not needed here" (R17).
        body: a Fail, Return or Hang once it is ready; `after` counts from then. The real body is cancelled then, and its own
            outcome is replaced by this one. A tuple has one for each time the body is entered, since a Resume enters it
            again, and `after` then counts from that entry; None in the tuple is an entry without a fault.
        drain: a Fail or Return once it is asked to stop and may drain; `after` counts from then (R20).
        stop: a Delay, Fail or Return once it is cancelled: it resists for `after` seconds, and then yields, fails or
            returns.
        leave: a Fail or Delay when its resource is left, after the real resource was; nothing interrupts it.

    All times are in seconds on Trio's clock.

    Raises:
        TypeError: a phase has a fault of a kind that it does not allow.
    """

    enter: Fail | Delay | Hang | None = None
    start: Fail | Return | Delay | Hang | None = None
    body: Fail | Return | Hang | tuple[Fail | Return | Hang | None, ...] | None = None
    drain: Fail | Return | None = None
    stop: Fail | Return | Delay | None = None
    leave: Fail | Delay | None = None

    def __attrs_post_init__(self) -> None:
        for phase, allowed in _ALLOWED.items():
            for act in self.bodies if phase == "body" else (getattr(self, phase),):
                if act is not None and not isinstance(act, allowed):
                    names = ", ".join(kind.__name__ for kind in allowed)
                    raise TypeError(f"a script's {phase} must be one of {names}, got {brief(act)}")

    def entry(self, number: int) -> Fail | Return | Hang | None:
        """The fault of the body when it is entered for the `number`th time, from 0; None if there is none."""
        return self.bodies[number] if number < len(self.bodies) else None

    @property
    def bodies(self) -> tuple[Fail | Return | Hang | None, ...]:
        """The faults of the body as a tuple, one for each entry."""
        return self.body if isinstance(self.body, tuple) else (self.body,)


_ALLOWED: Mapping[str, tuple[type[Act], ...]] = {
    "enter": (Fail, Delay, Hang),
    "start": (Fail, Return, Delay, Hang),
    "body": (Fail, Return, Hang),
    "drain": (Fail, Return),
    "stop": (Fail, Return, Delay),
    "leave": (Fail, Delay),
}
NOTHING = Script()


def _scripts(value: Mapping[str, Script | Iterable[Script]]) -> Mapping[str, tuple[Script, ...]]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a fault plan maps paths to scripts, got {brief(value)}")
    each: dict[str, tuple[Script, ...]] = {}
    for path, its in value.items():
        if not isinstance(path, str):
            raise TypeError(f"a fault plan maps paths such as 'app/db' to scripts, got {brief(path)}")
        if not isinstance(its, (Script, Iterable)):
            raise TypeError(f"a fault plan maps {path!r} to scripts, got {brief(its)}")
        each[path] = (its,) if isinstance(its, Script) else tuple(its)
    return MappingProxyType(each)


def checked_spec(value: object, who: str, *kinds: type[Any]) -> None:
    """Raise `TypeError` unless the value is a spec of one of these kinds."""
    if not is_a(value, kinds):
        allowed = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{who} takes a {allowed}, got {brief(value)}")


@frozen(repr=False)
class FaultPlan(Code):
    """The faults of a tree: for each path the scripts of its incarnations 1, 2, …; later incarnations have none.

    A plan is a value: compared by content, and printed as the code that makes it. A single script instead of a list is that
    of the first incarnation: `{"app/db": Script(…)}`.

    Raises:
        TypeError: it is not a mapping from paths to scripts.
    """

    scripts: Mapping[str, tuple[Script, ...]] = field(factory=dict[str, Any], converter=_scripts)

    def __attrs_post_init__(self) -> None:
        for path, its in self.scripts.items():
            for script in its:
                if not isinstance(script, Script):
                    raise TypeError(f"a fault plan maps {path!r} to scripts, got {brief(script)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by constructing anew: a `MappingProxyType` supports neither."""
        return FaultPlan, (dict(self.scripts),)

    def script(self, path: str, incarnation: int) -> Script:
        """The script of this incarnation of this node; an empty one if the plan has none."""
        its = self.scripts.get(path, ())
        return its[incarnation - 1] if 0 < incarnation <= len(its) else NOTHING

    def over(self, spec: S, *, at: str = "") -> S:
        """The same tree with these faults in its children's bodies and resources.

        Names and options stay, and the original specs remain valid addresses (`tree[spec]`). A child without a script keeps
        its own body.

        Args:
            spec: the whole tree, or a child that is to be added to one.
            at: the path of the supervisor to which that child is to be added.

        Raises:
            ValueError: a path of the plan is not in the tree or is that of a supervisor, or a script is for a resource that
                the child does not have. Paths of pool members are not checked.
            TypeError: `spec` is no spec.
        """
        self.check(spec, at=at)
        return self._over(spec, at)  # type: ignore[return-value]  # each is evolved from its own kind

    def check(self, spec: Spec, *, at: str = "") -> None:
        """Raise as `over` does, without making a tree."""
        checked_spec(spec, "a fault plan", Supervisor, Pool, Child)
        nodes = dict(walk(spec, at))
        for path in self.scripts:
            if not at or path in nodes:
                self._check(path, nodes)

    def _over(self, spec: Spec, at: str, *, always: bool = False) -> Spec:
        """Built bottom up, since a tree may be too deep for recursion. A node without a fault stays the same object."""
        made: dict[Spec, Spec] = {}
        for path, node in reversed(list(walk(spec, at))):
            made[node] = self._one(path, node, made, always=always)
        return made[spec]

    def _one(self, path: str, node: Spec, made: Mapping[Spec, Spec], *, always: bool) -> Spec:
        origin = node.origin or node
        if isinstance(node, Child):
            return self._child(node, origin) if always or path in self.scripts else node
        if isinstance(node, Pool):
            return evolve(node, template=self._over(node.template, path, always=True), origin=origin)
        children = [made[child] for child in node.children]
        return node if children == list(node.children) else evolve(node, children=children, origin=origin)

    def _check(self, path: str, nodes: Mapping[str, Spec]) -> None:
        node = nodes.get(path)
        above = path
        while node is None and above:
            above = above.rpartition("/")[0]
            if isinstance(nodes.get(above), Pool):
                return
        if node is None:
            raise ValueError(
                f"the plan has scripts for {path!r}, but there is no such child ({', '.join(nodes)})"
                + did_you_mean(path, nodes)
            )
        if not isinstance(node, Child):
            problem = (
                f"the plan has scripts for {path!r}, which is a supervisor: scripts are for its children"
            )
            raise ValueError(problem)  # noqa: TRY004 - the path is wrong, not a type
        if node.resource is None and any(script.enter or script.leave for script in self.scripts[path]):
            raise ValueError(f"the plan fails the resource of {path!r}, which has none")

    def _child(self, child: Child, origin: Spec) -> Child:
        resource = (
            None if child.resource is None else _named_as(child.resource, self._resource(child.resource))
        )
        return evolve(child, body=_named_as(child.body, self._body(child)), resource=resource, origin=origin)

    def _life(self) -> _Life:
        """The record of the current incarnation, kept in its own context."""
        child, life = current_child(), _here.get(None)
        if life is None or life.child is not child:
            life = _Life(child, self.script(child.path, child.incarnation))
            _here.set(life)
        return life

    def _body(self, child: Child) -> Body:
        async def body(*args: Any, task_status: trio.TaskStatus[Any]) -> object:
            return await self._life().live(
                partial(child.body, *args), task_status, passes=child.takes_task_status
            )

        return body

    def _resource(self, real: Resource) -> Resource:
        @asynccontextmanager
        async def resource() -> AsyncGenerator[Any, None]:
            script = self._life().script
            await _do(script.enter)
            try:
                async with real() as owned:
                    yield owned
            finally:
                with trio.CancelScope(shield=True):
                    await _do(script.leave)

        return resource


def _named_as(real: Any, made: Any) -> Any:
    """Give `made` the name of `real`, so that a tree with faults prints like the one without."""
    made.__qualname__ = getattr(real, "__qualname__", type(real).__qualname__)
    return made


_here: ContextVar[_Life] = ContextVar("supervise.testing.life")


async def _do(act: Act | None) -> Any:
    """Perform an act from its beginning. Returns the value of a Return."""
    if act is not None and act.after > 0:
        await trio.sleep(act.after)
    return await _finish(act)


async def _finish(act: Act | None) -> Any:
    """Perform an act whose `after` seconds have passed."""
    if isinstance(act, Fail):
        raise act.fresh()
    if isinstance(act, Hang):
        await trio.sleep_forever()
    return act.value if isinstance(act, Return) else None


class _Life:
    """One incarnation of a child that has a script."""

    def __init__(self, child: CurrentChild, script: Script) -> None:
        self.child = child
        self.script = script
        self.entries = 0

    async def live(self, real: Callable[..., Awaitable[object]], status: Any, *, passes: bool) -> object:
        """Run the body once, with the faults of this entry."""
        act = self.script.entry(self.entries)
        self.entries += 1
        result = await outcome.acapture(self._until_cancelled, real, status, act, passes)
        stopped = isinstance(result, outcome.Error) and _without_cancelled(result.error) is None
        if self.script.stop is None or not stopped or not self.child.stopping:
            return result.unwrap()
        value: object = None
        with trio.CancelScope(shield=True):
            value = await _do(self.script.stop)
        return value if isinstance(self.script.stop, Return) else result.unwrap()

    async def _until_cancelled(
        self, real: Callable[..., Awaitable[object]], status: Any, act: Act | None, passes: bool
    ) -> object:
        if not self.child.ready:
            value = await _do(self.script.start)
            if isinstance(self.script.start, Return):
                return value
        alarm = _Alarm(act, self.script.drain)
        if self.child.ready:
            alarm.arm()
        status = _Status(status, alarm)
        if passes:
            return await alarm.over(partial(real, task_status=status))
        status.started()
        return await alarm.over(real)


class _Status:
    """Wraps the real `task_status`: the time of the body's fault counts from `started`."""

    def __init__(self, status: trio.TaskStatus[Any], alarm: _Alarm) -> None:
        self._status = status
        self._alarm = alarm

    def started(self, value: Any = None) -> None:
        """Report that the child is ready, and start the time of the fault."""
        self._status.started(value)
        self._alarm.arm()


class _Alarm:
    """Ends a real body as its script demands: at a time, or some time after it is asked to stop."""

    def __init__(self, act: Act | None, drain: Act | None) -> None:
        self._act = act
        self._drain = drain
        self._scope = trio.CancelScope()
        self._armed = False
        self._drained = False

    def arm(self) -> None:
        if self._act is not None and not self._armed:
            self._scope.deadline = trio.current_time() + self._act.after
        self._armed = True

    async def over(self, real: Callable[[], Awaitable[object]]) -> object:
        if self._act is None and self._drain is None:
            return await real()
        result = await self._watched(real)
        if self._drained:
            return await _finish(self._drain)
        if self._act is not None and self._scope.cancel_called:
            return await _finish(self._act)
        return result.unwrap()

    async def _watched(self, real: Callable[[], Awaitable[object]]) -> outcome.Outcome[object]:
        result: outcome.Outcome[object] = outcome.Value(None)
        async with trio.open_nursery() as nursery:
            if self._drain is not None:
                nursery.start_soon(self._watch, self._drain.after)
            with self._scope:
                result = await outcome.acapture(real)
            nursery.cancel_scope.cancel("the body is over")
        return result

    async def _watch(self, seconds: float) -> None:
        await current_child().stop_requested()
        await trio.sleep(seconds)
        self._drained = True
        self._scope.cancel("the drain of its script is over")
