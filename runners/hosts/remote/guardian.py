"""The guardian: the process on the far machine that starts a context process, ends it, and stands between it and the connection.

The near end, an `SshHost` or a `RayHost`, sends the source of this module, behind those of `seeking` and `children`, to a Python there,
which runs them as one program. They import the standard library alone, and older Pythons must compile them, because the guardian reports
what is missing there. It has one thread, since the context process is forked from it.

Both ends exchange records: the number of a kind, four bytes of length, and the content. The near end sends one `OPEN`, then
`DATA`, `KILL` and `ANSWER`. The guardian sends `BORN` or `REFUSED`, then `DATA`, `OUTPUT`, `ERRORS` and `ASK`, and `ENDED` as the last
record. `COLD` may come at any time before that.

The lease: the guardian asks with a number, and an answer extends the lease to `lease` seconds after *the question*. So an answer
that was delayed on its way extends nothing: that many seconds after its last answer the near end knows that the lease is over,
whatever is still on the way.

The guardian ends the context process also when the process that started the guardian ends, such as the actor of Ray, because Ray then
gives the resources of the actor, such as a GPU, to others.

A fork server of this machine may start the context instead: a process that has imported what the runner needs, and that serves all
contexts of one runner (`runners.hosts.node`). The process that runs this program then passes its connection on to the server, and
waits. The server forks another guardian, and that guardian forks the context process.

After the end of a poisoned context the guardian forks a process that asks NVML about the device, because a call into a driver may not
return (D4). The guardian serves the connection meanwhile, and reports the answer with the end of the context.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

# In the program of the far side the texts of these modules are in front of this one.
if TYPE_CHECKING or __name__ != "__main__":
    from runners.hosts.remote.children import (
        FAILED,
        SETTLED,
        be_context,
        be_examiner,
        entitle,
        exit_code,
        kill_children,
        to_nothing,
    )
    from runners.hosts.remote.seeking import READY, connected, in_memory, inherited, name_of, started

HEADER = struct.Struct(">BI")
"""The kind of a record and the length of its content."""
NUMBER = struct.Struct(">Q")
"""The content of `ASK` and `ANSWER`."""

OPEN, DATA, KILL, ANSWER, BORN, REFUSED, OUTPUT, ERRORS, ASK, ENDED, COLD = range(1, 12)
"""`OPEN`: what to start, in JSON. `DATA`: bytes between session and context process. `KILL`: kill the context process; any content says
that it is poisoned. `BORN`: its pid. `REFUSED`: why none can be started. `OUTPUT` and `ERRORS`: what it wrote. `ENDED`: how it ended, in
JSON; and if NVML was asked about its device, its answer under `nvml`: why the device cannot be used again, empty if it can be, null if
the answer did not come in time. `COLD`: why no fork server took part in the start, in JSON."""

QUESTIONS = 4
"""How often the guardian asks during a lease."""

LINES = 4096
"""Bytes of the longest record of what a context process writes: the near end logs it line by line."""

_READ = 65536
_FULL = 2**20
"""Unsent bytes to the near end beyond which nothing more is read from the context process."""
_LAST_READS = 256
DAY = 86_400.0
"""The longest wait, in seconds: `poll` counts no more than 24 days, and a lease may be longer."""
_SERVER_PATIENCE = 2.0
"""Seconds in which a fork server that has preloaded must answer."""
LATE, HOPELESS, LOST = "late", "hopeless", "lost"
"""Why no fork server took part: it has not preloaded yet, it cannot preload, or it does not answer."""
_STREAMS = {OUTPUT, ERRORS}
_SUBREAPER = 36
"""An option of prctl."""
_LEAST = (3, 11)


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

    `starter`: a descriptor that is readable once the process that asked for this guardian has ended; if it is None, that is the parent
    process.
    """

    def __init__(self, starter: int | None = None) -> None:
        self._poll = select.poll()
        self._watch(0)
        self._starter = -1
        with suppress(OSError):  # the parent is outside of our namespace of pids, or dead
            self._starter = os.pidfd_open(os.getppid()) if starter is None else starter
            self._watch(self._starter)
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self._in = bytearray()  # from the near end, not parsed yet
        self._out = bytearray()  # to the near end, not sent yet
        self._hung_up = False  # the near end has closed the connection
        self._over = False  # no record follows those that are not sent yet
        self._lease = 60.0  # until the near end has named its own
        self._until = now() + self._lease
        self._asked: dict[int, float] = {}  # the time of each question that is not answered
        self._number = 0
        self._next_question = float("inf")
        self._pid = 0  # of the context process; 0 if there is none
        self._pidfd = -1
        self._connection: socket.socket | None = None
        self._to_context = bytearray()
        # By descriptor, the kind of record for what the context process writes.
        self._pipes: dict[int, int] = {}
        self._report = -1
        self._reported = bytearray()
        self._order: dict[str, Any] = {}
        # The context process was killed on purpose, so its exit code does not concern its device.
        self._ordered = False
        self._poisoned = False  # as the near end reports
        self._fate: dict[str, Any] = {}  # how the context process has ended
        self._examiner = 0  # the pid of the process that asks NVML; 0 if none does
        self._finding = -1  # its pipe
        self._examined_until = 0.0
        self._found = bytearray()  # what it has written
        self._server: socket.socket | None = None  # a connection to a fork server
        self._seeking = False  # the start waits for its report that it has preloaded
        self._sought_until = 0.0
        self._late = "", ""  # the kind and the reason of the cold start that follows when that time is over

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
            if self._examiner and now() >= self._examined_until:
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
            until = min(until, self._examined_until)
        if self._seeking:
            until = min(until, self._sought_until)
        seconds = min(max(0, until - now()), DAY)
        for descriptor, events in self._poll.poll(seconds * 1000 + 1):
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
        elif descriptor == self._finding:
            self._read_finding()
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
        elif not self._over and not self._examiner:  # no record of an end follows
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
            if self._seeking:  # the context process was not started yet, and never will be
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
        except OSError:  # it is closed, or the network reports that its machine is gone
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
        """Fork the context process, or report why that cannot be done here."""
        try:
            self._fork()
        except OSError as error:
            self._send(REFUSED, f"it cannot start a process: {error}".encode())
            self._over = True

    def _fork(self) -> None:
        """Fork the context process.

        Raises:
            OSError: no process or descriptor is left for it.
        """
        entitle(b"runners:guard")
        # What the context process starts and leaves becomes a child of the guardian.
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair()
        pipes = {kind: os.pipe() for kind in sorted(_STREAMS)}
        self._report, report = os.pipe()
        guardian = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.setsid()
                to_nothing(0)
                os.dup2(pipes[OUTPUT][1], 1)
                os.dup2(pipes[ERRORS][1], 2)
                for descriptor in (*pipes[OUTPUT], *pipes[ERRORS], ours.detach(), self._report):
                    os.close(descriptor)
                self._leave_others()
                be_context(self._order, theirs.detach(), report, guardian)
            finally:
                os._exit(FAILED)
        try:
            self._pidfd = os.pidfd_open(self._pid)
        except OSError:
            self._kill()
            exit_code(self._pid)
            self._pid = 0
            raise
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
        """In a child: close the descriptors from which other processes see that the guardian lives."""
        if self._starter >= 0:
            os.close(self._starter)
        if self._server is not None:
            self._server.close()

    # --- the fork server

    def _seek_server(self, fork: dict[str, Any]) -> None:
        """Have a fork server of this machine take over, if one can in time; start one for later if none runs."""
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
                    self._late = (
                        LATE,
                        "the fork server there does not run; another one is preloaded meanwhile",
                    )
        except OSError as error:
            self._start_cold(LOST, f"the fork server there cannot be used: {error}")
            return
        self._watch(self._server.fileno())
        self._sought_until = now() + (patience or _SERVER_PATIENCE)
        if not self._seeking:
            self._start_cold(*self._late)

    def _start_cold(self, kind: str, why: str) -> None:
        """Start without a fork server.

        The connection to one that preloads stays open: the server counts this guardian as a client, and may report that it cannot preload.
        """
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
            kind = HOPELESS if "failed" in message else LOST
            why = message.get("failed", "it has ended")
            report = self._start_cold if self._seeking else self._report_cold
            report(kind, f"the fork server there could not preload: {why}")
        if self._server is not None:  # it sends no further message
            self._poll.unregister(self._server)

    def _server_message(self) -> dict[str, Any] | None:
        """Its message, empty once it is gone; None if it has sent nothing."""
        assert self._server is not None
        data = _received(self._server)
        if data is None:
            return None
        return json.loads(data) if data else {}

    def _hand_over(self) -> None:
        """Pass the connection on to the fork server, and wait for the end of the guardian that it forks.

        The new guardian itself reports that it runs. Without that report no other process serves this connection, and the start is cold.
        """
        assert self._server is not None
        self._seeking = False
        state = {
            "order": self._order,
            **inherited(),
            "in": self._in.hex(),
            "out": self._out.hex(),
            "to_context": self._to_context.hex(),
            "until": self._until,
            "asked": list(self._asked.items()),
            "number": self._number,
            "next_question": self._next_question,
        }
        try:
            memory = in_memory(state)
            try:
                socket.send_fds(self._server, [b"take"], [0, 1, 2, memory])
            finally:
                os.close(memory)
        except OSError as error:
            self._start_cold(LOST, f"the fork server there gets no request: {error}")
            return
        watched = [self._server.fileno(), *([self._starter] if self._starter >= 0 else [])]
        # The near end gets no question meanwhile, and after a lease without one it counts the connection as lost.
        patience = min(_SERVER_PATIENCE, self._lease / 2)
        found = select.select(watched, [], [], patience)[0]
        if self._starter in found:
            self._hung_up = True
            return
        if not found:  # a guardian that it forks after this cannot report that it runs, and ends
            self._server.shutdown(socket.SHUT_RD)
        message = self._server_message() or {}
        if "forked" in message:
            _be_replaced(watched)
        why = message.get("failed", "it has ended" if found else "it does not answer")
        self._start_cold(LOST, f"the fork server there could not fork: {why}")

    def resume(self, state: dict[str, Any]) -> None:
        """Continue with the state of the process that has passed its connection on."""
        self._order = state["order"]
        self._lease = self._order["lease"]
        for buffer, name in ((self._in, "in"), (self._out, "out"), (self._to_context, "to_context")):
            buffer.extend(bytes.fromhex(state[name]))
        self._until, self._number = state["until"], state["number"]
        self._asked, self._next_question = dict(state["asked"]), state["next_question"]
        self._start()

    # --- from the context process

    def _read_report(self) -> None:
        """The context process reports why it cannot start. If it can, the pipe ends without a report."""
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
        except OSError:  # it is dead; if not, it finds the end of the connection, and ends
            self._to_context.clear()
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _read_context(self) -> bool:
        """Pass on what the context process has sent; returns whether there may be more."""
        assert self._connection is not None
        data = _received(self._connection)
        if data is None:
            return False
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
        """Kill the context process and all that it has started, pass on what they wrote last, and report how it ended.

        Its group is killed before it is reaped: until then no other process can get its number.
        """
        self._kill()
        select.select([self._pidfd], [], [])  # the kernel has released what it held
        code = exit_code(self._pid)
        self._poll.unregister(self._pidfd)
        os.close(self._pidfd)
        kill_children()
        while self._report >= 0:
            self._read_report()
        self._pid, self._pidfd = 0, -1
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
        """Whether NVML is asked about the device: the context is poisoned, as the near end reports, or may be, as its exit code shows."""
        if self._order["nvml"] is None or self._reported:
            return False
        return self._poisoned or not (self._ordered or code in (0, SETTLED))

    def _examine(self) -> None:
        """Fork a process that asks NVML about the device. If that fails, the end is reported without an answer."""
        guardian = os.getpid()
        try:
            self._finding, end = os.pipe()
            self._examiner = os.fork()
        except OSError:
            self._report_end()
            return
        if self._examiner == 0:
            try:
                to_nothing(0, 1, 2)  # it may hang for ever, and must not keep the connection open
                self._leave_others()
                be_examiner(self._order, end, guardian)
            finally:
                os._exit(0)
        os.close(end)
        self._examined_until = now() + self._order["nvml"]
        os.set_blocking(self._finding, False)
        self._watch(self._finding)

    def _read_finding(self) -> None:
        try:
            data = os.read(self._finding, _READ)
        except BlockingIOError:  # the event was of a descriptor that had this number before
            return
        self._found += data
        if not data:
            self._end_examination()
            self._report_end(nvml=self._found.decode(errors="replace"))

    def _end_examination(self) -> None:
        """Stop waiting for NVML. The process that asks it ends with the guardian, or when the driver returns."""
        self._poll.unregister(self._finding)
        os.close(self._finding)
        self._examiner, self._finding = 0, -1


def _be_replaced(watched: list[int]) -> NoReturn:
    """Wait for the end of the guardian that has our connection, or of the process that started this one, then exit.

    The guardian watches this process, and ends after it.
    """
    entitle(b"runners:boot")
    to_nothing(0, 1, 2)
    select.select(watched, [], [])
    os._exit(0)


def _received(connection: socket.socket) -> bytes | None:
    """The bytes that have come, empty at the end of the connection, however it has ended; None if none have come."""
    try:
        return connection.recv(_READ)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _read(descriptor: int) -> bytes:
    """What has come; nothing at the end of the connection, however it has ended."""
    try:
        return os.read(descriptor, _READ)
    except BlockingIOError:
        raise
    except OSError:
        return b""


if __name__ == "__main__":
    main()
