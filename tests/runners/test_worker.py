"""The device worker: what is sent, how it starts, and whose error what is (D1–D5).

Real processes, really killed; where an exact interleaving is wanted, a `Stage`: a host whose sessions do as the test says.
"""

import json
import random
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
from contexts import contexts, kill_contexts
from rogues import Raises, Witness, factory
from stage import (
    FOREVER,
    HOST,
    PUPPET,
    UP,
    Act,
    Caller,
    Stage,
    all_of,
    batch,
    callers,
    children,
    kill,
    loads_fail,
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
    DeviceError,
    LoadFailed,
    OutOfMemory,
    RunnerError,
    Unrecoverable,
    WorkerDown,
)
from runners.hosts import Host, RequestFailed, Session
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Faulty, Scripted, expected, letter
from runners.models.torch_lm import TorchLM
from runners.types import (
    Completion,
    ExecuteBatch,
    FinishReason,
    RunnerInfo,
    Sampling,
    TokenUsage,
)
from runners.worker import ContextState, device_worker, report_poison
from supervise import (
    DEVICE,
    Backoff,
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

pytestmark = pytest.mark.filterwarnings("error")


def test_the_stage_is_a_host():
    """What stands in for a process here has its shape."""
    assert isinstance(Stage(), Host)
    assert isinstance(Act(1, None, RunnerInfo()), Session)


@pytest.mark.trio
async def test_a_session_that_lacks_a_method_is_refused_at_the_start(autojump_clock):
    """D10: Otherwise the first death of a context would find that out, and fail the tree."""

    class Lacking:
        incarnation, pid, info = 1, None, RunnerInfo()
        begin = drop = receive = rebuild = None

    class Opens:
        @asynccontextmanager
        async def open(self, runner, *, incarnation=1, cause=None):
            yield Lacking()

    with pytest.raises(StartFailed, match=r"must open a Session with all its methods, got .*Lacking object"):
        async with open_tree(device_worker("llm", PUPPET, host=Opens()), sinks=[]):
            pytest.fail("it has started")


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


@pytest.mark.slow
@pytest.mark.trio
async def test_a_reported_poison_restarts_and_a_stale_report_does_not():
    """D3: `report_poison` counts for the incarnation it names, once; streams move as after any poison."""
    slow = Fault("slow", "a", 20, 1, seconds=10)  # so that no stream is over before the report
    async with serving(Scripted(300, delay=0.001, faults=(slow,))) as scene:
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
        them = [*callers(["a", "bad", "b"]), Caller(batch("unsendable", seed=2**64))]
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


@pytest.mark.slow
@pytest.mark.trio
async def test_a_lack_of_memory_from_outside_resumes_too():
    """R27, D5: an injected failure ends the body, not the session; the streams begin in it again, behind what they had."""
    async with serving(Scripted(200, delay=0.001)) as scene:
        them = callers("abcdef")
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            await until(lambda: sum(bool(caller.chunks) for caller in them) >= 4)
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


# --- the whole of it


@pytest.mark.slow
@pytest.mark.trio
async def test_shutdown_is_bounded_and_tells_everybody():
    """R21, D8, D10: with ten streams in full flow; the fixture sees that no process is left."""
    them = callers(map(str, range(12)))
    async with trio.open_nursery() as nursery:
        async with serving(attrs.evolve(FOREVER, tokens=10**6, streams=10)) as scene:
            for caller in them:
                await nursery.start(caller.run, scene.worker)
            await until(lambda: sum(bool(caller.chunks) for caller in them) == 10)
            before = trio.current_time()
        assert trio.current_time() - before < 20
    assert [type(caller.error) for caller in them] == [WorkerDown] * 12


@pytest.mark.slow
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

        slow = Fault("slow", "1", 25, 1, seconds=10)  # so that it is not over before it is struck
        async with serving(Faulty(TorchLM(), (slow,) if hurt else ())) as scene:
            them = [
                Caller(ExecuteBatch(str(n), "The import", sampling=Sampling(seed=n, max_tokens=200)), strike)
                for n in range(3)
            ]
            await all_of(scene.worker, them)
            assert (await scene.worker.ready()).incarnation == 1 + hurt
            texts.append([(caller.text, caller.ids, caller.error) for caller in them])
    assert texts[0] == texts[1]
