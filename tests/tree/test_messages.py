"""What may go wrong with messages: who leaves, who comes too late, who waits for himself (R4, R20, R28–R30)."""

from __future__ import annotations

import gc
import itertools
import logging
import signal
import sys
import weakref
from contextlib import asynccontextmanager

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
    Pool,
    Restart,
    Resume,
    Stop,
    StreamMessage,
    Supervisor,
    current_child,
    events,
    open_tree,
)
from supervise._core import forest
from supervise._trio import address, driver, mailbox
from supervise.testing import run_virtual

from .scene import Boom, Kit, Other, Puppet, app, forever, quiet
from .scene import grow as grow_in_peace


async def nobody_hangs():
    """A system task: if all others wait for ever, this one ends the run."""
    await trio.sleep(80_000)
    raise AssertionError("somebody hangs")


def grow(spec, scene, *, seed=0):
    """As `scene.grow`, and a test that waits for ever fails."""

    async def guarded(tree, seen):
        trio.lowlevel.spawn_system_task(nobody_hangs)
        await scene(tree, seen)

    return grow_in_peace(spec, guarded, seed=seed)


class Halt(BaseException):
    """Not an `Exception`: nobody decides it."""


def worker(serve, name="a", *, mailbox=8, **options):
    """A child that serves one message after the other."""

    async def body(*arguments):
        async for message in arguments[-1]:
            await serve(message)

    return Child(name, body, mailbox=mailbox, **options)


class Shelf:
    """A child that takes messages and keeps them in hand."""

    def __init__(self, name="shelf", *, mailbox=8, **options):
        self.held = []
        self.inboxes = []
        self.spec = Child(name, self._body, mailbox=mailbox, **options)

    async def _body(self, *arguments):
        inbox = arguments[-1]
        self.inboxes.append(inbox)
        while True:
            self.held.append(await inbox.receive())


def steps(act):
    """How many functions of Python's and of C's `act()` calls, comprehensions included."""
    count = 0

    def note(_frame, event, _arg):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return count


# --- faults that nothing but a far-away test would have noticed


def test_a_lease_is_cancelled_when_an_incarnation_ends_the_long_way():
    """R28: not only where a plain restart is one step, also where a resource is left and a stop is asked for."""
    a, b = Puppet("a", resource=Kit()), Puppet("b")

    async def lease(ref, told):
        with pytest.raises(ChildRestarted):
            async with ref.lease():
                await trio.sleep_forever()
        told.append(ref.path)

    async def scene(tree, seen):
        told = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease, tree[a.spec], told)
            nursery.start_soon(lease, tree[b.spec], told)
            await quiet()
            a.fail()
            await quiet()
            assert told == ["app/a"]
            await tree[b.spec].stop()
            await quiet()
            assert told == ["app/a", "app/b"]

    grow(app(a, b), scene)


def test_who_waits_for_a_supervisor_to_be_ready_is_woken_when_it_is():
    """R28: the first time, and over a restart of it."""
    a = Puppet("a", 5, 5)
    inner = Supervisor("s", [a.spec], decider=Decider({Boom: Escalate}))
    told = []

    async def wait(tree):
        await tree[inner].ready()
        told.append(trio.current_time())

    async def main():
        trio.lowlevel.spawn_system_task(nobody_hangs)
        spec = app(inner, decider=Decider({Boom: Restart}))
        async with open_tree(spec, sinks=[]) as tree, trio.open_nursery() as nursery:
            await wait(tree)
            a.fail()
            await quiet()
            nursery.start_soon(wait, tree)
            await trio.sleep(6)

    run_virtual(main)
    assert told == [5, 10]


def test_a_sender_who_waits_for_room_in_a_stream_is_told_that_the_consumer_left():
    """R30: its `send` returns, and what it sends from then on is dropped."""
    told = []

    async def serve(message):
        await message.send(1)
        await message.send(2)
        told.append(message.left)
        await message.send(3)
        message.reply()
        told.append("on")

    child = worker(serve)

    async def scene(tree, seen):
        async with tree[child].stream(None, buffer=1):
            await quiet()
            assert told == []
        await quiet()
        assert told == [True, "on"]

    grow(app(child), scene)


