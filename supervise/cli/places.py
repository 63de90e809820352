"""Where in the user's files a problem is: the call that declares a spec, and the comments that silence a warning there."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

from attrs import define, field, frozen

from .._core.spec import Child, Pool, Supervisor

_LIBRARIES = ("supervise", "runners")


@frozen
class Place:
    """The first and the last line of a call or a statement in a file."""

    file: str
    line: int
    last: int

    @property
    def shown(self) -> str:
        """The path of the file, relative to the current folder if it is in there."""
        return shown(self.file)


def shown(file: str) -> str:
    """A path as a user would write it: relative to the current folder if it is in there."""
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except (ValueError, OSError):  # it is not in there, or the folder has been deleted
        return file


@define
class Declared:
    """Collects each spec and each problem with its place, while a file is being loaded.

    Args:
        target: the name of the module that is loaded: a library's frames are passed over unless they are its own.
    """

    target: str
    places: dict[Child | Supervisor | Pool, Place] = field(factory=dict)
    problems: list[tuple[str, Place | None]] = field(factory=list)
    _lines: dict[int, tuple[CodeType, list[tuple[int | None, int | None]]]] = field(factory=dict)
    """The lines of each instruction, by the number of its code, which is kept so that the number stays its own."""

    def watch(self, thing: object) -> None:
        """Note a problem or a spec; called in its constructor."""
        place = self._caller()
        if isinstance(thing, Exception):
            # A body that needs more arguments is refused by its supervisor: a pool may give them later.
            misfits = (its for spec, its in self.places.items() if spec.misfit == str(thing))
            problem = str(thing), next(misfits, place)
            if problem not in self.problems:
                self.problems.append(problem)
        elif isinstance(thing, (Child, Supervisor, Pool)) and place is not None:
            self.places[thing] = place

    def _caller(self) -> Place | None:
        """The innermost call in the user's own code."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and self._is_ours(frame):
            frame = frame.f_back
        if frame is None or frame.f_code.co_filename.startswith("<frozen"):
            return None
        if id(frame.f_code) not in self._lines:  # a declaration of thousands of nodes may be one expression
            self._lines[id(frame.f_code)] = frame.f_code, [each[:2] for each in frame.f_code.co_positions()]
        begin, end = self._lines[id(frame.f_code)][1][frame.f_lasti // 2]
        first = begin or frame.f_lineno
        return Place(frame.f_code.co_filename, first, end or first)

    def _is_ours(self, frame: FrameType) -> bool:
        name = str(frame.f_globals.get("__name__"))
        if frame.f_code.co_filename.startswith("<attrs generated"):
            return True
        return name.partition(".")[0] in _LIBRARIES and name != self.target


# --- comments

_COMMENT = re.compile(r"#\s*supervise:\s*ignore\b\s*(?:\[([^\]]*)\])?")


@define
class Comments:
    """The comments `# supervise: ignore[SUP201, SUP204]` of all files that have been asked for."""

    _files: dict[str, dict[int, tuple[str, ...]]] = field(factory=dict)

    def silence(self, code: str, place: Place) -> bool:
        """Whether the first or the last line of that place has a comment with this code."""
        lines = self._of(place.file)
        return code in (*lines.get(place.line, ()), *lines.get(place.last, ()))

    def all(self, file: str) -> Iterator[tuple[Place, tuple[str, ...]]]:
        """Each comment of a file, with its codes."""
        for line, codes in self._of(file).items():
            yield Place(file, line, line), codes

    def _of(self, file: str) -> dict[int, tuple[str, ...]]:
        if file not in self._files:
            self._files[file] = dict(_comments(file))
        return self._files[file]


def _comments(file: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    try:
        with tokenize.open(file) as opened:
            text = opened.read()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            found = _COMMENT.search(token.string) if token.type == tokenize.COMMENT else None
            if found is not None:
                yield token.start[0], tuple(code.strip() for code in (found[1] or "").split(","))
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return  # it is no file, such as the text behind `python -c`
