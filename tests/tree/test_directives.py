"""Resume, Restart, Stop, Escalate (R8–R11)."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Child,
    Decider,
    Escalate,
    Limit,
    Pool,
    Refused,
    Restart,
    Resume,
    Stop,
    Supervisor,
    TreeFailed,
    errors,
    events,
    open_tree,
)
from supervise.testing import run_virtual

from .scene import Boom, Kit, Other, Puppet, Seen, app, forever, grow, puppets, quiet

RESUME = Decider({Boom: Resume})


def test_resume_keeps_resource_mailbox_incarnation_and_value():
    """R8: The resource, the mailbox, the incarnation number and the ready value stay; the body is entered again."""
    kit = Kit()
    taken = []

    async def body(resource, inbox, task_status):
        task_status.started(f"value {len(taken)}")
        async for message in inbox:
            taken.append((resource, message.value))
            if message.value == "bad":
                raise Boom
            message.reply(message.value)

    child = Child("a", body, resource=kit, mailbox=8)

    async def scene(tree, seen):
        ref = tree[child]
        await ref.send("bad")
        await ref.send("good")
        await quiet()
        assert await ref.ready() == "value 0"
        assert ref.status().incarnation == 1

    seen = grow(app(child, decider=RESUME), scene)
    assert taken == [(1, "bad"), (1, "good")]
    assert (kit.entered, kit.saw) == (1, [kit.saw[0]])
    assert isinstance(kit.saw[0], trio.Cancelled)
    assert seen.kinds("app/a") == "Starting Ready Failed Decided Resumed Stopping Stopped"


def test_resume_is_decided_before_the_resource_sees_the_failure():
    """R8: While the verdict is pending the resource is still open, and after Resume it has seen nothing."""
    kit = Kit()
    a = Puppet("a", resource=kit)

    def look(event):
        if isinstance(event, events.Decided):
            looked.append((kit.left, list(kit.saw)))

    looked = []

    async def main():
        async with open_tree(app(a, decider=RESUME), sinks=[look]):
            await quiet()
            a.fail()
            await quiet()

    run_virtual(main)
    assert looked == [(0, [])]


def test_without_a_resource_resume_becomes_restart():
    """R8: With nothing to keep, Resume becomes Restart, and the event reports both."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.fail()
        await quiet()

    decided = grow(app(a, decider=RESUME), scene).the(events.Decided)
    assert (decided.directive, decided.instead_of) == (Restart, Resume)


def test_a_failure_of_the_resource_itself_is_not_resumed():
    """R8: If the resource itself failed on entering, Resume becomes Restart."""
    kit = Kit()
    a = Puppet("a", resource=kit)

    async def scene(tree, seen):
        kit._fail_enter = kit.entered + 1
        a.finish()  # judged Restart; the next resource fails on entering
        await quiet()
        assert a.lives == 2

    seen = grow(app(a, decider=Decider({Other: Resume})), scene)
    assert [(d.directive, d.instead_of) for d in seen.of(events.Decided)] == [
        (Restart, None),
        (Restart, Resume),
    ]


def test_a_failure_before_ready_is_not_resumed():
    """R8: A failure of starting is not resumed, even with a resource at hand."""
    a = Puppet("a", 0, Boom("start"), resource=Kit())

    async def scene(tree, seen):
        a.fail(Other())
        await quiet()
        assert a.lives == 3

    seen = grow(app(a, decider=Decider({Boom: Resume})), scene)
    assert [(d.directive, d.instead_of) for d in seen.of(events.Decided)] == [
        (Restart, None),
        (Restart, Resume),
    ]


def test_resume_without_progress_is_charged():
    """R8: A body that fails without taking a new message cannot spin: its Resume is charged like a restart."""
    a = Puppet("a", resource=Kit())
    seen = Seen()

    async def scene(tree, seen):
        for _ in range(4):
            a.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed) as raised:
        grow(app(a, decider=RESUME, limit=Limit(3, within=5)), scene, seen=seen)
    assert isinstance(raised.value.__cause__, errors.LimitExceeded)
    assert len(seen.of(events.Resumed)) == 3


