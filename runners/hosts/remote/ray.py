"""`RayHost`: the runner in a process on a node of a Ray cluster (D10, D16).

Ray is asked for a place, starts an actor there, kills it, and reports its end. All streams go over a connection that the actor opens to
this program. Needs the extras `process` and `ray`, and Linux at both ends.
"""

from __future__ import annotations

import hmac
import importlib.util
import logging
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import field, frozen
from attrs.validators import instance_of
from trio.lowlevel import RunVar, enable_ki_protection

from runners.brief import brief
from runners.checks import at_least, plain_number
from runners.errors import ContextDied, LoadFailed, NoPlace
from runners.hosts.process.host import DYING
from runners.hosts.process.parent.output import Output, log_event
from runners.hosts.process.parent.peer import Peer
from runners.hosts.process.parent.processes import within
from runners.hosts.process.standard import lifted
from runners.hosts.process.terms import own_first
from runners.hosts.remote.actor import MOST_CALLS, Actor, Ask, death, described
from runners.hosts.remote.host import FarHost
from runners.hosts.remote.link import BOOT, FarPeer, Fork, Order
from runners.hosts.remote.reserve import FarPlan, FarReserve

_TOKEN = 32
"""Bytes by which an actor proves that it is the one that was started."""
_SHOWN_WITHIN = 5.0
"""Seconds in which a connection must show its token."""
_CALLERS = 64
"""Connections that may be without a token at a time."""
_PAUSE = 0.1
"""Seconds before a connection is accepted again where this process had no free descriptor."""


def _check_cluster(_host: object, _field: object, cluster: str) -> None:
    name, _, port = cluster.rpartition(":")
    if not name or "/" in name or not port.isdecimal():
        raise ValueError(
            f"cluster must be the address of a Ray head, such as 10.0.0.1:6379, got {brief(cluster)}"
        )


def _check_address(_host: object, _field: object, address: str | None) -> None:
    if address is not None and (type(address) is not str or not address):
        raise ValueError(f"address must be a name or number of this machine, or None, got {brief(address)}")


def _plain(resources: Mapping[str, float]) -> dict[str, float]:
    if not isinstance(resources, Mapping):
        raise TypeError(f"resources must be a mapping, got {brief(resources)}")
    return dict(resources)


def _check_resources(_host: object, _field: object, resources: Mapping[str, float]) -> None:
    for name, amount in resources.items():
        if type(name) is not str or not name or name in ("CPU", "GPU"):
            raise ValueError(
                f"resources must have names of custom resources; CPU and GPU are num_cpus and num_gpus; got {brief(name)}"
            )
        if type(amount) not in (int, float) or not 0 < amount < float("inf"):
            raise ValueError(f"resources must have amounts above 0, got {name}={brief(amount)}")


@frozen(kw_only=True)
class RayPlan(FarPlan):
    """The settings of a reserve in a Ray cluster; `RayHost` describes them."""

    cluster: str
    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float]
    address: str | None


class _Fences:
    """The nodes on which a process may be alive though its session has ended, in one Trio run."""

    def __init__(self) -> None:
        self._nodes = Counter[str]()
        self._changed = trio.Event()

    def add(self, node: str) -> None:
        self._nodes[node] += 1

    def remove(self, node: str) -> None:
        self._nodes[node] -= 1
        self._changed.set()
        self._changed = trio.Event()

    async def without(self, node: str) -> None:
        """Wait until no process of a lost session can be alive on this node."""
        while self._nodes[node]:
            await self._changed.wait()


_fences: RunVar[_Fences] = RunVar("runners.hosts.remote.ray")


