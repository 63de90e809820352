"""What the sessions of `InlineHost` and `ThreadHost` have in common: what is open, what may be asked, how it fails."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import trio

from runners.errors import DeviceError
from runners.hosts import RequestFailed
from runners.hosts.turns import Item
from runners.types import ExecuteBatch, RunnerInfo, SessionRebuildCause, TokenChunk


class LocalSession:
    """A session in this process. A subclass carries out what is asked for here, and says what it made."""

    pid: int | None = None

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self._info: RunnerInfo | None = None  # until loaded
        self._streams: dict[str, int] = {}  # open ones; a number is never used twice
        self._begun = 0
        self._told: deque[DeviceError] = deque()  # to be raised once each: the context goes on
        self._failure: DeviceError | None = None
        self._ended = False
        self._rebuilding = False
        self._news = trio.Event()

    def __repr__(self) -> str:
        state = (
            "ended" if self._ended else "failed" if self._failure else "loaded" if self._info else "loading"
        )
        return f"<{type(self).__name__} {self.incarnation} {state} streams={len(self._streams)}>"

    @property
    def info(self) -> RunnerInfo:
        """What the loaded runner declared."""
        assert self._info is not None, "a session is handed out loaded"
        return self._info

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = ()) -> None:
        """See `Session.begin`."""
        self._check_begin(batch.request_id, accepted)
        if self._failure:
            return
        self._streams[batch.request_id] = self._begun
        self._begun += 1
        self._begin(self._begun - 1, batch, tuple(accepted))

    def drop(self, request_id: str) -> None:
        """See `Session.drop`."""
        self._check_open()
        number = self._streams.pop(request_id, None)
        if number is not None and not self._failure:
            self._drop(number)

    async def receive(self) -> Sequence[TokenChunk | RequestFailed]:
        """See `Session.receive`."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._told:
                raise self._told.popleft()
            if self._failure:
                raise self._failure
            if made := self._ours(self._made()):
                return made
            if not self._told and not self._failure:
                await self._wait()

    def _begin(self, number: int, batch: ExecuteBatch, accepted: tuple[int, ...]) -> None:
        raise NotImplementedError

    def _drop(self, number: int) -> None:
        raise NotImplementedError

    def _made(self) -> Iterable[Item]:
        """What the next turn made, if it is there. May fail the session."""
        raise NotImplementedError

    async def _wait(self) -> None:
        """Until there may be more."""
        await self._news.wait()

    def _wake(self) -> None:
        """Have `receive` look again."""
        self._news.set()

    def _ours(self, items: Iterable[Item]) -> list[TokenChunk | RequestFailed]:
        """What belongs to open streams; those that end are open no more."""
        self._news = trio.Event()
        return [made for number, made in items if self._is_open(number, made)]

    def _is_open(self, number: int, made: TokenChunk | RequestFailed) -> bool:
        if self._streams.get(made.request_id) != number:
            return False
        if isinstance(made, RequestFailed) or made.finish_reason is not None:
            del self._streams[made.request_id]
        return True

    def _fail(self, error: DeviceError) -> None:
        """The context is over; the first failure stands."""
        if self._failure is None:
            self._failure = error
            self._wake()

    def _check_open(self) -> None:
        if self._ended:
            raise trio.ClosedResourceError("this session has ended")

    def _check_begin(self, request_id: str, accepted: Sequence[int]) -> None:
        self._check_open()
        if request_id in self._streams:
            raise ValueError(f"request ids in flight must differ, got a second {request_id!r}")
        if accepted and not self.info.can_continue:
            raise ValueError(
                f"the runner cannot continue a begun stream, got {len(accepted)} accepted tokens"
            )
        if len(self._streams) >= self.info.streams:
            raise RuntimeError(
                f"the runner serves {self.info.streams} streams at once, got one more: {request_id!r}"
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

    def _check_failure(self) -> None:
        """Who asked gets an exception of its own; the reader has the first one."""
        if self._failure:
            raise type(self._failure)(*self._failure.args) from self._failure
