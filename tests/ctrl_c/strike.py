"""Raise SIGINT at the n-th line that a run executes in a package, or at a given line of its source."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

CONTEXTLIB = contextlib.__file__


class Striker:
    """Counts the lines that are executed in some folders, and raises SIGINT before those whose numbers are given.

    Lines of `contextlib` count where it runs a generator of such a folder: there they are as much ours.
    """

    def __init__(self, folders: Sequence[Path], strikes: Sequence[int] = ()) -> None:
        self._folders = tuple(f"{folder}/" for folder in folders)
        self._strikes = sorted(strikes, reverse=True)
        self._ours: dict[str, bool] = {}
        self.lines = 0
        self.struck: list[str] = []

    @contextmanager
    def watching(self) -> Generator[None, None, None]:
        """Watch what is executed in the block."""
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _is_ours(self, frame: FrameType) -> bool:
        name = frame.f_code.co_filename
        found = self._ours.get(name)
        if found is None:
            found = self._ours[name] = name.startswith(self._folders)
        if found or name != CONTEXTLIB:
            return found
        code = _generator(frame)
        return code is not None and code.co_filename.startswith(self._folders)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if self._is_ours(frame) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event != "line":
            return self._line
        self.lines += 1
        if self._is_due(frame):
            code = frame.f_code
            self.struck.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}")
            signal.raise_signal(
                signal.SIGINT
            )  # raises here, as at that line, or later where that is protected
        return self._line

    def _is_due(self, frame: FrameType) -> bool:
        due = bool(self._strikes) and self.lines == self._strikes[-1]
        if due:
            self._strikes.pop()
        return due


Place: TypeAlias = tuple[str, int, str]
"""A line of a source: its file, its number, and whose generator it is that `contextlib` runs there."""


class PlaceStriker(Striker):
    """Counts how often each line of the source is executed, and raises SIGINT at the n-th time of one.

    For programs that do not execute the same lines in the same order each time.
    """

    def __init__(self, folders: Sequence[Path], strike: tuple[Place, int] | None = None) -> None:
        super().__init__(folders)
        self._strike = strike
        self.places = Counter[Place]()

    def _is_due(self, frame: FrameType) -> bool:
        code = frame.f_code
        run = _generator(frame) if code.co_filename == CONTEXTLIB else None
        place = (code.co_filename, frame.f_lineno, "" if run is None else run.co_qualname)
        self.places[place] += 1
        return self._strike == (place, self.places[place])


def _generator(frame: FrameType) -> Any:
    """The code of the generator that a frame of `contextlib` runs, if it does."""
    generator = getattr(frame.f_locals.get("self"), "gen", None)
    return getattr(generator, "gi_code", None) or getattr(generator, "ag_code", None)
