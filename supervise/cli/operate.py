"""The commands that look at a running tree and change it, over its socket; and the options of `run` that open one."""

from __future__ import annotations

import argparse
import getpass
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

import trio

from .._core._brief import printable
from .._core.spec import Pool, Supervisor
from .._trio.run import Watch
from .._trio.tree import Tree
from ..events import Sink
from ..operate import LAST_PORT, checked_token, serving
from ..operate.observers import Observers
from ..operate.sockets import default_path, found, listening_at, listening_on
from ..operate.why import ago
from ..views.words import branches
from .load import NoTree
from .output import has_reader, write_error, write_line

if TYPE_CHECKING:
    from ..operate.client import Client

TOKEN = "SUPERVISE_TOKEN"  # noqa: S105 - This is the name of a variable, not a token.
_Data = dict[str, Any]
_LOOK = 0.5
"""Seconds between two looks at standard output."""


# --- `run --socket`


def add_options(run: argparse.ArgumentParser) -> None:
    """The options of `run` that open a socket or a port."""
    run.add_argument(
        "--socket",
        nargs="?",
        const="",
        metavar="PATH",
        help="let `supervise status`, `why`, `top` and others look at the tree over this Unix socket of yours (default: one in "
        f"$XDG_RUNTIME_DIR); with a token in ${TOKEN} they can change it too (needs the extra operate)",
    )
    run.add_argument(
        "--port",
        type=_port,
        metavar="PORT",
        help="the same on this port of 127.0.0.1, for a browser; stacks and tracebacks need the token there",
    )


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port <= LAST_PORT:
        raise ValueError(text)
    return port


_port.__name__ = f"port, 1 to {LAST_PORT}"  # argparse prints this name in its message


def serve_tree(
    tree: Supervisor | Pool,
    arguments: argparse.Namespace,
    sinks: list[Sink],
    watches: list[Watch],
    files: ExitStack,
) -> None:
    """Listen at the socket and at the port, if they are asked for, and add the sinks and watches that serve the tree there.

    Raises:
        NoTree: one of them cannot be opened, the token is too short, or the extra is missing.
    """
    if arguments.socket is None and arguments.port is None:
        return
    listeners: list[tuple[socket, bool]] = []
    try:
        serve = serving()
        token = checked_token(os.environ.get(TOKEN) or None)
        if arguments.socket is not None:
            path = Path(arguments.socket) if arguments.socket else default_path(tree.name)
            listeners.append((files.enter_context(listening_at(path)), True))
        if arguments.port is not None:
            listeners.append((files.enter_context(listening_on(arguments.port)), False))
    except (OSError, ValueError, ModuleNotFoundError) as problem:
        raise NoTree(_line(problem)) from problem
    observers = Observers.of(tree)
    sinks += observers.sinks

    async def watch(running: Tree) -> None:
        observers.attach(running)
        async with trio.open_nursery() as nursery:
            for listener, trusted in listeners:
                nursery.start_soon(partial(serve, running, observers, listener, token=token, trusted=trusted))

    watches.append(watch)


def _line(problem: Exception) -> str:
    return str(problem.strerror if isinstance(problem, OSError) and problem.strerror else problem)


# --- the commands


def add(commands: Any) -> None:
    """Register the commands."""
    status = _command(
        commands, "status", _status, "show the nodes of a running tree; exit status 1 if it is not ready"
    )
    status.add_argument("path", nargs="?", help="only this node and those below it")
    events = _command(commands, "events", _events, "print the events of a running tree")
    events.add_argument("path", nargs="?", help="only those of this node and of those below it")
    events.add_argument(
        "-f", "--follow", action="store_true", help="go on with those that come, until the tree ends"
    )
    events.add_argument(
        "--after", type=int, default=0, metavar="NUMBER", help="only those after the event of this number"
    )
    why = _command(commands, "why", _why, "say in sentences why a node is as it is")
    why.add_argument("path", help="of the node, such as app/db")
    stack = _command(commands, "stack", _stack, "print where the tasks of a node wait")
    stack.add_argument("path", help="of the node, such as app/db")
    for verb, what in (
        ("start", "start a node that is down"),
        ("stop", "stop a node, which stays down; stopping the root ends the program"),
        ("restart", "restart a node, with the group that its supervisor's strategy names"),
    ):
        act = _command(commands, verb, _act, f"{what}; exit status 1 if that is refused")
        act.add_argument("path", help="of the node, such as app/db")
        _add_reason(act, verb)
    reload = _command(
        commands,
        "reload",
        _reload,
        "load the files of a program anew that was started with --reload; exit status 1 if that is refused",
    )
    _add_reason(reload, "reload")


