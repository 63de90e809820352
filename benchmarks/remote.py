"""What a context on another machine costs beside a local one: over an `sshd` of our own, and in a Ray cluster of our own.

    python -m benchmarks.remote                 five rounds of each measurement, by turns
    python -m benchmarks.remote --rounds 20

All run on this machine, so without a network between them. The kinds of hosts are measured by turns, and a ratio to `ProcessHost` is
the median of the ratios within one round. Exit status 1 if the chunks of 32 streams a second are less than half of those of a
`ProcessHost`, and 2 if no `sshd` can be started. Without Ray, `RayHost` is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import trio

from benchmarks import cluster
from benchmarks.loopback import missing, serving
from benchmarks.paced import Paced
from runners.errors import ContextDied
from runners.hosts import Host, Session
from runners.hosts.process.host import ProcessHost
from runners.types import ExecuteBatch, Sampling, TokenChunk

STREAMS, CHUNKS, SINGLES = 32, 1500, 200
LEAST = 0.5
"""The ratio of chunks a second to those of a local process that must be reached."""


def _batch(name: str, tokens: int) -> ExecuteBatch:
    return ExecuteBatch(name, "x", sampling=Sampling(max_tokens=tokens))


async def _rate(session: Session) -> float:
    """Chunks a second of all streams."""
    began = perf_counter()
    for number in range(STREAMS):
        session.begin(_batch(f"{number}", CHUNKS))
    left, chunks = STREAMS, 0
    while left:
        made = await session.receive()
        chunks += len(made)
        left -= sum(isinstance(item, TokenChunk) and item.finish_reason is not None for item in made)
    return chunks / (perf_counter() - began)


async def _latency(session: Session) -> float:
    """Median microseconds of a request with one token."""
    found = []
    for number in range(SINGLES):
        began = perf_counter()
        session.begin(_batch(f"single {number}", 1))
        await session.receive()
        found.append(perf_counter() - began)
    return 1e6 * statistics.median(found)


async def _detection(session: Session) -> float:
    """Milliseconds from SIGKILL of the context process to its failure. The far machine is this one, so its pid is ours too."""
    assert session.pid is not None
    began = perf_counter()
    os.kill(session.pid, signal.SIGKILL)
    try:
        await session.receive()
    except ContextDied:
        return 1e3 * (perf_counter() - began)
    raise AssertionError("a killed context must fail")


async def _measure(host: Host) -> dict[str, float]:
    """One round on one host, with a standby for the second start."""
    found: dict[str, float] = {}
    began = perf_counter()
    async with host.open(Paced(streams=STREAMS)) as session:
        found["first start, ms"] = 1e3 * (perf_counter() - began)
        found["chunks/s"] = await _rate(session)
        found["one token, us"] = await _latency(session)
        await trio.sleep(2)  # until the standby is there
        try:
            found["death detected, ms"] = await _detection(session)
        finally:
            began = perf_counter()
    async with host.open(Paced(streams=STREAMS), incarnation=2):
        found["reaped and started from a standby, ms"] = 1e3 * (perf_counter() - began)
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args(arguments).rounds
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    found: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as running:
        hosts = _hosts(running)
        for _ in range(rounds):
            for name, host in hosts.items():
                found.setdefault(name, []).append(trio.run(_measure, host))
    rows: dict[str, dict[str, float]] = {}
    print(f"{'':40}", *(f"{name:>19}" for name in found))
    for row in found["ProcessHost"][0]:
        rows[row] = {}
        for name, measured in found.items():
            ratios = [far[row] / near[row] for near, far in zip(found["ProcessHost"], measured, strict=True)]
            rows[row][name] = round(statistics.median(each[row] for each in measured), 1)
            rows[row][f"{name} ratio"] = round(statistics.median(ratios), 2)
        print(f"{row:40}", *(f"{rows[row][n]:12,.1f} × {rows[row][f'{n} ratio']:4.2f}" for n in found))
    print(json.dumps({"rounds": rounds, "load": os.getloadavg()[0], "rows": rows}))
    least = min(rows["chunks/s"][f"{name} ratio"] for name in found)
    return 0 if least >= LEAST else 1


def _hosts(running: ExitStack) -> dict[str, Host]:
    """The hosts to measure; what they need runs until the stack is left."""
    folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
    hosts: dict[str, Host] = {
        "ProcessHost": ProcessHost(standby=1),
        "SshHost": running.enter_context(serving(folder)).host(standby=1),
    }
    if why := cluster.missing():
        print(why, file=sys.stderr)
        return hosts
    nodes = running.enter_context(cluster.clustered())
    nodes.add()
    nodes.add()
    return {**hosts, "RayHost": nodes.host(standby=1)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
