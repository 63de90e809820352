"""Faults as data: scripts are carried out, print as code, and do not touch children that they do not name."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

import supervise
from supervise import (
    IGNORE,
    Child,
    Decider,
    Limit,
    Pool,
    Resume,
    StartFailed,
    Supervisor,
    TreeFailed,
    events,
    open_tree,
    stop_requested,
    testing,
)
from supervise.testing import (
    Delay,
    Fail,
    FaultPlan,
    Hang,
    Injected,
    Return,
    Script,
    assert_lifecycle,
    echo,
    fault_plans,
    idle,
    nothing,
    run_virtual,
    simulate,
    transcript,
    trees,
)

NAMES = {name: getattr(module, name) for module in (supervise, testing) for name in module.__all__}


async def nobody(_):
    await trio.sleep_forever()


def run(spec, plan, *, until=20.0, scene=None, seed=0):
    """The events of a tree with a plan over it, which is left after `until` seconds, and what it raised."""
    seen, raised = [], None

    async def main():
        with trio.move_on_after(until):
            async with open_tree(plan.over(spec), sinks=[seen.append]) as tree:
                await (nobody if scene is None else scene)(tree)

    try:
        run_virtual(main, seed=seed)
    except (StartFailed, TreeFailed) as exc:
        raised = exc
    assert_lifecycle(seen)
    return seen, raised


def story(script, *lives, until=20.0, **options):
    """What becomes of one child: `at kind` for each of its events."""
    child = Child("a", idle, **options)
    seen, _ = run(Supervisor("app", [child], limit=None), FaultPlan({"app/a": (script, *lives)}), until=until)
    return [
        f"{e.at:g} {type(e).__name__}"
        for e in seen
        if e.path == "app/a" and not isinstance(e, events.Decided)
    ]


STOPPED = ["20 Stopping", "20 Stopped"]
UP = ["0 Starting", "0 Ready"]


@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        (Script(), {}, [*UP, *STOPPED]),
        (
            Script(body=Fail(Injected("x"), after=2.5)),
            {},
            [*UP, "2.5 Failed", "2.5 Stopped", "2.5 Starting", "2.5 Ready", *STOPPED],
        ),
        (Script(body=Return(7, after=2)), {"restart": "transient"}, [*UP, "2 Returned", "2 Stopped"]),
        (Script(body=Hang(after=2)), {}, [*UP, *STOPPED]),
        (Script(start=Delay(3.0)), {}, ["0 Starting", "3 Ready", *STOPPED]),
        (
            Script(start=Delay(3.0), body=Return(after=1)),
            {"restart": "temporary"},
            ["0 Starting", "3 Ready", "4 Returned", "4 Stopped"],
        ),
        (Script(start=Return(IGNORE, after=1)), {}, ["0 Starting", "1 Ignored", "1 Returned", "1 Stopped"]),
        (Script(start=Return("?", after=1)), {}, ["0 Starting", "1 StartFailed", "1 Failed", "1 Stopped"]),
        (
            Script(start=Fail(OSError("x"), after=1)),
            {},
            ["0 Starting", "1 StartFailed", "1 Failed", "1 Stopped"],
        ),
        (
            Script(start=Hang()),
            {"start_timeout": 4.0},
            ["0 Starting", "4 StartFailed", "4 Failed", "4 Stopped"],
        ),
        (Script(enter=Delay(2.0)), {"resource": nothing}, ["0 Starting", "2 Ready", *STOPPED]),
        (
            Script(enter=Fail(OSError("x"))),
            {"resource": nothing},
            ["0 Starting", "0 StartFailed", "0 Failed", "0 Stopped"],
        ),
        (Script(stop=Delay(3.0)), {}, [*UP, "20 Stopping", "23 Stopped"]),
        (
            Script(stop=Delay(3.5)),
            {"grace": 1.0},
            [*UP, "20 Stopping", "21 Overdue", "23 Overdue", "23.5 Stopped"],
        ),
        (Script(stop=Fail(OSError("x"), after=1)), {}, [*UP, "20 Stopping", "21 StopError", "21 Stopped"]),
        (Script(stop=Return(after=1)), {}, [*UP, "20 Stopping", "21 Stopped"]),
        (Script(drain=Return(after=2)), {"drain": 5.0}, [*UP, "20 Stopping", "22 Stopped"]),
        (
            Script(drain=Fail(OSError("x"), after=2)),
            {"drain": 5.0},
            [*UP, "20 Stopping", "22 StopError", "22 Stopped"],
        ),
        (Script(drain=Return(after=9)), {"drain": 5.0}, [*UP, "20 Stopping", "25 Stopped"]),
        (Script(leave=Delay(3.0)), {"resource": nothing}, [*UP, "20 Stopping", "23 Stopped"]),
        (
            Script(leave=Fail(OSError("x"), after=1)),
            {"resource": nothing},
            [*UP, "20 Stopping", "21 StopError", "21 Stopped"],
        ),
    ],
)
def test_a_script_is_carried_out_and_simulated_alike(script, options, expected):
    """Each phase does each act at its time, and the simulation predicts the same events."""
    assert story(script, **options) == expected
    child = Child("a", idle, **options)
    predicted = simulate(Supervisor("app", [child], limit=None), FaultPlan({"app/a": script}), stop_at=20.0)
    kinds = [f"{e.at:g} {type(e).__name__}" for e in predicted if e.path == "app/a"]
    assert [kind for kind in kinds if not kind.endswith("Decided")] == expected


def test_each_incarnation_has_a_script_of_its_own():
    """The first script is for incarnation 1; incarnations after the last script have none."""
    fail = Script(body=Fail(Injected("x"), after=1))
    assert [kind for kind in story(fail, Script(), fail) if "Failed" in kind] == ["1 Failed"]
    assert [kind for kind in story(fail, fail) if "Failed" in kind] == ["1 Failed", "2 Failed"]


def test_a_body_entered_again_after_a_resume_goes_on_to_its_next_act():
    """`body` may be a tuple: one act for each time the body is entered; None leaves that time alone."""
    fail = Fail(Injected("x"), after=1)
    expected = story(Script(body=(fail, fail)), resource=nothing, decider=Decider(default=Resume))
    assert expected == [*UP, "1 Failed", "1 Resumed", "2 Failed", "2 Resumed", *STOPPED]
    assert Script(body=(None, fail)).entry(0) is None


def test_every_failure_is_a_fresh_exception():
    """A plan is a value: the exceptions that it raises carry nothing from one run to the next."""
    original = Injected("x", 3, tag="net.timeout")
    fail = Script(body=Fail(original, after=1))
    seen, _ = run(Supervisor("app", [Child("a", idle)]), FaultPlan({"app/a": (fail, fail)}))
    first, second = (e.exc for e in seen if isinstance(e, events.Failed))
    assert first is not second
    assert first is not original
    assert (repr(first), first.tag) == ("Injected('x', 3, tag='net.timeout')", "net.timeout")
    assert original.__traceback__ is None


def test_nonsense_is_refused_at_once():
    """By constructors, naming what came."""
    with pytest.raises(TypeError, match="Fail takes an exception, got 'x'"):
        Fail("x")
    with pytest.raises(ValueError, match="after must be >= 0, got -1"):
        Fail(Injected(), after=-1)
    with pytest.raises(TypeError, match=r"a script's leave must be one of Fail, Delay, got Return\(\)"):
        Script(leave=Return())
    with pytest.raises(TypeError, match="maps 'app/a' to scripts, got 'x'"):
        FaultPlan({"app/a": ["x"]})
    with pytest.raises(TypeError, match=r"maps 'app/a' to scripts, got Fail\(OSError\(\)\)"):
        FaultPlan({"app/a": Fail(OSError())})
    with pytest.raises(TypeError, match=r"a fault plan maps paths to scripts, got \[Script\(\)\]"):
        FaultPlan([Script()])
    with pytest.raises(TypeError, match=r"maps paths such as 'app/db' to scripts, got Child\('a', idle\)"):
        FaultPlan({Child("a", idle): Script()})
    with pytest.raises(TypeError, match="a fault plan takes a Supervisor or Pool or Child, got 5"):
        FaultPlan().over(5)

    class Awkward(Exception):
        def __init__(self, one, two):
            super().__init__(one)

    with pytest.raises(TypeError, match=r"that copy\.copy can copy"):
        Fail(Awkward(1, 2))


def test_a_plan_that_does_not_fit_its_tree_is_refused():
    """A path without a node, a supervisor, and a resource that the child lacks are refused; members of pools are not checked."""
    tree = Supervisor("app", [Child("a", idle), Pool("p", Child("m", idle))])
    script = Script(body=Fail(Injected()))
    with pytest.raises(ValueError, match=r"'app/b', but there is no such child \(app, app/a, app/p\)"):
        FaultPlan({"app/b": script}).over(tree)
    with pytest.raises(ValueError, match="'app', which is a supervisor"):
        FaultPlan({"app": script}).over(tree)
    with pytest.raises(ValueError, match="fails the resource of 'app/a', which has none"):
        FaultPlan({"app/a": Script(leave=Delay(1.0))}).over(tree)
    with pytest.raises(ValueError, match=r"\(app, app/a, app/p\); did you mean 'app/a'\?"):
        FaultPlan({"app/aa": script}).over(tree)
    FaultPlan({"app/p/m-7": script}).over(tree)


# --- over real children


def test_an_unscripted_child_is_the_very_same_object():
    """A plan does not touch a child that it does not name."""
    a, b = Child("a", idle), Child("b", idle)
    quiet, loud = Supervisor("quiet", [a]), Supervisor("loud", [b], strategy="rest_for_one")
    tree = FaultPlan({"app/loud/b": Script(body=Fail(Injected()))}).over(Supervisor("app", [quiet, loud]))
    assert tree.children[0] is quiet
    assert tree.children[1] is not loud
    assert tree.children[1].strategy == "rest_for_one"
    assert FaultPlan().over(quiet) is quiet


def test_the_specs_a_tree_was_made_from_stay_its_addresses():
    """`tree[spec]` works with the spec that was given to the plan, supervisors included."""
    a = Child("a", echo, mailbox=4)
    inner = Supervisor("inner", [a], front="a")

    async def scene(tree):
        assert tree[a].path == "app/inner/a"
        assert await tree[inner].call(3) == 3
        assert await tree[a].call(4) == 4

    plan = FaultPlan({"app/inner/a": Script(body=Fail(Injected(), after=5))})
    run(Supervisor("app", [inner]), plan, scene=scene)


def test_a_real_body_gets_its_arguments_and_is_cancelled_at_the_scripted_time():
    """It gets its resource, mailbox, arguments and `task_status`; the failure is the script's, whatever the body does with the cancellation."""
    got, left = [], []

    @asynccontextmanager
    async def database():
        got.append("open")
        try:
            yield "db"
        finally:
            got.append("closed")

    async def serve(resource, inbox, number, *, task_status):
        await trio.sleep(2)
        task_status.started("value")
        got.extend((resource, len(inbox), number))
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            left.append(trio.current_time())
            raise KeyError("while it is cancelled") from None

    child = Child("a", serve, resource=database, mailbox=3, args=(7,))
    plan = FaultPlan({"app/a": Script(start=Delay(1.0), body=Fail(OSError("gone"), after=4))})
    seen, _ = run(Supervisor("app", [child]), plan, until=8.0)
    assert got[:5] == ["open", "db", 0, 7, "closed"]
    assert left[0] == 7.0
    ready = next(e for e in seen if isinstance(e, events.Ready) and e.path == "app/a")
    assert (ready.at, ready.value) == (3.0, "value")
    assert [repr(e.exc) for e in seen if isinstance(e, events.Failed)] == ["OSError('gone')"]


