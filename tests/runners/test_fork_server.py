"""Contexts that are forked from a preloaded server. Real processes, real deaths."""

import errno
import itertools
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from contexts import (
    HOST,
    PATIENCE,
    Steps,
    cleaners,
    contexts,
    ends,
    is_readable,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    processes,
    stat,
    until,
)
from rogues import Preloads, Starts
from sessions import (
    BATCH,
    FOREVER,
    ids,
    until_failure,
    whole,
)

from runners.errors import ContextDied, LoadFailed
from runners.hosts.process import wire
from runners.hosts.process.child.forkserver import Server
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent import forkserver, standby
from runners.hosts.process.parent.forkserver import NoServer
from runners.models.scripted import Scripted, expected
from runners.models.torch_lm import TorchLM

pytestmark = pytest.mark.filterwarnings("error")

COLD = ProcessHost(start="spawn", load_timeout=20)


def servers():
    return processes() - contexts() - cleaners()


def is_idle(pid):
    """Whether a server has preloaded, and waits for orders."""
    with suppress(OSError):  # it may have ended
        return "poll" in Path(f"/proc/{pid}/wchan").read_text()
    return False


def parent(pid):
    return stat(pid)[1]


def links(pid):
    """What its descriptors are."""
    return sorted(str(entry.readlink()).partition(":")[0] for entry in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.trio
async def test_contexts_are_forked_from_one_server_that_outlives_them():
    """D10: The server is a child of the parent, and the context one of the server: the second start needs no second server."""
    async with opened(Scripted()) as one:
        server = parent(one.pid)
        assert servers() == {server}
        assert parent(server) == os.getpid()
    async with opened(Scripted(), incarnation=2) as two:
        assert (two.pid != one.pid, parent(two.pid)) == (True, server)
        assert ids(await whole(two)) == expected(BATCH)


@pytest.mark.parametrize("report", [1, 2])  # that it has preloaded, or forked a process
@pytest.mark.trio
async def test_a_report_that_cannot_be_received_costs_the_server_alone(report, monkeypatch):
    """D15: As where the kernel lacks memory. A task of the host receives it, and what is raised there would end the whole program."""
    receive, numbers = socket.recv_fds, itertools.count(1)

    def received(*arguments):
        if next(numbers) == report:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return receive(*arguments)

    monkeypatch.setattr(socket, "recv_fds", received)
    async with opened(Scripted()) as session:
        assert ids(await whole(session)) == expected(BATCH)


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ETOOMANYREFS])
@pytest.mark.trio
async def test_a_request_that_the_kernel_refuses_costs_no_other_context(number, monkeypatch):
    """D15: The server is sound, and the contexts that it has forked would die with it. The start is cold."""
    async with opened(Scripted()) as one:
        server, send = parent(one.pid), socket.send_fds

        def refused(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(socket, "send_fds", refused)
        async with opened(Scripted()) as two:
            assert parent(two.pid) == os.getpid()
        monkeypatch.setattr(socket, "send_fds", send)
        async with opened(Scripted()) as three:
            assert parent(three.pid) == server
        assert ids(await whole(one)) == expected(BATCH)


def test_a_report_that_the_kernel_refuses_is_sent_again():
    """D15: As where it lacks memory. The contexts would die with their server. Any other error is the end of the connection."""
    errors = [OSError(number, os.strerror(number)) for number in (errno.ENOBUFS, errno.ENOMEM)]
    sent = []

    def sendall(data):
        if errors:
            raise errors.pop()
        sent.append(data)

    server = SimpleNamespace(_control=SimpleNamespace(sendall=sendall))
    Server._send(server, wire.Preloaded())
    assert sent == [wire.datagram(wire.Preloaded())]
    errors.append(BrokenPipeError())
    with pytest.raises(BrokenPipeError):
        Server._send(server, wire.Preloaded())


@pytest.mark.trio
async def test_a_cold_start_has_no_server():
    """`start="spawn"`: a child of ours, and everything else alike."""
    async with opened(Scripted(FOREVER, delay=0.001), COLD) as session:
        assert parent(session.pid) == os.getpid()
        assert servers() == set()
        session.begin(BATCH)
        await session.receive()
        os.kill(session.pid, signal.SIGSEGV)
        _, error = await until_failure(session, ContextDied)
        assert str(error) == f"the context process {session.pid} was killed by SIGSEGV"


def test_linux_forks_by_default():
    """The default is the best way of starting that the system has."""
    assert ProcessHost().start == "forkserver"
    with pytest.raises(ValueError, match="start"):
        ProcessHost(start="thread")


@pytest.mark.trio
async def test_a_context_shares_no_descriptor():
    """D10: It has its connection and its output, and nothing of the server's or of another context."""
    async with opened(Scripted()), opened(Scripted()) as two, opened(Scripted()) as three:
        for session in (two, three):
            assert links(session.pid) == ["/dev/null", "pipe", "pipe", "socket"]


@pytest.mark.trio
async def test_a_server_keeps_nothing_of_its_contexts():
    """R31: It keeps neither the descriptors that they were given nor those that it watches them by, once they are dead."""
    kept = []
    for _ in range(3):
        async with opened(Scripted()) as session:
            server = parent(session.pid)
            kept.append(links(server))
    assert kept[0] == kept[1] == kept[2]


@pytest.mark.trio
async def test_a_context_writes_no_core():
    """Writing one would keep the device for seconds; the limit is inherited by what it starts."""
    async with opened(Scripted()) as session:
        for pid in (session.pid, parent(session.pid)):
            assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)


