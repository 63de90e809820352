"""A new runner for a worker over several contexts, while it serves (D12)."""

from contextlib import suppress

import pytest
import trio
from attrs import field, frozen
from stage import (
    Caller,
    batch,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)
from test_groups import asks, serving

from runners import device_worker, rebuild, replace
from runners.errors import ContextDied, ContextLost, WorkerDown, WorkerStopping
from runners.hosts.inline import InlineHost
from runners.models.scripted import Fault, Scripted, expected
from supervise import Backoff, Limit, StartFailed, Supervisor, events, open_tree

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.trio
async def test_a_new_runner_is_swapped_in_while_the_worker_serves(autojump_clock):
    """D12: One context more is ready before the first of the others drains; then all have the new runner, and it is gone."""
    old, new = Scripted(3, streams=2, delay=1.0), Scripted(4, streams=2, delay=1.0)
    hosts = [InlineHost(), InlineHost()]
    async with serving(old, hosts=hosts, patience=1000) as scene, trio.open_nursery() as nursery:
        begun = await asks(nursery, scene.worker, "ab")
        await trio.sleep(1.5)  # so that no two streams of a context end together
        begun += await asks(nursery, scene.worker, "cd")
        done = trio.Event()

        async def swap():
            await replace(scene.worker, new)
            done.set()

        began = trio.current_time()
        nursery.start_soon(swap)
        await trio.sleep(0.5)
        later = await asks(nursery, scene.worker, [f"later-{number}" for number in range(40)])
        await done.wait()
        assert trio.current_time() - began < 13  # not when the last of them is done
        last = await asks(nursery, scene.worker, "ef")
        for caller in (*begun, *later, *last):
            await caller.over.wait()
            caller.assert_whole(3 if caller.ids == expected(caller.request, 3) else 4)
        assert all(len(caller.ids) == 3 for caller in begun)
        assert all(len(caller.ids) == 4 for caller in (*later[:2], *last))
        assert scene.nodes() == [("app/llm/context-0", "up"), ("app/llm/context-1", "up")]
        assert [scene.above(number).status().incarnation for number in range(2)] == [2, 2]
        await scene.worker.restart()
        (again,) = await asks(nursery, scene.worker, "i")
        await again.over.wait()
        again.assert_whole(4)


@pytest.mark.parametrize("incarnation", [1, 2])
@pytest.mark.trio
async def test_a_new_runner_that_does_not_load_leaves_the_old_one(incarnation, autojump_clock):
    """D12: Whether it fails in the spare context, or only in one of the others; and no stream notices."""
    fault = Fault("error", at="load", incarnation=incarnation)
    hosts = [InlineHost(), InlineHost()]
    backoff = Backoff(initial=1, jitter=0)
    async with serving(Scripted(3, delay=1.0), hosts=hosts, backoff=backoff, patience=1000) as scene:
        async with trio.open_nursery() as nursery:
            them = await asks(nursery, scene.worker, "ab")
            with pytest.raises(StartFailed):
                await replace(scene.worker, Scripted(4, faults=(fault,)))
            them += await asks(nursery, scene.worker, "cd")
        for caller in them:
            caller.assert_whole(3)
        assert scene.nodes() == [("app/llm/context-0", "up"), ("app/llm/context-1", "up")]


@frozen
class LoadsLater:
    """Its loads number `failing` fail, from 1."""

    failing: tuple[int, ...]
    loads: list[int] = field(factory=list)

    async def build(self, start):
        self.loads.append(start.incarnation)
        if len(self.loads) in self.failing:
            raise RuntimeError("no memory yet")
        return Scripted(3, streams=2, delay=0.1).build(start)


