"""Stopping and cancellation (R20–R24, R36)."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Child,
    Decider,
    Escalate,
    Limit,
    Ref,
    Refused,
    StartFailed,
    Supervisor,
    TreeFailed,
    current_child,
    errors,
    events,
    open_tree,
    stop_requested,
)
from supervise._core import shortcut
from supervise._core.machine import Machine
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Kit, Other, Puppet, Seen, app, forever, grow, puppets, quiet

# --- two phases


def test_a_child_is_asked_first_and_may_drain():
    """R20: `stop_requested` is set, and the child may use its `drain` seconds to end by itself."""

    async def body():
        await stop_requested()
        assert current_child().stopping
        await trio.sleep(3)

    seen = grow(app(Child("a", body, drain=10)))
    assert seen.kinds("app/a") == "Starting Ready Stopping Stopped"
    assert seen.at(events.Stopped, "app/a") == [3]


def test_a_child_that_has_not_drained_is_cancelled():
    """R20: After `drain` seconds it is cancelled, whatever it still does."""

    async def body():
        try:
            await stop_requested()
            await trio.sleep(100)
        except trio.Cancelled as exc:
            reasons.append(str(exc))
            raise

    reasons = []
    seen = grow(app(Child("a", body, drain=10)))
    assert seen.at(events.Stopped, "app/a") == [10]
    assert "not drained within 10 s" in reasons[0]
    assert "open_tree was left" in reasons[0]


def test_stop_requested_returns_at_once_when_the_stop_has_come():
    """R20: This holds also for a task that calls it late."""

    async def body():
        await trio.sleep(5)
        await stop_requested()

    async def scene(tree, seen):
        await trio.sleep(1)

    seen = grow(app(Child("a", body, drain=10)), scene)
    assert seen.at(events.Stopped, "app/a") == [5]


def test_without_a_drain_the_cancel_comes_at_once():
    """R20: The default drain time is zero."""
    seen = grow(app(Puppet("a")))
    assert seen.at(events.Stopped, "app/a") == [0]


def test_an_overdue_child_is_reported_with_its_stack_at_doubling_intervals():
    """R20: `grace` seconds after the cancel, and then at doubling intervals; the supervisor goes on waiting."""

    async def hang_in_cleanup():
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async def body():
        try:
            await trio.sleep_forever()
        finally:
            await hang_in_cleanup()

    seen = grow(app(Child("a", body, grace=5)))
    overdue = seen.of(events.Overdue)
    assert [event.seconds for event in overdue] == [5, 15, 35]
    assert seen.at(events.Overdue) == [5, 15, 35]
    assert all("hang_in_cleanup" in event.stack for event in overdue)
    assert seen.at(events.Stopped, "app/a") == [60]


def test_no_replacement_is_started_beside_an_overdue_child():
    """R20: There are never two incarnations at once, however long the child takes."""
    a, b = Puppet("a"), Puppet("b", stubborn=100)

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(99)
        assert (b.lives, b.running) == (1, 1)
        await trio.sleep(2)
        assert (b.lives, b.running) == (2, 1)

    grow(app(a, b, strategy="one_for_all"), scene)


# --- cancellation from outside, and the end of the block


def test_cancelling_from_outside_stops_in_order_before_it_propagates():
    """R21: Children are shielded from the outer scope until the ordered stop reaches them."""
    a, b, c = Puppet("a"), Puppet("b", stubborn=2), Puppet("c", stubborn=3)
    seen = Seen()

    async def main():
        with trio.move_on_after(10) as scope:
            async with open_tree(app(a, b, c), sinks=[seen]):
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() == 15

    run_virtual(main)
    assert_lifecycle(seen)
    assert seen.order() == "+a +b +c -c -b -a"
    assert seen.at(events.Stopping) == [10, 10, 13, 15]
    assert "open_tree was left" in a.cancelled[0]


def test_leaving_the_block_stops_the_whole_tree_in_order():
    """R21: This holds also without any cancellation, and the children may drain."""

    async def body():
        await stop_requested()
        await trio.sleep(2)

    seen = grow(app(Child("a", body, drain=5), Child("b", body, drain=1)))
    assert seen.order() == "+a +b -b -a"
    assert seen.at(events.Stopped) == [1, 3, 3]


def test_a_cancellation_during_the_start_stops_what_had_started():
    """R21: The outer scope may end a start that is in progress."""
    a, b = Puppet("a"), Puppet("b", "hang")
    seen = Seen()

    async def main():
        with trio.move_on_after(5):
            async with open_tree(app(a, b), sinks=[seen]):
                raise AssertionError("entered")

    run_virtual(main)
    assert_lifecycle(seen)
    assert seen.order() == "+a +b -b -a"


@given(st.integers(0, 2**32), st.floats(0, 6), st.integers(0, 3))
def test_an_outer_cancellation_at_any_moment_leaves_nothing_behind(seed, moment, failures):
    """R21: At whatever moment it comes, in whatever schedule, every child has ended when it propagates."""
    a, b, c = Puppet("a", 1, 1, 1), Puppet("b", 0.5, stubborn=0.5), Puppet("c", resource=Kit())
    seen = Seen()

    async def main():
        with trio.move_on_after(moment):
            async with open_tree(
                app(a, Supervisor("s", [b.spec, c.spec]), strategy="one_for_all"), sinks=[seen]
            ):
                for _ in range(failures):
                    c.fail()
                    a.fail()
                    await trio.sleep(1)
                await trio.sleep_forever()
        assert a.running == b.running == c.running == 0

    run_virtual(main, seed=seed)
    assert_lifecycle(seen)


# --- what leaves


def test_an_exception_in_the_block_leaves_as_itself_after_the_ordered_stop():
    """R22: It leaves without a group or a wrapper, after everything has stopped."""
    a, b = puppets("ab")
    seen, boom = Seen(), Boom("block")

    async def scene(tree, seen):
        raise boom

    with pytest.raises(Boom) as raised:
        grow(app(a, b), scene, seen=seen)
    assert raised.value is boom
    assert seen.order() == "+a +b -b -a"


def test_when_the_tree_fails_the_block_is_cancelled_with_a_reason_that_names_the_path():
    """R22: `TreeFailed` is raised bare, so a plain `except` catches it."""
    a = Puppet("a")
    reasons = []

    async def main():
        try:
            async with open_tree(app(a, decider=Decider({Boom: Escalate})), sinks=[]):
                a.fail()
                try:
                    await trio.sleep_forever()
                except trio.Cancelled as exc:
                    reasons.append(str(exc))
                    raise
        except TreeFailed as failed:
            return failed

    failed = run_virtual(main)
    assert isinstance(failed.__cause__, Boom)
    assert "tree 'app' failed: Boom('a')" in reasons[0]


def test_if_the_block_raises_too_a_group_of_both_leaves():
    """R22: Neither exception hides the other."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.fail()
        try:
            await trio.sleep_forever()
        finally:
            raise Other("block")

    with pytest.raises(ExceptionGroup) as raised:
        grow(app(a, decider=Decider({Boom: Escalate})), scene)
    assert [type(exc) for exc in raised.value.exceptions] == [Other, TreeFailed]


