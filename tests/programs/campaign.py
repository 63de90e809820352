"""Strikes against a server in a tree: its main process, a worker, its guardian or the parent is killed or stopped.

After each one the server must be ready again, with all that it had promised to keep; no process may be left that is not below
the guardian of that moment, and after the death of a parent no process and no busy port at all.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import trio
from attrs import define, field

from supervise.programs import guardian
from supervise.programs.guardian import below, processes

from .servers import Server, processes_in, refuses

ROOT = Path(__file__).parents[2]
TARGETS = ("program", "worker", "guardian", "parent")
LONGEST = 120.0
"""Seconds in which the server must be ready again after a strike."""


@define
class Strike:
    """One strike, and the seconds until the server was ready again."""

    target: str
    stop: bool
    seconds: float = 0.0
    gone: float | None = None
    """After the death of a parent: seconds until no process and no busy port was left."""

    @property
    def kind(self) -> str:
        return f"{self.target} {'SIGSTOP' if self.stop else 'SIGKILL'}"


@define
class Parent:
    """The process of the tree, and the lines that it has printed."""

    process: trio.Process
    starts: list[dict[str, int]] = field(factory=list)
    failures: list[str] = field(factory=list)

    async def read(self) -> None:
        rest = b""
        async for data in self.process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in map(json.loads, lines):
                if "pid" in line:
                    self.starts.append(line)
                else:
                    self.failures.append(f"{line['failed']}: {line['text']}")

    @property
    def now(self) -> dict[str, int]:
        return self.starts[-1]


def guardians_of(parent: int) -> set[int]:
    """The living guardians and reserves that a process has started, which may be dead: its pid is one of their arguments."""
    found = set()
    for pid in processes():
        with suppress(OSError):  # it has ended meanwhile
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if guardian.__file__.encode() in arguments and str(parent).encode() in arguments:
                found.add(pid)
    return found


class Campaign:
    """A server and its parent, and what has been done to them."""

    def __init__(self, kind: str, server: Server, *, seed: int, isolation: str = "group") -> None:
        self.kind = kind
        self.server = server
        self.isolation = isolation
        self.random = Random(seed)
        self.strikes: list[Strike] = []
        self.failures: list[str] = []
        self._nursery: trio.Nursery
        self._parent: Parent

    async def run(self, kills: int, *, step: Callable[[float], None] = lambda _: None) -> list[Strike]:
        """Strike so often, at random; each target is killed and stopped at least once if there are eight or more."""
        self.server.prepare()
        kinds = [(target, stop) for target in TARGETS for stop in (False, True)]
        plan = [Strike(*kinds[number % len(kinds)]) for number in range(kills)]
        self.random.shuffle(plan)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await self._start()
            try:
                for strike in plan:
                    await self._strike(strike)
                    self.strikes.append(strike)
                    step(1)
                await self._end()
            finally:
                self._parent.process.kill()
        return self.strikes

    async def _start(self) -> None:
        argv = [sys.executable, "-m", "tests.programs.parent", self.kind, str(self.server.folder)]
        process = await trio.lowlevel.open_process(
            [*argv, str(self.server.port), self.isolation],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        self._parent = Parent(process, failures=self.failures)
        self._nursery.start_soon(self._parent.read)
        await self._ready_again()

    async def _strike(self, strike: Strike) -> None:
        server, parent = self.server, self._parent
        await trio.to_thread.run_sync(server.write)
        began, starts, now = trio.current_time(), len(parent.starts), parent.now
        target = {
            "program": now["pid"],
            "worker": self._worker(now["pid"]),
            "guardian": self.random.choice(self._guardians()),
            "parent": parent.process.pid,
        }[strike.target]
        with suppress(ProcessLookupError):  # a worker may have ended by itself
            os.kill(target, signal.SIGSTOP if strike.stop else signal.SIGKILL)
        if strike.target == "parent":
            if strike.stop:
                os.kill(target, signal.SIGKILL)
            await parent.process.wait()
            await self._until(self._nothing_left, "no process and no busy port is left")
            strike.gone = trio.current_time() - began
            await self._start()
        else:
            if strike.stop and strike.target in ("worker", "guardian"):
                os.kill(now["pid"], signal.SIGKILL)
            if strike.stop and strike.target == "program" and not server.stands_still:
                target = 0
            elif strike.target != "worker" or strike.stop:
                await self._until(lambda: len(parent.starts) > starts, "the program is started again")
            await self._ready_again(besides=target)
        strike.seconds = trio.current_time() - began

    def _worker(self, main: int) -> int:
        """A process of the program besides the main one, or the main one if there is no other."""
        return self.random.choice(sorted(processes_in(self.server.folder) - {main}) or [main])

    def _guardians(self) -> list[int]:
        """The reserve and the guardian."""
        reserve = self._parent.now["guardian"]
        return [reserve, *(pid for pid, process in processes().items() if process.parent == reserve)]

    async def _ready_again(self, *, besides: int = 0) -> None:
        await self._until(lambda: self._parent.starts, "the program is started")
        await self._until(
            partial(self._is_ready, besides), "the server works, and nothing else is left of it"
        )

    async def _is_ready(self, besides: int) -> bool:
        if not await trio.to_thread.run_sync(self.server.works):
            return False
        expected = set(below(self._parent.now["guardian"]))
        return besides not in expected and processes_in(self.server.folder) <= expected

    def _nothing_left(self) -> bool:
        return not self._left() and refuses(self.server.port)

    def _left(self) -> set[int]:
        """The processes of the server, and the guardians that the parent has started."""
        return processes_in(self.server.folder) | guardians_of(self._parent.process.pid)

    async def _end(self) -> None:
        self._parent.process.terminate()
        await self._parent.process.wait()
        assert self._nothing_left(), self._left()

    async def _until(self, true: Callable[[], object], what: str) -> None:
        with trio.move_on_after(LONGEST):
            while True:  # what other processes do gives no event
                found = true()
                if await found if hasattr(found, "__await__") else found:
                    return
                await trio.sleep(0.02)
        port = f"port {self.server.port} {'refuses' if refuses(self.server.port) else 'is open'}"
        left = f"left are {self._left()}, {port}, the last failures were {self.failures[-5:]}"
        raise AssertionError(f"{self.kind}: not within {LONGEST:g} s: {what}; {left}")