@pytest.mark.parametrize("failing", [(4,), (4, 5, 6), (5,), (4, 6)])
@pytest.mark.trio
async def test_the_old_runner_is_loaded_again_until_it_loads(failing, autojump_clock):
    """D12: Loads 1 to 3 are the first ones, later ones are after the new runner did not load in the last context.

    The other contexts have the new runner by then, and get the old one too.
    """
    old = LoadsLater(failing)
    hosts = [InlineHost(), InlineHost(), InlineHost()]
    async with serving(old, hosts=hosts, patience=1000) as scene, trio.open_nursery() as nursery:
        with pytest.raises(StartFailed):
            await replace(scene.worker, LoadsLater((4,)))
        assert scene.nodes() == [(f"app/llm/context-{number}", "up") for number in range(3)]
        assert len(old.loads) == 6 + len(failing)
        for caller in await asks(nursery, scene.worker, "abcdef"):
            await caller.over.wait()
            caller.assert_whole(3)


@pytest.mark.trio
async def test_a_context_whose_old_runner_does_not_load_four_times_stays_down(autojump_clock):
    """D12: The others serve, and it can be started by hand."""
    hosts = [InlineHost(), InlineHost()]
    async with serving(LoadsLater((3, 4, 5, 6)), hosts=hosts, patience=1000) as scene:
        with pytest.raises(StartFailed):
            await replace(scene.worker, LoadsLater((2,)))
        assert scene.nodes() == [("app/llm/context-0", "down"), ("app/llm/context-1", "up")]
        await scene.above(0).start()
        assert scene.nodes() == [("app/llm/context-0", "up"), ("app/llm/context-1", "up")]


@pytest.mark.trio
async def test_another_runner_continues_no_stream(autojump_clock):
    """D6, D12: One that outlives its drain ends with ContextLost; an equal runner continues it."""
    hosts = [InlineHost(), InlineHost()]
    async with (
        serving(Scripted(90, delay=1.0), hosts=hosts, patience=1000) as scene,
        trio.open_nursery() as nursery,
    ):
        them = await asks(nursery, scene.worker, "ab")
        await until(lambda: all(caller.chunks for caller in them))
        await replace(scene.worker, Scripted(90, delay=1.0), drain=2)
        assert not any(caller.over.is_set() for caller in them)
        await replace(scene.worker, Scripted(80, delay=1.0), drain=2)
        for caller in them:
            await caller.over.wait()
            assert type(caller.error) is ContextLost
            assert "begun by a runner that has been replaced" in str(caller.error)


@pytest.mark.trio
async def test_one_replacement_at_a_time(autojump_clock):
    """D12: A second one is refused; a cancelled one leaves no spare, and the new runner for the next restarts."""
    hosts = [InlineHost()]
    async with (
        serving(Scripted(50, delay=1.0), hosts=hosts, patience=1000) as scene,
        trio.open_nursery() as nursery,
    ):
        (a,) = await asks(nursery, scene.worker, "a")
        with trio.CancelScope() as scope:
            nursery.start_soon(cancels, scope, 5)
            async with trio.open_nursery() as inner:
                inner.start_soon(replace, scene.worker, Scripted(4))
                await trio.sleep(1)
                with pytest.raises(
                    RuntimeError, match="another replacement of the runner of 'app/llm' is under way"
                ):
                    await replace(scene.worker, Scripted(5))
        assert scope.cancelled_caught
        assert scene.nodes() == [("app/llm/context-0", "up")]
        await a.over.wait()
        a.assert_whole(50)
        await scene.above(0).restart()
        (b,) = await asks(nursery, scene.worker, "b")
        await b.over.wait()
        b.assert_whole(4)


@pytest.mark.trio
async def test_a_second_replacement_is_refused_while_only_the_spare_serves(autojump_clock):
    """D12: The only other context is loading the first one's runner. The worker is not down."""
    runner = Scripted(4, load_delay=4.0)
    async with serving(Scripted(3), hosts=[InlineHost()], patience=1000) as scene:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace, scene.worker, runner)
            await until(lambda: ("app/llm/context-0", "starting") in scene.nodes())
            assert ("app/llm/spare", "up") in scene.nodes()
            with pytest.raises(RuntimeError, match="another replacement of the runner of"):
                await replace(scene.worker, Scripted(5))
        assert scene.nodes() == [("app/llm/context-0", "up")]


