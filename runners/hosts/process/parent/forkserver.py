"""The parent's end of a fork server: it requests processes, and receives reports of their start and their end."""

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
from runners.hosts.process.parent.output import Output, log_event
from runners.hosts.process.parent.processes import (
    UNREACHABLE,
    Ends,
    Spawned,
    connected,
    fate,
    is_readable,
    outlived,
    reap_group,
    within,
)

_DATAGRAM = 65_536
_ANSWER = 5.0
"""Seconds that a fork may take."""
_REPORT = 1.0
"""Seconds from the death of a process to the server's report of it. It is short, since streams may wait to continue."""
_DEATH = 10.0
_REFUSED = frozenset((errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))
"""The errors of a request that the kernel refuses for lack of memory, or while too many descriptors are on their way: the server is sound."""


class NoServer(Exception):
    """There is no fork server that can fork now. The text gives the reason."""


@define(eq=False)
class _Requested:
    """A process from the request for it to its end."""

    process: Forked | None = None
    refused: OSError | None = None
    left: bool = False  # whether the requester was interrupted
    answered: trio.Event = field(factory=trio.Event)


class ForkServer:
    """A fork server, which runs as long as `run` does. If it dies, its processes die, and waiting tasks get `NoServer`."""

    def __init__(self, preload: wire.Preload, who: str, path: Sequence[str]) -> None:
        """Start it; see `Spawned`.

        Raises:
            OSError: no process or descriptor is available, or the first message is too long.
        """
        self.gone: str | None = None  # why it cannot be used; None as long as it can
        self.hopeless = False  # whether another server would fail in the same way
        self._environment = surroundings.environment()
        self._numbers = itertools.count()
        self._requested: dict[int, _Requested] = {}
        self._preloaded = trio.Event()
        self._output = Output(who)
        try:
            with connected(self._output, socket.SOCK_SEQPACKET) as (self._control, ends):
                self._control.send(wire.datagram(preload))
                self._process = Spawned("runners.hosts.process.child.forkserver", ends, path)
        except BaseException:
            self._output.close()
            raise
        self.pid = self._output.pid = self._process.pid
        self._name = f"the fork server {self.pid}"

    @enable_ki_protection  # it runs below a system task: a KeyboardInterrupt in it would end the whole Trio run
    async def run(self) -> None:
        """Handle its reports until it is dead. Cancelling this kills it. When this returns, it is reaped."""
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
        with suppress(OSError):  # it is dead; if it may not be killed, it ends with its connection
            self._control.shutdown(socket.SHUT_WR)
        if await outlived(self._process, _DEATH):
            log_event(logging.ERROR, "%s has outlived SIGKILL by %g s", self._name, _DEATH)
        else:
            self._receive()  # the reports that it sent before its death
            await self._output.drain()
            self._over(f"{self._name} {self._process.fate()}")
            await self._process.reap()
        self._over(f"{self._name} does not die")
        self._output.close()
        self._control.close()
        os.close(self._process.pidfd)

    @property
    def can_fork(self) -> bool:
        """Whether it has preloaded and is alive."""
        return self._preloaded.is_set() and not self.dead

    async def preloaded(self) -> None:
        """Wait until it can fork.

        Raises:
            NoServer: it failed to preload, or died.
        """
        await self._preloaded.wait()
        if self.gone is not None:
            raise NoServer(self.gone)

    def dump_stack(self) -> None:
        """Have it write its Python stack to standard error, while it preloads."""
        if not self.dead:
            self._process.dump_stack()

    def hangs(self, seconds: float) -> None:
        """It has not preloaded in time: kill it. Another server would hang as well.

        Raises:
            NoServer: always.
        """
        self.hopeless = True
        self.kill(f"{self._name} preloaded nothing within {seconds:g} s")
        raise NoServer(self.gone)

    def today(self) -> wire.Surroundings:
        """The surroundings that a process forked now must adopt, because those of the server differ or may differ."""
        return surroundings.today(self._environment)

    async def fork(self, ends: Ends) -> Forked:
        """Fork a process. Cannot be cancelled: it takes milliseconds, and a server that does not answer is killed.

        Raises:
            NoServer: the server is dead, or could not fork.
            OSError: there is no descriptor left for the process, which then ends by itself.
        """
        number, asked = next(self._numbers), _Requested()
        self._requested[number] = asked
        self._request(number, ends)
        try:
            with trio.CancelScope(shield=True):
                await within(_ANSWER, asked.answered.wait)
        except KeyboardInterrupt:  # a shield does not defer it
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

    def _request(self, number: int, ends: Ends) -> None:
        descriptors = [ends.connection, ends.output, ends.errors]
        try:
            socket.send_fds(
                self._control, [wire.datagram(wire.Fork(number))], descriptors, socket.MSG_NOSIGNAL
            )
        except OSError as error:
            why = f"{self._name} takes no requests: {error}"
            if error.errno in _REFUSED:
                del self._requested[number]
                raise NoServer(why) from error
            self.kill(why)  # the socket is full since the server is stopped, or broken since it is dead

    @property
    def dead(self) -> bool:
        """Whether it is dead, or has been killed."""
        return self.gone is not None or is_readable(self._process.pidfd)

    def kill(self, why: str) -> None:
        """Kill it, and its processes with it. `why` is the reason in `gone`. Never blocks."""
        if self.gone is None:
            self._process.kill()
            self._over(why)

    def _over(self, why: str) -> None:
        if self.gone is not None:
            return
        self.gone = why
        self._preloaded.set()
        for asked in self._requested.values():
            if asked.process is not None:
                asked.process.orphaned()
            asked.answered.set()
        self._requested.clear()

    # --- its reports

    @enable_ki_protection
    async def _listen(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._control)
            if not self._receive():
                return

    def _receive(self) -> bool:
        """Handle the reports that have come; returns whether more may come."""
        try:
            while self._take():
                pass
        except BlockingIOError:
            return True
        except (ProtocolError, OSError) as error:
            # Any other error is the end of the connection, as for `Peer`.
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
            case wire.Forked(number=number) if number in self._requested:
                self._on_forked(self._requested[number], frame.pid, descriptors)
            case wire.Exited(number=number):
                self._on_exited(self._requested.pop(number, None), frame)
            case _:
                raise ProtocolError(f"an unexpected {type(frame).__name__} frame")

    def _on_forked(self, asked: _Requested, pid: int, descriptors: list[int]) -> None:
        """The process was forked.

        If this process has no descriptor left, the kernel has dropped the pidfd, and the request fails. If the requester
        has left, `_take` closes the pidfd. In both cases the process finds its connection closed, and ends.
        """
        if asked.left:
            return
        if descriptors:
            asked.process = Forked(self, pid, descriptors.pop())
            cleaner.note_birth(pid)
        else:
            asked.refused = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        asked.answered.set()

    def _on_exited(self, asked: _Requested | None, frame: wire.Exited) -> None:
        """A process has ended, or could not be forked."""
        if asked is None:
            return
        if asked.process is not None:
            asked.process.ended(fate(killed=frame.killed, status=frame.status))
        asked.answered.set()


