"""Messages and inboxes used by a task that no longer owns them, and children that wait for themselves (R29, R30)."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from supervise import (
    Child,
    Decider,
    Mailbox,
    Restart,
    Resume,
    Supervisor,
    current_child,
)

from .scene import Boom, Kit, Other, app, forever, quiet
from .talk import Shelf, grow, worker

# --- messages, streams and inboxes used by a task that does not own them, or not any more


def test_a_second_task_that_waits_at_a_stream_gets_an_error():
    """R29: It gets `trio.BusyResourceError`, as at Trio's own streams; the first task gets the item."""
    got = []

    async def serve(message):
        await trio.sleep(1)
        await message.send("item")
        message.reply()

    child = worker(serve)

    async def read(stream):
        got.extend([item async for item in stream])

    async def scene(tree, seen):
        async with tree[child].stream(None) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(read, stream)
            await quiet()
            with pytest.raises(trio.BusyResourceError, match="another task waits for the next item"):
                await anext(stream)
        assert got == ["item"]

    grow(app(child), scene)


@pytest.mark.parametrize("settled", [False, True])
def test_a_stream_cannot_be_read_after_its_block(settled):
    """R29: A task that reads it then, or still waits there, gets `trio.ClosedResourceError`; no item is left in it."""
    results = []

    async def serve(message):
        await message.send(1)
        await message.send(2)
        if settled:
            message.reply()

    child = worker(serve)

    async def read(stream):
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)
        results.append("closed")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery, tree[child].stream(None) as stream:
            await quiet()
            assert await anext(stream) == 1
            if not settled:
                assert await anext(stream) == 2
                nursery.start_soon(read, stream)
                await quiet()
        await read(stream)
        assert results == ["closed"] * (1 if settled else 2)

    grow(app(child), scene)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"buffer": 0}, ValueError, "a stream's buffer must be >= 1, got 0"),
        ({"buffer": -1}, ValueError, "a stream's buffer must be >= 1, got -1"),
        ({"buffer": "x"}, TypeError, "a stream's buffer must be an integer, got 'x'"),
        ({"buffer": True}, TypeError, "a stream's buffer must be an integer, got True"),
        ({"buffer": None}, TypeError, "a stream's buffer must be an integer, got None"),
        ({"on_loss": "requeu"}, ValueError, "on_loss must be one of 'fail', 'requeue', got 'requeu'"),
        ({"on_loss": ""}, ValueError, "on_loss must be one of 'fail', 'requeue', got ''"),
    ],
)
@pytest.mark.parametrize("form", ["call", "send", "send_nowait", "stream", "stream_nowait"])
def test_nonsense_is_refused_at_the_sender(form, arguments, error, match):
    """R30: The error comes in one line, before anything is sent."""
    if "buffer" in arguments and "stream" not in form:
        return
    shelf = Shelf()

    async def scene(tree, seen):
        ref = tree[shelf.spec]
        with pytest.raises(error, match=match):
            if form in ("call", "send"):
                await getattr(ref, form)(1, **arguments)
            elif form == "send_nowait":
                ref.send_nowait(1, **arguments)
            else:
                getattr(ref, form)(1, **arguments)
        await quiet()
        assert shelf.held == []

    grow(app(shelf), scene)


def test_a_body_may_not_ask_for_nonsense_either():
    """R30: A wrong `on_loss` of a message in hand, and a wrong maximum of messages, are refused."""
    shelf = Shelf()

    async def scene(tree, seen):
        tree[shelf.spec].send_nowait(1)
        await quiet()
        with pytest.raises(ValueError, match="on_loss must be one of"):
            shelf.held[0].on_loss = "keep"
        with pytest.raises(ValueError, match="the maximum of receive_many must be >= 1, got 0"):
            await shelf.inboxes[0].receive_many(0)

    grow(app(shelf), scene)


def test_a_body_may_decide_that_a_message_in_hand_is_not_to_be_lost():
    """R30: The body sets `on_loss`, also for a message that was sent without waiting for a reply."""
    taken = []

    async def body(inbox):
        async for message in inbox:
            taken.append(message.value)
            message.on_loss = "requeue"
            if len(taken) == 1:
                raise Boom

    child = Child("a", body, mailbox=8)

    async def scene(tree, seen):
        tree[child].send_nowait(1, on_loss="fail")
        tree[child].send_nowait(2)
        await quiet()
        assert taken == [1, 1, 2]

    grow(app(child), scene)


