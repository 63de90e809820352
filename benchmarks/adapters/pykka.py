"""pykka 4.5.0: a thread for each actor, messages, and no supervision."""

from __future__ import annotations

import threading
from typing import Any

import pykka

from benchmarks.work import Arrivals, Memory, NotOffered, Result, now


class _Idle(pykka.ThreadingActor):
    def __init__(self, up: Any) -> None:
        super().__init__()
        self._up = up

    def on_start(self) -> None:
        self._up()


class _Server(pykka.ThreadingActor):
    def __init__(self, target: int, done: threading.Event) -> None:
        super().__init__()
        self._state, self._target, self._done = 0, target, done

    def on_receive(self, message: int) -> int:
        self._state += message
        if self._state == self._target:
            self._done.set()
        return self._state


def start_stop(n: int) -> Result:
    """Each child is a thread."""
    if n > 10_000:
        raise NotOffered("100,000 threads")
    lock, everyone = threading.Lock(), threading.Event()
    arrivals = Arrivals(n, everyone.set)

    def up() -> None:
        with lock:
            arrivals.up()

    memory, begin = Memory(), now()
    for _ in range(n):
        _Idle.start(up)
    everyone.wait()
    started = now()
    kilobytes = memory.per_child(n)
    stop = now()
    pykka.ActorRegistry.stop_all()
    return {"start_s": started - begin, "stop_s": now() - stop, "kb_per_child": kilobytes}


def call(n: int, callers: int) -> Result:
    """One caller with `callers` requests in flight."""
    server = _Server.start(n, threading.Event())
    begin = now()
    for _ in range(n // callers):
        pykka.get_all([server.ask(1, block=False) for _ in range(callers)])
    seconds = now() - begin
    server.stop()
    return {"per_s": n // callers * callers / seconds}


def send(n: int) -> Result:
    """Messages from another thread."""
    done = threading.Event()
    server = _Server.start(n, done)
    begin = now()
    for _ in range(n):
        server.tell(1)
    done.wait()
    seconds = now() - begin
    server.stop()
    return {"per_s": n / seconds}
