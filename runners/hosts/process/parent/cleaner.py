"""The cleaner: a small process that outlives ours for a moment, and kills all processes that our contexts have started.

When our process ends, however it ends, the kernel kills the contexts, but not the processes that they have started (D10). The
cleaner notices our end by our pidfd. It kills the process group of each of our processes, and every process with our mark in
its environment, even one in a session of its own. While we are alive we report the end of each context, and the cleaner kills
the processes with the mark of that context.

It runs only the program below, without site-packages, and depends on nothing that it watches. If it is stopped by a signal,
the kernel continues it when we end.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import subprocess
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress

import trio
from trio.lowlevel import RunVar

from runners.hosts import MARK
from runners.hosts.process.parent.output import log_event
from runners.hosts.process.standard import lifted, pipe
from runners.hosts.process.surroundings import environment

_PATIENCE = 1.0

_PROGRAM = """\
import ctypes, os, select, signal, sys, time

mark, parent = os.fsencode(sys.argv[1]), int(sys.argv[2])
for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, [])
libc = ctypes.CDLL(None)
libc.prctl(1, signal.SIGCONT, 0, 0, 0)      # PR_SET_PDEATHSIG
libc.prctl(15, b"runners:cleaner", 0, 0, 0)  # PR_SET_NAME

def numbers():
    try:
        if os.readlink("/proc/self") == str(os.getpid()):  # not if it shows the processes of another namespace
            return os.listdir("/proc")
    except OSError:
        pass
    return []

def marked(whole, start):
    for name in numbers():
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/environ", "rb") as file:
                    entries = file.read().split(b"\\0")
            except OSError:
                continue
            if any(entry == whole or entry.startswith(start) for entry in entries if entry):
                yield int(name)

def kill(send, number):
    try:
        send(number, signal.SIGKILL)
    except OSError:
        pass

def clean(whole, start):
    killed = set()
    for _ in range(100):
        found = set(marked(whole, start))
        for number in found:
            kill(os.kill, number)
        killed |= found
        if not found:
            break
        time.sleep(0.01)
    for number in killed:
        try:
            os.write(1, b"%d\\n" % number)
        except OSError:
            pass

def listen(poll):
    rest = b""
    while any(descriptor == 0 for descriptor, _ in poll.poll()):
        data = os.read(0, 65536)
        if not data:
            return
        *lines, rest = (rest + data).split(b"\\n")
        for line in lines:
            if line == b".":
                return
            number = int(line[1:])
            if line.startswith(b"+"):
                groups.add(number)
            else:
                groups.discard(number)
                clean(mark + b"." + line[1:], (b"\\0",))

groups = set()
try:
    watched = os.pidfd_open(parent)
except ProcessLookupError:
    pass
else:
    poll = select.poll()
    poll.register(0, select.POLLIN)
    poll.register(watched, select.POLLIN)
    if os.getppid() == parent:
        listen(poll)
for number in groups:
    kill(os.killpg, number)
