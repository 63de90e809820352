"""What a process inherits at its start: environment, folder and umask.

A fork server has those of its own start, or of its preload, so a process that it forks is told what is different today, and is
then as one that was started cold.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from runners.hosts import MARK
from runners.hosts.wire import Surroundings


def environment() -> dict[bytes, bytes]:
    """As it is. Another thread may change it meanwhile: a variable that has just gone is gone."""
    values = ((name, os.environb.get(name)) for name in list(os.environb))
    return {name: value for name, value in values if value is not None}


def today(before: dict[bytes, bytes]) -> Surroundings:
    """What is not as it was in the environment, where the rest is what a preload has made of it; the folder and the umask.

    A folder that is gone is left out.
    """
    after = environment()
    names = sorted(before.keys() | after.keys())
    changed = [(name, after.get(name)) for name in names if before.get(name) != after.get(name)]
    return Surroundings(changed, _folder(), _umask())


def adopt(changes: Surroundings) -> None:
    """Have them here; a folder that cannot be entered is left out, as a program that is started there would start too."""
    for name, value in changes.environment:
        if os.fsdecode(name) == MARK:  # ours is this process's own
            continue
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value
    if changes.folder is not None:
        with suppress(OSError):
            os.chdir(changes.folder)
    if changes.umask is not None:
        os.umask(changes.umask)


def _folder() -> bytes | None:
    try:
        return os.fsencode(Path.cwd())
    except OSError:
        return None


def _umask() -> int | None:
    """Read, where `os.umask` would have to set it, in all threads."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return None
