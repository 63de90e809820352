"""Machines of one network, each a network namespace behind a bridge, from which its link can be taken silently. Tests use it too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress

from attrs import frozen

BRIDGE, PREFIX, ADDRESSES = "sv-bridge", "sv-", "10.231.77"


@frozen
class Space:
    """A machine: its number, from 0."""

    number: int

    @property
    def name(self) -> str:
        """The name of the namespace."""
        return f"{PREFIX}{self.number}"

    @property
    def address(self) -> str:
        """Its address."""
        return f"{ADDRESSES}.{self.number + 2}"

    @property
    def inside(self) -> tuple[str, ...]:
        """What stands before a command that is to run there."""
        return "ip", "netns", "exec", self.name

    @property
    def _link(self) -> str:
        return f"{PREFIX}link{self.number}"

    def cut(self) -> None:
        """Take its link off: no byte passes, and no end of a connection is seen."""
        _ip("link", "set", self._link, "nomaster")

    def heal(self) -> None:
        """Put its link back."""
        _ip("link", "set", self._link, "master", BRIDGE)

    def make(self) -> None:
        """Make it, and its link."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._link, "master", BRIDGE, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.name, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove what was made of it."""
        for words in (("link", "del", self._link), ("netns", "del", self.name)):
            with suppress(subprocess.CalledProcessError):
                _ip(*words)


def missing() -> str | None:
    """Why no namespaces can be made here."""
    if os.geteuid() or shutil.which("ip") is None:
        return "network namespaces need root and the program ip"
    name = f"{PREFIX}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None if made else "network namespaces may not be made here"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network(count: int = 1) -> Generator[list[Space]]:
    """So many machines; afterwards they are gone."""
    spaces = [Space(number) for number in range(count)]
    try:
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{ADDRESSES}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for space in spaces:
            space.make()
        yield spaces
    finally:
        for space in spaces:
            space.remove()
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", BRIDGE)
