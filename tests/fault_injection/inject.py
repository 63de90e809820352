"""Run a program with one kind of its system calls refused, delayed or interrupted by a stop, by strace, and return what is wrong with how it ended."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from ..programs.little import is_permitted
from ..programs.servers import processes_in

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds after which a program hangs."""
GONE = 60.0
"""Seconds that a process may take to end after its program has."""
STOP = 1.0
"""Seconds that a stopped process stands still, or up to twice as long."""

HOW = ("refused", "delayed before", "delayed after", "stopped")
"""What happens to a call."""

REFUSALS = {
    "accept4": "EMFILE",
    "bind": "EADDRINUSE",
    "clone": "EAGAIN",
    "clone3": "EAGAIN",
    "connect": "ECONNREFUSED",
    "execve": "ENOMEM",
    "listen": "EADDRINUSE",
    "memfd_create": "EMFILE",
    "mkdir": "ENOSPC",
    "pidfd_open": "EMFILE",
    "pipe2": "EMFILE",
    "recvmsg": "ENOMEM",
    "rename": "EACCES",
    "sendmsg": "ENOBUFS",
    "socket": "EMFILE",
    "socketpair": "EMFILE",
    "unlink": "EACCES",
    "vfork": "EAGAIN",
}
"""What the system says when it refuses a call."""
TALKS = (
    "accept4",
    "bind",
    "clone",
    "clone3",
    "connect",
    "execve",
    "kill",
    "listen",
    "pidfd_open",
    "pidfd_send_signal",
    "read",
    "recvfrom",
    "recvmsg",
    "rename",
    "sendmsg",
    "sendto",
    "shutdown",
    "unlink",
    "vfork",
    "wait4",
    "waitid",
    "write",
)
"""The calls by which processes talk to each other and wait for each other. They may be delayed, or be interrupted by a stop."""

_NEVER = ("TrioInternalError", "AssertionError", "TooSlowError")
"""A program may fail when it is refused something, but not with these: they are a defect, a wrong answer, and a request that is lost."""
_CALL = re.compile(r"^(\d+) +(\w+)\((?:\d+<(/)?)?", re.MULTILINE)
"""A line of strace: the task, the call, and whether it is one with a file."""
_STOPPED = re.compile(r"^(\d+) +--- stopped by SIGSTOP", re.MULTILINE)
_UNSEEN = re.compile(r"^(Exception ignored|Exception in thread|.*was never awaited)", re.MULTILINE)
"""What Python writes of an exception that reaches no code, in the process itself; what its children write has their name in front."""


@frozen
class Fault:
    """The n-th such call of each task of the program is refused, delayed or stopped, or with `further` each from that one on."""

    how: str
    call: str
    number: int
    further: bool = False

    def __str__(self) -> str:
        return f"{self.how} {self.call} {self.when}"

    @property
    def when(self) -> str:
        """The calls, as strace has them."""
        return f"{self.number}{'+' if self.further else ''}"

    @property
    def injected(self) -> str:
        """What strace injects."""
        what = {
            "refused": f"error={REFUSALS.get(self.call)}",
            "delayed before": "delay_enter=300ms",
            "delayed after": "delay_exit=300ms",
            "stopped": "signal=SIGSTOP",
        }
        return f"{self.call}:{what[self.how]}:when={self.when}"


@frozen
class Run:
    """How a run ended: `wrong` is empty if it ended as it may."""

    wrong: str
    calls: str


def why_not(name: str) -> str | None:
    """Why no fault can be injected into this program here; None if it can."""
    if shutil.which("strace") is None:
        return "needs strace"
    tried = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        return f"strace may not trace here: {tried.stderr.strip()}"
    if name == "isolated" and not is_permitted("namespace"):
        return "this machine does not permit isolation 'namespace'"
    return None


