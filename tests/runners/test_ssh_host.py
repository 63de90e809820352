"""A runner on another machine, reached by ssh. Real sshd on the loopback interface, real processes, real time."""

import json
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
from contexts import (
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    stat,
    title,
    until,
)
from farlings import Holds, Leaves
from rogues import Verbose
from sessions import BATCH, ids, until_failure, whole
from sshd import LEASE, carriers, far, host, needs_sshd, signalled

from benchmarks.loopback import below, serving
from runners.errors import (
    ContextDied,
    ContextHung,
    ContextPoisoned,
    ContextUnreachable,
    LoadFailed,
    Unrecoverable,
)
from runners.hosts import CheckingHost, Session
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost
from runners.hosts.remote import ssh
from runners.hosts.remote.guardian import ASK, COLD, ENDED, HEADER, NUMBER
from runners.hosts.remote.link import MARGIN, FarPeer, Order
from runners.hosts.remote.ssh import SshHost
from runners.models.scripted import Fault, Scripted, expected
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker
from supervise import open_tree

pytestmark = [pytest.mark.filterwarnings("error"), needs_sshd]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@asynccontextmanager
async def opened(server, runner, *, incarnation=1, **settings):
    """A session, and afterwards the proof that its process there is gone."""
    with trio.fail_after(60):
        async with host(server, **settings).open(runner, incarnation=incarnation) as session:
            yield session
        assert not far(server, "runners:context")
        if not settings.get("standby"):
            await until(lambda: not far(server))


# --- what it does as ProcessHost does


@pytest.mark.trio
async def test_a_stream_of_another_machine_arrives_whole_and_stamped(server):
    """D6, D16: It is a session like any other."""
    async with opened(server, Scripted(5), incarnation=7) as session:
        assert isinstance(host(server), CheckingHost)
        assert isinstance(session, Session)
        items = await whole(session)
        assert ids(items) == expected(BATCH, 5)
        assert {item.incarnation for item in items} == {7}
        assert title(session.pid) == "runners:context"


@pytest.mark.trio
async def test_a_death_there_is_reported_with_its_cause_and_its_machine(server):
    """D10, D16: The guardian reports the end of the process itself, and the error names the place."""
    async with opened(server, Scripted(10_000, delay=0.01)) as session:
        session.begin(BATCH)
        os.kill(session.pid, signal.SIGKILL)
        _, error = await until_failure(session, ContextDied)
        assert str(error) == f"the context process {session.pid} on {server.address} was killed by SIGKILL"


@pytest.mark.trio
async def test_an_exit_during_the_load_is_reported_with_its_status(server, tmp_path):
    """D10, D16: So is the status of a process that ends by itself."""
    with pytest.raises(ContextDied, match="exited with status 7") as raised:
        async with opened(server, Leaves(str(tmp_path), "exit")):
            pass
    assert "to standard error" in raised.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.trio
async def test_a_step_that_hangs_there_is_killed(server):
    """D9, D16: The deadlines are those of `ProcessHost`; the guardian's answers are no progress."""
    async with opened(server, Scripted(10_000), next_chunk_timeout=0.5, first_chunk_timeout=0.5) as session:
        session.begin(BATCH)
        os.kill(session.pid, signal.SIGSTOP)
        _, error = await until_failure(session, ContextHung)
        assert server.address in str(error)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_load_that_hangs_there_is_killed(server, tmp_path):
    """D9, D16: Nothing of it is left."""
    with pytest.raises(ContextHung, match="loaded no runner within 2 s"):
        async with opened(server, Leaves(str(tmp_path), "hang"), load_timeout=2):
            pass
    await until(lambda: not Path(f"/proc/{(tmp_path / 'left').read_text()}").exists())


