"""`Tree.adopt` while something else goes on: a start, a stop, a restart of the root, or another adoption (R38)."""

from __future__ import annotations

import gc
import os
import signal
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from weakref import ref

import pytest
import trio
from attrs import evolve

from supervise import (
    Backoff,
    Child,
    ChildStopped,
    Limit,
    Mailbox,
    Pool,
    Refused,
    StartFailed,
    Supervisor,
    TreeFailed,
    events,
    open_tree,
    run_tree,
)
from supervise._trio.tree import opening
from supervise.testing import run_virtual

from .scene import Boom, Kit, Puppet, app, forever, grow, puppets, quiet


async def slow(version):
    """A child that takes five seconds to end."""
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)


def declared(version):
    """Two supervisors; the child of the first one ends slowly. Later versions have one more child."""
    late = [Child("late", forever, args=[version])] if version else []
    return app(
        Supervisor("one", [Child("slow", slow, args=[version])]),
        Supervisor("two", [Child("quick", forever, args=[version])]),
        *late,
    )


def shown(tree, version):
    return list(map(str, tree.changes(declared(version))))


def test_an_adoption_whose_caller_is_cancelled_is_over_before_the_next_one_begins():
    """R38: Otherwise the earlier one would overwrite part of what the later one has brought."""

    async def scene(tree, seen):
        with trio.move_on_after(1) as scope:
            await tree.adopt(declared(1), reason="first")
        assert scope.cancelled_caught
        await tree.adopt(declared(2), reason="second")
        assert shown(tree, 2) == []
        borders = [event for event in seen if isinstance(event, events.Adopting | events.Adopted)]
        assert [type(event) for event in borders] == [events.Adopting, events.Adopted] * 2
        await trio.sleep(60)
        assert shown(tree, 2) == []

    grow(declared(0), scene)


def test_a_child_whose_sibling_fails_faster_than_it_ends_is_taken_out():
    """R13, R38: The restarts of the group must not keep out the declaration that ends them."""

    async def failing():
        await trio.sleep(1)
        raise Boom

    async def scene(tree, seen):
        await trio.sleep(0.5)
        with trio.fail_after(60):
            await tree.adopt(app(Child("b", forever, args=[1])))
        await trio.sleep(10)
        assert [child.path for child in tree.status().children] == ["app/b"]

    children = [Child("a", slow, args=[0]), Child("b", failing)]
    grow(app(*children, strategy="one_for_all", limit=None), scene)


WAIT = Backoff(initial=60, factor=1, maximum=60, jitter=0)


def test_a_child_whose_group_waits_for_a_retry_is_started_if_that_retry_no_longer_starts_it():
    """R13, R38: `b` was stopped with its group, and the new strategy has no group."""

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert seen.order().endswith("-a -b")
        await tree.adopt(app(a, b))
        await quiet()
        assert [child.state for child in tree.status().children] == ["restarting", "up"]
        assert tree.status().restarts == 1
        await trio.sleep(61)
        assert [child.state for child in tree.status().children] == ["up", "up"]

    a, b = puppets("ab", backoff=WAIT)
    grow(app(a, b, strategy="one_for_all"), scene)


def test_ready_time_stands_still_while_a_child_waits_for_a_retry_of_its_own():
    """R14, R38: `b` has left the group of `a`, whose retry is given up, and its own waits behind a start of 100 seconds."""
    limit = Limit(1, within=50, of_ready_time=True)

    async def takes(seconds, *, task_status):
        await trio.sleep(seconds)
        task_status.started()
        await trio.sleep_forever()

    async def scene(tree, seen):
        a.fail()
        await quiet()
        async with trio.open_nursery() as nursery:
            for request in (
                partial(tree.root.add, Child("first", takes, args=[1])),
                partial(tree.adopt, app(a, b, limit=limit)),
                tree["app/a"].stop,
                partial(tree.root.add, Child("second", takes, args=[100])),
            ):
                nursery.start_soon(request)
                await quiet()
        await quiet()
        assert [tree[f"app/{name}"].status().state for name in "ab"] == ["down", "up"]
        b.fail()
        with trio.fail_after(10):
            await tree.root.ended()

    a, b = puppets("ab", backoff=WAIT)
    with pytest.raises(TreeFailed, match="passed its limit of 1 within 50 s"):
        grow(app(a, b, strategy="one_for_all", limit=limit), scene)


@pytest.mark.parametrize("early", [True, False])
def test_a_child_that_a_waiting_retry_will_start_is_not_over(early):
    """R13, R29, R38: `b` is stopped by hand before or after the new strategy has it start with the retry of `a`."""

    async def scene(tree, seen):
        if early:
            await tree["app/b"].stop()
        a.fail()
        await quiet()
        await tree.adopt(app(a, b, strategy="one_for_all"))
        await tree["app/b"].stop()
        with trio.move_on_after(59):
            await tree["app/b"].ended()
            pytest.fail("its start is ahead")
        await trio.sleep(2)
        assert tree["app/b"].status().state == "up"

    a, b = puppets("ab", backoff=WAIT)
    grow(app(a, b), scene)


