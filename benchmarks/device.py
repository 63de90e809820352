"""Measure the cost of a lost context, and of a separate process, with floors from the same run.

    python -m benchmarks.device                 20 deaths of each kind, a few minutes
    python -m benchmarks.device --quick         3 of each
    python -m benchmarks.device --json FILE     also write the figures as JSON
    python -m benchmarks.device --device cuda:0 deaths, floors and holds with the model on that device
    python -m benchmarks.device --plot FILE     only draw the tokens of sixteen streams over the loss of a context

A death is a SIGKILL of the process that holds the model, in mid-stream; the gap is the time until its stream continues. The
figures are medians, in milliseconds unless a row has another unit. Exit status 1 if a figure misses its target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import trio
from attrs import asdict, define, evolve, field

from benchmarks import several, streams
from benchmarks.batching import Batching, mean_batch
from benchmarks.paced import Paced
from runners.errors import ContextDied
from runners.hosts import Host, Session
from runners.hosts.inline import InlineHost
from runners.hosts.process.host import ProcessHost
from runners.hosts.thread import ThreadHost
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, RunnerStart, Sampling, TokenChunk
from runners.worker import device_worker
from supervise import Supervisor, Tree, open_tree

STREAMS = 32
PLACES = 64
"""The places of the runner whose batches are counted, and the requests that wait for them."""
STRIKE_AT = 20
"""The index of the token at which the consumer kills the context, which may be further ahead."""
TOKENS = 240
PACE = 0.0006
"""Seconds that a token takes when the overhead of the process is measured."""
REST = 1.0
"""Seconds after a start in which a standby becomes ready."""

STANDBY = ProcessHost(standby=1)
FORKED = ProcessHost()
COLD = ProcessHost(start="spawn")


# --- figures


@define
class Figure:
    """One row.

    Args:
        name: the measurement in words.
        samples: all samples.
        unit: the unit of the samples.
        target: the most that the median may be; None for a floor. `because` explains it.
        at_least: the target is the least instead.
    """

    name: str
    samples: list[float]
    unit: str = "ms"
    target: float | None = None
    because: str = ""
    at_least: bool = False

    @property
    def median(self) -> float:
        """The median of the samples."""
        return statistics.median(self.samples)

    @property
    def good(self) -> bool:
        """Whether the median meets the target."""
        if self.target is None:
            return True
        return self.median >= self.target if self.at_least else self.median <= self.target

    def row(self) -> str:
        """The row of the table."""
        target = "" if self.target is None else f"{'≥' if self.at_least else '≤'} {self.target:,.4g}"
        verdict = "" if self.target is None else "yes" if self.good else "NO"
        low, high = min(self.samples), max(self.samples)
        return (
            f"{self.name:<52} {self.median:>10,.4g} {self.unit:<9} {low:>9,.4g} {high:>9,.4g} {len(self.samples):>4}"
            f"  {target:<12} {verdict:<4} {self.because}"
        )


@define
class Report:
    """All rows, each printed as it is added."""

    device: str = "cpu"
    figures: list[Figure] = field(factory=list[Figure])

    def add(self, figure: Figure) -> float:
        """Add and print a row. Returns its median."""
        if not self.figures:
            print(
                f"{'':<52} {'median':>10} {'':<9} {'min':>9} {'max':>9} {'n':>4}  {'target':<12} kept",
                flush=True,
            )
        self.figures.append(figure)
        print(figure.row(), flush=True)
        return figure.median

    def as_json(self) -> dict[str, Any]:
        """The report for a file."""
        import torch  # noqa: PLC0415 - imported earlier, torch and its threads would be in the process that measures

        return {
            "date": time.strftime("%Y-%m-%d"),
            "cpus": os.cpu_count(),
            "device": self.device if self.device == "cpu" else torch.cuda.get_device_name(self.device),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "load": os.getloadavg(),
            "figures": [
                asdict(figure) | {"median": figure.median, "good": figure.good} for figure in self.figures
            ],
        }


# --- a death in mid-stream


def _request(name: str = "r", most: int = TOKENS) -> ExecuteBatch:
    return ExecuteBatch(name, "The ", sampling=Sampling(max_tokens=most, temperature=0.7, seed=1))


@define
class Deaths:
    """Milliseconds, in a list for each kind; `lengths`: how many tokens were accepted when the context died."""

    standby: list[float] = field(factory=list[float])
    forked: list[float] = field(factory=list[float])
    cold: list[float] = field(factory=list[float])
    seen: list[float] = field(factory=list[float])
    prefill: list[float] = field(factory=list[float])
    load: list[float] = field(factory=list[float])
    lengths: list[int] = field(factory=list[int])


async def warm_deaths(count: int, device: str = "cpu") -> Deaths:
    """Gaps with a standby and with a fork server, and their floors, in turns, so that other load affects all of them."""
    found = Deaths()
    forked = evolve(FORKED, device=device)
    one, other = _worker("standby", evolve(STANDBY, device=device)), _worker("forked", forked)
    tree = Supervisor("app", [one, other])
    async with open_tree(tree, sinks=[]) as opened:
        for _ in range(count):
            for worker, gaps in ((one, found.standby), (other, found.forked)):
                await opened[worker].ready()
                await trio.sleep(REST)
                gap, length = await _gap(opened, worker)
                gaps.append(gap)
                found.lengths.append(length)
            found.seen.append(await _detection(forked))
            found.prefill.append(await _prefill(forked, found.lengths[-1]))
    return found


async def cold_deaths(count: int, device: str = "cpu") -> Deaths:
    """Gaps with cold starts, and their floor, in turns."""
    found = Deaths()
    worker = _worker("cold", evolve(COLD, device=device))
    async with open_tree(worker, sinks=[]) as opened:
        for _ in range(count):
            await opened[worker].ready()
            found.cold.append((await _gap(opened, worker))[0])
            found.load.append(await trio.to_thread.run_sync(_load, device))
    return found


def _worker(name: str, host: ProcessHost) -> Supervisor:
    return device_worker(name, TorchLM(), host=host, limit=None, backoff=None)


async def _gap(tree: Tree, worker: Supervisor) -> tuple[float, int]:
    """The time from a kill to the first token of the next incarnation at its consumer, and the index of that token.

    Some tokens of the old incarnation may still arrive after the kill.
    """
    context = await tree[worker].ready()
    struck = math.inf
    async with tree[worker].stream(_request()) as chunks:
        async for chunk in chunks:
            if chunk.incarnation != context.incarnation:
                return (time.perf_counter() - struck) * 1000, chunk.index
            if chunk.index == STRIKE_AT:
                os.kill(context.pid, signal.SIGKILL)
                struck = time.perf_counter()
    raise AssertionError("the stream ended before its context was lost")


async def _detection(host: ProcessHost) -> float:
    """The time from a kill of a process with torch until `receive` raises."""
    async with host.open(TorchLM()) as session:
        session.begin(_request())
        await session.receive()
        struck = time.perf_counter()
        os.kill(session.pid or 0, signal.SIGKILL)
        await _until_dead(session)
        return (time.perf_counter() - struck) * 1000


async def _until_dead(session: Session) -> None:
    try:
        while True:
            await session.receive()
    except ContextDied:
        pass


async def _prefill(host: ProcessHost, length: int) -> float:
    """The time from a begin after `length` tokens to the next token, as the first work of a context."""
    async with host.open(TorchLM()) as session:
        before = time.perf_counter()
        session.begin(_request(), [7] * length)
        await session.receive()
        return (time.perf_counter() - before) * 1000


_LOADS = """
import os, sys
from runners.models.torch_lm import TorchLM
from runners.types import RunnerStart
TorchLM().build(RunnerStart(incarnation=1, device=sys.argv[1]))
os._exit(0)
"""


def _load(device: str) -> float:
    """The time of a new Python that imports torch, loads the model, and ends at once."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", _LOADS, device], check=True, cwd=Path(__file__).parents[1])
    return (time.perf_counter() - before) * 1000


