"""What the sessions of `InlineHost` and `ThreadHost` have in common: both read turns of a runner in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import trio

from runners.errors import DeviceError
from runners.hosts import RequestFailed
from runners.hosts.session import BaseSession
from runners.hosts.turns import Item
from runners.types import ExecuteBatch, TokenChunk


class LocalSession(BaseSession[int]):
    """A session in this process. A subclass carries out what is asked for here, and says what it made."""

    def __init__(self, incarnation: int) -> None:
        super().__init__(incarnation)
        self._told: deque[DeviceError] = deque()  # to be raised once each: the context goes on
        self._news = trio.Event()

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = ()) -> None:
        """See `Session.begin`."""
        self._check_begin(batch.request_id, accepted)
        if self._failure is not None:
            return
        self._streams[batch.request_id] = self._begun
        self._begun += 1
        self._begin(self._begun - 1, batch, tuple(accepted))

    def drop(self, request_id: str) -> None:
        """See `Session.drop`."""
        self._check_open()
        number = self._streams.pop(request_id, None)
        if number is not None and self._failure is None:
            self._drop(number)

    async def receive(self) -> Sequence[TokenChunk | RequestFailed]:
        """See `Session.receive`."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._told:
                raise self._told.popleft()
            if self._failure is not None:
                raise self._failure
            if made := self._ours(self._made()):
                return made
            if not self._told and self._failure is None:
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

    def condemn(self, error: DeviceError) -> None:
        """See `BaseSession.condemn`."""
        self._fail(error)

    def _fail(self, error: DeviceError) -> None:
        """The context is over; the first failure stands."""
        if self._failure is None:
            self._failure = error
            self._wake()
