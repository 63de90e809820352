"""Each operation of a running tree once, among siblings and after earlier restarts, for a meter that times or counts it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import trio

from benchmarks.work import Boom
from supervise import Child, Inbox, Supervisor, Tree, open_tree
from supervise.events import Event, Failed

Strategy = Literal["one_for_one", "rest_for_one"]

OPERATIONS = (
    "start",
    "stop",
    "stop a supervisor",
    "restart",
    "restart the last, rest_for_one",
    "event",
    "look up a spec",
    "look up a path",
    "status of one node",
    "call",
    "call through a front",
    "send",
    "sixty messages",
)

MAILBOXES = 10
"""One in so many siblings has a mailbox."""


class Meter(ABC):
    """Measures an operation from `begin` to `end`."""

    @abstractmethod
    def begin(self, operation: str) -> None:
        """The operation begins."""

    @abstractmethod
    def end(self) -> None:
        """The operation is over."""

    @contextmanager
    def of(self, operation: str) -> Generator[None, None, None]:
        """Measure a whole block."""
        self.begin(operation)
        yield
        self.end()


class Scene:
    """A supervisor over `siblings` idle children, some with mailboxes, and the few children that are measured."""

    def __init__(self, meter: Meter, siblings: int, strategy: Strategy = "one_for_one") -> None:
        self._meter = meter
        self._measured = ""
        self._crash = trio.Event()
        self._running = trio.Event()
        self._server = Child("server", _server, mailbox=64)
        self._victim = Child("victim", self._victim_body)
        self._small = Supervisor("small", [Child("leaf", trio.sleep_forever)])
        idle = [
            Child(f"idle-{number}", _idle, mailbox=None if number % MAILBOXES else 1)
            for number in range(siblings)
        ]
        few: list[Child | Supervisor] = [self._small, self._server, self._victim]
        self.spec = Supervisor("app", [*idle, *few], strategy=strategy, front=self._server, limit=None)

    async def _victim_body(self) -> None:
        if self._measured not in ("", "event"):
            self._meter.end()
        self._crash = trio.Event()
        self._running.set()
        await self._crash.wait()
        if self._measured:
            self._meter.begin(self._measured)
        raise Boom

    def sink(self, event: Event) -> None:
        """A sink that ends the measurement of an event."""
        if self._measured == "event" and isinstance(event, Failed):
            self._meter.end()

    async def crash(self, measured: str = "") -> None:
        """Let the victim fail, and wait until it runs again. `event`: measure until a sink receives the failure."""
        self._measured = measured
        self._running = trio.Event()
        self._crash.set()
        await self._running.wait()
        self._measured = ""

    async def operate(self, tree: Tree) -> None:
        """Do each operation once."""
        await self._change(tree)
        await self._look(tree)
        await self._talk(tree)

    async def _change(self, tree: Tree) -> None:
        added = Child("added", trio.sleep_forever)
        with self._meter.of("start"):
            ref = await tree.root.add(added)
        with self._meter.of("stop"):
            await ref.stop()
        await ref.remove()
        with self._meter.of("stop a supervisor"):
            await tree[self._small].stop()
        await tree[self._small].start()

    async def _look(self, tree: Tree) -> None:
        with self._meter.of("look up a spec"):
            ref = tree[self._victim]
        with self._meter.of("look up a path"):
            tree["app/victim"]
        with self._meter.of("status of one node"):
            ref.status()

    async def _talk(self, tree: Tree) -> None:
        ref, root = tree[self._server], tree.root
        with self._meter.of("call"):
            await ref.call(None)
        with self._meter.of("call through a front"):
            await root.call(None)
        with self._meter.of("send"):
            ref.send_nowait(None)
        with self._meter.of("sixty messages"):
            for _ in range(59):
                ref.send_nowait(None)
            await ref.call(None)


async def _idle(*_: Inbox) -> None:
    await trio.sleep_forever()


async def _server(inbox: Inbox) -> None:
    async for message in inbox:
        message.reply()


async def operate(meter: Meter, siblings: int, history: int, times: int) -> None:
    """Measure each of `OPERATIONS` `times` times, after `history` restarts; only `event` and the last one have a sink."""
    scene = Scene(meter, siblings)
    async with open_tree(scene.spec, sinks=[]) as tree:
        await scene.operate(tree)  # make everything that is made at its first use
        for _ in range(history):
            await scene.crash()
        for _ in range(times):
            await scene.crash("restart")
            await scene.operate(tree)
    scene = Scene(meter, siblings, "rest_for_one")
    async with open_tree(scene.spec, sinks=[scene.sink]):
        for _ in range(times):
            await scene.crash("event")
            await scene.crash("restart the last, rest_for_one")
