"""The device worker: what becomes of requests when contexts end.

Real processes, really killed; where an exact interleaving is wanted, a `Stage`: a host whose sessions do as the test says.
"""

import json
import random
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import trio
from contexts import contexts, kill_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rogues import Miscounts, Raises, Witness, factory
from stage import (
    FOREVER,
    HOST,
    PUPPET,
    Act,
    Caller,
    Stage,
    all_of,
    batch,
    callers,
    children,
    kill,
    serving,
    until,
    worker_leaves_nothing,  # noqa: F401 - autouse: to be imported is its use
)

from runners.errors import (
    Backpressure,
    BadRequest,
    ContextDied,
    ContextHung,
    ContextLost,
    ContextPoisoned,
    DeviceError,
    InferenceError,
    LoadFailed,
    OutOfMemory,
    PoisonRequest,
    ProtocolError,
    RebuildSuperseded,
    RunnerError,
    SessionRebuild,
    Timeout,
    Unrecoverable,
    WorkerDown,
    WorkerStopping,
)
from runners.hosts import Host, RequestFailed, Session
from runners.hosts.process import ProcessHost
from runners.scripted import Fault, Faulty, Scripted, expected, letter
from runners.torch_lm import TorchLM
from runners.types import (
    Completion,
    ExecuteBatch,
    FinishReason,
    RunnerInfo,
    Sampling,
    SessionRebuildCause,
    TokenChunk,
    TokenUsage,
)
from runners.worker import ContextState, device_worker, rebuild, report_poison
from supervise import (
    DEVICE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Restart,
    Resume,
    StartFailed,
    Stop,
    Supervisor,
    TreeFailed,
    events,
    open_tree,
)
from supervise.errors import LimitExceeded

pytestmark = pytest.mark.filterwarnings("error")


def test_the_stage_is_a_host():
    """What stands in for a process here has its shape."""
    assert isinstance(Stage(), Host)
    assert isinstance(Act(1, None, RunnerInfo()), Session)


# --- D1


def test_a_worker_is_an_ordinary_supervisor_with_one_child():
    """D1: a Supervisor spec whose front is `context`, with the policy of a device."""
    spec = device_worker("llm", PUPPET)
    assert type(spec) is Supervisor
    (context,) = spec.children
    assert (spec.name, spec.front, context.name) == ("llm", "context", "context")
    assert (spec.strategy, spec.decider) == ("one_for_one", DEVICE)
    assert spec.limit == Limit(3, within=60, of_ready_time=True)
    assert (context.mailbox.size, context.mailbox.full, context.mailbox.stopped) == (
        1024,
        Backpressure,
        WorkerDown,
    )
    assert context.backoff == Backoff(initial=0.5, factor=2, maximum=15, immediate=1)
    assert context.resource.host == ProcessHost(device="cpu")


def test_the_policy_can_be_overridden():
    """D1: limit, decider, backoff, queue, host and whatever else a Supervisor takes."""
    mine = Decider({"device": Stop})
    spec = device_worker(
        "llm",
        PUPPET,
        host=HOST,
        queue=2,
        limit=None,
        backoff=None,
        decider=mine,
        restart="transient",
        strategy="rest_for_one",
        on_limit="shutdown",
        start_timeout=3,
    )
    (context,) = spec.children
    assert (spec.limit, context.backoff, spec.decider, context.mailbox.size) == (None, None, mine, 2)
    assert (spec.restart, spec.strategy, spec.on_limit, spec.start_timeout) == (
        "transient",
        "rest_for_one",
        "shutdown",
        3,
    )
    assert context.resource.host is HOST


@pytest.mark.trio
async def test_the_workers_address_is_its_contexts():
    """D1: `t[llm]` answers stream, call and ready, and `call` gives the whole stream as one value."""
    async with serving(Scripted()) as scene:
        state = await scene.worker.ready()
        assert isinstance(state, ContextState)
        assert (state.incarnation, state.info.runtime, state.info.streams) == (1, "scripted", 4)
        assert state.pid in contexts()
        (caller,) = callers("a")
        await caller.run(scene.worker)
        caller.assert_whole()
        request = batch("b", most=5)
        whole = await scene.worker.call(request)
        ids = expected(request)
        assert whole == Completion(
            request_id="b",
            text="".join(map(letter, ids)),
            token_ids=ids,
            finish_reason=FinishReason.LENGTH,
            usage=TokenUsage(input=len(request.prompt), output=5),
        )


# --- D2


@attrs.frozen
class Main:
    def build(self, start):
        raise AssertionError


@pytest.mark.parametrize(
    ("runner", "kind", "says"),
    [
        (lambda start: start, TypeError, "a runner must be a value with a build method"),
        (Scripted, TypeError, "a runner must be a value with a build method"),
        (factory(), ValueError, "a runner must be importable by name"),
        (Faulty(factory()), ValueError, "a runner must be importable by name"),
        (None, TypeError, "a runner must be a value"),
    ],
)
def test_what_cannot_be_named_is_refused_when_declared(runner, kind, says):
    """D2: in one line, before anything starts."""
    with pytest.raises(kind, match=says) as refused:
        device_worker("llm", runner)
    assert "\n" not in str(refused.value)


