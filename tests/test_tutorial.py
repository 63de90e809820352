"""The pages of `docs/tutorial` show what happens: their commands are run, in order, on the files that they show."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "tutorial").glob("[0-9]*.md"))
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
CHANGING = re.compile(r"\d\d:\d\d:\d\d\.\d+|\d+(\.\d+)? ?m?s\b|\d{4}-\d\d-\d\d")
"""Times and durations, which differ from run to run."""
LONGEST = 180
"""Seconds after which a command that does not print what is shown is killed."""


def plain(line):
    """A line without its times, and with single spaces, since a table is as wide as its cells."""
    return " ".join(CHANGING.sub("", line).split())


def agree(shown, printed):
    """Whether the printed lines are the shown ones; a shown line `…` is any number of lines."""
    pattern = "".join(r"(?:.*\n)*" if line == "…" else re.escape(plain(line)) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{plain(line)}\n" for line in printed)) is not None


class Shell:
    """Runs the commands of one page in a folder of its own."""

    def __init__(self, folder):
        self.folder = folder
        self.status = 0
        self.left_running = []
        self.runtime = tempfile.TemporaryDirectory()  # the path of a socket has at most 107 bytes
        self.env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": self.runtime.name, "TZ": "UTC"}
        self.env.pop("PYTEST_ADDOPTS", None)  # its options change what pytest prints

    def begin(self, command):
        words = command.split()
        program = {"supervise": ["-um", "supervise"], "python": []}[words[0]]
        return subprocess.Popen(
            [sys.executable, *program, *words[1:]],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command, shown):
        """The lines that a command prints. Ctrl-C is pressed when those before `^C` have come."""
        if command == "echo $?":
            return [str(self.status)]
        process = self.begin(command)
        if command.endswith("--socket"):
            self.left_running.append(process)
            self.wait_for("is ready again", process)
            return []
        too_late = threading.Timer(LONGEST, process.kill)
        too_late.start()
        printed = []
        if "^C" in shown:
            before = shown[: shown.index("^C")]
            while not agree(before, printed):
                line = process.stdout.readline()
                assert line, "\n".join([command, *printed])
                printed.append(line.rstrip("\n"))
            process.send_signal(signal.SIGINT)
            printed.append("^C")
        rest, _ = process.communicate()
        too_late.cancel()
        self.status = process.returncode
        return [*printed, *rest.splitlines()]

    def wait_for(self, text, process):
        """Read what a program prints until a line has this text."""
        for line in process.stdout:
            if text in line:
                break

    def close(self):
        for process in self.left_running:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=LONGEST)
        self.runtime.cleanup()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_shows_what_happens(page, tmp_path):
    """Each command on the page prints what is shown, but for times."""
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work")
    if page.name.startswith("7"):
        write(PAGES[5], shell.folder)
    try:
        for language, text in BLOCK.findall(page.read_text()):
            if language == "python":
                name = re.match(r"# (\w+\.py)\n", text)
                (shell.folder / name[1]).write_text(text)
                continue
            for command, output in COMMAND.findall(text):
                shown = output.splitlines()
                printed = shell.run(command, shown)
                assert agree(shown, printed), "\n".join([command, *printed])
    finally:
        shell.close()


def write(page, folder):
    """The files of another page."""
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            (folder / re.match(r"# (\w+\.py)\n", text)[1]).write_text(text)
