"""What the other tools promise: stories, the simulation, and how far a failing case shrinks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import Phase, find, settings
from hypothesis import strategies as st

from supervise import Child, Directive, Supervisor, TreeFailed, events, testing
from supervise._core.spec import walk
from supervise.testing import (
    Fail,
    FaultPlan,
    Injected,
    Return,
    Script,
    assert_lifecycle,
    fault_plans,
    idle,
    simulate,
    transcript,
    trees,
)
from supervise.testing.story import KEPT, Story

TREE = Supervisor("app", [Child("a", idle)])


def test_the_public_names_are_these():
    """No name is public by accident, and each has a docstring."""
    assert testing.__all__ == sorted(testing.__all__)
    assert set(testing._HOMES) == set(testing.__all__)
    assert set(testing.__all__) <= set(dir(testing))
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)
    with pytest.raises(AttributeError, match=r"'supervise\.testing' has no attribute 'nonsense'"):
        testing.nonsense  # noqa: B018


def smallest(condition):
    """The smallest tree and plan, of those that can be drawn, whose simulated events fulfil a condition."""
    cases = trees(max_size=6).flatmap(lambda tree: st.tuples(st.just(tree), fault_plans(tree)))
    phases = [Phase.generate, Phase.shrink]
    config = settings(max_examples=1000, deadline=None, database=None, phases=phases)
    return find(cases, lambda case: condition(simulate(*case, stop_at=60.0)), settings=config)


def size(tree, plan):
    """Nodes below the root, and scripts."""
    return len(list(walk(tree))) - 1, sum(map(len, plan.scripts.values()))


def test_a_failing_case_shrinks_to_a_small_tree_and_one_script():
    """A child failed while stopping: the case shrinks to one child and one script."""
    tree, plan = smallest(lambda seen: any(isinstance(event, events.StopError) for event in seen))
    assert size(tree, plan) == (1, 1)


@pytest.mark.slow
def test_a_failing_case_may_need_two_scripts():
    """A second incarnation failed: the case keeps two scripts of one child."""
    tree, plan = smallest(lambda seen: any(isinstance(e, events.Failed) and e.incarnation == 2 for e in seen))
    assert size(tree, plan) == (1, 2)


@pytest.mark.slow
def test_the_page_shows_what_hypothesis_reports(tmp_path, monkeypatch):
    """The shrunk case, and the end of its story, are those that `docs/howto/fault-injection.md` prints."""
    page = (Path(__file__).parents[2] / "docs" / "howto" / "fault-injection.md").read_text()
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    case, story = (text for language, text in blocks if language == "text")
    monkeypatch.chdir(tmp_path)  # it writes a log
    scope = {}
    exec("\n".join(code for language, code in blocks if language == "python"), scope)
    with pytest.raises(TreeFailed) as raised:
        scope["test_the_web_stays_up"]()
    assert raised.value.__notes__[0] == case.rstrip()
    lost = Script(body=Fail(ConnectionError("gone"), after=1))
    assert story in transcript(simulate(scope["tree"], FaultPlan({"app/feed": [lost] * 4})))


def test_a_story_names_each_decider_its_verdict_and_the_reason():
    """A story has a line for each event."""
    tree = Supervisor("app", [Child("a", idle, restart="temporary")], on_limit="shutdown")
    plan = FaultPlan({"app/a": Script(body=Fail(Injected("x", tag="net"), after=2))})
    assert transcript(simulate(tree, plan, stop_at=3.0)).splitlines()[4:7] == [
        "2.000  app/a #1  failed: Injected: x",
        "2.000  app/a #1  → Stop for 'net' (instead of Restart), decided by 'app' (built-in rule)",
        "2.000  app/a #1  has stopped",
    ]


def test_a_story_forgets_its_beginning():
    """Memory is flat: the text begins with the number of events that were dropped."""
    story = Story()
    for number in range(KEPT + 5):
        story(events.Starting(at=number, path="app", incarnation=1))
    assert len(story.events) == KEPT
    assert story.transcript(last=2).splitlines()[0] == f"… {KEPT + 3} events before"


def test_the_simulation_ends_what_the_tree_ends():
    """A root that shuts down by itself ends before `stop_at`."""
    child = Child("a", idle, restart="transient", significant=True)
    tree = Supervisor("app", [child], auto_shutdown="any_significant")
    seen = simulate(tree, FaultPlan({"app/a": Script(body=Return(after=2))}))
    assert_lifecycle(seen)
    assert (seen[-1].at, type(seen[-1])) == (2.0, events.Stopped)


def test_the_simulation_takes_the_random_number_of_jitter():
    """`u` is in [0, 1); 0.5 means no jitter."""
    from supervise import Backoff

    tree = Supervisor("app", [Child("a", idle, backoff=Backoff(initial=1.0, jitter=0.5))])
    plan = FaultPlan({"app/a": Script(body=Fail(Injected(), after=1))})
    delays = [
        event.delay
        for u in (0.0, 0.5)
        for event in simulate(tree, plan, u=u)
        if isinstance(event, events.BackingOff)
    ]
    assert delays == [0.5, 1.0]


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((Child("a", idle),), {}, r"simulate takes a Supervisor or Pool, got Child\('a', idle\)"),
        ((TREE, {"app/a": Script()}), {}, r"simulate takes a FaultPlan, got {'app/a': Script\(\)}"),
        ((TREE, FaultPlan({"app/b": Script()})), {}, "the plan has scripts for 'app/b', but there is no such child"),
        ((TREE,), {"stop_at": float("nan")}, "stop_at must be >= 0, got nan"),
        ((TREE,), {"stop_at": float("inf")}, "stop_at must be finite, got inf"),
        ((TREE,), {"u": 1}, "u must be < 1, got 1"),
        ((TREE,), {"u": -1}, "u must be >= 0, got -1"),
    ],
)  # fmt: skip
def test_the_simulation_refuses_what_a_run_would_refuse(arguments, options, expected):
    """A plan that does not fit would otherwise predict, in silence, that nothing happens."""
    with pytest.raises((TypeError, ValueError), match=expected):
        simulate(*arguments, **options)


def test_the_simulation_decides_as_the_tree_does():
    """The machines are the real ones."""
    plan = FaultPlan({"app/a": [Script(body=Fail(Injected(), after=1))] * 4})
    seen = simulate(Supervisor("app", [Child("a", idle)]), plan)
    decided = [(e.at, e.directive, e.limit) for e in seen if isinstance(e, events.Decided)]
    assert decided == [
        (1.0, Directive.Restart, None),
        (2.0, Directive.Restart, None),
        (3.0, Directive.Restart, None),
        (4.0, Directive.Restart, "3 within 5 s"),
        (4.0, Directive.Escalate, None),
    ]