async def cancels(scope, seconds):
    await trio.sleep(seconds)
    scope.cancel()


@pytest.mark.trio
async def test_what_cannot_be_replaced_is_said_in_one_line(autojump_clock):
    """D12: A worker without hosts, a runner that is none, and one that the host cannot run."""
    alone = device_worker("llm", Scripted(), host=InlineHost())
    async with open_tree(alone, sinks=[]) as tree:
        with pytest.raises(
            TypeError, match=r"'llm' has no queue for several contexts: declare it with hosts=\[…\]"
        ):
            await replace(tree["llm"], Scripted())
    async with serving(hosts=[InlineHost()]) as scene:
        with pytest.raises(TypeError, match="a runner must be"):
            await replace(scene.worker, "a model")


@pytest.mark.parametrize("order", ["rebuild", "replace"])
@pytest.mark.parametrize("moment", ["during", "after", "ended"])
@pytest.mark.trio
async def test_a_worker_that_is_removed_has_a_typed_error(order, moment, autojump_clock):
    """D7, D12: Also one that is removed meanwhile, and one whose tree has ended."""
    worker = device_worker("llm", Scripted(9, delay=1, can_continue=False), hosts=[InlineHost()] * 2)
    gone = []

    async def change(llm):
        try:
            await (rebuild(llm) if order == "rebuild" else replace(llm, Scripted()))
        except (WorkerDown, WorkerStopping) as error:
            gone.append(error)

    async def ask(llm):
        with suppress(ContextLost, WorkerDown):
            await llm.call(batch("a"))

    async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree, trio.open_nursery() as nursery:
        llm = tree["app/llm"]
        nursery.start_soon(ask, llm)
        await trio.sleep(1.5)
        if moment == "during":
            nursery.start_soon(change, llm)
            await trio.sleep(1)
        await llm.stop()
        await llm.remove()
        if moment == "after":
            await change(llm)
    if moment == "ended":
        await change(llm)
    assert len(gone) == 1


@frozen
class Loads:
    """A runner that takes three seconds to load; it notes each load."""

    tokens: int
    number: float = 0.0
    loads: list = field(factory=list, eq=False)

    async def build(self, start):
        self.loads.append(start.incarnation)
        await trio.sleep(3)
        return Scripted(self.tokens, streams=2, delay=0.1).build(start)


@pytest.mark.trio
async def test_the_very_runner_that_a_worker_has_is_loaded_anew(autojump_clock):
    """D12: Its weights may have changed."""
    same = Loads(5)
    async with serving(same, hosts=[InlineHost(), InlineHost()], patience=1000) as scene:
        for _ in range(2):
            same.loads.clear()
            await replace(scene.worker, same)
            assert len(same.loads) == 3  # the spare, and both contexts


@pytest.mark.parametrize("seconds", [1, 4, 7])
@pytest.mark.trio
async def test_a_worker_that_is_just_starting_gets_the_new_runner_when_it_is_up(seconds, autojump_clock):
    """D12: None of its contexts is left with the old one, whichever of them has loaded by then."""
    worker = device_worker("llm", Loads(5), hosts=[InlineHost(), InlineHost()])
    async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree[worker].restart)
            await trio.sleep(seconds)
            await replace(tree[worker], Loads(9))
        await _have(tree, 9)


@pytest.mark.trio
async def test_a_context_that_is_started_by_hand_meanwhile_gets_the_new_runner(autojump_clock):
    """D12: It was down when the swap began."""
    worker = device_worker("llm", Loads(5), hosts=[InlineHost(), InlineHost()])
    for seconds in range(12):
        async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
            await tree["app/llm/context-1"].stop()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replace, tree[worker], Loads(9))
                await trio.sleep(seconds)
                await tree["app/llm/context-1"].start()
            await _have(tree, 9)


