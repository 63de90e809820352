"""A runner in a process of its own. Real processes, real time; every wait is for a condition."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from contexts import (
    HOST,
    PATIENCE,
    is_readable,
    nothing_left,  # noqa: F401 - autouse: to be imported is its use
    opened,
)
from rogues import (
    Clings,
    ClosesAndLives,
    Nested,
    Ponders,
    Raises,
    Remembers,
    Says,
    SaysWhenAsked,
    Verbose,
    Yields,
    factory,
)
from sessions import (
    BATCH,
    FOREVER,
    ids,
    rest,
    until_failure,
    whole,
)

from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    ContextPoisoned,
    DeviceError,
    LoadFailed,
    OutOfMemory,
    ProtocolError,
    RunnerError,
    Unrecoverable,
)
from runners.hosts import Host, RequestFailed, Session, wire
from runners.hosts.peer import Peer
from runners.hosts.process import ENOUGH, TURN, ProcessHost, ProcessSession
from runners.scripted import Fault, Faulty, Scripted, expected
from runners.types import (
    ExecuteBatch,
    FinishReason,
    RunnerInfo,
    Sampling,
    SessionRebuildCause,
    TokenChunk,
    TokenUsage,
)

pytestmark = pytest.mark.filterwarnings("error")


def raw(*frames):
    return b"".join(map(wire.encode, frames)).decode("latin-1")


class Quiet:
    """A peer that says nothing."""

    pid = 0

    def kill(self):
        pass


@pytest.mark.trio
async def test_a_stream_arrives_whole_and_stamped():
    """D6: chunks carry request, index and incarnation; the last one says why it is."""
    async with opened(Scripted(5), incarnation=7) as session:
        assert isinstance(HOST, Host)
        assert isinstance(session, Session)
        items = await whole(session)
        assert ids(items) == expected(BATCH, 5)
        assert [item.index for item in items] == [0, 1, 2, 3, 4]
        assert {item.incarnation for item in items} == {7} == {session.incarnation}
        assert items[-1].finish_reason is FinishReason.STOP
        assert (session.info.streams, session.info.runtime) == (4, "scripted")
        assert "loaded" in repr(session)
    assert "ended" in repr(session)


@pytest.mark.trio
async def test_one_step_of_all_streams_arrives_together():
    """A step is one chunk of every open stream, delivered at once, and never empty."""
    async with opened(Scripted(3, delay=0.01)) as session:
        for name in "abc":
            session.begin(ExecuteBatch(name, name))
        steps = []
        while sum(map(len, steps)) < 9:
            steps.append([item.request_id for item in await session.receive()])
        assert ["a", "b", "c"] in steps
        assert [] not in steps


@pytest.mark.trio
async def test_steps_that_have_arrived_come_along():
    """A parent that was busy gets several steps at once, in order, and not without end."""
    async with opened(Scripted(FOREVER)) as session:
        session.begin(ExecuteBatch("r", "hello", sampling=Sampling(seed=1, max_tokens=1000)))
        await trio.sleep(0.5)
        sizes, items = [], []
        while not (items and items[-1].finish_reason):
            made = await session.receive()
            sizes.append(len(made))
            items += made
        assert [item.index for item in items] == list(range(1000))
        assert 1 < max(sizes) <= 512


@pytest.mark.parametrize(("chunks", "most"), [(1, TURN + 1), (20, ENOUGH + 20)])
@pytest.mark.trio
async def test_steps_that_come_along_are_bounded(chunks, most):
    """D10: by their number and by what is in them, so that the loop has its turn."""
    steps = [[wire.Chunk(0, 1 + 20 * n + i, (9,), "", None, None) for i in range(chunks)] for n in range(90)]
    async with opened(Says(raw(*(wire.Step(step, []) for step in steps)), "goes on")) as session:
        session.begin(BATCH)
        sizes, last = [], None
        while last is None or not last.finish_reason:
            made = await session.receive()
            sizes.append(len(made))
            last = made[-1]
        assert sum(sizes) == 90 * chunks + 2
        assert max(sizes) <= most


@pytest.mark.trio
async def test_a_poison_behind_steps_that_came_along_is_told_next():
    """D6: what stands behind them is not lost with what was read of it."""
    steps = [wire.Step([wire.Chunk(0, index, (9,), "", None, None)], []) for index in range(1, 5)]
    poison = wire.Broken(wire.Error("ContextPoisoned", "behind them", None, ""), ())
    async with opened(Says(raw(*steps, poison), "wait"), ProcessHost(next_chunk_timeout=5)) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextPoisoned)
        assert len(items) == 5
        assert str(error) == "behind them"


@pytest.mark.parametrize(
    ("asleep", "planned", "excused"), [(10.0, 1.0, 10.5), (0.2, 1.0, 0.0), (10.0, 0.01, 10.0)]
)
def test_time_in_which_nobody_ran_puts_a_deadline_off(asleep, planned, excused):
    """D9: a slice of waiting that ends much too late counts half, and one that is very short whole."""

    class Silent(Quiet):
        async def wait(self):
            with trio.CancelScope() as scope:
                try:
                    await trio.sleep_forever()
                finally:
                    clock.jump(asleep)
                    scope.cancel()

    async def main():
        host = ProcessHost(load_timeout=planned)
        session = ProcessSession(host, Silent(), 1)
        before = session._progress
        await session._wait()
        assert session._progress - before == pytest.approx(excused)

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)


@pytest.mark.trio
async def test_a_failure_behind_steps_that_came_along_is_told_next():
    """D6: what a context had made before it broke the protocol is delivered, then its failure."""
    step = [wire.Step([wire.Chunk(0, index, (9,), "z", None, None)], []) for index in range(1, 5)]
    late = wire.Step([wire.Chunk(5, 0, (), "", None, None)], [])
    async with opened(Says(raw(*step, late, *step), "wait")) as session:
        session.begin(BATCH)
        items, _ = await until_failure(session, ProtocolError)
        assert [item.index for item in items] == [0, 1, 2, 3, 4]


@pytest.mark.trio
async def test_a_chunk_travels_whole_and_is_stamped():
    """D6: a chunk keeps everything; which request's and incarnation's it is, the parent knows."""
    usage = TokenUsage(input=1, output=2, replayed=3, reasoning=4, cached=5)
    last = {"index": 1, "token_ids": (5, 6), "text": "x", "finish_reason": FinishReason.STOP, "usage": usage}
    made = TokenChunk(request_id="whatever the process calls it", **last)
    async with opened(Says(raw(wire.Step([wire.chunk(0, made)], []))), incarnation=9) as session:
        *_, got = await whole(session)
        assert got == TokenChunk(request_id=BATCH.request_id, incarnation=9, **last)
        with pytest.raises(ContextDied):
            await session.receive()


@pytest.mark.trio
async def test_a_stream_goes_on_behind_what_was_accepted():
    """D6: a new incarnation goes on where the old one was."""
    async with opened(Scripted(6), incarnation=2) as session:
        assert ids(await whole(session, accepted=expected(BATCH, 6)[:4])) == expected(BATCH, 6)[4:]


@pytest.mark.trio
async def test_a_dropped_stream_says_nothing_more_and_its_id_is_free():
    """A drop frees the place at once; chunks of the dropped stream that were under way do not show up."""
    async with opened(Scripted(FOREVER, streams=1, delay=0.001)) as session:
        for _ in range(20):
            session.begin(BATCH)
            assert (await session.receive())[0].index == 0
            session.drop("r")
            session.drop("r")


@pytest.mark.trio
async def test_misuse_is_told_at_once():
    """A second stream of the same name, one too many, tokens for a runner that cannot continue, an unsendable one."""
    async with opened(Scripted(FOREVER, streams=2, can_continue=False)) as session:
        session.begin(BATCH)
        with pytest.raises(ValueError, match="must differ, got a second 'r'"):
            session.begin(BATCH)
        with pytest.raises(ValueError, match="cannot continue a begun stream, got 2 accepted"):
            session.begin(ExecuteBatch("s", ""), [1, 2])
        with pytest.raises(BadRequest, match="'s' cannot be sent"):
            session.begin(ExecuteBatch("s", "\ud800"))
        with pytest.raises(BadRequest, match="at most 16777216 bytes"):
            session.begin(ExecuteBatch("s", "x" * wire.MAX_FRAME))
        with pytest.raises(BadRequest):
            session.begin(ExecuteBatch("s", "", sampling=Sampling(seed=2**64)))
        session.begin(ExecuteBatch("t", ""))
        with pytest.raises(RuntimeError, match="serves 2 streams at once, got one more: 'u'"):
            session.begin(ExecuteBatch("u", ""))
    with pytest.raises(trio.ClosedResourceError):
        session.begin(BATCH)
    with pytest.raises(trio.ClosedResourceError):
        await session.receive()


@pytest.mark.trio
async def test_a_runner_is_checked_before_anything_starts():
    """D2: what cannot be named for import is refused, and no process is started."""
    with pytest.raises(ValueError, match="importable by name"):
        HOST.open(factory())


@pytest.mark.parametrize(
    "name", ["load_timeout", "first_chunk_timeout", "kill_timeout", "next_chunk_timeout"]
)
def test_a_deadline_is_positive(name):
    """A constructor refuses nonsense."""
    with pytest.raises(ValueError, match=name):
        ProcessHost(**{name: 0})


@pytest.mark.trio
async def test_nested_values_and_the_start_reach_the_runner(tmp_path):
    """D2: the spec is built anew in the process, with device, incarnation and cause of this start."""
    nested = Nested((1, (2.5, None)), {"a": [True]})
    async with opened(
        Remembers(str(tmp_path), nested),
        ProcessHost("cuda:3", load_timeout=20),
        incarnation=4,
        cause="it died",
    ):
        told = (tmp_path / "loaded").read_text()
    assert repr(nested) in told
    assert "incarnation=4, device='cuda:3', cause='it died'" in told


@pytest.mark.trio
async def test_leaving_closes_the_runner(tmp_path):
    """A normal end is asked for: the runner is closed, even with a stream open."""
    async with opened(Remembers(str(tmp_path), Nested((), {}))) as session:
        session.begin(BATCH)
    assert (tmp_path / "closed").exists()


@pytest.mark.trio
async def test_leaving_by_cancellation_closes_the_runner(tmp_path):
    """So is the end of a cancelled user: the context is sound."""
    with trio.CancelScope() as scope:
        async with HOST.open(Remembers(str(tmp_path), Nested((), {}))) as session:
            scope.cancel()
            await session.receive()
    assert (tmp_path / "closed").exists()


@pytest.mark.trio
async def test_leaving_does_not_wait_for_ever():
    """A runner that hangs in close is killed at `close_timeout`, and that is an error of the end."""
    host = ProcessHost(close_timeout=0.3)
    started = time.monotonic()
    with pytest.raises(ContextHung, match=r"has not closed its runner within 0.3 s"):
        async with opened(Scripted(faults=(Fault("hang", at="close"),)), host):
            started = time.monotonic()
    assert 0.3 <= time.monotonic() - started < PATIENCE


@pytest.mark.trio
async def test_leaving_while_the_process_waits_for_room():
    """What nobody reads any more does not hold up the shutdown."""
    async with opened(Scripted(FOREVER * 100)) as session:
        session.begin(BATCH)
        await session.receive()
        await trio.sleep(0.2)  # it fills the socket meanwhile; sooner or later is the same


@pytest.mark.trio
async def test_begin_and_drop_never_block_and_stay_bounded():
    """A stopped process with a full socket: begin and drop return at once, and what is unsent does not grow."""
    async with opened(Scripted(2, streams=2)) as session:
        os.kill(session.pid, signal.SIGSTOP)
        big = "x" * 200_000
        for i in range(300):
            session.begin(ExecuteBatch(f"{i}", big))
            session.drop(f"{i}")
        assert len(session._peer._unsent) <= 8
        os.kill(session.pid, signal.SIGCONT)
        last = await whole(session, ExecuteBatch("last", big * 4))
        assert ids(last) == expected(ExecuteBatch("last", big * 4), 2)


@pytest.mark.trio
async def test_what_waits_for_room_is_sent_in_order():
    """D10: the rest of a long frame goes before what was said after it, however often there was no room."""
    async with opened(Scripted(2)) as session:
        os.kill(session.pid, signal.SIGSTOP)
        requests = [ExecuteBatch("long", "x" * 2_000_000), *(ExecuteBatch(name, name) for name in "abc")]
        for request in requests:
            session.begin(request)
        os.kill(session.pid, signal.SIGCONT)
        items = []
        while session._streams:
            items += await session.receive()
        for request in requests:
            his = [item for item in items if item.request_id == request.request_id]
            assert ids(his) == expected(request, 2)


@pytest.mark.trio
async def test_waiting_after_a_begin_was_taken_back_is_idle():
    """Nothing is left to send: there is no waiting for room, which would turn in circles once there is some."""
    async with opened(Scripted(1, streams=100_000)) as session:
        os.kill(session.pid, signal.SIGSTOP)
        last = 0
        while not session._peer._unsent:
            last += 1
            session.begin(ExecuteBatch(f"{last}", ""))
        session.drop(f"{last}")
        assert not session._peer._unsent
        os.kill(session.pid, signal.SIGCONT)
        while session._streams:
            await session.receive()
        looks, wait = [], session._peer.wait

        async def waits():
            looks.append(len(looks))
            await wait()

        session._peer.wait = waits
        with trio.move_on_after(0.3):
            await session.receive()
        assert len(looks) <= 2


@pytest.mark.trio
async def test_a_begin_that_was_taken_back_has_no_deadline():
    """D9: the process never hears of it, so those that have begun are late by their own deadline."""
    host = ProcessHost(first_chunk_timeout=10, next_chunk_timeout=0.5)
    async with opened(Scripted(faults=(Fault("hang", "last", 1),)), host) as session:
        os.kill(session.pid, signal.SIGSTOP)
        session.begin(ExecuteBatch("long", "x" * 2_000_000, sampling=Sampling(max_tokens=1)))
        session.begin(ExecuteBatch("back", ""))
        session.drop("back")
        os.kill(session.pid, signal.SIGCONT)
        await rest(session, "long")
        session.begin(ExecuteBatch("last", ""))
        _, error = await until_failure(session, ContextHung)
        assert "made no next chunk within 0.5 s" in str(error)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
@pytest.mark.trio
async def test_death_by_a_signal_is_named(number):
    """D9: a process that a signal killed is seen at once and named."""
    async with opened(Scripted(FOREVER, delay=0.001)) as session:
        session.begin(BATCH)
        await session.receive()
        os.kill(session.pid, number)
        items, error = await until_failure(session, ContextDied)
        assert str(error) == f"the context process {session.pid} was killed by {number.name}"
        assert all(isinstance(item, TokenChunk) for item in items)
        with pytest.raises(ContextDied) as again:
            await session.receive()
        assert again.value is error


@pytest.mark.trio
async def test_death_while_idle_is_seen():
    """D10: the pidfd is watched while no stream is open."""
    async with opened(Scripted()) as session, trio.open_nursery() as nursery:
        nursery.start_soon(until_failure, session, ContextDied)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(session.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("kind", "fate"),
    [("kill", "was killed by SIGKILL"), ("segv", "was killed by SIGSEGV"), ("exit", "exited with status 3")],
)
@pytest.mark.trio
async def test_death_from_within_comes_after_all_it_had_said(kind, fate):
    """D6: chunks sent before the death are delivered, then it is told."""
    async with opened(Scripted(8, faults=(Fault(kind, "r", 5),))) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextDied)
        assert ids(items) == expected(BATCH)[:5]
        assert str(error) == f"the context process {session.pid} {fate}"


@pytest.mark.trio
async def test_sys_exit_in_a_runner_is_a_death():
    """Nothing a runner does ends the process in peace."""
    async with opened(Raises("sys.exit")) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert str(error).endswith("exited with status 70")


@pytest.mark.trio
async def test_terminal_signals_are_the_parents_business():
    """D10: SIGINT, SIGTERM and the terminal's group do not end a context."""
    async with opened(Scripted(4)) as session:
        assert os.getpgid(session.pid) != os.getpgrp()
        os.kill(session.pid, signal.SIGINT)
        os.kill(session.pid, signal.SIGTERM)
        assert ids(await whole(session)) == expected(BATCH, 4)