def test_a_tree_that_fails_inside_a_cancelled_block_is_no_group():
    """R22: A group that holds nothing but `Cancelled` is no exception of the block."""
    a, b = Puppet("a"), Puppet("b", stubborn=1)

    async def main():
        with trio.CancelScope() as scope:
            async with open_tree(app(a, b, decider=Decider({Boom: Escalate})), sinks=[]):
                a.fail()
                await quiet()
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.5)
                scope.cancel()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        run_virtual(main)


def test_a_start_failure_leaves_bare():
    """R22: `StartFailed` is caught by a plain `except` too."""

    async def main():
        try:
            async with open_tree(app(Puppet("a", Boom())), sinks=[]):
                pass
        except StartFailed as failed:
            return failed

    assert isinstance(run_virtual(main).__cause__, Boom)


def test_a_failure_while_stopping_is_reported_and_the_stop_goes_on():
    """R23: The failure is a `StopError`, and the remaining children are stopped all the same."""

    async def messy():
        try:
            await trio.sleep_forever()
        finally:
            raise Boom("clean-up")

    a = Puppet("a")
    seen = grow(app(a, Child("b", messy), decider=Decider(default=Escalate)))
    assert isinstance(seen.the(events.StopError).exc, Boom)
    assert seen.of(events.Failed) == seen.of(events.Decided) == []
    assert seen.order() == "+a +b -b -a"


