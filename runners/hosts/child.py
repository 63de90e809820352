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

FAILED = 70  # EX_SOFTWARE: after a failure it has reported, or could not report
_PR_SET_PDEATHSIG = 1


def main() -> NoReturn:
    """Serve on the descriptor in the first argument until the parent, whose pid is the second, says so or is gone."""
    connection, parent = (int(argument) for argument in sys.argv[1:])
    restore_python_path()
    be_context(connection, parent)


def live(work: Callable[[], int], parent: int) -> NoReturn:
    """Do the work, with which comes an exit status, as a process that ends with its parent."""
    status = FAILED
    try:
        _die_with(parent)
        _settle()
        status = work()
    except BaseException:  # noqa: BLE001 - whatever it was, sys.exit of a runner too, the process ends the same way
        traceback.print_exc()
    finally:
        _leave(status)


def be_context(connection: int, parent: int) -> NoReturn:
    """What a forked process does from its birth to its end."""
    live(lambda: _serve(connection), parent)


def restore_python_path() -> None:
    """Take off what the parent put in front so that this module is found."""
    _, _, rest = os.environ.pop("PYTHONPATH", "").partition(os.pathsep)
    if rest:
        os.environ["PYTHONPATH"] = rest


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends, even while stopped (D10)."""
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError("prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the call above
        os._exit(FAILED)


def _settle() -> None:
    """No core file (writing one keeps the device for seconds), and no signal but the parent's SIGKILL.

    A session of its own keeps the terminal's signals away; these two also come from elsewhere: systemd sends SIGTERM to
    every process of a service at once. The parent alone decides when a context ends. Of a crash, the Python stack goes
    to standard error.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.enable()


def _serve(connection: int) -> int:
    from runners.hosts.engine import serve  # noqa: PLC0415 - slow to import, and prctl comes first

    os.set_inheritable(connection, False)  # a dup in a process of the runner's would hide our end
    return serve(socket.socket(fileno=connection))


def _leave(status: int) -> NoReturn:
    """End now, with nothing that was written still in a buffer, be it Python's or C's."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        ctypes.CDLL(None).fflush(None)
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
