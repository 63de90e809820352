"""A runner in a process of its own: its streams, its start and its end. Real processes, real time; every wait is for a condition."""

import os
import signal
import time
from fractions import Fraction

import numpy as np
import pytest
import trio
import trio.testing
from contexts import (
    HOST,
    PATIENCE,
    chunks_waiting,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    until,
)
from rogues import (
    Nested,
    Remembers,
    Says,
    factory,
)
from sessions import (
    BATCH,
    FOREVER,
    ids,
    raw,
    rest,
    until_failure,
    whole,
)

from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    ContextPoisoned,
    ProtocolError,
)
from runners.hosts import Host, Session
from runners.hosts.process import wire
from runners.hosts.process.host import ENOUGH, TURN, ProcessHost, ProcessSession
from runners.models.scripted import Fault, Scripted, expected
from runners.types import (
    ExecuteBatch,
    FinishReason,
    Sampling,
    TokenChunk,
    TokenUsage,
)

pytestmark = pytest.mark.filterwarnings("error")


class Quiet:
    """A peer that sends nothing."""

    pid = 0
    name = "the context process 0"

    def kill(self):
        pass


@pytest.mark.trio
async def test_a_stream_arrives_whole_and_stamped():
    """D6: Chunks carry request, index and incarnation; the last one carries the reason of the end."""
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
        deliveries, steps = [], []
        while sum(map(len, deliveries)) < 9:
            deliveries.append([item.request_id for item in await session.receive()])
            # Steps that have come meanwhile are delivered together; a step has one chunk of each stream.
            steps.append([])
            for name in deliveries[-1]:
                if name in steps[-1]:
                    steps.append([])
                steps[-1].append(name)
        assert ["a", "b", "c"] in steps
        assert [] not in deliveries


@pytest.mark.trio
async def test_steps_that_have_arrived_are_delivered_together():
    """A parent that was busy gets several steps at once, in order, up to a bound."""
    async with opened(Scripted(FOREVER)) as session:
        session.begin(ExecuteBatch("r", "hello", sampling=Sampling(seed=1, max_tokens=1000)))
        await until(lambda: chunks_waiting(session) > 1)
        sizes, items = [], []
        while not (items and items[-1].finish_reason):
            made = await session.receive()
            sizes.append(len(made))
            items += made
        assert [item.index for item in items] == list(range(1000))
        assert 1 < max(sizes) <= 512


@pytest.mark.parametrize(("chunks", "most"), [(1, TURN + 1), (20, ENOUGH + 20)])
@pytest.mark.trio
async def test_steps_that_arrive_together_are_bounded(chunks, most):
    """D10: Their number and their size are bounded, so that the event loop has its turn."""
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
async def test_a_poison_behind_steps_that_arrived_together_is_reported_next():
    """D6: It is not lost with the steps that were read before it."""
    steps = [wire.Step([wire.Chunk(0, index, (9,), "", None, None)], []) for index in range(1, 5)]
    poison = wire.Broken(wire.Error("ContextPoisoned", "behind them", None, ""), ())
    async with opened(Says(raw(*steps, poison), "wait"), HOST) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextPoisoned)
        assert len(items) == 5
        assert str(error) == "behind them"


@pytest.mark.parametrize(
    ("asleep", "planned", "excused"), [(10.0, 1.0, 10.5), (0.2, 1.0, 0.0), (10.0, 0.01, 10.0)]
)
def test_time_in_which_no_process_ran_puts_a_deadline_off(asleep, planned, excused):
    """D9: A slice of waiting that ends much too late counts half, and one that is very short counts whole."""

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
async def test_a_failure_behind_steps_that_arrived_together_is_reported_next():
    """D6: The steps that a context had made before it broke the protocol are delivered, then its failure."""
    step = [wire.Step([wire.Chunk(0, index, (9,), "z", None, None)], []) for index in range(1, 5)]
    late = wire.Step([wire.Chunk(5, 0, (), "", None, None)], [])
    async with opened(Says(raw(*step, late, *step), "wait")) as session:
        session.begin(BATCH)
        items, _ = await until_failure(session, ProtocolError)
        assert [item.index for item in items] == [0, 1, 2, 3, 4]


@pytest.mark.trio
async def test_a_chunk_travels_whole_and_is_stamped():
    """D6: A chunk keeps all its fields; the parent adds its request and incarnation."""
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
    """D6: A new incarnation goes on where the old one was."""
    async with opened(Scripted(6), incarnation=2) as session:
        assert ids(await whole(session, accepted=expected(BATCH, 6)[:4])) == expected(BATCH, 6)[4:]


