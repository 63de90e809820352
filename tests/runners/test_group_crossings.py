"""Where deaths, retries, limits, replacements and stops of a worker cross (D5–D7, D12–D14). See `test_groups` for each alone."""

from contextlib import suppress

import attrs
import pytest
import trio
from stage import (
    PUPPET,
    Stage,
    batch,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)
from test_groups import asks, serving
from test_runner_declarations import Server, request

from runners import InlineHost, device_worker, replace
from runners.errors import (
    ContextDied,
    ContextLost,
    ContextPoisoned,
    InferenceError,
    NetworkError,
    OutOfMemory,
    RateLimited,
    WorkerDown,
)
from runners.hosts import RequestFailed
from runners.models.scripted import Scripted
from runners.types import RateLimits, RunnerInfo
from runners.worker import rebuild
from supervise import Backoff, Supervisor, events, open_tree

pytestmark = pytest.mark.filterwarnings("error")
FOREVER = 3000


@attrs.frozen
class Slow:
    """A runner that takes some seconds to load."""

    tokens: int
    seconds: float = 5.0

    async def build(self, start):
        await trio.sleep(self.seconds)
        return Scripted(self.tokens, delay=0.5).build(start)


def fails_on_the_way(act, name):
    """The server of this request fails before it has given anything."""
    act.open.pop(name)
    act.fails([RequestFailed(name, NetworkError("reset"))])


# --- retries


@pytest.mark.trio
async def test_a_request_that_is_tried_again_is_not_lost_when_the_body_goes_on(autojump_clock):
    """D7, D14, R29: A rebuild falls due in the step in which a stream that must stay gets its first chunk."""
    host = Stage(can_continue=False)
    async with serving(hosts=[host], retries=3, patience=FOREVER) as scene, trio.open_nursery() as nursery:
        a, b = await asks(nursery, scene.worker, "ab")
        (act,) = await scene.acts(0)
        fails_on_the_way(act, "a")
        await trio.testing.wait_all_tasks_blocked()
        scope = trio.CancelScope()

        async def order():
            with scope:
                await rebuild(scene.worker)

        nursery.start_soon(order)
        await trio.lowlevel.checkpoint()
        act.makes("b")
        await trio.sleep(1)
        scope.cancel()
        await act.has("a", "b", "a")
        act.makes("a", last=True)
        act.makes("b", index=1, last=True)
        await a.over.wait()
        await b.over.wait()
        assert (a.error, b.error) == (None, None)


@pytest.mark.trio
async def test_memory_may_run_out_beside_a_request_that_is_tried_again(autojump_clock):
    """D5, D14: The context is resumed; the retried request comes at its time."""
    host = Stage()
    async with serving(hosts=[host], retries=3, patience=FOREVER) as scene, trio.open_nursery() as nursery:
        a, b, c = await asks(nursery, scene.worker, "abc")
        (act,) = await scene.acts(0)
        fails_on_the_way(act, "a")
        act.makes("b")
        await trio.testing.wait_all_tasks_blocked()
        act.runs_out_of_memory("c")
        await c.over.wait()
        await act.has("a", "b", "c", "a")
        act.makes("a", last=True)
        act.makes("b", index=1, last=True)
        await a.over.wait()
        await b.over.wait()
        assert (a.error, b.error, type(c.error)) == (None, None, OutOfMemory)
        assert scene.ref(0).status().incarnation == 1


