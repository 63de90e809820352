"""Which trees are explored, and with what freedom of the environment.

A group of trees that differ in their limit alone is explored as one: what is left of a limit is part of the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement, islice, product
from typing import Any

from attrs import frozen

from supervise._core.limit import Backoff, Limit
from supervise._core.spec import Child, Pool, Spec, Supervisor

from .search import Explorer, Freedom, Outcome
from .world import ABOVE, BELOW, HERE, POLICY, hold, work

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
TYPES = ("permanent", "transient", "temporary")
MODES = ("any_significant", "all_significant")
REQUESTS = ("add", "stop", "start", "remove", "status")
INF = float("inf")
WAIT = Backoff(initial=3, factor=1, maximum=3, jitter=0, reset_after=INF)


@frozen(eq=False)
class Group:
    """Trees that are explored as one. `others`: declarations that each may adopt."""

    specs: tuple[Supervisor | Pool, ...]
    freedom: Freedom
    others: tuple[Supervisor | Pool, ...] = ()

    def explored(self, *, most: int = 5) -> Outcome:
        """Explore them until every state has been seen, or so many violations have been."""
        return Explorer(self.specs, self.freedom, others=self.others, most=most).run()


def leaf(name: str, restart: Any = "permanent", **options: Any) -> Child:
    """A child that is never overdue, unless the options set other times."""
    given: dict[str, Any] = {"grace": INF, "start_warning": INF, **options}
    return Child(name, work, restart=restart, **given)


def limited(
    limits: Sequence[int], children: Callable[[], Sequence[Spec]], *, ready_time: bool = False, **options: Any
) -> tuple[Supervisor, ...]:
    """The same tree with each of these limits; the window never ends, so that only the number counts."""
    each = [Limit(limit, within=INF, of_ready_time=ready_time) for limit in limits]
    return tuple(Supervisor("app", children(), limit=limit, decider=POLICY, **options) for limit in each)


def leaves(types: Sequence[str], **options: Any) -> Callable[[], Sequence[Spec]]:
    """Leaves named a, b, …; a type that ends in `!` is significant."""
    return lambda: [
        leaf(name, kind.rstrip("!"), significant=kind.endswith("!"), **options)
        for name, kind in zip("abcd", types, strict=False)
    ]


def mixtures(strategy: str, kinds: Sequence[str], count: int) -> Iterator[tuple[str, ...]]:
    """Every choice of kinds; where no child's restart concerns another, their order makes a tree no other one."""
    if strategy == "one_for_one":
        return combinations_with_replacement(kinds, count)
    return product(kinds, repeat=count)


def one() -> Iterator[Group]:
    """One or two leaves: every strategy, restart type, limit and `on_limit`, with and without a backoff."""
    for count, strategy, on_limit, backoff in product(
        (1, 2), STRATEGIES, ("escalate", "shutdown"), (None, WAIT)
    ):
        for types in mixtures(strategy, TYPES, count):
            children = leaves(types, backoff=backoff)
            yield Group(limited((2, 1, 0), children, strategy=strategy, on_limit=on_limit), Freedom())


def shutdown() -> Iterator[Group]:
    """One or two leaves, one of them significant at least."""
    kinds = (*TYPES, "transient!", "temporary!")
    for count, strategy, mode in product((1, 2), STRATEGIES, MODES):
        for types in mixtures(strategy, kinds, count):
            if any(kind.endswith("!") for kind in types):
                yield Group(limited((1, 0), leaves(types), strategy=strategy, auto_shutdown=mode), Freedom())


def three() -> Iterator[Group]:
    """Three leaves: every strategy and restart type."""
    for strategy in STRATEGIES:
        for types in mixtures(strategy, TYPES, 3):
            free = Freedom(failures=("restart", "stop"))
            yield Group(limited((1,), leaves(types), strategy=strategy), free)