@pytest.mark.trio
async def test_a_reported_poison_ends_the_context_with_its_own_error():
    """D6: the first error wins: the poison, not the death that follows; chunks before it arrive, none after."""
    runner = Faulty(Scripted(), (Fault("poison", "r", 3),))
    async with opened(runner) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextPoisoned)
        assert ids(items) == expected(BATCH)[:3]
        assert type(error) is ContextPoisoned
        assert (str(error), error.request_ids) == ("a scripted poison", ("r",))
        assert "scripted.py" in error.__notes__[0]
        session.begin(ExecuteBatch("s", ""))
        session.drop("r")
        with pytest.raises(ContextPoisoned, match="a scripted poison"):
            await session.receive()


@pytest.mark.trio
async def test_a_step_with_a_poison_gives_nothing_of_its_other_streams():
    """D6: what was computed beside a poison is not released."""
    async with opened(Scripted(5, delay=0.02, faults=(Fault("poison", "b", 0),))) as session:
        session.begin(ExecuteBatch("a", "a"))
        session.begin(ExecuteBatch("b", "b"))
        items, _ = await until_failure(session, ContextPoisoned)
        assert {item.request_id for item in items} <= {"a"}
        assert len(items) <= 1


@pytest.mark.trio
async def test_what_is_said_after_a_poison_is_dropped():
    """D6: frames behind a poison are never delivered."""
    poison = wire.Broken(wire.Error("ContextPoisoned", "first", None, ""), ())
    late = wire.Step([wire.Chunk(0, 1, (9,), "z", None, None)], [])
    second = wire.Broken(wire.Error("Unrecoverable", "second", None, ""), ())
    async with opened(Says(raw(poison, late, second), "wait")) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextPoisoned)
        assert ids(items) == (1,)
        for _ in range(3):
            with pytest.raises(ContextPoisoned) as again:
                await session.receive()
            assert again.value is error


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("\x00\x00\x00\x04junk", "not a frame"),
        ("GET / HTTP/1.1\r\n", "at most 16777216 bytes, got one of"),
        (raw(wire.Rebuilt()), "sent an unexpected Rebuilt frame"),
        (raw(wire.Dropped(0)), "dropped stream 0, not asked to"),
        (raw(wire.ready(RunnerInfo())), "sent an unexpected Ready frame"),
        (raw(wire.Step([wire.Chunk(5, 0, (), "", None, None)], [])), "spoke of stream 5, which is not open"),
        (
            raw(wire.Step([wire.Chunk(-1, 0, (), "", None, None)], [])),
            "spoke of stream -1, which is not open",
        ),
    ],
)
@pytest.mark.parametrize("then", ["exit", "wait"])
@pytest.mark.trio
async def test_what_it_may_not_say_is_a_protocol_error(said, message, then):
    """D10: garbage, a huge frame or a wrong one: ProtocolError, the process killed."""
    async with opened(Says(said, then)) as session:
        session.begin(BATCH)
        items, _ = await until_failure(session, ProtocolError)
        assert ids(items) == (1,)
        with pytest.raises(ProtocolError, match=message):
            await session.receive()


