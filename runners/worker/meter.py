"""What measures the requests of a worker, without a library for metrics; and the closed list of how a request may end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol, get_args

from ..errors import (
    Backpressure,
    BadRequest,
    ContentFiltered,
    ContextLengthExceeded,
    ContextLost,
    Forbidden,
    NetworkError,
    OutOfMemory,
    PoisonRequest,
    Timeout,
    Unauthorized,
    WorkerDown,
    WorkerStopping,
)
from ..types import ExecuteBatch, TokenChunk

RequestOutcome = Literal[
    "complete",
    "left",
    "late",
    "invalid",
    "poison",
    "lost",
    "oom",
    "server",
    "full",
    "stopping",
    "down",
    "failed",
]
OUTCOMES: Final[tuple[RequestOutcome, ...]] = get_args(RequestOutcome)

_KINDS: Final[tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], RequestOutcome], ...]] = (
    (Timeout, "late"),
    ((BadRequest, ContextLengthExceeded, ContentFiltered), "invalid"),
    (PoisonRequest, "poison"),
    (ContextLost, "lost"),
    (OutOfMemory, "oom"),
    ((NetworkError, Unauthorized, Forbidden), "server"),
    (Backpressure, "full"),
    (WorkerStopping, "stopping"),
    (WorkerDown, "down"),
)


class Meter(Protocol):
    """Measures one worker. Its methods are called in the tasks of the worker; they neither block nor raise."""

    def begun(self, waited: float) -> None:
        """A request has begun in a runner for the first time, `waited` seconds after it was sent."""
        ...

    def given(
        self, chunks: Sequence[TokenChunk], *, first: float | None, gap: float | None, replayed: int
    ) -> None:
        """A request has got its next chunks.

        Args:
            chunks: one or more.
            first: seconds since it was sent, if these are its first ones.
            gap: seconds since its last ones, if these are later ones, and that time is known.
            replayed: the accepted tokens that were fed to the session which made these, if they are its first ones.
        """
        ...

    def ended(self, how: RequestOutcome) -> None:
        """A request has ended."""
        ...


def outcome_of(request: object, end: str | BaseException, now: float) -> RequestOutcome:
    """How a request has ended, by what an observer of calls gets: its caller has left by itself, or at its deadline."""
    if isinstance(end, BaseException):
        for errors, kind in _KINDS:
            if isinstance(end, errors):
                return kind
        return "failed"
    if end == "answered":
        return "complete"
    deadline = request.deadline if type(request) is ExecuteBatch else None
    return "late" if deadline is not None and deadline <= now else "left"
