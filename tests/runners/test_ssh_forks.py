"""The fork server on another machine (D15, D16). Real sshd on the loopback interface, real processes, real time."""

import importlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
from contexts import (
    environment_of,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    stat,
    title,
    until,
)
from far_nvml import FarNvml
from sessions import BATCH, ids, until_failure, whole
from sshd import LEASE, carriers, far, host, kill_left, needs_sshd, signalled

from benchmarks.loopback import serving
from runners.diagnosis.nvml import Nvml
from runners.errors import ContextDied, Unrecoverable
from runners.hosts.process.parent import standby
from runners.hosts.remote.seeking import READY
from runners.hosts.remote.ssh import SshHost
from runners.models.scripted import Fault, Scripted, expected

pytestmark = [pytest.mark.filterwarnings("error"), needs_sshd, pytest.mark.slow]

MODULE = """
import os, threading, time
from pathlib import Path
from attrs import frozen
from runners.models.scripted import Scripted

FOLDER = Path(__file__).parent
with (FOLDER / "imports").open("a") as file:
    file.write(f"{{os.getpid()}}\\n")

@frozen
class Spec:
    chunks: int = 8
    delay: float = 0.0

    def preload(self):
        {preload}

    def build(self, start):
        (FOLDER / "environ").write_text(repr(dict(os.environ)))
        (FOLDER / "others").write_text(f"{{Path.cwd()}} {{sorted(os.listdir('/proc/self/fd'))}}")
        return Scripted(self.chunks, delay=self.delay, streams=64).build(start)
"""
_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server
        kill_left(server)


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """A spec whose module notes who imports it, and whose `preload` runs the statement that is given."""

    def make(preload="pass", **settings):
        name = f"forked_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(MODULE.format(preload=preload))
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name).Spec(**settings)

    return make


def forking(server, folder, **settings):
    """A host that keeps a fork server there, where this folder can be imported from."""
    there = host(server)
    return host(server, **{"start": "forkserver", "path": (str(folder), *there.path), **settings})


def importers(folder):
    """The far processes that have imported the runner's module."""
    return [int(pid) for pid in (folder / "imports").read_text().split() if int(pid) != os.getpid()]


def is_forked(pid):
    """Whether the guardian of this context was forked from a fork server."""
    return title(stat(stat(pid)[1])[1]) == "runners:server"


@asynccontextmanager
async def opened(there, runner, *, incarnation=1):
    with trio.fail_after(60):
        async with there.open(runner, incarnation=incarnation) as session:
            yield session


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if "is started cold" in record.getMessage()]


@pytest.mark.trio
async def test_the_runners_module_is_imported_once_on_its_machine(server, tmp_path, spec, caplog):
    """D15, D16: Every context is forked from what has imported it, and the server ends when it has no client for a lease."""
    there, runner = forking(server, tmp_path), spec()
    seen = set()
    for incarnation in (1, 2, 3):
        async with opened(there, runner, incarnation=incarnation) as session:
            assert ids(await whole(session)) == expected(BATCH)
            assert is_forked(session.pid)
            assert title(stat(session.pid)[1]) == "runners:guard"
            seen |= far(server, "runners:server")
    assert len(seen) == 1
    assert importers(tmp_path) == [*seen]
    assert warnings(caplog) == []
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_forked_context_has_the_surroundings_of_its_own_connection(server, tmp_path, spec):
    """D16: Its environment is that of the login which asked for it, not of the one that started the server; it has none of the descriptors of others."""
    there, runner = forking(server, tmp_path), spec()
    environments = []
    async with opened(there, runner) as other:
        environments.append(eval((tmp_path / "environ").read_text()))
        async with opened(there, runner) as session:
            environments.append(eval((tmp_path / "environ").read_text()))
            assert is_forked(other.pid)
            assert is_forked(session.pid)
            logins = [environment_of(pid) for pid in far(server, "runners:boot")]
        folder, _, descriptors = (tmp_path / "others").read_text().partition(" ")
        for environment in environments:
            (login,) = (each for each in logins if each["SSH_CONNECTION"] == environment["SSH_CONNECTION"])
            assert login.items() <= environment.items()
        assert len({environment["SSH_CONNECTION"] for environment in environments}) == 2
        assert folder == str(Path.home())
        assert len(json.loads(descriptors.replace("'", '"'))) <= 6
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_fork_server_that_is_killed_ends_no_stream_and_the_next_start_makes_a_new_one(
    server, tmp_path, spec, caplog
):
    """D15, D16: The recovery itself starts cold, because the new server has not preloaded yet."""
    there, runner = forking(server, tmp_path), spec(chunks=200, delay=0.01)
    async with opened(there, runner) as session:
        session.begin(BATCH)
        await session.receive()
        (killed,) = signalled(server, "runners:server", signal.SIGKILL)
        items = []
        while not items or items[-1].finish_reason is None:
            items += await session.receive()
        await until(lambda: not far(server, "runners:server"))
    assert len(items) > 100
    async with opened(there, runner, incarnation=2) as session:
        assert not is_forked(session.pid)
        await until(lambda: far(server, "runners:server"))
        (new,) = far(server, "runners:server")
        assert new != killed
        await until(lambda: new in importers(tmp_path))
        await until(lambda: listens(READY))
    async with opened(there, runner, incarnation=3) as session:
        assert is_forked(session.pid)
    assert len(warnings(caplog)) == 1
    assert "the fork server there does not run; another one is preloaded meanwhile" in warnings(caplog)[0]
    await until(lambda: not far(server))


