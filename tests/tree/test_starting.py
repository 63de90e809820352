"""First starts, failed starts, readiness, one thing at a time (R16, R17, R19)."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Refused,
    Restart,
    StartFailed,
    Stop,
    Supervisor,
    TreeFailed,
    errors,
    events,
    open_tree,
)
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Kit, Other, Puppet, Seen, app, forever, grow, puppets, quiet

# --- first starts


def test_a_failed_first_start_stops_the_started_children_and_goes_up():
    """R16: The children that had started stop in reverse, no later one starts, and nothing is decided or charged."""
    a, b, d = puppets("abd")
    boom = Boom("start")
    c = Puppet("c", boom)
    seen = Seen()
    with pytest.raises(StartFailed) as raised:
        grow(app(a, Supervisor("s", [b.spec, c.spec, d.spec]), decider=Decider(default=Restart)), seen=seen)
    assert raised.value.__cause__ is boom
    assert raised.value.path == "app/s/c"
    assert seen.order() == "+a +s +s/b +s/c -s/c -s/b -s -a"
    assert {(decided.directive, decided.because) for decided in seen.of(events.Decided)} == {
        (None, "first start")
    }
    assert d.lives == 0


def test_a_failed_first_start_goes_up_through_every_level_that_is_starting():
    """R16: The cause travels through every level that is itself starting for the first time."""
    boom, spec = Boom("deep"), Puppet("x", Boom("deep")).spec
    spec = Puppet("x", boom).spec
    for depth in range(5):
        spec = Supervisor(f"s{depth}", [spec])
    with pytest.raises(StartFailed) as raised:
        grow(app(spec))
    assert raised.value.__cause__ is boom
    assert raised.value.path == "app/s4/s3/s2/s1/s0/x"


def test_the_block_is_not_entered_when_the_start_fails():
    """R16: `open_tree` raises, and its block has not run."""
    entered = []

    async def scene(tree, seen):
        entered.append(1)

    with pytest.raises(StartFailed):
        grow(app(Puppet("a", Boom())), scene)
    assert entered == []


def test_a_failed_start_in_a_restart_is_judged_charged_and_backed_off():
    """R16: It counts like any failure; the later members of its group stay down meanwhile."""
    a = Puppet("a", 0, Boom("again"), backoff=Backoff(initial=10, jitter=0, immediate=1))
    b = Puppet("b")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        states = [child.state for child in tree.status().children]
        assert states == ["restarting", "down"]
        assert tree.status().restarts == 1
        await trio.sleep(11)
        assert [child.state for child in tree.status().children] == ["up", "up"]
        assert tree.status().restarts == 2

    seen = grow(app(a, b, strategy="rest_for_one", limit=Limit(5, within=100)), scene)
    assert [decided.directive for decided in seen.of(events.Decided)] == [Restart, Restart]


def test_a_nested_supervisors_failing_start_is_judged_on_its_cause():
    """R16: In a restart the failure of a nested supervisor's start is judged by its cause."""
    a = Puppet("a", 0, Other("again"))
    inner = Supervisor("s", [a.spec], limit=Limit(0))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree[inner].status().state == "condemned"

    seen = grow(app(inner, decider=Decider({Other: Stop, "limit": Restart})), scene)
    decided = seen.of(events.Decided, "app/s")[-1]
    assert (decided.directive, type(decided.exc)) == (Stop, Other)


def test_a_start_that_fails_in_a_restart_can_escalate():
    """R16: Any directive is allowed; escalated by the root, the failure fails the tree."""
    a = Puppet("a", 0, Other("again"))

    async def scene(tree, seen):
        a.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed) as raised:
        grow(app(a, decider=Decider({Boom: Restart, Other: Escalate})), scene)
    assert isinstance(raised.value.__cause__, Other)


