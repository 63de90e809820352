"""The device worker: requests without a waiting caller, rebuilds that cross, causes, what is kept, and how it drains."""

import gc
import weakref

import pytest
import trio
from rogues import Closes, Lacks
from sessions import HOSTS, every_host
from stage import (
    PUPPET,
    UP,
    Caller,
    Stage,
    batch,
    callers,
    serving,
    undecided,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners.errors import (
    ContextHung,
    ContextLost,
    ContextPoisoned,
    OutOfMemory,
    RebuildSuperseded,
    RunnerError,
    SessionRebuild,
    WorkerDown,
    WorkerStopping,
)
from runners.hosts import RequestFailed
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Scripted
from runners.types import SessionRebuildCause
from runners.worker import device_worker, rebuild, record, report_poison
from runners.worker import serving as serving_module
from supervise import Restart, Resume, events, open_tree

POISONED = SessionRebuildCause.CONTEXT_POISONED


class Operator:
    """Orders a rebuild, and keeps what came of it."""

    def __init__(self, cause=SessionRebuildCause.MANUAL):
        self.cause = cause
        self.result = None

    async def run(self, worker):
        try:
            self.result = await rebuild(worker, self.cause)
        except Exception as error:
            self.result = error


# --- D7: rebuilds


@pytest.mark.trio
async def test_a_rebuild_that_is_ordered_during_another_waits_for_it():
    """D7: Both are answered, each by a rebuild of its own, and the context lives."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        first, second = Operator(), Operator()
        nursery.start_soon(first.run, scene.worker)
        await act.is_asked_to_rebuild()
        nursery.start_soon(second.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        assert len(act.rebuilds) == 1
        act.is_rebuilt()
        await act.is_asked_to_rebuild(2)
        assert first.result.incarnation == 1
        act.is_rebuilt()
        await until(lambda: second.result)
        assert second.result.incarnation == 1
        assert scene.decisions() == [(SessionRebuild, Resume)] * 2


@pytest.mark.trio
async def test_a_storm_of_rebuilds_is_answered_one_by_one():
    """D7: Of fifty that come while one is carried out the last one waits, and the others get the error that they were superseded."""
    stage = Stage()
    async with serving(PUPPET, host=stage, limit=None) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        operators = [Operator() for _ in range(50)]
        nursery.start_soon(operators[0].run, scene.worker)
        await act.is_asked_to_rebuild()
        for operator in operators[1:]:
            nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        act.is_rebuilt()
        await act.is_asked_to_rebuild(2)
        act.is_rebuilt()
        await until(lambda: all(operator.result for operator in operators))
        superseded = [o for o in operators if type(o.result) is RebuildSuperseded]
        assert len(superseded) == 48
        assert len(act.rebuilds) == 2


@pytest.mark.trio
async def test_a_restart_that_is_ordered_during_a_rebuild_overtakes_it():
    """D7: The operator that waits for the rebuild gets the error that it was superseded, and the restart is made once."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        first, second = Operator(), Operator(POISONED)
        nursery.start_soon(first.run, scene.worker)
        await act.is_asked_to_rebuild()
        nursery.start_soon(second.run, scene.worker)
        await stage.act(2)
        await until(lambda: first.result and second.result)
        assert type(first.result) is RebuildSuperseded
        assert second.result.incarnation == 2
        assert scene.decisions() == [(SessionRebuild, Resume), (ContextPoisoned, Restart)]


@pytest.mark.parametrize("_", range(8))
@pytest.mark.trio
async def test_a_rebuild_that_is_done_as_a_restart_is_ordered_leaves_neither_waiting(_):
    """D7: If both come in the same turn, in Trio's random order, both are answered, and the restart is made."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        first = Operator()
        nursery.start_soon(first.run, scene.worker)
        await act.is_asked_to_rebuild()
        order = (await scene.worker.ready())._context.ask(POISONED)
        act.is_rebuilt()
        await order.answered.wait()
        await until(lambda: first.result)
        assert order.outcome == "ended"
        await scene.incarnation(2)


@every_host
@pytest.mark.trio
async def test_a_rebuild_without_enough_memory_fails_and_becomes_a_restart(host):
    """D7, D5: The operator gets OutOfMemory; there is no session left to resume, so the context is made anew."""
    async with serving(Lacks(), host=host) as scene:
        with pytest.raises(OutOfMemory, match="no room"):
            await rebuild(scene.worker)
        state = await scene.incarnation(2)
        (caller,) = callers("a", most=2)
        await caller.run(scene.worker)
        assert caller.error is None
        assert state.incarnation == 2
        assert scene.decisions() == [(SessionRebuild, Resume), (ContextPoisoned, Restart)]
        assert isinstance(scene.of(events.Failed)[1].exc.__cause__, OutOfMemory)


# --- D5, D6: requests without a waiting caller


@pytest.mark.trio
async def test_a_request_without_a_waiting_caller_does_not_disturb_others():
    """D5: It was sent with `on_loss="fail"`, and is open when memory runs out for another request; everything else goes on."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        act = await stage.act(1)
        await scene.worker.send(batch("sent"), on_loss="fail")
        await scene.worker.send(batch("kept"))
        victim, other = callers(["victim", "other"])
        for caller in (victim, other):
            await nursery.start(caller.run, scene.worker)
        await act.has("sent", "kept", "victim", "other")
        act.runs_out_of_memory("victim")
        await until(lambda: victim.error)
        assert type(victim.error) is OutOfMemory
        act.makes("sent")
        act.makes("kept", last=True)
        act.makes("other", last=True)
        await other.over.wait()
        assert other.ids == (0,)
        assert scene.decisions() == [(OutOfMemory, Resume)]
        assert set(act.open) == {"sent"}
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_request_without_a_waiting_caller_moves_or_ends_as_its_on_loss_says():
    """D6: If it has begun and was sent with `on_loss="fail"`, it ends with its context; otherwise it moves."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene:
        act = await stage.act(1)
        for name, options in (("fails", {"on_loss": "fail"}), ("waits", {"on_loss": "fail"}), ("moves", {})):
            await scene.worker.send(batch(name), **options)
        await act.has("fails", "waits", "moves")
        act.makes("fails")
        act.makes("moves")
        await trio.testing.wait_all_tasks_blocked()
        report_poison(scene.worker, "from outside", 1)
        second = await stage.act(2)
        await second.has("waits")
        second.makes("waits")
        await second.has("waits", "moves")
        assert second.open["moves"][1] == (0,)


# --- R31: what is kept


@pytest.mark.trio
async def test_a_stream_does_not_keep_the_contexts_it_has_been_in():
    """R31: A stream that lives through many contexts refers only to the one it is in."""
    stage = Stage()
    spec = device_worker("llm", PUPPET, host=stage, limit=None, backoff=None)
    async with open_tree(spec, sinks=[]) as tree, trio.open_nursery() as nursery:
        (caller,) = callers("a")
        await nursery.start(caller.run, tree[spec])
        gone = []
        for number in range(1, 21):
            act = await stage.act(number)
            await act.has("a")
            gone.append(weakref.ref(act))
            act.makes("a", index=number - 1)
            await until(lambda number=number: len(caller.ids) == number)
            act.fails(ContextPoisoned("x"))
            stage.acts[number - 1] = None
        await stage.act(21)
        del act
        gc.collect()
        assert sum(ref() is not None for ref in gone) <= 1  # the frames of the last failure may hold its own
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_caller_of_a_moved_stream_frees_the_place_it_has_now():
    """D6: When the caller leaves, only the context in which the stream is open is asked to drop it."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a")
        first.fails(ContextPoisoned("x"))
        second = await stage.act(2)
        await second.has("a")
        dropped = list(first.dropped)
        caller.scope.cancel()
        await until(lambda: second.dropped)
        assert (first.dropped, second.dropped) == (dropped, ["a"])