def _add_reason(act: argparse.ArgumentParser, verb: str) -> None:
    """The options of every command that changes a tree."""
    act.add_argument("--reason", metavar="TEXT", help="why; every sink of the tree gets it")
    act.add_argument("-n", "--dry-run", action="store_true", help="print the steps, and do nothing")
    act.add_argument(
        "--token-file", metavar="FILE", help=f"a file with the token (default: the variable {TOKEN})"
    )
    act.set_defaults(verb=verb)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace, Client], Awaitable[int]], what: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
    parser.add_argument(
        "--socket",
        metavar="PATH|URL",
        help="the socket of the tree, or the URL of its port (default: the only socket in $XDG_RUNTIME_DIR/supervise)",
    )
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text", help="(default: text)")
    parser.set_defaults(command=partial(_with_client, run), token_file=None)
    return parser


def _with_client(
    run: Callable[[argparse.Namespace, Client], Awaitable[int]], arguments: argparse.Namespace
) -> int:
    if find_spec("httpx") is None:
        raise NoTree("looking at a running tree needs httpx; install trio-supervise[operate]")
    from ..operate.client import Client, OperateError  # noqa: PLC0415 - It needs httpx, which is an extra.

    where = arguments.socket or the_only_one()
    token = token_of(arguments.token_file)

    async def main() -> int:
        async with Client(where, token=token) as client:
            return await run(arguments, client)

    try:
        return trio.run(main)
    except OperateError as refused:
        write_error(f"supervise: {printable(str(refused))}")
        return 2 if refused.status is None else 1


def the_only_one() -> str:
    """The only socket at which a program listens, if no other was given."""
    try:
        sockets = found()
    except OSError as problem:
        raise NoTree(_line(problem)) from problem
    if len(sockets) == 1:
        return str(sockets[0])
    if sockets:
        raise NoTree(f"several trees run: give one by --socket: {', '.join(map(str, sockets))}")
    raise NoTree(
        "no running tree was found: start one with `supervise run --socket`, or give its socket by --socket"
    )


def token_of(file: str | None) -> str | None:
    """The token in a file, or in the variable if none is given; None without one."""
    if file is None:
        return os.environ.get(TOKEN) or None
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError) as problem:
        raise NoTree(f"cannot read the token in {file}: {_line(problem)}") from problem


def is_within(path: str, wanted: str) -> bool:
    """Whether a node is the wanted one, or below it. That may be given as it is shown, with escapes."""
    return f"{printable(path)}/".startswith(f"{printable(wanted)}/")


async def _status(arguments: argparse.Namespace, client: Client) -> int:
    status = await client.status()
    rows: list[_Data] = status["nodes"]
    if arguments.path is not None:
        rows = [row for row in rows if is_within(row["path"], arguments.path)]
        if not rows:
            write_error(f"supervise: tree {status['name']!r} has no node {arguments.path!r}")
            return 1
    if arguments.output == "json":
        write_line(json.dumps({**status, "nodes": rows}))
    else:
        for line in _table(rows, status["time"]):
            write_line(line)
    troubled = {"failed", "condemned", "starting", "stopping"}
    return 1 if rows[0]["state"] != "up" or any(row["state"] in troubled for row in rows) else 0


