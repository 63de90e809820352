"""The name of a process of ours in `ps` and `top`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def entitle(title: str) -> None:
    """Name this process, because all our processes have the same command line."""
    with suppress(OSError):  # no /proc
        Path("/proc/self/comm").write_text(f"runners:{title}")