@pytest.mark.trio
async def test_a_caller_may_leave_while_its_stream_is_between_two_contexts():
    """D6: The stream is open in neither, so there is no place to free; the old context is gone."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        a, b = callers("ab")
        for caller in (a, b):
            await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a", "b")
        first.fails(ContextPoisoned("x"))
        second = await stage.act(2)
        await second.has("a")  # on trial, while the other waits
        b.scope.cancel()
        await b.over.wait()
        second.makes("a", last=True)
        await a.over.wait()
        assert a.ids == (0,)
        assert second.begun == ["a"]
        assert second.dropped == []


@pytest.mark.trio
async def test_a_new_stream_is_not_compared_with_all_open_ones(monkeypatch):
    """D6, F16: Of thousands of streams only the last can be a suspect, and a newcomer is compared with no more than that."""
    stage, looked = Stage(streams=100), []
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        names = [str(number) for number in range(50)]
        for caller in callers(names):
            await nursery.start(caller.run, scene.worker)
        act = await stage.act(1)
        await act.has(*names)
        state = await scene.worker.ready()
        record_of = serving_module.record_of
        monkeypatch.setattr(
            serving_module, "record_of", lambda message: looked.append(1) or record_of(message)
        )
        assert state._context.has_room()
        assert len(looked) <= 1
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_text_without_end_fails_its_request_alone(monkeypatch):
    """D5: A runner that sends more text than any answer may have does not fill the parent's memory."""
    monkeypatch.setattr("runners.worker.serving.MAX_CHARACTERS", 10)
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene, trio.open_nursery() as nursery:
        a, b = callers("ab")
        for caller in (a, b):
            await nursery.start(caller.run, scene.worker)
        act = await stage.act(1)
        await act.has("a", "b")
        for index in range(11):
            act.makes("a", index=index)
        await a.over.wait()
        assert type(a.error) is RunnerError
        assert act.dropped == ["a"]
        act.makes("b", last=True)
        await b.over.wait()
        assert b.error is None
        assert record.MAX_CHARACTERS == 2**26


