"""Tell systemd how the tree is: a service of `Type=notify`, with or without `WatchdogSec=` (see `man sd_notify`)."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Protocol

import trio

from .._core._asked import is_asked
from .._core._brief import brief, printable
from .._core._check import check_number
from .._core.status import Status
from ..events import Adopted, Adopting, Event, Ready, Stopping

_STATUS_SECONDS = 5.0
"""Between two texts for `systemctl status`, if no watchdog asks for more frequent messages."""

_LONGEST_NUMBER = 20
"""Digits of a number that has more than the 64 bits of systemd's numbers."""

_LONGEST_ADDRESS = 107
"""Bytes; `sockaddr_un` of Linux has room for them and a final zero."""


class _Tree(Protocol):
    def status(self) -> Status: ...


class SystemdSink:
    """A sink that tells systemd when the tree is ready and when it is asked to stop; `watch` keeps the rest up to date.

    systemd gets `READY=1` when the root is up, `STOPPING=1` when it is asked to stop, and `RELOADING=1` when it is restarted or
    adopts another declaration, until it is ready again. After `STOPPING=1` it gets neither of the others: it then kills what has not
    ended in time. While `watch` runs, `systemctl status` shows how many nodes are up, and `WATCHDOG=1` is sent twice in each
    `watchdog` seconds. That is sent by the event loop, so nothing comes while a child's code blocks the loop, and systemd then ends
    the program.

    No message ever blocks. If one finds the queue of systemd full, `watch` sends it with its next one, or a later one of that kind.
    Any other error is raised, so that the tree reports it once and goes on without this sink.

    Args:
        address: of systemd's socket; one that begins with `@` is abstract.
        watchdog: seconds after which systemd takes the program for hung; None if it does not watch.

    Raises:
        ValueError: the address is empty or too long, or `watchdog` is out of range.
    """

    def __init__(self, address: str, *, watchdog: float | None = None) -> None:
        if watchdog is not None:
            check_number("watchdog", watchdog, least=0.001, finite=True)
        if not isinstance(address, str) or not 0 < len(os.fsencode(address)) <= _LONGEST_ADDRESS:
            raise ValueError(f"address must be a path of 1 to {_LONGEST_ADDRESS} bytes, got {brief(address)}")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._interval = _STATUS_SECONDS if watchdog is None else min(watchdog / 2, _STATUS_SECONDS)
        self._pings = watchdog is not None
        self._is_stopping = False
        self._unsent: tuple[str, ...] = ()  # of the last message about the state of the tree
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> SystemdSink | None:
        """The sink that the variables of systemd ask for; None if systemd has not started the program.

        The variables are removed, so that no process which the program starts speaks for it.
        """
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not address:
            return None
        is_number = microseconds.isdecimal() and len(microseconds) < _LONGEST_NUMBER
        watched = is_number and int(microseconds) > 0 and pid in ("", str(os.getpid()))
        return cls(address, watchdog=int(microseconds) / 1e6 if watched else None)

    def __call__(self, event: Event) -> None:
        """Send what an event of the root means."""
        if "/" in event.path or self._is_stopping:
            return
        if isinstance(event, Ready | Adopted):
            self._tell("READY=1")
        elif isinstance(event, Adopting) or _is_restart(event):
            # systemd demands the time of the reload (`man sd_notify`).
            self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        elif isinstance(event, Stopping):
            self._is_stopping = True
            self._tell("STOPPING=1", f"STATUS=stopping: {event.reason}")

    async def watch(self, tree: _Tree) -> None:
        """Send the status of a tree, and the pings of the watchdog, until it is cancelled; for the `watch` of `run_tree`."""
        while True:
            pings = ["WATCHDOG=1"] if self._pings else []
            self._tell(*self._unsent)
            self._send(*pings, f"STATUS={_standing(tree.status(), trio.current_time())}")
            await trio.sleep(self._interval)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _tell(self, *lines: str) -> None:
        """Send the state of the tree, of which systemd must miss nothing: it would end a program that is never ready."""
        self._unsent = () if not lines or self._send(*lines) else lines

    def _send(self, *lines: str) -> bool:
        """Returns whether there was room for it."""
        message = "\n".join(map(printable, lines)).encode(errors="backslashreplace")
        with suppress(BlockingIOError):
            self._socket.sendto(message, self._address)
            return True
        return False


def _is_restart(event: Event) -> bool:
    """Whether the root stops only to start again. After `STOPPING=1` systemd would kill the program within `TimeoutStopSec`."""
    return isinstance(event, Stopping) and is_asked(event.reason, event.path, "restart")


def _standing(status: Status, now: float) -> str:
    """How many nodes are in each state, those that are up first; and the first node that waits for its start."""
    states = Counter(node.state for node in status.walk())
    counts = [f"{states.pop('up', 0)} up", *(f"{count} {state}" for state, count in states.items())]
    due = min(
        ((node.due, node.path) for node in status.walk() if node.due is not None),
        default=None,
        key=lambda it: it[0],
    )
    next_start = "" if due is None else f" ({due[1]} starts in {max(0.0, due[0] - now):.0f} s)"
    return f"{', '.join(counts)}{next_start}"
