"""`python -m tests.programs.parent KIND FOLDER PORT ISOLATION`: a tree with one server, which prints a line for each start."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import trio

from supervise import ChildRestarted, ChildStopped, Supervisor, run_tree
from supervise.events import Failed

from .servers import SERVERS


def main(kind: str, folder: str, port: str, isolation: str) -> None:
    """Run the tree until a signal ends it."""
    server = SERVERS[kind](Path(folder), int(port))
    spec = server.command(isolation=isolation)

    def tell(**values: object) -> None:
        print(json.dumps(values), flush=True)

    def sink(event: object) -> None:
        if isinstance(event, Failed):
            tell(
                failed=getattr(event.exc, "tag", None),
                text=str(event.exc),
                note=getattr(event.exc, "__notes__", []),
            )

    async def report(tree) -> None:
        while True:
            try:
                async with tree[spec].lease() as running:
                    tell(pid=running.pid, guardian=running.guarded._guardian.pid)
                    await trio.sleep_forever()
            except ChildRestarted:
                pass
            except ChildStopped:
                return

    run_tree(Supervisor("app", [spec], limit=None), sinks=[sink], watch=report)


if __name__ == "__main__":
    main(*sys.argv[1:])
