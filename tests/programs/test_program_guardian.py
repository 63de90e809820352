"""Nothing of a program is left, whatever dies: the program, its guardian, the reserve, the parent, or several of them."""

from __future__ import annotations

import ast
import ctypes
import errno
import json
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from benchmarks.ports import free_port
from supervise.programs import (
    CommandError,
    CommandNotIsolated,
    GuardianLost,
    guarded,
    guardian,
    line,
    notify,
    tcp,
)
from supervise.programs.guarded import Order
from supervise.programs.guardian import processes

from .little import (
    FOR_EVER,
    PATIENCE,
    UP,
    WITH_ORPHAN,
    Seen,
    is_permitted,
    little,
    opened,
    refused,
    started_again,
    until,
)
from .servers import AS_ROOT, processes_in

ROOT = Path(__file__).parents[2]
FORKS = "for _ in range(3):\n    if os.fork() == 0: break\nelse:\n    print('up', flush=True)\n"
FAMILY = WITH_ORPHAN + FORKS + FOR_EVER
"""A main process, three more in its session, and an orphan with a session of its own."""

SERVER = "import socket, time\nserver = socket.create_server(('127.0.0.1', {port}))\ntime.sleep(1000)\n"

PARENT = """
import sys, trio
from supervise import Supervisor, run_tree
from tests.programs.little import little
from tests.programs.test_program_guardian import FAMILY
async def tell(tree):
    running = await tree[spec].ready()
    {more}
    print(running.pid, running.guarded._guardian.pid, flush=True)
spec = little(FAMILY, sys.argv[1], isolation=sys.argv[2])
run_tree(Supervisor("app", [spec]), sinks=[], watch=tell)
"""


@contextmanager
def with_parent(folder, isolation="group", more=""):
    """A process with a tree with a family, and the pids of its main process and of its reserve, once it is ready."""
    command = [sys.executable, "-c", PARENT.format(more=more), str(folder), isolation]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True) as parent:
        try:
            yield parent, *map(int, parent.stdout.readline().split())
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


def child_of(pid):
    return next(each for each, process in processes().items() if process.parent == pid)


def descriptors():
    """Those of this process that are open, without that of the folder which lists them."""
    return {each for each in map(int, os.listdir("/proc/self/fd")) if Path(f"/proc/self/fd/{each}").exists()}


def gone(*pids):
    every = processes()
    return all(pid not in every or every[pid].state in "ZX" for pid in pids)


def all_gone(folder, *pids):
    last = time.monotonic() + PATIENCE
    while time.monotonic() < last:
        if not processes_in(folder) and gone(*pids):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["group", "namespace", "cgroup"])
def test_nothing_outlives_the_parent(tmp_path, isolation):
    """Also if it is stopped when it is killed; the family includes an orphan with a session of its own."""
    if not is_permitted(isolation):
        pytest.skip(f"this machine does not permit isolation {isolation!r}")
    for signals in ([signal.SIGKILL], [signal.SIGSTOP, signal.SIGKILL]):
        with with_parent(tmp_path, isolation) as (parent, main, reserve):
            assert len(processes_in(tmp_path)) == 5
            for number in signals:
                parent.send_signal(number)
            assert all_gone(tmp_path, main, reserve)


def test_a_process_that_the_parent_has_forked_does_not_keep_its_program_alive(tmp_path):
    """It holds a copy of the parent's end of the socket, so that the end of that is never seen."""
    more = "import os, time\n    if os.fork() == 0: time.sleep(1000)"
    with with_parent(tmp_path, more=more) as (parent, main, reserve):
        parent.kill()
        assert all_gone(tmp_path, main, reserve)


def test_a_parent_that_dies_with_unread_messages_is_noticed(tmp_path):
    """The guardian gets a reset then, and no end of file; the program is stopped by its steps all the same."""
    script = "trap 'touch stopped; exit' TERM; touch runs; while true; do sleep 0.01; done"
    whole = Order(("sh", "-c", script), dict(os.environ), cwd=str(tmp_path), stop=((signal.SIGTERM, 30.0),))
    order = tmp_path / "order"
    order.write_text(json.dumps({**guarded.asdict(whole), "cgroup": ""}))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with order.open() as file, theirs:
        passed = theirs.fileno(), file.fileno()
        command = [sys.executable, "-I", "-S", guardian.__file__, *map(str, passed), str(os.getpid()), "sh"]
        process = subprocess.Popen(command, pass_fds=passed)
    assert select.select([ours], [], [], PATIENCE)[0]  # `started` has come, and is not read
    last = time.monotonic() + PATIENCE
    while not (tmp_path / "runs").exists() and time.monotonic() < last:
        time.sleep(0.01)
    ours.close()
    assert process.wait(PATIENCE) == 0
    assert (tmp_path / "stopped").exists()
    assert not processes_in(tmp_path)


