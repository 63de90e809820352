"""Mailboxes: room, order, errors when a node is down for good, and what becomes of a message (R29, R30)."""

from __future__ import annotations

import gc
import weakref

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Mailbox,
    MailboxFull,
    Restart,
    Resume,
    Stop,
    Supervisor,
)

from .scene import Boom, Echo, Kit, Other, Puppet, app, grow, quiet


def test_a_mailbox_is_fifo():
    """R29: Messages are served in the order they came."""
    echo = Echo()

    async def scene(tree, seen):
        for number in range(5):
            tree[echo.spec].send_nowait(number)
        assert await tree[echo.spec].call("last") == "last"
        assert echo.served == [0, 1, 2, 3, 4, "last"]

    grow(app(echo), scene)


def test_a_full_mailbox_makes_the_sender_wait_or_raises():
    """R29: A mailbox is bounded: `send` and `call` wait their turn, and the `_nowait` form raises `MailboxFull`."""
    echo = Echo(mailbox=2)
    done = []

    async def send(ref, number):
        await ref.send(number)
        done.append(number)

    async def scene(tree, seen):
        ref = tree[echo.spec]
        await ref.send("last without a gate")
        await quiet()
        echo.gate = trio.Event()
        await ref.send("taken at once")
        await quiet()
        for number in range(2):
            ref.send_nowait(number)
        with pytest.raises(MailboxFull, match=r"the mailbox of 'app/echo' is full \(2\)"):
            ref.send_nowait(99)
        async with trio.open_nursery() as nursery:
            for number in range(2, 6):
                nursery.start_soon(send, ref, number)
                await quiet()
            assert done == []
            with pytest.raises(MailboxFull):
                ref.send_nowait(99)
            with pytest.raises(MailboxFull):
                async with ref.stream_nowait(99):
                    pass
            echo.gate.set()
        await quiet()
        assert echo.served[2:] == [0, 1, 2, 3, 4, 5]
        assert done == [2, 3, 4, 5]

    grow(app(echo), scene)


def test_a_caller_gets_an_error_at_the_deadline_of_its_message():
    """R29: The deadline holds while the sender waits for room, in the queue, and in hand; then the place is free."""

    class Late(Exception):
        pass

    echo = Echo(
        mailbox=Mailbox(1, deadline=lambda value: value if isinstance(value, float) else None, late=Late)
    )

    async def asks(form, ref, seconds):
        began = trio.current_time()
        with pytest.raises(Late, match="'app/echo' did not answer before the deadline"):
            if form == "call":
                await ref.call(began + seconds)
            else:
                async with ref.stream(began + seconds) as stream:
                    await anext(stream)
        assert trio.current_time() == began + seconds

    async def scene(tree, seen):
        ref = tree[echo.spec]
        echo.gate = trio.Event()
        await ref.send("taken at once")
        await quiet()
        for form in ("call", "stream"):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(asks, form, ref, 2.0 + number)
                    await quiet()
                await trio.sleep(2.5)
                assert ref.status().mailbox == 1
            assert ref.status().mailbox == 0
        echo.gate.set()
        assert await ref.call("no deadline") == "no deadline"

    grow(app(echo), scene)


def test_a_waiting_sender_that_is_cancelled_leaves_its_place():
    """R29: The other senders keep their places, and the cancelled message never arrives."""
    echo = Echo(mailbox=1)

    async def scene(tree, seen):
        ref = tree[echo.spec]
        echo.gate = trio.Event()
        await ref.send("wakes the reader")
        await quiet()
        await ref.send("fills it")
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(1):
                await ref.send("given up")
            nursery.start_soon(ref.send, "kept")
            await quiet()
            echo.gate.set()
        await quiet()
        assert echo.served == ["wakes the reader", "fills it", "kept"]

    grow(app(echo), scene)


