"""What becomes of requests when their context ends: those that wait, those that have begun, and suspects (D6)."""

from itertools import pairwise

import attrs
import pytest
import trio
from contexts import kill_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rogues import Miscounts
from stage import (
    FOREVER,
    PUPPET,
    UP,
    Caller,
    Stage,
    all_of,
    batch,
    callers,
    serving,
    undecided,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners.errors import (
    Backpressure,
    BadRequest,
    ContextDied,
    ContextLost,
    ContextPoisoned,
    PoisonRequest,
    ProtocolError,
    RunnerError,
    WorkerDown,
)
from runners.models.scripted import Fault, Scripted, expected, letter
from runners.types import (
    TokenChunk,
    TokenUsage,
)
from runners.worker import report_poison
from supervise import (
    Child,
    Restart,
    events,
)

pytestmark = pytest.mark.filterwarnings("error")


# --- D6: what waits


@pytest.mark.trio
async def test_waiting_requests_keep_their_order_through_restarts():
    """D6: Requests that have not begun are served in the order they came, whatever happened meanwhile."""
    faults = (Fault("kill", "b", 3, incarnation=1), Fault("kill", "d", 0, incarnation=2))
    ended = []
    async with serving(Scripted(streams=1, faults=faults)) as scene:
        them = callers("abcdefgh", lambda chunk: chunk.finish_reason and ended.append(chunk.request_id))
        await all_of(scene.worker, them)
        for caller in them:
            caller.assert_whole()
        assert ended == list("abcdefgh")
        assert (await scene.worker.ready()).incarnation == 3


@pytest.mark.trio
async def test_a_full_queue_waits_or_is_backpressure():
    """D6: `stream` waits for room, `stream_nowait` does not."""
    async with serving(attrs.evolve(FOREVER, streams=1), queue=1) as scene, trio.open_nursery() as nursery:
        first, second, third = them = callers("abc")
        await nursery.start(first.run, scene.worker)
        await until(lambda: first.chunks)
        await nursery.start(second.run, scene.worker)
        with pytest.raises(Backpressure, match="full"):
            async with scene.worker.stream_nowait(batch("d")):
                raise AssertionError
        nursery.start_soon(third.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.context.mailbox == 1
        for one, after in pairwise(them):
            one.scope.cancel()
            await until(lambda after=after: after.chunks)
        nursery.cancel_scope.cancel()


# --- D6: what has begun


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("cut", range(9))
@pytest.mark.trio
async def test_streams_equal_their_uncut_text_wherever_they_are_cut(cut, count):
    """D6: The context dies instead of the chunk with token `cut` of one stream; nothing is lost, nothing twice."""
    async with serving(Scripted(8, faults=(Fault("kill", "0", cut, incarnation=1),))) as scene:
        them = callers(map(str, range(count)))
        await all_of(scene.worker, them)
        for caller in them:
            caller.assert_whole()
        assert (await scene.worker.ready()).incarnation == (2 if cut < 8 else 1)


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 6), st.lists(st.integers(0, 40), min_size=1, max_size=3), st.random_module())
def test_streams_equal_their_uncut_text_whenever_they_are_killed(count, moments, chance):
    """D6: SIGKILL from outside, at any moment, also while streams are on their way back (then as suspects)."""

    async def main():
        async with serving(Scripted(40, delay=0.0005), limit=None) as scene:
            left = sorted(moments)
            heard = 0

            def on_chunk(_):
                nonlocal heard
                heard += 1
                state = scene.context
                if left and heard > 3 * left[0] and state.state == "up":
                    left.pop(0)
                    kill_contexts()

            them = callers(map(str, range(count)), on_chunk)
            await all_of(scene.worker, them)
            for caller in them:
                if caller.error is None:
                    caller.assert_whole(40)
                else:
                    assert type(caller.error) is PoisonRequest
                    assert caller.ids == expected(caller.request, 40)[: len(caller.ids)]

    trio.run(main)


@pytest.mark.parametrize("tell", ["the batch", "the call"])
@pytest.mark.trio
async def test_a_stream_that_may_not_move_gets_its_error_before_the_failure_is_decided(tell):
    """D6: With on_loss="fail" it gets ContextLost first of all, with incarnation and chunks delivered."""
    stage = Stage()
    request = batch("a", on_loss="fail" if tell == "the batch" else "migrate")
    options = {"on_loss": "fail"} if tell == "the call" else {}
    async with serving(PUPPET, host=stage, **UP) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        caller = Caller(request)
        nursery.start_soon(lambda: caller.run(scene.worker, **options))
        await act.has("a")
        act.makes("a")
        act.makes("a", index=1)
        poison = ContextPoisoned("Xid 31")
        async with undecided(scene, act, lambda act: act.fails(poison)):
            await caller.over.wait()
            assert not scene.of(events.Decided)
        assert type(caller.error) is ContextLost
        assert (caller.error.incarnation, caller.error.delivered) == (1, 2)
        assert caller.error.__cause__ is poison
        assert caller.error.is_retryable