@pytest.mark.trio
async def test_output_there_is_logged_here_and_what_it_starts_ends_with_it(server, tmp_path, caplog):
    """D10, D16: Output comes over the connection. A process in a session of its own falls to the guardian, which ends it."""
    caplog.set_level(logging.INFO, "runners.context")
    async with opened(server, Leaves(str(tmp_path))) as session:
        await whole(session)
        await until(lambda: "to standard error" in caplog.text)
        left = int((tmp_path / "left").read_text())
        assert stat(left)[0] == "S"
    await until(lambda: not Path(f"/proc/{left}").exists())
    lines = {
        (record.stream, record.levelname): record for record in caplog.records if hasattr(record, "stream")
    }
    assert lines["stdout", "INFO"].pid == lines["stderr", "WARNING"].pid == session.pid


@pytest.mark.slow
@pytest.mark.trio
async def test_a_restart_takes_the_standby_and_another_one_follows(server, tmp_path):
    """D2, D15, D16: The device goes from one process to the next, and is never held by two."""
    async with opened(server, Holds(str(tmp_path)), standby=1):
        await until(lambda: far(server, "runners:standby"))
        (first,) = far(server, "runners:standby")
    async with opened(server, Holds(str(tmp_path)), standby=1, incarnation=2) as session:
        assert session.pid == first
        await until(lambda: far(server, "runners:standby"))
        (killed,) = far(server, "runners:standby")
        os.kill(killed, signal.SIGKILL)
        await until(lambda: not far(server, "runners:standby"))
        await trio.sleep(0.3)  # the news of it takes a moment
    async with opened(server, Holds(str(tmp_path)), standby=1, incarnation=3) as session:
        assert ids(await whole(session)) == expected(BATCH)


# --- what is lost between the machines


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["guardian", "ssh"])
@pytest.mark.trio
async def test_a_guardian_or_a_connection_that_is_killed_frees_the_device_when_the_lease_is_over(
    server, tmp_path, victim, caplog
):
    """D2, D16: The end of the process is not known, so the device is used again only after the lease; nothing is left."""
    async with opened(server, Holds(str(tmp_path), 10_000, 0.01)) as session:
        session.begin(BATCH)
        await session.receive()
        if victim == "guardian":
            signalled(server, "runners:guard", signal.SIGKILL)
        else:
            (carrier,) = carriers(server)
            os.kill(carrier, signal.SIGKILL)
        _, error = await until_failure(session, ContextDied)
        assert "lost its connection: ssh to 127.0.0.1" in str(error)
        assert error.tag == "device.poisoned.unreachable"
        before = trio.current_time()
    (waits,) = [each.args[-1] for each in caplog.records if "its device is not used before" in each.message]
    assert LEASE / 2 < waits <= LEASE + MARGIN
    assert trio.current_time() - before >= waits
    async with opened(server, Holds(str(tmp_path)), incarnation=2) as session:
        assert ids(await whole(session)) == expected(BATCH)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_silent_connection_is_a_lost_one_at_both_ends(server, tmp_path):
    """D16: The near end loses it after a lease without a byte; the far end kills the process by itself."""
    async with opened(server, Holds(str(tmp_path))) as session:
        pid = session.pid
        (carrier,) = carriers(server)
        os.kill(carrier, signal.SIGSTOP)  # neither end of the connection closes
        _, error = await until_failure(session, ContextUnreachable)
        assert f"it was silent for {LEASE:g} s" in str(error)
        await until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.slow
@pytest.mark.trio
async def test_a_far_process_that_does_not_die_makes_its_device_unrecoverable(server, monkeypatch):
    """D9, D16: The guardian still answers, so the process is known to be alive, and no second one is started beside it."""
    monkeypatch.setattr(FarPeer, "kill", lambda _peer, _poisoned=False: None)
    monkeypatch.setattr("runners.hosts.remote.link.MARGIN", 0.0)
    with pytest.raises(Unrecoverable, match=r"on 127\.0\.0\.1 has outlived SIGKILL by 0\.5 s"):
        async with host(server, kill_timeout=0.5, close_timeout=0.1).open(
            Scripted(10_000, delay=0.01)
        ) as session:
            os.kill(session.pid, signal.SIGSTOP)
    await until(lambda: not far(server))


