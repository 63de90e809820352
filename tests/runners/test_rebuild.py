"""A session made anew on demand: when a rebuild may be ordered, and how the operator is answered (D7)."""

from contextlib import asynccontextmanager

import pytest
import trio
from stage import (
    PUPPET,
    Caller,
    Stage,
    batch,
    callers,
    serving,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners import InlineHost
from runners.errors import (
    ContextDied,
    ContextLost,
    ContextPoisoned,
    InferenceError,
    OutOfMemory,
    RebuildSuperseded,
    SessionRebuild,
    WorkerDown,
    WorkerStopping,
)
from runners.models.scripted import Fault, Scripted
from runners.types import (
    SessionRebuildCause,
)
from runners.worker import rebuild
from supervise import (
    DEVICE,
    Decider,
    Limit,
    Restart,
    Resume,
    Stop,
    events,
)
from supervise.errors import LimitExceeded

pytestmark = pytest.mark.filterwarnings("error")


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


@pytest.mark.slow
@pytest.mark.parametrize("cause", list(SessionRebuildCause))
@pytest.mark.trio
async def test_a_rebuild_is_done_and_no_stream_notices(cause, tmp_path):
    """D7: It is done in the same incarnation, for a poisoned context in a new one; every stream goes on, token for token."""
    async with serving(Scripted(300, delay=0.001)) as scene:
        them = callers("abcdef")
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            await until(lambda: sum(bool(caller.chunks) for caller in them) >= 4)
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
async def test_a_rebuild_holds_streams_that_may_move_and_waits_for_those_that_may_not():
    """D7: Nothing new begins meanwhile; the session is rebuilt with no stream in it; then the streams that moved go first."""
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
    """D7: Such a stream has nothing to lose, and begins again, even if it may not move."""
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
async def test_a_rebuild_after_a_poison_waits_for_no_stream():
    """D7, D6: It is a restart at once; a stream that may not move gets its error, and no stream is a suspect."""
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
    """D7: Rebuilds pass the limit also with requests in between; then every caller has an answer."""
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
    """D7, D2: The operator gets the error, and the streams go on in a new context."""
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
    """D7: The context fails while the rebuild waits, or during it, and the operator gets the new context as the answer."""
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
    """D7: Of several that wait the last counts, and one rebuild is made and charged."""
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
async def test_a_rebuild_and_a_lack_of_memory_do_not_overlap(_):
    """D7, D5: Whichever comes first, in Trio's random order, the session is rebuilt with no stream in it."""
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
async def test_an_operator_that_leaves_withdraws_its_order():
    """D7: The order is withdrawn until it has begun; then requests begin again."""
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
async def test_a_rebuild_of_a_worker_that_is_not_up_is_answered():
    """D7: The worker may be stopping, stopped by hand, starting again, or ended with its tree; each has its own error."""
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
async def test_a_rebuild_that_waits_gets_an_error_at_a_stop():
    """D7: Its stream gets one too."""
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
async def test_a_rebuild_after_a_poison_is_answered_whatever_the_directive():
    """D7: If the decider says Resume in place of Restart, the answer is that the rebuild was not done."""
    stage = Stage()
    mine = Decider({"device.poisoned": Resume}).over(DEVICE)
    async with serving(PUPPET, host=stage, decider=mine) as scene:
        with pytest.raises(RebuildSuperseded, match="resumed"):
            await rebuild(scene.worker, POISONED)


@pytest.mark.trio
async def test_a_cause_may_be_given_by_its_value(autojump_clock):
    """D7: It is an enumeration of strings; any other value is refused in one line, and nothing happens."""
    async with serving(Scripted(3), host=InlineHost(), patience=30) as scene:
        before = await scene.worker.ready()
        assert (await rebuild(scene.worker, "manual")).incarnation == before.incarnation
        for wrong in ("nonsense", None, 3):
            with pytest.raises(
                ValueError, match=r"the cause of a rebuild must be one of 'context_poisoned', .*, got "
            ):
                await rebuild(scene.worker, wrong)
        assert (await rebuild(scene.worker, "context_poisoned")).incarnation == before.incarnation + 1
