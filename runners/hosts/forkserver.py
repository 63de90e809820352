"""The process that context processes are forked from: everything is imported there, in one thread, and no device is up.

`ProcessHost` starts it; nobody imports it. It knows nothing of what it preloads. Between its parent's loop and a context
it is the link through which the parent's death reaches the context: each of the three is killed when the one before ends.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from attrs import frozen

from runners.hosts import child, wire
from runners.hosts.spec import unpack
from runners.types import PreloadingSpec, RunnerSpec

_DATAGRAM = 2**20
_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd", "/dev/dri/", "/dev/accel")
"""What a process has open once it has a device context; what only asks the driver has not."""


def main() -> NoReturn:
    """Serve on the descriptor in the first argument until the parent, whose pid is the second, is gone."""
    control, parent = (int(argument) for argument in sys.argv[1:])
    child.restore_python_path()
    os.set_inheritable(control, False)
    child.live(Server(socket.socket(fileno=control)).run, parent)


@frozen
class _Child:
    number: int
    pid: int


class Server:
    """Preloads once, then forks when told to, and buries what it has forked."""

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
            return child.FAILED
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._children:
                    self._bury(descriptor)
                elif not self._obey():
                    return 0

    def _preload(self) -> bool:
        """Whether it can be forked from now."""
        frame = wire.to_server(self._control.recv(_DATAGRAM))
        assert isinstance(frame, wire.Preload), "the first word"
        try:
            _preload(frame)
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
            self._say(wire.Exited(frame.number, False, child.FAILED))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _fork(self, number: int, descriptors: Sequence[int]) -> None:
        """Make a child, and tell: its pidfd is opened here, where its pid cannot be another's yet."""
        pid = os.fork()
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
            child.be_context(connection, self._pid)
        finally:
            os._exit(child.FAILED)

    def _bury(self, pidfd: int) -> None:
        """Kill what a dead child has left behind, while its number is still its own; reap it, and tell."""
        dead = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        with suppress(ProcessLookupError):  # it died before it had a group
            os.killpg(dead.pid, signal.SIGKILL)
        _, status = os.waitpid(dead.pid, 0)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(status)
        self._say(wire.Exited(dead.number, code < 0, abs(code)))

    def _say(self, frame: wire.FromServer) -> None:
        self._control.sendall(wire.datagram(frame))


def _preload(frame: wire.Preload) -> None:
    """Import what the children will, and have the runner spec do its share.

    Raises:
        RuntimeError: what is left behind would not survive a fork.
    """
    importlib.import_module("runners.hosts.engine")  # each child runs it
    sys.path[:] = frame.path
    spec: RunnerSpec = unpack(frame.runner)
    if isinstance(spec, PreloadingSpec):
        spec.preload()
    _check_threads()
    _check_devices()
    gc.collect()
    gc.freeze()  # or the first collection of every child would copy it all


def _check_threads() -> None:
    """A fork takes one thread along, and the locks of them all."""
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        raise RuntimeError(f"a preload must leave one thread, got {threads}")


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


if __name__ == "__main__":
    main()
