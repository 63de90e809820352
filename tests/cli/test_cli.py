"""The command `supervise`, run as a user runs it: in a process of its own."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from argparse import Namespace
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervise.cli import _sinks, main

ROOT = Path(__file__).parents[2]


def environment(*first):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, first), str(ROOT)])}


def supervise(*arguments, cwd, env=None):
    command = [sys.executable, "-P", "-m", "supervise.cli", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=env or environment(), capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        (tmp_path / name).write_text("import trio\nfrom supervise import *\n" + textwrap.dedent(text))
        return name

    return write


def one_line(result, *, status, expected):
    assert result.returncode == status, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert expected in result.stderr


GOOD = 'tree = Supervisor("app", [Child("a", trio.sleep_forever)])\n'


@pytest.mark.slow
def test_check_accepts_a_good_tree(write, tmp_path):
    """`check` prints ok and exits 0, for a file, a module, and a name in either."""
    write("good.py", GOOD)
    for target in ("good.py", "good.py:tree", "good", "good:tree"):
        result = supervise("check", target, cwd=tmp_path)
        assert (result.returncode, result.stdout) == (0, f"{target}: ok\n"), result.stderr


def test_the_only_root_of_a_module_needs_no_name(write, tmp_path):
    """Without `tree` the module's only supervisor that stands in no other is the tree."""
    write("only.py", 'part = Supervisor("part", [])\napp = Supervisor("app", [part])\n')
    assert supervise("check", "only.py", cwd=tmp_path).returncode == 0


def test_check_finds_every_problem_in_one_go(write, tmp_path):
    """`check` lists all that is wrong, a line each, and exits 1."""
    write(
        "bad.py",
        """
        a = Child("a", trio.sleep_forever)
        b = Child("a", trio.sleep_forever, drain=-1)
        inner = Supervisor("inner", [a, b], strategy="all")
        tree = Supervisor("app", [inner, Supervisor("other", [a])], limit=Limit(-2))
        """,
    )
    result = supervise("check", "bad.py", cwd=tmp_path)
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    for expected in (
        "child 'a': drain must be >= 0, got -1",
        "supervisor 'inner': strategy must be one of 'one_for_one', 'one_for_all', 'rest_for_one', got 'all'",
        "supervisor 'inner' has two children named 'a'",
        "restarts must be >= 0, got -2",
        "one spec stands at two places: 'app/inner/a' and 'app/other/a'",
    ):
        assert sum(expected in line for line in lines) == 1, result.stderr
    assert len(lines) == 5


def test_check_starts_nothing(write, tmp_path):
    """`check` calls neither bodies nor resources nor `init`."""
    write(
        "quiet.py",
        """
        def boom(*_):
            raise SystemExit("started")
        tree = Supervisor("app", [Child("a", boom, resource=boom)], init=boom)
        """,
    )
    assert supervise("check", "quiet.py", cwd=tmp_path).returncode == 0


def test_check_warns_of_a_limit_that_can_never_trip(write, tmp_path):
    """R14: Backoffs that take longer than the window make the limit void: `check` warns, and exits 0."""
    write(
        "void.py",
        'tree = Supervisor("app", [Child("a", trio.sleep_forever, backoff=Backoff(initial=10))])\n',
    )
    result = supervise("check", "void.py", cwd=tmp_path)
    assert result.returncode == 0
    assert "warning: the limit of 'app' (3 within 5 s) can never trip by 'a'" in result.stderr


def test_check_counts_no_restart_of_a_limit_by_itself(write, tmp_path):
    """R14, R15: The backoffs are added up at once when they have become constant, however many there are."""
    write(
        "many.py",
        'tree = Supervisor("app", [Child("a", trio.sleep_forever, backoff=Backoff(initial=1, maximum=4, jitter=0))],\n'
        "    limit=Limit(2**63 - 2, within=3600))\n",
    )
    result = supervise("check", "many.py", cwd=tmp_path)
    assert result.returncode == 0
    assert f"{2**63 - 1} restarts take at least 3.69e+19 s of backoff" in result.stderr


