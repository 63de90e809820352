"""The processes that this one has started, cold or by a fork server, and their end.

No thread is used, and no call blocks for long.
"""

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

_ROOT = str(Path(__file__).absolute().parents[4])
_OWN_EXECUTABLE = Path("/proc/self/exe")

_BOOT = """\
import sys
_, module, connection, parent, root, *sys.path[:] = sys.argv
sys.argv[:] = module, connection, parent
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
spec = PathFinder.find_spec("runners", [root])
package = sys.modules["runners"] = module_from_spec(spec)
spec.loader.exec_module(package)
import_module(module).main()
"""
"""The program of a new interpreter. It has our `sys.path`, in the same order, so that it can import all that we can. With
PYTHONPATH our folder, which may be a site-packages with old backports, would come before the standard library, and a path with
a colon could not be passed. `runners` is imported from where it was imported here, even if another package has this name."""

_INTERPRETERS = re.compile(r"python|pypy|graalpy")
_SLICE = 1.0
"""Seconds of a slice of waiting, see `within`."""
_LATE = 0.25
"""Seconds after a deadline from which on it counts as late, see `is_late`."""
UNREACHABLE = ProcessLookupError, PermissionError
"""What a signal raises for a process that has ended, or that this one may not signal since one of them has become another user's."""
_GROUP = 1.0
"""Seconds in which killed processes that a dead process had started must end."""


class Process(Protocol):
    """One of our processes."""

    @property
    def pid(self) -> int:
        """Its number, which may be that of another process once it is reaped."""
        ...

    @property
    def pidfd(self) -> int:
        """A descriptor that is readable once it is dead, and all that it held is released. The user of the process closes it."""
        ...

    @property
    def doomed(self) -> bool:
        """Whether the process on which its life depends has ended, so that it is dead or is about to die."""
        ...

    def kill(self) -> None:
        """Kill it, and the processes that it has started, at the latest when it is reaped. Never blocks."""
        ...

    async def fate_known(self) -> None:
        """Wait until `fate` is known. The process must be dead."""
        ...

    def fate(self) -> str:
        """How it ended, as a text that follows its name."""
        ...

    async def reap(self) -> None:
        """Wait until it is reaped. The process must be dead."""
        ...


@frozen
class Ends:
    """The descriptors for a new process: its end of the connection, and its standard output and standard error."""

    connection: int
    output: int
    errors: int


@contextmanager
def connected(output: Output, kind: socket.SocketKind) -> Generator[tuple[socket.socket, Ends]]:
    """Our end of a new connection, and the ends of the process. Leaving closes the latter, and ours too if the block raises."""
    with ExitStack() as undo:
        ours, theirs = (lifted(end) for end in socket.socketpair(socket.AF_UNIX, kind))
        undo.callback(ours.close)
        with theirs, output.ends() as (out, err):
            ours.setblocking(False)
            theirs.setblocking(True)  # `socket.setdefaulttimeout` may have made it non-blocking
            yield ours, Ends(theirs.fileno(), out, err)
        undo.pop_all()


class Started:
    """A child of this process that leads a group of its own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Watch it.

        Raises:
            OSError: no descriptor is available. The process is killed then.
        """
        self._process = process
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
        """See `Process.doomed`. Its life depends only on this process."""
        return False

    def kill(self) -> None:
        """See `Process.kill`. It must not be called after `reap`."""
        with suppress(*UNREACHABLE):
            os.killpg(self.pid, signal.SIGKILL)

    async def fate_known(self) -> None:
        """See `Process.fate_known`."""

    def fate(self) -> str:
        """See `Process.fate`."""
        try:
            end = os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return "ended, and other code of this program took its exit status"
        if end is None:
            return "closed its connection"
        return fate(killed=end.si_code != os.CLD_EXITED, status=end.si_status)

    async def reap(self) -> None:
        """See `Process.reap`."""
        self._process.wait()
        await reap_group(self.pid)
        cleaner.note_end(self.pid)


