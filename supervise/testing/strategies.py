"""Hypothesis strategies: declared trees, and what may go wrong in them. Both print as code and shrink to little."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from string import ascii_lowercase
from typing import Any

from attrs import evolve
from hypothesis import strategies as st

from .._core.decide import AKKA, Decider, Rule
from .._core.directive import Escalate, Restart, Resume, Stop
from .._core.limit import Backoff, Limit
from .._core.spec import IGNORE, Child, Mailbox, Pool, Spec, Supervisor, walk
from .children import echo, idle, nothing
from .faults import Delay, Fail, FaultPlan, Hang, Injected, Return, Script

Option = tuple[str, Any]

DECIDERS = (
    AKKA,
    Decider(default=Resume),
    Decider(default=Escalate),
    Decider({Exception: Resume, "limit": Resume}),
    Decider({"a": Resume, "a.b": Escalate, OSError: Stop}),
    Decider({"c": Escalate, ConnectionError: Resume, "limit": Restart, "returned": Stop}),
    Decider({"c": Stop, Exception: Escalate}, rules=[Rule(ConnectionError, "a.x"), Rule(ValueError, "c")]),
)
FAILURES = (
    Injected("x"),
    Injected("x", tag="a"),
    Injected("x", tag="a.b"),
    Injected("x", tag="c"),
    ConnectionError("x"),
    OSError("x"),
    ValueError("x"),
)
LIMITS = (
    Limit(0),
    Limit(1),
    Limit(3, within=2.0),
    Limit(3, within=30.0),
    Limit(2, within=4.0, of_ready_time=True),
)
BACKOFFS = (
    Backoff(initial=0.5, jitter=0.0),
    Backoff(immediate=1),
    Backoff(initial=2.0, maximum=8.0, reset_after=3.0),
)


def _option(name: str, *values: Any) -> st.SearchStrategy[Option]:
    return st.tuples(st.just(name), st.sampled_from(values))


_OF_ALL = (
    _option("restart", "transient", "temporary"),
    _option("significant", True),
    _option("backoff", *BACKOFFS),
    *[_option("decider", *DECIDERS)] * 2,
    _option("start_timeout", 1.0, 4.0),
)
_OF_CHILD = (
    *_OF_ALL,
    *[_option("resource", nothing)] * 3,  # without one nothing is resumed
    _option("mailbox", Mailbox(4), Mailbox(1, on_loss="requeue")),
    _option("drain", 0.5, 3.0),
    _option("grace", 0.25, 1.0),
    _option("limit", *LIMITS),
)
_OF_POOL = (
    *_OF_ALL,
    _option("limit", None, *LIMITS),
    _option("on_limit", "shutdown"),
    _option("auto_shutdown", "any_significant", "all_significant"),
)
_OF_SUPERVISOR = (*_OF_POOL, _option("strategy", "one_for_all", "rest_for_one"))


def _options(each: Sequence[st.SearchStrategy[Option]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(st.one_of(each), max_size=6).map(dict)


_CHILDREN = st.tuples(st.just(Child), _options(_OF_CHILD), st.integers(0, 31))
_NODES = st.one_of(
    *[_CHILDREN] * 4,  # most nodes are leaves
    st.tuples(st.just(Supervisor), _options(_OF_SUPERVISOR), st.integers(0, 31)),
    st.tuples(st.just(Pool), st.tuples(_options(_OF_POOL), _options(_OF_CHILD)), st.integers(0, 31)),
)


def trees(*, min_size: int = 1, max_size: int = 12) -> st.SearchStrategy[Supervisor]:
    """Declared trees of idle children: every strategy, restart type, limit, decider …, nested supervisors and pools.

    Children with a mailbox are `echo`; the others are `idle`. Shrinks to few nodes with few options.

    Args:
        min_size: at least so many nodes below the root; one of them is a leaf.
        max_size: at most so many.
    """
    others = st.lists(_NODES, min_size=min_size - 1, max_size=max_size - 1)
    nodes = st.tuples(_CHILDREN, others).map(lambda its: [its[0], *its[1]])
    return st.builds(_grown, _options(_OF_SUPERVISOR), nodes)


def _grown(options: dict[str, Any], nodes: Sequence[tuple[type[Any], Any, int]]) -> Supervisor:
    """Hang each node below one of the last supervisors before it, then build bottom up."""
    below: list[list[int]] = [[] for _ in range(len(nodes) + 1)]
    homes = [0]
    for number, (kind, _, where) in enumerate(nodes, 1):
        below[homes[-1 - where % len(homes)]].append(number)
        homes += [number] if kind is Supervisor else []
    made: dict[int, Spec] = {}
    for number in range(len(nodes), 0, -1):
        kind, its, _ = nodes[number - 1]
        made[number] = _made(kind, _name(number - 1), its, [made[child] for child in below[number]])
    return _supervisor("app", options, [made[child] for child in below[0]])


def _name(number: int) -> str:
    """One of a, b, … z, a1, b1, and so on."""
    turn, letter = divmod(number, len(ascii_lowercase))
    return ascii_lowercase[letter] + (str(turn) if turn else "")


def _made(kind: type[Any], name: str, options: Any, children: Sequence[Spec]) -> Spec:
    if kind is Child:
        return _child(name, options)
    if kind is Supervisor:
        return _supervisor(name, options, children)
    its, of_members = options
    template = _fitting([_child("m", of_members)], its)[0]
    return Pool(name, template, **_consistent(its))


def _child(name: str, options: dict[str, Any]) -> Child:
    return Child(name, echo if "mailbox" in options else idle, **_consistent(options))


def _supervisor(name: str, options: dict[str, Any], children: Sequence[Spec]) -> Supervisor:
    return Supervisor(name, _fitting(children, options), **_consistent(options))


def _consistent(options: dict[str, Any]) -> dict[str, Any]:
    """A permanent child cannot be significant."""
    if "significant" in options and "restart" not in options:
        return {**options, "restart": "transient"}
    return options


def _fitting(children: Iterable[Spec], options: dict[str, Any]) -> list[Spec]:
    """Where nothing shuts down automatically, no child is significant."""
    if "auto_shutdown" in options:
        return list(children)
    return [_insignificant(child) for child in children]


def _insignificant(child: Spec) -> Spec:
    return evolve(child, significant=False) if child.significant else child


_TIMES = st.integers(0, 40).map(lambda eighths: eighths / 8)
_FAIL = st.builds(Fail, st.sampled_from(FAILURES), after=_TIMES)
_DELAY = st.builds(Delay, _TIMES)
_HANG = st.builds(Hang, after=_TIMES)
_RETURN = st.builds(Return, after=_TIMES)
_IGNORED = st.builds(Return, st.just(IGNORE), after=_TIMES)
_BODY = st.one_of(_FAIL, _RETURN)
_BODIES = st.lists(_BODY, min_size=2, max_size=4).map(tuple)


def scripts(child: Child) -> st.SearchStrategy[Script]:
    """What one incarnation of this child may do.

    Nothing waits without an end: only with a `start_timeout` may its start hang.
    """
    return _scripts(*_faces(child))


def _faces(child: Child) -> tuple[bool, bool, bool]:
    """What of a child matters to its scripts."""
    return child.start_timeout is not None, child.drain > 0, child.resource is not None


@cache
def _scripts(timed: bool, drains: bool, owns: bool) -> st.SearchStrategy[Script]:
    hang = (_HANG,) if timed else ()
    starts: dict[str, st.SearchStrategy[Any]] = {"start": st.one_of(_FAIL, _DELAY, _IGNORED, _RETURN, *hang)}
    starts |= {"enter": st.one_of(_FAIL, _DELAY, *hang)} if owns else {}
    return _of_acts(drains, owns, starts)


def _of_acts(drains: bool, owns: bool, acts: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Script]:
    """Those acts, and what may go wrong once it is up: above all in its body."""
    acts = {**acts, "stop": st.one_of(_DELAY, _FAIL, _RETURN)}
    acts |= {"drain": st.one_of(_RETURN, _FAIL)} if drains else {}
    acts |= {"leave": st.one_of(_FAIL, _DELAY)} if owns else {}
    others = [st.tuples(st.just(name), its) for name, its in acts.items()]
    body: st.SearchStrategy[Option] = st.tuples(st.just("body"), st.one_of(_BODY, _BODIES))
    return st.lists(st.one_of([body] * len(others) + others), min_size=1, max_size=3).map(_script)


def _script(acts: list[Option]) -> Script:
    return Script(**dict(acts))


@cache
def _lives(timed: bool, drains: bool, owns: bool) -> st.SearchStrategy[list[Script]]:
    """Most first starts succeed: one that fails ends the whole tree before anything has happened."""
    later = _scripts(timed, drains, owns)
    first = st.one_of(*[_of_acts(drains, owns, {})] * 5, later)
    return st.tuples(first, st.lists(later, max_size=3)).map(lambda its: [its[0], *its[1]])


def fault_plans(tree: Supervisor | Pool, *, max_size: int = 8) -> st.SearchStrategy[FaultPlan]:
    """What may go wrong in a tree: scripts for some of its children, and for the first members of its pools.

    Shrinks to few scripts.

    Args:
        tree: the tree, without a plan over it.
        max_size: at most so many children have scripts.
    """
    children = dict(_children(tree))
    if not children:
        return st.just(FaultPlan())
    return _plans(children, max_size)


@st.composite
def _plans(draw: st.DrawFn, children: dict[str, Child], max_size: int) -> FaultPlan:
    paths = draw(st.lists(st.sampled_from(list(children)), min_size=1, max_size=max_size, unique=True))
    return FaultPlan({path: draw(_lives(*_faces(children[path]))) for path in paths})


def _children(tree: Supervisor | Pool) -> Iterable[tuple[str, Child]]:
    for path, node in walk(tree):
        if isinstance(node, Child):
            yield path, node
        elif isinstance(node, Pool) and isinstance(node.template, Child):
            yield from ((f"{path}/{node.template.name}-{number}", node.template) for number in (1, 2, 3))