def test_an_init_may_refuse_or_ignore():
    """R16, R17: A supervisor's `init` runs before its children; raising fails the start, IGNORE leaves it down."""
    a = Puppet("a")
    seen = grow(app(Supervisor("s", [a.spec], init=lambda: IGNORE)))
    assert seen.kinds("app/s") == "Starting Ignored Returned Stopped"
    assert a.lives == 0

    def broken():
        raise Boom("init")

    with pytest.raises(StartFailed) as raised:
        grow(app(Supervisor("s", [a.spec], init=broken)))
    assert isinstance(raised.value.__cause__, Boom)


def test_the_init_of_a_supervisor_that_was_stopped_first_is_not_called():
    """R19, R32: A stop between the start and the first line of the supervisor's task has ended it, and it may have started anew."""
    called = []

    async def scene(tree, seen):
        s = Supervisor("s", [Child("a", forever)], init=lambda: called.append("s"))

        def stop(event):
            if isinstance(event, events.Starting) and event.path == "app/s":
                tree._driver.stop("it ends before it has begun")

        tree._driver._sinks.append(stop)
        with pytest.raises(Refused):
            await tree.root.add(s)
        await trio.sleep(1)

    seen = grow(app(Puppet("b")), scene)
    assert seen.kinds("app/s") == "Starting Stopping Stopped"
    assert called == []


def test_a_root_whose_init_returns_ignore_has_ended():
    """R17: An ignored root runs nothing, and nothing is raised."""

    async def scene(tree, seen):
        assert await tree.root.ended() is None

    seen = grow(app(Puppet("a"), init=lambda: IGNORE), scene)
    assert seen.kinds("app") == "Starting Ignored Returned Stopped"


# --- readiness


def test_a_function_that_takes_task_status_is_ready_when_it_calls_started():
    """R17: `started(value)` makes the child ready, and the next child waits for that."""
    a, b = Puppet("a", 3), Puppet("b")

    async def scene(tree, seen):
        assert await tree[a.spec].ready() == 1

    seen = grow(app(a, b), scene)
    assert seen.at(events.Ready, "app/a") == seen.at(events.Starting, "app/b") == [3]
    assert seen.the(events.Ready, "app/a").value == 1


def test_any_other_function_is_ready_as_soon_as_its_resource_is_entered_and_its_body_runs():
    """R17: Entering the resource counts as starting."""

    @asynccontextmanager
    async def slow():
        await trio.sleep(4)
        yield

    seen = grow(app(Child("a", forever, resource=slow), Child("b", forever)))
    assert seen.at(events.Ready, "app/a") == seen.at(events.Ready, "app/b") == [4]


def test_a_resource_that_cannot_be_entered_is_a_failed_start():
    """R16, R17: An exception from entering the resource fails the start."""
    with pytest.raises(StartFailed) as raised:
        grow(app(Child("a", forever, resource=Kit(fail_enter=1))))
    assert isinstance(raised.value.__cause__, Other)


@pytest.mark.parametrize("what", ["body", "resource", "supervisor"])
def test_a_start_that_hangs_is_ended(what):
    """R17: `start_timeout` ends a start that hangs, with the tag `start.timeout`."""
    hanging = Puppet("x", "hang")
    child = {
        "body": lambda: Puppet("x", "hang", start_timeout=5).spec,
        "resource": lambda: Child("x", forever, resource=Slow(), start_timeout=5),
        "supervisor": lambda: Supervisor("x", [hanging.spec], start_timeout=5),
    }[what]()
    seen = Seen()
    with pytest.raises(StartFailed) as raised:
        grow(app(child), seen=seen)
    assert isinstance(raised.value.__cause__, errors.StartTimeout)
    assert raised.value.__cause__.tag == "start.timeout"
    assert seen.at(events.StartFailed, "app/x") == [5]


class Slow:
    @asynccontextmanager
    async def __call__(self):
        await trio.sleep(100)
        yield


