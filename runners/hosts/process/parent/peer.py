"""The parent's end of a context process: its socket, its output, its death. No task of its own, no thread.

Socket and pidfd stand in one epoll set, so that whoever waits, waits for both, and for room in a full socket too.
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
    """A running context process. `reap` it at the end."""

    def __init__(self, process: Process, connection: socket.socket, output: Output) -> None:
        self.pid = output.pid = process.pid
        self.output = output
        self._process = process
        self._socket = connection
        self._open = True  # the other end is, as far as we have read
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._whole = True  # nothing of the first of them is sent yet
        self._awaits_room = False
        self._epoll = select.epoll()
        self._epoll.register(connection, select.EPOLLIN)
        self._epoll.register(process.pidfd, select.EPOLLIN)

    def send(self, data: bytes, mark: int | None = None) -> None:
        """Say this, or as much as there is room for; the rest goes out while somebody waits. Never blocks."""
        self._unsent.append((memoryview(data), mark))
        self.flush()

    def withdraw(self, mark: int) -> bool:
        """Take back what was given with this mark. Whether it could still be."""
        for position, (_, theirs) in enumerate(self._unsent):
            if theirs == mark and (position or self._whole):
                del self._unsent[position]
                return True
        return False

    def flush(self) -> None:
        """Send what there is room for, and wait for room if there is more."""
        while self._unsent and self._send_some():
            pass
        if bool(self._unsent) != self._awaits_room and self._open:
            self._awaits_room = not self._awaits_room
            self._epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if self._awaits_room else 0))

    def _send_some(self) -> bool:
        """Whether there was room."""
        data, mark = self._unsent.popleft()
        try:
            sent = self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = -1
        except (BrokenPipeError, ConnectionResetError):
            self._unsent.clear()  # reading tells how it ended, and that is the better story
            return False
        if sent == len(data):
            self._whole = True
            return True
        if sent > 0:
            self._whole = False
        self._unsent.appendleft((data[max(sent, 0) :], mark))
        return sent > 0

    def read(self) -> bytes | None:
        """What came; None if nothing did; empty once the other end is closed."""
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
            self._epoll.unregister(self._socket)  # or it would be readable for ever
        return data

    async def wait(self) -> None:
        """Until something came, there is room for what is unsent, or the process is dead."""
        await trio.lowlevel.wait_readable(self._epoll)
        self.flush()

    @property
    def dead(self) -> bool:
        """Whether the process is; all it held is released by then."""
        return is_readable(self._process.pidfd)

    @property
    def waits(self) -> bool:
        """Whether it is alive, will be, and has said nothing: what a standby does."""
        return not self.dead and not self._process.doomed and self._open and self.read() is None

    def go_on(self) -> None:
        """SIGCONT: it may have been stopped while nobody needed it. Never blocks."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process.pidfd, signal.SIGCONT)

    async def drained(self) -> None:
        """Until the process is dead; what it says until then is nobody's business, but must not hold it up."""
        while not self.dead:
            self.read()
            await self.wait()

    async def told(self, seconds: float) -> str:
        """How it ended, to be put behind its name; it has so long to be dead."""
        if not await outlived(self._process, seconds):
            await self._process.told()
            await self.output.drain()
        return self._process.fate()

    def kill(self) -> None:
        """SIGKILL, and for what it started too. Never blocks."""
        self._process.kill()

    async def reap(self, seconds: float) -> bool:
        """Have it dead and reaped, and give back the descriptors. Whether it has outlived SIGKILL by so many seconds."""
        try:
            self.kill()  # and what it may have left behind
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