@pytest.mark.parametrize("steps", range(8))
@pytest.mark.trio
async def test_a_caller_may_leave_in_the_moment_of_a_resume(steps, autojump_clock):
    """D5: The context does not fail, whatever part of the caller's leaving is done by then."""
    host, seen = Stage(), []
    worker = device_worker("llm", PUPPET, host=host, backoff=None)
    async with (
        open_tree(Supervisor("app", [worker]), sinks=[seen.append]) as tree,
        trio.open_nursery() as nursery,
    ):
        leaving = trio.CancelScope()

        async def call(name, scope):
            with scope, suppress(InferenceError):
                await tree[worker].call(batch(name))

        for name in "abc":
            nursery.start_soon(call, name, leaving if name == "a" else trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
        host.acts[0].runs_out_of_memory("c")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        leaving.cancel()
        await trio.sleep(1)
        failures = [event.exc for event in seen if isinstance(event, events.Failed)]
        assert all(type(error) is OutOfMemory for error in failures)
        assert list(host.acts[0].open) == ["b"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("wrong", ["30", float("inf"), float("nan"), 10**400, -1.0, None])
@pytest.mark.trio
async def test_a_server_may_say_nonsense_of_its_time(wrong, autojump_clock):
    """D5, D14: That request alone fails, and no other one waits for ever."""
    server = Server(errors={"a": [RateLimited("429", retry_after=wrong)]})
    worker = device_worker("api", server, host=InlineHost(), retries=0)
    with trio.fail_after(100):
        async with open_tree(worker, sinks=[]) as tree:
            with pytest.raises(RateLimited):
                await tree[worker].call(request("a"))
            await tree[worker].call(request("b"))
            assert tree[worker].status().children[0].incarnation == 1


@pytest.mark.trio
async def test_a_retry_keeps_to_the_limits_and_to_what_the_server_said(autojump_clock):
    """D14: It is a new request to the server."""
    server = Server(
        RateLimits(requests=1),
        errors={"a": [NetworkError("x")] * 2, "b": [RateLimited("429", retry_after=100)]},
    )
    worker = device_worker("api", server, host=InlineHost(), retries=2)
    async with open_tree(worker, sinks=[]) as tree:
        began = trio.current_time()
        await tree[worker].call(request("a"))
        await tree[worker].call(request("b"))
        assert [round(at - began) for at, _ in server.began] == [0, 60, 120, 180, 280]


@pytest.mark.trio
async def test_a_worker_that_drains_waits_for_a_retry(autojump_clock):
    """D13, D14: It has begun."""
    server = Server(errors={"a": [NetworkError("x")]})
    worker = device_worker("api", server, hosts=[InlineHost()], retries=1, drain=20)
    async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree, trio.open_nursery() as nursery:
        answers = []

        async def ask():
            answers.append(await tree[worker].call(request("a")))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await tree[worker].stop()
        assert len(answers) == 1


@pytest.mark.trio
async def test_a_begun_stream_does_not_wait_for_the_limit_of_others(autojump_clock):
    """D12, D14: It continues at once, though new requests are held back."""
    hosts = [Stage(), Stage()]
    for host in hosts:
        host._info = RunnerInfo(streams=4, can_continue=True, limits=RateLimits(requests=2))
    hosts[0].load = 1000.0
    async with serving(hosts=hosts, patience=FOREVER) as scene, trio.open_nursery() as nursery:
        await asks(nursery, scene.worker, "abc")
        first, second = await scene.acts(0, 1)
        first.makes("a")
        await trio.sleep(1)
        first.fails(ContextDied("killed"))
        before = trio.current_time()
        await until(lambda: "a" in second.open)
        assert trio.current_time() - before < 1
        nursery.cancel_scope.cancel()


# --- replacements


@pytest.mark.trio
async def test_a_stream_belongs_to_the_runner_of_its_first_chunk(autojump_clock):
    """D6, D12: Not to one that took it and made nothing; so no text has tokens of two models."""
    hosts = [Stage(streams=1) for _ in range(3)]
    backoff = Backoff(initial=500, jitter=0, immediate=0)
    async with (
        serving(Scripted(3), hosts=hosts, backoff=backoff, patience=FOREVER) as scene,
        trio.open_nursery() as nursery,
    ):
        a, _, c = await asks(nursery, scene.worker, "abc")
        nursery.start_soon(replace, scene.worker, Scripted(4))
        await trio.sleep(1)
        spare = hosts[0].acts[1]
        hosts[0].acts[0].fails(ContextDied("killed"))
        await until(lambda: "a" in spare.open)
        spare.makes("a")
        await until(lambda: a.chunks)
        hosts[2].acts[0].makes("c", last=True)
        await c.over.wait()
        spare.fails(ContextDied("killed too"))
        await a.over.wait()
        assert type(a.error) is ContextLost
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_stream_that_the_spare_began_goes_on_in_its_runner(autojump_clock):
    """D12: The end of the spare moves it to a context of the same runner."""
    host = Stage()
    async with serving(Scripted(3), hosts=[host], patience=FOREVER) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        nursery.start_soon(lambda: replace(scene.worker, Scripted(4), drain=5))
        await until(lambda: len(host.acts) >= 2 and "a" in host.acts[1].open)
        host.acts[1].makes("a")
        await until(lambda: len(host.acts) >= 3 and "a" in host.acts[2].open)
        host.acts[2].makes("a", index=1, last=True)
        await a.over.wait()
        assert a.ids == (0, 1)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 4.99, 7.0, 12.0])
