"""The standby processes on other machines. `ssh` and `ray` have the launchers: what starts a guardian there, and connects it."""

from __future__ import annotations

import importlib.metadata

import trio
from attrs import frozen

from runners.hosts.process import wire
from runners.hosts.process.parent.standby import Plan, Reserve
from runners.hosts.remote.link import FarPeer, Order


@frozen(kw_only=True)
class FarPlan(Plan):
    """The settings of a reserve on another machine; `path` is the far one.

    Args:
        lease: seconds that the guardian keeps a process alive without a word from here.
        nvml_timeout: seconds that NVML there has for an answer about the device; None if it is not asked.
        connect_timeout: seconds until it has started one.
    """

    lease: float
    nvml_timeout: float | None
    connect_timeout: float

    def order(self, place: str) -> Order:
        """What a guardian at this place must start."""
        return Order(
            place=place,
            path=self.path,
            version=package_version(),
            protocol=wire.PROTOCOL,
            lease=self.lease,
            device=self.device,
            nvml=self.nvml_timeout,
        )


class FarReserve(Reserve):
    """Standby processes on other machines, each with a connection and a guardian of its own. A launcher is a subclass."""

    def __init__(self, plan: FarPlan) -> None:
        super().__init__(plan)
        self._connect_timeout = plan.connect_timeout

    async def _reached(self, who: str) -> FarPeer:
        """A guardian, connected, which has its order.

        Raises:
            OSError: none could be started.
            DeviceError: none could be started, and the class says why.
        """
        raise NotImplementedError

    async def _new(self, who: str, *, ahead: bool) -> FarPeer:
        peer = await self._reached(who)
        self._nursery.start_soon(peer.pump)
        try:
            await peer.start(self._connect_timeout)
        except BaseException:
            with trio.CancelScope(shield=True):
                await peer.reap(self._plan.kill_timeout)
            raise
        peer.send(self._plan.hello(ahead=ahead))
        return peer


def package_version() -> str:
    """The version of this package here, which must be that of the far side."""
    try:
        return importlib.metadata.version("trio-supervise")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
