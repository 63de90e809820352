"""Messages with many replies (R30)."""

from __future__ import annotations

import itertools

import pytest
import trio

from supervise import (
    CallLost,
    Child,
)

from .scene import Boom, app, grow, quiet


def streaming(serve, **options):
    async def body(inbox):
        async for message in inbox:
            await serve(message)

    return Child("a", body, mailbox=8, **options)


def test_a_stream_has_many_replies_and_an_end():
    """R30: The replies come in order, and the end of the message is the end of the stream."""

    async def serve(message):
        for number in range(message.value):
            await message.send(number)
        message.reply()

    child = streaming(serve)

    async def scene(tree, seen):
        for buffer in (1, 64):
            async with tree[child].stream(5, buffer=buffer) as stream:
                assert [item async for item in stream] == [0, 1, 2, 3, 4]

    grow(app(child), scene)


def test_a_stream_is_bounded():
    """R30: A child that is faster than its consumer waits for room."""
    sent = []

    async def serve(message):
        for number in range(5):
            await message.send(number)
            sent.append(number)
        message.reply()

    child = streaming(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=2) as stream:
            await quiet()
            assert sent == [0, 1]
            assert await anext(stream) == 0
            await quiet()
            assert sent == [0, 1, 2]
            assert [item async for item in stream] == [1, 2, 3, 4]

    grow(app(child), scene)


def test_the_child_is_informed_when_the_consumer_leaves():
    """R30: `left` is set, a callback is called, and a wait for room ends; later items are dropped."""
    results = []

    async def serve(message):
        message.on_left(lambda: results.append("left"))
        for number in range(5):
            await message.send(number)
        results.append(message.left)
        message.on_left(lambda: results.append("at once"))
        message.reply()

    child = streaming(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=1) as stream:
            assert await anext(stream) == 0
        await quiet()
        assert results == ["left", True, "at once"]
        assert tree[child].status().state == "up"

    grow(app(child), scene)


def test_items_sent_before_a_failure_come_first():
    """R30: After them the consumer gets the failure."""
    boom = Boom()

    async def serve(message):
        await message.send(1)
        raise boom

    child = streaming(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None) as stream:
            assert await anext(stream) == 1
            with pytest.raises(CallLost) as raised:
                await anext(stream)
            assert raised.value.__cause__ is boom

    grow(app(child), scene)


def test_a_requeued_stream_goes_on_in_the_next_incarnation():
    """R30: For its consumer it is one stream."""

    async def serve(message):
        if message.memo is None:
            message.memo = 1
            await message.send("first life")
            raise Boom
        await message.send("second life")
        message.reply()

    child = streaming(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, on_loss="requeue") as stream:
            assert [item async for item in stream] == ["first life", "second life"]

    grow(app(child), scene)


def test_send_nowait_does_not_wait_for_room():
    """R30: A full buffer raises `trio.WouldBlock`."""
    results = []

    async def serve(message):
        message.send_nowait(1)
        with pytest.raises(trio.WouldBlock):
            message.send_nowait(2)
        results.append(1)
        message.reply()

    child = streaming(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=1) as stream:
            assert [item async for item in stream] == [1]

    grow(app(child), scene)
    assert results == [1]


def test_many_items_are_sent_at_once_or_none_of_them():
    """R30: They come in order, all at once; too many raise `trio.WouldBlock`, and those for a consumer that has left are dropped."""
    results = []

    async def serve(message):
        message.send_many_nowait([0, 1])
        with pytest.raises(trio.WouldBlock):
            message.send_many_nowait([2, 3])
        message.send_many_nowait([])
        message.on_left(lambda: message.send_many_nowait([4] * 9))
        message.on_left(message.reply)
        results.append(1)

    child = streaming(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=3) as stream:
            assert [await anext(stream), await anext(stream)] == [0, 1]
        assert tree[child].status().handled == 3  # the message, and what it sent

    grow(app(child), scene)
    assert results == [1]


def test_a_stream_that_has_ended_stays_so():
    """R30: A consumer that reads again gets the same end, or the same failure."""

    async def serve(message):
        await message.send("first")
        if message.value is None:
            message.reply()
        else:
            message.fail(message.value)

    child = streaming(serve)
    boom = Boom("over")

    async def scene(tree, seen):
        async with tree[child].stream(None) as stream:
            assert [item async for item in stream] == ["first"]
            assert [item async for item in stream] == []
        async with tree[child].stream(boom) as stream:
            assert await anext(stream) == "first"
            for _ in range(2):
                with pytest.raises(Boom) as raised:
                    await anext(stream)
                assert raised.value is boom

    grow(app(child), scene)


@pytest.mark.parametrize("way", ["messages", "stream"])
def test_taking_many_messages_or_items_in_a_row_lets_other_tasks_run(way):
    """R30: Taking an item that is already there is not a checkpoint each time, but every 64th in a row is one."""
    taken, turns = [], []

    async def count_turns():
        while True:
            turns.append(len(taken))
            await trio.lowlevel.checkpoint()

    async def serve(message):
        for number in range(200):
            message.send_nowait(number)
        message.reply()

    async def take(inbox):
        async for message in inbox:
            taken.append(message.value)  # noqa: PERF401 - the one after the other is the point

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count_turns)
            if way == "messages":
                for number in range(200):
                    tree["app/a"].send_nowait(number)
                while len(taken) < 200:
                    await trio.lowlevel.checkpoint()
            else:
                async with tree["app/a"].stream(None, buffer=200) as stream:
                    async for item in stream:
                        taken.append(item)  # noqa: PERF401 - as above
            nursery.cancel_scope.cancel()

    grow(app(streaming(serve) if way == "stream" else Child("a", take, mailbox=200)), scene)
    assert taken == list(range(200))
    gaps = [after - before for before, after in itertools.pairwise(turns)]
    assert 32 < max(gaps) <= 130  # in any order, so there may be two before the next turn