def test_a_cancelled_send_has_not_sent():
    """R29: As in Trio, `Cancelled` means that nothing was sent."""
    echo = Echo()

    async def scene(tree, seen):
        with trio.CancelScope() as scope:
            scope.cancel()
            await tree[echo.spec].send("never")
        await quiet()
        assert echo.served == []

    grow(app(echo), scene)


@pytest.mark.parametrize("above", [False, True])
def test_a_mailbox_is_kept_over_restarts(above):
    """R29: The mailbox belongs to the node; an ancestor's Restart keeps it too, if path and spec stay the same."""
    echo = Echo()
    decider = Decider({Boom: Escalate}) if above else None
    inner = Supervisor("s", [echo.spec], decider=decider)

    async def scene(tree, seen):
        ref = tree[echo.spec]
        ref.send_nowait(Boom())
        for number in range(3):
            ref.send_nowait(number)
        assert await ref.call("last") == "last"
        assert echo.served[1:] == [0, 1, 2, "last"]
        assert tree[inner].status().incarnation == (2 if above else 1)

    grow(app(inner, decider=Decider({Boom: Restart})), scene)


def test_calls_wait_while_the_node_is_backing_off():
    """R29: The node is not down for good, so no caller is refused."""
    echo = Echo(backoff=Backoff(initial=10, jitter=0))

    async def scene(tree, seen):
        tree[echo.spec].send_nowait(Boom())
        await trio.sleep(1)
        assert await tree[echo.spec].call("hello") == "hello"
        assert trio.current_time() == 10

    grow(app(echo), scene)


@pytest.mark.parametrize("how", ["stopped", "condemned", "above", "removed", "tree", "done"])
def test_every_task_that_waits_gets_an_error_when_a_node_is_down_for_good(how):
    """R29: This holds for callers that are queued, that wait for room or that wait for the node to be ready, and for those who come later."""
    echo = Echo(mailbox=2, restart="transient")
    results = []
    inner = Supervisor("s", [echo.spec], decider=Decider({Boom: Stop, Other: Escalate}))

    async def ask(what, *args):
        with pytest.raises(ChildStopped):
            await what(*args)
        results.append(args)

    async def consume(ref):
        async with ref.stream("stream") as stream:
            async for _ in stream:
                pass

    async def end(tree):
        ref = tree[echo.spec]
        match how:
            case "stopped" | "removed":
                await ref.stop()
            case "condemned":
                ref.inject(Boom())
            case "above":
                ref.inject(Other())
            case "tree":
                await tree.root.stop()
            case "done":
                await tree[inner].stop()
        await quiet()
        if how == "removed":
            await ref.remove()

    async def scene(tree, seen):
        ref = tree[echo.spec]
        echo.gate = trio.Event()
        await ref.send("wakes the reader")
        await quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ref.call, 1)
            await quiet()
            nursery.start_soon(ask, consume, ref)
            await quiet()
            nursery.start_soon(ask, ref.call, 2)
            nursery.start_soon(ask, ref.send, 3)
            await quiet()
            await end(tree)
        await ask(ref.call, 4)
        await ask(ref.send, 5)
        await ask(ref.ready)
        with pytest.raises(ChildStopped):
            ref.send_nowait(6)
        assert len(results) == 7

    grow(app(inner, decider=Decider({Other: Stop})), scene)


@pytest.mark.parametrize(("sends", "calls"), [(0, 2), (1, 0), (3, 2)])
def test_the_log_counts_the_sent_messages_that_are_lost_when_a_node_is_down_for_good(sends, calls, caplog):
    """R29: A caller gets an error; the sender of a message without a reply waits no more, so one record has their number."""
    echo = Echo()

    async def ask(ref):
        with pytest.raises(ChildStopped):
            await ref.call("asked")

    async def scene(tree, seen):
        ref = tree[echo.spec]
        echo.gate = trio.Event()
        await ref.send("wakes the reader")
        await quiet()
        async with trio.open_nursery() as nursery:
            for _ in range(calls):
                nursery.start_soon(ask, ref)
            await quiet()
            for number in range(sends):
                await ref.send(number)
            await quiet()
            await ref.stop()

    grow(app(echo), scene)
    text = f"'app/echo' is down for good; sent messages that waited and are lost: {sends}"
    assert [message for message in caplog.messages if "lost" in message] == [text] * (sends > 0)


