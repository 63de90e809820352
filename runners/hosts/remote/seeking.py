"""How a process on the far machine finds the fork server there, or starts it (D15, D16). `runners.hosts.node` is the server.

The text of this module is a part of the program of the far side, in front of that of `guardian`. So it imports the standard library alone,
and older Pythons must compile it.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_CREDENTIALS = struct.Struct("3i")
"""What the kernel reports of the other end of a socket: process, user and group."""
WAITING = 64
"""Connections that may wait for a fork server while it preloads."""
_SERVER = """\
import sys
sys.path[:] = filter(None, sys.path)
import json
order = json.load(sys.stdin)
sys.path[:0] = order["path"]
from runners.hosts.node import main
main(order, int(sys.argv[1]))
"""
"""The program of a fork server, which imports nothing from the present folder."""

READY = "ready"
"""The end of the second name of a fork server, at which it listens once it has preloaded."""


def name_of(plan: str) -> str:
    """The name of the fork server for this plan: that of an abstract Unix socket, which ends with the process.

    It also depends on what a process inherits and cannot change later: its user, its Python, its namespaces, and how its libraries
    are found.
    """
    spaces = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("mnt", "pid", "user")]
    loads = sorted(pair for pair in os.environ.items() if pair[0].startswith(("LD_", "PYTHON")))
    facts = json.dumps([plan, sys.version, sys.executable, spaces, loads])
    return f"\0trio-supervise/{os.getuid()}/{hashlib.sha256(facts.encode()).hexdigest()[:40]}/"


def user_of(connection: socket.socket) -> int:
    """The number of the user whose process made the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def connected(name: str) -> socket.socket | None:
    """A connection to the fork server of this name; None if none runs.

    Raises:
        OSError: another user has taken the name, or this process has no free descriptor.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        connection.connect(name)
    except OSError:
        connection.close()
        return None
    user = user_of(connection)
    if user != os.getuid():
        connection.close()
        raise PermissionError(f"its name is taken by the user with the number {user}")
    return connection


def started(name: str, order: dict[str, Any]) -> socket.socket:
    """A connection to a new fork server, or to one that another process has just started.

    Raises:
        OSError: none can be started.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(name)
        except OSError:  # another process has just bound it, and is about to listen
            time.sleep(0.01)
        else:
            listener.listen(WAITING)
            _spawn_server(listener, order)
        connection = connected(name)
    if connection is None:
        raise OSError("it takes no connections")
    return connection


def _spawn_server(listener: socket.socket, order: dict[str, Any]) -> None:
    """Start a fork server that listens here.

    It must not become a child of the guardian, which kills its children with the context process. So a child forks it and ends.
    """
    memory = in_memory(order)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                nothing = os.open(os.devnull, os.O_RDWR)
                for number, descriptor in enumerate((memory, nothing, nothing)):
                    os.dup2(descriptor, number)
                listener.set_inheritable(True)
                command = [sys.executable, "-u", "-c", _SERVER, str(listener.fileno())]
                os.execv(sys.executable, command)  # noqa: S606 - It is the same Python with a program of ours.
        finally:
            os._exit(70)
    os.close(memory)
    os.waitpid(pid, 0)


def in_memory(value: dict[str, Any]) -> int:
    """A descriptor from which another process can read this value, as JSON."""
    memory = os.memfd_create("trio-supervise")
    with open(memory, "w", closefd=False) as file:
        json.dump(value, file)
    os.lseek(memory, 0, os.SEEK_SET)
    return memory


def inherited() -> dict[str, Any]:
    """What another process can adopt of this one: the environment, the working directory, and the umask that it has inherited."""
    folder = None
    with suppress(OSError):  # it has been deleted
        folder = str(Path.cwd())
    umask = os.umask(0o077)
    os.umask(umask)
    return {"environment": dict(os.environ), "folder": folder, "umask": umask}
