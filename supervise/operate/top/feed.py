"""Asks the program of the tree, again and again, and carries out the commands of the keys.

It polls instead of following the stream of events: so the cost at both ends is bounded, whatever happens in the tree. A status
has the number of the last event, and of the events only those are fetched for which there is room.
"""

from __future__ import annotations

import getpass
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from math import inf
from time import time
from typing import Any, Final, Protocol, cast

import trio
from attrs import define, field

from .. import client
from . import keys
from .rows import Status
from .state import Command, Event, State, answered, arrived, lost, refused, with_events

_EVERY: Final = 0.5
"""Seconds between two statuses."""
_SHARE: Final = 20
"""A status may take one twentieth of the time, however large the tree."""
_LONGEST: Final = 5.0
_PATIENCE: Final = 10.0
"""Seconds after which an answer counts as lost; an act may take longer."""
_FETCHED: Final = 100
"""Events that are fetched at most at one time."""
_BACK: Final = (300, 3_000, 1_000_000)
"""How many events are searched for a traceback, the last ones first."""
_LOST: Final = (client.OperateError, trio.TooSlowError, ValueError)
"""The errors of a request. The last one is that of an answer that is not JSON."""


class Client(Protocol):
    """What is used of `supervise.operate.client.Client`."""

    where: str

    async def status(self) -> client.Data:
        """All nodes."""
        ...

    def events(self, after: int, *, follow: bool) -> Any:
        """The events after a number."""
        ...

    async def why(self, path: str) -> str:
        """Why a node is as it is."""
        ...

    async def stack(self, path: str) -> str:
        """Where its tasks wait."""
        ...

    async def act(
        self, verb: str, path: str, *, reason: str, who: str, dry_run: bool = False
    ) -> list[client.Data]:
        """The steps of an act."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...


@define(eq=False)
class Feed:
    """The state, kept up to date.

    Args:
        client: of the program.
        state: the first one.
        elsewhere: gives a client for the place to which the tree of this name has moved, if it has; it is asked while the tree
            does not answer.
        changed: is called after every change of the state.
    """

    client: Client
    state: State
    elsewhere: Callable[[str], Client | None] = lambda _: None
    changed: Callable[[], object] = lambda: None
    _again: trio.Event = field(factory=trio.Event)
    _nursery: trio.Nursery | None = None
    _explained: tuple[str, str, int, int] | None = None

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as self._nursery:
            while True:
                began = trio.current_time()
                if await self._ask():
                    took = trio.current_time() - began
                    await self._fetch()
                    await self._explain()
                else:
                    took = 0.0
                    await self._move()
                self.changed()
                await self._pause(min(_LONGEST, max(_EVERY, _SHARE * took)))

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

    async def _ask(self) -> bool:
        """One status; return whether it came."""
        try:
            with trio.fail_after(_PATIENCE):
                status = cast("Status", await self.client.status())
        except _LOST as problem:
            self.state = lost(self.state, _reason(problem), time())
            return False
        self.state = arrived(self.state, status, time())
        return True

    async def _fetch(self) -> None:
        """The new events, if the screen shows any."""
        page, last = self.state.page, self.state.picture.status["seq"]
        if last > self.state.seen and (self.state.tail or (page is not None and page.kind == "details")):
            try:
                events = await self._events(max(self.state.seen, last - _FETCHED), last)
            except _LOST as problem:
                self.state = lost(self.state, _reason(problem), time())
            else:
                self.state = with_events(self.state, events, last)

    async def _explain(self) -> None:
        """Ask again why a node is as it is, if its details are shown and it is not as it was."""
        page = self.state.page
        row = None if page is None else self.state.picture.rows.get(page.path)
        if page is not None and row is not None and page.kind == "details":
            explained = (page.path, row["state"], row["incarnation"], row["failures_total"])
            if explained != self._explained:
                self._explained = explained
                await self._carry_out(Command("why", page.path))

    async def _events(self, after: int, last: int) -> list[Event]:
        """The kept events between two numbers. It leaves a busy tree at the second one, which would go on for ever."""
        found: list[Event] = []
        if last > after:
            stream = cast("AsyncGenerator[Event]", self.client.events(after, follow=False))
            with trio.fail_after(_PATIENCE):
                async with aclosing(stream):
                    async for event in stream:
                        if event["kind"] != "Missed":
                            found.append(event)
                            if event["seq"] >= last:
                                break
        return found

    async def _move(self) -> None:
        """A program that is started again may listen at another place."""
        other = self.elsewhere(self.state.picture.status["name"])
        if other is not None:
            former, self.client = self.client, other
            await former.aclose()

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
            with trio.fail_after(inf if command.do == "act" else _PATIENCE):
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
                reason = command.reason or "a dry run"
                return await self.client.act(
                    command.verb, command.path, reason=reason, who=_who(), dry_run=dry_run
                )

    async def _trace(self, path: str) -> str:
        """The traceback in the last `Failed` event of a node, searched backwards."""
        last = self.state.picture.status["seq"]
        for back in _BACK:
            for event in reversed(await self._events(max(0, last - back), last)):
                if event["path"] == path and event["kind"] == "Failed":
                    return keys.traceback(event) or "This failure has no traceback."
            if back >= last:
                break
        return "No failure of this node is among the events that the program keeps."


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        return "somebody"


def _reason(problem: BaseException) -> str:
    if isinstance(problem, trio.TooSlowError):
        return f"no answer within {_PATIENCE:g} s"
    return str(problem) or type(problem).__name__
