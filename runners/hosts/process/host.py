"""`ProcessHost`: the runner in an operating system process of its own, so that a restart is real (D10).

Needs `msgspec` (the extra `process`) and Linux (pidfd, and a child that dies with its parent).
"""

from __future__ import annotations

import functools
import math
import statistics
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import trio
from attrs import field, frozen
from attrs.validators import ge, gt, in_, instance_of, optional
from trio.lowlevel import enable_ki_protection

from runners.brief import brief, one_line, text_of
from runners.diagnosis.nvml import Nvml
from runners.diagnosis.probe import device_numbers
from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    ContextPoisoned,
    DeviceError,
    InferenceError,
    LoadFailed,
    OutOfMemory,
    ProtocolError,
    Unrecoverable,
)
from runners.hosts import RequestFailed, Session
from runners.hosts.process import wire
from runners.hosts.process.parent.births import is_late, refusal
from runners.hosts.process.parent.peer import Peer
from runners.hosts.process.parent.standby import Plan, Reserve, reserved
from runners.hosts.session import BaseSession
from runners.hosts.spec import check_runner, pack
from runners.protect import Entered
from runners.types import ExecuteBatch, RunnerSpec, SessionRebuildCause, TokenChunk, token_chunk

StartMethod: TypeAlias = Literal["forkserver", "spawn"]
Done = TypeVar("Done")

_LAST_WORDS = 0.25
"""Seconds between a closed connection and the death that it announces: a large process takes its time to vanish."""

TURN = 64
"""Frames of which nothing comes that are looked at before the loop has its turn, which takes a millisecond or two."""
_A_READ = 8
"""Frames that a read of 64 KB takes as long as."""
BACKLOG = wire.MAX_FRAME + 2**20
"""Bytes that may still be read behind a deadline before it counts: it may be us who were late, and they lie there. Of a
process that is well there are fewer without any progress among them: the longest frame, and what a socket holds."""
_MEDIAN_OF = 64
ENOUGH = 512
"""Items that one `receive` gives at most a step more than: reading and handing them out holds the loop for a millisecond or two."""
_NEXT_FLOOR, _NEXT_FACTOR = 10.0, 20


_SLICE = 1.0
_SHORT = 0.02


def _start_method(wanted: StartMethod | None) -> StartMethod:
    return wanted or "forkserver"


def _check_device(_host: object, _field: object, device: str) -> None:
    """Torch's names of CUDA devices, of several too; any other is the runner's business."""
    if device.startswith("cuda"):
        device_numbers(device)
    elif not device:
        raise ValueError("device must name a device, got ''")


