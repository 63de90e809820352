"""The environment, working directory and umask that a process inherits.

A fork server has those of its own start, or those that its preload has set. So a process that it forks gets the differences to
our present ones, and adopts them: it is then as if it was started cold.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from runners.hosts import MARK
from runners.hosts.process.wire import Surroundings


def environment() -> dict[bytes, bytes]:
    """A copy of the environment. Another thread may remove a variable while it is made; then the copy lacks it."""
    values = ((name, os.environb.get(name)) for name in list(os.environb))
    return {name: value for name, value in values if value is not None}


def today(before: dict[bytes, bytes]) -> Surroundings:
    """The variables that have changed since `before`, and the present working directory and umask.

    Variables that have not changed stay as a preload has set them. The directory and the umask are always sent, since a
    preload may have changed its own; a directory that has been deleted is left out.
    """
    return Surroundings(changes(before, environment()), _folder(), _umask())


def changes(before: dict[bytes, bytes], after: dict[bytes, bytes]) -> list[tuple[bytes, bytes | None]]:
    """The variables that differ between two environments, with the value that they have after; None is one that was removed."""
    names = sorted(before.keys() | after.keys())
    return [(name, after.get(name)) for name in names if before.get(name) != after.get(name)]


def adopt(wanted: Surroundings) -> None:
    """Adopt these surroundings. A folder that cannot be entered is ignored, since a program that is started cold in it starts too."""
    for name, value in wanted.environment:
        if os.fsdecode(name) == MARK:  # each of our processes has a mark of its own
            continue
        if value is None:
            os.environb.pop(name, None)
        else:
            os.environb[name] = value
    if wanted.folder is not None:
        with suppress(OSError):
            os.chdir(wanted.folder)
    if wanted.umask is not None:
        os.umask(wanted.umask)


def _folder() -> bytes | None:
    try:
        return os.fsencode(Path.cwd())
    except OSError:
        return None


def _umask() -> int | None:
    """The umask, read from /proc: `os.umask` can only return it by setting it, for all threads."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_bytes().splitlines():
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return None
