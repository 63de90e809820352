"""Random trees, random faults, random requests, random schedules: what holds of all of them.

`CAMPAIGN=20` in the environment runs twenty times as many.
"""

from __future__ import annotations

import os

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervise import Child, Pool, Supervisor
from supervise._core.spec import walk
from supervise.testing import Delay, Fail, FaultPlan, Script, fault_plans, idle, trees

from .campaign import Halt, Run, as_texts, dice, plain, predicted, tilted

KINDS = (
    "add",
    "stop",
    "start",
    "restart",
    "remove",
    "status",
    "call",
    "send",
    "ready",
    "ended_",
    "lease",
    "inject",
)
TIMES = int(os.environ.get("CAMPAIGN", "1"))
SEEDS = st.integers(0, 2**32 - 1)
MOMENTS = st.integers(0, 160).map(lambda eighths: eighths / 8)
CALM = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def targets(tree, kind):
    """The paths that a request may be about, and some that are only there at times."""
    nodes = list(walk(tree))
    late = [f"{path}/{name}" for path, node in nodes if isinstance(node, Supervisor) for name in ("x0", "x1")]
    late += [f"{path}/m-{number}" for path, node in nodes if isinstance(node, Pool) for number in (1, 2)]
    if kind == "add":
        return [path for path, node in nodes if not isinstance(node, Child)]
    leaves = [(path, node) for path, node in nodes if isinstance(node, Child)]
    mailboxes = [path for path, node in leaves if node.mailbox is not None]
    if kind in {"call", "send"} and mailboxes:
        return mailboxes
    known = [path for path, _ in leaves] if kind in {"inject", "lease"} else [path for path, _ in nodes]
    return known * 3 + late


def requests(tree):
    def about(kind):
        return st.tuples(st.just(kind), st.sampled_from(targets(tree, kind)), st.integers(0, 8))

    return st.tuples(MOMENTS, st.sampled_from(KINDS).flatmap(about)).map(lambda it: (it[0], *it[1]))


def halted(plan):
    """The same plan, but the first script of all ends with what is not an `Exception`."""
    (path, (first, *others)), *rest = plan.scripts.items()
    return FaultPlan({path: [attrs.evolve(first, body=Fail(Halt("x"), after=2.5)), *others], **dict(rest)})


def unwarned(tree):
    """The same tree without start warnings: only then may a child with a script take the fast path."""
    if isinstance(tree, Child):
        return attrs.evolve(tree, start_warning=float("inf"))
    if isinstance(tree, Pool):
        return attrs.evolve(tree, template=unwarned(tree.template))
    return attrs.evolve(tree, children=map(unwarned, tree.children))


@st.composite
def cases(draw, *, max_size=12, min_size=1, most=20):
    tree = draw(trees(min_size=min_size, max_size=max_size))
    tree = unwarned(tree) if draw(st.booleans()) else tree
    plan = draw(fault_plans(tree, max_size=max_size))
    plan = halted(plan) if draw(st.integers(0, 9)) == 9 else plan
    asked = draw(st.lists(requests(tree), max_size=most)) if most else []
    return tree, plan, asked, draw(st.one_of(st.just(60.0), MOMENTS))


@settings(CALM, max_examples=300 * TIMES)
@given(cases(), SEEDS)
def test_whatever_happens_a_tree_keeps_the_rules(case, seed):
    """Faults, requests, calls, and a cancellation from outside at any moment: every invariant of `Run.check` holds."""
    tree, plan, asked, stop_at = case
    Run(tree, plan, requests=asked, stop_at=stop_at, seed=seed).check()


CROSSING = st.tuples(
    st.integers(0, 8).map(lambda halves: halves / 2),
    st.sampled_from(
        [("add", "app/s", 6), *((kind, "app/s", 0) for kind in ("add", "stop", "start", "restart"))]
    ),
).map(lambda it: (it[0], *it[1]))


@settings(CALM, max_examples=100 * TIMES)
@given(st.lists(CROSSING, min_size=3, max_size=8), SEEDS)
def test_requests_that_wait_on_two_levels_are_served_by_the_rules(asked, seed):
    """They come while `s` starts, some wait at it and some above it, and they are served in one step when it is up (R19)."""
    tree = Supervisor("app", [Supervisor("s", [Child("a", idle)])])
    plan = FaultPlan({"app/s/a": [Script(), *[Script(start=Delay(1.25))] * 9]})
    Run(tree, plan, requests=asked, stop_at=60.0, seed=seed).check()


@pytest.mark.slow
@settings(CALM, max_examples=300 * TIMES)
@given(cases(most=0), SEEDS)
def test_a_tree_without_requests_emits_the_events_that_the_simulation_predicts(case, seed):
    """The events agree one by one, each at its time, in one of the orders that the rules allow; most trees have only one."""
    tree, plan, _, stop_at = case
    chance = dice(1)
    tree, plan, stop_at = tilted(tree, chance), tilted(plan, chance), stop_at + 2**-30
    run = Run(tree, plan, stop_at=stop_at, seed=seed, steady=True)
    run.check()
    outcomes, whole = predicted(tree, plan, stop_at)
    assert as_texts(run.seen) in outcomes or not whole


def test_every_order_of_simultaneous_failures_is_predicted():
    """Three children fail at one moment: a real tree takes them in each of six orders, and in none that is not predicted."""
    tree = Supervisor("app", [Child(name, idle, restart="temporary") for name in "abc"])
    plan = FaultPlan({f"app/{name}": [Script(body=Fail(ValueError(name), after=1.0))] for name in "abc"})
    outcomes, whole = predicted(tree, plan, 2.0)
    seen = {as_texts(Run(tree, plan, stop_at=2.0, seed=seed, steady=True).seen) for seed in range(60)}
    assert whole
    assert len(seen) == 6
    assert seen <= outcomes


@pytest.mark.slow
@settings(CALM, max_examples=4 * TIMES)
@given(cases(min_size=300, max_size=500, most=60), SEEDS)
def test_a_big_tree_keeps_the_rules_too(case, seed):
    """Up to 500 nodes."""
    tree, plan, asked, stop_at = case
    Run(tree, plan, requests=asked, stop_at=stop_at, seed=seed).check()


@settings(CALM, max_examples=50 * TIMES)
@given(cases(), SEEDS)
def test_the_same_seed_is_the_same_run(case, seed):
    """A run is a function of its tree, plan, requests and seed."""
    tree, plan, asked, stop_at = case
    first, second = (Run(tree, plan, requests=asked, stop_at=stop_at, seed=seed) for _ in range(2))
    assert list(map(plain, first.seen)) == list(map(plain, second.seen))