def test_a_start_that_hangs_in_a_restart_is_judged_by_its_tag():
    """R17: Tables may name `start.timeout`, or `start`."""
    a = Puppet("a", 0, "hang", start_timeout=5)

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(6)
        assert tree[a.spec].status().state == "condemned"

    decided = grow(app(a, decider=Decider({"start": Stop})), scene).of(events.Decided)[-1]
    assert (decided.tag, decided.directive) == ("start.timeout", Stop)


def test_a_start_in_time_is_not_ended_later():
    """R17: Once the child is ready, the time limit no longer applies."""
    a = Puppet("a", 4, start_timeout=5)

    async def scene(tree, seen):
        await trio.sleep(100)
        assert a.lives == a.running == 1

    grow(app(a), scene)


def test_a_hanging_start_that_does_not_yield_is_overdue_and_waited_for():
    """R17, R20: The supervisor waits for its end, and starts nothing else meanwhile."""
    a = Puppet("a", "hang", start_timeout=5, stubborn=20, grace=5)
    seen = Seen()
    with pytest.raises(StartFailed):
        grow(app(a, Puppet("b")), seen=seen)
    assert seen.at(events.Overdue) == [10, 20]
    assert seen.at(events.StartFailed, "app/a") == [25]


def test_ignore_before_ready_means_not_needed_here():
    """R17: The child stays in the tree, not running, and the start goes on."""
    a, b = Puppet("a", IGNORE), Puppet("b")

    async def scene(tree, seen):
        assert [child.state for child in tree.status().children] == ["down", "up"]
        await tree[a.spec].start()
        assert a.running == 1

    seen = grow(app(a, b), scene)
    assert seen.kinds("app/a").startswith("Starting Ignored Returned Stopped Starting Ready")


@pytest.mark.parametrize("resource", [None, Kit()])
def test_anything_else_returned_before_ready_is_a_failed_start(resource):
    """R17: The failure is tagged `start.returned`."""

    async def body(*_, task_status):
        return 5

    with pytest.raises(StartFailed) as raised:
        grow(app(Child("a", body, resource=resource)))
    assert isinstance(raised.value.__cause__, errors.StartReturned)
    assert raised.value.__cause__.tag == "start.returned"


def test_ignore_with_a_resource_leaves_the_resource_first():
    """R17: The resource is left cleanly before the child counts as ignored."""
    kit = Kit()
    seen = grow(app(Puppet("a", IGNORE, resource=kit)))
    assert (kit.left, kit.saw) == (1, [None])
    assert seen.kinds("app/a") == "Starting Ignored Returned Stopped"


# --- one thing at a time


def test_exits_and_requests_queue_in_the_order_they_came():
    """R19: An input that comes while the supervisor is busy waits its turn."""
    a, b, slow = Puppet("a"), Puppet("b"), Puppet("slow", 0, 10)

    async def scene(tree, seen):
        mark = len(seen)
        slow.fail()
        await quiet()
        async with trio.open_nursery() as nursery:
            a.fail()
            await quiet()
            nursery.start_soon(tree[b.spec].stop)
            await quiet()
            assert seen.order(since=mark) == "-slow +slow"
        assert seen.order(since=mark) == "-slow +slow -a +a -b"

    grow(app(a, b, slow), scene)


@pytest.mark.parametrize("busy", ["start", "group", "backoff"])
def test_a_stop_from_above_overtakes_all_that_waits(busy):
    """R19: The stop interrupts a start, a group restart and a backoff, stops the children that are up, and refuses the waiting requests."""
    options = {"backoff": Backoff(initial=30, jitter=0)} if busy == "backoff" else {}
    slow = Puppet("slow", 0, 30, **options)
    a = Puppet("a", stubborn=1 if busy == "group" else 0)
    refused = []

    async def ask(ref):
        with pytest.raises(Refused) as raised:
            await ref.add(Child("new", forever))
        refused.append(raised.value.reason)

    async def scene(tree, seen):
        slow.fail()
        await quiet()
        async with trio.open_nursery() as nursery:
            if busy != "backoff":
                nursery.start_soon(ask, tree.root)
                await quiet()
            await tree.root.stop()
        assert trio.current_time() <= 1
        assert a.running == slow.running == 0

    strategy = "one_for_all" if busy == "group" else "one_for_one"
    seen = grow(app(a, slow, strategy=strategy), scene)
    assert refused == ([] if busy == "backoff" else ["stopping"])
    assert seen.kinds("app/slow").endswith("Stopped BackingOff" if busy == "backoff" else "Stopped")


