"""The standard output and standard error of our processes, as log records of `runners.context`.

Standard output is INFO, standard error WARNING; of the interpreter's report of a crash only the first line is WARNING, the
stacks after it are INFO. A record has the attributes `context` (the path and incarnation of the leaf), `pid` and `stream`.
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

from runners.hosts.process.standard import pipe

LOGGER = logging.getLogger("runners.context")
_HOSTS = logging.getLogger("runners.hosts")
MAX_LINE = 4096
"""Bytes of the longest line; a longer one becomes several records."""
LINES_PER_SECOND = 500
"""The limit for one stream. Further lines are counted and dropped, so that a flood of lines cannot block the loop."""

_READ = 4096  # so that a read takes little time even if every second byte ends a line
_LAST_READS = 64
_LAST_LINES = 40

_CRASH = "Fatal Python error: "
_BEHIND_IT = ("  ", "Current thread", "Thread 0x", "Extension modules: ", "Python runtime state: ")
"""The beginnings of the lines with stacks in the interpreter's report of a crash."""


def log_event(level: int, text: str, *values: object) -> None:
    """Log an event in the life of a process, at the logger `runners.hosts`."""
    _logged(_HOSTS, level, text, values, None)


def _logged(
    logger: logging.Logger, level: int, text: str, values: tuple[object, ...], extra: dict[str, object] | None
) -> bool:
    """Log a record. If a filter or handler raises, also `SystemExit`, print its traceback and return False.

    Raised from a system task of a host, the exception would end the whole Trio run with a `TrioInternalError`.
    """
    try:
        logger.log(level, text, *values, extra=extra, stacklevel=3)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - A user's handler may raise anything, and a broken log must not fail a context.
        with suppress(Exception):  # standard error may be closed
            traceback.print_exc(file=sys.stderr)
        return False
    return True


class Lines:
    """Splits bytes into lines; keeps at most the last one, which has no end yet."""

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
        """The rest without a line end, as a line."""
        rest, self._rest = self._rest, b""
        yield from _texts(rest)


def _texts(line: bytes) -> Iterator[str]:
    for start in range(0, len(line), MAX_LINE):
        text = line[start : start + MAX_LINE].decode("utf-8", "backslashreplace").rstrip()
        if text:
            yield text if text.isprintable() else _visible(text)


def _visible(text: str) -> str:
    """A text with escapes for control characters, which would act on a terminal or, as carriage returns do, forge a line."""
    return "".join(
        char if char.isprintable() or char == "\t" else char.encode("unicode_escape").decode()
        for char in text
    )


class Ration:
    """Allows `most` lines in each second, and counts the rest."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._second = -1
        self._count = 0
        self.refused = 0

    def take(self, now: float) -> bool:
        """Count one more; returns whether it is allowed."""
        if int(now) != self._second:
            self._second, self._count = int(now), 0
        self._count += 1
        self.refused += self._count > self._most
        return self._count <= self._most


class _Stream:
    """One stream of a process, and the reading end of its pipe if it has one."""

    def __init__(self, output: Output, name: str, level: int) -> None:
        self._output = output
        self._name = name
        self._level = level
        self._lines = Lines()
        self._ration = Ration(LINES_PER_SECOND)
        self.descriptor = self.theirs = -1
        self.last: deque[str] = deque(maxlen=_LAST_LINES)
        self._crashed = False  # whether all lines since the first one of a crash belong to its report
        if output.piped:
            self.descriptor, self.theirs = pipe()
            os.set_blocking(self.descriptor, False)

    def feed(self, data: bytes) -> None:
        """Log the lines that these bytes complete."""
        for line in self._lines.feed(data):
            self._take(line)

    def read(self) -> bool:
        """Read once, and log the complete lines; returns False at the end of the stream, or if it is closed.

        Raises:
            BlockingIOError: there is nothing to read.
        """
        if self.descriptor < 0:  # it was closed after the pump was woken, but before it ran
            return False
        data = os.read(self.descriptor, _READ)
        for line in self._lines.feed(data) if data else self._lines.end():
            self._take(line)
        return bool(data)

    def close(self) -> None:
        """Close the descriptor, if it is open."""
        if self.descriptor >= 0:
            trio.lowlevel.notify_closing(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = -1

    async def finish(self) -> None:
        """Log the rest, up to a bound: a process that the dead one has started may hold the pipe open, and write on."""
        with suppress(BlockingIOError):
            for _ in range(_LAST_READS):
                if not self.read():
                    break
                await trio.lowlevel.checkpoint()
        for line in self._lines.end():
            self._take(line)
        self._report_dropped()

    def _take(self, line: str) -> None:
        self.last.append(line)
        if self._ration.take(trio.current_time()):
            self._report_dropped()
            self._output.log(self._level_of(line), self._name, line)

    def _level_of(self, line: str) -> int:
        """The level of a line. The stacks of a crash are INFO: `ContextDied`, which follows, has them as a note."""
        if line.startswith(_CRASH):
            self._crashed = True
            return self._level
        self._crashed = self._crashed and line.startswith(_BEHIND_IT)
        return logging.INFO if self._crashed else self._level

    def _report_dropped(self) -> None:
        if dropped := self._ration.refused:
            self._ration.refused = 0
            self._output.log(logging.WARNING, self._name, f"({dropped} lines too many in a second, dropped)")


class Output:
    """Both streams of one process.

    Each record begins with `who`. If a logging handler raises, its traceback is printed once, and logging stops.
    Without pipes (`piped`), as for a process on another machine, `feed` takes what it writes.
    """

    def __init__(self, who: str, *, piped: bool = True) -> None:
        self.who = who
        self.pid = 0
        self.piped = piped
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
        """A context manager: the ends to which the process writes. Leaving closes them in this process."""
        try:
            yield self._streams[0].theirs, self._streams[1].theirs
        finally:
            self._close_theirs()

    @enable_ki_protection  # it runs below a system task: a KeyboardInterrupt in it would end the whole Trio run
    async def pump(self) -> None:
        """Log both streams until they end or are closed."""
        async with trio.open_nursery() as nursery:
            for stream in self._streams:
                nursery.start_soon(self._pump, stream)

    @enable_ki_protection
    async def _pump(self, stream: _Stream) -> None:
        more = True
        with suppress(trio.ClosedResourceError):
            while more and stream.descriptor >= 0:  # it may be closed before this task first runs
                await trio.lowlevel.wait_readable(stream.descriptor)
                with suppress(BlockingIOError):  # `drain` has read it meanwhile
                    more = stream.read()

    def feed(self, data: bytes, *, errors: bool) -> None:
        """Log what the process has written to its standard output, or to its standard error."""
        self._streams[errors].feed(data)

    def last_lines(self) -> str:
        """The last lines of standard error. Call it after `drain`, which reads all of it."""
        return "\n".join(self._streams[1].last)

    async def drain(self) -> None:
        """Log the rest of the output of a dead process."""
        for stream in self._streams:
            await stream.finish()

    def close(self) -> None:
        """Close all descriptors."""
        self._close_theirs()
        for stream in self._streams:
            stream.close()

    def _close_theirs(self) -> None:
        for stream in self._streams:
            if stream.theirs >= 0:
                os.close(stream.theirs)
                stream.theirs = -1

    def log(self, level: int, stream: str, line: str) -> None:
        """Log one line."""
        if self._mute:
            return
        extra: dict[str, object] = {"context": self.who, "pid": self.pid, "stream": stream}
        values = self.who, self.pid, line
        self._mute = not _logged(LOGGER, level, "%s (pid %d): %s", values, extra)
