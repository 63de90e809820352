"""The guardian of a context process on another machine, driven by hand over two pipes. Real processes, real time."""

import ast
import base64
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from contexts import (
    PATIENCE,
    is_readable,
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    processes,
    stat,
    title,
)
from far_nvml import FarNvml

from benchmarks.loopback import ROOT
from runners.hosts import node
from runners.hosts.packing import pack
from runners.hosts.process import wire
from runners.hosts.process.child import status
from runners.hosts.remote import children, guardian, link
from runners.hosts.remote.guardian import (
    ANSWER,
    ASK,
    BORN,
    COLD,
    DATA,
    ENDED,
    HEADER,
    KILL,
    NUMBER,
    OUTPUT,
    REFUSED,
)
from runners.hosts.remote.link import BOOT, SOURCE, Fork, Order
from runners.hosts.remote.reserve import package_version
from runners.models.scripted import Fault, Scripted


class Far:
    """A guardian, and the records that it has sent."""

    def __init__(self, lease=10 * PATIENCE, started_by=(), folder=None, **changes):
        order = Order(
            **{
                "place": "here",
                "path": (str(ROOT),),
                "version": package_version(),
                "protocol": wire.PROTOCOL,
                "lease": lease,
                "device": "cpu",
                "nvml": None,
                **changes,
            }
        )
        self.process = subprocess.Popen(
            [*started_by, sys.executable, "-u", "-c", BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
        )
        self.process.stdin.write(order.data())
        self.records = []
        self._rest = b""

    def send(self, kind, content=b""):
        with suppress(BrokenPipeError):  # it may have ended, and what it has sent before is still to be read
            self.process.stdin.write(HEADER.pack(kind, len(content)) + content)

    def until(self, *kinds, answer=True):
        """Read until a record of one of these kinds comes; its content."""
        end = time.monotonic() + PATIENCE
        while True:
            while (record := self._next()) is None:
                assert is_readable(self.process.stdout, max(0, end - time.monotonic()))
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, self.records
                self._rest += data
            self.records.append(record)
            if record[0] == ASK and answer:
                self.send(ANSWER, record[1])
            if record[0] in kinds:
                return record[1]

    def _next(self):
        if len(self._rest) < HEADER.size:
            return None
        kind, length = HEADER.unpack_from(self._rest)
        content = self._rest[HEADER.size : HEADER.size + length]
        if len(content) < length:
            return None
        self._rest = self._rest[HEADER.size + length :]
        return kind, content


@contextmanager
def guarded(**settings):
    far = Far(**settings)
    try:
        yield far
    finally:
        far.process.kill()
        far.process.wait()
        far.process.stdin.close()
        far.process.stdout.close()


def gone(pid):
    """Wait until a process is dead."""
    end = time.monotonic() + PATIENCE
    with suppress(OSError):
        while stat(pid)[0] not in "ZX":
            assert time.monotonic() < end
            time.sleep(0.005)


def test_a_context_that_is_killed_is_reported_with_its_signal():
    """D10, D16: The guardian reports the real end of the process, and then ends itself."""
    with guarded() as far:
        pid = int(far.until(BORN))
        assert title(far.process.pid) == "runners:guard"
        assert stat(pid)[1] == far.process.pid
        os.kill(pid, signal.SIGSEGV)
        assert json.loads(far.until(ENDED)) == {"killed": True, "status": signal.SIGSEGV}
        assert far.process.wait(PATIENCE) == 0


def test_an_order_to_kill_ends_the_context():
    """D16: A context that was told nothing yet ends by the signal of the guardian."""
    with guarded() as far:
        far.until(BORN)
        far.send(KILL)
        assert json.loads(far.until(ENDED)) == {"killed": True, "status": signal.SIGKILL}


def test_the_end_of_the_connection_ends_the_context():
    """D16: So a far side does not outlive the process that it serves."""
    with guarded() as far:
        pid = int(far.until(BORN))
        far.process.stdin.close()
        assert far.process.wait(PATIENCE) == 0
        gone(pid)


def test_the_end_of_what_has_started_the_guardian_ends_the_context_and_is_reported():
    """D16: What an actor of Ray holds, such as a GPU, is given to others when it ends, though the connection still stands."""
    starter = (sys.executable, "-c", "import subprocess, sys; subprocess.call(sys.argv[1:])")
    with guarded(started_by=starter) as far:
        pid = int(far.until(BORN))
        assert stat(stat(pid)[1])[1] == far.process.pid
        far.process.kill()
        assert json.loads(far.until(ENDED)) == {"killed": True, "status": signal.SIGKILL}
        gone(pid)


def test_a_context_that_is_ended_while_it_starts_is_reported_with_its_number(tmp_path):
    """D16: So the near end names it as any other that was killed."""
    (tmp_path / "msgspec.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(1000)")
    starter = (sys.executable, "-c", "import subprocess, sys; subprocess.call(sys.argv[1:])")
    with guarded(started_by=starter, path=(str(tmp_path), str(ROOT))) as far:
        pid = int(far.until(OUTPUT))
        far.process.kill()
        assert int(far.until(BORN)) == pid
        assert json.loads(far.until(ENDED)) == {"killed": True, "status": signal.SIGKILL}
        gone(pid)


def test_a_guardian_that_is_killed_takes_its_context_along():
    """D16: The kernel kills the context process with the process that has forked it."""
    with guarded() as far:
        pid = int(far.until(BORN))
        far.process.kill()
        gone(pid)


@pytest.mark.slow
def test_a_lease_lapses_without_a_word():
    """D16: A connection that is cut shows no end; then the lease ends the context."""
    with guarded(lease=1.0) as far:
        pid = int(far.until(BORN))
        assert far.process.wait(PATIENCE) == 0
        gone(pid)


@pytest.mark.slow
@pytest.mark.parametrize("lease", [1e9, float("inf")])
def test_a_lease_may_be_longer_than_the_kernel_waits(lease):
    """D16: `poll` counts milliseconds in 32 bits."""
    with guarded(lease=lease) as far:
        pid = int(far.until(BORN))
        os.kill(pid, signal.SIGKILL)
        assert json.loads(far.until(ENDED)) == {"killed": True, "status": signal.SIGKILL}


@pytest.mark.slow
def test_answers_keep_a_lease():
    """D16: As long as each question is answered, the context lives, however long nothing else is sent."""
    with guarded(lease=4.0) as far:
        pid = int(far.until(BORN))
        for _ in range(guardian.QUESTIONS * 3 // 2):
            far.until(ASK)
        assert stat(pid)[0] not in "ZX"
        assert far.process.poll() is None


@pytest.mark.slow
def test_an_answer_to_an_old_question_extends_no_lease():
    """D16: A lease counts from the question. Answers that were held up on the way, and other records, extend nothing."""
    with guarded(lease=4.0) as far:
        pid = int(far.until(BORN, answer=False))
        first = next((content for kind, content in far.records if kind == ASK), None)
        first = first or far.until(ASK, answer=False)
        assert NUMBER.unpack(first) == (1,)
        asked = time.monotonic()
        while is_readable(far.process.stdout, 0.1) or far.process.poll() is None:
            far.send(ANSWER, first)
            far.send(DATA, b"")
            if not os.read(far.process.stdout.fileno(), 65536):
                break
            assert time.monotonic() < asked + PATIENCE
        gone(pid)


@pytest.mark.slow
def test_a_late_answer_extends_a_lease_only_from_its_question():
    """D16: So the near end knows when a lease is over, whatever is held up on the way. Without a late answer it is over sooner."""
    lease, late = 8.0, 4.0
    with guarded(lease=lease) as far:
        pid = int(far.until(BORN, answer=False))
        first = next((content for kind, content in far.records if kind == ASK), None)
        first = first or far.until(ASK, answer=False)
        asked = time.monotonic()
        time.sleep(late)
        far.send(ANSWER, first)
        assert far.process.wait(PATIENCE) == 0
        assert time.monotonic() - asked < late + lease
        gone(pid)


@pytest.mark.parametrize("change", [{"version": "0.0.7"}, {"protocol": 77}])
def test_another_version_is_refused_with_both_numbers(change):
    """D16: Two versions that might not understand one another do not try."""
    with guarded(**change) as far:
        refusal = far.until(REFUSED).decode()
        (wanted,) = change.values()
        assert f"trio-supervise {package_version()} with protocol {wire.PROTOCOL}" in refusal
        assert str(wanted) in refusal
        far.until(ENDED)
        assert far.process.wait(PATIENCE) == 0


def test_older_pythons_compile_the_guardian():
    """D16: It must run there to report that."""
    for text in SOURCE.split(b"\0"):
        ast.parse(text, feature_version=(3, 8))


def test_an_older_python_is_refused(monkeypatch):
    """D16: By its version, and not by an error of syntax somewhere in the packages."""
    source = SOURCE.replace(b"_LEAST = (3, 11)", b"_LEAST = (9, 11)")
    assert source != SOURCE
    monkeypatch.setattr(link, "SOURCE", source)
    with guarded() as far:
        assert far.until(REFUSED).decode().startswith(f"it has Python {sys.version.split()[0]}")
        assert far.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("call", "earlier"),
    [("os.fork", 0), ("os.pipe", 0), ("os.pipe", 2), ("os.pidfd_open", 1), ("socket.socketpair", 0)],
)
def test_a_machine_that_can_start_no_process_reports_why(call, earlier, monkeypatch):
    """D16: As where no descriptor is left. It was reached, and runs Python."""
    boot = (
        f"import itertools, os, socket;number, call = itertools.count(), {call};"
        f"{call} = lambda *given: call(*given) if next(number) < {earlier} else os.open('/no/such/file', 0);"
    )
    monkeypatch.setattr(sys.modules[__name__], "BOOT", boot + BOOT)
    with guarded() as far:
        assert "it cannot start a process: [Errno 2] No such file" in far.until(REFUSED).decode()
        assert far.process.wait(PATIENCE) == 0


def test_many_bytes_pass_in_both_directions():
    """D16: What comes is passed on as it is, also more than the buffers between the processes hold."""
    with guarded() as far:
        far.until(BORN)
        hello = wire.encode(wire.Hello({"no": "spec"}, "x" * 2**20, ahead=False))
        far.send(DATA, hello + wire.encode(wire.Start(1, None)))
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            data += far.until(DATA)
        parser = wire.from_child()
        parser.feed(data)
        assert isinstance(parser.next(), wire.Broken)
        assert json.loads(far.until(ENDED)) == {"killed": False, "status": 69}


# --- the device of a poisoned context


@pytest.fixture
def on_gpu(tmp_path):
    """The order for a context whose device NVML knows, and which needs a reset."""
    nvml = FarNvml(tmp_path, 1)
    return {"path": (nvml.path, str(ROOT)), "device": "cuda:0", "nvml": 20.0}


def trouble(far):
    """The answer of NVML, as it is reported with the end; None if it was not asked."""
    return json.loads(far.until(ENDED)).get("nvml")


@pytest.mark.parametrize(("order", "says"), [(b"poisoned", "it needs a reset of the device"), (b"", None)])
def test_nvml_is_asked_if_the_order_to_kill_says_that_the_context_is_poisoned(on_gpu, order, says):
    """D4, D16: The exit code after a kill shows no poison, so the order says it. A later order does not take that back."""
    with guarded(**on_gpu) as far:
        far.until(BORN)
        far.send(KILL, order)
        far.send(KILL)
        assert trouble(far) == says
        assert far.process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("runner", "status", "says"),
    [
        (Scripted(faults=(Fault("poison", at="load"),)), 70, "it needs a reset of the device"),
        (Scripted(faults=(Fault("exit", at="load"),)), 3, "it needs a reset of the device"),
        (Scripted(faults=(Fault("error", at="load"),)), 69, None),
    ],
)
def test_nvml_is_asked_if_the_context_ends_by_itself_before_the_near_end_says_why(
    on_gpu, runner, status, says
):
    """D4, D16: The report of a poisoned context and its end come together, so no order to kill it comes in time."""
    with guarded(**on_gpu) as far:
        far.until(BORN)
        far.send(DATA, wire.encode(wire.Hello(pack(runner), "cuda:0", ahead=False)))
        far.send(DATA, wire.encode(wire.Start(1, None)))
        end = json.loads(far.until(ENDED))
        assert (end["status"], end.get("nvml")) == (status, says)


