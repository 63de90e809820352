"""The output of a program, as log records of the logger `supervise.programs.NAME`: one line, one record.

Standard output is INFO, standard error WARNING. A record has the attributes `path`, `pid` and `stream`. Reading never stops, since
a program whose pipe is full stands still: a flood of lines is dropped and counted instead.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress

import trio

from .._core._brief import WITHOUT_QUOTES
from .._trio.protect import protected

LOGGER = "supervise.programs"
MAX_LINE = 4096
"""Bytes of the longest line; a longer one becomes several records."""
LINES_PER_SECOND = 500
"""The limit for one stream. Further lines are counted and dropped, so that a flood cannot block the loop."""
LAST_LINES = 40
"""How many lines of both streams an error has as its note."""

_READ = 65536
_LAST_READS = 64  # of each stream, after the end of the program


class Output:
    """Both streams of one program.

    Args:
        name: that of the child.
        path: that of its node, or its name outside a tree.
        log: False only keeps the last lines.
    """

    def __init__(self, name: str, path: str, *, log: bool = True) -> None:
        self.pid = 0
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self.listeners: list[Callable[[str], None]] = []
        """Functions that get each line; `line()` waits for one. While there is one, a flood costs more."""
        self._path = path
        self._logger = logging.getLogger(LOGGER).getChild(name)
        self._mute = not log
        self.streams: list[_Stream] = []
        try:
            self.streams.append(_Stream(self, "stdout", logging.INFO))
            self.streams.append(_Stream(self, "stderr", logging.WARNING))
        except OSError:
            self.close()
            raise

    def note(self, error: BaseException) -> None:
        """Add the last lines to an error."""
        if self.last:
            error.add_note("the last lines of its output:\n" + "\n".join(self.last))

    def take(self, line: str, stream: str, level: int, *, log: bool) -> None:
        """Keep one line, hand it to the listeners, and log it if it is within the limit."""
        self.last.append(line)
        for listener in self.listeners:
            listener(line)
        if log:
            self.log(level, stream, line)

    def log(self, level: int, stream: str, line: str) -> None:
        """Log one line. If a handler raises, its traceback is printed once, and nothing is logged any more."""
        if self._mute:
            return
        extra = {"path": self._path, "pid": self.pid, "stream": stream}
        try:
            self._logger.log(level, "%s (pid %d): %s", self._path, self.pid, line, extra=extra)
        except Exception:  # noqa: BLE001 - a user's handler may raise anything, and a broken log must not end a program
            self._mute = True
            with suppress(Exception):  # standard error may be closed
                traceback.print_exc(file=sys.stderr)

    def close_theirs(self) -> None:
        """Close the ends to which the program writes, in this process."""
        for stream in self.streams:
            stream.close_theirs()

    def close(self) -> None:
        """Close everything."""
        for stream in self.streams:
            stream.close()


@protected
class _Stream:
    """The reading end of one pipe. It is protected: an interrupt here would end the system task that follows the guardian, and so Trio."""

    def __init__(self, output: Output, name: str, level: int) -> None:
        self._output = output
        self._name = name
        self._level = level
        self._rest = b""
        self._second = -1
        self._count = self._dropped = 0
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)

    async def pump(self) -> None:
        """Log the stream until it ends."""
        more = True
        while more:
            await trio.lowlevel.wait_readable(self._ours)
            with suppress(BlockingIOError):
                more = self._read()
        self._end()

    def finish(self) -> None:
        """Log the rest, up to a bound: the program and all below it have ended."""
        with suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not self._read():
                    break
        self._end()

    def _read(self) -> bool:
        """Read once. Returns False at the end of the stream."""
        data = os.read(self._ours, _READ)
        for line in self._lines(data):
            self._take(line)
        return bool(data)

    def _lines(self, data: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        lines = list(filter(bytes.strip, lines))
        first, last = max(0, self._room()), len(lines) - LAST_LINES
        if first < last and not self._output.listeners:
            # They are neither logged nor kept, and to make a text of each short one would block the loop.
            self._dropped += last - first
            del lines[first:last]
        for line in lines:
            yield from _texts(line)
        if len(self._rest) >= MAX_LINE:
            rest, self._rest = self._rest, b""
            yield from _texts(rest)

    def _end(self) -> None:
        rest, self._rest = self._rest, b""
        for line in _texts(rest):
            self._take(line)
        self._report_dropped()

    def _room(self) -> int:
        """How many lines the limit of this second still allows; 0 or less for none."""
        now = int(trio.current_time())
        if now != self._second:
            self._second, self._count = now, 0
            self._report_dropped()
        return LINES_PER_SECOND - self._count

    def _take(self, line: str) -> None:
        allowed = self._room() > 0
        self._count += 1
        self._dropped += not allowed
        self._output.take(line, self._name, self._level, log=allowed)

    def _report_dropped(self) -> None:
        if dropped := self._dropped:
            self._dropped = 0
            text = f"({dropped} lines too many in a second, dropped)"
            self._output.log(logging.WARNING, self._name, text)

    def close_theirs(self) -> None:
        """See `Output.close_theirs`."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1

    def close(self) -> None:
        """Close both ends; a second call does nothing."""
        self.close_theirs()
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1


def _texts(line: bytes) -> Iterator[str]:
    """The line in pieces that are not too long, with escapes for control characters, which would act on a terminal."""
    for start in range(0, len(line), MAX_LINE):
        text = line[start : start + MAX_LINE].decode("utf-8", "surrogateescape").rstrip()
        if text:
            yield "\t".join(map(_escaped, text.split("\t")))


def _escaped(text: str) -> str:
    r"""As `printable`, with `\xff` for a byte 255, which UTF-8 has not. `backslashreplace` would call a function for each such byte."""
    return text if text.isprintable() else WITHOUT_QUOTES.sub(_escapes, text)


def _escapes(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1].replace(r"\udc", r"\x")