def test_a_failing_resource_is_reported_too():
    """R23: An exception from a resource that is left in a stop is a `StopError`."""
    seen = grow(app(Child("a", forever, resource=Kit(fail_exit=1))))
    assert isinstance(seen.the(events.StopError).exc, Other)


def test_a_failure_is_chained_wherever_it_is_raised_again():
    """R24: From the leaf's exception to the one that leaves the tree, no link of the chain is lost."""
    a = Puppet("a")
    boom = Boom("first")
    spec = app(Supervisor("s", [a.spec], limit=Limit(0)), limit=Limit(0))

    async def scene(tree, seen):
        a.fail(boom)
        await trio.sleep_forever()

    seen = Seen()
    with pytest.raises(TreeFailed) as raised:
        grow(spec, scene, seen=seen)
    chain = [raised.value]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    assert [type(exc) for exc in chain] == [TreeFailed, errors.LimitExceeded, errors.LimitExceeded, Boom]
    assert chain[-1] is boom
    assert boom.__traceback__ is not None
    assert seen.the(events.Failed, "app/s/a").exc is boom


class Defect(Exception):
    """A defect of the framework."""


def break_once(monkeypatch):
    """The next step of a machine, the long way or the short one, finds a defect."""
    broken = []

    def breaks(owner, name):
        sound = getattr(owner, name)

        def step(*given):
            if not broken:
                broken.append(1)
                raise Defect
            return sound(*given)

        monkeypatch.setattr(owner, name, step)

    breaks(Machine, "handle")
    breaks(shortcut, "restart_at_once")


def test_a_defect_of_the_framework_stops_every_child_in_order_and_leaves_as_itself(monkeypatch):
    """R24: This holds also after restarts, which do not change the order."""
    a, b, c, d = puppets("abcd")
    ended = []
    for puppet in (a, b, c, d):
        note_end(puppet, ended)

    async def main():
        async with open_tree(app(a, Supervisor("s", [b.spec, c.spec]), d), sinks=[]):
            await quiet()
            a.fail()
            b.fail()
            await quiet()
            ended.clear()
            break_once(monkeypatch)
            d.fail()
            await trio.sleep_forever()

    with pytest.raises(Defect):
        run_virtual(main)
    assert ended == ["d", "c", "b", "a"]
    assert a.running == b.running == c.running == d.running == 0


def note_end(puppet, ended):
    body = puppet.spec.body

    async def noted(*args, task_status):
        try:
            return await body(*args, task_status=task_status)
        finally:
            ended.append(puppet.spec.name)

    puppet.spec = Child(puppet.spec.name, noted)


