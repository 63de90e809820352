"""What it costs a tree of 1,000 nodes to be seen at 1,000 events a second: the history, the socket, its readers, and Prometheus.

    python -m benchmarks.operating [--seconds 5] [--times 5]      prints a table; the exit status is 1 above the target

The tree runs in a process of its own, and its readers in another one, as in use. In each repetition every row has one turn,
and a cost is the median of the differences to the floor of the same repetition: CPU time, in per cent of a core.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from statistics import median
from typing import Any

import httpx
import trio
from attrs import frozen

from supervise import Child, Supervisor, open_tree
from supervise.events import Event
from supervise.operate import History, operate
from supervise.operate.client import Client, OperateError

from .progress import progress

TARGET = 5.0
"""Per cent of a core, for everything together."""
SUPERVISORS, CHILDREN = 20, 50
FAILURES = 200
"""In a second. Each makes five events: Failed, Decided, Stopped, Starting and Ready."""
TURNS = 50
"""In a second, in which children fail."""
SCRAPE_SECONDS = 5.0
WARM_SECONDS = 1.5
"""For the start of the tree, and for the readers to connect, before the measurement begins."""


@frozen
class Row:
    """One measurement.

    Args:
        what: it measures.
        kept: whether a `History` gets the events.
        served: whether the tree is served at a socket; that has a history and metrics of its own.
        readers: how many follow `/events` and fetch `/status` once a second.
        scraped: whether `/metrics` is fetched every five seconds.
        stalled: how many readers ask for `/events` and read nothing.
    """

    what: str
    kept: bool = False
    served: bool = False
    readers: int = 0
    scraped: bool = False
    stalled: int = 0


ROWS = {
    "floor": Row("a sink that counts, and nothing else"),
    "history": Row("the last events are kept", kept=True),
    "served": Row("the socket, and metrics that nobody fetches", served=True),
    "readers": Row(
        "the same, with two readers of events and status: the page and `top`", served=True, readers=2
    ),
    "scraped": Row("the same, with a scrape every 5 s", served=True, readers=2, scraped=True),
    "stalled": Row("the same, with a reader that stalls", served=True, readers=2, scraped=True, stalled=1),
}
WHOLE = "stalled"
"""The row that has everything, and the target."""


# --- the process of the tree


async def tree_of(where: str, row: Row, seconds: float) -> dict[str, float]:
    """Run the tree while its children fail; the events, and the CPU time, of each second."""
    up: list[trio.Event] = []
    events = 0

    async def worker() -> None:
        ends = trio.Event()
        up.append(ends)
        await ends.wait()
        raise ConnectionError("the other end has closed the connection")

    def count(_: Event) -> None:
        nonlocal events
        events += 1

    async def fail(seconds: float) -> None:
        """Let the children fail that have been up for the longest time."""
        begin = trio.current_time()
        for turn in range(int(seconds * TURNS)):
            for _ in range(FAILURES // TURNS):
                up.pop(0).set()
            await trio.sleep_until(begin + (turn + 1) / TURNS)

    parts = [
        Supervisor(
            f"part-{part}", [Child(f"worker-{number}", worker) for number in range(CHILDREN)], limit=None
        )
        for part in range(SUPERVISORS)
    ]
    first = [operate(where)] if row.served else []
    async with open_tree(
        Supervisor("app", [*first, *parts]), sinks=[count, *([History()] if row.kept else [])]
    ):
        print("up", flush=True)
        await fail(WARM_SECONDS)
        before, cpu, begin = events, _cpu_seconds(), trio.current_time()
        await fail(seconds)
        took = trio.current_time() - begin
        return {"cpu": (_cpu_seconds() - cpu) / took, "events": (events - before) / took}


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# --- the process of the readers


class Readers:
    """The readers of one tree, and what they got."""

    def __init__(self, where: str, row: Row) -> None:
        self._where = where
        self._row = row
        self.got = {"events": 0, "statuses": 0, "scrapes": 0}

    async def read(self) -> dict[str, int]:
        """Read until the tree has ended."""
        async with trio.open_nursery() as nursery:
            if self._row.scraped:
                nursery.start_soon(self._scrape)
            for _ in range(self._row.stalled):
                nursery.start_soon(self._stall)
            async with trio.open_nursery() as following:
                for _ in range(self._row.readers):
                    following.start_soon(self._follow)
            nursery.cancel_scope.cancel("the tree has ended")
        return self.got

    async def _follow(self) -> None:
        """Stand for the page or `top`."""
        number = 0

        async def poll() -> None:
            fetched = 0
            with suppress(OperateError):  # the tree has ended
                while True:
                    if number > fetched:  # no event, no new status
                        fetched = number
                        await client.status()
                        self.got["statuses"] += 1
                    await trio.sleep(1)

        async with Client(self._where) as client, trio.open_nursery() as nursery:
            nursery.start_soon(poll)
            with suppress(OperateError):  # likewise
                async for event in client.events():
                    number = event.get("seq", number)
                    self.got["events"] += event.get("missed", 1)
            nursery.cancel_scope.cancel("all events are read")

    async def _scrape(self) -> None:
        transport = httpx.AsyncHTTPTransport(uds=self._where)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", trust_env=False
        ) as http:
            with suppress(httpx.HTTPError):  # the tree has ended
                while True:
                    (await http.get("/metrics")).raise_for_status()
                    self.got["scrapes"] += 1
                    await trio.sleep(SCRAPE_SECONDS)

    async def _stall(self) -> None:
        with trio.socket.socket(socket.AF_UNIX) as stalled:
            await stalled.connect(self._where)
            await stalled.send(b"GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            await trio.sleep_forever()


def check(row: Row, seconds: float, got: dict[str, int]) -> None:
    """Refuse a measurement in which the readers did not read."""
    least = {
        "events": int(row.readers * 5 * FAILURES * seconds),
        "statuses": int(row.readers * (seconds - 1)),
        "scrapes": int(row.scraped),
    }
    if any(got[name] < number for name, number in least.items()):
        raise RuntimeError(f"{row.what}: the readers got {got}, and should have got {least} or more")


# --- the measurement


def costs(seconds: float, times: int) -> dict[str, list[dict[str, float]]]:
    """What each row measured in each repetition."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    with progress("measurements", times * len(ROWS)) as step:
        for _ in range(times):
            for name in ROWS:
                found[name].append(_one(name, seconds))
                step(1)
    return found