@pytest.mark.parametrize("end", ["fail", "raise", "stop"])
def test_no_item_that_was_sent_before_a_failure_is_lost(end):
    """R30: the consumer gets all of them, also if it comes to them later, and then the failure."""

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
def test_a_caller_who_left_counts_no_more(form, where):
    """R30: its place is free at once, and whoever waited for one gets it."""
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
def test_a_message_that_was_put_back_wakes_a_reader_who_waits(how):
    """R30: it is served at once, not when the next message comes."""
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
    """R30: the body may say that more items may wait, and whoever waits for room gets it."""
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


def test_who_takes_several_at_a_time_lets_others_run_too():
    """R30: after 64 messages in a row there is a turn for the others, however they are taken."""
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


def test_who_has_waited_longest_gets_the_next_message():
    """R29: also if it was woken for a message whose caller left before it came to it."""
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


@pytest.mark.parametrize("kind", ["stopped", "full", "late"])
def test_an_error_that_cannot_be_made_of_a_text_is_ours_instead(kind):
    """R29: whoever waits is told in any case, and what went wrong with the class of the mailbox stands in a note."""

    class Odd(Exception):
        def __init__(self):
            raise Other("no text, please")

    shelf = Shelf(mailbox=Mailbox(1, **{kind: Odd}, deadline=lambda _: 1.0))

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
        assert "Odd could not be made of this text" in raised.value.__notes__[0]

    grow(app(shelf), scene)


# --- a callback that raises


@pytest.mark.parametrize("form", ["call", "stream", "late"])
def test_a_callback_for_a_caller_that_leaves_fails_its_child_if_it_raises(form):
    """R24, R30: with that exception, decided like any other; the caller has no part in it."""
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
def test_what_is_no_exception_in_a_callback_ends_the_tree(gone):
    """R4, R30: in order, and it leaves unchanged, also if the body that registered the callback is over."""
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


def test_a_callback_that_raises_when_no_body_is_there_is_logged(caplog):
    """R24, R30: nobody can fail with it, so that is where it is told; the caller and the tree go on."""

    def callback():
        raise Boom("nobody is there")

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
    assert "nobody is there" in caplog.text


def test_a_callback_may_cancel_whatever_it_likes():
    """R30: also a scope around the caller that is just leaving, and it is called once."""
    told = []

    async def serve(message):
        message.on_left(lambda: (told.append("left"), scope.cancel()))
        await trio.sleep_forever()

    child = worker(serve)
    scope = trio.CancelScope()

    async def scene(tree, seen):
        with scope, trio.move_on_after(1):
            await tree[child].call(None)
        assert told == ["left"]

    grow(app(child), scene)


# --- what must not be quadratic


@pytest.mark.parametrize(
    "what",
    ["senders leave", "callers leave", "queued leave", "streams leave", "close", "readers leave", "admit"],
)
def test_no_step_is_quadratic_in_those_who_wait(what):
    """R29: twice as many cost about twice the steps, counted, when they leave together or are all told at once."""

    def cost(number):
        counted = []

        async def ask(ref, form):
            try:
                if form == "stream":
                    async with ref.stream(0):
                        await trio.sleep_forever()
                else:
                    await getattr(ref, form)(0)
            except ChildStopped:
                pass

        async def body(inbox):
            if what == "readers leave":
                async with trio.open_nursery() as nursery:
                    scopes.append(nursery.cancel_scope)
                    for _ in range(number):
                        nursery.start_soon(inbox.receive)
            await gate.wait()
            while True:
                (await inbox.receive()).reply()

        child = Child("a", body, mailbox=number if what == "queued leave" else 1)
        gate, scopes = trio.Event(), []

        async def scene(tree, seen):
            ref = tree[child]
            form = {"senders leave": "send", "streams leave": "stream"}.get(what, "call")
            queue = ref._mailbox()
            async with trio.open_nursery() as nursery:
                if what == "readers leave":
                    counted.append(steps(scopes[0].cancel))
                    return
                for _ in range(number):
                    nursery.start_soon(ask, ref, form)
                await quiet()
                if what == "close":
                    counted.append(steps(lambda: queue.close(None)))
                    queue.open()
                elif what == "admit":
                    inbox = queue.inbox
                    counted.append(steps(lambda: [inbox.receive_nowait().reply() for _ in range(number)]))
                else:
                    counted.append(steps(nursery.cancel_scope.cancel))

        grow(app(child), scene)
        return counted[0]

    few, many = cost(200), cost(800)
    assert few > 200
    assert many < 4.4 * few, (few, many)