def test_no_request_hangs_at_a_broken_tree(monkeypatch):
    """R24: Requests, calls and waits at a tree with a defect are answered, before and after its end."""
    a, b = Puppet("a", mailbox=4), Puppet("b")
    results = []

    async def ask(what):
        try:
            results.append(await what())
        except (Refused, errors.ChildStopped) as exc:
            results.append(type(exc))

    async def main():
        async with trio.open_nursery() as nursery:
            with pytest.raises(Defect):
                async with open_tree(app(a, b), sinks=[]) as tree:
                    await quiet()
                    ref = tree[a.spec]
                    nursery.start_soon(ask, lambda: ref.call(1))
                    nursery.start_soon(ask, ref.ended)
                    await quiet()
                    break_once(monkeypatch)
                    nursery.start_soon(ask, ref.stop)
                    await trio.sleep_forever()
            nursery.start_soon(ask, lambda: ref.call(2))
            nursery.start_soon(ask, ref.restart)
            nursery.start_soon(ask, tree[b.spec].ready)
            nursery.start_soon(ask, tree[b.spec].ended)

    run_virtual(main)
    stopped = [one for one in results if one is errors.ChildStopped]
    refused = [one for one in results if one is Refused]
    defects = [one for one in results if isinstance(one, Defect)]
    assert (len(stopped), len(refused), len(defects)) == (3, 2, 2)


def test_a_child_that_ended_in_a_broken_tree_is_not_up(monkeypatch):
    """R24, R28: The machine got no report of its end, so its node may still be marked as up; tasks that wait for it are woken when the tree ends."""
    slow, quick = Puppet("slow", stubborn=3), Puppet("quick")
    results = []

    async def lease(ref):
        async with ref.lease():
            pass

    async def ask(what, ref):
        try:
            results.append(await what(ref))
        except Exception as exc:
            results.append(type(exc))

    async def main():
        async with trio.open_nursery() as nursery:
            with pytest.raises(Defect):
                async with open_tree(app(slow, quick), sinks=[]) as tree:
                    ref = tree[quick.spec]
                    break_once(monkeypatch)
                    nursery.start_soon(ask, Ref.stop, ref)
                    nursery.start_soon(look, ref)
                    await trio.sleep_forever()

    async def look(ref):
        await trio.sleep(1)
        assert (quick.running, slow.running, ref.status().state) == (0, 1, "up")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, Ref.ready, ref)
            nursery.start_soon(ask, lease, ref)
        assert trio.current_time() == pytest.approx(3, abs=0.1)

    run_virtual(main)
    assert results == [Refused, errors.ChildStopped, errors.ChildStopped]


# --- reasons


REASONS = [
    (lambda tree, a: tree["app/b"].stop(), "'app/b' was asked to stop"),
    (lambda tree, a: fail_and_wait(a), "one_for_all: sibling 'app/a' failed"),
    (lambda tree, a: tree.root.stop(), "'app' was asked to stop"),
]


async def fail_and_wait(puppet):
    puppet.fail()
    await quiet()


@pytest.mark.parametrize(("act", "reason"), REASONS)
def test_every_cancellation_of_ours_names_its_cause(act, reason):
    """R36: The reason is visible in the child's `Cancelled` and in its `Stopping` event."""
    a, b = puppets("ab")

    async def scene(tree, seen):
        await act(tree, a)

    seen = grow(app(a, b, strategy="one_for_all"), scene)
    assert reason in b.cancelled[0]
    assert seen.of(events.Stopping, "app/b")[0].reason == reason


def test_a_reason_reaches_the_bottom_of_a_branch():
    """R36: A leaf deep below gets the reason of the stop above."""
    a, b = puppets("ab")

    async def scene(tree, seen):
        a.fail()
        await quiet()

    grow(app(a, Supervisor("s", [Supervisor("t", [b.spec])]), strategy="rest_for_one"), scene)
    assert "rest_for_one: sibling 'app/a' failed" in b.cancelled[0]


def test_the_cancellations_of_a_late_start_and_of_an_injection_have_their_reasons():
    """R27, R36: These are the reasons of the other two cancellations."""
    a, b = Puppet("a"), Puppet("b", 0, "hang", start_timeout=2)

    async def scene(tree, seen):
        tree[a.spec].inject(Boom("mine"))
        b.fail()
        await trio.sleep(3)

    grow(app(a, b), scene)
    assert "injected into 'app/a': Boom('mine')" in a.cancelled[0]
    assert "'app/b': start_timeout of 2 s passed" in b.cancelled[0]
