"""How a context process may end, or break the protocol: deaths, poisons, frames that may not be, loads that fail."""

import os
import signal
import subprocess
import time

import pytest
import trio
import trio.testing
from contexts import (
    HOST,
    PATIENCE,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
)
from rogues import (
    ClosesAndLives,
    Raises,
    Says,
    SaysWhenAsked,
    Yields,
)
from sessions import (
    BATCH,
    FOREVER,
    ids,
    raw,
    until_failure,
    whole,
)

from runners.errors import (
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
from runners.hosts import RequestFailed
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Faulty, Scripted, expected
from runners.types import (
    ExecuteBatch,
    RunnerInfo,
    Sampling,
    TokenChunk,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
@pytest.mark.trio
async def test_death_by_a_signal_is_named(number):
    """D9: The death of a process that a signal killed is reported at once, with the signal."""
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
async def test_a_death_while_idle_is_reported():
    """D10: The pidfd is watched while no stream is open."""
    async with opened(Scripted()) as session, trio.open_nursery() as nursery:
        nursery.start_soon(until_failure, session, ContextDied)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(session.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("kind", "fate"),
    [("kill", "was killed by SIGKILL"), ("segv", "was killed by SIGSEGV"), ("exit", "exited with status 3")],
)
@pytest.mark.trio
async def test_a_death_is_reported_after_all_chunks_that_were_sent(kind, fate):
    """D6: Chunks sent before the death are delivered, and then the death is reported."""
    async with opened(Scripted(8, faults=(Fault(kind, "r", 5),))) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextDied)
        assert ids(items) == expected(BATCH)[:5]
        assert str(error) == f"the context process {session.pid} {fate}"


@pytest.mark.trio
async def test_sys_exit_in_a_runner_is_a_death():
    """Nothing that a runner does counts as a normal end of its process."""
    async with opened(Raises("sys.exit")) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert str(error).endswith("exited with status 70")


@pytest.mark.trio
async def test_signals_from_the_terminal_do_not_end_a_context():
    """D10: SIGINT, SIGTERM and a signal to the terminal's group do not end a context."""
    async with opened(Scripted(4)) as session:
        assert os.getpgid(session.pid) != os.getpgrp()
        os.kill(session.pid, signal.SIGINT)
        os.kill(session.pid, signal.SIGTERM)
        assert ids(await whole(session)) == expected(BATCH, 4)


@pytest.mark.trio
async def test_a_reported_poison_ends_the_context_with_its_own_error():
    """D6: The first error wins: the poison, not the death that follows. Chunks before it arrive, and none after."""
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
    """D6: Chunks that were computed beside a poison are not released."""
    async with opened(Scripted(5, delay=0.02, faults=(Fault("poison", "b", 0),))) as session:
        session.begin(ExecuteBatch("a", "a"))
        session.begin(ExecuteBatch("b", "b"))
        items, _ = await until_failure(session, ContextPoisoned)
        assert {item.request_id for item in items} <= {"a"}
        assert len(items) <= 1


@pytest.mark.trio
async def test_chunks_after_a_poison_are_dropped():
    """D6: Frames behind a poison are never delivered."""
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
        (raw(wire.Dropped(0)), "dropped stream 0 without being asked to"),
        (raw(wire.ready(RunnerInfo())), "sent an unexpected Ready frame"),
        (raw(wire.Step([wire.Chunk(5, 0, (), "", None, None)], [])), "named stream 5, which is not open"),
        (
            raw(wire.Step([wire.Chunk(-1, 0, (), "", None, None)], [])),
            "named stream -1, which is not open",
        ),
    ],
)
@pytest.mark.parametrize("then", ["exit", "wait"])
@pytest.mark.trio
async def test_a_frame_that_is_not_allowed_is_a_protocol_error(said, message, then):
    """D10: Garbage, a huge frame or a wrong one gives ProtocolError, and the process is killed."""
    async with opened(Says(said, then)) as session:
        session.begin(BATCH)
        items, _ = await until_failure(session, ProtocolError)
        assert ids(items) == (1,)
        with pytest.raises(ProtocolError, match=message):
            await session.receive()


