"""Measure the speed of this project against bare Trio, Erlang, and the peers that are installed.

    python -m benchmarks                     measure everything, print the table, and write benchmarks/results.json
    python -m benchmarks --only storm group  measure these rows only; `growth` is the curves; writes nothing
    python -m benchmarks --keep --only group the same, and put them into benchmarks/results.json
    python -m benchmarks --who trio_task     this project and these contenders only
    python -m benchmarks --quick             smaller numbers and two repetitions; writes nothing
    python -m benchmarks --markdown          print the last results as Markdown; measures nothing
    python -m benchmarks --publish           put them into docs/project/performance.md, and draw docs/project/*.svg; measures nothing
    python -m benchmarks.contenders          install the peers, each into an environment of its own

The contenders are measured in turns, each measurement in a separate process; a ratio is the median of the ratios within one
repetition. Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import contenders, draw, growth, table
from .measure import Results, measure
from .rows import ROWS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
GROWTH = "growth"
PAGE = ROOT / "docs" / "project" / "performance.md"
BEGIN, END = "<!-- python -m benchmarks --publish -->\n", "<!-- end -->\n"


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    if options.markdown:
        print(table.as_markdown(_last()))
    elif options.publish:
        publish(_last())
    else:
        return _measure(options)
    return 0


def _measure(options: argparse.Namespace) -> int:
    rows = [row for row in ROWS if options.only is None or row.name in options.only]
    present = contenders.present()
    chosen = [name for name in present if options.who is None or name in ("ours", *options.who)]
    results = measure(rows, chosen, options.reps or (2 if options.quick else 5), quick=options.quick)
    if options.only is None or GROWTH in options.only:
        results["growth"] = growth.curves(quick=options.quick)
    if options.keep or (options.only is None and not options.quick):
        _keep(results)
    print(table.as_text(results))
    return int(any(table.Line(row, results).met is False for row in rows))


def _keep(results: Results) -> None:
    """Replace the measurements in the last results by the new ones."""
    last: Results = _last() if RESULTS.exists() else {"measured": {}}
    measured = {**last["measured"], **results["measured"]}
    RESULTS.write_text(json.dumps({**last, **results, "measured": measured}, indent=1) + "\n")


def publish(results: Results) -> None:
    """Write the table of the page and the pictures from the results."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{table.as_markdown(results)}\n{END}{after}")
    for name, picture in pictures(results).items():
        (PAGE.parent / name).write_text(picture)


def pictures(results: Results) -> dict[str, str]:
    """Each picture by the name of its file in docs/project."""
    return {"performance.svg": draw.comparison(results), "growth.svg": draw.growth(results["growth"])}


def _last() -> Results:
    results: Results = json.loads(RESULTS.read_text())
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller numbers, two repetitions; writes nothing"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[*(row.name for row in ROWS), GROWTH])
    parser.add_argument("--who", nargs="+", metavar="NAME", choices=contenders.present(), help="and ours")
    parser.add_argument("--keep", action="store_true", help="write the results, of some rows too")
    parser.add_argument("--reps", type=int, help="repetitions; the median counts (5)")
    parser.add_argument("--markdown", action="store_true", help="print the last results as Markdown")
    parser.add_argument("--publish", action="store_true", help="put the last results into the docs")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
