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
from contextlib import ExitStack, suppress
from pathlib import Path
from time import perf_counter

import trio
from attrs import evolve

from benchmarks import cluster
from benchmarks.loopback import missing, serving
from benchmarks.paced import Paced
from runners.errors import ContextDied
from runners.hosts import Host, Session
from runners.hosts.process.host import ProcessHost
from runners.hosts.remote.ray import RayHost
from runners.hosts.remote.ssh import SshHost
from runners.models.torch_lm import TorchLM
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


async def _second_start(host: ProcessHost | SshHost | RayHost) -> float:
    """Milliseconds from the death of a context with a real model to the next one, which is loaded."""
    async with host.open(TorchLM(streams=1)) as session:
        await trio.sleep(10 if host.standby else 0)  # until a standby is there, and has built the model
        assert session.pid is not None
        os.kill(session.pid, signal.SIGKILL)
        with suppress(ContextDied):
            await session.receive()
        began = perf_counter()
    async with host.open(TorchLM(streams=1), incarnation=2):
        return 1e3 * (perf_counter() - began)


def _starts(host: ProcessHost | SshHost | RayHost) -> dict[str, float]:
    """The second start of a context with a real model, in each way."""
    ways = {
        "TorchLM started cold, ms": evolve(host, standby=0, start="spawn"),
        "TorchLM forked, ms": evolve(host, standby=0, start="forkserver"),
        "TorchLM from a standby, ms": evolve(host, standby=1, start="spawn"),
    }
    return {name: trio.run(_second_start, way) for name, way in ways.items()}


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
                found.setdefault(name, []).append({**trio.run(_measure, host), **_starts(host)})
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


def _hosts(running: ExitStack) -> dict[str, ProcessHost | SshHost | RayHost]:
    """The hosts to measure; what they need runs until the stack is left."""
    folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
    hosts: dict[str, ProcessHost | SshHost | RayHost] = {
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