def test_a_runner_of_the_main_program_is_refused(monkeypatch):
    """D2: another process would not find it."""
    monkeypatch.setattr(Main, "__module__", "__main__")
    with pytest.raises(ValueError, match="move it out of the main program"):
        device_worker("llm", Main())


@pytest.mark.parametrize("host", ["cuda:0", ProcessHost])
def test_what_is_no_host_is_refused_when_declared(host):
    """A device's name is not a host, nor is a host's class."""
    with pytest.raises(TypeError, match="host must be a value with an open method, got"):
        device_worker("llm", PUPPET, host=host)


def starts(folder):
    """What `Witness` wrote."""
    return [json.loads(line) for line in Path(folder, "starts").read_text().splitlines()]


@pytest.mark.trio
async def test_a_start_is_told_why_and_finds_its_predecessor_gone(tmp_path):
    """D2: incarnation and cause reach RunnerStart; the old process is reaped before the new one loads."""
    async with serving(Witness(str(tmp_path))) as scene:
        kill((await scene.worker.ready()).pid)
        await scene.incarnation(2)
        report_poison(scene.worker, "Xid 31", 2)
        await scene.incarnation(3)
    first, second, third = starts(tmp_path)
    assert (first["incarnation"], first["cause"]) == (1, None)
    assert second["incarnation"] == 2
    assert "was killed by SIGKILL" in second["cause"]
    assert (third["incarnation"], third["cause"]) == (3, "ContextPoisoned('Xid 31')")
    assert all(start["alone"] for start in (first, second, third))


@pytest.mark.parametrize("kind", ["error", "oom", "poison", "unrecoverable", "kill"])
@pytest.mark.trio
async def test_a_first_load_that_fails_fails_the_start(kind):
    """D2, R16: nothing is decided; open_tree raises StartFailed from the failure."""
    with pytest.raises(StartFailed) as failed:
        async with serving(Scripted(faults=(Fault(kind, at="load"),))):
            raise AssertionError
    assert isinstance(failed.value.__cause__, DeviceError)


def loads_fail(kind, *incarnations):
    """Killed at token 3 of the first incarnation; then loads fail."""
    return (
        Fault("kill", at_token=3, incarnation=1),
        *(Fault(kind, incarnation=n, at="load") for n in incarnations),
    )


@pytest.mark.trio
async def test_a_load_that_fails_in_a_restart_is_judged_and_backed_off():
    """D2, R15, R16: by the decider; the next try is after the backoff, and the stream goes on there."""
    runner = Scripted(faults=loads_fail("poison", 2, 3))
    async with serving(runner, backoff=Backoff(initial=0.02, factor=2, jitter=0, immediate=1)) as scene:
        (caller,) = callers("a")
        await caller.run(scene.worker)
        caller.assert_whole()
        assert caller.incarnations() == {1, 4}
        assert scene.decisions() == [(ContextDied, Restart), *[(ContextPoisoned, Restart)] * 2]
        assert [event.delay for event in scene.of(events.BackingOff)] == [0.02, 0.04]


@pytest.mark.trio
async def test_a_load_that_fails_for_no_known_reason_goes_up():
    """D3: LoadFailed is none of the three, so DEVICE escalates it; what waits is kept over the ancestor's restart."""
    async with serving(Scripted(faults=loads_fail("error", 2))) as scene:
        (caller,) = callers("a")
        await caller.run(scene.worker)
        caller.assert_whole()
        assert scene.decisions()[-1] == (LoadFailed, Restart)
        assert scene.of(events.Decided)[-1].by == "app"


# --- D3


@pytest.mark.parametrize(
    ("runner", "kind", "directive", "by"),
    [
        (Scripted(faults=(Fault("poison", "a", 3, 1),)), ContextPoisoned, Restart, "app/llm"),
        (Scripted(faults=(Fault("kill", "a", 3, 1),)), ContextDied, Restart, "app/llm"),
        (Scripted(faults=(Fault("oom", "a", 3),)), OutOfMemory, Resume, "app/llm"),
        (Scripted(faults=(Fault("unrecoverable", "a", 3),)), Unrecoverable, Stop, "app/llm"),
        (Raises("device.who.knows"), DeviceError, Restart, "app"),
    ],
    ids=["poisoned", "died", "oom", "unrecoverable", "unknown"],
)
@pytest.mark.trio
async def test_the_device_decider_decides(runner, kind, directive, by):
    """D3: poisoned → Restart, oom → Resume, unrecoverable → Stop, anything else goes to the supervisor above."""
    async with serving(runner) as scene:
        (caller,) = callers("a")
        await caller.run(scene.worker)
        await until(lambda: scene.of(events.Decided))
        decided = scene.of(events.Decided)[0]
        assert (type(decided.exc), decided.directive, decided.by) == (kind, directive, by)
        assert decided.tag == kind.tag
        if directive is not Stop:
            await scene.incarnation(1 if directive is Resume else 2)


