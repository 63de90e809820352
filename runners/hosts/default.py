"""The host of a worker that names none."""

from __future__ import annotations

from runners.hosts import Host


def default_host() -> Host:
    """A `ProcessHost` on the CPU.

    Raises:
        ImportError: the extra `process` is not installed, which hosts without a process do without.
    """
    from runners.hosts.process.host import ProcessHost  # noqa: PLC0415 - a worker that names a host needs no msgspec

    return ProcessHost()