@frozen(kw_only=True)
class ProcessHost:
    """A process per incarnation. All times are seconds; past one of the first three it is killed (D9).

    Args:
        device: as torch names it, or several of it, such as `cuda:0,1`; handed to the runner.
        start: `forkserver`: from a process that has everything imported; the first start takes as long as a cold one,
            the next ones milliseconds. `spawn`: cold. None is the first of them.
        standby: how many processes stand ready beside the one that serves, with as much done as the runner spec allows
            without the device (`PreparingSpec`).
        load_timeout: from the start of the process until the runner is loaded; a rebuild has as long, and so has a fork
            server's preload.
        first_chunk_timeout: without progress while a stream waits for its first chunk, or did when it was dropped, and
            the process has not said yet that it goes on without it.
        next_chunk_timeout: without progress while all open streams have begun; None is 20 times the median step, at
            least 10.
        close_timeout: to close the runner when all is well; then the process is killed.
        kill_timeout: from SIGKILL to the end; a process that outlives it has its device `Unrecoverable`.
        nvml: says after a poison whether the device can be used again.
        linger: how long fork server and standby outlive the last context, at most until the end of the Trio run. Should
            be longer than any backoff.
    """

    device: str = field(default="cpu", kw_only=False, validator=[instance_of(str), _check_device])
    start: StartMethod = field(default=None, converter=_start_method, validator=in_(get_args(StartMethod)))
    standby: int = field(default=0, validator=[instance_of(int), ge(0)])
    load_timeout: float = field(default=300.0, validator=gt(0))
    first_chunk_timeout: float = field(default=60.0, validator=gt(0))
    next_chunk_timeout: float | None = field(default=None, validator=optional(gt(0)))
    close_timeout: float = field(default=5.0, validator=gt(0))
    kill_timeout: float = field(default=10.0, validator=gt(0))
    linger: float = field(default=30.0, validator=ge(0))
    nvml: Nvml = field(factory=Nvml, validator=instance_of(Nvml))

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError: see `check`; so for ValueError.
            Unrecoverable: no process can be started here, whatever it is to load.
        """
        if why := refusal():
            raise Unrecoverable(why)
        start = wire.Start(incarnation, None if cause is None else one_line(cause))
        return Entered(self._open(self._checked(runner), start))

    def check(self, runner: object) -> None:
        """Refuse what cannot be handed to another process, and anything where no other process can be had.

        Raises:
            TypeError: see `check_runner`.
            ValueError: likewise; or the spec is too long to be sent, or this is no place for a process.
        """
        if why := refusal():
            raise ValueError(why)
        self._checked(runner)

    def _checked(self, runner: object) -> Plan:
        """What a reserve for this runner is to do."""
        plan = self._plan(runner)
        try:
            plan.hello(ahead=False)
        except ValueError as error:
            raise ValueError(f"a {plan.name} cannot be sent to another process: {error}") from None
        return plan

    def _plan(self, runner: object) -> Plan:
        cls = type(runner)
        check_runner(runner)
        return Plan(
            name=cls.__name__,
            path=_import_path(cls.__module__),
            runner=pack(runner),
            device=self.device,
            forks=self.start == "forkserver",
            standby=self.standby,
            preload_timeout=self.load_timeout,
            kill_timeout=self.kill_timeout,
            linger=self.linger,
        )

    @asynccontextmanager
    @enable_ki_protection  # a KeyboardInterrupt between two lines would leave a process behind
    async def _open(self, plan: Plan, start: wire.Start) -> AsyncGenerator[Session, None]:
        """One life of the process."""
        async with reserved(plan) as reserve:
            peer = await _taken(reserve, start.incarnation)
            session = ProcessSession(self, peer, start.incarnation)
            try:
                await session.load(start)
                reserve.replenish()
                yield session
            except DeviceError as error:  # a context in trouble is not asked to close its runner
                session.condemn(error)
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await session.end()


class ProcessSession(BaseSession[int]):
    """A `Session` in a process.

    What is unsent is bounded: at most a begin for each open stream and a drop for each stream that the process knows,
    because a begin that is still unsent is taken back, not dropped.
    """

    def __init__(self, host: ProcessHost, peer: Peer, incarnation: int) -> None:
        super().__init__(incarnation)
        self.pid = peer.pid
        self._host = host
        self._peer = peer
        self._parser = wire.from_child()
        self._kept: wire.FromChild | None = None  # the next frame, where it has been looked at already
        self._asked = False  # NVML, about the failure
        self._names: dict[int, str] = {}  # of the open ones, by number
        # Dropped ones, of which the process has not said so yet, in order, each with the number of the first stream that
        # was begun later: whatever the process says of that one, it has read the drop, and must have answered it.
        self._leaving: dict[int, int] = {}
        self._lacks = 0  # streams that failed for want of memory, of which the context has not told yet
        self._turn = 0  # frames of this turn of the loop
        self._read = 0  # bytes so far
        self._overdue: int | None = None  # of them when it was found that the deadline had passed
        self._new: set[int] = set()  # open or leaving ones without a first chunk
        self._rebuilt = trio.Event()  # or there is no hope of it
        self._progress = trio.current_time()
        self._waiting = trio.CancelScope()
        self._steps: deque[float] = deque(maxlen=_MEDIAN_OF)

    async def load(self, start: wire.Start) -> None:
        """Have the runner loaded; the process knows which."""
        self._peer.send(wire.encode(start))
        await self._known(self._loaded)

    async def _loaded(self) -> None:
        frame = await self._frame()
        match frame:
            case wire.Ready():
                self._info = frame.info()
            case wire.Broken():
                raise self._fail(wire.context_error(frame))
            case _:
                raise self._fail(self._unexpected(frame))

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = ()) -> None:
        """See `Session.begin`."""
        self._check_begin(batch.request_id, accepted)
        if self._failure is not None:
            return
        data = _begin_data(self._begun, batch.on_clock(-trio.current_time()), accepted)
        if not self._streams and not self._leaving:
            self._progress = trio.current_time()
        number, self._begun = self._begun, self._begun + 1
        self._streams[batch.request_id] = number
        self._names[number] = batch.request_id
        self._new.add(number)
        self._peer.send(data, number)
        self._hurry()

    def drop(self, request_id: str) -> None:
        """See `Session.drop`."""
        self._check_open()
        number = self._streams.get(request_id)
        if number is None:
            return
        self._forget(number)
        if self._failure is not None:
            return
        if self._peer.withdraw(number):
            self._new.discard(number)
        else:
            self._leaving[number] = self._begun
            self._peer.send(wire.encode(wire.Drop(number)))

    async def receive(self) -> Sequence[TokenChunk | RequestFailed]:
        """See `Session.receive`."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._turn = 0
        return await self._known(self._received)

    async def _known(self, act: Callable[[], Awaitable[Done]]) -> Done:
        """What is done, or the failure of the context as the hardware has it (D4)."""
        try:
            return await act()
        except ContextPoisoned as error:
            if not self._asked:
                self._failure = await self._host.nvml.judge(error, self._host.device)
                self._asked = True
            if self._failure is not error:
                raise (error if self._failure is None else self._failure) from error
            raise

    async def _received(self) -> Sequence[TokenChunk | RequestFailed]:
        while True:
            match frame := await self._frame():
                case wire.Step():
                    if made := self._read_step(frame):
                        self._add_steps(made)
                        return made
                case wire.Dropped(stream=number):
                    self._dropped(number)
                case wire.Rebuilt() if self._rebuilding:
                    self._answer_rebuild()
                case wire.Broken():
                    raise self._broken(frame)
                case _:
                    raise self._fail(self._unexpected(frame))
            await self._spend(1)

    async def _spend(self, frames: int) -> None:
        """Let the loop have its turn, if it is due. Whatever it says, a context without progress is not let past its deadline."""
        self._turn += frames
        if self._turn < TURN:
            return
        await trio.lowlevel.checkpoint()
        self._turn = 0
        seconds, what = self._patience()
        if trio.current_time() < self._progress + seconds:
            self._overdue = None
        elif self._overdue is None:
            self._overdue = self._read
        elif self._read - self._overdue > BACKLOG:
            raise self._fail(self._hung(seconds, what))

    async def rebuild(self, cause: SessionRebuildCause) -> None:
        """See `Session.rebuild`."""
        self._check_rebuild(cause)
        self._rebuilding, self._rebuilt = True, trio.Event()
        self._progress = trio.current_time()
        self._peer.send(wire.encode(wire.Rebuild(cause.value)))
        self._hurry()
        try:
            await self._rebuilt.wait()
        except BaseException:
            if self._rebuilding:
                self._give_up_rebuild()
            raise
        self._check_failure()
        self._check_open()

    async def end(self) -> None:
        """Have the process gone and reaped: asked to if all is well, killed otherwise.

        Raises:
            Unrecoverable: it does not die.
        """
        self._ended = True
        self._answer_rebuild()
        unclosed = None
        if self._info is not None and self._failure is None:
            unclosed = await self._ask_to_end()
        if await self._peer.reap(self._host.kill_timeout):
            raise Unrecoverable(
                f"the context process {self.pid} has outlived SIGKILL by {self._host.kill_timeout:g} s: "
                f"it may still hold {self._host.device}"
            )
        if unclosed is not None:
            raise unclosed

    async def _ask_to_end(self) -> InferenceError | None:
        """Have the runner closed and the process ended; what came of it instead. One that is dead already has not failed in it."""
        if self._peer.dead:
            return None
        self._peer.send(wire.encode(wire.Shutdown()))
        with trio.move_on_after(self._host.close_timeout) as scope:
            try:
                unclosed = await self._closed()
            except DeviceError as error:  # it died, or said what it may not say
                return error
            await self._peer.drained()
            return unclosed
        assert scope.cancelled_caught
        return ContextHung(
            f"the context process {self.pid} has not closed its runner within {self._host.close_timeout:g} s"
        )

    async def _closed(self) -> InferenceError | None:
        """Until the runner is closed; what it raised instead. Whatever else the process says is late."""
        while True:
            match await self._frame():
                case wire.Closed():
                    return None
                case wire.Broken(error=error) as frame if (
                    error.name != OutOfMemory.__name__ or not self._lacks
                ):
                    return wire.closing_error(frame)
                case wire.Broken():
                    self._lacks -= 1
                case wire.Step(failed=failed):
                    self._lacks += sum(one.error.name == OutOfMemory.__name__ for one in failed)
                case _:
                    pass
            await trio.lowlevel.checkpoint()

    async def _frame(self) -> wire.FromChild:
        """The next frame, or the failure of the context. What it had sent before it died comes first."""
        while True:
            if self._failure is not None:
                raise self._failure
            frame, self._kept = self._kept or self._parse(), None
            if frame is not None:
                return frame
            dead = self._peer.dead  # asked before reading, so that its last words are read
            if data := self._peer.read():
                self._parser.feed(data)
                self._read += len(data)
                await self._spend(_A_READ)
            elif data is not None or dead:
                raise self._fail(await self._death())
            else:
                await self._wait()

    def _parse(self) -> wire.FromChild | None:
        try:
            return self._parser.next()
        except ProtocolError as error:
            raise self._fail(error) from error.__cause__

    async def _wait(self) -> None:
        """For something to happen, until the deadline (D9). Nothing is there to read."""
        seconds, what = self._patience()
        now = trio.current_time()
        left = self._progress + seconds - now
        if left <= 0:
            raise self._fail(self._hung(seconds, what))
        slices = 1 if left == math.inf else math.ceil(left / _SLICE)
        with trio.CancelScope(deadline=now + left / slices) as self._waiting:
            await self._peer.wait()
        self._excuse(now)

    def _excuse(self, began: float) -> None:
        """Where nobody ran for a while, the parent neither (a frozen cgroup, a machine that is moved), that counts for nobody.

        It shows in a slice of waiting that was much longer than asked for. Half of the slice counts, so that there is
        another look behind it, and an end even where each slice is late. A very short one counts whole.
        """
        asked_for = self._waiting.deadline
        if is_late(asked_for):
            planned = asked_for - began
            self._progress += trio.current_time() - asked_for + (planned / 2 if planned > _SHORT else 0)

    def _hung(self, seconds: float, what: str) -> ContextHung:
        return ContextHung(f"the context process {self.pid} {what} within {seconds:g} s")

    def _hurry(self) -> None:
        """What was just asked has a deadline, and whoever waits may have begun to when there was none."""
        deadline = self._progress + self._patience()[0]
        self._waiting.deadline = min(self._waiting.deadline, deadline)

    def _patience(self) -> tuple[float, str]:
        """How long after the last progress the next must come, and what it is."""
        if self._ended:  # closing has a time of its own
            return math.inf, ""
        if self._info is None:
            return self._host.load_timeout, "loaded no runner"
        if self._rebuilding:
            return self._host.load_timeout, "rebuilt no session"
        waited_for = len(self._streams) + len(self._leaving)
        if not waited_for:
            return math.inf, ""
        if not self._new:
            return self._next_timeout(), "made no next chunk"
        first = self._host.first_chunk_timeout
        if len(self._new) < waited_for:  # a step may have to begin one stream and go on with others
            first = max(first, self._next_timeout())
        return first, "made no first chunk"

    def _next_timeout(self) -> float:
        if self._host.next_chunk_timeout is not None:
            return self._host.next_chunk_timeout
        return max(_NEXT_FLOOR, _NEXT_FACTOR * statistics.median(self._steps)) if self._steps else _NEXT_FLOOR

    async def _death(self) -> ContextDied:
        error = ContextDied(f"the context process {self.pid} {await self._peer.told(_LAST_WORDS)}")
        if words := self._peer.output.last_words():
            error.add_note(f"the context process wrote last:\n{words}")
        return error

    def condemn(self, error: DeviceError) -> None:
        """See `BaseSession.condemn`: it is killed."""
        self._fail(error)

    def _fail(self, error: DeviceError) -> DeviceError:
        """The context is over; the first failure stands."""
        if self._failure is None:
            self._failure = error
            self._peer.kill()
            self._answer_rebuild()
        return self._failure

    def _broken(self, frame: wire.Broken) -> DeviceError:
        error = wire.context_error(frame)
        if isinstance(error, OutOfMemory) and self._lacks:  # of a stream, of which we know
            self._lacks -= 1
            return error
        if isinstance(error, OutOfMemory) and not self._rebuilding:
            return self._fail(self._unexpected(frame))
        return self._fail(self._of_rebuild(error))

    def _add_steps(self, made: list[TokenChunk | RequestFailed]) -> None:
        """Add what later steps made, as far as it has been read. A failure among them waits for the next `receive`."""
        more = TURN
        with suppress(DeviceError):  # it is kept, and final
            while more and len(made) < ENOUGH and not self._kept and (frame := self._parse()) is not None:
                more -= 1
                if isinstance(frame, wire.Step):
                    made += self._read_step(frame)
                else:
                    self._kept = frame

    def _read_step(self, step: wire.Step) -> list[TokenChunk | RequestFailed]:
        """What belongs to open streams, which is progress.

        The rest is late: of streams that were dropped, until the process says that it has read so. Whatever else it says
        of is invented.
        """
        made: list[TokenChunk | RequestFailed] = []
        incarnation, names = self.incarnation, self._names
        for chunk in step.chunks:
            name = names.get(chunk.stream)
            if name is None:
                self._check_leaving(chunk.stream)
                continue
            finish = chunk.finish
            data = None if chunk.data is None else self._unpacked(chunk.data)
            made.append(
                token_chunk(
                    name, chunk.index, chunk.token_ids, chunk.text, finish, chunk.usage, incarnation, data
                )
            )
            if finish is not None:
                self._forget(chunk.stream)
        for failed in step.failed:
            self._lacks += failed.error.name == OutOfMemory.__name__
            if (name := names.get(failed.stream)) is None:
                self._check_leaving(failed.stream)
            else:
                self._forget(failed.stream)
                made.append(RequestFailed(name, wire.request_error(failed.error)))
        if self._new or self._leaving:
            self._note_streams(step)
        if made:
            now = trio.current_time()
            self._steps.append(now - self._progress)
            self._progress = now
        elif not step.chunks and not step.failed:
            raise self._fail(ProtocolError(f"the context process {self.pid} made a step of nothing"))
        return made

    def _unpacked(self, data: wire.Packed) -> Any:
        try:
            return wire.unpacked(data)
        except ProtocolError as error:
            raise self._fail(error) from error.__cause__

    def _note_streams(self, step: wire.Step) -> None:
        """Those that have made something are new no more, and what was dropped before they began must be gone."""
        told = {chunk.stream for chunk in step.chunks} | {failed.stream for failed in step.failed}
        self._new -= told
        if self._leaving and max(told, default=-1) >= next(iter(self._leaving.values())):
            number = next(iter(self._leaving))
            raise self._fail(
                ProtocolError(f"the context process {self.pid} has not dropped stream {number}, as asked to")
            )

    def _dropped(self, number: int) -> None:
        """The process goes on without a stream, which is progress: it may have been at it when nobody wanted it any more."""
        if number not in self._leaving:
            raise self._fail(
                ProtocolError(f"the context process {self.pid} dropped stream {number}, not asked to")
            )
        del self._leaving[number]
        self._new.discard(number)
        self._progress = trio.current_time()

    def _check_leaving(self, number: int) -> None:
        """What belongs to a stream that is not open must be late, not invented."""
        if number not in self._leaving:
            raise self._fail(
                ProtocolError(f"the context process {self.pid} spoke of stream {number}, which is not open")
            )

    def _forget(self, number: int) -> None:
        del self._streams[self._names.pop(number)]

    def _answer_rebuild(self) -> None:
        if self._rebuilding:
            self._rebuilding = False
            self._progress = trio.current_time()
            self._rebuilt.set()

    def _unexpected(self, frame: wire.FromChild) -> ProtocolError:
        return ProtocolError(
            f"the context process {self.pid} sent an unexpected {type(frame).__name__} frame"
        )