@pytest.mark.trio
async def test_a_root_worker_escalates_what_it_does_not_know():
    """D3, R11: without anybody above, the tree ends, and its callers are told."""
    spec = device_worker("llm", Raises("device.who.knows"), host=HOST)
    (caller,) = callers("a")
    seen = []
    async with trio.open_nursery() as outside:
        with pytest.raises(TreeFailed, match="from outside") as failed:
            async with open_tree(spec, sinks=[seen.append]) as tree:
                await outside.start(caller.run, tree[spec])
                await trio.sleep_forever()
    assert type(failed.value.__cause__) is DeviceError
    assert [event.directive for event in seen if isinstance(event, events.Decided)] == [Escalate]
    assert isinstance(caller.error, ContextLost)


@pytest.mark.trio
async def test_a_reported_poison_restarts_and_a_stale_report_does_not():
    """D3: `report_poison` counts for the incarnation it names, once; streams move as after any poison."""
    async with serving(Scripted(300, delay=0.001)) as scene:
        them = callers("abc")
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            await until(lambda: all(caller.chunks for caller in them))
            report_poison(scene.worker, "Xid 31", 1)
            report_poison(scene.worker, "Xid 31", 1)
            await scene.incarnation(2)
            report_poison(scene.worker, "late", 1)
        for caller in them:
            caller.assert_whole(300)
            assert caller.incarnations() == {1, 2}
        assert [str(event.exc) for event in scene.of(events.Failed)] == ["Xid 31"]
    report_poison(scene.worker, "too late", 2)


# --- D5


@pytest.mark.trio
async def test_a_requests_own_error_concerns_nobody_else():
    """D5: it reaches its caller, typed; the others do not notice."""
    async with serving(Scripted(faults=(Fault("error", "bad", 3),))) as scene:
        them = [*callers(["a", "bad", "b"]), Caller(ExecuteBatch("unsendable", "\ud800"))]
        await all_of(scene.worker, them)
        a, bad, b, unsendable = them
        a.assert_whole()
        b.assert_whole()
        assert type(bad.error) is RunnerError
        assert bad.ids == expected(bad.request)[:3]
        assert type(unsendable.error) is BadRequest
        assert not scene.of(events.Failed)


@pytest.mark.parametrize("token", [0, 3, 7])
@pytest.mark.trio
async def test_out_of_memory_fails_one_request_and_resumes_the_rest(token):
    """D5: the others go on in the same incarnation, token for token; who comes later is served there too."""
    async with serving(Scripted(60, delay=0.001, faults=(Fault("oom", "big", token),))) as scene:
        them = callers(["a", "big", "b", "c", "d"])
        await all_of(scene.worker, them)
        for caller in them:
            assert caller.incarnations() <= {1}
            if caller.request.request_id != "big":
                caller.assert_whole(60)
        assert type(them[1].error) is OutOfMemory
        assert them[1].ids == expected(them[1].request)[:token]
        assert scene.decisions() == [(OutOfMemory, Resume)]
        assert len(scene.of(events.Resumed)) == 1


@asynccontextmanager
async def undecided(scene, act, error):
    """Inside the block the context has failed, and the supervisor that is to decide is busy."""
    gate = trio.Event()

    async def start(*, task_status):
        await gate.wait()
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.tree.root.add, Child("slow", start))
        await trio.testing.wait_all_tasks_blocked()
        error(act)
        await until(lambda: scene.context.state == "failed")
        yield
        gate.set()


UP = {"decider": Decider(default=Escalate), "above": DEVICE}


@pytest.mark.trio
async def test_a_consumer_that_leaves_before_the_resume_leaves_no_stream_behind():
    """D5: its place is free, at the host and here; the others go on."""
    stage = Stage(streams=2)
    async with serving(PUPPET, host=stage, **UP) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        a, b, c, d = callers("abcd")
        for caller in (a, b):
            await nursery.start(caller.run, scene.worker)
        await act.has("a", "b")
        async with undecided(scene, act, lambda act: act.runs_out_of_memory("b")):
            a.scope.cancel()
            await a.over.wait()
            assert act.dropped == ["a"]
        for caller in (c, d):
            await nursery.start(caller.run, scene.worker)
        await act.has("a", "b", "c", "d")
        act.makes("c", last=True)
        act.makes("d", last=True)
        await d.over.wait()
        assert (type(b.error), len(stage.acts)) == (OutOfMemory, 1)


