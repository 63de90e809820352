"""Serve the operating app of a tree at a socket that listens already, until the tree has ended."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

import hypercorn.config
import hypercorn.trio
import trio

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
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until this task is cancelled; then readers of events get what there is, for a second at most.

    Args:
        listener: that listens; it is closed at the end.
        tree: see `operating_app`, as for the other arguments.
        observers: the sinks of that tree; its history is closed at the end.
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
    stop = trio.Event()

    class Listening(hypercorn.config.Config):
        """A configuration with this one socket. Hypercorn would replace any file at the path of a Unix socket."""

        def create_sockets(self) -> hypercorn.config.Sockets:
            return hypercorn.config.Sockets([], [listener], [])

    config = Listening()
    config.errorlog = config.accesslog = None
    config.include_server_header = False
    config.graceful_timeout = _LAST_SECONDS
    scope = trio.CancelScope(shield=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(_run, app, config, stop, scope)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            observers.history.close()
            stop.set()
            scope.deadline = trio.current_time() + 2 * _LAST_SECONDS


async def _run(
    app: Any,
    config: hypercorn.config.Config,
    stop: trio.Event,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[Any],
) -> None:
    with scope:
        await hypercorn.trio.serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)  # pyright: ignore[reportUnknownMemberType] - its form for WSGI has no types
