"""The base class of all sessions: their state, and the checks of each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import trio

from runners.brief import brief, is_a, text_of
from runners.diagnosis.classify import renewed
from runners.errors import ContextPoisoned, DeviceError, OutOfMemory
from runners.types import RunnerInfo, SessionRebuildCause

Stream = TypeVar("Stream")
"""The value that a session keeps for an open stream."""


class BaseSession(Generic[Stream]):
    """The state of a session, and the checks that refuse a call."""

    pid: int | None = None

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self._info: RunnerInfo | None = None  # until loaded
        self._streams: dict[str, Stream] = {}  # open ones, by request
        self._begun: int = 0  # how many streams were begun: the number of a stream is never used twice
        self._failure: DeviceError | None = None
        self._rebuild_oom: DeviceError | None = (
            None  # the `OutOfMemory` of the rebuild that ended the context
        )
        self._ended = False
        self._rebuilding = False

    def __repr__(self) -> str:
        state = (
            "ended" if self._ended else "failed" if self._failure else "loaded" if self._info else "loading"
        )
        pid = "" if self.pid is None else f" pid={self.pid}"
        return f"<{type(self).__name__} {self.incarnation}{pid} {state} streams={len(self._streams)}>"

    def condemn(self, error: DeviceError) -> None:
        """Fail the context from outside, with a failure that its user found. It then ends as after a failure of its own."""
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
        """The caller is cancelled before the answer, so the state of the runner is unknown. Once the session has ended it does not matter."""
        if not self._ended:
            self.condemn(
                ContextPoisoned(
                    "a rebuild was given up before it was done: its session is in an unknown state"
                )
            )

    def _check_failure(self) -> None:
        """Raise the failure of the context, as a new exception: `receive` raises the original in another task."""
        if self._failure is not None:
            found = self._failure if self._rebuild_oom is None else self._rebuild_oom
            raise renewed(found) from self._failure

    def _of_rebuild(self, error: DeviceError) -> DeviceError:
        """The failure of a context whose rebuild raised `error`.

        If memory was lacking, there is no session left that a Resume could keep, so the context is poisoned (D5, D7). The
        caller of `rebuild` gets the `OutOfMemory` itself.
        """
        if not is_a(error, OutOfMemory):
            return error
        self._rebuild_oom = error
        failure = ContextPoisoned(f"there was not enough memory to make the session anew: {text_of(error)}")
        failure.__cause__ = error
        return failure
