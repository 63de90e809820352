"""Messages at a stop, at a node that is down for good, and at the end of the stack (R20, R29, R30)."""

from __future__ import annotations

import sys
from functools import partial

import pytest
import trio

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Restart,
    Stop,
    StreamMessage,
    Supervisor,
    current_child,
    events,
    open_tree,
)

from .scene import Boom, Other, Puppet, app, forever, quiet
from .talk import Shelf, grow, worker

# --- a stop that is asked for


def test_a_loop_over_an_inbox_ends_when_a_stop_is_asked_for():
    """R20, R30: The queued messages are served first, within `drain`; a worker needs no code of its own for it."""
    served, results = [], []

    async def body(inbox):
        async for message in inbox:
            await trio.sleep(1)
            served.append(message.value)
            message.reply(message.value)
        results.append(trio.current_time())

    child = Child("a", body, mailbox=8, drain=30)

    async def scene(tree, seen):
        for number in range(3):
            tree[child].send_nowait(number)
        await quiet()
        await tree[child].stop()
        assert trio.current_time() == 3
        assert served == [0, 1, 2]
        assert results == [3]
        assert seen.of(events.StopError) == []

    grow(app(child), scene)


def test_a_stop_wakes_a_body_that_waits_in_a_loop_over_its_inbox():
    """R20, R30: With an empty queue the stop takes no time, however long the child might drain."""
    children = [worker(forever, name, drain=30) for name in "abc"]

    async def scene(tree, seen):
        await quiet()
        await tree.root.stop()
        assert trio.current_time() == 0

    grow(app(*children), scene)


def test_without_drain_a_loop_over_an_inbox_is_cancelled():
    """R20: The code after the loop does not run then; a loop in a shield ends all the same."""
    behind = []

    async def body(inbox, shielded):
        with trio.CancelScope(shield=shielded):
            async for _ in inbox:
                pass
            behind.append(shielded)

    children = [Child(f"a{on}", body, mailbox=8, args=(on,)) for on in (False, True)]
    grow(app(*children), lambda tree, seen: quiet())
    assert behind == [True]


def test_receive_does_not_end_when_a_stop_is_asked_for():
    """R20: Only a loop ends by itself; `receive` and `receive_many` are cancelled when the drain is over."""
    shelf = Shelf(drain=5)

    async def scene(tree, seen):
        await quiet()
        await tree[shelf.spec].stop()
        assert trio.current_time() == 5

    grow(app(shelf), scene)


def test_a_message_to_a_child_that_has_drained_is_not_lost_silently():
    """R20, R29: It waits for the next incarnation, or its sender gets an error if there is none."""
    served = []

    async def body(inbox):
        async for message in inbox:
            served.append((current_child().incarnation, message.value))
            message.reply(message.value)
        await trio.sleep(1)

    child = Child("a", body, mailbox=8, drain=30)
    a = Puppet("sibling")
    results = []

    async def ask(ref, value):
        try:
            results.append(await ref.call(value))
        except ChildStopped:
            results.append("stopped")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            a.fail()
            await trio.sleep(0.5)
            nursery.start_soon(ask, tree[child], "kept")
            await trio.sleep(1)
            assert served == [(2, "kept")]
            nursery.start_soon(tree[child].stop)
            await trio.sleep(0.5)
            nursery.start_soon(ask, tree[child], "refused")
        assert results == ["kept", "stopped"]

    grow(app(a, child, strategy="one_for_all"), scene)


def test_a_loop_around_a_loop_over_an_inbox_lets_the_others_run():
    """R20: After a stop was asked for, the inner loop ends each time, but never without a checkpoint."""

    async def body(inbox):
        while True:
            async for _ in inbox:
                pass

    child = Child("a", body, mailbox=8, drain=0.05)

    async def main():  # on the real clock: a virtual one stands still while any task can run
        async with open_tree(app(child), sinks=[]) as tree:
            await tree[child].ready()
            await tree[child].stop()

    trio.run(main)


# --- down for good


def test_a_condemned_child_waits_for_the_restart_of_its_supervisor():
    """R10, R29: While its supervisor backs off, a start of the child is pending, so it is not down for good."""
    a, b = Puppet("a"), Shelf("b")
    inner = Supervisor(
        "s",
        [a.spec, b.spec],
        decider=Decider({Boom: Escalate, Other: Stop}),
        backoff=Backoff(initial=10, jitter=0),
    )
    results = []

    async def ask(ref):
        results.append(await ref.call("hello"))

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
        assert results == ["answered"]

    grow(app(inner, decider=Decider({Boom: Restart})), scene)


