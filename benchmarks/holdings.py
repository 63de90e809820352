"""What a process holds: the processes below it, descriptors, shared memory and temporary files. A run must leave none behind."""

from __future__ import annotations

import gc
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from attrs import asdict, frozen


def descendants(of: int = 0) -> set[int]:
    """The pids of all descendants of a process, by default of this one; including zombies."""
    root = of or os.getpid()
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_bytes().rpartition(b")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, before = {root}, 0
    while len(found) > before:
        before = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {root}


def abandoned() -> frozenset[str]:
    """The names of shared memory of this user that no process has mapped. What another program uses is not left behind by this one."""
    found, mapped = dict[str, int](), set[int]()
    for entry in Path("/dev/shm").iterdir():
        with suppress(OSError):
            held = entry.stat()
            if held.st_uid == os.getuid():
                found[entry.name] = held.st_ino  # a semaphore is mapped by another name
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            lines = (process / "maps").read_bytes().splitlines()
            mapped |= {int(line.split()[4]) for line in lines if b"/dev/shm/" in line}
    return frozenset(name for name, inode in found.items() if inode not in mapped) & _names("/dev/shm")


def _names(folder: str) -> frozenset[str]:
    return frozenset(entry.name for entry in Path(folder).iterdir())


@frozen
class Holdings:
    """The resources of this process that it must not leave behind."""

    processes: frozenset[int]
    descriptors: frozenset[str]
    shared: frozenset[str]
    files: frozenset[str]

    @classmethod
    def now(cls) -> Holdings:
        """The present ones."""
        gc.collect()
        return cls(
            frozenset(descendants()),
            frozenset(name for name in _names("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")),
            abandoned(),
            _names(tempfile.gettempdir()),
        )

    def beyond(self, before: Holdings) -> dict[str, list[str]]:
        """The resources that were not there before."""
        ours, theirs = asdict(self), asdict(before)
        return {what: sorted(map(str, ours[what] - theirs[what])) for what in ours}
