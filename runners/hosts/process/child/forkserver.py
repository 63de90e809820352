"""The process that context processes are forked from: everything is imported there, in one thread, and no device is up.

`ProcessHost` starts it; nobody imports it. It knows nothing of what it preloads. Between its parent's loop and a context
it is the link through which the parent's death reaches the context: each of the three is killed when the one before ends.
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
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, Self

from attrs import frozen

from runners.hosts.process import wire
from runners.hosts.process.child import life
from runners.hosts.process.standard import fill_standard
from runners.hosts.spec import unpack
from runners.types import PreloadingSpec, RunnerSpec

_DATAGRAM = 2**20
_ENDS = 3
_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd", "/dev/dri/", "/dev/accel")
"""What a process has open once it has a device context; what only asks the driver has not."""


def main() -> NoReturn:
    """Serve on the descriptor in the first argument until the parent, whose pid is the second, is gone."""
    control, parent = (int(argument) for argument in sys.argv[1:])
    os.set_inheritable(control, False)
    life.live(lambda: _serve(control), parent, "server")


def _serve(control: int) -> int:
    link = socket.socket(fileno=control)
    try:
        return Server(link).run()
    finally:
        link.detach()  # it ends with the process


@frozen
class _Child:
    number: int
    pid: int


class Server:
    """Preloads once, then forks when told to, and reaps what it has forked."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}  # by pidfd
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def run(self) -> int:
        """Serve until the parent closes its end; its children do not outlive it."""
        try:
            return self._run()
        except (BrokenPipeError, ConnectionResetError):
            return 0

    def _run(self) -> int:
        if not self._preload():
            return life.FAILED
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._reap(descriptor)
                elif not self._obey():
                    return 0

    def _preload(self) -> bool:
        """Whether it can be forked from now."""
        frame = wire.to_server(self._control.recv(_DATAGRAM))
        assert isinstance(frame, wire.Preload), "the first word"
        try:
            faulthandler.register(signal.SIGUSR1)  # what it is at, if it takes too long: the parent asks
            _preload(frame)
            faulthandler.unregister(signal.SIGUSR1)
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told and contexts start cold
            self._say(wire.NotPreloaded(wire.error_data(error).text))
            return False
        self._say(wire.Preloaded())
        return True

    def _obey(self) -> bool:
        """Do what the parent says; whether it is still there."""
        data, descriptors, _, _ = socket.recv_fds(
            self._control, _DATAGRAM, 3, getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        )
        if not data:
            return False
        frame = wire.to_server(data)
        assert isinstance(frame, wire.Fork), "the only word after the first"
        try:
            self._fork(frame.number, descriptors)
        except OSError:
            self._say(wire.Exited(frame.number, False, life.FAILED))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, number: int, descriptors: Sequence[int]) -> None:
        """Make a child, and tell: its pidfd is opened here, where its pid cannot be another's yet.

        Raises:
            OSError: there is no process, memory or descriptor left for one.
        """
        if len(descriptors) != _ENDS:  # the kernel has dropped those for which there was no room
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        pid = _forked()
        if pid == 0:
            self._be_child(*descriptors)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        self._children[pidfd] = _Child(number, pid)
        self._poll.register(pidfd, select.POLLIN)
        socket.send_fds(self._control, [wire.datagram(wire.Forked(number, pid))], [pidfd])

    def _be_child(self, connection: int, output: int, errors: int) -> NoReturn:
        """Share nothing with the server or its other children, and live as a context."""
        try:
            os.setsid()
            os.dup2(output, 1)
            os.dup2(errors, 2)
            for descriptor in (output, errors, self._control.detach(), *self._children):
                os.close(descriptor)
            life.be_context(connection, self._pid)
        finally:
            os._exit(life.FAILED)

    def _reap(self, pidfd: int) -> None:
        """Kill what a dead child has left behind, while its number is still its own; reap it, and tell."""
        dead = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        with suppress(ProcessLookupError):  # it died before it had a group
            os.killpg(dead.pid, signal.SIGKILL)
        code = _exit_code(dead.pid)
        os.close(pidfd)
        self._say(
            wire.Exited(dead.number, code is not None and code < 0, None if code is None else abs(code))
        )

    def _say(self, frame: wire.FromServer) -> None:
        self._control.sendall(wire.datagram(frame))


def _forked() -> int:
    """As `os.fork`; a signal that reaches the child before it has settled waits, and then does nothing."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    return pid


def _exit_code(pid: int) -> int | None:
    """Of a dead child, which is reaped by this; None if somebody else was faster, say a module that waits for any child."""
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status)


def _preload(frame: wire.Preload) -> None:
    """Import what the children will, and have the runner spec do its share.

    Raises:
        RuntimeError: what is left behind would not survive a fork.
    """
    importlib.import_module("runners.hosts.process.child.loop")  # each child runs it
    with Threads() as threads:
        spec: RunnerSpec = unpack(frame.runner)
        if isinstance(spec, PreloadingSpec):
            spec.preload()
        threads.check()
    _check_devices()
    life.expect_children()
    fill_standard()  # a preload may have closed one
    gc.collect()
    gc.freeze()  # or the first collection of every child would copy it all


class Threads:
    """Sees at each import which threads have appeared since the one before: the module that is in the way of a fork.

    A fork takes one thread along, and the locks of them all.
    """

    def __init__(self) -> None:
        self._after = ""  # this import
        self._started: dict[int, str] = {_thread.get_native_id(): ""}  # by thread

    def __enter__(self) -> Self:
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.meta_path.remove(self)

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """What the import system asks of a finder before each module; it finds none, and notes what there is."""
        self._note()
        self._after = name

    def _note(self) -> list[int]:
        """The threads that there are."""
        found = [int(entry.name) for entry in Path("/proc/self/task").iterdir()]
        if len(found) > 1:
            for number in found:
                self._started.setdefault(number, self._after)
        return found

    def check(self) -> None:
        """Refuse what could not be forked from.

        Raises:
            RuntimeError: there is more than one thread; it says which, and what was imported last before each.
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
            return f"{Path(f'/proc/self/task/{number}/comm').read_text().strip()!r} (native{where})"
        return f"thread {number} (gone meanwhile{where})"


def _check_devices() -> None:
    """A device context does not survive a fork. torch is asked too, if it is here."""
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            target = str(descriptor.readlink())
            if target.startswith(_DEVICES):
                raise RuntimeError(f"a preload must not touch a device, but {target} is open")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("a preload must not touch a device, but CUDA is initialised")