# --- who uses what is not theirs, or not any more


def test_two_tasks_at_one_stream():
    """R29: the second one to wait gets `trio.BusyResourceError`, as at Trio's own streams; the first gets the item."""
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
def test_a_stream_after_its_block(settled):
    """R29: `trio.ClosedResourceError`, for whoever comes and for whoever still waits there; no item is left in it."""
    told = []

    async def serve(message):
        await message.send(1)
        await message.send(2)
        if settled:
            message.reply()

    child = worker(serve)

    async def read(stream):
        with pytest.raises(trio.ClosedResourceError):
            await anext(stream)
        told.append("closed")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery, tree[child].stream(None) as stream:
            await quiet()
            assert await anext(stream) == 1
            if not settled:
                assert await anext(stream) == 2
                nursery.start_soon(read, stream)
                await quiet()
        await read(stream)
        assert told == ["closed"] * (1 if settled else 2)

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
    """R30: in one line, before anything is sent."""
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
    """R30: `on_loss` of a message in hand, and a maximum of messages."""
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
    """R30: by its `on_loss`, also for one that nobody waits for."""
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
    """R29, R30: a task that an old body left elsewhere takes no message of the next one, and is told."""
    shelf = Shelf(resource=Kit())
    told = []

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
            told.append("closed")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            (inbox,) = shelf.inboxes
            nursery.start_soon(read, inbox)
            await quiet()
            tree[shelf.spec].inject(Boom())
            await trio.sleep(1)
            assert told == ["closed"]
            for number in range(3):
                tree[shelf.spec].send_nowait(number)
            await read(inbox)
            assert told == ["closed"] * 2
            await quiet()
            assert [message.value for message in shelf.held] == [0, 1, 2]
            nursery.cancel_scope.cancel()

    grow(app(shelf, decider=Decider({Boom: directive})), scene)


@pytest.mark.parametrize("how", ["requeue", "restart", "resume"])
@pytest.mark.parametrize("form", ["call", "stream", "send"])
def test_who_has_no_longer_a_message_in_hand_cannot_answer_it(form, how):
    """R30: after it was put back another has it, and the same message is another object with the same memo."""
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
    """R29, R30: a task of an old body that waits for room in a stream is told when the message was put back."""
    told = []
    shelf = Shelf(mailbox=Mailbox(8, on_loss="requeue"))

    async def send(message):
        await message.send(1)
        with pytest.raises(RuntimeError, match="is not in hand"):
            await message.send(2)
        told.append("told")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery, tree[shelf.spec].stream(None, buffer=1) as stream:
            await quiet()
            nursery.start_soon(send, shelf.held[0])
            await quiet()
            tree[shelf.spec].inject(Boom())
            await quiet()
            assert told == ["told"]
            shelf.held[1].reply()
            assert [item async for item in stream] == [1]

    grow(app(shelf), scene)


def test_a_message_that_was_lost_cannot_be_put_back():
    """R30: its sender was told, or nobody waited; either way it is not served again."""
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


# --- those who wait for themselves


@pytest.mark.parametrize("form", ["call", "stream", "front", "full", "beside"])
def test_a_child_that_waits_at_its_own_mailbox_is_told(form):
    """R30: its own task serves the mailbox, so nobody would ever answer: `RuntimeError`, and it may go on."""
    told = []

    async def body(inbox):
        async with trio.open_nursery() as nursery:
            if form == "beside":
                nursery.start_soon(trio.sleep_forever)  # somebody who does not serve
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
                told.append(current_child().tree["app/s/a"].status().mailbox)
                message.reply()

    child = Child("a", body, mailbox=1)
    inner = Supervisor("s", [child], front=child)

    async def scene(tree, seen):
        await tree[child].call("go")
        assert await tree[child].call("still there") is None
        assert told == ([1] if form == "full" else [0])
        assert tree[child].status().mailbox == 0

    grow(app(inner), scene)


@pytest.mark.parametrize("who", ["main", "handler"])
def test_a_child_of_several_tasks_may_call_itself(who):
    """R30: as long as another task of its own serves the mailbox."""
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


