"""A running tree seen and changed from outside: over a Unix socket of its owner, or a port of the loopback address.

`operate` declares a child that serves the tree which it is in; `supervise run --socket` serves one that knows nothing of it.
Both need the extra `operate`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import trio
from attrs import field, frozen
from trio.lowlevel import enable_ki_protection

from .._core._brief import brief
from .._core._check import check_number
from .._core.decide import Decider
from .._core.directive import Directive
from .._core.spec import Child
from .._trio.child import current_child
from .._trio.tree import Tree
from .history import History
from .observers import Observers
from .sockets import default_path, listening_at, listening_on

__all__ = ["History", "operate"]

_SHORTEST_TOKEN = 20
LAST_PORT = 65_535


def operate(
    socket: str | Path | None = None,
    *,
    name: str = "operate",
    port: int | None = None,
    token: str | None = None,
    required: Collection[str] = (),
) -> Child:
    """A child that serves the tree which it is in, for people, programs and scrapers; put it first, and it sees every start.

    It serves health, readiness, metrics, status, events, reasons, stacks and a page, and takes requests to start, stop and
    restart nodes. Every request becomes an event that says who asked, and why. `docs/operating/operating.md` has all of it.

    If it cannot start with the tree, the tree does not start. If it fails later, for instance because the folder of its socket
    is gone, it is stopped and stays down (R10), and the tree goes on without it.

    Args:
        socket: the path of a Unix socket, which only the owner of this process can use; None is a path in `$XDG_RUNTIME_DIR`
            with the name of the tree and the number of the process, unless a port is given.
        name: of the child.
        port: of the loopback address, 0 to 65535; 0 takes a free one. Everyone on this machine can connect there, so stacks and
            tracebacks are shown only with the token.
        token: of 20 characters or more, that a request for a change must have as `Authorization: Bearer TOKEN`; None: the tree
            can only be looked at.
        required: paths of nodes that have to be up for `/readyz`.

    Raises:
        ValueError: the port is out of range, the token is too short, or the socket and a port are both given.
        TypeError: for a value of another type.
    """
    if port is not None:
        check_number("port", port, least=0, kind=int)
        if port > LAST_PORT:
            raise ValueError(f"port must be 0 to {LAST_PORT}, got {port}")
    if socket is not None and not isinstance(socket, str | Path):
        raise TypeError(f"socket must be a path or None, got {brief(socket)}")
    if socket is not None and port is not None:
        raise ValueError("give a socket or a port, not both: make two children for two of them")
    is_collection = isinstance(required, Collection) and not isinstance(required, str)
    if not is_collection or not all(isinstance(path, str) for path in required):
        raise TypeError(f"required must be a list of paths such as ['app/db'], got {brief(required)}")
    body = _Operator(None if socket is None else Path(socket), port, checked_token(token), tuple(required))
    return Child(name, body, decider=Decider({Exception: Directive.Stop}))


def checked_token(token: object) -> str | None:
    """A token that is long enough not to be guessed; None stays None."""
    if token is None:
        return None
    if not isinstance(token, str):
        raise TypeError(f"token must be a str or None, got {brief(token)}")
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"token must have {_SHORTEST_TOKEN} printable ASCII characters or more and no space; "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return token


_OBSERVERS: WeakKeyDictionary[Tree, dict[str, Observers]] = WeakKeyDictionary()
"""Those of each operating child, by its path: they outlive its restarts, and the declaration that it is made of (R38)."""


def _observers(tree: Tree, path: str) -> Observers:
    known = _OBSERVERS.setdefault(tree, {})
    if path not in known:
        known[path] = observers = Observers.of(tree._spec)
        tree.subscribe(observers.history)
        observers.attach(tree)
    return known[path]


@frozen
class _Operator:
    """The body of the child."""

    socket: Path | None
    port: int | None
    token: str | None = field(repr=False)
    required: tuple[str, ...]

    @enable_ki_protection
    async def __call__(self, *, task_status: trio.TaskStatus[str]) -> None:
        serve = serving()
        child = current_child()
        tree = child.tree
        observers = _observers(tree, child.path)
        with ExitStack() as sockets:
            if self.port is not None:
                listener = sockets.enter_context(listening_on(self.port))
                where = f"http://127.0.0.1:{listener.getsockname()[1]}"
            else:
                path = default_path(tree.root.path) if self.socket is None else self.socket
                listener = sockets.enter_context(listening_at(path))
                where = str(path)
            async with trio.open_nursery() as nursery:
                served = partial(serve, tree, observers, listener, token=self.token, required=self.required)
                await nursery.start(partial(served, trusted=self.port is None))
                task_status.started(where)


def serving() -> Callable[..., Any]:
    """The function `server.serve`.

    Raises:
        ModuleNotFoundError: what it needs is not installed; the message names the extra.
    """
    try:
        from .server import serve  # noqa: PLC0415 - A tree can be declared without the extra.
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; install trio-supervise[operate]", name=error.name) from error
    return serve
