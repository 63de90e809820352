"""A process that hangs, what does not fit, and what is left behind: deadlines, sizes, rebuilds, and the end of a parent."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time

import attrs
import pytest
import trio
import trio.testing
from contexts import (
    PATIENCE,
    Steps,
    chunks_waiting,
    cleaners,
    ends,
    hurry,
    is_readable,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    processes,
    until,
)
from rogues import (
    Clings,
    Nested,
    Ponders,
    Remembers,
    Verbose,
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
    LoadFailed,
    OutOfMemory,
    Unrecoverable,
)
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent.peer import Peer
from runners.models.scripted import Fault, Scripted, expected
from runners.types import (
    ExecuteBatch,
    Sampling,
    SessionRebuildCause,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize(
    ("fault", "limits", "message"),
    [
        (Fault("hang", "r", 0), {"first_chunk_timeout": 0.3}, "made no first chunk within 0.3 s"),
        (Fault("hang", "r", 2), {"next_chunk_timeout": 0.3}, "made no next chunk within 0.3 s"),
    ],
)
@pytest.mark.trio
async def test_a_step_that_hangs_is_killed(fault, limits, message):
    """D9: Past the deadline for the first or the next chunk the process gets SIGKILL, and the error is ContextHung."""
    host = ProcessHost()
    async with opened(Scripted(faults=(fault,)), host) as session:
        session.begin(BATCH)
        items = []
        while len(items) < fault.at_token:
            items += await session.receive()
        hurry(host, **limits)
        more, error = await until_failure(session, ContextHung)
        assert ids(items) == expected(BATCH)[: fault.at_token]
        assert more == []
        assert str(error) == f"the context process {session.pid} {message}"


@pytest.mark.parametrize("what", ["a stream", "a rebuild"])
@pytest.mark.trio
async def test_a_new_request_sets_the_deadline_of_a_receive_that_waits_already(what):
    """D9: A task waits in `receive` since before the request, when there was no deadline."""
    host = ProcessHost(first_chunk_timeout=0.3)
    failures = []

    async def reads(session):
        failures.append((await until_failure(session, ContextHung))[1])

    async with opened(Scripted(), host) as session:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reads, session)
                await trio.testing.wait_all_tasks_blocked()
                os.kill(session.pid, signal.SIGSTOP)
                if what == "a stream":
                    session.begin(BATCH)
                else:
                    hurry(host, load_timeout=0.3)
                    with pytest.raises(ContextHung, match="rebuilt no session within"):
                        await session.rebuild(SessionRebuildCause.MANUAL)
    assert len(failures) == 1


@pytest.mark.trio
async def test_a_stopped_process_is_killed():
    """D9: A process under SIGSTOP makes no progress and answers nothing; only SIGKILL reaches it."""
    host = ProcessHost(next_chunk_timeout=0.3)
    async with opened(Scripted(FOREVER, delay=0.001), host) as session:
        session.begin(BATCH)
        await session.receive()
        os.kill(session.pid, signal.SIGSTOP)
        await until_failure(session, ContextHung)


@pytest.mark.parametrize("entry", ["/a\0b", "a\0b", "/\ud800"])
@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_an_entry_of_the_path_that_no_file_can_have_is_left_out(entry, start, monkeypatch):
    """D2: Python imports nothing from it either, and no process could be started with it."""
    monkeypatch.setattr(sys, "path", [*sys.path, entry])
    async with opened(Scripted(4), ProcessHost(start=start, linger=0)) as session:
        assert ids(await whole(session)) == expected(BATCH, 4)


@pytest.mark.trio
async def test_a_busy_parent_is_no_hang():
    """D9: A frame that was sent in time counts, however late the parent reads it."""
    host = ProcessHost(first_chunk_timeout=0.2, next_chunk_timeout=0.2)
    async with opened(Scripted(3, delay=0.01), host) as session:
        session.begin(BATCH)
        session._send_begins()  # by hand, since the loop has no turn before it is blocked
        blocked = time.monotonic()
        while chunks_waiting(session) < 3 and time.monotonic() - blocked < PATIENCE:
            time.sleep(0.5)  # noqa: ASYNC251 - The parent that blocks is what is tested.
        assert ids(await rest(session)) == expected(BATCH, 3)


@pytest.mark.trio
async def test_an_idle_context_has_no_deadline():
    """D9: Without open streams nothing is expected."""
    host = ProcessHost()
    async with opened(Scripted(2), host) as session:
        await whole(session)
        hurry(host, first_chunk_timeout=0.1, next_chunk_timeout=0.1)
        with trio.move_on_after(0.4) as scope:
            await session.receive()
        assert scope.cancelled_caught
        hurry(host, first_chunk_timeout=PATIENCE, next_chunk_timeout=PATIENCE)
        session._progress -= 2 * PATIENCE  # as if it had been idle for longer
        assert ids(await whole(session)) == expected(BATCH, 2)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_step_that_begins_one_stream_has_the_time_of_those_that_go_on():
    """D9: One step serves both, so the longer of the two deadlines holds."""
    host = ProcessHost(next_chunk_timeout=PATIENCE)
    async with opened(Scripted(FOREVER, delay=0.001), host) as session:
        session.begin(BATCH)
        await session.receive()
        hurry(host, first_chunk_timeout=1.0)
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
async def test_a_hang_is_detected_though_its_caller_leaves(begins_again):
    """D9: The stream of a caller that has left is not waited for, but the process is, until it confirms the drop."""
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
        with trio.fail_after(PATIENCE):
            await until_failure(session, ContextHung)
        nursery.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "later"), [(3.2, 0.1), (0.5, 6.5)])
@pytest.mark.trio
async def test_a_caller_that_leaves_a_slow_stream_makes_no_hang(seconds, later):
    """D9: The process confirms the drop, and then the next stream has all of its time, and no stream is waited for."""
    host = ProcessHost(first_chunk_timeout=5.6, next_chunk_timeout=5.6)
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
    """D8: The extra fields of a subclass would be lost on the way."""

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
    """D5, D8: The error of a lack of memory names its request, and must not end the context because there is no room for the name."""
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
async def test_closing_a_stream_whose_chunk_cannot_be_sent_may_end_the_context():
    """D5, D6: The stream is closed, and an exception from closing it is judged like any other."""
    async with opened(Clings()) as session:
        session.begin(BATCH)
        items, error = await until_failure(session, ContextPoisoned)
        assert (items, type(error), str(error)) == ([], ContextPoisoned, "cannot let go")


@pytest.mark.trio
async def test_a_step_too_long_for_a_frame_travels_in_several():
    """D5: A chunk that one stream alone may send, it may send beside others."""
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
    """D9: The deadline counts from the last progress, not from the last request."""
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
        with trio.fail_after(PATIENCE):
            await until_failure(session, ContextHung)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_stream_from_a_dead_context_is_waited_for_once_it_is_taken():
    """D9, D6: Sent to a process that hangs it puts off no deadline there, and that process has not taken it."""
    host = ProcessHost(next_chunk_timeout=PATIENCE)
    async with opened(Scripted(FOREVER, delay=0.001), host) as session:
        session.begin(BATCH)
        session.begin(ExecuteBatch("taken", ""), confirm=True)
        made = set()
        while "taken" not in made:
            made |= {item.request_id for item in await session.receive()}
        hurry(host, next_chunk_timeout=0.3)
        os.kill(session.pid, signal.SIGSTOP)
        session.begin(ExecuteBatch("late", ""), confirm=True)
        with pytest.raises(ContextHung, match=r"made no next chunk within 0\.3 s"):
            await until_failure(session, ())
        assert [session.has_taken(name) for name in ("r", "taken", "late", "unknown")] == [
            True,
            True,
            False,
            False,
        ]


@pytest.mark.trio
async def test_a_stream_is_taken_before_anything_is_done_for_it():
    """D6: A process that dies in the first step of a stream has confirmed that it took it."""
    async with opened(Scripted(faults=(Fault("kill", "r", 0),))) as session:
        session.begin(BATCH, confirm=True)
        assert not session.has_taken("r")
        await until_failure(session, ContextDied)
        assert session.has_taken("r")


@pytest.mark.trio
async def test_the_next_deadline_follows_the_median_step():
    """D9: The default is 20 times the median step, and at least 10 s."""
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
    """D7: A rebuild is done in the same incarnation, while receive goes on."""
    async with opened(Remembers(str(tmp_path), Nested((), {}))) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.receive)
        await session.rebuild(SessionRebuildCause.MANUAL)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "rebuilt").read_text() == "manual"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"), [("error", LoadFailed), ("kill", ContextDied), ("hang", ContextHung)]
)
@pytest.mark.trio
async def test_a_rebuild_that_fails_is_told_to_both(kind, error):
    """D2, D7: It is a failure of the context like any other, and the answer to the operator."""
    host = ProcessHost()
    runner = Scripted(faults=(Fault(kind, at="rebuild"),))
    async with opened(runner, host) as session, trio.open_nursery() as nursery:
        if kind == "hang":
            hurry(host, load_timeout=0.3)
        nursery.start_soon(until_failure, session, error)
        with pytest.raises(error) as failed, trio.fail_after(PATIENCE):
            await session.rebuild(SessionRebuildCause.MANUAL)
        assert failed.value.__cause__ is session._failure
        with pytest.raises(error):
            await session.rebuild(SessionRebuildCause.MANUAL)


@pytest.mark.trio
async def test_a_rebuild_is_refused_where_it_makes_no_sense():
    """D7: It is refused for a poison and under open streams, and there is only one at a time."""
    async with opened(Scripted(FOREVER)) as session:
        with pytest.raises(ValueError, match="open a new incarnation"):
            await session.rebuild(SessionRebuildCause.CONTEXT_POISONED)
        session.begin(BATCH)
        with pytest.raises(RuntimeError, match="all streams dropped, got 1 open"):
            await session.rebuild(SessionRebuildCause.MANUAL)


@pytest.mark.trio
async def test_leaving_answers_a_rebuild():
    """D7: A rebuild that the end overtakes gets an error that says so."""
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
        with trio.fail_after(PATIENCE):
            await answered.wait()


@pytest.mark.trio
async def test_a_process_that_does_not_die_makes_its_device_unrecoverable(monkeypatch):
    """D9: Past `kill_timeout` the error is Unrecoverable: there are never two processes on one device."""
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
    await until(lambda: ends(peers[0].pid))


@pytest.mark.trio
async def test_many_contexts_leave_nothing():
    """D10: They leave neither descriptors nor processes nor zombies, however they end; the fixture counts."""
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
    """Two hosts in one loop are independent: one's death is not the other's."""
    async with opened(Scripted(4)) as one, opened(Scripted(4)) as two:
        os.kill(one.pid, signal.SIGKILL)
        await until_failure(one, ContextDied)
        assert ids(await whole(two)) == expected(BATCH, 4)


@pytest.mark.trio
async def test_the_loop_goes_on_meanwhile():
    """Loading, serving and killing never hold the loop for long."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    runner = Scripted(FOREVER, load_delay=0.3, faults=(Fault("hang", "r", 50),))
    async with opened(runner, ProcessHost(next_chunk_timeout=0.3)) as session:
        session.begin(BATCH)
        await until_failure(session, ContextHung)
    trio.lowlevel.remove_instrument(steps)
    assert steps.held < 0.25


