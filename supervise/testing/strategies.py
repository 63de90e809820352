"""Hypothesis strategies for declared trees and for fault plans. Both print as code, and shrink to small ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from string import ascii_lowercase
from typing import Any, NamedTuple

from attrs import evolve
from hypothesis import strategies as st

from .._core._brief import brief
from .._core._check import check_number
from .._core.decide import AKKA, FRAMEWORK_TAGS, Decider, Rule, is_decidable, judge
from .._core.directive import Directive, Escalate, Restart, Resume, Stop
from .._core.limit import Backoff, Limit
from .._core.spec import IGNORE, Child, Mailbox, Pool, Spec, Supervisor, walk
from .children import echo, idle, nothing, starter
from .faults import Delay, Fail, FaultPlan, Hang, Injected, Return, Script, checked_spec

Option = tuple[str, Any]
_KEPT = 256
"""How many strategies are cached: making one takes longer than drawing from it."""

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
    *[_option("resource", nothing)] * 3,  # without a resource no failure is resumed
    *[_option("starts", True)]
    * 3,  # only a child that takes `task_status` can return IGNORE before it is ready
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
    _option("mailbox", Mailbox(3)),
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
    """Declared trees of idle children, with nested supervisors and pools, and options of every kind.

    Children with a mailbox share that of their supervisor, if it has one (R37). Their body is `echo`; the others have `idle`, or
    `starter`, which takes `task_status`. Shrinks to few nodes with few options.

    Args:
        min_size: the least number of nodes below the root, 1 or more; one of them is a leaf.
        max_size: the greatest number of nodes below the root, `min_size` or more.

    Raises:
        TypeError, ValueError: a size is no integer, or out of range.
    """
    check_number("min_size", min_size, least=1, kind=int)
    check_number("max_size", max_size, least=min_size, kind=int)
    others = st.lists(_NODES, min_size=min_size - 1, max_size=max_size - 1)
    nodes = st.tuples(_CHILDREN, others).map(lambda its: [its[0], *its[1]])
    return st.builds(_grown, _options(_OF_SUPERVISOR), nodes)


def _grown(options: dict[str, Any], nodes: Sequence[tuple[type[Any], Any, int]]) -> Supervisor:
    """Put each node below one of the last supervisors before it, then build bottom up."""
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
    """The names a, b, … z, a1, b1, and so on."""
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
    options = dict(options)
    body = starter if options.pop("starts", False) else idle
    return Child(name, echo if "mailbox" in options else body, **_consistent(options))


def _supervisor(name: str, options: dict[str, Any], children: Sequence[Spec]) -> Supervisor:
    return Supervisor(name, _fitting(children, options), **_consistent(options))


def _consistent(options: dict[str, Any]) -> dict[str, Any]:
    """Make a significant child transient, since a permanent one cannot be significant."""
    if "significant" in options and "restart" not in options:
        return {**options, "restart": "transient"}
    return options


def _fitting(children: Iterable[Spec], options: dict[str, Any]) -> list[Spec]:
    """Make no child significant if its supervisor never shuts down automatically; share its mailbox, if it has one."""
    children = list(children)
    if "auto_shutdown" not in options:
        children = [evolve(child, significant=False) if child.significant else child for child in children]
    if "mailbox" in options:
        children = [_sharing(child) for child in children]
    return children


def _sharing(child: Spec) -> Spec:
    return (
        evolve(child, mailbox="shared") if isinstance(child, Child) and child.mailbox is not None else child
    )


def scripts(
    child: Child, *, exceptions: Iterable[BaseException | type[BaseException]] = (), horizon: float = 5.0
) -> st.SearchStrategy[Script]:
    """Scripts for one incarnation of this child.

    No script waits for ever: only a child with a `start_timeout` may hang in its start.

    Args:
        child: the child; the exceptions also cover its own decider, see `fault_plans`.
        exceptions: as for `fault_plans`.
        horizon: as for `fault_plans`.

    Raises:
        TypeError: as for `fault_plans`.
    """
    checked_spec(child, "scripts", Child)
    chain = () if child.decider is None else (child.decider,)
    return _scripts(_faces(child), _failing(chain, _instances(exceptions), _checked(horizon)), horizon)


def fault_plans(
    tree: Supervisor | Pool,
    *,
    exceptions: Iterable[BaseException | type[BaseException]] = (),
    horizon: float = 5.0,
    max_size: int = 8,
) -> st.SearchStrategy[FaultPlan]:
    """Fault plans for a tree: scripts for some of its children, and for the first members of its pools.

    A child fails with common exceptions, and with those that its decider and the deciders above it name: each tag, each class
    and each rule, so that every directive of these deciders occurs about equally often. For a rule with a predicate, or with
    a regular expression that is more than a plain text, `exceptions` must contain an exception that fits. Shrinks to few
    scripts.

    Args:
        tree: the tree, without a plan over it.
        exceptions: further exceptions, as instances or as classes.
        horizon: the most seconds that an act of a script takes, counted from the beginning of its phase; 0 or more, finite.
            Under virtual time long ones cost little, unless bodies poll.
        max_size: how many children have scripts at most.

    Raises:
        TypeError: a class, of `exceptions` or of a decider, cannot be made without arguments: give an instance of it.
        ValueError: a number is out of range.
    """
    checked_spec(tree, "fault_plans", Supervisor, Pool)
    given, horizon = _instances(exceptions), _checked(horizon)
    children = dict(_children(tree))
    if not children:
        return st.just(FaultPlan())
    fails = {path: _failing(chain, given, horizon) for path, (_, chain) in children.items()}
    return _plans({path: child for path, (child, _) in children.items()}, fails, horizon, max_size)


# --- the failures of a child

Chain = tuple[Decider, ...]
"""The deciders that judge a failure, from the child upwards."""
Failing = st.SearchStrategy[Fail]


def _checked(horizon: float) -> float:
    check_number("horizon", horizon, least=0, finite=True)
    return horizon


def _times(horizon: float) -> st.SearchStrategy[float]:
    return st.integers(0, int(horizon * 8)).map(lambda eighths: eighths / 8)


def _instances(exceptions: Iterable[BaseException | type[BaseException]]) -> tuple[BaseException, ...]:
    made: list[BaseException] = []
    if not isinstance(exceptions, Iterable):  # a single class is a likely mistake
        raise TypeError(f"fault_plans: exceptions must be a list of them, got {brief(exceptions)}")
    for each in exceptions:
        exc = _made_of(each) if isinstance(each, type) else each
        if not isinstance(exc, BaseException):
            hint = "; give an instance of it" if isinstance(each, type) else ""
            raise TypeError(f"fault_plans: cannot make an exception of {brief(each)} without arguments{hint}")
        Fail(exc)
        made.append(exc)
    return tuple(made)


def _made_of(kind: type[Any]) -> BaseException | None:
    """An instance of an exception class that can be copied, as `Fail` needs it; None if no plain arguments make one."""
    return next(_instances_of(kind, "x"), None)


def _instances_of(kind: type[Any], text: str) -> Iterator[BaseException]:
    """Instances of an exception class, made with plain arguments, the first of which is `text`."""
    if not issubclass(kind, BaseException):
        return
    for arguments in (
        (text,),
        (),
        (text, [Injected("x")]),
        (text, "x"),
        (text, "x", "x"),
        (text, b"x", 0, 1, "x"),
        (text, "x", 0, 1, "x"),
    ):
        try:
            exc = Fail(kind(*arguments)).exc
        except Exception:  # noqa: BLE001, S112 - its constructor needs other arguments
            continue
        yield exc


def _failing(chain: Chain, given: tuple[BaseException, ...], horizon: float) -> Failing:
    return _failing_with(chain, _Same(given), horizon)


class _Same:
    """Exceptions as a key of a cache, compared by identity: an exception may define any equality."""

    def __init__(self, exceptions: tuple[BaseException, ...]) -> None:
        self.exceptions = exceptions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and list(map(id, self.exceptions)) == list(map(id, other.exceptions))

    def __hash__(self) -> int:
        return hash(tuple(map(id, self.exceptions)))


@lru_cache(_KEPT)
def _failing_with(chain: Chain, given: _Same, horizon: float) -> Failing:
    """Common exceptions, the given ones, and those that the deciders name, one strategy for each directive."""
    named = _by_directive(chain, given.exceptions)
    choices = [st.sampled_from(FAILURES), *([st.sampled_from(given.exceptions)] if given.exceptions else [])]
    choices += [st.sampled_from(its) for _, its in sorted(named.items())]
    return st.builds(Fail, st.one_of(choices), after=_times(horizon))


def _by_directive(chain: Chain, given: tuple[BaseException, ...]) -> dict[Directive, list[BaseException]]:
    """The exceptions that the deciders name, by the directive that they get."""
    if not chain:
        return {}
    *others, decider = chain
    for other in reversed(others):
        decider = other.over(decider)
    found: dict[Directive, list[BaseException]] = {}
    for exc in _named(decider, given):
        found.setdefault(judge(decider, exc).directive, []).append(exc)
    return found


def _named(decider: Decider, given: tuple[BaseException, ...]) -> Iterator[BaseException]:
    for layer in decider.layers():
        for key in layer.table:
            if isinstance(key, str):
                yield from [Injected("x", tag=key)] if key not in FRAMEWORK_TAGS else []
            elif _is_drawn(key):
                exc = _made_of(key) or _given_for(key, given)
                yield from [exc] if is_decidable(exc) else []
        for rule in layer.rules:
            yield from _fitting_rule(rule, given)


def _is_drawn(kind: type[BaseException]) -> bool:
    """Whether instances may be decidable: a `BaseExceptionGroup` of only `Exception`s becomes an `ExceptionGroup`."""
    return issubclass(kind, (Exception, BaseExceptionGroup))


def _given_for(kind: type[BaseException], given: tuple[BaseException, ...]) -> BaseException:
    for exc in given:
        if isinstance(exc, kind):
            return exc
    raise _nothing_makes(kind)


def _nothing_makes(kind: type[BaseException]) -> TypeError:
    return TypeError(
        f"fault_plans: cannot make a {kind.__name__}, which a decider names, without arguments: "
        "give an instance of it in exceptions=…"
    )


def _fitting_rule(rule: Rule, given: tuple[BaseException, ...]) -> Iterator[BaseException]:
    """An exception that fits a rule: of the first class that can be made so, with the plain text of its regular expression."""
    pattern = "" if rule.match is None else rule.match.pattern
    texts = ["x", pattern, re.sub(r"\\(.)", r"\1", pattern.strip("^$"))]
    kinds = list(filter(_is_drawn, rule.exceptions))
    for kind in kinds:
        for exc in (exc for text in texts for exc in _instances_of(kind, text)):
            if is_decidable(exc) and _fits(rule, exc):
                yield exc
                return
    if kinds and rule.match is None and rule.when is None and not any(_fits(rule, exc) for exc in given):
        raise _nothing_makes(kinds[0])


def _fits(rule: Rule, exc: BaseException) -> bool:
    try:
        return rule.fits(exc)
    except Exception:  # noqa: BLE001 - a user's predicate may raise anything, and then the rule does not fit
        return False


# --- scripts


class _Faces(NamedTuple):
    """The properties of a child that its scripts depend on."""

    timed: bool
    drains: bool
    owns: bool
    takes_status: bool


def _faces(child: Child) -> _Faces:
    return _Faces(
        child.start_timeout is not None, child.drain > 0, child.resource is not None, child.takes_task_status
    )


@lru_cache(_KEPT)
def _scripts(faces: _Faces, fail: Failing, horizon: float) -> st.SearchStrategy[Script]:
    times = _times(horizon)
    delay = st.builds(Delay, times)
    hang = (st.builds(Hang, after=times),) if faces.timed else ()
    returns = (
        (st.builds(Return, st.just(IGNORE), after=times), st.builds(Return, after=times))
        if faces.takes_status
        else ()
    )
    starts: dict[str, st.SearchStrategy[Any]] = {"start": st.one_of(fail, delay, *returns, *hang)}
    starts |= {"enter": st.one_of(fail, delay, *hang)} if faces.owns else {}
    return _of_acts(faces, fail, horizon, starts)


def _of_acts(
    faces: _Faces, fail: Failing, horizon: float, acts: dict[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[Script]:
    """Scripts of these acts and of faults after the start, most of them in the body."""
    times = _times(horizon)
    delay, returns = st.builds(Delay, times), st.builds(Return, after=times)
    acts = {**acts, "stop": st.one_of(delay, fail, returns)}
    acts |= {"drain": st.one_of(returns, fail)} if faces.drains else {}
    acts |= {"leave": st.one_of(fail, delay)} if faces.owns else {}
    others = [st.tuples(st.just(name), its) for name, its in acts.items()]
    once = st.one_of(fail, returns)
    often = st.lists(once, min_size=2, max_size=4).map(tuple)
    body: st.SearchStrategy[Option] = st.tuples(st.just("body"), st.one_of(once, often))
    return st.lists(st.one_of([body] * len(others) + others), min_size=1, max_size=3).map(_script)


def _script(acts: list[Option]) -> Script:
    return Script(**dict(acts))


@lru_cache(_KEPT)
def _lives(faces: _Faces, fail: Failing, horizon: float) -> st.SearchStrategy[list[Script]]:
    """The scripts of one child. Most first starts succeed, since a failed one ends the whole tree at once."""
    scripts = st.lists(_scripts(faces, fail, horizon), min_size=1, max_size=4)
    return st.tuples(scripts, st.sampled_from([True] * 5 + [False])).map(_lived)


def _lived(drawn: tuple[list[Script], bool]) -> list[Script]:
    """All scripts of a child are drawn alike, so that a case shrinks by leaving out any of them."""
    (first, *later), starts = drawn
    return [evolve(first, enter=None, start=None) if starts else first, *later]


@st.composite
def _plans(
    draw: st.DrawFn, children: dict[str, Child], fails: dict[str, Failing], horizon: float, max_size: int
) -> FaultPlan:
    paths = draw(st.lists(st.sampled_from(list(children)), min_size=1, max_size=max_size, unique=True))
    return FaultPlan({path: draw(_lives(_faces(children[path]), fails[path], horizon)) for path in paths})


def _children(tree: Supervisor | Pool) -> Iterable[tuple[str, tuple[Child, Chain]]]:
    """The leaves, and the first three members of each pool, each with the deciders that judge it."""
    chains: dict[str, Chain] = {}
    for path, node in walk(tree):
        above = chains.get(path.rpartition("/")[0], ())
        chain = chains[path] = above if node.decider is None else (node.decider, *above)
        if isinstance(node, Child):
            yield path, (node, chain)
        elif isinstance(node, Pool) and isinstance(node.template, Child):
            its = node.template.decider
            members = node.template, chain if its is None else (its, *chain)
            yield from ((f"{path}/{node.template.name}-{number}", members) for number in (1, 2, 3))
