"""Starts and recoveries, from the events of trees under virtual time."""

import pytest
import trio

from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Pool,
    Resume,
    StartFailed,
    Stop,
    Supervisor,
    TreeFailed,
    open_tree,
)
from supervise.events import Failed, Ready, Stopped
from supervise.sinks import _intervals
from supervise.sinks._intervals import Intervals
from supervise.testing import idle, run_virtual


class Collected:
    """A sink that keeps all intervals."""

    def __init__(self):
        self.intervals = Intervals()
        self.found = []

    def __call__(self, event):
        self.found += self.intervals.take(event)

    def of(self, kind, path):
        return [
            (each.outcome, each.seconds, each.failures)
            for each in self.found
            if (each.kind, each.began.path) == (kind, path)
        ]

    def under_way(self):
        return len(self.intervals._starts) + len(self.intervals._recoveries)


def collected(tree, use=None, seconds=20.0):
    """Run a tree, and `use(tree)` in it."""
    sink = Collected()

    async def main():
        async with open_tree(tree, sinks=[sink]) as t:
            if use is not None:
                await use(t)
            await trio.sleep(seconds)

    try:
        run_virtual(main)
    except (TreeFailed, StartFailed):
        pass
    assert sink.under_way() == 0
    return sink


async def opened(tree, sink):
    async with open_tree(tree, sinks=[sink]):
        await trio.sleep_forever()


async def fails_once_more():
    await trio.sleep(1)
    raise ConnectionError("gone")


async def slow_start(task_status):
    await trio.sleep(3)
    task_status.started()
    await trio.sleep(4)
    raise ConnectionError("gone")


def fails_in_starts(*failing):
    """A body of which some starts fail, by their numbers from 1; each start takes a second."""
    starts = 0

    async def body(task_status):
        nonlocal starts
        starts += 1
        await trio.sleep(1)
        if starts in failing:
            raise ConnectionError("not yet")
        task_status.started()
        if starts == 1:
            await trio.sleep(1)
            raise ConnectionError("gone")
        await trio.sleep_forever()

    return body


def test_a_start_and_a_recovery_last_until_the_node_is_ready():
    """R31: A recovery contains the backoff and the next start."""
    child = Child("a", slow_start, backoff=Backoff(initial=2, jitter=0))
    sink = collected(Supervisor("app", [child]), seconds=10.0)
    assert sink.of("start", "app/a") == [("ready", 3.0, 0), ("ready", 3.0, 0)]
    assert sink.of("start", "app") == [("ready", 3.0, 0)]
    assert sink.of("recovery", "app/a") == [("ready", 5.0, 1)]


def test_a_recovery_may_contain_failed_starts():
    """R31: It begins with the first failure; each failed start is an interval of its own, with its decision."""
    sink = collected(Supervisor("app", [Child("a", fails_in_starts(2, 3))], limit=None))
    assert sink.of("start", "app/a") == [
        ("ready", 1.0, 0),
        ("failed", 1.0, 1),
        ("failed", 1.0, 1),
        ("ready", 1.0, 0),
    ]
    assert sink.of("recovery", "app/a") == [("ready", 3.0, 3)]
    failed = next(each for each in sink.found if each.outcome == "failed")
    assert (failed.decision.path, failed.decision.by) == ("app/a", "app")


def test_a_resumed_node_has_recovered():
    """R8: It takes no time."""
    once = iter([ConnectionError("gone")])

    async def body(resource):
        await trio.sleep(1)
        for exc in once:
            raise exc
        await trio.sleep_forever()

    child = Child("a", body, resource=trio.open_nursery, decider=Decider({OSError: Resume}))
    sink = collected(Supervisor("app", [child]))
    assert sink.of("recovery", "app/a") == [("resumed", 0.0, 1)]


def test_a_condemned_node_is_given_up():
    """R10: So is what fails for good with its supervisor."""
    sink = collected(Supervisor("app", [Child("a", slow_start)], decider=Decider({OSError: Stop})))
    assert sink.of("recovery", "app/a") == [("given up", 0.0, 1)]

    inner = Supervisor("in", [Child("a", slow_start), Child("b", idle)], limit=Limit(1, within=60))
    sink = collected(Supervisor("app", [inner], decider=Decider({"limit": Stop})))
    assert sink.of("recovery", "app/in/a") == [("ready", 3.0, 1), ("given up", 0.0, 1)]
    assert sink.of("recovery", "app/in") == [("given up", 0.0, 1)]


