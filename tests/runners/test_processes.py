"""How processes are started and end, whatever surrounds us. Real processes, real deaths; `tests.surroundings` has more."""

import errno
import json
import logging
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from contexts import (
    HOST,
    PATIENCE,
    cleaners,
    contexts,
    descriptors,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    processes,
    stat,
    title,
    until,
)
from rogues import Long, Looks, Preloads, Reads, Terminates, Verbose, Writes
from sessions import BATCH, FOREVER, ids, until_failure, whole

from runners.errors import ContextDied, LoadFailed, Unrecoverable
from runners.hosts.packing import check_runner
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent import peer, standby
from runners.hosts.process.parent import processes as starting
from runners.hosts.process.parent.output import Output
from runners.models.scripted import Scripted, expected
from runners.worker import device_worker

pytestmark = pytest.mark.filterwarnings("error")

COLD = ProcessHost(start="spawn", load_timeout=20)
STARTS = pytest.mark.parametrize("host", [HOST, COLD], ids=["fork", "spawn"])


def parent(pid):
    return stat(pid)[1]


def links(pid):
    """What its descriptors are."""
    return sorted(str(entry.readlink()).partition(":")[0] for entry in Path(f"/proc/{pid}/fd").iterdir())


# --- born dead


@pytest.mark.parametrize("late", [0.0, 0.2])
@pytest.mark.trio
async def test_a_process_that_dies_at_once_is_a_failed_start(late, monkeypatch):
    """D3: This holds also if it dies before its parent looks at it, and its output ends before it was read."""
    monkeypatch.setattr(starting, "_BOOT", "raise SystemExit(3)")
    start = starting.Spawned.__init__

    def started(self, *args):
        start(self, *args)
        time.sleep(late)

    monkeypatch.setattr(starting.Spawned, "__init__", started)
    for _ in range(3):
        with pytest.raises(ContextDied, match="exited with status 3"):
            async with COLD.open(Scripted()):
                raise AssertionError


@pytest.mark.parametrize("spare", range(14))
@pytest.mark.trio
async def test_a_start_without_descriptors_fails_alone(spare, caplog):
    """D10: Wherever in a start the descriptors run out, the contexts beside it stay, and the next start has descriptors again."""
    async with opened(Scripted(FOREVER)) as neighbour:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, descriptors())) + spare, limits[1]))
        try:
            async with HOST.open(Scripted(FOREVER)):
                pass
        except LoadFailed as error:
            assert "Too many open files" in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        neighbour.begin(BATCH)
        assert (await neighbour.receive())[0].index == 0
        async with opened(Scripted(FOREVER)) as session:
            assert parent(session.pid) == parent(neighbour.pid)


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_a_deadline_may_be_infinite(start):
    """D9: A host whose deadlines are infinite starts, serves and ends as always."""
    names = ("load", "first_chunk", "next_chunk", "close", "kill")
    host = ProcessHost(start=start, **{f"{name}_timeout": math.inf for name in names})
    async with opened(Scripted(4), host) as session:
        assert ids(await whole(session)) == expected(BATCH, 4)


@STARTS
@pytest.mark.trio
async def test_a_spec_that_is_too_long_is_refused_before_there_is_a_process(host):
    """D2, R31: It is refused where it is declared and where it is opened; nothing is left behind by any try."""
    runner = Long("x" * wire.MAX_FRAME)
    for _ in range(3):
        with pytest.raises(ValueError, match=r"a Long cannot be sent .* at most 16777216 bytes"):
            host.open(runner)
    with pytest.raises(ValueError, match="cannot be sent"):
        device_worker("llm", runner, host=host)
    assert processes() == set()


