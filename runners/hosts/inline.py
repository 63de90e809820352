"""`InlineHost`: the runner in the Trio task itself (D10). For tests, in virtual time too, and for async runners."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, cast

import trio
from attrs import field, frozen
from attrs.validators import instance_of
from trio.lowlevel import disable_ki_protection, enable_ki_protection

from runners.brief import brief
from runners.checks import above, plain_number
from runners.diagnosis.classify import classify
from runners.diagnosis.network import classify_network
from runners.diagnosis.probe import DeviceProbe
from runners.errors import ContextHung, DeviceError, RunnerError
from runners.hosts import Session
from runners.hosts.local import LocalSession
from runners.hosts.turns import (
    NOTHING,
    Item,
    Source,
    SyncSource,
    Turns,
    close_error,
    info_of,
    judged,
    load_error,
)
from runners.nursery import bare_nursery
from runners.protect import Entered, protected, unprotected, unprotected_result
from runners.types import (
    Chunks,
    ExecuteBatch,
    ModelRunner,
    RunnerSpec,
    RunnerStart,
    SessionRebuildCause,
    TokenChunk,
)

_AHEAD = 8
"""How many chunks a stream may be ahead of its reader. A stream with a slow reader waits, and does not fill the memory."""


@frozen(kw_only=True)
class InlineHost:
    """The runner runs in the Trio task: there is no process and no thread.

    A step of a sync runner blocks the whole event loop, and cannot be stopped. The streams of an async runner run
    concurrently; a turn takes one chunk of each stream that has one. A `ContextPoisoned` that the runner itself raises is
    cleared by a new runner. A poison that was classified from another exception comes from a real device and is not: it
    becomes a `DeviceError`, which `DEVICE` escalates.

    Args:
        device: as torch names it; passed to the runner.
        close_timeout: seconds for an async runner to close. As with every timeout of Trio, time for which other code blocks the event
            loop counts.

    Raises:
        ValueError: `close_timeout` is not above 0.
        TypeError: an argument has a wrong type.
    """

    device: str = field(default="cpu", kw_only=False, validator=instance_of(str))
    close_timeout: float = field(default=5.0, converter=plain_number, validator=above(0))

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError: see `check`.
        """
        self.check(runner)
        return Entered(
            self._open(runner, RunnerStart(incarnation=incarnation, device=self.device, cause=cause))
        )

    def check(self, runner: object) -> None:
        """See `CheckingHost.check`. The spec is not sent to another process, so its class need not be importable by name.

        Raises:
            TypeError: it is a class, or has no build method.
        """
        if isinstance(runner, type) or not callable(getattr(runner, "build", None)):
            raise TypeError(f"a runner must be a value with a build method, got {brief(runner)}")

    @asynccontextmanager
    async def _open(self, runner: RunnerSpec, start: RunnerStart) -> AsyncGenerator[Session, None]:
        async with bare_nursery() as nursery:
            session = InlineSession(start, nursery, self.close_timeout)
            await session.load(runner, start)
            try:
                yield session
            except DeviceError as error:
                session.condemn(error)
                raise
            finally:
                await session.end()