def test_without_a_descriptor_for_nvml_the_end_is_reported_without_its_answer(on_gpu, monkeypatch):
    """D4, D16: The near end learns of the end at once, and not when the lease is over."""
    # The first three pipes are those of the context.
    boot = (
        "import itertools, os;number, pipe = itertools.count(), os.pipe;"
        "os.pipe = lambda: pipe() if next(number) < 3 else os.open('/no/such/file', 0);"
    )
    monkeypatch.setattr(sys.modules[__name__], "BOOT", boot + BOOT)
    with guarded(**on_gpu) as far:
        far.until(BORN)
        far.send(KILL, b"poisoned")
        assert trouble(far) is None
        assert far.process.wait(PATIENCE) == 0


def test_no_device_of_a_context_is_judged_that_could_not_be_started(on_gpu):
    """D4, D16: It has used no device."""
    with guarded(**{**on_gpu, "version": "0.0.7"}) as far:
        far.until(REFUSED)
        assert trouble(far) is None


def test_what_asks_nvml_ends_with_the_guardian(tmp_path):
    """D4, D16: Also if it hangs in the driver, where only a signal reaches it."""
    nvml = FarNvml(tmp_path, seconds=1000)
    with guarded(path=(nvml.path, str(ROOT)), device="cuda:0", nvml=1000.0) as far:
        far.until(BORN)
        far.send(KILL, b"poisoned")
        asker = below(far.process.pid, "runners:nvml")
        far.process.kill()
        gone(asker)


