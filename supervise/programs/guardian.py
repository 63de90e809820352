"""The guardian of one program: a small process of its own, so that nothing of the program is left, whatever dies.

It is started as `python -I -S guardian.py CONNECTION ORDER PARENT PROGRAM`, imports the standard library alone, and has one
thread. CONNECTION is a socket to the parent, ORDER a file with the order as JSON, PARENT the pid of the parent; PROGRAM is only
for the reader of `ps`.

It is two processes, the reserve and below it the guardian.

- The guardian starts the program in a session of its own. It ends when everything below it has ended.
- If the parent asks for it, or is dead, it stops the program by the steps of the order: signals to the main process, each
  followed by some seconds, and then SIGKILL to everything. The parent is dead when its socket or its pidfd says so: other
  processes that it has forked may hold the socket open.
- It is a subreaper, so a process that has lost its parent, as every daemon has, is below it and is found.
- The reserve waits for the end of the guardian. If the guardian was killed, all that it leaves is below the reserve, which kills it.
  If the reserve is killed, the guardian ends everything.
- If both are killed, the kernel kills the main process, and the parent kills the processes of its session.

The messages to the parent are objects in JSON, one in each packet: `started` with the pid, and a pidfd beside it; `failed` with
the reason; `ended` with the exit code, negative for a signal, and the number of processes that were left; `lost` if the guardian
or the reserve was killed. Those from the parent are `stop`, `kill`, and `signal` with a number.
"""

from __future__ import annotations

import ctypes
import json
import os
import pwd
import resource
import select
import signal
import socket
import sys
import time
import warnings  # noqa: F401  # pyright: ignore[reportUnusedImport] - `os.execvpe` needs it as a user who may not read the folder of Python.
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_NEW_PIDS, _NEW_USER, _NEW_MOUNTS = 0x20000000, 0x10000000, 0x00020000  # CLONE_NEWPID and so on
_MS_SLAVE_ALL = 0x80000 | 0x4000  # MS_SLAVE | MS_REC
_NO_DEVICES = 0x2 | 0x4 | 0x8  # MS_NOSUID | MS_NODEV | MS_NOEXEC
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_FIRST_FILE = 3  # as sd_listen_fds has it
_SHORTEST, _LONGEST = 0.002, 0.1  # seconds between two looks at processes that were killed and have not ended
_DAY = 86_400.0  # seconds; `poll` counts no more than 24 days, and a step of a stop may have any number of seconds
_UNREACHABLE = ProcessLookupError, PermissionError
"""What a signal raises for a process that has ended, or has become another user's and may not be signalled."""


# --- what /proc knows


class Process(NamedTuple):
    """One line of /proc."""

    state: str
    parent: int
    session: int


def processes() -> dict[int, Process]:
    """All processes that this one can see, by pid."""
    found: dict[int, Process] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - this file imports little, because it is started for each program
        if name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
                found[int(name)] = Process(fields[0].decode(), int(fields[1]), int(fields[3]))
    return found


def below(root: int) -> list[int]:
    """The pids of the living processes below `root`, itself not included."""
    every = processes()
    children: dict[int, list[int]] = {}
    for pid, process in every.items():
        children.setdefault(process.parent, []).append(pid)
    found: list[int] = []
    waiting = list(children.get(root, ()))
    while waiting:
        pid = waiting.pop()
        if every[pid].state not in "ZX":
            found.append(pid)
        waiting += children.get(pid, ())
    return found


def of_session(session: int) -> list[int]:
    """The pids of the living processes of a session. Its number is given to no other process while one of them lives."""
    return [
        pid
        for pid, process in processes().items()
        if process.session == session and process.state not in "ZX"
    ]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - as for `processes`
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123 - as for `processes`
        file.write(text)


def sees_itself() -> bool:
    """Whether /proc shows the processes of this namespace: in a container it may be missing, or that of the system outside."""
    try:
        return int(_read("/proc/self/stat").split()[0]) == os.getpid()
    except OSError:
        return False


def remove_group(group: str) -> None:
    """Remove a control group without processes, with the groups that the program has made in it: the kernel removes empty ones alone.

    Raises:
        OSError: it does not exist, or a process is left.
    """
    found = [group]
    for folder in found:
        with os.scandir(folder) as entries:
            found += [entry.path for entry in entries if entry.is_dir()]
    for folder in reversed(found):  # each after those in it
        os.rmdir(folder)  # noqa: PTH106 - Without pathlib, because this file is started for each program and imports little.


# --- the system calls that Python does not have

_LIBC = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: int) -> None:
    _checked(_LIBC.prctl(option, value, 0, 0, 0), "prctl")


