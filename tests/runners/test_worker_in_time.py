"""Deadlines and limits of requests, hangs, and callers that leave (D8, D9)."""

import attrs
import pytest
import trio
from stage import (
    FOREVER,
    HOST,
    PUPPET,
    Caller,
    Stage,
    all_of,
    batch,
    callers,
    loads_fail,
    serving,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    OutOfMemory,
    PoisonRequest,
    Timeout,
    Unrecoverable,
    WorkerDown,
)
from runners.hosts import RequestFailed
from runners.models.scripted import Fault, Scripted, expected
from runners.worker import device_worker, rebuild
from supervise import (
    Backoff,
    Decider,
    Limit,
    Restart,
    Resume,
    Stop,
    events,
)
from supervise.errors import LimitExceeded

pytestmark = pytest.mark.filterwarnings("error")


# --- D8


@pytest.mark.trio
async def test_past_the_limit_every_request_gets_worker_down_with_the_cause():
    """D8: This holds for begun, waiting and later requests."""
    runner = Scripted(streams=1, faults=loads_fail("kill", *range(2, 9)))
    options = {"limit": Limit(2, within=60), "above": Decider({"limit": Stop})}
    async with serving(runner, **options) as scene:
        begun, waiting = them = callers("ab")
        await all_of(scene.worker, them)
        later, refused = callers("cd")
        await later.run(scene.worker)
        for caller in (begun, waiting, later):
            assert type(caller.error) is WorkerDown
            assert isinstance(caller.error.__cause__, LimitExceeded)
            assert type(caller.error.__cause__.__cause__) is ContextDied
        assert (len(begun.ids), waiting.ids, later.ids) == (3, (), ())
        with pytest.raises(WorkerDown, match="passed its limit"):
            await scene.worker.call(refused.request)
        with pytest.raises(WorkerDown):
            async with scene.worker.stream_nowait(refused.request):
                raise AssertionError
        assert len([event for event in scene.of(events.Starting) if event.path == "app/llm/context"]) == 3


@pytest.mark.trio
async def test_an_unrecoverable_device_ends_every_request():
    """D3, D8: Stop condemns the context; begun, waiting and later requests get WorkerDown from the failure."""
    async with serving(Scripted(streams=2, faults=(Fault("unrecoverable", "a", 3),))) as scene:
        them = callers("abc")
        await all_of(scene.worker, them)
        later = Caller(batch("d"))
        await later.run(scene.worker)
        for caller in (*them, later):
            assert type(caller.error) is WorkerDown
            assert type(caller.error.__cause__) is Unrecoverable
        assert scene.context.state == "condemned"


IN_TIME = "^'.*/context' did not answer before the deadline"
"""The text that every caller gets, wherever the deadline was noticed."""


def due(seconds, name="a", **options):
    """A request with a deadline so many seconds from now."""
    return batch(name, deadline=trio.current_time() + seconds, **options)