@pytest.mark.trio
async def test_who_speaks_of_the_very_next_stream_has_dropped_the_one_before():
    """D9: it has read the drop that was sent in front of it; what it never answers would be kept in mind for ever."""
    first, second = (raw(wire.Step([wire.Chunk(number, 0, (9,), "z", None, None)], [])) for number in (0, 1))
    runner = SaysWhenAsked(second, "wait", before=first)
    async with opened(runner, ProcessHost(first_chunk_timeout=5)) as session:
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        session.begin(ExecuteBatch("next", ""))
        _, error = await until_failure(session, ProtocolError)
        assert "has not dropped stream 0, as asked to" in str(error)


@pytest.mark.trio
async def test_an_end_in_mid_frame_is_a_death():
    """D10: half a frame and an exit is a death with its status."""
    async with opened(Says("\x00\x00\x01\x00half", "exit")) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert str(error).endswith("exited with status 9")


@pytest.mark.trio
async def test_a_closed_connection_is_a_death_though_the_process_lives():
    """D10: pidfd or end-of-file, whichever comes first."""
    async with opened(ClosesAndLives()) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert str(error).endswith("closed its connection")


@pytest.mark.parametrize("kind", ["error", "oom"])
@pytest.mark.trio
async def test_a_requests_own_error_concerns_nobody_else(kind):
    """D5: one stream fails, typed, and the other one goes on in the same context; memory is told once, after it."""
    async with opened(Scripted(6, delay=0.005, faults=(Fault(kind, "r", 2),))) as session:
        other = ExecuteBatch("other", "x", sampling=Sampling(seed=2))
        session.begin(other)
        session.begin(BATCH)
        items, told = [], []
        while not (items and isinstance(items[-1], TokenChunk) and items[-1].finish_reason):
            try:
                items += await session.receive()
            except OutOfMemory as error:
                told.append((error, [item for item in items if isinstance(item, RequestFailed)]))
        (failed,) = [item for item in items if isinstance(item, RequestFailed)]
        assert failed.request_id == "r"
        assert type(failed.error) is (OutOfMemory if kind == "oom" else RunnerError)
        assert ids(item for item in items if item.request_id == "other") == expected(other, 6)
        assert [(error.request_ids, before) for error, before in told] == (
            [(("r",), [failed])] if kind == "oom" else []
        )
        assert ids(await whole(session, ExecuteBatch("next", ""))) == expected(ExecuteBatch("next", ""), 6)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", "must yield a TokenChunk, got str"),
        ("object", "must have the types that TokenChunk says"),
        ("huge", "OverflowError: "),
        ("surrogate", "UnicodeEncodeError: "),
        ("nothing", "ended without a finish reason"),
    ],
)
@pytest.mark.trio
async def test_a_stream_of_nonsense_fails_alone(what, message):
    """D8: nothing looks like an empty success, and nothing unsendable harms the context."""
    async with opened(Yields(what)) as session:
        for name in "rs":
            (failed,) = await whole(session, ExecuteBatch(name, ""))
            assert type(failed.error) is RunnerError
            assert message in str(failed.error)