def listens(ending):
    """Whether a fork server has an abstract socket whose name ends so."""
    names = (line.split()[-1] for line in Path("/proc/net/unix").read_text(errors="replace").splitlines())
    return any(name.startswith("@trio-supervise/") and name.endswith(ending) for name in names)


@pytest.mark.parametrize(
    "victim", ["runners:context", "runners:guard", "runners:boot", "ssh", "stopped server"]
)
@pytest.mark.trio
async def test_whatever_is_killed_nothing_is_left_when_the_leases_are_over(server, tmp_path, spec, victim):
    """D10, D16: A forked guardian ends with its connection, its lease, and the process that has asked for it, as one that was started."""
    there = forking(server, tmp_path)
    async with opened(there, spec(chunks=10_000, delay=0.01)) as session:
        assert is_forked(session.pid)
        session.begin(BATCH)
        await session.receive()
        if victim == "ssh":
            for pid in carriers(server):
                os.kill(pid, signal.SIGKILL)
        elif victim == "stopped server":
            stopped = signalled(server, "runners:server", signal.SIGSTOP)
            os.kill(session.pid, signal.SIGKILL)
        else:
            assert signalled(server, victim, signal.SIGKILL)
        _, error = await until_failure(session, ContextDied)
        if victim != "runners:boot":  # sshd may end the connection before the guardian has reported the end
            lost = victim in ("runners:guard", "ssh")
            assert error.tag == ("device.poisoned.unreachable" if lost else "device.poisoned.died")
    if victim == "stopped server":
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_fork_server_that_is_stopped_delays_a_start_for_a_moment_only(server, tmp_path, spec, caplog):
    """D15, D16: It does not answer, and the context starts cold."""
    there, runner = forking(server, tmp_path), spec()
    async with opened(there, runner):
        pass
    stopped = signalled(server, "runners:server", signal.SIGSTOP)
    async with opened(there, runner, incarnation=2) as session:
        assert not is_forked(session.pid)
    assert "the fork server there does not answer" in warnings(caplog)[0]
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_fork_server_that_is_lost_now_and_then_is_tried_again(server, tmp_path, spec, caplog):
    """D15: Two that are lost in a row are the last ones, and each that forks begins the count anew."""
    there, runner = forking(server, tmp_path), spec()
    incarnations = itertools.count(1)
    for _ in range(2):
        for forked in (False, True):
            async with opened(there, runner, incarnation=next(incarnations)):
                await until(lambda: listens(READY))
            async with opened(there, runner, incarnation=next(incarnations)) as session:
                assert is_forked(session.pid)
            if not forked:
                stopped = signalled(server, "runners:server", signal.SIGSTOP)
                async with opened(there, runner, incarnation=next(incarnations)) as session:
                    assert not is_forked(session.pid)
                for pid in stopped:
                    os.kill(pid, signal.SIGKILL)
    assert len([text for text in warnings(caplog) if "does not answer" in text]) == 2
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_preload_there_that_starts_a_thread_is_reported_once(server, tmp_path, spec, caplog):
    """D15: With the thread that is in the way. It is not tried again."""
    caplog.set_level(logging.WARNING)
    there = forking(server, tmp_path)
    runner = spec("threading.Thread(target=time.sleep, args=(1000,), daemon=True, name='in the way').start()")
    for incarnation in (1, 2, 3):
        async with opened(there, runner, incarnation=incarnation) as session:
            assert ids(await whole(session)) == expected(BATCH)
            assert title(stat(session.pid)[1]) == "runners:guard"
            assert not is_forked(session.pid)
    assert len(warnings(caplog)) == 1
    assert (
        "could not preload: RuntimeError: a preload must leave one thread, got 2: 'in the way'"
        in warnings(caplog)[0]
    )
    # One server, and two contexts: the first one imported it after the server had failed.
    assert len(importers(tmp_path)) == 4
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_no_start_there_waits_for_a_preload_for_long(server, tmp_path, spec, caplog, monkeypatch):
    """D15: The first one waits for a while, a recovery not at all; a preload that hangs is ended after its time."""
    monkeypatch.setattr(standby, "FIRST", 0.5)
    there = forking(server, tmp_path, load_timeout=8)
    runner = spec("time.sleep(1000)")
    for incarnation in (1, 2):
        async with opened(there, runner, incarnation=incarnation) as session:
            assert ids(await whole(session)) == expected(BATCH)
            assert not is_forked(session.pid)
            await until(lambda: far(server, "runners:server"))
    assert warnings(caplog) == [
        "a process for Spec is started cold: the fork server there is still preloading"
    ]
    await until(lambda: not far(server))