def test_a_cancellation_that_comes_before_anything_ran_still_opens_and_closes_in_order():
    """R19, R21: A stop may reach a tree that has not begun, under every schedule."""

    async def main():
        with trio.CancelScope() as scope:
            scope.cancel()
            async with open_tree(app(Supervisor("s", [Child("a", forever)])), sinks=[seen]):
                raise AssertionError("entered")
        assert scope.cancelled_caught

    for seed in range(10):
        seen = Seen()
        run_virtual(main, seed=seed)
        assert_lifecycle(seen)
        assert "Ready" not in seen.kinds("app")


def test_a_failure_waits_at_a_busy_ancestor_with_its_resource_open():
    """R19: A failure walking up waits, its leaf suspended; the verdict comes when the ancestor is free."""
    kit = Kit()
    slow, a = Puppet("slow", 0, 10), Puppet("a", resource=kit)
    inner = Supervisor("s", [a.spec], decider=Decider({Other: Escalate}))

    async def scene(tree, seen):
        slow.fail()
        await quiet()
        a.fail(Other())
        await trio.sleep(9)
        assert (kit.left, seen.of(events.Decided, "app/s/a")) == (0, [])
        assert tree["app/s/a"].status().state == "failed"
        await trio.sleep(2)
        assert a.lives == 2

    grow(app(slow, inner, decider=Decider({Other: Restart, Boom: Restart})), scene)


def test_a_failure_of_a_child_that_is_being_stopped_is_reported_and_never_judged():
    """R19: A failure that crosses with a stop is reported, and nothing is decided."""
    a, b = puppets("ab")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            with tree._driver.held():
                nursery.start_soon(tree[a.spec].stop)
                await quiet()
                a.fail()
                await quiet()
        await quiet()
        assert tree[a.spec].status().state == "down"

    seen = grow(app(a, b), scene)
    assert seen.of(events.Decided) == []
    assert isinstance(seen.the(events.StopError).exc, Boom)


@pytest.mark.parametrize("which", ["started", "inject"])
def test_a_call_from_another_thread_is_refused(which):
    """R17, R27: Nothing is changed by it, and the tree can be stopped."""

    async def body(task_status):
        if which == "started":
            await trio.to_thread.run_sync(task_status.started)
        task_status.started()
        await trio.sleep_forever()

    async def main():
        async with open_tree(app(Child("a", body)), sinks=[seen]) as tree:
            await trio.to_thread.run_sync(tree["app/a"].inject, Boom())

    seen = Seen()
    with pytest.raises(
        StartFailed if which == "started" else RuntimeError, match="in the thread of the tree"
    ):
        trio.run(main)
    assert_lifecycle(seen)


@pytest.mark.parametrize("problem", [RuntimeError("no such attribute"), SystemExit(3)])
def test_a_late_start_is_reported_whatever_its_awaitable_raises(problem):
    """R17: Trio asks each awaitable below the task for its frame, as the report looks for what the start waits for."""

    class Odd:
        def __init__(self, waits):
            self.send, self.throw = waits.send, waits.throw

        def __iter__(self):
            return self

        def __next__(self):
            return self.send(None)

        def __getattr__(self, name):
            raise problem

    class Awaitable:
        def __await__(self):
            return Odd(waits().__await__())

    async def waits():
        await trio.sleep(40)

    async def body(task_status):
        await Awaitable()
        task_status.started()
        await trio.sleep_forever()

    seen = grow(app(Child("a", body)))
    assert seen.kinds("app/a") == "Starting StartOverdue Ready Stopping Stopped"