@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [
        ("subclass", ContextPoisoned, 700),
        ("device.poisoned.ecc", ContextPoisoned, None),
        ("device.unrecoverable", Unrecoverable, None),
        ("device.who.knows", DeviceError, None),
    ],
)
@pytest.mark.trio
async def test_a_tag_decides_whose_error_it_is(what, kind, code):
    """D3: what is tagged `device.` is the context's, of the nearest known class, with the device's code."""
    async with opened(Raises(what)) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, kind)
        assert (type(error), error.code) == (kind, code)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("error", LoadFailed),
        ("poison", ContextPoisoned),
        ("oom", OutOfMemory),
        ("unrecoverable", Unrecoverable),
        ("kill", ContextDied),
        ("segv", ContextDied),
        ("exit", ContextDied),
    ],
)
@pytest.mark.trio
async def test_a_load_that_fails_is_told_typed(kind, error):
    """D2: a failed load is a failure of the context like any other, and leaves nothing."""
    with pytest.raises(error) as failed:
        async with HOST.open(Scripted(faults=(Fault(kind, at="load"),))):
            raise AssertionError
    assert type(failed.value) is error


@pytest.mark.trio
async def test_a_load_that_hangs_is_killed():
    """D9: past the load deadline: SIGKILL, ContextHung."""
    with pytest.raises(ContextHung, match=r"loaded no runner within 0.4 s"):
        async with ProcessHost(load_timeout=0.4).open(Scripted(faults=(Fault("hang", at="load"),))):
            raise AssertionError


