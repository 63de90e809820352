"""`Mailbox(carry=…)`: what goes with a message from its sender's task to the body that takes it (R30)."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import Child, Mailbox, Supervisor

from .scene import Boom, app, forever, grow, quiet

WHO = ContextVar("who", default="nobody")


def carrying(**options):
    return Mailbox(8, carry=WHO.get, **options)


def test_every_kind_of_message_carries_what_its_sender_has():
    """R30: A call, a stream, and a message without a reply, whether its sender waits for room or not."""
    got = []

    async def body(inbox):
        async for message in inbox:
            got.append((message.value, message.carried))
            message.reply()

    async def scene(tree, _):
        ref = tree["app/a"]
        for number, send in enumerate((ref.call, ref.send, ref.send_nowait, ref.send_nowait)):
            WHO.set(f"sender {number}")
            result = send(number)
            if result is not None:
                await result
        WHO.set("streams")
        async with ref.stream(4) as stream:
            async for _ in stream:
                pass
        async with trio.open_nursery() as nursery:
            for number in range(5, 20):
                WHO.set(f"sender {number}")
                nursery.start_soon(ref.send, number)
            WHO.set("later")
        await quiet()

    grow(app(Child("a", body, mailbox=carrying())), scene)
    assert sorted(got) == sorted(
        [(4, "streams"), *((number, f"sender {number}") for number in range(20) if number != 4)]
    )


@given(
    st.lists(st.sampled_from(["call", "send"]), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_it_stays_with_its_message_when_that_is_put_back(kinds, fails, shared, seed):
    """R30, R37: By the body, or because its incarnation ends; and the messages keep their order."""
    got, before = [], []

    async def body(inbox):
        async for message in inbox:
            if len(before) < len(kinds):
                before.append(message.value)
                if fails:
                    raise Boom
                message.requeue()
                continue
            got.append((message.value, message.carried))
            message.reply()

    async def scene(tree, _):
        ref = tree["app"] if shared else tree["app/a"]
        async with trio.open_nursery() as nursery:
            for number, kind in enumerate(kinds):
                WHO.set(number)
                nursery.start_soon(getattr(ref, kind), number)
                await quiet()
        await quiet()

    mailbox = carrying(on_loss="requeue")
    spec = (
        Supervisor("app", [Child("a", body, mailbox="shared")], mailbox=mailbox, limit=None)
        if shared
        else app(Child("a", body, mailbox=mailbox), limit=None)
    )
    grow(spec, scene, seed=seed)
    assert sorted(got) == [(number, number) for number in range(len(kinds))]


def test_a_message_that_carries_counts_as_one_without():
    """R29, R8: Its mailbox is as full, its body has made progress, and one that is lost is not kept in hand for ever."""

    got = []

    async def body(inbox):
        got.extend([(await inbox.receive()).carried for _ in range(3)])
        got.append((len(inbox.held), inbox.progressed))
        await trio.sleep_forever()

    async def scene(tree, _):
        ref = tree["app/a"]
        for number in range(3):
            ref.send_nowait(number)
        assert ref.status().mailbox == 3
        await quiet()
        assert (ref.status().mailbox, ref.status().handled) == (0, 3)
        assert got == ["nobody", "nobody", "nobody", (0, True)]

    grow(app(Child("a", body, mailbox=carrying())), scene)


def test_what_it_raises_the_sender_gets():
    """R30: And nothing is queued."""

    def carry():
        raise Boom("no context")

    async def scene(tree, _):
        ref = tree["app/a"]
        for send in (ref.call, ref.send, ref.send_nowait):
            with pytest.raises(Boom):
                result = send(1)
                await result
        with pytest.raises(Boom):
            async with ref.stream(1):
                pass
        assert ref.status().mailbox == 0

    grow(app(Child("a", forever, mailbox=Mailbox(carry=carry))), scene)


def test_without_it_nothing_is_carried():
    """R30: And a function that is awaited, or takes arguments, is refused where it is declared."""

    async def body(inbox):
        message = await inbox.receive()
        message.reply(message.carried)
        await trio.sleep_forever()

    async def scene(tree, _):
        assert await tree["app/a"].call(1) is None

    grow(app(Child("a", body, mailbox=2)), scene)
    for wrong in (forever, 3, lambda x: x):
        with pytest.raises(TypeError, match="a mailbox's carry"):
            Mailbox(carry=wrong)


def test_an_address_that_has_been_used_carries_what_a_new_declaration_adds():
    """R30, R38: And nothing once that is declared no more."""
    got = []

    async def body(inbox):
        async for message in inbox:
            got.append(message.carried)
            message.reply()

    def declared(**options):
        return app(Child("a", body, mailbox=Mailbox(8, **options)))

    async def scene(tree, _):
        ref = tree["app/a"]
        ref.send_nowait(1)
        for options in ({"carry": lambda: "something"}, {}):
            await tree.adopt(declared(**options))
            ref.send_nowait(2)
            await ref.send(3)
        await quiet()

    grow(declared(), scene)
    assert got == [None, "something", "something", None, None]