@pytest.mark.parametrize("seconds", [1e10, float("inf")])
@pytest.mark.trio
async def test_a_lease_and_a_load_may_have_more_seconds_than_the_kernel_counts(
    server, tmp_path, spec, seconds
):
    """D15, D16: The server waits for its first client, and its preload has a timer."""
    there, runner = forking(server, tmp_path, lease=seconds, load_timeout=seconds), spec()
    for incarnation in (1, 2):
        async with opened(there, runner, incarnation=incarnation) as session:
            assert is_forked(session.pid)
    assert signalled(server, "runners:server", signal.SIGKILL)
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_failure_of_the_preload_that_comes_late_is_reported_too(
    server, tmp_path, spec, caplog, monkeypatch
):
    """D15: So that the next recoveries do not start a server in vain."""
    monkeypatch.setattr(standby, "FIRST", 0.1)
    there = forking(server, tmp_path)
    runner = spec("time.sleep(1); raise OSError('no such weights')")
    async with opened(there, runner):
        await until(lambda: len(warnings(caplog)) == 2)
    assert warnings(caplog)[1].endswith("could not preload: OSError: no such weights")
    await until(lambda: not far(server))
    async with opened(there, runner, incarnation=2):
        pass
    await until(lambda: not far(server))
    assert len(importers(tmp_path)) == 3  # one server, two contexts


