"""How a program shows that it is ready, and that it still works."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import signal
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import Mock

import pytest
import trio

from benchmarks.ports import free_port
from supervise import Decider, Stop, events
from supervise.programs import (
    Command,
    CommandUnhealthy,
    checks,
    every,
    guardian,
    http,
    line,
    notify,
    probe,
    tcp,
)
from supervise.programs.checks import until_it_passes
from supervise.programs.guarded import Guarded
from supervise.programs.ports import _address, _takes, addresses
from supervise.testing import run_virtual

from .little import FOR_EVER, UP, Seen, little, opened, python, refused, until

SERVES = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", {port}))
for answer in {answers}:
    connection, _ = server.accept()
    connection.recv(1000)
    connection.sendall(answer)
    connection.close()
time.sleep(1000)
"""


def serves(port, *answers, ready, folder, **options):
    text = SERVES.format(port=port, answers=list(answers))
    return Command("little", python(text), ready=ready, cwd=folder, **options)


@pytest.mark.trio
async def test_a_port_is_ready_when_it_gives_the_expected_answer(tmp_path):
    """Many servers open their port before they can be used."""
    port = free_port()
    ready = tcp(port, send=b"PING", expect=b"PONG")
    spec = serves(port, b"LOADING", b"", b"PONG", b"never", ready=ready, folder=tmp_path)
    async with opened(spec, tmp_path) as (_, running):
        assert running.port == port
        with socket.create_connection(("127.0.0.1", port)) as fourth:
            fourth.sendall(b"PING")
            assert fourth.recv(100) == b"never"


@pytest.mark.trio
async def test_an_attempt_without_an_answer_is_given_up(tmp_path, monkeypatch):
    """A connection that was made too early may get no answer ever; the next one does."""
    monkeypatch.setattr(checks, "_PATIENCE", 0.2)
    port = free_port()
    script = SERVES.replace("for answer", "first = server.accept()\nfor answer").format(
        port=port, answers=[b"yes"] * 100
    )
    async with opened(little(script, tmp_path, ready=tcp(port, send=b"x", expect=b"yes")), tmp_path):
        pass


@pytest.mark.trio
async def test_what_answers_for_a_main_process_that_has_ended_is_not_ready():
    """A process that it has left may serve its port until it is killed."""

    class Left:
        """A program whose main process has ended, and then one that runs."""

        ends = [False, True]

        @property
        def runs(self):
            return self.ends.pop(0)

        async def started(self):
            pass

        async def owns(self, port):
            return True

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await checks.wait_until_ready(tcp(port), Left(), lambda why: None) == port
    assert Left.ends == []


@pytest.mark.trio
async def test_a_url_is_ready_when_it_gives_the_expected_status(tmp_path):
    """Another status, no HTTP at all, and no answer are not ready."""
    port = free_port()
    busy, good = b"HTTP/1.1 503 Busy\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"
    ready = http(f"http://127.0.0.1:{port}/health?full=1", status=204)
    async with opened(
        serves(port, busy, b"hello\r\n", b"", good, ready=ready, folder=tmp_path), tmp_path
    ) as (_, running):
        assert running.port == port


@pytest.mark.slow
@pytest.mark.trio
async def test_what_the_last_check_found_is_in_the_error(tmp_path):
    """The time is over; the reason is that of the last attempt."""
    port = free_port()
    error = await refused(
        serves(
            port,
            *[b"LOADING"] * 99,
            ready=tcp(port, send=b"PING", expect=b"PONG"),
            folder=tmp_path,
            ready_timeout=5,
        ),
        tmp_path,
    )
    assert error.tag == "command.not_ready"
    assert str(error).endswith(f"was not ready within 5 s: port {port} answered b'LOADING'")
    error = await refused(little(FOR_EVER, tmp_path, ready=tcp(port), ready_timeout=3), tmp_path)
    assert str(error).endswith(f"was not ready within 3 s: port {port}: connection refused")


