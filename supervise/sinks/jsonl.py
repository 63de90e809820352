"""Events as JSON lines, for other programs, and for later."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from .._core._brief import brief
from .._core._check import check_number
from ..events import Event
from .data import as_data


class JsonLinesSink:
    """A sink that writes each event as one line of JSON, in the schema of `supervise.sinks.data.as_data` (R31).

    A file is opened at the first event, and appended to; half a line at its end, which a full disk leaves, gets its end. When it
    would pass `most` bytes it is renamed to `NAME.1`, an older `NAME.1` to `NAME.2`, and so on; the oldest is deleted. So all files
    together have at most `(kept + 1) * most` bytes. A link is followed. A file that is not regular, such as `/dev/null` or a pipe, is
    never renamed, nor is one that another program has put in the place of this one: that is appended to. A named pipe must have a
    reader when it is opened. Each line is written whole and at once. If that fails, for instance because the disk is full, the tree
    reports it once and goes on without this sink.

    Args:
        target: the path of a file, or an open text file, which is never renamed; None is standard error, as it is at each event.
        most: bytes of one file, 1 or more.
        kept: how many older files are kept, 0 or more.

    Raises:
        ValueError: a number is out of range.
        TypeError: the target is neither a path nor a text file.
    """

    def __init__(
        self, target: str | os.PathLike[str] | TextIO | None = None, *, most: int = 10 * 2**20, kept: int = 3
    ) -> None:
        check_number("most", most, least=1, kind=int)
        check_number("kept", kept, least=0, kind=int)
        if not (target is None or isinstance(target, str | os.PathLike) or hasattr(target, "write")):
            raise TypeError(f"target must be a path, a text file or None, got {brief(target)}")
        self._path = Path(target) if isinstance(target, str | os.PathLike) else None
        self._file = None if isinstance(target, str | os.PathLike) else target
        self._size = 0
        self._is_regular = False
        self._most = most
        self._kept = kept
        self._number = 0

    def __call__(self, event: Event) -> None:
        """Write one line."""
        self._number += 1
        line = json.dumps(as_data(event, number=self._number, time=time.time()), separators=(",", ":")) + "\n"
        file = self._file if self._path is None else self._with_room(self._path, len(line))
        file = sys.stderr if file is None else file
        file.write(line)
        file.flush()

    def open(self) -> None:
        """Open the file now, so that a mistake in its path shows at once and not at the first event.

        Raises:
            OSError: it cannot be opened for writing; ENXIO says of a named pipe that it has no reader.
        """
        if self._path is not None:
            self._opened(self._path)

    def close(self) -> None:
        """Close the file that this sink has opened; a later event opens it again."""
        if self._path is not None and self._file is not None:
            with suppress(OSError):  # a line that could not be written has been reported at its event
                self._file.close()
            self._file = None

    def _with_room(self, path: Path, more: int) -> TextIO:
        """The open file; a new one if this one has no room for so many bytes. A longer line has a file for itself."""
        file = self._opened(path)
        if self._is_regular and self._size and self._size + more > self._most:
            is_there = _is_at(file, path)
            file.close()
            self._file = None
            if is_there:
                self._rename(path.resolve())
            file = self._opened(path)
        self._size += more
        return file

    def _opened(self, path: Path) -> TextIO:
        """The file, which is opened if it is not."""
        if self._file is None:
            self._path = path.absolute()  # the program may change its folder
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            # A pipe without a reader is an error: otherwise the event loop would wait for the reader.
            descriptor = os.open(self._path, flags | os.O_NONBLOCK, 0o666)
            os.set_blocking(descriptor, True)
            self._file = os.fdopen(descriptor, "a", encoding="ascii")
            opened = os.fstat(descriptor)
            self._size, self._is_regular = opened.st_size, stat.S_ISREG(opened.st_mode)
            if self._is_regular and self._size and not _ends_with_a_line(path):
                self._file.write("\n")  # into the buffer, with the next event
                self._size += 1
        return self._file

    def _rename(self, path: Path) -> None:
        """Give each file the name of the next older one, up to the first free name; the oldest file has none left."""
        names = [path]
        while len(names) <= self._kept and names[-1].exists():
            names.append(path.with_name(f"{path.name}.{len(names)}"))
        names[-1].unlink(missing_ok=True)
        for newer, older in reversed(list(pairwise(names))):
            newer.rename(older)


def _ends_with_a_line(path: Path) -> bool:
    """Whether the last line of a file is whole. It is half a line if the disk was full, or the program was killed as it wrote it."""
    try:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
    except OSError:  # it may be written to and not be read
        return True


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether this file is still the one at the path: another program may have moved it, and put anything else in its place."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