@pytest.mark.trio
async def test_a_preload_happens_once_and_not_in_the_contexts(tmp_path):
    """What every build would do again, the server has done."""
    runner = Preloads(str(tmp_path))
    async with opened(runner) as one:
        pass
    async with opened(runner) as two:
        assert runner.told() == [("preload", parent(two.pid)), ("build", one.pid), ("build", two.pid)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preloading", "why"),
    [
        ("fails", "could not preload: ValueError: nothing to preload"),
        ("leaves a thread", "must leave one thread, got 2"),
        ("touches CUDA", "must not touch a device, but CUDA is initialised"),
        ("dies", "was killed by SIGKILL"),
        ("hangs", "preloaded nothing within 6 s"),
        ("forbids forks", "could not fork"),
        ("forbids reports", "could not fork"),
        ("babbles", "not a frame"),
        ("sends a descriptor", "not a frame"),
    ],
)
@pytest.mark.trio
async def test_without_a_server_the_start_is_cold(preloading, why, tmp_path, caplog):
    """A failure while preloading costs time, and a warning reports it; the context comes up all the same, and alone."""
    host = ProcessHost(load_timeout=6 if preloading == "hangs" else 60)
    async with opened(Preloads(str(tmp_path), preloading), host) as session:
        assert parent(session.pid) == os.getpid()
        assert contexts() == {session.pid}
    (warning,) = [record for record in caplog.records if record.name == "runners.hosts"]
    assert why in warning.getMessage()
    assert "is started cold" in warning.getMessage()


@pytest.mark.slow
@pytest.mark.parametrize(("preloading", "times"), [("fails", 1), ("hangs", 1), ("dies", 2)])
@pytest.mark.trio
async def test_a_preload_that_cannot_work_is_not_tried_again(preloading, times, tmp_path, caplog):
    """D15: A preload that raises or hangs is not tried again; one that died is tried again while no start waits for it."""
    runner = Preloads(str(tmp_path), preloading)
    host = ProcessHost(load_timeout=6 if preloading == "hangs" else 60)

    def preloads():
        return [what for what, _ in runner.told()].count("preload")

    async with opened(runner, host) as session:
        assert parent(session.pid) == os.getpid()
        await until(lambda: preloads() == times and not servers())
    for _ in range(3):
        async with opened(runner, host) as session:
            assert parent(session.pid) == os.getpid()
            await trio.sleep(0.5)  # longer than it takes until a server is tried again
    await until(lambda: not servers())
    assert preloads() == times
    warnings = [record.getMessage() for record in caplog.records if record.name == "runners.hosts"]
    assert len(warnings) == len(set(warnings)) <= 3


