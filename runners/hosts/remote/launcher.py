"""The far side of `RayHost`: the class of its actors, which start a guardian on the node where Ray has placed them.

Ray gets this class with its code, so that the far side may have another version of this package, or none: the guardian reports that.
So this module imports the standard library alone, and Ray when it runs there.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys

_LAST_BYTES = 2000
_LONGEST = 1e6
"""Seconds: a socket counts no more than 292 years, and a host may have any number."""


class Launcher:
    """An actor that lives as long as its guardian. It passes the connection on, and reads and writes only the token."""

    def where(self) -> tuple[str, str, int]:
        """The id of the node, its address, and the pid of this process."""
        ray = importlib.import_module("ray")
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), os.getpid()

    def serve(self, address: tuple[str, int], seconds: float, token: bytes, program: str) -> str:
        """Connect to the parent, show it the token, and start a guardian on the connection; returns how that one has ended.

        It is a new process: one that is forked from this process would have copies of the locks of Ray's threads. It leads a
        session of its own, so that what ends this process does not end the guardian before it can report.
        """
        with socket.create_connection(address, min(seconds, _LONGEST)) as connection:
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(token)
            guardian = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-u", "-c", program],
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        errors = guardian.communicate()[1][-_LAST_BYTES:].decode(errors="replace").strip()
        last = errors.rpartition("\n")[2]
        return f"its guardian ended with status {guardian.returncode}" + (f" ({last})" if last else "")