def test_a_resource_that_calls_its_own_child_is_told():
    """R30: no body is there yet that could answer."""
    told = []

    @asynccontextmanager
    async def calls():
        with pytest.raises(RuntimeError, match="would wait for ever"):
            await current_child().tree["app/a"].call(1)
        told.append("told")
        yield

    child = Child("a", forever, resource=calls, mailbox=8)
    grow(app(child), lambda tree, seen: quiet())
    assert told == ["told"]


# --- a stop that is asked for


def test_a_loop_over_an_inbox_ends_when_a_stop_is_asked_for():
    """R20, R30: what is queued is served first, within `drain`; a worker needs no code of its own for it."""
    served, told = [], []

    async def body(inbox):
        async for message in inbox:
            await trio.sleep(1)
            served.append(message.value)
            message.reply(message.value)
        told.append(trio.current_time())

    child = Child("a", body, mailbox=8, drain=30)

    async def scene(tree, seen):
        for number in range(3):
            tree[child].send_nowait(number)
        await quiet()
        await tree[child].stop()
        assert trio.current_time() == 3
        assert served == [0, 1, 2]
        assert told == [3]
        assert seen.of(events.StopError) == []

    grow(app(child), scene)


def test_who_waits_in_a_loop_over_an_inbox_is_woken_by_the_stop():
    """R20, R30: with an empty queue the stop takes no time, however long the child might drain."""
    children = [worker(forever, name, drain=30) for name in "abc"]

    async def scene(tree, seen):
        await quiet()
        await tree.root.stop()
        assert trio.current_time() == 0

    grow(app(*children), scene)


def test_without_drain_a_loop_over_an_inbox_is_cancelled_as_ever():
    """R20: nothing runs behind the loop then; a loop that is shielded ends all the same."""
    behind = []

    async def body(inbox, shielded):
        with trio.CancelScope(shield=shielded):
            async for _ in inbox:
                pass
            behind.append(shielded)

    children = [Child(f"a{on}", body, mailbox=8, args=(on,)) for on in (False, True)]
    grow(app(*children), lambda tree, seen: quiet())
    assert behind == [True]


def test_receive_waits_on_when_a_stop_is_asked_for():
    """R20: only a loop ends by itself; `receive` and `receive_many` are cancelled when the drain is over."""
    shelf = Shelf(drain=5)

    async def scene(tree, seen):
        await quiet()
        await tree[shelf.spec].stop()
        assert trio.current_time() == 5

    grow(app(shelf), scene)


def test_what_is_sent_to_a_child_that_has_drained_is_not_lost_silently():
    """R20, R29: it waits for the next incarnation, or its sender is told that there is none."""
    served = []

    async def body(inbox):
        async for message in inbox:
            served.append((current_child().incarnation, message.value))
            message.reply(message.value)
        await trio.sleep(1)

    child = Child("a", body, mailbox=8, drain=30)
    a = Puppet("sibling")
    told = []

    async def ask(ref, value):
        try:
            told.append(await ref.call(value))
        except ChildStopped:
            told.append("stopped")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            a.fail()
            await trio.sleep(0.5)
            nursery.start_soon(ask, tree[child], "kept")
            await trio.sleep(1)
            assert served == [(2, "kept")]
            nursery.start_soon(tree[child].stop)
            await trio.sleep(0.5)
            nursery.start_soon(ask, tree[child], "told")
        assert told == ["kept", "stopped"]

    grow(app(a, child, strategy="one_for_all"), scene)


def test_a_loop_around_a_loop_over_an_inbox_lets_the_others_run():
    """R20: when a stop was asked for the inner one ends each time, but never without a turn for the others."""

    async def body(inbox):
        while True:
            async for _ in inbox:
                pass

    child = Child("a", body, mailbox=8, drain=0.05)

    async def main():  # on the real clock: a virtual one stands still while somebody always runs
        async with open_tree(app(child), sinks=[]) as tree:
            await tree[child].ready()
            await tree[child].stop()

    trio.run(main)


# --- down for good