@pytest.mark.trio
async def test_a_load_that_is_cancelled_leaves_nothing_and_does_not_wait():
    """R13, D10: cancelling a load kills it at once."""
    started = time.monotonic()
    with trio.move_on_after(0.3) as scope:
        async with HOST.open(Scripted(load_delay=60)):
            raise AssertionError
    assert scope.cancelled_caught
    assert time.monotonic() - started < PATIENCE / 2


@pytest.mark.trio
async def test_a_process_that_cannot_be_started_is_a_failed_load(monkeypatch):
    """D2: no process, no descriptor: LoadFailed, chained."""

    def none_left(*args, **kwargs):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(LoadFailed, match="could not be started: no more processes"):
        async with HOST.open(Scripted()):
            raise AssertionError


@pytest.mark.trio
async def test_a_process_that_cannot_be_watched_is_not_left(monkeypatch):
    """D10: a pidfd that cannot be had leaves no process behind."""

    def none_left(pid):
        raise OSError("no more descriptors")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(LoadFailed, match="no more descriptors"):
        async with HOST.open(Scripted()):
            raise AssertionError


@pytest.mark.parametrize(
    ("fault", "limits", "message"),
    [
        (Fault("hang", "r", 0), {"first_chunk_timeout": 0.3}, "made no first chunk within 0.3 s"),
        (Fault("hang", "r", 2), {"next_chunk_timeout": 0.3}, "made no next chunk within 0.3 s"),
    ],
)
@pytest.mark.trio
async def test_a_step_that_hangs_is_killed(fault, limits, message):
    """D9: past the deadline for the first or the next chunk: SIGKILL, ContextHung."""
    async with opened(Scripted(faults=(fault,)), ProcessHost(**limits)) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextHung)
        assert ids(items) == expected(BATCH)[: fault.at_token]
        assert str(error) == f"the context process {session.pid} {message}"


