"""What the child processes of the guardian run, and how it kills and reaps them (D4, D16).

The text of this module is a part of the program of the far side, in front of that of `guardian`. So it imports the standard library alone,
and older Pythons must compile it.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FAILED, SETTLED = 70, 69
"""The exit status after a failure, and after one about which NVML need not be asked. They are also in
`runners.hosts.process.child.status`, because this module cannot import it."""

_TEXT = 4096
"""Bytes of the longest text that a child process reports."""
_PATIENCE = 1.0
"""Seconds for processes that the context process has started to die of their SIGKILL."""
_NAME, _DEATH_SIGNAL = 15, 1
"""Options of prctl."""


def entitle(title: bytes) -> None:
    """Name this process, for `ps`."""
    ctypes.CDLL(None).prctl(_NAME, title, 0, 0, 0)


def to_nothing(*descriptors: int) -> None:
    """Replace these descriptors by one from which nothing comes, and which drops what is written."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor)
    os.close(nothing)


def exit_code(pid: int) -> int | None:
    """Reap a child that has ended; returns its exit code, negative for a signal, or None if it was reaped already."""
    try:
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def kill_children() -> None:
    """Kill and reap the processes that were left to the guardian, and those that they leave in turn."""
    ours = Path(f"/proc/self/task/{os.getpid()}/children")
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with suppress(OSError):  # the kernel lists no children
            for pid in ours.read_text().split():
                # It has ended meanwhile, or has become another user's, and may not be killed.
                with suppress(OSError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        time.sleep(0.001)  # unknown processes have no pidfd here that would report their end


def be_context(order: dict[str, Any], connection: int, report: int, guardian: int) -> None:
    """Run as the context process, or report why it cannot run with the packages that are installed here."""
    _die_with(guardian)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _find_packages(order)
    why = refusal(order)
    if why:
        os.write(report, why.encode("utf-8", "backslashreplace")[:_TEXT])
        os._exit(FAILED)
    os.close(report)
    importlib.import_module("runners.hosts.process.child.life").be_context(connection, guardian)


def be_examiner(order: dict[str, Any], end: int, guardian: int) -> None:
    """Ask NVML about the device, and write why it cannot be used again (D4). If it can be, or that is not known, write nothing."""
    _die_with(guardian)
    entitle(b"runners:nvml")
    _find_packages(order)
    trouble = importlib.import_module("runners.diagnosis.hardware").trouble_of(order["device"])
    os.write(end, (trouble or "").encode("utf-8", "backslashreplace")[:_TEXT])


def _die_with(guardian: int) -> None:
    if ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) or os.getppid() != guardian:
        os._exit(FAILED)


def _find_packages(order: dict[str, Any]) -> None:
    sys.path[:0] = order["path"]


def refusal(order: dict[str, Any]) -> str | None:
    """The reason why no context can run here; None if one can."""
    try:
        metadata = importlib.import_module("importlib.metadata")
        importlib.import_module("runners.hosts.process.child.life")
        wire = importlib.import_module("runners.hosts.process.wire")
    except Exception as error:  # noqa: BLE001 - An import may raise anything, and the near end gets the reason.
        return (
            f"its Python {sys.executable} cannot import what a context needs: {type(error).__name__}: {error}"
        )
    try:
        version = metadata.version("trio-supervise")
    except metadata.PackageNotFoundError:
        version = "unknown"
    protocol = getattr(wire, "PROTOCOL", 0)
    if (version, protocol) == (order["version"], order["protocol"]):
        return None
    return (
        f"it has trio-supervise {version} with protocol {protocol}, "
        f"and here it is {order['version']} with protocol {order['protocol']}"
    )