class RayReserve(FarReserve):
    """Processes in a Ray cluster, each behind an actor and a connection."""

    def __init__(self, plan: RayPlan) -> None:
        super().__init__(plan)
        self._ray_plan = plan
        self._ask = Ask(
            cluster=plan.cluster,
            num_cpus=plan.num_cpus,
            num_gpus=plan.num_gpus,
            resources=plan.resources,
        )
        self._limiter = trio.CapacityLimiter(MOST_CALLS)
        self._peers = set[RayPeer]()  # those that are not reaped
        self._fences = _fences.get(_Fences())
        _fences.set(self._fences)

    async def _reached(self, who: str, fork: Fork | None) -> FarPeer:
        actor = Actor(self._ask, self._limiter)
        output = Output("its Ray actor", piped=False)
        try:
            ours = await actor.place({peer.node for peer in self._peers}, self._connect_timeout)
            await self._outlast(actor)
            connection = await self._connected(actor, self._ray_plan.address or ours)
            actor.connected(connection)
            carrier = Peer(actor, connection, output)
        except BaseException:
            actor.discard()
            raise
        return RayPeer(carrier, self._ray_plan.order(actor.address, fork), who, actor, self)

    async def _outlast(self, actor: Actor) -> None:
        """Wait until no lost process can be alive on this node, which a report of Ray that its actor is dead does not prove.

        Raises:
            NoPlace: one may be alive there for longer than a start may take.
        """
        with trio.move_on_after(self._connect_timeout):
            await self._fences.without(actor.node)
            return
        raise NoPlace(
            f"Ray has given a context a place on {actor.address}, where an earlier one may still be alive"
        )

    async def _connected(self, actor: Actor, ours: str) -> socket.socket:
        """The connection that the actor opens to us.

        Raises:
            LoadFailed: it has not.
        """
        token = secrets.token_bytes(_TOKEN)
        family = socket.AF_INET6 if ":" in ours else socket.AF_INET
        with trio.socket.socket(family) as listener, trio.move_on_after(self._connect_timeout) as patience:
            try:
                await listener.bind((ours, 0))
            except OSError as error:
                raise LoadFailed(f"this program cannot listen at its address {ours}: {error}") from error
            listener.listen()
            actor.on_outcome = patience.cancel
            await actor.serve((ours, listener.getsockname()[1]), self._connect_timeout, token, BOOT)
            return await with_token(listener, token)
        why = " in time" if actor.outcome is None else f": {described(actor.outcome)}"
        raise LoadFailed(f"the Ray actor on {actor.address} has not connected to {ours}{why}")

    # --- its peers

    def add(self, peer: RayPeer) -> None:
        """A peer is connected: the next one is placed on another node, if one has room."""
        self._peers.add(peer)

    def check_later(self, peer: RayPeer) -> None:
        """Have a task check a peer whose actor has ended, as Ray reports."""
        if not self._nursery.cancel_scope.cancel_called:
            self._nursery.start_soon(peer.check)

    def reap_later(self, peer: RayPeer, seconds: float) -> bool:
        """Reap a lost peer in the background; returns False if the reserve ends, which leaves no time for that."""
        if self._nursery.cancel_scope.cancel_called:
            return False
        self.hold(+1)  # so that the reserve does not end meanwhile
        self._fences.add(peer.node)
        self._nursery.start_soon(self._reap_fenced, peer, seconds)
        return True

    @enable_ki_protection  # it runs below a system task: a KeyboardInterrupt in it would end the whole Trio run
    async def _reap_fenced(self, peer: RayPeer, seconds: float) -> None:
        try:
            if await peer.reap_at_last(seconds):
                log_event(logging.ERROR, "%s has outlived SIGKILL, and its node is not used again", peer.name)
            else:
                self._fences.remove(peer.node)
        finally:
            self.hold(-1)

    def remove(self, peer: RayPeer) -> None:
        """A peer is reaped."""
        self._peers.discard(peer)


class RayPeer(FarPeer):
    """A context process on a node of a Ray cluster."""

    def __init__(self, carrier: Peer, order: Order, who: str, actor: Actor, reserve: RayReserve) -> None:
        super().__init__(carrier, order, who)
        self.node = actor.node
        self._actor = actor
        self._reserve = reserve
        reserve.add(self)
        actor.on_outcome = self._on_outcome
        if actor.outcome is not None:
            self._on_outcome()

    def _on_outcome(self) -> None:
        if not self.dead:
            self._reserve.check_later(self)

    @enable_ki_protection
    async def check(self) -> None:
        """Ray reports that the actor has ended. If its guardian does not soon report how the process ended, the connection is lost."""
        self.kill()
        if not await within(DYING, self._over.wait):
            self._lose(described(self._actor.outcome))

    @property
    def death(self) -> type[ContextDied]:
        """See `Connection.death`."""
        return death(self._actor.outcome, super().death)

    async def fate(self, seconds: float) -> str:
        """See `Connection.fate`."""
        how = await super().fate(seconds)
        outcome = self._actor.outcome
        return (
            f"{how} ({described(outcome)})"
            if isinstance(outcome, BaseException) and self._lost is None
            else how
        )

    @enable_ki_protection
    async def reap(self, seconds: float) -> bool:
        """See `Connection.reap`. If the guardian does not report its end at once, the reserve waits for that."""
        self.kill()
        await within(DYING, self._over.wait)
        if self._fate is None and self.pid and self._reserve.reap_later(self, seconds):
            return False
        return await self.reap_at_last(seconds)

    async def reap_at_last(self, seconds: float) -> bool:
        """Reap it, and return when its device is free; True as `reap`."""
        try:
            return await super().reap(seconds)
        finally:
            self._reserve.remove(self)


