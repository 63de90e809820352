"""`supervise run --socket`, and the commands that look at the tree and change it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.ports import free_port
from supervise.cli.operate import is_within, token_of

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-0"
APP = """
import trio
from supervise import Child, Supervisor

times = []

async def flaky():
    times.append(1)
    if len(times) == 1:
        raise ConnectionError("gone")
    print("up", flush=True)
    await trio.sleep_forever()

async def box(inbox):
    async for message in inbox:
        pass

tree = Supervisor("app", [
    Child("db", trio.sleep_forever),
    Supervisor("web", [Child("a", flaky), Child("b", box, mailbox=3)], strategy="rest_for_one"),
])
"""


@pytest.fixture
def run(tmp_path):
    """Run a command with a runtime folder of its own."""
    (tmp_path / "app.py").write_text(APP)
    environment = {
        **os.environ, "XDG_RUNTIME_DIR": str(tmp_path / "run"), "PYTHONPATH": str(ROOT), "SUPERVISE_TOKEN": TOKEN, "COLUMNS": "200",
    }  # fmt: skip

    def run(*arguments, wait=True, **variables):
        command = [sys.executable, "-P", "-m", "supervise", *arguments]
        options = {"cwd": tmp_path, "env": {**environment, **variables}, "text": True}
        if wait:
            return subprocess.run(command, capture_output=True, timeout=60, check=False, **options)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    return run


@pytest.mark.slow
def test_a_running_program_is_seen_and_changed_from_a_shell(run, tmp_path):
    """Every command, with its words and its exit status, as in the page; the program ends by `stop` of its root."""
    port = str(free_port())
    program = run("run", "app.py", "--socket", "--port", port, wait=False)
    try:
        assert program.stdout.readline() == "up\n"
        shown = run("status")
        assert (shown.returncode, shown.stderr) == (0, "")
        lines = shown.stdout.splitlines()
        assert lines[0].split() == ["node", "state", "#", "restarts", "waiting", "since", "last", "failure"]
        assert [line.split("up")[0].strip() for line in lines[1:]] == [
            "app",
            "├─ db",
            "└─ web",
            "├─ a",
            "└─ b",
        ]
        assert lines[4].endswith("ConnectionError: gone")
        assert "1/3" in lines[3]
        rows = json.loads(run("status", "app/web", "-o", "json").stdout)["nodes"]
        assert [row["path"] for row in rows] == ["app/web", "app/web/a", "app/web/b"]
        assert "The decision: Restart, decided by 'app/web'" in run("why", "app/web/a").stdout
        assert "in flaky" in run("stack", "app/web/a").stdout
        assert run("why", "app/db", "--socket", f"http://127.0.0.1:{port}").stdout.startswith("app/db is up")
        planned = run("restart", "app/web/a", "--dry-run")
        assert planned.stdout.split() == [
            "stop", "app/web/b", "stop", "app/web/a", "start", "app/web/a", "start", "app/web/b", "(nothing", "was", "done)",
        ]  # fmt: skip
        refused = run("restart", "app/web/a")
        assert (refused.returncode, "needs a reason: --reason TEXT" in refused.stderr) == (2, True)
        done = run("stop", "app/db", "--reason", "too loud")
        assert (done.returncode, done.stdout) == (0, "stop app/db\n")
        refused = run("stop", "app/dbb", "--reason", "x")
        assert (refused.returncode, "did you mean 'app/db'" in refused.stderr) == (1, True)
        wrong = run("start", "app/db", "--reason", "x", SUPERVISE_TOKEN="wrong")
        assert (wrong.returncode, "Authorization: Bearer TOKEN" in wrong.stderr) == (1, True)
        events = run("events", "app/db").stdout.splitlines()
        assert "was asked to stop: " in events[-2]
        assert events[-2].endswith("too loud")
        assert json.loads(run("events", "-o", "json").stdout.splitlines()[-1])["kind"] == "Stopped"
        follower = run("events", "--follow", wait=False)
        assert any("app/db #1] has stopped" in line for line in follower.stdout)
        follower.stdout.close()  # as `head -1` does; no further event comes
        assert follower.wait(60) == 0
        follower.stderr.close()
        assert run("stop", "app", "--reason", "done").returncode == 0
        assert program.wait(60) == 0
        assert "was asked to stop: " in program.stderr.read()
    finally:
        program.kill()
        program.wait()
        program.stdout.close()
        program.stderr.close()
    gone = run("status")
    assert (gone.returncode, "no running tree was found" in gone.stderr) == (2, True)
    assert list((tmp_path / "run" / "supervise").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (
            ["run", "app.py", "--socket", "missing/s"],
            {},
            "cannot make the socket missing/s: No such file or directory",
        ),
        (
            ["run", "app.py", "--socket"],
            {"SUPERVISE_TOKEN": "short"},
            "token must have 20 printable ASCII characters",
        ),
        (["run", "app.py", "--port", "0"], {}, "invalid port, 1 to 65535 value: '0'"),
        (
            ["run", "--socket", "app.py"],
            {},
            "--socket took the target for its path: write it behind the target",
        ),
        (["status", "--socket", "missing"], {}, "no program answers at missing"),
        (["stop", "app", "--reason", "x", "--token-file", "missing"], {}, "cannot read the token in missing"),
        (["statsu"], {}, "did you mean 'status'"),
    ],
)
def test_a_wrong_command_gets_one_line_and_status_2(run, arguments, variables, message):
    """Nothing is started."""
    if "--token-file" in arguments:
        arguments = [*arguments, "--socket", "s"]
    done = run(*arguments, **variables)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("wanted", ["app/\udcff", r"app/\udcff", "app"])
def test_a_path_may_be_given_as_it_is_shown(wanted):
    """The nodes and the events of one path are found here, not by the program."""
    assert is_within("app/\udcff", wanted)
    assert is_within("app/\udcff/a", wanted)
    assert not is_within("app2/\udcff", wanted)


def test_an_empty_file_has_no_token(tmp_path):
    """As an empty variable; HTTP has no header for an empty one."""
    (tmp_path / "token").write_text("\n")
    assert token_of(str(tmp_path / "token")) is None
