"""Machines of one network, each a network namespace behind a bridge, from which its link can be taken silently. Tests use it too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress

from attrs import frozen

_MINE = f"sv{os.getpid()}"
"""The prefix of all names, so that two programs use different ones."""
_NETWORK = f"10.231.{os.getpid() % 254 + 1}"
HERE = f"{_NETWORK}.1"
"""The address of this machine in the network."""


@frozen
class Space:
    """A machine: its number, from 0."""

    number: int

    @property
    def address(self) -> str:
        """Its address."""
        return f"{_NETWORK}.{self.number + 2}"

    @property
    def inside(self) -> tuple[str, ...]:
        """The words before a command that run it there."""
        return "ip", "netns", "exec", self._name

    @property
    def _name(self) -> str:
        return f"{_MINE}-{self.number}"

    def cut(self) -> None:
        """Take its link off: no byte passes, and no end of a connection is seen."""
        _ip("link", "set", self._name, "nomaster")

    def heal(self) -> None:
        """Put its link back."""
        _ip("link", "set", self._name, "master", _MINE)

    @contextmanager
    def made(self) -> Generator[None]:
        """A context manager: the namespace and its link, whose near end has the same name. Both are deleted when the block is left."""
        name = self._name
        with _made("netns", name), _made("link", name, "type", "veth", "peer", "name", "eth0", "netns", name):
            self.heal()
            _ip("link", "set", name, "up")
            _ip("-n", name, "addr", "add", f"{self.address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "route", "add", "default", "via", HERE)
            yield


def missing() -> str | None:
    """Why no namespaces can be made here."""
    if os.geteuid() or shutil.which("ip") is None:
        return "network namespaces need root and the program ip"
    try:
        with _made("netns", f"{_MINE}-try"):
            return None
    except subprocess.CalledProcessError:
        return "network namespaces may not be made here"


@contextmanager
def network(count: int = 1) -> Generator[list[Space]]:
    """A context manager: `count` machines. They are deleted when the block is left."""
    with _made("link", _MINE, "type", "bridge"), ExitStack() as stack:
        _ip("addr", "add", f"{HERE}/24", "dev", _MINE)
        _ip("link", "set", _MINE, "up")
        spaces = [Space(number) for number in range(count)]
        for space in spaces:
            stack.enter_context(space.made())
        yield spaces


@contextmanager
def _made(kind: str, name: str, *more: str) -> Generator[None]:
    """Add a thing of this kind, and delete it afterwards; a link may be gone then, with the namespace of its other end."""
    _ip(kind, "add", name, *more)
    try:
        yield
    finally:
        with suppress(subprocess.CalledProcessError):
            _ip(kind, "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