@pytest.mark.slow
@pytest.mark.trio
async def test_an_idle_context_outlives_many_leases(server):
    """D16: No session has to wait for anything; a task of the connection answers."""
    async with opened(server, Scripted(3)) as session:
        await trio.sleep(3 * LEASE)
        assert ids(await whole(session)) == expected(BATCH, 3)


@pytest.mark.trio
async def test_a_session_that_reads_nothing_still_ends(server, monkeypatch):
    """D10, D16: More has come than the connection keeps for it; the end of the process is behind that."""
    monkeypatch.setattr("runners.hosts.remote.link.BACKLOG", 1000)
    with pytest.raises(ContextPoisoned, match="found by the user"):
        async with opened(server, Verbose(200_000)) as session:
            session.begin(BATCH)
            await until(lambda: len(session._peer._data) >= 1000)
            raise ContextPoisoned("found by the user of the session")  # after a failure nothing more is read


PARENT = """
import sys, trio
from pathlib import Path
from farlings import Holds
from sshd import host
from benchmarks.loopback import Server

async def main():
    server = Server(Path(sys.argv[1]), int(sys.argv[2]), "127.0.0.1")
    async with host(server).open(Holds(sys.argv[3], 10_000, 0.01)):
        print("open", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.trio
async def test_a_killed_parent_leaves_nothing_there(server, tmp_path, silent):
    """D10, D16: The end of the connection ends the far side, or the lease if the connection shows no end."""
    args = (str(server.folder), str(server.port), str(tmp_path))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, *args]
    async with trio.open_nursery() as nursery:
        parent = await nursery.start(partial(trio.run_process, command, env=env, check=False))
        await until(lambda: far(server, "runners:context"))
        if silent:
            for sshd in sessions(server):
                os.kill(sshd, signal.SIGSTOP)
        parent.kill()
    await until(lambda: not far(server))
    for sshd in sessions(server):
        os.kill(sshd, signal.SIGKILL)


def sessions(server):
    """The pids of the processes of the server that carry connections."""
    return {pid for pid in below(server.process.pid) if title(pid) == "sshd"}


# --- what cannot be started


@contextmanager
def silent_port():
    """A port that accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        def accept():
            with suppress(OSError):
                while True:
                    accepted.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in accepted:
            connection.close()


async def refusal(server, **settings):
    far_host = host(server, **settings)
    with trio.fail_after(30), pytest.raises(LoadFailed) as raised:
        async with far_host.open(Scripted(1)):
            pass
    await until(lambda: not far(server))
    return str(raised.value)


@pytest.mark.trio
async def test_a_wrong_key_is_refused_in_one_line(server):
    """D16: The reason of `ssh` is in the error of the load."""
    why = await refusal(server, options={"IdentityFile": str(server.folder / "wrong")})
    assert "ssh to 127.0.0.1 exited with status 255" in why
    assert "Permission denied" in why
    assert "\n" not in why