@pytest.mark.parametrize("cancelled", [None, "stop", "above"])
@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_child_stopped_by_hand_waits_with_its_group(strategy, cancelled):
    """R10, R29: A group restart revives the child, so it is down for good only when no retry of its group is pending."""
    a, b = Puppet("a", backoff=Backoff(initial=10, jitter=0)), Shelf("b")
    inner = Supervisor("s", [a.spec, b.spec], strategy=strategy)
    results = []

    async def ask(what, *arguments):
        try:
            results.append(await what(*arguments))
        except ChildStopped:
            results.append("stopped")

    async def scene(tree, seen):
        ref = tree[b.spec]
        await ref.ready()
        await ref.stop()
        await ask(ref.call, 0)
        assert results == ["stopped"]
        a.fail()
        await quiet()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, ref.call, 1)
            nursery.start_soon(ask, ref.ready)
            nursery.start_soon(ask, ref.ended)
            await quiet()
            assert results == ["stopped"]
            if cancelled is not None:
                await (tree[inner] if cancelled == "above" else tree[a.spec]).stop()
                await quiet()
                assert sorted(results, key=str) == [None, "stopped", "stopped", "stopped"]
            else:
                await trio.sleep(11)
                assert results == ["stopped", None]
                b.held[-1].reply("answered")
                await quiet()
                assert results == ["stopped", None, "answered"]
                nursery.cancel_scope.cancel()

    grow(app(inner), scene)


def test_an_added_child_is_down_for_good_while_its_supervisor_backs_off():
    """R25, R29: The restart drops an added child, so a caller gets an error at once; callers of a declared child wait."""
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


def test_callers_of_a_child_wait_while_its_supervisor_starts_by_hand():
    """R29: They wait from the moment at which the supervisor starts, though the child is started later."""
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


# --- names that no node has


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("app/ecko", "tree 'app' has no node 'app/ecko'; did you mean 'app/echo'?"),
        ("echo", "tree 'app' has no node 'echo'; did you mean 'app/echo'? A path begins with the root"),
        ("app/inner", "tree 'app' has no node 'app/inner'; did you mean 'app/s/inner'?"),
        ("zzz", "tree 'app' has no node 'zzz'; a path begins with the root, 'app'"),
        ("app/s/added2", "tree 'app' has no node 'app/s/added2'; did you mean 'app/s/added'?"),
        ("app/zzz", "tree 'app' has no node 'app/zzz'"),
    ],
)
def test_the_error_of_a_wrong_path_suggests_a_near_one(path, expected):
    """R28: The suggestion is one of the children that were declared or added."""
    inner = Supervisor("s", [Child("inner", forever)])

    async def scene(tree, seen):
        await tree[inner].add(Child("added", forever))
        with pytest.raises(KeyError) as raised:
            tree[path]
        assert raised.value.args == (expected,)

    grow(app(Child("echo", forever), inner), scene)


def test_the_error_of_a_wrong_spec_gives_the_path_of_its_name():
    """R28: A spec is found by identity, so one that looks the same is another."""

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
def test_endless_recursion_at_a_mailbox_fails_the_child_alone(who):
    """R29, R30: A RecursionError may come out of any call in the framework; the other tasks that wait at a mailbox are woken all the same."""

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


@pytest.mark.parametrize("form", ["call", "stream"])
def test_every_callback_is_called_when_a_caller_leaves_at_the_end_of_its_stack(form):
    """R30, R24: A callback that raises fails the child that registered it, and not the caller."""
    boom = Boom("in a callback")

    def raises():
        raise boom

    async def serve(message):
        for callback in (partial(results.append, 1), raises, partial(results.append, 2), partial(deep, 50)):
            message.on_left(callback)
        await trio.sleep_forever()

    def deep(depth):
        results.append(3) if not depth else deep(depth - 1)

    async def leaves(ref, depth):
        if depth:
            await leaves(ref, depth - 1)
        elif form == "call":
            await ref.call(None)
        else:
            async with ref.stream(None):
                await quiet()

    child = worker(serve)
    results = []

    async def scene(tree, seen, depth):
        with trio.move_on_after(1):
            try:
                await leaves(tree[child], depth)
            except RecursionError:  # a stream is not opened where leaving it might not work
                assert (form, results, limit - depth < 300) == ("stream", [], True)
                return
        await quiet()
        assert results == [1, 2, 3]
        assert [failed.exc for failed in seen.of(events.Failed)] == [boom]

    limit = sys.getrecursionlimit()
    for depth in range(limit - 600, limit - 200, 5):
        results.clear()
        grow(app(child), partial(scene, depth=depth))