def test_the_main_process_ends_with_parent_guardian_and_reserve(tmp_path):
    """The kernel kills it; for the others of a group only an isolation would help."""
    with with_parent(tmp_path) as (parent, main, reserve):
        every = parent.pid, reserve, child_of(reserve)
        others = processes_in(tmp_path) - {main}
        try:
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in every:
                    os.kill(pid, number)
            last = time.monotonic() + PATIENCE
            while not gone(main) and time.monotonic() < last:
                time.sleep(0.01)
            assert gone(main)
            assert not gone(*others)
        finally:
            for pid in others:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.trio
@pytest.mark.parametrize("which", ["guardian", "reserve"])
async def test_nothing_outlives_a_guardian_that_was_killed(tmp_path, which):
    """The tree starts the program again, and what the old one has left is gone by then, whatever its session."""
    seen = Seen()
    spec = little(FAMILY, tmp_path)
    async with opened(spec, tmp_path, seen) as (tree, running):
        old, reserve = processes_in(tmp_path), running.guarded._guardian.pid
        os.kill(reserve if which == "reserve" else child_of(reserve), signal.SIGKILL)
        await started_again(tree, spec, running)
        assert len(old) == 5
        assert not old & processes_in(tmp_path)
    (error,) = seen.failures()
    assert isinstance(error, GuardianLost)
    assert error.tag == "command.guardian"


@pytest.mark.trio
@pytest.mark.parametrize("which", ["guardian", "reserve"])
async def test_process_1_reaps_what_a_killed_guardian_has_left(tmp_path, which):
    """Below a subreaper, as below process 1 of a container, it becomes a child of the program."""
    spec, prctl = little(FAMILY, tmp_path), ctypes.CDLL(None).prctl
    assert prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER
    try:
        async with opened(spec, tmp_path) as (tree, running):
            reserve = running.guarded._guardian.pid
            os.kill(reserve if which == "reserve" else child_of(reserve), signal.SIGKILL)
            latest = await started_again(tree, spec, running)
            ours = {pid for pid, process in processes().items() if process.parent == os.getpid()}
            assert ours == {latest.guarded._guardian.pid}
    finally:
        prctl(36, 0, 0, 0, 0)


UNKILLABLE = """
import sys, trio
from pathlib import Path
from supervise import Supervisor, events, open_tree
from tests.programs.little import FOR_EVER, UP, WITH_ORPHAN, Seen, little
ANOTHERS = '''
import os, time
noticed = os.open("noticed", os.O_RDONLY)
changed, changing = os.pipe()
if os.fork() == 0:
    os.setuid(65534)
    os.close(changing)
    end = time.monotonic() + 60
    while not os.fstat(noticed).st_size and time.monotonic() < end:
        time.sleep(0.01)
    os._exit(0)
os.close(changing)
os.read(changed, 1)
os.close(changed)
'''
folder = Path(sys.argv[1])
def notice(event):
    if isinstance(event, events.Overdue):
        folder.joinpath("noticed").write_text("overdue")
async def main():
    folder.joinpath("noticed").touch()
    spec, seen = little(ANOTHERS + WITH_ORPHAN + UP + FOR_EVER, folder, stop=(), grace=0.2), Seen()
    async with open_tree(Supervisor("app", [spec]), sinks=[seen, notice]) as tree:
        await tree[spec].ready()
    print(*{type(event).__name__ for event in seen.events} & {'Overdue', 'Stopped', 'StopError'})
trio.run(main)
"""
"""It is ready when its process is another user's, which ends only when the tree has noticed that it is overdue."""


@pytest.mark.slow
@pytest.mark.skipif(
    not AS_ROOT or shutil.which("setpriv") is None, reason="only root can give up what root may do"
)
def test_a_process_that_may_not_be_killed_is_waited_for(tmp_path):
    """R20: one that has become another user's is overdue until it ends by itself; all others are killed, and none is left."""
    command = [
        "setpriv",
        "--bounding-set=-kill",
        "--inh-caps=-kill",
        sys.executable,
        "-c",
        UNKILLABLE,
        str(tmp_path),
    ]
    told = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=True
    ).stdout
    assert not processes_in(tmp_path)
    assert set(told.split()) == {"Overdue", "Stopped"}


