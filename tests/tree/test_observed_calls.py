"""Observers of calls: each end of a call or stream once, and the times at which messages were sent (R30, R33)."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress

import pytest
import trio

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildStopped,
    Decider,
    Mailbox,
    MailboxFull,
    Stop,
    Supervisor,
    open_tree,
)
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Seen, app, forever, quiet
from .talk import Shelf, fail_if_a_task_hangs, grow, worker


class Ends:
    """An observer that keeps what it gets: the value, and how the call ended, an error by its class."""

    def __init__(self):
        self.all = []

    def __call__(self, value, end):
        self.all.append((value, end if isinstance(end, str) else type(end)))


async def serve(message):
    """Do with a message what its value says."""
    match message.value:
        case "fail":
            message.fail(Boom())
        case "lose":
            raise Boom
        case "keep":
            await trio.sleep_forever()
        case value:
            message.reply(value)


async def consume(ref, value):
    async with ref.stream(value) as items:
        async for _ in items:
            pass


FORMS = {"call": lambda ref, value: ref.call(value), "stream": consume}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("value", "raised", "end"),
    [(1, None, "answered"), ("fail", Boom, Boom), ("lose", CallLost, CallLost), ("keep", None, "left")],
)
def test_each_end_of_a_call_is_observed_once(form, value, raised, end):
    """R30: An answer, an error, a loss, and the caller's leaving; messages without an answer have no end."""
    child, ends = worker(serve), Ends()

    async def scene(tree, seen):
        tree[child].observe_calls(ends)
        tree[child].observe_calls(ends)
        await tree[child].send("one way")
        with trio.move_on_after(1):
            if raised is None:
                await FORMS[form](tree[child], value)
            else:
                with pytest.raises(raised):
                    await FORMS[form](tree[child], value)
        await quiet()
        assert ends.all == [(value, end)]

    grow(app(child), scene)


@pytest.mark.parametrize("form", FORMS)
def test_a_message_that_is_not_queued_has_ended_too(form):
    """R29, R30: A full queue, for a sender that waits and leaves or does not wait, and one that is closed."""
    shelf, ends = Child("shelf", forever, mailbox=1), Ends()

    async def scene(tree, seen):
        ref = tree[shelf]
        ref.observe_calls(ends)
        await ref.send("first")
        with trio.move_on_after(1):
            await FORMS[form](ref, "waits")
        assert ends.all == [("waits", "left")]
        if form == "stream":
            with pytest.raises(MailboxFull):
                async with ref.stream_nowait("full"):
                    raise AssertionError
            assert ends.all.pop() == ("full", MailboxFull)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expects, ChildStopped, form, ref, "waits again")
            await quiet()
            await tree[shelf].stop()
            await tree[shelf].remove()
        with pytest.raises(ChildStopped):
            await FORMS[form](ref, "after")
        assert ends.all[1:] in (
            [("waits again", ChildStopped)],
            [("waits again", ChildStopped), ("after", ChildStopped)],
        )

    grow(app(shelf), scene)


async def expects(error, form, ref, value):
    with pytest.raises(error):
        await FORMS[form](ref, value)


@pytest.mark.parametrize("form", FORMS)
def test_a_caller_that_leaves_at_its_deadline_is_observed_once(form):
    """R30: In the queue and in hand; also a consumer that asks again after its deadline, and then leaves its block."""
    child, ends = Shelf(mailbox=Mailbox(8, deadline=lambda value: value)), Ends()

    async def scene(tree, seen):
        ref = tree[child.spec]
        ref.observe_calls(ends)
        if form == "call":
            with pytest.raises(TimeoutError):
                await ref.call(1.0)
        else:
            async with ref.stream(1.0) as items:
                for _ in range(3):
                    with pytest.raises(TimeoutError):
                        await anext(items)
        assert ends.all == [(1.0, "left")]

    grow(app(child.spec), scene)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("left", ["late", "cancelled"])
def test_a_caller_that_has_left_before_it_sends_is_observed_once(form, left):
    """R30: Its deadline has passed already, or its scope is cancelled: each form counts it alike."""
    child, ends = Shelf(mailbox=Mailbox(8, deadline=lambda value: value)), Ends()

    async def scene(tree, seen):
        ref = tree[child.spec]
        ref.observe_calls(ends)
        await trio.sleep(2)
        if left == "late":
            await expects(TimeoutError, form, ref, 1.0)
        else:
            with trio.CancelScope() as scope:
                scope.cancel()
                await FORMS[form](ref, None)
        assert [end for _, end in ends.all] == ["left"]
        assert ref.status().mailbox == 0

    grow(app(child.spec), scene)


def test_a_child_that_waits_for_itself_is_observed_as_a_caller_that_left():
    """R30: The call is refused after its message was queued."""
    ends, begins = Ends(), trio.Event()

    async def body(inbox):
        await begins.wait()
        with pytest.raises(RuntimeError, match="would wait for ever"):
            await refs[0].call("myself")
        await trio.sleep_forever()

    child, refs = Child("a", body, mailbox=8), []

    async def scene(tree, seen):
        refs.append(tree[child])
        tree[child].observe_calls(ends)
        begins.set()
        await quiet()
        assert ends.all == [("myself", "left")]

    grow(app(child), scene)