def test_a_child_that_waits_for_a_retry_and_is_temporary_now_leaves():
    """R7, R38: `b` is never restarted. The retry of `a` goes on, though `b` was to take part in it."""

    async def scene(tree, seen):
        a.fail()
        await quiet()
        await tree.adopt(app(evolve(b.spec, restart="temporary"), a, strategy="rest_for_one"))
        await quiet()
        assert [(child.path, child.state) for child in tree.status().children] == [("app/a", "restarting")]
        await trio.sleep(61)
        a.fail()
        await quiet()
        await tree.adopt(app(evolve(a.spec, restart="temporary"), c))
        assert [(child.path, child.state) for child in tree.status().children] == [("app/c", "up")]

    a, b, c = puppets("abc", backoff=WAIT)
    grow(app(a, b, strategy="one_for_all"), scene)


def test_a_child_that_leaves_its_resource_and_is_temporary_now_leaves_once():
    """R7, R9, R38: Its retry was begun before. It does not strike the child that has the name by then."""

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree["app/a"].status().state == "releasing"
        await tree.adopt(app(evolve(a.spec, restart="temporary")))
        await trio.sleep(4)
        assert tree.status().children == ()
        await tree.root.add(Child("a", forever, args=[0]))
        with trio.move_on_after(100):
            await tree["app/a"].ended()
            pytest.fail("it has ended")

    a = Puppet("a", resource=Kit(slow_exit=3), backoff=WAIT)
    grow(app(a), scene)


@pytest.mark.parametrize("at", [0, 1, 4.9])
@pytest.mark.parametrize("kind", [None, Supervisor])
def test_who_waits_for_a_child_that_the_next_start_does_not_bring_back_is_answered(at, kind):
    """R29, R38: The supervisor is restarted just now, and takes the declaration that lacks the child by that."""
    refused = []

    async def idle(inbox):
        await trio.sleep_forever()

    async def call(tree, path):
        with pytest.raises(ChildStopped):
            await tree[path].call(1)
        refused.append(path)

    def top(*children):
        return app(Child("slow", slow, args=[0]), *children)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            for path in ("app/b", "app/x/c"):
                nursery.start_soon(call, tree, path)
            await trio.sleep(1)
            nursery.start_soon(tree.root.restart)
            await trio.sleep(at)
            others = [kind("b", [])] if kind else []
            await tree.adopt(top(*others, Supervisor("x", [])))
            nursery.cancel_scope.deadline = trio.current_time() + 60
        assert sorted(refused) == ["app/b", "app/x/c"]

    b, c = (Child(name, idle, mailbox=Mailbox()) for name in "bc")
    grow(top(b, Supervisor("x", [c])), scene)


def test_a_new_child_that_is_stopped_before_its_start_is_over():
    """R29, R38: Nothing starts it later, and a caller who waits for its end is answered."""

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            new = app(Child("slow", slow, args=[1]), Child("new", forever))
            nursery.start_soon(tree.adopt, new)
            await trio.sleep(1)
            await tree["app/new"].stop()
            with trio.fail_after(1):
                await tree["app/new"].ended()
        assert tree["app/new"].status().incarnation == 0

    grow(app(Child("slow", slow, args=[0])), scene)


def test_a_child_that_is_added_meanwhile_makes_room_for_one_of_another_kind():
    """R25, R38: It takes a name that the new declaration has for a supervisor."""

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.adopt, app(Supervisor("b", [Child("c", forever, args=[0])])))
            await trio.sleep(1)
            await tree.root.add(Child("b", forever, args=[0]))
        assert tree["app/b/c"].status().state == "up"

    grow(app(Child("a", slow, args=[0])), scene)


def test_a_child_that_is_added_meanwhile_is_restarted_with_the_code_of_the_declaration():
    """R25, R38: It takes the name of a new child after the declarations were compared; one with the same code goes on."""

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.adopt, app(*(Child(name, forever, args=[1]) for name in "bc")))
            await trio.sleep(1)
            nursery.start_soon(tree.root.add, Child("b", forever, args=[0], restart="temporary"))
            nursery.start_soon(tree.root.add, Child("c", forever, args=[1]))
        assert [child.incarnation for child in tree.status().children] == [2, 1]
        assert tree._driver.leaves["app/b"].spec.args == (1,)

    grow(app(Child("a", slow, args=[0])), scene)


