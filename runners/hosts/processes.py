"""Our processes as their parent sees them: started cold, or forked by a fork server. No thread; nothing blocks for long."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

from runners.hosts.output import Output

_HOUSE = str(Path(__file__).absolute().parents[2])


class Process(Protocol):
    """One of our processes."""

    @property
    def pid(self) -> int:
        """Its number; another's once it is reaped."""
        ...

    @property
    def pidfd(self) -> int:
        """Readable once it is dead: all that it held is released by then. Whoever has the process closes it."""
        ...

    @property
    def doomed(self) -> bool:
        """Whether that on which its life depends has ended: it is dead, or is about to be."""
        ...

    def kill(self) -> None:
        """SIGKILL, and for what it started too, at the latest when it is reaped. Never blocks."""
        ...

    async def told(self) -> None:
        """Until it is known how it ended; it is dead."""
        ...

    def fate(self) -> str:
        """How it ended, to be put behind its name."""
        ...

    async def reap(self) -> None:
        """Until it is reaped; it is dead."""
        ...


@frozen
class Ends:
    """What a process gets of us: the other end of our connection, and where to write."""

    connection: int
    output: int
    errors: int


@contextmanager
def connected(output: Output, kind: socket.SocketKind) -> Generator[tuple[socket.socket, Ends]]:
    """Our end of a new connection and the process's ends; leaving closes those, and ours too if it fails."""
    with ExitStack() as undo:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        undo.callback(ours.close)
        with theirs, output.ends() as (out, err):
            ours.setblocking(False)
            yield ours, Ends(theirs.fileno(), out, err)
        undo.pop_all()


class Spawned:
    """A child of ours, started cold.

    The thread that starts it must be the loop's, because the kernel kills the child when the *thread* that forked it ends:
    one of Trio's worker threads would do so after ten idle seconds.
    """

    def __init__(self, module: str, ends: Ends) -> None:
        """Start it; blocks for the milliseconds that fork and exec take.

        Raises:
            OSError: no process or descriptor is to be had.
        """
        self._process = _spawn(module, ends)
        self.pid = self._process.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def doomed(self) -> bool:
        """See `Process.doomed`: it depends on us."""
        return False

    def kill(self) -> None:
        """See `Process.kill`. Not after `reap`."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    async def told(self) -> None:
        """See `Process.told`."""

    def fate(self) -> str:
        """See `Process.fate`."""
        try:
            end = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "ended, and somebody else took its exit status"
        if end is None:
            return "closed its connection"
        return fate(killed=end.si_code != os.CLD_EXITED, status=end.si_status)

    async def reap(self) -> None:
        """See `Process.reap`."""
        self._process.wait()


def _spawn(module: str, ends: Ends) -> subprocess.Popen[bytes]:
    """A module of ours, in a session of its own: Ctrl-C is the parent's, and one signal reaches all it starts."""
    path = os.environ.get("PYTHONPATH")
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [sys.executable, "-P", "-u", "-m", module, str(ends.connection), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=ends.output,
        stderr=ends.errors,
        pass_fds=[ends.connection],
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{_HOUSE}{os.pathsep}{path}" if path else _HOUSE},
    )


def is_readable(descriptor: int) -> bool:
    """Whether it is, now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def fate(*, killed: bool, status: int) -> str:
    """How a process ended, to be put behind its name."""
    return f"was killed by {_signal_name(status)}" if killed else f"exited with status {status}"


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


async def outlived(process: Process, seconds: float) -> bool:
    """Wait so long for its death; whether it still lives then."""
    with trio.move_on_after(seconds):
        await trio.lowlevel.wait_readable(process.pidfd)
    return not is_readable(process.pidfd)