@pytest.mark.parametrize("what", ["a stream", "a rebuild"])
@pytest.mark.trio
async def test_the_deadline_of_what_is_asked_holds_for_who_waits_already(what):
    """D9: somebody sits in `receive` since before, when nothing was asked and there was no deadline."""
    host = ProcessHost(first_chunk_timeout=0.3)
    failures = []

    async def reads(session):
        failures.append((await until_failure(session, ContextHung))[1])

    async with opened(Scripted(), host) as session:
        with trio.fail_after(15):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads, session)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(session.pid, signal.SIGSTOP)
                if what == "a stream":
                    session.begin(BATCH)
                else:
                    object.__setattr__(host, "load_timeout", 0.3)
                    with pytest.raises(ContextHung, match="rebuilt no session within"):
                        await session.rebuild(SessionRebuildCause.MANUAL)
    assert len(failures) == 1


@pytest.mark.trio
async def test_a_stopped_process_is_killed():
    """D9: SIGSTOP makes no progress and answers nothing; only SIGKILL reaches it."""
    host = ProcessHost(next_chunk_timeout=0.3)
    async with opened(Scripted(FOREVER, delay=0.001), host) as session:
        session.begin(BATCH)
        await session.receive()
        os.kill(session.pid, signal.SIGSTOP)
        await until_failure(session, ContextHung)


@pytest.mark.trio
async def test_a_busy_parent_is_no_hang():
    """D9: what was sent in time counts, however late the parent reads it."""
    host = ProcessHost(first_chunk_timeout=0.2, next_chunk_timeout=0.2)
    async with opened(Scripted(3, delay=0.01), host) as session:
        session.begin(BATCH)
        time.sleep(0.5)  # noqa: ASYNC251 - the parent that blocks is what is tested
        assert ids(await rest(session)) == expected(BATCH, 3)


@pytest.mark.trio
async def test_an_idle_context_has_no_deadline():
    """D9: without open streams nothing is expected."""
    host = ProcessHost(first_chunk_timeout=0.1, next_chunk_timeout=0.1)
    async with opened(Scripted(2), host) as session:
        await whole(session)
        with trio.move_on_after(0.4) as scope:
            await session.receive()
        assert scope.cancelled_caught
        assert ids(await whole(session)) == expected(BATCH, 2)


@pytest.mark.trio
async def test_a_step_that_begins_one_stream_has_the_time_of_those_that_go_on():
    """D9: one step serves both, so the longer of the two deadlines holds."""
    host = ProcessHost(first_chunk_timeout=1.0, next_chunk_timeout=60.0)
    async with opened(Scripted(FOREVER, delay=0.001), host) as session:
        session.begin(BATCH)
        await session.receive()
        os.kill(session.pid, signal.SIGSTOP)
        session.begin(ExecuteBatch("new", ""))
        with trio.move_on_after(1.5):
            while True:
                await session.receive()
        os.kill(session.pid, signal.SIGCONT)
        while "new" not in {item.request_id for item in await session.receive()}:
            pass


@pytest.mark.parametrize("begins_again", [False, True])
@pytest.mark.trio
async def test_a_hang_is_seen_though_whoever_waits_leaves(begins_again):
    """D9: who has left is not waited for, but the process is, until it says that it goes on."""
    host = ProcessHost(first_chunk_timeout=0.6, next_chunk_timeout=0.6)
    async with (
        opened(Scripted(faults=(Fault("hang"),)), host) as session,
        trio.open_nursery() as nursery,
    ):

        async def beg():
            session.begin(BATCH)
            while True:
                await trio.sleep(0.25)
                session.drop("r")
                if begins_again:
                    session.begin(BATCH)

        nursery.start_soon(beg)
        with trio.fail_after(PATIENCE / 2):
            await until_failure(session, ContextHung)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("seconds", "later"), [(1.4, 0.1), (0.5, 2.5)])
@pytest.mark.trio
async def test_who_leaves_a_slow_stream_hangs_nobody(seconds, later):
    """D9: the process says that it goes on, and then the next stream has all of its time, and nobody is waited for."""
    host = ProcessHost(first_chunk_timeout=2.0, next_chunk_timeout=2.0)
    async with opened(Ponders(seconds), host) as session, trio.open_nursery() as nursery:

        async def leave():
            await trio.sleep(0.3)
            session.drop("left")
            await trio.sleep(later)
            session.begin(BATCH)

        session.begin(ExecuteBatch("left", ""))
        nursery.start_soon(leave)
        assert ids(await rest(session)) == (1, 2)


@pytest.mark.trio
async def test_a_request_that_would_not_travel_whole_is_refused():
    """D8: what a class of one's own adds would be lost on the way."""

    @attrs.frozen
    class WithImage(ExecuteBatch):
        image: bytes = b""

    async with opened(Scripted(1)) as session:
        with pytest.raises(BadRequest, match=r"only an ExecuteBatch itself can be sent, got .*WithImage"):
            session.begin(WithImage("r", "", image=b"x"))
        assert ids(await whole(session)) == expected(BATCH, 1)


