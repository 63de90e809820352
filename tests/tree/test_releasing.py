"""A leaf that takes long to leave its resource delays no other child (R9, R19)."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Limit,
    Pool,
    Restart,
    Rule,
    Stop,
    Supervisor,
    TreeFailed,
    current_child,
    events,
    open_tree,
)
from supervise.testing import (
    Delay,
    Fail,
    FaultPlan,
    Script,
    fault_plans,
    idle,
    nothing,
    run_virtual,
    simulate,
)

from .campaign import dice, tilted
from .scene import Boom, Kit, Other, Puppet, Seen, app, grow, quiet


def slow(name="slow", seconds=3.0, **options):
    """A puppet whose resource takes so long to be left, and that resource."""
    kit = Kit(slow_exit=seconds)
    return Puppet(name, resource=kit, **options), kit


def test_a_sibling_restarts_at_once_while_a_resource_is_being_left():
    """R9, R19: Under one_for_one the supervisor serves all other items meanwhile."""
    a, _ = slow()
    b = Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree[a.spec].status().state == "releasing"
        b.fail()
        await quiet()
        await tree.root.add(Child("c", trio.sleep_forever))
        assert (trio.current_time(), b.lives, a.lives) == (0, 2, 1)
        await trio.sleep(3)
        await quiet()
        assert (a.lives, tree[a.spec].status().state) == (2, "up")

    seen = grow(app(a, b), scene)
    assert seen.order().startswith("+slow +b -b +b +c -slow +slow")


def test_a_pool_goes_on_while_a_member_leaves_its_resource():
    """R9, R26: A member that is slow to leave delays neither another member's restart nor an add."""
    kit = Kit(slow_exit=3)
    fails = trio.Event()
    lives = itertools.count(1)

    async def body(_):
        if next(lives) == 1:
            await fails.wait()
            raise Boom
        await trio.sleep_forever()

    pool = Pool("pool", Child("m", body, resource=kit))

    async def scene(tree, seen):
        await tree[pool].add()
        fails.set()
        await quiet()
        await tree[pool].add()
        assert trio.current_time() == 0
        assert [child.state for child in tree[pool].status().children] == ["releasing", "up"]

    grow(app(pool), scene)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_under_the_other_strategies_the_group_waits(strategy):
    """R9, R13: The failed child ends first, and the group waits for it."""
    a, _ = slow()
    b = Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(2)
        assert (a.lives, b.lives) == (1, 1)
        assert tree[a.spec].status().state == "stopping"
        await trio.sleep(2)
        assert (a.lives, b.lives) == (2, 2)

    grow(app(a, b, strategy=strategy), scene)


def test_a_backoff_begins_once_the_leaf_has_ended():
    """R9, R15: The leaf takes three seconds to leave its resource, and then waits five seconds of backoff."""
    a, _ = slow(backoff=Backoff(initial=5, jitter=0))

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(4)
        assert tree[a.spec].status().state == "restarting"
        assert tree[a.spec].status().due == 8
        await trio.sleep(5)
        assert a.lives == 2

    seen = grow(app(a), scene)
    backing_off = seen.the(events.BackingOff)
    assert (backing_off.at, backing_off.until, backing_off.attempt) == (3, 8, 1)


def test_a_condemned_child_is_down_for_good_once_it_has_ended():
    """R9, R10: Until then its callers wait."""
    a, _ = slow(mailbox=1)

    async def scene(tree, seen):
        a.fail(Other("no"))
        with pytest.raises(ChildStopped):
            await tree[a.spec].call("ping")
        assert trio.current_time() == 3

    grow(app(a, decider=Decider({Other: Stop})), scene)


def test_a_stop_of_the_tree_waits_first_for_a_child_that_leaves_its_resource():
    """R12, R19: A stop from above cancels the restart that was to come, and no sibling is stopped beside a child that is ending."""
    a, _ = slow()
    b = Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()

    seen = grow(app(a, b), scene)
    assert seen.order() == "+slow +b -slow -b"
    assert a.lives == 1


