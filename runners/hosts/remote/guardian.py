"""The guardian: the process on the far machine that starts a context process, ends it, and stands between it and the connection.

A launcher, `SshHost` or `RayHost`, sends the source of this module to a Python there, which runs it; no code imports it for use on the
near machine.
It imports the standard library alone, and older Pythons must compile it, because it reports what is missing there. It has one
thread, since the context process is forked from it.

Both ends exchange records: the number of a kind, four bytes of length, and the content. The near end sends one `OPEN`, then
`DATA`, `KILL` and `ANSWER`. The guardian sends `BORN` or `REFUSED`, then `DATA`, `OUTPUT`, `ERRORS`, `ASK`, and at last `ENDED`.

The lease: the guardian asks with a number, and an answer extends the lease to `lease` seconds after *the question*. So an answer
that was delayed on its way extends nothing: that many seconds after its last answer the near end knows that the lease is over,
whatever is still on the way.

The guardian ends the context process also when the process that started it ends, such as the actor of Ray, since what that one
held, such as a GPU, is then given to others.

A fork server of this machine may take the place of the start: a process that has imported what the runner needs, and that serves all
contexts of one runner (`runners.hosts.node`). A process of this module then passes its connection on and waits. The server forks the
guardian, and that one the context process.

After the end of a poisoned context a process that is forked for this asks NVML about its device, because a call into a driver may not
return (D4). The guardian serves the connection meanwhile, and reports the answer with the end.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if (
    TYPE_CHECKING or __name__ != "__main__"
):  # in the program of the far side the text of that module is in front of this one
    from runners.hosts.remote.seeking import READY, connected, in_memory, name_of, started, surroundings

HEADER = struct.Struct(">BI")
"""The kind of a record and the length of its content."""
NUMBER = struct.Struct(">Q")
"""The content of `ASK` and `ANSWER`."""

OPEN, DATA, KILL, ANSWER, BORN, REFUSED, OUTPUT, ERRORS, ASK, ENDED, COLD = range(1, 12)
"""`OPEN`: what to start, in JSON. `DATA`: bytes between session and context process. `KILL`: kill the context process, which is
poisoned if there is any content. `BORN`: its pid. `REFUSED`: why none can be started. `OUTPUT` and `ERRORS`: what it wrote. `ENDED`: how it ended, in JSON, and
under `nvml` what NVML says of its device, if it was asked: a text if it cannot be used again, null if there was no answer in time.
`COLD`: why no fork server took part in the start, in JSON."""

QUESTIONS = 4
"""How often the guardian asks during a lease."""

LINES = 4096
"""Bytes of the longest record of what a context process writes: the near end logs it line by line."""

_READ = 65536
_FULL = 2**20
"""Unsent bytes to the near end beyond which nothing more is read from the context process."""
_LAST_READS = 256
_TEXT = 4096
"""Bytes of the longest text that a process of ours reports."""
_ANSWER = 2.0
"""Seconds that a fork server that has preloaded has for its first word."""
LATE, FAILED, LOST = "late", "failed", "lost"
"""Why no fork server took part: it still preloads, it cannot, or it does not answer."""
_PATIENCE = 1.0
"""Seconds for processes that the context process has started to die of their SIGKILL."""
_STREAMS = {OUTPUT, ERRORS}
_SUBREAPER, _NAME, _DEATH_SIGNAL = 36, 15, 1
"""Options of prctl."""
_LEAST = (3, 11)
_FAILED, _SETTLED = 70, 69
"""The exit status after a failure, and after one that is no poison; as in `runners.hosts.process.child.loop`."""


def main() -> None:
    """Serve one context process over standard input and output, then exit."""
    guard(Guardian())


def guard(guardian: Guardian) -> NoReturn:
    """Serve, then exit at once, since everything is sent."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the near end and the lease alone decide when a context ends
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    guardian.run()
    os._exit(0)