def test_a_real_body_drains_by_itself_if_no_script_replaces_the_drain():
    """`stop_requested` and the drain time are the real ones."""

    async def body():
        await stop_requested()
        await trio.sleep(1)

    tree = Supervisor("app", [Child("a", body, drain=5.0)])
    for script, ended in (
        (Script(), 21.0),
        (Script(drain=Return(after=0.5)), 20.5),
        (Script(body=Hang(after=30)), 21.0),
    ):
        seen, _ = run(tree, FaultPlan({"app/a": script}))
        assert seen[-1].at == ended


def test_members_of_a_pool_have_scripts_by_their_paths():
    """The members do not exist yet when the plan is applied."""
    tree = Supervisor("app", [Pool("p", Child("m", idle))])
    plan = FaultPlan({"app/p/m-2": Script(body=Fail(Injected("x"), after=3))})

    async def scene(tree):
        for _ in range(3):
            await tree["app/p"].add()
        await trio.sleep(5)

    seen, _ = run(tree, plan, scene=scene)
    assert [e.path for e in seen if isinstance(e, events.Failed)] == ["app/p/m-2"]


def test_a_child_that_is_added_later_has_its_scripts_too():
    """`over(child, at=…)` applies the scripts of that child, and ignores the rest of the plan."""
    plan = FaultPlan({"app/late": Script(body=Fail(Injected("x"), after=3))})

    async def scene(tree):
        await tree.root.add(plan.over(Child("late", idle), at="app"))
        await trio.sleep(5)

    seen = []

    async def main():
        async with open_tree(Supervisor("app", []), sinks=[seen.append]) as tree:
            await scene(tree)

    run_virtual(main, seed=0)
    assert [(e.at, e.path) for e in seen if isinstance(e, events.Failed)] == [(3.0, "app/late")]


