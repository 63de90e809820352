"""The messages of `docs/howto/troubleshooting.md` are those of the code."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "howto" / "troubleshooting.md").read_text()
SHOWN = [
    text for cell in re.findall(r"^\| (.*?) \|", PAGE, re.MULTILINE) for text in re.findall(r"`(.*?)`", cell)
]
OF_OTHERS = {
    "Address already in use",
    "no running event loop",
    "must be called from async context",
    "Cancel scope stack corrupted",
}
"""Messages of the operating system, of asyncio and of Trio."""


def texts():
    """The source code, with the parts of a text that is written as several literals put together."""
    files = [*(ROOT / "supervise").rglob("*.py"), *(ROOT / "runners").rglob("*.py")]
    source = "\n".join(file.read_text() for file in files)
    return re.sub(r"\"\s*f?\"", "", source)


SOURCE = texts()


@pytest.mark.parametrize("message", SHOWN)
def test_the_message_is_in_the_code(message):
    """Each piece of it between `…`, which is what differs from case to case."""
    if message not in OF_OTHERS:
        for piece in message.split("…"):
            assert piece.strip() in SOURCE, piece
