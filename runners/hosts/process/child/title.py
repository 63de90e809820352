"""What `ps` and `top` call a process of ours."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def entitle(title: str) -> None:
    """Name this process, beside the command line that all of ours have in common."""
    with suppress(OSError):  # no /proc
        Path("/proc/self/comm").write_text(f"runners:{title}")