@pytest.mark.trio
async def test_a_standby_there_is_forked_after_the_preload(server, tmp_path, spec, monkeypatch):
    """D15: It has time, so it waits."""
    monkeypatch.setattr(standby, "FIRST", 0.1)
    there, runner = forking(server, tmp_path, standby=1, linger=0), spec("time.sleep(1)")
    async with opened(there, runner) as session:
        assert not is_forked(session.pid)
        await until(lambda: far(server, "runners:standby"))
        (forked,) = far(server, "runners:standby")
        assert is_forked(forked)
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_two_contexts_that_start_at_once_share_one_server(server, tmp_path, spec):
    """D15, D16: The first one binds the name of the server, and the others connect to it."""
    there, runner = forking(server, tmp_path), spec("time.sleep(0.5)")
    found = []

    async def run(number):
        async with opened(there, runner, incarnation=number) as session:
            found.append(session.pid)
            assert is_forked(session.pid)
            while len(found) < 4:  # noqa: ASYNC110 - The other tasks set no event.
                await trio.sleep(0.01)

    async with trio.open_nursery() as nursery:
        for number in range(1, 5):
            nursery.start_soon(run, number)
    assert len(importers(tmp_path)) == 1
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_start_that_is_cancelled_while_a_preload_runs_leaves_nothing(server, tmp_path, spec):
    """D10, D16: Its guardian has no context process yet, and ends at once."""
    there, runner = forking(server, tmp_path, load_timeout=4), spec("time.sleep(1000)")
    for seconds in (0.3, 1.0):
        with trio.move_on_after(seconds):
            async with there.open(runner):
                pass
        await until(lambda: not far(server, "runners:guard", "runners:context"))
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_forked_guardian_asks_nvml_and_ends_a_driver_that_hangs(server, tmp_path):
    """D4, D16: In a process that is forked from it, as one that was started."""
    nvml = FarNvml(tmp_path, seconds=1000)
    there = forking(server, tmp_path, device="cuda:0", nvml=Nvml(timeout=1))
    with pytest.raises(Unrecoverable, match="NVML has not answered within 1 s"):
        async with opened(there, Scripted(faults=(Fault("poison"),))) as session:
            assert is_forked(session.pid)
            session.begin(BATCH)
            raise (await until_failure(session, Unrecoverable))[1]
    assert len(nvml.asked) == 1
    await until(lambda: not far(server))


# --- other users

OTHER = """
import os, signal, socket, struct, sys, time
sys.path[:0] = sys.argv[2:]
from runners.hosts.process.wire import PROTOCOL
from runners.hosts.remote.reserve import package_version
from runners.hosts.remote.seeking import in_memory, inherited, name_of
name = name_of(sys.argv[1])
os.setuid(int(os.environ["AS"]))
place = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
"""
SQUATS = """
place.bind(name)
place.listen()
print("ready", flush=True)
sys.stdin.read()
"""
SAYS_READY = """
place.bind(name + "ready")
place.listen()
print("ready", flush=True)
caller = place.accept()[0]
caller.send(b'{"ready": true}')
caller.recv(100)
time.sleep(6)
try:
    caller.send(b'{"forked": 1}')
except BrokenPipeError:
    print("given up", flush=True)
"""
FORKS_LATE = """
place.connect(name + "ready")
assert place.recv(100) == b'{"ready": true}'
pid = struct.unpack("3i", place.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
os.kill(pid, signal.SIGSTOP)
until = time.clock_gettime(time.CLOCK_BOOTTIME) + 5
order = {
    "path": sys.argv[2:], "version": package_version(), "protocol": PROTOCOL, "lease": 5, "device": "cpu", "nvml": None
}
buffers = {"in": "", "out": "", "to_context": "", "asked": [], "number": 0, "next_question": until}
state = in_memory({"order": order, "until": until, **buffers, **inherited()})
(end, _), (ours, their) = os.pipe(), os.pipe()
socket.send_fds(place, [b"take"], [end, their, os.open(os.devnull, os.O_RDWR), state])
os.close(their)
place.shutdown(socket.SHUT_RD)
os.kill(pid, signal.SIGCONT)
print(os.read(ours, 1000), flush=True)
"""
CALLS = """
place.connect(name)
place.settimeout(5)
print(place.recv(100), flush=True)
"""


