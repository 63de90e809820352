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
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import trio
from attrs import asdict, frozen
from trio.lowlevel import RunVar, enable_ki_protection

from runners.hosts.process import wire
from runners.hosts.process.parent.births import Ends, Process, Spawned, connected, interpreter, within
from runners.hosts.process.parent.cleaner import cleaning
from runners.hosts.process.parent.forkserver import ForkServer, NoServer
from runners.hosts.process.parent.output import Output, tell
from runners.hosts.process.parent.peer import Peer

_BREATH = 0.25
"""Seconds for which one that has just loaded has the machine for itself: streams may be waiting to go on."""
_TRIES = 2
"""After so many fork servers in a row that ended before they had preloaded, there is no other try."""
_FIRST = 30.0
"""Seconds that the first start waits for a preload, which may go on beside it."""


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
    path: tuple[str, ...]
    runner: Any
    device: str
    forks: bool
    standby: int
    preload_timeout: float
    kill_timeout: float
    linger: float

    def key(self) -> bytes:
        """The same for plans of which one reserve may serve both."""
        path = [os.fsencode(entry) for entry in self.path]  # which need not be UTF-8
        return msgspec.msgpack.encode({**asdict(self, recurse=False), "path": path})

    def hello(self, *, ahead: bool, today: wire.Surroundings | None = None) -> bytes:
        """What a process is told first.

        Raises:
            ValueError: it is too long.
        """
        return wire.encode(wire.Hello(self.runner, self.device, ahead, today))

    def preload(self) -> wire.Preload:
        """What a fork server is told first."""
        return wire.Preload(self.runner)


_reserves: RunVar[dict[bytes, Reserve]] = RunVar("runners.hosts.process.parent.standby")


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
        self._hopeless = ""  # or why there is to be no other server
        self._warned = ""
        self._handed_out = False
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
        async with cleaning(interpreter):
            try:
                async with trio.open_nursery() as self._nursery:
                    self.up.set()
                    await self._idle()
                    forget()  # at once: who asks from now on gets another
                    self._nursery.cancel_scope.cancel("this reserve has been idle")
            finally:
                with trio.CancelScope(shield=True):
                    for standby in self._standbys:
                        await self._reap(standby)

    async def _idle(self) -> None:
        """Until nobody has needed it for so long."""
        while True:
            with trio.move_on_after(self._plan.linger if not self._holders else math.inf) as patience:
                await self._changed.wait()
            if patience.cancelled_caught and not self._holders:
                return

    @enable_ki_protection
    async def take(self) -> Peer:
        """A process that has been told what to load: one that stands by, or a new one.

        Raises:
            OSError: no process or descriptor is to be had.
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
        """Have as many stand by as are wanted, and a fork server."""
        missing = self._plan.standby - len(self._standbys) - self._coming
        for _ in range(missing):
            self._coming += 1
            self._nursery.start_soon(self._stand_by)
        if self._plan.forks and not self._hopeless and (self._server is None or self._server.dead):
            self._nursery.start_soon(self._preload_again)

    @enable_ki_protection
    async def _stand_by(self) -> None:
        try:
            await trio.sleep(_BREATH)
            self._standbys.append(await self._new(f"standby {self._plan.name}", ahead=True))
        except OSError as error:
            tell(logging.WARNING, "no standby for %s: %s", self._plan.name, error)
        finally:
            self._coming -= 1

    @enable_ki_protection
    async def _preload_again(self) -> None:
        """In place of a server that has died: a recovery does not wait for its preload, the next one finds it done."""
        await trio.sleep(_BREATH)
        if self._server is None or self._server.dead:
            with suppress(NoServer):
                self._new_server()

    @enable_ki_protection
    async def _discard(self, standby: Peer) -> None:
        """Reap a failed standby and log it, shielded: it is in no list any more, so nobody else would reap it."""
        with trio.CancelScope(shield=True):
            fate = await standby.told(0)
            tell(
                logging.WARNING,
                "the standby process %d of %s failed, and %s",
                standby.pid,
                self._plan.name,
                fate,
            )
            await self._reap(standby)

    async def _reap(self, standby: Peer) -> None:
        if await standby.reap(self._plan.kill_timeout):
            tell(logging.ERROR, "the standby process %d of %s does not die", standby.pid, self._plan.name)

    # --- new processes

    async def _new(self, who: str, *, ahead: bool) -> Peer:
        output = Output(who)
        try:
            with connected(output, socket.SOCK_STREAM) as (connection, ends):
                process, hello = await self._process(ends, ahead=ahead)
                peer = await _watched(process, connection, output)
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
                server = await self._ready_server(patient=ahead)
                hello = self._plan.hello(ahead=ahead, today=server.today())
                return await server.fork(ends), hello
            except (NoServer, ValueError) as error:
                self._warn(str(error))
        hello = self._plan.hello(ahead=ahead)
        return Spawned("runners.hosts.process.child.life", ends, self._plan.path), hello

    async def _ready_server(self, *, patient: bool) -> ForkServer:
        """The fork server, preloaded.

        Only what stands by waits as long as a preload may take, and the first start for a while, as it would have to import
        anyway. Nobody else waits: a recovery must not take longer than a cold start (D15).

        Raises:
            NoServer: there is none, or not yet.
        """
        server = self._server
        if server is None or server.dead:
            if self._handed_out and not patient:
                raise NoServer(self._hopeless or "there is no fork server; one is preloaded meanwhile")
            server = self._new_server()
        if not server.can_fork:
            patience = math.inf if patient else 0.0 if self._handed_out else _FIRST
            await self._preloading(server, patience)
        return server

    async def _preloading(self, server: ForkServer, patience: float) -> None:
        with trio.move_on_after(patience):
            await server.preloaded()
        if not server.can_fork:
            server.tell_where()
            raise NoServer(server.gone or "the fork server is still preloading")

    def _new_server(self) -> ForkServer:
        """One that begins to preload.

        Raises:
            NoServer: there can be none.
        """
        if self._hopeless:
            raise NoServer(self._hopeless)
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
        """Whether another server is worth a try, should this one not preload: where it says so itself, or hangs, it is not."""
        try:
            if not await within(self._plan.preload_timeout, server.preloaded):
                server.hangs(self._plan.preload_timeout)
            self._failures = 0
        except NoServer as error:
            self._failures += 1
            if server.hopeless or self._failures >= _TRIES:
                self._hopeless = str(error)

    def _warn(self, why: str) -> None:
        """Once for each reason: a crash loop need not repeat it with each start."""
        if why != self._warned:
            self._warned = why
            tell(logging.WARNING, "a process for %s is started cold: %s", self._plan.name, why)


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