@pytest.mark.trio
async def test_a_limit_counts_only_servers_that_die_in_a_row():
    """D15: A server that has preloaded shows that another is worth its try."""

    class Server:
        hopeless = False

        def __init__(self, dies):
            self.dies = dies

        async def preloaded(self):
            if self.dies:
                raise NoServer("it died")

    judging = standby.Reserve(HOST._plan(Scripted()))
    for dies in (True, False, True):
        await judging._judge(Server(dies))
        assert not judging._given_up
    await judging._judge(Server(dies=True))
    assert judging._given_up == "it died"


@pytest.mark.slow
@pytest.mark.trio
async def test_no_recovery_waits_for_a_preload(tmp_path, caplog):
    """D15: A recovery starts cold at once; a server is made beside it when it has loaded, and the next recovery uses that."""
    runner = Preloads(str(tmp_path))
    async with opened(runner) as one:
        server = parent(one.pid)
        assert server != os.getpid()
        (tmp_path / "hold").touch()
        os.kill(server, signal.SIGKILL)
        await until_failure(one, ContextDied)
    async with opened(runner, incarnation=2) as two:
        assert parent(two.pid) == os.getpid()
        assert [what for what, _ in runner.told()].count("preload") == 1
        await until(servers)  # it preloads, and delays no start
        async with opened(runner) as beside:
            assert parent(beside.pid) == os.getpid()
        await until(lambda: [what for what, _ in runner.told()].count("preload") == 2)
        (tmp_path / "hold").unlink()
        (another,) = servers()
        await until(lambda: is_idle(another))
    async with opened(runner, incarnation=3) as three:
        assert parent(three.pid) == another
    assert "the fork server does not run; another one is preloaded meanwhile" in caplog.text


@pytest.mark.slow
@pytest.mark.trio
async def test_a_preload_that_hangs_does_not_delay_the_first_start_for_long(monkeypatch, caplog, tmp_path):
    """D15: The start goes cold after a while, and the log has the stack of the preload."""
    monkeypatch.setattr(standby, "FIRST", 0.7)
    caplog.set_level(logging.WARNING)
    host = ProcessHost(load_timeout=20, linger=0.3)
    async with opened(Preloads(str(tmp_path), "hangs"), host) as session:
        assert parent(session.pid) == os.getpid()
        await until(lambda: "in preload" in caplog.text)
    assert "is started cold: the fork server is still preloading" in caplog.text


@pytest.mark.parametrize(
    ("preloading", "names"),
    [
        ("leaves a thread", "got 2: 'the lazy one' (threading.Thread"),
        ("imports a thread", "'a bar' (threading.Thread, started after the import of lazybar)"),
        ("imports a native thread", "(native, started after the import of lazynative)"),
    ],
)
@pytest.mark.trio
async def test_a_thread_that_prevents_a_fork_is_named(preloading, names, tmp_path, caplog):
    """D15: The report names the thread, and the module that was imported when it appeared."""
    async with opened(Preloads(str(tmp_path), preloading)):
        pass
    assert names in caplog.text


@pytest.mark.trio
async def test_contexts_die_with_their_server_and_a_later_one_has_a_new_server():
    """D10: A server that is killed takes its contexts along: that is a death like any other."""
    async with opened(Scripted(FOREVER, delay=0.001)) as session:
        session.begin(BATCH)
        await session.receive()
        server = parent(session.pid)
        os.kill(server, signal.SIGKILL)
        _, error = await until_failure(session, ContextDied)
        assert str(error) == f"the context process {session.pid} ended with its fork server"
    async with opened(Scripted(), incarnation=2) as session:
        assert ids(await whole(session)) == expected(BATCH)
        await until(lambda: any(is_idle(pid) for pid in servers()))
    async with opened(Scripted(), incarnation=3) as session:
        assert parent(session.pid) not in (server, os.getpid())


