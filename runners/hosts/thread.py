"""`ThreadHost`: a sync runner in one thread of this process (D10). The loop goes on while it computes."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeAlias

import trio
from attrs import evolve, field, frozen
from attrs.validators import gt, instance_of

from runners.brief import quoted
from runners.diagnosis.classify import classify
from runners.diagnosis.probe import DeviceProbe
from runners.errors import DeviceError, Unrecoverable
from runners.hosts import Session
from runners.hosts.local import LocalSession
from runners.hosts.spec import check_runner
from runners.hosts.turns import Item, Turns, close_error, in_turn, info_of, judged, load_error, sync_runner
from runners.protect import Entered
from runners.types import ExecuteBatch, RunnerInfo, RunnerSpec, RunnerStart, SessionRebuildCause

_AHEAD = 2
"""Turns that the thread may be ahead of the reader."""


@frozen(kw_only=True)
class ThreadHost:
    """One thread per incarnation, in which the runner is loaded, serves and is closed.

    It costs a stream less than a process does, and isolates nothing. A poisoned context stays poisoned, and a step that
    hangs goes on hanging: either is a `DeviceError` that says so, and that `DEVICE` escalates. All times are seconds.

    Args:
        device: as torch names it; handed to the runner.
        load_timeout: for the runner to be loaded; a rebuild has as long.
        chunk_timeout: without progress while streams are open, or not yet dropped as asked.
        close_timeout: for the thread to end; if it does not, its device is `Unrecoverable`.
    """

    device: str = field(default="cpu", kw_only=False, validator=instance_of(str))
    load_timeout: float = field(default=300.0, validator=gt(0))
    chunk_timeout: float = field(default=60.0, validator=gt(0))
    close_timeout: float = field(default=5.0, validator=gt(0))

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError: see `check_runner`; so for ValueError.
        """
        check_runner(runner)
        return Entered(
            self._open(runner, RunnerStart(incarnation=incarnation, device=self.device, cause=cause))
        )

    @asynccontextmanager
    async def _open(self, runner: RunnerSpec, start: RunnerStart) -> AsyncGenerator[Session, None]:
        session = ThreadSession(self, runner, start)
        try:
            await session.load()
            yield session
        except DeviceError as error:
            session.condemn(error)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await session.end()


@frozen
class _Turn:
    """What one turn made, and what it told of the context."""

    items: list[Item]
    failures: list[DeviceError]


@frozen
class _Dropped:
    """A stream is over, as ordered."""


@frozen
class _Rebuilt:
    """The session was made anew."""


@frozen
class _Over:
    """The thread ends: for a failure of the context, or as ordered, and then the runner may have failed to close."""

    failure: DeviceError | None = None
    unclosed: Exception | None = None


_Report: TypeAlias = RunnerInfo | _Turn | _Dropped | _Rebuilt | _Over
_Order: TypeAlias = Callable[[Turns], None]


class ThreadSession(LocalSession):
    """A `Session` in a thread: orders go in, reports come out."""

    def __init__(self, host: ThreadHost, spec: RunnerSpec, start: RunnerStart) -> None:
        super().__init__(start.incarnation)
        self._host = host
        self._reports: deque[_Turn | DeviceError] = deque()
        self._answered = trio.Event()  # a load, a rebuild, or the end
        self._over: _Over | None = None
        self._leaving = 0  # streams that the thread is still to drop
        self._progress = trio.current_time()
        loop = trio.lowlevel.current_trio_token()
        self._engine = _Engine(spec, start, lambda report: loop.run_sync_soon(self._arrived, report))

    async def load(self) -> None:
        """Have the runner loaded."""
        await self._answer("loaded no runner")
        if self._over is not None and self._over.failure is not None:
            raise self._over.failure

    def _begin(self, number: int, batch: ExecuteBatch, accepted: tuple[int, ...]) -> None:
        if len(self._streams) == 1 and not self._leaving:
            self._progress = trio.current_time()
        theirs = batch.on_clock(time.monotonic() - trio.current_time())
        self._engine.order(lambda turns: turns.begin(number, theirs, accepted, in_turn))
        self._wake()  # whoever waits may have begun to when there was no deadline

    def _drop(self, number: int) -> None:
        self._leaving += 1
        self._engine.order(partial(self._engine.drop, number))
        self._wake()  # likewise when there was one

    def _made(self) -> Iterable[Item]:
        if not self._reports:
            return []
        report = self._reports.popleft()
        if isinstance(report, DeviceError):
            self._fail(report)
            return []
        self._progress = trio.current_time()
        self._engine.order(self._engine.grant)
        self._told += report.failures
        return report.items

    async def _wait(self) -> None:
        """For a report, until the deadline (D9)."""
        if self._reports:
            return
        patience = self._host.chunk_timeout if self._streams or self._leaving else math.inf
        with trio.move_on_at(self._progress + patience):
            await self._news.wait()
            return
        self._fail(_hung(f"made no chunk within {self._host.chunk_timeout:g} s"))

    async def rebuild(self, cause: SessionRebuildCause) -> None:
        """See `Session.rebuild`."""
        self._check_rebuild(cause)
        self._rebuilding, self._answered = True, trio.Event()
        try:
            self._engine.order(partial(self._engine.rebuild, cause))
            await self._answer("rebuilt no session")
        except DeviceError as error:
            self._fail(error)
        finally:
            self._rebuilding = False
        self._check_open()
        if self._over is not None and self._over.failure is not None:
            self._fail(self._over.failure)
        self._check_failure()

    async def end(self) -> None:
        """Have the runner closed if all is well, and the thread ended.

        Raises:
            Unrecoverable: it does not end; or whatever closing raises.
        """
        self._ended = True
        self._wake()
        self._answered.set()
        self._engine.closes = self._failure is None
        self._engine.order(None)
        with trio.move_on_after(self._host.close_timeout):
            while self._over is None:
                self._answered = trio.Event()
                await self._answered.wait()
        if self._over is None:
            raise Unrecoverable(
                f"process isolation off: the runner's thread has not ended within {self._host.close_timeout:g} s: "
                f"it may still hold {self._host.device}"
            )
        self._engine.thread.join()
        if self._over.unclosed is not None:
            raise self._over.unclosed

    async def _answer(self, what: str) -> None:
        """Wait for the thread to answer.

        Raises:
            DeviceError: it did not, in time.
        """
        with trio.move_on_after(self._host.load_timeout):
            await self._answered.wait()
            return
        raise _hung(f"{what} within {self._host.load_timeout:g} s")

    def _arrived(self, report: _Report) -> None:
        """The thread has said something; called in the loop."""
        match report:
            case _Turn():
                self._reports.append(report)
                self._progress = trio.current_time()
                self._wake()
                return
            case _Dropped():
                self._leaving -= 1
                self._progress = trio.current_time()
                self._wake()
                return
            case RunnerInfo():
                self._info = report
            case _Rebuilt():
                self._progress = trio.current_time()
            case _Over():
                if report.failure is not None and self._info is not None:
                    report = evolve(report, failure=self._of_rebuild(report.failure))
                    assert report.failure is not None
                    self._reports.append(report.failure)
                    self._wake()
                self._over = report
        self._answered.set()


