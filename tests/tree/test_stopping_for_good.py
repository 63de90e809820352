"""What a child that drains, and other callers, get from a child that will not start again, as its supervisor stops for good (R29)."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from supervise import (
    Backoff,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Limit,
    Refused,
    StartFailed,
    Stop,
    Supervisor,
    TreeFailed,
    current_child,
)

from .scene import Boom, Other, app, forever, quiet
from .talk import grow, worker


@asynccontextmanager
async def resource(seconds):
    """A resource that takes so long to leave."""
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(seconds)


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

    store = Child("store", body, resource=partial(resource, 3), mailbox=1, restart="transient", grace=10)

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

    store = Child("store", forever, resource=partial(resource, 5), mailbox=1, grace=10)
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
