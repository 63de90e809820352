"""What a session in a process needs of its host."""

from __future__ import annotations

from typing import Protocol

from runners.diagnosis.nvml import Nvml


class Terms(Protocol):
    """The settings of a host that its sessions read. All times are in seconds; `ProcessHost` describes them."""

    @property
    def device(self) -> str:
        """The device of the runner, as torch names it."""
        ...

    @property
    def load_timeout(self) -> float:
        """Until the runner is loaded; a rebuild has as long."""
        ...

    @property
    def first_chunk_timeout(self) -> float:
        """Without progress while a stream waits for its first chunk."""
        ...

    @property
    def next_chunk_timeout(self) -> float | None:
        """Without progress while all open streams have had a chunk; None derives it from the median step."""
        ...

    @property
    def close_timeout(self) -> float:
        """To close the runner."""
        ...

    @property
    def kill_timeout(self) -> float:
        """From SIGKILL to the death of the process."""
        ...

    @property
    def nvml(self) -> Nvml:
        """How NVML is asked about the device after a poison (D4)."""
        ...
