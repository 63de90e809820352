"""Serve the operating app of a tree at a socket that listens already, until the tree has ended."""

from __future__ import annotations

import socket
from collections.abc import Collection

import trio
from hypercorn.config import Config
from trio.lowlevel import enable_ki_protection

from .._trio.tree import Tree
from .app import operating_app
from .connections import Connections, share_of_files
from .observers import Observers

_LAST_SECONDS = 1.0
"""For readers of events to get the last ones, after the tree has ended."""
_MOST_CONNECTIONS = 250
"""At a time; further ones wait until another one has ended."""


@enable_ki_protection
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
    connections = Connections(app, config, most=min(_MOST_CONNECTIONS, share_of_files(1 / 4)))
    last = trio.CancelScope(shield=True)

    @enable_ki_protection
    async def run() -> None:
        with last:
            await connections.run(listener)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            observers.history.close()
            connections.end()
            last.deadline = trio.current_time() + _LAST_SECONDS
