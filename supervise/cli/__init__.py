"""The command `supervise`: `run` a declared tree, `check` or draw it without starting it, look at a running one, `plot` a run."""

from __future__ import annotations

import argparse
import json
import logging
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from errno import ENXIO
from typing import NoReturn, cast

from .._core._check import did_you_mean
from .._core.spec import Pool, Supervisor
from .._trio.run import Watch, run_tree
from ..events import Sink
from ..sinks._levels import line
from ..sinks.data import VERSION
from ..sinks.jsonl import JsonLinesSink
from ..sinks.lines import LineSink, now
from ..sinks.log import LoggingSink
from ..sinks.systemd import SystemdSink
from ..views import mermaid, text
from ..views.terminal import run_live
from . import check, findings, operate, plot, top
from .load import NoTree, load
from .operate import serve_tree
from .output import write, write_error, write_line
from .reload import Program

_TARGET = "a module or a Python file, and the name of the tree in it (default: tree), or a call that makes one: app.py:make_tree(3)"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; raise `SystemExit` with its status unless that is 0."""
    try:
        status = _carried_out(_parser().parse_args(argv))
    except NoTree as refused:
        write_error(f"supervise: {refused}")
        status = 2
    if status:
        raise SystemExit(status)


def _carried_out(arguments: argparse.Namespace) -> int:
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except KeyboardInterrupt:
        if command is _run:  # a child may have raised it (R4), and its traceback shows where
            raise
        return 128 + signal.SIGINT


class _Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        words = re.findall(r"(?<![\w-])-{0,2}\w[\w-]*", message.partition(":")[2].partition("(")[0])
        known = _words(self)
        hint = next(filter(None, (did_you_mean(word, known) for word in words)), "")
        if "--socket" in sys.argv and "required: MODULE" in message:
            hint = "; --socket took the target for its path: write it behind the target"
        super().error(message + hint)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """The commands and the long options of a parser and of its commands."""
    found: list[str] = []
    for action in parser._actions:
        found += [option for option in action.option_strings if option.startswith("--")]
        if isinstance(action.choices, dict):
            commands = cast("dict[str, argparse.ArgumentParser]", action.choices)
            found += [*commands, *(word for command in commands.values() for word in _words(command))]
    return found


def _seconds(text: str) -> float:
    """Parse the value of an option: a number of seconds, 0 or more."""
    seconds = float(text)
    if not seconds >= 0:
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # argparse prints this name in its message


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - importing it takes longer than everything else

    try:
        return f"supervise {version('trio-supervise')}"
    except PackageNotFoundError:
        return "supervise, not installed"


class _Version(argparse.Action):
    """Print the version, which is looked up only here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        write_line(_version())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="supervise", description="Run supervision trees that are declared in Python.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a tree until it ends or a signal stops it")
    run.add_argument("target", metavar="MODULE[:ATTR]|FILE[:ATTR]", help=_TARGET)
    run.add_argument(
        "--hard-exit-after",
        type=_seconds,
        metavar="SECONDS",
        help="end the program, if an ordered stop takes longer",
    )
    run.add_argument(
        "--watchdog",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="log which child's code blocks the event loop for so long (default: 10; 0: never)",
    )
    run.add_argument(
        "--live", action="store_true", help="show the tree on the terminal while it runs (needs rich)"
    )
    run.add_argument(
        "--log",
        default="text",
        metavar="text|json|FILE",
        help="write lines of text or JSON to standard error, or also each event as a line of JSON to a file (default: text)",
    )
    operate.add_options(run)
    run.add_argument(
        "--reload",
        action="store_true",
        help="at SIGHUP, and when `supervise reload` asks for it, load the file anew and change the running tree accordingly",
    )
    run.add_argument(
        "--auto-reload", action="store_true", help="the same, also whenever a file of the program has changed"
    )
    how_much = run.add_mutually_exclusive_group()
    how_much.add_argument("-v", "--verbose", action="store_true", help="write the traceback of every failure")
    how_much.add_argument("-q", "--quiet", action="store_true", help="write nothing while nothing fails")
    run.set_defaults(command=_run)
    check.add(commands, _TARGET)
    tree = commands.add_parser("tree", help="print a declared tree, without starting it")
    tree.add_argument("target", metavar="MODULE[:ATTR]|FILE[:ATTR]", help=_TARGET)
    tree.add_argument("--mermaid", action="store_true", help="as a Mermaid flowchart instead of text")
    tree.set_defaults(command=_tree)
    operate.add(commands)
    plot.add(commands)
    top.add(commands)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    tree = _sound(arguments.target)
    if tree is None:
        return 1
    if arguments.live and arguments.log == "json":
        raise NoTree("--live and --log json both write to the terminal: give one of them, or --log FILE")
    with ExitStack() as files:
        sinks, watches = _sinks(arguments, files), list[Watch]()
        _tell_systemd(sinks, watches, files)
        serve_tree(tree, arguments, sinks, watches, files)
        limits = {"hard_exit_after": arguments.hard_exit_after, "watchdog": arguments.watchdog}
        reload = Program(arguments.target) if arguments.reload or arguments.auto_reload else None
        if reload is not None and arguments.auto_reload:
            watches.append(reload.watch)
        if arguments.live:
            run_live(tree, **limits, otherwise=sinks[0], sinks=sinks[1:], watches=watches, reload=reload)
        else:
            run_tree(tree, sinks=sinks, watch=watches, reload=reload, **limits)
    return 0


