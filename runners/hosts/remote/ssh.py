"""`SshHost`: the runner in a process on another machine, reached by `ssh` (D10, D16).

Needs `msgspec` (the extra `process`) and Linux at both ends, the program `ssh` here, and there a Python with the same version of
this package. `reserve` and `link` have what does not depend on `ssh`.
"""

from __future__ import annotations

import math
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from attrs import field, frozen
from attrs.validators import instance_of, min_len

from runners.brief import brief
from runners.checks import at_least, plain_number
from runners.hosts.process.parent import cleaner
from runners.hosts.process.parent.output import Output
from runners.hosts.process.parent.peer import Peer
from runners.hosts.process.parent.processes import Ends, Started, connected
from runners.hosts.process.parent.standby import watched
from runners.hosts.process.terms import own_first
from runners.hosts.remote.host import FarHost
from runners.hosts.remote.link import BOOT, FarPeer, Fork
from runners.hosts.remote.reserve import FarPlan, FarReserve

_ALIVE = 3
"""How often `ssh` asks its server during a lease before it gives the connection up."""
_LONGEST = 1e6
"""Seconds of the longest time for `ssh`, which counts some of its times in milliseconds of 32 bits."""


def _check_host(_host: object, _field: object, host: str) -> None:
    if not host or host.startswith("-") or any(char.isspace() or not char.isprintable() for char in host):
        raise ValueError(f"host must be a name as `ssh` takes it, such as user@machine, got {brief(host)}")


def _plain(options: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(options, Mapping):
        raise TypeError(f"options must be a mapping, got {brief(options)}")
    return dict(options)


def _settings(connect_timeout: float, lease: float) -> dict[str, str]:
    """The options that each connection has: it asks nothing, shares nothing with another one, and notices a lost machine."""
    return {
        "BatchMode": "yes",
        "ClearAllForwardings": "yes",
        "ConnectTimeout": _seconds(connect_timeout),
        "ControlMaster": "no",
        "ControlPath": "none",
        "RemoteCommand": "none",
        "RequestTTY": "no",
        "ServerAliveInterval": _seconds(lease / _ALIVE),
        "ServerAliveCountMax": str(_ALIVE),
    }


def _seconds(number: float) -> str:
    return str(math.ceil(min(number, _LONGEST)))


def _check_options(_host: object, _field: object, options: Mapping[str, str]) -> None:
    ours = {name.lower(): name for name in _settings(1, 1)}
    for name, value in options.items():
        if type(name) is not str or not name.isalnum():
            raise ValueError(f"options must have names of ssh_config, such as Port, got {brief(name)}")
        if type(value) is not str or not value or not value.isprintable():
            raise TypeError(f"options must have texts of one line as values, got {name}={brief(value)}")
        if name.lower() in ours:
            raise ValueError(f"options must not have {ours[name.lower()]}, which SshHost sets itself")


@frozen(kw_only=True)
class SshPlan(FarPlan):
    """The settings of a reserve behind `ssh`.

    Args:
        place: the far machine, as texts name it.
        command: starts a guardian there, and carries its standard input and output.
    """

    place: str
    command: tuple[str, ...]


class SshReserve(FarReserve):
    """Processes on one machine, behind an `ssh` each."""

    def __init__(self, plan: SshPlan) -> None:
        super().__init__(plan)
        self._command = plan.command
        self._place = plan.place

    async def _reached(self, who: str, fork: Fork | None) -> FarPeer:
        return FarPeer(await self._carrier(), self._far_plan.order(self._place, fork), who)

    async def _carrier(self) -> Peer:
        """The running command. Its standard error is logged."""
        output = Output(f"{self._command[0]} to {self._place}")
        try:
            with connected(output, socket.SOCK_STREAM) as (connection, ends):
                carrier = await watched(Started(self._run(ends)), connection, output)
        except BaseException:
            output.close()
            raise
        self._nursery.start_soon(output.pump)
        return carrier

    def _run(self, ends: Ends) -> subprocess.Popen[bytes]:
        """Start it in a session of its own: a Ctrl-C does not reach it, and a kill reaches also what it starts."""
        return subprocess.Popen(  # noqa: S603 - The host has checked each argument.
            self._command,
            stdin=ends.connection,
            stdout=ends.connection,
            stderr=ends.errors,
            start_new_session=True,
            env=cleaner.marked(),
        )


@frozen(kw_only=True, field_transformer=own_first)
class SshHost(FarHost):
    """A process on another machine for each incarnation (D16). All times are in seconds.

    Each context starts cold, unless a standby is ready, or `start` is `forkserver`.

    Args:
        host: as `ssh` takes it: a name of `~/.ssh/config`, or user@machine.
        python: the Python there. It must be able to import this package, of the same version, and the runner.
        path: folders there in front of its `sys.path`.
        options: settings of ssh_config, such as `{"Port": "2222"}`; see `docs/howto/remote-hosts.md`. They stand on a command line, so
            none may be a secret.
        device: as torch names it there; passed to the runner.
        lease: if it gets no answer from here for so long, the guardian there kills the context process. In return a machine that is
            silent for so long is lost, and its device is not used again before the lease is over.
        start: `spawn` starts each process cold. `forkserver` keeps a fork server there, from which they are forked once it has
            imported everything (D15); see `docs/howto/remote-hosts.md`.
        connect_timeout: until `ssh` has connected, and the far side has started a process.
        standby: how many processes stand ready there beside the one that serves; see `ProcessHost`.
        load_timeout: see `ProcessHost`; so also for `first_chunk_timeout`, `next_chunk_timeout`, `close_timeout`, `kill_timeout` and
            `linger`.
        nvml: asks there after a poison whether the device can be used again (D4). It takes no `module`.

    Raises:
        ValueError: a number is out of range, or `host`, `path`, `options`, `device` or `nvml` cannot be used.
        TypeError: an argument has a wrong type.
    """

    host: str = field(kw_only=False, validator=[instance_of(str), _check_host])
    python: str = field(default="python3", validator=[instance_of(str), min_len(1)])
    options: Mapping[str, str] = field(
        factory=dict[str, str], converter=_plain, hash=False, validator=_check_options
    )
    connect_timeout: float = field(default=30.0, converter=plain_number, validator=at_least(1))

    _reserve = SshReserve

    def _plan(self, common: dict[str, Any]) -> SshPlan:
        return SshPlan(
            **common, place=self.host, command=self.command(), connect_timeout=self.connect_timeout
        )

    def _refusal(self) -> str | None:
        if sys.platform != "linux":
            return f"an SshHost needs Linux (pidfd), got {sys.platform}"
        if shutil.which("ssh") is None:
            return "an SshHost needs the program `ssh`, which is not in PATH"
        return None

    def command(self) -> tuple[str, ...]:
        """The command that starts a guardian."""
        settings = {**_settings(self.connect_timeout, self.lease), **self.options}
        given = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        far = shlex.join([self.python, "-u", "-c", BOOT])
        return "ssh", *given, "--", self.host, f"exec {far}"
