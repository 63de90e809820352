"""The process that holds a device: how it is born, and how it ends. `ProcessHost` makes it; nobody imports it.

It is started by its name, or forked by a fork server. It never ends through the interpreter's teardown, which can take
half a second and run anybody's code.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from runners.hosts import MARK
from runners.hosts.process.child.title import entitle
from runners.hosts.process.standard import STANDARD_ERROR

FAILED = 70  # EX_SOFTWARE: after a failure it has reported, or could not report
_PR_SET_PDEATHSIG = 1
_OURS = (signal.SIGTERM, signal.SIGINT)


def main() -> NoReturn:
    """Serve on the descriptor in the first argument until the parent, whose pid is the second, says so or is gone."""
    connection, parent = (int(argument) for argument in sys.argv[1:])
    be_context(connection, parent)


def live(work: Callable[[], int], parent: int, title: str) -> NoReturn:
    """Do the work, with which comes an exit status, as a process that ends with its parent."""
    status = FAILED
    try:
        _die_with(parent)
        entitle(title)
        _settle()
        status = work()
    except BaseException:  # noqa: BLE001 - whatever it was, sys.exit of a runner too, the process ends the same way
        traceback.print_exc()
    finally:
        _leave(status)


def be_context(connection: int, parent: int) -> NoReturn:
    """What a forked process does from its birth to its end."""
    _mark_own()
    live(lambda: _serve(connection), parent, "standby")


def _mark_own() -> None:
    """Mark what this process will start, so that it can be told from what other contexts have started."""
    if mark := os.environ.get(MARK):
        os.environ[MARK] = f"{mark.partition('.')[0]}.{os.getpid()}"


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends, even while stopped (D10)."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the call above
        os._exit(FAILED)


def _settle() -> None:
    """No core file (writing one keeps the device for seconds), and no signal but the parent's SIGKILL.

    A session of its own keeps the terminal's signals away; these two also come from elsewhere: systemd sends SIGTERM to
    every process of a service at once. The parent alone decides when a context ends. They are handled, not ignored, so
    that what a runner starts can still be terminated: exec resets a handler, and after a fork we do.

    What the parent has inherited and hands on is undone where it would break a runner: signals that are blocked, and an
    ignored SIGCHLD, with which the exit status of every child is lost. Of a crash, the Python stack goes to standard
    error.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in _OURS:
        signal.signal(number, _nothing)
        signal.siginterrupt(number, False)  # nor does one end anybody's system call
    os.register_at_fork(after_in_child=_as_usual)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python has it
    expect_children()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable(STANDARD_ERROR)  # what a preload has put in place of `sys.stderr` may be no file


def _nothing(_number: int, _frame: object) -> None:
    pass


def _as_usual() -> None:
    """In a fork of ours these signals do what they do in any Python."""
    if signal.getsignal(signal.SIGTERM) is _nothing:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _nothing:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def expect_children() -> None:
    """An ignored SIGCHLD would have the kernel reap them."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _serve(connection: int) -> int:
    from runners.hosts.process.child.loop import serve  # noqa: PLC0415 - slow to import, and prctl comes first

    os.set_inheritable(connection, False)  # a dup in a process of the runner's would hide our end
    link = socket.socket(fileno=connection)
    link.settimeout(None)  # whatever `socket.setdefaulttimeout` says
    try:
        return serve(link)
    finally:
        link.detach()  # it ends with the process: closed before, it would be a death announced too early


def _leave(status: int) -> NoReturn:
    """End now, with nothing that was written still in a buffer, be it Python's or C's."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)
    finally:
        os._exit(status)
