"""The fork server: the process from which contexts are forked. It has imported everything, in one thread, and uses no device.

`ProcessHost` starts it; no code imports this module for use. It stands between the parent and the contexts: when the parent
dies, the kernel kills the fork server, and when the fork server dies, the contexts (D10).
"""

from __future__ import annotations

import _thread
import errno
import faulthandler
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NoReturn, Self

from attrs import frozen

from runners.hosts.packing import unpack
from runners.hosts.process import wire
from runners.hosts.process.child import life
from runners.hosts.process.child.status import FAILED
from runners.hosts.process.standard import fill_standard
from runners.types import PreloadingSpec, RunnerSpec

_DATAGRAM = 2**20
_ENDS = 3
_NO_ROOM = errno.ENOBUFS, errno.ENOMEM
"""The errors of a send that may succeed later."""
_PAUSE = 0.01
"""Seconds between two attempts to send a report."""
_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd", "/dev/dri/", "/dev/accel")
"""Files that a process with a device context has open. A process that only queries the driver has not."""


def main() -> NoReturn:
    """Serve on the descriptor in the first argument until the parent, whose pid is the second, is dead."""
    control, parent = (int(argument) for argument in sys.argv[1:])
    os.set_inheritable(control, False)
    life.live(lambda: _serve(control), parent, "server")


def _serve(control: int) -> int:
    link = socket.socket(fileno=control)
    try:
        return Server(link).run()
    finally:
        link.detach()  # the socket closes with the process


@frozen
class _Child:
    number: int
    pid: int


class Server:
    """Preloads once, then forks a process for each request, and reaps it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}  # by pidfd
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> int:
        """Serve until the parent closes its end. The children die with this process."""
        try:
            return self._run()
        except (BrokenPipeError, ConnectionResetError):
            return 0

    def _run(self) -> int:
        if not self._preload():
            return FAILED
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._serve_request():
                    return 0

    def _preload(self) -> bool:
        """Preload, and report the result; returns whether this process can now be forked."""
        frame = wire.to_server(self._control.recv(_DATAGRAM))
        assert isinstance(frame, wire.Preload), "the first frame must be a Preload"
        try:
            faulthandler.register(signal.SIGUSR1)  # the parent requests the stack if this takes too long
            preload(frame)
            faulthandler.unregister(signal.SIGUSR1)
        except Exception as error:  # noqa: BLE001 - any error is reported to the parent, which starts contexts cold
            self._send(wire.NotPreloaded(wire.error_data(error).text))
            return False
        self._send(wire.Preloaded())
        return True

    def _serve_request(self) -> bool:
        """Serve a request of the parent; returns False once the parent has closed its end."""
        data, descriptors, _, _ = socket.recv_fds(
            self._control, _DATAGRAM, 3, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        )
        if not data:
            return False
        frame = wire.to_server(data)
        assert isinstance(frame, wire.Fork), "every frame after the first must be a Fork"
        try:
            self._fork(frame.number, descriptors)
        except OSError:
            self._send(wire.Exited(frame.number, False, FAILED))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, number: int, descriptors: Sequence[int]) -> None:
        """Fork a child and report it. Its pidfd is opened here: until this process reaps it, its pid cannot be reused.

        Raises:
            OSError: no process, memory or descriptor is left for a child, or for the report.
        """
        if len(descriptors) != _ENDS:  # the kernel drops descriptors for which this process has no room
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pid = _forked()
        if pid == 0:
            self._be_child(*descriptors)
        # The parent is about to start cold, and two contexts must not serve one connection.
        with ExitStack() as undo:
            undo.callback(_exit_code, pid)
            undo.callback(os.kill, pid, signal.SIGKILL)
            pidfd = os.pidfd_open(pid)
            undo.callback(os.close, pidfd)
            socket.send_fds(self._control, [wire.datagram(wire.Forked(number, pid))], [pidfd])
            undo.pop_all()
        self._children[pidfd] = _Child(number, pid)
        self._poll.register(pidfd, select.POLLIN)

    def _be_child(self, connection: int, output: int, errors: int) -> NoReturn:
        """Close the descriptors of the server and of its other children, and run as a context."""
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for descriptor in (output, errors, self._control.detach(), *self._children):
                os.close(descriptor)
            life.be_context(connection, self._pid)
        finally:
            os._exit(FAILED)

    def _reap(self, pidfd: int) -> None:
        """Kill the processes that a dead child has started, reap the child, and report it.

        The group is killed first, because until it is reaped the pid of the child is not reused.
        """
        dead = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        with suppress(ProcessLookupError):  # it died before it led a group
            os.killpg(dead.pid, signal.SIGKILL)
        code = _exit_code(dead.pid)
        os.close(pidfd)
        self._send(
            wire.Exited(dead.number, code is not None and code < 0, None if code is None else abs(code))
        )

    def _send(self, frame: wire.FromServer) -> None:
        """Send a report. If the kernel lacks memory, it is tried again: the contexts would die with this process."""
        data = wire.datagram(frame)
        while True:
            try:
                self._control.sendall(data)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                time.sleep(_PAUSE)
            else:
                return


def _forked() -> int:
    """As `os.fork`. A SIGTERM or SIGINT to the child is blocked until its handlers are set, which do nothing."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    return pid


