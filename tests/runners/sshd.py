"""What the tests of `SshHost` share: hosts with short times, and what runs at the far side of them."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from contexts import command, processes, title

from benchmarks.loopback import ROOT, missing

LEASE = 3.0
"""Longer than a machine may stand still."""
needs_sshd = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def host(server, **settings):
    """A host on the server's machine, with short times, that can import the runners of the tests."""
    times = {"lease": LEASE, "load_timeout": 60, "first_chunk_timeout": 60, "next_chunk_timeout": 60}
    path = (str(ROOT), str(ROOT / "tests/runners"))
    return server.host(**{"path": path, **times, **settings})


def far(server, *titles):
    """The pids of the processes that were started over this sshd, of those `titles` if any are given."""
    mark = f" {server.port}".encode()
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(
                line.startswith(b"SSH_CONNECTION=") and line.endswith(mark)
                for line in (entry / "environ").read_bytes().split(b"\0")
            ):
                found.add(int(entry.name))
    return {pid for pid in found if not titles or title(pid) in titles}


def signalled(server, title, number):
    """Send a signal to each far process with this title; returns their pids."""
    found = far(server, title)
    for pid in found:
        os.kill(pid, number)
    return found


def carriers(server):
    """The pids of the `ssh` programs that are connected to this server from here."""
    found = {pid for pid in processes() if f"Port={server.port}".encode() in command(pid).split(b"\0")}
    return {pid for pid in found if title(pid) == "ssh"}


def kill_left(server):
    """Kill the processes that a failed test has left there: a fork server does not descend from the sshd."""
    for pid in far(server):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
