"""`python -m tests.servers --examples 10000 [--seed N]`: play so many schedules of a worker over a server that fails.

The first that breaks a rule is made as short as it gets, and printed. Exit status 1 then.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.progress import progress

from .play import Schedule, play, schedules


def main() -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.servers", description=__doc__)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.getLogger("runners.worker").setLevel(logging.ERROR)  # each change of a breaker is logged
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
    @given(schedules)
    def search(schedule: Schedule) -> None:
        nonlocal played
        played += 1
        ends.update(play(schedule, seed=options.seed + played).ends)
        step(1)

    with progress("schedules", options.examples) as step:
        search()
    print(f"{played} schedules in {time.monotonic() - began:.0f} s: {dict(ends.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