@pytest.mark.trio
async def test_a_stream_that_may_not_move_goes_on_after_a_resume():
    """D5, D6: on_loss="fail" at the call is about a context that is lost, and this one is not."""
    async with serving(Scripted(60, delay=0.001, faults=(Fault("oom", "big", 3),))) as scene:
        stays, big = callers(["stays", "big"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: stays.run(scene.worker, on_loss="fail"))
            await until(lambda: stays.chunks)
            await big.run(scene.worker)
        stays.assert_whole(60)
        assert (type(big.error), stays.incarnations()) == (OutOfMemory, {1})


@pytest.mark.trio
async def test_a_consumer_that_leaves_after_a_resume_makes_room():
    """D5, R30: who watches over the streams is still awake in the second entering of the body."""
    stage = Stage(streams=2)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        a, b, c, d = callers("abcd")
        for caller in (a, b, c, d):
            await nursery.start(caller.run, scene.worker)
        await act.has("a", "b")
        act.runs_out_of_memory("b")
        await act.has("a", "b", "c")
        a.scope.cancel()
        await act.has("a", "b", "c", "d")
        assert act.dropped == ["a"]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_second_lack_of_memory_at_the_same_step_is_a_restart():
    """D5: a Resume did not help; what is left moves to a new context."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        a, b, c, late = callers(["a", "b", "c", "late"])
        for caller in (a, b, c):
            await nursery.start(caller.run, scene.worker)
        await first.has("a", "b", "c")
        first.makes("c")
        await until(lambda: c.chunks)
        first.runs_out_of_memory("a", "b")
        await nursery.start(late.run, scene.worker)
        second = await stage.act(2)
        await second.has("c")
        second.makes("c", index=1, last=True)
        await c.over.wait()
        assert [type(caller.error) for caller in (a, b)] == [OutOfMemory] * 2
        assert c.incarnations() == {1, 2}
        assert scene.decisions() == [(OutOfMemory, Resume), (ContextPoisoned, Restart)]
        assert type(scene.of(events.Failed)[1].exc.__cause__) is OutOfMemory
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("between", ["chunk", "newcomer", "error"])
@pytest.mark.trio
async def test_a_lack_of_memory_at_another_step_is_another_resume(between):
    """D5: something was made in between, or the request itself has only begun since."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        a, b, c, d = callers("abcd")
        for caller in (a, b, c):
            await nursery.start(caller.run, scene.worker)
        await act.has("a", "b", "c")
        act.runs_out_of_memory("a")
        await until(lambda: scene.of(events.Resumed))
        await nursery.start(d.run, scene.worker)
        await act.has("a", "b", "c", "d")
        if between == "chunk":
            act.makes("c")
        elif between == "error":
            act.open.pop("c")
            act.fails([RequestFailed("c", RunnerError("its own"))])
        loser = d if between == "newcomer" else b
        act.runs_out_of_memory(loser.request.request_id)
        await loser.over.wait()
        await until(lambda: len(scene.of(events.Resumed)) == 2)
        assert scene.decisions() == [(OutOfMemory, Resume)] * 2
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_lack_of_memory_from_outside_resumes_too():
    """R27, D5: an injected failure ends the body, not the session; the streams begin in it again, behind what they had."""
    async with serving(Scripted(200, delay=0.001)) as scene:
        them = callers("abcdef")
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            await until(lambda: sum(bool(caller.chunks) for caller in them) == 4)
            scene.worker.inject(OutOfMemory("says the watchdog"))
        for caller in them:
            caller.assert_whole(200)
            assert caller.incarnations() == {1}
        assert scene.decisions() == [(OutOfMemory, Resume)]


@pytest.mark.parametrize("verdict", [Restart, Stop])
@pytest.mark.trio
async def test_out_of_memory_may_be_decided_otherwise(verdict):
    """D1, D6: under another decider the streams end with the context, each as it wants."""
    stage = Stage()
    mine = Decider({"device.oom": verdict}).over(DEVICE)
    async with serving(PUPPET, host=stage, decider=mine) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        big, moves, stays = *callers(["big", "moves"]), Caller(batch("stays", on_loss="fail"))
        for caller in (big, moves, stays):
            await nursery.start(caller.run, scene.worker)
        await first.has("big", "moves", "stays")
        first.makes("moves")
        first.makes("stays")
        first.runs_out_of_memory("big")
        if verdict is Restart:
            second = await stage.act(2)
            await second.has("moves")
            moves.scope.cancel()
        await moves.over.wait()
        await stays.over.wait()
        assert type(moves.error) is (WorkerDown if verdict is Stop else type(None))
        assert type(stays.error) is (WorkerDown if verdict is Stop else ContextLost)
        assert type(stays.error.__cause__) is OutOfMemory
        assert [act.dropped for act in stage.acts] == ([[]] if verdict is Stop else [[], ["moves"]])


# --- D6: what waits


@pytest.mark.trio
async def test_what_waits_keeps_its_order_through_restarts():
    """D6: requests that have not begun are served in the order they came, whatever happened meanwhile."""
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
    """D6: the context dies instead of the chunk with token `cut` of one stream; nothing is lost, nothing twice."""
    async with serving(Scripted(8, faults=(Fault("kill", "0", cut, incarnation=1),))) as scene:
        them = callers(map(str, range(count)))
        await all_of(scene.worker, them)
        for caller in them:
            caller.assert_whole()
        assert (await scene.worker.ready()).incarnation == (2 if cut < 8 else 1)


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
async def test_a_stream_that_may_not_move_is_told_before_the_failure_is_decided(tell):
    """D6: on_loss="fail" gives ContextLost, with incarnation and chunks delivered, first of all."""
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
async def test_a_stream_that_has_delivered_nothing_is_simply_served_again():
    """D6: whoever cannot or may not move has lost nothing yet."""
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
async def test_what_is_in_front_of_a_wrong_chunk_is_accepted():
    """D6: of chunks that come together, in one go, up to the first that is not the next of this incarnation."""
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
    """D6: at admission, by the parent; every incarnation gets the same one, and all that was accepted."""
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
    """D5: a runner that miscounts is told so where it lives; its context, and who else is in it, notice nothing."""
    async with serving(Miscounts(what)) as scene:
        (caller,) = callers("a", most=100)
        await caller.run(scene.worker)
        assert type(caller.error) is RunnerError
        assert "must go on with token 1, of at most 100: got" in str(caller.error)
        assert caller.ids == (1,)
        assert scene.context.incarnation == 1
        assert not scene.of(events.Failed)


@pytest.mark.parametrize("index", [0, 2, -1])
@pytest.mark.trio
async def test_a_session_that_miscounts_is_a_protocol_error(index):
    """D6: what a context says is accepted only if it is next; one that says otherwise is not trusted any more."""
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
async def test_a_session_that_says_more_than_was_asked_for_is_a_protocol_error():
    """D6: a stream has at most its `max_tokens`; not one more is handed on."""
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
    """D6: only what the current context makes is accepted."""
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
    """D6: the first goes on; once it has ended its id is free again."""
    async with serving(Scripted(30, delay=0.001)) as scene:
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
async def test_what_is_no_request_is_refused():
    """A worker serves ExecuteBatch, and says so."""
    async with serving(PUPPET) as scene:
        with pytest.raises(BadRequest, match="must be an ExecuteBatch, got 'hello'"):
            await scene.worker.call("hello")
        with pytest.raises(BadRequest, match="got 3"):
            async with scene.worker.stream(3) as chunks:
                await anext(chunks)
        assert not scene.of(events.Failed)


@pytest.mark.trio
async def test_usage_counts_what_was_replayed_apart():
    """D6: input once, output as accepted, and every replay; in the last chunk as in the Completion."""
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
async def test_a_request_that_kills_contexts_is_found_out(position, kind):
    """D6: it fails with PoisonRequest after the second death, and all others complete."""
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
async def test_what_comes_as_a_context_fails_begins_in_the_next(_):
    """D6: or before the failure; both come in one turn, in Trio's random order. In between it would be made a suspect."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        await first.has("a")
        order, begin, receive = [], first.begin, first.receive

        def begins(*args):
            order.append("begins")
            begin(*args)

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
    """D6: the next one, or a newcomer, begins when the one on trial has survived a step, has ended or has left."""
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
    """D3, D6: nobody ordered that end, whoever saw it first."""
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
async def test_an_end_that_was_ordered_makes_nobody_a_suspect():
    """D6: after an ancestor's restart all streams come back together; who may not move is told."""
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
async def test_an_end_that_was_ordered_clears_nobody():
    """D6: only a step survived does; a suspect that was on trial then is on trial again, and not convicted."""
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
async def test_an_operators_stop_tells_everybody_and_a_start_serves_again():
    """D8, R25: begun and waiting requests get WorkerDown, who may not move ContextLost; then it is an address again."""
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


# --- D7


class Operator:
    """Orders a rebuild, and keeps the answer."""

    def __init__(self, cause=SessionRebuildCause.MANUAL):
        self.cause = cause
        self.state = None
        self.error = None
        self.over = trio.Event()
        self.scope = trio.CancelScope()

    async def run(self, worker):
        with self.scope:
            try:
                self.state = await rebuild(worker, self.cause)
            except InferenceError as error:
                self.error = error
            finally:
                self.over.set()


POISONED = SessionRebuildCause.CONTEXT_POISONED


@pytest.mark.parametrize("cause", list(SessionRebuildCause))
@pytest.mark.trio
async def test_a_rebuild_is_done_and_no_stream_notices(cause, tmp_path):
    """D7: in the same incarnation, a poisoned context in a new one; every stream goes on, token for token, and once."""
    async with serving(Scripted(300, delay=0.001)) as scene:
        them = callers("abcdef")
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            await until(lambda: sum(bool(caller.chunks) for caller in them) == 4)
            before = await scene.worker.ready()
            state = await rebuild(scene.worker, cause)
        assert (state.incarnation, state.pid == before.pid) == (
            (2, False) if cause is POISONED else (1, True)
        )
        for caller in them:
            caller.assert_whole(300)
        failure = ContextPoisoned if cause is POISONED else SessionRebuild
        assert scene.decisions() == [(failure, Restart if cause is POISONED else Resume)]


@pytest.mark.trio
async def test_a_rebuild_fences_who_may_move_and_waits_for_who_may_not():
    """D7: nothing new begins meanwhile; the session is rebuilt with no stream in it; then those that moved go first."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        moves, stays, late = *callers(["moves"]), Caller(batch("stays", on_loss="fail")), *callers(["late"])
        for caller in (moves, stays):
            await nursery.start(caller.run, scene.worker)
        await act.has("moves", "stays")
        act.makes("moves")
        act.makes("stays")
        await until(lambda: moves.chunks and stays.chunks)
        operator = Operator()
        nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(late.run, scene.worker)
        act.makes("moves", index=1)
        await act.has("moves", "stays")
        assert not act.rebuilds
        act.makes("stays", index=1, last=True)
        await act.is_asked_to_rebuild()
        assert act.dropped == ["moves"]
        await act.has("moves", "stays")
        act.is_rebuilt()
        await operator.over.wait()
        await act.has("moves", "stays", "moves", "late")
        assert act.open["moves"][1] == (0, 1)
        assert (operator.state.incarnation, stays.error, len(stage.acts)) == (1, None, 1)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_stream_that_has_delivered_nothing_is_not_waited_for():
    """D7: it has nothing to lose, and begins again, though it may not move."""
    stage = Stage(can_continue=False)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await nursery.start(Caller(batch("a", on_loss="fail")).run, scene.worker)
        await act.has("a")
        nursery.start_soon(Operator().run, scene.worker)
        await act.is_asked_to_rebuild()
        act.is_rebuilt()
        await act.has("a", "a")
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_rebuild_after_a_poison_waits_for_nobody():
    """D7, D6: it is a restart at once; who may not move is told, and nobody is a suspect."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        first = await stage.act(1)
        a, b, stays = *callers("ab"), Caller(batch("stays", on_loss="fail"))
        for caller in (a, b, stays):
            await nursery.start(caller.run, scene.worker)
        await first.has("a", "b", "stays")
        for name in first.begun:
            first.makes(name)
        await until(lambda: stays.chunks)
        operator = Operator(POISONED)
        await operator.run(scene.worker)
        assert (operator.state.incarnation, first.rebuilds) == (2, [])
        assert (type(stays.error), stays.error.delivered) == (ContextLost, 1)
        await (await stage.act(2)).has("a", "b")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("cause", [SessionRebuildCause.MANUAL, POISONED])
@pytest.mark.trio
async def test_a_rebuild_is_charged_to_the_limit(cause):
    """D7: one too many is one too many, also with requests in between; then everybody has an answer."""
    options = {"limit": Limit(2, within=60), "above": Decider({"limit": Stop})}
    async with serving(Scripted(), **options) as scene:
        for number in range(2):
            await rebuild(scene.worker, cause)
            await scene.worker.call(batch("a"))
            assert scene.worker.status().restarts == number + 1
        with pytest.raises(WorkerDown) as down:
            await rebuild(scene.worker, cause)
        assert isinstance(down.value.__cause__, LimitExceeded)
        with pytest.raises(WorkerDown):
            await scene.worker.call(batch("b"))
        with pytest.raises(WorkerDown):
            await rebuild(scene.worker, cause)


@pytest.mark.trio
async def test_a_rebuild_that_fails_is_answered_and_the_context_fails_with_it():
    """D7, D2: the operator gets the error, the streams a new context."""
    async with serving(Scripted(300, delay=0.001, faults=(Fault("poison", at="rebuild"),))) as scene:
        (caller,) = callers("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.run, scene.worker)
            await until(lambda: caller.chunks)
            with pytest.raises(ContextPoisoned, match="a scripted poison"):
                await rebuild(scene.worker)
        caller.assert_whole(300)
        assert scene.decisions() == [(SessionRebuild, Resume), (ContextPoisoned, Restart)]


@pytest.mark.parametrize("moment", ["waiting", "under way"])
@pytest.mark.trio
async def test_a_rebuild_is_superseded_by_a_new_context(moment):
    """D7: the context fails while the rebuild waits, or during it: the new one is what the operator is told of."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        stays = Caller(batch("stays", on_loss="fail"))
        await nursery.start(stays.run, scene.worker)
        await act.has("stays")
        if moment == "waiting":
            act.makes("stays")
            await until(lambda: stays.chunks)
        operator = Operator()
        nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        assert len(act.rebuilds) == (moment == "under way")
        act.fails(ContextDied("killed"))
        await operator.over.wait()
        assert type(operator.error) is RebuildSuperseded
        assert "incarnation 2" in str(operator.error)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_rebuild_is_superseded_by_a_later_one():
    """D7: of those that wait the last counts, and one rebuild is made and charged."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        stays = Caller(batch("stays", on_loss="fail"))
        await nursery.start(stays.run, scene.worker)
        await act.has("stays")
        act.makes("stays")
        await until(lambda: stays.chunks)
        first, second = Operator(), Operator(SessionRebuildCause.REMOTE_AUTH_FAILURE)
        for operator in (first, second):
            nursery.start_soon(operator.run, scene.worker)
            await trio.testing.wait_all_tasks_blocked()
        await first.over.wait()
        assert type(first.error) is RebuildSuperseded
        act.makes("stays", index=1, last=True)
        await act.is_asked_to_rebuild()
        act.is_rebuilt()
        await second.over.wait()
        assert second.error is None
        assert act.rebuilds == [SessionRebuildCause.REMOTE_AUTH_FAILURE]
        assert scene.worker.status().restarts == 1


@pytest.mark.parametrize("_", range(8))
@pytest.mark.trio
async def test_a_rebuild_and_a_lack_of_memory_do_not_meet(_):
    """D7, D5: whichever comes first, in Trio's random order, the session is rebuilt with no stream in it."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        stays, moves = Caller(batch("stays", on_loss="fail")), Caller(batch("moves"))
        for caller in (stays, moves):
            await nursery.start(caller.run, scene.worker)
        await act.has("stays", "moves")
        act.makes("stays")
        await until(lambda: stays.chunks)
        operator = Operator()
        nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        act.runs_out_of_memory("stays")
        await act.is_asked_to_rebuild()
        act.is_rebuilt()
        await operator.over.wait()
        await act.has("stays", "moves", "moves")
        assert operator.error is None
        assert {type(event.exc) for event in scene.of(events.Decided)} <= {OutOfMemory, SessionRebuild}
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_an_operator_who_leaves_takes_the_order_along():
    """D7: until it has begun; then requests begin again."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        stays = Caller(batch("stays", on_loss="fail"))
        await nursery.start(stays.run, scene.worker)
        await act.has("stays")
        act.makes("stays")
        await until(lambda: stays.chunks)
        operator = Operator()
        nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        await nursery.start(Caller(batch("a")).run, scene.worker)
        await act.has("stays")
        operator.scope.cancel()
        await act.has("stays", "a")
        assert not act.rebuilds
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_rebuild_of_a_worker_that_is_not_there_is_answered():
    """D7: stopping, stopped by hand, starting again, ended with its tree: each is told as what it is."""
    entered, left = trio.Event(), trio.Event()

    class Slow(Stage):
        @asynccontextmanager
        async def open(self, runner, **options):
            async with super().open(runner, **options) as act:
                await entered.wait()
                try:
                    yield act
                finally:
                    with trio.CancelScope(shield=True):
                        await left.wait()

    entered.set()
    async with serving(PUPPET, host=Slow()) as scene:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.worker.stop)
            await until(lambda: scene.context.state == "stopping")
            with pytest.raises(WorkerStopping):
                await rebuild(scene.worker)
            left.set()
        with pytest.raises(WorkerDown):
            await rebuild(scene.worker)
        entered = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.worker.restart)
            await until(lambda: scene.worker.status().state == "starting")
            with pytest.raises(RebuildSuperseded, match="it is starting"):
                await rebuild(scene.worker)
            entered.set()
    with pytest.raises(WorkerDown):
        await rebuild(scene.worker)