@pytest.mark.parametrize("form", ["receive", "loop", "nowait", "many"])
@pytest.mark.parametrize("directive", [Restart, Resume])
def test_an_inbox_is_closed_when_its_body_is_over(form, directive):
    """R29, R30: A task that an old body left elsewhere takes no message of the next one, and gets an error."""
    shelf = Shelf(resource=Kit())
    results = []

    async def read(inbox):
        try:
            match form:
                case "receive":
                    await inbox.receive()
                case "many":
                    await inbox.receive_many(5)
                case "loop":
                    async for _ in inbox:
                        pass
                case "nowait":
                    while True:
                        try:
                            inbox.receive_nowait()
                        except trio.WouldBlock:
                            await trio.sleep(0.25)
        except trio.ClosedResourceError:
            results.append("closed")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            (inbox,) = shelf.inboxes
            nursery.start_soon(read, inbox)
            await quiet()
            tree[shelf.spec].inject(Boom())
            await trio.sleep(1)
            assert results == ["closed"]
            for number in range(3):
                tree[shelf.spec].send_nowait(number)
            await read(inbox)
            assert results == ["closed"] * 2
            await quiet()
            assert [message.value for message in shelf.held] == [0, 1, 2]
            nursery.cancel_scope.cancel()

    grow(app(shelf, decider=Decider({Boom: directive})), scene)


@pytest.mark.parametrize("how", ["requeue", "restart", "resume"])
@pytest.mark.parametrize("form", ["call", "stream", "send"])
def test_a_body_cannot_answer_a_message_that_was_put_back(form, how):
    """R30: After it was put back, the message is in other hands: it is another object with the same memo."""
    shelf = Shelf(resource=Kit(), mailbox=Mailbox(8, on_loss="requeue"))
    answers = []

    async def ask(ref):
        if form == "call":
            answers.append(await ref.call("it"))
        elif form == "stream":
            async with ref.stream("it") as stream:
                answers.extend([item async for item in stream])
        else:
            await ref.send("it")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, tree[shelf.spec])
            await quiet()
            (old,) = shelf.held
            old.memo = memo = object()
            if how == "requeue":
                old.requeue()
            else:
                tree[shelf.spec].inject(Boom() if how == "restart" else Other())
            await quiet()
            new = shelf.held[1]
            assert new is not old
            assert new.memo is memo
            assert "requeued" in repr(old)
            for act in (old.reply, old.requeue, lambda: old.fail(Boom())):
                with pytest.raises(RuntimeError, match="is not in hand"):
                    act()
            if form == "stream":
                with pytest.raises(RuntimeError, match="is not in hand"):
                    old.send_nowait("stale")
                new.send_nowait("fresh")
            assert "in hand" in repr(new)
            new.reply("fresh")
        assert answers == ([] if form == "send" else ["fresh"])

    grow(app(shelf, decider=Decider({Other: Resume})), scene)


def test_a_stale_sender_does_not_wait_for_room_for_ever():
    """R29, R30: A task of an old body that waits for room in a stream gets an error when the message was put back."""
    results = []
    shelf = Shelf(mailbox=Mailbox(8, on_loss="requeue"))

    async def send(message):
        await message.send(1)
        with pytest.raises(RuntimeError, match="is not in hand"):
            await message.send(2)
        results.append("refused")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery, tree[shelf.spec].stream(None, buffer=1) as stream:
            await quiet()
            nursery.start_soon(send, shelf.held[0])
            await quiet()
            tree[shelf.spec].inject(Boom())
            await quiet()
            assert results == ["refused"]
            shelf.held[1].reply()
            assert [item async for item in stream] == [1]

    grow(app(shelf), scene)


def test_a_message_that_was_lost_cannot_be_put_back():
    """R30: Its sender has got an error, or did not wait for a reply; either way the message is not served again."""
    shelf = Shelf()

    async def scene(tree, seen):
        await tree[shelf.spec].send("quietly lost")
        await quiet()
        tree[shelf.spec].inject(Boom())
        await quiet()
        with pytest.raises(RuntimeError, match=r"lost with its body> is not in hand"):
            shelf.held[0].requeue()
        await quiet()
        assert len(shelf.held) == 1

    grow(app(shelf), scene)


