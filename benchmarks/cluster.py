"""A Ray cluster of our own on this machine, and hosts on its nodes. Tests use it too."""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.loopback import ROOT
from runners.hosts.remote.ray import RayHost

_MARK = "BENCHMARKS_CLUSTER"
NODE = "BENCHMARKS_NODE"
"""The variable in the environment of all processes of a node: its name."""
_LEAST_STORE = 78 * 2**20
"""Bytes of the smallest object store that Ray starts; nothing is put into it here."""
_QUICK = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1500,
    "health_check_failure_threshold": 3,
}
"""A node that does not answer is lost after five seconds; with Ray's own settings it is a minute. With less a busy node is lost too."""
_PATIENCE = 60.0


def missing() -> str | None:
    """Why no cluster can be started here."""
    return None if importlib.util.find_spec("ray") else "ray is not installed (the extra ray)"


class Cluster:
    """A head without room, and nodes. Each has room for some contexts, as the resource `place` and as one with its own name."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._count = 0
        self.nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self._cluster.address)

    def add(self, places: int = 2) -> str:
        """Start a node, which takes some seconds; returns its name."""
        self._count += 1
        name = f"node-{self._count}"
        with _own_sigterm():
            self.nodes[name] = self._cluster.add_node(
                num_cpus=1,
                resources={"place": places, name: places},
                object_store_memory=_LEAST_STORE,
                env_vars={NODE: name},
            )
        return name

    @contextmanager
    def joined(self, name: str, *, inside: Sequence[str] = (), address: str | None = None) -> Generator[None]:
        """A node with room for one context, as the resource `joined`, that joins in some seconds.

        Args:
            name: of the node.
            inside: a command in front of its own, with which it starts in another network.
            address: its own; None is that of the head.
        """
        address = address or self.address.rpartition(":")[0]
        command = [
            *(*inside, sys.executable, "-c", "from ray.scripts.scripts import main; main()"),
            *("start", f"--address={self.address}", f"--node-ip-address={address}", "--num-cpus=1"),
            *(f"--object-store-memory={_LEAST_STORE}", '--resources={"joined": 1}', "--block"),
        ]
        process = subprocess.Popen(
            command, env={**os.environ, NODE: name}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            _end_all(lambda: processes_of(name))
            process.wait()

    def remove(self, name: str) -> None:
        """Kill all processes of a node."""
        with suppress(KeyError):  # the head has noticed its end already
            self._cluster.remove_node(self.nodes.pop(name), allow_graceful=False)

    def raylet(self, name: str) -> int:
        """The pid of the process of Ray that manages a node."""
        (found,) = self.nodes[name].all_processes["raylet"]
        return int(found.process.pid)

    def host(self, **settings: Any) -> RayHost:
        """A host on its nodes, each of whose processes takes a place."""
        return RayHost(
            self.address, **{"num_cpus": 0, "resources": {"place": 1}, "path": (str(ROOT),), **settings}
        )


@contextmanager
def _own_sigterm() -> Generator[None]:
    """What starts a node of Ray also takes SIGTERM for itself. Leaving gives it back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def clustered() -> Generator[Cluster]:
    """A cluster without nodes. Afterwards nothing of it is left, whatever has become of its parts."""
    mark = secrets.token_hex(8)
    os.environ.update({_MARK: mark, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"})
    ray = importlib.import_module("ray")  # reads the environment
    utils = importlib.import_module("ray.cluster_utils")
    folder = tempfile.mkdtemp(prefix="ray-")  # not a longer name: the name of a socket has at most 107 bytes
    try:
        with _own_sigterm():
            nodes = utils.Cluster(
                initialize_head=True,
                head_node_args={
                    "num_cpus": 0,
                    "include_dashboard": False,
                    "object_store_memory": _LEAST_STORE,
                    "_system_config": _QUICK,
                    "temp_dir": folder,
                },
            )
        try:
            yield Cluster(nodes)
        finally:
            ray.shutdown()
            nodes.shutdown()
    finally:
        _end_all(lambda: processes_with(_MARK, mark) | _writing_in(folder))
        del os.environ[_MARK]
        shutil.rmtree(folder, ignore_errors=True)


def processes_of(node: str) -> set[int]:
    """The pids of the processes of a node. The cluster of another program may have a node of the same name."""
    return processes_with(NODE, node) & processes_with(_MARK, os.environ[_MARK])


def processes_with(name: str, value: str) -> set[int]:
    """The pids of other processes with this variable in their environment."""
    found = set[int]()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{name}={value}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found - {os.getpid()}


def _writing_in(folder: str) -> set[int]:
    """The pids of other processes with an open file in this folder: some of Ray's overwrite their environment by their title."""
    found = set[int]()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(entry.readlink()).startswith(f"{folder}/"):
                found.add(int(entry.parts[2]))
    return found - {os.getpid()}


def _end_all(left_over: Callable[[], set[int]]) -> None:
    """Kill processes until none of them is left."""
    end = time.monotonic() + _PATIENCE
    while left := left_over():
        assert time.monotonic() < end, left
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
