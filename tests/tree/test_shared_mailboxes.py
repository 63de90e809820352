"""A mailbox that belongs to a supervisor, and whose messages its children take (R37). See test_random_messages too."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Limit,
    Mailbox,
    MailboxFull,
    Pool,
    Refused,
    Restart,
    Resume,
    StartFailed,
    Stop,
    events,
)

from .scene import Boom, Kit, Other, Puppet, app, nothing, quiet
from .talk import Shelf, Worker, crew, grow, steps, worker


def test_each_message_goes_to_one_child_in_order():
    """R37: Children that wait take one message each, the longest waiting first; a child at work takes no message of another."""
    got = []

    async def scene(tree, _):
        for number in range(9):
            tree["app"].send_nowait(number)
        await trio.sleep(3)
        assert [value for _, value in got] == list(range(9))
        assert Counter(name for name, _ in got) == {"a": 3, "b": 3, "c": 3}

    grow(crew(got, seconds=0.5), scene)


@settings(max_examples=60, deadline=None)
@given(st.random_module(), st.integers(2, 5), st.integers(1, 20), st.integers(0, 3))
def test_a_burst_is_spread_whatever_the_schedule(schedule, children, messages, seed):
    """R37: Each child that waits gets one message, however soon the other children are done with theirs."""
    got = []

    async def scene(tree, _):
        for number in range(messages):
            tree["app"].send_nowait(number)
        await quiet()
        assert len({name for name, _ in got}) == min(messages, children)
        assert [value for _, value in got] == list(range(messages))

    grow(crew(got, "abcde"[:children]), scene, seed=seed)


def test_the_child_that_has_waited_longest_is_next():
    """R37: Children are served in the order in which they began to wait, not in start order."""
    got = []

    async def scene(tree, _):
        assert [await tree["app"].call(number) for number in range(4)] == ["a", "b", "c", "a"]

    grow(crew(got), scene)


def test_a_shared_mailbox_outlives_every_child():
    """R29, R37: Messages wait while all children are on their way back, and are served by the first that is there."""
    got = []
    slow = {"backoff": Backoff(initial=5, factor=1)}

    async def scene(tree, _):
        for name in "ab":
            tree[f"app/{name}"].inject(Boom())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app"].call, 1)
            await quiet()
            assert (got, tree["app"].status().mailbox) == ([], 1)
            await tree["app/b"].start()
        assert got == [("b", 1)]
        assert (tree["app"].status().mailbox, tree["app"].status().handled) == (0, 1)
        assert tree["app/b"].status().mailbox is None

    grow(crew(got, "ab", options=slow), scene)


def test_callers_are_answered_when_the_last_child_is_down_for_good():
    """R29, R37: No child is left that could serve them, and one that is started again serves those to come."""
    got, errors = [], []

    async def scene(tree, _):
        async def asks(value):
            with pytest.raises(ChildStopped, match="'app' is down for good") as caught:
                await tree["app"].call(value, on_loss="requeue")
            errors.append(caught.value.__cause__)

        tree["app/b"].inject(Boom())
        assert isinstance(await tree["app/b"].ended(), Boom)
        assert await tree["app"].call("served") == "a"
        async with trio.open_nursery() as nursery:
            for value in range(2):
                nursery.start_soon(asks, value)
                await quiet()
            tree["app/a"].inject(Other())
        await asks("late")
        assert [type(error) for error in errors] == [Other, Other, Other]
        await tree["app/b"].start()
        assert await tree["app"].call("again") == "b"
        await tree["app/b"].stop()
        await tree["app/b"].remove()
        await tree["app"].add(Worker("c", got).spec)
        assert await tree["app"].call("and again") == "c"

    grow(crew(got, "ab", seconds=1.0, decider=Decider({Boom: Stop, Other: Stop})), scene)


def test_a_mailbox_may_be_shared_through_supervisors():
    """R37: A supervisor that shares passes the mailbox on; each child below has a limit and a supervisor of its own."""
    got = []
    one, two = (
        app(Worker(name, got, seconds=1.0), name=f"over-{name}", mailbox="shared", front=name, limit=None)
        for name in "ab"
    )

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            for value in range(4):
                nursery.start_soon(tree["app"].call, value)
                await quiet()
        assert got[:2] == [("a", 0), ("b", 1)]
        assert sorted(value for _, value in got) == [0, 1, 2, 3]
        await tree["app/over-a"].ready()
        async with tree["app/over-a"].lease():
            with pytest.raises(
                TypeError, match="'app/over-a/a' has no mailbox of its own: send to 'app/over-a'"
            ):
                await tree["app/over-a"].call(5)
        await tree["app/over-a"].stop()
        assert await tree["app"].call(6) == "b"
        await tree["app/over-b/b"].stop()
        with pytest.raises(ChildStopped, match="'app' is down for good"):
            await tree["app"].call(7)
        await tree["app/over-a"].start()
        assert await tree["app"].call(8) == "a"

    grow(app(one, two, mailbox=9), scene)


def test_a_mailbox_that_is_shared_further_must_be_there():
    """R37: A supervisor that shares stands below one that has a mailbox, or shares one too."""
    inner = app(Worker("a", []), name="inner", mailbox="shared")
    with pytest.raises(
        ValueError, match="child 'inner' is to take the messages of its supervisor, which has no mailbox"
    ):
        app(inner)
    with pytest.raises(
        ValueError, match="the root 'inner' is to share the mailbox of its supervisor, but has none"
    ):
        grow(inner, None)


def test_a_mailbox_that_no_child_shares_yet_waits_for_one():
    """R37: It is served by the first that is added, also if another child is down for good."""
    got = []

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app"].call, 1)
            await tree["app/other"].stop()
            await quiet()
            await tree["app"].add(Worker("a", got).spec)
        assert got == [("a", 1)]

    grow(app(Puppet("other"), mailbox=1), scene)


@pytest.mark.parametrize("directive", [Resume, Restart, Stop])
def test_what_a_failed_child_had_in_hand_is_kept_until_its_failure_is_decided(directive):
    """R30, R37: A child that is resumed takes it again, before any sibling; otherwise it goes back to the head of the queue."""
    got = []
    first = Shelf("first", mailbox="shared", resource=nothing)

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            scopes = [trio.CancelScope() for _ in range(4)]

            async def asks(number):
                with scopes[number]:
                    await tree["app"].call(number, on_loss="requeue")

            for number in range(4):
                nursery.start_soon(asks, number)
                await quiet()
            await tree["app"].add(Worker("second", got).spec)
            nursery.start_soon(tree["app"].add, Puppet("slow", 5.0).spec)
            await quiet()
            tree["app/first"].inject(Boom())  # to be decided when the slow one is up
            await quiet()
            scopes[2].cancel()
            await quiet()
            assert (got, len(first.inboxes), tree["app"].status().mailbox) == ([], 1, 3)
            assert await tree["app"].call("meanwhile") == "second"
            await trio.sleep(6)
            again = [message.value for message in first.held[4:]]
            there = [value for _, value in got[1:]]
            assert sorted(again + there) == [0, 1, 3]
            if directive is Resume:
                assert again == [0, 1, 3]
            else:
                assert there
            for scope in scopes:
                scope.cancel()
        assert tree["app"].status().mailbox == 0

    grow(app(first, mailbox=9, decider=Decider({Boom: directive})), scene)


@pytest.mark.parametrize("stopped", ["app/first", "app"])
def test_what_is_kept_for_a_failed_child_outlives_its_stop(stopped):
    """R19, R30, R37: It goes to a sibling, or its callers are answered with the end of the supervisor."""
    got, errors = [], []
    first = Shelf("first", mailbox="shared", resource=nothing)

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:

            async def asks(value):
                try:
                    assert await tree["app/pair"].call(value, on_loss="requeue") == "second"
                except ChildStopped as error:
                    errors.append(error)

            for value in range(3):
                nursery.start_soon(asks, value)
                await quiet()
            if stopped == "app/first":
                await tree["app/pair"].add(Worker("second", got).spec)
            nursery.start_soon(absorbs, tree["app/pair"].add, Puppet("slow", 5.0).spec)
            await quiet()
            tree["app/pair/first"].inject(Boom())
            await quiet()
            nursery.start_soon(tree["app/pair/first" if stopped == "app/first" else "app/pair"].stop)
        assert len(got if stopped == "app/first" else errors) == 3

    pair = app(first, name="pair", mailbox=9, decider=Decider({Boom: Resume}))
    grow(app(pair), scene)


def test_a_sent_message_that_is_kept_for_a_failed_child_is_not_lost_silently(caplog):
    """R29, R37: The child fails as its supervisor stops, with another message in the queue."""
    first = Shelf("first", mailbox="shared", resource=nothing)

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(absorbs, tree["app"].add, Puppet("slow", 5.0).spec)
            await quiet()
            await tree["app"].send("kept", on_loss="requeue")
            await quiet()
            tree["app/first"].inject(Boom())
            await quiet()
            await tree["app"].send("queued")
            await tree.root.stop()

    grow(app(first, mailbox=9, decider=Decider({Boom: Resume})), scene)
    assert "'app' is down for good; sent messages that waited and are lost: 2" in caplog.messages


async def absorbs(function, *arguments):
    """Call it; a refusal, because its supervisor stops, is none of this test."""
    with suppress(Refused, StartFailed):
        await function(*arguments)


def test_a_message_in_the_hand_of_a_child_that_fails_is_lost_or_goes_to_a_sibling():
    """R30, R37: Its caller gets `CallLost`, or the message goes back to the head of the queue, and the next child takes it."""
    got = []
    first = Shelf("first", mailbox="shared")

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:

            async def asks(value, on_loss, answer):
                try:
                    assert await tree["app"].call(value, on_loss=on_loss) == answer
                except CallLost as lost:
                    assert answer is None
                    assert "'app/first' ended with this message in hand" in str(lost)

            nursery.start_soon(asks, "lost", "fail", None)
            await quiet()
            nursery.start_soon(asks, "kept", "requeue", "second")
            await quiet()
            assert [message.value for message in first.held] == ["lost", "kept"]
            await tree["app"].add(Worker("second", got).spec)
            tree["app/first"].inject(Boom())
        assert got == [("second", "kept")]

    grow(app(first, mailbox=9), scene)


def test_all_callers_are_answered_when_the_supervisor_is_down_for_good():
    """R29, R37: They get `ChildStopped`, with the failure that ended the supervisor."""
    got, errors = [], []

    async def scene(tree, _):
        async def asks(value):
            try:
                await tree["app/pair"].call(value)
            except (ChildStopped, CallLost) as error:
                errors.append(type(error))

        async with trio.open_nursery() as nursery:
            for value in ("boom", "waits", "waits too"):
                nursery.start_soon(asks, value)
            await quiet()
        assert sorted(error.__name__ for error in errors) == ["CallLost", "ChildStopped", "ChildStopped"]
        with pytest.raises(ChildStopped, match="'app/pair' is down for good"):
            await tree["app/pair"].call("late")

    only = Worker("a", got, seconds=1.0).spec
    limit = Limit(0, within=1)
    pair = app(only, name="pair", mailbox=2, limit=limit, on_limit="shutdown", restart="temporary")
    grow(app(pair), scene)


def test_a_shared_mailbox_is_bounded():
    """R29, R37: A full mailbox raises `MailboxFull`, or makes the sender wait for room."""

    async def scene(tree, _):
        tree["app"].send_nowait(1)
        with pytest.raises(MailboxFull, match="the mailbox of 'app' is full"):
            tree["app"].send_nowait(2)
        with trio.move_on_after(1) as scope:
            await tree["app"].send(2)
        assert scope.cancelled_caught

    grow(app(Puppet("idle"), mailbox=1), scene)


def test_a_child_that_is_stopped_leaves_the_waiting_messages_to_its_siblings():
    """R20, R37: Its loop ends after the message in hand, though more messages wait."""
    got = []
    options = {"drain": 9.0}

    async def scene(tree, _):
        for number in range(6):
            tree["app"].send_nowait(number)
        await trio.sleep(0.5)
        began = trio.current_time()
        await tree["app/a"].stop()
        assert trio.current_time() - began == pytest.approx(0.5)
        await trio.sleep(9)
        assert [name for name, _ in got] == ["a", "b", "b", "b", "b", "b"]

    grow(crew(got, "ab", seconds=1.0, options=options), scene)


@pytest.mark.parametrize("kind", ["supervisor", "pool"])
def test_the_last_child_drains_the_mailbox_when_all_are_stopped(kind):
    """R20, R37: Members of a pool stop all at once; children of a supervisor stop one by one, and the last takes the remaining messages."""
    got = []

    async def scene(tree, _):
        if kind == "pool":
            for _ in "ab":
                await tree["app"].add()
        for number in range(6):
            tree["app"].send_nowait(number)
        await trio.sleep(0.5)

    if kind == "pool":

        async def serve(message):
            got.append((id(trio.lowlevel.current_task()), message.value))
            await trio.sleep(1)

        spec = Pool("app", worker(serve, mailbox="shared", drain=99.0), mailbox=9)
    else:
        spec = crew(got, "ab", seconds=1.0, options={"drain": 99.0})
    grow(spec, scene)
    assert [value for _, value in got] == list(range(6))
    assert len({name for name, _ in got}) == 2


def test_a_child_that_has_ended_does_not_count_as_serving():
    """R20, R37: The last child that still runs drains the mailbox."""
    got = []

    async def scene(tree, _):
        tree["app/b"].inject(Boom())
        await quiet()
        for number in range(3):
            tree["app"].send_nowait(number)
        await tree["app/a"].stop()
        assert [value for _, value in got] == [0, 1, 2]

    options = {"drain": 99.0, "restart": "temporary"}
    grow(crew(got, "ab", seconds=1.0, options=options), scene)


def test_a_message_for_which_a_child_was_woken_goes_to_the_next_if_it_ends():
    """R37: The message is not lost with the child, though the child had not run yet."""
    got = []
    inboxes = []

    async def keeps(inbox):
        inboxes.append(inbox)
        await trio.sleep_forever()

    async def reads(inbox):
        with pytest.raises(trio.ClosedResourceError):
            await inbox.receive()

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads, inboxes[0])  # a task that its child's end does not cancel
            await quiet()
            await tree["app"].add(Worker("b", got).spec)
            await quiet()
            tree["app"].send_nowait(1)
            inboxes[0].settle("app/a", None)
            await quiet()
        assert got == [("b", 1)]

    grow(app(Child("a", keeps, mailbox="shared"), mailbox=9), scene)


def test_a_child_may_not_wait_at_the_mailbox_that_it_serves():
    """R30, R37: This holds also beside a sibling, which may end meanwhile, or wait in the same way."""
    answers = []

    async def body(inbox):
        async for message in inbox:
            if message.value == "ask":
                try:
                    message.reply(await tree["app"].call("echo"))
                except RuntimeError as error:
                    message.reply(str(error))
            else:
                message.reply("an answer")

    async def scene(its, _):
        nonlocal tree
        tree = its
        answers.append(await tree["app"].call("ask"))
        await tree["app"].add(Child("b", body, mailbox="shared"))
        answers.append(await tree["app"].call("ask"))

    tree = None
    grow(app(Child("a", body, mailbox="shared"), mailbox=9), scene)
    refusal = (
        "child 'app/a' would wait for ever: its own task, which serves its mailbox, waits at that mailbox"
    )
    assert answers == [refusal, refusal]


def test_an_exception_from_a_callback_is_a_failure_of_the_child_that_registered_it():
    """R30, R37: It is a failure of none of its siblings."""
    failed = []

    class Takes:
        def __init__(self, name):
            self.spec = Child(name, self.body, mailbox="shared", resource=Kit())

        async def body(self, _, inbox):
            async for message in inbox:
                message.on_left(self.leave)

        def leave(self):
            failed.append(self.spec.name)
            raise Boom

    async def scene(tree, seen):
        for _ in range(2):
            with trio.move_on_after(1):
                await tree["app"].call(1)
        await quiet()
        assert failed == ["a", "b"]
        assert [(event.path, type(event.exc)) for event in seen.of(events.Failed)] == [
            ("app/a", Boom),
            ("app/b", Boom),
        ]

    grow(app(Takes("a"), Takes("b"), mailbox=Mailbox(4)), scene)


def test_a_child_with_a_shared_mailbox_has_none_of_its_own():
    """R37: The error says where to send; and a child that is added later must find a mailbox to share."""

    async def scene(tree, _):
        with pytest.raises(
            TypeError, match=r"'app/a' has no mailbox of its own: send to 'app', whose messages it takes"
        ):
            await tree["app/a"].call(1)
        with pytest.raises(
            ValueError, match=r"child 'c' is to take the messages of its supervisor, which has no mailbox"
        ):
            await tree["app/plain"].add(Worker("c", []).spec)

    grow(app(Worker("a", []), app(Puppet("b"), name="plain"), mailbox=4), scene)


def test_the_members_of_a_pool_share_its_mailbox():
    """R26, R37: Callers know one address, with any number of workers behind it."""
    got = []

    async def scene(tree, _):
        pool = tree["app"]
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(pool.call, number)
            await trio.sleep(1)
            assert got == []
            for _ in range(4):
                await pool.add()
        assert len({name for name, _ in got}) == 4

    async def serve(message):
        got.append((id(trio.lowlevel.current_task()), message.value))
        await trio.sleep(1)
        message.reply()

    grow(Pool("app", worker(serve, "worker", mailbox="shared"), mailbox=Mailbox(8)), scene)


def test_a_shared_mailbox_keeps_nothing_of_members_that_have_ended():
    """R29, R37: Its memory is that of the children that are there, however many have come and gone."""
    got = []

    async def scene(tree, _):
        queue = tree._driver.address("app").ensure_mailbox(tree["app"]._spec(), tree._driver.report)
        for _ in range(20):
            members = [await tree["app"].add() for _ in range(3)]
            assert await tree["app"].call("work") == "a"
            for member in members:
                await member.stop()
            await quiet()
            assert (len(queue.servers), len(queue.serving), len(queue.readers), len(queue._kept)) == (
                0,
                0,
                0,
                0,
            )

    grow(Pool("app", Worker("a", got).spec, mailbox=4), scene)


def test_streams_are_shared_too():
    """R30, R37: One child serves a stream to its end, or the next one serves it from its beginning."""

    async def body(inbox):
        async for message in inbox:
            for number in range(3):
                await message.send(number)
            message.reply()

    async def scene(tree, _):
        async with tree["app"].stream("x") as stream:
            assert [item async for item in stream] == [0, 1, 2]

    grow(app(*(Child(name, body, mailbox="shared") for name in "ab"), mailbox=4), scene)


def test_a_shared_mailbox_may_have_a_deadline_for_messages():
    """R29, R37: It works as in a child's own mailbox."""
    shelf = Shelf(mailbox="shared")

    async def scene(tree, _):
        with pytest.raises(TimeoutError, match="'app' did not answer before the deadline"):
            await tree["app"].call(1)

    grow(app(shelf, mailbox=Mailbox(4, deadline=lambda _: trio.current_time() + 1)), scene)
    assert len(shelf.held) == 1