def test_a_condemned_child_waits_for_the_restart_of_its_supervisor():
    """R10, R29: while that backs off, a start of the child is pending, so it is not down for good."""
    a, b = Puppet("a"), Shelf("b")
    inner = Supervisor(
        "s",
        [a.spec, b.spec],
        decider=Decider({Boom: Escalate, Other: Stop}),
        backoff=Backoff(initial=10, jitter=0),
    )
    told = []

    async def ask(ref):
        told.append(await ref.call("hello"))

    async def scene(tree, seen):
        ref = tree[b.spec]
        ref.inject(Other())
        await quiet()
        with pytest.raises(ChildStopped):
            await ref.call("refused")
        a.fail()
        await trio.sleep(5)
        assert tree[inner].status().state == "restarting"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ref)
            await trio.sleep(6)
            b.held[-1].reply("answered")
        assert told == ["answered"]

    grow(app(inner, decider=Decider({Boom: Restart})), scene)


@pytest.mark.parametrize("cancelled", [None, "stop", "above"])
@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_child_stopped_by_hand_waits_with_its_group(strategy, cancelled):
    """R10, R29: a group restart revives it, so it is down for good only when nobody waits for that any more."""
    a, b = Puppet("a", backoff=Backoff(initial=10, jitter=0)), Shelf("b")
    inner = Supervisor("s", [a.spec, b.spec], strategy=strategy)
    told = []

    async def ask(what, *arguments):
        try:
            told.append(await what(*arguments))
        except ChildStopped:
            told.append("stopped")

    async def scene(tree, seen):
        ref = tree[b.spec]
        await ref.ready()
        await ref.stop()
        await ask(ref.call, 0)
        assert told == ["stopped"]
        a.fail()
        await quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ref.call, 1)
            nursery.start_soon(ask, ref.ready)
            nursery.start_soon(ask, ref.ended)
            await quiet()
            assert told == ["stopped"]
            if cancelled is not None:
                await (tree[inner] if cancelled == "above" else tree[a.spec]).stop()
                await quiet()
                assert sorted(told, key=str) == [None, "stopped", "stopped", "stopped"]
            else:
                await trio.sleep(11)
                assert told == ["stopped", None]
                b.held[-1].reply("answered")
                await quiet()
                assert told == ["stopped", None, "answered"]
                nursery.cancel_scope.cancel()

    grow(app(inner), scene)


def test_what_was_added_to_a_supervisor_is_gone_while_that_backs_off():
    """R25, R29: it is lost with the restart, so nobody waits for it; what is declared below is waited for."""
    a, b = Puppet("a"), Puppet("b")
    inner = Supervisor("s", [a.spec], backoff=Backoff(initial=10, jitter=0), limit=None)

    async def scene(tree, seen):
        added = await tree[inner].add(Child("added", forever, mailbox=4))
        await tree[b.spec].ready()
        a.fail(Other())
        await quiet()
        assert tree[inner].status().state == "restarting"
        for wait in (added.ready, added.ended, lambda: added.call(1)):
            with trio.fail_after(1):
                try:
                    assert await wait() is None
                except ChildStopped:
                    pass
        assert await tree[a.spec].ready() == 2
        assert trio.current_time() == 10

    decider = Decider({Other: Escalate})
    inner = Supervisor("s", [a.spec], backoff=Backoff(initial=10, jitter=0), decider=decider)
    grow(app(inner, b, decider=Decider({Other: Restart})), scene)


def test_a_node_that_starts_again_by_hand_is_waited_for_below_it_too():
    """R29: from the moment at which its supervisor starts, though its own turn comes later."""
    slow, echo = Puppet("slow", 0, 5), worker(forever, "echo")
    inner = Supervisor("s", [slow.spec, echo])

    async def scene(tree, seen):
        ref = tree[echo]
        await ref.send(1)
        await tree[inner].stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree[inner].start)
            await trio.sleep(1)
            await ref.send(2)
            await ref.ready()
            assert trio.current_time() == 5

    grow(app(inner), scene)


# --- growth and depth


def test_a_late_word_to_a_member_that_is_gone_leaves_nothing_behind():
    """R31: neither `call` nor `ready` nor `ended` nor `status` keeps an address for ever."""
    pool = Pool("pool", Child("m", forever, mailbox=4, restart="temporary"), limit=None)

    async def scene(tree, seen):
        kept = None
        for number in range(20):
            member = await tree[pool].add()
            await member.stop()
            with pytest.raises(ChildStopped):
                await member.call(1)
            with pytest.raises(ChildStopped):
                await member.ready()
            with pytest.raises(ChildStopped):
                member.send_nowait(1)
            with pytest.raises(ChildStopped):
                member.status()
            assert await member.ended() is None
            if number == 5:
                kept = len(tree._driver.addresses)
        assert len(tree._driver.addresses) == kept

    grow(app(pool), scene)


