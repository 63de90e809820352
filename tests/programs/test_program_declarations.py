"""What a `Command` refuses, and how one prints."""

from __future__ import annotations

import inspect
import signal
from math import inf
from signal import SIGINT, SIGTERM, Signals

import pytest

from supervise import Backoff, Child, Supervisor, programs
from supervise.cli import main
from supervise.programs import Command, every, http, line, notify, probe, tcp
from supervise.programs.program import Program
from supervise.programs.running import watch
from supervise.views import text

WRONG = {
    "a line for a shell": (
        lambda: Command("x", "redis-server --port 6379"),
        "command 'x': argv must be a list of strings, got 'redis-server --port 6379'; write ['redis-server', '--port', '6379']",
    ),
    "no program": (
        lambda: Command("x", []),
        "command 'x': argv must begin with the name of a program, got []",
    ),
    "a number in argv": (
        lambda: Command("x", ["a", 1]),
        "command 'x': argv must be a list of strings without NUL, got 1 in it",
    ),
    "a port as ready": (
        lambda: Command("x", ["a"], ready=6379),
        "command 'x': ready must be tcp(…), http(…), line(…), notify(), probe(…) or None, got 6379",
    ),
    "a check as alive": (
        lambda: Command("x", ["a"], alive=tcp(1)),
        "command 'x': alive must be every(…) or None, got tcp(1), such as every(10, tcp(6379), timeout=2, failures=3)",
    ),
    "a line again and again": (
        lambda: every(1, line("x")),
        "every: check must be tcp(…), http(…) or probe(…), got line('x')",
    ),
    "a signal as stop": (
        lambda: Command("x", ["a"], stop=SIGTERM),
        "command 'x': stop must be pairs of a signal and seconds, got <Signals.SIGTERM: 15>",
    ),
    "signals as stop": (
        lambda: Command("x", ["a"], stop=[SIGTERM]),
        "command 'x': each step of stop must be a signal and seconds, got <Signals.SIGTERM: 15>",
    ),
    "an unknown signal": (
        lambda: Command("x", ["a"], stop=[(99, 1)]),
        "command 'x': a signal of stop must be a signal such as signal.SIGTERM, got 99",
    ),
    "a list as a signal": (
        lambda: Command("x", ["a"], stop=[([], 1)]),
        "command 'x': a signal of stop must be a signal such as signal.SIGTERM, got []",
    ),
    "the name of a signal": (
        lambda: Command("x", ["a"], reload="SIGHUP"),
        "command 'x': reload must be a signal such as signal.SIGTERM, got 'SIGHUP'",
    ),
    "a stop without end": (
        lambda: Command("x", ["a"], stop=[(SIGTERM, inf)]),
        "command 'x': the seconds of a step of stop must be finite, got inf",
    ),
    "an unknown isolation": (
        lambda: Command("x", ["a"], isolation="Group"),
        "command 'x': isolation must be one of 'group', 'namespace', 'cgroup', got 'Group'; did you mean 'group'?",
    ),
    "a number as a variable": (
        lambda: Command("x", ["a"], env={"PORT": 1}),
        "command 'x': env must be a mapping of names to strings or None, got 1 for 'PORT'",
    ),
    "a list as env": (
        lambda: Command("x", ["a"], env=["A=1"]),
        "command 'x': env must be a mapping of names to strings or None, got ['A=1']",
    ),
    "a wrong name of a variable": (
        lambda: Command("x", ["a"], env={"A=B": "1"}),
        "command 'x': env must be a mapping of names to strings or None, got 'A=B'",
    ),
    "an unknown limit": (
        lambda: Command("x", ["a"], limits={"nofiles": 1}),
        "got 'nofiles'; did you mean 'nofile'?",
    ),
    "a negative limit": (
        lambda: Command("x", ["a"], limits={"core": -1}),
        "command 'x': the limit 'core' must be an integer >= 0, inf, or a pair of a soft and a hard one, got -1",
    ),
    "a soft limit above the hard one": (
        lambda: Command("x", ["a"], limits={"core": (2, 1)}),
        "command 'x': the limit 'core' must be an integer >= 0, inf, or a pair of a soft and a hard one, got (2, 1)",
    ),
    "a mode as text": (
        lambda: Command("x", ["a"], umask="022"),
        "command 'x': umask must be from 0 to 0o777 or None, got '022'",
    ),
    "a user that is none": (
        lambda: Command("x", ["a"], user=-1),
        "command 'x': user must be a name, a number >= 0 or None, got -1",
    ),
    "a folder that is none": (
        lambda: Command("x", ["a"], cwd=1),
        "command 'x': cwd must be a path or None, got 1",
    ),
    "the name of a file": (
        lambda: Command("x", ["a"], files=["log"]),
        "command 'x': files must be open files, sockets or descriptors, got ('log',)",
    ),
    "no time to be ready": (
        lambda: Command("x", ["a"], ready_timeout=0),
        "command 'x': ready_timeout must be > 0, got 0",
    ),
    "a drain": (
        lambda: Command("x", ["a"], drain=5),
        "command 'x' has no option drain: it is the sum of the seconds of stop",
    ),
    "a mailbox": (
        lambda: Command("x", ["a"], mailbox=5),
        "command 'x' has no option mailbox: a program takes no messages",
    ),
    "an option of a child": (lambda: Command("x", ["a"], grace=-1), "child 'x': grace must be >= 0, got -1"),
    "a port too large": (lambda: tcp(65536), "a port must be <= 65535, got 65536"),
    "a port as text": (lambda: tcp("80"), "tcp: port must be an integer, got '80'"),
    "text to send": (lambda: tcp(80, send="PING"), "tcp: send must be bytes, got 'PING'"),
    "https": (
        lambda: http("https://localhost/"),
        "http: url must be a URL like 'http://127.0.0.1:8080/', got 'https://localhost/'",
    ),
    "a wrong status": (
        lambda: http("http://localhost/", status=1000),
        "http: status must be <= 599, got 1000",
    ),
    "a wrong expression": (lambda: line("("), "line: pattern must be a regular expression, got '(': "),
    "an expression of too many repetitions": (
        lambda: line("a{99999999999}"),
        "line: pattern must be a regular expression, got 'a{99999999999}': the repetition number is too large",
    ),
    "an expression that is nested too deeply": (
        lambda: line("(" * 5_000),
        "line: pattern must be a regular expression, got '((((",
    ),
    "an expression of bytes": (
        lambda: line(rb"ready"),
        "line: pattern must be a regular expression, got b'ready': cannot use a bytes pattern on a string-like object",
    ),
    "a probe as a line": (
        lambda: probe("true"),
        "probe: argv must be a list of strings, got 'true'; write ['true']",
    ),
    "no failure": (lambda: every(1, tcp(1), failures=0), "every: failures must be >= 1, got 0"),
}