# --- D2: causes


class Verbose(ContextPoisoned):
    """Prints itself in lines."""

    def __repr__(self):
        return "first\nsecond"


@pytest.mark.trio
async def test_the_cause_of_a_start_is_one_short_line():
    """D2, D3: The report of a poison may quote a whole log."""
    stage = Stage()
    async with serving(PUPPET, host=stage) as scene:
        await stage.act(1)
        report_poison(scene.worker, "first line\nsecond line\n" + "x" * 20_000_000, 1)
        second = await stage.act(2)
        assert len(second.cause) <= 500
        assert "\n" not in second.cause
        assert second.cause.startswith("ContextPoisoned(")
        second.fails(Verbose("x"))
        third = await stage.act(3)
        assert third.cause == "first second"


@pytest.mark.trio
async def test_a_process_gets_a_long_cause_shortened():
    """D2: A start is not refused because its cause is long."""
    async with HOSTS["process"].open(
        Scripted(), incarnation=2, cause="\ud800\n" + "x" * 20_000_000
    ) as session:
        assert session.info.runtime == "scripted"


# --- what closing does


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("raises", RunnerError, "ValueError: cannot close"),
        ("exits", None, "exited with status 70"),
        ("segfaults", None, "was killed by SIGSEGV"),
        ("hangs", ContextHung, "has not closed its runner within 0.5 s"),
    ],
)
@pytest.mark.trio
async def test_a_runner_that_does_not_close_is_an_error_of_the_stop(how, kind, says):
    """R23, D10: It is reported like any failure while stopping, with its process gone."""
    host = ProcessHost(close_timeout=0.5 if how == "hangs" else 60)
    async with serving(Closes(how), host=host) as scene:
        await scene.worker.ready()
    (error,) = scene.of(events.StopError)
    assert kind is None or type(error.exc) is kind
    assert says in str(error.exc)