def significant() -> Iterator[Group]:
    """Three leaves, significant ones among them."""
    kinds = ("permanent", "transient!", "temporary!")
    free = Freedom(failures=("restart",), starts=("restart",))
    for strategy, mode in product(STRATEGIES, MODES):
        options: dict[str, Any] = {"strategy": strategy, "auto_shutdown": mode, "on_limit": "shutdown"}
        for types in mixtures(strategy, kinds, 3):
            if any(kind.endswith("!") for kind in types):
                yield Group(limited((1,), leaves(types), **options), free)


def directives() -> Iterator[Group]:
    """Two leaves that own something: every directive, resumable or not, with progress or without."""
    freedom = Freedom(
        failures=(*HERE, "fatal"), starts=("restart", "stop", "escalate", "ignored", "resume.free")
    )
    for strategy, restart, limit in product(STRATEGIES, TYPES, (None, Limit(1, within=INF))):
        children = leaves((restart,) * 2, resource=hold, limit=limit)
        yield Group(limited((2, 1, 0), children, strategy=strategy), freedom)


def timers() -> Iterator[Group]:
    """Two leaves: drain, grace, release, start_timeout and backoff."""
    freedom = Freedom(failures=("restart", "stop"), errors=True)
    for strategy, backoff, drain in product(STRATEGIES, (None, WAIT), (0, 1)):
        options: dict[str, Any] = {
            "backoff": backoff,
            "drain": drain,
            "grace": 2,
            "start_timeout": 4,
            "resource": hold,
        }
        yield Group(limited((1,), leaves(("permanent",) * 2, **options), strategy=strategy), freedom)


def waits() -> Iterator[Group]:
    """Three leaves, each with or without a backoff; ready time is counted."""
    for strategy, backoffs in product(STRATEGIES, product((None, WAIT), repeat=3)):

        def children(backoffs: tuple[Backoff | None, ...] = backoffs) -> list[Spec]:
            return [leaf(name, backoff=backoff) for name, backoff in zip("abc", backoffs, strict=True)]

        trees = limited((1,), children, strategy=strategy, ready_time=True)
        yield Group(trees, Freedom(failures=("restart",)))


def requests() -> Iterator[Group]:
    """One leaf or two, and one that is added: every request at any moment; one or two of them wait."""
    for (count, waiting), strategy, restart, backoff in product(
        ((1, 2), (2, 1), (1, 1)), STRATEGIES, ("permanent", "temporary"), (None, WAIT)
    ):
        freedom = Freedom(failures=("restart", "stop"), requests=REQUESTS, waiting=waiting)
        children = leaves((restart,) * count, backoff=backoff)
        yield Group(limited((1,), children, strategy=strategy), freedom)


def three_requests() -> Iterator[Group]:
    """Three leaves, and every request that changes what runs."""
    changes = ("stop", "start", "remove")
    for waiting, strategy, backoff in product((1, 2), STRATEGIES, (None, WAIT)):
        freedom = Freedom(failures=("restart",), starts=("restart",), requests=changes, waiting=waiting)
        if waiting == 1 or backoff is None:
            children = leaves(("permanent",) * 3, backoff=backoff)
            yield Group(limited((1,), children, strategy=strategy), freedom)


def by_hand() -> Iterator[Group]:
    """Two leaves, one of which may be temporary, with and without a backoff: restarts by hand, and requests that are withdrawn."""
    requests = ("restart", "stop")
    for strategy, restart, backoff in product(STRATEGIES, ("permanent", "temporary"), (None, WAIT)):
        freedom = Freedom(failures=("restart", "stop"), requests=requests, waiting=1, withdraws=True)
        yield Group(
            limited((1,), leaves(("permanent", restart), backoff=backoff), strategy=strategy), freedom
        )


