"""What a context leaves behind when it or its parent ends: the cleaner ends what its runner has started."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import trio
import trio.testing
from contexts import (
    HOST,
    PATIENCE,
    cleaners,
    ends,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    opened,
    processes,
    until,
)
from rogues import Starts
from sessions import BATCH, ids, until_failure, whole

from runners.errors import ContextDied
from runners.hosts import MARK
from runners.hosts.process.host import ProcessHost
from runners.hosts.process.parent import cleaner as cleaning
from runners.models.scripted import Scripted, expected

pytestmark = pytest.mark.filterwarnings("error")

COLD = ProcessHost(start="spawn", load_timeout=20)
STARTS = pytest.mark.parametrize("host", [HOST, COLD], ids=["fork", "spawn"])


@pytest.mark.parametrize("session", [False, True], ids=["in its group", "in a session of its own"])
@STARTS
@pytest.mark.trio
async def test_processes_that_a_context_has_started_end_with_it(host, session, tmp_path):
    """D10: This holds whatever the context dies of, and in whatever session those processes are."""
    async with opened(Starts(str(tmp_path), session), host):
        ordered = int((tmp_path / "sleeper").read_text())
        async with opened(Starts(str(tmp_path), session), host) as killed:
            sleeper = int((tmp_path / "sleeper").read_text())
            os.kill(killed.pid, signal.SIGKILL)
            await until_failure(killed, ContextDied)
        await until(lambda: ends(sleeper))
        assert not ends(ordered)
    await until(lambda: ends(ordered))


@pytest.mark.trio
async def test_a_parent_that_gives_up_its_own_mark_leaves_its_contexts_theirs(tmp_path, monkeypatch):
    """D10: A parent that is itself below a context has a mark, which it may take away while its fork server runs."""
    monkeypatch.setenv(MARK, "1-0.1")
    async with opened(Starts(str(tmp_path), session=True)):
        pass
    monkeypatch.delenv(MARK)
    async with opened(Starts(str(tmp_path), session=True)):
        sleeper = int((tmp_path / "sleeper").read_text())
    await until(lambda: ends(sleeper))


@pytest.mark.trio
async def test_a_cleaner_that_is_killed_is_replaced(tmp_path, caplog):
    """D10: It is replaced at the next start of a process, and the new one gets the list of those that run."""
    async with opened(Starts(str(tmp_path), session=True)):
        first = int((tmp_path / "sleeper").read_text())
        (old,) = cleaners()
        os.kill(old, signal.SIGKILL)
        await until(lambda: ends(old))
        async with opened(Starts(str(tmp_path), session=True)):
            assert "the cleaner was killed" in caplog.text
            assert cleaners() - {old}
        assert not ends(first)
    await until(lambda: ends(first))


@pytest.mark.trio
async def test_a_relative_import_path_does_not_keep_the_cleaner_from_its_work(tmp_path, monkeypatch):
    """D10: It may lead into a folder by now whose files have the names of Python's own modules."""
    (tmp_path / "select.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.chdir(tmp_path)
    async with opened(Starts(str(tmp_path), session=True)):
        sleeper = int((tmp_path / "sleeper").read_text())
        assert not ends(sleeper)
    await until(lambda: ends(sleeper))


@STARTS
@pytest.mark.trio
async def test_another_run_of_trio_that_ends_kills_no_context_of_this_one(host):
    """D10: Each run cleans up its own processes only, and not those that a context of another run has started."""

    async def another():
        async with host.open(Scripted(1)):
            pass

    async with opened(Scripted(4), host) as session:
        await trio.to_thread.run_sync(trio.run, another)
        assert ids(await whole(session)) == expected(BATCH, 4)


DROPS = """
import os, sys, trio
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Scripted
async def main():
    async with ProcessHost(start=sys.argv[1], standby=1, linger=0).open(Scripted()) as session:
        os.setresuid(65534, 65534, 65534)
    print("closed")
trio.run(main)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_program_that_drops_its_privileges_leaves_nothing(start):
    """D10: It may not signal the processes that it has started as root. They end because their connections do."""
    run = subprocess.run(
        [sys.executable, "-c", DROPS, start], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (run.stdout, run.returncode) == ("closed\n", 0), run.stderr


def test_a_cleaner_kills_nobody_by_the_numbers_of_another_namespace():
    """D10: As where /proc is that of the system outside: there a process with the mark has the number of any other one here."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine permits no namespace of pids")
    finds = cleaning._PROGRAM.partition("def kill(")[0] + "print(len(list(marked(mark, mark))))"
    # The process that looks has the mark itself, and would leave itself out by its number.
    run = subprocess.run(
        [*command, sys.executable, "-c", finds, f"{MARK}=it", "1"],
        env={**os.environ, MARK: "it"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "0"


@pytest.mark.trio
async def test_a_killed_cleaner_does_not_end_a_program_that_dies_of_sigpipe():
    """D10: SIGPIPE kills a program by default, and Python programs that write to pipes often restore that."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        async with opened(Scripted(4)) as session:
            (cleaner,) = cleaners()
            os.kill(cleaner, signal.SIGKILL)
            await until(lambda: not cleaners())
            assert ids(await whole(session)) == expected(BATCH, 4)
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_cleaner_that_has_stopped_does_not_delay_the_end():
    """D10: It is killed at the end of the run, after a second."""
    async with opened(Scripted(4), ProcessHost(linger=0)) as session:
        (stopped,) = cleaners()
        os.kill(stopped, signal.SIGSTOP)
        assert ids(await whole(session)) == expected(BATCH, 4)
    await until(lambda: ends(stopped))


PARENT = """
import sys, trio
from rogues import Starts
from runners.hosts.process.host import ProcessHost

async def main():
    async with ProcessHost(start=sys.argv[1]).open(Starts(sys.argv[2], sys.argv[3] == "session", sys.argv[3] == "bare")):
        print("open", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@contextmanager
def program(code, *args):
    """A program that does not outlive its test."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    main = subprocess.Popen([sys.executable, "-c", code, *args], env=env, stdout=subprocess.PIPE, text=True)
    try:
        yield main
    finally:
        main.kill()
        main.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
@pytest.mark.parametrize("how", ["plain", "session", "bare"])
@pytest.mark.parametrize("start", ["forkserver", "spawn"])
def test_processes_that_a_context_has_started_do_not_outlive_a_killed_parent(start, how, number, tmp_path):
    """D10: Context and server die with the parent, so only the cleaner can do it. A `bare` process has no environment, and so no mark."""
    with program(PARENT, start, str(tmp_path), how) as main:
        assert main.stdout.readline() == "open\n"
        sleeper = int((tmp_path / "sleeper").read_text())
        assert not ends(sleeper)
        main.send_signal(number)
        main.wait()
        patience = time.monotonic() + PATIENCE
        while not ends(sleeper) or processes():
            assert time.monotonic() < patience
            time.sleep(0.01)
