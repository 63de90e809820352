"""What a process inherits at its start: environment, folder and umask.

A fork server has those of its own start, so a process that it forks is told what has changed since, and is then as one that
was started cold.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from attrs import frozen

from runners.hosts import MARK
from runners.hosts.wire import Surroundings


@frozen
class Now:
    """The surroundings of this process."""

    environment: dict[bytes, bytes]
    folder: bytes | None
    umask: int | None


def now() -> Now:
    """As they are."""
    return Now(dict(os.environb), _folder(), _umask())


def changed(before: Now) -> Surroundings:
    """What is not as it was; a folder that is gone counts as not changed."""
    after = now()
    names = before.environment.keys() | after.environment.keys()
    variables = [(name, after.environment.get(name)) for name in sorted(names)]
    return Surroundings(
        [(name, value) for name, value in variables if before.environment.get(name) != value],
        after.folder if after.folder != before.folder else None,
        after.umask if after.umask != before.umask else None,
    )


def adopt(changes: Surroundings) -> None:
    """Have them here; a folder that cannot be entered is left out, as a program that is started there would start too."""
    for name, value in changes.environment:
        if value is None:
            os.environb.pop(name, None)
        elif os.fsdecode(name) != MARK:
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
