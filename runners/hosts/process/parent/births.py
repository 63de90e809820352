"""Our processes as their parent sees them: started cold, or forked by a fork server. No thread; nothing blocks for long."""

from __future__ import annotations

import functools
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

from runners.hosts.process.parent import cleaner
from runners.hosts.process.parent.output import Output
from runners.hosts.process.standard import lifted

_HOUSE = str(Path(__file__).absolute().parents[4])
_HERE = Path("/proc/self/exe")

_BOOT = """\
import sys
_, module, connection, parent, house, *sys.path[:] = sys.argv
sys.argv[:] = module, connection, parent
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
spec = PathFinder.find_spec("runners", [house])
package = sys.modules["runners"] = module_from_spec(spec)
spec.loader.exec_module(package)
import_module(module).main()
"""
"""What a new interpreter runs. It imports from where we do and in the same order, so that what we can import it can too;
PYTHONPATH would put our folder, which may be a site-packages with old backports, before the standard library, and cannot
hold a path with a colon. `runners` is the one that runs here, wherever that stands, and whatever else has this name."""

_INTERPRETERS = re.compile(r"python|pypy|graalpy")
_SLICE = 1.0
_LATE = 0.25
_GROUP = 1.0
"""Seconds in which what a dead process has left behind, and is killed, must have ended too."""


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
        ours, theirs = (lifted(end) for end in socket.socketpair(socket.AF_UNIX, kind))
        undo.callback(ours.close)
        with theirs, output.ends() as (out, err):
            ours.setblocking(False)
            theirs.setblocking(True)  # or `socket.setdefaulttimeout` has made it one that does not block
            yield ours, Ends(theirs.fileno(), out, err)
        undo.pop_all()


class Spawned:
    """A child of ours, started cold.

    The thread that starts it must be the loop's, because the kernel kills the child when the *thread* that forked it ends:
    one of Trio's worker threads would do so after ten idle seconds.
    """

    def __init__(self, module: str, ends: Ends, path: Sequence[str]) -> None:
        """Start it, to import from `path`; blocks for the milliseconds that fork and exec take.

        Raises:
            OSError: no process or descriptor is to be had.
        """
        self._process = _spawn(module, ends, path)
        self.pid = self._process.pid
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._process.kill()
            self._process.wait()
            raise
        cleaner.note_birth(self.pid)

    @property
    def doomed(self) -> bool:
        """See `Process.doomed`: it depends on us."""
        return False

    def kill(self) -> None:
        """See `Process.kill`. Not after `reap`."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def tell_where(self) -> None:
        """Have it write its Python stack to standard error, if it has said that it does so (`child.TELL_WHERE`)."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)

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
        await reap_group(self.pid)
        cleaner.note_end(self.pid)


def _spawn(module: str, ends: Ends, path: Sequence[str]) -> subprocess.Popen[bytes]:
    """A module of ours, in a session of its own: Ctrl-C is the parent's, and one signal reaches all it starts."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [
            *(*interpreter(), "-P", "-u", "-c", _BOOT),
            *(module, str(ends.connection), str(os.getpid()), _HOUSE, *path),
        ],
        stdin=subprocess.DEVNULL,
        stdout=ends.output,
        stderr=ends.errors,
        pass_fds=[ends.connection],
        start_new_session=True,
        env=cleaner.marked(),
    )


def _flags() -> list[str]:
    """`-I`, `-O`, `-X dev` and the like, as we were started with; what `multiprocessing` hands on too."""
    told: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags")  # noqa: B009 - no stub has it
    return told()


def refusal() -> str | None:
    """Why there can be no process of ours here, in one line; None if there can."""
    if sys.platform != "linux":
        return f"a ProcessHost needs Linux (pidfd, and a child that dies with its parent), got {sys.platform}"
    if getattr(sys, "frozen", False):
        return f"a ProcessHost cannot start a Python from a frozen application ({sys.executable})"
    if _python() is None:
        return f"a ProcessHost must start a Python, but sys.executable is {sys.executable!r}"
    return None


def interpreter() -> list[str]:
    """How to start the interpreter that runs here, as it was started.

    Raises:
        OSError: there is none; starting `sys.executable` would start the application again.
    """
    python = _python()
    if python is None:
        raise OSError(refusal())
    return [python, *_flags()]


def _python() -> str | None:
    """`sys.executable`, or, where an empty PATH has left that empty, what the kernel runs; None if that is no Python."""
    executable = sys.executable
    if not executable:
        with suppress(OSError):
            executable = str(_HERE.readlink())
    return executable if executable and _is_python(executable) else None


@functools.cache
def _is_python(executable: str) -> bool:
    names = Path(executable).name, Path(os.path.realpath(executable)).name
    return any(_INTERPRETERS.search(name) for name in names) and os.access(executable, os.X_OK)


def is_readable(descriptor: int) -> bool:
    """Whether it is, now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def fate(*, killed: bool, status: int | None) -> str:
    """How a process ended, to be put behind its name."""
    if status is None:
        return "ended, and its exit status is lost"
    return f"was killed by {_signal_name(status)}" if killed else f"exited with status {status}"


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


async def within(seconds: float, wait: Callable[[], Awaitable[object]]) -> bool:
    """Wait so long; whether it came.

    Where everything stands still for a while (a frozen cgroup, a machine that is moved) the clock goes on, and who was
    stopped as we were is not late. So the time is cut into slices, and one that was much longer than it should be counts
    half: there is another look after it, and an end even where each of them is late.
    """
    slices = 1 if seconds == math.inf else max(1, round(seconds / _SLICE))
    halves = 2 * slices
    while halves > 0:
        with trio.move_on_after(seconds / slices) as patience:
            await wait()
            return True
        halves -= 1 if is_late(patience.deadline) else 2
    return False


def is_late(deadline: float) -> bool:
    """Whether we run so long after it that nobody can have run."""
    return trio.current_time() - deadline > _LATE


async def outlived(process: Process, seconds: float) -> bool:
    """Wait so long for its death; whether it still lives then."""
    if await within(seconds, functools.partial(trio.lowlevel.wait_readable, process.pidfd)):
        return False
    return not is_readable(process.pidfd)


async def reap_group(group: int) -> None:
    """Reap what a dead process of ours has left behind, and is killed, where that falls to us: as process 1, or a subreaper."""

    async def reaped() -> None:
        while _reap_some(group):  # noqa: ASYNC110 - nothing tells of the end of an unknown process
            await trio.sleep(0.002)

    await within(_GROUP, reaped)


def _reap_some(group: int) -> bool:
    """Whether there are more to come."""
    try:
        while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return False
    return True