def test_a_node_that_starts_again_takes_messages_again():
    """R29: A manual restart opens the mailbox again."""
    echo = Echo()

    async def scene(tree, seen):
        await tree[echo.spec].stop()
        with pytest.raises(ChildStopped):
            await tree[echo.spec].call(1)
        await tree[echo.spec].start()
        assert await tree[echo.spec].call(2) == 2

    grow(app(echo), scene)


def test_a_group_that_waits_for_a_retry_is_not_down_for_good():
    """R29: Its mailboxes stay open until a caller stops the retry."""
    a, echo = Puppet("a", backoff=Backoff(initial=10, jitter=0)), Echo()

    async def scene(tree, seen):
        a.fail()
        await quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, tree[echo.spec])
            await quiet()
            assert tree[echo.spec].status().mailbox == 1
            await tree[a.spec].stop()

    async def fails(ref):
        with pytest.raises(ChildStopped):
            await ref.call(1)

    grow(app(a, echo, strategy="one_for_all"), scene)


def test_errors_of_a_mailbox_may_have_classes_of_their_own():
    """R29: `Mailbox` takes them as `stopped` and `full`."""

    class Down(Exception):
        pass

    class Full(Exception):
        pass

    echo = Echo(mailbox=Mailbox(1, stopped=Down, full=Full))

    async def scene(tree, seen):
        echo.gate = trio.Event()
        await tree[echo.spec].send(1)
        await quiet()
        tree[echo.spec].send_nowait(1)
        with pytest.raises(Full):
            tree[echo.spec].send_nowait(1)
        await tree[echo.spec].stop()
        with pytest.raises(Down):
            await tree[echo.spec].call(1)

    grow(app(echo), scene)


def test_sending_to_a_child_without_a_mailbox_is_an_error():
    """R29: The error says that the child has no mailbox."""

    async def scene(tree, seen):
        with pytest.raises(TypeError, match="declare its child with mailbox="):
            await tree["app/a"].call(1)
        with pytest.raises(TypeError, match="no mailbox, and names no child as its front"):
            await tree.root.call(1)

    grow(app(Puppet("a")), scene)


def test_call_returns_the_reply_or_raises_what_the_body_failed_it_with():
    """R30: A message is replied, failed or requeued by the body that took it."""
    echo = Echo()

    async def scene(tree, seen):
        assert await tree[echo.spec].call(5) == 5
        with pytest.raises(Other, match="refused"):
            await tree[echo.spec].call("refuse")
        assert await tree[echo.spec].call("requeue") == "requeued"

    grow(app(echo), scene)


@pytest.mark.parametrize("end", ["fail", "stop", "restart above"])
def test_a_message_in_hand_when_the_incarnation_ends_is_lost_and_its_caller_gets_call_lost(end):
    """R30: `CallLost` has the failure as its cause, if there was one."""
    echo = Echo()
    boom = Boom()

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost, tree[echo.spec])
            await quiet()
            match end:
                case "fail":
                    tree[echo.spec].inject(boom)
                case "stop":
                    await tree[echo.spec].stop()
                case "restart above":
                    tree["app/sibling"].inject(Boom())

    async def lost(ref):
        with pytest.raises(CallLost, match="'app/echo' ended with this message in hand") as raised:
            await ref.call("hold")
        assert raised.value.__cause__ is (boom if end == "fail" else None)

    grow(app(Puppet("sibling"), echo, strategy="one_for_all"), scene)


