"""Long commands show their progress on a terminal, and nowhere else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
from benchmarks import progress
progress.EVERY = 0
for item in progress.tracked("items [of work]", range(3), 3):
    print("item", item, "x" * 200)
"""
PRINTED = "".join(f"item {number} {'x' * 200}\n" for number in range(3))


def run(*command, terminal=True):
    """What a command writes to standard output, which is a pipe, and to standard error, which may be a terminal."""
    leader, follower = os.openpty() if terminal else os.pipe()
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        timeout=300,
        check=True,
    )
    os.close(follower)
    shown = b""
    try:
        while read := os.read(leader, 65536):
            shown += read
    except OSError:  # so a terminal says that its other end is closed
        pass
    os.close(leader)
    return done.stdout, re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())


def test_a_terminal_shows_the_work_done_and_the_time():
    """It has no say over standard output, which is a file here."""
    printed, shown = run("-c", PROGRAM)
    assert printed == PRINTED
    for done in range(4):
        assert f"items [of work]: {done} of 3 0:00:0" in shown
    assert re.search(r"2 of 3 0:00:\d\d elapsed, 0:00:\d\d to go", shown)


def test_a_pipe_gets_nothing():
    """A log of continuous integration stays as it is; rich is not even imported."""
    program = (
        PROGRAM + 'import sys; print([name for name in sys.modules if name.partition(".")[0] == "rich"])'
    )
    assert run("-c", program, terminal=False) == (PRINTED + "[]\n", "")


EXPLORE = ("-m", "tests.explore", "--quick", "--processes", "1", "--family", "timers")
ROGUE = ("-m", "tests.rogue", "--examples", "20")
TRAIN = """
import sys
from runners.models.torch_lm.train import shown
assert [step for step, _ in shown(((step, 0.0) for step in range(3)), 3)] == [0, 1, 2]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [(EXPLORE, "groups of trees: 0 of 1 "), (ROGUE, "scripts:  0 of 20 "), (("-c", TRAIN), "training ")],
    ids=["explore", "rogue", "train"],
)
def test_a_command_shows_its_progress_on_a_terminal_alone(command, expected):
    """Standard output is the same with and without it, but for its times."""
    if command[-1] is TRAIN:
        pytest.importorskip("torch", reason="it trains with torch")
    printed, shown = run(*command)
    assert expected in shown
    plainly, nothing = run(*command, terminal=False)
    assert nothing == ""
    assert re.sub(r"[\d.]+", "", plainly) == re.sub(r"[\d.]+", "", printed)