def below(pid, name):
    """The pid of a child of this process with this title, once there is one."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if title(child) == name:
                return int(child)
        time.sleep(0.005)
    raise AssertionError(f"no {name}")


def test_the_guardian_knows_the_exit_statuses_of_the_context_process():
    """D4: the program that is sent there cannot import them, and asks NVML after one of them only."""
    assert (children.FAILED, children.SETTLED) == (status.FAILED, status.SETTLED)


LEAVES = """
import os, time
from runners.hosts.remote import children

children.ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # a subreaper, as the guardian is
left = []
for _ in range(3):
    left.append(os.fork())
    if not left[-1]:
        time.sleep(30)
kill = os.kill

def refusing(pid, number):
    if pid == left[0]:
        raise PermissionError("it is another user's")
    kill(pid, number)

os.kill = refusing
children.kill_children()
print([os.path.exists(f"/proc/{pid}") for pid in left])
kill(left[0], 9)
os.waitpid(left[0], 0)
"""


def test_a_process_that_may_not_be_killed_keeps_no_other_one_alive():
    """D16: What a context has started may have become another user's, as the program `sudo` does."""
    run = subprocess.run(
        [sys.executable, "-c", LEAVES], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert run.stdout == "[True, False, False]\n"


@pytest.mark.slow
def test_what_cannot_be_passed_on_to_a_fork_server_starts_cold(monkeypatch):
    """D15, D16: As where this process has no descriptor left, or may write no file."""
    # The first one is for the fork server itself.
    boot = (
        "import itertools, os;number, memory = itertools.count(), os.memfd_create;"
        "os.memfd_create = lambda name: memory(name) if next(number) < 1 else os.open('/no/such/file', 0);"
    )
    monkeypatch.setattr(sys.modules[__name__], "BOOT", boot + BOOT)
    preload = base64.b64encode(wire.datagram(wire.Preload(pack(Scripted())))).decode()
    fork = {"name": f"test-{os.getpid()}", "preload": preload, "timeout": 20.0, "patience": 20.0}
    with guarded(lease=3.0, fork=Fork(**fork)) as far:
        assert "No such file" in json.loads(far.until(COLD))["why"]
        far.until(BORN)
        server = {pid for pid in processes() if title(pid) == "runners:server"}
    for pid in server:
        gone(pid)


@pytest.mark.parametrize("forks", [False, True])
def test_a_script_of_the_user_is_not_taken_for_a_module(forks, tmp_path):
    """D16: A file in the folder of the login may have the name of a module of Python's own."""
    for name in ("ctypes", "json", "signal", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(3)\n")
    preload = base64.b64encode(wire.datagram(wire.Preload(pack(Scripted())))).decode()
    fork = Fork(name=f"login-{os.getpid()}", preload=preload, timeout=PATIENCE, patience=PATIENCE)
    with guarded(folder=tmp_path, lease=2.0, fork=fork if forks else None) as far:
        far.until(BORN)
        assert not [content for kind, content in far.records if kind == COLD]
        servers = [pid for pid in processes() if title(pid) == "runners:server"]
    assert len(servers) == forks
    for pid in servers:
        gone(pid)


def test_a_context_that_can_be_sent_nothing_ends(monkeypatch):
    """D16: As where the kernel lacks memory. What was to be sent is lost, and the context process would wait for it for ever."""
    boot = "import os, socket;socket.socket.send = lambda *_: os.close(-1);"  # which raises an `OSError`
    monkeypatch.setattr(sys.modules[__name__], "BOOT", boot + BOOT)
    with guarded() as far:
        pid = int(far.until(BORN))
        far.send(DATA, b"anything")
        assert json.loads(far.until(ENDED))["killed"] is False
        gone(pid)


def test_a_client_that_can_be_sent_nothing_finds_the_end_of_its_connection(monkeypatch):
    """D15, D16: As where the kernel lacks memory. It starts cold at once, and does not wait until its time is over."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(socket.socket, "send", lambda *_: os.close(-1))
    with ours, its:
        node.Server._send(None, ours, ready=True)
        assert is_readable(its, 0)
        assert its.recv(1) == b""


@pytest.mark.parametrize(
    ("error", "pauses"), [(BlockingIOError(), []), (OSError(errno.EMFILE, "Too many open files"), [0.1])]
)
def test_a_fork_server_without_a_descriptor_does_not_spin(error, pauses, monkeypatch):
    """D15, D16: The clients that it cannot accept wait, and start cold when their time is over."""

    def refused():
        raise error

    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert node.Server._accepted(None, SimpleNamespace(accept=refused)) is None
    assert slept == pauses
