"""How fast is it, against bare Trio, Erlang, and whoever else is installed?

    python -m benchmarks                     everything: a table, benchmarks/results.json, and docs/*.svg drawn from it
    python -m benchmarks --quick             smaller numbers and two repetitions: does it work, and about how fast
    python -m benchmarks --only storm group  only these rows; writes nothing
    python -m benchmarks --markdown          the table of benchmarks/results.json, as Markdown; measures nothing
    python -m benchmarks --publish           the same into docs/performance.md, and the pictures; measures nothing
    python -m benchmarks.contenders          install the peers, each into an environment of its own

Floors and ours are measured in turns, each in a process of its own; a ratio is the median of the ratios within one turn
each. Exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from . import contenders, table
from .measure import Results, measure
from .rows import ROWS

RESULTS = Path(__file__).parent / "results.json"


def main(arguments: Sequence[str]) -> int:
    """Do what the arguments say."""
    options = _parser().parse_args(arguments)
    if options.markdown:
        print(table.as_markdown(json.loads(RESULTS.read_text())))
        return 0
    rows = [row for row in ROWS if options.only is None or row.name in options.only]
    results = measure(
        rows, contenders.present(), options.reps or (2 if options.quick else 7), quick=options.quick
    )
    if options.only is None and not options.quick:
        write(results)
    print(table.as_text(results))
    return int(any(table.Line(row, results).met is False for row in rows))


def write(results: Results) -> None:
    """Keep the results."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="smaller numbers, two repetitions, nothing is written"
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS])
    parser.add_argument("--reps", type=int, help="repetitions; the median counts (7)")
    parser.add_argument("--markdown", action="store_true", help="print the last results as Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
