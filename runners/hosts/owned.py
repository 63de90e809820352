"""A runner that asks a server which its host can replace: whether the error of a stream is a failure of the server (D17).

Without `OwnedRunner` the error only fails the request. Here an error of the server is a symptom. A request for one token confirms it, as a
probe of the device does in D4: if the server gives the token, the error stays that of the request.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Protocol

import trio
from trio.lowlevel import disable_ki_protection

from runners.brief import brief, is_a, text_of
from runners.diagnosis.network import classify_network, concerns_server
from runners.errors import (
    ContextDied,
    ContextHung,
    ContextPoisoned,
    DeviceError,
    NetworkError,
    NetworkTimeout,
)
from runners.hosts.inline import closing
from runners.hosts.turns import execute
from runners.protect import Entered, protected, unprotected, unprotected_result
from runners.types import (
    CANARY,
    Chunks,
    ExecuteBatch,
    ModelRunner,
    RunnerInfo,
    RunnerSpec,
    RunnerStart,
    SessionRebuildCause,
    TokenChunk,
)

DYING = 0.25
"""Seconds for which an end of the server is awaited after an error of a stream, since a server that ends breaks its connections first."""


class Server(Protocol):
    """What this module needs of the server."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def runs(self) -> bool:
        """Whether its main process runs. Once it does not, the host fails the session."""
        ...

    async def ended(self) -> object:
        """Wait until all its processes have ended."""
        ...

    async def judged(self, error: DeviceError) -> DeviceError:
        """The failure of the context, after a check of the device (D4)."""
        ...


@protected
class OwnedRunner:
    """Both a runner spec and the runner that it builds. It wraps those that ask the server.

    Args:
        spec: builds the runner that is wrapped.
        server: the server that this runner asks.
    """

    def __init__(self, spec: RunnerSpec, server: Server) -> None:
        self.works = False
        """Whether the server has given a first token. Until then no error of a stream is judged: the host asks again."""
        self._spec = spec
        self._server = server
        self._runner: ModelRunner
        self._last = -math.inf  # when the last token came
        self._tokens = trio.lowlevel.ParkingLot()  # the tasks that wait for the next one
        self._asking = trio.Lock()
        self._asked = -math.inf  # when it was last asked for a token and gave it

    async def build(self, start: RunnerStart) -> OwnedRunner:
        """See `RunnerSpec.build`; async, as an `InlineHost` allows.

        Raises:
            TypeError: the `info` of the runner does not say that it asks a server.
        """
        self._runner = await unprotected_result(self._spec.build, start)
        if self._runner.info.transport != "network":
            raise TypeError(
                "an EngineHost needs a runner that asks a server, whose info has transport='network', "
                f"got {brief(self._runner.info.transport)}"
            )
        return self

    # --- the runner

    @property
    def info(self) -> RunnerInfo:
        """See `ModelRunner`."""
        return self._runner.info

    def execute(self, batch: ExecuteBatch) -> Chunks:
        """See `ModelRunner`."""
        return self.continue_from(batch, ())

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Chunks:
        """See `ContinuingRunner`."""
        return self._judging(self._begun(batch, accepted))

    def rebuild(self, cause: SessionRebuildCause) -> Awaitable[None] | None:
        """See `ModelRunner`."""
        made: Awaitable[None] | None = unprotected(self._runner.rebuild, cause)
        return made

    def close(self) -> Awaitable[None] | None:
        """See `ModelRunner`."""
        made: Awaitable[None] | None = unprotected(self._runner.close)
        return made

    def _begun(self, batch: ExecuteBatch, accepted: Sequence[int]) -> AsyncIterator[TokenChunk]:
        chunks = unprotected(execute, self._runner, batch, accepted)
        if not isinstance(chunks, AsyncIterator):
            raise TypeError(f"an EngineHost needs a runner with async streams, got {brief(chunks)}")
        return chunks

    async def _judging(self, chunks: AsyncIterator[TokenChunk]) -> AsyncGenerator[TokenChunk, None]:
        since = trio.current_time()
        try:
            async with Entered(closing(chunks)):
                while (chunk := await _next(chunks)) is not None:
                    self._last = trio.current_time()
                    self._tokens.unpark_all()
                    yield chunk
                    since = trio.current_time()
        except Exception as raised:  # noqa: BLE001 - A runner may raise anything, and `classify_network` judges it.
            error = classify_network(raised)
        else:
            return
        if self.works:
            await self._judge(error, since)
        raise error

    # --- the server

    async def _judge(self, error: Exception, since: float) -> None:
        """Raise the failure of the server, if the error of a stream is a symptom of one.

        `since`: when the stream began to wait for the server, by Trio's clock.
        """
        if is_a(error, NetworkTimeout):
            await self._check_progress(trio.current_time() - since)
        elif concerns_server(error):
            await self._check_end()
            await self._check_answer(error)

    async def _check_progress(self, seconds: float) -> None:
        """A stream has waited for so long in vain. The server hangs if it has given no token to another one for as long (D9).

        Raises:
            ContextHung: the server hangs.
        """
        with trio.move_on_at(self._last + seconds):
            await self._tokens.park()
            return
        raise await self._server.judged(
            ContextHung(f"{self._server.name} has given no token for {round(seconds, 1):g} s")
        )

    async def _check_end(self) -> None:
        """Return unless the server ends within `DYING`: then the host fails the session with that end."""
        with trio.move_on_after(DYING):
            await self._server.ended()
        if not self._server.runs:
            await trio.sleep_forever()

    async def _check_answer(self, symptom: Exception) -> None:
        """Ask the server for one token. If many streams fail at once, the first one asks for all.

        Raises:
            ContextHung: it does not answer in time.
            ContextDied: it answers with a failure again, or not at all.
        """
        failed = trio.current_time()
        async with self._asking:
            if self._asked >= failed:
                return
            asked, last = trio.current_time(), self._last
            failure = await self._failure(symptom)
            # A server that is only late, and has given tokens to other streams meanwhile, is busy (D9).
            if failure is not None and not (is_a(failure, ContextHung) and self._last > last):
                raise await self._server.judged(failure)
            self._asked = asked

    async def _failure(self, symptom: Exception) -> ContextPoisoned | None:
        """What a request for one token shows; None if the server works. An error of that request itself is an answer."""
        try:
            await self._one_token()
        except Exception as raised:  # noqa: BLE001 - A runner may raise anything, and `classify_network` judges it.
            error = classify_network(raised)
            text = f"{self._server.name} has failed: {text_of(symptom)}; and then for one token: {text_of(error)}"
            if is_a(error, NetworkTimeout):
                return ContextHung(text)
            return ContextDied(text) if concerns_server(error) else None
        return None

    async def _one_token(self) -> None:
        chunks, whole = self._begun(CANARY, ()), False
        async with Entered(closing(chunks)):
            while (chunk := await _next(chunks)) is not None:
                whole = chunk.finish_reason is not None
        if not whole:
            raise NetworkError("the stream ended without a finish reason")


@disable_ki_protection
async def _next(chunks: AsyncIterator[TokenChunk]) -> TokenChunk | None:
    """The next chunk, None at the end. A `KeyboardInterrupt` may be raised in the code that makes it."""
    return await anext(chunks, None)
