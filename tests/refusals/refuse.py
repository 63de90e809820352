"""Run a program with one kind of its system calls refused, by strace, and return what is wrong with how it ended."""

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
PATIENCE = 90.0
"""Seconds after which a program hangs."""
GONE = 5.0
"""Seconds that a process may take to end after its program has."""

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

_NEVER = ("TrioInternalError", "AssertionError", "TooSlowError")
"""A program may fail when it is refused something, but not with these: they are a defect, a wrong answer, and a request that is lost."""
_UNSEEN = re.compile(r"^(Exception ignored|Exception in thread|.*was never awaited)", re.MULTILINE)
"""What Python writes of an exception that reaches no code, in the process itself; what its children write has their name in front."""


@frozen
class Refusal:
    """The n-th such call of each task of the program is refused, or with `further` each from that one on."""

    call: str
    number: int
    further: bool = False

    def __str__(self) -> str:
        return f"{self.call} {self.number}{'+' if self.further else ''}"


@frozen
class Run:
    """How a run ended: `wrong` is empty if it ended as it may."""

    wrong: str
    calls: str


def why_not(name: str) -> str | None:
    """Why no call can be refused to this program here; None if it can."""
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


def refusals(name: str, most: int) -> list[Refusal]:
    """What can be refused to a program: each of its first calls alone, and from there on all of a kind that makes descriptors or processes.

    Raises:
        RuntimeError: the program does not run without a refusal either.
    """
    plain = run(name)
    if plain.wrong:
        raise RuntimeError(f"{name}: {plain.wrong}")
    counts: dict[str, Counter[str]] = {}
    for task, call in re.findall(r"^(\d+) +(\w+)\(", plain.calls, re.MULTILINE):
        counts.setdefault(call, Counter())[task] += 1
    found = []
    for call, by_task in sorted(counts.items()):
        for number in range(1, min(most, max(by_task.values())) + 1):
            found.append(Refusal(call, number))
            # If a server can accept no connection, the system has its clients wait.
            if REFUSALS[call] in ("EMFILE", "EAGAIN") and call != "accept4":
                found.append(Refusal(call, number, further=True))
    return found


def run(name: str, refusal: Refusal | None = None) -> Run:
    """Run a program, with this refusal."""
    folder = Path(tempfile.mkdtemp(prefix="refusals-"))
    calls, inside = folder / "calls", folder / "inside"
    inside.mkdir()
    traced = ",".join(REFUSALS) if refusal is None else refusal.call
    command = ["strace", "-f", "-qq", "-o", str(calls), "--seccomp-bpf", "-e", f"trace={traced}"]
    if refusal is not None:
        when = f"{refusal.number}{'+' if refusal.further else ''}"
        command += ["-e", f"inject={refusal.call}:error={REFUSALS[refusal.call]}:when={when}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = subprocess.Popen(
        [*command, sys.executable, "-m", "tests.refusals.programs", name],
        cwd=inside,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = started.communicate(timeout=PATIENCE)
        wrong = wrong_with(started.returncode, said, errors, refusal) or _left(inside)
    except subprocess.TimeoutExpired:
        wrong = "it hangs"
    finally:
        for pid in processes_in(inside):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        started.kill()
        started.communicate()
        made = calls.read_text(errors="replace") if calls.exists() else ""
        shutil.rmtree(folder, ignore_errors=True)
    return Run(wrong, made)


def wrong_with(status: int, said: str, errors: str, refusal: Refusal | None) -> str:
    """What is wrong with what a program returned and wrote. Without a refusal it may not fail."""
    if status:
        return f"it ended with status {status}: {errors[-1500:]}"
    causes = json.loads(said)
    never = [kind for kind, _ in causes if kind in _NEVER]
    if never or (causes and refusal is None):
        return f"it raised {causes}"
    return f"it wrote {errors[-1500:]}" if _UNSEEN.search(errors) else ""


def _left(inside: Path) -> str:
    """Which of its processes are left. One that was not its child may take a moment to end."""
    end = time.monotonic() + GONE
    while (left := processes_in(inside)) and time.monotonic() < end:
        time.sleep(0.02)
    return f"it left processes: {left}" if left else ""
