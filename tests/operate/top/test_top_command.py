"""The mistakes that `supervise top` answers with one line, before it touches the terminal."""

import io
import sys
from importlib.machinery import PathFinder

import pytest

pytest.importorskip("urwid", reason="supervise top needs urwid, which is not installed")

from supervise.cli import main


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def mistake(monkeypatch, capsys, tmp_path):
    """The line for arguments given at a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def run(*arguments, at_a_terminal=True):
        for name in ("stdin", "stdout"):
            monkeypatch.setattr(sys, name, Screen() if at_a_terminal else io.StringIO())
        with pytest.raises(SystemExit) as ended:
            main(["top", *map(str, arguments)])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("supervise: ")

    return run


def test_what_the_terminal_lacks(mistake, monkeypatch):
    """It has to be one, and to be able to move its cursor."""
    assert mistake(at_a_terminal=False) == "top needs a terminal as its standard input and output"
    monkeypatch.setenv("TERM", "dumb")
    assert mistake() == "top needs a terminal that can move its cursor (TERM is dumb)"


def test_what_the_installation_lacks(mistake, monkeypatch):
    """One line names the extra."""
    real = PathFinder.find_spec
    monkeypatch.setattr(
        PathFinder, "find_spec", lambda name, *more: (name != "urwid" and real(name, *more)) or None
    )
    monkeypatch.delitem(sys.modules, "urwid", raising=False)
    assert mistake() == "top needs urwid; install trio-supervise[top]"


def test_no_tree(mistake, tmp_path):
    """None that runs, none at the given path, or an unreadable token."""
    assert mistake().startswith("no running tree was found: ")
    assert mistake("--socket", tmp_path / "x\x07").startswith(rf"no program answers at {tmp_path}/x\x07: ")
    assert mistake("--socket", "x", "--token-file", tmp_path / "t").startswith("cannot read the token in ")
