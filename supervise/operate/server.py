"""Serve the operating app of a tree at a socket that listens already, until the tree has ended."""

from __future__ import annotations

import socket
from collections.abc import Collection
from contextlib import suppress
from typing import Any, cast

import hypercorn.config
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from .._trio.tree import Tree
from .app import operating_app
from .observers import Observers

_LAST_SECONDS = 1.0
"""For readers of events to get the last ones, after the tree has ended."""


async def serve(
    tree: Tree,
    observers: Observers,
    listener: socket.socket,
    *,
    token: str | None = None,
    trusted: bool = True,
    required: Collection[str] = (),
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until this task is cancelled; then readers of events get what there is, for a second at most.

    Args:
        listener: that listens; it is closed at the end.
        tree: see `operating_app`, as for the other arguments.
        observers: the sinks of that tree; its history is open meanwhile.
        token: likewise.
        trusted: likewise.
        required: likewise.
        task_status: called once requests are served.
    """
    app: Any = operating_app(
        tree,
        observers.history,
        token=token,
        trusted=trusted,
        required=required,
        metrics=observers.expose,
    )
    config = hypercorn.config.Config()
    config.errorlog = config.accesslog = None
    config.include_server_header = False
    observers.history.open()
    connections = _Connections(app, config)
    async with trio.open_nursery() as nursery:
        handlers = await nursery.start(connections.hold)
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        try:
            await trio.serve_listeners(
                connections.serve, [accepting], handler_nursery=handlers, task_status=task_status
            )
        finally:
            observers.history.close()
            connections.stop.set()


class _Connections:
    """The connections of one server, each served by Hypercorn.

    Hypercorn's own server cannot be stopped while a client does not read: its writes are shielded against cancellation. So the
    sockets are known here, and shut down in the end, which makes such a write fail.
    """

    def __init__(self, app: Any, config: hypercorn.config.Config) -> None:
        self.stop = trio.Event()
        self._app = ASGIWrapper(app)
        self._config = config
        self._context = WorkerContext(None)
        self._open: set[trio.SocketStream] = set()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection."""
        self._open.add(stream)
        try:
            await TCPServer(self._app, self._config, self._context, ConnectionState({}), cast("Any", stream))
        finally:
            self._open.discard(stream)

    async def hold(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Give the nursery of the connections, which ends soon after the stop and not before, whoever cancels this."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as watching:
                watching.start_soon(self._cut)
                async with trio.open_nursery() as handlers:
                    task_status.started(handlers)
                    await self.stop.wait()
                    await self._context.terminated.set()
                    handlers.cancel_scope.deadline = trio.current_time() + _LAST_SECONDS
                watching.cancel_scope.cancel("all connections are closed")

    async def _cut(self) -> None:
        await self.stop.wait()
        await trio.sleep(_LAST_SECONDS)
        for stream in self._open:
            with suppress(OSError):  # the client was faster
                stream.socket.shutdown(socket.SHUT_RDWR)