clean(mark, mark + b".")
"""


class _Running:
    """A cleaner process."""

    def __init__(self, interpreter: Sequence[str], mark: str) -> None:
        """Start it; blocks for a millisecond or two.

        Raises:
            OSError: no process or descriptor is available.
        """
        with ExitStack() as undo, ExitStack() as theirs:
            ours, reading = (lifted(end) for end in socket.socketpair())
            self._orders = undo.enter_context(ours)
            theirs.enter_context(reading)
            ours.setblocking(False)
            reading.setblocking(True)  # `socket.setdefaulttimeout` may have made it non-blocking
            writing, self._reports = reversed(_pipe(undo, theirs))
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and program
                [*interpreter, "-S", "-s", "-P", "-c", _PROGRAM, f"{MARK}={mark}", str(os.getpid())],
                stdin=reading.fileno(),
                stdout=writing,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # A relative path in PYTHONPATH may lead to files with the names of Python's own modules by now.
                env={
                    name: value for name, value in _environment().items() if name not in (MARK, "PYTHONPATH")
                },
            )
            undo.pop_all()
        self.over = trio.Event()
        self._reaping = trio.CancelScope(shield=True)  # Trio's cancellation of system tasks does not end it
        trio.lowlevel.spawn_system_task(self._reap, name="reaper of what contexts leave behind")

    def send(self, order: str) -> None:
        """Send a line. It is lost if the cleaner is dead, stopped with a full socket, or memory is lacking; then the mark alone must do.

        The connection is a socket, because MSG_NOSIGNAL works only there: if SIGPIPE has its default action, a write to a
        pipe without a reader would kill this program.
        """
        with suppress(OSError):
            self._orders.send(f"{order}\n".encode(), socket.MSG_NOSIGNAL)

    async def _reap(self) -> None:
        """Until the cleaner ends, reap the processes that it has killed and that have become our children.

        That is so if we are process 1 or a subreaper.
        """
        rest, data = b"", b"-"
        with self._reaping:
            while data:
                await trio.lowlevel.wait_readable(self._reports)
                data = os.read(self._reports, 4096)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    with suppress(ChildProcessError):
                        os.waitpid(int(line), os.WNOHANG)  # noqa: ASYNC222 - WNOHANG does not block
        self.over.set()

    async def end(self) -> None:
        """All our processes have ended: have the cleaner kill what they have started, and end it."""
        self.send(".")
        with trio.move_on_after(_PATIENCE):
            await self.over.wait()
        self._reaping.cancel()
        await self.over.wait()
        self.close()

    def close(self) -> None:
        """Kill and reap the cleaner, and close the descriptors.

        If this program has become another user's, it may not kill it. Then the cleaner ends by itself, since its orders end.
        """
        self._orders.close()
        os.close(self._reports)
        with suppress(PermissionError):
            self._process.kill()
            self._process.wait()


class _Cleaner:
    """A cleaner process as long as one is needed. If it has been killed, it is replaced when the next process starts.

    Each cleaner has a mark of its own, so that it leaves the processes of another Trio run in another thread alone.
    """

    def __init__(self, interpreter: Callable[[], Sequence[str]]) -> None:
        self.holders = 0
        self.mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._interpreter = interpreter
        self._groups: set[int] = set()
        self._running: _Running | None = None

    def start(self) -> None:
        """Start the cleaner; if that fails, log a warning and continue without."""
        try:
            self._running = _Running(self._interpreter(), self.mark)
        except OSError as error:
            log_event(
                logging.WARNING,
                "no cleaner: processes that a context starts may outlive this program if it is killed: %s",
                error,
            )
            return
        for pid in self._groups:
            self._running.send(f"+{pid}")

    def born(self, pid: int) -> None:
        """A process of ours has started; it leads a group."""
        self._groups.add(pid)
        if self._running is None:
            return
        if not self._running.over.is_set():
            self._running.send(f"+{pid}")
            return
        log_event(logging.WARNING, "the cleaner was killed, and is started again")
        self._running.close()
        self._running = None
        self.start()

    def dead(self, pid: int) -> None:
        """A process of ours has ended and is reaped."""
        self._groups.discard(pid)
        if self._running is not None:
            self._running.send(f"-{pid}")

    async def end(self) -> None:
        """End the cleaner process."""
        running, self._running = self._running, None
        if running is not None:
            with trio.CancelScope(shield=True):
                await running.end()


def _pipe(reading: ExitStack, writing: ExitStack) -> tuple[int, int]:
    """Reading end and writing end, each closed by its stack. Neither has the number of a standard stream."""
    ends = pipe()
    reading.callback(os.close, ends[0])
    writing.callback(os.close, ends[1])
    return ends


_cleaner: RunVar[_Cleaner | None] = RunVar("runners.hosts.process.parent.cleaner", None)


def _environment() -> dict[str, str]:
    return {os.fsdecode(name): os.fsdecode(value) for name, value in environment().items()}


def marked() -> dict[str, str]:
    """The environment, with the mark of our cleaner if there is one."""
    found = _cleaner.get()
    return {**_environment(), MARK: found.mark} if found else _environment()


def note_birth(pid: int) -> None:
    """Report the start of a process of ours, which leads a group, to the cleaner."""
    if found := _cleaner.get():
        found.born(pid)


def note_end(pid: int) -> None:
    """Report the end of a process of ours to the cleaner."""
    if found := _cleaner.get():
        found.dead(pid)


@asynccontextmanager
async def cleaning(interpreter: Callable[[], Sequence[str]]) -> AsyncGenerator[None, None]:
    """A context manager: the cleaner of this Trio run exists at least until it is left.

    If there is none yet, entering starts one, which blocks for a millisecond or two.

    Args:
        interpreter: gives the command that starts a Python.
    """
    found = _cleaner.get()
    if found is None:
        found = _Cleaner(interpreter)
        found.start()
        _cleaner.set(found)
    found.holders += 1
    try:
        yield
    finally:
        found.holders -= 1
        if not found.holders:
            _cleaner.set(None)
            await found.end()