@pytest.mark.trio
async def test_the_session_does_not_outlive_guardian_and_reserve(tmp_path):
    """Only a process that has left both its parent and its session is not found then."""
    seen = Seen()
    spec = little(FAMILY.replace("os.setsid()", "pass"), tmp_path)
    async with opened(spec, tmp_path, seen) as (tree, running):
        old, reserve = processes_in(tmp_path), running.guarded._guardian.pid
        pair = child_of(reserve), reserve
        for pid in pair:
            os.kill(pid, signal.SIGSTOP)
        for pid in pair:
            os.kill(pid, signal.SIGKILL)
        await started_again(tree, spec, running)
        assert len(old) == 5
        assert not old & processes_in(tmp_path)
    assert [error.tag for error in seen.failures()] == ["command.guardian"]


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("which", ["guardian", "reserve", "both"])
async def test_a_guardian_that_is_stopped_hides_nothing(tmp_path, monkeypatch, which):
    """Its parent sees the end of the program too, waits a while for the report, and then ends everything itself."""
    monkeypatch.setattr(guarded, "PATIENCE", 0.3)
    spec = little(FAMILY, tmp_path)
    async with opened(spec, tmp_path) as (tree, running):
        old, reserve = processes_in(tmp_path), running.guarded._guardian.pid
        for pid in {"guardian": [child_of(reserve)], "reserve": [reserve]}.get(
            which, [child_of(reserve), reserve]
        ):
            os.kill(pid, signal.SIGSTOP)
        os.kill(running.pid, signal.SIGKILL)
        again = await started_again(tree, spec, running)
        assert not old & processes_in(tmp_path)
        os.kill(child_of(again.guarded._guardian.pid), signal.SIGSTOP)  # a stop meets the same guardian
        object.__setattr__(spec, "drain", 0.2)


@pytest.mark.trio
async def test_a_program_whose_start_cannot_be_reported_is_not_ready(tmp_path, monkeypatch):
    """Though it has printed the line: its pid would be 0, and who sends a signal to that sends it to itself."""
    monkeypatch.setattr(guarded, "PATIENCE", 0.3)

    def refuses(*_):
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(guarded.socket, "recv_fds", refuses)
    error = await refused(little(UP + FOR_EVER, tmp_path), tmp_path)
    assert isinstance(error, GuardianLost)


@pytest.mark.trio
async def test_a_program_starts_and_stops_while_all_threads_of_trio_are_taken(tmp_path, monkeypatch):
    """By code of the tree that blocks them: Trio's default limiter has 40. A stuck guardian needs the longest way to its end."""
    monkeypatch.setattr(guarded, "PATIENCE", 0.3)
    limiter = trio.to_thread.current_default_thread_limiter()
    taken = [object() for _ in range(int(limiter.available_tokens))]
    for each in taken:
        limiter.acquire_on_behalf_of_nowait(each)
    spec = little(SERVER.format(port=(port := free_port())), tmp_path, ready=tcp(port), stop=())
    try:
        async with opened(spec, tmp_path) as (_, running):
            reserve = running.guarded._guardian.pid
            for pid in (child_of(reserve), reserve):
                os.kill(pid, signal.SIGSTOP)
    finally:
        for each in taken:
            limiter.release_on_behalf_of(each)


@pytest.mark.trio
async def test_a_stuck_guardian_is_ended_also_if_no_thread_can_be_started(tmp_path, monkeypatch):
    """As at the limit of a user for processes and threads."""
    monkeypatch.setattr(guarded, "PATIENCE", 0.3)

    async def no_thread(*_, **__):
        raise RuntimeError("can't start new thread")

    async with opened(little(FAMILY, tmp_path, stop=()), tmp_path) as (_, running):
        reserve = running.guarded._guardian.pid
        for pid in (child_of(reserve), reserve):
            os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)