@pytest.mark.parametrize("directive", [Resume, Restart])
def test_a_message_sent_with_requeue_goes_back_to_the_head_in_its_order(directive):
    """R30: Several messages in hand keep their order, before those that are queued; their callers do not notice."""
    taken = []

    async def body(_, inbox):
        await trio.sleep(1)
        while True:
            messages = await inbox.receive_many(3)
            taken.append([message.value for message in messages])
            if len(taken) == 1:
                await trio.sleep(1)
                raise Boom
            for message in messages:
                message.reply(message.value)

    child = Child("a", body, resource=Kit(), mailbox=Mailbox(8, on_loss="requeue"))
    replies = []

    async def call(ref, number):
        replies.append(await ref.call(number))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(call, tree[child], number)
                await quiet()
            await trio.sleep(2)
        assert taken[0] == [0, 1, 2]
        assert [value for values in taken[1:] for value in values] == [0, 1, 2, 3]
        assert sorted(replies) == [0, 1, 2, 3]

    grow(app(child, decider=Decider({Boom: directive})), scene)


def test_the_memo_of_a_message_comes_back_with_it():
    """R30: `memo` belongs to the message, not to the incarnation."""

    async def body(inbox):
        async for message in inbox:
            if message.memo is None:
                message.memo = "begun"
                raise Boom
            message.reply(message.memo)

    child = Child("a", body, mailbox=8)

    async def scene(tree, seen):
        assert await tree[child].call(1, on_loss="requeue") == "begun"

    grow(app(child), scene)


def test_a_message_in_hand_while_a_resource_is_left_is_settled_by_a_stop():
    """R30: The child returned with a message in hand, and is stopped before it has left its resource."""

    async def body(_, inbox):
        await inbox.receive()

    child = Child("a", body, resource=Kit(slow_exit=5), mailbox=8, restart="transient")
    results = []

    async def call(ref):
        with pytest.raises(CallLost):
            await ref.call(1)
        results.append(1)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, tree[child])
            await trio.sleep(1)
            await tree[child].stop()

    grow(app(child), scene)
    assert results == [1]


def test_a_caller_cancelled_while_queued_takes_its_message_with_it():
    """R30: The child never gets the message."""
    echo = Echo()

    async def scene(tree, seen):
        echo.gate = trio.Event()
        await tree[echo.spec].send("wakes the reader")
        await quiet()
        with trio.move_on_after(1):
            await tree[echo.spec].call("withdrawn")
        assert tree[echo.spec].status().mailbox == 0
        echo.gate.set()
        await quiet()
        assert echo.served == ["wakes the reader"]

    grow(app(echo), scene)


def test_a_late_reply_is_dropped_quietly():
    """R30: A late failure or requeue is dropped too, and the child goes on."""
    echo = Echo()

    async def scene(tree, seen):
        for _ in range(3):
            with trio.move_on_after(1):
                await tree[echo.spec].call("hold")
        first, second, third = echo.held
        assert first.left
        first.reply("late")
        second.fail(Boom())
        third.requeue()
        assert tree[echo.spec].status().mailbox == 0
        assert await tree[echo.spec].call("still there") == "still there"

    grow(app(echo), scene)


def test_anything_may_be_sent_a_tuple_and_another_message_too():
    """R29: A value arrives unchanged, also after a restart and a `requeue`."""
    taken = []

    async def body(inbox):
        message = await inbox.receive()
        taken.append(message.value)
        if len(taken) == 1:
            tree[child].send_nowait(message)
            message.requeue()
        elif len(taken) == 3:
            raise Boom
        await body(inbox)

    async def scene(opened, seen):
        nonlocal tree
        tree = opened
        tree[child].send_nowait(("a", "fail"))
        await tree[child].send(("b", "requeue"), on_loss="requeue")
        await quiet()

    child, tree = Child("child", body, mailbox=8), None
    grow(Supervisor("app", [child]), scene)
    first, again, lost, back, forwarded = taken
    assert first is again
    assert first == ("a", "fail")
    assert lost is back
    assert lost == ("b", "requeue")
    assert forwarded.value is first


