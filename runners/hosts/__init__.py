"""Where a runner lives. A `Host` opens sessions; a `Session` is the parent's handle on one loaded incarnation.

`runners.hosts.process.host` has the host for a local device, `runners.hosts.spec` says what can be handed to it.
Nothing here knows supervisors or torch, and importing it imports neither Trio nor msgspec.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from attrs import frozen

from runners.errors import InferenceError
from runners.types import ExecuteBatch, RunnerInfo, RunnerSpec, SessionRebuildCause, TokenChunk

MARK = "RUNNERS_STARTED_BY"
"""The environment variable that says whose a process is; one that is to outlive its context is started without it."""


@frozen
class RequestFailed:
    """A stream's last item when it ends by its own error; concerns no other stream (D5)."""

    request_id: str
    error: InferenceError


@runtime_checkable
class Session(Protocol):
    """One loaded incarnation. One task at a time sits in `receive`; the rest may be called from any task."""

    @property
    def incarnation(self) -> int:
        """The number its chunks are stamped with."""
        ...

    @property
    def pid(self) -> int | None:
        """The process it lives in; None where it has none of its own."""
        ...

    @property
    def info(self) -> RunnerInfo:
        """What the loaded runner declared."""
        ...

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = ()) -> None:
        """Begin a stream, or go on with one behind `accepted`. Never blocks.

        In a session that has failed it does nothing: `receive` tells.

        Raises:
            BadRequest: the request cannot be put into words for the runner.
            ValueError: its id is in use, or the runner cannot continue and there are accepted tokens.
            RuntimeError: the runner serves no more streams at once.
        """
        ...

    def drop(self, request_id: str) -> None:
        """End a stream early and free its place; nothing more comes of it. An unknown id is no error. Never blocks."""
        ...

    async def receive(self) -> Sequence[TokenChunk | RequestFailed]:
        """What a step of the engine made, for streams that are still open; never empty.

        Where later steps have arrived too, they may come along, in their order.

        Cancelling it loses nothing.

        Raises:
            OutOfMemory: the failure of a request that was just returned; the context goes on.
            ContextPoisoned: or `ContextDied`, `ContextHung`, `ProtocolError`: the context is over. The first such
                error is final, every later call raises it again.
            Unrecoverable: likewise.
        """
        ...

    async def rebuild(self, cause: SessionRebuildCause) -> None:
        """Make the runner's session anew, in the same incarnation. Another task sits in `receive` meanwhile.

        Cancelling it before it has its answer ends the context with `ContextPoisoned`: its session is in an unknown state.

        Raises:
            ValueError: the context is poisoned: only a new incarnation helps (D7).
            RuntimeError: streams are open, or another rebuild is under way.
            InferenceError: the failure of the context, as `receive` raises it.
        """
        ...


@runtime_checkable
class Host(Protocol):
    """A frozen attrs value that says where and how runners live.

    What a worker calls of it and of its sessions is protected from `KeyboardInterrupt` (R4).
    """

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """Entering loads the runner and waits for it; leaving releases everything.

        Leaving a host with a process of its own returns only when that process is gone and reaped (D2).

        Args:
            runner: what to load.
            incarnation: counted from 1.
            cause: the failure that made this start necessary, in one line.

        Raises:
            LoadFailed: the runner could not be made; or whatever typed error it failed with.
            Unrecoverable: on leaving, the process does not die (D9).
        """
        ...


@runtime_checkable
class CheckingHost(Host, Protocol):
    """A host that says itself which runners may live there; in any other those may that can be named for import (D2)."""

    def check(self, runner: object) -> None:
        """Refuse what may not.

        Raises:
            TypeError: and ValueError.
        """
        ...