@pytest.mark.parametrize("at", [0, 1, 4.9, 5, 5.1])
def test_a_root_that_is_just_being_restarted_starts_with_the_new_declaration(at):
    """R25, R38: Its next incarnation takes it, as that of any other supervisor."""

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.restart)
            await trio.sleep(at)
            await tree.adopt(declared(1))
        await trio.sleep(60)
        assert shown(tree, 1) == []
        assert tree["app/late"].status().incarnation == 1
        assert tree.root.status().incarnation == 2

    grow(declared(0), scene)


def test_a_caller_during_a_restart_does_not_wait_at_a_mailbox_that_its_next_start_lacks():
    """R29, R38: The tree has adopted the declaration already, but the child that still ends has the earlier one."""

    async def body(inbox):
        await forever()

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.restart)
            await trio.sleep(1)
            shares = app(Child("a", body, mailbox="shared"), Child("slow", slow, args=[0]), mailbox=8)
            await tree.adopt(shares)
            assert tree["app/a"].status().incarnation == 1
            with pytest.raises(ChildStopped), trio.fail_after(10):
                await tree["app/a"].call(1)

    grow(app(Child("a", body, mailbox=8), Child("slow", slow, args=[0])), scene)


@pytest.mark.parametrize("asked_after", [1, 6])
@pytest.mark.parametrize("kept", [False, True])
def test_a_caller_waits_for_a_front_that_is_new(kept, asked_after):
    """R28, R34, R38: The child before it takes five seconds to end, and it takes ten to start. Its address is not down for good meanwhile.

    An address that was used before keeps the mailbox of the supervisor until that child has ended, and the supervisor has none.
    """

    async def scene(tree, seen):
        ref = tree["app/s"]
        assert await ref.call(1) == 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.adopt, with_a_front())
            await trio.sleep(asked_after)
            with trio.fail_after(20):
                if kept and asked_after < 5:
                    with pytest.raises(ChildStopped):
                        await ref.call(2)
                assert await (ref if kept else tree["app/s"]).call(2) == -2

    grow(without_a_front(), scene)


def test_a_caller_who_waits_for_a_new_front_is_answered_if_its_supervisor_is_stopped_first():
    """R29, R38: Its address was open, since a start was ahead."""

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.adopt, with_a_front())
            await trio.sleep(1)
            nursery.start_soon(tree["app/s"].stop)
            with pytest.raises(ChildStopped, match="'app/s/front' is down for good"), trio.fail_after(20):
                await tree["app/s"].call(2)

    grow(without_a_front(), scene)


def without_a_front():
    """A supervisor whose child shares its mailbox, and ends slowly."""

    async def before(inbox):
        try:
            async for message in inbox:
                message.reply(message.value)
        finally:
            await slow(0)

    return app(Supervisor("s", [Child("before", before, mailbox="shared")], mailbox=8))


def with_a_front():
    """The same supervisor with another child, its front, which starts slowly."""

    async def body(inbox, *, task_status):
        await trio.sleep(10)
        task_status.started()
        async for message in inbox:
            message.reply(-message.value)

    front = Child("front", body, mailbox=8)
    return app(Supervisor("s", [front], front=front))


def test_a_supervisor_below_one_that_ends_keeps_its_declaration_until_then():
    """R38: By the new one its child shares the mailbox of the root, which has none before its next start."""

    def declared(upper, lower):
        shares = Child("shares", answering, args=[lower], mailbox="shared")
        return app(Supervisor("b", [shares], mailbox=lower), Child("slow", slow, args=[0]), mailbox=upper)

    async def answering(inbox, _):
        async for message in inbox:
            message.reply(message.value)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.restart)
            await trio.sleep(1)
            await tree.adopt(declared(8, "shared"))
            assert seen.of(events.Stopping, "app/b/shares") == []
        with trio.fail_after(1):
            assert await tree.root.call(1) == 1

    grow(declared(None, 8), scene)


def test_a_child_that_is_just_being_restarted_gets_its_own_mailbox():
    """R38: It starts once more with its earlier declaration, and then its supervisor takes the new one."""

    async def body(inbox):
        async for message in inbox:
            message.reply(message.value)

    def declared(mailbox):
        children = [Child("slow", slow, args=[0]), Child("b", body, mailbox=mailbox)]
        return app(*children, strategy="one_for_all", mailbox=8)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app/slow"].restart)
            await trio.sleep(1)
            await tree.adopt(declared(4))
        with trio.fail_after(1):
            assert await tree["app/b"].call(1) == 1

    grow(declared("shared"), scene)


def test_callers_are_answered_if_all_children_that_come_to_share_their_mailbox_are_down_for_good():
    """R37, R38: No child shared it before, so they waited for one."""

    async def scene(tree, seen):
        await tree["app/a"].stop()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                with pytest.raises(ChildStopped), trio.fail_after(10):
                    await tree.root.call(1)

            await quiet()
            await tree.adopt(app(Child("a", forever, mailbox="shared"), mailbox=8))

    grow(app(Child("a", forever), mailbox=8), scene)