def test_a_stop_by_hand_waits_for_the_end_and_nothing_is_restarted():
    """R25: The restart that a verdict had begun is cancelled; a condemnation is not."""
    a, _ = slow("a")
    b, _ = slow("b")

    async def scene(tree, seen):
        a.fail()
        b.fail(Other("no"))
        await quiet()
        async with trio.open_nursery() as asking:  # both while the resource is being left
            asking.start_soon(tree[a.spec].stop)
            asking.start_soon(tree[b.spec].stop)
        assert trio.current_time() == 3
        assert [child.state for child in tree.status().children] == ["down", "condemned"]
        assert (a.lives, b.lives) == (1, 1)

    grow(app(a, b, decider=Decider({Other: Stop})), scene)


def test_a_restart_by_hand_waits_for_the_end():
    """R25: The restart by hand replaces the restart that was to come, and skips its backoff."""
    a, _ = slow(backoff=Backoff(initial=50, jitter=0))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        await tree[a.spec].restart()
        assert (trio.current_time(), a.lives) == (3, 2)

    grow(app(a), scene)


def test_a_release_that_takes_too_long_is_cancelled_and_overdue():
    """R9, R20: The same `grace` counts for leaving a resource as for a stop."""
    kit = Kit(slow_exit=20)
    a = Puppet("a", resource=kit, grace=2)

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(100)
        assert a.lives == 2

    seen = grow(app(a), scene)
    assert [event.seconds for event in seen.of(events.Overdue)][:3] == [2, 6, 14]


def test_a_failed_start_leaves_its_resource_without_delaying_others():
    """R9, R16: This holds in a restart too."""
    kit = Kit(slow_exit=3)
    a, b = Puppet("a", 0, Boom("start"), resource=kit), Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(4)
        assert (a.lives, tree[a.spec].status().state) == (2, "releasing")
        b.fail()
        await quiet()
        assert (trio.current_time(), b.lives) == (4, 2)
        await trio.sleep(4)
        assert a.lives == 3

    grow(app(a, b), scene)


def test_a_supervisor_that_fails_waits_for_a_child_that_leaves_its_resource():
    """R11: The limit is passed meanwhile; the supervisor ends when all its children have ended."""
    a, _ = slow()
    b = Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        b.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        grow(app(a, b, limit=Limit(1, within=5)), scene)
    assert (a.lives, b.lives) == (1, 1)


SIBLINGS = ("a", "b", "c")


@given(st.data())
def test_how_long_one_child_takes_to_leave_changes_nothing_for_the_others(data):
    """R9, R19: Under one_for_one each child's events come at the same times, however slow another's release is."""
    spec = Supervisor("app", [Child(name, idle, resource=nothing) for name in SIBLINGS], limit=None)
    plan = data.draw(fault_plans(spec))
    others = {
        path: [evolve(script, start=None, enter=None) for script in scripts]
        for path, scripts in plan.scripts.items()
        if path != "app/a"
    }  # starts take no time, so that no child waits for another's
    seconds = data.draw(st.sampled_from([0.5, 3.0, 100.0]))
    lives = (Script(body=Fail(Boom("a"), after=1.0), leave=Delay(seconds)),)

    def of_others(scripts):
        chance = dice(1)  # so that no two things happen at one time, in an order that nothing decides
        tree = tilted(spec, chance)
        its = {
            path: tilted(FaultPlan({path: its}), dice(path)).scripts[path] for path, its in scripts.items()
        }
        seen = simulate(tree, FaultPlan(its), stop_at=60.0)
        return {
            path: [repr(event) for event in seen if event.path == path and event.at < 60]
            for path in ("app/b", "app/c")
        }

    assert of_others({**others, "app/a": lives}) == of_others(others)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", ["stop", "restart", "start"])
