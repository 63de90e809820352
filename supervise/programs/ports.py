"""Whose port it is: the listening sockets of this machine, from /proc, and the processes that hold them."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio
from attrs import frozen

from .._core._brief import printable
from . import guardian

Result = TypeVar("Result")

_LISTENING = "0A"
_TABLES = "/proc/net/tcp", "/proc/net/tcp6"


async def in_thread(look: Callable[..., Result], *arguments: object) -> Result:
    """Look into /proc in a thread, which takes no place in Trio's default limiter: the threads of the tree's own code may have filled it.

    If no thread can be started, it blocks for the milliseconds that takes.
    """
    try:
        return await trio.to_thread.run_sync(look, *arguments, limiter=trio.CapacityLimiter(1))
    except RuntimeError:  # that of Python for a thread that cannot be started
        return look(*arguments)


_lookups: trio.lowlevel.RunVar[dict[str, trio.CapacityLimiter]] = trio.lowlevel.RunVar("lookups")


async def addresses(host: str, port: int) -> list[str]:
    """The numeric addresses of a host. A name is looked up in a thread, which takes no place in Trio's default limiter either.

    A lookup may take half a minute, and goes on if it is cancelled; until its end another one for the same host waits.

    Raises:
        OSError, UnicodeError: the name has no address, or cannot be looked up.
    """
    look = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = look(flags=socket.AI_NUMERICHOST)  # needs no lookup
    except socket.gaierror:
        limiter = _limiters().setdefault(host, trio.CapacityLimiter(1))
        try:
            found = await trio.to_thread.run_sync(look, abandon_on_cancel=True, limiter=limiter)
        except RuntimeError as no_thread:  # that of Python for a thread that cannot be started
            raise OSError(str(no_thread)) from no_thread
    # With the scope of an IPv6 address, which `address[0]` lacks.
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    return [socket.getnameinfo(address, numeric)[0] for *_, address in found]


def _limiters() -> dict[str, trio.CapacityLimiter]:
    """One for each host: so no more threads wait for an answer than programs name hosts."""
    try:
        return _lookups.get()
    except LookupError:
        limiters: dict[str, trio.CapacityLimiter] = {}
        _lookups.set(limiters)
        return limiters


@frozen
class Listener:
    """A listening socket, by the number of its inode."""

    inode: int

    async def held_by(self, pids: Iterable[int]) -> bool:
        """Whether one of these processes holds it; also True if the files of one of them cannot be seen."""
        return await in_thread(_holds, list(pids), self.inode)

    async def holder(self) -> str:
        """The process that holds it, as the end of a sentence; empty if it cannot be seen."""
        return await in_thread(_holder, self.inode)


async def listeners(host: str, port: int) -> list[Listener]:
    """The sockets that listen at this port for this address; none if it belongs to another machine, or cannot be seen."""
    wanted = {ipaddress.ip_address(each.partition("%")[0]) for each in await addresses(host, port)}
    return await in_thread(_listeners, wanted, port)


def _listeners(wanted: set[ipaddress.IPv4Address | ipaddress.IPv6Address], port: int) -> list[Listener]:
    found: list[Listener] = []
    for table in _TABLES:
        with suppress(OSError):  # a kernel without IPv6, or a machine that hides it
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                address, _, at = fields[1].partition(":")
                if fields[3] == _LISTENING and int(at, 16) == port and _takes(_address(address), wanted):
                    found.append(Listener(int(fields[9])))
    return found


def _takes(
    own: ipaddress.IPv4Address | ipaddress.IPv6Address,
    wanted: set[ipaddress.IPv4Address | ipaddress.IPv6Address],
) -> bool:
    mapped = own.ipv4_mapped if isinstance(own, ipaddress.IPv6Address) else None
    return own.is_unspecified or own in wanted or mapped in wanted


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An address as /proc shows it: words of 32 bits, each in the order of this machine."""
    words = (int(text[start : start + 8], 16) for start in range(0, len(text), 8))
    return ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))


def _holds(pids: list[int], inode: int) -> bool:
    for pid in pids:
        try:
            if inode in _sockets(pid):
                return True
        except PermissionError:
            return True  # it belongs to another user, so this cannot be known
        except OSError:
            pass  # it has ended
    return False


def _sockets(pid: int) -> set[int]:
    found: set[int] = set()
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):  # noqa: PTH208 - it may have thousands of entries
        with suppress(OSError):  # it was closed
            target = os.readlink(f"{folder}/{name}")  # noqa: PTH115 - as above
            if target.startswith("socket:["):
                found.add(int(target[8:-1]))
    return found


def _holder(inode: int) -> str:
    for pid in guardian.processes():
        with suppress(OSError):  # it has ended, or belongs to another user
            if inode in _sockets(pid):
                # A name has 15 bytes, and may end within a character.
                name = Path(f"/proc/{pid}/comm").read_text("utf-8", "backslashreplace").strip()
                return f", {printable(name)} (pid {pid})"
    return ""
