"""`supervise top`: a running tree on a terminal of its own."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import trio

from .._core._brief import printable
from ..operate.sockets import found
from . import operate
from .load import NoTree
from .output import write_error

if TYPE_CHECKING:
    from ..operate.client import Client


def add(commands: Any) -> None:
    """Register the command."""
    what = "show a running tree on this terminal, and restart, stop and start its nodes by keys"
    top: argparse.ArgumentParser = commands.add_parser("top", help=what, description=what)
    top.add_argument(
        "--socket",
        metavar="PATH|URL",
        help="the socket of the tree, or the URL of its port (default: the only socket in $XDG_RUNTIME_DIR/supervise)",
    )
    top.add_argument("--read-only", action="store_true", help="change nothing, whatever the tree allows")
    top.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"a file with the token that changes need (default: the variable {operate.TOKEN})",
    )
    top.set_defaults(command=_top)


def _top(arguments: argparse.Namespace) -> int:
    reason = _why_not()
    if reason is not None:
        raise NoTree(f"top {reason}")
    from ..operate.client import Client, OperateError  # noqa: PLC0415 - It needs httpx, which is an extra.
    from ..operate.top.terminal import watch  # noqa: PLC0415 - It needs urwid, which is an extra.

    where = arguments.socket or operate.the_only_one()
    token = operate.token_of(arguments.token_file)

    def elsewhere(name: str) -> Client | None:
        """A tree whose socket was not given has another one after each start, with the number of its process in the path."""
        nonlocal where
        others = [str(path) for path in found() if path.name.startswith(f"{name}.")]
        if arguments.socket or len(others) != 1 or others == [where]:
            return None
        (where,) = others
        return Client(where, token=token)

    read_only = "read-only: started with --read-only" if arguments.read_only else ""
    try:
        trio.run(lambda: watch(Client(where, token=token), elsewhere=elsewhere, read_only=read_only))
    except OperateError as refused:
        write_error(f"supervise: {printable(str(refused))}")
        return 2 if refused.status is None else 1
    except trio.TooSlowError:
        write_error(f"supervise: the program at {printable(where)} does not answer")
        return 2
    return 0


def _why_not() -> str | None:
    """What this installation or this terminal lacks."""
    missing = [name for name in ("urwid", "httpx") if find_spec(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}; install trio-supervise[top]"
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)):
        return "needs a terminal as its standard input and output"
    if os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return f"needs a terminal that can move its cursor (TERM is {os.environ.get('TERM', 'not set')})"
    return None