@pytest.mark.trio
async def test_a_context_that_answers_a_later_stream_has_dropped_the_one_before():
    """D9: It has read the drop that was sent in front of that stream; a drop that is never answered would be kept in mind for ever."""
    first, second = (raw(wire.Step([wire.Chunk(number, 0, (9,), "z", None, None)], [])) for number in (0, 1))
    runner = SaysWhenAsked(second, "wait", before=first)
    async with opened(runner) as session:
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        session.begin(ExecuteBatch("next", ""))
        session._send_begins()  # the drop alone may wake the process, which then answers a stream that it could not know
        _, error = await until_failure(session, ProtocolError)
        assert "did not drop stream 0 when asked to" in str(error)


@pytest.mark.trio
async def test_an_end_in_mid_frame_is_a_death():
    """D10: Half a frame and an exit is a death with its status."""
    async with opened(Says("\x00\x00\x01\x00half", "exit")) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert str(error).endswith("exited with status 9")


@pytest.mark.trio
async def test_a_closed_connection_is_a_death_though_the_process_lives():
    """D10: A death is the pidfd or the end of file, whichever comes first."""
    async with opened(ClosesAndLives()) as session:
        session.begin(BATCH)
        _, error = await until_failure(session, ContextDied)
        assert str(error).endswith("closed its connection")


@pytest.mark.parametrize("kind", ["error", "oom"])
@pytest.mark.trio
async def test_a_requests_own_error_concerns_nobody_else(kind):
    """D5: One stream fails, typed, and the other one goes on in the same context; a lack of memory is reported once, after it."""
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
        ("object", "must have the types that TokenChunk declares"),
        ("huge", "OverflowError: "),
        ("surrogate", "must be one that UTF-8 can encode"),
        ("nothing", "ended without a finish reason"),
    ],
)
@pytest.mark.trio
async def test_a_stream_of_nonsense_fails_alone(what, message):
    """D8: Nothing counts as an empty success, and nothing that cannot be sent harms the context."""
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
    """D3: An error tagged `device.` is the context's, of the nearest known class, with the device's code."""
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
    """D2: A failed load is a failure of the context like any other, and leaves nothing behind."""
    with pytest.raises(error) as failed:
        async with HOST.open(Scripted(faults=(Fault(kind, at="load"),))):
            raise AssertionError
    assert type(failed.value) is error


@pytest.mark.trio
async def test_a_load_that_hangs_is_killed():
    """D9: Past the load deadline the process gets SIGKILL, and the error is ContextHung."""
    with pytest.raises(ContextHung, match=r"loaded no runner within 0.4 s"):
        async with ProcessHost(load_timeout=0.4).open(Scripted(faults=(Fault("hang", at="load"),))):
            raise AssertionError


@pytest.mark.trio
async def test_a_load_that_is_cancelled_leaves_nothing_and_does_not_wait():
    """R13, D10: Cancelling a load kills it at once."""
    started = time.monotonic()
    with trio.move_on_after(0.3) as scope:
        async with HOST.open(Scripted(load_delay=3600)):
            raise AssertionError
    assert scope.cancelled_caught
    assert time.monotonic() - started < PATIENCE


@pytest.mark.trio
async def test_a_process_that_cannot_be_started_is_a_failed_load(monkeypatch):
    """D2: Without a process or a descriptor the error is LoadFailed, with its cause."""

    def none_left(*args, **kwargs):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", none_left)
    with pytest.raises(LoadFailed, match="could not be started: no more processes"):
        async with HOST.open(Scripted()):
            raise AssertionError


@pytest.mark.trio
async def test_a_process_that_cannot_be_watched_is_not_left(monkeypatch):
    """D10: A pidfd that cannot be had leaves no process behind."""

    def none_left(pid):
        raise OSError("no more descriptors")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    with pytest.raises(LoadFailed, match="no more descriptors"):
        async with HOST.open(Scripted()):
            raise AssertionError