def _exit_code(pid: int) -> int | None:
    """Reap a dead child; returns its exit code, or None if other code has reaped it, such as a module that waits for any child."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status)


def preload(frame: wire.Preload) -> None:
    """Import the modules that the children need, and call `preload` of the runner spec.

    Raises:
        RuntimeError: a second thread runs or a device is in use, which would not survive a fork.
    """
    importlib.import_module("runners.hosts.process.child.loop")  # each child runs it
    with Threads() as threads:
        spec: RunnerSpec = unpack(frame.runner)
        if isinstance(spec, PreloadingSpec):
            spec.preload()
        threads.check()
    _check_devices()
    life.expect_children()
    fill_standard()  # a preload may have closed a standard stream
    gc.collect()
    gc.freeze()  # otherwise the first collection in every child would copy all memory pages


class Threads:
    """Notes at each import which threads have started since the last one, to name the module that prevents a fork (D15).

    A fork copies only one thread, but the locks of all threads.
    """

    def __init__(self) -> None:
        self._after = ""  # the module whose import began last
        # By thread, the module after whose import it started.
        self._started: dict[int, str] = {_thread.get_native_id(): ""}

    def __enter__(self) -> Self:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """The import system calls this before each module. It finds no module, and only notes the threads."""
        self._note()
        self._after = name

    def _note(self) -> list[int]:
        """Note new threads; returns the numbers of all threads."""
        found = [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
        if len(found) > 1:
            for number in found:
                self._started.setdefault(number, self._after)
        return found

    def check(self) -> None:
        """Refuse a preload that has left more than one thread.

        Raises:
            RuntimeError: there is more than one. It names each thread, and the module that was imported last before it.
        """
        found = self._note()
        if len(found) > 1:
            names = ", ".join(self._name(number) for number in found if number != os.getpid())
            raise RuntimeError(f"a preload must leave one thread, got {len(found)}: {names}")

    def _name(self, number: int) -> str:
        after = self._started[number]
        where = f", started after the import of {after}" if after else ""
        for thread in threading.enumerate():
            if thread.native_id == number:
                cls = type(thread)
                return f"{thread.name!r} ({cls.__module__}.{cls.__qualname__}{where})"
        with suppress(OSError):
            # A name has 15 bytes, and may end within a character.
            name = Path(f"/proc/self/task/{number}/comm").read_text("utf-8", "backslashreplace")
            return f"{name.strip()!r} (native{where})"
        return f"thread {number} (gone meanwhile{where})"


def _check_devices() -> None:
    """Refuse a device context, which does not survive a fork: by open files, and by torch if it is loaded."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of this listing itself
            target = str(descriptor.readlink())
            if target.startswith(_DEVICES):
                raise RuntimeError(f"a preload must not touch a device, but {target} is open")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("a preload must not touch a device, but CUDA is initialised")
