"""A run that was recorded comes to the same effects again, in machines without tasks, clock or chance."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervise import (
    Child,
    Refused,
    StartFailed,
    Supervisor,
    TreeFailed,
    open_tree,
)
from supervise.testing import fault_plans, run_virtual, trees
from supervise.testing.replay import Mismatch, recording, replay

MODULE = """
import trio
from supervise import *

class Poisoned(Exception):
    tag = "device.poisoned"

async def idle(*_):
    await trio.sleep_forever()

async def poisoned():
    await trio.sleep(1)
    raise Poisoned("no way back")

async def grouped():
    await trio.sleep(3)
    raise ExceptionGroup("two", [OSError(5, "gone"), Poisoned("too")])

tree = Supervisor("app", [
    Child("a", poisoned, backoff=Backoff(initial=2), decider=DEVICE),
    Supervisor("inner", [Child("b", grouped), Child("c", idle, drain=3)], strategy="one_for_all"),
    Pool("pool", Child("m", idle)),
], limit=Limit(9, within=100), decider=OTP)

async def main():
    async with open_tree(tree, sinks=[lambda event: None]) as app:
        await app["app/pool"].add()
        await trio.sleep(8)
        await app["app/a"].restart()
        await app["app/inner"].stop()
        await app["app/inner"].start()
