"""What a run of the tests must not depend on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import signal, subprocess, sys

def test_a_program_that_is_interrupted_ends():
    code = "import signal; signal.raise_signal(signal.SIGINT); print('it goes on')"
    program = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (program.returncode, program.stdout) == (-signal.SIGINT, b"")
"""


def test_programs_can_be_interrupted_though_the_tests_run_in_the_background(tmp_path):
    """A shell without job control starts what runs in the background with SIGINT ignored, and programs inherit that."""
    (tmp_path / "test_it.py").write_text(PROGRAM)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    done = subprocess.run(ignoring, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
