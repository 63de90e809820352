"""The interfaces `Host` and `Session` (D10): a host opens sessions, and a session controls one loaded incarnation of a runner.

`runners.hosts.process.host` has the host for a local device, `runners.hosts.packing` the check of a runner spec for it.
Nothing here depends on supervisors or torch, and importing it imports neither Trio nor msgspec.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from attrs import frozen

from runners.errors import InferenceError
from runners.types import ExecuteBatch, RunnerInfo, RunnerSpec, SessionRebuildCause, TokenChunk

MARK = "RUNNERS_STARTED_BY"
"""The environment variable by which the cleaner process finds the processes that a context has started, to kill them at its end.

A process that must outlive its context has to be started without this variable.
"""


@frozen
class RequestFailed:
    """The last item of a stream that ends with an error of its own. No other stream is affected (D5)."""

    request_id: str
    error: InferenceError


@runtime_checkable
class Session(Protocol):
    """One loaded incarnation of a runner. One task at a time may wait in `receive`; any task may call the other methods."""

    @property
    def incarnation(self) -> int:
        """The number of the context, counted from 1. Its chunks carry it."""
        ...

    @property
    def pid(self) -> int | None:
        """The process that the runner has for itself, on the machine of its host; None if it has none."""
        ...

    @property
    def info(self) -> RunnerInfo:
        """What the loaded runner declared."""
        ...

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = (), *, confirm: bool = False) -> None:
        """Begin a stream, or continue one after its accepted tokens (D6). Never blocks.

        In a session that has failed this does nothing, and `receive` raises the failure.

        Args:
            batch: the request; its `request_id` names the stream until it ends or is dropped.
            accepted: the ids of all tokens that the stream has got; the next chunk begins at index `len(accepted)`.
            confirm: note when the context takes the stream; see `has_taken`.

        Raises:
            BadRequest: the request cannot be sent to the runner.
            ValueError: a stream with this id is open, or there are accepted tokens and the runner cannot continue a stream.
            RuntimeError: as many streams are open as the runner serves at once (`RunnerInfo.streams`).
            trio.ClosedResourceError: the session has ended.
        """
        ...

    def has_taken(self, request_id: str) -> bool:
        """Whether the context has taken this open stream, for which `begin` had `confirm`; also after the context has failed.

        A stream that was not taken cannot be the cause of the failure (D6). For an unknown id it is False.
        """
        ...

    def drop(self, request_id: str) -> None:
        """End a stream early and free its place; `receive` returns nothing more of it. An unknown id is no error. Never blocks.

        Raises:
            trio.ClosedResourceError: the session has ended.
        """
        ...

    async def receive(self) -> Sequence[TokenChunk | RequestFailed]:
        """The items that a step of the runner made for open streams; never empty. Cancelling it loses no item.

        The items of later steps may follow in the same result, in their order.

        Raises:
            OutOfMemory: a request that was just returned failed with it; the context continues (D5).
            ContextPoisoned: the context has failed, also with the subclasses `ContextDied`, `ContextHung` and
                `ProtocolError`. The first such error is final: every later call raises it again.
            Unrecoverable: the context has failed, and the device with it. Final too.
            trio.ClosedResourceError: the session has ended.
        """
        ...

    async def rebuild(self, cause: SessionRebuildCause) -> None:
        """Make the runner's session anew, in the same incarnation (D7). Another task must wait in `receive` meanwhile.

        Cancelling it before it has its answer ends the context with `ContextPoisoned`: its session is in an unknown state.

        Raises:
            ValueError: the cause is `CONTEXT_POISONED`: only a new incarnation clears that.
            RuntimeError: streams are open, or another rebuild is under way.
            InferenceError: the context has failed; `receive` raises the failure too. If memory was lacking, this is
                `OutOfMemory`, and the failure of the context `ContextPoisoned`.
            trio.ClosedResourceError: the session has ended.
        """
        ...


@runtime_checkable
class Host(Protocol):
    """A frozen attrs value that says where and how a runner runs.

    A worker calls the methods of a host and its sessions protected from `KeyboardInterrupt` (R4).
    """

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """A context manager: entering loads the runner and waits until it is loaded, leaving releases all that it holds.

        If the host starts a process, leaving returns only when that process has ended and is reaped (D2).

        Args:
            runner: the spec from which the runner is built.
            incarnation: counted from 1.
            cause: the failure that made this start necessary, in one line; None for a first start.

        Raises:
            LoadFailed: the runner could not be built.
            DeviceError: building the runner failed with this error.
            Unrecoverable: on leaving, the process does not die (D9).
        """
        ...


@runtime_checkable
class CheckingHost(Host, Protocol):
    """A host with a check of its own. For other hosts a worker demands a runner spec that can be imported by name (D2)."""

    def check(self, runner: object) -> None:
        """Refuse what this host cannot run. A worker calls it when it is declared.

        Raises:
            TypeError: `runner` is no runner spec, or has a field of a type that this host cannot use.
            ValueError: this host cannot run a runner of this spec.
        """
        ...