@pytest.mark.trio
async def test_a_replacement_that_is_cancelled_anywhere_leaves_no_spare(seconds, autojump_clock):
    """D12: And the next one works."""
    hosts = [InlineHost(), InlineHost()]
    async with serving(Slow(3), hosts=hosts, patience=FOREVER) as scene, trio.open_nursery() as nursery:
        with trio.move_on_after(seconds):
            await replace(scene.worker, Slow(4))
        await trio.sleep(100)
        assert [name for name, _ in scene.nodes()] == ["app/llm/context-0", "app/llm/context-1"]
        await replace(scene.worker, Slow(6))
        them = await asks(nursery, scene.worker, "abc")
        for caller in them:
            await caller.over.wait()
            caller.assert_whole(6)


@pytest.mark.trio
async def test_a_context_that_is_loading_gets_the_new_runner_too(autojump_clock):
    """D12: It has chosen the old one already, and is awaited; the spare is on the first host whose context is up."""
    hosts = [Stage(), Stage()]
    hosts[0].load = 20.0
    async with serving(Scripted(3), hosts=hosts, patience=FOREVER) as scene:
        scene.ref(0).inject(ContextPoisoned("poisoned"))
        await trio.sleep(1)
        await scene.ref(1).ready()
        runner = Scripted(4)
        await replace(scene.worker, runner)
        for number in range(2):
            assert (await scene.above(number).ready())._context.runner is runner
        assert [len(host.acts) for host in hosts] == [3, 3]


@pytest.mark.trio
async def test_another_worker_at_the_same_place_has_its_own_runner(autojump_clock):
    """D12: What was replaced in one that was removed concerns no other."""
    async with open_tree(Supervisor("app", []), sinks=[]) as tree, trio.open_nursery() as nursery:
        worker = await tree.root.add(device_worker("llm", Scripted(3), hosts=[InlineHost()]))
        await replace(worker, Scripted(4))
        await worker.stop()
        await worker.remove()
        worker = await tree.root.add(device_worker("llm", Scripted(9), hosts=[InlineHost()]))
        (a,) = await asks(nursery, worker, "a")
        await a.over.wait()
        a.assert_whole(9)


@pytest.mark.trio
async def test_a_worker_without_contexts_refuses_orders_in_one_line(autojump_clock):
    """D7, D12: All were stopped by hand."""
    async with serving(hosts=[Stage(), Stage()]) as scene:
        for number in range(2):
            await scene.above(number).stop()
        for order in (rebuild(scene.worker), replace(scene.worker, PUPPET)):
            with pytest.raises(WorkerDown, match="'app/llm' has no context that serves"):
                await order
        for drain in (-1, float("nan"), 10**400, "x", None):
            with pytest.raises(ValueError, match="drain must be seconds >= 0, got"):
                await replace(scene.worker, PUPPET, drain=drain)


@pytest.mark.trio
async def test_a_rolling_rebuild_leaves_out_a_context_that_drains_alone(autojump_clock):
    """D7, D12: The worker is not being stopped."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts, drain=50, patience=FOREVER) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        first, second = await scene.acts(0, 1)
        nursery.start_soon(scene.above(0).stop)
        await trio.sleep(1)
        nursery.start_soon(rebuild, scene.worker)
        await second.is_asked_to_rebuild()
        second.is_rebuilt()
        first.makes("a", last=True)
        await a.over.wait()
        assert (a.error, first.rebuilds) == (None, [])