@pytest.mark.trio
async def test_a_stream_that_has_delivered_nothing_is_served_again():
    """D6: A stream that cannot or may not move has lost nothing yet."""
    for options, can_continue in (({"on_loss": "fail"}, True), ({}, False)):
        faults = (Fault("kill", "a", 0, incarnation=1),)
        async with serving(Scripted(streams=1, can_continue=can_continue, faults=faults)) as scene:
            (caller,) = callers("a", **options)
            await caller.run(scene.worker)
            caller.assert_whole()
            assert caller.incarnations() == {2}


@pytest.mark.trio
async def test_a_runner_that_cannot_continue_loses_what_has_begun():
    """D6: ContextLost for that one; the one behind it is served by the next context."""
    runner = Scripted(streams=1, can_continue=False, faults=(Fault("kill", "a", 3),))
    async with serving(runner) as scene:
        a, b = them = callers("ab")
        await all_of(scene.worker, them)
        assert type(a.error) is ContextLost
        assert (a.error.incarnation, a.error.delivered) == (1, 3)
        assert type(a.error.__cause__) is ContextDied
        b.assert_whole()


@pytest.mark.trio
async def test_chunks_in_front_of_a_wrong_chunk_are_accepted():
    """D6: Of chunks that come together, those before the first that is not the next of this incarnation are accepted."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        wrong, right = callers("ab")
        await nursery.start(wrong.run, scene.worker)
        await nursery.start(right.run, scene.worker)
        first = await stage.act(1)
        await first.has("a", "b")
        made = [
            TokenChunk(request_id=name, index=index, token_ids=(index,), incarnation=incarnation)
            for name, index, incarnation in [("b", 0, 1), ("a", 0, 1), ("b", 1, 1), ("a", 1, 2), ("a", 1, 1)]
        ]
        first.fails(made)
        second = await stage.act(2)
        await second.has("a")
        assert second.open["a"][1] == (0,)
        assert right.ids == (0, 1)
        assert wrong.ids == (0,)
        (failed,) = scene.of(events.Failed)
        assert failed.exc.request_ids == ("a",)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_seed_is_drawn_once():
    """D6: The parent draws it at admission; every incarnation gets the same seed, and all accepted tokens."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        caller, other = callers("ab", seed=None)
        await nursery.start(caller.run, scene.worker)
        await nursery.start(other.run, scene.worker)
        first = await stage.act(1)
        await first.has("a", "b")
        first.makes("a")
        first.makes("a", index=1)
        await until(lambda: len(caller.chunks) == 2)
        (begun, _), (another, _) = first.open["a"], first.open["b"]
        first.fails(ContextPoisoned("x"))
        second = await stage.act(2)
        await second.has("a")
        assert second.open["a"] == (begun, (0, 1))
        assert begun.sampling.seed is not None
        assert begun.sampling.seed != another.sampling.seed
        assert caller.request.sampling.seed is None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["again", "skips", "nothing", "too many"])
@pytest.mark.trio
async def test_a_chunk_that_is_not_the_next_fails_its_request_alone(what):
    """D5: A runner that miscounts gets the error in its own process; the context and its other streams notice nothing."""
    async with serving(Miscounts(what)) as scene:
        (caller,) = callers("a", most=100)
        await caller.run(scene.worker)
        assert type(caller.error) is RunnerError
        assert "must go on with position 1, of at most 100: got" in str(caller.error)
        assert caller.ids == (1,)
        assert scene.context.incarnation == 1
        assert not scene.of(events.Failed)


