"""Addresses: refs, `ready`, `ended`, leases, and a supervisor that answers at its front (R28, R34)."""

from __future__ import annotations

import pytest
import trio

from supervise import (
    Backoff,
    Child,
    ChildRestarted,
    ChildStopped,
    Decider,
    Escalate,
    Limit,
    Pool,
    Resume,
    Stop,
    Supervisor,
    events,
    open_tree,
)
from supervise._trio import tree as tree_module
from supervise.errors import StartTimeout
from supervise.testing import run_virtual

from .scene import Boom, Echo, Kit, Other, Puppet, app, forever, grow, puppets, quiet
from .talk import steps


def test_a_ref_is_stable_cheap_and_hashable():
    """R28: A Ref made from a spec and one made from a path are the same address, over any number of incarnations."""
    a = Puppet("a")

    async def scene(tree, seen):
        ref = tree[a.spec]
        assert ref == tree["app/a"]
        assert len({ref, tree["app/a"], tree[a.spec]}) == 1
        assert ref != tree.root
        a.fail()
        await quiet()
        assert await ref.ready() == 2
        assert repr(ref) == "<ref 'app/a'>"

    grow(app(a), scene)


def test_an_address_that_does_not_exist_is_a_key_error():
    """R28: This holds for a path and for a spec."""

    async def scene(tree, seen):
        with pytest.raises(KeyError, match="tree 'app' has no node 'app/x'"):
            tree["app/x"]
        with pytest.raises(KeyError, match="the spec of 'x'"):
            tree[Child("x", forever)]

    grow(app(Puppet("a")), scene)


def test_a_hint_at_a_near_match_is_sought_among_the_first_names_alone(monkeypatch):
    """R28: A member of a large pool that has just left is looked up like any other, and that must not block the loop."""

    def costs(count):
        async def scene(tree, seen):
            def look_up():
                with pytest.raises(KeyError, match="did you mean 'app/member-100'"):
                    tree["app/member-100x"]

            taken.append(steps(look_up))

        taken = []
        grow(app(*[Child(f"member-{number}", forever) for number in range(100, 100 + count)]), scene)
        return taken[0]

    monkeypatch.setattr(tree_module, "_SOUGHT", 100)
    assert costs(220) < 1.2 * costs(110)


def test_ready_waits_over_restarts():
    """R28: `ready` returns the value of the current incarnation, however many restarts come before."""
    a = Puppet("a", 0, 3, backoff=Backoff(initial=5, jitter=0))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert await tree[a.spec].ready() == 2
        assert trio.current_time() == 8

    grow(app(a), scene)


def test_ready_raises_if_the_node_is_down_for_good():
    """R28: A task that waits gets the error when it happens, and a later one gets it at once; both get the cause."""
    a = Puppet("a", 0, "hang", start_timeout=10)

    async def wait(tree):
        with pytest.raises(ChildStopped) as raised:
            await tree[a.spec].ready()
        results.append(type(raised.value.__cause__))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            a.fail()
            await quiet()
            nursery.start_soon(wait, tree)
            nursery.start_soon(wait, tree)
            await trio.sleep(9)
            assert results == []
        await wait(tree)

    results = []
    grow(app(a, decider=Decider({"start": Stop})), scene)
    assert results == [StartTimeout] * 3


@pytest.mark.parametrize("who", ["leaf", "supervisor"])
def test_ready_returns_when_a_suspended_node_is_resumed(who):
    """R8, R28: The leaf keeps its value, and a supervisor that waited for the verdict is up again with it."""
    a = Puppet("a", resource=Kit())
    inner = Supervisor("s", [a.spec], decider=Decider({Boom: Escalate}))

    async def slow(task_status):
        await trio.sleep(5)
        task_status.started()
        await trio.sleep_forever()

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.add, Child("slow", slow))
            await quiet()
            a.fail()
            await quiet()
            assert tree[a.spec].status().state == "failed"
            with trio.fail_after(10):
                await tree[a.spec if who == "leaf" else inner].ready()

    grow(app(inner, decider=Decider({Boom: Resume})), scene)


