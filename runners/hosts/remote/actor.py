"""The near side of the actors of `RayHost`: Ray places and kills them, and they connect by themselves.

No call of Ray runs on the thread of the event loop: the functions of this module run in threads of Trio, and what Ray reports comes from
a thread of its own. They hold all objects of Ray too, since the last reference to a handle calls Ray as well.
"""

from __future__ import annotations

import functools
import importlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, TypeAlias

import trio
from attrs import frozen

from runners.brief import name_of, one_line, text_of
from runners.errors import ContextDied, ContextPreempted, ContextUnreachable, DeviceError, LoadFailed, NoPlace
from runners.hosts.remote import launcher

Outcome: TypeAlias = Any
"""What Ray reports of a call: its result, or an exception."""
_connecting = threading.Lock()
_PATIENCE, _FOR_EVER = "RAY_gcs_rpc_server_reconnect_timeout_s", str(2**32 - 1)
"""Ray ends the whole program when the head of the cluster has been gone for so long, by default for 60 seconds. The local contexts of
a tree, and the far ones too, go on without the head. Ray reads this setting when it is imported first."""
MOST_CALLS = 8
"""Calls of Ray that may wait in threads for one host: a cluster that does not answer must not use up the threads of the program."""


@frozen(kw_only=True)
class Ask:
    """What is asked of Ray.

    Args:
        cluster: the address of its head.
        num_cpus: see `RayHost`; so for all that follow.
    """

    cluster: str
    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float]

    def __str__(self) -> str:
        """The resources, as Ray names them."""
        asked = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return ", ".join(f"{name}: {amount:g}" for name, amount in asked.items() if amount) or "nothing"


