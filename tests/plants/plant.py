"""One planted fault: put it into a copy of the project, run the tests that should catch it, and return which did."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from attrs import frozen

ROOT = Path(__file__).parents[2]
SECONDS = 240
"""A test that hangs with the fault in has caught it, too."""


@frozen
class Plant:
    """A fault. `old` stands in `file` exactly once; `tests` are the files, or tests, near the rule that it breaks."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def text(self, root: Path = ROOT) -> str:
        """The file with the fault in it."""
        text = (root / self.file).read_text()
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"plant {self.name!r}: its old text stands {count} times in {self.file}")
        return text.replace(self.old, self.new)


def copy_of_project() -> Path:
    """A folder with what a checkout of this project holds."""
    made = Path(tempfile.mkdtemp(prefix="plants-"))
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", "venv*", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    )
    return Path(shutil.copytree(ROOT, made / "project", ignore=left_out, symlinks=True))


def caught_by(plant: Plant, root: Path) -> str:
    """The test that failed with the fault in; empty if none did."""
    file = root / plant.file
    before = file.read_text()
    file.write_text(plant.text(root))
    # `-P` is not given: the copy comes first on the path, before what is installed.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--no-header",
        *plant.tests,
    ]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"a test that waits for more than {SECONDS} s"
    finally:
        file.write_text(before)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    if run.returncode == 0:
        return ""
    if failed is not None:
        return failed[1]
    if run.returncode < 0:
        return f"the test run, which died of signal {-run.returncode}"
    raise RuntimeError(
        f"plant {plant.name!r}: pytest ended with {run.returncode}\n{run.stdout}\n{run.stderr}"
    )