@pytest.mark.trio
async def test_a_rebuild_that_waits_is_told_of_a_stop():
    """D7: and its stream, too."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        stays = Caller(batch("stays", on_loss="fail"))
        await nursery.start(stays.run, scene.worker)
        await act.has("stays")
        act.makes("stays")
        await until(lambda: stays.chunks)
        operator = Operator()
        nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        await scene.worker.stop()
        await operator.over.wait()
        assert type(operator.error) is WorkerStopping


@pytest.mark.trio
async def test_a_rebuild_after_a_poison_is_answered_whatever_the_decider_says():
    """D7: resumed instead of restarted, it was not done."""
    stage = Stage()
    mine = Decider({"device.poisoned": Resume}).over(DEVICE)
    async with serving(PUPPET, host=stage, decider=mine) as scene:
        with pytest.raises(RebuildSuperseded, match="resumed"):
            await rebuild(scene.worker, POISONED)


# --- D8


@pytest.mark.trio
async def test_past_the_limit_everybody_is_told_why():
    """D8: WorkerDown with its cause, for begun, waiting and later requests."""
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
async def test_an_unrecoverable_device_is_down_for_all():
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
"""What everybody is told, whoever noticed."""


def due(seconds, name="a", **options):
    """A request with a deadline so many seconds from now."""
    return batch(name, deadline=trio.current_time() + seconds, **options)


@pytest.mark.parametrize("where", ["queue", "in front of a full queue", "restarting", "begun"])
@pytest.mark.parametrize("form", ["stream", "call"])
@pytest.mark.trio
async def test_past_its_deadline_a_request_is_told_wherever_it_is(form, where, autojump_clock):
    """D8: exactly then; and its place in the queue or in the session is free."""
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
async def test_a_consumer_that_does_not_look_holds_no_place_past_its_deadline(autojump_clock):
    """D8: the next request begins then; what was made in time is given first, and then the error."""
    stage = Stage(streams=1)
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
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
async def test_who_does_not_look_while_waiting_is_told_too(autojump_clock):
    """D8: the request never begins."""
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
async def test_a_stream_that_ends_in_time_is_read_at_leisure(autojump_clock):
    """D8: a deadline is for the answer, not for its reader."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene:
        act = await stage.act(1)
        async with scene.worker.stream(due(2)) as chunks:
            await act.has("a")
            act.makes("a")
            act.makes("a", index=1, last=True)
            await trio.sleep(3)
            assert [chunk.index async for chunk in chunks] == [0, 1]


