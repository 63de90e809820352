"""Server-sent events out of the bytes of a body. Pure, and bounded however the bytes come.

httpx2 has a parser of its own, in an async generator over others: one that is left between two events is closed only when it is
collected, and Trio warns of that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from attrs import define, field, frozen

from runners.errors import NetworkError

MAX_EVENT = 2**20
"""Bytes of an event, or of a line that is not an event's."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"
"""The byte order mark, with which a body may begin."""


@frozen
class Event:
    """`name`: `message` if the server gave none. `data`: all lines of it."""

    name: str
    data: str


@define(eq=False)
class EventReader:
    """Keeps what belongs to the event that is not complete. What a body leaves behind its last complete event is none."""

    _line: list[bytes] = field(factory=list[bytes])  # the parts of the line that has no end yet
    _after_cr: bool = False  # that line may begin with the second half of a line end
    _size: int = 0
    _name: str = ""
    _data: list[str] = field(factory=list[str])
    _is_first: bool = True

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete.

        Raises:
            NetworkError: an event is too long.
        """
        if self._after_cr:
            data, self._after_cr = b"\r" + data, False
        if data.endswith(b"\r"):
            data, self._after_cr = data[:-1], True
        first, *others = _LINE_END.split(data)
        self._line.append(first)
        self._grow(len(first))
        for other in others:
            yield from self._take(b"".join(self._line))
            self._line = [other]
            self._grow(len(other))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > MAX_EVENT:
            raise NetworkError(f"the server sends an event of more than {MAX_EVENT} bytes")

    def _take(self, line: bytes) -> Iterator[Event]:
        if self._is_first:
            line, self._is_first = line.removeprefix(_MARK), False
        if not line:
            if self._data:
                yield Event(self._name or "message", "\n".join(self._data))
            self._size, self._name, self._data = 0, "", []
            return
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._name = value
        else:  # a comment, or a field for a client that connects anew: it takes no memory
            self._size -= len(line)
