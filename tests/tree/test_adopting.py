"""`Tree.adopt`: a running tree is brought in line with another declaration (R38)."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Limit,
    Mailbox,
    MailboxFull,
    Pool,
    Refused,
    Restart,
    StartFailed,
    Stop,
    Supervisor,
    TreeFailed,
    current_child,
    events,
)

from .scene import Boom, Kit, Puppet, app, forever, grow, puppets, quiet

STRATEGIES = ("one_for_one", "rest_for_one", "one_for_all")


def leaf(name, version=0, **options):
    """A child that is restarted if its version differs."""
    return Child(name, forever, args=(version,), **options)


def shown(changes):
    return [str(change) for change in changes]


def test_children_are_added_removed_and_restarted_in_order():
    """R12, R38: What is not declared leaves, the last one first; the rest is started in the order of the declaration."""

    async def scene(tree, seen):
        before = len(seen)
        after = app(leaf("new"), leaf("b", 1), leaf("a"), leaf("last"))
        assert shown(await tree.adopt(after, reason="Tuesday")) == [
            "+ app/new added",
            "~ app/b restarts: args[0] was 0, and is 1",
            "+ app/last added",
            "- app/c removed",
            "- app/d removed",
        ]
        assert seen.order(since=before) == "-d -c +new -b +b +last"
        assert [child.path for child in tree.status().children] == ["app/new", "app/b", "app/a", "app/last"]
        assert tree["app/a"].status().incarnation == 1
        reasons = {event.reason for event in seen.of(events.Stopping, since=before)}
        assert reasons == {
            f"'app/{name}' was asked to {verb}: Tuesday"
            for name, verb in (("c", "stop"), ("d", "stop"), ("b", "restart"))
        }
        with pytest.raises(KeyError):
            tree["app/c"]

    seen = grow(app(leaf("a"), leaf("b"), leaf("c"), leaf("d")), scene)
    assert seen.order().endswith("-last -a -b -new")


def test_it_is_reported_with_its_changes():
    """R31, R38: One event before it begins, and one when it is done."""

    async def scene(tree, seen):
        before = len(seen)
        await tree.adopt(app(leaf("a", 1)), reason="ann: try")
        (first, *_, last) = seen.events[before:]
        assert first == events.Adopting(
            first.at, "app", 1, ("~ app/a restarts: args[0] was 0, and is 1",), "ann: try"
        )
        assert last == events.Adopted(last.at, "app", 1)
        assert "ann: try" in events.describe(first)
        assert events.describe(last) == "has its new declaration"

    grow(app(leaf("a")), scene)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("one_for_one", "-b +b"), ("rest_for_one", "-c -b +b +c"), ("one_for_all", "-c -b -a +a +b +c")],
)
def test_a_restart_takes_its_group_along(strategy, expected):
    """R13, R38: The strategy is that of the new declaration."""

    async def scene(tree, seen):
        before = len(seen)
        await tree.adopt(app(leaf("a"), leaf("b", 1), leaf("c"), strategy=strategy))
        assert seen.order(since=before) == expected

    grow(app(leaf("a"), leaf("b"), leaf("c"), strategy="one_for_all"), scene)


def test_two_changes_in_one_group_cause_one_restart():
    """R13, R38: The second child has its new code already when its turn comes."""

    async def scene(tree, seen):
        before = len(seen)
        await tree.adopt(app(leaf("a", 1), leaf("b"), leaf("c", 1), strategy="one_for_all"))
        assert seen.order(since=before) == "-c -b -a +a +b +c"

    grow(app(leaf("a"), leaf("b"), leaf("c")), scene)


@given(st.integers(0, 2**32))
def test_a_child_that_its_group_starts_again_is_taken_out_once_more(seed):
    """R13, R38: It was stopped, and then a sibling failed before it could leave."""
    a = Puppet("a")

    async def fails_another():
        try:
            await trio.sleep_forever()
        finally:
            if a.lives == 1:
                a.fail()

    async def scene(tree, seen):
        await tree.adopt(app(a, strategy="one_for_all"))
        await quiet()
        assert [one.path for one in tree.status().children] == ["app/a"]

    grow(app(a, Child("b", fails_another), strategy="one_for_all"), scene, seed=seed)


def test_options_that_no_body_sees_are_taken_without_a_restart():
    """R38: A limit, a strategy, a decider, a backoff, times and the restart type."""
    a, b, c = puppets("abc")
    changed = app(
        Child("a", a.spec.body, backoff=Backoff(initial=2, jitter=0), grace=9, restart="transient"),
        b.spec,
        c.spec,
        strategy="rest_for_one",
        limit=Limit(1, within=60),
        decider=Decider({Boom: Restart}),
    )

    async def scene(tree, seen):
        before = len(seen)
        (whole, child) = await tree.adopt(changed)
        assert (whole.options, whole.restarts) == (("decider", "strategy", "limit"), False)
        assert (child.options, child.restarts) == (("restart", "backoff", "grace"), False)
        assert seen.order(since=before) == ""
        b.fail()
        await quiet()
        assert seen.order(since=before) == "-b -c +b +c"
        assert tree.status().limit == Limit(1, within=60)
        a.fail()  # one more than the limit allows
        await trio.sleep(1)

    with pytest.raises(TreeFailed):
        grow(app(a, b, c, decider=Decider({Boom: Stop})), scene)
    assert (a.lives, b.lives, c.lives) == (1, 2, 2)


def test_a_decider_is_taken_by_the_nodes_far_below():
    """R2, R38: Each leaf asks its own decider, then those above it, all of the new declaration."""
    a = Puppet("a")

    def whole(directive):
        return app(app(app(a, name="y"), name="x"), decider=Decider({Boom: directive}))

    async def scene(tree, seen):
        await tree.adopt(whole(Restart))
        a.fail()
        await quiet()
        assert (seen.the(events.Decided).directive, seen.the(events.Decided).decider) == (Restart, "app")
        assert tree["app/x/y/a"].status().incarnation == 2

    grow(whole(Stop), scene)


def test_a_child_that_goes_on_runs_its_old_code_until_its_next_start():
    """R8, R38: A Resume enters the body again that runs; a restart, also in one step, takes the new one."""
    ran = []

    async def body(which, inbox=None, *_):
        ran.append(which)
        await trio.sleep_forever()

    old = app(Child("a", body, args=("old",)), Child("b", body, args=("old",), resource=partial(Kit())))
    new = app(Child("a", body, args=("new",)), Child("b", body, args=("old",), drain=3))
    assert old is not new

    async def scene(tree, _):
        first = tree._driver.leaves["app/a"]
        await tree.adopt(new)
        assert tree._driver.leaves["app/a"] is not first
        assert ran[2:] == ["new", "old"]

    grow(old, scene)


def test_the_next_start_of_a_child_takes_the_new_declaration_whatever_causes_it():
    """R38: A child that need not be restarted has the new options from its next start on, even one in one step."""
    a = Puppet("a")
    again = Child("a", a.spec.body, drain=7)

    async def scene(tree, seen):
        await tree.adopt(app(again, plain))
        assert tree._driver.leaves["app/a"].spec is a.spec
        a.fail()
        await quiet()
        assert tree._driver.leaves["app/a"].spec is again
        assert tree[a.spec] == tree[again] == tree["app/a"]
        a.fail()
        await quiet()
        assert tree["app/a"].status().incarnation == 3
        assert tree._driver.leaves["app/b"].spec is not plain
        stumble.set()  # it is restarted in one step
        await quiet()
        assert tree._driver.leaves["app/b"].spec is plain

    stumble = trio.Event()

    async def once():
        if not stumble.is_set():
            await stumble.wait()
            raise Boom
        await trio.sleep_forever()

    plain = Child("b", once, drain=7)
    grow(app(a, Child("b", once)), scene)


def test_another_kind_of_node_takes_the_place_of_the_earlier_one():
    """R38: A child becomes a supervisor, and a supervisor a pool: the one leaves the tree before the other is started."""

    async def scene(tree, seen):
        before = len(seen)
        found = await tree.adopt(app(app(leaf("x"), name="a"), Pool("b", leaf("m")), leaf("c")))
        assert shown(found) == [
            "~ app/a restarts: it is a Supervisor instead of a Child",
            "~ app/b restarts: it is a Pool instead of a Supervisor",
        ]
        assert seen.order(since=before) == "-b/y -b -a +a +a/x +b"
        assert [one.kind for one in tree.status().walk()] == [
            "supervisor",
            "supervisor",
            "child",
            "pool",
            "child",
        ]
        await tree["app/b"].add()

    grow(app(leaf("a"), app(leaf("y"), name="b"), leaf("c")), scene)


def test_children_that_were_added_while_it_ran_stay():
    """R25, R38: They come last, as before, and take the new decider; one whose name is declared is declared from now on."""
    added, claimed = Puppet("added"), Puppet("claimed")

    async def scene(tree, seen):
        await tree["app"].add(added.spec)
        await tree["app"].add(claimed.spec)
        before = len(seen)
        await tree.adopt(app(claimed, leaf("b"), leaf("a"), decider=Decider({Boom: Restart})))
        assert seen.order(since=before) == "+b"
        assert [one.path for one in tree.status().children] == [
            f"app/{name}" for name in ("claimed", "b", "a", "added")
        ]
        added.fail()
        await quiet()
        assert tree["app/added"].status().incarnation == 2
        await tree.root.restart()
        assert [one.path for one in tree.status().children] == ["app/claimed", "app/b", "app/a"]

    grow(app(leaf("a"), decider=Decider({Boom: Stop})), scene)


def test_the_members_of_a_pool_stay_as_they_were_added():
    """R26, R38: Members that are added afterwards have the new template."""

    async def scene(tree, _):
        first = await tree["app/pool"].add()
        (change,) = await tree.adopt(app(Pool("pool", leaf("m", 1), maximum=2)))
        assert (change.restarts, change.options) == (False, ("template", "maximum"))
        second = await tree["app/pool"].add()
        assert [tree._driver.leaves[ref.path].spec.args for ref in (first, second)] == [(0,), (1,)]
        with pytest.raises(Refused, match="is full"):
            await tree["app/pool"].add()

    grow(app(Pool("pool", leaf("m"))), scene)


def test_what_was_stopped_by_hand_stays_down_and_what_failed_is_started_with_its_new_code():
    """R10, R38: A mended child that failed for good is started; one without other code, or that an operator stopped, is not."""
    same, decided = Puppet("same", restart="transient"), Decider({Boom: Stop})

    async def scene(tree, seen):
        tree["app/mended"].inject(Boom())
        same.fail()
        await quiet()
        await tree["app/stopped"].stop()
        assert [one.state for one in tree.status().children] == ["condemned", "down", "condemned"]
        before = len(seen)
        await tree.adopt(app(leaf("mended", 1), leaf("stopped", 1), same, decider=decided))
        assert seen.order(since=before) == "+mended"
        await tree["app/stopped"].start()
        assert tree._driver.leaves["app/stopped"].spec.args == (1,)

    grow(app(leaf("mended"), leaf("stopped"), same, decider=decided), scene)


def test_a_temporary_child_that_has_ended_is_not_started_again():
    """R7, R38: Declared before and after, it has left the tree; the next restart of its supervisor starts it."""
    once = Puppet("once", restart="temporary")

    async def scene(tree, seen):
        once.finish()
        await quiet()
        before = len(seen)
        await tree.adopt(app(once, leaf("a", 1)))
        assert seen.order(since=before) == "-a +a"
        await tree.root.restart()
        assert once.lives == 2

    grow(app(once, leaf("a")), scene)


def test_starts_that_fail_are_raised_when_everything_else_is_done():
    """R16, R38: A new child stays down; a changed one is retried as in any restart."""
    new, old, changed = Puppet("new", Boom("new")), Puppet("a"), Puppet("a", Boom("changed"))

    async def scene(tree, seen):
        with pytest.raises(StartFailed, match="app/new"):
            await tree.adopt(app(old, new, leaf("z", 1)))
        assert tree["app/z"].status().incarnation == 2
        assert (tree["app/new"].status().state, seen.the(events.Adopted).failed) == ("down", ("app/new",))
        with pytest.raises(StartFailed, match="app/a"):
            await tree.adopt(app(changed, new, leaf("z", 1)))
        await quiet()
        assert tree["app/a"].status().state == "up"
        new.script.append(Boom("again"))
        changed.script.append(Boom("again"))
        with pytest.raises(ExceptionGroup) as both:
            await tree.adopt(app(Puppet("a", Boom("x")), Puppet("new", Boom("y")), leaf("z", 1)))
        assert [each.path for each in both.value.exceptions] == ["app/a", "app/new"]

    grow(app(old, leaf("z")), scene)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (app(name="other"), "the root must stay Supervisor 'app', got Supervisor 'other'"),
        (Pool("app", leaf("m")), "the root must stay Supervisor 'app', got Pool 'app'"),
        ("app", "a tree's root must be a Supervisor or a Pool, got 'app'"),
        (app(mailbox="shared"), "has none"),
    ],
)
def test_what_cannot_be_its_declaration_is_refused_as_a_whole(other, message):
    """R38: With one error, and nothing is changed."""

    async def scene(tree, seen):
        before = len(seen)
        for attempt in (tree.adopt, tree.changes):
            with pytest.raises((TypeError, ValueError), match=message.replace("(", r"\(")):
                result = attempt(other)
                await result
        assert len(seen) == before

    grow(app(leaf("a")), scene)


def test_a_child_that_was_added_must_fit_into_the_new_declaration():
    """R18, R38: Otherwise the declaration is refused as a whole, however deep that child is."""

    def declared(version, **options):
        return app(Supervisor("one", [leaf("a", version)]), Supervisor("two", [leaf("b")], **options))

    async def scene(tree, seen):
        await tree["app/two"].add(Child("x", forever, restart="transient", significant=True))
        before = len(seen)
        with pytest.raises(ValueError, match="significant needs auto_shutdown"):
            await tree.adopt(declared(1))
        with pytest.raises(ValueError, match="significant needs auto_shutdown"):
            tree.changes(declared(1))
        assert len(seen) == before
        await tree.adopt(app())  # it leaves with its supervisor

    grow(declared(0, auto_shutdown="any_significant"), scene)


def test_waiting_messages_stay_and_the_size_changes_at_once():
    """R29, R38: Senders that wait are let in if there is room now; a smaller size keeps what is there."""
    gate = trio.Event()
    got = []

    async def body(inbox):
        await gate.wait()
        got.extend([message.value async for message in inbox])

    def whole(size):
        return app(Child("a", body, mailbox=size, drain=1))

    async def scene(tree, seen):
        before = len(seen)
        ref = tree["app/a"]
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(ref.send, number)
                await quiet()
            await tree.adopt(whole(Mailbox(3)))
            await quiet()
            assert tree.status().children[0].mailbox == 3
            await tree.adopt(whole(2))
            with pytest.raises(MailboxFull):
                ref.send_nowait(4)
            gate.set()
        await quiet()
        assert (tree.status().children[0].mailbox, seen.order(since=before)) == (0, "")
        for number in (5, 6):
            ref.send_nowait(number)
        await ref.stop()
        assert got == [0, 1, 2, 3, 5, 6]

    grow(whole(2), scene)


def test_an_address_that_has_been_used_sends_to_the_new_front():
    """R34, R38: A front is one of the options that are taken at once."""

    async def body(inbox):
        async for message in inbox:
            message.reply(current_child().path)

    def declared(front=None):
        children = [Child(name, body, mailbox=8) for name in "abc"]
        return app(Supervisor("desk", children, front=front))

    async def scene(tree, seen):
        desk = tree["app/desk"]
        assert await desk.call(1) == "app/desk/a"
        await tree.adopt(declared(front="b"))
        assert await desk.call(1) == "app/desk/b"
        desk.send_nowait(1)
        await tree.adopt(declared(front="c"))
        assert await desk.call(1) == "app/desk/c"
        await tree.adopt(declared())
        with pytest.raises(TypeError, match="has no mailbox"):
            await desk.call(1)

    grow(declared(front="a"), scene)


def test_callers_at_a_mailbox_that_is_declared_no_more_get_an_error():
    """R29, R38: The child is restarted without it."""

    async def scene(tree, _):
        ref = tree["app/a"]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                with pytest.raises(ChildStopped), trio.fail_after(10):
                    await ref.call(1)

            await quiet()
            await tree.adopt(app(Child("a", forever)))
        with pytest.raises(TypeError, match="has no mailbox"):
            ref.send_nowait(1)
        await tree.adopt(app(Child("a", forever, mailbox=1)))
        ref.send_nowait(1)

    grow(app(Child("a", forever, mailbox=4)), scene)


async def answering(inbox):
    """It answers with its path."""
    async for message in inbox:
        message.reply(current_child().path)


def sharing(upper, lower, kind=Supervisor):
    """A child below two supervisors, or a pool as the lower one, of which one or both have a mailbox."""
    child = Child("c", answering, mailbox="shared")
    below = Pool("b", child, mailbox=lower) if kind is Pool else Supervisor("b", [child], mailbox=lower)
    return app(below, mailbox=upper)


@pytest.mark.parametrize("kind", [Supervisor, Pool])
@pytest.mark.parametrize("turn", [1, -1])
def test_a_child_is_restarted_if_the_mailbox_that_it_shares_is_that_of_another_supervisor(kind, turn):
    """R37, R38: It takes its messages from elsewhere, and so do an added child and the members of a pool."""
    declarations = [(sharing(8, "shared", kind), "app"), (sharing(None, 8, kind), "app/b")][::turn]

    async def scene(tree, seen):
        if kind is Pool:
            await tree["app/b"].add(name="x")
        else:
            await tree["app/b"].add(Child("x", answering, mailbox="shared"))
        assert (await tree[declarations[0][1]].call(1)).startswith("app/b/")
        changes = await tree.adopt(declarations[1][0])
        restarted = [str(change) for change in changes if change.restarts]
        there, before = declarations[1][1], declarations[0][1]
        assert restarted == (
            []
            if kind is Pool
            else [f"~ app/b/c restarts: mailbox, since it is that of {there!r} and was that of {before!r}"]
        )
        with trio.fail_after(1):
            answers = [await tree[there].call(number) for number in range(4)]
        assert set(answers) == {child.path for child in tree["app/b"].status().children}
        assert {child.incarnation for child in tree["app/b"].status().children} == {2}
        assert await tree.adopt(declarations[1][0]) == []
        assert {child.incarnation for child in tree["app/b"].status().children} == {2}

    grow(declarations[0][0], scene)


def test_a_child_may_adopt_what_stops_itself():
    """R38: The adoption goes on when its caller is cancelled."""

    async def body():
        await current_child().tree.adopt(app(leaf("b", 1), leaf("c")))

    async def scene(tree, seen):
        await trio.sleep(1)
        assert [one.path for one in tree.status().children] == ["app/b", "app/c"]
        assert seen.the(events.Adopted).failed == ()

    grow(app(Child("a", body), leaf("b")), scene)


def test_the_time_of_a_restart_counts_anew_for_another_limit():
    """R14, R38: A limit of ready time that is adopted during a backoff does not count that backoff."""
    a = Puppet("a", backoff=Backoff(initial=10, jitter=0))
    late = Puppet("late")

    async def scene(tree, _):
        a.fail()
        await quiet()
        await tree.adopt(app(a, late, limit=Limit(2, within=5, of_ready_time=True)))
        late.fail()
        await trio.sleep(9)
        late.fail()
        await quiet()
        assert tree.status().restarts == 2  # nine seconds later, but no ready time has passed

    with pytest.raises(TreeFailed):
        grow(app(a, late), lambda tree, seen: _and_fail_once_more(scene, tree, seen, late))


async def _and_fail_once_more(scene, tree, seen, late):
    await scene(tree, seen)
    late.fail()
    await trio.sleep(100)


def test_what_counts_goes_on_counting_if_its_option_is_the_same():
    """R14, R15, R38: The series of a backoff, the charges of a child's own limit, and who waits for a retry."""
    a, b = Puppet("a", backoff=Backoff(initial=1, jitter=0), limit=Limit(2, within=99)), Puppet("b")

    def alike():
        again = Child("a", a.spec.body, backoff=Backoff(initial=1, jitter=0), limit=Limit(2, within=99))
        return app(again, b, strategy="one_for_all", limit=None)

    async def scene(tree, seen):
        for delay in (1, 2):
            a.fail()
            await quiet()
            await tree.adopt(alike())
            assert seen.of(events.BackingOff)[-1].delay == delay
            late = Puppet(f"late-{delay}", restart="transient")
            await tree["app"].add(late.spec)
            late.finish()
            await quiet()
            assert not tree._driver.forest.find(
                f"app/late-{delay}"
            ).gone  # the retry of its sibling starts it
            await trio.sleep(delay + 0.1)
            assert late.lives == 2
        a.fail()
        await quiet()
        assert seen.of(events.Decided)[-1].because == "limit"
        assert tree["app/a"].status().state == "condemned"

    grow(app(a, b, strategy="one_for_all", limit=None), scene)


