"""What `ThreadHost` alone does, and cannot do (D10)."""

import threading
import time

import pytest
import trio
import trio.testing
from remotes import HalfAsync, Remote
from rogues import CannotClose, Raises
from sessions import (
    BATCH,
    FOREVER,
    INLINE,
    PATIENCE,
    PROCESS,
    THREAD,
    every_host,
    ids,
    opened,
    runners_threads,
    until_failure,
    whole,
)

from runners.errors import (
    ContextPoisoned,
    DeviceError,
    LoadFailed,
    RunnerError,
    Unrecoverable,
    WeightsCorrupt,
)
from runners.hosts.thread import ThreadHost, _Thread
from runners.models.scripted import Fault, Scripted, expected
from runners.types import SessionRebuildCause


@pytest.mark.trio
async def test_the_loop_goes_on_while_a_thread_computes(monkeypatch):
    """D10: Loading and steps do not block the event loop: whatever sleeps here, sleeps until that has turned."""
    turned, slept = threading.Semaphore(0), []

    async def turn():
        while True:
            await trio.sleep(0.005)
            if len(slept) > turns:
                turned.release()

    def sleep(seconds):
        nonlocal turns
        slept.append(seconds)
        assert turned.acquire(timeout=PATIENCE)
        turns += 1

    turns = 0
    monkeypatch.setattr(time, "sleep", sleep)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turn)
        async with opened(Scripted(4, delay=0.05, load_delay=0.2), THREAD) as session:
            assert ids(await whole(session)) == expected(BATCH, 4)
        nursery.cancel_scope.cancel()
    assert slept == [0.2, *[0.05] * 4]


@pytest.mark.trio
async def test_a_thread_does_not_run_ahead_of_its_reader():
    """Each stream's chunks in hand are bounded: one turn is made ahead, and the thread waits while it is not read."""
    async with opened(Scripted(FOREVER), THREAD) as session:
        session.begin(BATCH)
        (first,) = await session.receive()
        with trio.move_on_after(PATIENCE):
            while session._turns._open[0].position.at < 2:  # noqa: ASYNC110 - The thread sets no event.
                await trio.sleep(0.005)
        await trio.sleep(0.05)
        assert first.index == 0
        assert session._turns._open[0].position.at == 2


def sleeps_until_released(monkeypatch):
    """Whoever sleeps, sleeps until this event is set; then the thread ends."""
    release = threading.Event()

    def sleep(_):
        release.wait(PATIENCE)
        raise SystemExit

    monkeypatch.setattr(time, "sleep", sleep)
    return release


@pytest.mark.slow
@pytest.mark.parametrize("at", ["token", "load", "rebuild"])
@pytest.mark.trio
async def test_a_thread_that_hangs_cannot_be_stopped_and_is_reported(at, monkeypatch):
    """D9, D10: The failure escalates, and the device is not used again: leaving raises Unrecoverable while the thread runs."""
    release = sleeps_until_released(monkeypatch)
    short = 20.0 if at == "token" else 1.0
    host = ThreadHost("cuda:1", load_timeout=short, chunk_timeout=0.2, close_timeout=0.1)

    async def use():
        async with host.open(Scripted(faults=(Fault("hang", at=at),))) as session:
            if at == "rebuild":
                with pytest.raises(
                    DeviceError, match=r"cannot stop a runner that rebuilt no session within 1 s"
                ):
                    await session.rebuild(SessionRebuildCause.MANUAL)
            else:
                session.begin(BATCH)
            _, error = await until_failure(session)
            assert type(error) is DeviceError
            assert "process isolation off: cannot stop a runner that " in str(error)

    with pytest.raises(Unrecoverable, match=r"has not ended within 0.1 s: it may still hold cuda:1") as left:
        await use()
    if at == "load":
        assert "loaded no runner within 1 s" in str(left.value.__context__)
    release.set()
    for thread in runners_threads():
        thread.join(PATIENCE)


@pytest.mark.parametrize("begins_again", [False, True])
@pytest.mark.trio
async def test_a_thread_that_hangs_is_detected_though_its_caller_leaves(begins_again, monkeypatch):
    """D9: The stream of a caller that has left is not waited for, but the thread is, until it has dropped the stream."""
    release = sleeps_until_released(monkeypatch)
    host = ThreadHost(chunk_timeout=0.6)
    async with opened(Scripted(faults=(Fault("hang", at_token=0),)), host) as session:
        async with trio.open_nursery() as nursery:

            async def beg():
                session.begin(BATCH)
                while True:
                    await trio.sleep(0.25)
                    session.drop("r")
                    if begins_again:
                        session.begin(BATCH)

            nursery.start_soon(beg)
            with trio.fail_after(PATIENCE):
                _, error = await until_failure(session)
            nursery.cancel_scope.cancel()
        assert "made no chunk within 0.6 s" in str(error)
        release.set()


@pytest.mark.trio
async def test_time_in_which_the_loop_was_blocked_is_no_hang_of_the_thread(monkeypatch):
    """D9, D10: What the thread has delivered meanwhile counts: its device can be used again."""
    host = ThreadHost(load_timeout=0.1, close_timeout=0.1)
    slow = tuple(Fault("slow", at=at, seconds=0.05) for at in ("load", "rebuild", "close"))
    deliver, delivered = _Thread._deliver, threading.Event()

    def deliver_and_tell(*arguments):
        deliver(*arguments)
        delivered.set()

    monkeypatch.setattr(_Thread, "_deliver", deliver_and_tell)

    async def block():
        await trio.testing.wait_all_tasks_blocked()
        assert delivered.wait(PATIENCE)
        time.sleep(0.2)  # noqa: ASYNC251 - it is what this test is about

    async def blocked(act, *arguments):
        delivered.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(block)
            return await act(*arguments)

    for _ in range(5):  # which task runs first is chance
        context = host.open(Scripted(4, faults=slow))
        session = await blocked(context.__aenter__)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.receive)
            await blocked(session.rebuild, SessionRebuildCause.MANUAL)
            nursery.cancel_scope.cancel()
        await blocked(context.__aexit__, None, None, None)