@pytest.mark.parametrize("length", [200_000, wire.MAX_FRAME - 500])
@pytest.mark.trio
async def test_a_request_id_too_long_for_its_failure_is_refused(length):
    """D5, D8: a lack of memory names its request, and must not end the context because it has no room for that."""
    request = ExecuteBatch("x" * length, "", sampling=Sampling(seed=1))
    async with opened(Scripted(1)) as session:
        with pytest.raises(
            BadRequest, match=f"a request id must have at most 131072 characters, got {length}"
        ):
            session.begin(request)
    longest = attrs.evolve(request, request_id="é" * 131_072)
    async with opened(Scripted(1, faults=(Fault("oom", longest.request_id, 0),))) as session:
        session.begin(longest)
        ((failed,),) = [await session.receive()]
        assert type(failed.error) is OutOfMemory
        with pytest.raises(OutOfMemory) as lacked:
            await session.receive()
        assert lacked.value.request_ids == (longest.request_id,)
        assert ids(await whole(session)) == expected(BATCH, 1)


@pytest.mark.trio
async def test_what_cannot_be_sent_may_still_end_the_context():
    """D5, D6: its stream is closed, and what that raises is judged like anything else."""
    async with opened(Clings()) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextPoisoned)
        assert (items, type(error), str(error)) == ([], ContextPoisoned, "cannot let go")


@pytest.mark.trio
async def test_a_step_too_long_for_a_frame_travels_in_several():
    """D5: what one stream alone may say, it may say beside others."""
    async with opened(Verbose(6 * 2**20)) as session:
        for name in "abc":
            session.begin(ExecuteBatch(name, ""))
        made = {name: [] for name in "abc"}
        while not all(items and items[-1].finish_reason for items in made.values()):
            for item in await session.receive():
                made[item.request_id].append(item)
        assert [len(items[0].text) for items in made.values()] == [6 * 2**20] * 3
    async with opened(Verbose(17 * 2**20)) as session:
        (failed,) = await whole(session)
        assert "a frame must have at most 16777216 bytes" in str(failed.error)


@pytest.mark.trio
async def test_a_begin_does_not_put_off_a_hang():
    """D9: the deadline counts from the last progress, not from the last request."""
    host = ProcessHost(first_chunk_timeout=0.4, next_chunk_timeout=0.4)
    async with (
        opened(Scripted(faults=(Fault("hang", "r", 2),)), host) as session,
        trio.open_nursery() as nursery,
    ):
        session.begin(BATCH)

        async def beg():
            while True:
                session.drop("s")
                session.begin(ExecuteBatch("s", ""))
                await trio.sleep(0.05)

        nursery.start_soon(beg)
        with trio.fail_after(PATIENCE / 2):
            await until_failure(session, ContextHung)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_next_deadline_follows_the_median_step():
    """D9: by default 20 times the median step, at least 10 s."""
    async with opened(Scripted(3), ProcessHost()) as session:
        assert session._next_timeout() == 10
        session._steps.extend([0.1, 2.0, 3.0])
        assert session._next_timeout() == 40


@pytest.mark.trio
async def test_cancelling_receive_loses_nothing():
    """A cancelled receive takes nothing away."""
    async with opened(Scripted(40, delay=0.001, streams=1)) as session:
        session.begin(BATCH)
        items = []
        while not (items and items[-1].finish_reason):
            with trio.move_on_after(0.0007):
                items += await session.receive()
        assert ids(items) == expected(BATCH, 40)


@pytest.mark.trio
async def test_a_rebuild_is_answered(tmp_path):
    """D7: a rebuild is done in the same incarnation, while receive goes on."""
    async with opened(Remembers(str(tmp_path), Nested((), {}))) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.receive)
        await session.rebuild(SessionRebuildCause.MANUAL)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "rebuilt").read_text() == "manual"


@pytest.mark.parametrize(
    ("kind", "error"), [("error", LoadFailed), ("kill", ContextDied), ("hang", ContextHung)]
)
@pytest.mark.trio
async def test_a_rebuild_that_fails_is_told_to_both(kind, error):
    """D2, D7: it is a failure of the context like any other, and the answer to who asked."""
    host = ProcessHost(load_timeout=2 if kind == "hang" else 20)
    runner = Scripted(faults=(Fault(kind, at="rebuild"),))
    async with opened(runner, host) as session, trio.open_nursery() as nursery:
        nursery.start_soon(until_failure, session, error)
        with pytest.raises(error) as failed, trio.fail_after(PATIENCE / 2):
            await session.rebuild(SessionRebuildCause.MANUAL)
        assert failed.value.__cause__ is session._failure
        with pytest.raises(error):
            await session.rebuild(SessionRebuildCause.MANUAL)


@pytest.mark.trio
async def test_a_rebuild_is_refused_where_it_makes_no_sense():
    """D7: never for a poison, never under open streams, one at a time."""
    async with opened(Scripted(FOREVER)) as session:
        with pytest.raises(ValueError, match="open a new incarnation"):
            await session.rebuild(SessionRebuildCause.CONTEXT_POISONED)
        session.begin(BATCH)
        with pytest.raises(RuntimeError, match="all streams dropped, got 1 open"):
            await session.rebuild(SessionRebuildCause.MANUAL)