PARENT = """
import sys, trio
from runners.hosts.process.host import ENOUGH, TURN, ProcessHost, ProcessSession
from runners.models.scripted import Scripted
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
    """D10: This holds whatever kills the parent, and even while the child is stopped."""
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
    trio.run(until, lambda: not processes())  # the cleaner goes last


TALK = """
import logging, sys, trio
from runners.hosts.process.host import ENOUGH, TURN, ProcessHost, ProcessSession
from rogues import Talks

async def main():
    async with ProcessHost().open(Talks(sys.argv[1])):
        print("the parent's protocol", flush=True)

logging.basicConfig(level="INFO")
trio.run(main)
"""


def test_the_output_and_the_child_processes_of_a_runner_are_kept_apart(tmp_path):
    """D10: Its prints become log records, processes that it starts end with it, and its environment is the parent's."""
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
    end = time.monotonic() + PATIENCE
    while not ends(int(sleeper)):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_cleaner_that_can_be_sent_nothing_does_not_keep_the_program(monkeypatch):
    """D10: As where the kernel lacks memory. What was to be sent is lost, and the cleaner is killed at the end of the run."""
    send = socket.socket.send

    def refused(connection, data, *flags):
        if data[:1] in (b"+", b"-", b"."):  # not what Trio sends to itself
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return send(connection, data, *flags)

    with trio.fail_after(PATIENCE):
        async with opened(Scripted(4), ProcessHost(linger=0)) as session:
            cleaner = cleaners()
            monkeypatch.setattr(socket.socket, "send", refused)
            assert ids(await whole(session)) == expected(BATCH, 4)
        await until(lambda: all(map(ends, cleaner)))


def test_importing_the_host_protocol_imports_neither_trio_nor_msgspec():
    """The child imports this package first; each of the two would cost it tens of milliseconds."""
    code = "import sys, runners.hosts, runners.models.scripted, runners.hosts.packing; print({'trio', 'msgspec'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
