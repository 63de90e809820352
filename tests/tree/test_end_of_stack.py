"""Messages near the end of Python's stack: a RecursionError may strike at any call, and no task may sleep for ever (R24, R30)."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import trio

from supervise import CallLost, Child, Mailbox, current_child, events

from .scene import app, quiet
from .talk import grow

LEFT = range(2, 40)
"""How many calls are left when the message is touched."""


def _depth():
    frame, depth = sys._getframe(), 0
    while frame:
        frame, depth = frame.f_back, depth + 1
    return depth


def _deep(left, act):
    """Call something when so many calls are left."""

    def further(levels):
        return act() if levels <= 0 else further(levels - 1)

    return further(sys.getrecursionlimit() - _depth() - left)


async def _deep_in_tasks(left, act):
    async def further(levels):
        return await act() if levels <= 0 else await further(levels - 1)

    return await further(sys.getrecursionlimit() - _depth() - left)


@pytest.mark.parametrize("left", LEFT)
def test_a_consumer_near_the_end_of_its_stack_leaves_no_sender_asleep(left):
    """R30: reading the next item wakes the body that waits for room, or raises and takes nothing."""
    got = []

    async def body(inbox):
        async for message in inbox:
            for number in range(9):
                await message.send(number)
            message.reply()

    async def scene(tree, _):
        async with tree["app/a"].stream(1, buffer=2) as stream:
            await quiet()
            try:
                got.append(await _deep_in_tasks(left, stream.__anext__))
            except RecursionError:
                pass
            with trio.move_on_after(1):
                got.extend([item async for item in stream])

    grow(app(Child("a", body, mailbox=9)), scene)
    assert got == list(range(9))


@pytest.mark.parametrize("left", LEFT)
def test_a_body_near_the_end_of_its_stack_makes_room_or_fails(left):
    """R30: a larger buffer wakes the senders, or the body fails and its consumer is informed."""
    ends = []

    async def body(inbox):
        async for message in inbox:
            message.send_nowait(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(message.send, 1)
                await quiet()
                _deep(left, partial(setattr, message, "size", 5))
            message.reply()

    async def scene(tree, _):
        try:
            async with tree["app/a"].stream(1, buffer=1) as stream:
                await trio.sleep(1)
                ends.append([item async for item in stream])
        except CallLost:
            ends.append("lost")

    grow(app(Child("a", body, mailbox=9)), scene)
    assert ends in ([[0, 1]], ["lost"])


@pytest.mark.parametrize("left", LEFT)
def test_a_message_that_cannot_be_taken_stays_in_its_queue(left):
    """R29, R30: the next incarnation takes it, and the counts stay right."""
    failed = []

    async def body(inbox):
        if not failed:
            failed.append(True)
            await trio.sleep(1)
            message = _deep(left, inbox.receive_nowait)
            message.reply("ok")
        async for message in inbox:
            message.reply("ok")

    async def scene(tree, seen):
        answers = []

        async def call():
            try:
                answers.append(await tree["app/a"].call(1))
            except CallLost:
                answers.append("lost")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        assert answers in (["ok"], ["lost"])
        assert tree.status().children[0].mailbox == 0
        assert all(isinstance(one.exc, RecursionError) for one in seen.of(events.Failed))

    grow(app(Child("a", body, mailbox=9)), scene)


@pytest.mark.parametrize("left", [*LEFT, 150, 250])
def test_a_message_that_cannot_be_put_back_stays_in_hand(left):
    """R30, R37: `requeue` is refused as a whole where it could break off in its middle."""
    answers = []

    async def first(inbox):
        message = await inbox.receive()
        try:
            _deep(left, message.requeue)
        except RecursionError:
            message.reply("kept")
        await trio.sleep_forever()

    async def second(inbox):
        async for message in inbox:
            message.reply("second")

    async def scene(tree, _):
        with trio.move_on_after(5):
            answers.append(await tree["app"].call(1))

    spec = app(Child("a", first, mailbox="shared"), Child("b", second, mailbox="shared"), mailbox=9)
    grow(spec, scene)
    assert answers == ["second" if left > 200 else "kept"]


@pytest.mark.parametrize("left", [*LEFT, 150, 250])
def test_no_stream_is_opened_where_leaving_it_might_break_off(left):
    """R30: it is refused before its message is queued."""
    heard = []

    async def body(inbox):
        async for message in inbox:
            message.on_left(lambda: heard.append("left"))
            heard.append("begun")

    async def scene(tree, _):
        async def stream():
            async with tree["app/a"].stream(1):
                await quiet()

        try:
            await _deep_in_tasks(left, stream)
        except RecursionError:
            pass
        await quiet()
        assert heard == (["begun", "left"] if left > 220 else [])

    grow(app(Child("a", body, mailbox=9)), scene)


def test_a_sender_near_the_end_of_its_stack_has_no_key(caplog):
    """R24, R37: The affinity is not asked there: it would fail for the depth of its caller, and be dropped for ever."""

    def affinity(value, levels=300):
        return value if levels == 0 else affinity(value, levels - 1)

    async def body(inbox):
        async for message in inbox:
            message.reply(current_child().path)

    async def scene(tree, _):
        call = tree["app"].call
        assert await call("x") == "app/a"
        await quiet()
        _deep(250, partial(tree["app"].send_nowait, "x"))
        await quiet()
        assert [await call("x"), await call("x"), await call("x")] == ["app/b"] * 3

    children = [Child(name, body, mailbox="shared") for name in "abc"]
    grow(app(*children, mailbox=Mailbox(9, affinity=affinity)), scene)
    assert not caplog.records


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("shared", [False, True])
def test_a_body_that_takes_a_message_near_the_end_of_its_stack_leaves_no_sender_asleep(left, shared):
    """R29: A message that is taken makes room for the sender that has waited longest; or nothing is taken."""
    taken = []

    async def body(inbox):
        await trio.sleep(1)
        try:
            taken.append(_deep(left, inbox.receive_nowait))
        except RecursionError:
            pass
        while True:
            taken.append(await inbox.receive())

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(tree["app" if shared else "app/a"].send, number)
        await quiet()

    child = Child("a", body, mailbox="shared" if shared else 1)
    grow(app(child, mailbox=1 if shared else None), scene)
    assert sorted(message.value for message in taken) == list(range(4))


@pytest.mark.parametrize("left", LEFT)
@pytest.mark.parametrize("shared", [False, True])
def test_a_task_that_waits_near_the_end_of_its_stack_leaves_its_message_to_the_next_one(left, shared):
    """R29, R37: It has been woken for a message, cannot take it, and another task of the child, or a sibling, waits."""
    taken = []

    async def deep(inbox):
        try:
            taken.append(await _deep_in_tasks(left, inbox.receive))
        except RecursionError:
            pass

    async def shallow(inbox):
        await trio.sleep(1)
        while True:
            taken.append(await inbox.receive())

    async def both(inbox):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(deep, inbox)
            nursery.start_soon(shallow, inbox)

    async def scene(tree, _):
        await trio.sleep(2)
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(tree["app" if shared else "app/a"].send, number)
        await quiet()

    if shared:
        children = [
            Child(name, body, mailbox="shared", restart="temporary")
            for name, body in (("a", deep), ("b", shallow))
        ]
        grow(app(*children, mailbox=1), scene)
    else:
        grow(app(Child("a", both, mailbox=1)), scene)
    assert sorted(message.value for message in taken) == list(range(4))


@pytest.mark.parametrize("left", LEFT)
def test_a_body_that_waits_for_room_near_the_end_of_its_stack_leaves_it_to_the_next_sender(left):
    """R30: It has been woken for the room, and cannot use it."""
    got = []

    async def body(inbox):
        async for message in inbox:

            async def deep(message):
                try:
                    await _deep_in_tasks(left, partial(message.send, "deep"))
                except RecursionError:
                    got.append("deep")

            message.send_nowait("first")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deep, message)
                await trio.sleep(1)
                nursery.start_soon(message.send, "second")
            message.reply()

    async def scene(tree, _):
        async with tree["app/a"].stream(1, buffer=1) as stream:
            await trio.sleep(2)
            with trio.move_on_after(1):
                got.extend([item async for item in stream])

    grow(app(Child("a", body, mailbox=9)), scene)
    assert sorted(got) == ["deep", "first", "second"]