def _unshare() -> None:
    """Enter a new pid namespace, in which the next child is process 1; without privileges, in a user namespace of its own."""
    if os.geteuid() == 0:
        _checked(_LIBC.unshare(_NEW_PIDS), "unshare")
        return
    user, group = os.geteuid(), os.getegid()
    _checked(_LIBC.unshare(_NEW_PIDS | _NEW_USER), "unshare")
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")


def _mount_proc() -> None:
    """Give process 1 and those below it a /proc of their own; where a container forbids it, theirs shows the pids outside."""
    if _LIBC.unshare(_NEW_MOUNTS) == 0 and _LIBC.mount(b"none", b"/", None, _MS_SLAVE_ALL, None) == 0:
        _LIBC.mount(b"proc", b"/proc", b"proc", _NO_DEVICES, None)


# --- the start of the program


class _SetupError(Exception):
    """The program was not started: the step that failed, and why."""

    def __init__(self, step: str, why: str) -> None:
        super().__init__(why)
        self.step = step


def _become(order: dict[str, Any], parent: int) -> NoReturn:
    """The rest of the life of a forked child: become the program, or raise `_SetupError`."""
    step = "session"
    try:
        os.setsid()
        step = "isolation"
        if order["cgroup"]:
            _write(f"{order['cgroup']}/cgroup.procs", "0")
        step = "signals"
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            with suppress(OSError):  # the C library keeps two for itself
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for step, (soft, hard) in order["limits"].items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{step.upper()}"), (soft, hard))
        step = "umask"
        if order["umask"] is not None:
            os.umask(order["umask"])
        step = "user"
        _change_user(order)
        step = "cwd"
        if order["cwd"] is not None:
            os.chdir(order["cwd"])
        step = "guardian"
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of the user, which would undo it
        if os.getppid() != parent:
            os._exit(1)  # the guardian has died before the line above
        step = "files"
        _hand_over(order)
        step = "program"
        os.execvpe(order["argv"][0], order["argv"], order["env"])  # noqa: S606 - no shell is wanted
    except Exception as problem:
        why = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise _SetupError(step, why) from problem


def _change_user(order: dict[str, Any]) -> None:
    user: str | int | None = order["user"]
    if user is None:
        return
    try:
        entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
    except KeyError:
        raise _SetupError("user", "there is no such user") from None
    if (os.geteuid(), os.getegid()) != (entry.pw_uid, entry.pw_gid):
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    for name, value in (("HOME", entry.pw_dir), ("USER", entry.pw_name), ("LOGNAME", entry.pw_name)):
        if name not in order["given"]:
            order["env"][name] = value


def _hand_over(order: dict[str, Any]) -> None:
    """Put the files at 3, 4, …; in two rounds, since one of them may stand where another one belongs."""
    files: list[int] = order["files"]
    above = _FIRST_FILE + len(files)
    high = [_duplicate(file, above) for file in files]
    for number, file in enumerate(high, _FIRST_FILE):
        os.dup2(file, number)
    if files:
        order["env"].update(LISTEN_FDS=str(len(files)), LISTEN_PID=str(os.getpid()))


def _duplicate(file: int, least: int) -> int:
    import fcntl  # noqa: PLC0415 - few programs have files

    return fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, least)


