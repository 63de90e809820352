"""What may go wrong with messages: senders and callers that leave, streams, and callbacks that raise (R29, R30)."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildRestarted,
    ChildStopped,
    Decider,
    Escalate,
    Mailbox,
    MailboxFull,
    Restart,
    Supervisor,
    events,
    open_tree,
)
from supervise.testing import run_virtual

from .scene import Boom, Kit, Other, Puppet, app, quiet
from .talk import Halt, Shelf, fail_if_a_task_hangs, grow, worker


def test_a_lease_is_cancelled_when_an_incarnation_ends_on_the_general_path():
    """R28: This holds not only for the fast path, but also if a resource is left and if the child is stopped."""
    a, b = Puppet("a", resource=Kit()), Puppet("b")

    async def lease(ref, results):
        with pytest.raises(ChildRestarted):
            async with ref.lease():
                await trio.sleep_forever()
        results.append(ref.path)

    async def scene(tree, seen):
        results = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease, tree[a.spec], results)
            nursery.start_soon(lease, tree[b.spec], results)
            await quiet()
            a.fail()
            await quiet()
            assert results == ["app/a"]
            await tree[b.spec].stop()
            await quiet()
            assert results == ["app/a", "app/b"]

    grow(app(a, b), scene)


def test_ready_of_a_supervisor_returns_when_it_is_up():
    """R28: This holds for its first start, and over a restart of it."""
    a = Puppet("a", 5, 5)
    inner = Supervisor("s", [a.spec], decider=Decider({Boom: Escalate}))
    results = []

    async def wait(tree):
        await tree[inner].ready()
        results.append(trio.current_time())

    async def main():
        trio.lowlevel.spawn_system_task(fail_if_a_task_hangs)
        spec = app(inner, decider=Decider({Boom: Restart}))
        async with open_tree(spec, sinks=[]) as tree, trio.open_nursery() as nursery:
            await wait(tree)
            a.fail()
            await quiet()
            nursery.start_soon(wait, tree)
            await trio.sleep(6)

    run_virtual(main)
    assert results == [5, 10]


def test_a_sender_that_waits_for_room_in_a_stream_is_woken_when_the_consumer_leaves():
    """R30: Its `send` returns, and the items that it sends from then on are dropped."""
    results = []

    async def serve(message):
        await message.send(1)
        await message.send(2)
        results.append(message.left)
        await message.send(3)
        message.reply()
        results.append("on")

    child = worker(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=1):
            await quiet()
            assert results == []
        await quiet()
        assert results == [True, "on"]

    grow(app(child), scene)


@pytest.mark.parametrize("end", ["fail", "raise", "stop"])
def test_no_item_that_was_sent_before_a_failure_is_lost(end):
    """R30: The consumer gets all of them, also if it reads them later, and then the failure."""

    async def serve(message):
        for number in range(5):
            message.send_nowait(number)
        if end == "fail":
            message.fail(Boom())
        elif end == "raise":
            raise Boom
        await trio.sleep_forever()

    child = worker(serve)

    async def scene(tree, seen):
        got = []
        async with tree[child].stream(None) as stream:
            await quiet()
            if end == "stop":
                await tree[child].stop()
            with pytest.raises(Boom if end == "fail" else CallLost):
                async for item in stream:
                    got.append(item)  # noqa: PERF401 - what came before the failure is the point
        assert got == [0, 1, 2, 3, 4]

    grow(app(child), scene)


@pytest.mark.parametrize("form", ["call", "stream"])
@pytest.mark.parametrize("where", ["in the queue", "in front of it"])
def test_a_caller_that_left_frees_its_place(form, where):
    """R30: The place is free at once, and goes to the next sender that waits for room."""
    gate, scopes = trio.Event(), []
    taken = []

    async def body(inbox):
        await gate.wait()
        async for message in inbox:
            taken.append(message.value)
            message.reply()

    child = Child("a", body, mailbox=2)

    async def ask(ref, value):
        with trio.CancelScope() as scope:
            scopes.append(scope)
            if form == "call":
                await ref.call(value)
            else:
                async with ref.stream(value) as stream:
                    await anext(stream)

    async def scene(tree, seen):
        ref = tree[child]
        async with trio.open_nursery() as nursery:
            if where == "in front of it":
                ref.send_nowait("first")
                ref.send_nowait("second")
            for number in range(2):
                nursery.start_soon(ask, ref, number)
            await quiet()
            assert ref.status().mailbox == 2
            nursery.start_soon(ref.send, "waits")
            await quiet()
            for scope in scopes:
                scope.cancel()
            await quiet()
            assert ref.status().mailbox == (1 if where == "in the queue" else 2)
            gate.set()
        await quiet()
        assert taken == (["waits"] if where == "in the queue" else ["first", "second", "waits"])
        assert ref.status().mailbox == 0

    grow(app(child), scene)


@pytest.mark.parametrize("how", ["requeue", "the end of an incarnation"])
def test_a_message_that_was_put_back_wakes_a_body_that_waits(how):
    """R30: It is served at once, not when the next message comes."""
    served = []

    async def body(inbox):
        async def take():
            async for message in inbox:
                if message.memo is None:
                    message.memo = "once"
                    if how != "requeue":
                        raise Boom
                    await trio.sleep(1)
                    message.requeue()
                    await trio.sleep_forever()
                served.append(message.value)
                message.reply()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)

    child = Child("a", body, mailbox=8)

    async def scene(tree, seen):
        with trio.fail_after(5):
            await tree[child].call("it", on_loss="requeue")
        assert served == ["it"]

    grow(app(child), scene)


def test_a_stream_whose_size_grows_has_room_at_once():
    """R30: The body may make the buffer bigger, and a sender that waits for room gets it."""
    sent = []

    async def serve(message):
        async with trio.open_nursery() as nursery:
            message.send_nowait(0)
            nursery.start_soon(message.send, 1)
            await trio.sleep(1)
            with pytest.raises(ValueError, match="buffer must be >= 1, got 0"):
                message.size = 0
            message.size = 2
        sent.append(message.size)
        message.reply()

    child = worker(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=1) as stream:
            await trio.sleep(2)
            assert sent == [2]
            assert [item async for item in stream] == [0, 1]

    grow(app(child), scene)


def test_receive_many_lets_other_tasks_run():
    """R30: After 64 messages in a row there is a checkpoint, however they are taken."""
    taken, turns = [], [0]

    async def body(inbox):
        while True:
            taken.extend(await inbox.receive_many(10))

    async def count_turns():
        while True:
            turns.append(len(taken))
            await trio.lowlevel.checkpoint()

    child = Child("a", body, mailbox=400)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            for number in range(400):
                tree[child].send_nowait(number)
            while len(taken) < 400:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    grow(app(child), scene)
    turns.append(len(taken))
    assert max(after - before for before, after in itertools.pairwise(turns)) <= 150


def test_the_task_that_has_waited_longest_gets_the_next_message():
    """R29: This holds also if it was woken for a message whose caller left before the task ran."""
    got = []

    async def body(inbox):
        async def take(name):
            message = await inbox.receive()
            got.append((name, message.value))

        async with trio.open_nursery() as nursery:
            for name in "ab":
                nursery.start_soon(take, name)
                await quiet()
            await trio.sleep_forever()

    child = Child("a", body, mailbox=8)

    async def scene(tree, seen):
        await trio.sleep(1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await tree[child].call("left at once")
        for number in (1, 2):
            await quiet()
            tree[child].send_nowait(number)
        await quiet()
        assert got == [("a", 1), ("b", 2)]

    grow(app(child), scene)


class TakesNoText(Exception):
    def __init__(self):
        raise Other("no text, please")


class MakesANumber(Exception):
    def __new__(cls, text):
        return 5


class MakesAClass(Exception):
    def __new__(cls, text):
        return cls


@pytest.mark.parametrize("kind", ["stopped", "full", "late"])
@pytest.mark.parametrize("odd", [TakesNoText, MakesANumber, MakesAClass])
def test_an_error_class_that_makes_no_error_is_replaced_by_ours(kind, odd):
    """R29: A waiting caller gets an error in any case, and a note says what was wrong with the mailbox's class."""
    shelf = Shelf(mailbox=Mailbox(1, **{kind: odd}, deadline=lambda _: 1.0))

    async def scene(tree, seen):
        ref = tree[shelf.spec]
        ours = {"stopped": ChildStopped, "full": MailboxFull, "late": TimeoutError}[kind]
        with pytest.raises(ours) as raised:
            if kind == "stopped":
                await ref.stop()
            if kind == "full":
                ref.send_nowait(1)
                ref.send_nowait(2)
            await ref.call(1)
        assert f"{odd.__name__} could not be made of this text" in raised.value.__notes__[0]

    grow(app(shelf), scene)


