"""The connections at a socket that listens already, each served by Hypercorn."""

from __future__ import annotations

import resource
import select
import socket
from contextlib import suppress
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from trio.lowlevel import enable_ki_protection

from .._trio.protect import protected

LEFT_SECONDS = 5.0
"""The time in which what a client has begun must end after the client has left."""
_LOOK = 1.0
# Beside the events that are always reported, such as the end of both directions.
_LEFT = getattr(select, "POLLRDHUP", 0)


@protected
class Connections:
    """The connections at one socket.

    Not `hypercorn.trio.serve`: there a client that breaks the protocol may end the server for all clients, the server accepts
    connections until the program has no file left, and its end waits for every client that does not read.

    Its methods and the app run protected from KeyboardInterrupt: Hypercorn swallows what an app raises, and one between two lines
    of a scope could leave it open.

    Args:
        app: an ASGI app that needs no lifespan; it gets no websocket.
        config: of Hypercorn; its addresses and its times for the end are not used.
        most: how many connections may be open at a time; further ones wait until another one has ended.
    """

    def __init__(self, app: Any, config: Config, *, most: int) -> None:
        self._app = ASGIWrapper(_without_websockets(app))
        self._config = config
        self._context = WorkerContext(None)
        self._open: set[_Connection] = set()
        self._room = trio.Semaphore(most)
        self._accepting = trio.CancelScope()

    async def run(self, listener: socket.socket) -> None:
        """Serve until `end` has been called and all connections have ended. If this is cancelled, they end at once.

        The listener is closed as soon as no more are accepted.
        """
        async with trio.open_nursery() as around:
            around.start_soon(self._close_if_cancelled)
            around.start_soon(self._watch_for_leavers)
            async with trio.open_nursery() as nursery:
                async with trio.SocketListener(trio.socket.from_stdlib_socket(listener)) as accepting:
                    with self._accepting:
                        await self._accept(accepting, nursery)
                await self._context.terminated.set()
            around.cancel_scope.cancel("all connections have ended")

    def end(self) -> None:
        """Accept no more. Those that are idle are closed now, and each other one with its answer."""
        self._accepting.cancel("the server is being stopped")

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
        connection = _Connection(self._app, self._config, self._context, ConnectionState({}), stream)
        self._open.add(connection)
        try:
            # A client that breaks the protocol may break its own connection, and no other.
            with suppress(Exception), connection.scope:
                await connection.run()
        finally:
            self._open.discard(connection)
            stream.socket.close()  # hypercorn does not, if it is cancelled
            self._room.release()

    async def _watch_for_leavers(self) -> None:
        """End what clients have left behind.

        Hypercorn does not read while it waits for its app, and sometimes waits for ever: for room in a stream of HTTP/2 whose
        client has left, or behind a request that was sent before the answer to the last one.
        """
        while True:
            await trio.sleep(_LOOK)
            poll, by_file = select.poll(), {each.stream.socket.fileno(): each for each in self._open}
            for file in by_file.keys() - {-1}:
                poll.register(file, _LEFT)
            left = [each for each in self._open if each.stream.socket.fileno() == -1]
            for connection in [*left, *(by_file[file] for file, _ in poll.poll(0))]:
                connection.scope.deadline = min(connection.scope.deadline, trio.current_time() + LEFT_SECONDS)

    async def _close_if_cancelled(self) -> None:
        """Hypercorn shields what it sends, so a client that does not read would keep it for ever: its socket is closed too."""
        try:
            await trio.sleep_forever()
        finally:
            for connection in self._open:
                connection.stream.socket.close()


@protected
class _Connection(TCPServer):
    """A connection whose file is given back once its client has left, not when it would have been idle for too long."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scope = trio.CancelScope()

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def _without_websockets(app: Any) -> Any:
    @enable_ki_protection
    async def served(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            # Hypercorn cannot refuse one whose client has sent more than the handshake.
            with suppress(Exception):
                await send({"type": "websocket.close"})
        else:
            await app(scope, receive, send)

    return served


def share_of_files(share: float) -> int:
    """A share of the files that this program may open, at least one: the others are for the tree."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, int(min(soft, 2**31) * share)) if soft != resource.RLIM_INFINITY else 2**31