def test_no_answered_message_waits_for_the_garbage_collector():
    """R31: a call and its message know each other only as long as it is in hand."""

    class Payload:
        pass

    shelf = Shelf()
    left = []

    async def ask(ref):
        payload = Payload()
        left.append(weakref.ref(payload))
        with trio.move_on_after(1):
            try:
                await ref.call(payload)
            except Other:
                pass

    async def scene(tree, seen):
        for end in ("reply", "fail", "requeue", "leave"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, tree[shelf.spec])
                await quiet()
                if end == "fail":
                    shelf.held[-1].fail(Other())
                elif end != "leave":
                    getattr(shelf.held[-1], end)()
                    await quiet()
                if end == "requeue":
                    shelf.held[-1].reply()
            shelf.held.clear()
            assert [payload() for payload in left if payload() is not None] == [], end

    gc.collect()
    gc.disable()
    try:
        grow(app(shelf), scene)
    finally:
        gc.enable()


DEPTH = 5_000


def test_a_mailbox_may_lie_as_deep_as_one_likes():
    """R29: an address is made without recursion, and without a step for each level above it that is known."""

    async def main():
        made = driver.Driver(Supervisor("app", [], limit=None), [])
        path = "app" + "/s" * DEPTH + "/x"
        made._keep(address.Address(path))
        assert len(made.addresses) == DEPTH + 2
        assert steps(lambda: made._keep(address.Address(f"{path}2"))) < 30

    trio.run(main)


# --- a Ctrl-C


class Interrupt:
    """Sends SIGINT at the so-manieth line that is carried out in the code under test, while the block runs."""

    FILES = (mailbox.__file__, address.__file__, driver.__file__, forest.__file__)
    NAMES = (
        "Address",
        "Answer",
        "address",
        "_keep",
        "mailbox_address",
        "gone",
        "_changed",
        "_gone",
        "_left",
    )

    def __init__(self, at):
        self.at, self.lines, self.armed = at, 0, True

    def __call__(self, frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename in self.FILES:
            parts = code.co_qualname.split(".")
            if code.co_filename == mailbox.__file__ or set(parts) & set(self.NAMES):
                return self._line
        return None

    def _line(self, frame, event, _):
        if event == "line" and self.armed:
            self.lines += 1
            if self.lines == self.at:
                self.armed = False
                signal.raise_signal(signal.SIGINT)
        return self._line


async def talk(tree, interrupt):
    """A bit of everything; what is in the background goes on for ever."""
    echo, busy = tree["app/echo"], tree["app/busy"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.call, "held")
        nursery.start_soon(busy.send, "waits for room")
        assert await echo.call(1) == 1
        await echo.ready()
        async with echo.lease():
            await echo.send(2)
        async with echo.stream(3, buffer=1) as stream:
            assert [item async for item in stream] == [0, 1, 2]
        async with echo.stream(3, buffer=1) as stream:
            await anext(stream)
        with trio.move_on_after(1):
            await busy.call("leaves")
        with pytest.raises(CallLost):
            await echo.call("boom")
        added = await tree.root.add(Child("added", forever, mailbox=1))
        await added.stop()
        await added.ended()
        with pytest.raises(ChildStopped):
            await added.call(1)
        interrupt.armed = False
        nursery.cancel_scope.cancel()


async def _echo(inbox):
    async for message in inbox:
        if message.value == "boom":
            raise Boom
        if hasattr(message, "send"):
            for number in range(3):
                await message.send(number)
        message.reply(message.value)


async def _busy(inbox):
    await inbox.receive()
    await trio.sleep_forever()


def interrupted(at):
    """What the program comes to if a SIGINT comes at that line; whether it came, and what had started and stopped."""
    interrupt, seen = Interrupt(at), []

    async def main():
        trio.lowlevel.spawn_system_task(nobody_hangs)
        spec = Supervisor(
            "app", [Child("echo", _echo, mailbox=1), Child("busy", _busy, mailbox=1)], limit=None
        )
        async with open_tree(spec, sinks=[seen.append]) as tree:
            await talk(tree, interrupt)

    before = sys.gettrace()
    raised = None
    sys.settrace(interrupt)
    try:
        run_virtual(main, seed=1)
    except BaseException as exc:
        raised = exc
    finally:
        sys.settrace(before)
    return interrupt, raised, seen


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler,
    reason="somebody else handles SIGINT here",
)
def test_a_ctrl_c_at_any_line_of_a_mailbox_leaves_bare_and_nobody_hangs():
    """R4, R29: under plain `trio.run`, at every line of messages, calls, streams, inboxes and addresses."""
    first, raised, _ = interrupted(-1)
    assert raised is None
    assert first.lines > 300
    for at in range(1, first.lines + 1):
        interrupt, raised, seen = interrupted(at)
        assert interrupt.lines >= at, at
        if isinstance(raised, BaseExceptionGroup):  # by the nursery of `talk`, none of ours
            (raised,) = raised.exceptions
        assert type(raised) is KeyboardInterrupt, (at, raised)
        started = [event.path for event in seen if isinstance(event, events.Starting)]
        stopped = [event.path for event in seen if isinstance(event, events.Stopped)]
        assert sorted(started) == sorted(stopped), at
        assert stopped[-1] == "app"