"""


def command(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "supervise.testing.replay", *arguments],
        check=False,
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with the log of a real run, on a real clock that runs fast, of a tree in a module."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "myapp.py").write_text(MODULE)
    code = (
        "import trio, myapp, supervise.testing.replay as r, trio.testing\n"
        "with r.recording('run.log'): trio.run(myapp.main, clock=trio.testing.MockClock(rate=20))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return folder


@pytest.fixture
def log(recorded, tmp_path):
    """A copy of it, which the test may change."""
    return Path(shutil.copytree(recorded, tmp_path / "log"))


def test_a_real_run_is_replayed_by_the_command(log):
    status, out, errors = command("run.log", "myapp", cwd=log)
    assert (status, errors) == (0, "")
    *_, last = out.splitlines()
    inputs = len((log / "run.log").read_text().splitlines())
    assert last.startswith(f"{inputs} inputs, ")
    assert last.endswith("the same as in the log")
    assert "app <- Exited(a, 1, Poisoned('no way back')" in out.replace("'a'", "a")
    assert "ExceptionGroup('two (2 sub-exceptions)')" in out


def test_a_changed_declaration_replays_to_other_effects(log):
    (log / "other.py").write_text(
        MODULE.replace("decider=DEVICE", 'decider=Decider({"device.poisoned": Stop})')
    )
    status, _, errors = command("run.log", "other", cwd=log)
    assert status == 1
    assert "only in the log:  Decided" in errors
    assert "only in a replay: Decided" in errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nothing.log", "myapp"), "nothing.log"),
        (("run.log", "nothing"), "no module named 'nothing'"),
        (("run.log", "wrong"), "the log is of a tree 'app', not of 'wrong'"),
        (("cut.log", "myapp"), "line 1: a log begins with the start of a tree"),
        (("torn.log", "myapp"), "line 2: this line does not belong to a log"),
        (("lacking.log", "myapp"), "line 2: this line of a log lacks fields, input, u"),
        (("odd.log", "myapp"), "line 2: this is no input of a machine: Boot {'speed': 3}"),
        (("late.log", "myapp"), "line 2: this line cannot be replayed: ValueError("),
        (("empty.log", "myapp"), "line 2: the effects in this line of a log must be a list of texts"),
        (("binary.log", "myapp"), "line 2: this line does not belong to a log"),
    ],
)
def test_a_log_that_cannot_be_replayed_gives_one_line(log, arguments, expected):
    (log / "wrong.py").write_text(MODULE.replace('Supervisor("app"', 'Supervisor("wrong"'))
    lines = (log / "run.log").read_text().splitlines(keepends=True)
    (log / "cut.log").write_text("".join(lines[1:]))
    (log / "torn.log").write_text(lines[0] + lines[1][:40])
    line = json.loads(lines[1])
    (log / "odd.log").write_text(lines[0] + json.dumps(line | {"fields": {"speed": 3}}))
    (log / "late.log").write_text(lines[0] + json.dumps(line | {"now": "late"}))
    (log / "empty.log").write_text(lines[0] + json.dumps(line | {"effects": None}))
    (log / "binary.log").write_bytes(lines[0].encode() + b"\xff")
    for key in ("u", "input", "fields"):
        del line[key]
    (log / "lacking.log").write_text(lines[0] + json.dumps(line))
    status, _, errors = command(*arguments, cwd=log)
    assert status == 1
    assert expected in errors
    assert len(errors.splitlines()) == 1


def test_the_log_of_a_program_that_is_killed_is_complete(tmp_path):
    """Everything that has happened before the kill can be replayed."""
    (tmp_path / "myapp.py").write_text(MODULE)
    code = (
        "import os, signal, trio, myapp, supervise.testing.replay as r, supervise\n"
        "async def main():\n"
        "    async with supervise.open_tree(myapp.tree, sinks=[]):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "with r.recording('run.log'): trio.run(main)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert killed.returncode == -signal.SIGKILL
    status, out, _ = command("run.log", "myapp", cwd=tmp_path)
    assert (status, "app/a" in out, out.endswith("the same as in the log\n")) == (0, True, True)


async def idle(*_):
    await trio.sleep_forever()


def test_an_added_spec_is_not_in_a_log(tmp_path):
    """Functions are not written to a log."""
    spec = Supervisor("app", [Child("a", idle)])

    async def main():
        async with open_tree(spec, sinks=[]) as tree:
            await tree.root.add(Child("b", idle))

    with recording(tmp_path / "log"):
        run_virtual(main)
    with pytest.raises(Mismatch, match="'b' was added or adopted by its spec"):
        list(replay((tmp_path / "log").read_text().splitlines(), spec))


class Guarded(Exception):
    @property
    def exceptions(self):
        raise RuntimeError("not yours")


class GuardedGroup(ExceptionGroup):
    @property
    def exceptions(self):
        raise RuntimeError("not yours")


@pytest.mark.parametrize("exc", [Guarded(), GuardedGroup("x", [ValueError()])])
def test_a_recorded_failure_is_not_asked_for_its_attributes(tmp_path, exc):
    """R1: A property of an exception may raise, in a run that is recorded as in any other."""
    raised = [exc]

    async def fails_once():
        if raised:
            raise raised.pop()
        await trio.sleep_forever()

    async def main():
        async with open_tree(Supervisor("app", [Child("a", fails_once)]), sinks=[]) as tree:
            await trio.sleep(1)
            assert tree["app/a"].status().incarnation == 2

    with recording(tmp_path / "log"):
        run_virtual(main)


class Silent(Exception):
    def __str__(self):
        raise SystemExit("not a text")


class Odd(str):
    __slots__ = ()

    def __repr__(self):
        raise RuntimeError("not yours")


class Oddly(Exception):
    def __str__(self):
        return Odd("text")


def nested(levels):
    exc = ValueError("deep")
    for _ in range(levels):
        exc = ExceptionGroup("x", [exc])
    return exc


@pytest.mark.parametrize(
    "make", [Silent, Oddly, lambda: nested(10), lambda: nested(5_000)], ids=["silent", "odd", "10", "5000"]
)
def test_what_an_exception_is_like_does_not_break_the_recorded_tree(tmp_path, make):
    """R24: Its text may raise anything, and a group may be nested without end."""
    raised = [make()]

    async def fails_once():
        if raised:
            raise raised.pop()
        await trio.sleep_forever()

    tree = Supervisor("app", [Child("a", fails_once)])

    async def main():
        async with open_tree(tree, sinks=[]) as app:
            await trio.sleep(1)
            assert app["app/a"].status().incarnation == 2

    with recording(tmp_path / "log"):
        run_virtual(main)
    assert list(replay((tmp_path / "log").read_text().splitlines(), tree))


def test_a_value_that_is_nested_without_end_does_not_break_the_recorded_tree(tmp_path):
    """R24: The log keeps what it prints."""

    async def body(*, task_status):
        value = ()
        for _ in range(100_000):
            value = (value,)
        task_status.started(value)
        await trio.sleep_forever()

    tree = Supervisor("app", [Child("a", body)])

    async def main():
        async with open_tree(tree, sinks=[]) as app:
            await app["app/a"].ready()

    with recording(tmp_path / "log"):
        run_virtual(main)
    assert list(replay((tmp_path / "log").read_text().splitlines(), tree))


@pytest.mark.parametrize(
    ("to", "status", "expected"),
    [
        (">&-", 0, ""),
        ("> /dev/full", 1, "cannot write to standard output: [Errno 28] No space left on device\n"),
        ("2>&- > /dev/full", 1, ""),
    ],
)
def test_what_cannot_be_written_is_no_difference(log, to, status, expected):
    """A closed output does not change the exit status; a full disk gives one line of error."""
    line = f'"{sys.executable}" -m supervise.testing.replay run.log myapp {to}'
    done = subprocess.run(["bash", "-c", line], cwd=log, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, expected)


def test_names_are_escaped_that_the_output_cannot_encode(tmp_path, monkeypatch):
    """As in all commands."""
    module = (
        "import trio\nfrom supervise import *\ntree = Supervisor('ä', [Child('a', trio.sleep_forever)])\n"
    )
    (tmp_path / "named.py").write_text(module, encoding="utf-8")

    async def main():
        async with open_tree(Supervisor("ä", [Child("a", trio.sleep_forever)]), sinks=[]):
            pass

    with recording(tmp_path / "log"):
        run_virtual(main)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    status, out, errors = command("log", "named", cwd=tmp_path)
    assert (status, errors) == (0, "")
    assert out.splitlines()[0].endswith(r" \xe4 starts")


@attrs.define
class Given:
    """A ready value of an attrs class, which may lead to itself."""

    its: object = None


def in_itself():
    """It has no end."""
    one = Given()
    one.its = one
    return one


@pytest.mark.parametrize(
    "make",
    [
        lambda: Given(1),
        in_itself,
        lambda: (([[["deep"]]],),),
        lambda: (Given(2), ValueError([[[["deep"]]]])),
        lambda: Child("b", trio.sleep_forever),
    ],
)
def test_any_ready_value_is_replayed(tmp_path, make):
    """A machine only prints it."""

    async def body(*, task_status):
        task_status.started(make())
        await trio.sleep_forever()

    tree = Supervisor("app", [Child("a", body)])

    async def main():
        async with open_tree(tree, sinks=[lambda _: None]):
            pass

    with recording(tmp_path / "log"):
        run_virtual(main)
    shown = [line for line, _ in replay((tmp_path / "log").read_text().splitlines(), tree)]
    assert any("Up" in line for line in shown)


def test_a_value_that_cannot_be_written_does_not_break_the_recorded_tree(tmp_path):
    """R24: Python writes no integer of many thousand digits; the log keeps what it prints instead."""

    async def body(*, task_status):
        task_status.started(10**5000)
        await trio.sleep_forever()

    tree = Supervisor("app", [Child("a", body)])

    async def main():
        async with open_tree(tree, sinks=[]) as app:
            return await app["app/a"].ready()

    with recording(tmp_path / "log"):
        assert run_virtual(main) == 10**5000
    assert list(replay((tmp_path / "log").read_text().splitlines(), tree))


@given(st.data(), st.integers(0, 999))
@settings(max_examples=30)
def test_any_tree_with_any_faults_is_replayed(tmp_path_factory, data, seed):
    """This holds for any faults, schedule and jitter."""
    spec = data.draw(trees())
    plan = data.draw(fault_plans(spec))
    path = tmp_path_factory.mktemp("log") / "log"

    async def main():
        with trio.move_on_after(50):
            async with open_tree(plan.over(spec), sinks=[]) as tree:
                await trio.sleep(20)
                for ref in [each for each in tree.status().walk() if each.kind == "child"]:
                    try:
                        await tree[ref.path].restart()
                    except (Refused, KeyError, StartFailed):
                        pass

    with recording(path):
        try:
            run_virtual(main, seed=seed)
        except (StartFailed, TreeFailed):
            pass
    lines = path.read_text().splitlines()
    assert len(list(replay(lines, plan.over(spec)))) == len(lines)
    assert json.loads(lines[0])["tree"] == spec.name


def deep():
    exc = ValueError("x")
    for _ in range(3_000):
        exc = ExceptionGroup("deep", [exc])
    return exc


class Exits(Exception):
    """One that cannot be printed."""

    def __str__(self):
        raise SystemExit(3)


@pytest.mark.parametrize(
    ("make", "full", "ends"), [(ValueError, True, True), (deep, False, False), (Exits, False, False)]
)
def test_a_recording_that_fails_hurts_no_tree(tmp_path, caplog, make, full, ends):
    """R31: On a full disk, for instance; it ends there, and the log says so."""
    lives = []

    async def body():
        lives.append(1)
        if len(lives) == 1:
            raise make()
        await trio.sleep_forever()

    async def main():
        async with open_tree(Supervisor("app", [Child("a", body)]), sinks=[]):
            await trio.sleep(1)

    with recording("/dev/full" if full else tmp_path / "log"):
        run_virtual(main)
    assert len(lives) == 2
    assert caplog.text.count("the recording of tree 'app' ends here") == ends
