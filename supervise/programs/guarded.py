"""A program below its guardian, seen from the process of the tree. `guardian` is the other side."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import trio
from attrs import asdict, field, frozen

from .._core._brief import as_group, members, printable, shortened
from .._trio.protect import protected
from . import guardian
from .errors import CommandError, CommandExited, CommandMissing, CommandNotIsolated, GuardianLost, signal_name
from .output import Output
from .ports import Listener, in_thread

PATIENCE = 5.0
"""Seconds that the guardian has to report the end of the program, once that is dead or was to be killed. Then it is killed itself."""

_SHORTEST, _LONGEST = 0.002, 0.1  # seconds between two looks at processes that were killed and have not ended
_ABOVE_STANDARD = 3


@frozen
class Order:
    """What the guardian is to start, and how it stops it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    given: tuple[str, ...] = ()
    """The names in `env` that the declaration sets itself."""
    cwd: str | None = None
    user: str | int | None = None
    umask: int | None = None
    limits: Mapping[str, tuple[int, int]] = field(factory=dict[str, tuple[int, int]])
    files: tuple[int, ...] = ()
    stop: tuple[tuple[int, float], ...] = ()
    isolation: str = "group"

    @property
    def name(self) -> str:
        """The name of the program without its folder, for messages."""
        return Path(self.argv[0]).name