@pytest.mark.trio
@pytest.mark.parametrize("isolation", ["namespace", "cgroup"])
async def test_an_isolated_program_has_nothing_left_when_all_of_its_guardians_are_killed(tmp_path, isolation):
    """A process with a session of its own and without a parent is still in its namespace, or its control group."""
    if not await trio.to_thread.run_sync(is_permitted, isolation):
        pytest.skip(f"this machine does not permit isolation {isolation!r}")
    seen = Seen()
    spec = little(FAMILY, tmp_path, isolation=isolation)
    async with opened(spec, tmp_path, seen) as (tree, running):
        old, reserve = processes_in(tmp_path), running.guarded._guardian.pid
        pair = child_of(reserve), reserve
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pair:
                os.kill(pid, number)
        again = await started_again(tree, spec, running)
        assert len(old) == 5
        assert not old & processes_in(tmp_path)
        group = running.guarded._cgroup
        assert bool(group) == (isolation == "cgroup")
        assert not group or not await trio.Path(group).exists()
    group = again.guarded._cgroup
    assert not group or not await trio.Path(group).exists()


GROUPS = """
import os
mount = next(line.split()[4] for line in open("/proc/self/mountinfo") if " - cgroup2 " in line)
own = next(line.strip()[4:] for line in open("/proc/self/cgroup") if line.startswith("0::"))
os.makedirs(f"{mount}/{own}/one/two")
"""


@pytest.mark.trio
@pytest.mark.parametrize("guardians", ["work", "are killed"])
async def test_the_control_groups_that_a_program_has_made_go_with_its_own(tmp_path, guardians):
    """As a container runtime makes them, or a tree with programs of its own. The kernel removes no group that has one below it."""
    if not await trio.to_thread.run_sync(is_permitted, "cgroup"):
        pytest.skip("this machine does not permit isolation 'cgroup'")
    async with opened(little(GROUPS + UP + FOR_EVER, tmp_path, isolation="cgroup"), tmp_path) as (_, running):
        group, reserve = trio.Path(running.guarded._cgroup), running.guarded._guardian.pid
        assert await (group / "one/two").exists()
        if guardians == "are killed":
            for pid in (child_of(reserve), reserve):
                os.kill(pid, signal.SIGKILL)
    assert not await group.exists()


def test_a_lack_of_descriptors_in_a_namespace_is_not_taken_for_a_lack_of_permission(monkeypatch):
    """Its process 1 reports the step that failed, as a guardian without a namespace does."""

    def none_left(_order):
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(guardian, "_prctl", lambda *_: None)
    monkeypatch.setattr(guardian, "_mount_proc", lambda: None)
    monkeypatch.setattr(guardian, "_forked", none_left)
    monkeypatch.setattr(guardian.os, "_exit", sys.exit)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        with pytest.raises(SystemExit, match="1"):
            guardian._be_init({}, theirs)
        assert ours.recv(100) == b"{}"
        assert json.loads(ours.recv(1000)) == {"failed": ["guardian", "[Errno 24] none left"]}


def test_a_namespace_ends_with_parent_and_guardians(tmp_path):
    """All of them at once: the kernel ends a namespace with its first process, and that one with the guardian."""
    if not is_permitted("namespace"):
        pytest.skip("this machine does not permit isolation 'namespace'")
    with with_parent(tmp_path, "namespace") as (parent, main, reserve):
        every = parent.pid, reserve, child_of(reserve)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in every:
                os.kill(pid, number)
        assert all_gone(tmp_path, main)


@pytest.mark.trio
async def test_an_isolation_that_is_not_permitted_is_refused(tmp_path, monkeypatch):
    """At the start, with a tag of its own; nothing else is tried instead."""
    monkeypatch.setattr(guarded, "_own_cgroup", lambda: "/proc")
    error = await refused(little(UP + FOR_EVER, tmp_path, isolation="cgroup"), tmp_path)
    assert isinstance(error, CommandNotIsolated)
    assert error.tag == "command.isolation"
    assert str(error).startswith("isolation 'cgroup' is not permitted here: ")

    def none():
        raise CommandNotIsolated("there are none")

    monkeypatch.setattr(guarded, "_own_cgroup", none)
    error = await refused(little(UP + FOR_EVER, tmp_path, isolation="cgroup"), tmp_path)
    assert str(error) == "there are none"


NAMESPACE = """
import trio
from supervise import StartFailed, Supervisor, open_tree
from supervise.programs import Command
async def main():
    try:
        async with open_tree(Supervisor("app", [Command("a", ["sleep", "1000"])]), sinks=[]):
            print("it has started")
    except StartFailed as failed:
        print(failed.__cause__)
trio.run(main)
"""


