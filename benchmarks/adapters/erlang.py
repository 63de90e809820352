"""Erlang/OTP itself, `supervisor` and `gen_server`, as the reference. The work is in `benchmarks/erl`."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from benchmarks.work import Result

SOURCES = sorted((Path(__file__).parents[1] / "erl").glob("*.erl"))


def _erlang(work: str, *numbers: int) -> Result:
    with tempfile.TemporaryDirectory() as beams:
        subprocess.run(["erlc", "-o", beams, *SOURCES], check=True)
        command = ["erl", "+P", "2000000", "-noshell", "-pa", beams, "-run", "bench", "main", work]
        done = subprocess.run(
            [*command, *map(str, numbers)],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    result: Result = json.loads(done.stdout)
    return result


def start_stop(n: int) -> Result:
    """Each child is a process, which acknowledges its start."""
    return _erlang("start_stop", n)


def storm(n: int) -> Result:
    """Its supervisor walks a list of all restarts in the window at each restart: fewer restarts are faster."""
    return _erlang("storm", n)


def latency(siblings: int, n: int) -> Result:
    """Each incarnation is a new process."""
    return _erlang("latency", siblings, n)


def group(n: int) -> Result:
    """A one_for_all supervisor."""
    return _erlang("group", n)


def call(n: int, callers: int) -> Result:
    """Calls by gen_server:call."""
    return _erlang("call", n, callers)


def send(n: int) -> Result:
    """Messages by gen_server:cast."""
    return _erlang("send", n)


def deep(depth: int) -> Result:
    """No supervisor allows a restart."""
    return _erlang("deep", depth)


deep_limit = deep