def test_a_stop_from_above_gives_up_what_it_condemns():
    """R11: All of that supervisor, and nothing of one whose name begins alike."""

    async def worse():
        await trio.sleep(5)
        raise ValueError("worse")

    def inner(name, *more):
        waits = Child("waits", fails_once_more, backoff=Backoff(initial=30, jitter=0))
        return Supervisor(name, [waits, *more], decider=Decider({ValueError: Escalate}))

    first, second = inner("in", Child("a", worse)), inner("in-2")
    sink = collected(Supervisor("app", [first, second], decider=Decider({ValueError: Stop})))
    assert sink.of("recovery", "app/in/a") == [("given up", 0.0, 1)]
    assert sink.of("recovery", "app/in/waits") == [("given up", 4.0, 1)]
    assert sink.of("recovery", "app/in-2/waits") == [("stopped", 19.0, 1)]


def test_what_is_no_exception_gives_up():
    """R4: It is not decided, and the whole tree stops."""

    async def leaves():
        await trio.sleep(1)
        raise SystemExit(3)

    sink = Collected()
    with pytest.raises(SystemExit):
        run_virtual(opened, Supervisor("app", [Child("a", leaves)]), sink)
    assert sink.of("recovery", "app/a") == [("given up", 0.0, 1)]


def test_a_root_that_fails_gives_all_up():
    """R11: No supervisor above decides."""
    sink = collected(Supervisor("app", [Child("a", slow_start)], limit=Limit(0, within=60)))
    assert sink.of("recovery", "app/a") == [("given up", 0.0, 1)]
    assert sink.of("recovery", "app") == [("given up", 0.0, 1)]


def test_a_first_start_that_fails_is_no_recovery():
    """R16: Nothing was there before."""
    sink = collected(Supervisor("app", [Child("a", fails_in_starts(1))]))
    assert sink.of("start", "app/a") == [("failed", 1.0, 1)]
    assert sink.of("start", "app") == [("failed", 1.0, 1)]
    assert [each for each in sink.found if each.kind == "recovery"] == []


def test_a_start_may_be_ignored_or_stopped():
    """R17: Neither is a failure."""

    async def not_needed(task_status):
        await trio.sleep(1)
        return IGNORE

    child = Child("a", not_needed, restart="transient")
    assert collected(Supervisor("app", [child])).of("start", "app/a") == [("ignored", 1.0, 0)]

    async def for_ever(task_status):
        await trio.sleep_forever()

    async def add(tree):
        with trio.move_on_after(5):
            await tree.root.add(Child("a", for_ever))

    stopped = collected(Supervisor("app", []), add)
    assert stopped.of("start", "app/a") == [("stopped", 25.0, 0)]


def test_a_recovery_that_a_stop_overtakes_is_stopped():
    """R21: The tree ends while the child backs off."""
    child = Child("a", slow_start, backoff=Backoff(initial=60, jitter=0))
    sink = collected(Supervisor("app", [child]), seconds=10.0)
    assert sink.of("recovery", "app/a") == [("stopped", 6.0, 1)]


def test_members_that_a_restart_of_their_pool_removes_do_not_recover():
    """R26: A pool is empty after a restart. The recovery of its failed member ends with the pool's start."""

    async def dies(seconds):
        await trio.sleep(seconds)
        raise ConnectionError("gone")

    pool = Pool("pool", Child("m", dies, backoff=Backoff(initial=30, jitter=0)), limit=Limit(1, within=60))

    async def add(tree):
        await tree["app/pool"].add(1.0)
        await tree["app/pool"].add(2.0)
        await trio.sleep(5)
        assert sum(node.state == "up" for node in tree.status().walk()) == 2
        assert tree["app/pool"].status().incarnation == 2
        recoveries = [each for each in sink.found if each.kind == "recovery"]
        assert [(each.outcome, each.seconds) for each in recoveries if each.began.path != "app/pool"] == [
            ("stopped", 1.0),
            ("stopped", 0.0),
        ]

    sink = Collected()

    async def main():
        async with open_tree(Supervisor("app", [pool]), sinks=[sink]) as t:
            await add(t)

    run_virtual(main)