@pytest.mark.parametrize("index", [0, 2, -1])
@pytest.mark.trio
async def test_a_session_that_miscounts_is_a_protocol_error(index):
    """D6: A chunk is accepted only if it is the next one; a session that sends another is not trusted any more."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a")
        first.makes("a")
        first.makes("a", index=index)
        second = await stage.act(2)
        await second.has("a")
        assert caller.ids == (0,)
        assert second.open["a"][1] == (0,)
        (failed,) = scene.of(events.Failed)
        assert type(failed.exc) is ProtocolError
        assert failed.exc.request_ids == ("a",)
        assert scene.of(events.Decided)[0].tag == "device.poisoned.protocol"
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_session_that_sends_more_tokens_than_requested_is_a_protocol_error():
    """D6: A stream has at most its `max_tokens`, and not one more is delivered."""
    stage = Stage()
    async with serving(PUPPET, host=stage, patience=10) as scene, trio.open_nursery() as nursery:
        (caller,) = callers("a", most=2)
        await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a")
        for index in range(3):
            first.makes("a", index=index)
        second = await stage.act(2)
        await second.has("a")
        assert caller.ids == second.open["a"][1] == (0, 1)
        assert "ProtocolError" in second.cause
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_chunk_of_another_incarnation_is_a_protocol_error():
    """D6: Only chunks of the current context are accepted."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a")
        first.makes("a", incarnation=9)
        second = await stage.act(2)
        await second.has("a")
        assert caller.chunks == []
        assert second.open["a"][1] == ()
        assert "ProtocolError" in second.cause
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_request_id_in_use_is_refused_for_the_second():
    """D6: The first request goes on; once it has ended, its id is free again."""
    # So that the first is not over before the second comes.
    slow = Fault("slow", "a", 10, call=1, seconds=0.7)
    async with serving(Scripted(30, delay=0.001, faults=(slow,))) as scene:
        first, second, third = callers("aaa")
        async with trio.open_nursery() as nursery:
            await nursery.start(first.run, scene.worker)
            await second.run(scene.worker)
        await third.run(scene.worker)
        assert type(second.error) is BadRequest
        assert "'a'" in str(second.error)
        first.assert_whole(30)
        third.assert_whole(30)


@pytest.mark.trio
async def test_a_value_that_is_no_request_is_refused():
    """A worker serves ExecuteBatch, and the error says so."""
    async with serving(PUPPET) as scene:
        with pytest.raises(BadRequest, match="must be an ExecuteBatch, got 'hello'"):
            await scene.worker.call("hello")
        with pytest.raises(BadRequest, match="got 3"):
            async with scene.worker.stream(3) as chunks:
                await anext(chunks)
        assert not scene.of(events.Failed)


@pytest.mark.trio
async def test_usage_counts_replayed_tokens_apart():
    """D6: It counts the input once, the output as accepted, and every replay; the last chunk and the Completion agree."""
    faults = (Fault("kill", at_token=3, incarnation=1), Fault("poison", at_token=5, incarnation=2))
    for use in ("stream", "call"):
        async with serving(Scripted(faults=faults)) as scene:
            request = batch("a")
            if use == "stream":
                caller = Caller(request)
                await caller.run(scene.worker)
                usage = caller.chunks[-1].usage
                assert not any(chunk.usage for chunk in caller.chunks[:-1])
            else:
                whole = await scene.worker.call(request)
                usage = whole.usage
                assert whole.token_ids == expected(request)
                assert whole.text == "".join(map(letter, whole.token_ids))
            assert usage == TokenUsage(input=len(request.prompt), output=8, replayed=8)


# --- D6: suspects


@pytest.mark.parametrize("kind", ["kill", "poison"])
@pytest.mark.parametrize("position", range(4))
@pytest.mark.trio
async def test_a_request_that_kills_contexts_fails_alone(position, kind):
    """D6: It fails with PoisonRequest after the second death, and all others complete."""
    names = ["a", "b", "c"]
    names.insert(position, "bad")
    async with serving(Scripted(faults=(Fault(kind, "bad", 3),))) as scene:
        them = callers([*names, "d", "e"])
        await all_of(scene.worker, them)
        for caller in them:
            if caller.request.request_id == "bad":
                assert type(caller.error) is PoisonRequest
                assert isinstance(caller.error.__cause__, ContextPoisoned)
                assert not caller.error.is_retryable
                assert caller.ids == expected(caller.request)[:3]
            else:
                caller.assert_whole()
        await scene.incarnation(3)
        assert [directive for _, directive in scene.decisions()] == [Restart] * 2


