"""Small programs that use one part of the library each. To add one, decorate it with `program`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from runners import ExecuteBatch, InlineHost, device_worker, rebuild, replace, report_poison
from runners.errors import OutOfMemory
from runners.models.scripted import Fault, Scripted
from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Pool,
    Refused,
    Restart,
    Resume,
    Stop,
    Supervisor,
    current_child,
    stop_requested,
)
from supervise.errors import CallLost, ChildRestarted, ChildStopped, StartFailed, TreeFailed

from .verdict import Program, Scene

PROGRAMS: dict[str, Program] = {}


def program(fn: Program) -> Program:
    """Have it tried."""
    PROGRAMS[fn.__name__] = fn
    return fn


class Boom(Exception):
    """What fails here fails with this."""


def drained(scene: Scene, name: str = "steady", **options: Any) -> Child:
    """A child that takes a second to drain, and must be given it."""

    async def body() -> None:
        with scene.life(name), scene.drain(name):
            await stop_requested()
            await trio.sleep(1)

    return Child(name, body, drain=30, **options)


def fails(scene: Scene, name: str, times: int, **options: Any) -> Child:
    """A child that fails so many times, and then lives on."""
    left = [times]

    async def body(*_: object) -> None:
        with scene.life(name):
            if left[0]:
                left[0] -= 1
                raise Boom(name)
            await trio.sleep_forever()

    return Child(name, body, **options)


def resource(scene: Scene, name: str) -> Callable[[], Any]:
    """A resource that takes a while to enter and to leave."""

    @asynccontextmanager
    async def make():
        with scene.life(name):
            await trio.sleep(0.1)
            try:
                yield name
            finally:
                with trio.CancelScope(shield=True):
                    await trio.sleep(0.1)

    return make


@program
async def crash_loop(scene: Scene) -> None:
    """A child fails again and again, at once, beside one that drains."""
    async with scene.tree(Supervisor("app", [drained(scene), fails(scene, "bad", 3)])):
        await trio.sleep(1)


@program
async def backoff(scene: Scene) -> None:
    """It waits before it is restarted, and then passes its own limit."""
    bad = fails(scene, "bad", 4, backoff=Backoff(initial=0.5), limit=Limit(2, within=60))
    async with scene.tree(Supervisor("app", [drained(scene), bad], limit=None)):
        await trio.sleep(10)


@program
async def calls(scene: Scene) -> None:
    """Callers, a full mailbox, a caller that leaves, a message that is lost with its incarnation."""

    async def server(inbox: Any) -> None:
        with scene.life("server"):
            async for message in inbox:
                if message.value == "die":
                    raise Boom
                await trio.sleep(0.1)
                message.reply(message.value)

    scene.has_nursery = True
    spec = Supervisor("app", [drained(scene), Child("server", server, mailbox=2)])
    async with scene.tree(spec) as tree, trio.open_nursery() as nursery:
        server_ref = tree["app/server"]
        for number in range(5):
            nursery.start_soon(server_ref.call, number)
        with trio.move_on_after(0.05):
            await server_ref.call("given up")
        try:
            await server_ref.call("die")
        except CallLost:
            pass
        await server_ref.send("quiet")
        server_ref.send_nowait("quieter")
        assert await server_ref.call("again", on_loss="requeue") == "again"


@program
async def streams(scene: Scene) -> None:
    """Streams that end, one that is left early, one whose server waits for room."""

    async def server(inbox: Any) -> None:
        with scene.life("server"):
            async for message in inbox:
                for item in range(4):
                    await message.send(item)
                message.reply()

    spec = Supervisor("app", [drained(scene), Child("server", server, mailbox=2)])
    async with scene.tree(spec) as tree:
        for most in (10, 2):
            async with tree["app/server"].stream("go", buffer=2) as stream:
                got = 0
                async for _ in stream:
                    got += 1
                    await trio.sleep(0.1)
                    if got == most:
                        break


@program
async def draining(scene: Scene) -> None:
    """The block is left while several children drain, one after the other; one has to be cancelled."""

    async def slow() -> None:
        with scene.life("slow"):
            await trio.sleep_forever()

    children = [drained(scene, "a"), Child("slow", slow, drain=2), drained(scene, "b"), drained(scene, "c")]
    async with scene.tree(Supervisor("app", children)):
        await trio.sleep(1)


@program
async def overdue(scene: Scene) -> None:
    """A child that does not yield to its cancellation at once."""

    async def stubborn() -> None:
        with scene.life("stubborn"), trio.CancelScope(shield=True):
            await trio.sleep(20)

    async with scene.tree(Supervisor("app", [drained(scene), Child("stubborn", stubborn, grace=2)])):
        await trio.sleep(1)


@program
async def nested(scene: Scene) -> None:
    """Supervisors below supervisors, groups, and a failure that walks up."""
    escalates = Decider({Boom: Escalate})
    inner = Supervisor(
        "inner",
        [drained(scene, "x"), fails(scene, "y", 1), drained(scene, "z")],
        decider=escalates,
        strategy="one_for_all",
    )
    group = Supervisor("group", [fails(scene, "p", 2), drained(scene, "q")], strategy="rest_for_one")
    async with scene.tree(Supervisor("app", [drained(scene), inner, group], limit=Limit(10))):
        await trio.sleep(5)


@program
async def resources(scene: Scene) -> None:
    """Resume, Restart and Stop of children with resources."""
    decider = Decider({LookupError: Resume, Boom: Restart, OSError: Stop})
    waiting = [LookupError(), LookupError(), Boom(), LookupError(), OSError()]

    async def body(got: str) -> None:
        with scene.life("body"):
            await trio.sleep(0.1)
            if waiting:
                raise waiting.pop(0)

    kept = Child("kept", body, resource=resource(scene, "resource"), decider=decider)
    done = Child("done", trio.sleep, args=(1,), restart="transient")
    spec = Supervisor("app", [drained(scene), kept, done], limit=Limit(10))
    async with scene.tree(spec):
        await trio.sleep(4)


@program
async def requests(scene: Scene) -> None:
    """Adding, stopping, restarting and removing children, and what is refused."""
    spec = Supervisor("app", [drained(scene), drained(scene, "other")])
    async with scene.tree(spec) as tree:
        added = await tree.root.add(drained(scene, "added"))
        await added.stop()
        await added.restart()
        await added.stop()
        await added.remove()
        try:
            await tree.root.add(fails(scene, "steady", 0))
        except Refused:
            pass
        with trio.move_on_after(0.5):
            await tree["app/other"].stop()
        assert await tree["app/other"].ended() is None


@program
async def pool(scene: Scene) -> None:
    """Members that come, fail and go."""

    async def member(number: int) -> None:
        with scene.life(f"member {number}"):
            await trio.sleep(number)
            if number % 2:
                raise Boom

    members = Pool("members", Child("member", member, restart="transient", limit=Limit(1, within=60)))
    async with scene.tree(Supervisor("app", [drained(scene), members], limit=None)) as tree:
        added = [await tree["app/members"].add(number) for number in range(3)]
        for ref in added[:2]:
            await ref.ended()


@program
async def starting(scene: Scene) -> None:
    """Starts that take a while, one that is not needed, one that is too late in a restart."""
    slow = [False, True]

    async def ready(*, task_status: Any) -> None:
        with scene.life("ready"):
            await trio.sleep(1)
            task_status.started("value")
            await trio.sleep(1)
            if slow:
                await trio.sleep(slow.pop(0))
                raise Boom
            await trio.sleep_forever()

    async def ignored(*, task_status: Any) -> object:
        return IGNORE

    children = [drained(scene), Child("ignored", ignored), Child("ready", ready, start_timeout=1.5)]
    async with scene.tree(Supervisor("app", children, init=dict)) as tree:
        assert await tree["app/ready"].ready() == "value"
        await trio.sleep(8)


@program
async def failed_start(scene: Scene) -> None:
    """The last of three does not start, and what had started is stopped again."""
    children = [
        drained(scene),
        drained(scene, "other"),
        Child("bad", trio.sleep, resource=lambda: 1 / 0),
    ]
    inner = Supervisor("inner", children)
    try:
        async with scene.tree(Supervisor("app", [inner])):
            pass
    except StartFailed:
        pass


@program
async def failing_tree(scene: Scene) -> None:
    """The root gives up, and the block is cancelled."""
    try:
        async with scene.tree(Supervisor("app", [drained(scene), fails(scene, "bad", 9)], limit=Limit(1))):
            await trio.sleep_forever()
    except TreeFailed:
        pass


@program
async def leases(scene: Scene) -> None:
    """Addresses: a value that is waited for, one that is held, a failure that is injected."""

    async def hold(_: object) -> None:
        await trio.sleep_forever()

    holder = Child("holder", hold, resource=resource(scene, "held"))
    async with scene.tree(Supervisor("app", [drained(scene), holder])) as tree:
        ref = tree[holder]
        async with ref.lease():
            await trio.sleep(0.1)
        try:
            async with ref.lease():
                ref.inject(Boom())
                await trio.sleep_forever()
        except ChildRestarted:
            pass
        await ref.ready()
        await ref.stop()
        try:
            await ref.ready()
        except ChildStopped:
            pass
        assert tree.status().children[1].state == "down"


@program
async def from_inside(scene: Scene) -> None:
    """A child that changes its own tree, and what it may not ask for."""

    async def body() -> None:
        with scene.life("manager"):
            tree = current_child().tree
            added = await tree["app"].add(drained(scene, "added"))
            await added.stop()
            try:
                await tree["app/manager"].stop()
            except RuntimeError:
                await tree.root.add(fails(scene, "more", 1))
            await trio.sleep_forever()

    async with scene.tree(Supervisor("app", [drained(scene), Child("manager", body)])):
        await trio.sleep(5)


@program
async def two_trees(scene: Scene) -> None:
    """One tree inside the block of another, and one in a child."""

    async def body() -> None:
        async with scene.tree(Supervisor("third", [drained(scene, "three")])):
            await trio.sleep_forever()

    async with (
        scene.tree(Supervisor("first", [drained(scene, "one"), Child("host", body)])),
        scene.tree(Supervisor("second", [drained(scene, "two")])),
    ):
        await trio.sleep(1)


@program
async def inline_device(scene: Scene) -> None:
    """A device worker whose runner is in the task itself: streams that wait, a failure, a move, a rebuild, one that is left."""
    faults = (Fault("poison", "stream", 3, incarnation=1), Fault("oom", "call", 2, incarnation=2))
    runner = Scripted(6, delay=0.1, load_delay=0.1, faults=faults)

    async def calls() -> None:
        with suppress(OutOfMemory):
            await tree["app/worker"].call(ExecuteBatch("call", "c", on_loss="migrate"))

    worker = device_worker("worker", runner, host=InlineHost(), canary=2, drain=1)
    async with scene.tree(Supervisor("app", [drained(scene), worker])) as tree:
        ref = tree["app/worker"]
        client = await tree.root.add(Child("client", calls, restart="transient"))
        async with ref.stream(ExecuteBatch("stream", "s", on_loss="migrate")) as stream:
            assert [chunk.index async for chunk in stream] == list(range(6))
        await client.ended()
        await rebuild(ref)
        async with ref.stream(ExecuteBatch("left", "l")) as stream:
            await anext(stream)
        await trio.sleep(5)


@program
async def adopting(scene: Scene) -> None:
    """Another declaration of the running tree, by which a child leaves, one comes, and one is restarted."""

    async def steady(_: int) -> None:
        with scene.life("other"):
            await trio.sleep_forever()

    drains = drained(scene)
    before = Supervisor(
        "app", [drains, Child("other", steady, args=[1]), Child("leaves", trio.sleep_forever)]
    )
    after = Supervisor("app", [drains, Child("other", steady, args=[2]), Child("comes", trio.sleep_forever)])
    async with scene.tree(before) as tree:
        await tree.adopt(after)
        await trio.sleep(1)


@program
async def sync_device(scene: Scene) -> None:
    """Likewise, of a runner that is not async."""
    runner = Scripted(6, faults=(Fault("poison", "stream", 3, incarnation=1),))
    worker = device_worker("worker", runner, host=InlineHost())
    async with scene.tree(Supervisor("app", [drained(scene), worker])) as tree:
        ref = tree["app/worker"]
        async with ref.stream(ExecuteBatch("stream", "s", on_loss="migrate")) as stream:
            assert [chunk.index async for chunk in stream] == list(range(6))
        await rebuild(ref)
        report_poison(ref, "from outside", 2)
        await ref.call(ExecuteBatch("call", "c"))


@program
async def several_contexts(scene: Scene) -> None:
    """A device worker over two contexts: failover, lack of memory, a rolling rebuild, a new runner, a stop of one, a drain."""
    faults = (Fault("poison", "stream", 2, moved=False), Fault("oom", "lack", 2))
    runner = Scripted(6, delay=0.1, load_delay=0.1, faults=faults)

    async def calls() -> None:
        with suppress(OutOfMemory):
            await tree["app/worker"].call(ExecuteBatch("lack", "c"))

    worker = device_worker("worker", runner, hosts=[InlineHost(), InlineHost()], drain=1)
    async with scene.tree(Supervisor("app", [drained(scene), worker])) as tree:
        ref = tree["app/worker"]
        client = await tree.root.add(Child("client", calls, restart="transient"))
        async with ref.stream(ExecuteBatch("stream", "s")) as stream:
            assert [chunk.index async for chunk in stream] == list(range(6))
        await client.ended()
        await rebuild(ref)
        async with ref.stream(ExecuteBatch("left", "l")) as stream:
            await anext(stream)
            await replace(ref, Scripted(6, delay=0.1, load_delay=0.1), drain=2)
        await tree["app/worker/context-1"].stop()
        async with ref.stream(ExecuteBatch("last", "l")) as stream:
            await anext(stream)
            await ref.stop()
