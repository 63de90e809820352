"""Serve the operating app of a tree at a socket that listens already, until the tree has ended."""

from __future__ import annotations

import resource
import socket
from collections.abc import Collection
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from .._trio.tree import Tree
from .app import operating_app
from .observers import Observers

_LAST_SECONDS = 1.0
"""For readers of events to get the last ones, after the tree has ended."""
_MOST_CONNECTIONS = 250
"""At a time; further ones wait until another one has ended."""


async def serve(
    tree: Tree,
    observers: Observers,
    listener: socket.socket,
    *,
    token: str | None = None,
    trusted: bool = True,
    required: Collection[str] = (),
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until this task is cancelled; then readers of events get what there is, for a second at most.

    Args:
        listener: that listens; the caller closes it.
        tree: see `operating_app`, as for the other arguments.
        observers: the sinks of that tree; its history is closed at the end.
        token: likewise.
        trusted: likewise.
        required: likewise.
        task_status: called once requests are served.
    """
    config = Config()
    config.errorlog = config.accesslog = None
    config.include_server_header = False
    app = operating_app(
        tree,
        observers.history,
        token=token,
        trusted=trusted,
        required=required,
        metrics=observers.expose,
    )
    observers.history.open()
    connections = _Connections(app, config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connections.run, listener)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            observers.history.close()
            connections.end()


class _Connections:
    """The connections at one socket, each served by hypercorn.

    Not `hypercorn.trio.serve`: it accepts connections until the program has no file left, and its end waits for every client that
    does not read.
    """

    def __init__(self, app: Any, config: Config) -> None:
        self._app = ASGIWrapper(app)
        self._config = config
        self._context = WorkerContext(None)
        self._streams: set[trio.SocketStream] = set()
        self._room = trio.Semaphore(_most_connections())
        self._accepting = trio.CancelScope()

    async def run(self, listener: socket.socket) -> None:
        """Serve until `end` is called, even if this task is cancelled."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as around:
                async with trio.open_nursery() as nursery:
                    with self._accepting:
                        await self._accept(
                            trio.SocketListener(trio.socket.from_stdlib_socket(listener)), nursery
                        )
                    await self._context.terminated.set()
                    around.start_soon(self._close_all, nursery.cancel_scope)
                around.cancel_scope.cancel("all connections are closed")

    def end(self) -> None:
        """Accept no more. Those that are idle are closed now, and all others after a second."""
        self._accepting.cancel("the tree has ended")

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        while True:
            await self._room.acquire()
            try:
                stream = await listener.accept()
            except OSError:  # the program has no file left for a connection
                self._room.release()
                await trio.sleep(0.1)
            else:
                nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: Any) -> None:  # hypercorn's types know only streams with TLS
        self._streams.add(stream)
        try:
            await _Connection(self._app, self._config, self._context, ConnectionState({}), stream)
        except Exception:  # noqa: BLE001, S110 - A client that breaks the protocol may break its own connection, and no other.
            pass
        finally:
            self._streams.discard(stream)
            self._room.release()

    async def _close_all(self, served: trio.CancelScope) -> None:
        """Hypercorn shields what it sends, so a client that does not read would keep it for ever: its socket is closed too."""
        await trio.sleep(_LAST_SECONDS)
        for stream in self._streams:
            stream.socket.close()
        served.cancel("the tree has ended")


class _Connection(TCPServer):
    """A connection whose file is given back once its client has left, not when it would have been idle for too long."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def _most_connections() -> int:
    """A part of the files that this program may open: the others are for the tree."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(_MOST_CONNECTIONS, soft // 4))