class Spawned(Started):
    """A context process or fork server, started cold.

    It must be started in the thread of the event loop, because the kernel kills the child when the *thread* that forked it
    ends: a worker thread of Trio ends after ten idle seconds.
    """

    def __init__(self, module: str, ends: Ends, path: Sequence[str]) -> None:
        """Start it with `path` as its `sys.path`; blocks for the milliseconds that fork and exec take.

        Raises:
            OSError: no process or descriptor is available.
        """
        super().__init__(_spawn(module, ends, path))

    def dump_stack(self) -> None:
        """Have a fork server write its Python stack to standard error: it handles SIGUSR1 so while it preloads."""
        with suppress(*UNREACHABLE):
            os.kill(self.pid, signal.SIGUSR1)


def _spawn(module: str, ends: Ends, path: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a module of ours in a session of its own: a Ctrl-C does not reach it, and one signal reaches its whole group."""
    return subprocess.Popen(  # noqa: S603 - our own interpreter and module
        [
            *(*interpreter(), "-P", "-u", "-c", _BOOT),
            *(module, str(ends.connection), str(os.getpid()), _ROOT, *path),
        ],
        stdin=subprocess.DEVNULL,
        stdout=ends.output,
        stderr=ends.errors,
        pass_fds=[ends.connection],
        start_new_session=True,
        env=cleaner.marked(),
    )


def _flags() -> list[str]:
    """The interpreter flags of this process, such as `-I`, `-O` and `-X dev`, as `multiprocessing` passes them on too."""
    flags: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags")  # noqa: B009 - no stub has it
    return flags()


def refusal() -> str | None:
    """The reason why no process can be started on this system, in one line; None if one can."""
    if sys.platform != "linux":
        return f"a ProcessHost needs Linux (pidfd, and a child that dies with its parent), got {sys.platform}"
    if getattr(sys, "frozen", False):
        return f"a ProcessHost cannot start a Python from a frozen application ({sys.executable})"
    if _python() is None:
        return f"a ProcessHost must start a Python, but sys.executable is {sys.executable!r}"
    return None


def interpreter() -> list[str]:
    """The command that starts the same interpreter with the same flags.

    Raises:
        OSError: no Python can be started; `sys.executable` would start the application again.
    """
    python = _python()
    if python is None:
        raise OSError(refusal())
    return [python, *_flags()]


def _python() -> str | None:
    """`sys.executable`, or the file that the kernel runs if an empty PATH has left it empty; None if that is no Python."""
    executable = sys.executable
    if not executable:
        with suppress(OSError):
            executable = str(_OWN_EXECUTABLE.readlink())
    return executable if executable and _is_python(executable) else None


@functools.cache
def _is_python(executable: str) -> bool:
    names = Path(executable).name, Path(os.path.realpath(executable)).name
    return any(_INTERPRETERS.search(name) for name in names) and os.access(executable, os.X_OK)


def is_readable(descriptor: int) -> bool:
    """Whether the descriptor is readable now."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def fate(*, killed: bool, status: int | None) -> str:
    """How a process ended, as a text that follows its name."""
    if status is None:
        return "ended, and its exit status is lost"
    return f"was killed by {_signal_name(status)}" if killed else f"exited with status {status}"


def _signal_name(number: int) -> str:
    return next((known.name for known in signal.Signals if known == number), f"signal {number}")


async def within(seconds: float, wait: Callable[[], Awaitable[object]]) -> bool:
    """Wait so many seconds for an event; returns whether it came.

    If everything is paused for a while, as in a frozen cgroup or while a machine is migrated, the clock goes on, but a
    process that was paused as this one was is not late. So the time is cut into slices, and a slice that took much longer
    than planned counts half: the event is awaited once more after it, and the wait ends even if every slice is late.
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
    """Whether this task runs so long after the deadline that all processes must have been paused."""
    return trio.current_time() - deadline > _LATE


async def outlived(process: Process, seconds: float) -> bool:
    """Wait so many seconds for the death of a process; returns whether it is still alive."""
    if await within(seconds, functools.partial(trio.lowlevel.wait_readable, process.pidfd)):
        return False
    return not is_readable(process.pidfd)


async def reap_group(group: int) -> None:
    """Reap the killed members of a dead process's group that are our children, as they are if we are process 1 or a subreaper."""

    async def reaped() -> None:
        while _reap_some(group):  # noqa: ASYNC110 - there is no event for the end of an unknown process
            await trio.sleep(0.002)

    await within(_GROUP, reaped)


def _reap_some(group: int) -> bool:
    """Reap those that are dead; returns whether others are left."""
    try:
        while os.waitid(os.P_PGID, group, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return False
    return True