# --- the cost of a separate process


async def overhead(count: int) -> tuple[list[float], list[float]]:
    """Milliseconds for each token, in this process and through a separate one, in turns."""
    here, there = [], []
    runner, request = Paced(pace=PACE), _request(most=1000)
    local = runner.build(RunnerStart(incarnation=1))
    async with FORKED.open(runner) as session:
        for number in range(count):
            before = time.perf_counter()
            tokens = sum(1 for _ in cast("Iterator[TokenChunk]", local.execute(request)))
            here.append((time.perf_counter() - before) / tokens * 1000)
            before = time.perf_counter()
            session.begin(_request(str(number), 1000))
            tokens = await _received(session, 1000)
            there.append((time.perf_counter() - before) / tokens * 1000)
    return here, there


async def _received(session: Session, count: int) -> int:
    got = 0
    while got < count:
        got += len(await session.receive())
    return got


# --- many streams


async def session_rates(count: int, tokens: int) -> list[float]:
    """Chunks per second that a session receives, over all streams."""
    found = []
    async with FORKED.open(Paced(STREAMS)) as session:
        for _ in range(count):
            before = time.perf_counter()
            for number in range(STREAMS):
                session.begin(_request(str(number), tokens))
            got = await _received(session, STREAMS * tokens)
            found.append(got / (time.perf_counter() - before))
    return found