@pytest.mark.parametrize("how", ["raises", "exits"])
@pytest.mark.trio
async def test_a_thread_that_does_not_close_its_runner_is_an_error_of_the_stop(how):
    """R23, D10: `sys.exit` in a thread ends that thread, and is reported all the same."""
    async with serving(Closes(how), host=HOSTS["thread"]) as scene:
        await scene.worker.ready()
    (error,) = scene.of(events.StopError)
    assert {"raises": "cannot close", "exits": "SystemExit: 3"}[how] in str(error.exc)


# --- D13: draining


@pytest.mark.slow
@every_host
@pytest.mark.trio
async def test_begun_streams_finish_when_a_worker_drains(host):
    """D13: A worker that is asked to stop refuses new requests, and finishes the streams that have begun."""
    slow = () if host is HOSTS["inline"] else (Fault("slow", "begun", 20, seconds=2),)
    runner = Scripted(40, delay=0.01 if slow else 0, streams=1, faults=slow)
    async with serving(runner, host=host, drain=30) as scene, trio.open_nursery() as nursery:
        begun, waits, late = callers(["begun", "waits", "late"], on_chunk=lambda _: None)
        await nursery.start(begun.run, scene.worker)
        await until(lambda: begun.chunks)
        await nursery.start(waits.run, scene.worker)
        nursery.start_soon(scene.worker.stop)
        if host is not HOSTS["inline"]:
            await until(lambda: scene.context.state == "stopping")
            await late.run(scene.worker)
            assert type(late.error) is WorkerStopping
            assert type(waits.error) is WorkerStopping
            assert not begun.over.is_set()
        await begun.over.wait()
    begun.assert_whole(40)
    assert not scene.of(events.StopError)
    assert not scene.of(events.Failed)


@pytest.mark.trio
async def test_a_worker_that_drains_takes_no_longer_than_its_streams_or_its_time():
    """D13: An idle worker stops at once; one whose streams take longer than its drain stops then, and they get an error."""
    with trio.fail_after(60):
        async with serving(PUPPET, drain=3600) as scene:
            await scene.worker.ready()
        stage = Stage()
        async with serving(PUPPET, host=stage, drain=0.2) as scene, trio.open_nursery() as nursery:
            moves, stays = callers(["moves"])[0], Caller(batch("stays", on_loss="fail"))
            for caller in (moves, stays):
                await nursery.start(caller.run, scene.worker)
            act = await stage.act(1)
            await act.has("moves", "stays")
            act.makes("moves")
            act.makes("stays")
            await until(lambda: moves.chunks and stays.chunks)
            await scene.worker.stop()
            assert type(stays.error) is ContextLost
            assert type(moves.error) is WorkerDown


@pytest.mark.trio
async def test_a_stream_on_its_way_to_another_session_counts_as_begun():
    """D13, D7: A worker that is stopped while its session is rebuilt goes on with the streams that it took out for that."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        begun, silent, operator = *callers(["begun", "silent"]), Operator()
        for caller in (begun, silent):
            await nursery.start(caller.run, scene.worker)
        act = await stage.act(1)
        await act.has("begun", "silent")
        act.makes("begun")
        await until(lambda: begun.chunks)
        nursery.start_soon(operator.run, scene.worker)
        await act.is_asked_to_rebuild()
        (new,) = callers(["new"])
        await nursery.start(new.run, scene.worker)
        nursery.start_soon(scene.worker.stop)
        await until(lambda: scene.context.state == "stopping")
        act.is_rebuilt()
        await new.over.wait()
        assert type(new.error) is WorkerStopping
        await until(lambda: set(act.open) == {"begun", "silent"})
        act.makes("begun", index=1, last=True)
        act.makes("silent", last=True)
        for caller in (begun, silent):
            await caller.over.wait()
        assert (begun.ids, silent.ids) == ((0, 1), (0,))


@pytest.mark.trio
async def test_suspects_come_back_one_at_a_time_while_a_worker_drains_too():
    """D13, D6: The stop changes nothing for streams that have begun."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        a, b = callers("ab")
        for caller in (a, b):
            await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a", "b")
        first.fails(ContextPoisoned("x"))
        second = await stage.act(2)
        await second.has("a")
        nursery.start_soon(scene.worker.stop)
        await until(lambda: scene.context.state == "stopping")
        await second.has("a")
        second.makes("a")
        await second.has("a", "b")
        second.makes("a", index=1, last=True)
        second.makes("b", last=True)
        for caller in (a, b):
            await caller.over.wait()
        assert (a.error, b.error) == (None, None)