@pytest.mark.trio
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_port_of_another_process_is_not_ready(tmp_path, host):
    """The plain check would succeed; the error names the process that holds the port."""
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        error = await refused(little(FOR_EVER, tmp_path, ready=tcp(port, host=host)), tmp_path)
    name = Path("/proc/self/comm").read_text().strip()  # noqa: ASYNC240 - /proc does not block
    assert str(error) == f"port {port} is served by another process, {name} (pid {os.getpid()})"
    assert error.tag == "command.not_ready"


@pytest.mark.trio
async def test_the_name_of_the_process_that_has_the_port_may_end_within_a_character(tmp_path):
    """Linux keeps 15 bytes of a name, and these letters have two each."""
    port = free_port()
    script = f"""
import ctypes, socket
ctypes.CDLL(None).prctl(15, "приложение".encode(), 0, 0, 0)
server = socket.create_server(("127.0.0.1", {port}))
open("{tmp_path}/up", "w")
while True: server.accept()
"""
    other = await trio.lowlevel.open_process(python(script))
    try:
        await until((tmp_path / "up").exists)
        error = await refused(little(FOR_EVER, tmp_path, ready=tcp(port)), tmp_path)
    finally:
        other.kill()
        await other.wait()
    who = rf"приложе\xd0 (pid {other.pid})"
    assert str(error) == f"port {port} is served by another process, {who}"


@pytest.mark.trio
@pytest.mark.parametrize(
    ("host", "why"),
    [("no-such-host.invalid", "name|resolution"), ("two..dots", "label empty"), ("\udc80", "udc80")],
)
async def test_a_host_without_an_address_is_one_failed_check(tmp_path, host, why):
    """Its reason is in the error; some names cannot even be asked for."""
    spec = little(FOR_EVER, tmp_path, ready=tcp(9, host=host), ready_timeout=0.5)
    error = await refused(spec, tmp_path)
    assert error.tag == "command.not_ready"
    assert re.search(rf"was not ready within 0.5 s(: port 9: .*({why}))?", str(error))
    assert "unknown error" not in str(error)


@pytest.mark.trio
async def test_a_host_is_looked_up_while_code_of_the_tree_has_taken_all_threads():
    """A healthy program would be stopped otherwise."""
    limiter = trio.to_thread.current_default_thread_limiter()
    code = [object() for _ in range(int(limiter.available_tokens))]
    for each in code:
        limiter.acquire_on_behalf_of_nowait(each)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, trio.fail_after(60):
            assert await tcp(server.getsockname()[1], host="localhost").attempt(None) is None
    finally:
        for each in code:
            limiter.release_on_behalf_of(each)


@pytest.mark.trio
async def test_a_lookup_that_hangs_takes_one_thread(monkeypatch):
    """The check that waits for it can be cancelled, and so can the next one; then it goes on."""
    looked, may_end, numeric = [], threading.Event(), socket.getaddrinfo

    def look(host, port, *args, **options):
        if host == "slow" and "flags" not in options:
            looked.append(host)
            may_end.wait(60)
            host = "127.0.0.1"
        return numeric(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    with socket.create_server(("127.0.0.1", 0)) as server, trio.fail_after(60):
        check = tcp(server.getsockname()[1], host="slow")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check.attempt, None)
            await until(lambda: looked)
            nursery.cancel_scope.cancel()
        for _ in range(2):
            with trio.move_on_after(0.02):
                await check.attempt(None)
        assert looked == ["slow"]
        may_end.set()
        assert await check.attempt(None) is None


@pytest.mark.trio
async def test_a_lookup_for_which_there_is_no_thread_is_one_failed_check(monkeypatch):
    """An address needs none."""
    monkeypatch.setattr("trio.to_thread.run_sync", Mock(side_effect=RuntimeError("can't start new thread")))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await tcp(port, host="localhost").attempt(None) == f"port {port}: can't start new thread"
        assert await tcp(port).attempt(None) is None


