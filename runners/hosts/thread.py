"""`ThreadHost`: a sync runner in one thread of this process (D10). The loop goes on while it computes."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

import trio
from attrs import field, frozen
from attrs.validators import gt, instance_of

from runners.brief import quoted
from runners.diagnosis.classify import classify
from runners.diagnosis.probe import DeviceProbe
from runners.errors import DeviceError, InferenceError, Unrecoverable
from runners.hosts import Session
from runners.hosts.local import LocalSession
from runners.hosts.spec import check_runner
from runners.hosts.turns import Item, Turns, close_error, in_turn, info_of, judged, load_error, sync_runner
from runners.protect import Entered
from runners.types import ExecuteBatch, RunnerInfo, RunnerSpec, RunnerStart, SessionRebuildCause


@frozen(kw_only=True)
class ThreadHost:
    """One thread per incarnation, in which the runner is loaded, serves and is closed.

    It costs a stream less than a process does, and isolates nothing. A poisoned context stays poisoned, and a step that
    hangs goes on hanging: either is a `DeviceError` that says so, and that `DEVICE` escalates. All times are seconds.

    Args:
        device: as torch names it; handed to the runner.
        load_timeout: for the runner to be loaded; a rebuild has as long.
        chunk_timeout: for one turn: a chunk of each open stream, behind what was begun and dropped before it.
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
    """What one turn made, what concerns the context in it, and whether another would make nothing."""

    items: list[Item]
    failures: list[DeviceError]
    idle: bool


_Order: TypeAlias = Callable[[Turns], None]


class ThreadSession(LocalSession):
    """A `Session` in a thread, which makes the next turn while the reader deals with the last one."""

    _turns: Turns  # the thread's, once it has loaded the runner

    def __init__(self, host: ThreadHost, start: RunnerStart) -> None:
        super().__init__(start.incarnation)
        self._host = host
        self._orders: list[_Order] = []  # for the thread to carry out before its next turn
        self._busy = False  # after the last turn streams were open
        self._turning = False
        self._since = 0.0  # when the turn began that is under way
        self._turn: _Turn | None = None  # over, and not read yet
        self._judge = partial(
            judged, classify=partial(classify, probe=DeviceProbe(start.device)), clears=False
        )
        self._thread = _Thread(f"runner {start.incarnation}")

    async def load(self, spec: RunnerSpec, start: RunnerStart) -> None:
        """Have the runner loaded.

        Raises:
            DeviceError: that failed, or was not done in time.
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
            self._told += turn.failures
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
        """Until there may be more, or a turn has taken too long (D9)."""
        if not self._turning:
            await self._news.wait()
            return
        with trio.move_on_at(self._since + self._host.chunk_timeout):
            await self._news.wait()
            return
        await (
            trio.lowlevel.checkpoint()
        )  # where the loop was held up, the answer may be there and not delivered yet
        if self._turning:
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
        """Have the runner closed if all is well, and the thread ended.

        Raises:
            Unrecoverable: it does not end.
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
        """What the thread answers.

        Raises:
            DeviceError: it failed, or did not answer in time.
        """
        deliver, answers = trio.open_memory_channel[Any](1)
        self._thread.do(act, deliver.send_nowait)
        with trio.move_on_after(self._host.load_timeout):
            if isinstance(answer := await answers.receive(), DeviceError):
                raise answer
            return answer
        raise _hung(f"{what} within {self._host.load_timeout:g} s")

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
        self._obey(orders)
        items = turns.turn()
        failures, turns.failures = turns.failures, []
        return _Turn(items, failures, turns.idle)

    def _obey(self, orders: list[_Order]) -> None:
        for order in orders:
            order(self._turns)

    def _rebuild(self, orders: list[_Order], cause: SessionRebuildCause) -> None:
        self._obey(orders)
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
    """Does one thing after the other, and has each answer delivered in the loop. After a `DeviceError` it does nothing more.

    An answer is what was returned, the `InferenceError` that was raised, or None for what was not done.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], object]] | None] = SimpleQueue()
        self._loop = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, act: Callable[[], Any], then: Callable[[Any], object]) -> None:
        """Have this done, and the answer given to `then`. Never blocks."""
        self._jobs.put((act, then))

    async def ends(self, seconds: float) -> bool:
        """End the thread behind what it is still to do. Whether it does within so many seconds."""
        self._jobs.put(None)
        with trio.move_on_after(seconds):
            await self._ended.wait()
            self._thread.join()  # it has nothing left to do
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
        with suppress(trio.RunFinishedError):  # nothing waits for it any more
            self._loop.run_sync_soon(function, *arguments)


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