@pytest.mark.parametrize("command", ["run", "check", "tree"])
@pytest.mark.parametrize(
    ("text", "target", "status", "expected"),
    [
        ("", "bad.py", 2, "bad.py has no 'tree', and it has no supervisor either"),
        (GOOD, "bad.py:nope", 2, "bad.py has no attribute 'nope'"),
        (GOOD, "nofile.py", 2, "no such file: nofile.py"),
        (GOOD, "no_module_of_that_name", 2, "no module named 'no_module_of_that_name'"),
        ('tree = Child("a", trio.sleep_forever)\n', "bad.py", 2, "must be a Supervisor or a Pool"),
        (
            "tree = 1 / 0\n",
            "bad.py",
            2,
            "bad.py failed to load: ZeroDivisionError: division by zero (line 3)",
        ),
        (
            'c = Child("a", trio.sleep_forever)\ntree = Supervisor("app", [c, c])\n',
            "bad.py",
            {"run": 2, "check": 1, "tree": 2},
            "supervisor 'app' has two children named 'a'",
        ),
        (
            'c = Child("a", trio.sleep_forever)\ntree = Supervisor("app", [c, Supervisor("b", [c])])\n',
            "bad.py",
            1,
            "one spec stands at two places: 'app/a' and 'app/b/a'; make two",
        ),
        (
            'from runners import device_worker\ntree = Supervisor("app", [device_worker("llm", lambda: 1)])\n',
            "bad.py",
            2,
            "a runner must be a value with a build method, got <function <lambda>",
        ),
    ],
)
def test_wrong_input_gives_one_clear_line(write, tmp_path, command, text, target, status, expected):
    """Bad input is one line that names the thing; exit status 1 or 2, no traceback."""
    write("bad.py", text)
    status = status[command] if isinstance(status, dict) else status
    result = supervise(command, target, cwd=tmp_path)
    if command == "check" and "two children" in expected:
        assert result.returncode == status
        assert expected in result.stderr
        assert "Traceback" not in result.stderr
    else:
        one_line(result, status=status, expected=expected)


def test_a_foreign_package_named_runners_is_named(tmp_path):
    """If `runners` on the path is another package, one line names it."""
    (tmp_path / "runners").mkdir()
    (tmp_path / "runners" / "__init__.py").write_text("")
    result = supervise("run", "runners.demo", cwd=tmp_path, env=environment(tmp_path))
    one_line(result, status=2, expected=f"the package 'runners' at {tmp_path}")


