"""A port for a server that a test or a measurement starts."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from pathlib import Path


def free_port() -> int:
    """A port of 127.0.0.1 at which nothing listens.

    It is none of those that the kernel gives to sockets that name no port: one of these may be taken before the server listens at it.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = first // 2 + secrets.randbelow(first - first // 2)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            return port