# --- names that nobody has


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("app/ecko", "tree 'app' has no node 'app/ecko'; did you mean 'app/echo'?"),
        ("echo", "tree 'app' has no node 'echo'; did you mean 'app/echo'? A path begins with the root"),
        ("app/inner", "tree 'app' has no node 'app/inner'; did you mean 'app/s/inner'?"),
        ("zzz", "tree 'app' has no node 'zzz'; a path begins with the root, 'app'"),
        ("app/s/added2", "tree 'app' has no node 'app/s/added2'; did you mean 'app/s/added'?"),
        ("app/zzz", "tree 'app' has no node 'app/zzz'"),
    ],
)
def test_a_wrong_path_is_told_with_a_near_one(path, said):
    """R28: what may have been meant, of what was declared and of what was added."""
    inner = Supervisor("s", [Child("inner", forever)])

    async def scene(tree, seen):
        await tree[inner].add(Child("added", forever))
        with pytest.raises(KeyError) as raised:
            tree[path]
        assert raised.value.args == (said,)

    grow(app(Child("echo", forever), inner), scene)


def test_a_wrong_spec_is_told_with_where_its_name_stands():
    """R28: it is another value, though it may look the same."""

    async def scene(tree, seen):
        with pytest.raises(KeyError) as raised:
            tree[Child("echo", forever)]
        assert raised.value.args == (
            "tree 'app' has no node for the spec of 'echo'; another spec of that name stands at 'app/echo'",
        )
        with pytest.raises(TypeError, match="takes a path or a spec, got 5"):
            tree[5]

    grow(app(Child("echo", forever)), scene)


# --- at the end of the stack


@pytest.mark.parametrize("who", ["caller", "server", "consumer"])
def test_who_calls_himself_without_end_takes_nobody_with_him(who):
    """R29, R30: a RecursionError may come of any call that we make for him; whoever waits at a mailbox is woken all the same."""

    async def calling():
        await current_child().tree["app/echo"].call(1)
        await calling()

    async def serving(inbox):
        message = await inbox.receive()

        async def sending():
            await message.send(1)
            await sending()

        await sending()

    async def consuming():
        async with current_child().tree["app/echo"].stream(1) as items:

            async def taking():
                await anext(items)
                await taking()

            await taking()

    async def echo(inbox):
        async for message in inbox:
            if isinstance(message, StreamMessage):
                while not message.left:
                    await message.send(1)
            else:
                message.reply(message.value)

    async def scene(tree, seen):
        if who == "server":
            with pytest.raises(CallLost), trio.fail_after(1):
                async with tree["app/bad"].stream(1) as items:
                    async for _ in items:
                        pass
        await trio.sleep(1)
        assert isinstance(seen.of(events.Failed, "app/bad")[0].exc, RecursionError)
        with trio.fail_after(1):
            assert await tree["app/echo"].call(2) == 2

    body = {"caller": calling, "server": serving, "consumer": consuming}[who]
    mailbox = 1 if who == "server" else None
    bad = Child("bad", body, mailbox=mailbox, restart="temporary")
    grow(app(Child("echo", echo, mailbox=1), bad), scene)
