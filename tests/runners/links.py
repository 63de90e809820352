"""A machine's network behind a bridge: a namespace whose link can be cut, silently. What runs in it sees only that network."""

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress

import pytest

BRIDGE, NEAR, SPACE, ADDRESSES = "sv-bridge", "sv-near", "sv-far", "10.231.77"
HERE, THERE = f"{ADDRESSES}.1", f"{ADDRESSES}.2"
INSIDE = ("ip", "netns", "exec", SPACE)
"""What runs a command in the namespace."""


def _may_make_namespaces():
    """Whether a network of our own can be made: this needs root, and the program `ip`."""
    if os.geteuid() or shutil.which("ip") is None:
        return False
    made = subprocess.run(["ip", "netns", "add", "sv-try"], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", "sv-try"], capture_output=True, check=False)
    return made


needs_namespaces = pytest.mark.skipif(
    not _may_make_namespaces(), reason="network namespaces need root and the program ip"
)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


def cut():
    """Take the link off the bridge: nothing arrives any more, and neither end is closed."""
    ip("link", "set", NEAR, "nomaster")


def heal():
    ip("link", "set", NEAR, "master", BRIDGE)


@contextmanager
def network():
    """The namespace, with a link to `HERE`, and over that to all addresses of this machine."""
    try:
        ip("netns", "add", SPACE)
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{HERE}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        ip("link", "add", NEAR, "type", "veth", "peer", "name", "eth0", "netns", SPACE)
        ip("link", "set", NEAR, "master", BRIDGE, "up")
        ip("-n", SPACE, "addr", "add", f"{THERE}/24", "dev", "eth0")
        ip("-n", SPACE, "link", "set", "lo", "up")
        ip("-n", SPACE, "link", "set", "eth0", "up")
        ip("-n", SPACE, "route", "add", "default", "via", HERE)
        yield
    finally:
        for words in (("link", "del", BRIDGE), ("link", "del", NEAR), ("netns", "del", SPACE)):
            with suppress(subprocess.CalledProcessError):
                ip(*words)