class InlineSession(LocalSession):
    """A `Session` in the Trio task."""

    _turns: Turns

    def __init__(self, start: RunnerStart, nursery: trio.Nursery, close_timeout: float) -> None:
        super().__init__(start.incarnation)
        self._nursery = nursery
        self._close_timeout = close_timeout
        self._rebuild_scope = trio.CancelScope()
        self._dropped: deque[int] = deque()  # streams of a sync runner that a task is still to close
        self._sources: set[_AsyncSource] = set()  # those whose task has not ended; some may be cancelled
        self._judge = partial(
            judged, classify=partial(classify, probe=DeviceProbe(start.device)), clears=True
        )

    async def load(self, spec: RunnerSpec, start: RunnerStart) -> None:
        """Build the runner. The `build` of a spec that is used with this host only may be async.

        Raises:
            DeviceError: building failed.
        """
        try:
            runner: ModelRunner = await unprotected_result(spec.build, start)
            self._info = unprotected(info_of, runner)
        except Exception as error:
            raise load_error(error, self._judge) from error
        if self._remote:
            self._judge = partial(judged, classify=classify_network, clears=True)
        self._turns = Turns(runner, self._judge)

    @property
    def _remote(self) -> bool:
        return self.info.transport == "network"

    def _begin(self, number: int, batch: ExecuteBatch, accepted: tuple[int, ...]) -> None:
        self._close_dropped()
        if self._failure is not None:
            return
        self._guarded(
            self._turns.begin, number, batch, accepted, partial(self._source, number, batch.request_id)
        )
        self._wake()

    def _drop(self, number: int) -> None:
        """Cancel the stream; that of a sync runner is closed later, by the task that next reads or begins.

        When a caller is cancelled, this is called from Trio's abort function. The code of a runner must not run there: an
        exception in it would end the whole program.
        """
        if self._turns.has(number, _AsyncSource):
            self._turns.drop(number)
            return
        self._dropped.append(number)
        self._wake()

    def _close_dropped(self) -> None:
        while self._dropped:
            self._guarded(self._turns.drop, self._dropped.popleft())

    def _made(self) -> Iterable[Item]:
        self._close_dropped()
        if self._failure is not None:
            return []
        made: list[Item] = self._guarded(self._turns.turn) or []
        # Nothing is left of a turn in which the context has ended, so its failures are reported to no one.
        if self._failure is None:
            self._passing += self._turns.failures
        self._turns.failures.clear()
        return made

    async def _wait(self) -> None:
        """See `LocalSession._wait`. A sync stream that has no chunk yet is asked again, once other tasks have run."""
        if self._turns.asks_again:
            await trio.lowlevel.checkpoint()
        else:
            await super()._wait()

    def _guarded(self, act: Callable[..., Any], *args: object) -> Any:
        """Call `act`, which uses the runner. A `DeviceError` fails the context, and `receive` raises it."""
        try:
            return unprotected(act, *args)
        except DeviceError as error:
            self._fail(error)

    def _source(self, number: int, request_id: str, chunks: Chunks) -> Source:
        if not isinstance(chunks, AsyncIterator):
            return SyncSource(chunks)
        late = partial(self._guarded, self._turns.fail, number, request_id)
        source = _AsyncSource(chunks, partial(self._woken, number), late)
        self._sources.add(source)
        self._nursery.start_soon(self._run, source, name=f"stream {request_id}")
        return source

    def _woken(self, number: int) -> None:
        """An async stream may have a chunk, or its end."""
        self._turns.wake(number)
        self._wake()

    @enable_ki_protection
    async def _run(self, source: _AsyncSource) -> None:
        try:
            await source.run()
        finally:
            self._sources.discard(source)
            source.ended.set()

    async def _all_ended(self) -> None:
        """Wait until every async stream has ended, with its `finally` blocks: a runner is called for one thing at a time."""
        while self._sources:
            await next(iter(self._sources)).ended.wait()

    async def rebuild(self, cause: SessionRebuildCause) -> None:
        """See `Session.rebuild`."""
        self._check_rebuild(cause)
        self._close_dropped()
        self._check_failure()
        self._rebuilding, self._rebuild_scope = True, trio.CancelScope()
        try:
            with self._rebuild_scope:
                await self._all_ended()
                self._turns.forget()
                if self._failure is None:
                    await unprotected_result(self._turns.runner.rebuild, cause)
        except Exception as error:  # noqa: BLE001 - `load_error` judges all that a runner raises
            self._fail(self._of_rebuild(load_error(error, self._judge)))
        except BaseException:
            self._give_up_rebuild()
            raise
        finally:
            self._rebuilding = False
        self._check_open()
        self._check_failure()

    async def end(self) -> None:
        """End the streams and close the runner. After a failure of the context only a network runner is closed.

        Raises:
            ContextHung: the runner does not close in time.
            InferenceError: closing raised, see `close_error`; or a stream ended the context in ending.
        """
        self._ended = True
        self._wake()
        self._rebuild_scope.cancel("the session has ended")
        known = self._failure
        if known is not None and not self._remote:
            return
        found: DeviceError | None = None
        with trio.move_on_after(self._close_timeout, shield=True) as scope:
            try:
                unprotected(self._turns.drop_all)
                await self._all_ended()
                found = self._failure if known is None else None  # in ending a stream
                if found is None or self._remote:
                    await unprotected_result(self._turns.runner.close)
            except Exception as error:
                raise close_error(error) from error
        if scope.cancelled_caught:
            raise ContextHung(f"the runner has not closed within {self._close_timeout:g} s")
        if found is not None:
            raise found


@protected
class _AsyncSource:
    """The stream of an async runner: a task takes its chunks as they come, and is at most `_AHEAD` of them ahead."""

    wakes: ClassVar[bool] = True

    def __init__(
        self, chunks: AsyncIterator[TokenChunk], wake: Callable[[], None], late: Callable[[Exception], object]
    ) -> None:
        self._chunks = chunks
        self._wake = wake
        self._late = late
        self._queue: deque[TokenChunk] = deque()
        self._room = trio.Event()
        self._scope = trio.CancelScope()
        self.ended = trio.Event()
        self._closed = False
        self._over = False
        self._error: Exception | None = None

    def poll(self) -> object:
        """See `Source.poll`."""
        if self._queue:
            self._room.set()
            return self._queue.popleft()
        if self._error is not None:
            raise self._error
        return None if self._over else NOTHING

    def close(self) -> None:
        """See `Source.close`: the stream is cancelled."""
        self._closed = True
        self._scope.cancel("the stream was dropped")

    async def run(self) -> None:
        """Take the chunks until the stream ends."""
        try:
            with self._scope:
                await self._take()
        except Exception as error:  # noqa: BLE001 - `poll` raises it; a BaseException leaves through the nursery instead
            self._error = error
        self._over = True
        if self._closed and self._error is not None:
            self._late(self._error)
        self._wake()

    async def _take(self) -> None:
        async with Entered(closing(self._chunks)):
            await _each(self._chunks, self._add)

    async def _add(self, chunk: TokenChunk) -> None:
        if chunk is NOTHING:
            raise RunnerError("an async stream must wait until it has a chunk, got NOTHING")
        self._queue.append(chunk)
        self._wake()
        while len(self._queue) >= _AHEAD:
            self._room = trio.Event()
            await self._room.wait()


@disable_ki_protection
async def _each(chunks: AsyncIterator[TokenChunk], act: Callable[[TokenChunk], Awaitable[None]]) -> None:
    """Call `act` with each chunk. A `KeyboardInterrupt` may be raised in the code that makes a chunk."""
    async for chunk in chunks:
        await act(chunk)


def closing(chunks: AsyncIterator[TokenChunk]) -> AbstractAsyncContextManager[object]:
    """A context manager that closes an async generator on leaving, not when it is collected. Other iterators may lack `aclose`."""
    if hasattr(chunks, "aclose"):
        return aclosing(cast("AsyncGenerator[TokenChunk, None]", chunks))
    return nullcontext()
