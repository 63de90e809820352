"""What the tests of processes share: sessions that prove to leave nothing."""

import gc
import os
import select
import signal
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from runners.hosts.process.host import ProcessHost

HOST = ProcessHost(load_timeout=20, first_chunk_timeout=20, next_chunk_timeout=20)
PATIENCE = 10.0

_MARK = "RUNNERS_TESTED_BY"
os.environ[_MARK] = str(os.getpid())


@asynccontextmanager
async def opened(runner, host=HOST, **start):
    """A session, and afterwards the proof that its process is gone."""
    pidfd = -1
    try:
        with trio.fail_after(4 * PATIENCE):
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
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


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
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def nothing_left():
    """D10: no test leaves a process, a zombie or a descriptor."""
    before = processes(), descriptors()
    yield
    gc.collect()
    after = processes(), descriptors()
    told = [
        (pid, stat(str(pid))[0], Path(f"/proc/{pid}/cmdline").read_bytes()[-80:])
        for pid in after[0] - before[0]
    ]
    assert after == before, f"{told}, {after[1]} and not {before[1]}"


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


def title(pid):
    """What `ps` calls a process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def contexts():
    """The pids of our context processes: what a fork server has made, or was started cold."""
    found = set()
    for pid in processes():
        with suppress(OSError):
            if stat(pid)[1] != os.getpid() or b"runners.hosts.process.child.life" in command(pid):
                found.add(pid)
    return found


def kill_contexts():
    """SIGKILL for each of them; one may be dead already and not yet reaped."""
    for pid in contexts():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
