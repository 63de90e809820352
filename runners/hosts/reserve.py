"""What stands ready between incarnations: a preloaded fork server, and standby processes.

A reserve belongs to the Trio run in which it is first asked for, and to all hosts that are equal and load the same. It
ends when it has been idle for a while, or with the run; a process of it dies with ours however we end.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
from attrs import frozen
from trio.lowlevel import RunVar

from runners.hosts import wire
from runners.hosts.forks import ForkServer, NoServer
from runners.hosts.output import Output
from runners.hosts.peer import Peer
from runners.hosts.processes import Ends, Process, Spawned, connected

_BREATH = 0.25
"""Seconds for which one that has just loaded has the machine for itself: streams may be waiting to go on."""
_TRIES = 2
"""After so many preloads in a row that failed, there is no other try."""
_logger = logging.getLogger("runners.hosts")


@frozen(kw_only=True)
class Plan:
    """What a reserve is to do.

    Args:
        name: of the runner, for people.
        path: where to import from.
        runner: what to load, packed.
        device: for it.
        forks: whether to have a fork server.
        standby: how many processes stand ready.
        preload_timeout: for the fork server; seconds, as all times.
        kill_timeout: until a killed standby is dead.
        linger: how long to stay ready when nothing is open.
    """

    name: str
    path: list[str]
    runner: Any
    device: str
    forks: bool
    standby: int
    preload_timeout: float
    kill_timeout: float
    linger: float

    def key(self) -> bytes:
        """The same for plans of which one reserve may serve both."""
        return msgspec.msgpack.encode(self)

    def hello(self, *, ahead: bool) -> bytes:
        """What a process is told first."""
        return wire.encode(wire.Hello(self.path, self.runner, self.device, ahead))

    def preload(self) -> wire.Preload:
        """What a fork server is told first."""
        return wire.Preload(self.path, self.runner)


_reserves: RunVar[dict[bytes, Reserve]] = RunVar("runners.hosts.reserve")


@asynccontextmanager
async def reserved(plan: Plan) -> AsyncGenerator[Reserve, None]:
    """The reserve for this plan, which stays at least as long as this."""
    reserve = _reserve(plan)
    reserve.hold(+1)
    try:
        await reserve.up.wait()
        yield reserve
    finally:
        reserve.hold(-1)


def _reserve(plan: Plan) -> Reserve:
    reserves = _reserves.get({})
    _reserves.set(reserves)
    key = plan.key()
    if key not in reserves:
        reserves[key] = reserve = Reserve(plan)
        trio.lowlevel.spawn_system_task(
            reserve.run, lambda: reserves.pop(key), name=f"reserve of {plan.name}"
        )
    return reserves[key]


class Reserve:
    """A fork server and standby processes, as far as the plan wants them."""

    def __init__(self, plan: Plan) -> None:
        self.up = trio.Event()
        self._plan = plan
        self._holders = 0
        self._changed = trio.Event()
        self._server: ForkServer | None = None
        self._failures = 0
        self._starting = trio.Lock()
        self._standbys: deque[Peer] = deque()
        self._coming = 0
        self._nursery: trio.Nursery

    def hold(self, change: int) -> None:
        """One more or one less needs it."""
        self._holders += change
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, forget: Callable[[], object]) -> None:
        """Stand ready until idle for long enough, or cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self.up.set()
                await self._idle()
                forget()  # at once: who asks from now on gets another
                self._nursery.cancel_scope.cancel("this reserve has been idle")
        finally:
            with trio.CancelScope(shield=True):
                for standby in self._standbys:
                    await self._bury(standby)

    async def _idle(self) -> None:
        """Until nobody has needed it for so long."""
        while True:
            with trio.move_on_after(self._plan.linger if not self._holders else math.inf) as patience:
                await self._changed.wait()
            if patience.cancelled_caught and not self._holders:
                return

    async def take(self) -> Peer:
        """A process that has been told what to load: one that stands by, or a new one.

        Raises:
            OSError: no process or descriptor is to be had.
        """
        while self._standbys:
            peer = self._standbys.popleft()
            if peer.waits:
                return peer
            self._nursery.start_soon(self._discard, peer)
        return await self._new(f"new {self._plan.name}", ahead=False)

    def replenish(self) -> None:
        """Have as many stand by as are wanted."""
        missing = self._plan.standby - len(self._standbys) - self._coming
        for _ in range(missing):
            self._coming += 1
            self._nursery.start_soon(self._stand_by)

    async def _stand_by(self) -> None:
        try:
            await trio.sleep(_BREATH)
            self._standbys.append(await self._new(f"standby {self._plan.name}", ahead=True))
        except OSError as error:
            _logger.warning("no standby for %s: %s", self._plan.name, error)
        finally:
            self._coming -= 1

    async def _discard(self, standby: Peer) -> None:
        """Bury one that has failed, and say so."""
        fate = await standby.told(0)
        _logger.warning("the standby process %d of %s failed, and %s", standby.pid, self._plan.name, fate)
        with trio.CancelScope(shield=True):
            await self._bury(standby)

    async def _bury(self, standby: Peer) -> None:
        if await standby.bury(self._plan.kill_timeout):
            _logger.error("the standby process %d of %s does not die", standby.pid, self._plan.name)

    # --- new processes

    async def _new(self, who: str, *, ahead: bool) -> Peer:
        output = Output(who)
        try:
            with connected(output, socket.SOCK_STREAM) as (connection, ends):
                peer = await _watched(await self._process(ends), connection, output)
        except BaseException:
            output.close()
            raise
        peer.send(self._plan.hello(ahead=ahead))
        self._nursery.start_soon(output.pump)
        return peer

    async def _process(self, ends: Ends) -> Process:
        """Forked if that is wanted and possible, or else started cold."""
        if self._plan.forks:
            try:
                server = await self._forking_server()
                return await server.fork(ends)
            except NoServer as error:
                _logger.warning("a process for %s is started cold: %s", self._plan.name, error)
        return Spawned("runners.hosts.child", ends)

    async def _forking_server(self) -> ForkServer:
        """The fork server, ready; a dead one is replaced.

        Raises:
            NoServer: it is not to be.
        """
        async with self._starting:
            if self._server is None or self._server.dead:
                self._server = self._new_server()
            try:
                await self._server.ready(self._plan.preload_timeout)
            except NoServer:
                self._failures += 1
                raise
            self._failures = 0
            return self._server

    def _new_server(self) -> ForkServer:
        if self._failures >= _TRIES:
            raise NoServer(f"the fork server failed {_TRIES} times")
        try:
            server = ForkServer(self._plan.preload(), f"fork server of {self._plan.name}")
        except OSError as error:
            raise NoServer(f"the fork server cannot be started: {error}") from error
        self._nursery.start_soon(server.run)
        return server


async def _watched(process: Process, connection: socket.socket, output: Output) -> Peer:
    """The process as a peer, or no process."""
    try:
        return Peer(process, connection, output)
    except OSError:
        with trio.CancelScope(shield=True):
            process.kill()
            await trio.lowlevel.wait_readable(process.pidfd)
            await process.reap()
        os.close(process.pidfd)
        raise
