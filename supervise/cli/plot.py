"""The command `supervise plot`: draw a run from its events, or print how long its start and its recoveries took."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core._check import did_you_mean
from .load import NoTree
from .output import write, write_error

if TYPE_CHECKING:
    from ..views.timeline import Timeline

_TIME = "seconds since the run began, or a local time: 09:30, 09:30:05.5 or 2026-11-29T09:30"


def add(commands: Any) -> None:
    """Add the command to the subparsers of `supervise`."""
    plot = commands.add_parser("plot", help="draw a run from the events that `run --log FILE` has written")
    plot.add_argument(
        "files",
        nargs="+",
        metavar="EVENTS.jsonl",
        help="files of events as lines of JSON, renamed ones such as EVENTS.jsonl.1 too, in any order; - is standard input",
    )
    plot.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="write to FILE, as PNG if its name ends so (default: standard output, as SVG)",
    )
    plot.add_argument(
        "--width", type=_pixels, default=1000, metavar="PIXELS", help="of the picture (default: 1000)"
    )
    plot.add_argument(
        "--all", action="store_true", help="show every node, not only those in trouble and the first others"
    )
    plot.add_argument("--node", metavar="PATH", help="show only this node and those below it")
    plot.add_argument(
        "--run", type=int, metavar="N", help="the Nth run in the files, from 1 (default: the last)"
    )
    plot.add_argument("--from", dest="start", metavar="TIME", help=f"the left end: {_TIME}")
    plot.add_argument("--to", dest="end", metavar="TIME", help="the right end")
    text = plot.add_mutually_exclusive_group()
    text.add_argument(
        "--startup", action="store_true", help="print how long the nodes took until the root was ready"
    )
    text.add_argument(
        "--recovery",
        action="store_true",
        help="print each failure and the time until the node was ready again",
    )
    plot.add_argument("--json", action="store_true", help="with --startup or --recovery: print JSON")
    plot.set_defaults(command=_plot)


def _pixels(text: str) -> int:
    pixels = int(text)
    if not _LEAST <= pixels <= _MOST:
        raise ValueError(text)
    return pixels


_LEAST, _MOST = 300, 10_000
_pixels.__name__ = f"number of pixels from {_LEAST} to {_MOST}"  # argparse prints this name in its message

_NODES = 40
"""How many nodes are shown without `--all`."""


def _plot(arguments: argparse.Namespace) -> int:
    png = str(arguments.output or "").endswith(".png")
    tables = arguments.startup or arguments.recovery
    if arguments.json and not tables:
        raise NoTree("--json needs --startup or --recovery")
    if tables and (arguments.start or arguments.end or png):
        raise NoTree("--from, --to and a PNG file are for the picture, not for --startup and --recovery")
    if png and find_spec("resvg_py") is None:
        raise NoTree("a PNG needs resvg-py: pip install 'trio-supervise[plot]'")
    run, facts = _chosen(arguments)
    text = _table(run, arguments) if tables else _picture(run, facts, arguments)
    if png:
        _save(arguments.output, _as_png(text))
    elif arguments.output:
        _save(arguments.output, text.encode("utf-8", "backslashreplace"))
    else:
        write(text)
    return 0


def _chosen(arguments: argparse.Namespace) -> tuple[Timeline, list[str]]:
    """The run, or its part, that the options name, and what the picture says about this choice."""
    from ..views.timeline import timelines  # noqa: PLC0415 - `supervise run` does not need it.

    left_out: Counter[str] = Counter()
    runs = timelines(_events(arguments.files), left_out)
    if left_out:
        what = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common(5))
        write_error(f"supervise: lines left out: {what}")
    files = ", ".join(arguments.files)
    if not runs:
        raise NoTree(f"{files} has no events")
    number = len(runs) if arguments.run is None else arguments.run
    if not 1 <= number <= len(runs):
        raise NoTree(f"--run must be from 1 to {len(runs)}, the number of runs in {files}, got {number}")
    run = runs[number - 1]
    if arguments.node is not None:
        paths = [lane.path for lane in run.lanes]
        run = run.below(arguments.node)
        if not run.lanes:
            raise NoTree(f"no node {arguments.node!r} in this run{did_you_mean(arguments.node, paths)}")
    return run, [f"run {number} of {len(runs)}"] if len(runs) > 1 else []


def _table(run: Timeline, arguments: argparse.Namespace) -> str:
    from ..views import durations  # noqa: PLC0415 - `supervise run` does not need it.

    if arguments.json:
        rows = durations.startup_data(run) if arguments.startup else durations.recovery_data(run)
        return "".join(f"{json.dumps(row)}\n" for row in rows)
    if arguments.startup:
        return durations.startup(run, most=None if arguments.all else _NODES)
    return durations.recovery(run)


def _picture(run: Timeline, facts: Sequence[str], arguments: argparse.Namespace) -> str:
    from ..views.svg_timeline import draw  # noqa: PLC0415 - `supervise run` does not need it.

    start, end = (_since(run, name, getattr(arguments, name)) for name in ("start", "end"))
    if (end if end is not None else run.end) < (start or 0.0):
        raise NoTree(
            f"--from must be before --to and before the end of the run, {run.end:g} s after its beginning"
        )
    most = None if arguments.all else _NODES
    return draw(run, width=arguments.width, most=most, start=start, end=end, facts=facts)


def _since(run: Timeline, name: str, text: str | None) -> float | None:
    """The value of `--from` or `--to`, in seconds since the run began."""
    if text is None:
        return None
    began = datetime.fromtimestamp(run.began).astimezone()
    try:
        if text.replace(".", "", 1).isdecimal():
            return float(text)
        if len(text) > len("09:30:05.123456"):
            return datetime.fromisoformat(text).astimezone().timestamp() - run.began
        return datetime.combine(began.date(), time.fromisoformat(text)).astimezone().timestamp() - run.began
    except (ValueError, OverflowError):
        option = {"start": "--from", "end": "--to"}[name]
        raise NoTree(f"{option} must be {_TIME}, got {text!r}") from None


def _events(files: Sequence[str]) -> Iterator[object]:
    """The lines of the files as data, the file with the oldest events first; None for a line that is no JSON."""
    read = sorted(((file, _first_time(file)) for file in dict.fromkeys(files)), key=lambda each: each[1])
    for file, _ in read:
        yield from map(_data, _lines(file))


def _first_time(file: str) -> float:
    """When the first event of a file happened. A file that was renamed is older than the one of its name."""
    if file == "-":
        return float("inf")
    for data in map(_data, _lines(file)):
        when: Any = data.get("time") if isinstance(data, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if isinstance(when, int | float):
            return when
    return 0.0


def _lines(file: str) -> Iterator[str]:
    # By its descriptor: `sys.stdin` may refuse bytes that are not UTF-8, and is None if standard input was closed.
    where = 0 if file == "-" else file
    try:
        with open(where, encoding="utf-8", errors="replace", closefd=file != "-") as lines:
            yield from lines
    except OSError as problem:
        raise NoTree(f"cannot read {file}: {problem.strerror or problem}") from problem


def _data(line: str) -> object:
    """A line as data; None if it is no JSON, for instance because the program was killed while it wrote it."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _as_png(svg: str) -> bytes:
    import resvg_py  # noqa: PLC0415 - It is an extra.

    return bytes(resvg_py.svg_to_bytes(svg_string=svg))


def _save(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as problem:
        raise NoTree(f"cannot write to {path}: {problem.strerror or problem}") from problem
