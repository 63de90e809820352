"""`ThreadHost`: a sync runner in one thread of this process (D10). The event loop continues while it computes."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

import trio
from attrs import field, frozen
from attrs.validators import instance_of

from runners.brief import quoted
from runners.checks import above, plain_number
from runners.diagnosis.classify import classify
from runners.diagnosis.probe import DeviceProbe
from runners.errors import DeviceError, InferenceError, LoadFailed, Unrecoverable
from runners.hosts import Session
from runners.hosts.local import LocalSession
from runners.hosts.packing import check_runner
from runners.hosts.turns import Item, Turns, close_error, in_turn, info_of, judged, load_error, sync_runner
from runners.protect import Entered
from runners.types import ExecuteBatch, RunnerInfo, RunnerSpec, RunnerStart, SessionRebuildCause


@frozen(kw_only=True)
class ThreadHost:
    """One thread for each incarnation. The runner is loaded, serves and is closed in it.

    A stream costs less than with a process, but nothing is isolated. A poisoned context stays poisoned, and a step that
    hangs cannot be ended: both are a `DeviceError` that says so, and that `DEVICE` escalates. All times are in seconds.

    Args:
        device: as torch names it; passed to the runner.
        load_timeout: to load the runner, and to rebuild its session.
        chunk_timeout: for one turn, which begins and drops streams as requested and then takes a chunk of each open one.
        close_timeout: for the thread to end; if it does not, its device is `Unrecoverable`.

    Raises:
        ValueError: a timeout is not above 0.
        TypeError: an argument has a wrong type.
    """

    device: str = field(default="cpu", kw_only=False, validator=instance_of(str))
    load_timeout: float = field(default=300.0, converter=plain_number, validator=above(0))
    chunk_timeout: float = field(default=60.0, converter=plain_number, validator=above(0))
    close_timeout: float = field(default=5.0, converter=plain_number, validator=above(0))

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError, ValueError: see `check_runner`.
        """
        check_runner(runner)
        return Entered(
            self._open(runner, RunnerStart(incarnation=incarnation, device=self.device, cause=cause))
        )

    @asynccontextmanager
    async def _open(self, runner: RunnerSpec, start: RunnerStart) -> AsyncGenerator[Session, None]:
        session = ThreadSession(self, start)
        try:
            await session.load(runner, start)
            yield session
        except DeviceError as error:
            session.condemn(error)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await session.end()


@frozen
class _Turn:
    """The result of a turn: its items, the failures that concern the context, and whether no stream is open after it."""

    items: list[Item]
    failures: list[DeviceError]
    idle: bool


_Order: TypeAlias = Callable[[Turns], None]
"""A begin or a drop, which the thread carries out before its next turn."""