def _forked(order: dict[str, Any]) -> int:
    """Fork the program, and return its pid once it runs. Raises `_SetupError` if it does not."""
    parent, (reading, writing) = os.getpid(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _become(order, parent)
        except BaseException as problem:  # noqa: BLE001 - after any exception the forked child only reports and ends
            step = problem.step if isinstance(problem, _SetupError) else "program"
            os.write(writing, json.dumps([step, str(problem)]).encode())
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123 - it is a descriptor
        report = pipe.read()  # ends when exec closes the other end
    if report:
        os.waitpid(pid, 0)
        raise _SetupError(*json.loads(report))
    return pid


# --- process 1 of a namespace


def _be_init(order: dict[str, Any], report: socket.socket) -> NoReturn:
    """The life of process 1 of a pid namespace: start the program, reap, report its end, and wait to be killed.

    When it ends, the kernel kills all processes of the namespace; and it ends with the guardian.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    report.send(
        b"{}"
    )  # it fails if the guardian has died before the line above: nothing else holds the other end
    _mount_proc()
    try:
        pid = _forked(order)
        pidfd = os.pidfd_open(pid)
    except (_SetupError, OSError) as problem:
        step = problem.step if isinstance(problem, _SetupError) else "guardian"
        report.send(json.dumps({"failed": [step, str(problem)]}).encode())
        os._exit(1)
    _send_with(report, {}, pidfd)
    while True:
        reaped, status = os.wait()
        if reaped == pid:
            break
    report.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
    with suppress(ChildProcessError):
        while os.wait():
            pass
    while True:
        signal.pause()


def _send_with(connection: socket.socket, message: dict[str, Any], descriptor: int) -> None:
    socket.send_fds(connection, [json.dumps(message).encode()], [descriptor])


# --- the guardian


class Guardian:
    """The state of the guardian while its program runs."""

    def __init__(self, connection: socket.socket, order: dict[str, Any], parent: int, reserve: int) -> None:
        self._connection = connection
        self._order = order
        self._parent = parent
        self._reserve = reserve
        self._program = self._pidfd = self._init = 0
        self._report: socket.socket | None = None
        self._code: int | None = None  # how the program has ended, once it has
        self._steps: Iterator[tuple[int, float]] | None = None
        self._due: float | None = None  # when the next step is due
        self._kill = self._lost = False
        self._poll = select.poll()
        self._sources: dict[int, Callable[[], None]] = {}

    def run(self) -> None:
        """Start the program, follow it, and leave nothing of it."""
        try:
            self._start()
        except (_SetupError, OSError) as problem:
            self._end_all()
            step = problem.step if isinstance(problem, _SetupError) else "guardian"
            self._tell({"failed": [step, str(problem)]})
            return
        try:
            _send_with(self._connection, {"started": self._program}, self._pidfd)
        except OSError:
            self._stop()  # the parent is dead
        try:
            self._follow()
        finally:
            left = self._end_all()
            self._tell({"lost": True} if self._lost else {"ended": self._code, "left": left})

    # --- the start

    def _start(self) -> None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        try:
            if self._order["cgroup"]:
                os.mkdir(self._order["cgroup"])  # noqa: PTH102 - as for `processes`
            if self._order["isolation"] == "namespace":
                _unshare()
        except OSError as problem:
            raise _SetupError("isolation", str(problem.strerror)) from problem
        if self._order["isolation"] == "namespace":
            self._start_in_namespace()
        else:
            self._program = _forked(self._order)
            self._pidfd = os.pidfd_open(self._program)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.signal(signal.SIGCHLD, _nothing)  # it wakes the poll below
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self._watch(reading, lambda: self._reap(reading))
        self._reap(reading)  # the program may have ended before the handler was set
        self._watch(self._connection.fileno(), self._listen)
        with suppress(ProcessLookupError):  # the connection says that it is dead
            self._watch(os.pidfd_open(self._parent), self._orphaned)
        self._watch(os.pidfd_open(self._reserve), self._without_reserve)
        if os.getppid() != self._reserve:
            self._without_reserve()

    def _start_in_namespace(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._init = os.fork()
        if self._init == 0:
            ours.close()
            self._connection.close()
            try:
                _be_init(self._order, theirs)
            finally:
                os._exit(1)
        theirs.close()
        self._report = ours
        ours.recv(100)
        data, descriptors, _, _ = socket.recv_fds(ours, 100_000, 1)
        if not descriptors:
            raise _SetupError(*(json.loads(data)["failed"] if data else ("guardian", "process 1 has died")))
        self._pidfd = descriptors[0]
        self._program = _pid_of(self._pidfd)
        self._watch(ours.fileno(), self._reported)

    def _watch(self, descriptor: int, call: Callable[[], None]) -> None:
        self._sources[descriptor] = call
        self._poll.register(descriptor, select.POLLIN)

    # --- while it runs

    def _follow(self) -> None:
        while self._code is None and not self._kill:
            wait = _DAY if self._due is None else min(max(0.0, self._due - time.monotonic()), _DAY)
            for descriptor, _ in self._poll.poll(wait * 1000):
                if descriptor in self._sources:  # an earlier one of these may have removed it
                    self._sources[descriptor]()
            if self._due is not None and time.monotonic() >= self._due:
                self._step()

    def _reap(self, reading: int) -> None:
        with suppress(BlockingIOError):
            os.read(reading, 4096)
        self._reap_all()

    def _reap_all(self) -> bool:
        """Reap all that are dead. Returns whether others are left."""
        try:
            while (end := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)) is not None:
                if end.si_pid == self._program and not self._init:
                    self._code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
        except ChildProcessError:
            return False
        return True

    def _reported(self) -> None:
        """Process 1 of the namespace reports how the program has ended; if it is dead, so is the program."""
        assert self._report is not None
        data = self._report.recv(1000)
        self._forget(self._report.fileno())
        self._code = json.loads(data)["code"] if data else -signal.SIGKILL

    def _listen(self) -> None:
        """Take one message of the parent. A reset comes from a parent that died with unread messages of ours."""
        try:
            data = self._connection.recv(1000)
        except OSError:
            data = b""
        word, _, number = data.decode().partition(" ")
        if word == "kill":
            self._kill = True
        elif word == "signal":
            self._signal(int(number))
        elif word == "stop":
            self._stop()
        else:
            self._orphaned()

    def _orphaned(self) -> None:
        """The parent is dead: watch for it no more, and stop the program."""
        for descriptor in [
            each for each, call in self._sources.items() if call in (self._listen, self._orphaned)
        ]:
            self._forget(descriptor)
        self._stop()

    def _without_reserve(self) -> None:
        """Nothing would be left to clean up after this process: end everything at once."""
        self._kill = self._lost = True

    def _forget(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._sources[descriptor]

    # --- its end

    def _stop(self) -> None:
        if self._steps is None:
            self._steps = iter(self._order["stop"])
            self._step()

    def _step(self) -> None:
        step = next(self._steps or iter(()), None)
        if step is None:
            self._kill = True
            return
        number, seconds = step
        self._due = time.monotonic() + seconds
        self._signal(number)
        self._signal(signal.SIGCONT)  # a program that is stopped would not see the first one

    def _signal(self, number: int) -> None:
        with suppress(*_UNREACHABLE):
            signal.pidfd_send_signal(self._pidfd, number)

    def _end_all(self) -> int:
        """Kill everything below this process, and return when all of it has ended: how many processes outlived the program."""
        left = len(set(below(os.getpid())) - {self._program, self._init})
        group = self._order["cgroup"]
        if self._program and self._code is None and not self._init:
            with suppress(*_UNREACHABLE):
                os.killpg(self._program, signal.SIGKILL)  # at once, so that none can fork meanwhile
        if group:
            with suppress(OSError):  # it was not made
                _write(f"{group}/cgroup.kill", "1")
        _end_below(self._reap_all)
        if group:
            with suppress(OSError):  # as above; or it is busy still, and the parent removes it
                remove_group(group)
        if self._code is None:
            self._code = -signal.SIGKILL
        return left

    def _tell(self, message: dict[str, Any]) -> None:
        with suppress(OSError):  # the parent is dead
            self._connection.send(json.dumps(message).encode())


def _end_below(reap_all: Callable[[], bool]) -> None:
    """Kill everything below this process, which is a subreaper; return when all of it has ended.

    One that is no child cannot be waited for. It becomes one when its parent has ended, so the time between two looks is short.
    One that may not be killed, because it has become another user's, is waited for until it ends by itself.
    """
    wait = _SHORTEST
    while reap_all():
        for pid in below(os.getpid()):
            with suppress(*_UNREACHABLE):
                os.kill(pid, signal.SIGKILL)
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST)


def _reap_all() -> bool:
    """Reap all children that are dead. Returns whether others are left."""
    try:
        while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) is not None:
            pass
    except ChildProcessError:
        return False
    return True


def _be_reserve(guardian: int, connection: socket.socket) -> None:
    """Wait for the end of the guardian. If it was killed, end what it has left, and tell the parent."""
    _, status = os.waitpid(guardian, 0)
    if status:
        _end_below(_reap_all)
        with suppress(OSError):  # the parent is dead
            connection.send(json.dumps({"lost": True}).encode())


def _nothing(_number: int, _frame: object) -> None:
    pass


def _pid_of(pidfd: int) -> int:
    """The pid behind a pidfd, as this process sees it: the one who has opened it may see another number."""
    for line in _read(f"/proc/self/fdinfo/{pidfd}").decode().splitlines():
        name, _, value = line.partition(":")
        if name == "Pid":
            return int(value)
    raise OSError("the kernel does not tell the pid of a pidfd")


def main() -> None:
    """Guard one program."""
    descriptor, order, parent = (int(argument) for argument in sys.argv[1:4])
    with open(order, "rb") as file:  # noqa: PTH123 - it is a descriptor
        file.seek(0)
        orders: dict[str, Any] = json.load(file)
    for each in (descriptor, *orders["files"]):
        os.set_inheritable(each, False)
    connection = socket.socket(fileno=descriptor)
    if not sees_itself():  # by the numbers that it shows, processes of others would be killed
        why = "/proc must show the processes of its namespace, as after `mount -t proc`"
        connection.send(json.dumps({"failed": ["guardian", why]}).encode())
        return
    for number in _IGNORED:  # a service manager may send them to every process of a service at once
        signal.signal(number, signal.SIG_IGN)
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # if the parent ignores it, the kernel would lose every exit status
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    reserve, guardian = os.getpid(), os.fork()
    if guardian:
        _be_reserve(guardian, connection)
    else:
        Guardian(connection, orders, parent, reserve).run()


if __name__ == "__main__":
    main()