@pytest.mark.trio
async def test_a_slow_consumer_holds_up_nobody():
    """D6: what is accepted is buffered, up to all that the request may get; then it is read, whole."""
    async with serving(Scripted(300)) as scene:
        async with scene.worker.stream(batch("slow", most=200), buffer=1) as chunks:
            (quick,) = callers(["quick"])
            await quick.run(scene.worker)
            quick.assert_whole(300)
            read = [token async for chunk in chunks for token in chunk.token_ids]
        assert tuple(read) == expected(batch("slow", most=200), 300)


# --- D9


@pytest.mark.parametrize("kind", ["hang", "stop"])
@pytest.mark.trio
async def test_a_request_that_hangs_contexts_is_found_out(kind):
    """D9, D6: the context is killed at its deadline, twice; all others complete."""
    host = attrs.evolve(HOST, first_chunk_timeout=0.8, next_chunk_timeout=0.8)
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
    """D9: after so long without a request; not again before it has answered, and any answer will do."""
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
async def test_a_canary_gives_way_and_is_silent_beside_requests(autojump_clock):
    """D9: a busy context is not asked, and nobody waits for a canary's place."""
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
    """D5, D9: it has begun since memory ran out, like any request; each time a Resume is enough."""
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
    """D9: the end may come in a chunk of its own. Until then there is no other canary, and who comes gets its place."""
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
async def test_no_canary_sings_by_default(autojump_clock):
    """D9: it is asked for."""
    stage = Stage()
    async with serving(PUPPET, host=stage, patience=60):
        act = await stage.act(1)
        await trio.sleep(15)
        assert act.begun == []
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="canary must be > 0 seconds or None"):
            device_worker("llm", PUPPET, host=stage, canary=wrong)


