"""A tree for 1,000 hosts with eight devices each: every figure and picture of docs/explanation/scale.md.

    python -m benchmarks.scale             run everything, some ten minutes, and write benchmarks/scale/results.json
    python -m benchmarks.scale --quick     four racks of five hosts, in a minute; writes nothing
    python -m benchmarks.scale --only loss storm   run these parts, and keep the other last results
    python -m benchmarks.scale --publish   put the last results into the page, and draw its pictures; runs nothing

The trees are real and time is virtual, so all results but those of the last table are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import asdict

from benchmarks.measure import about, run
from benchmarks.progress import progress
from benchmarks.scale import cost, partition, rack, stop
from benchmarks.scale.draw import PICTURES
from benchmarks.scale.tables import TABLES, Results
from benchmarks.scale.world import Series, Size

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("results.json")
PAGE = ROOT / "docs" / "explanation" / "scale.md"
BEGIN, END = "<!-- python -m benchmarks.scale: {} -->\n", "\n<!-- end -->"
FULL, QUICK = Size(), Size(racks=4, hosts=5)
REPETITIONS = 5
Work = Callable[[], Any]
PARTS = ("loss", "groups", "storm", "boots", "stops", "parted", "killed", "counts", "times")
BOOT_HORIZON = 1800.0
LONG_HORIZON = 100_000.0
"""Seconds after which a first start is given up; the long one for one program in which each start waits for a load."""


def plan(size: Size, repetitions: int) -> dict[str, dict[str, Work]]:
    """Every run, by its part of the results and its name there."""
    horizons = dict.fromkeys(rack.BOOTS, BOOT_HORIZON) | {rack.IN_START: LONG_HORIZON}
    return {
        "loss": {name: partial(_loss, start, size) for name, start in rack.DECLARATIONS.items()},
        "groups": {name: partial(_group, start, size) for name, start in rack.GROUPS.items()},
        "storm": {
            "no jitter": partial(_storm, rack.storm(0.0), size),
            "jitter ±10 %": partial(_storm, rack.storm(0.1), size),
            "jitter ±100 %": partial(_storm, rack.storm(1.0), size),
            "jitter ±100 %, with a queue": partial(_storm, rack.storm(1.0), size, queue=True),
            rack.ON_HOSTS: partial(_storm, rack.DECLARATIONS[rack.ON_HOSTS], size),
        },
        "boots": {
            f"{name}{', with a queue' * queue}": partial(_boot, start, size, horizons[name], queue=queue)
            for name, start in rack.BOOTS.items()
            for queue in (False, True)
            if name != rack.IN_START or not queue  # it never has two loads at once
        },
        "stops": {name: partial(stop.stop, programs, size) for name, programs in stop.STOPS.items()},
        "parted": {
            name: partial(_parted, partition.part, terms, size) for name, terms in partition.TERMS.items()
        },
        "killed": {
            name: partial(_parted, partition.kill, first, size) for name, first in partition.FIRST.items()
        },
        "counts": {
            str(each.all_devices): partial(_counted, each)
            for each in (Size(2, size.hosts, size.devices), size)
        },
        "times": {
            f"{way} {turn}": partial(_timed, way, size) for turn in range(repetitions) for way in cost.WAYS
        },
    }


def measure(size: Size, repetitions: int, only: Sequence[str]) -> Results:
    """Run these parts."""
    found: Results = {"size": {"devices": size.all_devices, "places": size.hosts}}
    if "times" in only:  # the other parts are the same at any time, on any machine
        found["about"] = about(["ours"], quick=size == QUICK)
    works = {part: these for part, these in plan(size, repetitions).items() if part in only}
    with progress("runs", sum(map(len, works.values()))) as step:
        for part, these in works.items():
            found[part] = {}
            for name, work in these.items():
                found[part][name] = work()
                step(1)
    return found


def _loss(start: rack.Start, size: Size) -> dict[str, Any]:
    outcome = asdict(rack.lose(start, size))
    del outcome["loading"]
    return {**outcome, "series": _thinned(outcome["series"])}


def _group(start: rack.Start, size: Size) -> dict[str, Any]:
    outcome = rack.lose(start, size, hosts=[size.hosts + size.hosts // 2])
    return {"stopped_healthy": outcome.stopped_healthy, "up": outcome.up}


def _storm(start: rack.Start, size: Size, *, queue: bool = False) -> dict[str, Any]:
    outcome = asdict(rack.lose(start, size, queue=queue))
    del outcome["series"]
    return {**outcome, "loading": _thinned(outcome["loading"])}


def _boot(start: rack.Start, size: Size, horizon: float, *, queue: bool) -> dict[str, Any]:
    return {"horizon": horizon, **asdict(rack.boot(start, size, queue=queue, horizon=horizon))}


def _parted(fault: Callable[[Any, Size], partition.Parted], terms: Any, size: Size) -> dict[str, Any]:
    return asdict(fault(terms, size))


def _counted(size: Size) -> dict[str, Any]:
    return {way: cost.counted(way, size) for way in cost.WAYS}


def _timed(way: str, size: Size) -> dict[str, Any]:
    arguments = f"{way!r}, {size.racks}, {size.hosts}, {size.devices}"
    code = f"import json; from benchmarks.scale.cost import timed; print(json.dumps(timed({arguments})))"
    return run(sys.executable, "-c", code)


def _thinned(series: Series) -> Series:
    """The last value of each half second, which is all that a picture shows."""
    last = {round(2 * at) / 2: value for at, value in series}
    return list(last.items())


def published(page: str, results: Results) -> str:
    """The page, with the tables of these results."""
    for name, table in TABLES.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin)
        if found:
            page = f"{before}{begin}{table(results)}{END}{rest.partition(END)[2]}"
    return page


def pictures(results: Results) -> dict[str, str]:
    """Each picture by the name of its file in docs/explanation."""
    return {name: draw(results) for name, draw in PICTURES.items()}


def last() -> Results:
    """The results that were recorded last."""
    results: Results = json.loads(RESULTS.read_text())
    return results


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="four racks of five hosts; writes nothing")
    parser.add_argument("--publish", action="store_true", help="put the last results into the docs")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="keep the other last results")
    options = parser.parse_args(arguments)
    if options.publish:
        results = last()
        PAGE.write_text(published(PAGE.read_text(), results))
        for name, picture in pictures(results).items():
            (PAGE.parent / name).write_text(picture)
        return 0
    if options.quick:
        results = measure(QUICK, 1, PARTS)
    else:
        measured = measure(FULL, REPETITIONS, options.only)
        results = (last() if RESULTS.exists() else {}) | measured
        RESULTS.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    for name, table in TABLES.items() if results.keys() >= {*PARTS} else ():
        print(f"{name}\n\n{table(results)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
