"""What these tests share: a sink that keeps every event, children that a test controls, and one way to run a tree."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from trio.testing import wait_all_tasks_blocked

from supervise import IGNORE, Child, Pool, Supervisor, Tree, events, open_tree
from supervise.testing import assert_lifecycle, run_virtual

Scene = Callable[[Tree, "Seen"], Awaitable[object]]
quiet = wait_all_tasks_blocked


class Boom(Exception):
    """A failure."""


class Other(Exception):
    """Another one."""


class Seen:
    """A sink that keeps every event."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[events.Event]:
        return iter(self.events)

    def of(self, kind: type[Any], path: str | None = None, *, since: int = 0) -> list[Any]:
        """The events of one kind, or of one kind and path."""
        return [e for e in self.events[since:] if isinstance(e, kind) and path in (None, e.path)]

    def the(self, kind: type[Any], path: str | None = None) -> Any:
        """The only event of its kind."""
        (one,) = self.of(kind, path)
        return one

    def order(self, *, since: int = 0) -> str:
        """The starts and ends of children: `+a +b -b -a`; the root is left out."""
        signs = {events.Starting: "+", events.Stopped: "-"}
        kept = [e for e in self.events[since:] if type(e) in signs and "/" in e.path]
        return " ".join(signs[type(e)] + e.path.partition("/")[2] for e in kept)

    def kinds(self, path: str, *, since: int = 0) -> str:
        """The kinds of events of one path."""
        return " ".join(type(e).__name__ for e in self.events[since:] if e.path == path)

    def at(self, kind: type[Any], path: str | None = None) -> list[float]:
        """When, in seconds since the first event."""
        return [round(e.at - self.events[0].at, 6) for e in self.of(kind, path)]


class Puppet:
    """A child that a test controls.

    `script`: what its starts come to, one after the other: an exception, `IGNORE`, `hang`, or seconds that the start
    takes; then they succeed. `stubborn`: seconds for which it does not yield to a cancellation.
    """

    def __init__(self, name: str, *script: Any, stubborn: float = 0, **options: Any) -> None:
        self.script = deque(script)
        self.stubborn = stubborn
        self.lives = 0
        self.running = 0
        self.arguments: tuple[Any, ...] = ()
        self.cancelled: list[str] = []
        self._orders, self._heard = trio.open_memory_channel[Any](math.inf)
        self.spec = Child(name, self._body, **options)

    def fail(self, exc: BaseException | None = None) -> None:
        """Have it raise."""
        self._orders.send_nowait(Boom(self.spec.name) if exc is None else exc)

    def finish(self, value: object = None) -> None:
        """Have it return."""
        self._orders.send_nowait(value)

    async def _body(self, *arguments: Any, task_status: trio.TaskStatus[Any]) -> object:
        self.arguments = arguments
        self.lives += 1
        self.running += 1
        assert self.running == 1, "two incarnations at once"
        try:
            start = self.script.popleft() if self.script else 0
            if isinstance(start, BaseException):
                raise start
            if start is IGNORE:
                return IGNORE
            await trio.sleep(math.inf if start == "hang" else start)
            task_status.started(self.lives)
            return self._obey(await self._heard.receive())
        except trio.Cancelled as cancelled:
            self.cancelled.append(str(cancelled))
            with trio.CancelScope(shield=True):
                await trio.sleep(self.stubborn)
            raise
        finally:
            self.running -= 1

    def _obey(self, order: object) -> object:
        if isinstance(order, BaseException):
            raise order
        return order


def puppets(names: str, **options: Any) -> list[Puppet]:
    """One for each letter."""
    return [Puppet(name, **options) for name in names]


def app(*children: Any, name: str = "app", **options: Any) -> Supervisor:
    """A supervisor over puppets and specs."""
    return Supervisor(name, [getattr(child, "spec", child) for child in children], **options)


def grow(
    spec: Supervisor | Pool, scene: Scene | None = None, *, seen: Seen | None = None, seed: int = 0
) -> Seen:
    """Run a tree under virtual time, with `scene(tree, seen)` as its body, and check that all lived by the grammar."""
    seen = Seen() if seen is None else seen

    async def main() -> None:
        async with open_tree(spec, sinks=[seen]) as tree:
            await quiet()
            if scene is not None:
                await scene(tree, seen)

    try:
        run_virtual(main, seed=seed)
    finally:
        assert_lifecycle(seen)
    return seen


@asynccontextmanager
async def nothing() -> AsyncIterator[None]:
    """A resource that owns nothing."""
    yield


class Kit:
    """A resource that notes what happens to it."""

    def __init__(self, *, fail_enter: int = 0, fail_exit: int = 0, slow_exit: float = 0) -> None:
        self.entered = self.left = 0
        self.saw: list[BaseException | None] = []
        self._fail_enter, self._fail_exit, self._slow_exit = fail_enter, fail_exit, slow_exit

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[int]:
        self.entered += 1
        if self.entered <= self._fail_enter:
            raise Other("enter")
        try:
            yield self.entered
        except BaseException as exc:
            self.saw.append(exc)
            raise
        else:
            self.saw.append(None)
        finally:
            self.left += 1
            with trio.CancelScope(shield=True):
                await trio.sleep(self._slow_exit)
            if self.left <= self._fail_exit:
                raise Other("exit")


async def forever(*_: Any) -> None:
    """A body."""
    await trio.sleep_forever()


class Echo:
    """A child with a mailbox: it replies, or does what the message asks for."""

    def __init__(self, name="echo", *, mailbox=8, **options):
        self.served = []
        self.held = []
        self.gate = trio.Event()
        self.gate.set()
        self.spec = Child(name, self._body, mailbox=mailbox, **options)

    async def _body(self, *arguments):
        inbox = arguments[-1]
        while True:
            await self.gate.wait()
            message = await inbox.receive()
            self.served.append(message.value)
            await self.serve(message)

    async def serve(self, message):
        match message.value:
            case BaseException() as exc:
                raise exc
            case "hold":
                self.held.append(message)
            case "requeue":
                message.value = "requeued"
                message.requeue()
            case "refuse":
                message.fail(Other("refused"))
            case value:
                message.reply(value)