@pytest.mark.parametrize("away", ["starting", "suspended"])
def test_a_sibling_without_a_running_body_serves_nothing(away):
    """R20, R37: the last child whose body runs drains the mailbox, though a sibling is on its way."""
    lives = []

    @asynccontextmanager
    async def slow():
        lives.append(1)
        await trio.sleep(60 if len(lives) > 1 else 0)
        yield

    async def fails(_, inbox):
        async for message in inbox:
            raise Boom(message.value)

    got = []
    answers = []
    other = Worker("b", got, seconds=1.0, drain=99.0).spec
    first = Child("a", fails, resource=slow, mailbox="shared")
    inner = app(first, other, name="inner", mailbox=9)
    if away == "suspended":
        inner = app(first, other, name="inner", mailbox=9, decider=Decider(default=Escalate))

    async def scene(tree, _):
        async def call(value):
            try:
                answers.append(await tree["app/inner"].call(value))
            except (CallLost, ChildStopped) as error:
                answers.append(type(error).__name__)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "boom")
            await trio.sleep(0.1)
            for value in range(4):
                nursery.start_soon(call, value)
            await trio.sleep(0.1)
            await tree["app/inner"].stop()
            await quiet()
            nursery.cancel_scope.cancel()
        if away == "starting":
            assert answers == ["CallLost", "b", "b", "b", "b"]

    grow(app(inner), scene)


def test_a_stop_costs_no_look_at_every_sibling():
    """R37: neither the stop of a pool nor a failure grows with the number of the children that wait."""

    async def body(inbox):
        async for _ in inbox:
            pass

    def cost(members):
        counted = []

        async def scene(tree, _):
            names = [(await tree["app"].add()).path for _ in range(members)]
            (queue,) = {tree["app"]._mailbox()}
            assert len(queue.servers) == members
            server = next(iter(queue.servers.values()))
            counted.append(steps(server.open_inbox.end_loops))
            assert names

        grow(Pool("app", Child("w", body, mailbox="shared"), mailbox=9), scene)
        return counted[0]

    assert cost(4) == cost(200)