@pytest.mark.trio
async def test_a_dropped_stream_delivers_nothing_more_and_its_id_is_free():
    """A drop frees the place at once; chunks of the dropped stream that were on their way are not delivered."""
    async with opened(Scripted(FOREVER, streams=1, delay=0.001)) as session:
        for _ in range(20):
            session.begin(BATCH)
            assert (await session.receive())[0].index == 0
            session.drop("r")
            session.drop("r")


@pytest.mark.trio
async def test_misuse_is_told_at_once():
    """A second stream of the same name, one too many, tokens for a runner that cannot continue, and an unsendable one are refused."""
    async with opened(Scripted(FOREVER, streams=2, can_continue=False)) as session:
        session.begin(BATCH)
        with pytest.raises(ValueError, match="must differ, got a second 'r'"):
            session.begin(BATCH)
        with pytest.raises(ValueError, match="cannot continue a begun stream, got 2 accepted"):
            session.begin(ExecuteBatch("s", ""), [1, 2])
        with pytest.raises(BadRequest, match="at most 16777216 bytes"):
            session.begin(ExecuteBatch("s", "x" * wire.MAX_FRAME))
        with pytest.raises(BadRequest, match="'s' cannot be sent"):
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
    """D2: A runner that cannot be named for import is refused, and no process is started."""
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
@pytest.mark.parametrize("seconds", [np.float32(20), np.int64(20), Fraction(20), 2**70])
async def test_a_number_of_another_kind_is_kept_as_a_plain_one(seconds):
    """D10: The plan of the host is sent to other processes, which take plain numbers alone."""
    host = ProcessHost(load_timeout=seconds, linger=0)
    assert type(host.load_timeout) is float
    assert host == ProcessHost(load_timeout=float(seconds), linger=0)
    async with opened(Scripted(), host) as session:
        session.begin(BATCH)
        assert ids(await rest(session)) == expected(BATCH)


@pytest.mark.parametrize("seconds", [10**400, Fraction(10**400)], ids=["integer", "fraction"])
def test_a_number_that_no_float_has_is_refused(seconds):
    """It would overflow at the first wait."""
    with pytest.raises(ValueError, match=r"^load_timeout must be a number > 0 and <= 1\.79769e\+308, got "):
        ProcessHost(load_timeout=seconds)


@pytest.mark.trio
async def test_nested_values_and_the_start_reach_the_runner(tmp_path):
    """D2: The spec is built anew in the process, with device, incarnation and cause of this start."""
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
    """A cancelled session asks for a normal end too, because the context is sound."""
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
async def test_leaving_does_not_wait_for_output_that_is_not_read():
    """A process that waits for room in a full connection does not delay the shutdown."""
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
            await trio.testing.wait_all_tasks_blocked()  # as much of it is sent as there is room for
            session.drop(f"{i}")
        assert len(session._peer._unsent) <= 8
        os.kill(session.pid, signal.SIGCONT)
        last = await whole(session, ExecuteBatch("last", big * 4))
        assert ids(last) == expected(ExecuteBatch("last", big * 4), 2)


@pytest.mark.trio
async def test_frames_that_wait_for_room_are_sent_in_order():
    """D10: The rest of a long frame goes before later frames, however often there was no room."""
    async with opened(Scripted(2)) as session:
        os.kill(session.pid, signal.SIGSTOP)
        requests = [ExecuteBatch("long", "x" * 2_000_000), *(ExecuteBatch(name, name) for name in "abc")]
        for request in requests:
            session.begin(request)
            await trio.testing.wait_all_tasks_blocked()  # each is sent by itself, as far as there is room
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
            await trio.testing.wait_all_tasks_blocked()
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
    """D9: The process never gets that request, so the streams that have begun are late by their own deadline."""
    host = ProcessHost(first_chunk_timeout=10, next_chunk_timeout=0.5)
    async with opened(Scripted(faults=(Fault("hang", "last", 1),)), host) as session:
        os.kill(session.pid, signal.SIGSTOP)
        session.begin(ExecuteBatch("long", "x" * 2_000_000, sampling=Sampling(max_tokens=1)))
        session.begin(ExecuteBatch("back", ""))
        await trio.testing.wait_all_tasks_blocked()  # a part of the first one is sent
        session.drop("back")
        os.kill(session.pid, signal.SIGCONT)
        await rest(session, "long")
        session.begin(ExecuteBatch("last", ""))
        _, error = await until_failure(session, ContextHung)
        assert "made no next chunk within 0.5 s" in str(error)
