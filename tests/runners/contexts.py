"""What the tests of processes share: sessions that prove to leave nothing."""

import gc
import os
import resource
import select
import signal
import socket
import threading
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost

HOST = ProcessHost(load_timeout=20, first_chunk_timeout=20, next_chunk_timeout=20)
PATIENCE = 60.0
"""Seconds after which something hangs. Only a test that fails takes so long, so a slow or busy machine must not come near it."""

_MARK = "RUNNERS_TESTED_BY"
os.environ[_MARK] = str(os.getpid())


@asynccontextmanager
async def opened(runner, host=HOST, **start):
    """A session, and afterwards the proof that its process is gone."""
    pidfd = -1
    try:
        with trio.fail_after(2 * PATIENCE):
            async with host.open(runner, **start) as session:
                pidfd = os.pidfd_open(session.pid)
                yield session
            assert is_readable(pidfd)
    finally:
        if pidfd >= 0:
            os.close(pidfd)


def is_readable(fd, timeout=0.0):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def stat(pid):
    """State and parent of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[1])


def ends(pid):
    """Whether it is dead; a zombie counts as dead, whichever process should reap it."""
    try:
        return stat(pid)[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def hurry(host, **deadlines):
    """Give a host shorter deadlines while its session is open, which looks at them each time.

    What is in time before that may then take as long as a slow machine needs.
    """
    for name, seconds in deadlines.items():
        object.__setattr__(host, name, seconds)


def chunks_waiting(session):
    """How many chunks have come from its process and are not received yet."""
    parser = wire.from_child()
    with suppress(BlockingIOError):
        parser.feed(session._peer._socket.recv(2**20, socket.MSG_PEEK))
    count = 0
    while (frame := parser.next()) is not None:
        count += len(frame.chunks)
    return count


def processes():
    """The pids of all that was started from here, however far down and whatever its parent is by now; our zombies too."""
    mark = f"{_MARK}={os.getpid()}\0".encode()
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = stat(entry.name)[1] == os.getpid() or mark in (entry / "environ").read_bytes()
        except OSError:
            continue
        if ours and int(entry.name) != os.getpid():
            found.add(int(entry.name))
    return found


def descriptors():
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture(autouse=True)
def nothing_left():
    """D10: no test leaves a process, a zombie or a descriptor. One of an earlier test may be closed meanwhile, as garbage is."""
    before = processes(), descriptors()
    yield
    gc.collect()
    pids, files = processes() - before[0], descriptors() - before[1]
    told = [(pid, stat(str(pid))[0], Path(f"/proc/{pid}/cmdline").read_bytes()[-80:]) for pid in pids]
    assert not pids, told
    assert not files


async def until(condition, seconds=PATIENCE):
    """Wait for something outside to become true."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is outside sets no event
            await trio.sleep(0.005)


def cleaners():
    """The pids of what kills what our processes leave behind."""
    return {pid for pid in processes() if b"runners:cleaner" in command(pid)}


def command(pid):
    """Its command line; empty if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def environment_of(pid):
    """The variables that a process has got from the one that started it."""
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.partition("=")[::2] for entry in entries if entry)


def title(pid):
    """What `ps` calls a process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return ""


def contexts():
    """The pids of our context processes: what a fork server has made, or was started cold."""
    found = set()
    for pid in processes():
        with suppress(OSError):
            if stat(pid)[1] != os.getpid() or b"runners.hosts.process.child.life" in command(pid):
                found.add(pid)
    return found


class Steps(trio.abc.Instrument):
    """Of all steps of tasks: the longest, and how many gave up the CPU in order to wait. What other processes take away does not count."""

    used = 0.0
    """The longest in seconds of CPU."""
    held = 0.0
    """The longest in seconds, less those in which it waited for a CPU."""
    waits = 0

    def __init__(self):
        self._delays = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        self._before = self._now()

    def _now(self):
        delayed = int(self._delays.read_text().split()[1]) / 1e9
        waits = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return time.thread_time(), time.monotonic() - delayed, waits

    def before_task_step(self, task):
        self._before = self._now()

    def after_task_step(self, task):
        (used, held, waits), (used_before, held_before, waits_before) = self._now(), self._before
        self.used = max(self.used, used - used_before)
        self.held = max(self.held, held - held_before)
        self.waits += waits > waits_before


def kill_contexts():
    """SIGKILL for each of them; one may be dead already and not yet reaped."""
    for pid in contexts():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
