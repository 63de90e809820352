"""What systemd is told: over a real datagram socket, which stands for its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import trio

from supervise import Backoff, Child, Supervisor, open_tree
from supervise.events import Ready
from supervise.sinks.systemd import SystemdSink
from supervise.testing import run_virtual


@contextmanager
def listening(address):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind("\0" + address[1:] if address.startswith("@") else address)
        ours.settimeout(60)
        yield ours


def received(ours):
    """All messages that have come."""
    ours.setblocking(False)
    found = []
    while True:
        try:
            found.append(ours.recv(4096).decode())
        except BlockingIOError:
            return found


async def fails():
    raise ConnectionError("gone")


def run(sink, seconds=11.0):
    async def main():
        phone = Child("phone", fails, backoff=Backoff(initial=30, jitter=0))
        tree = Supervisor("app", [phone, Child("door", trio.sleep_forever)])
        async with open_tree(tree, sinks=[sink]) as opened, trio.open_nursery() as nursery:
            nursery.start_soon(sink.watch, opened)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    run_virtual(main)
    sink.close()


def test_systemd_is_told_when_the_tree_is_ready_and_when_it_stops(tmp_path):
    """R31: And every five seconds how it is, in the text of `systemctl status`."""
    with listening(str(tmp_path / "notify")) as ours:
        run(SystemdSink(str(tmp_path / "notify")))
        assert received(ours) == [
            "READY=1",
            "STATUS=2 up, 1 restarting (app/phone starts in 30 s)",
            "STATUS=2 up, 1 restarting (app/phone starts in 25 s)",
            "STATUS=2 up, 1 restarting (app/phone starts in 20 s)",
            "STOPPING=1\nSTATUS=stopping: the block of open_tree was left",
        ]


def test_a_reload_is_announced_with_its_time_and_then_ready_again(tmp_path):
    """R38: As a service of `Type=notify-reload` has to."""

    async def main():
        async with open_tree(Supervisor("app", []), sinks=[sink]) as tree:
            await tree.adopt(Supervisor("app", [], limit=None))

    with listening(str(tmp_path / "notify")) as ours:
        sink = SystemdSink(str(tmp_path / "notify"))
        before = time.monotonic_ns() // 1000
        run_virtual(main)
        sink.close()
        first, reloading, ready, _ = received(ours)
        assert (first, ready) == ("READY=1", "READY=1")
        kind, _, at = reloading.partition("\nMONOTONIC_USEC=")
        assert kind == "RELOADING=1"
        assert before <= int(at) <= time.monotonic_ns() // 1000


def test_a_restart_of_the_root_is_no_end_of_the_service(tmp_path):
    """R25: Told `STOPPING=1`, systemd would kill the program after `TimeoutStopSec`."""

    async def main():
        async with open_tree(Supervisor("app", []), sinks=[sink]) as tree:
            await tree.root.restart()

    with listening(str(tmp_path / "notify")) as ours:
        sink = SystemdSink(str(tmp_path / "notify"))
        run_virtual(main)
        sink.close()
        heard = [message.partition("\n")[0] for message in received(ours)]
        assert heard == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_after_the_stop_nothing_is_ready_again(tmp_path):
    """R38: Not even the end of an adoption that the stop has overtaken."""

    async def slow():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)

    async def main():
        async with trio.open_nursery() as nursery, open_tree(tree, sinks=[sink, seen.append]) as opened:
            nursery.start_soon(opened.adopt, Supervisor("app", []))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    tree, seen = Supervisor("app", [Child("slow", slow)]), []
    with listening(str(tmp_path / "notify")) as ours:
        sink = SystemdSink(str(tmp_path / "notify"))
        run_virtual(main)
        for late in (event for event in seen if isinstance(event, Ready)):
            sink(late)
        sink.close()
        heard = [message.partition("\n")[0] for message in received(ours)]
        assert heard == ["READY=1", "RELOADING=1", "STOPPING=1"]


def test_the_watchdog_is_pinged_twice_in_its_time(tmp_path):
    """R31: The event loop sends it, so a blocked loop sends nothing. An abstract address works too."""
    address = f"@trio-supervise-{os.getpid()}"
    with listening(address) as ours:
        run(SystemdSink(address, watchdog=2.0), seconds=4.5)
        pings = [message for message in received(ours) if message.startswith("WATCHDOG=1\nSTATUS=2 up")]
        assert len(pings) == 5


def test_a_full_queue_blocks_nothing(tmp_path):
    """R31: The kernel keeps a few messages of a reader that does not read."""
    with listening(str(tmp_path / "notify")) as ours:
        run(SystemdSink(str(tmp_path / "notify"), watchdog=0.1), seconds=100.0)
        assert 1 <= len(received(ours)) < 1000


def test_a_state_that_finds_a_full_queue_is_sent_later(tmp_path):
    """R31: systemd ends a service that never says that it is ready."""
    sink = SystemdSink(str(tmp_path / "notify"))

    async def main():
        async with open_tree(Supervisor("app", []), sinks=[sink]) as tree, trio.open_nursery() as nursery:
            nursery.start_soon(sink.watch, tree)
            await trio.sleep(1)
            assert "READY=1" not in received(ours)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()

    with listening(str(tmp_path / "notify")) as ours:
        while sink._send("STATUS=of another service"):
            pass
        run_virtual(main)
        heard = [message.partition("=")[0] for message in received(ours)]
        assert heard == ["READY", "STATUS", "STATUS", "STOPPING"]
    sink.close()


def test_systemd_that_is_gone_is_reported_once(tmp_path, caplog):
    """R31: The tree goes on, without the sink and without its pings."""
    sink, seen = SystemdSink(str(tmp_path / "nothing"), watchdog=1.0), []

    async def main():
        async with open_tree(Supervisor("app", []), sinks=[sink, seen.append]):
            await trio.sleep(10)

    run_virtual(main)
    sink.close()
    assert [type(event).__name__ for event in seen].count("SinkFailed") == 1
    assert sum("gets no further events" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("given", "address", "interval"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": ""}, None, None),
        ({"NOTIFY_SOCKET": "/x"}, "/x", 5.0),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000"}, "\0x", 1.5),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, "/x", 5.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "nonsense"}, "/x", 5.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "²"}, "/x", 5.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "9" * 400}, "/x", 5.0),
        ({"WATCHDOG_USEC": "3000000"}, None, None),
    ],
)
def test_the_variables_of_systemd_are_taken(given, address, interval):
    """They are removed, so that no process which the program starts speaks for it."""
    environment = {**given, "OTHER": "stays"}
    sink = SystemdSink.from_environment(environment)
    assert environment == {"OTHER": "stays"}
    assert (None if sink is None else (sink._address, sink._interval)) == (
        None if address is None else (address, interval)
    )
    if sink is not None:
        sink.close()


@pytest.mark.parametrize(
    "wrong", [{"address": ""}, {"address": "x" * 108}, {"address": 3}, {"address": "/x", "watchdog": 0}]
)
def test_what_cannot_be_reached_is_refused(wrong):
    """When the sink is made."""
    with pytest.raises(ValueError, match="must be"):
        SystemdSink(**wrong)


def test_a_run_of_the_command_is_a_service(tmp_path):
    """R20, R31: It is ready when its tree is, sends pings, and says that it stops."""
    (tmp_path / "app.py").write_text(
        "import os, trio\nfrom supervise import *\n"
        "async def body():\n    print(os.environ.get('NOTIFY_SOCKET'), flush=True)\n    await trio.sleep_forever()\n"
        "tree = Supervisor('app', [Child('a', body)])\n"
    )
    with listening(str(tmp_path / "notify")) as ours:
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}
        command = [sys.executable, "-P", "-m", "supervise.cli", "run", "app.py"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        ) as program:
            messages = [ours.recv(4096).decode() for _ in range(6)]
            program.send_signal(signal.SIGTERM)
            assert program.stdout.read() == "None\n"
        assert program.returncode == 0
        messages += received(ours)
    assert "READY=1" in messages
    assert sum(message.startswith("WATCHDOG=1\nSTATUS=2 up") for message in messages) >= 2
    assert messages[-1].startswith("STOPPING=1\nSTATUS=stopping: ")
    assert "SIGTERM asked the program to stop" in messages[-1]