def test_the_current_folder_shadows_nothing(tmp_path):
    """The current folder is appended to the path: a `runners` there does not hide ours."""
    (tmp_path / "runners").mkdir()
    (tmp_path / "runners" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    result = supervise("check", "--strict", "runners.demo", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["supervise", "time"])
def test_a_file_does_not_take_the_place_of_a_module_that_is_in_use(write, tmp_path, name):
    """Otherwise its own imports would find the file itself, and so would those that this program makes later."""
    write(f"{name}.py", 'tree = Supervisor("app", [])')
    expected = f"{name}.py has the name of the module '{name}', which is loaded already: give it another name"
    one_line(supervise("run", f"{name}.py", cwd=tmp_path), status=2, expected=expected)


def test_a_file_is_found_from_a_folder_that_has_been_removed(write, tmp_path):
    """Its whole path needs no current folder."""
    write("tree.py", 'tree = Supervisor("app", [])')
    code = f"""
import os, tempfile
from supervise.cli import main  # before the folder is removed, since Python 3.13.0 cannot import its own `socket` without one
os.chdir(tempfile.mkdtemp())
os.rmdir(os.getcwd())
main(["check", {str(tmp_path / "tree.py")!r}])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_a_corrupt_weights_file_gives_one_line(write, tmp_path):
    """`run --quiet`: a tree that cannot start gives one line with the cause, and exits 1."""
    pytest.importorskip("torch", reason="the weights are torch's")
    (tmp_path / "w.safetensors").write_bytes(b"garbage")
    write(
        "corrupt.py",
        """
        from runners import TorchLM, device_worker
        tree = Supervisor("app", [device_worker("llm", TorchLM("w.safetensors"))])
        """,
    )
    one_line(supervise("run", "--quiet", "corrupt.py", cwd=tmp_path), status=1, expected="WeightsCorrupt")


ORDERED = """
import sys
def say(text):
    print(text, flush=True)
async def child(name, drain):
    say(f"up {name}")
    try:
        await stop_requested()
        say(f"asked {name}")
        await trio.sleep(drain)
    finally:
        say(f"down {name}")
tree = Supervisor("app", [Child(n, child, args=(n, d), drain=30) for n, d in (("a", 0), ("b", DRAIN))])
"""


def started(write, tmp_path, drain):
    write("ordered.py", ORDERED.replace("DRAIN", str(drain)))
    command = [sys.executable, "-P", "-m", "supervise.cli", "run", "ordered.py"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["up a\n", "up b\n"]
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_in_order(write, tmp_path, number):
    """R12: SIGINT or SIGTERM stops the children in reverse, each drained; the exit status is 0."""
    process = started(write, tmp_path, 0)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines() == ["asked b", "down b", "asked a", "down a"]
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_at_once(write, tmp_path, number, status):
    """A second signal does not wait for a child that drains."""
    process = started(write, tmp_path, 25)
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == "asked b\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status


def test_a_tree_that_fails_exits_70(write, tmp_path):
    """A root that gives up is exit status 70, with the failure and its traceback in the log."""
    write(
        "fails.py",
        """
        async def bad():
            raise ValueError("no good")
        tree = Supervisor("app", [Child("bad", bad)], limit=Limit(1))
        """,
    )
    result = supervise("run", "fails.py", cwd=tmp_path)
    assert result.returncode == 70
    assert "[app/bad #1] → Restart, decided by 'app'" in result.stderr
    assert "'app' failed" in result.stderr
    assert "ValueError: no good" in result.stderr


def test_a_tree_that_ends_by_itself_exits_0(write, tmp_path):
    """R18: Auto-shutdown is a normal end."""
    write(
        "ends.py",
        """
        async def once():
            pass
        tree = Supervisor("app", [Child("once", once, restart="transient", significant=True)],
                          auto_shutdown="any_significant")
        """,
    )
    assert supervise("run", "ends.py", cwd=tmp_path).returncode == 0


def test_a_stop_that_hangs_is_ended_hard(write, tmp_path):
    """R20: `--hard-exit-after` writes the stacks of what hangs and exits 70."""
    write(
        "hangs.py",
        """
        async def stubborn():
            print("up", flush=True)
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()
        tree = Supervisor("app", [Child("stubborn", stubborn)])
        """,
    )
    command = [sys.executable, "-P", "-m", "supervise.cli", "run", "--hard-exit-after", "0.3", "hangs.py"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "app/stubborn" in errors
    assert "in stubborn" in errors


def test_tree_prints_a_declared_tree(write, tmp_path):
    """`tree` draws the tree without starting it, as text and as Mermaid."""
    write(
        "drawn.py",
        """
        def boom(*_):
            raise SystemExit("started")
        tree = Supervisor("app", [Child("a", boom, resource=boom, mailbox=8)], init=boom)
        """,
    )
    result = supervise("tree", "drawn.py", cwd=tmp_path)
    assert (result.returncode, result.stdout.splitlines()) == (
        0,
        [
            "app   one_for_one · limit 3 within 5 s · init boom",
            "└─ a  permanent · body boom · resource boom · mailbox 8",
        ],
    )
    result = supervise("tree", "--mermaid", "drawn.py", cwd=tmp_path)
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "flowchart TD")


@pytest.mark.parametrize(
    ("to", "status", "expected"),
    [
        (">&-", 0, ""),
        ("| sleep 0", 0, ""),
        (
            "> /dev/full",
            2,
            "supervise: cannot write to standard output: [Errno 28] No space left on device\n",
        ),
    ],
)
def test_a_closed_output_is_no_failure(write, tmp_path, to, status, expected):
    """A closed pipe on standard output is no failure; a full disk is one, reported in one line."""
    write("good.py", GOOD)
    for command in ("tree", "check"):
        line = f'set -o pipefail; "{sys.executable}" -P -m supervise.cli {command} good.py {to}'
        ended = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr) == (status, expected)


@pytest.mark.parametrize(
    ("command", "to", "status"),
    [
        ("run failing.py", "2>&-", 2),
        ("run failing.py", "2> /dev/full", 2),
        ("check failing.py", "2>&-", 2),
        ("check wrong.py", "2>&-", 1),
        ("status --socket missing.sock", "2>&-", 2),
        ("top", "<&- 2>&-", 2),
    ],
)
def test_an_error_that_cannot_be_written_keeps_its_status(write, tmp_path, command, to, status):
    """Scripts that drop the line tell by the status whether a tree is not ready, or cannot be asked."""
    write("failing.py", "raise ValueError")
    write("wrong.py", "from supervise import *\ntree = Supervisor('app', [Child('a', 3)])")
    line = f'"{sys.executable}" -P -m supervise {command} {to}'
    ended = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, check=False
    )
    assert ended.returncode == status


def test_the_version_needs_no_output():
    """Closed standard streams do not change the exit status; a full disk gives one line of error."""
    for to, status in ((">&-", 0), ("> /dev/full", 2)):
        line = f'"{sys.executable}" -P -m supervise --version {to}'
        ended = subprocess.run(
            ["bash", "-c", line], env=environment(), capture_output=True, text=True, check=False
        )
        assert ended.returncode == status
        assert len(ended.stderr.splitlines()) == (status > 0)


def test_an_encoding_that_takes_no_lines_is_one_line_of_error(monkeypatch, capsys):
    """Standard output may have any that Python knows, such as that of the names of hosts, which has no escapes."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="idna"))
    with pytest.raises(SystemExit) as ended:
        main(["tree", "runners.demo"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "supervise: cannot write to standard output in its encoding, idna\n"


def test_a_tree_is_drawn_in_an_encoding_without_box_characters(write, tmp_path):
    """Characters that the encoding lacks are written as escapes."""
    write("good.py", GOOD)
    result = supervise("tree", "good.py", cwd=tmp_path, env={**environment(), "PYTHONIOENCODING": "ascii"})
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(r"app   one_for_one \xb7 limit 3 within 5 s")


def test_a_watcher_that_raises_is_reported_and_does_no_harm(write, tmp_path):
    """`run_tree(watch=…)` calls it with the tree as it starts, and cancels it when the tree has ended."""
    write(
        "watched.py",
        """
        async def once():
            await trio.sleep(0.1)
            print("done")

        tree = Supervisor("app", [Child("once", once, restart="transient", significant=True)],
                          auto_shutdown="any_significant")

        async def broken(tree):
            print(tree.status().state in ("down", "starting"))
            raise LookupError("no eyes")

        async def patient(tree):
            print(tree.status().state in ("down", "starting"))
            try:
                await trio.sleep_forever()
            finally:
                print(tree.status().state)

        run_tree(tree, sinks=[], watch=broken)
        run_tree(tree, sinks=[], watch=patient)
        """,
    )
    command = [sys.executable, "watched.py"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0
    assert result.stdout.split() == ["True", "done", "True", "done", "down"]
    assert "LookupError: no eyes" in result.stderr
    assert "the tree goes on" in result.stderr


@pytest.mark.slow
def test_run_names_the_child_that_keeps_the_loop(write, tmp_path):
    """R20: `run --watchdog` names it."""
    write(
        "keeps.py",
        """
        import time

        async def keeps():
            time.sleep(2)
            raise SystemExit(5)

        tree = Supervisor("app", [Child("bad", keeps)])
        """,
    )
    result = supervise("run", "--watchdog", "0.2", "keeps.py", cwd=tmp_path)
    assert result.returncode == 5
    assert "by the code of child 'app/bad'" in result.stderr
    assert "time.sleep(2)" in result.stderr


STARTS_BADLY = """
async def bad(task_status):
    raise KeyError("no such setting")
tree = Supervisor("app", [Supervisor("in", [Child("bad", bad)])])
"""


def test_a_failed_start_shows_its_traceback(write, tmp_path):
    """R16: The traceback is shown once, where the start failed; `--quiet` reduces it to one line."""
    write("badly.py", STARTS_BADLY)
    result = supervise("run", "badly.py", cwd=tmp_path)
    assert result.returncode == 1
    assert "[app/in/bad #1] failed to start: KeyError: 'no such setting'" in result.stderr
    assert result.stderr.count("Traceback") == 1
    assert 'raise KeyError("no such setting")' in result.stderr
    one_line(
        supervise("run", "-q", "badly.py", cwd=tmp_path), status=1, expected="'app/in/bad' failed to start"
    )


@pytest.mark.parametrize("options", [(), ("--verbose",), ("--quiet",)])
def test_a_run_logs_its_start_and_its_end(write, tmp_path, options):
    """It logs that it starts, is ready, fails and goes on, is asked to stop, and has stopped; each line has its time."""
    write(
        "told.py",
        """
        times = []
        async def once():
            times.append(1)
            if len(times) == 1:
                raise ConnectionError("gone")
            await trio.sleep(0)
            print("up", flush=True)
            await trio.sleep_forever()
        tree = Supervisor("app", [Child("once", once)])
        """,
    )
    command = [sys.executable, "-P", "-m", "supervise", "run", *options, "told.py"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = errors.splitlines()
    ours = [line for line in lines if "] " in line]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[app", line) for line in ours)
    texts = [line.partition("] ")[2] for line in ours]
    for part in ("starts", "is ready", "is being stopped: ", "has stopped"):
        shown = part in texts or (part.endswith(": ") and any(line.startswith(part) for line in texts))
        assert shown is (options != ("--quiet",))
    assert "failed: ConnectionError: gone" in texts
    assert ("Traceback (most recent call last):" in lines) is (options == ("--verbose",))


def test_a_programs_own_logging_gets_records_in_place_of_lines(write, tmp_path):
    """They are records of the logger `supervise`, with fields; no lines are written besides."""
    write(
        "logged.py",
        """
        import logging
        logging.basicConfig(level="INFO", format="LOG %(levelname)s %(path)s %(event)s %(message)s")
        async def bad():
            raise ConnectionError("gone")
        tree = Supervisor("app", [Child("bad", bad, restart="temporary", significant=True)],
                          auto_shutdown="any_significant")
        """,
    )
    lines = supervise("run", "logged.py", cwd=tmp_path).stderr.splitlines()
    assert lines[0] == "LOG INFO app Starting app #1 starts"
    assert any(line.startswith("LOG ERROR app/bad Decided app/bad #1 failed: ") for line in lines)
    assert lines[-1] == "LOG INFO app Stopped app #1 has stopped"
    assert all(line.startswith("LOG ") for line in lines)


def test_the_package_is_a_command_too(tmp_path):
    """`python -m supervise` works, and prints its version."""
    command = [sys.executable, "-P", "-m", "supervise", "--version"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert re.fullmatch(r"supervise \d+\.\d+\.\d+\n", result.stdout)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "--hard-exit-afer", "3", "x.py"), "did you mean '--hard-exit-after'?"),
        (("run", "x.py", "--verbos-e"), "did you mean '--verbose'?"),
        (("chek", "x.py"), "did you mean 'check'?"),
        (("run", "x.py", "--zzz"), "unrecognized arguments: --zzz\n"),
    ],
)
def test_a_misspelt_option_is_answered_with_a_near_match(tmp_path, arguments, expected):
    """The exit status is 2."""
    result = supervise(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith(expected if expected.endswith("\n") else f"{expected}\n")


FAILS_ONCE = """
async def fails():
    await trio.sleep(0.05)
    raise ConnectionError("gone")

tree = Supervisor("app", [Child("a", fails, restart="transient")], limit=Limit(1))
"""


def test_a_run_writes_its_events_to_a_file(write, tmp_path):
    """R31: The lines of text stay, and a later run appends."""
    write("fails.py", FAILS_ONCE)
    for _ in range(2):
        result = supervise("run", "--log", "events.jsonl", "fails.py", cwd=tmp_path)
        assert result.returncode == 70
        assert "[app/a #1] failed: ConnectionError: gone" in result.stderr
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["seq"] for line in lines] == [*range(1, len(lines) // 2 + 1)] * 2
    assert {line["kind"] for line in lines} >= {"Starting", "Ready", "Failed", "Decided", "Stopped"}


def test_a_run_writes_json_for_machines(write, tmp_path):
    """R31: Nothing else comes on standard error; the library's own log records are such lines too."""
    write("fails.py", FAILS_ONCE)
    result = supervise("run", "--log", "json", "fails.py", cwd=tmp_path)
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    kinds = [line["kind"] for line in lines]
    assert kinds.count("Failed") == 3
    assert (kinds[0], kinds[-1]) == ("Starting", "Log")
    assert (lines[-1]["v"], lines[-1]["level"]) == (1, "CRITICAL")
    assert lines[-1]["text"].startswith("'app' failed: ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--log", "no/such/folder/x"), "cannot write to no/such/folder/x: No such file or directory"),
        (("--log", "json", "--live"), "--live and --log json both write to the terminal"),
    ],
)
def test_a_log_that_cannot_be_written_is_refused_before_the_start(write, tmp_path, options, expected):
    """A program that runs for days should not find out at its first event."""
    write("good.py", GOOD)
    one_line(supervise("run", *options, "good.py", cwd=tmp_path), status=2, expected=expected)


def test_a_pipe_for_the_log_that_has_no_reader_is_refused(write, tmp_path):
    """To wait for a reader would block the loop."""
    write("good.py", GOOD)
    os.mkfifo(tmp_path / "pipe")
    expected = "cannot write to pipe: it is a pipe without a reader"
    one_line(supervise("run", "--log", "pipe", "good.py", cwd=tmp_path), status=2, expected=expected)


def test_a_pipe_for_the_log_keeps_its_reader(tmp_path):
    """It is opened once: a reader such as `cat` leaves when the pipe has lost its only writer."""
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with ExitStack() as files:
        _sinks(Namespace(log=str(tmp_path / "pipe"), quiet=False, verbose=False), files)
        with pytest.raises(BlockingIOError):  # a pipe without a writer gives an empty text
            os.read(end, 1)
    os.close(end)


FACTORY = """
def make_tree(count, *, name="app"):
    return Supervisor(name, [Child(f"c{i}", trio.sleep_forever) for i in range(count)])

def fails():
    raise LookupError("no configuration")

number = 3
"""


@pytest.mark.parametrize(
    ("call", "drawn"),
    [
        ("make_tree(2)", ["app", "├─ c0", "└─ c1"]),
        ("make_tree(count=1, name='a:b(c)')", ["a:b(c)", "└─ c0"]),
        ("make_tree( 0 )", ["app"]),
    ],
)
def test_a_target_may_be_a_call(write, tmp_path, call, drawn):
    """One file declares a tree for each environment; the arguments are literals."""
    write("factory.py", FACTORY)
    for where in ("factory.py", "factory"):
        result = supervise("tree", f"{where}:{call}", cwd=tmp_path)
        assert [line.partition("  ")[0] for line in result.stdout.splitlines()] == drawn, result.stderr


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("make_tree", "must be a Supervisor or a Pool, got <function make_tree"),
        ("make_tree", "; to call it, write factory.py:make_tree()"),
        ("make_tree()", "factory.py:make_tree() raised TypeError: make_tree() missing 1 required positional"),
        ("make_tree(open('x'))", "must have literals as its arguments, as in make_tree(3, name='x')"),
        ("make_tree(**{'count': 1})", "must have literals as its arguments"),
        ("make_tree(1)(2)", "must have literals as its arguments"),
        ("make_tree(1", "no module named 'factory.py:make_tree(1'"),
        ("make_treee(1)", "has no attribute 'make_treee'; did you mean 'make_tree'?"),
        ("fails()", "factory.py:fails() raised LookupError: no configuration (line 8)"),
        ("number()", "factory.py:number() must be the call of a function, got 3"),
    ],
)
def test_a_call_that_makes_no_tree_is_one_line(write, tmp_path, call, expected):
    """It names the call, what is allowed, and what came."""
    write("factory.py", FACTORY)
    one_line(supervise("check", f"factory.py:{call}", cwd=tmp_path), status=2, expected=expected)