@pytest.mark.slow
@pytest.mark.trio
async def test_a_server_that_has_stopped_does_not_delay_a_restart(monkeypatch, caplog):
    """D9: Neither the end of its context nor the start of the next waits for it for long."""
    async with opened(Scripted(4)) as session:
        server = parent(session.pid)
        assert server != os.getpid()
        monkeypatch.setattr(forkserver, "_REPORT", 0.3)
        os.kill(server, signal.SIGSTOP)
        assert ids(await whole(session)) == expected(BATCH, 4)
    await until(lambda: ends(server))
    async with opened(Scripted(4)):
        await until(lambda: any(is_idle(pid) for pid in servers()))
    async with opened(Scripted(4)) as session:
        assert parent(session.pid) != os.getpid()
        monkeypatch.setattr(forkserver, "_ANSWER", 0.3)
        os.kill(parent(session.pid), signal.SIGSTOP)
        async with opened(Scripted(4)) as beside:
            assert parent(beside.pid) == os.getpid()
        with pytest.raises(ContextDied):
            await whole(session)
    assert "did not fork within 0.3 s" in caplog.text


@pytest.mark.parametrize("start", ["forkserver", "spawn"])
@pytest.mark.trio
async def test_processes_that_a_killed_context_has_started_are_killed(start, tmp_path):
    """D10: A death, whatever its cause, takes along the processes that the runner had started."""
    async with opened(Starts(str(tmp_path)), ProcessHost(start=start)) as session:
        sleeper = int((tmp_path / "sleeper").read_text())
        os.kill(session.pid, signal.SIGKILL)
        await until_failure(session, ContextDied)
    await until(lambda: ends(sleeper))


@pytest.mark.trio
async def test_processes_that_a_context_has_started_die_with_the_server(tmp_path):
    """D10: This holds also if the server is killed, and can reap no process."""
    async with opened(Starts(str(tmp_path))) as session:
        sleeper = int((tmp_path / "sleeper").read_text())
        os.kill(parent(session.pid), signal.SIGKILL)
        await until_failure(session, ContextDied)
    await until(lambda: ends(sleeper))


@pytest.mark.slow
@pytest.mark.trio
async def test_an_idle_server_ends_after_a_while():
    """It outlives the last context by `linger` seconds, and one that comes within them still finds it."""
    host = ProcessHost(linger=3)
    async with opened(Scripted(), host) as session:
        server = parent(session.pid)
    await trio.sleep(0.2)
    async with opened(Scripted(), host) as session:
        assert parent(session.pid) == server
        await trio.sleep(3.5)
        assert not ends(server)
    await until(lambda: not processes())
    async with opened(Scripted(), host) as session:
        assert parent(session.pid) != server


def test_a_server_ends_with_the_run():
    """The server ends however the run ends; the fixture counts."""

    async def main():
        async with HOST.open(Scripted()):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trio.run(main)
    assert processes() == set()


@pytest.mark.trio
async def test_equal_hosts_share_a_server_and_others_do_not():
    """One for what is loaded alike."""
    async with (
        opened(Scripted(), ProcessHost("cpu", close_timeout=3)) as one,
        opened(Scripted(), ProcessHost("cpu", close_timeout=4)) as two,
        opened(Scripted(9)) as three,
    ):
        assert parent(one.pid) == parent(two.pid) != parent(three.pid)


@pytest.mark.trio
async def test_a_start_that_is_cancelled_leaves_the_server_to_the_next(tmp_path):
    """R13: A cancellation does not wait for the preload, which goes on."""
    runner = Preloads(str(tmp_path))
    (tmp_path / "hold").touch()

    async def start():
        async with HOST.open(runner):
            raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await until(servers)
        nursery.cancel_scope.cancel()
    (server,) = servers()
    (tmp_path / "hold").unlink()
    async with opened(runner) as session:
        assert parent(session.pid) == server