def _tell_systemd(sinks: list[Sink], watches: list[Watch], files: ExitStack) -> None:
    """If systemd has started this program as a service of `Type=notify`, add what tells it how the tree is."""
    try:
        systemd = SystemdSink.from_environment()
    except ValueError as problem:
        raise NoTree(f"the variable NOTIFY_SOCKET, which systemd sets: {problem}") from problem
    if systemd is not None:
        files.callback(systemd.close)
        sinks.append(systemd)
        watches.append(systemd.watch)


def _sinks(arguments: argparse.Namespace, files: ExitStack) -> list[Sink]:
    """What the option `--log` asks for."""
    if arguments.log == "text":
        return [_sink(arguments)]
    if arguments.log == "json":
        logging.getLogger("supervise").addHandler(_JsonLines())
        return [JsonLinesSink()]
    file = JsonLinesSink(arguments.log)
    files.callback(file.close)
    try:
        file.open()  # a program that runs for days should not find out at its first event
    except OSError as problem:
        why = "it is a pipe without a reader" if problem.errno == ENXIO else problem.strerror or problem
        raise NoTree(f"cannot write to {arguments.log}: {why}") from problem
    return [_sink(arguments), file]


def _sink(arguments: argparse.Namespace) -> Sink:
    """Log records for a program that has set up its own logging; else lines, also for the library's own records."""
    logger = logging.getLogger("supervise")
    if logger.hasHandlers():
        return LoggingSink(lifecycle=not arguments.quiet)
    logger.addHandler(_Lines())
    return LineSink(times=True, lifecycle=not arguments.quiet, tracebacks=arguments.verbose)


class _Lines(logging.Handler):
    """Writes a record as a `LineSink` writes an event, to the standard error of that moment: a view may redirect it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self._line(record)}\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of `logging` does
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> str:
        return line(sys.stderr, record.levelno, self.format(record), time=now())


class _JsonLines(_Lines):
    """The same as a line of JSON, whose kind is `Log`, among those of a `JsonLinesSink`."""

    def _line(self, record: logging.LogRecord) -> str:
        data = {"v": VERSION, "time": record.created, "kind": "Log", "level": record.levelname}
        return json.dumps({**data, "text": self.format(record)}, separators=(",", ":"))


def _tree(arguments: argparse.Namespace) -> int:
    tree = _sound(arguments.target)
    if tree is None:
        return 1
    view = mermaid if arguments.mermaid else text
    write(view.declared(tree))
    return 0


def _sound(target: str) -> Supervisor | Pool | None:
    """The tree of a target; None after printing its errors."""
    tree = load(target)
    assert tree is not None
    wrong = [problem for _, problem in findings.errors(tree)]
    for problem in wrong:
        write_error(f"supervise: {target}: {problem}")
    return None if wrong else tree