def test_resume_after_progress_is_free():
    """R8: Resume is free of the limit if the leaf has taken a new message since its last resume."""

    async def body(_, inbox):
        async for message in inbox:
            raise Boom(message.value)

    child = Child("a", body, resource=Kit(), mailbox=100)

    async def scene(tree, seen):
        for number in range(50):
            tree[child].send_nowait(number)
        await quiet()
        assert tree.status().restarts == 0

    seen = grow(app(child, decider=RESUME, limit=Limit(0, within=5)), scene)
    assert len(seen.of(events.Resumed)) == 50


def test_a_message_taken_again_is_no_progress():
    """R8: The same message, requeued by each failure, is not a new one: the limit trips."""

    async def body(_, inbox):
        async for message in inbox:
            raise Boom(message.value)

    child = Child("a", body, resource=Kit(), mailbox=8)

    async def scene(tree, seen):
        await tree[child].send("poison", on_loss="requeue")
        await trio.sleep_forever()

    seen = Seen()
    with pytest.raises(TreeFailed):
        grow(app(child, decider=RESUME, limit=Limit(3, within=5)), scene, seen=seen)
    assert len(seen.of(events.Resumed)) == 1 + 3


def test_a_passed_limit_cannot_be_resumed():
    """R8: Resume of a `limit` failure is Restart of the supervisor that passed it, charged to the ancestor."""
    a, b = puppets("ab")
    spec = app(Supervisor("s", [a.spec, b.spec], limit=Limit(0)), decider=Decider({"limit": Resume}))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert tree.status().restarts == 1
        assert (a.lives, b.lives) == (2, 2)

    decided = grow(spec, scene).of(events.Decided)[-1]
    assert (decided.directive, decided.instead_of, decided.by) == (Restart, Resume, "app")


def test_restart_enters_a_new_resource_and_keeps_the_mailbox():
    """R9: The resource is exited, the next incarnation enters a new one, and the mailbox is kept."""
    kit = Kit()

    async def body(resource, inbox):
        async for message in inbox:
            if message.value == "bad":
                raise Boom
            message.reply((resource, message.value))

    child = Child("a", body, resource=kit, mailbox=8)

    async def scene(tree, seen):
        tree[child].send_nowait("bad")
        assert await tree[child].call("good") == (2, "good")

    grow(app(child), scene)
    assert (kit.entered, kit.left) == (2, 2)
    assert isinstance(kit.saw[0], Boom)


def test_each_incarnation_gets_the_context_of_the_trees_opening():
    """R9: It gets a fresh copy of the context captured when the tree opened: nothing leaks between incarnations."""
    variable = ContextVar("variable", default="unset")
    found = []

    async def body():
        found.append(variable.get())
        variable.set("leaked")
        await trio.sleep(1)
        raise Boom

    async def main():
        variable.set("opened")
        async with open_tree(app(Child("a", body), Supervisor("s", [Child("b", body)])), sinks=[]):
            variable.set("later")
            await trio.sleep(2.5)

    run_virtual(main)
    assert found == ["opened"] * 6


def test_a_tag_is_read_in_an_empty_context():
    """R2: This holds also for a restart by the fast path, which runs in the task of the child."""
    variable = ContextVar("variable", default="unset")

    class Tagged(Exception):
        @property
        def tag(self):
            found.append(variable.get())

    found = []

    async def body():
        variable.set("of the child")
        await trio.sleep(1)
        raise Tagged

    async def scene(tree, seen):
        await trio.sleep(2.5)

    grow(app(Child("a", body), decider=Decider({Boom: Stop})), scene)
    assert set(found) == {"unset"}


def test_the_failed_child_ends_first_and_then_its_group_in_reverse():
    """R9: Judged by its own supervisor, the failed child ends first and then the others in reverse."""
    a, b, c = puppets("abc")

    async def scene(tree, seen):
        mark = len(seen)
        b.fail()
        await quiet()
        assert seen.order(since=mark) == "-b -c -a +a +b +c"

    grow(app(a, b, c, strategy="one_for_all"), scene)


def test_a_leaf_judged_from_above_ends_in_its_place_in_the_stop_order():
    """R9: Judged from above, the failed leaf ends in its place in the reverse order."""
    a, b, c = puppets("abc")
    spec = app(
        Supervisor("s", [a.spec, b.spec, c.spec], decider=Decider({Boom: Escalate})),
        decider=Decider({Boom: Restart}),
    )

    async def scene(tree, seen):
        mark = len(seen)
        b.fail()
        await quiet()
        assert seen.order(since=mark) == "-s/c -s/b -s/a -s +s +s/a +s/b +s/c"

    grow(spec, scene)


