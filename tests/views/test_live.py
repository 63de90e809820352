"""The live view on a real (pseudo) terminal, as a user runs it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import asynccontextmanager
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest
import trio
from rich.console import Console

from supervise import Child, Decider, Restart, Resume, Stop, Supervisor, open_tree
from supervise.testing import run_virtual
from supervise.views.live import LiveView
from supervise.views.terminal import _why_not

ROOT = Path(__file__).parents[2]
PROGRAM = """
from pathlib import Path
import trio
from supervise import *

async def bad():
    print("the program's own line")
    await trio.sleep(0.3)
    raise ValueError("no luck")

async def slow():
    await stop_requested()
    while not Path("stops").exists():
        await trio.sleep(0.05)

tree = Supervisor("app", [Child("slow", slow, drain=300), Child("bad", bad, backoff=Backoff(initial=300, maximum=300, jitter=0))],
                  limit=Limit(LIMIT))
"""


def write_program(folder, limit):
    """With a limit of 0 the program stops by itself; otherwise its stop lasts until there is a file `stops`."""
    (folder / "program.py").write_text(PROGRAM.replace("LIMIT", str(limit)))
    if not limit:
        (folder / "stops").touch()


class Terminal:
    """A program on a terminal of its own, and all that it wrote there."""

    def __init__(self, folder, *arguments, stderr=None, size=(30, 100), term="xterm", limit=3):
        write_program(folder, limit)
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.modes = termios.tcgetattr(follower)
        self._follower = follower
        env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        command = [sys.executable, "-m", "supervise.cli", "run", "--live", *arguments, "program.py"]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, "TERM": term},
            stdin=follower,
            stdout=follower,
            stderr=follower if stderr is None else stderr,
            start_new_session=True,
        )
        self.text = ""

    def read_until(self, expected, seconds=120.0):
        """Read on until the text has it, or, with None, until the program has ended."""
        end = time.monotonic() + seconds
        while expected is None or expected not in self.text:
            assert time.monotonic() < end, f"not within {seconds} s: {expected!r} in …{self.text[-900:]!r}"
            ready, _, _ = select.select([self._leader], [], [], 0.1)
            if ready:
                self.text += os.read(self._leader, 65536).decode("utf-8", "replace")
            elif expected is None and self.process.poll() is not None:
                return

    @property
    def bare(self):
        """The text without what moves and colours."""
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", self.text)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._leader)
        os.close(self._follower)

    def is_as_before(self):
        """Modes as they were, the cursor visible, no other screen, no colour left on."""
        cursor = re.findall(r"\x1b\[\?25([hl])", self.text)
        styles = re.findall(r"\x1b\[([\d;]*)m", self.text)
        return (
            termios.tcgetattr(self._follower) == self.modes
            and cursor[-1] == "h"
            and "\x1b[?1049h" not in self.text
            and styles[-1] == "0"
        )


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(*arguments, **options):
        opened.append(Terminal(tmp_path, *arguments, **options))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


@pytest.mark.slow
def test_the_tree_is_shown_and_the_programs_output_stands_above(terminal, tmp_path):
    """It shows states, incarnations, restarts, the last failure and the last events; then a signal ends it in order."""
    shown = terminal()
    shown.read_until("waits 300")
    shown.read_until("starts in")
    assert "the program's own line\r\n" in shown.text
    assert re.search(r"└─ bad   restarting    1 +starts in \d[\d.]* \w+ · ValueError: no luck", shown.bare)
    assert "[app/bad #1] → Restart, decided by 'app'" in shown.text
    shown.process.send_signal(signal.SIGINT)
    shown.read_until("stopping")  # an ordered stop is seen too
    (tmp_path / "stops").touch()
    shown.read_until(None)
    assert shown.process.returncode == 0
    assert re.search(r"node .*\napp +down .*\n├─ slow  down .*\n└─ bad   down ", shown.bare.replace("\r", ""))
    assert re.search(
        r"\nin all 1 restart; last failure of app/bad #1 after \d+\.\d s: ValueError: no luck\n$",
        shown.bare.replace("\r", ""),
    )
    assert shown.is_as_before()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted twice"])
def test_the_terminal_is_as_before_however_the_program_ends(terminal, number):
    """Nothing of the terminal is changed that would have to be put back, so not even SIGKILL leaves anything."""
    shown = terminal()
    shown.read_until("starts in")
    shown.process.send_signal(number)
    if number == signal.SIGINT:
        shown.read_until("stopping")
        shown.process.send_signal(number)
    shown.read_until(None)
    assert shown.process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 130}[number]
    assert shown.is_as_before()


@pytest.mark.slow
def test_a_tree_that_fails_leaves_its_last_picture_and_its_traceback(terminal):
    """The exit status is 70, and the failure stands beneath the picture."""
    shown = terminal(limit=0)
    shown.read_until(None)
    assert shown.process.returncode == 70
    assert "ValueError: no luck" in shown.text
    assert shown.text.rindex("TreeFailed") > shown.text.rindex("├─ slow")
    assert shown.is_as_before()


@pytest.mark.slow
def test_standard_error_goes_where_it_was_sent(terminal, tmp_path):
    """Only output that would go to the terminal is put above the picture."""
    with (tmp_path / "errors").open("w") as file:
        shown = terminal(stderr=file, limit=0)
        shown.read_until(None)
    assert "TreeFailed" in (tmp_path / "errors").read_text()
    assert "TreeFailed" not in shown.text


@pytest.mark.slow
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(terminal):
    """One line gives the reason."""
    shown = terminal(term="dumb", limit=0)
    shown.read_until(None)
    assert shown.text.startswith(
        "supervise: no live view, plain lines instead: the terminal cannot move its cursor (TERM is dumb)\r\n"
    )
    assert "[app/bad #1] failed: ValueError: no luck\r\n" in shown.text
    assert "\x1b" not in shown.text


@pytest.mark.parametrize(
    ("encoding", "errors", "is_shown"),
    [("utf-8", "strict", True), ("ascii", "strict", False), ("ascii", "replace", True)],
)
def test_a_terminal_without_characters_for_lines_gets_plain_lines(monkeypatch, encoding, errors, is_shown):
    """Writing the first picture would fail."""
    terminal = TextIOWrapper(BytesIO(), encoding, errors)
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    reason = None if is_shown else "the encoding of standard output, ascii, has no characters for lines"
    assert _why_not() == reason


def piped(folder, code, **env):
    write_program(folder, limit=0)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_output_that_is_no_terminal_gets_plain_lines(tmp_path):
    """One line gives the reason, and the rest is as without `--live`: `FORCE_COLOR` forces colours, and no view."""
    code = (
        "import sys; sys.argv[1:] = ['run', '--live', 'program.py']; from supervise.cli import main; main()"
    )
    result = piped(tmp_path, code, FORCE_COLOR="1")
    text = re.sub(r"\x1b\[\d+m", "", result.stderr)
    lines = text.splitlines()
    assert result.returncode == 70
    assert text != result.stderr
    assert lines[0] == "supervise: no live view, plain lines instead: standard output is not a terminal"
    assert lines[1].endswith(" [app #1] starts")
    assert any(line.endswith(" [app/bad #1] failed: ValueError: no luck") for line in lines)
    assert "\x1b" not in result.stdout + text


def test_without_rich_there_are_plain_lines(tmp_path):
    """The view is an extra: if it is not installed, one line shows how to get it."""
    code = """
