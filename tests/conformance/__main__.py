"""`python -m tests.conformance CORPUS.jsonl.gz --through machine|trio`: play a corpus and compare."""

from __future__ import annotations

import argparse
import sys
import traceback
from typing import Any

from .compare import difference, load, plain
from .through import trace


def got(scenario: dict[str, Any], through: str) -> dict[str, Any]:
    """A scenario's trace, as it would read from a file, or the fault that prevented one."""
    try:
        return {"steps": plain(trace(scenario, through))}
    except Exception:
        return {"fault": traceback.format_exc()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("--through", choices=("machine", "trio"), default="machine")
    parser.add_argument("--show", type=int, default=5, help="how many differences to print")
    parser.add_argument("--only", help="the name of one scenario")
    options = parser.parse_args()
    recorded = [it for it in load(options.corpus) if options.only in (None, it["scenario"]["name"])]
    differing = [found for it in recorded if (found := difference(it, got(it["scenario"], options.through)))]
    for found in differing[: options.show]:
        print(found)
    print(f"{len(recorded) - len(differing)} of {len(recorded)} agree")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
