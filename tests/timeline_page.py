"""The run that docs/operating/timeline.md shows, under virtual time: its events, its picture, and what the commands print.

`python -m tests.timeline_page` draws the picture, and writes the outputs into the page anew.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path

from supervise import Supervisor, cli, events, open_tree
from supervise.sinks.data import as_data
from supervise.testing import run_virtual

DOCS = Path(__file__).parents[1] / "docs" / "operating"
PAGE = DOCS / "timeline.md"
PICTURE = DOCS / "timeline.svg"
BEGAN = datetime(2026, 11, 29, 9, tzinfo=UTC).timestamp()
SHOWN = re.compile(
    r"^```console\n\$ supervise (plot --(?:startup|recovery)[^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE
)


def shop(page: str) -> Supervisor:
    """The tree that the page declares."""
    found = re.search(r"^```python\n(# shop\.py\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert found is not None
    namespace: dict[str, Supervisor] = {}
    exec(found[1], namespace)
    return namespace["tree"]


def lines(tree: Supervisor) -> str:
    """The events of a run of this tree as lines of JSON."""
    seen: list[events.Event] = []

    async def main() -> None:
        async with open_tree(tree, sinks=[seen.append]) as t:
            await t[tree].ended()

    run_virtual(main, seed=1)
    data = [as_data(event, number=n, time=BEGAN + event.at - seen[0].at) for n, event in enumerate(seen, 1)]
    return "".join(f"{json.dumps(each)}\n" for each in data)


@contextmanager
def recorded(page: str) -> Iterator[None]:
    """Within a folder that has the events of the page's run, in the time zone of the picture."""
    before = os.environ.get("TZ")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("events.jsonl").write_text(lines(shop(page)))
        try:
            os.environ["TZ"] = "UTC"
            time.tzset()
            yield
        finally:
            os.environ.pop("TZ")
            os.environ.update({} if before is None else {"TZ": before})
            time.tzset()


def printed(command: str) -> str:
    """What a command prints."""
    with redirect_stdout(io.StringIO()) as out:
        cli.main(command.split())
    return out.getvalue()


def drawn(page: str) -> tuple[str, str]:
    """The page with its outputs as they are now, and its picture."""
    with recorded(page):
        page = SHOWN.sub(lambda shown: f"```console\n$ supervise {shown[1]}\n{printed(shown[1])}```", page)
        return page, printed("plot events.jsonl")


if __name__ == "__main__":
    text, picture = drawn(PAGE.read_text())
    PAGE.write_text(text)
    PICTURE.write_text(picture)
