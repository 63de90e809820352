"""Raise SIGINT at the n-th line that a run executes in a package."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

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
        generator = getattr(frame.f_locals.get("self"), "gen", None)
        code = getattr(generator, "gi_code", None) or getattr(generator, "ag_code", None)
        return code is not None and code.co_filename.startswith(self._folders)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if self._is_ours(frame) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event != "line":
            return self._line
        self.lines += 1
        if self._strikes and self.lines == self._strikes[-1]:
            self._strikes.pop()
            code = frame.f_code
            self.struck.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}")
            signal.raise_signal(
                signal.SIGINT
            )  # raises here, as at that line, or later where that is protected
        return self._line
