"""A program as a leaf of a tree: its start, its end, its stop, and its surroundings."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest
import trio

from supervise import Decider, Restart, Stop, Supervisor, open_tree
from supervise.events import StopError
from supervise.programs import Command, CommandExited, CommandMissing, line
from supervise.programs.guardian import below

from .little import (
    FOR_EVER,
    PATIENCE,
    UP,
    WITH_ORPHAN,
    Seen,
    little,
    opened,
    python,
    refused,
    started_again,
    until,
)
from .servers import AS_ROOT, processes_in

WRITES = """
import json, os, signal, sys, time
def write(name, value):
    with open(name + ".new", "w") as file: json.dump(value, file)
    os.rename(name + ".new", name)
"""


def written(path):
    return json.loads(path.read_text())


@pytest.mark.trio
async def test_the_ready_value_is_the_running_program(tmp_path):
    """It has the pid of the main process, and no port if `ready` knows none."""
    async with opened(little(WRITES + "write('pid', os.getpid())\n" + UP + FOR_EVER, tmp_path), tmp_path) as (
        _,
        running,
    ):
        assert running.pid == written(tmp_path / "pid")
        assert running.port is None
        assert repr(running) == f"<program {Path(python('')[0]).name!r} pid={running.pid} port=None>"


@pytest.mark.trio
async def test_without_ready_a_program_is_ready_as_soon_as_it_runs(tmp_path):
    """Nothing is waited for but its exec."""
    async with opened(Command("little", python(FOR_EVER), cwd=tmp_path), tmp_path) as (_, running):
        os.kill(running.pid, 0)


@pytest.mark.trio
@pytest.mark.parametrize(("end", "tag"), [("", "command.exit.0"), ("sys.exit(3)", "command.exit.3")])
async def test_a_program_runs_outside_of_a_tree(tmp_path, end, tag):
    """The resource of a command may be used alone. Its end is an error also after status 0, and has the last lines of the program."""
    command = Command("alone", python(f"import sys; print('hello'); {end}"), cwd=tmp_path)
    with trio.fail_after(PATIENCE):
        async with command.resource() as running:
            error = await running.ended()
    assert (type(error), error.tag) == (CommandExited, tag)
    assert error.__notes__ == ["the last lines of its output:\nhello"]
    assert processes_in(tmp_path) == set()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("end", "tag", "text"),
    [
        ("sys.exit(3)", "command.exit.3", "exited with status 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "command.signal.SIGSEGV", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "command.signal.SIG40", "was killed by SIG40"),
    ],
)
async def test_the_end_of_a_program_is_a_failure_with_a_tag(tmp_path, end, tag, text):
    """The exit status or the signal is in the tag, and the last lines of both streams are a note."""
    seen = Seen()
    script = WRITES + UP + f"print('one'); print('two', file=sys.stderr, flush=True); time.sleep(0.05); {end}"
    async with opened(little(script, tmp_path), tmp_path, seen) as _:
        await until(seen.failures)
    (error, *_) = seen.failures()
    assert isinstance(error, CommandExited)
    assert (error.tag, str(error).partition(" ")[2]) == (tag, text)
    assert sorted(error.__notes__[0].splitlines()) == ["one", "the last lines of its output:", "two", "up"]


@pytest.mark.trio
async def test_a_decider_knows_a_program_by_its_tags(tmp_path):
    """The exact tag counts before its prefix, as for any failure (R2)."""
    seen = Seen()
    script = WRITES + UP + "n = len(os.listdir('.')); write(str(n), n); sys.exit(3 if n else 4)"
    spec = little(script, tmp_path, decider=Decider({"command.exit": Restart, "command.exit.3": Stop}))
    async with opened(spec, tmp_path, seen) as (tree, _):
        await tree[spec].ended()
    assert [error.tag for error in seen.failures()] == ["command.exit.4", "command.exit.3"]


@pytest.mark.trio
async def test_status_0_is_a_return(tmp_path):
    """R7: of a permanent program it is a failure with the tag `returned`; a transient one is done."""
    seen = Seen()
    async with opened(little(UP, tmp_path, decider=Decider({"returned": Stop})), tmp_path, seen) as (tree, _):
        await tree["app/little"].ended()
    assert [error.tag for error in seen.failures()] == ["returned"]
    seen = Seen()
    async with opened(little(UP, tmp_path, restart="transient"), tmp_path, seen) as (tree, _):
        await tree["app/little"].ended()
    assert seen.failures() == []


CLOSED = socket.socket()
CLOSED.close()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"argv": ["no-such-program"]},
            "no-such-program could not be started: no-such-program: No such file or directory",
        ),
        ({"argv": ["/etc/passwd"]}, "/etc/passwd could not be started: /etc/passwd: Permission denied"),
        (
            {"argv": ["\ud800"]},
            "\ud800 could not be started: \ud800: 'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
        ),
        ({"cwd": "/no/such"}, "true could not be started: the folder /no/such: No such file or directory"),
        (
            {"user": "no-such-user"},
            "true could not be started: the user 'no-such-user': there is no such user",
        ),
        ({"files": [0, 9999]}, "true could not be started: 9999, one of its files, is not open"),
        ({"files": [2**70]}, f"true could not be started: {2**70}, one of its files, is not open"),
        ({"files": [CLOSED]}, f"true could not be started: {CLOSED!r}, one of its files, is not open"),
    ],
)
async def test_what_cannot_be_started_says_why(tmp_path, options, text):
    """It is an error of the first start (R16), with the tag `command.missing`."""
    error = await refused(Command("x", **{"argv": ["true"], "cwd": tmp_path, **options}), tmp_path)
    assert isinstance(error, CommandMissing)
    assert (error.tag, str(error)) == ("command.missing", text)


@pytest.mark.trio
async def test_a_program_that_ends_before_it_is_ready_fails_its_start_at_once(tmp_path):
    """Not only when `ready_timeout` is over; and status 0 is no success."""
    error = await refused(little("import sys; sys.exit('bad option')", tmp_path), tmp_path)
    assert error.tag == "command.exit.1"
    assert str(error).endswith("exited with status 1 before it was ready")
    assert "bad option" in error.__notes__[0]
    error = await refused(little("", tmp_path), tmp_path)
    assert str(error).endswith("exited with status 0 before it was ready")


@pytest.mark.trio
async def test_a_program_that_daemonizes_is_refused(tmp_path):
    """It would be out of the tree's hands; the process that it has left is killed, and the usual switch named."""
    error = await refused(little(WITH_ORPHAN, tmp_path), tmp_path)
    assert error.tag == "command.exit.0"
    assert "and left 1 process behind; it must stay in the foreground to be supervised" in str(error)
    seen = Seen()
    spec = little(UP + WITH_ORPHAN, tmp_path, decider=Decider({"command.exit.0": Stop}))
    async with opened(spec, tmp_path, seen) as (tree, _):
        await tree[spec].ended()
    assert "and left 1 process behind" in str(seen.failures()[0])


