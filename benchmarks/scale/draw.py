"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.scale.partition import CUT
from benchmarks.scale.rack import DEFAULTS, EACH, FLAT_FREE, ON_HOSTS, OUTAGE
from benchmarks.svg import FAINT, GRID, Picture, Scale

Results = dict[str, Any]
WIDTH, LEFT, RIGHT, TOP = 760, 78, 40, 70
RED, BLUE, GREEN, OCHRE, VIOLET = "#cf222e", "#0969da", "#1a7f37", "#bf8700", "#8250df"


def _linear(least: float, most: float, begin: float, end: float) -> Any:
    return lambda value: begin + (min(max(value, least), most) - least) / (most - least) * (end - begin)


def _steps(series: Sequence[tuple[float, float]], x: Any, y: Any, until: float) -> list[tuple[float, float]]:
    """The corners of a number that changes by steps."""
    points: list[tuple[float, float]] = []
    for at, value in series:
        if at > until:
            break
        if points:
            points.append((x(at), points[-1][1]))
        points.append((x(at), y(value)))
    return [*points, (x(until), points[-1][1])] if points else []


def loss(results: Results) -> str:
    """The devices that are down, over time."""
    height, bottom, until = 350, 320, 3000.0
    picture = Picture(WIDTH, height, "A rack of 40 hosts loses its power for three minutes", dark=True)
    picture.text(
        20,
        50,
        "devices that are down, of 8,000; seconds from the loss; both axes are logarithmic",
        color=FAINT,
        size=13,
    )
    x, y = Scale(10, until, LEFT, WIDTH - RIGHT), Scale(1, 10_000, bottom, TOP)
    for value in (1, 10, 100, 1000, 8000):
        picture.line(LEFT, y(value), WIDTH - RIGHT, y(value))
        picture.text(LEFT - 8, y(value) + 4, f"{value:,}", color=FAINT, anchor="end", size=12)
    for at in (10, 30, 100, 300, 1000, 3000):
        picture.line(x(at), TOP, x(at), bottom)
        picture.text(x(at), bottom + 18, f"{at:,} s", color=FAINT, anchor="middle", size=12)
    picture.line(x(OUTAGE), TOP, x(OUTAGE), bottom, color=FAINT)
    picture.text(x(OUTAGE) - 6, bottom - 10, "the power is back", color=FAINT, anchor="end", size=12)
    total = results["size"]["devices"]
    for name, color, width in (
        (DEFAULTS, RED, 2),
        (FLAT_FREE, OCHRE, 2),
        (EACH, BLUE, 5),  # the next one lies on it
        (ON_HOSTS, GREEN, 2),
    ):
        series = [(max(at, 10.0), total - up) for at, up in results["loss"][name]["series"]]
        picture.curve(_steps(series, x, y, until), color=color, width=width)
    names = (
        (f"{DEFAULTS}: the tree ends", RED, x(OUTAGE) + 12, y(8000) - 8, "start"),
        (FLAT_FREE, OCHRE, x(620), y(320) - 18, "start"),
        (EACH, BLUE, x(300), y(30), "start"),
        (ON_HOSTS, GREEN, x(300), y(9), "start"),
    )
    for words, color, across, down, anchor in names:
        picture.text(across, down, words, color=color, size=13, weight=600, anchor=anchor)
    return str(picture)


def storm(results: Results) -> str:
    """The loads in progress at the file server, over time."""
    height, bottom, until, most = 380, 300, 200.0, 340
    picture = Picture(WIDTH, height, "320 devices come back to one file server", dark=True)
    picture.text(
        20,
        50,
        "loads in progress; seconds from the power; a start that takes 60 s is given up",
        color=FAINT,
        size=13,
    )
    x, y = _linear(0, until, LEFT, WIDTH - RIGHT), _linear(0, most, bottom, TOP)
    for value in range(0, 321, 80):
        picture.line(LEFT, y(value), WIDTH - RIGHT, y(value))
        picture.text(LEFT - 8, y(value) + 4, f"{value}", color=FAINT, anchor="end", size=12)
    for at in range(0, 201, 25):
        picture.line(x(at), TOP, x(at), bottom)
        picture.text(x(at), bottom + 18, f"{at} s", color=FAINT, anchor="middle", size=12)
    places = results["size"]["places"]
    picture.line(LEFT, y(places), WIDTH - RIGHT, y(places), color=FAINT)
    picture.text(WIDTH - RIGHT, y(places) - 5, f"{places} at full speed", color=FAINT, anchor="end", size=12)
    colors = (RED, OCHRE, BLUE, VIOLET, GREEN)
    for place, ((name, one), color) in enumerate(zip(results["storm"].items(), colors, strict=True)):
        series = [(0.0, 0), *((at - OUTAGE, value) for at, value in one["loading"] if at > OUTAGE)]
        picture.curve(_steps(series, x, y, until), color=color, width=5 if color == VIOLET else 2)
        column, row = LEFT + place % 3 * 230, bottom + 44 + place // 3 * 20
        picture.line(column, row, column + 22, row, color=color, width=3)
        picture.text(column + 28, row + 4, name, size=13)
    return str(picture)


def partition(results: Results) -> str:
    """Who holds one unit, over time."""
    lane, gap = 15, 62
    found = results["parted"]
    height = TOP + gap * len(found) + 48
    picture = Picture(WIDTH, height, "Who holds a unit of work while its host is cut off", dark=True)
    picture.text(
        20,
        50,
        "seconds from the cut; of each run the unit that fared worst",
        color=FAINT,
        size=13,
    )
    x = _linear(-10, 80, LEFT, WIDTH - RIGHT)
    bottom = TOP + gap * len(found)
    for at in range(-10, 81, 10):
        picture.line(x(at), TOP, x(at), bottom, color=FAINT if at in (0, CUT) else GRID)
        picture.text(x(at), bottom + 18, f"{at} s", color=FAINT, anchor="middle", size=12)
    picture.text(x(0), bottom + 36, "cut", color=FAINT, size=12, anchor="middle")
    picture.text(x(CUT), bottom + 36, "healed", color=FAINT, size=12, anchor="middle")
    for number, (name, one) in enumerate(found.items()):
        top = TOP + gap * number
        picture.text(LEFT, top + 16, name, size=13, weight=600)
        lanes = [(max(begun, -10.0), min(ended, 80.0)) for begun, ended in one["lanes"]]
        for place, (begun, ended) in enumerate(lanes):
            y = top + 24 + place * (lane + 2)
            picture.bar(x(begun), y, x(ended), y + lane, color=BLUE if place == 0 else GREEN)
        for (_, ended), (begun, _) in pairwise(lanes):
            if begun < ended:
                picture.bar(x(begun), top + 24 + lane, x(ended), top + 26 + lane, color=RED)
                words = f"held twice for {ended - begun:.1f} s"
            else:
                words = f"held by none for {begun - ended:.1f} s"
            picture.text(
                x(max(ended, begun)) + 8, top + 36, words, color=RED if begun < ended else FAINT, size=13
            )
    picture.text(LEFT - 8, TOP + 36, "old host", color=BLUE, anchor="end", size=12)
    picture.text(LEFT - 8, TOP + 53, "new host", color=GREEN, anchor="end", size=12)
    return str(picture)


PICTURES = {"scale-loss.svg": loss, "scale-storm.svg": storm, "scale-partition.svg": partition}
"""Each picture by the name of its file in docs/explanation."""
