"""External programs as leaves of a tree: `Command`, its checks and its errors.

`program` has the declaration, `running` the program while it runs, `guarded` and `guardian` the two sides of the process beside it
that leaves nothing behind. `checks`, `ports` and `notify` find out whether it is ready, `output` logs what it prints.
docs/howto/programs.md explains all of it.
"""

from .checks import every, http, line, notify, probe, tcp
from .errors import (
    CommandError,
    CommandExited,
    CommandMissing,
    CommandNotIsolated,
    CommandNotReady,
    CommandUnhealthy,
    GuardianLost,
)
from .program import Command, Program
from .running import Running

__all__ = [
    "Command",
    "CommandError",
    "CommandExited",
    "CommandMissing",
    "CommandNotIsolated",
    "CommandNotReady",
    "CommandUnhealthy",
    "GuardianLost",
    "Program",
    "Running",
    "every",
    "http",
    "line",
    "notify",
    "probe",
    "tcp",
]


def __dir__() -> list[str]:
    return sorted(__all__)
