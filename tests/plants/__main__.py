"""`python -m tests.plants`: plant each fault, and print which test catches it."""

from __future__ import annotations

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path
from queue import SimpleQueue

from benchmarks.progress import tracked

from . import __doc__ as about
from .plant import Plant, caught_by, copy_of_project
from .plants import PLANTS


def main() -> int:
    """Exit status 1 if a fault survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.plants", description=about)
    parser.add_argument("--only", default="", help="only those whose name or file contains this")
    parser.add_argument("--processes", type=int, default=cpu_count() or 1)
    options = parser.parse_args()
    chosen = [plant for plant in PLANTS if options.only in f"{plant.name} {plant.file}"]
    folders: SimpleQueue[Path] = SimpleQueue()
    made = [copy_of_project() for _ in range(options.processes)]
    for folder in made:
        folders.put(folder)

    def judge(plant: Plant) -> str:
        folder = folders.get()
        try:
            return caught_by(plant, folder)
        finally:
            folders.put(folder)

    survivors = 0
    try:
        with ThreadPoolExecutor(options.processes) as pool:
            found = zip(chosen, pool.map(judge, chosen), strict=True)
            for number, (plant, by) in enumerate(tracked("plants", found, len(chosen)), 1):
                survivors += not by
                print(f"{number:3}/{len(chosen)} {plant.file}: {plant.name}: {by or 'SURVIVES'}", flush=True)
    finally:
        for folder in made:
            shutil.rmtree(folder.parent, ignore_errors=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return survivors > 0


sys.exit(main())