def _one(name: str, seconds: float) -> dict[str, float]:
    """One row in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        where = f"{folder}/s"
        command = [sys.executable, "-m", "benchmarks.operating", "--seconds", str(seconds), "--socket", where]
        with subprocess.Popen([*command, "--tree", name], stdout=subprocess.PIPE, text=True) as tree:
            assert tree.stdout is not None
            assert tree.stdout.readline() == "up\n"
            if not ROWS[name].readers:
                result: dict[str, float] = json.loads(tree.stdout.read())
                return result
            done = subprocess.run(
                [*command, "--readers", name], stdout=subprocess.PIPE, timeout=60 + 3 * seconds, check=True
            )
            result = json.loads(tree.stdout.read())
    check(ROWS[name], seconds, json.loads(done.stdout))
    return result


def as_table(found: dict[str, list[dict[str, float]]]) -> tuple[str, float]:
    """The table as Markdown, and the cost of the whole in per cent of a core."""
    floor = found["floor"]
    lines = [
        "| what | events a second | CPU time, % of a core | above the floor |",
        "| --- | --- | --- | --- |",
    ]
    cost = 0.0
    for name, row in ROWS.items():
        results = found[name]
        cpu = 100 * median(result["cpu"] for result in results)
        above = [100 * (one["cpu"] - least["cpu"]) for one, least in zip(results, floor, strict=True)]
        cost = median(above) if name == WHOLE else cost
        events = median(result["events"] for result in results)
        shown = "" if name == "floor" else f"{median(above):.1f} ({min(above):.1f} to {max(above):.1f})"
        lines.append(f"| {row.what} | {events:,.0f} | {cpu:.1f} | {shown} |")
    return "\n".join(lines), cost


def about(seconds: float, times: int) -> str:
    """When and where this was measured."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("trio", "hypercorn", "starlette")]
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, {platform.system()}, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {', '.join(versions)}; medians of {times} "
        f"repetitions of {seconds:g} s."
    )


def main() -> int:
    """Measure, print, and compare with the target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.operating", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--times", type=int, default=5)
    for inner in ("--tree", "--readers", "--socket"):
        parser.add_argument(inner, help=argparse.SUPPRESS)
    given: Any = parser.parse_args()
    if given.tree:
        print(json.dumps(trio.run(tree_of, given.socket, ROWS[given.tree], given.seconds)))
        return 0
    if given.readers:
        print(json.dumps(trio.run(Readers(given.socket, ROWS[given.readers]).read)))
        return 0
    table, cost = as_table(costs(given.seconds, given.times))
    print(f"{table}\n\n{about(given.seconds, given.times)}")
    print(f"\nAll of it costs {cost:.1f} % of a core; the target is {TARGET:g} %.")
    return 0 if cost <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