def _table(rows: Sequence[_Data], now: float) -> Iterator[str]:
    """The nodes as a tree, with a column for each fact."""
    below: dict[str, list[_Data]] = {}
    for row in rows[1:]:
        below.setdefault(row["path"].rpartition("/")[0], []).append(row)
    drawn = list(branches(rows[0], lambda row: below.get(row["path"], [])))
    cells = [("node", "state", "#", "restarts", "waiting", "since", "last failure")]
    for stem, row in drawn:
        name = row["path"] if row is rows[0] else row["path"].rpartition("/")[2]
        state = row["state"]
        if row["due"] is not None:
            state += f" in {ago(max(0.0, row['due'] - now))}"
        restarts = "" if row["allowed"] is None else f"{row['restarts']}/{row['allowed']}"
        failure = "" if row["failure"] is None else f"{row['failure']['type']}: {row['failure']['text']}"
        cells.append(
            (
                f"{stem}{printable(name)}",
                state,
                str(row["incarnation"] or ""),
                restarts,
                "" if row["mailbox"] is None else str(row["mailbox"]),
                "" if row["since"] is None else f"{ago(now - row['since'])}",
                printable(failure),
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]) - 1)]
    for line in cells:
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=False)]
        yield "  ".join([*padded, line[-1]]).rstrip()


async def _events(arguments: argparse.Namespace, client: Client) -> int:
    with trio.CancelScope() as scope:
        # A system task, since a nursery would put what ends the command into a group.
        trio.lowlevel.spawn_system_task(_cancel_without_reader, scope)
        await _print_events(arguments, client)
    return 0


async def _cancel_without_reader(scope: trio.CancelScope) -> None:
    """Standard output may lose its reader long before the next event is written."""
    while True:
        await trio.sleep(_LOOK)
        if not has_reader():
            scope.cancel("standard output has no reader")
            return


async def _print_events(arguments: argparse.Namespace, client: Client) -> None:
    path = arguments.path
    async for event in client.events(arguments.after, follow=arguments.follow):
        if arguments.output == "json":
            shown = json.dumps(event)
        elif event["kind"] == "Missed":
            shown = f"… {event['missed']} events are no longer kept"
        else:
            at = datetime.fromtimestamp(event["time"]).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
            shown = f"{at} [{printable(event['path'])} #{event['incarnation']}] {event['text']}"
        wanted = path is None or "path" not in event or is_within(event["path"], path)
        if wanted and not write_line(shown):
            return


async def _why(arguments: argparse.Namespace, client: Client) -> int:
    text = await client.why(arguments.path)
    write_line(
        json.dumps({"path": arguments.path, "text": text}) if arguments.output == "json" else text.rstrip()
    )
    return 0


async def _stack(arguments: argparse.Namespace, client: Client) -> int:
    text = "\n".join(map(printable, (await client.stack(arguments.path)).split("\n")))
    write_line(
        json.dumps({"path": arguments.path, "text": text}) if arguments.output == "json" else text.rstrip()
    )
    return 0


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user may have no name
        return f"user {os.getuid()}"


async def _act(arguments: argparse.Namespace, client: Client) -> int:
    steps = await client.act(
        arguments.verb, arguments.path, reason=_reason(arguments), who=_user(), dry_run=arguments.dry_run
    )
    if arguments.output == "json":
        write_line(json.dumps({"path": arguments.path, "dry_run": arguments.dry_run, "steps": steps}))
        return 0
    for step in steps:
        write_line(f"{step['do']} {printable(step['path'])}")
    if arguments.dry_run:
        write_line("(nothing was done)")
    return 0


async def _reload(arguments: argparse.Namespace, client: Client) -> int:
    changes = await client.reload(reason=_reason(arguments), who=_user(), dry_run=arguments.dry_run)
    if arguments.output == "json":
        write_line(json.dumps({"dry_run": arguments.dry_run, "changes": changes}))
        return 0
    for change in changes or [{"text": "nothing differs"}]:
        write_line(printable(change["text"]))
    if arguments.dry_run:
        write_line("(nothing was done)")
    return 0


def _reason(arguments: argparse.Namespace) -> str:
    """The reason that every change needs; a dry run changes nothing."""
    reason: str = arguments.reason or ("" if not arguments.dry_run else "a dry run")
    if not reason:
        raise NoTree(f"{arguments.verb} needs a reason: --reason TEXT")
    return reason
