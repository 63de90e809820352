"""The socket on which a program says that it is ready, as systemd has it (see `man sd_notify`)."""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from .._core._brief import printable, shortened

_MOST = 4096
_CREDENTIALS = struct.Struct("3i")  # pid, user and group of the sender, from the kernel


class Notifications:
    """An abstract datagram socket, and what has come over it.

    Args:
        is_ours: whether the process with this pid may speak for the program.
    """

    def __init__(self, is_ours: Callable[[int], Awaitable[bool]]) -> None:
        self._is_ours = is_ours
        self._name = f"supervise-{secrets.token_hex(16)}"
        own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        own.bind(f"\0{self._name}")
        self._socket = trio.socket.from_stdlib_socket(own)

    @property
    def address(self) -> str:
        """The value of `NOTIFY_SOCKET`."""
        return f"@{self._name}"

    async def ready(self, note: Callable[[str], None]) -> None:
        """Wait for `READY=1`; `note` gets each `STATUS=` that comes before.

        What comes afterwards is read too, since a program stands still that sends to a full socket, and many go on to send their status.
        """
        while True:
            data, ancillary, _, _ = await self._socket.recvmsg(_MOST, socket.CMSG_SPACE(_CREDENTIALS.size))
            if not await self._is_ours(_sender(ancillary)):
                continue
            for entry in data.decode("utf-8", "replace").splitlines():
                name, _, value = entry.partition("=")
                if name == "READY" and value == "1":
                    trio.lowlevel.spawn_system_task(self._drop_the_others, name=f"notify socket {self._name}")
                    return
                if name == "STATUS":
                    note(f"its last status was {printable(shortened(value, 200))!r}")

    async def _drop_the_others(self) -> None:
        with suppress(trio.ClosedResourceError, OSError):  # both mean that it was closed
            while True:
                await self._socket.recv(1)

    def close(self) -> None:
        """Close the socket; messages that come later get an error at their sender."""
        self._socket.close()


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid, _, _ = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])
            return int(pid)
    return 0