class Actor:
    """An actor; for the `Peer` of its connection it is the process at the other end (`Process`).

    It counts as dead once it was killed from here. When Ray reports its end, `on_outcome` is called, because Ray may report an end before
    the process has ended.
    """

    doomed = False

    def __init__(self, ask: Ask, limiter: trio.CapacityLimiter) -> None:
        self.pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.pid = 0
        self.node = self.address = ""
        self.outcome: Outcome = None
        self.on_outcome: Callable[[], object] = self._nothing
        self._ask = ask
        self._limiter = limiter
        self._loop = trio.lowlevel.current_trio_token()
        self._placed = trio.Event()
        self._handles = list[Any]()
        self._given_up = False
        self._connection: socket.socket | None = None

    async def place(self, avoid: Collection[str], seconds: float) -> str:
        """Have Ray place it, if possible on none of these nodes; returns the address of this program, as Ray knows it.

        Raises:
            NoPlace: Ray has found no place for it within so many seconds.
            LoadFailed: Ray cannot start it, or the cluster does not answer within that time.
            DeviceError: Ray itself has failed.
        """
        ours: str | None = None
        with trio.move_on_after(seconds) as patience:
            ours = await self._call(connect, self._ask.cluster)
            await self._call(self._start, tuple(avoid))
            await self._placed.wait()
        if self.outcome is not None:
            raise load_error(self.outcome) from self.outcome
        if not patience.cancelled_caught:
            assert ours is not None
            return ours
        if ours is None:
            raise LoadFailed(f"the Ray cluster at {self._ask.cluster} has not answered within {seconds:g} s")
        raise NoPlace(f"Ray has found no place for a context with {self._ask} within {seconds:g} s")

    async def serve(self, address: tuple[str, int], seconds: float, token: bytes, program: str) -> None:
        """Have it connect to this address. Its end is reported as its `outcome`.

        Raises:
            LoadFailed, DeviceError: as `place`.
        """
        await self._call(self._serve, address, seconds, token, program)

    def connected(self, connection: socket.socket) -> None:
        """It has connected itself."""
        self._connection = connection

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await trio.to_thread.run_sync(
                function, *arguments, abandon_on_cancel=True, limiter=self._limiter
            )
        except DeviceError:
            raise
        except Exception as error:
            raise load_error(error) from error

    # --- in threads of Trio

    def _start(self, avoid: tuple[str, ...]) -> None:
        ask = self._ask
        handle = actor_class().options(
            num_cpus=ask.num_cpus,
            num_gpus=ask.num_gpus,
            resources=dict(ask.resources),
            scheduling_strategy=_elsewhere(avoid),
            max_restarts=0,
            max_task_retries=0,
        ).remote()  # fmt: skip
        self._handles.append(handle)
        if self._given_up:
            _kill(self._handles)
        _watch(handle.where.remote(), functools.partial(self._post, self._take_place))

    def _serve(self, *arguments: Any) -> None:
        for handle in self._handles:  # none if it is killed already
            _watch(handle.serve.remote(*arguments), functools.partial(self._post, self._take_outcome))

    def _post(self, take: Callable[[Outcome], None], outcome: Outcome) -> None:
        with suppress(trio.RunFinishedError):
            self._loop.run_sync_soon(take, outcome)

    # --- on the loop

    def _take_place(self, outcome: Outcome) -> None:
        if isinstance(outcome, BaseException):
            self.outcome = outcome
        else:
            self.node, self.address, self.pid = outcome
        self._placed.set()

    def _take_outcome(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.on_outcome()

    def _nothing(self) -> None:
        pass

    # --- as a `Process`

    def kill(self) -> None:
        """Close the connection, at which its guardian ends the context, and have Ray kill it. Never blocks."""
        os.eventfd_write(self.pidfd, 1)
        if self._connection is not None:
            with suppress(OSError):  # the other end has closed it
                self._connection.shutdown(socket.SHUT_RDWR)
        if not self._given_up:
            self._given_up = True
            # Where no thread can be started, Ray ends the actor once nothing holds its handle, and its guardian has ended.
            with suppress(RuntimeError):
                trio.lowlevel.start_thread_soon(functools.partial(_kill, self._handles), self._ignore)

    def discard(self) -> None:
        """Kill it before it has a `Peer`."""
        self.kill()
        os.close(self.pidfd)
        if self._connection is not None:
            self._connection.close()

    def _ignore(self, _outcome: object) -> None:
        pass

    async def fate_known(self) -> None:
        """See `Process.fate_known`."""

    def fate(self) -> str:
        """See `Process.fate`."""
        return "ended" if self.outcome is None else f"ended: {described(self.outcome)}"

    async def reap(self) -> None:
        """See `Process.reap`."""


def _ray(module: str = "") -> Any:
    """Ray, which only a program that opens a `RayHost` imports."""
    return importlib.import_module(f"ray{module}")


def connect(cluster: str) -> str:
    """Connect this program to the cluster, unless it is connected; returns the address of this program, as the nodes see it.

    Ray keeps one connection for the whole program, which ends with it, or by `ray.shutdown()`.

    Raises:
        LoadFailed: it is connected to another cluster.
        Exception: whatever Ray raises.
    """
    with _connecting:
        os.environ.setdefault(_PATIENCE, _FOR_EVER)
        hook = sys.excepthook
        ray = _ray()
        # Its import sets a hook that reports an exception to the head first: without one the program would hang and not end.
        sys.excepthook = hook
        if not ray.is_initialized():
            ray.init(address=cluster, log_to_driver=False, configure_logging=False)
        there = str(ray.get_runtime_context().gcs_address)
    if not _same(cluster, there):
        raise LoadFailed(f"this program is connected to the Ray cluster at {there}, not to {cluster}")
    return str(ray.util.get_node_ip_address())


def _same(one: str, other: str) -> bool:
    """Whether these are addresses of one head."""
    (host, _, port), (there, _, its) = (address.rpartition(":") for address in (one, other))
    return port == its and (host == there or socket.gethostbyname(host) == socket.gethostbyname(there))


@functools.cache
def actor_class() -> Any:
    """`Launcher` as a class of actors. Ray's own restarts and repetitions are off: the tree alone decides about them."""
    ray = _ray()
    ray.cloudpickle.register_pickle_by_value(launcher)
    return ray.remote(max_restarts=0, max_task_retries=0)(launcher.Launcher)


def _elsewhere(nodes: tuple[str, ...]) -> Any:
    """A strategy that prefers other nodes; any if only these have room."""
    if not nodes:
        return "DEFAULT"
    strategies = _ray(".util.scheduling_strategies")
    return strategies.NodeLabelSchedulingStrategy(hard={}, soft={"ray.io/node-id": strategies.NotIn(*nodes)})


def _watch(reference: Any, take: Callable[[Outcome], None]) -> None:
    """Have `take` called, on a thread of Ray, with the result of this call or its exception."""

    def done(future: Any, _kept: Any = reference) -> None:  # without a reference Ray would forget the result
        take(future.exception() or future.result())

    reference.future().add_done_callback(done)


def _kill(handles: list[Any]) -> None:
    """Kill the actor, if one was started. Blocks for as long as the head of the cluster does not answer."""
    ray = _ray()
    with suppress(IndexError, ray.exceptions.RayError, ValueError):  # it has been killed, or Ray is shut down
        ray.kill(handles.pop(), no_restart=True)


# --- what Ray reports


def _names(error: object) -> set[str]:
    """The names of its classes of Ray, so that they are known without an import."""
    return {cls.__name__ for cls in type(error).__mro__ if cls.__module__.partition(".")[0] == "ray"}


def described(outcome: Outcome) -> str:
    """What Ray reports, as a text of one line."""
    if not isinstance(outcome, BaseException):
        return str(outcome)
    cause = getattr(outcome, "cause", None)
    if isinstance(cause, BaseException):  # an exception of the actor itself
        return f"{name_of(type(cause))}: {one_line(text_of(cause))}"
    return f"Ray reports {name_of(type(outcome))}: {one_line(text_of(outcome).partition(chr(10))[0])}"


def load_error(error: BaseException) -> DeviceError:
    """The failure of a load in which Ray has raised this."""
    names = _names(error)
    if "ActorUnschedulableError" in names:
        return NoPlace(described(error))
    if names & {"RaySystemError", "OwnerDiedError", "ReferenceCountingAssertionError"}:
        return DeviceError(f"the Ray cluster has failed: {described(error)}")
    return LoadFailed(f"the context process could not be started: {described(error)}")


def death(outcome: Outcome, otherwise: type[ContextDied]) -> type[ContextDied]:
    """The error for a context whose actor has ended so, as Ray reports; `otherwise` if the report does not name the cause."""
    names = _names(outcome)
    if "ActorUnavailableError" in names:
        return ContextUnreachable
    if "RayActorError" in names and getattr(outcome, "preempted", False):
        return ContextPreempted
    return otherwise