def releases() -> Iterator[Group]:
    """Leaves that own something and may be long in leaving it, beside others: what else happens meanwhile."""
    free = Freedom(
        failures=("restart", "stop"), requests=("restart", "stop", "start"), waiting=1, errors=True
    )
    for backoff, types in product((None, WAIT), (("permanent",) * 2, ("transient!", "temporary"))):
        options: dict[str, Any] = {"resource": hold, "backoff": backoff}
        mode = "any_significant" if "transient!" in types else "never"
        yield Group(limited((1,), leaves(types, **options), auto_shutdown=mode), free)
    timed = Freedom(failures=("restart",), starts=("restart",), waiting=1)
    for backoff in (None, WAIT):
        options = {"resource": hold, "backoff": backoff, "grace": 2, "start_warning": 2}
        yield Group(limited((1,), leaves(("permanent",) * 3, **options)), timed)
    member = leaf("m", resource=hold)
    pooled = Freedom(failures=("restart", "stop"), requests=("add", "stop"), waiting=1, children=2)
    yield Group((Pool("app", member, decider=POLICY, member_limit=Limit(1, within=INF)),), pooled)


def four() -> Iterator[Group]:
    """Four leaves; up to three inputs wait."""
    freedom = Freedom(failures=("restart",), starts=("restart",), waiting=3, crossing=False)
    for strategy in STRATEGIES:
        yield Group(limited((1,), leaves(("permanent",) * 4), strategy=strategy), freedom)


def nested() -> Iterator[Group]:
    """Two supervisors of two leaves each: what the lower ones do not decide, and their limits, go up."""
    fails = Freedom(
        failures=("restart", "up.restart"), starts=("restart",), waiting=1, crossing=False, stop=False
    )
    stops = Freedom(failures=("up.restart", "up.stop"), starts=(), waiting=1, crossing=False)
    for above, below, free in product(STRATEGIES, STRATEGIES, (fails, stops)):
        on_limit = "escalate" if below == "one_for_one" else "shutdown"
        yield Group(limited((1,), _two_and_two(0, below, on_limit), strategy=above), free)


def resumed() -> Iterator[Group]:
    """A supervisor of two leaves that own something, beside a leaf: a Resume, or not, from above. The last is the quick form."""
    free = Freedom(failures=ABOVE, starts=("restart", "up.restart", "up.resume.free"), waiting=1)
    for above, below in product(STRATEGIES, STRATEGIES):
        yield Group(limited((1,), _beside(below), strategy=above), free)
    few = Freedom(failures=("up.resume.free", "up.restart"), starts=("restart",), waiting=1, crossing=False)
    yield Group(limited((1,), _beside("one_for_all"), strategy="one_for_all"), few)


def _two_and_two(limit: int, strategy: Any, on_limit: Any) -> Callable[[], Sequence[Spec]]:
    options: dict[str, Any] = {
        "limit": Limit(limit, within=INF),
        "strategy": strategy,
        "on_limit": on_limit,
        "decider": BELOW,
    }
    return lambda: [Supervisor(name, leaves(("permanent",) * 2)(), **options) for name in ("x", "y")]


def _beside(strategy: Any) -> Callable[[], Sequence[Spec]]:
    options: dict[str, Any] = {"limit": Limit(1, within=INF), "strategy": strategy, "decider": BELOW}
    return lambda: [leaf("a"), Supervisor("x", leaves(("permanent",) * 2, resource=hold)(), **options)]


def pools() -> Iterator[Group]:
    """A pool of up to three leaves; one of two, beside a leaf, below a supervisor."""
    free = Freedom(failures=("restart", "stop"), requests=("add", "stop", "start"), waiting=1)
    for restart, backoff, mode in product(TYPES, (None, WAIT), ("never", *MODES)):
        if mode == "never" or restart != "permanent":
            member = leaf("m", restart, backoff=backoff, significant=mode != "never")
            options: dict[str, Any] = {"member_limit": Limit(1, within=INF), "auto_shutdown": mode}
            yield Group((Pool("app", member, decider=POLICY, **options),), free)
    pool = Pool("x", leaf("m"), member_limit=Limit(1, within=INF), decider=BELOW)
    freedom = Freedom(
        failures=("up.restart",), starts=(), requests=("add",), waiting=1, crossing=False, children=2
    )
    yield Group(limited((1,), lambda: [leaf("a"), pool], strategy="one_for_all"), freedom)