@pytest.mark.parametrize("_", range(8))  # in one of two the drain was looked after first
@pytest.mark.parametrize("ends", ["with its first chunk", "with an error"])
@pytest.mark.trio
async def test_a_drain_waits_for_a_stream_whose_place_has_just_become_free(ends, _):
    """D13: The stream has begun, though none is open between the end of the suspect before it and its own turn."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        a, b = callers("ab")
        for caller in (a, b):
            await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a", "b")
        first.fails(ContextPoisoned("x"))
        second = await stage.act(2)
        await second.has("a")
        nursery.start_soon(scene.worker.stop)
        await until(lambda: scene.context.state == "stopping")
        await second.has("a")
        if ends == "with an error":
            del second.open["a"]
            second.fails([RequestFailed("a", RunnerError("x"))])
        else:
            second.makes("a", last=True)
        await until(lambda: b.over.is_set() or "b" in second.open)
        assert not b.over.is_set()
        second.makes("b", last=True)
        await b.over.wait()
        assert b.ids == (0,)


@pytest.mark.trio
async def test_a_drain_does_not_begin_a_stream_again_whose_caller_has_left():
    """D13, D6: A caller that leaves before its stream has a place again withdraws it."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        a, b = callers("ab")
        for caller in (a, b):
            await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a", "b")
        first.fails(ContextPoisoned("x"))
        second = await stage.act(2)
        await second.has("a")
        nursery.start_soon(scene.worker.stop)
        await until(lambda: scene.context.state == "stopping")
        await second.has("a")
        b.scope.cancel()
        await b.over.wait()
        second.makes("a")
        await second.has("a")
        second.makes("a", index=1, last=True)
        await a.over.wait()
        assert a.error is None
    assert second.ended


