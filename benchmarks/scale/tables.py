"""The tables of the page, each made of the recorded results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from benchmarks.scale.cost import PHASES
from benchmarks.scale.rack import DEFAULTS

Results = dict[str, Any]
"""What `python -m benchmarks.scale` records."""


def loss(results: Results) -> str:
    """The loss of a rack."""
    head = (
        "declaration",
        "the tree",
        "healthy devices stopped",
        "connections tried",
        "the bystander is down",
        "all are up again after",
    )
    return _table(
        head,
        (
            (
                name,
                "goes on" if one["ended"] is None else f"**ends** after {_time(one['ended'])}",
                _number(one["stopped_healthy"]),
                _number(one["attempts"]),
                _time(one["bystander"]),
                _time(one["up"]),
            )
            for name, one in results["loss"].items()
        ),
    )


def limits(results: Results) -> str:
    """The limits that are passed in layers with default limits."""
    passed = results["loss"][DEFAULTS]["passed"]
    return _table(
        ("seconds after the loss", "the supervisor that passes its limit"),
        ((f"{at:.3f}", f"`{path}`") for at, path in passed),
    )


def groups(results: Results) -> str:
    """The loss of one host."""
    return _table(
        ("devices of a rack", "healthy devices stopped", "all are up again after"),
        (
            (name, _number(one["stopped_healthy"]), _time(one["up"]))
            for name, one in results["groups"].items()
        ),
    )


def storm(results: Results) -> str:
    """What arrives at the file server."""
    head = (
        "backoff",
        "loads asked for in the worst second",
        "loads at once",
        "loads given up",
        "all are up again after",
    )
    return _table(
        head,
        (
            (
                name,
                _number(one["busiest"]),
                _number(one["peak"]),
                _number(one["given_up"]),
                _time(one["up"]),
            )
            for name, one in results["storm"].items()
        ),
    )


def boots(results: Results) -> str:
    """A first start of everything."""
    head = ("declaration", "loads at once", "loads given up", "all are up after")
    return _table(
        head,
        (
            (
                name,
                _number(one["peak"]),
                _number(one["given_up"]),
                f"never; {_number(one['devices'])} after {_time(one['horizon'])}"
                if one["up"] is None
                else _time(one["up"]),
            )
            for name, one in results["boots"].items()
        ),
    )


def stops(results: Results) -> str:
    """An ordered stop of everything."""
    return _table(
        ("declaration", "all have stopped after"),
        ((name, _time(seconds)) for name, seconds in results["stops"].items()),
    )


def partition(results: Results) -> str:
    """The partition of a rack from the control program."""
    return _units(results["parted"], "both sides keep to")


def control(results: Results) -> str:
    """The loss of the control program."""
    return _units(results["killed"], "the new control program")


def _units(found: dict[str, Any], what: str) -> str:
    head = (what, "units concerned", "held twice", "for at most", "held by none for at most", "models loaded")
    return _table(
        head,
        (
            (
                name,
                _number(one["units"]),
                _number(one["doubled"]),
                _time(one["longest_double"]) if one["doubled"] else "",
                _time(one["longest_gap"]),
                _number(one["loads"]),
            )
            for name, one in found.items()
        ),
    )


def cost(results: Results) -> str:
    """Counts and seconds of the phases, and memory."""
    counts, times = results["counts"], results["times"]
    sizes = list(counts)
    head = (
        "phase",
        *(f"inputs, {_number(int(size))} devices" for size in sizes),
        "events",
        "turns of Trio's scheduler",
        "turns of the floor",
        "seconds",
        "seconds of the floor",
        "ratio of seconds",
    )
    last = sizes[-1]
    rows = [
        (
            phase,
            *(_number(counts[size]["ours"][phase]["inputs"]) for size in sizes),
            _number(counts[last]["ours"][phase]["events"]),
            _number(counts[last]["ours"][phase]["turns"]),
            _number(counts[last]["floor"][phase]["turns"]),
            *_beside(times, phase, lambda value: f"{value:.2f}"),
        )
        for phase in PHASES
    ]
    memory = (
        "memory of one device",
        *[""] * (len(sizes) + 3),
        *_beside(times, "kB", lambda value: f"{value:.1f} kB"),
    )
    return _table(head, [*rows, memory])


def _beside(times: dict[str, Any], key: str, text: Callable[[float], str]) -> tuple[str, str, str]:
    """Ours, the floor, and the median of the ratios within one repetition."""
    ours, floor = (
        [one[key] for name, one in times.items() if name.startswith(way)] for way in ("ours", "floor")
    )
    ratio = median(one / other for one, other in zip(ours, floor, strict=True))
    return text(median(ours)), text(median(floor)), f"{ratio:.1f}"


def about(results: Results) -> str:
    """When and where it was measured."""
    found = results["about"]
    return f"{found['at'][:10]}, {found['machine']}, load {found['load'][0]}, {found['versions']['ours']}"


TABLES: dict[str, Callable[[Results], str]] = {
    "loss": loss,
    "limits": limits,
    "groups": groups,
    "storm": storm,
    "boots": boots,
    "stops": stops,
    "partition": partition,
    "control": control,
    "cost": cost,
    "about": about,
}
"""Each by the name of its place on the page."""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    return f"{value:,}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
