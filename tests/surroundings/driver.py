"""Runs the program in its surroundings, and sees that it leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from .cases import HERE, MARK, Case, NotHere, Setting
from .program import TOKENS

PATIENCE = 200.0
GONE = 60.0
"""Seconds that a process may take to end after its program has."""
_FROZEN = 10.0
"""Seconds; twice the deadline of the program."""


@attrs.frozen
class Outcome:
    """How a case went: `trouble` is empty if it went as it should, `skipped` has the reason why it could not be tried."""

    trouble: str = ""
    skipped: str = ""
    seconds: float = 0.0


def outcome(case: Case, host: str) -> Outcome:
    """Try it."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="surroundings-") as folder, marked() as mark:
        setting = Setting(Path(folder, "case"), {**os.environ, MARK: mark})
        setting.folder.mkdir()
        try:
            case.make(setting)
            trouble = _trouble(case, setting, host, Path(folder), mark)
        except NotHere as error:
            return Outcome(skipped=str(error))
        finally:
            if setting.cgroup is not None:
                _removed(setting.cgroup, mark)
    return Outcome(trouble, seconds=time.monotonic() - began)


def _removed(group: Path, mark: str) -> None:
    for pid in processes(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(500):
        with suppress(OSError):
            group.rmdir()
        if not group.exists():
            return
        time.sleep(0.01)
    raise RuntimeError(f"{group} is in use")


@contextmanager
def marked() -> Iterator[str]:
    """A mark for all that is started; whatever has it still is killed in the end."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    try:
        yield mark
    finally:
        for pid in processes(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes(mark: str) -> set[int]:
    """The pids of what has the mark."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def _trouble(case: Case, setting: Setting, host: str, folder: Path, mark: str) -> str:
    result = folder / setting.result
    result.touch(0o600)  # whatever the umask
    arguments = [host, str(HERE), str(result), setting.run, setting.setup]
    main = subprocess.Popen(
        [*setting.python, *setting.program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=setting.environment,
        cwd=setting.cwd,
        preexec_fn=setting.inherited,  # noqa: PLW1509 - there is one thread here
    )
    try:
        if setting.freeze is not None:
            _freeze(setting, result, main)
        _, errors = main.communicate(setting.stdin, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return "it has not ended"
    finally:
        main.kill()
        main.wait()
    text = errors.decode(errors="replace").strip()
    left = _left(mark)
    if main.returncode:
        return f"exit status {main.returncode}: {text[-400:]}"
    trouble = _judged(case, setting, json.loads(result.read_text() or "{}"))
    if not trouble and case.silent and case.refused is None and text:
        trouble = f"it wrote: {text[-400:]}"
    if not trouble and left:
        trouble = f"left: {left}"
    return trouble


def _left(mark: str) -> list[str]:
    """The command lines of what is still there a while after the end."""
    end = time.monotonic() + GONE
    while (pids := processes(mark)) and time.monotonic() < end:
        time.sleep(0.01)
    return [_command(pid)[-80:] for pid in pids]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return f"{pid}, which has ended now"


def _judged(case: Case, setting: Setting, said: dict[str, Any]) -> str:
    refused = said.get("refused")
    if case.refused is not None:
        if refused is None:
            return f"not refused: {said}"
        if "\n" in refused or not re.search(re.escape(case.refused), refused):
            return f"refused otherwise: {refused}"
        return ""
    wanted = {
        "positions": list(range(TOKENS)),
        "incarnations": [1, 2],
        "bystander": 1,
        "descriptors": 0,
        "children": 0,
    }
    wrong = {name: said.get(name) for name, value in wanted.items() if said.get(name) != value}
    return f"{wrong} {refused or ''}".strip() if wrong else ""


def _freeze(setting: Setting, result: Path, main: subprocess.Popen[bytes]) -> None:
    """Stop everything at any moment of a stream, for longer than a deadline, and let it go on."""
    end = time.monotonic() + PATIENCE
    while not Path(f"{result}.ready").exists() and main.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    Path(f"{result}.done").touch()  # it goes on with its stream, and is stopped in it
    if setting.freeze == "cgroup":
        assert setting.cgroup is not None
        (setting.cgroup / "freezer.state").write_text("FROZEN")
        time.sleep(_FROZEN)
        (setting.cgroup / "freezer.state").write_text("THAWED")
        return
    pids = processes(setting.environment[MARK])
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    time.sleep(_FROZEN)
    for pid in sorted(pids, key=lambda pid: pid != main.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)