def faults(name: str, most: int) -> list[Fault]:
    """What can happen to a program: to each of its first calls a refusal, alone or from there on to all of a kind that makes descriptors or processes; and a delay or a stop to `most` of those by which its processes talk.

    Raises:
        RuntimeError: the program does not run without a fault either.
    """
    plain = run(name)
    if plain.wrong:
        raise RuntimeError(f"{name}: {plain.wrong}")
    counts = Counter[tuple[str, str]]()
    numbers: dict[str, set[int]] = {}
    talks: dict[str, set[int]] = {}
    for task, call, file in _CALL.findall(plain.calls):
        counts[task, call] += 1
        numbers.setdefault(call, set()).add(counts[task, call])
        if not file:
            talks.setdefault(call, set()).add(counts[task, call])
    found = []
    for call in sorted(numbers.keys() & REFUSALS.keys()):
        for number in sorted(numbers[call])[:most]:
            found.append(Fault("refused", call, number))
            # If a server can accept no connection, the system has its clients wait.
            if REFUSALS[call] in ("EMFILE", "EAGAIN") and call != "accept4":
                found.append(Fault("refused", call, number, further=True))
    for call in sorted(talks.keys() & set(TALKS)):
        spread = sorted(talks[call])
        for number in spread[:: -(-len(spread) // most)]:
            found += [Fault(how, call, number) for how in HOW[1:]]
    return found


def run(name: str, fault: Fault | None = None) -> Run:
    """Run a program, with this fault."""
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    calls, inside = folder / "calls", folder / "inside"
    inside.mkdir()
    traced = fault.call if fault else ",".join({*REFUSALS, *TALKS})
    command = ["strace", "-f", "-qq", "-y", "-o", str(calls), "-e", f"trace={traced}"]
    if fault is not None:
        command += ["-e", f"inject={fault.injected}"]
    # With this, strace is not asked about other calls, and so is faster. But it injects no signals.
    if fault is None or fault.how != "stopped":
        command.append("--seccomp-bpf")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [*command, sys.executable, "-m", "tests.fault_injection.programs", name],
        cwd=inside,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = _ended(started, calls)
        wrong = wrong_with(started.returncode, said, errors, fault) or _left(inside)
    except subprocess.TimeoutExpired:
        wrong = "it hangs"
    finally:
        for pid in _traced_by(started.pid) | processes_in(inside):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.kill()
        started.communicate()
        made = calls.read_text(errors="replace") if calls.exists() else ""
        shutil.rmtree(folder, ignore_errors=True)
    return Run(wrong, made)


def _ended(started: subprocess.Popen[str], calls: Path) -> tuple[str, str]:
    """What it has written. Until then, each process that has stopped is continued."""
    end = time.monotonic() + PATIENCE
    continued = seen = 0
    while True:
        try:
            return started.communicate(timeout=STOP)
        except subprocess.TimeoutExpired:
            if time.monotonic() > end:
                raise
            stopped = _STOPPED.findall(calls.read_text(errors="replace"))
            for task in stopped[continued:seen]:
                with suppress(ProcessLookupError):
                    os.kill(int(task), signal.SIGCONT)
            continued, seen = seen, len(stopped)


def _traced_by(tracer: int) -> set[int]:
    """The processes that strace traces, wherever they work."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"\nTracerPid:\t%d\n" % tracer in entry.joinpath("status").read_bytes():
                found.add(int(entry.name))
    return found


def wrong_with(status: int, said: str, errors: str, fault: Fault | None) -> str:
    """What is wrong with what a program returned and wrote. Only one that was refused something may fail."""
    if status:
        return f"it ended with status {status}: {errors[-1500:]}"
    causes = json.loads(said)
    never = [kind for kind, _ in causes if kind in _NEVER]
    if never or (causes and (fault is None or fault.how != "refused")):
        return f"it raised {causes}"
    return f"it wrote {errors[-1500:]}" if _UNSEEN.search(errors) else ""


def _left(inside: Path) -> str:
    """Which of its processes are left. One that was not its child may take a moment to end."""
    end = time.monotonic() + GONE
    while (left := processes_in(inside)) and time.monotonic() < end:
        time.sleep(0.02)
    return f"it left processes: {left}" if left else ""