class ThreadSession(LocalSession):
    """A `Session` in a thread, which makes the next turn while the reader handles the items of the last one."""

    _turns: Turns  # set and used by the thread, once it has loaded the runner

    def __init__(self, host: ThreadHost, start: RunnerStart) -> None:
        super().__init__(start.incarnation)
        self._host = host
        self._orders: list[_Order] = []
        self._busy = False  # whether streams were open after the last turn
        self._turning = False
        self._since = 0.0  # when the present turn began
        self._turn: _Turn | None = None  # a finished turn that is not read yet
        self._judge = partial(
            judged, classify=partial(classify, probe=DeviceProbe(start.device)), clears=False
        )
        self._thread = _Thread(f"runner {start.incarnation}")

    async def load(self, spec: RunnerSpec, start: RunnerStart) -> None:
        """Load the runner in the thread.

        Raises:
            DeviceError: loading failed, or took too long.
        """
        self._info = await self._answer(partial(self._load, spec, start), "loaded no runner")

    def _begin(self, number: int, batch: ExecuteBatch, accepted: tuple[int, ...]) -> None:
        theirs = batch.on_clock(time.monotonic() - trio.current_time())
        self._orders.append(lambda turns: turns.begin(number, theirs, accepted, in_turn))
        self._wake()

    def _drop(self, number: int) -> None:
        self._orders.append(lambda turns: turns.drop(number))
        self._wake()

    def _made(self) -> Iterable[Item]:
        turn, self._turn = self._turn, None
        if turn is not None:
            self._passing += turn.failures
            self._busy = not turn.idle
        if not self._turning and not self._rebuilding and (self._busy or self._orders):
            self._turning, self._since = True, trio.current_time()
            self._thread.do(partial(self._make_turn, self._taken_orders()), self._turned)
        return [] if turn is None else turn.items

    def _taken_orders(self) -> list[_Order]:
        orders, self._orders = self._orders, []
        return orders

    def _turned(self, answer: _Turn | DeviceError) -> None:
        self._turning = False
        if isinstance(answer, DeviceError):
            self._fail(answer)
        else:
            self._turn = answer
            self._wake()

    async def _wait(self) -> None:
        """Wait until there may be more items, or the turn has taken too long (D9)."""
        if not self._turning:
            await self._changed.wait()
            return
        left = self._since + self._host.chunk_timeout - trio.current_time()
        if not await _within(left, self._changed.wait) and self._turning:
            self._fail(_hung(f"made no chunk within {self._host.chunk_timeout:g} s"))

    async def rebuild(self, cause: SessionRebuildCause) -> None:
        """See `Session.rebuild`."""
        self._check_rebuild(cause)
        self._rebuilding = True
        try:
            await self._answer(partial(self._rebuild, self._taken_orders(), cause), "rebuilt no session")
            self._turn = None  # a turn of before has nothing that is still wanted either
        except DeviceError as error:
            self._fail(self._of_rebuild(error))
        except BaseException:
            self._give_up_rebuild()
            raise
        finally:
            self._rebuilding = False
            self._wake()
        self._check_open()
        self._check_failure()

    async def end(self) -> None:
        """Close the runner unless the context has failed, and end the thread.

        Raises:
            Unrecoverable: the thread does not end.
            InferenceError: the runner could not be closed, see `close_error`; or its last turn ended the context.
        """
        self._ended = True
        self._wake()
        answers: list[InferenceError | None] = []
        was_sound = self._failure is None
        if was_sound:
            self._thread.do(self._close, answers.append)
        if not await self._thread.ends(self._host.close_timeout):
            raise Unrecoverable(
                f"process isolation off: the runner's thread has not ended within {self._host.close_timeout:g} s: "
                f"it may still hold {self._host.device}"
            )
        if was_sound and self._failure is not None:  # in the turn that was under way
            raise self._failure
        for unclosed in filter(None, answers):
            raise unclosed

    async def _answer(self, act: Callable[[], Any], what: str) -> Any:
        """Have the thread call `act`, and return the result.

        Raises:
            DeviceError: `act` raised it, or the thread did not answer in time.
        """
        answers: list[Any] = []
        answered = trio.Event()

        def take(answer: Any) -> None:
            answers.append(answer)
            answered.set()

        self._thread.do(act, take)
        await _within(self._host.load_timeout, answered.wait)
        if not answers:
            raise _hung(f"{what} within {self._host.load_timeout:g} s")
        if isinstance(answers[0], DeviceError):
            raise answers[0]
        return answers[0]

    # --- in the thread

    def _load(self, spec: RunnerSpec, start: RunnerStart) -> RunnerInfo:
        try:
            runner = sync_runner(spec.build(start))
            info = info_of(runner)
        except Exception as error:
            raise load_error(error, self._judge) from error
        self._turns = Turns(runner, self._judge)
        return info

    def _make_turn(self, orders: list[_Order]) -> _Turn:
        turns = self._turns
        self._carry_out(orders)
        items = turns.turn()
        failures, turns.failures = turns.failures, []
        return _Turn(items, failures, turns.idle)

    def _carry_out(self, orders: list[_Order]) -> None:
        for order in orders:
            order(self._turns)

    def _rebuild(self, orders: list[_Order], cause: SessionRebuildCause) -> None:
        self._carry_out(orders)
        self._turns.forget()
        try:
            self._turns.runner.rebuild(cause)
        except Exception as error:
            raise load_error(error, self._judge) from error

    def _close(self) -> None:
        try:
            self._turns.drop_all()
            self._turns.runner.close()
        except Exception as error:
            raise close_error(error) from error


class _Thread:
    """A thread that carries out jobs in order, and delivers each answer in the loop. After a `DeviceError` it skips the rest.

    The answer is the result of the job, the `InferenceError` that it raised, or None for a job that was skipped.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], object]] | None] = SimpleQueue()
        self._loop = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system has no thread left just now
            raise LoadFailed(f"the thread of the runner could not be started: {error}") from error

    def do(self, act: Callable[[], Any], then: Callable[[Any], object]) -> None:
        """Queue a job; `then` is called in the loop with its answer. Never blocks."""
        self._jobs.put((act, then))

    async def ends(self, seconds: float) -> bool:
        """End the thread after the jobs that are queued. Returns whether it ended within so many seconds."""
        self._jobs.put(None)
        await _within(seconds, self._ended.wait)
        if self._ended.is_set():
            self._thread.join()  # returns at once: setting `_ended` is the thread's last act
        return self._ended.is_set()

    def _run(self) -> None:
        failed = False
        while (job := self._jobs.get()) is not None:
            act, then = job
            answer = None if failed else _tried(act)
            failed = failed or isinstance(answer, DeviceError)
            self._deliver(then, answer)
        self._deliver(self._ended.set)

    def _deliver(self, function: Callable[..., object], *arguments: object) -> None:
        with suppress(trio.RunFinishedError):  # no task waits for the answer
            self._loop.run_sync_soon(function, *arguments)


async def _within(seconds: float, wait: Callable[[], Awaitable[object]]) -> bool:
    """Wait so many seconds for what the thread delivers; returns whether it came in time.

    If the loop was blocked, it may have come, but is delivered only at the checkpoint here. So the caller looks for it itself.
    """
    with trio.move_on_after(max(0, seconds)):
        await wait()
        return True
    await trio.lowlevel.checkpoint()
    return False


def _tried(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except InferenceError as error:
        return error
    except BaseException as error:  # noqa: BLE001 - sys.exit of a runner, say: it must end neither the thread nor the program
        ended = DeviceError(f"in its thread the runner raised {quoted(error)}")
        ended.__cause__ = error
        return ended


def _hung(what: str) -> DeviceError:
    return DeviceError(f"process isolation off: cannot stop a runner that {what}")