@pytest.mark.parametrize("kind", ["hang", "stop"])
@pytest.mark.trio
async def test_a_canary_finds_a_context_that_hangs(kind):
    """D9: by the host's deadline for a first chunk, with a real process; the next request is served at once."""
    host = attrs.evolve(HOST, first_chunk_timeout=0.4)
    runner = Scripted(faults=(Fault(kind, incarnation=1),))
    async with serving(runner, host=host, canary=0.05) as scene:
        await scene.incarnation(2)
        assert scene.decisions() == [(ContextHung, Restart)]
        (caller,) = callers("a")
        await caller.run(scene.worker)
        caller.assert_whole()


# --- callers who leave


@pytest.mark.parametrize("form", ["stream", "call"])
@pytest.mark.trio
async def test_who_leaves_frees_the_place(form):
    """R30: the session is told to drop it at once, and the next in the queue begins."""
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
async def test_who_leaves_the_queue_takes_the_request_along(form):
    """R30: it never begins."""
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
    """R30: with a real context: its slot is free at the next step."""
    async with serving(attrs.evolve(FOREVER, streams=1)) as scene:
        for name in "abc":
            async with scene.worker.stream(batch(name)) as chunks:
                assert (await anext(chunks)).index == 0
        with trio.move_on_after(0.05):
            await scene.worker.call(batch("d"))
        request = batch("e", most=4)
        assert (await scene.worker.call(request)).token_ids == expected(request, 4)


