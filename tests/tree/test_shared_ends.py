"""When no child serves a shared mailbox, and what is kept for a child (R37)."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from supervise import IGNORE, Backoff, Child, ChildStopped, Decider, Limit, Pool, Resume, stop_requested

from .scene import Boom, Puppet, app, nothing, quiet
from .talk import Worker, grow, steps


@pytest.mark.parametrize("further", [False, True])
def test_messages_wait_once_the_last_child_that_was_down_is_removed(further):
    """R37: No child shares the mailbox then, so they wait for one that is added."""
    got = []

    async def scene(tree, _):
        last = tree["app/inner/a" if further else "app/a"]
        await last.stop()
        with pytest.raises(ChildStopped):
            await tree["app"].call("early")
        await last.remove()
        async with trio.open_nursery() as nursery:
            answers = []

            async def asks():
                answers.append(await tree["app"].call("waits"))

            nursery.start_soon(asks)
            await quiet()
            assert (answers, tree["app"].status().mailbox) == ([], 1)
            await tree["app"].add(Worker("b", got).spec)
        assert answers == ["b"]

    spec = Worker("a", got)
    shared = app(spec, name="inner", mailbox="shared") if further else spec
    grow(app(shared, mailbox=99), scene)


async def unneeded(_, *, task_status):
    return IGNORE


@pytest.mark.parametrize(
    "shares",
    [
        Child("s", unneeded, mailbox="shared"),
        app(Child("m", unneeded, mailbox="shared"), name="s", mailbox="shared", init=lambda: IGNORE),
        Pool("s", Child("m", unneeded, mailbox="shared"), mailbox="shared"),
    ],
)
def test_no_message_waits_for_a_child_that_has_never_opened_its_inbox(shares):
    """R17, R37: It is down for good all the same."""

    async def scene(tree, _):
        if isinstance(shares, Pool):
            await tree["app/s"].stop()
        with pytest.raises(ChildStopped), trio.fail_after(5):
            await tree["app"].call("x")

    grow(app(shares, mailbox=99), scene)


@pytest.mark.parametrize("restarted", ["the child", "the owner"])
def test_a_message_waits_while_a_start_is_ahead_of_a_child_that_is_down(restarted):
    """R13, R29, R37: With the group of a sibling, or of the supervisor that owns the mailbox."""
    got = []
    last = Puppet("d", backoff=Backoff(initial=10, jitter=0), stubborn=0 if restarted == "the child" else 3)
    owner = app(Worker("c", got), last, name="a", strategy="one_for_all", mailbox=8)
    beside = Puppet("x")

    async def scene(tree, _):
        await tree["app/a/c"].stop()
        with pytest.raises(ChildStopped):
            await tree["app/a"].call("early")
        (last if restarted == "the child" else beside).fail()
        await quiet()
        assert await tree["app/a"].call("waits") == "c"

    grow(app(owner, beside, strategy="one_for_all"), scene)


@pytest.mark.parametrize("backoff", [None, Backoff(initial=1, jitter=0)])
def test_a_restart_of_the_owner_forgets_an_added_child_that_was_down(backoff):
    """R25, R37: No child shares the mailbox then."""
    got = []
    owner = app(failing := Puppet("f"), name="a", mailbox=8, limit=Limit(0), backoff=backoff)

    async def scene(tree, _):
        c = await tree["app/a"].add(Worker("c", got).spec)
        await c.stop()
        with pytest.raises(ChildStopped):
            await tree["app/a"].call("early")
        failing.fail()
        await trio.sleep(60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app/a"].call, "waits")
            await quiet()
            await tree["app/a"].add(Worker("d", got).spec)
        assert got == [("d", "waits")]

    grow(app(owner), scene)


@pytest.mark.parametrize("take", ["receive", "receive_nowait", "receive_many"])
def test_a_child_that_is_to_stop_takes_none_of_the_messages_that_wait(take):
    """R37: A sibling serves them, however the child takes its messages."""
    taken, got = [], []

    async def takes(inbox):
        while True:
            try:
                message = getattr(inbox, take)(*([1] if take == "receive_many" else []))
                message = message if take == "receive_nowait" else await message
            except trio.WouldBlock:
                await trio.sleep(0.5)
                continue
            (message,) = message if take == "receive_many" else [message]
            taken.append(message.value)
            await trio.sleep(1)
            message.reply()

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            for value in range(20):
                nursery.start_soon(tree["app"].call, value)
            await trio.sleep(2.2)
            before = len(taken)
            await tree["app/a"].stop()
            assert len(taken) == before

    grow(app(Child("a", takes, mailbox="shared", drain=5), Worker("b", got, seconds=1.0), mailbox=99), scene)
    assert len(taken) + len(got) == 20


def kept(count, scene):
    """Run `scene(tree, inbox, scopes)` for a child that was resumed and has yet to take `count` messages again."""
    inboxes = []

    async def takes(_, inbox):
        inboxes.append(inbox)
        while len(inboxes) == 1:
            await inbox.receive()
        await trio.sleep_forever()

    async def main(tree, _):
        scopes = [trio.CancelScope() for _ in range(count)]

        async def asks(scope):
            with scope:
                await tree["app"].call("x", on_loss="requeue")

        async with trio.open_nursery() as nursery:
            for scope in scopes:
                nursery.start_soon(asks, scope)
            await quiet()
            assert tree["app"].status().mailbox == 0
            tree["app/first"].inject(Boom())
            await quiet()
            await scene(tree, inboxes[1], scopes)
            nursery.cancel_scope.cancel()

    first = Child("first", takes, mailbox="shared", resource=nothing)
    grow(app(first, mailbox=count, decider=Decider({Boom: Resume})), main)


def test_what_is_kept_for_a_child_counts_as_waiting():
    """R33, R37: For its inbox and for the status."""

    async def scene(tree, inbox, scopes):
        assert (len(inbox), tree["app"].status().mailbox) == (3, 3)
        scopes[1].cancel()
        await quiet()
        assert (len(inbox), tree["app"].status().mailbox) == (2, 2)

    kept(3, scene)


def test_callers_whose_messages_are_kept_leave_at_a_constant_cost():
    """R37: A cancelled scope may be around thousands of them."""
    costs = []

    async def scene(_tree, _inbox, scopes):
        costs.append(steps(lambda: [scope.cancel() for scope in scopes]))

    for count in (100, 400):
        kept(count, scene)
    assert costs[1] < 5 * costs[0]


@pytest.mark.parametrize("take", ["loop", "receive"])
def test_what_is_kept_for_a_child_goes_to_its_siblings_when_it_is_to_stop(take):
    """R30, R37: It takes no more messages itself, also not those that it had in hand before it was resumed."""
    got, taken = [], []

    async def takes(_, inbox):
        if not taken:
            taken.append((await inbox.receive()).value)
            raise Boom
        await stop_requested()
        if take == "loop":
            taken.extend([message.value async for message in inbox])
        else:
            taken.append((await inbox.receive()).value)

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(tree["app"].call, 1, on_loss="requeue"))
            await quiet()
            await tree["app"].add(Worker("second", got).spec)
            nursery.start_soon(tree["app/first"].stop)
            await quiet()
            assert got == [("second", 1)]
        assert taken == [1]

    first = Child("first", takes, mailbox="shared", resource=nothing, drain=5)
    grow(app(first, mailbox=9, decider=Decider({Boom: Resume})), scene)


def test_a_call_that_was_made_while_all_children_were_down_is_served_by_one_that_has_started_since():
    """R37: What counts is when it is awaited."""
    got = []

    async def scene(tree, _):
        await tree["app/a"].stop()
        late = tree["app"].call("late")
        await tree["app/a"].restart()
        assert await late == "a"

    grow(app(Worker("a", got), mailbox=9), scene)