# --- children that wait for themselves


@pytest.mark.parametrize("form", ["call", "stream", "front", "full", "beside"])
def test_a_child_that_calls_its_own_mailbox_gets_an_error(form):
    """R30: Its own task serves the mailbox, so the call would never be answered: it raises `RuntimeError`, and the child may go on."""
    results = []

    async def body(inbox):
        async with trio.open_nursery() as nursery:
            if form == "beside":
                nursery.start_soon(trio.sleep_forever)  # a task that does not serve
            async for message in inbox:
                if message.value != "go":
                    message.reply()
                    continue
                here = current_child().tree["app/s" if form == "front" else "app/s/a"]
                with pytest.raises(RuntimeError, match="child 'app/s/a' would wait for ever"):
                    if form == "stream":
                        async with here.stream("x") as stream:
                            await anext(stream)
                    elif form == "full":
                        here.send_nowait("x")
                        await here.send("x")
                    else:
                        await here.call("x")
                results.append(current_child().tree["app/s/a"].status().mailbox)
                message.reply()

    child = Child("a", body, mailbox=1)
    inner = Supervisor("s", [child], front=child)

    async def scene(tree, seen):
        await tree[child].call("go")
        assert await tree[child].call("still there") is None
        assert results == ([1] if form == "full" else [0])
        assert tree[child].status().mailbox == 0

    grow(app(inner), scene)


@pytest.mark.parametrize("who", ["main", "handler"])
def test_a_child_of_several_tasks_may_call_itself(who):
    """R30: This holds as long as another task of its own serves the mailbox."""
    got = []

    async def serve(inbox):
        async for message in inbox:
            message.reply(message.value)

    async def ask():
        got.append(await current_child().tree["app/a"].call("hello"))

    async def body(inbox):
        async with trio.open_nursery() as nursery:
            if who == "main":
                nursery.start_soon(serve, inbox)
                await ask()
                await trio.sleep_forever()
            nursery.start_soon(ask)
            await serve(inbox)

    child = Child("a", body, mailbox=8)
    grow(app(child), lambda tree, seen: quiet())
    assert got == ["hello"]


def test_a_resource_that_calls_its_own_child_gets_an_error():
    """R30: No body runs yet that could answer."""
    results = []

    @asynccontextmanager
    async def calls():
        with pytest.raises(RuntimeError, match="would wait for ever"):
            await current_child().tree["app/a"].call(1)
        results.append("refused")
        yield

    child = Child("a", forever, resource=calls, mailbox=8)
    grow(app(child), lambda tree, seen: quiet())
    assert results == ["refused"]


@pytest.mark.parametrize("form", ["call", "send"])
def test_a_callback_that_would_have_to_be_awaited_is_refused(form):
    """R30: It would never run."""
    shelf = Shelf()

    async def callback():
        raise AssertionError

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(getattr(tree[shelf.spec], form), 1)
            await quiet()
            with pytest.raises(
                TypeError, match=r"an on_left callback must be a plain function, and .*callback is an async"
            ):
                shelf.held[0].on_left(callback)
            with pytest.raises(TypeError, match="an on_left callback must be a function, got 3"):
                shelf.held[0].on_left(3)
            shelf.held[0].reply()

    grow(app(shelf), scene)


@pytest.mark.parametrize(
    ("observer", "match"),
    [
        (
            trio.sleep,
            "an observer of calls must be a plain function, and .*sleep is an async function: it is not awaited",
        ),
        (
            lambda value: None,
            r"an observer of calls is called as <lambda>\(value, end\), but it is <lambda>\(value\)",
        ),
        (None, "an observer of calls must be a function, got None"),
    ],
)
def test_an_observer_that_could_not_be_called_is_refused(observer, match):
    """R30: When it is given, not at the end of the first call."""
    shelf = Shelf()

    async def scene(tree, seen):
        with pytest.raises(TypeError, match=match):
            tree[shelf.spec].observe_calls(observer)

    grow(app(shelf), scene)
