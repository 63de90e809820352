"""One measurement in a separate process: `python -m benchmarks.one adapters.ours storm '{"n": 1000}'`.

It runs under the contender's own Python, with this repository on its path, and prints one line of JSON last.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

from benchmarks.work import NotOffered


def main(module: str, function: str, arguments: str) -> None:
    """Do the work and print its result."""
    work = getattr(import_module(f"benchmarks.{module}"), function, None)
    try:
        result = {"na": "not offered"} if work is None else work(**json.loads(arguments))
    except NotOffered as reason:
        result = {"na": str(reason)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
