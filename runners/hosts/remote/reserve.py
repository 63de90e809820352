"""Connections to another machine, and the standby processes there.

What starts a guardian there is a command, such as `ssh`, that carries its standard input and output.
"""

from __future__ import annotations

import importlib.metadata
import socket
import subprocess

import trio
from attrs import frozen

from runners.hosts.process import wire
from runners.hosts.process.parent import cleaner
from runners.hosts.process.parent.output import Output
from runners.hosts.process.parent.peer import Peer
from runners.hosts.process.parent.processes import Ends, Started, connected
from runners.hosts.process.parent.standby import Plan, Reserve, watched
from runners.hosts.remote.link import FarPeer, Order


@frozen(kw_only=True)
class FarPlan(Plan):
    """The settings of a reserve on another machine; `path` is the far one.

    Args:
        place: the far machine, as texts name it.
        command: its first word names the program that starts a guardian there and carries its standard input and output.
        lease: seconds that the guardian keeps a process alive without a word from here.
        connect_timeout: seconds until it has started one.
    """

    place: str
    command: tuple[str, ...]
    lease: float
    connect_timeout: float


class FarReserve(Reserve):
    """Standby processes on another machine, each with a connection and a guardian of its own."""

    def __init__(self, plan: FarPlan) -> None:
        super().__init__(plan)
        self._order = Order(
            place=plan.place,
            path=plan.path,
            version=package_version(),
            protocol=wire.PROTOCOL,
            lease=plan.lease,
        )
        self._command = plan.command
        self._connect_timeout = plan.connect_timeout

    async def _new(self, who: str, *, ahead: bool) -> FarPeer:
        peer = FarPeer(await self._carrier(), self._order, who)
        self._nursery.start_soon(peer.pump)
        try:
            await peer.start(self._connect_timeout)
        except BaseException:
            with trio.CancelScope(shield=True):
                await peer.reap(self._plan.kill_timeout)
            raise
        peer.send(self._plan.hello(ahead=ahead))
        return peer

    async def _carrier(self) -> Peer:
        """The running command. Its standard error is logged."""
        output = Output(f"{self._command[0]} to {self._order.place}")
        try:
            with connected(output, socket.SOCK_STREAM) as (connection, ends):
                carrier = await watched(Started(self._run(ends)), connection, output)
        except BaseException:
            output.close()
            raise
        self._nursery.start_soon(output.pump)
        return carrier

    def _run(self, ends: Ends) -> subprocess.Popen[bytes]:
        """Start it in a session of its own: a Ctrl-C does not reach it, and a kill reaches also what it starts."""
        return subprocess.Popen(  # noqa: S603 - The host has checked each argument.
            self._command,
            stdin=ends.connection,
            stdout=ends.connection,
            stderr=ends.errors,
            start_new_session=True,
            env=cleaner.marked(),
        )


def package_version() -> str:
    """The version of this package here, which must be that of the far side."""
    try:
        return importlib.metadata.version("trio-supervise")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