@pytest.mark.parametrize("_", range(8))
@pytest.mark.trio
async def test_a_request_that_comes_as_a_context_fails_begins_in_the_next(_):
    """D6: Or it begins before the failure; both come in one turn, in Trio's random order. In between it would become a suspect."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        await first.has("a")
        order, begin, receive = [], first.begin, first.receive

        def begins(*args, **options):
            order.append("begins")
            begin(*args, **options)

        async def receives():
            try:
                return await receive()
            except ContextDied:
                order.append("fails")
                raise

        first.begin, first.receive = begins, receives
        first.makes("a")
        await until(lambda: caller.chunks)
        await trio.testing.wait_all_tasks_blocked()
        scene.worker.send_nowait(batch("late"))
        first.fails(ContextDied("killed"))
        await stage.act(2)
        assert order in (["fails"], ["begins", "fails"])
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_suspects_come_back_one_at_a_time():
    """D6: The next one, or a newcomer, begins when the one on trial has survived a step, has ended or has left."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        a, b, _, d = them = callers("abcd")
        for caller in them:
            await nursery.start(caller.run, scene.worker)
        await first.has("a", "b", "c", "d")
        newcomer = Caller(batch("new"))
        await nursery.start(newcomer.run, scene.worker)
        first.fails(ContextDied("killed"))
        second = await stage.act(2)
        await second.has("a")
        second.makes("a")
        await second.has("a", "b")
        second.makes("a", index=1)
        await second.has("a", "b")
        b.scope.cancel()
        await second.has("a", "b", "c")
        second.makes("c", last=True)
        await second.has("a", "b", "c", "d")
        second.makes("d")
        await second.has("a", "b", "c", "d", "new")
        second.fails(ContextDied("killed"))
        third = await stage.act(3)
        await third.has("a")
        assert [type(caller.error) for caller in (a, d, newcomer)] == [type(None)] * 3
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_reported_poison_makes_suspects():
    """D3, D6: That end was not ordered, whether a caller or the host detected the poison first."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        for caller in callers("ab"):
            await nursery.start(caller.run, scene.worker)
        await first.has("a", "b")
        report_poison(scene.worker, "Xid 31", 1)
        second = await stage.act(2)
        await second.has("a")
        second.makes("a")
        await second.has("a", "b")
        nursery.cancel_scope.cancel()


GROUP = {"siblings": [Child("gpu", trio.sleep_forever)], "strategy": "one_for_all"}


@pytest.mark.trio
async def test_an_end_that_was_ordered_makes_no_stream_a_suspect():
    """D6: After an ancestor's restart all streams come back together; a stream that may not move gets its error."""
    stage = Stage()
    async with serving(PUPPET, host=stage, **GROUP) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        a, b, stays = *callers("ab"), Caller(batch("stays", on_loss="fail"))
        for caller in (a, b, stays):
            await nursery.start(caller.run, scene.worker)
        await first.has("a", "b", "stays")
        for name in first.begun:
            first.makes(name)
        await until(lambda: stays.chunks)
        scene.tree["app/gpu"].inject(RuntimeError("gone"))
        second = await stage.act(2)
        await second.has("a", "b")
        await stays.over.wait()
        assert type(stays.error) is ContextLost
        assert (stays.error.incarnation, stays.error.delivered, stays.error.__cause__) == (1, 1, None)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_an_end_that_was_ordered_clears_no_suspect():
    """D6: Only a step survived clears it; a suspect that was on trial then is on trial again, and not convicted."""
    stage = Stage()
    async with serving(PUPPET, host=stage, **GROUP) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        for caller in callers("ab"):
            await nursery.start(caller.run, scene.worker)
        await first.has("a", "b")
        first.fails(ContextDied("killed"))
        second = await stage.act(2)
        await second.has("a")
        scene.tree["app/gpu"].inject(RuntimeError("gone"))
        third = await stage.act(3)
        await third.has("a")
        third.makes("a")
        await third.has("a", "b")
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_an_operators_stop_answers_every_request_and_a_start_serves_again():
    """D8, R25: Begun and waiting requests get WorkerDown, a stream that may not move ContextLost; after the start the address works again."""
    async with serving(attrs.evolve(FOREVER, streams=2)) as scene:
        them = a, stays, waits = callers(["a"]) + callers(["stays"], on_loss="fail") + callers(["waits"])
        async with trio.open_nursery() as nursery:
            for caller in them:
                await nursery.start(caller.run, scene.worker)
            await until(lambda: a.chunks and stays.chunks)
            await scene.worker.stop()
        assert [type(caller.error) for caller in them] == [WorkerDown, ContextLost, WorkerDown]
        with pytest.raises(WorkerDown):
            await scene.worker.call(batch("b"))
        await scene.worker.start()
        request = batch("c", most=5)
        assert (await scene.worker.call(request)).token_ids == expected(request, 5)
        assert waits.chunks == []
