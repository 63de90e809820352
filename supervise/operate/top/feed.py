"""Asks the program of the tree, again and again, and carries out the commands of the keys.

It polls instead of following the stream of events: so the cost at both ends is bounded, whatever happens in the tree. A status
has the number of the last event, and of the events only those are fetched for which there is room.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import time
from typing import Any, Final, Protocol

import trio
from attrs import define, field
from httpx import HTTPError

from . import keys
from .rows import Status
from .state import Command, Event, State, answered, arrived, lost, refused, with_events

_EVERY: Final = 0.5
"""Seconds between two statuses."""
_SHARE: Final = 20
"""A status and what belongs to it may take one twentieth of the time, however large the tree."""
_LONGEST: Final = 5.0
_PATIENCE: Final = 10.0
"""Seconds after which an answer counts as lost."""
_FETCHED: Final = 100
"""Events that are fetched at most at one time."""
_BACK: Final = (300, 3_000, 1_000_000)
"""How many events are searched for a traceback, the last ones first."""


class Client(Protocol):
    """The requests of `supervise.operate.client` that are used here."""

    async def status(self) -> Status:
        """`GET /status`."""
        ...

    async def kept(self, after: int) -> list[Event]:
        """The events after a number that the program still keeps."""
        ...

    async def why(self, path: str) -> str:
        """`GET /why/PATH`."""
        ...

    async def stack(self, path: str) -> str:
        """`GET /stack/PATH`."""
        ...

    async def act(self, verb: str, path: str, reason: str, *, dry_run: bool) -> Mapping[str, Any]:
        """`POST /VERB/PATH`."""
        ...


class Refused(Exception):
    """The program answered that it does not do what was asked; the text is its reason."""


_LOST: Final = (HTTPError, OSError, trio.TooSlowError, trio.BrokenResourceError, Refused)


@define(eq=False)
class Feed:
    """The state, kept up to date.

    Args:
        client: of the program.
        state: the first one.
        changed: is called after every change of the state.
    """

    client: Client
    state: State
    changed: Callable[[], object] = lambda: None
    _again: trio.Event = field(factory=trio.Event)
    _nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                began = trio.current_time()
                await self._ask()
                self.changed()
                await self._pause(min(_LONGEST, max(_EVERY, _SHARE * (trio.current_time() - began))))

    def press(self, key: str) -> bool:
        """Take a key; return False if it ends the program."""
        self.state, command = keys.press(self.state, key, time())
        if command is not None and command.do == "quit":
            return False
        if command is not None and command.do == "poll":
            self._again.set()
        elif command is not None and self._nursery is not None:
            self._nursery.start_soon(self._carry_out, command)
        self.changed()
        return True

    async def _ask(self) -> None:
        """One status, and the events that the screen shows."""
        try:
            with trio.fail_after(_PATIENCE):
                status = await self.client.status()
                self.state = arrived(self.state, status, time())
                page = self.state.page
                if (self.state.tail or (page and page.kind == "details")) and status["seq"] > self.state.seen:
                    after = max(self.state.seen, status["seq"] - _FETCHED)
                    events = await self.client.kept(after)
                    self.state = with_events(self.state, events[-_FETCHED:], status["seq"])
        except _LOST as problem:
            self.state = lost(self.state, _reason(problem), time())

    async def _pause(self, seconds: float) -> None:
        """Wait, or until a key wants a status at once; the screen shows each second that passes."""
        while seconds > 0:
            with trio.move_on_after(min(1.0, seconds)) as tick:
                await self._again.wait()
            if not tick.cancelled_caught:
                self._again = trio.Event()
                return
            seconds -= 1.0
            if seconds > 0:
                self.changed()

    async def _carry_out(self, command: Command) -> None:
        try:
            answer = await self._answer(command)
        except _LOST as problem:
            self.state = refused(self.state, command, _reason(problem))
        else:
            self.state = answered(self.state, command, answer)
            if command.do == "act":
                self._again.set()
        self.changed()

    async def _answer(self, command: Command) -> Any:
        match command.do:
            case "why":
                return await self.client.why(command.path)
            case "stack":
                return await self.client.stack(command.path)
            case "trace":
                return await self._trace(command.path)
            case _:
                dry_run = command.do == "plan"
                return await self.client.act(command.verb, command.path, command.reason, dry_run=dry_run)

    async def _trace(self, path: str) -> str:
        """The traceback in the last `Failed` event of a node, searched backwards."""
        last = self.state.picture.status["seq"]
        for back in _BACK:
            for event in reversed(await self.client.kept(max(0, last - back))):
                if event["path"] == path and event["kind"] == "Failed":
                    return keys.traceback(event) or "This failure has no traceback."
            if back >= last:
                break
        return "No failure of this node is among the events that the program keeps."


def _reason(problem: BaseException) -> str:
    if isinstance(problem, trio.TooSlowError):
        return f"no answer within {_PATIENCE:g} s"
    return str(problem) or type(problem).__name__