class Forked:
    """A process that a fork server has forked. The server reaps it, and reports how it ended."""

    def __init__(self, server: ForkServer, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._server = server
        self._fate: str | None = None
        self._reported = trio.Event()  # the server has reported its end

    @property
    def doomed(self) -> bool:
        """See `Process.doomed`. The kernel kills it when its server dies."""
        return self._server.dead

    def kill(self) -> None:
        """See `Process.kill`. Before the server reaps it, it kills the processes that it has started."""
        with suppress(*UNREACHABLE):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def fate_known(self) -> None:
        """See `Process.fate_known`. A server that reports nothing is killed."""
        if not await within(_REPORT, self._reported.wait):
            self._server.kill(f"the fork server {self._server.pid} does not report a death")

    def fate(self) -> str:
        """See `Process.fate`."""
        return self._fate or "closed its connection"

    async def reap(self) -> None:
        """See `Process.reap`. The server reaps it, and then reports its end.

        If the server is dead, init reaps the process; if we are init, `reap_group` does.
        """
        await self.fate_known()
        await reap_group(self.pid)
        cleaner.note_end(self.pid)

    def ended(self, how: str) -> None:
        """The server has reaped it."""
        self._fate = how
        self._reported.set()

    def orphaned(self) -> None:
        """The server is dead, so the kernel kills the process; we kill the processes that it has started."""
        with suppress(*UNREACHABLE):
            os.killpg(self.pid, signal.SIGKILL)
        self.ended("ended with its fork server")