@pytest.mark.parametrize("make", [pytest.param(wrong, id=name) for name, wrong in WRONG.items()])
def test_a_wrong_value_gets_one_error(make):
    """It names the argument, what is allowed, and what came."""
    with pytest.raises((TypeError, ValueError)) as error:
        make[0]()
    assert make[1] in str(error.value)


def test_check_reports_every_mistake_at_once(tmp_path, monkeypatch, capsys):
    """And goes on after each; none ends in a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(
        "from supervise import Supervisor\nfrom supervise.programs import *\n"
        "tree = Supervisor('app', [\n"
        "    Command('a', 'ls -l', ready=1, alive=2, stop=3, env=4, cwd=5, user=-6, umask=-7, limits=8, files=9,\n"
        "            ready_timeout=-10, isolation='x', reload='y', drain=11),\n"
        "    Command('b', ['ls'], stop=[(1, -1)], env={'': ''}, limits={'core': 'x'}),\n"
        "])\n"
    )
    with pytest.raises(SystemExit, match="1"):
        main(["check", "app.py"])
    lines = capsys.readouterr().err.splitlines()
    assert len([each for each in lines if "command 'a'" in each]) == 14
    assert len([each for each in lines if "command 'b'" in each]) == 3
    assert all(each.startswith("app.py:") for each in lines)


def test_a_command_is_a_child_that_prints_as_code():
    """The code makes an equal one; what is a default is left out."""
    spec = Command(
        "redis",
        ["redis-server", "--port", "6379"],
        ready=tcp(6379, send=b"PING\r\n", expect=b"+PONG"),
        alive=every(10, probe(["redis-cli", "ping"]), failures=2),
        stop=((SIGTERM, 5), (SIGINT, 2.5)),
        env={"A": None},
        limits={"core": 0},
        user="redis",
        isolation="namespace",
        reload=None,
        backoff=Backoff(),
    )
    assert type(spec) is Child
    names = {
        **vars(programs),
        "Program": Program,
        "Child": Child,
        "Backoff": Backoff,
        "watch": watch,
        "Signals": Signals,
    }
    again = eval(repr(spec), names)
    assert repr(again) == repr(spec)
    assert "stop=((Signals.SIGTERM, 5), (Signals.SIGINT, 2.5))" in repr(spec)
    assert repr(Program("x", ["true"])) == "Program('x', ['true'])"
    assert [repr(one) for one in (notify(), line("up"), http("http://a/", status=204))] == [
        "notify()",
        "line('up')",
        "http('http://a/', status=204)",
    ]


def test_a_picture_shows_the_command_line():
    """And the seconds of its stop, as those of any child's drain."""
    spec = Command("redis", ["redis-server", "--requirepass", "a b", "x" * 100])
    (_, drawn) = text.declared(Supervisor("app", [spec])).splitlines()
    assert drawn.startswith("└─ redis  permanent · body watch · resource redis-server --requirepass '")
    assert drawn.endswith("x · drain 10 s · grace 15 s")
    assert len(drawn) < 140


def test_the_longest_stop_of_a_tree_counts_those_of_its_commands(tmp_path, monkeypatch, capsys):
    """R12: they are stopped one after another, and systemd waits for 90 seconds only."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.py").write_text(
        "from supervise import Supervisor\nfrom supervise.programs import Command\n"
        "tree = Supervisor('app', [Command(str(n), ['true'], stop=((15, 31),)) for n in range(3)])\n"
    )
    main(["check", "app.py"])
    found = capsys.readouterr()
    assert "a stop of 'app' may take 93 s" in found.err
    assert "app.py: ok" in found.out


def test_signals_are_shown_by_their_names_however_they_are_given():
    """A real-time signal has none."""
    spec = Program("x", ["true"], stop=[(15, 1), [signal.SIGRTMIN + 3, 2]], reload=10)
    assert (
        repr(spec) == "Program('x', ['true'], stop=((Signals.SIGTERM, 1), (37, 2)), reload=Signals.SIGUSR1)"
    )


def test_the_public_names_are_exactly_these():
    """What `supervise.programs` offers, each with a docstring."""
    names = [
        "Command",
        "Program",
        "Running",
        "every",
        "http",
        "line",
        "notify",
        "probe",
        "tcp",
        "GuardianLost",
    ]
    names += [
        f"Command{name}" for name in ("Error", "Exited", "Missing", "NotIsolated", "NotReady", "Unhealthy")
    ]
    assert sorted(programs.__all__) == sorted(names) == dir(programs)
    assert all(inspect.getdoc(getattr(programs, name)) for name in names)