async def buffer_rates(count: int, tokens: int) -> list[float]:
    """Chunks per second through a session into a buffer for each stream, which its consumer empties."""
    found = []
    async with FORKED.open(Paced(STREAMS)) as session:
        for _ in range(count):
            before = time.perf_counter()
            await _through_buffers(session, tokens)
            found.append(STREAMS * tokens / (time.perf_counter() - before))
    return found


async def _through_buffers(session: Session, tokens: int) -> None:
    buffers = {str(number): _Buffer(tokens) for number in range(STREAMS)}
    async with trio.open_nursery() as nursery:
        for name, buffer in buffers.items():
            nursery.start_soon(buffer.consume)
            session.begin(_request(name, tokens))
        while any(buffer.left for buffer in buffers.values()):
            for item in await session.receive():
                buffers[item.request_id].put(item)


@define
class _Buffer:
    """The items of one stream that are not consumed yet; `left` more are expected."""

    left: int
    items: list[object] = field(factory=list[object])
    lot: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    def put(self, item: object) -> None:
        """Add an item, and wake the consumer if it waits."""
        self.items.append(item)
        self.left -= 1
        if self.lot:
            self.lot.unpark()

    async def consume(self) -> None:
        """Take all buffered items, again and again, until the last."""
        while self.left or self.items:
            if not self.items:
                await self.lot.park()
            taken, self.items = self.items, []
            assert taken
            await trio.lowlevel.checkpoint()


async def channel_rates(count: int, tokens: int) -> list[float]:
    """Items per second through as many memory channels of Trio, without a process or chunks."""
    found = []
    for _ in range(count):
        before = time.perf_counter()
        async with trio.open_nursery() as nursery:
            channels = [trio.open_memory_channel[int](tokens) for _ in range(STREAMS)]
            for _, receive in channels:
                nursery.start_soon(_consume, receive)
            for item in range(tokens):
                await trio.lowlevel.checkpoint()
                for send, _ in channels:
                    send.send_nowait(item)
            for send, _ in channels:
                send.close()
        found.append(STREAMS * tokens / (time.perf_counter() - before))
    return found


async def _consume(receive: trio.MemoryReceiveChannel[int]) -> None:
    async with receive:
        async for _ in receive:
            pass


async def worker_rates(count: int, tokens: int) -> list[float]:
    """Chunks per second through a device worker, with a consumer for each stream."""
    found = []
    worker = device_worker("llm", Paced(STREAMS), host=FORKED)
    async with open_tree(worker, sinks=[]) as tree:
        for turn in range(count):
            before = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(STREAMS):
                    nursery.start_soon(_drink, tree, worker, _request(f"{turn}.{number}", tokens))
            found.append(STREAMS * tokens / (time.perf_counter() - before))
    return found