def test_a_child_that_fails_while_its_supervisor_starts_still_recovers():
    """R31: Only failures before the start of the supervisor end with it."""

    async def slow(task_status):
        await trio.sleep(10)
        task_status.started()
        await trio.sleep_forever()

    a = Child("a", fails_once_more, backoff=Backoff(initial=30, jitter=0), limit=None)
    inner = Supervisor("in", [a, Child("b", slow)], limit=Limit(5, within=600))
    sink = Collected()

    async def main():
        async with open_tree(Supervisor("app", [inner]), sinks=[sink]):
            await trio.sleep(45)

    run_virtual(main)
    assert sink.of("recovery", "app/in/a")[0][0] == "ready"


def test_what_is_kept_of_recoveries_is_bounded(monkeypatch):
    """R31: A member that is removed while it backs off has no event that would end its recovery."""
    monkeypatch.setattr(_intervals, "_MOST", 3)

    async def dies():
        raise ConnectionError("gone")

    pool = Pool("pool", Child("m", dies, backoff=Backoff(initial=600, jitter=0)))
    sink = Collected()

    async def main():
        async with open_tree(Supervisor("app", [pool]), sinks=[sink]) as t:
            for _ in range(10):
                member = await t["app/pool"].add()
                await trio.sleep(1)
                await member.stop()
            assert 0 < len(sink.intervals._recoveries) <= 3

    run_virtual(main)


def test_what_is_kept_of_the_nodes_above_recoveries_is_bounded(monkeypatch):
    """R31: A pool of supervisors has new paths for ever, and there may always be some node that has not recovered."""
    monkeypatch.setattr(_intervals, "_MOST", 50)
    seen = Collected()

    async def fails():
        await trio.sleep(1)
        raise ConnectionError

    async def main():
        member = Supervisor("m", [Child("x", fails)])
        lost = Child("lost", fails, backoff=Backoff(initial=1e6, maximum=1e6))
        tree = Supervisor("app", [lost, Pool("pool", member)])
        async with open_tree(tree, sinks=[seen]) as opened:
            for _ in range(300):
                ref = await opened["app/pool"].add()
                await trio.sleep(1.5)
                await ref.stop()

    run_virtual(main)
    assert len([each for each in seen.found if each.kind == "recovery"]) >= 300
    assert len(seen.intervals._above) <= 3 * 50


def test_a_reader_that_comes_late_is_not_confused():
    """R31: It may get the end of an interval without its beginning, in any place."""
    seen = []

    async def main():
        child = Child("a", fails_in_starts(2, 3))
        async with open_tree(Supervisor("app", [child], limit=None), sinks=[seen.append]):
            await trio.sleep(20)

    run_virtual(main)
    for first in range(len(seen)):
        intervals = Intervals()
        for event in seen[first:]:
            assert all(each.seconds >= 0 for each in intervals.take(event))


def test_many_recoveries_do_not_slow_each_other():
    """When a database is gone all its users recover at once, and each that is ready again is found without a search (R31)."""

    class Counted(dict):
        """Counts how many recoveries are looked at."""

        looked = 0

        def __getitem__(self, path):
            Counted.looked += 1
            return super().__getitem__(path)

        def items(self):
            Counted.looked += len(self)
            return super().items()

    intervals = Intervals()
    intervals._recoveries = Counted()
    paths = [f"app/s/c{number}" for number in range(1000)]
    for path in paths:
        intervals.take(Failed(at=0.0, path=path, incarnation=1, exc=ValueError()))
    for path in paths:
        assert len(intervals.take(Ready(at=1.0, path=path, incarnation=2))) == 1
    assert Counted.looked < 5000
    intervals.take(Failed(at=2.0, path=paths[0], incarnation=2, exc=ValueError()))
    (over,) = intervals.take(Stopped(at=3.0, path="app", incarnation=1))
    assert over.outcome == "stopped"