def root_restarts() -> Iterator[Group]:
    """Two leaves, or a leaf and a supervisor of one: a restart of the root at any moment, and other requests."""
    freedom = Freedom(
        failures=("restart", "escalate"), requests=("restart root", "restart", "stop"), waiting=1
    )
    for strategy, backoff in product(STRATEGIES, (None, WAIT)):
        children = leaves(("permanent", "transient"), backoff=backoff)
        yield Group(limited((1,), children, strategy=strategy), freedom)
    below = Freedom(
        failures=("restart", "up.restart", "up.escalate"),
        requests=("restart root",),
        waiting=1,
        crossing=False,
    )
    for strategy in STRATEGIES:
        yield Group(limited((1,), _leaf_and_supervisor, strategy=strategy), below)


def _leaf_and_supervisor() -> Sequence[Spec]:
    inner = Supervisor("x", [leaf("b")], limit=Limit(1, within=INF), decider=BELOW)
    return [leaf("a"), inner]


def adoptions() -> Iterator[Group]:
    """Two leaves: another strategy, or other children in another order with another limit, at any moment, and back again."""
    changes = Freedom(
        failures=("restart", "stop"), starts=("restart",), requests=("adopt", "restart", "stop"), waiting=1
    )
    leave = Freedom(
        failures=("restart",), starts=("restart",), requests=("adopt", "restart", "stop", "remove"), waiting=1
    )
    for strategy, backoff in product(STRATEGIES, (None, WAIT)):
        (first,) = limited((1,), leaves(("permanent",) * 2, backoff=backoff), strategy=strategy)
        a, b = leaves(("permanent",) * 2, backoff=backoff)()
        for other in STRATEGIES:
            if other != strategy:
                yield Group((first,), changes, limited((1,), lambda a=a, b=b: [b, a], strategy=other))
        yield Group((first,), leave, limited((2,), lambda b=b: [leaf("c"), b], strategy=strategy))


def nested_adoptions() -> Iterator[Group]:
    """A leaf beside a supervisor of one; the lower one may get another leaf, limit and strategy, after the upper one has adopted."""
    freedom = Freedom(
        failures=("restart", "up.restart"),
        starts=(),
        requests=("adopt", "restart root"),
        waiting=1,
        crossing=False,
        stop=False,
    )
    for strategy, below in product(STRATEGIES, STRATEGIES):
        (first,) = limited((1,), _leaf_and_supervisor, strategy=strategy)
        limit = Limit(2, within=INF)
        inner = Supervisor("x", [leaf("b"), leaf("c")], limit=limit, strategy=below, decider=BELOW)
        other = limited((1,), lambda inner=inner: [leaf("a"), inner], strategy=strategy)
        yield Group((first,), freedom, other)


@frozen
class Family:
    """What is explored under one name. `quick`: which of its groups are, when time is short."""

    groups: Callable[[], Iterator[Group]]
    quick: tuple[int, ...] = (0,)

    def chosen(self, *, quick: bool) -> list[int]:
        """The numbers of the groups to explore."""
        return list(self.quick) if quick else list(range(sum(1 for _ in self.groups())))

    def group(self, number: int) -> Group:
        """One of them, made anew."""
        return next(islice(self.groups(), number, None))


FAMILIES: dict[str, Family] = {
    "one": Family(one, (0, 1, 2, 3, 36, 42, 48, 60, 78, 96, 108, 131)),
    "shutdown": Family(shutdown, (0, 1, 20, 50)),
    "three": Family(three, (1,)),
    "significant": Family(significant, (30,)),
    "directives": Family(directives, (0,)),
    "timers": Family(timers, (7,)),
    "waits": Family(waits, (11,)),
    "requests": Family(requests, (24, 29)),
    "three requests": Family(three_requests, (0,)),
    "by hand": Family(by_hand, (2,)),
    "releases": Family(releases, (1, 6)),
    "four": Family(four, (2,)),
    "nested": Family(nested, (0,)),
    "resumed": Family(resumed, (9,)),
    "pools": Family(pools, (14,)),
    "root restarts": Family(root_restarts, (0,)),
    "adoptions": Family(adoptions, (2, 3)),
    "nested adoptions": Family(nested_adoptions, (0,)),
}
