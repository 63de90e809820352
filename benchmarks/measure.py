"""Run the measurements: each in a separate process, all contenders in turn, as many repetitions as asked for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import contenders
from .progress import progress
from .rows import OURS, Row, Work
from .work import now

ROOT = Path(__file__).parents[1]
TIMEOUT = 300
SLOW_REPETITIONS = 5
PATIENCE = 20
"""Seconds for all repetitions of a peer."""

Results = dict[str, Any]
"""`{"about": …, "measured": {work: {contender: [result of each repetition]}}}`, as in the JSON file."""


def about(everyone: Iterable[str], *, quick: bool) -> dict[str, Any]:
    """The time, the machine and the versions of a measurement."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "versions": {contender: contenders.version(contender) for contender in everyone},
        "quick": quick,
    }


def measure(rows: Sequence[Row], everyone: Sequence[str], repetitions: int, *, quick: bool) -> Results:
    """Measure the work of these rows for these contenders."""
    measured: dict[str, dict[str, list[Any]]] = {}
    times = {row.work: min(repetitions, SLOW_REPETITIONS) if row.work.slow else repetitions for row in rows}
    with progress("repetitions", sum(times.values())) as step:
        for work, repeated in times.items():
            results: dict[str, list[Any]] = {contender: [] for contender in everyone}
            for _ in range(repeated):
                for contender in everyone:
                    if _wanted(contender, results[contender]):
                        results[contender].append(one(contender, work, quick=quick))
                step(1)
            measured[work.name] = results
    return {"about": about(everyone, quick=quick), "measured": measured}


def _wanted(contender: str, results: Sequence[dict[str, Any]]) -> bool:
    """Whether to measure a contender again: not if it cannot do the work, and a slow peer only for `PATIENCE` seconds."""
    if not results:
        return True
    patience = PATIENCE if contender in contenders.PEERS else TIMEOUT
    return "na" not in results[-1] and sum(result["took"] for result in results) < patience


def one(contender: str, work: Work, *, quick: bool) -> dict[str, Any]:
    """Make one measurement; the result is `{"na": why}` if it fails."""
    if work.function == "imports":
        return _imports(contender)
    arguments = work.with_size(quick=quick)
    command = ["-m", "benchmarks.one", f"adapters.{contender}", work.function, json.dumps(arguments)]
    begin = now()
    result = run(contenders.python(contender), *command)
    return {**result, "arguments": arguments, "took": round(now() - begin, 3)}


def run(python: str, *command: str) -> dict[str, Any]:
    """The last line that a process prints, as JSON; `{"na": why}` if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [python, *command],
            check=False,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return {"na": f"more than {TIMEOUT} s"}
    if done.returncode != 0:
        return {"na": done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return result


def _imports(contender: str) -> dict[str, Any]:
    """The seconds of an import from bytecode, as after an installation, and the number of packages that it requires."""
    if contender not in contenders.IMPORTS:
        return {"na": "not measured"}
    code = f"import time; begin = time.perf_counter(); {contenders.IMPORTS[contender]}; print(time.perf_counter() - begin)"
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        seconds = [
            contenders.output(contenders.python(contender), "-c", code, env=environment) for _ in range(2)
        ]
    result: dict[str, Any] = {"took": 0.0, "seconds": float(seconds[1])}
    if contender == OURS:
        required = importlib.metadata.requires("trio-supervise") or []
        result["requires"] = sum("extra ==" not in requirement for requirement in required)
    return result