async def _drink(tree: Tree, worker: Supervisor, request: ExecuteBatch) -> None:
    async with tree[worker].stream(request) as chunks:
        async for _ in chunks:
            pass


# --- full batches, and many open streams


async def batches(host: Host, count: int) -> list[float]:
    """The mean size of a step of a runner with `PLACES` places for which as many requests wait; so often."""
    found = []
    worker = device_worker("batching", Batching(PLACES), host=host)
    async with open_tree(worker, sinks=[]) as tree:
        for turn in range(count):
            sizes: list[int] = []
            async with trio.open_nursery() as nursery:
                for number in range(PLACES):
                    nursery.start_soon(_call, tree, worker, ExecuteBatch(f"{turn}.{number}"), sizes)
            found.append(mean_batch(sizes))
    return found


async def _call(tree: Tree, worker: Supervisor, request: ExecuteBatch, sizes: list[int]) -> None:
    done = await tree[worker].call(request)
    sizes.append(done.data[0])


def request_times(count: int, requests: int = 500) -> tuple[list[float], list[float]]:
    """Microseconds of a request beside no open stream, and beside `streams.MANY`, in turns."""
    none, many = [], []
    for _ in range(count):
        none.append(trio.run(streams.seconds, 0, requests) * 1e6)
        many.append(trio.run(streams.seconds, streams.MANY, requests) * 1e6)
    return none, many


# --- the loop


class _Steps(trio.abc.Instrument):
    """The milliseconds for which each step of a task held the loop."""

    def __init__(self) -> None:
        self.held: list[float] = []
        self._began = math.inf

    def before_task_step(self, _task: trio.lowlevel.Task, /) -> None:
        self._began = time.perf_counter()

    def after_task_step(self, _task: trio.lowlevel.Task, /) -> None:
        self.held.append((time.perf_counter() - self._began) * 1000)


async def longest_holds(host: ProcessHost, count: int) -> list[float]:
    """The milliseconds of the longest step of a task in each start, death and next start."""
    found = []
    async with host.open(TorchLM()):
        await trio.sleep(REST)
    for incarnation in range(2, count + 2):
        steps = _Steps()
        trio.lowlevel.add_instrument(steps)
        async with host.open(TorchLM(), incarnation=incarnation) as session:
            session.begin(_request())
            await session.receive()
            os.kill(session.pid or 0, signal.SIGKILL)
            await _until_dead(session)
        trio.lowlevel.remove_instrument(steps)
        found.append(max(steps.held[1:]))
    return found


# --- all of it


