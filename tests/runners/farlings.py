"""Runners that show what happens to a context process on another machine."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from attrs import field, frozen

from runners.errors import LoadFailed
from runners.models.scripted import Scripted
from runners.models.torch_lm import TorchLM

NODE = "BENCHMARKS_NODE"
"""What `benchmarks.cluster` calls the variable with the name of a node. Its import would take a far process too long."""


def hold(folder):
    """Take the only device of this node, as the kernel sees it: the lock is released when the process is dead, and not before."""
    lock = os.open(Path(folder) / f"device {os.environ.get(NODE, '')}", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (Path(folder) / "two at once").touch()
        raise LoadFailed("two contexts hold one device") from None


@frozen
class Holds:
    """A scripted runner whose device is a lock in this folder."""

    folder: str
    chunks: int = 8
    delay: float = 0.0

    def build(self, start):
        hold(self.folder)
        return Scripted(self.chunks, delay=self.delay, streams=64).build(start)


class Slowing:
    """A runner whose streams are slow behind token 20 in its first incarnation, so that none is done before that is struck."""

    def __init__(self, runner, start):
        self.runner = runner
        self.seconds = 0.003 if start.incarnation == 1 else 0

    def __getattr__(self, name):
        return getattr(self.runner, name)

    def execute(self, batch):
        return SlowChunks(self.runner.execute(batch), self.seconds)

    def continue_from(self, batch, accepted):
        return SlowChunks(self.runner.continue_from(batch, accepted), self.seconds)


class SlowChunks:
    def __init__(self, chunks, seconds):
        self.chunks = chunks
        self.seconds = seconds

    def __iter__(self):
        return self

    def __next__(self):
        chunk = next(self.chunks)
        if chunk.index >= 20:
            time.sleep(self.seconds)
        return chunk

    def close(self):
        self.chunks.close()


@frozen
class HoldsTorch:
    """`TorchLM`, whose device is a lock in this folder."""

    folder: str
    streams: int = 32

    def preload(self):
        TorchLM(streams=self.streams).preload()

    def build(self, start):
        hold(self.folder)
        return Slowing(TorchLM(streams=self.streams).build(start), start)


@frozen
class HoldsAhead:
    """`HoldsTorch` that builds the model before it takes the device, as a standby can."""

    folder: str
    built: Any = field(factory=lambda: TorchLM(streams=32))

    def prepare(self, device):
        return HoldsAhead(self.folder, self.built.prepare(device))

    def build(self, start):
        hold(self.folder)
        return Slowing(self.built.build(start), start)


@frozen
class Leaves:
    """It writes to both streams, starts a process in a session of its own, and ends in the way that is asked for."""

    folder: str
    end: str = ""

    def build(self, start):
        print("to standard output")
        print("to standard error", file=sys.stderr)
        left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (Path(self.folder) / "left").write_text(str(left.pid))
        runner = Scripted(4, delay=0.01).build(start)
        if self.end == "exit":
            os._exit(7)
        if self.end == "hang":
            time.sleep(1000)
        return runner


@frozen
class Reports:
    """It writes its environment into this folder, as a file with the pid as its name."""

    folder: str
    chunks: int = 8

    def build(self, start):
        environment = sorted(os.environ.items())
        (Path(self.folder) / f"{os.getpid()}").write_text(repr(environment))
        return Scripted(self.chunks, delay=0.01).build(start)
