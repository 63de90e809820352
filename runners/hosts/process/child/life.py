"""The start and the end of a context process, which holds a device. `ProcessHost` starts it.

It is started cold by the name of this module, or forked by a fork server. It never ends through the teardown of the
interpreter, which can take half a second and run code of any module.
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
from runners.hosts.process.child.status import FAILED
from runners.hosts.process.child.title import entitle
from runners.hosts.process.standard import STANDARD_ERROR

_PR_SET_PDEATHSIG = 1
_OURS = (signal.SIGTERM, signal.SIGINT)


def main() -> NoReturn:
    """Serve on the descriptor in the first argument, until the parent, whose pid is the second, asks to end or is dead."""
    connection, parent = (int(argument) for argument in sys.argv[1:])
    be_context(connection, parent)


def live(work: Callable[[], int], parent: int, title: str) -> NoReturn:
    """Run `work` as a process that dies with its parent, and exit with the status that it returns."""
    status = FAILED
    try:
        _die_with(parent)
        entitle(title)
        _set_up_signals()
        status = work()
    except BaseException:  # noqa: BLE001 - after any exception, also sys.exit in a runner, the process ends in the same way
        traceback.print_exc()
    finally:
        _leave(status)


def be_context(connection: int, parent: int) -> NoReturn:
    """The whole life of a context process, forked or started cold."""
    _mark_own()
    live(lambda: _serve(connection), parent, "standby")


def _mark_own() -> None:
    """Add our pid to the mark, so that the cleaner can tell the processes that this context starts from those of others."""
    if mark := os.environ.get(MARK):
        os.environ[MARK] = f"{mark.partition('.')[0]}.{os.getpid()}"


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent ends, however it ends, even while this one is stopped (D10)."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(FAILED)


def _set_up_signals() -> None:
    """Set signals and limits: no core file, SIGTERM and SIGINT do nothing, and a crash writes its Python stack.

    Writing a core file would keep the device for seconds. The parent alone decides when a context ends: its session of its
    own keeps the terminal's signals away, but SIGTERM and SIGINT also come from elsewhere, as from systemd, which sends
    SIGTERM to all processes of a service at once. They are handled, not ignored, so that processes that a runner starts can
    be terminated: exec resets a handler, and after a fork `_restore_signals` does.

    Two settings that the parent may have inherited are undone, because they would break a runner: blocked signals, and an
    ignored SIGCHLD, with which the exit status of every child is lost.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in _OURS:
        signal.signal(number, _nothing)
        signal.siginterrupt(number, False)  # so that no system call fails with EINTR
    os.register_at_fork(after_in_child=_restore_signals)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in any Python
    expect_children()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    faulthandler.enable(
        STANDARD_ERROR
    )  # a preload may have put an object without a descriptor at `sys.stderr`


def _nothing(_number: int, _frame: object) -> None:
    pass


def _restore_signals() -> None:
    """After a fork give these signals the handlers that they have in any Python."""
    if signal.getsignal(signal.SIGTERM) is _nothing:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is _nothing:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def expect_children() -> None:
    """Undo an ignored SIGCHLD, with which the kernel would reap the children."""
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _serve(connection: int) -> int:
    from runners.hosts.process.child.loop import serve  # noqa: PLC0415 - slow to import, and prctl must come first

    os.set_inheritable(connection, False)  # a copy in a process that the runner starts would hide our end
    link = socket.socket(fileno=connection)
    link.settimeout(None)  # `socket.setdefaulttimeout` may have set one
    try:
        return serve(link)
    finally:
        link.detach()  # the socket must close with the process: an earlier end would look like a death


def _leave(status: int) -> NoReturn:
    """Flush the buffers of Python and of C, and end at once."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)
    finally:
        os._exit(status)