@pytest.mark.trio
async def test_a_lack_of_threads_is_a_failed_load(monkeypatch):
    """D2, D12: A worker with several contexts tries it again, as any load that fails."""

    def refused(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(LoadFailed, match="the runner could not be started: can't start new thread"):
        async with opened(Scripted(4), THREAD):
            raise AssertionError


@pytest.mark.trio
async def test_sys_exit_in_a_thread_ends_the_context_alone():
    """D10: It is reported, and escalates, because the state in which it left is unknown."""
    async with opened(Raises("sys.exit"), THREAD) as session:
        session.begin(BATCH)
        _, error = await until_failure(session)
        assert type(error) is DeviceError
        assert str(error) == "in its thread the runner raised SystemExit: 5"


@pytest.mark.parametrize("host", [INLINE, THREAD, PROCESS], ids=["inline", "thread", "process"])
@pytest.mark.trio
async def test_an_exception_from_closing_a_runner_is_raised_when_the_session_is_left(host):
    """R23: It is an error of ours, with every host, and nothing hides it."""
    with pytest.raises(RunnerError, match="ArithmeticError: a scripted error"):
        async with host.open(Scripted(faults=(Fault("error", at="close"),))):
            pass
    assert not runners_threads()


@pytest.mark.parametrize("kind", [ContextPoisoned, DeviceError, LoadFailed, Unrecoverable, WeightsCorrupt])
@every_host
@pytest.mark.trio
async def test_a_devices_error_in_closing_is_one_of_the_device(host, kind):
    """D3, R23: whoever reads the tag of what a stop failed with learns what has happened, whatever the host."""
    with pytest.raises(kind) as left:
        async with host.open(CannotClose(kind.__name__)):
            pass
    assert (type(left.value), left.value.tag, str(left.value)) == (kind, kind.tag, "in closing")


@pytest.mark.trio
async def test_a_turn_that_ends_the_context_as_its_session_is_left_is_told(monkeypatch, nursery):
    """D6, R23: nobody reads it any more, so leaving raises it; what was known before is not raised again."""
    runner = Scripted(8, delay=0.2, faults=(Fault("poison", at_token=0),))
    asleep, release = threading.Event(), threading.Event()

    def sleep(_):
        asleep.set()
        assert release.wait(PATIENCE)

    async def wake():
        await trio.testing.wait_all_tasks_blocked()
        release.set()

    monkeypatch.setattr(time, "sleep", sleep)
    for known in (False, True):
        asleep.clear()
        release.clear()
        error = None
        try:
            async with THREAD.open(runner) as session:
                session.begin(BATCH)
                async with trio.open_nursery() as reader:
                    reader.start_soon(session.receive)
                    while not asleep.is_set():  # noqa: ASYNC110 - A thread sets it, which cannot set an event of Trio.
                        await trio.sleep(0.005)
                    reader.cancel_scope.cancel()
                nursery.start_soon(wake)  # as soon as this task waits for the thread
                if known:
                    await until_failure(session)
        except DeviceError as left:
            error = left
        assert (error is None) is known
        assert known or "cannot clear a poisoned context" in str(error)


@pytest.mark.parametrize("host", [THREAD, PROCESS], ids=["thread", "process"])
@pytest.mark.trio
async def test_an_async_runner_is_refused_by_a_host_without_a_loop_for_it(host):
    """There is one protocol, and one clear line for a runner at the wrong place."""
    with pytest.raises(LoadFailed, match="TypeError: an async runner needs an InlineHost"):
        async with host.open(Remote(transport="local")):
            raise AssertionError
    async with opened(HalfAsync(), host) as session:
        (failed,) = await whole(session)
        assert "TypeError: a runner with async streams needs an InlineHost" in str(failed.error)


@pytest.mark.parametrize("name", ["load_timeout", "chunk_timeout", "close_timeout"])
def test_a_deadline_is_positive(name):
    """A constructor refuses nonsense."""
    with pytest.raises(ValueError, match=name):
        ThreadHost(**{name: 0})


@pytest.mark.parametrize(
    ("dropped", "delay", "patience"), [(False, 0.6, 0.2), pytest.param(True, 0.01, 3, marks=pytest.mark.slow)]
)
@pytest.mark.trio
async def test_a_request_to_a_thread_sets_the_deadline_of_a_receive_that_waits_already(
    dropped, delay, patience
):
    """D9: A task waits in `receive` before a stream begins, and still when the stream has been dropped."""
    failures = []

    async def reads(session):
        failures.append((await until_failure(session))[1])

    host = ThreadHost(chunk_timeout=patience)
    async with opened(Scripted(3, delay=delay), host) as session, trio.open_nursery() as nursery:
        nursery.start_soon(reads, session)
        await trio.testing.wait_all_tasks_blocked()
        session.begin(BATCH)
        if dropped:
            await trio.testing.wait_all_tasks_blocked()
            session.drop("r")
        with trio.move_on_after(patience + 0.5 if dropped else PATIENCE):
            while not failures:  # noqa: ASYNC110 - A failure sets no event.
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert [type(error) for error in failures] == ([] if dropped else [DeviceError])
