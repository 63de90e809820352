"""What a command writes on standard output."""

from __future__ import annotations

import os
import sys
from typing import Any

from .load import NoTree


def write(text: str) -> None:
    """Write to standard output. Escape the characters that it cannot encode; ignore a pipe whose reader has left."""
    out: Any = sys.stdout
    if out is None:  # it was closed before Python began
        return
    encoding = getattr(out, "encoding", None) or "utf-8"
    try:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()
    except OSError as problem:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), 1
        )  # otherwise Python would try again at its end, and print an error
        if not isinstance(problem, BrokenPipeError):
            raise NoTree(f"cannot write to standard output: {problem}") from problem