@pytest.mark.parametrize("draws_on", ["pool", "supervisor"])
def test_a_child_that_a_restart_drops_has_not_ended_while_it_runs(draws_on):
    """R25, R26, R28: `ended` of a member or an added child waits until its task has ended, also if the first call comes during the restart."""
    a, m = Puppet("a"), Puppet("m", stubborn=5)
    inner = Pool("s", m.spec) if draws_on == "pool" else Supervisor("s", [Child("b", forever)])

    async def wait(ref):
        assert await ref.ended() is None
        ended.append(trio.current_time())

    async def scene(tree, seen):
        path = (await tree[inner].add(*([] if draws_on == "pool" else [m.spec]))).path
        a.fail()
        await quiet()
        assert m.running
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(wait, tree[path])
                await trio.sleep(1)
        assert seen.at(events.Stopped, path) == [5]
        assert ended == [5, 5]

    ended = []
    grow(app(a, inner, strategy="one_for_all"), scene)


def test_a_lease_holds_one_incarnation():
    """R28: If that incarnation ends, the block is cancelled and `ChildRestarted` is raised."""
    a = Puppet("a")

    async def scene(tree, seen):
        async with tree[a.spec].lease() as value:
            assert value == 1
        with pytest.raises(ChildRestarted, match="'app/a' incarnation 1"):
            async with tree[a.spec].lease():
                a.fail()
                await trio.sleep_forever()
        with pytest.raises(Other):
            async with tree[a.spec].lease():
                raise Other
        with pytest.raises(TypeError, match="supervisor without a front"):
            async with tree.root.lease():
                pass

    grow(app(a), scene)


def test_a_lease_outlives_a_resume():
    """R28: A Resume ends no incarnation, so it ends no lease."""
    a = Puppet("a", resource=Kit())

    async def scene(tree, seen):
        async with tree[a.spec].lease():
            a.fail()
            await trio.sleep(1)
        assert len(seen.of(events.Resumed)) == 1

    grow(app(a, decider=Decider({Boom: Resume})), scene)


def test_a_lease_of_a_node_that_is_down_is_refused():
    """R28: `lease` raises `ChildStopped`."""
    a = Puppet("a")

    async def scene(tree, seen):
        await tree[a.spec].stop()
        with pytest.raises(ChildStopped):
            async with tree[a.spec].lease():
                pass

    grow(app(a), scene)


def test_ended_waits_until_a_node_is_down_for_good_and_returns_the_reason():
    """R28: It waits over restarts, and returns at once if the node is already down; after a stop by hand it returns None."""
    a, b = puppets("ab")
    results = []

    async def wait(ref):
        results.append(await ref.ended())

    async def scene(tree, seen):
        boom = Other("last")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, tree[a.spec])
            a.fail()
            await trio.sleep(1)
            assert results == []
            a.fail(boom)
        assert results == [boom]
        assert await tree[a.spec].ended() is boom
        b.fail()
        await quiet()
        await tree[b.spec].stop()
        assert await tree[b.spec].ended() is None

    grow(app(a, b, decider=Decider({Other: Stop})), scene)


def test_ended_returns_the_reason_also_if_it_is_first_called_after_the_end():
    """R28: This holds also for a child that has left the tree, and for one whose ancestor ended it."""
    a, b = Puppet("a", restart="temporary"), Puppet("b")
    inner = Supervisor("s", [b.spec], decider=Decider({Boom: Escalate}))
    pool = Pool("pool", Child("m", forever, restart="temporary"))

    async def scene(tree, seen):
        boom, deep, third = Boom(), Boom(), Boom()
        member = await tree[pool].add()
        member.inject(third)
        a.fail(boom)
        b.fail(deep)
        await quiet()
        assert await tree[a.spec].ended() is boom
        assert await tree[b.spec].ended() is deep
        assert await member.ended() is third

    grow(app(a, inner, pool, decider=Decider({Boom: Stop})), scene)


def test_ended_returns_though_a_start_was_waiting_behind_the_stop():
    """R28: The node is up again in the same step, before the task that waits in `ended` has run."""
    slow, a = Puppet("slow", stubborn=1), Puppet("a")
    results = []

    async def wait(ref):
        results.append(await ref.ended())

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, tree[a.spec])
            for request in (tree[slow.spec].stop, tree[a.spec].stop, tree[a.spec].start):
                nursery.start_soon(request)
                await quiet()
            assert a.lives == 1
        assert (a.lives, a.running, results) == (2, 1, [None])

    grow(app(slow, a), scene)