class _Engine:
    """The thread: it obeys orders, and makes turns while the reader takes them."""

    def __init__(self, spec: RunnerSpec, start: RunnerStart, report: Callable[[_Report], None]) -> None:
        self._report = report
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        self._ahead = 0
        self.closes = True  # the runner, at the end
        self._judge = partial(
            judged, classify=partial(classify, probe=DeviceProbe(start.device)), clears=False
        )
        self.thread = threading.Thread(
            target=self._run, args=(spec, start), name=f"runner {start.incarnation}", daemon=True
        )
        self.thread.start()

    def order(self, order: _Order | None) -> None:
        """Have this done between two turns; None is the end. Never blocks."""
        self._orders.put(order)

    def grant(self, turns: Turns) -> None:  # noqa: ARG002 - an order
        """The reader has taken a turn."""
        self._ahead -= 1

    def drop(self, number: int, turns: Turns) -> None:
        """End a stream, and say so."""
        turns.drop(number)
        self._report(_Dropped())

    def rebuild(self, cause: SessionRebuildCause, turns: Turns) -> None:
        """Make the session anew, and say so."""
        try:
            turns.runner.rebuild(cause)
        except Exception as error:
            raise load_error(error, self._judge) from error
        self._report(_Rebuilt())

    def _run(self, spec: RunnerSpec, start: RunnerStart) -> None:
        """The thread's life. Whatever ends it is told, unless nobody is left to tell."""
        try:
            over = self._live(spec, start)
        except DeviceError as error:
            over = _Over(error)
        except BaseException as error:  # noqa: BLE001 - sys.exit of a runner, say; it ends the thread alone
            over = _Over(_uncaught(error))
        with suppress(trio.RunFinishedError):
            self._report(over)

    def _live(self, spec: RunnerSpec, start: RunnerStart) -> _Over:
        turns = self._load(spec, start)
        while True:
            while turns.idle or self._ahead >= _AHEAD or not self._orders.empty():
                if (order := self._orders.get()) is None:
                    return _closed(turns) if self.closes else _Over()
                order(turns)
            made = turns.turn()
            self._ahead += 1
            self._report(_Turn(made, turns.failures))
            turns.failures = []

    def _load(self, spec: RunnerSpec, start: RunnerStart) -> Turns:
        try:
            runner = sync_runner(spec.build(start))
            info = info_of(runner)
        except Exception as error:
            raise load_error(error, self._judge) from error
        self._report(info)
        return Turns(runner, self._judge)


def _closed(turns: Turns) -> _Over:
    try:
        turns.drop_all()
        turns.runner.close()
    except Exception as error:  # noqa: BLE001 - raised again where the session is left
        return _Over(unclosed=close_error(error))
    except BaseException as error:  # noqa: BLE001 - sys.exit of a runner, say: it ends the thread, not the program
        return _Over(unclosed=_uncaught(error))
    return _Over()


def _uncaught(error: BaseException) -> DeviceError:
    ended = DeviceError(f"the runner's thread was ended by {quoted(error)}")
    ended.__cause__ = error
    return ended


def _hung(what: str) -> DeviceError:
    return DeviceError(f"process isolation off: cannot stop a runner that {what}")