@protected
class Guarded:
    """One program with its guardian, from its start to the end of its last process.

    Its methods run protected from KeyboardInterrupt: one between two lines could leave a process behind. A system task follows the
    guardian, so that a cancellation of the caller does not end that.
    """

    def __init__(self, order: Order, output: Output) -> None:
        self.started = trio.Event()
        """Set when the program runs, or never if it could not be started."""
        self.ended = trio.Event()
        """Set when the last process has ended."""
        self.pid = 0
        self._order = order
        self._output = output
        self._cgroup = ""
        self._pidfd = self._guardian_pidfd = -1  # not open
        self._follows = False  # whether the task runs that sets `ended`
        self._failed: tuple[str, str] | None = None
        self._code: int | None = None
        self._left = 0
        self.defect: BaseException | None = None
        """An exception of the task that follows the guardian: a defect, or what a handler of the log has raised (R4)."""
        self._connection: socket.socket
        self._guardian: subprocess.Popen[bytes]

    # --- its start

    def start(self) -> None:
        """Start the guardian; blocks for the milliseconds that takes. `started` or `ended` comes next.

        Raises:
            CommandNotIsolated: no control group can be made.
            OSError: no process or descriptor is available.
        """
        with ExitStack() as undo:
            undo.callback(self._output.close)
            self._start()
            undo.pop_all()
        self._follows = True
        trio.lowlevel.spawn_system_task(self._run, name=f"guardian of {self._order.name}")

    def _start(self) -> None:
        if self._order.isolation == "cgroup":
            self._cgroup = f"{_own_cgroup()}/supervise-{os.getpid()}-{secrets.token_hex(4)}"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection = ours
        with ExitStack() as if_it_fails, ExitStack() as afterwards:
            if_it_fails.callback(ours.close)
            afterwards.callback(self._output.close_theirs)
            afterwards.enter_context(theirs)
            order = afterwards.enter_context(open(os.memfd_create("order"), "w"))  # noqa: PTH123 - it is a descriptor
            passed: list[int] = []
            for file in (theirs.fileno(), order.fileno(), *self._order.files):
                passed.append(_duplicated(file))
                afterwards.callback(os.close, passed[-1])
            json.dump({**asdict(self._order), "files": passed[2:], "cgroup": self._cgroup}, order)
            order.flush()
            self._spawn(passed)
            if_it_fails.pop_all()
        ours.setblocking(False)

    def _spawn(self, passed: list[int]) -> None:
        connection, order, *_ = passed
        self._guardian = subprocess.Popen(  # noqa: S603 - our own interpreter and file
            [
                *(sys.executable, "-I", "-S", guardian.__file__),
                # The name of the program is for `ps` alone. The guardian reports if it cannot be started.
                *(
                    str(connection),
                    str(order),
                    str(os.getpid()),
                    printable(shortened(self._order.argv[0], 200)),
                ),
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output.streams[0].theirs,
            stderr=self._output.streams[1].theirs,
            pass_fds=passed,
            start_new_session=True,  # a Ctrl-C at the terminal does not reach it
        )
        try:
            self._guardian_pidfd = os.pidfd_open(self._guardian.pid)
        except OSError:
            self._guardian.kill()
            self._guardian.wait()
            raise

    # --- while it runs

    def order(self, what: str) -> None:
        """Send `stop`, `kill` or `signal N` to the guardian; without effect if it has ended."""
        with suppress(OSError):
            self._connection.send(what.encode())

    @property
    def runs(self) -> bool:
        """Whether the main process still runs."""
        if self.ended.is_set():
            return False
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    @property
    def lacks_guardian(self) -> bool:
        """Whether its guardian could not begin, for instance without a free process: that says nothing about the program."""
        return self._failed is not None and self._failed[0] == "guardian"

    async def owns(self, port: Listener) -> bool:
        """Whether a process of the program, or the guardian, which holds the files that it has handed over, has this socket."""
        return await port.held_by([self._guardian.pid, *await self.pids()])

    async def pids(self) -> list[int]:
        """Its processes."""
        return await in_thread(guardian.below, self._guardian.pid)

    def problem(self, when: str = "") -> CommandError | None:
        """Why it has ended; None if it exited with status 0 and left no process behind.

        Args:
            when: the end of the sentence.
        """
        in_order = self._code == 0 and not self._left and not when and self.defect is None
        return None if in_order else self.how(when)

    def how(self, when: str = "") -> CommandError:
        """How it has ended, as an error also if that was in order. `when`: the end of the sentence."""
        name = self._order.name
        if self.defect is not None:
            raise self.defect
        error: CommandError
        if self._failed is not None:
            error = self._not_started(*self._failed)
        elif self._code is None:
            text = f"the guardian of {name} (pid {self.pid}) was killed, and all that was left of the program too"
            error = GuardianLost(text + when)
        elif self._code < 0:
            error = CommandExited(f"{name} was killed by {signal_name(-self._code)}{when}", self._code)
        else:
            text = f"{name} exited with status {self._code}{when}"
            error = CommandExited(text + _advice(name, self._left if not self._code else 0), self._code)
        self._output.note(error)
        return error

    def _not_started(self, step: str, why: str) -> CommandError:
        order = self._order
        name = order.argv[0]
        if step == "isolation":
            return CommandNotIsolated(f"isolation {order.isolation!r} is not permitted here: {why}")
        what = {"program": name, "cwd": f"the folder {order.cwd}", "user": f"the user {order.user!r}"}.get(
            step, step
        )
        return CommandMissing(f"{name} could not be started: {what}: {why}")

    async def _run(self) -> None:
        """Follow the guardian to its end. An exception here would end the whole Trio run, so a defect is kept for the caller."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump)
                nursery.start_soon(self._watch_for_a_stuck_guardian)
                await self._follow()
                nursery.cancel_scope.cancel()
            for stream in self._output.streams:
                stream.finish()
        except trio.Cancelled:
            raise
        except BaseException as defect:  # noqa: BLE001 - No exception is lost: `problem` raises it in the task of the child, without the groups of the nurseries.
            self.defect = defect
            while (group := as_group(self.defect)) is not None and len(members(group)) == 1:
                (self.defect,) = members(group)
            self.order("kill")
        with trio.CancelScope(shield=True):
            await self._reap_guardian()
            if self._code is None:
                await self._reap_its_group()
            await self._end_cgroup()
        self._connection.close()
        self._output.close()
        for descriptor in (self._pidfd, self._guardian_pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self.ended.set()

    async def _pump(self) -> None:
        """Read the output, once the pid is known, which each record has."""
        await self.started.wait()
        async with trio.open_nursery() as nursery:
            for stream in self._output.streams:
                nursery.start_soon(stream.pump)

    async def _follow(self) -> None:
        """Take the messages of the guardian. If it dies before the last one, kill what is left of the program."""
        while True:
            await trio.lowlevel.wait_readable(self._connection)
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._connection, 65536, 1, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                data, descriptors = b"", []
            message: dict[str, Any] = json.loads(data) if data else {}
            if "started" in message:
                (self._pidfd,) = descriptors
                self.pid = self._output.pid = message["started"]
                self.started.set()
            elif "failed" in message:
                step, why = message["failed"]
                self._failed = step, why
                return
            elif "ended" in message:
                self._code, self._left = message["ended"], message["left"]
                return
            else:
                if not data:
                    await self._end_remains()
                return

    async def _watch_for_a_stuck_guardian(self) -> None:
        """A guardian that was stopped by SIGSTOP reports nothing: kill it if the program has ended without its report."""
        await self.started.wait()
        await trio.lowlevel.wait_readable(self._pidfd)
        await trio.sleep(PATIENCE)
        await self._end_below()

    # --- its end

    async def end(self, *, steps: float | None = None) -> None:
        """End it, if it has not ended, and return when its last process has. Never cancelled.

        Args:
            steps: seconds that the steps of the order may take; None kills at once.
        """
        if not self._follows:
            return  # its guardian could not be started
        with trio.CancelScope(shield=True):
            if steps is not None:
                self.order("stop")
                with trio.move_on_after(steps + PATIENCE):
                    await self.ended.wait()
            self.order("kill")
            with trio.move_on_after(PATIENCE):
                await self.ended.wait()
            if not self.ended.is_set():
                await self._end_below()
            await self.ended.wait()

    async def _reap_guardian(self) -> None:
        with trio.move_on_after(PATIENCE):  # it has nothing left to do
            await trio.lowlevel.wait_readable(self._guardian_pidfd)
        self._guardian.kill()
        await trio.lowlevel.wait_readable(self._guardian_pidfd)
        self._guardian.wait()

    async def _end_below(self) -> None:
        """Kill everything below a guardian that does not answer, and then the guardian; `_follow` sees its end."""
        await _kill_all(lambda: guardian.below(self._guardian.pid))
        self._guardian.kill()

    async def _end_remains(self) -> None:
        """Kill what is left of a program whose guardian and reserve are dead, and return when it has ended."""
        with trio.CancelScope(shield=True):
            await self._reap_guardian()
            if self.pid:
                killed = await _kill_all(lambda: guardian.of_session(self.pid))
                for pid in {*killed, self.pid}:  # children of this process, if it is process 1 or a subreaper
                    with suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - with this flag it does not wait

    async def _reap_its_group(self) -> None:
        """Reap the process that was below the reserve: a child of this process, if it is process 1 or a subreaper."""
        with trio.move_on_after(PATIENCE), suppress(ChildProcessError):
            while True:
                os.waitpid(-self._guardian.pid, os.WNOHANG)  # noqa: ASYNC222 - with this flag it does not wait
                await trio.sleep(_SHORTEST)

    async def _end_cgroup(self) -> None:
        while self._cgroup and not _removed(Path(self._cgroup)):  # noqa: ASYNC110 - its end has no event that Trio knows
            await trio.sleep(_SHORTEST)


async def _kill_all(find: Callable[[], list[int]]) -> set[int]:
    """Kill processes as long as some are found; returns all of them."""
    killed, wait = set[int](), _SHORTEST
    while found := await in_thread(find):
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):  # as in the guardian's own `_end_below`
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        await trio.sleep(wait)  # their end gives no event: they are no children of this process
        wait = min(2 * wait, _LONGEST)
    return killed


def _removed(group: Path) -> bool:
    """Kill all processes of a control group, and remove it if none is left."""
    try:
        (group / "cgroup.kill").write_text("1")
        guardian.remove_group(str(group))
    except OSError:  # it is busy; or the guardian has removed it, or died before it made it
        return not group.exists()
    return True


def _duplicated(descriptor: int) -> int:
    """A copy above the standard streams: 0 to 2 are free if this process was started without them, and are set for the guardian."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE_STANDARD)


def _lines(file: str) -> list[str]:
    """The lines of a file with paths, which need not be UTF-8."""
    return os.fsdecode(Path(file).read_bytes()).split("\n")[:-1]


def _own_cgroup() -> str:
    """The folder of this process's own control group in version 2."""
    mounts = [line.split(" - ") for line in _lines("/proc/self/mountinfo")]
    points = [left.split()[4] for left, right in mounts if right.split()[0] == "cgroup2"]
    groups = [line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::")]
    if not points or not groups:
        raise CommandNotIsolated(
            "isolation 'cgroup' needs control groups of version 2, and none are mounted here"
        )
    return f"{points[0].rstrip('/')}/{groups[0].strip('/')}".rstrip("/")


_FOREGROUND = {
    "redis-server": "--daemonize no",
    "nginx": "-g 'daemon off;'",
    "httpd": "-D FOREGROUND",
    "apache2": "-D FOREGROUND",
    "sshd": "-D",
    "php-fpm": "--nodaemonize",
    "memcached": "no -d",
    "pg_ctl": "the program postgres itself",
}


def _advice(name: str, left: int) -> str:
    """How a program is kept from going to the background, if it has."""
    if not left:
        return ""
    usual = (
        f"{name} needs {_FOREGROUND[name]}" if name in _FOREGROUND else "try --foreground, --nodaemon or -D"
    )
    processes = "process" if left == 1 else "processes"
    return f" and left {left} {processes} behind; it must stay in the foreground to be supervised: {usual}"