def test_a_child_that_the_retry_of_its_sibling_revives_is_not_down_for_good():
    """R13, R29: This holds also if the child came, and was stopped by hand, while that sibling was backing off."""
    a, b = Puppet("a", backoff=Backoff(initial=10, jitter=0)), Puppet("b", restart="transient")
    group = Supervisor("s", [a.spec], strategy="one_for_all")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        await tree[group].add(b.spec)
        await tree["app/s/b"].stop()
        with trio.move_on_after(5) as patience:
            await tree["app/s/b"].ended()
        assert patience.cancelled_caught
        await tree["app/s/b"].ready()
        assert (a.lives, b.lives) == (2, 2)

    grow(app(group), scene)


def test_why_a_node_ended_is_not_forgotten_when_the_tree_ends():
    """R28: The end of the whole tree does not replace the reason of a node that was down before."""
    a, b = puppets("ab")
    boom = Boom()

    async def main():
        async with open_tree(app(a, b, decider=Decider({Boom: Stop})), sinks=[]) as tree:
            await quiet()
            a.fail(boom)
            await tree[a.spec].ended()
        return await tree[a.spec].ended(), await tree[b.spec].ended(), await tree.root.ended()

    assert run_virtual(main) == (boom, None, None)


def test_the_root_ends_with_the_failure_that_failed_the_tree():
    """R28: `tree.root.ended()` returns that failure."""
    a = Puppet("a")
    boom, results = Boom(), []

    async def main():
        try:
            async with open_tree(app(a, decider=Decider({Boom: Escalate})), sinks=[]) as tree:
                a.fail(boom)
                with trio.CancelScope(shield=True):
                    results.append(await tree.root.ended())
        except Exception as exc:
            results.append(exc.__cause__)
        results.append(await tree[a.spec].ended())

    run_virtual(main)
    assert results == [boom, boom, boom]


def test_a_supervisor_answers_at_its_front():
    """R34: Its own Ref, calls and streams are that child's, through any number of fronts."""
    echo = Echo()
    worker = Supervisor("worker", [Puppet("other").spec, echo.spec], front=echo.spec)
    outer = Supervisor("outer", [worker], front="worker")

    async def scene(tree, seen):
        for spec in (worker, outer):
            assert await tree[spec].call(5) == 5
            await tree[spec].send(6)
            async with tree[spec].stream(7) as stream:
                assert [item async for item in stream] == []
            async with tree[spec].lease():
                pass
            tree[spec].inject(Boom())
            await quiet()
            assert await tree[spec].call(8) == 8
        assert tree[echo.spec].status().incarnation == 3
        assert await tree[outer].ready() is None

    grow(app(outer), scene)


def test_a_front_is_the_same_address_over_restarts_of_the_worker():
    """R34: A call that waits while the worker restarts is answered by the new one."""
    echo = Echo(limit=Limit(0))
    worker = Supervisor("worker", [echo.spec], front="echo", decider=Decider({"limit": Escalate}))

    async def scene(tree, seen):
        tree[worker].send_nowait(Boom())
        assert await tree[worker].call(1) == 1
        assert tree[worker].status().incarnation == 2

    grow(app(worker), scene)


@pytest.mark.parametrize("first", ["app/s/a", "app/s", "app"])
def test_after_the_end_of_a_tree_no_address_waits_whichever_was_used_first(first):
    """R28, R29: The address of a leaf that has ended must not create addresses above it that count as still open."""

    async def main():
        async with open_tree(app(Supervisor("s", [Child("a", trio.sleep_forever)]))) as tree:
            pass
        with trio.fail_after(1):
            for path in (first, "app/s/a", "app/s", "app"):
                with pytest.raises(ChildStopped):
                    await tree[path].ready()
                assert await tree[path].ended() is None

    run_virtual(main)


async def raises_at_once():
    raise Boom


async def raises_soon():
    await trio.lowlevel.checkpoint()
    raise Boom


@pytest.mark.parametrize("body", [raises_at_once, raises_soon])
@pytest.mark.parametrize("name", [None, "m"])
def test_the_address_that_add_returns_keeps_why_the_child_has_ended(body, name):
    """R28: Even if it had left the tree before `add` returned."""

    async def scene(tree, _):
        ref = await tree.root.add(name=name)
        assert isinstance(await ref.ended(), Boom)

    grow(Pool("p", Child("w", body, restart="temporary")), scene)