async def _have(tree, tokens):
    """Each context has the runner that makes so many."""
    async with trio.open_nursery() as nursery:
        them = [Caller(batch(f"{number}")) for number in range(4)]  # both contexts are full
        for caller in them:
            nursery.start_soon(caller.run, tree["app/llm"])
    for caller in them:
        caller.assert_whole(tokens)


class Tensor:
    """Its `==` raises, as that of a tensor with several elements does."""

    def __eq__(self, other):
        raise RuntimeError("Boolean value of a tensor is ambiguous")

    __hash__ = None


class Ambiguous(Loads):
    """Its truth value raises, as that of a tensor does."""

    def __bool__(self):
        raise RuntimeError("Boolean value of a tensor is ambiguous")


@pytest.mark.parametrize("name", ["context-0", "spare"])
@pytest.mark.trio
async def test_a_context_that_is_restarted_by_hand_as_it_stops_gets_the_new_runner(name, autojump_clock):
    """D12, R25: The restart is served before the swap asks for the start, or for the removal of the spare."""
    hosts = [InlineHost(), InlineHost()]
    async with (
        serving(Scripted(3, delay=1.0), hosts=hosts, patience=1000) as scene,
        trio.open_nursery() as nursery,
    ):
        path = f"{scene.worker.path}/{name}"
        restarts = []

        def restart(event):
            if type(event) is events.Stopping and event.path == path and not restarts:
                restarts.append(event)
                nursery.start_soon(scene.worker.tree[path].restart)

        scene.worker.tree.subscribe(restart)
        await replace(scene.worker, Scripted(4, delay=1.0))
        (caller,) = await asks(nursery, scene.worker, "a")
        await caller.over.wait()
        caller.assert_whole(4)
        assert restarts
        assert scene.nodes() == [("app/llm/context-0", "up"), ("app/llm/context-1", "up")]


@pytest.mark.parametrize("spec", [Loads(20, float("nan")), Loads(20, Tensor()), Ambiguous(20)])
@pytest.mark.trio
async def test_a_stream_continues_in_the_same_runner_whatever_its_spec_is(spec, autojump_clock):
    """D6, D12: A spec that does not equal itself is the same all the same, and one that has no truth value is a spec."""
    async with serving(spec, hosts=[InlineHost()], patience=1000) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        await until(lambda: a.chunks)
        scene.ref(0).inject(ContextDied("killed"))
        await a.over.wait()
        a.assert_whole(20)


@pytest.mark.trio
async def test_a_swap_after_which_no_context_is_up_says_that_the_worker_is_down(autojump_clock):
    """D8, D12: The contexts failed while the streams of the spare were waited for, which ends with the swap."""
    hosts = [InlineHost(), InlineHost()]
    runner, limit = Loads(5), Limit(0)
    async with (
        serving(runner, hosts=hosts, limit=limit, patience=1000) as scene,
        trio.open_nursery() as nursery,
    ):

        async def fails():
            await trio.sleep(4)
            for name in "ab":
                await nursery.start(Caller(batch(name)).run, scene.worker)
            await trio.sleep(10)
            for number in range(2):
                scene.ref(number).inject(ContextDied("killed"))

        nursery.start_soon(fails)
        with pytest.raises(WorkerDown, match="every context with the new runner is down"):
            await replace(scene.worker, Loads(200))
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_swap_waits_for_contexts_that_are_just_restarted(autojump_clock):
    """D8, D12: Both died while the streams of the spare were waited for; they are down for a moment, not for good."""
    hosts = [InlineHost(), InlineHost()]
    async with serving(Loads(5), hosts=hosts, patience=1000) as scene, trio.open_nursery() as nursery:

        async def fails():
            await trio.sleep(4)
            for name in "ab":
                await nursery.start(Caller(batch(name)).run, scene.worker)
            await trio.sleep(18.5)  # the streams of the spare end while both contexts load again
            for number in range(2):
                scene.ref(number).inject(ContextDied("killed"))

        nursery.start_soon(fails)
        await replace(scene.worker, Loads(200))
        assert [scene.state(number) for number in range(2)] == ["up", "up"]
        nursery.cancel_scope.cancel()
