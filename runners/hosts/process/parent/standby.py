"""The reserve between incarnations: a preloaded fork server, and standby processes (D15).

A reserve belongs to the Trio run in which it is first used. All equal hosts in that run that load the same runner share it.
It ends when it has been idle for a while, or with the run. Its processes die with ours, however ours ends (D10).
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

import msgspec
import trio
from attrs import asdict, frozen
from trio.lowlevel import RunVar, enable_ki_protection

from runners.errors import DeviceError
from runners.hosts.process import wire
from runners.hosts.process.parent.cleaner import cleaning
from runners.hosts.process.parent.connection import Connection
from runners.hosts.process.parent.forkserver import ForkServer, NoServer
from runners.hosts.process.parent.output import Output, log_event
from runners.hosts.process.parent.peer import Peer
from runners.hosts.process.parent.processes import Ends, Process, Spawned, connected, interpreter, within

_PAUSE = 0.25
"""Seconds between the load of a context and the start of a standby or a fork server, since streams may wait to continue."""
TRIES = 2
"""After so many fork servers in a row that ended before they had preloaded, no other is started."""
FIRST = 30.0
"""Seconds that the first start waits for a preload. After that it starts cold, and the preload continues."""


@frozen(kw_only=True)
class Plan:
    """The settings of a reserve. All times are in seconds.

    Args:
        name: of the runner, for log records.
        path: the `sys.path` of the processes.
        runner: the packed runner spec.
        device: the device of the runner.
        forks: whether there is a fork server.
        standby: how many processes stand ready.
        preload_timeout: for the preload of the fork server.
        kill_timeout: from the SIGKILL of a standby to its death.
        linger: how long the reserve stays ready when no session is open.
    """

    name: str
    path: tuple[str, ...]
    runner: Any
    device: str
    forks: bool
    standby: int
    preload_timeout: float
    kill_timeout: float
    linger: float

    def key(self) -> bytes:
        """A key that is equal for plans that may share a reserve."""
        path = [os.fsencode(entry) for entry in self.path]  # an entry need not be UTF-8
        return msgspec.msgpack.encode({**asdict(self, recurse=False), "path": path})

    def hello(self, *, ahead: bool, today: wire.Surroundings | None = None) -> bytes:
        """The first message to a process.

        Raises:
            ValueError: the message is too long.
        """
        return wire.encode(wire.Hello(self.runner, self.device, ahead, today))

    def checked(self) -> Self:
        """This plan, if its first message can be sent.

        Raises:
            ValueError: it cannot, because the runner spec is too long.
        """
        try:
            self.hello(ahead=False)
        except ValueError as error:
            raise ValueError(f"a {self.name} cannot be sent to another process: {error}") from None
        return self

    def preload(self) -> wire.Preload:
        """The first message to a fork server."""
        return wire.Preload(self.runner)


SomePlan = TypeVar("SomePlan", bound=Plan)
_reserves: RunVar[dict[bytes, Reserve]] = RunVar("runners.hosts.process.parent.standby")


@asynccontextmanager
async def reserved(plan: SomePlan, make: Callable[[SomePlan], Reserve]) -> AsyncGenerator[Reserve, None]:
    """A context manager: the reserve for this plan, which exists at least until it is left; `make` makes the first one."""
    reserve = _reserve(plan, make)
    reserve.hold(+1)
    try:
        await reserve.up.wait()
        yield reserve
    finally:
        reserve.hold(-1)


def _reserve(plan: SomePlan, make: Callable[[SomePlan], Reserve]) -> Reserve:
    reserves = _reserves.get({})
    _reserves.set(reserves)
    key = plan.key()
    if key not in reserves:
        reserves[key] = reserve = make(plan)
        trio.lowlevel.spawn_system_task(
            reserve.run, lambda: reserves.pop(key), name=f"reserve of {plan.name}"
        )
    return reserves[key]


class Reserve:
    """A fork server and standby processes, according to the plan."""

    def __init__(self, plan: Plan) -> None:
        self.up = trio.Event()
        self._plan = plan
        self._holders = 0
        self._changed = trio.Event()
        self._server: ForkServer | None = None
        self._failures = 0
        self._given_up = ""  # why no other server is started; empty as long as one may be
        self._warned = ""
        self._handed_out = False
        self._standbys: deque[Connection] = deque()
        self._coming = 0
        self._nursery: trio.Nursery

    def hold(self, change: int) -> None:
        """Change the number of sessions that use it, by +1 or -1."""
        self._holders += change
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, forget: Callable[[], object]) -> None:
        """Stay ready until idle for `linger` seconds, or cancelled."""
        async with cleaning(interpreter):
            try:
                async with trio.open_nursery() as self._nursery:
                    self.up.set()
                    await self._idle()
                    forget()  # before any checkpoint: a session that is opened from now on gets another reserve
                    self._nursery.cancel_scope.cancel("this reserve has been idle")
            finally:
                with trio.CancelScope(shield=True):
                    while self._standbys:  # one that is being reaped is handed out to no one
                        await self._reap(self._standbys.popleft())

    async def _idle(self) -> None:
        """Wait until no session has used it for `linger` seconds."""
        while True:
            with trio.move_on_after(self._plan.linger if not self._holders else math.inf) as patience:
                await self._changed.wait()
            if patience.cancelled_caught and not self._holders:
                return

    @enable_ki_protection
    async def take(self) -> Connection:
        """A process that has got its first message: a standby, or a new one.

        Raises:
            OSError: no process or descriptor is available.
            DeviceError: no place for one can be found.
        """
        while self._standbys:
            peer = self._standbys.popleft()
            if peer.waits:
                peer.go_on()
                return peer
            self._nursery.start_soon(self._discard, peer)
        peer = await self._new(f"new {self._plan.name}", ahead=False)
        self._handed_out = True
        return peer

    def replenish(self) -> None:
        """Start the standbys that are missing, and the fork server if it is."""
        missing = self._plan.standby - len(self._standbys) - self._coming
        for _ in range(missing):
            self._coming += 1
            self._nursery.start_soon(self._stand_by)
        if self._plan.forks and not self._given_up and (self._server is None or self._server.dead):
            self._nursery.start_soon(self._preload_again)

    @enable_ki_protection
    async def _stand_by(self) -> None:
        try:
            await trio.sleep(_PAUSE)
            self._standbys.append(await self._new(f"standby {self._plan.name}", ahead=True))
        except (OSError, DeviceError) as error:
            log_event(logging.WARNING, "no standby for %s: %s", self._plan.name, error)
        finally:
            self._coming -= 1

    @enable_ki_protection
    async def _preload_again(self) -> None:
        """Start a fork server in place of one that has died. The present recovery does not wait for its preload (D15)."""
        await trio.sleep(_PAUSE)
        if self._server is None or self._server.dead:
            with suppress(NoServer):
                self._new_server()

    @enable_ki_protection
    async def _discard(self, standby: Connection) -> None:
        """Reap a failed standby and log it. Shielded, because the standby is in no list from which `run` would reap it."""
        with trio.CancelScope(shield=True):
            fate = await standby.fate(0)
            log_event(
                logging.WARNING,
                "the standby process %d of %s failed, and %s",
                standby.pid,
                self._plan.name,
                fate,
            )
            await self._reap(standby)

    async def _reap(self, standby: Connection) -> None:
        if await standby.reap(self._plan.kill_timeout):
            log_event(
                logging.ERROR, "the standby process %d of %s does not die", standby.pid, self._plan.name
            )

    # --- new processes

    async def _new(self, who: str, *, ahead: bool) -> Connection:
        output = Output(who)
        try:
            with connected(output, socket.SOCK_STREAM) as (connection, ends):
                process, hello = await self._process(ends, ahead=ahead)
                peer = await watched(process, connection, output)
        except BaseException:
            output.close()
            raise
        peer.send(hello)
        self._nursery.start_soon(output.pump)
        return peer

    async def _process(self, ends: Ends, *, ahead: bool) -> tuple[Process, bytes]:
        """A new process, forked if possible and otherwise started cold, and its first message.

        If the changed environment does not fit into that message, the process is started cold and inherits it.
        """
        if self._plan.forks:
            try:
                server = await self._ready_server(ahead=ahead)
                hello = self._plan.hello(ahead=ahead, today=server.today())
                return await server.fork(ends), hello
            except (NoServer, ValueError) as error:
                self._warn(str(error))
        hello = self._plan.hello(ahead=ahead)
        return Spawned("runners.hosts.process.child.life", ends, self._plan.path), hello

    def _patience(self, longest: float, *, ahead: bool) -> float:
        """The seconds that a start waits for a preload: `longest` if it is that of a standby (D15).

        The first start waits for a while, as a cold start would import the same. No other start waits, because a recovery must
        not take longer than a cold start.
        """
        if ahead:
            return longest
        return 0.0 if self._handed_out else FIRST

    async def _ready_server(self, *, ahead: bool) -> ForkServer:
        """The fork server, preloaded.

        Raises:
            NoServer: the fork server does not run, or has not preloaded yet.
        """
        server = self._server
        if server is None or server.dead:
            if self._handed_out and not ahead:
                raise NoServer(
                    self._given_up or "the fork server does not run; another one is preloaded meanwhile"
                )
            server = self._new_server()
        if not server.can_fork:
            await self._preloading(server, self._patience(math.inf, ahead=ahead))
        return server

    async def _preloading(self, server: ForkServer, patience: float) -> None:
        with trio.move_on_after(patience):
            await server.preloaded()
        if not server.can_fork:
            server.dump_stack()
            raise NoServer(server.gone or "the fork server is still preloading")

    def _new_server(self) -> ForkServer:
        """Start a fork server, which begins to preload.

        Raises:
            NoServer: it cannot be started, or no other is to be tried.
        """
        if self._given_up:
            raise NoServer(self._given_up)
        plan = self._plan
        try:
            server = ForkServer(plan.preload(), f"fork server of {plan.name}", plan.path)
        except OSError as error:
            raise NoServer(f"the fork server cannot be started: {error}") from error
        self._server = server
        self._nursery.start_soon(server.run)
        self._nursery.start_soon(self._judge, server)
        return server

    @enable_ki_protection
    async def _judge(self, server: ForkServer) -> None:
        """Wait for the preload, and decide whether another server is tried if it fails.

        None is tried if the server reported why it cannot preload, if it hung, or after `TRIES` deaths in a row.
        """
        try:
            if not await within(self._plan.preload_timeout, server.preloaded):
                server.hangs(self._plan.preload_timeout)
            self._failures = 0
        except NoServer as error:
            self._failures += 1
            if server.hopeless or self._failures >= TRIES:
                self._given_up = str(error)

    def _warn(self, why: str) -> None:
        """Log the reason of a cold start, but not the same one twice in a row, as in a crash loop."""
        if why != self._warned:
            self._warned = why
            log_event(logging.WARNING, "a process for %s is started cold: %s", self._plan.name, why)


async def watched(process: Process, connection: socket.socket, output: Output) -> Peer:
    """The process as a `Peer`. If no descriptor is left for one, the process is killed and reaped."""
    try:
        return Peer(process, connection, output)
    except OSError:
        with trio.CancelScope(shield=True):
            process.kill()
            await trio.lowlevel.wait_readable(process.pidfd)
            await process.reap()
        os.close(process.pidfd)
        raise
