"""What a process of ours writes to its standard output and standard error, as log records of `runners.context`.

Standard output is INFO, standard error WARNING, but of a crash only its first line: the stacks behind it are INFO. A record
says in `context` whose it is, and has `pid` and `stream`.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress

import trio
from trio.lowlevel import enable_ki_protection

from runners.hosts.process.standard import above_standard

LOGGER = logging.getLogger("runners.context")
_HOSTS = logging.getLogger("runners.hosts")
MAX_LINE = 4096
"""Bytes; a longer line becomes several."""
LINES_PER_SECOND = 500
"""Of one stream; what is beyond is counted and dropped, so that a process that floods cannot hold up the loop."""

_READ = 4096  # so that a turn of the loop stays short, even where every second byte ends a line
_LAST_READS = 64
_LAST_LINES = 40

_CRASH = "Fatal Python error: "
_BEHIND_IT = ("  ", "Current thread", "Thread 0x", "Extension modules: ", "Python runtime state: ")
"""How the lines of the interpreter's report begin that say where it was."""


def tell(level: int, text: str, *values: object) -> None:
    """Log what has happened to a process, at the logger `runners.hosts`."""
    _logged(_HOSTS, level, text, values, None)


def _logged(
    logger: logging.Logger, level: int, text: str, values: tuple[object, ...], extra: dict[str, object] | None
) -> bool:
    """Log a record. If a filter or handler raises, print its traceback and return False.

    Raised from a system task of a host, the exception would end the whole Trio run.
    """
    try:
        logger.log(level, text, *values, extra=extra, stacklevel=3)
    except Exception:  # noqa: BLE001 - a user's handler may raise anything, and a broken log must not fail a context
        with suppress(Exception):  # standard error may be closed
            traceback.print_exc(file=sys.stderr)
        return False
    return True


class Lines:
    """Bytes in, lines out; holds at most one line that has no end yet."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """The lines that these bytes complete; empty ones are left out."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield from _texts(line)
        if len(self._rest) >= MAX_LINE:
            yield from self.end()

    def end(self) -> Iterator[str]:
        """What has no end, as a line."""
        rest, self._rest = self._rest, b""
        yield from _texts(rest)


def _texts(line: bytes) -> Iterator[str]:
    for start in range(0, len(line), MAX_LINE):
        text = line[start : start + MAX_LINE].decode("utf-8", "backslashreplace").rstrip()
        if text:
            yield text if text.isprintable() else _visible(text)


def _visible(text: str) -> str:
    """With escapes for what would act on a terminal or forge a line: control characters, carriage returns too."""
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in text
    )


class Ration:
    """At most so many of something in each second; the rest is counted."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = -1
        self._had = 0
        self.refused = 0

    def take(self, now: float) -> bool:
        """Whether there is one more to be had."""
        if int(now) != self._second:
            self._second, self._had = int(now), 0
        self._had += 1
        self.refused += self._had > self._most
        return self._had <= self._most


class _Stream:
    """The reading end of one pipe."""

    def __init__(self, output: Output, name: str, level: int) -> None:
        self._output = output
        self._name = name
        self._level = level
        self._lines = Lines()
        self._ration = Ration(LINES_PER_SECOND)
        self.descriptor, self.theirs = map(above_standard, os.pipe())
        os.set_blocking(self.descriptor, False)
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        self._crashed = False  # and the lines since say where

    def read(self) -> bool:
        """Log what has come; False once no more will come, or it is closed.

        Raises:
            BlockingIOError: nothing has.
        """
        if self.descriptor < 0:  # between a wake-up of the pump and its turn
            return False
        data = os.read(self.descriptor, _READ)
        for line in self._lines.feed(data) if data else self._lines.end():
            self._take(line)
        return bool(data)

    def close(self) -> None:
        """Give back the descriptor, once."""
        if self.descriptor >= 0:
            trio.lowlevel.notify_closing(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1

    async def finish(self) -> None:
        """Log what is left. A process that it has started may hold the pipe open, and write on."""
        with suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not self.read():
                    break
                await trio.lowlevel.checkpoint()
        for line in self._lines.end():
            self._take(line)
        self._tell_dropped()

    def _take(self, line: str) -> None:
        self.last.append(line)
        if self._ration.take(trio.current_time()):
            self._tell_dropped()
            self._output.log(self._level_of(line), self._name, line)

    def _level_of(self, line: str) -> int:
        """A crash is worth one line to whom only that it was matters; the error that follows has all of them as a note."""
        if line.startswith(_CRASH):
            self._crashed = True
            return self._level
        self._crashed = self._crashed and line.startswith(_BEHIND_IT)
        return logging.INFO if self._crashed else self._level

    def _tell_dropped(self) -> None:
        if dropped := self._ration.refused:
            self._ration.refused = 0
            self._output.log(logging.WARNING, self._name, f"({dropped} lines too many in a second, dropped)")


class Output:
    """Both streams of one process.

    `who` stands in front of each line. Whatever a logging handler raises is printed once, and nothing is logged any more.
    """

    def __init__(self, who: str) -> None:
        self.who = who
        self.pid = 0
        self._mute = False
        self._streams: list[_Stream] = []
        try:
            self._streams.append(_Stream(self, "stdout", logging.INFO))
            self._streams.append(_Stream(self, "stderr", logging.WARNING))
        except OSError:
            self.close()
            raise

    @contextmanager
    def ends(self) -> Generator[tuple[int, int]]:
        """The ends that the process writes to; they are closed here at the end."""
        try:
            yield self._streams[0].theirs, self._streams[1].theirs
        finally:
            self._close_theirs()

    @enable_ki_protection  # it runs below a system task, which a KeyboardInterrupt would take down with the whole run
    async def pump(self) -> None:
        """Log what comes until it is closed."""
        async with trio.open_nursery() as nursery:
            for stream in self._streams:
                nursery.start_soon(self._pump, stream)

    @enable_ki_protection
    async def _pump(self, stream: _Stream) -> None:
        more = True
        with suppress(trio.ClosedResourceError):
            while more and stream.descriptor >= 0:  # or it was closed before our first turn
                await trio.lowlevel.wait_readable(stream.descriptor)
                with suppress(BlockingIOError):  # `drain` was faster
                    more = stream.read()

    def last_words(self) -> str:
        """The end of what it wrote to standard error, all of which has been read by now."""
        return "\n".join(self._streams[1].last)

    async def drain(self) -> None:
        """Log what is left of a dead process; all that it wrote is there by now."""
        for stream in self._streams:
            await stream.finish()

    def close(self) -> None:
        """Give back the descriptors."""
        self._close_theirs()
        for stream in self._streams:
            stream.close()

    def _close_theirs(self) -> None:
        for stream in self._streams:
            if stream.theirs >= 0:
                os.close(stream.theirs)
                stream.theirs = -1

    def log(self, level: int, stream: str, line: str) -> None:
        """One record."""
        if self._mute:
            return
        extra: dict[str, object] = {"context": self.who, "pid": self.pid, "stream": stream}
        values = self.who, self.pid, line
        self._mute = not _logged(LOGGER, level, "%s (pid %d): %s", values, extra)
