"""What a session and a reserve need of a context process, whether it runs here (`peer.Peer`) or on another machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from runners.diagnosis.nvml import Nvml
from runners.errors import ContextDied
from runners.hosts.process.parent.output import Output


class Connection(Protocol):
    """A running context process behind a connection. Its user must `reap` it."""

    @property
    def pid(self) -> int:
        """Its number on its machine."""
        ...

    @property
    def name(self) -> str:
        """What texts call it, with its machine if that is another one."""
        ...

    @property
    def output(self) -> Output:
        """What it writes."""
        ...

    def send(self, data: bytes) -> None:
        """Send a frame, as far as there is room; the rest follows during `wait`. Never blocks."""
        ...

    def send_marked(self, frames: Mapping[int, bytes]) -> None:
        """Send frames as `send`, in one write. `withdraw` finds each by its mark."""
        ...

    def withdraw(self, mark: int) -> bool:
        """Take back the frame with this mark; returns False if a part of it is sent."""
        ...

    def read(self) -> bytes | None:
        """The bytes that have come; None if none have, and no bytes once the other end is closed."""
        ...

    async def wait(self) -> None:
        """Wait until bytes have come, there is room for unsent ones, or the process is dead."""
        ...

    @property
    def dead(self) -> bool:
        """Whether it is dead, or its machine is lost. Then all that it has sent can be read."""
        ...

    @property
    def waits(self) -> bool:
        """Whether it is alive, is not about to die, and has sent nothing, as a standby must."""
        ...

    def go_on(self) -> None:
        """Continue it, since a standby may have been stopped by a signal. Never blocks."""
        ...

    async def drained(self) -> None:
        """Wait until it is dead. Its bytes are read and ignored."""
        ...

    async def fate(self, seconds: float) -> str:
        """Wait so many seconds for its death; returns how it ended, as a text that follows its name."""
        ...

    @property
    def death(self) -> type[ContextDied]:
        """The class of the error for a session whose process has died so. It is known once `fate` has returned."""
        ...

    def kill(self, poisoned: bool = False, /) -> None:
        """Kill it and the processes that it has started. Never blocks.

        `poisoned`: whether its context is, so that `trouble` follows.
        """
        ...

    async def trouble(self, nvml: Nvml, device: str, /) -> str | None:
        """Why its device cannot be used again, as NVML on its machine reports; None if it can be, or if that is not known (D4).

        It must have been killed as poisoned, or have died. What it has sent and the session has not read may be lost.
        """
        ...

    async def reap(self, seconds: float) -> bool:
        """Kill it, and return when its device is free.

        Returns True if it is still alive after so many seconds, and not reaped.
        """
        ...
