"""The standby processes on other machines. `ssh` and `ray` have the subclasses, which start a guardian there and connect to it."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata

import trio
from attrs import frozen

from runners.hosts.process import wire
from runners.hosts.process.parent.standby import TRIES, Plan, Reserve
from runners.hosts.remote import guardian
from runners.hosts.remote.link import FarPeer, Fork, Order


@frozen(kw_only=True)
class FarPlan(Plan):
    """The settings of a reserve on another machine; `path` is the far one.

    Args:
        lease: seconds that the guardian keeps a process alive without an answer from here.
        nvml_timeout: seconds that NVML there has for an answer about the device; None if it is not asked.
        connect_timeout: seconds until it has started one.
        forks_there: whether a fork server is kept there.
    """

    lease: float
    nvml_timeout: float | None
    connect_timeout: float
    forks_there: bool

    def order(self, place: str, fork: Fork | None) -> Order:
        """What a guardian at this place must start."""
        return Order(
            place=place,
            path=self.path,
            version=package_version(),
            protocol=wire.PROTOCOL,
            lease=self.lease,
            device=self.device,
            nvml=self.nvml_timeout,
            fork=fork,
        )

    def fork(self, patience: float) -> Fork:
        """How a fork server there takes part in a start that waits so many seconds for it."""
        return Fork(
            name=hashlib.sha256(self.key()).hexdigest(),
            preload=base64.b64encode(wire.datagram(self.preload())).decode(),
            timeout=self.preload_timeout,
            patience=patience,
        )


class FarReserve(Reserve):
    """Standby processes on other machines, each with a connection and a guardian of its own."""

    def __init__(self, plan: FarPlan) -> None:
        super().__init__(plan)
        self._far_plan = plan
        self._connect_timeout = plan.connect_timeout

    async def _reached(self, who: str, fork: Fork | None) -> FarPeer:
        """A connection to a guardian that is started; its order is sent.

        Raises:
            OSError: it could not be started.
            DeviceError: it could not be started, with the class that fits the reason.
        """
        raise NotImplementedError

    async def _new(self, who: str, *, ahead: bool) -> FarPeer:
        fork = self._fork(ahead=ahead)
        peer = await self._reached(who, fork)
        peer.on_cold = self._cold
        self._nursery.start_soon(peer.pump)
        try:
            await peer.start(self._connect_timeout + (0 if fork is None else fork.patience))
        except BaseException:
            with trio.CancelScope(shield=True):
                await peer.reap(self._plan.kill_timeout)
            raise
        if fork is not None and not peer.cold:
            self._failures = 0
        peer.send(self._plan.hello(ahead=ahead))
        return peer

    def _fork(self, *, ahead: bool) -> Fork | None:
        """How a fork server takes part in a start, None if none does. A start waits for it as for one on this machine (D15)."""
        if not self._far_plan.forks_there:
            return None
        if self._given_up:
            self._warn(self._given_up)
            return None
        return self._far_plan.fork(self._patience(self._plan.preload_timeout, ahead=ahead))

    def _cold(self, kind: str, why: str) -> None:
        """Log that a process was started cold.

        No fork server is used again after one that reported why it cannot preload, or after `TRIES` in a row that were lost (D15).
        """
        self._failures += kind == guardian.LOST
        if kind == guardian.HOPELESS or self._failures >= TRIES:
            self._given_up = why
        self._warn(why)


def package_version() -> str:
    """The version of this package here, which must be that of the far side."""
    try:
        return importlib.metadata.version("trio-supervise")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
