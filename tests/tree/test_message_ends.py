"""Messages at a stop, at a node that is down for good, and at the end of the stack (R20, R29, R30)."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager, suppress
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
    Limit,
    Refused,
    Restart,
    StartFailed,
    Stop,
    StreamMessage,
    Supervisor,
    TreeFailed,
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


async def stop_the_root(tree):
    await tree.root.stop()


async def stop_its_supervisor(tree):
    await tree["app/inner"].stop()


async def condemn_its_supervisor(tree):
    tree["app/inner/worse"].inject(Boom("worse"))
    await tree["app/inner"].ended()


async def let_its_supervisor_shut_down(tree):
    """It ends by itself then, and is started again."""
    await tree["app/inner/last"].send("return")
    await trio.sleep(700)


async def restart_its_supervisor(tree):
    await tree["app/inner"].restart()


async def stop_during_a_restart(tree):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(suppressed, tree.root.restart, Refused)
        await trio.sleep(1)
        await tree.root.stop()


async def suppressed(function, error):
    with suppress(error):
        await function()


@pytest.mark.parametrize("is_later", [False, True], ids=["backs off", "has stopped"])
@pytest.mark.parametrize(
    ("way", "end"),
    [
        (stop_the_root, ("ChildStopped", 0, "None")),
        (stop_its_supervisor, ("ChildStopped", 0, "None")),
        (condemn_its_supervisor, ("ChildStopped", 0, "worse")),
        (stop_during_a_restart, ("ChildStopped", 0, "None")),
        (restart_its_supervisor, ("Cancelled", 600, "None")),
        (let_its_supervisor_shut_down, ("Cancelled", 600, "None")),
    ],
)
def test_a_child_that_drains_does_not_wait_for_one_that_will_not_start_again(way, end, is_later):
    """R29: What is down, or backs off, as a stop for good begins, is down for good then. A restart brings it back, so that it is waited for."""
    ends, states = [], []

    async def fails(inbox):
        async for _ in inbox:
            raise Other

    async def returns(inbox):
        async for _ in inbox:
            return

    async def drains():
        child = current_child()
        await child.stop_requested()
        if child.incarnation > 1:
            return
        if way is stop_during_a_restart:
            await trio.sleep(2)
        states.append(child.tree["app/inner/store"].status().state)
        began = trio.current_time()
        try:
            await child.tree["app/inner/store"].call(1)
        except BaseException as exc:
            ends.append((type(exc).__name__, trio.current_time() - began, str(exc.__cause__)))
            raise

    store = Child("store", fails, mailbox=1, backoff=Backoff(initial=5, jitter=0))
    both = (
        [Child("worker", drains, drain=600), store]
        if is_later
        else [store, Child("worker", drains, drain=600)]
    )

    async def scene(tree, seen):
        if not is_later:
            await tree["app/inner/store"].send("fail")
        await trio.sleep(1)
        await way(tree)

    last = Child("last", returns, mailbox=1, restart="transient", significant=True)
    inner = Supervisor(
        "inner",
        [*both, Child("worse", forever), last],
        decider=Decider({Boom: Escalate}),
        auto_shutdown="any_significant",
    )
    grow(app(inner, decider=Decider({Boom: Stop})), scene)
    assert ends == [end]
    assert end[0] == "Cancelled" or states == ["down"]


async def fail_now(tree, store):
    store.inject(Boom())


async def fail_beside_a_start(tree, store):
    """A supervisor that starts a child judges no failure meanwhile (R19)."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(suppressed, partial(tree.root.add, Child("slow", forever_starting)), Refused)
        await quiet()
        store.inject(Boom())
        await tree.root.stop()


async def forever_starting(task_status):
    await trio.sleep_forever()


async def return_now(tree, store):
    await store.send("return")


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
@pytest.mark.parametrize(
    ("way", "when"), [(fail_now, "draining"), (return_now, "draining"), (fail_beside_a_start, "up")]
)
def test_a_child_that_drains_does_not_wait_for_one_whose_body_is_over(strategy, way, when):
    """R9, R28, R29: The supervisor stops for good. The other child still leaves its resource in its turn, and has ended only then."""
    ends = []

    @asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async def body(_, inbox):
        async for _ in inbox:
            return

    async def drains():
        child = current_child()
        await child.stop_requested()
        store = child.tree["app/store"]
        if when == "draining":
            await way(child.tree, store)
            await trio.sleep(4)
        for wait in (partial(store.call, 1), store.ready):
            with pytest.raises(ChildStopped):
                await wait()
            ends.append(("refused", trio.current_time()))
        await trio.sleep(1)

    async def waits(tree):
        await tree["app/store"].ended()
        ends.append(("ended", trio.current_time()))

    store = Child("store", body, resource=resource, mailbox=1, restart="transient", grace=10)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits, tree)
            await quiet()
            if when == "up":
                await way(tree, tree["app/store"])
            await tree.root.stop()

    grow(
        app(store, Child("worker", drains, drain=600), strategy=strategy, decider=Decider(default=Stop)),
        scene,
    )
    refused, ended = {fail_now: (4, 8), return_now: (4, 3), fail_beside_a_start: (0, 4)}[way]
    assert [at for what, at in ends if what == "refused"] == [refused, refused]
    assert next(at for what, at in ends if what == "ended") == ended


