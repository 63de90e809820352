"""Standard output and standard error of the commands."""

from __future__ import annotations

import os
import select
import sys
from typing import Any

from .._trio import last_resort
from .load import NoTree


def write(text: str) -> bool:
    """Write to standard output, and escape the characters that it cannot encode. Returns whether a reader is still there."""
    out: Any = sys.stdout
    if out is None:  # it was closed before Python began
        return False
    encoding = getattr(out, "encoding", None) or "utf-8"
    try:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()
    except UnicodeError as problem:  # such as idna, in which lines cannot be written
        raise NoTree(f"cannot write to standard output in its encoding, {encoding}") from problem
    except OSError as problem:
        # Otherwise Python would try again at its end, and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(problem, BrokenPipeError):
            raise NoTree(f"cannot write to standard output: {problem}") from problem
        return False
    return True


def write_line(text: str) -> bool:
    """Write one line, see `write`."""
    return write(f"{text}\n")


def has_reader() -> bool:
    """Whether a pipe or terminal that is standard output still has its other end."""
    poll = select.poll()
    poll.register(1, 0)  # the events that are always reported
    return not poll.poll(0)


def write_error(text: str) -> None:
    """Write one line to standard error. If that cannot be written to, the exit status alone says what has failed."""
    last_resort.write(f"{text}\n")
