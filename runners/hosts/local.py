"""The base class of the sessions of `InlineHost` and `ThreadHost`: both read the turns of a runner in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import trio

from runners.errors import DeviceError, InferenceError
from runners.hosts import RequestFailed
from runners.hosts.session import BaseSession
from runners.hosts.turns import Item
from runners.types import ExecuteBatch, TokenChunk, token_chunk


class LocalSession(BaseSession[int]):
    """A session in this process. A subclass implements `_begin`, `_drop` and `_made`."""

    def __init__(self, incarnation: int) -> None:
        super().__init__(incarnation)
        self._names: dict[int, str] = {}  # of the open streams, by number
        self._passing: deque[DeviceError] = deque()  # errors after which the context continues, to raise once
        self._changed = trio.Event()
        self.lives: Callable[[], bool] = lambda: True
        """Whether the process that computes is alive. If not, the session has failed, though `receive` may not know the failure yet."""

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = (), *, confirm: bool = False) -> None:
        """See `Session.begin`."""
        del confirm  # the runner is in this process, and takes each stream at once
        self._check_begin(batch.request_id, accepted)
        if self._failure is not None or not self.lives():
            return
        number, self._begun = self._begun, self._begun + 1
        self._streams[batch.request_id] = number
        self._names[number] = batch.request_id
        self._begin(number, batch, tuple(accepted))

    def has_taken(self, request_id: str) -> bool:
        """See `Session.has_taken`."""
        return request_id in self._streams

    def drop(self, request_id: str) -> None:
        """See `Session.drop`."""
        self._check_open()
        number = self._streams.get(request_id)
        if number is None:
            return
        self._forget(number)
        if self._failure is None:
            self._drop(number)

    async def receive(self) -> Sequence[TokenChunk | RequestFailed]:
        """See `Session.receive`."""
        await trio.lowlevel.checkpoint()
        while True:
            self._check_open()
            if self._passing:
                raise self._passing.popleft()
            if self._failure is not None:
                raise self._failure
            if made := self._ours(self._made()):
                return made
            if not self._passing and self._failure is None:
                await self._wait()

    def _begin(self, number: int, batch: ExecuteBatch, accepted: tuple[int, ...]) -> None:
        raise NotImplementedError

    def _drop(self, number: int) -> None:
        raise NotImplementedError

    def _made(self) -> Iterable[Item]:
        """The items of the next turn, if it is done. May fail the session."""
        raise NotImplementedError

    async def _wait(self) -> None:
        """Wait until there may be more items."""
        await self._changed.wait()

    def _wake(self) -> None:
        """Let `receive` look for items again."""
        self._changed.set()

    def _ours(self, items: Iterable[Item]) -> list[TokenChunk | RequestFailed]:
        """The items of open streams, with request id and incarnation filled in. A stream with its last item is closed."""
        self._changed = trio.Event()
        return [self._stamped(number, made) for number, made in items if number in self._names]

    def _stamped(self, number: int, made: TokenChunk | InferenceError) -> TokenChunk | RequestFailed:
        request_id = self._names[number]
        if type(made) is not TokenChunk:
            self._forget(number)
            return RequestFailed(request_id, cast("InferenceError", made))
        ids, finish = made.token_ids, made.finish_reason
        if finish is not None:
            self._forget(number)
        return token_chunk(
            request_id, made.index, ids, made.text, finish, made.usage, self.incarnation, made.data
        )

    def _forget(self, number: int) -> None:
        del self._streams[self._names.pop(number)]

    def condemn(self, error: DeviceError) -> None:
        """See `BaseSession.condemn`."""
        self._fail(error)

    def _fail(self, error: DeviceError) -> None:
        """End the context with this failure; a later failure changes nothing."""
        if self._failure is None:
            self._failure = error
            self._wake()
