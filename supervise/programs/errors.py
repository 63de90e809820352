"""The errors of a `Command`, each with the tag by which a decider knows it."""

from __future__ import annotations

import signal

from .._core._check import plain
from ..errors import SuperviseError


class CommandError(SuperviseError):
    """The base of the errors of a `Command`. The last lines of the program's output are a note of each."""

    tag = "command"


class CommandExited(CommandError):
    """The program has ended, and was not asked to.

    Its tag is `command.exit.N` with the exit status, or `command.signal.NAME`, such as `command.signal.SIGSEGV`.

    Attributes:
        status: the exit status; None if a signal killed it.
        signal: the name of the signal; None if it exited.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.status = code if code >= 0 else None
        self.signal = signal_name(-code) if code < 0 else None
        self.tag = f"command.exit.{code}" if code >= 0 else f"command.signal.{self.signal}"


class CommandMissing(CommandError):
    """The program could not be started: it does not exist or is not executable, or its folder, user, limits or files could not be set."""

    tag = "command.missing"


class CommandNotReady(CommandError):
    """The program was not ready within its `ready_timeout`, or another process serves its port."""

    tag = "command.not_ready"


class CommandUnhealthy(CommandError):
    """The checks of `alive` have failed so often in a row that the program was stopped."""

    tag = "command.unhealthy"


class CommandNotIsolated(CommandError):
    """This machine does not permit the `isolation` that the declaration asks for."""

    tag = "command.isolation"


class GuardianLost(CommandError):
    """The guardian of the program was killed or did not answer. Everything that was left of the program has been killed."""

    tag = "command.guardian"


def is_signal(value: object) -> bool:
    """Whether it is the number of a signal that a program can get."""
    number = plain(value)
    return type(number) is int and number in signal.valid_signals()


def signal_name(number: int) -> str:
    """`SIGTERM` for 15; a signal without a name has its number, as `SIG40`."""
    return next((known.name for known in signal.Signals if known == number), f"SIG{number}")