def test_a_message_is_settled_once():
    """R30: A second reply is a mistake in the body."""
    echo = Echo()

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree[echo.spec].call, "hold")
            await quiet()
            echo.held[0].reply(1)
        with pytest.raises(
            RuntimeError,
            match="<message 'hold' answered> is not in hand: a message is replied to, failed or requeued once",
        ):
            echo.held[0].reply(2)

    grow(app(echo), scene)


def test_a_finaliser_of_a_withdrawn_message_may_look_at_its_mailbox():
    """R30, R33: It runs as soon as the last reference to the value is gone, in the middle of whatever lets go of it."""
    echo = Echo(mailbox=100)
    depths = []

    class Value:
        def __init__(self, ref):
            self.ref = ref

        def __del__(self):
            depths.append(self.ref.status().mailbox)

    async def caller(ref):
        await ref.call(Value(ref))

    async def callers(ref, scope):
        with scope:
            async with trio.open_nursery() as nursery:
                for _ in range(15):
                    nursery.start_soon(caller, ref)

    async def scene(tree, seen):
        ref = tree[echo.spec]
        echo.gate = trio.Event()
        await ref.call(None)
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope(), trio.CancelScope()]
            for scope in scopes:
                nursery.start_soon(callers, ref, scope)
                await quiet()
            scopes[1].cancel()
            await quiet()
            assert not depths  # they are still in the queue
            scopes[0].cancel()
        await ref.send(None)
        echo.gate.set()
        await quiet()
        assert len(depths) == 30
        assert min(depths) >= 0

    grow(app(echo), scene)


def test_withdrawn_messages_do_not_accumulate():
    """R30: Callers that come and go leave nothing behind, however long the child takes no message."""
    echo = Echo(mailbox=10_000)
    left = []

    class Payload:
        pass

    async def call_and_leave(ref):
        payload = Payload()
        left.append(weakref.ref(payload))
        with trio.move_on_after(0.001):
            await ref.call(payload)

    async def scene(tree, seen):
        echo.gate = trio.Event()
        await tree[echo.spec].send("wakes the reader")
        await quiet()
        for _ in range(500):
            await call_and_leave(tree[echo.spec])
        gc.collect()
        queue = tree._driver.address("app/echo").mailbox
        assert len(queue) == 0
        assert len(queue.queue) < 40
        assert sum(payload() is not None for payload in left) < 40

    grow(app(echo), scene)


@given(
    st.integers(0, 2**32),
    st.lists(st.sampled_from(["call", "cancelled", "boom", "requeue", "stop"]), min_size=1, max_size=12),
)
def test_every_caller_gets_an_answer_and_no_message_is_lost_silently(seed, acts):
    """R29, R30: Under any schedule every caller gets a reply or an error, and the mailbox is empty in the end."""
    echo = Echo(mailbox=2, resource=Kit())
    outcomes = []

    async def caller(ref, act, number):
        with trio.move_on_after(0.5 if act == "cancelled" else 1000):
            try:
                value = Boom() if act == "boom" else number
                outcomes.append(await ref.call(value, on_loss="requeue" if act == "requeue" else None))
            except (CallLost, ChildStopped) as exc:
                outcomes.append(exc)
            return
        outcomes.append("left")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            for number, act in enumerate(acts):
                if act == "stop":
                    await tree[echo.spec].stop()
                    await tree[echo.spec].start()
                nursery.start_soon(caller, tree[echo.spec], act, number)
        assert trio.current_time() < 1000
        assert len(outcomes) == len(acts)
        assert tree[echo.spec].status().mailbox == 0

    grow(app(echo, limit=None, decider=Decider({Boom: Resume})), scene, seed=seed)