def test_without_a_difference_nothing_happens():
    """R38: Adopting what runs changes nothing, however often."""

    async def scene(tree, seen):
        before = len(seen)
        for _ in range(3):
            assert await tree.adopt(app(leaf("a"), app(leaf("b"), name="x"))) == []
        assert seen.order(since=before) == ""

    grow(app(leaf("a"), app(leaf("b"), name="x")), scene)


def test_every_option_of_a_node_is_compared():
    """R38: No field of a declaration is left out."""
    changed = {
        Child: {
            "body": quiet, "resource": Kit(), "mailbox": 3, "args": (1,), "drain": 1.5, "grace": 2.5, "start_warning": 3.5, "limit": Limit(9),
            "restart": "transient", "significant": True, "start_timeout": 1.5, "backoff": Backoff(), "decider": Decider({Boom: Stop}),
        },
        Supervisor: {
            "strategy": "one_for_all", "limit": None, "on_limit": "shutdown", "auto_shutdown": "all_significant", "front": "a", "mailbox": 3,
            "init": print, "restart": "transient", "significant": True, "start_timeout": 1.5, "backoff": Backoff(), "decider": Decider({Boom: Stop}),
        },
        Pool: {
            "template": leaf("m", 1), "maximum": 3, "member_limit": None, "limit": Limit(9), "on_limit": "shutdown",
            "auto_shutdown": "all_significant", "mailbox": 3, "init": print, "restart": "transient", "significant": True, "start_timeout": 1.5,
            "backoff": Backoff(), "decider": Decider({Boom: Stop}),
        },
    }  # fmt: skip
    base = {
        Child: partial(Child, "x", body=forever),
        Supervisor: partial(Supervisor, "x", [leaf("a")]),
        Pool: partial(Pool, "x", template=leaf("m")),
    }

    async def scene(tree, _):
        for kind, options in changed.items():
            fields = {each.name for each in kind.__attrs_attrs__ if each.init} - {
                "name",
                "children",
                "origin",
            }
            assert fields == options.keys()
            for name, value in options.items():
                needed = {"restart": "transient"} if name == "significant" else {}
                before, given = base[kind](**needed), {name: value} | needed
                after = base[kind](**given)
                await tree.adopt(app(before, auto_shutdown="all_significant", mailbox=8))
                (change,) = tree.changes(app(after, auto_shutdown="all_significant", mailbox=8))
                assert change.options == (name,), (kind, name)
                assert change.restarts == (kind is Child and name in ("body", "resource", "mailbox", "args"))

    grow(app(leaf("x"), auto_shutdown="all_significant", mailbox=8), scene)


def test_no_incarnation_goes_back_where_a_pool_had_a_child_of_that_name():
    """R9, R38: Neither in a supervisor of its name, nor in the pool itself after its template has another name."""

    def pool(member):
        return app(Pool("x", leaf(member)), strategy="one_for_one")

    async def scene(tree, seen):
        for number in (1, 2):
            ref = await tree["app/x"].add()
            assert ref.path == f"app/x/m-{number}"
            await ref.stop()
        await tree.adopt(pool("other"))
        assert (await tree["app/x"].add(name="m-1")).status().incarnation == 2
        await tree.adopt(app(Supervisor("x", [leaf("m-2")]), strategy="one_for_one"))
        assert tree["app/x/m-2"].status().incarnation == 2
        assert tree["app/x/m-2"].status().restarts_total == 0

    grow(pool("m"), scene)
