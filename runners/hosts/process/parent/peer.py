"""The parent's end of a context process: its socket, its output and its death. It has no task of its own, and no thread.

Socket and pidfd are in one epoll set, so that a task waits for data, for the death of the process, and for room in a full
socket at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import deque
from contextlib import suppress

import trio

from runners.hosts.process.parent.births import Process, is_readable, outlived
from runners.hosts.process.parent.output import Output

_READ = 65_536


class Peer:
    """A running context process. Its user must `reap` it."""

    def __init__(self, process: Process, connection: socket.socket, output: Output) -> None:
        self.pid = output.pid = process.pid
        self.output = output
        self._process = process
        self._socket = connection
        self._open = True  # False once the end of the connection has been read
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._whole = True  # whether no byte of the first unsent frame is sent yet
        self._awaits_room = False
        self._epoll = select.epoll()
        self._epoll.register(connection, select.EPOLLIN)
        self._epoll.register(process.pidfd, select.EPOLLIN)

    def send(self, data: bytes, mark: int | None = None) -> None:
        """Send a frame, as far as there is room; `wait` sends the rest. `withdraw` finds it by its mark. Never blocks."""
        self._unsent.append((memoryview(data), mark))
        self.flush()

    def withdraw(self, mark: int) -> bool:
        """Take back the frame with this mark; returns False if a part of it is sent."""
        for position, (_, theirs) in enumerate(self._unsent):
            if theirs == mark and (position or self._whole):
                del self._unsent[position]
                return True
        return False

    def flush(self) -> None:
        """Send as much as there is room for. If something is left, `wait` also waits for room."""
        while self._unsent and self._send_some():
            pass
        if bool(self._unsent) != self._awaits_room and self._open:
            self._awaits_room = not self._awaits_room
            self._epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self._awaits_room else 0))

    def _send_some(self) -> bool:
        """Send some of the first frame; returns whether there was room."""
        data, mark = self._unsent.popleft()
        try:
            sent = self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = -1
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # the reader finds the end of the connection too, and reports how the process ended
            return False
        if sent == len(data):
            self._whole = True
            return True
        if sent > 0:
            self._whole = False
        self._unsent.appendleft((data[max(sent, 0) :], mark))
        return sent > 0

    def read(self) -> bytes | None:
        """The bytes that have come; None if none have, and no bytes once the other end is closed."""
        if not self._open:
            return b""
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return None
        except ConnectionResetError:
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
        with suppress(ProcessLookupError):
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

    def kill(self) -> None:
        """Kill it and the processes that it has started. Never blocks."""
        self._process.kill()

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
