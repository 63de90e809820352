"""The parent's end of a context process: its socket, its output and its death. It has no task of its own, and no thread.

Socket and pidfd are in one epoll set, so that a task waits for data, for the death of the process, and for room in a full
socket at once.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice

import trio

from runners.diagnosis.nvml import Nvml
from runners.errors import ContextDied
from runners.hosts.process.parent.output import Output
from runners.hosts.process.parent.processes import UNREACHABLE, Process, is_readable, outlived

_READ = 65_536
_FRAMES = 1024
"""The most frames of one write: Linux takes no more buffers at once."""
_NO_ROOM = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
"""The errors of a write that may succeed later. Any other error of a read or write is the end of the connection: over a network it may
have almost any number, such as EACCES where a rule of the firewall or of the routes prohibits it."""


class Peer:
    """A running process and its connection. Its user must `reap` it."""

    def __init__(self, process: Process, connection: socket.socket, output: Output) -> None:
        self.pid = output.pid = process.pid
        self.name = f"the context process {process.pid}"
        self.output = output
        self._process = process
        self._socket = connection
        self._open = True  # False once the end of the connection has been read
        # By mark; a frame without a mark has an object of its own in its place.
        self._unsent: OrderedDict[object, memoryview] = OrderedDict()
        self._whole = True  # whether no byte of the first unsent frame is sent yet
        self._awaits_room = False
        self._epoll = select.epoll()
        self._epoll.register(connection, select.EPOLLIN)
        self._epoll.register(process.pidfd, select.EPOLLIN)

    def send(self, data: bytes) -> None:
        """Send a frame, as far as there is room; `wait` sends the rest. Never blocks."""
        self._unsent[object()] = memoryview(data)
        self.flush()

    def send_marked(self, frames: Mapping[int, bytes]) -> None:
        """Send frames as `send`, in one write, so that the process gets them together. `withdraw` finds each by its mark."""
        self._unsent.update((mark, memoryview(data)) for mark, data in frames.items())
        self.flush()

    def withdraw(self, mark: int) -> bool:
        """Take back the frame with this mark; returns False if a part of it is sent."""
        if mark not in self._unsent or (mark == next(iter(self._unsent)) and not self._whole):
            return False
        del self._unsent[mark]
        return True

    def flush(self) -> None:
        """Send as much as there is room for. If something is left, `wait` also waits for room."""
        while self._unsent and self._send_some():
            pass
        if bool(self._unsent) != self._awaits_room and self._open:
            self._awaits_room = not self._awaits_room
            self._epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self._awaits_room else 0))

    def _send_some(self) -> bool:
        """Send some of the first frames; returns whether there was room."""
        try:
            sent = self._socket.sendmsg([*islice(self._unsent.values(), _FRAMES)], (), socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                self._unsent.clear()
                # The reader finds the end of the connection too, behind what has come, and reports how the process ended.
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)
            return False
        while sent:
            first, data = next(iter(self._unsent.items()))
            self._whole = sent >= len(data)
            if self._whole:
                del self._unsent[first]
            else:
                self._unsent[first] = data[sent:]
            sent -= min(sent, len(data))
        return True

    def read(self) -> bytes | None:
        """The bytes that have come; None if none have, and no bytes once the other end is closed."""
        if not self._open:
            return b""
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        if not data:
            self._open = False
            self._epoll.unregister(self._socket)  # a closed connection is always readable: `wait` would spin
        return data

    async def wait(self) -> None:
        """Wait until bytes have come, there is room for unsent ones, or the process is dead."""
        await trio.lowlevel.wait_readable(self._epoll)
        self.flush()

    @property
    def dead(self) -> bool:
        """Whether the process is dead, and all that it held is released."""
        return is_readable(self._process.pidfd)

    @property
    def waits(self) -> bool:
        """Whether it is alive, is not about to die, and has sent nothing, as a standby must."""
        return not self.dead and not self._process.doomed and self._open and self.read() is None

    def go_on(self) -> None:
        """Send SIGCONT, since a standby may have been stopped by a signal. Never blocks."""
        with suppress(*UNREACHABLE):
            signal.pidfd_send_signal(self._process.pidfd, signal.SIGCONT)

    async def drained(self) -> None:
        """Wait until the process is dead. Its bytes are read and ignored, so that it does not block on a full socket."""
        while not self.dead:
            self.read()
            await self.wait()

    async def fate(self, seconds: float) -> str:
        """Wait so many seconds for its death; returns how it ended, as a text that follows its name."""
        if not await outlived(self._process, seconds):
            await self._process.fate_known()
            await self.output.drain()
        return self._process.fate()

    @property
    def death(self) -> type[ContextDied]:
        """See `Connection.death`."""
        return ContextDied

    def kill(self, _poisoned: bool = False, /) -> None:
        """Kill it and the processes that it has started. Never blocks."""
        self._process.kill()

    async def trouble(self, nvml: Nvml, device: str, /) -> str | None:
        """See `Connection.trouble`."""
        return await nvml.trouble(device)

    async def reap(self, seconds: float) -> bool:
        """Kill it, reap it, and close the descriptors. Returns True if it is still alive after so many seconds, and not reaped."""
        try:
            self.kill()  # even if it is dead: the processes that it has started may not be
            if await outlived(self._process, seconds):
                return True
            await self.output.drain()
            await self._process.reap()
            return False
        finally:
            self._close()

    def _close(self) -> None:
        trio.lowlevel.notify_closing(self._epoll)
        self._epoll.close()
        self._socket.close()
        self.output.close()
        os.close(self._process.pidfd)