@pytest.mark.trio
async def test_a_new_incarnation_starts_when_nothing_of_the_old_one_is_left(tmp_path):
    """R12: not even a process that has a session of its own and has lost its parent."""
    spec = little(WITH_ORPHAN.replace("os.wait()", "") + UP + FOR_EVER, tmp_path)
    async with opened(spec, tmp_path) as (tree, running):
        await until(lambda: len(processes_in(tmp_path)) == 2)
        old = processes_in(tmp_path)
        os.kill(running.pid, signal.SIGKILL)
        await started_again(tree, spec, running)
        assert not old & processes_in(tmp_path)


# --- its stop

OBEYS = (
    WRITES
    + """
got = []
def note(number, frame):
    got.append(signal.Signals(number).name)
    write('got', got)
    if got[-1] == LAST: sys.exit(0)
for each in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP): signal.signal(each, note)
"""
)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_stop_is_a_sequence_of_signals(tmp_path):
    """R20: each step has its seconds, and the next one comes when they are over."""
    script = OBEYS.replace("LAST", "'SIGINT'") + UP + FOR_EVER
    stop = ((signal.SIGTERM, 2.5), (signal.SIGQUIT, 2.5), (signal.SIGINT, 30))
    seen = Seen()
    async with opened(little(script, tmp_path, stop=stop), tmp_path, seen):
        pass
    assert written(tmp_path / "got") == ["SIGTERM", "SIGQUIT", "SIGINT"]
    assert not [event for event in seen.events if isinstance(event, StopError)]


@pytest.mark.slow
@pytest.mark.trio
async def test_after_the_last_step_everything_is_killed(tmp_path):
    """R20: a program that takes no notice, and one that has no step, gets SIGKILL."""
    for stop in (((signal.SIGTERM, 2.5),), ()):
        script = OBEYS.replace("LAST", "''") + WITH_ORPHAN + UP + FOR_EVER
        async with opened(little(script, tmp_path, stop=stop), tmp_path):
            pass
    assert written(tmp_path / "got") == ["SIGTERM"]


@pytest.mark.trio
async def test_the_signals_of_a_stop_go_to_the_main_process(tmp_path):
    """It tells its own workers, in its own order."""
    fork = "if os.fork() == 0: os.chdir('worker')\nelse: os.chdir('main'); print('up', flush=True)\n"
    slowly = "if got[-1] == 'SIGTERM': time.sleep(0.3); sys.exit(0)"  # so that a worker has the time to tell
    script = OBEYS.replace("if got[-1] == LAST: sys.exit(0)", slowly) + fork + FOR_EVER
    (tmp_path / "main").mkdir()
    (tmp_path / "worker").mkdir()
    async with opened(little(script, tmp_path), tmp_path):
        pass
    assert written(tmp_path / "main" / "got") == ["SIGTERM"]
    assert not (tmp_path / "worker" / "got").exists()