@pytest.mark.trio
async def test_a_lookup_that_fails_after_the_answer_is_one_failed_check(tmp_path, monkeypatch):
    """Whose port it is cannot be seen then, and the next answer is asked for."""
    looked, listeners = [], checks.listeners

    async def fails_once(host, port):
        looked.append(host)
        if len(looked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return await listeners(host, port)

    monkeypatch.setattr(checks, "listeners", fails_once)
    port = free_port()
    spec = serves(port, b"", b"", ready=tcp(port), folder=tmp_path)
    async with opened(spec, tmp_path) as (_, running):
        assert running.port == port


@pytest.mark.trio
async def test_an_address_of_ipv6_keeps_its_scope():
    """Without it a link-local address cannot be reached."""
    assert await addresses("fe80::1%lo", 80) == ["fe80::1%lo"]


@pytest.mark.trio
async def test_an_address_that_answers_nothing_does_not_hide_the_next_one(monkeypatch):
    """As where a host has an address of IPv6, and no route for it."""
    with socket.create_server(("127.0.0.2", 0), backlog=0) as full:
        port = full.getsockname()[1]
        with socket.create_server(("127.0.0.1", port)), ExitStack() as queue:
            for _ in range(5):  # once its queue is full, it drops what comes
                waiting = queue.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.2", port))
            numeric = socket.getaddrinfo
            found = [*numeric("127.0.0.2", port), *numeric("127.0.0.1", port)]
            monkeypatch.setattr(
                socket,
                "getaddrinfo",
                lambda host, *a, **k: found if host == "two" else numeric(host, *a, **k),
            )
            with trio.fail_after(60):
                assert await tcp(port, host="two").attempt(None) is None


@pytest.mark.trio
async def test_a_port_that_is_handed_over_is_its_own(tmp_path):
    """The program serves on a listening socket that this process keeps over all restarts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        text = "import socket, time\nserver = socket.socket(fileno=3)\nwhile True: server.accept()"
        async with opened(little(text, tmp_path, ready=tcp(port), files=[listener]), tmp_path) as (
            _,
            running,
        ):
            assert running.port == port


def test_an_address_of_proc_is_read_in_the_order_of_this_machine():
    """And a wildcard, or the IPv4 address within one of IPv6, takes connections to it."""
    four = {ipaddress.ip_address("127.0.0.1")}
    assert _address("0100007F") in four
    assert _takes(_address("00000000"), four)
    assert _takes(_address("0000000000000000FFFF00000100007F"), four)
    assert _takes(_address("0" * 32), four)
    assert not _takes(_address("0200007F"), four)


@pytest.mark.trio
async def test_a_line_makes_a_program_ready(tmp_path):
    """On either stream, anywhere in the line; a group `port` is its port."""
    text = "import sys\nprint('on port 4711', file=sys.stderr, flush=True)\n" + FOR_EVER
    async with opened(little(text, tmp_path, ready=line(r"port (?P<port>\d+)$")), tmp_path) as (_, running):
        assert running.port == 4711


@pytest.mark.slow
@pytest.mark.trio
async def test_a_line_that_never_comes_may_be_held_back(tmp_path):
    """The error says how that is prevented."""
    error = await refused(little(UP + FOR_EVER, tmp_path, ready=line("ready"), ready_timeout=5), tmp_path)
    assert "no line has matched; a program may hold back lines that it writes into a pipe" in str(error)
    assert "up" in error.__notes__[0]


NOTIFIES = """
import os, socket, sys, time
def tell(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(text, b"\\0" + os.environ["NOTIFY_SOCKET"].encode()[1:])
"""


@pytest.mark.slow
@pytest.mark.trio
async def test_a_program_may_say_itself_that_it_is_ready(tmp_path):
    """As systemd has it; its last status is in the error if it is late."""
    text = NOTIFIES + "tell(b'STATUS=loading\\nX=1'); tell(b'READY=1\\nSTATUS=up')\n" + FOR_EVER
    async with opened(little(text, tmp_path, ready=notify()), tmp_path):
        pass
    text = NOTIFIES + "tell(b'STATUS=loading'); tell(b'READY=0')\n" + FOR_EVER
    error = await refused(little(text, tmp_path, ready=notify(), ready_timeout=5), tmp_path)
    assert str(error).endswith("was not ready within 5 s: its last status was 'loading'")


@pytest.mark.trio
async def test_a_program_may_go_on_to_tell_its_status(tmp_path):
    """The kernel keeps a few hundred messages at most, and a program that sends one more would stand still."""
    text = (
        NOTIFIES
        + "tell(b'READY=1')\nfor _ in range(2000): tell(b'STATUS=up')\nopen('told', 'w')\n"
        + FOR_EVER
    )
    async with opened(little(text, tmp_path, ready=notify()), tmp_path):
        await until((tmp_path / "told").exists)


@pytest.mark.slow
@pytest.mark.trio
async def test_the_messages_of_the_main_process_need_no_look_at_all_processes(tmp_path, monkeypatch):
    """It may send thousands while it starts."""

    async def pids(_):
        raise AssertionError("they were looked up")

    monkeypatch.setattr(Guarded, "pids", pids)
    text = NOTIFIES + "for number in range(100): tell(b'STATUS=%d' % number)\ntell(b'READY=1')\n"
    async with opened(little(text + FOR_EVER, tmp_path, ready=notify()), tmp_path) as (_, running):
        assert running.runs


@pytest.mark.trio
async def test_only_the_program_may_say_so(tmp_path):
    """The kernel tells who has sent a message: one of another process does not count."""
    text = NOTIFIES + "open('address', 'w').write(os.environ['NOTIFY_SOCKET'])\n" + FOR_EVER

    async def forge():
        await until(lambda: (tmp_path / "address").exists() and (tmp_path / "address").read_text())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(b"READY=1", "\0" + (tmp_path / "address").read_text()[1:])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(forge)
        error = await refused(little(text, tmp_path, ready=notify(), ready_timeout=5), tmp_path)
    assert error.tag == "command.not_ready"


@pytest.mark.slow
@pytest.mark.trio
async def test_a_further_program_finds_out_whether_it_is_ready(tmp_path):
    """Its status 0; otherwise its status and its last line are the reason."""
    text = "import time; time.sleep(0.3); open('ready', 'w')\n" + FOR_EVER
    async with opened(little(text, tmp_path, ready=probe(["test", "-e", "ready"])), tmp_path):
        assert (tmp_path / "ready").exists()
    slow = probe(["sh", "-c", "echo not yet; exit 7"])
    error = await refused(little(FOR_EVER, tmp_path, ready=slow, ready_timeout=5), tmp_path)
    assert str(error).endswith("sh -c 'echo not yet; exit 7' exited with status 7: not yet")


@pytest.mark.trio
async def test_a_probe_that_is_not_there_is_an_error_at_once(tmp_path):
    """And not one of time; one that hangs is killed when the time is over."""
    error = await refused(little(FOR_EVER, tmp_path, ready=probe(["no-such-probe"])), tmp_path)
    assert error.tag == "command.missing"
    error = await refused(
        little(FOR_EVER, tmp_path, ready=probe(["sleep", "1000"]), ready_timeout=0.3), tmp_path
    )
    assert error.tag == "command.not_ready"


# --- alive


@pytest.mark.trio
async def test_a_probe_for_which_no_descriptor_is_left_is_one_failed_check(tmp_path, monkeypatch):
    """The program itself works, and a lack of descriptors passes."""
    failed = []
    start = Guarded.start

    def fails_twice(one):
        if len(failed) < 2:
            failed.append(one)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        start(one)

    alive = every(0.01, probe(["touch", "probed"]), timeout=10, failures=3)
    async with opened(little(UP + FOR_EVER, tmp_path, alive=alive), tmp_path) as (tree, running):
        monkeypatch.setattr(Guarded, "start", fails_twice)
        await until(lambda: len(failed) == 2)
        (tmp_path / "probed").unlink(missing_ok=True)
        await until((tmp_path / "probed").exists)
        assert tree["app/little"].status().incarnation == 1
        assert running.runs


@pytest.mark.trio
async def test_a_probe_whose_guardian_cannot_begin_is_one_failed_check(tmp_path, monkeypatch):
    """For instance since no process is free."""
    text = """
import json, os, socket, sys
begun = os.path.join(os.path.dirname(__file__), "begun")
if not os.path.exists(begun):
    open(begun, "w")
    why = ["guardian", "Resource temporarily unavailable"]
    socket.socket(fileno=int(sys.argv[1])).send(json.dumps({"failed": why}).encode())
else:
    os.execv(sys.executable, [sys.executable, "-I", "-S", GUARDIAN, *sys.argv[1:]])
"""
    stuck = tmp_path / "guardian.py"
    stuck.write_text(text.replace("GUARDIAN", repr(guardian.__file__)))
    alive = every(0.01, probe(["touch", "probed"]), timeout=10, failures=2)
    async with opened(little(UP + FOR_EVER, tmp_path, alive=alive), tmp_path) as (tree, running):
        monkeypatch.setattr(guardian, "__file__", str(stuck))
        await until((tmp_path / "begun").exists)
        (tmp_path / "probed").unlink(missing_ok=True)
        await until((tmp_path / "probed").exists)
        assert tree["app/little"].status().incarnation == 1
        assert running.runs


@pytest.mark.slow
@pytest.mark.trio
async def test_a_program_that_is_not_healthy_is_stopped_and_fails(tmp_path):
    """By the steps of its stop; it is stopped by SIGSTOP here, and none of its other signs has changed."""
    port = free_port()
    seen = Seen()
    text = (
        "import socket\nserver = socket.create_server(('127.0.0.1', "
        + str(port)
        + "))\nwhile True: server.accept()[0].sendall(b'yes')"
    )
    check = tcp(port, expect=b"yes")
    alive = every(0.1, check, timeout=1, failures=2)
    spec = little(text, tmp_path, ready=check, alive=alive, decider=Decider({"command.unhealthy": Stop}))
    async with opened(spec, tmp_path, seen) as (tree, running):
        await trio.sleep(0.5)
        assert not seen.failures()
        os.kill(running.pid, signal.SIGSTOP)
        await tree[spec].ended()
    (error,) = seen.failures()
    assert isinstance(error, CommandUnhealthy)
    assert str(error).endswith(
        "is not healthy: 2 checks in a row have failed; the last one: no answer within 1 s"
    )


CLOSES = """
import signal, socket, time
server = socket.create_server(("127.0.0.1", {port}))
def close(*_):
    server.close()
    time.sleep(0.5)  # it serves its clients
    raise SystemExit
signal.signal(signal.SIGTERM, close)
while True:
    server.accept()[0].close()
"""


@pytest.mark.trio
async def test_a_program_that_closes_its_port_as_it_is_stopped_has_not_failed(tmp_path):
    """A server takes no further connections while it serves its clients to the end."""
    port, seen = free_port(), Seen()
    alive = every(0.01, tcp(port), failures=1)
    async with opened(
        little(CLOSES.format(port=port), tmp_path, ready=tcp(port), alive=alive), tmp_path, seen
    ):
        pass
    assert not [event for event in seen.events if isinstance(event, events.StopError)]


class Scripted:
    """A check that does what a list says: None passes, a text is a failure, a number takes so many seconds."""

    def __init__(self, *does):
        self.does = list(does)
        self.times = []

    async def attempt(self, program):
        self.times.append(trio.current_time())
        what = self.does.pop(0)
        if isinstance(what, float):
            await trio.sleep(what)
            return None
        return what


def repeated(seconds, check, **options):
    one = every(seconds, tcp(1), **options)
    object.__setattr__(one, "check", check)
    return one


def test_only_failures_in_a_row_count():
    """One that passes begins the count again; one that takes longer than its timeout has failed."""
    check = Scripted("a", "b", None, "c", 5.0, "d")

    async def main():
        why = await repeated(10, check, timeout=2, failures=3).until_it_fails(None)
        assert why == "3 checks in a row have failed; the last one: d"
        assert check.times == [10, 20, 30, 40, 50, 62]

    run_virtual(main)


def test_a_check_is_attempted_at_growing_intervals():
    """At first often, since most programs are ready soon, and at most every half second."""
    check, reasons = Scripted(*"abcdefghijkl", None), []

    async def main():
        await until_it_passes(check, None, reasons.append)
        gaps = [after - before for before, after in zip(check.times, check.times[1:], strict=False)]
        assert gaps[0] == pytest.approx(0.02)
        assert gaps == sorted(gaps)
        assert gaps[-1] == pytest.approx(0.5)
        assert reasons == list("abcdefghijkl")

    run_virtual(main)