@settings(deadline=None, max_examples=60)
@given(trees(), st.integers(0, 1000))
def test_a_wrapped_child_without_a_fault_behaves_as_unwrapped(tree, seed):
    """A script that never fires changes no event and no time."""
    harmless = Script(body=Hang(after=1e6), drain=Return(after=1e6))
    paths = [path for path, node in supervise._core.spec.walk(tree) if isinstance(node, Child)]
    bare = run(tree, FaultPlan(), seed=seed)
    wrapped = run(tree, FaultPlan(dict.fromkeys(paths, harmless)), seed=seed)
    assert transcript(bare[0]) == transcript(wrapped[0])


# --- values


def test_a_plan_is_compared_by_content():
    """Exceptions count as what they print."""
    one, other = (FaultPlan({"app/a": Script(body=Fail(OSError(1), after=2))}) for _ in range(2))
    assert one == other
    assert one != FaultPlan({"app/a": Script(body=Fail(OSError(2), after=2))})
    assert FaultPlan({"app/a": Script()}) == FaultPlan({"app/a": [Script()]})


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.data())
def test_trees_and_plans_print_as_the_code_that_makes_them(data):
    """`eval` of the repr gives an equal plan, and a tree that prints and behaves the same."""
    tree = data.draw(trees())
    plan = data.draw(fault_plans(tree))
    scope = {**NAMES, "re": __import__("re")}
    assert eval(repr(plan), scope) == plan
    again = eval(repr(tree), scope)
    assert repr(again) == repr(tree)
    assert transcript(simulate(again, plan, stop_at=9.0)) == transcript(simulate(tree, plan, stop_at=9.0))
    assert repr(plan.over(tree)) == repr(tree)


def test_only_what_differs_from_the_default_is_printed():
    """So the text is short enough to be read."""
    child = Child("a", idle, restart="transient", mailbox=8, limit=Limit(1, within=2.0))
    assert (
        repr(child) == "Child('a', idle, restart='transient', mailbox=Mailbox(8), limit=Limit(1, within=2.0))"
    )
    assert repr(Script(body=Fail(OSError("x"), after=1.5))) == "Script(body=Fail(OSError('x'), after=1.5))"
    assert repr(Supervisor("app", [Child("a", idle)])) == "Supervisor('app', [Child('a', idle)])"


def test_the_same_seed_is_the_same_run():
    """Jitter included."""
    tree = Supervisor("app", [Child("a", idle, backoff=supervise.Backoff(jitter=0.5))])
    fail = Script(body=Fail(Injected("x"), after=1))
    plan = FaultPlan({"app/a": (fail, fail)})
    assert transcript(run(tree, plan, seed=3)[0]) == transcript(run(tree, plan, seed=3)[0])
    assert transcript(run(tree, plan, seed=3)[0]) != transcript(run(tree, plan, seed=4)[0])