@pytest.mark.trio
async def test_an_environment_that_is_too_long_is_a_failed_start(monkeypatch, caplog):
    """D2, D10: Neither a frame nor the kernel can pass it to a process; a standby is reported and left out."""
    big = {f"BIG{number}": "x" * 100_000 for number in range(wire.MAX_FRAME // 100_000 + 1)}
    host = ProcessHost(standby=1)
    async with opened(Scripted(4), host) as session:
        with monkeypatch.context() as patched:
            for name, value in big.items():
                patched.setenv(name, value)
            await until(lambda: "no standby for Scripted" in caplog.text)
            assert "a frame must have at most" in caplog.text
            with pytest.raises(LoadFailed, match="Argument list too long"):
                async with host.open(Scripted(4)):
                    pass
        assert ids(await whole(session)) == expected(BATCH, 4)


def test_a_spec_that_contains_itself_is_refused():
    """D2: The error is one line, as for a spec that is nested more deeply than msgpack allows."""
    values = []
    values.append(values)
    with pytest.raises(ValueError, match="may contain itself"):
        check_runner(Long(values))


@STARTS
@pytest.mark.trio
async def test_a_path_need_not_be_utf_8(host, tmp_path, monkeypatch):
    """D2: This holds for a path in a spec, and for one that modules are imported from."""
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff:\n odd")
    Path(odd).mkdir()  # noqa: ASYNC240 - a test's own file
    Path(odd, "weights").write_text("weights")  # noqa: ASYNC240 - as above
    monkeypatch.setattr(sys, "path", [odd, *sys.path])
    async with opened(Reads(odd + "/weights"), host):
        pass


# --- where it imports from


@pytest.mark.trio
async def test_a_change_of_folder_makes_no_new_reserve(tmp_path, monkeypatch):
    """D3: `python -c` imports from its current folder; a change of that folder, or its removal, is no reason to start cold."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    async with opened(Scripted(4)) as one:
        server = parent(one.pid)
    monkeypatch.chdir(tmp_path)
    async with opened(Scripted(4), incarnation=2) as two:
        assert parent(two.pid) == server
    monkeypatch.chdir(folder)
    folder.rmdir()
    async with opened(Scripted(4), incarnation=3) as three:
        assert parent(three.pid) == server
        assert ids(await whole(three)) == expected(BATCH, 4)


@STARTS
@pytest.mark.trio
async def test_a_folder_that_is_gone_from_the_beginning_is_left_out(host, tmp_path, monkeypatch):
    """D3: An entry of the path that does not exist does not fail a start."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", ["", b"bytes", *sys.path])
    folder.rmdir()
    async with opened(Preloads(str(tmp_path)), host):
        pass


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("frozen", True, "frozen application"),
        ("executable", "/bin/false", "sys.executable is '/bin/false'"),
        ("executable", "/usr/bin/python-that-is-not-there", "python-that-is-not-there"),
        ("platform", "darwin", "needs Linux"),
    ],
)
@pytest.mark.trio
async def test_a_program_without_a_python_to_start_is_refused(name, value, why, monkeypatch):
    """D10: The error is one line, before there is a process: starting `sys.executable` would start the application again."""
    monkeypatch.setattr(sys, name, value, raising=False)
    with pytest.raises(Unrecoverable, match=why) as raised:
        HOST.open(Scripted())
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=why):
        device_worker("llm", Scripted())
    assert processes() == set()


@pytest.mark.parametrize("value", [None, ""])
@STARTS
@pytest.mark.trio
async def test_an_empty_sys_executable_is_read_from_the_kernel(host, value, monkeypatch):
    """An empty PATH leaves it empty; a process is started all the same, and imports what its parent imports."""
    monkeypatch.setattr(sys, "executable", value)
    async with opened(Scripted(4), host) as session:
        assert ids(await whole(session)) == expected(BATCH, 4)


# --- what it inherits


@STARTS
@pytest.mark.trio
async def test_a_default_timeout_is_not_the_connections(host, monkeypatch):
    """D9: `socket.setdefaulttimeout` makes an idle context spin and a long chunk fail, unless it is undone."""
    monkeypatch.setattr(socket, "setdefaulttimeout", socket.setdefaulttimeout)
    socket.setdefaulttimeout(5)
    try:
        async with opened(Verbose(8_000_000), host) as session:
            before = cpu(session.pid)
            await trio.sleep(0.3)
            assert cpu(session.pid) - before < 0.1
            session.begin(BATCH)
            await trio.sleep(0.3)  # its socket is full by now
            assert len((await session.receive())[0].text) == 8_000_000
    finally:
        socket.setdefaulttimeout(None)


