"""The host of a worker that is declared without one."""

from __future__ import annotations

from runners.hosts import Host


def default_host() -> Host:
    """A `ProcessHost` on the CPU.

    Raises:
        ImportError: the extra `process` is not installed. Only a `ProcessHost` needs it.
    """
    from runners.hosts.process.host import ProcessHost  # noqa: PLC0415 - a worker with another host needs no msgspec

    return ProcessHost()
