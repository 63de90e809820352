"""`supervise top` on a real terminal, under tmux: what is drawn, keys, sizes, and the terminal afterwards."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("urwid", reason="supervise top needs urwid, which is not installed")
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0


class Terminal:
    """A terminal of tmux with a server of its own, in which a shell runs one program and then waits."""

    def __init__(self, folder, *command, size=(80, 24)):
        self._folder = folder
        self._socket = folder / "tmux"
        (folder / "run.sh").write_text(
            "stty -g > before\n"
            '"$@" & echo $! > pid; fg > /dev/null\n'
            "echo status=$? > status.new\n"
            "stty -g > after\n"
            "mv status.new status\n"
            "exec sleep 1000\n"
        )
        shell = ["bash", "-m", str(folder / "run.sh"), *map(str, command)]
        columns, lines = map(str, size)
        environment = ["-e", f"PYTHONPATH={ROOT}", "-e", "TERM=tmux-256color", "-e", "LC_ALL=C.UTF-8"]
        self._tmux("new-session", "-d", "-x", columns, "-y", lines, "-c", str(folder), *environment, *shell)

    def _tmux(self, *arguments):
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout

    def screen(self):
        return self._tmux("capture-pane", "-p")

    def until(self, *texts, without="\0"):
        """Wait until all texts are on the screen, and one is not; return it."""
        end = time.monotonic() + PATIENCE
        while True:
            shown = self.screen()
            if all(text in shown for text in texts) and without not in shown:
                return shown
            assert time.monotonic() < end, (
                f"not within {PATIENCE} s: {texts}, without {without!r} in\n{shown}"
            )
            time.sleep(0.05)

    def press(self, *keys):
        self._tmux("send-keys", *keys)

    def resize(self, columns, lines):
        self._tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def kill(self, number):
        subprocess.run(["kill", f"-{int(number)}", (self._folder / "pid").read_text().strip()], check=True)

    def ended(self):
        """The exit status, once the program has ended."""
        end = time.monotonic() + PATIENCE
        while not (self._folder / "status").exists():
            assert time.monotonic() < end, f"it has not ended:\n{self.screen()}"
            time.sleep(0.05)
        return int((self._folder / "status").read_text().removeprefix("status="))

    def is_as_before(self):
        """The modes, the screen and the cursor."""
        modes = [(self._folder / name).read_text() for name in ("before", "after")]
        asked = "#{alternate_on} #{cursor_flag} #{keypad_flag} #{mouse_any_flag}"
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:  # tmux may not have read yet what the program has written last
            if self._tmux("display-message", "-p", asked).split() == ["0", "1", "0", "0"]:
                return modes[0] == modes[1]
            time.sleep(0.05)
        return False

    def close(self):
        self._tmux("kill-server")


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def open_terminal(*arguments, **options):
        program = Path(__file__).with_name("on_terminal.py")
        opened.append(Terminal(tmp_path, sys.executable, program, *arguments, **options))
        return opened[-1]

    yield open_terminal
    for one in opened:
        one.close()


def test_keys_on_a_real_terminal(terminal):
    """Arrows, letters, a filter and Esc arrive as they are pressed, also several in one read."""
    shown = terminal()
    first = shown.until("connected", "shop/feed #2  is ready again")
    assert first.splitlines()[1].split() == [
        "node",
        "state",
        "since",
        "#",
        "restarts",
        "waiting",
        "last",
        "failure",
    ]
    shown.press("Down", "j", "Enter")
    shown.until("shop/store\n", "shop/store is up")
    shown.press("Escape")
    shown.until("mailer", without="shop/store is up")
    shown.press("/", "j", "o", "b", "Enter")
    assert "mailer" not in shown.until("filter 'job'")
    shown.press("Escape", "o", "?")
    shown.until("quit", "order: tree, trouble first")
    shown.press("q")
    assert shown.ended() == 0
    assert shown.is_as_before()


def test_it_takes_every_size(terminal):
    """The last columns come and go, and the selected row stays on the screen."""
    shown = terminal()
    shown.until("connected")
    shown.press("End")
    shown.resize(40, 10)
    small = shown.until("migrate", "connected", without="waiting")
    assert max(map(len, small.splitlines())) <= 40
    shown.resize(200, 50)
    shown.until("decision", "q quit")
    shown.press("q")
    assert shown.ended() == 0


@pytest.mark.parametrize("how", ["Ctrl-C", signal.SIGTERM, signal.SIGHUP], ids=str)
def test_the_terminal_is_as_before_however_it_ends(terminal, how):
    """A signal ends it as `q` does."""
    shown = terminal()
    shown.until("connected")
    shown.press("C-c") if how == "Ctrl-C" else shown.kill(how)
    assert shown.ended() == 0
    assert shown.is_as_before()


def test_ctrl_z_suspends_it(terminal):
    """The terminal is given back meanwhile; 148 is the status of a program that is stopped so."""
    shown = terminal()
    shown.until("connected")
    shown.press("C-z")
    assert shown.ended() == 128 + signal.SIGTSTP
    assert shown.is_as_before()


def test_the_terminal_is_as_before_after_a_defect(terminal):
    """Then the traceback stands on it."""
    shown = terminal("fails", size=(200, 50))
    shown.until("connected")
    shown.press("s")
    assert shown.ended() == 1
    shown.until("RuntimeError: a defect of the program")
    assert shown.is_as_before()


def test_a_terminal_that_is_closed_ends_it_quietly():
    """One that is not the controlling terminal sends no SIGHUP: the end of the input is all that there is. This one has no size."""
    leader, follower = pty.openpty()
    program = [sys.executable, str(Path(__file__).with_name("on_terminal.py"))]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    ends = {"stdin": follower, "stdout": follower, "stderr": subprocess.PIPE}
    with subprocess.Popen(program, env=env, start_new_session=True, **ends) as process:
        os.close(follower)
        try:
            os.set_blocking(leader, False)
            text, end = b"", time.monotonic() + PATIENCE
            while b"connected" not in text:
                assert time.monotonic() < end, text
                if select.select([leader], [], [], 1)[0]:
                    text += os.read(leader, 65536)
            os.close(leader)
            assert process.communicate(timeout=PATIENCE) == (None, b"")
            assert process.returncode == 0
        finally:
            process.kill()


PROGRAM = """
import os, trio
from supervise import Backoff, Child, Supervisor