def cpu(pid):
    """Seconds of it that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize(
    "preloading", ["sets a default timeout", "closes what it writes to", "signals what it forks"]
)
@pytest.mark.trio
async def test_what_a_preload_leaves_behind_harms_no_context(preloading, tmp_path):
    """D10: A preload may leave a default timeout of sockets, closed standard streams whose numbers are used again, and an early SIGTERM."""
    async with opened(Preloads(str(tmp_path), preloading)) as session:
        await trio.sleep(0.3)  # idle, for longer than that timeout
        assert links(session.pid) == ["/dev/null", "pipe", "pipe", "socket"]
        assert parent(session.pid) != os.getpid()
        assert ids(await whole(session)) == (1, 2)


@pytest.mark.parametrize(
    ("preloading", "fate"),
    [
        ("ignores its children", "was killed by SIGKILL"),
        ("waits for any child", "ended, and its exit status is lost"),
    ],
)
@pytest.mark.trio
async def test_the_death_of_one_context_is_not_taken_for_that_of_another(preloading, fate, tmp_path):
    """D10: A preloaded module may have ignored SIGCHLD, so that the kernel reaps, or may itself reap any child that has died."""
    runner = Preloads(str(tmp_path), preloading)
    async with opened(runner) as neighbour:
        async with opened(runner) as session:
            session.begin(BATCH)
            os.kill(session.pid, signal.SIGKILL)
            _, error = await until_failure(session, ContextDied)
            assert str(error).endswith(fate)
        assert ids(await whole(neighbour)) == (1, 2)


@pytest.mark.parametrize("number", [int(signal.SIGTERM), int(signal.SIGINT)])
@STARTS
@pytest.mark.trio
async def test_a_process_that_a_runner_starts_can_be_terminated(host, number, tmp_path):
    """D10: A signal that a context itself ignores does to its child processes what it does elsewhere."""
    async with opened(Terminates(str(tmp_path), number), host):
        how = json.loads((tmp_path / "ends").read_text())
    assert how == {"exec": -number, "fork": -signal.SIGTERM if number == signal.SIGTERM else 3}


@pytest.mark.trio
async def test_a_forked_context_has_the_current_surroundings(tmp_path, monkeypatch):
    """It has today's environment, folder and umask, as a cold one has; of a preload's changes only those to the environment stay."""
    monkeypatch.setenv("LOOKS_GONE", "1")
    monkeypatch.setenv("LOOKS_OLD", "1")
    umask = os.umask(0o022)
    try:
        async with opened(Looks(str(tmp_path))):
            first = json.loads((tmp_path / "seen").read_text())
        assert (first["folder"], first["umask"]) == (str(Path.cwd()), 0o022)
        monkeypatch.delenv("LOOKS_GONE")
        monkeypatch.setenv("LOOKS_OLD", "2")
        monkeypatch.setenv("LOOKS_NEW", os.fsdecode(b"\xff"))
        monkeypatch.chdir(tmp_path)
        os.umask(0o077)
        async with opened(Looks(str(tmp_path))) as session:
            assert parent(session.pid) != os.getpid()
    finally:
        os.umask(umask)
    seen = json.loads((tmp_path / "seen").read_text())
    environment = {"LOOKS_OLD": "2", "LOOKS_NEW": os.fsdecode(b"\xff"), "LOOKS_PRELOADED": "yes"}
    wanted = {"environment": environment, "folder": str(tmp_path), "umask": 0o077, "pid": session.pid}
    assert seen == wanted


@STARTS
@pytest.mark.trio
async def test_an_environment_variable_removed_during_a_start_is_left_out(host, monkeypatch):
    """D10: Another thread may change the environment while it is read; that fails neither a start nor a standby."""

    class Leaving(dict):
        def __iter__(self):
            return iter([*super().__iter__(), b"LOOKS_GONE"])  # which is not there any more when it is read

    leaving = Leaving(os.environ._data)
    monkeypatch.setattr(os.environ, "_data", leaving)
    monkeypatch.setattr(os.environb, "_data", leaving)
    async with opened(Scripted(1), attrs.evolve(host, standby=1)):
        await until(lambda: "runners:standby" in {title(pid) for pid in contexts()})


@pytest.mark.trio
async def test_each_process_has_a_title():
    """`ps` shows which is a server, a context, a standby and a cleaner."""
    async with opened(Scripted(), ProcessHost(standby=1)) as session:
        await until(lambda: len(contexts()) == 2)
        (standby,) = contexts() - {session.pid}
        await until(lambda: title(standby) == "runners:standby")
        assert title(session.pid) == "runners:context"
        assert title(parent(session.pid)) == "runners:server"
        (cleaner,) = cleaners()
        await until(lambda: title(cleaner) == "runners:cleaner")


# --- Ctrl-C


def interrupted(monkeypatch, place):
    """SIGINT, once, in a place of ours that runs below a system task."""
    once = [signal.SIGINT]

    def strike():
        if once:
            signal.raise_signal(once.pop())

    if place == "a line is logged":

        class Handler(logging.Handler):
            def emit(self, record):
                strike()

        handler = Handler()
        logging.getLogger("runners.context").addHandler(handler)
        return lambda: logging.getLogger("runners.context").removeHandler(handler)
    owner, name, task = place
    original = getattr(owner, name)

    def patched(*args, **kwargs):
        if trio.lowlevel.current_task().name.endswith(task):
            strike()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    return lambda: None


@pytest.mark.parametrize(
    "place",
    [
        "a line is logged",
        (wire, "from_server", "._listen"),
        (wire, "encode", ".main"),
        (peer, "is_readable", ".main"),
        (starting.Spawned, "__init__", ".main"),
        (subprocess, "Popen", ""),
        (os, "pidfd_open", ""),
        (standby, "connected", ".main"),
        (standby, "connected", "._stand_by"),
        (standby, "Peer", "._stand_by"),
    ],
    ids=str,
)
def test_a_keyboard_interrupt_in_a_task_of_the_hosts_leaves_the_program(place, monkeypatch):
    """R4: It leaves unwrapped, and nothing is left behind; Trio's system nursery does not come down with it."""

    async def main():
        host = ProcessHost(standby=1)
        for incarnation in range(1, 4):
            async with host.open(Writes("both"), incarnation=incarnation) as session:
                await until(lambda: len(contexts()) == 2)  # the other one stands by
                await whole(session)
                await trio.sleep(0.1)

    def bare(error):
        return bare(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else type(error)

    undo = interrupted(monkeypatch, place)
    try:
        with pytest.raises(BaseException) as raised:
            trio.run(main)
    finally:
        undo()
    assert bare(raised.value) is KeyboardInterrupt


# --- odd connections


class Prohibited(socket.socket):
    """A connection over IPv6 after a rule of the routes has prohibited it, and the kernel has tried it for long enough."""

    def sendmsg(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied")


class Lost(Prohibited):
    recv = Prohibited.sendmsg


@pytest.mark.parametrize("kind", [Prohibited, Lost])
@pytest.mark.trio
async def test_any_error_of_a_connection_is_its_end(kind):
    """D10, D16: A task of the host may find it, and anything that is raised there would end the whole program."""
    ours, theirs = socket.socketpair()
    process = types.SimpleNamespace(pid=1, pidfd=os.pidfd_open(os.getpid()))
    with theirs, kind(fileno=ours.detach()) as connection, trio.fail_after(PATIENCE):
        ended = peer.Peer(process, connection, Output("x", piped=False))
        ended.send(b"x")
        await ended.wait()
        assert (ended.read(), ended.dead) == (b"", False)
        ended._epoll.close()
    os.close(process.pidfd)


# --- growth


@pytest.mark.slow
@pytest.mark.trio
async def test_deaths_leave_neither_descriptors_nor_memory():
    """R31: Both are flat over any number of deaths; here 60, with the fork server and a standby."""
    import gc
    import tracemalloc

    async def live(incarnation):
        async with opened(Scripted(FOREVER), ProcessHost(standby=1), incarnation=incarnation) as session:
            session.begin(BATCH)
            await session.receive()
            os.kill(session.pid, signal.SIGKILL)
            await until_failure(session, ContextDied)
        del session

    async def measured(times):
        for number in range(times):
            await live(number + 1)
        await until(lambda: len(contexts()) <= 1)
        gc.collect()
        return len(descriptors()), tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        await measured(10)
        first, used = await measured(10)
        last, more = await measured(40)
    finally:
        tracemalloc.stop()
    assert abs(last - first) <= 8  # of a standby, which may be there or not
    assert (
        more - used < 200 * 1024
    )  # Trio keeps up to a thousand deadlines that are over; a session is 15 KiB


# --- time


@pytest.mark.trio
async def test_a_process_that_dies_at_the_last_moment_has_died_in_time():
    """D9: Whatever the clock shows, a process that is dead is not killed for being late, nor is its device given up."""
    reading, writing = os.pipe()
    process = types.SimpleNamespace(pidfd=reading)
    assert await starting.outlived(process, 0)
    os.close(writing)
    assert not await starting.outlived(process, 0)
    os.close(reading)


@pytest.mark.parametrize(("held", "looks"), [(0.0, 3), (10.0, 6)])
def test_time_in_which_no_process_ran_counts_half(held, looks):
    """D9: After a stop of all processes the parent looks once more, and gives up even if each of them comes late."""
    seen = []

    async def never():
        seen.append(trio.current_time())
        with trio.CancelScope() as scope:
            try:
                await trio.sleep_forever()
            finally:
                clock.jump(held)
                scope.cancel()

    async def main():
        assert not await starting.within(3.0, never)

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock)
    assert len(seen) == looks
