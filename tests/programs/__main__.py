"""`python -m tests.programs --kills 100 [--seed N] [--isolation namespace]`: so many strikes against each server that is installed.

It prints how long each took until the server was ready again. An exception and exit status 1 tell of anything that was left, of a
port that stayed busy, of a server that did not come back, and of a lost row.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median

import trio

from benchmarks.progress import progress

from .campaign import Campaign
from .servers import SERVERS


def main() -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isolation", choices=("group", "namespace", "cgroup"), default="group")
    parser.add_argument("--only", choices=list(SERVERS))
    options = parser.parse_args()
    kinds = [options.only] if options.only else list(SERVERS)
    for kind in kinds:
        if why := SERVERS[kind].missing():
            print(f"{kind}: {why}")
            return 1
    with tempfile.TemporaryDirectory() as folder, progress("strikes", options.kills * len(kinds)) as step:
        Path(folder).chmod(0o755)
        campaigns = []
        for kind in kinds:
            own = Path(folder, "servers", kind)
            own.mkdir(parents=True)
            campaigns.append(
                Campaign(kind, SERVERS[kind](own), seed=options.seed, isolation=options.isolation)
            )

        async def all_at_once() -> None:
            async with trio.open_nursery() as nursery:
                for one in campaigns:
                    nursery.start_soon(lambda one=one: one.run(options.kills, step=step))

        trio.run(all_at_once)
    for one in campaigns:
        report(one)
    return 0


def report(one: Campaign) -> None:
    """Print the times of one server."""
    print(f"{one.kind}: {len(one.strikes)} strikes, nothing left, always ready again")
    for kind in sorted({strike.kind for strike in one.strikes}):
        its = [strike for strike in one.strikes if strike.kind == kind]
        seconds = [strike.seconds for strike in its]
        gone = [strike.gone for strike in its if strike.gone is not None]
        line = f"  {kind}: {len(its)} ×, ready again after {median(seconds):.2f} s (at most {max(seconds):.2f} s)"
        print(
            line + (f", nothing left after {median(gone):.2f} s (at most {max(gone):.2f} s)" if gone else "")
        )
    tags = Counter(text.partition(":")[0] for text in one.failures)
    print(f"  failures: {dict(tags.most_common())}")


if __name__ == "__main__":
    sys.exit(main())