async def fails():
    raise ConnectionError("\\x1b[2Jno answer")

tree = Supervisor("shop", [
    Child("feed", trio.sleep_forever),
    Child("mailer", fails, backoff=Backoff(initial=100, jitter=0)),
])
"""
TOKEN = "a-token-of-twenty-characters"


@pytest.fixture
def shop(tmp_path):
    """Starts a program with a real tree, at a socket in the default folder."""
    pytest.importorskip("hypercorn", reason="a tree is served by hypercorn, which is not installed")
    running = []
    (tmp_path / "shop.py").write_text(PROGRAM)

    def start():
        env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(tmp_path),
            "SUPERVISE_TOKEN": TOKEN,
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "supervise.cli", "run", "-q", "--socket", "--", "shop.py"]
        running.append(subprocess.Popen(command, cwd=tmp_path, env=env))
        return running[-1]

    yield start
    for one in running:
        one.kill()
        one.wait()


@pytest.mark.slow
def test_a_real_tree(tmp_path, shop, terminal):
    """Its pages, a restart by a key, and the tree's own restart at another path."""
    first = shop()
    (tmp_path / "token").write_text(TOKEN)
    command = f"XDG_RUNTIME_DIR={tmp_path} exec {sys.executable} -m supervise.cli top --token-file token"
    end = time.monotonic() + PATIENCE
    while not list(tmp_path.glob("supervise/shop.*.sock")):
        assert time.monotonic() < end
        time.sleep(0.05)
    shown = Terminal(tmp_path, "sh", "-c", command, size=(120, 30))
    try:
        shown.until("mailer", "restart in", r"ConnectionError: \x1b[2Jno answer", "connected")
        shown.press("End", "t")
        shown.until("traceback of the last failure", "in fails")
        shown.press("Escape")
        shown.until("mailer", without="traceback")
        shown.press("Up", "r")
        shown.until("  start  shop/feed", "reason: ")
        shown.press("t", "e", "s", "t", "Enter", "y")
        shown.until(
            "shop/feed: restart is done", "shop/feed #2  starts: 'shop/feed' was asked to restart", ": test"
        )
        first.kill()
        shown.until("reconnecting")
        shop()
        shown.until("connected again after", "the tree has been started again")
        shown.press("q")
        assert shown.ended() == 0
        assert shown.is_as_before()
    finally:
        shown.close()