def measure(report: Report, *, deaths: int, cold: int, turns: int, tokens: int, seconds: float) -> None:
    """Measure everything, with these numbers of samples. On a GPU a context starts slowly, and the gaps have no target yet."""
    run, device, aims = _running(report), report.device, report.device == "cpu"
    warm, chilled = trio.run(warm_deaths, deaths, device), trio.run(cold_deaths, cold, device)
    length = statistics.median(warm.lengths)
    seen = report.add(Figure("floor: kill to death detected, torch in the process", warm.seen))
    prefill = report.add(Figure(f"floor: prefill of {length:.0f} tokens, first of a context", warm.prefill))
    load = report.add(Figure("floor: new Python imports torch and loads", chilled.load))
    most = 1.5 * (seen + prefill)
    for name, gaps, target, because in (
        ("warm standby", warm.standby, most, "1.5 × (death detected + prefill)"),
        ("fork server", warm.forked, 60.0, ""),
        ("cold spawn", chilled.cold, 1.2 * load, "1.2 × (importing torch + loading)"),
    ):
        report.add(Figure(f"gap, {name}", gaps, target=target if aims else None, because=because))
    here, there = trio.run(overhead, turns)
    floor = report.add(Figure("floor: a token in this process", here))
    report.add(
        Figure("a token through a separate process", there, target=1.15 * floor, because="1.15 × floor")
    )
    rates: list[tuple[str, Callable[..., Awaitable[list[float]]], float | None]] = [
        ("Trio's memory channels (floor)", channel_rates, None),
        ("a session", session_rates, None),
        ("a session and 32 buffers", buffer_rates, 300_000.0),
        ("a device worker", worker_rates, 300_000.0),
    ]
    for name, rate, target in rates:
        run(f"32 streams through {name}", rate, turns, tokens, unit="chunks/s", target=target, at_least=True)
    for name, place, least in (
        ("in this process (floor)", InlineHost(), None),
        ("through a thread", ThreadHost(), 60.0),
        ("through a process", FORKED, 60.0),
    ):
        run(
            f"mean batch of {PLACES} waiting, {name}",
            batches,
            place,
            turns,
            unit="requests",
            target=least,
            at_least=True,
        )
    none, many = request_times(turns)
    floor = report.add(Figure("floor: a request beside no open stream", none, unit="µs"))
    name = f"a request beside {streams.MANY:,} open streams"
    report.add(Figure(name, many, unit="µs", target=1.5 * floor, because="1.5 × floor"))
    for name, host in (("standby", STANDBY), ("fork server", FORKED), ("cold spawn", COLD)):
        run(f"longest hold of the loop, {name}", longest_holds, evolve(host, device=device), cold, target=5.0)
    _measure_several(report, deaths=deaths, seconds=seconds)


def _measure_several(report: Report, *, deaths: int, seconds: float) -> None:
    """Measure workers over several contexts, beside the floors that are in the report, and one of their own."""
    run = _running(report)
    seen, prefill = (figure.median for figure in report.figures[:2])
    run(
        "gap, two contexts, no restart in it",
        several.failover,
        deaths,
        report.device,
        target=1.5 * (seen + prefill) if report.device == "cpu" else None,
        because="1.5 × (death detected + prefill)",
    )
    floor = run("floor: pause of 64 streams over 8 contexts, one death", several.scripted_failover, deaths)
    pauses = trio.run(several.group_under_kills, seconds)
    longest = Figure(
        f"longest pause of {len(pauses)} such streams, a death a second",
        [max(pauses)],
        target=3 * floor,
        because="3 × floor",
    )
    report.add(longest)
    for name, order in several.ORDERS.items():
        waits = trio.run(several.waits_during, order)
        figure = Figure(
            f"longest wait of {len(waits)} requests, {name}",
            [max(waits)],
            target=several.DRAIN * 1000,
            because="one drain",
        )
        report.add(figure)


def _running(report: Report) -> Callable[..., float]:
    def run(name: str, question: Callable[..., Awaitable[list[float]]], *args: Any, **about: Any) -> float:
        return report.add(Figure(name, trio.run(question, *args), **about))

    return run


def _is_there(device: str) -> bool:
    """Whether torch has this device; asked in another process, so that this one gets no device context."""
    if device == "cpu":
        return True
    asks = f"import torch; torch.empty(1, device={device!r})"
    return not subprocess.run([sys.executable, "-c", asks], capture_output=True, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.device", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="few samples, to check that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument(
        "--device", default="cpu", help="the device of the model, as torch names it; default: cpu"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the picture into this file, and nothing else"
    )
    options = parser.parse_args(argv)
    if options.plot:
        options.plot.write_text(several.picture())
        return 0
    if not _is_there(options.device):
        parser.error(f"--device must be cpu or one that torch has here, got {options.device!r}")
    report = Report(options.device)
    if options.quick:
        measure(report, deaths=3, cold=2, turns=3, tokens=500, seconds=5)
    else:
        measure(report, deaths=20, cold=15, turns=15, tokens=2000, seconds=60)
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 0 if all(figure.good for figure in report.figures) else 1


if __name__ == "__main__":
    sys.exit(main())
