"""The parent's end of a context process: its socket, its pidfd, its death. No task of its own, no thread.

Socket and pidfd stand in one epoll set, so that whoever waits, waits for both, and for room in a full socket too.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

import trio

_HOUSE = str(Path(__file__).absolute().parents[2])
_READ = 65_536


class Peer:
    """A running context process. Made by `start`; `close` it when it is `reap`ed."""

    def __init__(self, process: subprocess.Popen[bytes], pidfd: int, connection: socket.socket) -> None:
        self.pid = process.pid
        self._process = process
        self._pidfd = pidfd
        self._socket = connection
        self._open = True  # the other end is, as far as we have read
        self._unsent: deque[tuple[memoryview, int | None]] = deque()
        self._whole = True  # nothing of the first of them is sent yet
        self._awaits_room = False
        self._epoll = select.epoll()
        self._epoll.register(connection, select.EPOLLIN)
        self._epoll.register(pidfd, select.EPOLLIN)

    @classmethod
    def start(cls) -> Peer:
        """Start the process. Blocks for the milliseconds that fork and exec take.

        In the calling thread, which is the loop's, because the kernel kills the child when the *thread* that forked
        it ends: one of Trio's worker threads would do so after ten idle seconds.

        Raises:
            OSError: no process or descriptor is to be had.
        """
        with ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs:
                process = _spawn(theirs.fileno())
            undo.callback(_abandon, process)
            ours.setblocking(False)
            pidfd = os.pidfd_open(process.pid)
            undo.callback(os.close, pidfd)
            peer = cls(process, pidfd, ours)
            undo.pop_all()
            return peer

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
        try:
            return os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody else reaped it
            return True

    async def died(self) -> None:
        """Until the process is dead."""
        await trio.lowlevel.wait_readable(self._pidfd)

    async def drained(self) -> None:
        """Until the process is dead; what it says until then is nobody's business, but must not hold it up."""
        while not self.dead:
            self.read()
            await self.wait()

    def fate(self) -> str:
        """How it ended, to be put behind its name."""
        try:
            end = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "ended, and somebody else took its exit status"
        if end is None:
            return "closed its connection"
        if end.si_code == os.CLD_EXITED:
            return f"exited with status {end.si_status}"
        return f"was killed by {_signal_name(end.si_status)}"

    def kill(self) -> None:
        """SIGKILL, and for what it started too. Not after `reap`: the number could be another's by then."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Take its exit status; it is dead."""
        self._process.wait()

    def close(self) -> None:
        """Give back the descriptors."""
        trio.lowlevel.notify_closing(self._epoll)
        self._epoll.close()
        self._socket.close()
        os.close(self._pidfd)


def _spawn(connection: int) -> subprocess.Popen[bytes]:
    """Our child module, in a session of its own: Ctrl-C is the parent's, and one signal reaches all it starts."""
    path = os.environ.get("PYTHONPATH")
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-m", "runners.hosts.child", str(connection), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=2,  # the parent's standard output may be somebody's protocol
        pass_fds=[connection],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{_HOUSE}{os.pathsep}{path}" if path else _HOUSE},
    )


def _abandon(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")