@pytest.mark.parametrize("where", ["queue", "in front of a full queue", "restarting", "begun"])
@pytest.mark.parametrize("form", ["stream", "call"])
@pytest.mark.trio
async def test_past_its_deadline_a_request_gets_its_error_wherever_it_is(form, where, autojump_clock):
    """D8: The error comes exactly then, and the request's place in the queue or in the session is free."""
    stage = Stage(streams=1)
    options = {"queue": 1, "backoff": Backoff(initial=50, jitter=0)}
    async with serving(PUPPET, host=stage, **options) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        others = {"queue": 1, "in front of a full queue": 2, "restarting": 0, "begun": 0}[where]
        for name in ("x", "y")[:others]:
            await nursery.start(Caller(batch(name)).run, scene.worker)
            await trio.testing.wait_all_tasks_blocked()
        if where == "restarting":
            act.fails(ContextDied("killed"))
            await until(lambda: scene.context.state == "restarting")
        began = trio.current_time()
        with pytest.raises(Timeout, match=IN_TIME):
            if form == "call":
                await scene.worker.call(due(2))
            else:
                async with scene.worker.stream(due(2)) as chunks:
                    await anext(chunks)
        assert trio.current_time() - began == pytest.approx(2, abs=0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.context.mailbox == max(0, others - 1)
        assert act.dropped == (["a"] if where == "begun" else [])
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_consumer_that_does_not_read_holds_no_place_past_its_deadline(autojump_clock):
    """D8: The next request begins then; the consumer first gets the chunks that were made in time, and then the error."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await trio.testing.wait_all_tasks_blocked()  # the context is idle, and expects no deadline
        async with scene.worker.stream(due(2)) as chunks:
            await act.has("a")
            act.makes("a")
            await nursery.start(Caller(batch("b")).run, scene.worker)
            await trio.sleep(3)
            await act.has("a", "b")
            assert act.dropped == ["a"]
            assert (await anext(chunks)).index == 0
            with pytest.raises(Timeout, match=f"{IN_TIME}: request 'a', after 1 chunks$"):
                await anext(chunks)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_queued_request_whose_consumer_does_not_read_ends_at_its_deadline_too(autojump_clock):
    """D8: The request never begins."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await nursery.start(Caller(batch("x")).run, scene.worker)
        async with scene.worker.stream(due(2)) as chunks:
            await trio.sleep(3)
            act.makes("x", last=True)
            await act.has("x")
            for _ in range(2):
                with pytest.raises(Timeout, match=f"{IN_TIME}: request 'a', after 0 chunks$"):
                    await anext(chunks)


@pytest.mark.trio
async def test_a_stream_that_ends_in_time_may_be_read_later(autojump_clock):
    """D8: A deadline is for the answer, not for its reader."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene:
        act = await stage.act(1)
        await trio.testing.wait_all_tasks_blocked()  # the context is idle, and expects no deadline
        async with scene.worker.stream(due(2)) as chunks:
            await act.has("a")
            act.makes("a")
            act.makes("a", index=1, last=True)
            await trio.sleep(3)
            assert [chunk.index async for chunk in chunks] == [0, 1]


@pytest.mark.trio
async def test_a_slow_consumer_delays_no_other_stream():
    """D6: Accepted chunks are buffered, up to all that the request may get; then the consumer reads them, whole."""
    async with serving(Scripted(300)) as scene:
        async with scene.worker.stream(batch("slow", most=200), buffer=1) as chunks:
            (quick,) = callers(["quick"])
            await quick.run(scene.worker)
            quick.assert_whole(300)
            read = [token async for chunk in chunks for token in chunk.token_ids]
        assert tuple(read) == expected(batch("slow", most=200), 300)


# --- D9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "stop"])
@pytest.mark.trio
async def test_a_request_that_hangs_contexts_fails_alone(kind):
    """D9, D6: The context is killed at its deadline, twice; all other requests complete."""
    host = attrs.evolve(HOST, first_chunk_timeout=3.5, next_chunk_timeout=3.5)
    async with serving(Scripted(faults=(Fault(kind, "bad", 3),)), host=host) as scene:
        them = callers(["a", "bad", "b"])
        await all_of(scene.worker, them)
        a, bad, b = them
        a.assert_whole()
        b.assert_whole()
        assert type(bad.error) is PoisonRequest
        assert type(bad.error.__cause__) is ContextHung
        assert scene.decisions() == [(ContextHung, Restart)] * 2


@pytest.mark.trio
async def test_an_idle_context_is_asked_for_one_token_and_never_for_two(autojump_clock):
    """D9: It is asked after a time without a request, and not again before it has answered; any answer will do."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage, canary=0.5) as scene:
        act = await stage.act(1)
        await trio.sleep(0.49)
        assert act.begun == []
        await trio.sleep(5)
        assert act.begun == ["canary"]
        (request, accepted) = act.open["canary"]
        assert (request.sampling.max_tokens, accepted) == (1, ())
        act.makes("canary", last=True)
        await trio.sleep(0.49)
        assert len(act.begun) == 1
        await trio.sleep(0.6)
        assert act.begun == ["canary"] * 2
        act.open.clear()
        act.fails([RequestFailed("canary", BadRequest("empty"))])
        await trio.sleep(1.1)
        assert act.begun == ["canary"] * 3
        assert not scene.of(events.Failed)


@pytest.mark.trio
async def test_a_canary_gives_way_to_requests_and_does_not_run_beside_them(autojump_clock):
    """D9: A busy context is not asked, and no request waits for a canary's place."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage, canary=0.5, patience=60) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await trio.sleep(0.6)
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        await act.has("canary", "a")
        assert act.dropped == ["canary"]
        await trio.sleep(5)
        act.makes("a", last=True)
        await trio.sleep(0.49)
        assert act.begun == ["canary", "a"]
        await trio.sleep(0.1)
        assert act.begun == ["canary", "a", "canary"]
        nursery.start_soon(rebuild, scene.worker)
        await act.is_asked_to_rebuild()
        await trio.sleep(5)
        assert act.begun == ["canary", "a", "canary"]
        act.is_rebuilt()
        await trio.sleep(0.6)
        assert act.begun == ["canary", "a", "canary", "canary"]


@pytest.mark.trio
async def test_a_canary_without_memory_is_no_second_lack_of_the_step_before(autojump_clock):
    """D5, D9: The canary has begun since memory ran out, like any request, and each time a Resume is enough."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage, canary=0.5) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        await act.has("a")
        act.runs_out_of_memory("a")
        for _ in range(2):
            await until(lambda: "canary" in act.open)
            act.runs_out_of_memory("canary")
        await trio.sleep(0.1)
        assert scene.decisions() == [(OutOfMemory, Resume)] * 3


@pytest.mark.trio
async def test_a_canary_whose_token_is_not_its_last_chunk_holds_its_place(autojump_clock):
    """D9: The end may come in a chunk of its own. Until then there is no other canary, and a request that comes gets its place."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage, canary=0.5) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await until(lambda: "canary" in act.open)
        act.makes("canary")
        await trio.sleep(5)
        assert act.begun == ["canary"]
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        await act.has("canary", "a")
        assert act.dropped == ["canary"]
        act.makes("a", last=True)
        await caller.over.wait()
        assert not scene.of(events.Failed)


@pytest.mark.trio
async def test_there_is_no_canary_by_default(autojump_clock):
    """D9: A canary must be declared."""
    stage = Stage()
    async with serving(PUPPET, host=stage, patience=60):
        act = await stage.act(1)
        await trio.sleep(15)
        assert act.begun == []
    for wrong in (0, -1, "x", True, 10**400):
        with pytest.raises(ValueError, match="canary must be > 0 seconds or None"):
            device_worker("llm", PUPPET, host=stage, canary=wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "stop"])
@pytest.mark.trio
async def test_a_canary_finds_a_context_that_hangs(kind):
    """D9: The host's deadline for a first chunk finds it, with a real process; the next request is served at once."""
    host = attrs.evolve(HOST, first_chunk_timeout=3.5)
    runner = Scripted(faults=(Fault(kind, incarnation=1),))
    async with serving(runner, host=host, canary=0.05) as scene:
        await scene.incarnation(2)
        assert scene.decisions() == [(ContextHung, Restart)]
        (caller,) = callers("a")
        await caller.run(scene.worker)
        caller.assert_whole()


# --- callers that leave


@pytest.mark.parametrize("form", ["stream", "call"])
@pytest.mark.trio
async def test_a_caller_that_leaves_frees_its_place(form):
    """R30: The session is asked to drop the stream at once, and the next in the queue begins."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                if form == "stream":
                    inner.start_soon(Caller(batch("a")).run, scene.worker)
                else:
                    inner.start_soon(scene.worker.call, batch("a"))
                await act.has("a")
                await nursery.start(Caller(batch("b")).run, scene.worker)
                scope.cancel()
        assert act.dropped == ["a"]
        await act.has("a", "b")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("form", ["stream", "call"])
@pytest.mark.trio
async def test_a_caller_that_leaves_the_queue_withdraws_its_request(form):
    """R30: The request never begins."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await nursery.start(Caller(batch("a")).run, scene.worker)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                if form == "stream":
                    inner.start_soon(Caller(batch("b")).run, scene.worker)
                else:
                    inner.start_soon(scene.worker.call, batch("b"))
                await until(lambda: scene.context.mailbox == 1)
                scope.cancel()
        assert scene.context.mailbox == 0
        await nursery.start(Caller(batch("c")).run, scene.worker)
        await act.has("a")
        act.makes("a", last=True)
        await act.has("a", "c")
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_place_that_was_left_serves_the_next():
    """R30: With a real context the slot is free at the next step."""
    async with serving(attrs.evolve(FOREVER, streams=1)) as scene:
        for name in "abc":
            async with scene.worker.stream(batch(name)) as chunks:
                assert (await anext(chunks)).index == 0
        with trio.move_on_after(0.05):
            await scene.worker.call(batch("d"))
        request = batch("e", most=4)
        assert (await scene.worker.call(request)).token_ids == expected(request, 4)