@contextmanager
def stranger(there, runner, program, user=65534):
    """A program of another user that knows the name of the fork server; gives a function that reads its next line."""
    command = [sys.executable, "-u", "-c", OTHER + program, there._checked(runner).fork(1).name, *there.path]
    environment = {"PATH": os.environ["PATH"], "AS": str(user)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        yield lambda: process.stdout.readline().decode().strip()
        process.stdin.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.trio
async def test_another_user_who_has_the_name_of_the_fork_server_is_not_used(server, tmp_path, spec, caplog):
    """D16: It would get the connection."""
    there, runner = forking(server, tmp_path), spec()
    with stranger(there, runner, SQUATS) as next_line:
        assert next_line() == "ready"
        async with opened(there, runner) as session:
            assert ids(await whole(session)) == expected(BATCH)
            assert not is_forked(session.pid)
    assert "its name is taken by the user with the number 65534" in warnings(caplog)[0]
    await until(lambda: not far(server))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
@pytest.mark.trio
async def test_another_user_gets_nothing_of_a_fork_server(server, tmp_path, spec):
    """D16: It would run what that user says as ours."""
    there, runner = forking(server, tmp_path), spec()
    async with opened(there, runner):
        with stranger(there, runner, CALLS) as next_line:
            assert next_line() == "b''"
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_fork_server_that_takes_a_connection_and_forks_nothing_is_given_up(
    server, tmp_path, spec, caplog
):
    """D15, D16: A guardian that it might still fork could not say that it is there, so that no two serve one connection."""
    there, runner = forking(server, tmp_path, lease=8), spec()
    async with opened(there, runner):
        pass
    signalled(server, "runners:server", signal.SIGKILL)
    await until(lambda: not far(server, "runners:server"))
    with stranger(there, runner, SAYS_READY, os.getuid()) as next_line:
        assert next_line() == "ready"
        async with opened(there, runner, incarnation=2) as session:
            assert ids(await whole(session)) == expected(BATCH)
            assert next_line() == "given up"
    assert "could not fork: it does not answer" in warnings(caplog)[0]
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_guardian_that_is_forked_too_late_ends_at_once(server, tmp_path, spec):
    """D15, D16: Its client has been started cold meanwhile, on the same connection."""
    there, runner = forking(server, tmp_path), spec()
    async with opened(there, runner) as session:
        await until(lambda: listens(READY))
        with stranger(there, runner, FORKS_LATE, os.getuid()) as next_line:
            assert next_line() == "b''"
        assert ids(await whole(session)) == expected(BATCH)
    await until(lambda: not far(server))


@pytest.mark.trio
async def test_a_fork_server_lives_as_long_as_its_contexts(server, tmp_path, spec):
    """D16: However long no other one starts. A context that was started cold counts as well."""
    there, runner = forking(server, tmp_path), spec()
    async with opened(there, runner) as session:
        assert is_forked(session.pid)
        await trio.sleep(LEASE + 1.5)
        assert far(server, "runners:server")
        signalled(server, "runners:server", signal.SIGKILL)
    async with opened(there, runner, incarnation=2) as session:
        assert not is_forked(session.pid)
        await trio.sleep(LEASE + 1.5)
        assert far(server, "runners:server")
    await until(lambda: not far(server))


def test_a_wrong_start_is_named():
    """D2: It has the values of `ProcessHost`."""
    assert SshHost("far").start == "spawn"
    with pytest.raises(ValueError, match="start"):
        SshHost("far", start="fork")


@pytest.mark.parametrize("late", ["guardian", "server"])
@pytest.mark.trio
async def test_a_server_without_a_descriptor_for_a_guardian_leaves_its_connection_to_the_cold_start(
    server, tmp_path, spec, caplog, late
):
    """D10, D16: Two guardians at one connection would start two contexts on one device, and one that is killed after its report would lose it."""
    preload = f"""
        server, watch, leave, late = os.getpid(), os.pidfd_open, os.setsid, {late!r}
        def watched(pid, *flags):
            if os.getpid() == server:
                time.sleep(0.5 if late == "server" else 0)
                raise OSError(24, "Too many open files")
            return watch(pid, *flags)
        def left():
            time.sleep(0.5 if late == "guardian" else 0)
            leave()
        os.pidfd_open, os.setsid = watched, left
    """
    there = forking(server, tmp_path)
    async with opened(there, spec(preload.strip())) as session:
        assert not is_forked(session.pid)
        assert ids(await whole(session)) == expected(BATCH)
        await trio.sleep(1)  # twice as long as the other guardian would take to begin
        assert far(server, "runners:guard") == {stat(session.pid)[1]}
    assert "could not fork: [Errno 24] Too many open files" in warnings(caplog)[0]