def test_a_tree_that_is_stopping_or_has_ended_refuses_it():
    """R25, R38: Nothing would come of it."""

    seen = []

    async def main():
        async def adopt():
            await trio.sleep(1)
            with pytest.raises(Refused, match="stopping"):
                await tree.adopt(declared(1))
            assert isinstance(seen[-1], events.Stopping)

        async with trio.open_nursery() as nursery, open_tree(declared(0), sinks=[seen.append]) as tree:
            nursery.start_soon(adopt)
        with pytest.raises(Refused, match="stopping"):
            await tree.adopt(declared(1))

    run_virtual(main)


def test_a_root_whose_restart_fails_refuses_it():
    """R25, R38: It ends while its first child is being stopped. To ask it again and again would block the event loop."""
    fails = []

    @asynccontextmanager
    async def resource():
        if fails:
            raise Boom
        yield

    spec = app(Child("slow", slow, args=[0]), Child("b", forever, resource=resource))

    async def main():
        async with open_tree(spec, sinks=[]) as tree, trio.open_nursery() as nursery:
            fails.append(True)
            asks, ask = count(), tree._driver.ask

            async def asked(*args):
                assert next(asks) < 100, "the adoption asks for ever"
                return await ask(*args)

            tree._driver.ask = asked
            nursery.start_soon(expect, StartFailed, tree.root.restart)
            await trio.sleep(7)  # the child `slow` has ended and started again, and is being stopped
            assert tree.status().children[0].state == "stopping"
            await expect(Refused, partial(tree.adopt, declared(1)))

    async def expect(kind, call):
        with pytest.raises(kind):
            await call()

    with pytest.raises(StartFailed):
        run_virtual(main)


def test_a_member_that_is_added_meanwhile_and_shares_no_mailbox_of_the_new_declaration_leaves():
    """R37, R38: The adoption would otherwise end halfway, and the tree never be as declared."""

    def pools(version, mailbox):
        member = Child("m", forever, mailbox=mailbox and "shared")
        return app(Child("slow", slow, args=[version]), Pool("pool", member, mailbox=mailbox))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.adopt, pools(1, None))
            await trio.sleep(1)  # the slow child is being restarted for it
            await tree["app/pool"].add(name="late")
        assert tree["app/pool"].status().children == ()
        assert tree.changes(tree._spec) == []

    grow(pools(0, 8), scene)


def test_an_adoption_that_the_end_of_the_tree_overtakes_does_not_say_that_it_is_done():
    """R31, R38: The last event of a tree is that its root has stopped."""
    seen = []

    async def main():
        async with trio.open_nursery() as nursery, open_tree(declared(0), sinks=[seen.append]) as tree:
            nursery.start_soon(tree.adopt, declared(1))
            await trio.sleep(1)  # the slow child is being stopped for it

    run_virtual(main)
    assert [type(event) for event in seen].count(events.Adopting) == 1
    assert not any(isinstance(event, events.Adopted) for event in seen)
    assert (type(seen[-1]), seen[-1].path) == (events.Stopped, "app")


def test_a_child_that_has_not_started_yet_cannot_wait_for_it():
    """R25, R38: The adoption would wait for the start, and the start for the adoption."""
    trees = []

    async def early(*, task_status):
        await trees[0].adopt(declared(1))

    async def main():
        async with opening(app(Child("a", early)), [], trees.append):
            pytest.fail("it has started")

    with pytest.raises(StartFailed, match="would wait for ever, for its own start"):
        run_virtual(main)


def test_a_watch_may_adopt_before_the_tree_has_begun():
    """R38: It waits for the tree. Trio decides whose task runs first."""
    found = []

    async def watch(tree):
        await tree.adopt(app(Child("a", forever, args=[1])))
        found.append(tree["app/a"].status().incarnation)
        os.kill(os.getpid(), signal.SIGTERM)

    for _ in range(10):
        run_tree(app(), sinks=[], watch=[watch])
    assert found == [1] * 10


def test_earlier_declarations_are_not_kept():
    """R31, R38: The body of each keeps its module as it was then; a caller who keeps one may still use it as a key."""

    async def scene(tree, seen):
        earlier = []
        for version in range(1, 6):
            spec = app(Child("a", forever, args=[version]))
            earlier.append(ref(spec.children[0]))
            await tree.adopt(spec)
        kept = earlier[3]()
        del spec
        gc.collect()
        assert [one() is not None for one in earlier] == [False, False, False, True, True]
        assert tree[kept].path == "app/a"

    grow(app(Child("a", forever, args=[0])), scene)