@pytest.mark.trio
async def test_leaving_answers_a_rebuild():
    """D7: a rebuild that the end overtakes is told so."""
    answered = trio.Event()

    async def ask(session):
        with pytest.raises(trio.ClosedResourceError):
            await session.rebuild(SessionRebuildCause.MANUAL)
        answered.set()

    async with trio.open_nursery() as nursery:
        with pytest.raises(ContextHung, match="has not closed"):
            async with opened(
                Scripted(faults=(Fault("hang", at="rebuild"),)), ProcessHost(close_timeout=0.1)
            ) as session:
                nursery.start_soon(ask, session)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(RuntimeError, match="under way"):
                    await session.rebuild(SessionRebuildCause.MANUAL)
        with trio.fail_after(PATIENCE / 4):
            await answered.wait()


@pytest.mark.trio
async def test_a_process_that_does_not_die_makes_its_device_unrecoverable(monkeypatch):
    """D9: past `kill_timeout`: Unrecoverable, never two processes on one device."""
    peers = []
    monkeypatch.setattr(Peer, "kill", lambda peer: peers.append(peer))  # noqa: PLW0108 - a method must be a function
    host = ProcessHost("cuda:1", kill_timeout=0.2, next_chunk_timeout=0.1)

    async def outlive():
        async with host.open(Scripted(faults=(Fault("hang", "r", 1),))) as session:
            session.begin(BATCH)
            await until_failure(session, ContextHung)

    with pytest.raises(Unrecoverable, match=r"has outlived SIGKILL by 0.2 s: it may still hold cuda:1"):
        await outlive()
    os.kill(peers[0].pid, signal.SIGKILL)


@pytest.mark.trio
async def test_many_contexts_leave_nothing():
    """D10: neither descriptors nor processes nor zombies, however they end; the fixture counts."""
    kinds = [(), (Fault("poison"),), (Fault("kill"),), (Fault("exit"),)]
    for faults in kinds * 3:
        async with opened(Scripted(2, faults=faults)) as session:
            if faults:
                session.begin(BATCH)
                await until_failure(session, ContextPoisoned)
            else:
                await whole(session)


@pytest.mark.trio
async def test_contexts_live_side_by_side():
    """Two hosts in one loop do not know each other: one's death is not the other's."""
    async with opened(Scripted(4)) as one, opened(Scripted(4)) as two:
        os.kill(one.pid, signal.SIGKILL)
        await until_failure(one, ContextDied)
        assert ids(await whole(two)) == expected(BATCH, 4)


@pytest.mark.trio
async def test_the_loop_goes_on_meanwhile():
    """Loading, serving and killing never hold the loop for long."""
    longest = 0.0

    async def tick():
        nonlocal longest
        while True:
            before = time.monotonic()
            await trio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        runner = Scripted(FOREVER, load_delay=0.3, faults=(Fault("hang", "r", 50),))
        async with opened(runner, ProcessHost(next_chunk_timeout=0.3)) as session:
            session.begin(BATCH)
            await until_failure(session, ContextHung)
        nursery.cancel_scope.cancel()
    assert longest < 0.25


PARENT = """
import sys, trio
from runners.hosts.process import ENOUGH, TURN, ProcessHost, ProcessSession
from runners.scripted import Scripted
from runners.types import ExecuteBatch

async def main():
    async with ProcessHost().open(Scripted(10**6, delay=0.001)) as session:
        session.begin(ExecuteBatch("r", ""))
        await session.receive()
        print(session.pid, flush=True)
        while True:
            await session.receive()

trio.run(main)
"""


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_context_dies_with_its_parent(number, stopped):
    """D10: whatever kills the parent, and even while the child is stopped."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=env, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        pidfd = os.pidfd_open(pid)
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        parent.send_signal(number)
        assert is_readable(pidfd, PATIENCE)
        os.close(pidfd)


TALK = """
import logging, sys, trio
from runners.hosts.process import ENOUGH, TURN, ProcessHost, ProcessSession
from rogues import Talks

async def main():
    async with ProcessHost().open(Talks(sys.argv[1])):
        print("the parent's protocol", flush=True)

logging.basicConfig(level="INFO")
trio.run(main)
"""


def test_what_a_runner_prints_and_starts_is_kept_apart(tmp_path):
    """D10: its prints become log records, what it starts ends with it, its environment is the parent's."""
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", TALK, tmp_path],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "the parent's protocol\n"
    assert "a runner prints" in done.stderr
    sleeper, _, found = (tmp_path / "found").read_text().partition(" ")
    assert found == path
    assert not Path(f"/proc/{sleeper}").exists() or "Z" in Path(f"/proc/{sleeper}/stat").read_text()


def test_importing_the_host_protocol_imports_neither_trio_nor_msgspec():
    """The child imports this package first; each of the two would cost it tens of milliseconds."""
    code = "import sys, runners.hosts, runners.scripted, runners.hosts.spec; print({'trio', 'msgspec'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