# --- a callback that raises


@pytest.mark.parametrize("form", ["call", "stream", "late"])
def test_a_callback_for_a_caller_that_leaves_fails_its_child_if_it_raises(form):
    """R24, R30: The child fails with that exception, which is judged like any other; the caller is not affected."""
    boom = Boom("in a callback")

    def callback():
        raise boom

    async def serve(message):
        message.on_left(callback)
        await trio.sleep_forever()

    options = {"deadline": lambda _: 1.0} if form == "late" else {}
    child = worker(serve, mailbox=Mailbox(8, **options), resource=Kit())

    async def scene(tree, seen):
        if form == "stream":
            async with tree[child].stream(None):
                await quiet()
        elif form == "call":
            with trio.move_on_after(1):
                await tree[child].call(None)
        else:
            with pytest.raises(TimeoutError):
                await tree[child].call(None)
        await quiet()
        assert [failed.exc for failed in seen.of(events.Failed)] == [boom]
        assert tree[child].status().incarnation == 2

    grow(app(child), scene)


@pytest.mark.parametrize("gone", [False, True])
def test_a_base_exception_in_a_callback_ends_the_tree(gone):
    """R4, R30: The tree stops in order and the exception leaves unchanged, also if the body that registered the callback is over."""
    halt = Halt()

    def callback():
        raise halt

    async def serve(message):
        message.on_left(callback)
        if gone:
            await trio.sleep(1)
            raise Boom
        await trio.sleep_forever()

    child = worker(serve, mailbox=Mailbox(8, on_loss="requeue"), backoff=Backoff(initial=10, jitter=0))
    seen = []

    async def main():
        async with open_tree(app(child), sinks=[seen.append]) as tree:
            with trio.move_on_after(5):
                await tree[child].call(None)
            await trio.sleep_forever()

    with pytest.raises(Halt) as raised:
        run_virtual(main)
    assert raised.value is halt
    assert isinstance(seen[-1], events.Stopped)
    assert seen[-1].path == "app"