def test_calls_to_a_shared_mailbox_are_observed_at_its_owner():
    """R37: Whichever child answers, and when all of them are gone."""
    ends = Ends()
    workers = [worker(serve, name, mailbox="shared") for name in "ab"]
    pool = Supervisor("pool", workers, mailbox=8)

    async def scene(tree, seen):
        tree[pool].observe_calls(ends)
        for number in range(3):
            assert await tree[pool].call(number) == number
        async with trio.open_nursery() as nursery:
            for _ in "abc":
                nursery.start_soon(expects, (CallLost, ChildStopped), "call", tree[pool], "keep")
            await quiet()
            await tree[pool].stop()
            await tree[pool].remove()
        assert ends.all[:3] == [(number, "answered") for number in range(3)]
        lost = [("keep", error) for error in (CallLost, CallLost, ChildStopped)]
        assert sorted(ends.all[3:], key=str) == sorted(lost, key=str)

    grow(app(pool), scene)


def test_an_observer_that_raises_is_logged_and_dropped(caplog):
    """R31: It hurts neither the caller nor the child, and other observers are called."""
    child, ends, called = worker(serve), Ends(), []

    def raises(value, end):
        called.append(value)
        raise Boom

    async def scene(tree, seen):
        tree[child].observe_calls(raises)
        tree[child].observe_calls(ends)
        with caplog.at_level(logging.ERROR, "supervise"):
            assert [await tree[child].call(number) for number in range(2)] == [0, 1]
        assert (called, ends.all) == ([0], [(0, "answered"), (1, "answered")])
        (record,) = caplog.records
        assert record.getMessage().startswith("an observer of calls raised, and is dropped: ")

    grow(app(child), scene)


@pytest.mark.parametrize("form", FORMS)
def test_a_caller_that_leaves_at_the_end_of_its_stack_is_observed(form):
    """R24, R30: Its depth must not make the observer fail."""
    child, ends = worker(serve), Ends()

    def deep(value, end, depth=300):
        if depth:
            deep(value, end, depth - 1)
        else:
            ends(value, end)

    async def leaves(ref, depth):
        await (leaves(ref, depth - 1) if depth else FORMS[form](ref, "keep"))

    async def scene(tree, seen):
        tree[child].observe_calls(deep)
        for depth in range(limit - 600, limit - 200, 20):
            ends.all.clear()
            with trio.move_on_after(1):
                try:
                    await leaves(tree[child], depth)
                except RecursionError:  # a stream is not opened where leaving it might not work
                    assert (form, limit - depth < 300) == ("stream", True)
                    continue
            await quiet()
            assert ends.all == [("keep", "left")]
            await tree[child].restart()

    limit = sys.getrecursionlimit()
    grow(app(child), scene)


@pytest.mark.parametrize("serves", [True, False])
def test_an_observer_that_exits_the_program_at_the_end_of_a_stack_stops_the_tree(serves):
    """R4, R30: A system task of Trio calls it then, also while no child serves the mailbox."""

    def exits(*_):
        raise SystemExit(3)

    async def leaves(ref, depth):
        if depth:
            await leaves(ref, depth - 1)
        else:
            with trio.move_on_after(1):
                await ref.call("keep")

    async def main():
        child = worker(serve, backoff=Backoff(initial=100, maximum=100, jitter=0))
        async with open_tree(app(child), sinks=[]) as tree:
            if not serves:
                await tree[child].send("lose")
                await quiet()
            tree[child].observe_calls(exits)
            await leaves(tree[child], sys.getrecursionlimit() - 300)
            await trio.sleep_forever()

    with pytest.raises(SystemExit):
        run_virtual(main)


@pytest.mark.parametrize("by", ["reply", "the end of the body", "the end of the node"])
def test_an_observer_that_exits_the_program_stops_the_tree_in_order(by, caplog):
    """R4, R29: Every other caller gets its answer, also one outside of the tree, and the log has what the observer raised."""
    seen, left = Seen(), 3

    def exits(*_):
        raise SystemExit(3)

    async def body(inbox):
        held = [] if by == "the end of the node" else [await inbox.receive() for _ in range(3)]
        await trio.sleep(1)
        for message in held if by == "reply" else ():
            message.reply()
        raise Boom

    async def calls(ref, guard):
        nonlocal left
        with suppress(CallLost, ChildStopped):
            await ref.call("x")
        left -= 1
        if not left:
            guard.cancel()

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_if_a_task_hangs)
            with pytest.raises(SystemExit):
                async with open_tree(
                    app(Child("a", body, mailbox=8, decider=Decider(default=Stop))), sinks=[seen]
                ) as tree:
                    tree["app/a"].observe_calls(exits)
                    for _ in range(3):
                        nursery.start_soon(calls, tree["app/a"], nursery.cancel_scope)
                    await trio.sleep_forever()

    run_virtual(main)
    assert_lifecycle(seen)
    assert "an observer of calls raised, and is dropped" in caplog.text


def test_a_message_knows_when_it_was_sent():
    """R30, R33: By Trio's clock, also when it comes back, and for the first that waits in the status; one-way messages do not."""
    sent = []

    async def body(inbox):
        await trio.sleep(5)
        async for message in inbox:
            sent.append(message.sent_at)
            if message.memo is None:
                message.memo = "seen"
                message.requeue()
            else:
                message.reply()

    child = Child("a", body, mailbox=8)

    async def scene(tree, seen):
        def since():
            return tree[child].status().waiting_since

        assert since() is None
        async with trio.open_nursery() as nursery:
            scope = await nursery.start(cancellable, tree[child])
            await trio.sleep(1)
            nursery.start_soon(tree[child].call, "second")
            await quiet()
            assert since() == 0.0
            scope.cancel()
            await quiet()
            assert since() == 1.0
            await trio.sleep(1)
            await tree[child].send("one way")
        assert sent[:2] == [1.0, 1.0]
        await quiet()
        assert sent[2:] == [None, None]
        assert since() is None

    grow(app(child), scene)


async def cancellable(ref, *, task_status):
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await ref.call("first")