def test_the_resource_sees_the_failure_also_when_a_stop_overtakes_the_verdict():
    """R9: The resource always sees the failure, whether a verdict or a stop ends the incarnation."""
    kit = Kit()
    a = Puppet("a", resource=kit)
    boom = Boom()

    async def scene(tree, seen):
        with tree._driver.held():
            tree._driver.stop("first")
            a.fail(boom)
            await quiet()

    seen = grow(app(a), scene)
    assert kit.saw == [boom]
    assert isinstance(seen.the(events.StopError).exc, Boom)


def test_a_resource_sees_what_its_body_raised_while_it_was_stopped():
    """R9: A body that fails in its clean-up shows that to its resource, and a plain stop shows as `Cancelled`."""
    plain, failing = Kit(), Kit()

    async def calm(_):
        await trio.sleep_forever()

    async def messy(_):
        try:
            await trio.sleep_forever()
        finally:
            raise Boom

    grow(app(Child("a", calm, resource=plain), Child("b", messy, resource=failing)))
    assert [type(exc) for exc in plain.saw + failing.saw] == [trio.Cancelled, Boom]


def test_leaving_a_resource_is_watched_like_a_stop():
    """R9: Leaving it is subject to the same `grace` and overdue as a stop."""
    a = Puppet("a", resource=Kit(slow_exit=20), grace=5)

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(30)
        assert a.lives == 2
        assert [overdue.seconds for overdue in seen.of(events.Overdue)] == [5, 15]

    grow(app(a), scene)


def test_a_failing_exit_of_the_resource_is_reported_beside_the_failure():
    """R9: The verdict stands, and the exception from the resource's exit is a `StopError`."""
    a = Puppet("a", resource=Kit(fail_exit=1))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert a.lives == 2

    seen = grow(app(a), scene)
    assert isinstance(seen.the(events.StopError).exc, Other)
    assert seen.kinds("app/a").startswith("Starting Ready Failed Decided StopError Stopped Starting Ready")


def test_incarnation_numbers_of_a_path_never_go_back():
    """R9: Neither a restart of the supervisor nor removing and adding sets them back."""
    a = Puppet("a")
    s = Supervisor("s", [a.spec])

    async def scene(tree, seen):
        ref = tree["app/s/a"]
        a.fail()
        await quiet()
        assert ref.status().incarnation == 2
        await tree["app/s"].stop()
        await tree["app/s"].start()
        assert ref.status().incarnation == 3
        await ref.stop()
        await ref.remove()
        assert (await tree["app/s"].add(Child("a", a._body))).status().incarnation == 4

    grow(app(s), scene)


def test_incarnation_numbers_do_not_go_back_where_a_pool_had_given_the_name():
    """R9: A pool does not remember members that it named itself, and a caller may give such a name later."""
    pool = Pool("pool", Child("m", forever))

    async def scene(tree, seen):
        first = await tree[pool].add()
        for _ in range(2):
            first.inject(Boom())
            await quiet()
        assert first.status().incarnation == 3
        await first.stop()
        assert (await tree[pool].add()).status().incarnation == 1
        assert (await tree[pool].add(name="m-1")).status().incarnation == 4

    grow(app(pool), scene)


def test_stop_condemns():
    """R10: The child stays down, and a group restart skips it; only a manual restart lifts that."""
    a, b, c = puppets("abc")

    async def scene(tree, seen):
        b.fail(Other())
        await quiet()
        assert [child.state for child in tree.status().children] == ["up", "condemned", "up"]
        a.fail()
        await quiet()
        assert (a.lives, b.lives, c.lives) == (2, 1, 2)
        await tree["app/b"].start()
        a.fail()
        await quiet()
        assert (a.lives, b.lives, c.lives) == (3, 3, 3)

    grow(app(a, b, c, strategy="one_for_all", decider=Decider({Other: Stop})), scene)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_stop_concerns_this_child_alone(strategy):
    """R10: Under every strategy only this child stops."""
    a, b, c = puppets("abc")

    async def scene(tree, seen):
        mark = len(seen)
        a.fail()
        await quiet()
        assert seen.order(since=mark) == "-a"

    grow(app(a, b, c, strategy=strategy, decider=Decider({Boom: Stop})), scene)