@pytest.mark.trio
async def test_a_program_that_is_stopped_by_sigstop_gets_its_signal_too(tmp_path):
    """It is continued for it."""
    script = OBEYS.replace("LAST", "'SIGTERM'") + UP + FOR_EVER
    async with opened(little(script, tmp_path), tmp_path) as (_, running):
        os.kill(running.pid, signal.SIGSTOP)
    assert written(tmp_path / "got") == ["SIGTERM"]


@pytest.mark.trio
async def test_a_failure_that_is_injected_kills_the_program(tmp_path):
    """R27: its body is cancelled, which is the end of every phase (R20)."""
    seen = Seen()
    spec = little(OBEYS.replace("LAST", "''") + UP + FOR_EVER, tmp_path, stop=((signal.SIGTERM, 60),))
    async with opened(spec, tmp_path, seen) as (tree, running):
        tree[spec].inject(RuntimeError("injected"))
        again = await started_again(tree, spec, running)
        with pytest.raises(ProcessLookupError):
            os.kill(running.pid, 0)
        os.kill(again.pid, signal.SIGKILL)
        await started_again(tree, spec, again)
        tree[spec].inject(RuntimeError("injected"))
    assert not (tmp_path / "got").exists()


@pytest.mark.trio
async def test_a_start_that_is_cancelled_stops_the_program_by_its_steps(tmp_path):
    """A program that is not ready yet may have as much to bring to an end."""
    script = OBEYS.replace("LAST", "'SIGTERM'") + "write('runs', 1)\n" + FOR_EVER
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def run():
                async with open_tree(Supervisor("app", [little(script, tmp_path)]), sinks=[]):
                    raise AssertionError

            nursery.start_soon(run)
            await until((tmp_path / "runs").exists)
            nursery.cancel_scope.cancel()
    assert written(tmp_path / "got") == ["SIGTERM"]
    assert not processes_in(tmp_path)


@pytest.mark.trio
async def test_the_seconds_of_a_stop_are_the_drain_of_the_child():
    """R20: the tree asks, waits so long, and then cancels, which kills. The grace covers a start that is cancelled."""
    spec = Command("x", ["true"], stop=((signal.SIGTERM, 3), (signal.SIGINT, 4)))
    assert (spec.drain, spec.grace) == (7.0, 12.0)
    assert Command("x", ["true"], grace=1).grace == 1


# --- its surroundings


@pytest.mark.trio
async def test_a_program_gets_what_its_declaration_says(tmp_path, monkeypatch):
    """Variables besides those of this process, without those that systemd has meant for this process; umask, limits and files."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("GONE", "1")
    monkeypatch.setenv("KEPT", "2")
    script = (
        WRITES
        + """
