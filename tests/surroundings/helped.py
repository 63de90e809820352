"""A runner that starts a process of its own, as data loaders and compile workers are."""

from __future__ import annotations

import subprocess
import sys

import attrs

from runners.models.scripted import Scripted


def flags() -> tuple[int, ...]:
    """The options of this interpreter, but `-P`, which is ours."""
    names = (
        "optimize",
        "isolated",
        "dev_mode",
        "ignore_environment",
        "no_user_site",
        "bytes_warning",
    )
    return tuple(int(getattr(sys.flags, name)) for name in names)


_started: list[subprocess.Popen[bytes]] = []


@attrs.frozen
class Helped:
    """What it starts is never ended by it. It insists on an interpreter with the options of its parent's."""

    inner: Scripted
    flags: tuple[int, ...]

    def build(self, start):
        if flags() != self.flags:
            raise ValueError(f"the parent was started with {self.flags}, this with {flags()}")
        _started.append(subprocess.Popen(["sleep", "3600"], start_new_session=start.incarnation == 2))
        return self.inner.build(start)
