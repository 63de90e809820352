"""The lines of `supervise run`, on a terminal and in the journal of systemd."""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-P", "-m", "supervise.cli", "run", "noisy.py"]
_OURS = ("NO_COLOR", "FORCE_COLOR", "JOURNAL_STREAM")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _OURS}
ENVIRONMENT["PYTHONPATH"] = str(Path(__file__).parents[2])

NOISY = """
import logging
import trio
from supervise import *

async def fails():
    logging.getLogger("supervise.sub").error("two\\nlines")
    raise ConnectionError("gone")

tree = Supervisor("app", [Child("a", fails, restart="temporary", significant=True)], auto_shutdown="any_significant")
"""


def test_lines_on_a_terminal_have_colours(tmp_path):
    """R31: The library's own log records have them too. Standard output is no terminal here, and does not matter."""
    (tmp_path / "noisy.py").write_text(NOISY)
    leader, follower = os.openpty()
    subprocess.run(
        COMMAND,
        cwd=tmp_path,
        env={**ENVIRONMENT, "TERM": "xterm"},
        stdout=subprocess.DEVNULL,
        stderr=follower,
        timeout=60,
        check=True,
    )
    os.close(follower)
    lines = os.read(leader, 65536).decode().splitlines()
    os.close(leader)
    texts = [re.sub(r"\x1b\[2m[\d-]{10} [\d:.]{12} (\[app.*?\] )?\x1b\[0m", "", line) for line in lines]
    assert texts[:4] == [
        "starts",
        "\x1b[32mis ready\x1b[0m",
        "\x1b[31mtwo\x1b[0m",
        "lines",
    ]
    assert texts[4] == "\x1b[31mfailed: ConnectionError: gone\x1b[0m"
    assert texts[-1] == "has stopped"


def test_lines_in_the_journal_have_priorities(tmp_path):
    """R31: As systemd starts it: the variable has the device and the inode of standard error."""
    (tmp_path / "noisy.py").write_text(NOISY)
    with (tmp_path / "journal").open("w+") as journal:
        stream = os.fstat(journal.fileno())
        subprocess.run(
            COMMAND,
            cwd=tmp_path,
            env={**ENVIRONMENT, "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}"},
            stderr=journal,
            timeout=60,
            check=True,
        )
        journal.seek(0)
        lines = journal.read().splitlines()
    assert [line.partition(",")[0] for line in lines] == [
        "<6>[app #1] starts",
        "<6>[app #1] is ready",
        "<3>two",
        "<3>lines",
        "<3>[app/a #1] failed: ConnectionError: gone",
        "<3>[app/a #1] → Stop (instead of Restart)",
        "<6>[app #1] ended normally",
        "<6>[app #1] has stopped",
    ]