@pytest.mark.trio
async def test_a_process_that_epoll_cannot_watch_is_not_left_behind(monkeypatch):
    """D10: Without epoll the process is killed and reaped."""

    def none_left():
        raise OSError("no more descriptors")

    async with opened(Scripted()):
        with monkeypatch.context() as patch:
            patch.setattr("select.epoll", none_left)
            with pytest.raises(LoadFailed, match="no more descriptors"):
                async with HOST.open(Scripted()):
                    raise AssertionError
        assert len(contexts()) == 1


@pytest.mark.slow
@pytest.mark.trio
async def test_a_torch_runner_is_forked_warm(caplog):
    """`TorchLM` preloads: one thread, no device, and what it computes is what a cold process computes."""
    texts = []
    for host in (HOST, COLD):
        async with opened(TorchLM(), host) as session:
            assert (parent(session.pid) == os.getpid()) == (host is COLD)
            texts.append([item.text for item in await whole(session)])
    assert texts[0] == texts[1]
    assert [record for record in caplog.records if record.name == "runners.hosts"] == []


@pytest.mark.slow
@pytest.mark.parametrize("host", [HOST, ProcessHost(standby=1), COLD], ids=["fork", "standby", "spawn"])
@pytest.mark.trio
async def test_the_loop_is_never_held_for_five_milliseconds(host):
    """A stream, a death, and the next start: nothing in them waits but the start of a new interpreter."""

    async def live(incarnation):
        async with opened(Scripted(FOREVER), host, incarnation=incarnation) as session:
            session.begin(BATCH)
            await session.receive()
            await trio.sleep(host.standby)  # it comes up meanwhile, if it is wanted
            os.kill(session.pid, signal.SIGKILL)
            await until_failure(session, ContextDied)

    await live(1)
    seen = []
    for incarnation in range(2, 7):
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        await live(incarnation)
        trio.lowlevel.remove_instrument(steps)
        seen.append((steps.used < 0.005, steps.waits <= (host is COLD)))
    assert (True, True) in seen


@contextmanager
def killed(main):
    """A process that does not outlive a test that fails."""
    try:
        yield main
    finally:
        main.kill()
        main.wait()


PARENT = """
import sys, trio
from rogues import Preloads
from runners.hosts.process.host import ProcessHost

async def main():
    async with ProcessHost(start=sys.argv[1], standby=1).open(Preloads(sys.argv[2])) as session:
        while True:
            await session.receive()

trio.run(main)
"""

AT_WORK = {"forkserver": {"preload", "build", "prepare"}, "spawn": {"build", "prepare"}}
"""What server, context and standby report about themselves. A process that reports has called prctl; /proc shows no sign as good."""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("start", AT_WORK)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_server_context_and_standby_die_with_the_parent(number, start, stopped, tmp_path):
    """D10: This holds whatever kills the parent, and even if all of them are stopped, the server first; the cleaner goes last."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, start, str(tmp_path)]
    with killed(subprocess.Popen(command, env=env)) as main:
        while {what for what, _ in Preloads(str(tmp_path)).told()} != AT_WORK[start]:
            assert main.poll() is None
            time.sleep(0.005)
        ours = sorted(processes() - {main.pid}, key=lambda pid: parent(pid) != main.pid)
        assert len(ours) == len(AT_WORK[start] | {"clean"})
        pidfds = [os.pidfd_open(pid) for pid in ours]
        if stopped:
            for pid in ours:
                os.kill(pid, signal.SIGSTOP)
        main.send_signal(number)
        for pidfd in pidfds:
            assert is_readable(pidfd, PATIENCE)
            os.close(pidfd)


def test_a_context_whose_server_is_gone_at_its_birth_ends():
    """D10: `getppid` shows a parent that ended before prctl."""
    code = "import os; from runners.hosts.process.child.life import live; live(lambda: 0, os.getppid() + 1, 'standby')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 70


@pytest.mark.trio
async def test_a_spec_that_is_too_long_for_the_server_starts_cold(caplog):
    """It does not fit a datagram; it does fit the context's own connection."""
    runner = Preloads("x" * 500_000)
    with pytest.raises(LoadFailed, match="File name too long"):
        async with HOST.open(runner):
            raise AssertionError
    assert "cannot be started: [Errno 90] Message too long" in caplog.text