@pytest.mark.trio
async def test_memory_that_runs_out_while_a_worker_drains_fails_one_request():
    """D13, D5: No supervisor resumes a context that is being stopped, and the other streams go on all the same."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        a, b, c = callers("abc")
        for caller in (a, b, c):
            await nursery.start(caller.run, scene.worker)
        act = await stage.act(1)
        await act.has("a", "b", "c")
        nursery.start_soon(scene.worker.stop)
        await until(lambda: scene.context.state == "stopping")
        act.runs_out_of_memory("a")
        await a.over.wait()
        act.makes("b")
        act.runs_out_of_memory("c")
        await c.over.wait()
        act.makes("b", index=1, last=True)
        await b.over.wait()
        assert [type(caller.error) for caller in (a, b, c)] == [OutOfMemory, type(None), OutOfMemory]
        assert not scene.of(events.Failed)


@pytest.mark.trio
async def test_a_rebuild_is_refused_while_a_worker_drains():
    """D13, D7: A rebuild that waits for its turn gets that error at once."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        stays, operator, later = Caller(batch("stays", on_loss="fail")), Operator(), Operator()
        await nursery.start(stays.run, scene.worker)
        act = await stage.act(1)
        await act.has("stays")
        act.makes("stays")
        await until(lambda: stays.chunks)
        nursery.start_soon(operator.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(scene.worker.stop)
        await until(lambda: operator.result)
        await later.run(scene.worker)
        assert type(operator.result) is type(later.result) is WorkerStopping
        act.makes("stays", index=1, last=True)
        await stays.over.wait()
        assert stays.error is None


@pytest.mark.trio
async def test_a_rebuild_that_is_ordered_as_the_stop_comes_disturbs_no_drain():
    """D13, D7: The operator found the worker up a moment before, and gets the error that it stops; begun streams go on."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        act = await stage.act(1)
        await act.has("a")
        state = await scene.worker.ready()
        nursery.start_soon(scene.worker.stop)
        while scene.context.state != "stopping":
            await trio.lowlevel.checkpoint()
        order = state._context.ask(SessionRebuildCause.MANUAL)
        await order.answered.wait()
        assert type(order.outcome) is WorkerStopping
        await act.has("a")
        act.makes("a", last=True)
        await caller.over.wait()
        assert caller.error is None


@pytest.mark.parametrize("how", ["reported", "ordered"])
@pytest.mark.trio
async def test_a_context_that_drains_and_is_poisoned_serves_no_longer(how):
    """D3, D13: It is not replaced, and its streams get their errors at once. A report of a stale incarnation changes nothing."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        moves, stays, operator = (
            *callers(["moves"]),
            Caller(batch("stays", on_loss="fail")),
            Operator(POISONED),
        )
        for caller in (moves, stays):
            await nursery.start(caller.run, scene.worker)
        act = await stage.act(1)
        await act.has("moves", "stays")
        act.makes("stays")
        await until(lambda: stays.chunks)
        nursery.start_soon(scene.worker.stop)
        await until(lambda: scene.context.state == "stopping")
        report_poison(scene.worker, "x", 2)
        await trio.testing.wait_all_tasks_blocked()
        assert scene.context.state == "stopping"
        if how == "reported":
            report_poison(scene.worker, "x", 1)
        else:
            await operator.run(scene.worker)
            assert type(operator.result) is WorkerStopping
        await moves.over.wait()
        assert (type(moves.error), type(stays.error)) == (WorkerDown, ContextLost)
        assert type(scene.of(events.StopError)[0].exc) is ContextPoisoned


@pytest.mark.trio
async def test_streams_that_drain_for_a_restart_go_on_in_the_next_context_after_a_poison():
    """D3, D6, D13: Here the supervisor that restarts the worker starts a successor."""
    stage = Stage()
    async with serving(PUPPET, host=stage, drain=20) as scene, trio.open_nursery() as nursery:
        (caller,) = callers("a")
        await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("a")
        first.makes("a")
        await until(lambda: caller.chunks)
        nursery.start_soon(scene.worker.restart)
        await until(lambda: scene.context.state == "stopping")
        report_poison(scene.worker, "x", 1)
        second = await stage.act(2)
        await second.has("a")
        second.makes("a", index=1, last=True)
        await caller.over.wait()
        assert (caller.error, caller.ids) == (None, (0, 1))


@pytest.mark.trio
async def test_a_poison_that_is_reported_while_a_lack_of_memory_is_undecided_is_not_lost():
    """D3: Otherwise the context would be resumed, and would serve on."""
    stage = Stage()
    async with serving(PUPPET, host=stage, **UP) as scene, trio.open_nursery() as nursery:
        big, other = callers(["big", "other"])
        for caller in (big, other):
            await nursery.start(caller.run, scene.worker)
        first = await stage.act(1)
        await first.has("big", "other")
        async with undecided(scene, first, lambda act: act.runs_out_of_memory("big")):
            report_poison(scene.worker, "x", 1)
        second = await stage.act(2)
        await second.has("other")
        second.makes("other", last=True)
        await other.over.wait()
        assert scene.decisions() == [(OutOfMemory, Resume), (ContextPoisoned, Restart)]


@pytest.mark.parametrize("drain", [-1, float("nan"), 10**400, "3", True, None])
def test_a_drain_is_seconds(drain):
    """D13: Any other value is refused when it is declared."""
    with pytest.raises(ValueError, match="drain must be >= 0 seconds"):
        device_worker("llm", PUPPET, drain=drain)
