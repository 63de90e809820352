"""A fork server on another machine, from which the guardians of all contexts of one runner are forked there (D15, D16).

The first process that a host starts on the machine starts the server as a program of its own (`remote.seeking`). The server has
imported what the runner needs, has one thread, and uses no device. Its clients are the processes that hosts start there: each passes
on its connection to the near end, and the server forks the guardian that serves it. A guardian does not end with the server. The
server ends when it has had neither client nor guardian for as long as a lease.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import socket
import time
from contextlib import suppress
from typing import Any, NoReturn

from runners.hosts.process import surroundings, wire
from runners.hosts.process.child.forkserver import preload
from runners.hosts.process.child.title import entitle
from runners.hosts.process.wire import Surroundings
from runners.hosts.remote.children import FAILED, exit_code, refusal
from runners.hosts.remote.guardian import DAY, Guardian, guard, now
from runners.hosts.remote.seeking import READY, WAITING, user_of

_PASSED = 4
"""The descriptors that a client passes on: its standard streams, and its state."""
_PAUSE = 0.1
"""Seconds before a connection is accepted again where this process had no free descriptor."""
_LONGEST = 1e9
"""Seconds of the longest timer, since `setitimer` counts no more than 292 years, and a `load_timeout` may be infinite."""


def main(order: dict[str, Any], listener: int) -> NoReturn:
    """Preload, and serve the clients that connect to this socket, until it has had none for as long as a lease."""
    entitle("server")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):  # the process that started it ignores them
        signal.signal(number, signal.SIG_DFL)
    try:
        Server(order, socket.socket(fileno=listener)).run()
    finally:
        os._exit(0)


class Server:
    """Preloads once, then forks a guardian for each client that passes its connection on."""

    def __init__(self, order: dict[str, Any], listener: socket.socket) -> None:
        listener.set_inheritable(False)
        self._order = order
        self._listeners = {listener.fileno(): listener}
        self._clients: dict[int, socket.socket] = {}
        self._guardians: dict[int, int] = {}  # the pid by pidfd
        self._environment = surroundings.environment()
        self._poll = select.poll()

    def run(self) -> None:
        """Serve until it has had neither client nor guardian for as long as a lease."""
        (listener,) = self._listeners.values()
        if why := self._preload_problem(listener.getsockname() + READY.encode()):
            self._refuse(listener, why)
            return
        for descriptor in self._listeners:
            self._poll.register(descriptor, select.POLLIN)
        while found := self._next():
            for descriptor, _ in found:
                self._serve(descriptor)

    def _next(self) -> list[tuple[int, int]]:
        """Wait for what is to be served next; none if it has had neither client nor guardian for as long as a lease."""
        if self._clients or self._guardians:
            return self._poll.poll()
        until = now() + self._order["lease"]
        while (left := until - now()) > 0:
            if found := self._poll.poll(1000 * min(left, DAY)):
                return found
        return []

    def _preload_problem(self, ready: bytes) -> str:
        """Preload, and listen for clients that cannot wait. Returns the reason if that fails, else an empty text.

        A signal of a timer ends a server whose preload hangs.
        """
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, min(self._order["fork"]["timeout"], _LONGEST))
        try:
            if why := refusal(self._order):
                return why
            frame = wire.to_server(base64.b64decode(self._order["fork"]["preload"]))
            assert isinstance(frame, wire.Preload), "an order has a Preload"
            preload(frame)
            second = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            second.bind(ready)
            second.listen(WAITING)
        except Exception as error:  # noqa: BLE001 - Any error is reported to the near end, which starts contexts cold.
            return wire.error_data(error).text
        self._listeners[second.fileno()] = second
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in self._listeners.values():
            each.setblocking(False)
        return ""

    def _refuse(self, listener: socket.socket, why: str) -> None:
        """Report to the clients that wait why no guardian can be forked here."""
        listener.setblocking(False)
        while (client := self._accepted(listener)) is not None:
            self._send(client, failed=why)

    def _accepted(self, listener: socket.socket) -> socket.socket | None:
        """The next client of our own user; None if none has connected, or if this process has no free descriptor.

        In the latter case the listener stays readable, so that without a pause this process would try again all the time.
        """
        try:
            while True:
                client = listener.accept()[0]
                if user_of(client) == os.getuid():
                    client.setblocking(False)
                    return client
                client.close()
        except BlockingIOError:
            pass
        except OSError:
            time.sleep(_PAUSE)
        return None

    def _send(self, client: socket.socket, **message: Any) -> None:
        try:
            client.send(json.dumps(message).encode())
        except OSError:  # it has ended, or would wait in vain: the kernel lacks memory for the message
            client.shutdown(socket.SHUT_RDWR)

    def _serve(self, descriptor: int) -> None:
        if descriptor in self._listeners:
            client = self._accepted(self._listeners[descriptor])
            if client is not None:
                self._clients[client.fileno()] = client
                self._poll.register(client, select.POLLIN)
                self._send(client, ready=True)
        elif descriptor in self._guardians:
            self._poll.unregister(descriptor)
            exit_code(self._guardians.pop(descriptor))
            os.close(descriptor)
        elif descriptor in self._clients:
            self._take(self._clients[descriptor])

    def _take(self, client: socket.socket) -> None:
        """A client has ended, or passes its connection on."""
        data, passed = b"", list[int]()
        with suppress(OSError):
            data, passed, _, _ = socket.recv_fds(client, 64, _PASSED, socket.MSG_CMSG_CLOEXEC)
        try:
            if data:
                self._fork(client, passed)
        except OSError as error:
            self._send(client, failed=f"{error}")
        finally:
            for descriptor in passed:
                os.close(descriptor)
            # After a fork the guardian stands for the client, and holds the other copy of this socket.
            self._poll.unregister(client)
            del self._clients[client.fileno()]
            client.close()

    def _fork(self, client: socket.socket, passed: list[int]) -> None:
        """Fork the guardian of a client. It begins only when its end can be noticed here.

        Raises:
            OSError: it cannot be forked, or this process has no free descriptors.
        """
        if len(passed) != _PASSED:  # the kernel drops descriptors for which this process has no room
            raise OSError("no descriptor is left")
        ours, its = socket.socketpair()
        with ours, its:
            pid = os.fork()
            if pid == 0:
                try:
                    ours.close()
                    if its.recv(1):
                        its.close()
                        self._be_guardian(client, passed)
                finally:
                    os._exit(FAILED)
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                ours.close()  # it ends at once: the client is about to start cold, and two must not serve one connection
                exit_code(pid)
                raise
            self._guardians[pidfd] = pid
            self._poll.register(pidfd, select.POLLIN)
            ours.send(b"1")

    def _be_guardian(self, client: socket.socket, passed: list[int]) -> NoReturn:
        """Leave the server and its other clients, and go on as the guardian of this one, in its surroundings."""
        os.setsid()
        *streams, memory = passed
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
        others = [each.detach() for each in self._clients.values() if each is not client]
        listeners = [each.detach() for each in self._listeners.values()]
        with os.fdopen(memory) as file:
            state = json.load(file)
        for descriptor in (*streams, *others, *listeners, *self._guardians):
            os.close(descriptor)
        wanted = {os.fsencode(name): os.fsencode(value) for name, value in state["environment"].items()}
        folder = state["folder"] and os.fsencode(state["folder"])
        changed = surroundings.changes(self._environment, wanted)
        surroundings.adopt(Surroundings(changed, folder, state["umask"]))
        guardian = Guardian(client.fileno())
        client.send(json.dumps({"forked": os.getpid()}).encode())  # raises if the client has started cold
        client.detach()
        guardian.resume(state)
        guard(guardian)