def test_a_proc_that_shows_other_processes_than_ours_is_refused():
    """As in a pid namespace whose /proc is that of the system outside: to kill by its numbers would hit others."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine permits no namespace of pids")
    run = subprocess.run(
        [*command, sys.executable, "-c", NAMESPACE],
        capture_output=True,
        check=True,
        cwd=ROOT,
        timeout=PATIENCE,
    )
    assert run.stdout.startswith(
        b"sleep could not be started: guardian: /proc must show the processes of its namespace"
    )


@pytest.mark.trio
async def test_a_guardian_that_cannot_be_started_is_the_error_of_the_start(tmp_path, monkeypatch):
    """And no descriptor stays open."""
    monkeypatch.setattr(guarded.guardian, "__file__", "\0")
    before = len(os.listdir("/proc/self/fd"))
    for ready in (line("^up$"), notify()):
        error = await refused(little(UP + FOR_EVER, tmp_path, ready=ready), tmp_path)
        assert isinstance(error, ValueError)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.trio
@pytest.mark.parametrize("ready", [line("^up$"), notify()], ids=repr)
async def test_a_start_for_which_descriptors_are_lacking_leaves_none_open(tmp_path, ready):
    """Whichever is the first that this process cannot have; and while the error is kept, as the status of a node does."""
    spec, (soft, hard) = little("exit()", tmp_path, ready=ready), resource.getrlimit(resource.RLIMIT_NOFILE)
    assert spec.resource is not None
    before, failed = descriptors(), []
    for free in range(1, 10):
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + free, hard))
        try:
            async with spec.resource():
                pass
        except (OSError, CommandError) as error:
            failed.append(error)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert descriptors() == before
    assert sum(isinstance(error, OSError) for error in failed) > 1


def test_the_guardian_imports_the_standard_library_alone():
    """It is started for each program, without the packages of this environment."""
    tree = ast.parse(Path(guardian.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.partition(".")[0] for name in modules} <= sys.stdlib_module_names


@pytest.mark.trio
async def test_a_parent_that_ignores_the_end_of_its_children_hears_of_them_all_the_same(tmp_path):
    """The guardian inherits the ignored signal; with it, no exit status would be known."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        error = await refused(little("import sys; sys.exit(3)", tmp_path), tmp_path)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert error.tag == "command.exit.3"


def test_a_ctrl_c_leaves_bare_and_nothing_is_left(tmp_path):
    """R4: the program is stopped by its steps, and no nursery of a command wraps the interrupt."""
    program = """
import sys, trio
from supervise import Supervisor, open_tree
from tests.programs.little import little
from tests.programs.test_program_guardian import FAMILY
async def main():
    spec = little(FAMILY, sys.argv[1])
    async with open_tree(Supervisor("app", [spec]), sinks=[]):
        print("up", flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as parent:
        assert parent.stdout.readline() == "up\n"
        parent.send_signal(signal.SIGINT)
        errors = parent.stderr.read()
    assert errors.endswith("KeyboardInterrupt\n")
    assert "ExceptionGroup" not in errors
    assert not processes_in(tmp_path)


def test_a_ctrl_c_in_the_lines_of_a_command_leaves_bare_too(tmp_path):
    """R4: this one comes while a check runs, below the nursery of the body."""
    program = """
import signal, sys, trio
from supervise import Supervisor, open_tree
from supervise.programs import every, tcp
from tests.programs.little import FOR_EVER, UP, little
class Interrupts(tcp):
    async def attempt(self, program):
        signal.raise_signal(signal.SIGINT)
async def main():
    spec = little(UP + FOR_EVER, sys.argv[1], alive=every(0.01, Interrupts(1)))
    async with open_tree(Supervisor("app", [spec]), sinks=[]):
        await trio.sleep_forever()
trio.run(main)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, timeout=PATIENCE, check=False)
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert "ExceptionGroup" not in done.stderr
    assert not processes_in(tmp_path)


@pytest.mark.trio
async def test_the_guardian_takes_no_notice_of_signals_to_everybody(tmp_path):
    """systemd sends SIGTERM to all processes of a service at once, and a terminal SIGINT to its foreground."""
    script = "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: open('got', 'w'))\n" + UP + FOR_EVER
    async with opened(little(script, tmp_path), tmp_path) as (_, running):
        reserve = running.guarded._guardian.pid
        for pid in (reserve, child_of(reserve)):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        running.send_signal(signal.SIGUSR1)
        await until((tmp_path / "got").exists)
        assert os.getsid(reserve) != os.getsid(0)