async def _taken(reserve: Reserve, incarnation: int) -> Peer:
    """A process that waits for its start; what it writes is logged under the name of our task, which is a leaf's path."""
    try:
        peer = await reserve.take()
    except OSError as error:
        raise LoadFailed(f"the context process could not be started: {error}") from error
    peer.output.who = f"{trio.lowlevel.current_task().name}[{incarnation}]"
    return peer


def _import_path(module: str) -> tuple[str, ...]:
    """Where we import from, for a process that may stand in another folder by then.

    An entry that is relative, such as that of `python -c`, means where it led when this module's runners were first
    opened: an `os.chdir` since then is no reason to look elsewhere in the next incarnation. One that led nowhere is left out.
    """
    paths = (_absolute(entry, module) for entry in sys.path if isinstance(entry, str))
    return tuple(path for path in paths if path is not None)


def _absolute(entry: str, module: str) -> str | None:
    if Path(entry).is_absolute():
        return entry
    with suppress(OSError):  # the folder has been deleted
        return _led_to(entry, module)
    return None


@functools.cache
def _led_to(entry: str, _module: str) -> str:
    return str(Path(entry).absolute())


def _begin_data(number: int, batch: ExecuteBatch, accepted: Sequence[int]) -> bytes:
    if type(batch) is not ExecuteBatch:
        raise BadRequest(f"to a process only an ExecuteBatch itself can be sent, got {brief(batch)}")
    try:
        return wire.encode(wire.begin(number, batch, accepted))
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BadRequest(f"the request {brief(batch.request_id)} cannot be sent: {text_of(error)}") from error