def test_a_base_exception_from_a_clean_up_stops_the_tree_and_leaves_bare(kind, when):
    """R4, R23: R4 wins. The exception comes from a resource's exit; its child is stopped by hand, restarted, or too late to start."""

    class Leaving:
        async def __aenter__(self):
            return None

        async def __aexit__(self, *_):
            raise kind("out")

    async def body(_, task_status):
        if when == "start":
            await trio.sleep_forever()
        task_status.started()
        if when == "restart":
            await trio.sleep(1)
            raise Boom
        await trio.sleep_forever()

    child = Child("a", body, resource=Leaving, start_timeout=5)
    late = Puppet("b")

    async def scene(tree, seen):
        if when == "stop":
            await tree[child].stop()
        await trio.sleep_forever()

    with pytest.raises(kind) as raised:
        grow(app(late, child), scene)
    assert type(raised.value) is kind
    assert late.running == 0


def test_a_verdict_names_its_decider_the_entry_and_the_child_that_it_applies_to():
    """R2, R11: An escalated Stop condemns a whole supervisor, and the event names it."""
    a = Puppet("a")
    inner = app(a, name="inner", decider=Decider({Boom: Escalate}))

    async def scene(tree, seen):
        a.fail()
        await quiet()

    seen = grow(app(inner, Puppet("b"), decider=Decider(default=Stop)), scene)
    decided = seen.the(events.Decided)
    assert (decided.path, decided.by, decided.directive) == ("app/inner/a", "app", Stop)
    assert (decided.decider, decided.entry, decided.applied_to) == ("app", "default", "app/inner")


def test_a_built_in_rule_is_reported_without_a_decider():
    """R2: `returned` means Restart whatever the default is, and no decider is named for it."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.finish()
        await quiet()

    seen = grow(app(a, decider=Decider(default=Stop)), scene)
    decided = seen.the(events.Decided)
    assert (decided.directive, decided.decider, decided.entry) == (Restart, None, "rule")


def test_a_verdict_after_a_decider_that_raised_has_no_decider_and_no_entry():
    """R2, R5: The event has the exception that the decider raised; no table gave the verdict."""
    a = Puppet("a")

    def when(_):
        raise LookupError("no such table")

    async def scene(tree, seen):
        a.fail()
        await trio.sleep_forever()

    seen = Seen()
    with pytest.raises(TreeFailed):
        grow(app(a, decider=Decider(rules=[Rule(Boom, "x", when=when)])), scene, seen=seen)
    decided = seen.the(events.Decided)
    assert (decided.because, decided.directive, decided.decider, decided.entry) == (
        "raised",
        Escalate,
        None,
        None,
    )
    assert isinstance(decided.exc, LookupError)


def test_attempts_of_a_series_are_numbered():
    """R15: The number is in the verdict and in the backoff."""
    a = Puppet("a", backoff=Backoff(initial=1, jitter=0))

    async def scene(tree, seen):
        for _ in range(3):
            a.fail()
            await trio.sleep(10)

    seen = grow(app(a, limit=None), scene)
    assert [event.attempt for event in seen.of(events.Decided)] == [1, 2, 3]
    assert [event.attempt for event in seen.of(events.BackingOff)] == [1, 2, 3]


def test_a_start_that_takes_long_is_reported_with_its_stack_and_what_it_waits_for():
    """R17: The report comes after `start_warning` seconds, and then at doubling intervals."""
    late = Puppet("late")

    async def waits_for_a_later_sibling(task_status):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(current_child().tree[late.spec].ready)
        task_status.started()

    @asynccontextmanager
    async def slow_to_enter():
        await trio.sleep(50)
        yield

    seen = Seen()

    async def main():
        with trio.move_on_after(300):
            async with open_tree(app(b, a, late), sinks=[seen]):
                pass

    a = Child("a", waits_for_a_later_sibling)
    b = Child("b", idle, resource=slow_to_enter, start_warning=40)
    run_virtual(main, seed=0)
    results = [(event.path, event.seconds, event.waits_for) for event in seen.of(events.StartOverdue)]
    assert results == [
        ("app/b", 40, None),
        ("app/a", 30, "app/late"),
        ("app/a", 90, "app/late"),
        ("app/a", 210, "app/late"),
    ]
    assert "slow_to_enter" in seen.of(events.StartOverdue)[0].stack