# --- the whole of it


@pytest.mark.trio
async def test_shutdown_is_bounded_and_tells_everybody():
    """R21, D8, D10: with ten streams in full flow; the fixture sees that no process is left."""
    them = callers(map(str, range(12)))
    async with trio.open_nursery() as nursery:
        async with serving(attrs.evolve(FOREVER, streams=10)) as scene:
            for caller in them:
                await nursery.start(caller.run, scene.worker)
            await until(lambda: sum(bool(caller.chunks) for caller in them) == 10)
            before = trio.current_time()
        assert trio.current_time() - before < 3
    assert [type(caller.error) for caller in them] == [WorkerDown] * 12


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.trio
async def test_many_streams_survive_a_few_kills(seed):
    """D6: 32 streams over 4 places and SIGKILL now and then: none lost, nothing twice, every text identical."""
    chance = random.Random(seed)
    victims = {
        str(number) for number in (chance.randrange(4, 9), chance.randrange(13, 19), chance.randrange(23, 28))
    }
    kills = []

    def strike(chunk):
        """When a stream that began in this context is under way, none is on trial."""
        if chunk.request_id in victims and chunk.index == 5:
            victims.discard(chunk.request_id)
            kills.append(chunk.incarnation)
            kill_contexts()

    async with serving(Scripted(20, delay=0.001)) as scene:
        them = callers(map(str, range(32)), strike)
        await all_of(scene.worker, them)
        for caller in them:
            caller.assert_whole(20)
        assert kills == [1, 2, 3]
        assert (await scene.worker.ready()).incarnation == 4


@pytest.mark.slow
@pytest.mark.trio
async def test_a_real_model_goes_on_where_it_was():
    """D6: TorchLM on the CPU is reproducible: a cut stream equals its uncut text."""
    texts = []
    for hurt in (False, True):
        pids = set()

        def strike(chunk, hurt=hurt, pids=pids):
            if hurt and chunk.request_id == "1" and chunk.index == 20 and not pids:
                pids |= children()
                for pid in pids:  # the fork server, and the cleaner
                    kill(pid)

        async with serving(TorchLM()) as scene:
            them = [
                Caller(ExecuteBatch(str(n), "The import", sampling=Sampling(seed=n, max_tokens=200)), strike)
                for n in range(3)
            ]
            await all_of(scene.worker, them)
            assert (await scene.worker.ready()).incarnation == 1 + hurt
            texts.append([(caller.text, caller.ids, caller.error) for caller in them])
    assert texts[0] == texts[1]
