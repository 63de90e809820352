"""What all sessions have in common: what may be asked of one, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import trio

from runners.brief import brief, is_a, text_of
from runners.diagnosis.classify import renewed
from runners.errors import ContextPoisoned, DeviceError, OutOfMemory
from runners.types import RunnerInfo, SessionRebuildCause

Stream = TypeVar("Stream")
"""What a session notes of an open stream."""


class BaseSession(Generic[Stream]):
    """The state of a session, and its refusals."""

    pid: int | None = None

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self._info: RunnerInfo | None = None  # until loaded
        self._streams: dict[str, Stream] = {}  # open ones, by request
        self._begun: int = 0  # so many; the number of a stream is never used twice
        self._failure: DeviceError | None = None
        self._lacked: DeviceError | None = None  # memory, in the rebuild that ended the context
        self._ended = False
        self._rebuilding = False

    def __repr__(self) -> str:
        state = (
            "ended" if self._ended else "failed" if self._failure else "loaded" if self._info else "loading"
        )
        pid = "" if self.pid is None else f" pid={self.pid}"
        return f"<{type(self).__name__} {self.incarnation}{pid} {state} streams={len(self._streams)}>"

    def condemn(self, error: DeviceError) -> None:
        """Whoever uses it has found the context to be in trouble: it is left as one that has failed by itself."""
        raise NotImplementedError

    @property
    def info(self) -> RunnerInfo:
        """What the loaded runner declared."""
        assert self._info is not None, "a session is handed out loaded"
        return self._info

    def _check_open(self) -> None:
        if self._ended:
            raise trio.ClosedResourceError("this session has ended")

    def _check_begin(self, request_id: str, accepted: Sequence[int]) -> None:
        self._check_open()
        if request_id in self._streams:
            raise ValueError(f"request ids in flight must differ, got a second {brief(request_id)}")
        if accepted and not self.info.can_continue:
            raise ValueError(
                f"the runner cannot continue a begun stream, got {len(accepted)} accepted tokens"
            )
        if len(self._streams) >= self.info.streams:
            raise RuntimeError(
                f"the runner serves {self.info.streams} streams at once, got one more: {brief(request_id)}"
            )

    def _check_rebuild(self, cause: SessionRebuildCause) -> None:
        self._check_open()
        if cause is SessionRebuildCause.CONTEXT_POISONED:
            raise ValueError("a poisoned context cannot be rebuilt: open a new incarnation")
        if self._streams:
            raise RuntimeError(f"a rebuild needs all streams dropped, got {len(self._streams)} open")
        if self._rebuilding:
            raise RuntimeError("another rebuild is under way")
        self._check_failure()

    def _give_up_rebuild(self) -> None:
        """Whoever asked is cancelled before the answer: how far the runner has come nobody will know. Who has left asks no more."""
        if not self._ended:
            self.condemn(
                ContextPoisoned(
                    "a rebuild was given up before it was done: its session is in an unknown state"
                )
            )

    def _check_failure(self) -> None:
        """Who asked gets an exception of its own; the reader has the first one."""
        if self._failure is not None:
            raise renewed(self._failure if self._lacked is None else self._lacked) from self._failure

    def _of_rebuild(self, error: DeviceError) -> DeviceError:
        """What the context fails with whose rebuild failed with this.

        After a lack of memory there is no session left that could be resumed; its operator is told of the lack itself.
        """
        if not is_a(error, OutOfMemory):
            return error
        self._lacked = error
        failure = ContextPoisoned(f"there was not enough memory to make the session anew: {text_of(error)}")
        failure.__cause__ = error
        return failure