@pytest.mark.trio
async def test_a_host_that_is_not_there_is_refused_in_one_line(server):
    """D16: Nothing listens at this port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert "Connection refused" in await refusal(server, options={"Port": str(port)})


@pytest.mark.trio
async def test_a_host_with_another_key_is_refused_in_one_line(server, tmp_path):
    """D16: It is not the machine that it says it is."""
    known = tmp_path / "known"
    wrong = (server.folder / "wrong.pub").read_text()
    known.write_text(f"[127.0.0.1]:{server.port} {wrong}")
    assert "verification failed" in await refusal(server, options={"UserKnownHostsFile": str(known)})


@pytest.mark.trio
async def test_a_host_without_that_python_is_refused_in_one_line(server):
    """D16: The shell there says so."""
    why = await refusal(server, python="/nowhere/python")
    assert "exited with status 127" in why
    assert "/nowhere/python" in why


@pytest.mark.trio
async def test_a_host_without_the_packages_is_refused_in_one_line(server, tmp_path):
    """D16: The guardian runs, and says what cannot be imported."""
    (tmp_path / "runners.py").write_text("")
    assert "cannot import what a context needs" in await refusal(server, path=(str(tmp_path),))


@pytest.mark.trio
async def test_another_version_there_is_refused_with_both_numbers(server, tmp_path):
    """D16: The far side is not tried with a protocol that it does not know."""
    old = tmp_path / "trio_supervise-0.0.1.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: trio-supervise\nVersion: 0.0.1\n")
    path = (str(tmp_path), *host(server).path)
    why = await refusal(server, path=path)
    assert f"it has trio-supervise 0.0.1 with protocol {wire.PROTOCOL}, and here it is" in why


@pytest.mark.slow
@pytest.mark.trio
async def test_a_server_that_hangs_is_given_up(server):
    """D16: Neither the start of `ssh` nor the far side may take longer than `connect_timeout`."""
    with silent_port() as port:
        why = await refusal(server, options={"Port": str(port)}, connect_timeout=1)
    assert "127.0.0.1" in why


@pytest.mark.slow
@pytest.mark.trio
async def test_a_server_that_hangs_behind_its_greeting_is_given_up(server):
    """D16: A stopped sshd accepts connections, and its session never begins."""
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        await refusal(server, connect_timeout=1)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    await until(lambda: not sessions(server))


@pytest.mark.slow
@pytest.mark.trio
async def test_a_start_that_is_cancelled_leaves_nothing(server, tmp_path):
    """D10, D16: Wherever it is cancelled."""
    for seconds in (0.0, 0.05, 0.3, 0.8):
        with trio.move_on_after(seconds):
            async with host(server).open(Leaves(str(tmp_path), "hang")):
                pass
        await until(lambda: not far(server))


# --- what is refused where it is declared


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"host": "-oProxyCommand=x"}, "host must be a name as `ssh` takes it"),
        ({"host": ""}, "host must be"),
        ({"host": "a b"}, "host must be"),
        ({"python": ""}, "python"),
        ({"options": {"batchmode": "no"}}, "options must not have BatchMode"),
        ({"options": {"Port 22": "x"}}, "options must have names"),
        ({"options": {"Port": 22}}, "options must have texts"),
        ({"options": {"Port": "22\nUser x"}}, "options must have texts"),
        ({"options": [1]}, "options must be a mapping"),
        ({"path": "/a"}, "path must be several folders"),
        ({"path": ("a",)}, "path must have absolute folders"),
        ({"device": "cuda:x"}, "cuda"),
        ({"lease": 0.5}, "lease"),
        ({"standby": -1}, "standby"),
    ],
)
def test_a_wrong_argument_is_named(wrong, says):
    """D2: One error says which argument, what is allowed, and what came."""
    with pytest.raises((ValueError, TypeError), match=says):
        SshHost(**{"host": "far", **wrong})


def test_a_machine_without_ssh_is_named_when_a_context_starts(monkeypatch):
    """D2, D16: A declaration may be checked elsewhere."""
    monkeypatch.setattr(ssh.shutil, "which", lambda _name: None)
    SshHost("far").check(Scripted(1))
    with pytest.raises(Unrecoverable, match="needs the program `ssh`"):
        SshHost("far").open(Scripted(1))


def test_the_command_line_has_no_word_of_the_runner_and_every_option():
    """D16: A command line is public. Options that would let `ssh` ask, share or hang are set."""
    command = SshHost("u@far", python="/a b/python", options={"Port": "7"}).command()
    assert command[-3:-1] == ("--", "u@far")
    assert command[-1].startswith("exec '/a b/python' -u -c ")
    for option in ("BatchMode=yes", "ControlMaster=no", "ControlPath=none", "ConnectTimeout=30", "Port=7"):
        assert command[command.index(option) - 1] == "-o"


# --- several hosts


@pytest.mark.slow
@pytest.mark.trio
async def test_a_worker_over_mixed_hosts_loses_one_and_no_token(server):
    """D12, D16: Streams go on elsewhere at once; the device of the lost host is not used before its lease is over."""
    hosts = [ProcessHost(), host(server, lease=8), host(server, lease=9)]
    slow = Fault("slow", at_token=50, moved=False)  # so that all streams are at work when one host is lost
    worker = device_worker("llm", Scripted(100, delay=0.001, streams=32, faults=(slow,)), hosts=hosts)
    results = [[] for _ in range(64)]

    async def ask(tree, number):
        batch = ExecuteBatch(f"{number}", f"go on, {number}", sampling=Sampling(seed=number, max_tokens=100))
        async with tree[worker].stream(batch) as chunks:
            async for chunk in chunks:
                results[number].append(chunk)
        assert ids(results[number]) == expected(batch, 100)

    async with open_tree(worker, sinks=[]) as tree:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(64):
                    nursery.start_soon(ask, tree, number)
                await until(lambda: all(results))
                assert max(map(len, results)) < 100
                os.kill(min(carriers(server)), signal.SIGKILL)
    # Not one has waited for a restart there, which a lease delays.
    assert {chunk.incarnation for chunks in results for chunk in chunks} == {1}
    await until(lambda: not far(server))


# --- what the far side may send


ORDER = Order(place="far", path=("/p",), version="1", protocol=1, lease=1.0, device="cpu", nvml=None)


class Quiet:
    """The program that carries a connection, and sends nothing."""

    def __init__(self):
        self.sent, self.killed = [], False

    def send(self, data):
        self.sent.append(data)

    def kill(self):
        self.killed = True


class Full(Quiet):
    """One that has sent a part of the first answer, and has no room for more."""

    def __init__(self):
        super().__init__()
        self.unsent = {}

    def send_marked(self, frames):
        self.unsent.update(frames)

    def withdraw(self, mark):
        if mark not in self.unsent or mark == next(iter(self.unsent)):
            return False
        del self.unsent[mark]
        return True


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" + b"\0\0\0\0",
        b"\x05\xff\xff\xff\xff",
        b"\x05\0\0\0\x01x",
        b"\x07\0\1\0\0",
        b"\x0a\0\0\0\x02{]",
        b"\x0a\0\0\0\x02[]",
        b"\x0a\0\0\0\x0e" + b'{"killed": 12}',
        b"\x0a\0\0\0\x2c" + b'{"killed": true, "status": 9, "nvml": ["x"]}',
        HEADER.pack(ENDED, 60_000) + b"[" * 60_000,
        HEADER.pack(COLD, 27) + b'{"kind": "late", "why": {}}',
        b"Last login: Monday\n" * 3,
    ],
)
@pytest.mark.trio
async def test_records_that_cannot_be_read_lose_the_connection(data):
    """D10, D16: Nothing that the far side sends is trusted; a login shell that prints a greeting is one way to it."""
    peer = FarPeer(Quiet(), ORDER, "x")
    peer._records += data
    await peer._take_records()
    assert peer.dead
    assert peer._carrier.killed
    assert "it sent " in await peer.fate(0)


@pytest.mark.trio
async def test_questions_that_flood_the_near_end_leave_one_answer():
    """D10, D16: A far side that asks, and reads nothing, costs no memory here."""
    carrier = Full()
    peer = FarPeer(carrier, ORDER, "x")
    for number in range(1000):
        peer._records += HEADER.pack(ASK, NUMBER.size) + NUMBER.pack(number)
        await peer._take_records()
    assert [data[-NUMBER.size :] for data in carrier.unsent.values()] == [NUMBER.pack(0), NUMBER.pack(999)]


def test_the_order_has_no_secret_and_is_json():
    """D16: What the guardian gets besides its program."""
    data = ORDER.data()
    order = json.loads(data[data.rindex(b"{") :])
    assert order == {
        "path": ["/p"],
        "version": "1",
        "protocol": 1,
        "lease": 1.0,
        "device": "cpu",
        "nvml": None,
        "fork": None,
    }