def now() -> float:
    """The time in seconds. It goes on while the machine sleeps, so that a lease does not outlive a suspended machine."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Guardian:
    """The two connections, the context process and the lease.

    `starter` is readable when the process that has started this one ends; None is our parent.
    """

    def __init__(self, starter: int | None = None) -> None:
        self._poll = select.poll()
        self._watch(0)
        self._starter = -1
        with suppress(OSError):  # it is outside of our namespace of pids, or dead
            self._starter = os.pidfd_open(os.getppid()) if starter is None else starter
            self._watch(self._starter)
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self._in = bytearray()  # from the near end, not parsed yet
        self._out = bytearray()  # to the near end, not sent yet
        self._hung_up = False  # the near end has closed the connection
        self._over = False  # nothing follows but what is not sent yet
        self._lease = 60.0  # until the near end has named its own
        self._until = now() + self._lease
        self._asked: dict[int, float] = {}  # the time of each question that is not answered
        self._number = 0
        self._next_question = float("inf")
        self._pid = 0  # of the context process; 0 if there is none
        self._pidfd = -1
        self._connection: socket.socket | None = None
        self._to_context = bytearray()
        self._pipes: dict[
            int, int
        ] = {}  # by descriptor, the kind of record for what the context process writes
        self._report = -1
        self._reported = bytearray()
        self._order: dict[str, Any] = {}
        self._ordered = (
            False  # the end of the context process says nothing about its device, since it was killed
        )
        self._poisoned = False  # the near end says so
        self._fate: dict[str, Any] = {}  # how the context process has ended
        self._examiner = 0  # the pid of what asks NVML; 0 if nothing does
        self._answer = -1  # its pipe
        self._answered_by = 0.0
        self._text = bytearray()
        self._server: socket.socket | None = None  # a connection to a fork server
        self._seeking = False  # it has not reported yet that it has preloaded
        self._sought_until = 0.0
        self._late = "", ""  # why it takes no part if that is over

    def run(self) -> None:
        """Serve until the context process has ended and the near end knows it, has hung up, or has let the lease lapse."""
        while True:
            if self._hung_up or now() >= self._until:
                if self._pid:
                    self._ordered = True
                    self._end_context()
                return
            if self._over and not self._out:
                return
            if self._seeking and now() >= self._sought_until:
                self._start_cold(*self._late)
            if self._examiner and now() >= self._answered_by:
                self._end_examination()
                self._report_end(nvml=None)
            self._ask()
            self._wait()

    # --- the near end

    def _send(self, kind: int, content: bytes) -> None:
        self._out += HEADER.pack(kind, len(content)) + content

    def _ask(self) -> None:
        if now() < self._next_question:
            return
        self._number += 1
        self._asked[self._number] = now()
        self._next_question = now() + self._lease / QUESTIONS
        self._send(ASK, NUMBER.pack(self._number))

    def _answered(self, number: int) -> None:
        asked = self._asked.get(number)
        if asked is not None:
            self._until = max(self._until, asked + self._lease)
            self._asked = {later: at for later, at in self._asked.items() if later > number}

    def _wait(self) -> None:
        """Wait for something to do, and do it."""
        reads = select.POLLIN if len(self._out) < _FULL else 0
        for descriptor in self._pipes:
            self._poll.register(descriptor, reads)
        if self._connection is not None:
            self._poll.register(self._connection, reads | (select.POLLOUT if self._to_context else 0))
        self._watch(1, select.POLLOUT if self._out else 0)
        until = min(self._until, self._next_question)
        if self._examiner:
            until = min(until, self._answered_by)
        if self._seeking:
            until = min(until, self._sought_until)
        seconds = until - now()
        for descriptor, events in self._poll.poll(max(0, seconds * 1000 + 1)):
            self._serve(descriptor, events)

    def _watch(self, descriptor: int, events: int = select.POLLIN) -> None:
        self._poll.register(descriptor, events)

    def _serve(self, descriptor: int, events: int) -> None:
        if descriptor == 0:
            self._read_near()
        elif descriptor == 1:
            self._write_near(events)
        elif descriptor == self._report:
            self._read_report()
        elif descriptor in self._pipes:
            self._read_pipe(descriptor)
        elif descriptor == self._pidfd:
            self._end_context()
        elif descriptor == self._starter:
            self._be_left()
        elif descriptor == self._answer:
            self._read_answer()
        elif self._server is not None and descriptor == self._server.fileno():
            self._read_server()
        elif self._connection is not None and descriptor == self._connection.fileno():
            self._exchange(events)

    def _be_left(self) -> None:
        """The process that started this one is dead."""
        self._poll.unregister(self._starter)
        if self._pid:
            self._ordered = True
            self._end_context()
        elif not self._over and not self._examiner:  # nothing is left to be said
            self._hung_up = True

    def _read_near(self) -> None:
        with suppress(BlockingIOError):
            data = _read(0)
            self._hung_up = self._hung_up or not data
            self._in += data
        while len(self._in) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._in)
            end = HEADER.size + length
            if len(self._in) < end:
                return
            content = bytes(self._in[HEADER.size : end])
            del self._in[:end]
            self._obey(kind, content)

    def _obey(self, kind: int, content: bytes) -> None:
        if kind == OPEN:
            self._open(json.loads(content.decode()))
        elif kind == DATA:
            self._to_context += content
            self._write_context()
        elif kind == KILL:
            self._ordered = True
            self._poisoned = self._poisoned or bool(content)
            self._kill()
            if self._seeking:  # there will be no context process
                self._seeking = False
                self._fate = {"killed": True, "status": int(signal.SIGKILL)}
                self._report_end()
        elif kind == ANSWER:
            self._answered(NUMBER.unpack(content)[0])

    def _write_near(self, events: int) -> None:
        if events & (select.POLLERR | select.POLLHUP):
            self._hung_up = True
            return
        try:
            del self._out[: os.write(1, self._out[:_READ])]
        except BlockingIOError:
            pass
        except OSError:  # it is closed, or the network says that its machine is gone
            self._hung_up = True

    # --- the context process

    def _open(self, order: dict[str, Any]) -> None:
        self._order = order
        self._lease = order["lease"]
        self._until = now() + self._lease
        self._next_question = now()
        if sys.version_info < _LEAST:
            self._send(
                REFUSED, f"it has Python {sys.version.split()[0]}, and 3.11 or later is needed".encode()
            )
            self._over = True
        elif order["fork"] is None:
            self._start()
        else:
            self._seek_server(order["fork"])

    def _start(self) -> None:
        """Fork the context process."""
        libc = ctypes.CDLL(None)
        libc.prctl(_NAME, b"runners:guard", 0, 0, 0)
        libc.prctl(_SUBREAPER, 1, 0, 0, 0)  # what the context process starts and leaves comes to us
        ours, theirs = socket.socketpair()
        pipes = {kind: os.pipe() for kind in sorted(_STREAMS)}
        self._report, report = os.pipe()
        guardian = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.setsid()
                nothing = os.open(os.devnull, os.O_RDWR)
                for number, descriptor in enumerate((nothing, pipes[OUTPUT][1], pipes[ERRORS][1])):
                    os.dup2(descriptor, number)
                for descriptor in (nothing, *pipes[OUTPUT], *pipes[ERRORS], ours.detach(), self._report):
                    os.close(descriptor)
                self._leave_others()
                _be_context(self._order, theirs.detach(), report, guardian)
            finally:
                os._exit(_FAILED)
        self._pidfd = os.pidfd_open(self._pid)
        for descriptor in (report, *(pipes[kind][1] for kind in pipes)):
            os.close(descriptor)
        theirs.close()
        ours.setblocking(False)
        self._connection = ours
        self._pipes = {pipes[kind][0]: kind for kind in pipes}
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)
        self._watch(self._report)
        self._watch(self._pidfd)

    def _leave_others(self) -> None:
        """In a child: close what shows to others that the guardian lives."""
        if self._starter >= 0:
            os.close(self._starter)
        if self._server is not None:
            self._server.close()

    # --- the fork server

    def _seek_server(self, fork: dict[str, Any]) -> None:
        """Have a fork server of this machine take over, if one can in time; start it for later if there is none."""
        name, patience = name_of(fork["name"]), fork["patience"]
        try:
            self._server = None if patience else connected(name + READY)
            self._seeking = bool(patience or self._server)
            self._late = LATE, "the fork server there is still preloading"
            if self._server is not None:
                self._late = LOST, "the fork server there does not answer"
            else:
                self._server = connected(name)
            if self._server is None:
                self._server = started(name, self._order)
                if not patience:
                    self._late = LATE, "there is no fork server there; one is preloaded meanwhile"
        except OSError as error:
            self._start_cold(LOST, f"the fork server there cannot be used: {error}")
            return
        self._watch(self._server.fileno())
        self._sought_until = now() + (patience or _ANSWER)
        if not self._seeking:
            self._start_cold(*self._late)

    def _start_cold(self, kind: str, why: str) -> None:
        """Start without a fork server. If one is there, it counts this guardian as a client, and may still say that it cannot preload."""
        self._seeking = False
        self._report_cold(kind, why)
        self._start()

    def _report_cold(self, kind: str, why: str) -> None:
        self._send(COLD, json.dumps({"kind": kind, "why": why}).encode())

    def _read_server(self) -> None:
        message = self._server_message()
        if message is None:
            return
        if self._seeking and "ready" in message:
            self._hand_over()
        elif "ready" not in message:
            kind = FAILED if "failed" in message else LOST
            why = message.get("failed", "it has ended")
            report = self._start_cold if self._seeking else self._report_cold
            report(kind, f"the fork server there could not preload: {why}")
        if self._server is not None:  # it has nothing more to say
            self._poll.unregister(self._server)

    def _server_message(self) -> dict[str, Any] | None:
        """Its message, empty once it is gone; None if it has sent nothing."""
        assert self._server is not None
        try:
            data = self._server.recv(_READ)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        return json.loads(data) if data else {}

    def _hand_over(self) -> None:
        """Pass the connection on to the fork server, and wait for the end of the guardian that it forks.

        That one says itself that it is there. So without that word no process has ours, and a cold start may follow.
        """
        assert self._server is not None
        self._seeking = False
        memory = in_memory(
            {
                "order": self._order,
                **surroundings(),
                "in": self._in.hex(),
                "out": self._out.hex(),
                "to_context": self._to_context.hex(),
                "until": self._until,
                "asked": list(self._asked.items()),
                "number": self._number,
                "next_question": self._next_question,
            }
        )
        try:
            socket.send_fds(self._server, [b"take"], [0, 1, 2, memory])
        except OSError as error:
            self._start_cold(LOST, f"the fork server there takes no request: {error}")
            return
        finally:
            os.close(memory)
        watched = [self._server.fileno(), *([self._starter] if self._starter >= 0 else [])]
        patience = min(
            _ANSWER, self._lease / 2
        )  # nothing is asked meanwhile, and a near end that hears nothing loses us
        found = select.select(watched, [], [], patience)[0]
        if self._starter in found:
            self._hung_up = True
            return
        if not found:  # from here on a guardian that it forks cannot say that it is there, and ends
            self._server.shutdown(socket.SHUT_RD)
        message = self._server_message() or {}
        if "forked" in message:
            _be_replaced(watched)
        why = message.get("failed", "it has ended" if found else "it does not answer")
        self._start_cold(LOST, f"the fork server there could not fork: {why}")

    def resume(self, state: dict[str, Any]) -> None:
        """Go on where the process was that has passed its connection on."""
        self._order = state["order"]
        self._lease = self._order["lease"]
        for buffer, name in ((self._in, "in"), (self._out, "out"), (self._to_context, "to_context")):
            buffer.extend(bytes.fromhex(state[name]))
        self._until, self._number = state["until"], state["number"]
        self._asked, self._next_question = dict(state["asked"]), state["next_question"]
        self._start()

    # --- what comes of the context process

    def _read_report(self) -> None:
        """The context process reports why it cannot start; nothing, and the end of the pipe, if it can."""
        data = os.read(self._report, _READ)
        self._reported += data
        if data:
            return
        self._poll.unregister(self._report)
        os.close(self._report)
        self._report = -1
        if self._reported:
            self._send(REFUSED, bytes(self._reported))
        else:
            self._send(BORN, b"%d" % self._pid)

    def _exchange(self, events: int) -> None:
        if events & select.POLLOUT:
            self._write_context()
        if events & ~select.POLLOUT:
            self._read_context()

    def _write_context(self) -> None:
        if self._connection is None:
            return
        try:
            del self._to_context[: self._connection.send(self._to_context)]
        except BlockingIOError:
            pass
        except OSError:  # it is dead, and its pidfd reports that
            self._to_context.clear()

    def _read_context(self) -> bool:
        """Pass on what the context process has sent; returns whether there may be more."""
        assert self._connection is not None
        try:
            data = self._connection.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._send(DATA, data)
        else:
            self._poll.unregister(self._connection)
            self._connection.close()
            self._connection = None
        return bool(data)

    def _read_pipe(self, descriptor: int) -> bool:
        """Pass on what the context process has written; returns whether there may be more."""
        try:
            data = os.read(descriptor, LINES)
        except BlockingIOError:
            return False
        if data:
            self._send(self._pipes[descriptor], data)
        else:
            self._poll.unregister(descriptor)
            os.close(descriptor)
            del self._pipes[descriptor]
        return bool(data)

    def _kill(self) -> None:
        if self._pid:
            with suppress(OSError):  # it does not lead its group yet
                os.killpg(self._pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _end_context(self) -> None:
        """Kill the context process and all that it has started, pass on its last words, and report how it ended.

        Its group is killed before it is reaped: until then no other process can get its number.
        """
        self._kill()
        select.select([self._pidfd], [], [])  # the kernel has released what it held
        code = _exit_code(self._pid)
        self._poll.unregister(self._pidfd)
        os.close(self._pidfd)
        self._pid, self._pidfd = 0, -1
        _kill_children()
        while self._report >= 0:
            self._read_report()
        for _ in range(_LAST_READS):
            more = self._connection is not None and self._read_context()
            if not any([more, *(self._read_pipe(descriptor) for descriptor in list(self._pipes))]):
                break
        self._fate = {
            "killed": code is not None and code < 0,
            "status": None if code is None else abs(code),
        }
        if self._is_suspect(code):
            self._examine()
        else:
            self._report_end()

    def _report_end(self, **nvml: str | None) -> None:
        self._over = True
        self._send(ENDED, json.dumps({**self._fate, **nvml}).encode())

    # --- the device

    def _is_suspect(self, code: int | None) -> bool:
        """Whether NVML is to be asked about the device: the near end says that the context is poisoned, or could not say it in time."""
        if self._order["nvml"] is None or self._reported:
            return False
        return self._poisoned or not (self._ordered or code in (0, _SETTLED))

    def _examine(self) -> None:
        """Have NVML asked about the device. If no process is left for that, nothing is known of it."""
        self._answer, end = os.pipe()
        guardian = os.getpid()
        try:
            self._examiner = os.fork()
        except OSError:
            self._report_end()
            return
        if self._examiner == 0:
            try:
                nothing = os.open(os.devnull, os.O_RDWR)
                for number in range(3):  # it may hang for ever, and must not keep the connection open
                    os.dup2(nothing, number)
                self._leave_others()
                _be_examiner(self._order, end, guardian)
            finally:
                os._exit(0)
        os.close(end)
        self._answered_by = now() + self._order["nvml"]
        os.set_blocking(self._answer, False)
        self._watch(self._answer)

    def _read_answer(self) -> None:
        try:
            data = os.read(self._answer, _READ)
        except BlockingIOError:  # the event was of a descriptor that had this number before
            return
        self._text += data
        if not data:
            self._end_examination()
            self._report_end(nvml=self._text.decode(errors="replace"))

    def _end_examination(self) -> None:
        """Wait for what asks NVML no longer. It ends with this process, or when the driver lets it."""
        self._poll.unregister(self._answer)
        os.close(self._answer)
        self._examiner, self._answer = 0, -1


def _be_replaced(watched: list[int]) -> NoReturn:
    """Wait for the end of the guardian that has our connection, or of what has started us: the guardian ends after this process."""
    ctypes.CDLL(None).prctl(_NAME, b"runners:boot", 0, 0, 0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)
    select.select(watched, [], [])
    os._exit(0)


def _read(descriptor: int) -> bytes:
    """What has come; nothing at the end of the connection, however it has ended."""
    try:
        return os.read(descriptor, _READ)
    except BlockingIOError:
        raise
    except OSError:
        return b""


def _exit_code(pid: int) -> int | None:
    try:
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return None
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _kill_children() -> None:
    """Kill and reap the processes that were left to us, and those that they leave in turn."""
    ours = Path(f"/proc/self/task/{os.getpid()}/children")
    end = now() + _PATIENCE
    while now() < end:
        with suppress(OSError):  # the kernel lists no children, or one has ended meanwhile
            for pid in ours.read_text().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        time.sleep(0.001)  # no event tells of the end of unknown processes


def _be_context(order: dict[str, Any], connection: int, report: int, guardian: int) -> None:
    """Run as the context process, unless the packages here are others than the near end has."""
    _die_with(guardian)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _find_packages(order)
    why = refusal(order)
    if why:
        os.write(report, why.encode("utf-8", "backslashreplace")[:_TEXT])
        os._exit(_FAILED)
    os.close(report)
    importlib.import_module("runners.hosts.process.child.life").be_context(connection, guardian)


def _be_examiner(order: dict[str, Any], end: int, guardian: int) -> None:
    """Ask NVML about the device, and write why it cannot be used again, if it cannot. An exception says nothing about it."""
    _die_with(guardian)
    ctypes.CDLL(None).prctl(_NAME, b"runners:nvml", 0, 0, 0)
    _find_packages(order)
    trouble = importlib.import_module("runners.diagnosis.hardware").trouble_of(order["device"])
    os.write(end, (trouble or "").encode("utf-8", "backslashreplace")[:_TEXT])


def _die_with(guardian: int) -> None:
    if ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0) or os.getppid() != guardian:
        os._exit(_FAILED)


def _find_packages(order: dict[str, Any]) -> None:
    sys.path[:] = [*order["path"], *(entry for entry in sys.path if entry)]  # not the folder of the login


def refusal(order: dict[str, Any]) -> str | None:
    """Why no context can run here."""
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


if __name__ == "__main__":
    main()