def test_a_restart_of_the_supervisor_lifts_the_condemnation():
    """R10: The condemned child starts again with its supervisor."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.fail()
        await quiet()
        await tree["app/s"].stop()
        await tree["app/s"].start()
        assert tree["app/s/a"].status().state == "up"

    grow(app(Supervisor("s", [a.spec], decider=Decider({Boom: Stop}))), scene)


@pytest.mark.parametrize("how", ["stopped", "done", "ignored"])
def test_a_child_that_is_merely_down_is_revived_by_its_group(how):
    """R10: A child that was stopped by hand, is done or was ignored is merely down, and a group restart revives it."""
    from supervise import IGNORE

    script = [IGNORE] if how == "ignored" else []
    a, b = Puppet("a"), Puppet("b", *script, restart="transient")

    async def scene(tree, seen):
        if how == "stopped":
            await tree["app/b"].stop()
        elif how == "done":
            b.finish()
        await quiet()
        assert tree["app/b"].status().state == "down"
        a.fail()
        await quiet()
        assert tree["app/b"].status().state == "up"

    grow(app(a, b, strategy="one_for_all"), scene)


def test_a_failure_walks_up_before_anything_is_torn_down():
    """R11: Escalate is judged by the next supervisor, with its tag, while everything still stands."""
    running = []
    a, b = Puppet("a", resource=Kit()), Puppet("b")

    def look(event):
        if isinstance(event, events.Decided):
            running.append((event.by, event.tag, b.running))

    up = Decider({"deep": Escalate})
    deep = Supervisor("deep", [b.spec, a.spec], decider=up)
    spec = app(Supervisor("mid", [deep], decider=up), decider=Decider({"deep": Restart}))

    class Deep(Boom):
        tag = "deep.down"

    async def main():
        async with open_tree(spec, sinks=[look]) as tree:
            await quiet()
            a.fail(Deep())
            await quiet()
            assert [
                tree[path].status().incarnation for path in ("app/mid", "app/mid/deep", "app/mid/deep/a")
            ] == [2, 2, 2]
            assert [tree[path].status().restarts for path in ("app", "app/mid", "app/mid/deep")] == [1, 0, 0]

    run_virtual(main)
    assert running == [("app", "deep.down", 1)]


def test_stop_from_above_condemns_the_branch():
    """R11: Stop by an ancestor condemns its own child on the path."""
    a, b = puppets("ab")
    spec = app(Supervisor("s", [a.spec], decider=Decider({Boom: Escalate})), b, decider=Decider({Boom: Stop}))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert [child.state for child in tree.status().children] == ["condemned", "up"]

    seen = grow(spec, scene)
    assert seen.order() == "+s +s/a +b -s/a -s -b"


@pytest.mark.parametrize("depth", [1, 4])
def test_resume_from_above_resumes_the_leaf_where_it_is(depth):
    """R11: Resume by an ancestor resumes the leaf that failed, where it is, at any height."""
    kit = Kit()
    a, b = Puppet("a", resource=kit), Puppet("b")
    spec = Supervisor("s", [b.spec, a.spec], decider=Decider({Boom: Escalate}))
    for _ in range(depth):
        spec = Supervisor("s", [spec])
    spec = Supervisor("app", [spec], decider=RESUME)

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert (a.lives, a.running, b.lives, kit.entered) == (2, 1, 1, 1)

    # the supervisors between must ask: their deciders fall through to the root's
    seen = grow(spec, scene)
    decided = seen.the(events.Decided)
    assert (decided.directive, decided.by, decided.path.endswith("/a")) == (
        Resume,
        "app/s" + "/s" * (depth - 1),
        True,
    )


def test_a_root_that_escalates_fails_the_tree():
    """R11: The tree stops in order and `open_tree` raises `TreeFailed`, bare, from the failure."""
    a, b, c = puppets("abc")
    boom, seen = Boom(), Seen()

    async def scene(tree, seen):
        b.fail(boom)
        await trio.sleep_forever()

    with pytest.raises(TreeFailed) as raised:
        grow(app(a, b, c, decider=Decider({Boom: Escalate})), scene, seen=seen)
    assert raised.value.__cause__ is boom
    assert seen.order() == "+a +b +c -c -b -a"
    decided = seen.the(events.Decided)
    assert (decided.directive, decided.by) == (Escalate, "app")


def test_a_supervisor_that_waits_for_a_verdict_serves_nothing_but_a_stop():
    """R11: While an ancestor is busy, the waiting supervisor leaves exits and requests in its inbox."""
    slow, a, b = Puppet("slow", stubborn=10), Puppet("a"), Puppet("b")
    mid = Supervisor("mid", [a.spec, b.spec], decider=Decider({Boom: Escalate}))
    spec = app(slow, mid, decider=Decider({Boom: Restart}))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app/slow"].stop)  # the root is busy for ten seconds
            await quiet()
            a.fail()
            b.fail(Other())
            await trio.sleep(5)
            assert (a.lives, b.lives, a.running) == (1, 1, 0)
            assert [child.state for child in tree["app/mid"].status().children] == ["failed", "failed"]
        await quiet()
        assert (a.lives, b.lives) == (2, 2)

    seen = grow(spec, scene)
    assert seen.the(events.Decided, "app/mid/b").because == "stop"


def test_a_stop_reaches_a_supervisor_that_waits_for_a_verdict():
    """R11: A stop overtakes the question, and the suspended leaf ends with it."""
    slow, a = Puppet("slow", stubborn=10), Puppet("a", resource=(kit := Kit()))
    mid = Supervisor("mid", [a.spec], decider=Decider({Boom: Escalate}))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app/slow"].stop)
            await quiet()
            a.fail()
            await quiet()
            nursery.cancel_scope.cancel()

    seen = grow(app(slow, mid, decider=Decider({Boom: Restart})), scene)
    assert a.lives == 1
    assert [type(exc) for exc in kit.saw] == [Boom]
    assert seen.the(events.Decided).because == "stop"


def test_a_verdict_for_an_incarnation_that_is_gone_is_void():
    """R11: A verdict counts only if the supervisor that asked is still the same incarnation."""
    a, b = puppets("ab")
    mid = Supervisor("mid", [b.spec], decider=Decider({Boom: Escalate}))
    spec = app(a, mid, strategy="one_for_all", decider=Decider({Boom: Restart}))

    async def scene(tree, seen):
        with tree._driver.held():
            a.fail()
            await quiet()
            b.fail()
            await quiet()
        await quiet()
        assert (a.lives, b.lives) == (2, 2)

    seen = grow(spec, scene)
    assert seen.the(events.Decided, "app/mid/b").because == "absorbed"


def test_a_failure_while_its_supervisor_starts_is_judged_once_that_is_up():
    """R11: A child's failure while its supervisor is itself starting for the first time waits for that."""
    a, b = Puppet("a"), Puppet("b", 10)

    async def late():
        await trio.sleep(3)
        raise Boom

    first = Child("first", late, decider=Decider({Boom: Stop}))
    seen = grow(app(first, a, b))
    assert seen.at(events.Failed) == [3]
    assert seen.at(events.Decided) == seen.at(events.Ready, "app") == [10]


@given(st.integers(0, 2**32), st.lists(st.sampled_from(["resume", "restart", "stop", "fail"]), max_size=8))
def test_any_verdicts_in_any_schedule_keep_the_grammar(seed, orders):
    """R8, R9, R10: With any verdicts and any schedule the events of all children follow the grammar."""
    tables = {"resume": Boom, "restart": Other, "stop": KeyError, "fail": ValueError}
    a, b = Puppet("a", resource=Kit()), Puppet("b", resource=Kit())
    decider = Decider({Boom: Resume, Other: Restart, KeyError: Stop})

    async def scene(tree, seen):
        for number, order in enumerate(orders):
            (a, b)[number % 2].fail(tables[order]())
        await quiet()
        for ref in (tree["app/a"], tree["app/b"]):
            if ref.status().state == "condemned":
                try:
                    await ref.start()
                except Refused as refused:
                    assert refused.reason == "running"

    grow(app(a, b, decider=decider, limit=None, strategy="rest_for_one"), scene, seed=seed)
