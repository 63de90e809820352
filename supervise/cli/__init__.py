"""The command `supervise`: `run` a declared tree, `check` it without starting it, or draw the `tree`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from .._core._check import noting
from .._core.spec import Pool, Supervisor
from .._trio.run import run_tree
from ..sinks.lines import LineSink
from ..views import mermaid, text
from ..views.terminal import run_live
from .check import problems
from .load import NoTree, load

_PARSER = "where the tree is: a module or a Python file, and the name in it (default: tree)"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; leaves by `SystemExit` unless all is well."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        status = command(arguments)
    except NoTree as refused:
        sys.stderr.write(f"supervise: {refused}\n")
        status = 2
    if status:
        raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="supervise", description="Run supervision trees that are declared in Python."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run a tree until it ends or is told to stop")
    run.add_argument("target", metavar="MODULE[:ATTR]|FILE[:ATTR]", help=_PARSER)
    run.add_argument(
        "--hard-exit-after",
        type=float,
        metavar="SECONDS",
        help="end the program, if an ordered stop takes longer",
    )
    run.add_argument(
        "--live", action="store_true", help="show the tree on the terminal while it runs (needs rich)"
    )
    run.set_defaults(command=_run)
    check = commands.add_parser(
        "check", help="validate a tree without starting it; exit status 1 if anything is wrong"
    )
    check.add_argument("target", metavar="MODULE[:ATTR]|FILE[:ATTR]", help=_PARSER)
    check.set_defaults(command=_check)
    tree = commands.add_parser("tree", help="print a tree as it is declared, without starting it")
    tree.add_argument("target", metavar="MODULE[:ATTR]|FILE[:ATTR]", help=_PARSER)
    tree.add_argument("--mermaid", action="store_true", help="as a Mermaid flowchart instead of text")
    tree.set_defaults(command=_tree)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    tree = _sound(arguments.target)
    if tree is None:
        return 1
    if arguments.live:
        run_live(tree, hard_exit_after=arguments.hard_exit_after)
    else:
        run_tree(tree, sinks=[LineSink()], hard_exit_after=arguments.hard_exit_after)
    return 0


def _tree(arguments: argparse.Namespace) -> int:
    tree = _sound(arguments.target)
    if tree is None:
        return 1
    view = mermaid if arguments.mermaid else text
    sys.stdout.write(view.declared(tree))
    return 0


def _sound(target: str) -> Supervisor | Pool | None:
    """The tree that is there; None after saying what is wrong with it."""
    tree = load(target)
    errors, _ = problems(tree)
    if errors:
        _tell(target, errors, [])
        return None
    assert isinstance(tree, Supervisor | Pool)
    return tree


def _check(arguments: argparse.Namespace) -> int:
    with noting() as noted:
        tree = load(arguments.target, noted)
        errors, warnings = problems(tree) if tree is not None else ([], [])
    errors = [*map(str, noted), *errors]
    return _tell(arguments.target, errors, warnings)


def _tell(target: str, errors: Sequence[str], warnings: Sequence[str]) -> int:
    for line in errors:
        sys.stderr.write(f"supervise: {target}: {line}\n")
    for line in warnings:
        sys.stderr.write(f"supervise: {target}: warning: {line}\n")
    if not errors:
        sys.stdout.write(f"{target}: ok\n")
    return 1 if errors else 0