import sys
from importlib.machinery import PathFinder
real = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name == "rich" else real(name, *more)
sys.stdout.isatty = lambda: True
import os
os.environ["TERM"] = "xterm"
sys.argv[1:] = ["run", "--live", "program.py"]
from supervise.cli import main
main()
"""
    result = piped(tmp_path, code)
    assert "pip install 'trio-supervise[live]'" in result.stderr.splitlines()[0]
    assert result.returncode == 70


def test_the_command_needs_rich_for_nothing_else():
    """Without `--live` rich is not imported."""
    code = "import sys, supervise.cli, supervise.views.terminal; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_view_in_ones_own_program_draws_until_it_is_cancelled():
    """It draws, puts what is printed above, and gives standard output back."""
    screen = StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=80, height=24))
    before = sys.stdout

    async def busy(inbox):
        async for message in inbox:
            message.reply(print(f"message {message.value}"))

    async def main():
        spec = Child("busy", busy, mailbox=8)
        async with open_tree(Supervisor("app", [spec]), sinks=[view]) as tree, trio.open_nursery() as nursery:
            nursery.start_soon(view.watch, tree)
            for number in range(8):
                await trio.sleep(0.5)
                await tree[spec].call(number)
            nursery.cancel_scope.cancel()

    run_virtual(main)
    assert sys.stdout is before
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.getvalue())
    assert text.count("node ") >= 9
    assert text.index("message 7") < text.rindex("└─ busy")
    assert re.search(r"└─ busy +up +1 +0 +[12]\.\d\b", text)


def last_line(spec, seconds=1.0):
    screen = StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=100, height=24))

    async def main():
        async with open_tree(spec, sinks=[view]) as tree, trio.open_nursery() as nursery:
            nursery.start_soon(view.watch, tree)
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()

    run_virtual(main)
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.getvalue()).rstrip().splitlines()[-1]


def test_the_last_picture_says_what_happened_in_all():
    """The nodes forget their failures when they end; a decision that passes a limit restarts nothing, and is not counted."""
    exceptions = iter([ValueError("a"), KeyError("b"), KeyError("c"), OSError("d\n" + "x" * 200)])

    @asynccontextmanager
    async def resource():
        yield

    async def fails(_):
        for exc in exceptions:
            raise exc
        await trio.sleep_forever()

    decider = Decider({ValueError: Resume, KeyError: Restart, OSError: Stop})
    line = last_line(Supervisor("app", [Child("a", fails, resource=resource, decider=decider)]))
    assert line.startswith(
        "in all 2 restarts, 1 resume, 1 stop; last failure of app/a #3 after 0.0 s: OSError: d\\nxxx"
    )
    assert len(line) == 100
    assert last_line(Supervisor("app", [])) == "in all no failure"


def test_a_view_that_cannot_draw_gives_standard_output_back():
    """This holds whatever fails: the console here is closed."""
    screen = StringIO()
    view = LiveView(Console(file=screen, force_terminal=True, width=80, height=24))
    before = sys.stdout

    async def main():
        async with open_tree(Supervisor("app", []), sinks=[view]) as tree:
            screen.close()
            with pytest.raises(ValueError, match="closed file"):
                await view.watch(tree)

    run_virtual(main)
    assert sys.stdout is before