async def with_token(listener: trio.socket.SocketType, token: bytes) -> socket.socket:
    """The first connection that shows the token. Others are closed."""
    found = list[socket.socket]()
    callers = trio.Semaphore(_CALLERS)

    async def check(caller: trio.socket.SocketType) -> None:
        with caller, suppress(OSError), trio.move_on_after(_SHOWN_WITHIN):
            if hmac.compare_digest(await _read(caller), token) and not found:
                caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                found.append(lifted(socket.socket(fileno=caller.detach())))
                nursery.cancel_scope.cancel("the actor has connected")
        callers.release()

    try:
        async with trio.open_nursery() as nursery:
            while True:
                await callers.acquire()
                nursery.start_soon(check, await _accepted(listener))
    except BaseException:
        for connection in found:
            connection.close()
        raise
    found[0].setblocking(False)
    return found[0]


async def _accepted(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    """The next connection. If this process has no free descriptor, it waits and tries again."""
    while True:
        with suppress(OSError):
            return (await listener.accept())[0]
        await trio.sleep(_PAUSE)


async def _read(caller: trio.socket.SocketType) -> bytes:
    shown = b""
    while len(shown) < _TOKEN and (data := await caller.recv(_TOKEN - len(shown))):
        shown += data
    return shown


@frozen(kw_only=True, field_transformer=own_first)
class RayHost(FarHost):
    """A process on a node of a Ray cluster for each incarnation (D16). All times are in seconds.

    Ray gives each process a place of its own. So the next context waits for the end of a lost one only if Ray gives it the same node.

    Args:
        cluster: the address of its head, such as `10.0.0.1:6379`. If this program is connected to a cluster already, it must be that cluster.
        num_cpus: how many CPUs of a node each process takes; so also `num_gpus`.
        resources: custom resources of Ray that it takes, such as `{"leaf": 1}`.
        address: the address of this program, as the nodes see it; None is the one that Ray has found.
        path: folders there in front of the `sys.path` of the node's Python, which must have this package, of the same version.
        device: as torch names it there; passed to the runner. Ray numbers the GPUs of each process from 0.
        lease: if it gets no answer from here for so long, the guardian there kills the context process; see `SshHost`.
        start: see `SshHost`. `forkserver` keeps a fork server on each node.
        start_timeout: until Ray has given a place, and again until the far side has started a process there.
        standby: how many processes stand ready beside the one that serves, each with its resources, on other nodes if there is room.
        load_timeout: see `ProcessHost`; so also for `first_chunk_timeout`, `next_chunk_timeout`, `close_timeout`, `kill_timeout` and
            `linger`.
        nvml: see `SshHost`.

    Raises:
        ValueError: a number is out of range, or `cluster`, `resources`, `path`, `device` or `nvml` cannot be used.
        TypeError: an argument has a wrong type.
    """

    cluster: str = field(kw_only=False, validator=[instance_of(str), _check_cluster])
    num_cpus: float = field(default=1, converter=plain_number, validator=at_least(0))
    num_gpus: float = field(default=0, converter=plain_number, validator=at_least(0))
    resources: Mapping[str, float] = field(
        factory=dict[str, float], converter=_plain, hash=False, validator=_check_resources
    )
    address: str | None = field(default=None, validator=_check_address)
    start_timeout: float = field(default=60.0, converter=plain_number, validator=at_least(1))

    _reserve = RayReserve

    def _plan(self, common: dict[str, Any]) -> RayPlan:
        return RayPlan(
            **common,
            connect_timeout=self.start_timeout,
            cluster=self.cluster,
            num_cpus=self.num_cpus,
            num_gpus=self.num_gpus,
            resources=self.resources,
            address=self.address,
        )

    def _refusal(self) -> str | None:
        if sys.platform != "linux":
            return f"a RayHost needs Linux (eventfd), got {sys.platform}"
        if importlib.util.find_spec("ray") is None:
            return "a RayHost needs `ray`, which the extra `ray` installs"
        return None