def test_a_callback_that_raises_when_no_body_runs_is_logged(caplog):
    """R24, R30: No child can fail with it, so the log reports it; the caller and the tree go on."""

    def callback():
        raise Boom("no body runs")

    async def serve(message):
        message.on_left(callback)
        await trio.sleep(1)
        raise Boom

    child = worker(serve, mailbox=Mailbox(8, on_loss="requeue"), backoff=Backoff(initial=10, jitter=0))

    async def scene(tree, seen):
        with trio.move_on_after(5):
            await tree[child].call(None)
        await trio.sleep(10)
        assert tree[child].status().state == "up"

    with caplog.at_level(logging.ERROR, "supervise"):
        grow(app(child), scene)
    assert "'app/a'" in caplog.text
    assert "no body runs" in caplog.text


def test_a_callback_may_cancel_any_scope():
    """R30: This holds also for a scope around the caller that is just leaving; the callback is called once."""
    results = []

    async def serve(message):
        message.on_left(lambda: (results.append("left"), scope.cancel()))
        await trio.sleep_forever()

    child = worker(serve)
    scope = trio.CancelScope()

    async def scene(tree, seen):
        with scope, trio.move_on_after(1):
            await tree[child].call(None)
        assert results == ["left"]

    grow(app(child), scene)
