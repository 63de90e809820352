"""`python -m tests.rogue --examples 100000 [--seed N]`: play so many scripts of rogue contexts.

The first that breaks what must hold is made as short as it gets, and printed. Exit status 1 then.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.progress import progress

from .grammar import Script, scripts
from .play import play


def main() -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.rogue", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends = Counter[str]()
    played, began = 0, time.monotonic()

    @seed(options.seed)
    @settings(
        max_examples=options.examples,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(scripts)
    def search(script: Script) -> None:
        nonlocal played
        played += 1
        ends.update(str(outcome.ended) for outcome in play(script, seed=options.seed).outcomes)
        step(1)

    with progress("scripts", options.examples) as step:
        search()
    print(f"{played} scripts in {time.monotonic() - began:.0f} s: {dict(ends.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
