"""The last events of a tree as numbered data, for readers that come late or read slowly."""

from __future__ import annotations

import json
import time
from collections import deque
from itertools import islice
from typing import Any

import trio
from attrs import define, field

from .._core._check import check_number
from ..events import Event, describe
from ..sinks.data import as_data

as_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode
"""Data in one line of JSON; an encoder that is made once is faster than `json.dumps`."""


@define
class Entry:
    """An event as data, and its lines of JSON, each made once for all readers."""

    number: int
    data: dict[str, Any]
    _lines: dict[bool, str] = field(factory=dict)

    def line(self, *, traced: bool) -> str:
        """Its line of JSON; without `traced` it has no traceback and no stack."""
        if traced not in self._lines:
            data = self.data if traced else _untraced(self.data)
            self._lines[traced] = as_json(data)
        return self._lines[traced]


class History:
    """A sink that keeps the last events, numbered from 1 (R31).

    A reader gives the number of the last event that it has. So one that stops and comes back, or that is slower than the tree,
    learns how many it has missed. It costs the tree nothing meanwhile.

    Args:
        kept: how many events are kept, 1 or more.
    """

    def __init__(self, kept: int = 10_000) -> None:
        check_number("kept", kept, least=1, kind=int)
        self.last = 0
        """The number of the last event; 0 before the first."""
        self.closed = False
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._more = trio.Event()
        self._is_awaited = False

    def __call__(self, event: Event) -> None:
        """Keep an event."""
        data = as_data(event, number=self.last + 1, time=time.time())
        data["text"] = describe(event)
        self.last += 1
        self._entries.append(Entry(self.last, data))
        self._wake()

    def open(self) -> None:
        """Readers follow the events that come, as they do at first."""
        self.closed = False

    def close(self) -> None:
        """Readers end when they have read everything, since their server ends."""
        self.closed = True
        self._wake()

    def after(self, number: int, *, most: int = 500) -> tuple[int, list[Entry]]:
        """How many events after this number are lost to the reader, and the next ones that are kept, `most` at most."""
        oldest = self.last - len(self._entries) + 1
        start = max(number + 1, oldest)
        if start > self.last:
            return 0, []
        skipped = start - oldest
        if skipped > len(self._entries) // 2:  # from the near end: a deque has no quick way into its middle
            entries = list(islice(reversed(self._entries), self.last - start + 1))[::-1][:most]
        else:
            entries = list(islice(self._entries, skipped, skipped + most))
        return max(0, oldest - number - 1), entries

    def about(self, path: str) -> list[dict[str, Any]]:
        """The kept events of the node at `path` and of all below it, as data."""
        below = f"{path}/"
        return [
            entry.data
            for entry in self._entries
            if entry.data["path"] == path or entry.data["path"].startswith(below)
        ]

    async def more(self, number: int) -> None:
        """Wait until there is an event after this number, or the history is closed."""
        while self.last <= number and not self.closed:
            self._is_awaited = True
            await self._more.wait()

    def _wake(self) -> None:
        if self._is_awaited:
            self._is_awaited = False
            self._more.set()
            self._more = trio.Event()


def _untraced(data: dict[str, Any]) -> dict[str, Any]:
    shown = {name: value for name, value in data.items() if name != "stack"}
    if isinstance(shown.get("exc"), dict):
        shown["exc"] = {name: value for name, value in shown["exc"].items() if name != "traceback"}
    return shown
