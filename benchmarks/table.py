"""The table of the results: the number of each contender, the ratio, the target, and whether it was met."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from .contenders import PEERS
from .measure import Results
from .rows import OURS, ROWS, Row

SCALES = (("s", 1.0), ("ms", 1e3), ("µs", 1e6), ("ns", 1e9))


class Line:
    """One row with its results."""

    def __init__(self, row: Row, results: Results) -> None:
        self.row = row
        self._results: dict[str, list[dict[str, Any]]] = results["measured"].get(row.work.name, {})

    @property
    def contenders(self) -> list[str]:
        """The contenders that have a result for this work, if only a reason why they cannot do it."""
        return list(self._results)

    def values(self, contender: str) -> list[float | None]:
        """This row's number in each repetition."""
        return [self.row.value(result) for result in self._results.get(contender, [])]

    def value(self, contender: str) -> float | None:
        """The median over the repetitions; None without a number."""
        values = [value for value in self.values(contender) if value is not None]
        return median(values) if values else None

    @property
    def ratio(self) -> float | None:
        """Our number divided by the reference's: the median of the ratios within one repetition. Without a reference, our number."""
        if self.row.reference is None:
            return self.value(OURS)
        pairs = zip(self.values(OURS), self.values(self.row.reference), strict=False)
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        return median(ratios) if ratios else None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target or a number."""
        return None if self.ratio is None else self.row.met(self.ratio)

    def cells(self, everyone: Sequence[str]) -> list[str]:
        """The cells of the line: the text, the ratio, the target, whether it is met, and the number of each contender."""
        return [
            self.row.text,
            self._ratio_text(),
            self._target_text(),
            {True: "yes", False: "no", None: ""}[self.met],
            *(number(self.value(contender), self.row.unit) for contender in everyone),
        ]

    def _ratio_text(self) -> str:
        if self.row.reference is None:
            return ""
        return "n/a" if self.ratio is None else f"{self.ratio:.2f} × {self.row.reference}"

    def _target_text(self) -> str:
        if self.row.target is None:
            return ""
        sign = "≥" if self.row.more_is_better else "≤"
        unit = " ×" if self.row.reference else f" {self.row.unit}".rstrip()
        return f"{sign} {self.row.target:g}{unit}"


def number(value: float | None, unit: str) -> str:
    """A number with three digits and its unit."""
    if value is None:
        return ""
    if unit == "/s":
        return f"{float(f'{value:.3g}'):,.0f}/s"
    if unit != "s":
        return f"{value:.3g} {unit}".rstrip()
    name, scale = next((each for each in SCALES if value * each[1] >= 1), SCALES[-1])
    return f"{value * scale:.3g} {name}"


def contenders_in(results: Results) -> list[str]:
    """The contenders in the results, this project first."""
    seen = dict.fromkeys(name for work in results["measured"].values() for name in work)
    return [OURS, *(name for name in seen if name != OURS)]


def lines(results: Results) -> list[Line]:
    """A line for each row that was measured."""
    return [Line(row, results) for row in ROWS if row.work.name in results["measured"]]


def as_text(results: Results) -> str:
    """The table in columns."""
    names = contenders_in(results)
    rows = [["what", "ratio", "target", "met", *names], *(line.cells(names) for line in lines(results))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def as_markdown(results: Results) -> str:
    """The tables in Markdown: floors and Erlang, then the peers, then the versions and the machine."""
    names, about = contenders_in(results), results["about"]
    peers = [OURS, *(name for name in names if name in PEERS)]
    floors = [name for name in names if name not in PEERS]
    tables = [
        _markdown(
            ["what", "ratio", "target", "met", *floors], [line.cells(floors) for line in lines(results)]
        )
    ]
    if len(peers) > 1:
        cells = [[line.row.text, *line.cells(peers)[4:]] for line in lines(results)]
        tables.append(_markdown(["what", *peers], [row for row in cells if any(row[2:])]))
    versions = "; ".join(f"{name}: {version}" for name, version in about["versions"].items())
    quick = " A quick run, with smaller numbers." if about["quick"] else ""
    return "\n\n".join(
        [*tables, f"{about['at'][:10]}, {about['machine']}, load {about['load'][0]}.{quick} {versions}."]
    )


def _markdown(heading: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows))
