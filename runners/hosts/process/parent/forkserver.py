"""The parent's end of a fork server: it asks for processes, and is told of their birth and their end."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress

import trio
from attrs import define, field
from trio.lowlevel import enable_ki_protection

from runners.errors import ProtocolError
from runners.hosts.process import surroundings, wire
from runners.hosts.process.parent import cleaner
from runners.hosts.process.parent.births import (
    Ends,
    Spawned,
    connected,
    fate,
    is_readable,
    outlived,
    reap_group,
    within,
)
from runners.hosts.process.parent.output import Output, tell

_DATAGRAM = 65_536
_ANSWER = 5.0
"""Seconds that a fork may take."""
_NEWS = 1.0
"""Seconds that the news of a death may take, once the process is dead: a stream may be waiting to go on."""
_DEATH = 10.0


class NoServer(Exception):
    """There is no fork server that would do: its text says why."""


@define(eq=False)
class _Asked:
    """A process that is asked for, from then to its end."""

    process: Forked | None = None
    refused: OSError | None = None
    left: bool = False  # nobody wants it any more
    answered: trio.Event = field(factory=trio.Event)


class ForkServer:
    """A running fork server, as long as its `run` does. When it dies, its processes do, and who waits gets `NoServer`."""

    def __init__(self, preload: wire.Preload, who: str, path: Sequence[str]) -> None:
        """Start it; see `Spawned`.

        Raises:
            OSError: no process or descriptor is to be had, or there is too much to say.
        """
        self.gone: str | None = None  # why it is
        self.hopeless = False  # another one would fail likewise
        self._environment = surroundings.environment()
        self._numbers = itertools.count()
        self._asked: dict[int, _Asked] = {}
        self._preloaded = trio.Event()
        self._output = Output(who)
        try:
            with connected(self._output, socket.SOCK_SEQPACKET) as (self._control, ends):
                self._control.send(wire.datagram(preload))
                self._process = Spawned("runners.hosts.process.child.forkserver", ends, path)
        except OSError:
            self._output.close()
            raise
        self.pid = self._output.pid = self._process.pid
        self._name = f"the fork server {self.pid}"

    @enable_ki_protection  # as all tasks below a system task, which a KeyboardInterrupt would take down with the whole run
    async def run(self) -> None:
        """Listen until it is dead. Cancelling this ends it; it has ended and is reaped when this returns."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._output.pump)
                nursery.start_soon(self._listen)
                await trio.lowlevel.wait_readable(self._process.pidfd)
                nursery.cancel_scope.cancel("the fork server is dead")
        finally:
            with trio.CancelScope(shield=True):
                await self._end()

    async def _end(self) -> None:
        self._process.kill()
        if await outlived(self._process, _DEATH):
            tell(logging.ERROR, "%s has outlived SIGKILL by %g s", self._name, _DEATH)
        else:
            self._hear()  # its last words
            await self._output.drain()
            self._over(f"{self._name} {self._process.fate()}")
            await self._process.reap()
        self._over(f"{self._name} does not die")
        self._output.close()
        self._control.close()
        os.close(self._process.pidfd)

    @property
    def can_fork(self) -> bool:
        """Whether it has preloaded, and lives."""
        return self._preloaded.is_set() and not self.dead

    async def preloaded(self) -> None:
        """Until it can fork.

        Raises:
            NoServer: it is not to be.
        """
        await self._preloaded.wait()
        if self.gone is not None:
            raise NoServer(self.gone)

    def tell_where(self) -> None:
        """Have it say what it is at, while it preloads."""
        if not self.dead:
            self._process.tell_where()

    def hangs(self, seconds: float) -> None:
        """It has not preloaded in time, and is killed; another would do no better.

        Raises:
            NoServer: always.
        """
        self.hopeless = True
        self.kill(f"{self._name} preloaded nothing within {seconds:g} s")
        raise NoServer(self.gone)

    def today(self) -> wire.Surroundings:
        """The surroundings that a process forked now must adopt, since they differ, or may differ, from the server's."""
        return surroundings.today(self._environment)

    async def fork(self, ends: Ends) -> Forked:
        """A new process. Cannot be cancelled: it takes milliseconds, and a server that does not answer is killed.

        Raises:
            NoServer: there is none.
            OSError: there is no descriptor left for it; it ends by itself.
        """
        number, asked = next(self._numbers), _Asked()
        self._asked[number] = asked
        self._ask(number, ends)
        try:
            with trio.CancelScope(shield=True):
                await within(_ANSWER, asked.answered.wait)
        except KeyboardInterrupt:  # no shield holds one off
            asked.left = True
            if asked.process is not None:
                asked.process.kill()
                os.close(asked.process.pidfd)
            raise
        if not asked.answered.is_set():
            self.kill(f"{self._name} did not fork within {_ANSWER:g} s")
        if asked.refused is not None:
            raise asked.refused
        if asked.process is None:
            raise NoServer(self.gone or f"{self._name} could not fork")
        return asked.process

    def _ask(self, number: int, ends: Ends) -> None:
        descriptors = [ends.connection, ends.output, ends.errors]
        try:
            socket.send_fds(
                self._control, [wire.datagram(wire.Fork(number))], descriptors, socket.MSG_NOSIGNAL
            )
        except OSError as error:  # full: it has stopped; broken: it is dead
            self.kill(f"{self._name} takes no orders: {error}")

    @property
    def dead(self) -> bool:
        """Whether it is, or will be at once."""
        return self.gone is not None or is_readable(self._process.pidfd)

    def kill(self, why: str) -> None:
        """It is of no more use, and its processes end with it. Never blocks."""
        if self.gone is None:
            self._process.kill()
            self._over(why)

    def _over(self, why: str) -> None:
        if self.gone is not None:
            return
        self.gone = why
        self._preloaded.set()
        for asked in self._asked.values():
            if asked.process is not None:
                asked.process.orphaned()
            asked.answered.set()
        self._asked.clear()

    # --- what it says

    @enable_ki_protection
    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._control)
            if not self._hear():
                return

    def _hear(self) -> bool:
        """Take what it has said; whether it may say more."""
        try:
            while self._take():
                pass
        except BlockingIOError:
            return True
        except (ProtocolError, ConnectionResetError) as error:
            self.kill(f"{self._name}: {error}")
        return False

    def _take(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, _DATAGRAM, 1, socket.MSG_CMSG_CLOEXEC)
        try:
            if data:
                self._note(wire.from_server(data), descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return bool(data)

    def _note(self, frame: wire.FromServer, descriptors: list[int]) -> None:
        match frame:
            case wire.Preloaded():
                self._preloaded.set()
            case wire.NotPreloaded(reason=reason):
                self.hopeless = True
                self._over(f"{self._name} could not preload: {reason}")
            case wire.Forked(number=number) if number in self._asked:
                self._born(self._asked[number], frame.pid, descriptors)
            case wire.Exited(number=number):
                self._ended(self._asked.pop(number, None), frame)
            case _:
                raise ProtocolError(f"an unexpected {type(frame).__name__} frame")

    def _born(self, asked: _Asked, pid: int, descriptors: list[int]) -> None:
        """It is there; but where we have no descriptor left the kernel has dropped its pidfd, and we let it go again.

        So we do if nobody waits for it any more: it finds its connection closed, and ends, and its pidfd is closed here.
        """
        if asked.left:
            return
        if descriptors:
            asked.process = Forked(self, pid, descriptors.pop())
            cleaner.note_birth(pid)
        else:  # it finds its connection closed, and ends
            asked.refused = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        asked.answered.set()

    def _ended(self, asked: _Asked | None, frame: wire.Exited) -> None:
        """One has ended, or could not be made."""
        if asked is None:  # it is not ours any more
            return
        if asked.process is not None:
            asked.process.ended(fate(killed=frame.killed, status=frame.status))
        asked.answered.set()


class Forked:
    """A process of a fork server's, which reaps it and tells how it ended."""

    def __init__(self, server: ForkServer, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._server = server
        self._fate: str | None = None
        self._told = trio.Event()

    @property
    def doomed(self) -> bool:
        """See `Process.doomed`: it depends on its server."""
        return self._server.dead

    def kill(self) -> None:
        """See `Process.kill`: the server kills what it leaves behind, before it reaps it."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def told(self) -> None:
        """See `Process.told`. A server that says nothing is killed."""
        if not await within(_NEWS, self._told.wait):
            self._server.kill(f"the fork server {self._server.pid} reaps nobody")

    def fate(self) -> str:
        """See `Process.fate`."""
        return self._fate or "closed its connection"

    async def reap(self) -> None:
        """See `Process.reap`: the server has done it once it tells. That of a dead server falls to init, which we may be."""
        await self.told()
        await reap_group(self.pid)
        cleaner.note_end(self.pid)

    def ended(self, how: str) -> None:
        """It is reaped."""
        self._fate = how
        self._told.set()

    def orphaned(self) -> None:
        """The server is gone, so the kernel kills it; what it has started is ours to kill."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.ended("ended with its fork server")