@pytest.mark.parametrize(
    "options",
    [{"decider": Decider(default=Escalate)}, {"limit": Limit(0, within=1)}],
    ids=["escalated", "limit"],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_a_child_that_drains_does_not_wait_for_one_whose_failure_has_ended_the_tree(options, depth):
    """R11, R14, R29: The supervisors between it and the root are stopped in their turn, which comes after the drain."""
    ends = []

    async def drains():
        child = current_child()
        await child.stop_requested()
        with pytest.raises(ChildStopped) as caught:
            await child.tree[path].call(1)
        ends.append((trio.current_time(), str(caught.value.__cause__)))

    spec, path = worker(forever, "store"), "app" + depth * "/inner" + "/store"
    for _ in range(depth):
        spec = Supervisor("inner", [spec, Child("beside", forever)], **options)

    async def scene(tree, seen):
        await trio.sleep(1)
        tree[path].inject(Boom("gone"))
        await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        grow(app(spec, Child("worker", drains, drain=600), decider=Decider(default=Escalate)), scene)
    assert ends == [(1, "gone")]


def test_a_caller_does_not_wait_for_the_resource_of_one_that_will_not_start_again():
    """R9, R29: The child was to be started anew, and is leaving its resource, when the tree stops."""

    @asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)

    async def scene(tree, seen):
        tree[store].inject(Boom())
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.stop)
            await quiet()
            with pytest.raises(ChildStopped):
                await tree[store].call(1)
            assert trio.current_time() == 1
        assert trio.current_time() == 5

    store = Child("store", forever, resource=resource, mailbox=1, grace=10)
    grow(app(store), scene)


@pytest.mark.parametrize(
    ("strategy", "end"), [("one_for_one", ("ChildStopped", 0)), ("one_for_all", ("Cancelled", 600))]
)
def test_a_child_that_drains_waits_if_a_sibling_of_its_supervisor_will_start_both_again(strategy, end):
    """R13, R29: The supervisor is stopped by hand, while the next retry of its sibling starts the whole group."""
    ends, number = [], (2 if strategy == "one_for_all" else 1)

    async def fails(task_status):
        if current_child().incarnation == 1:
            task_status.started()
            await trio.sleep(1)
        raise Boom

    async def fails_at_once(inbox):
        async for _ in inbox:
            raise Boom

    async def drains():
        child = current_child()
        await child.stop_requested()
        if child.incarnation != number:
            return
        began = trio.current_time()
        try:
            await child.tree["app/inner/store"].call(1)
        except BaseException as exc:
            ends.append((type(exc).__name__, trio.current_time() - began))
            raise

    sibling = Child("sibling", fails, backoff=Backoff(initial=5, factor=1, jitter=0))
    store = Child("store", fails_at_once, mailbox=1, backoff=Backoff(initial=5, jitter=0))
    inner = Supervisor("inner", [store, Child("worker", drains, drain=600)])

    async def scene(tree, seen):
        await trio.sleep(8)
        if number == 2:
            await tree["app/inner"].start()
        await tree["app/inner/store"].send("fail")
        await trio.sleep(1)
        await tree["app/inner"].stop()

    grow(app(sibling, inner, strategy=strategy), scene)
    assert ends == [end]


def test_a_child_that_drains_does_not_wait_if_its_supervisor_was_not_added():
    """R17, R29: The last child of the supervisor does not become ready in time, and the first has failed."""
    ends = []

    async def fails(inbox):
        async for _ in inbox:
            raise Boom

    async def drains():
        child = current_child()
        await child.stop_requested()
        began = trio.current_time()
        try:
            await child.tree["app/inner/store"].call(1)
        except BaseException as exc:
            ends.append((type(exc).__name__, trio.current_time() - began))
            raise

    async def is_never_ready(task_status):
        await trio.sleep_forever()

    store = Child("store", fails, mailbox=1, backoff=Backoff(initial=5, jitter=0))
    slow = Child("slow", is_never_ready)
    inner = Supervisor("inner", [store, Child("worker", drains, drain=600), slow], start_timeout=2)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(suppressed, partial(tree.root.add, inner), StartFailed)
            await trio.sleep(1)
            await tree["app/inner/store"].send("fail")

    grow(app(), scene)
    assert ends == [("ChildStopped", 0)]


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