import resource, socket, stat
write('seen', {
    'env': {name: os.environ.get(name) for name in ('NOTIFY_SOCKET', 'GONE', 'KEPT', 'NEW', 'PYTHONUNBUFFERED')},
    'umask': os.umask(0), 'nofile': resource.getrlimit(resource.RLIMIT_NOFILE), 'core': resource.getrlimit(resource.RLIMIT_CORE),
    'fds': os.environ['LISTEN_FDS'], 'is_own': os.environ['LISTEN_PID'] == str(os.getpid()),
    'port': socket.socket(fileno=3).getsockname()[1], 'text': os.read(4, 100).decode(),
    'sid': os.getsid(0) == os.getpid(), 'open': sorted(os.listdir('/proc/self/fd'), key=int)[:5],
    'ignored': [s.name for s in signal.Signals if s not in (9, 19) and signal.getsignal(s) is signal.SIG_IGN and s.name != 'SIGPIPE' and s.name != 'SIGXFSZ'],
})
"""
        + UP
        + FOR_EVER
    )
    (tmp_path / "text").write_text("a text")
    with socket.create_server(("127.0.0.1", 0)) as listener, (tmp_path / "text").open() as text:
        spec = little(
            script,
            tmp_path,
            env={"NEW": "3", "GONE": None},
            umask=0o027,
            limits={"nofile": (100, 200), "core": 0},
            files=[listener, text.fileno()],
        )
        async with opened(spec, tmp_path):
            found = written(tmp_path / "seen")
        port = listener.getsockname()[1]
    assert found["env"] == {
        "NOTIFY_SOCKET": None,
        "GONE": None,
        "KEPT": "2",
        "NEW": "3",
        "PYTHONUNBUFFERED": "1",
    }
    assert (found["umask"], found["nofile"], found["core"]) == (0o027, [100, 200], [0, 0])
    assert (found["fds"], found["is_own"], found["port"], found["text"]) == ("2", True, port, "a text")
    assert found["sid"]
    assert found["ignored"] == []


@pytest.mark.trio
async def test_a_file_that_has_the_number_of_standard_input_is_handed_over(tmp_path):
    """A program that was started without it gives this number to the first file that it opens."""
    script = "cat <&3 > got; echo up; exec sleep 1000"
    (tmp_path / "text").write_text("a text")
    before = os.dup(0)
    try:
        with (tmp_path / "text").open() as text:
            os.dup2(text.fileno(), 0)
        spec = Command("little", ["sh", "-c", script], ready=line("^up$"), cwd=tmp_path, files=[0])
        async with opened(spec, tmp_path):
            assert (tmp_path / "got").read_text() == "a text"
    finally:
        os.dup2(before, 0)
        os.close(before)


@pytest.mark.trio
@pytest.mark.skipif(not AS_ROOT, reason="only root may become another user")
async def test_a_program_may_run_as_another_user(tmp_path):
    """With its groups and its home; the guardian stays who it is, so that the program cannot harm it."""
    for folder in tmp_path.parents[:2]:  # pytest makes them for this user alone
        folder.chmod(0o755)
    tmp_path.chmod(0o777)
    script = "echo $(id -u) $(id -G) $HOME $USER > who; echo up; exec sleep 1000"
    spec = Command("little", ["sh", "-c", script], user="nobody", cwd=tmp_path)
    async with opened(spec, tmp_path) as (_, running):
        await until(lambda: (tmp_path / "who").exists() and (tmp_path / "who").read_text())
        uid, *groups, _, user = (tmp_path / "who").read_text().split()
        assert user == "nobody"
        assert int(uid) == (tmp_path / "who").stat().st_uid != 0
        assert "0" not in groups
        (guardian,) = below(running.guarded._guardian.pid)[:1]
        assert Path(f"/proc/{guardian}").stat().st_uid == 0  # noqa: ASYNC240 - /proc does not block


@pytest.mark.trio
async def test_what_is_no_signal_is_refused_and_hurts_no_program(tmp_path):
    """Its guardian would fail with it, and a program without a guardian is killed."""
    async with opened(little(UP + FOR_EVER, tmp_path), tmp_path) as (tree, running):
        for number in (9999, -1, 0, True, "SIGTERM", 15.0, None):
            with pytest.raises(ValueError, match="number must be a signal such as"):
                running.send_signal(number)
        running.send_signal(signal.SIGCONT)
        await trio.sleep(0.1)
        assert running.runs
        assert await tree["app/little"].ready() is running


@pytest.mark.trio
async def test_a_step_of_a_stop_may_have_any_number_of_seconds(tmp_path):
    """R20: more than a guardian can wait for at once too; the program ends in order."""
    slowly = "time.sleep(0.2); sys.exit(0)"  # so that a guardian that fails is sooner
    script = OBEYS.replace("if got[-1] == LAST: sys.exit(0)", slowly) + UP + FOR_EVER
    for seconds in (3e6, 1e300):
        async with opened(little(script, tmp_path, stop=((signal.SIGTERM, seconds),)), tmp_path) as (
            _,
            running,
        ):
            pass
        assert running.guarded.problem() is None


@pytest.mark.trio
async def test_a_reload_is_a_signal(tmp_path):
    """SIGHUP, unless another is declared; without one it is refused."""
    script = OBEYS.replace("LAST", "'SIGTERM'") + UP + FOR_EVER
    async with opened(little(script, tmp_path), tmp_path) as (_, running):
        running.reload()
        await until((tmp_path / "got").exists)
        assert written(tmp_path / "got") == ["SIGHUP"]
    async with opened(little(script, tmp_path, reload=None), tmp_path) as (_, running):
        with pytest.raises(RuntimeError, match="command 'little' has no signal for a reload"):
            running.reload()


@pytest.mark.trio
async def test_a_program_whose_declaration_is_the_same_is_not_restarted(tmp_path):
    """R38: one that is declared anew is compared by what it says; another argument is another program."""
    spec = little(UP + FOR_EVER, tmp_path)
    async with opened(spec, tmp_path) as (tree, running):
        await tree.adopt(Supervisor("app", [little(UP + FOR_EVER, tmp_path)], limit=None))
        assert await tree["app/little"].ready() is running
        await tree.adopt(Supervisor("app", [little(UP + "1\n" + FOR_EVER, tmp_path)], limit=None))
        assert (await tree["app/little"].ready()).pid != running.pid
