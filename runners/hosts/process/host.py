"""`ProcessHost`: the runner in an operating system process of its own, so that a restart is real (D10).

Needs `msgspec` (the extra `process`) and Linux (pidfd, and a child that dies with its parent).
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import trio
from attrs import field, frozen
from attrs.validators import in_, instance_of
from trio.lowlevel import enable_ki_protection

from runners.brief import brief, one_line, text_of
from runners.diagnosis.probe import check_device
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
from runners.hosts.packing import check_runner, pack
from runners.hosts.process import wire
from runners.hosts.process.parent.connection import Connection
from runners.hosts.process.parent.processes import is_late, refusal
from runners.hosts.process.parent.standby import Plan, Reserve, SomePlan, reserved
from runners.hosts.process.terms import Terms, own_first
from runners.hosts.session import BaseSession
from runners.protect import Entered
from runners.types import ExecuteBatch, RunnerSpec, SessionRebuildCause, TokenChunk, token_chunk

StartMethod: TypeAlias = Literal["forkserver", "spawn"]
Done = TypeVar("Done")

DYING = 0.25
"""Seconds that a process may take to die after its connection was closed: the kernel first frees the memory of a large one."""

TURN = 64
"""Frames without a result that are read, in a millisecond or two, before other tasks run."""
_A_READ = 8
"""A read of 64 KB takes as long as this many frames."""
BACKLOG = wire.MAX_FRAME + 2**20
"""Bytes that may be read after a deadline before it counts: if the parent was late, they have waited in the socket. A healthy
process never sends so many without progress among them: this is the longest frame and what a socket holds."""
_MEDIAN_OF = 64
ENOUGH = 512
"""The number of items after which `receive` adds no further step: reading and passing them on takes a millisecond or two."""
_NEXT_FLOOR, _NEXT_FACTOR = 10.0, 20


_SLICE = 1.0
"""Seconds of the longest slice of waiting, see `_excuse_pause`."""
_SHORT = 0.02
"""Seconds; a planned slice that is not longer counts whole."""


def _start_method(wanted: StartMethod | None) -> StartMethod:
    return wanted or "forkserver"


@frozen(kw_only=True, field_transformer=own_first)
class ProcessHost(Terms):
    """A process for each incarnation (D10). All times are in seconds.

    A process that exceeds `load_timeout`, `first_chunk_timeout` or `next_chunk_timeout` is killed, and the context fails with
    `ContextHung` (D9). A process that dies by itself is `ContextDied`.

    Args:
        device: as torch names it, or several, such as `cuda:0,1`; passed to the runner.
        start: `forkserver` forks each process from a fork server, which has imported everything (D15): the first start takes
            as long as a cold one, the next ones milliseconds. `spawn` starts each process cold. None is `forkserver`.
        standby: how many processes stand ready beside the one that serves. Each has done as much of the load as the runner
            spec allows without the device (`PreparingSpec`).
        load_timeout: from the start of the process until the runner is loaded. A rebuild, and the preload of a fork server,
            have as long.
        first_chunk_timeout: without progress while a stream waits for its first chunk. A dropped stream counts until the
            process has confirmed the drop.
        next_chunk_timeout: without progress while all open streams have had a chunk; None is 20 times the median step, but
            at least 10.
        close_timeout: to close the runner, if the context has not failed; then the process is killed.
        kill_timeout: from SIGKILL to the death of the process. If it lives longer, its device is `Unrecoverable`.
        linger: how long fork server and standbys outlive the last context, at most until the end of the Trio run. It should
            be longer than any backoff.
        nvml: asks after a poison whether the device can be used again (D4).

    Raises:
        ValueError: a number is out of range, `start` is unknown, or `device` is empty or no valid name of CUDA devices.
        TypeError: an argument has a wrong type.
    """

    device: str = field(default="cpu", kw_only=False, validator=[instance_of(str), check_device])
    start: StartMethod = field(default=None, converter=_start_method, validator=in_(get_args(StartMethod)))

    def open(
        self, runner: RunnerSpec, *, incarnation: int = 1, cause: str | None = None
    ) -> AbstractAsyncContextManager[Session]:
        """See `Host.open`.

        Raises:
            TypeError, ValueError: see `check`.
            Unrecoverable: no process can be started on this system, whatever the runner.
        """
        if why := refusal():
            raise Unrecoverable(why)
        start = wire.Start(incarnation, None if cause is None else one_line(cause))
        return Entered(lived(self, self._plan(runner), Reserve, start))

    def check(self, runner: object) -> None:
        """Refuse a runner spec that cannot be sent to another process (D2), and any spec where no process can be started.

        Raises:
            TypeError: see `check_runner`.
            ValueError: see `check_runner`; or the spec is too long to be sent, or no process can be started on this system.
        """
        if why := refusal():
            raise ValueError(why)
        self._plan(runner)

    def _plan(self, runner: object) -> Plan:
        """The plan of a reserve for this runner, if its first message can be sent."""
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
        ).checked()


@asynccontextmanager
@enable_ki_protection  # a KeyboardInterrupt between two lines would leave a process running
async def lived(
    host: Terms, plan: SomePlan, make: Callable[[SomePlan], Reserve], start: wire.Start
) -> AsyncGenerator[Session, None]:
    """A context manager: one life of a context process, from a reserve for this plan, which `make` makes if there is none."""
    async with reserved(plan, make) as reserve:
        peer = await _taken(reserve, start.incarnation)
        session = ProcessSession(host, peer, start.incarnation)
        try:
            await session.load(start)
            reserve.replenish()
            yield session
        except DeviceError as error:  # a context that has failed does not close its runner
            session.condemn(error)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await session.end()


class ProcessSession(BaseSession[int]):
    """A `Session` in a process.

    The unsent frames are bounded: at most one begin for each open stream and one drop for each stream that the process
    knows, because a begin that is still unsent is withdrawn, not dropped.
    """

    def __init__(self, host: Terms, peer: Connection, incarnation: int) -> None:
        super().__init__(incarnation)
        self.pid = peer.pid
        self._host = host
        self._peer = peer
        self._parser = wire.from_child()
        self._loop = trio.lowlevel.current_trio_token()
        self._kept: wire.FromChild | None = None  # a frame that has been parsed, but not handled
        self._judged = False  # whether NVML was asked about the failure
        # The id and the frame of each stream that was begun in this turn of the loop, by number; `_send_begins` is due.
        self._begins: dict[int, tuple[str, bytes]] = {}
        self._names: dict[int, str] = {}  # of the open streams whose begin was sent, by number
        # The streams whose drop the process has not confirmed, in order, each with the number of the first stream that was
        # begun after the drop. Once the process names that stream, it has read the drop, and must have confirmed it.
        self._leaving: dict[int, int] = {}
        self._lacks = 0  # streams that failed with `OutOfMemory` and for which no `Broken` frame has come yet
        self._turn = 0  # frames read since other tasks last ran
        self._read = 0  # bytes read so far
        self._overdue: int | None = None  # the value of `_read` when the deadline was found to have passed
        self._new: set[int] = set()  # of these and the leaving ones those without a first chunk
        self._untaken: set[int] = set()  # of `_new` those whose `Taken` has not come yet
        self._rebuilt = trio.Event()  # the rebuild is done, or will never be
        self._progress = trio.current_time()
        self._waiting = trio.CancelScope()
        self._steps: deque[float] = deque(maxlen=_MEDIAN_OF)

    async def load(self, start: wire.Start) -> None:
        """Have the process load the runner, whose spec it got with its first message."""
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

    def begin(self, batch: ExecuteBatch, accepted: Sequence[int] = (), *, confirm: bool = False) -> None:
        """See `Session.begin`."""
        self._check_begin(batch.request_id, accepted)
        if self._failure is not None:
            return
        data = _begin_data(self._begun, batch.on_clock(-trio.current_time()), accepted, confirm)
        number, self._begun = self._begun, self._begun + 1
        self._streams[batch.request_id] = number
        if confirm:
            self._untaken.add(number)
        if not self._begins:
            self._loop.run_sync_soon(self._send_begins)
        self._begins[number] = batch.request_id, data

    def _send_begins(self) -> None:
        """Send all begins of one turn of the loop in one write, so that the process takes them up in one step.

        Their deadline begins now: the loop may have been blocked since they were begun.
        """
        begins, self._begins = self._begins, {}
        if self._ended or self._failure is not None:
            return
        if not self._names and not self._leaving:
            self._progress = trio.current_time()
        self._names.update((number, name) for number, (name, _) in begins.items())
        self._new.update(begins)
        self._peer.send_marked({number: data for number, (_, data) in begins.items()})
        self._tighten_deadline()

    def has_taken(self, request_id: str) -> bool:
        """See `Session.has_taken`."""
        number = self._streams.get(request_id)
        return number is not None and number not in self._untaken

    def drop(self, request_id: str) -> None:
        """See `Session.drop`."""
        self._check_open()
        number = self._streams.pop(request_id, None)
        if number is None:
            return
        self._names.pop(number, None)
        if self._failure is not None or self._begins.pop(number, None) is not None:
            self._untaken.discard(number)
            return
        if self._peer.withdraw(number):
            self._forget_new(number)
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
        """The result of `act`; a poison that it raises is first judged by NVML, once (D4)."""
        try:
            return await act()
        except ContextPoisoned as error:
            if not self._judged:
                self._failure = await self._host.nvml.judge(error, self._host.device, self._peer.trouble)
                self._judged = True
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
                case wire.Taken(stream=number) if number in self._untaken:
                    self._untaken.remove(number)
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
        """Count frames, and let other tasks run after every `TURN` of them.

        This also checks the deadline (D9): a context that keeps sending frames without progress would never get to `_wait`.
        """
        self._turn += frames
        if self._turn < TURN:
            return
        await trio.lowlevel.checkpoint()
        self._turn = 0
        seconds, what = self._time_limit()
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
        self._tighten_deadline()
        try:
            await self._rebuilt.wait()
        except BaseException:
            if self._rebuilding:
                self._give_up_rebuild()
            raise
        self._check_failure()
        self._check_open()

    async def end(self) -> None:
        """End the process and reap it: it is asked to end if the context has not failed, and killed otherwise.

        Raises:
            Unrecoverable: the process does not die.
            InferenceError: the runner could not be closed.
        """
        self._ended = True
        self._answer_rebuild()
        unclosed = None
        if self._info is not None and self._failure is None:
            unclosed = await self._ask_to_end()
        if await self._peer.reap(self._host.kill_timeout):
            raise Unrecoverable(
                f"{self._peer.name} has outlived SIGKILL by {self._host.kill_timeout:g} s: "
                f"it may still hold {self._host.device}"
            )
        if unclosed is not None:
            raise unclosed

    async def _ask_to_end(self) -> InferenceError | None:
        """Have the process close its runner and end. Returns the error if that fails; a process that is already dead is none."""
        if self._peer.dead:
            return None
        self._peer.send(wire.encode(wire.Shutdown()))
        with trio.move_on_after(self._host.close_timeout) as scope:
            try:
                unclosed = await self._closed()
            except DeviceError as error:  # it died, or sent a frame that the protocol does not allow
                return error
            await self._peer.drained()
            return unclosed
        assert scope.cancelled_caught
        return ContextHung(
            f"{self._peer.name} has not closed its runner within {self._host.close_timeout:g} s"
        )

    async def _closed(self) -> InferenceError | None:
        """Wait until the runner is closed; returns the error if closing raised. Other frames are late, and ignored."""
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
        """The next frame; raises the failure of the context. Frames that a process sent before its death come first."""
        while True:
            if self._failure is not None:
                raise self._failure
            frame, self._kept = self._kept or self._parse(), None
            if frame is not None:
                return frame
            dead = self._peer.dead  # checked before reading, so that no byte sent before the death is missed
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
        """Wait for something to read, the death of the process, or the deadline (D9)."""
        seconds, what = self._time_limit()
        now = trio.current_time()
        left = self._progress + seconds - now
        if left <= 0:
            raise self._fail(self._hung(seconds, what))
        slices = 1 if left == math.inf else math.ceil(left / _SLICE)
        with trio.CancelScope(deadline=now + left / slices) as self._waiting:
            await self._peer.wait()
        self._excuse_pause(now)

    def _excuse_pause(self, began: float) -> None:
        """Do not count time in which the parent did not run either, as in a frozen cgroup or while a machine is migrated.

        Such a pause shows as a slice of waiting that took much longer than planned. Half of the planned slice counts, so
        that the process is checked once more after it, and the deadline comes even if every slice is late. A very short
        slice counts whole.
        """
        asked_for = self._waiting.deadline
        if is_late(asked_for):
            planned = asked_for - began
            self._progress += trio.current_time() - asked_for + (planned / 2 if planned > _SHORT else 0)

    def _hung(self, seconds: float, what: str) -> ContextHung:
        return ContextHung(f"{self._peer.name} {what} within {seconds:g} s")

    def _tighten_deadline(self) -> None:
        """Apply the deadline of what was just sent to the reader, which may have begun to wait when there was none."""
        deadline = self._progress + self._time_limit()[0]
        self._waiting.deadline = min(self._waiting.deadline, deadline)

    def _time_limit(self) -> tuple[float, str]:
        """The seconds from the last progress within which the next must come, and a text for `_hung` if it does not."""
        if self._ended:  # `close_timeout` applies instead
            return math.inf, ""
        if self._info is None:
            return self._host.load_timeout, "loaded no runner"
        if self._rebuilding:
            return self._host.load_timeout, "rebuilt no session"
        waited_for = len(self._names) + len(self._leaving)
        if not waited_for:
            return math.inf, ""
        # Streams that are not taken yet are in no step: the present one is that of the others (D9).
        if self._new <= self._untaken and len(self._new) < waited_for:
            return self._next_timeout(), "made no next chunk"
        first = self._host.first_chunk_timeout
        if len(self._new) < waited_for:  # one step may both begin a stream and continue others
            first = max(first, self._next_timeout())
        return first, "made no first chunk"

    def _next_timeout(self) -> float:
        if self._host.next_chunk_timeout is not None:
            return self._host.next_chunk_timeout
        return max(_NEXT_FLOOR, _NEXT_FACTOR * statistics.median(self._steps)) if self._steps else _NEXT_FLOOR

    async def _death(self) -> ContextDied:
        how = await self._peer.fate(DYING)
        error = self._peer.death(f"{self._peer.name} {how}")
        if lines := self._peer.output.last_lines():
            error.add_note(f"the context process wrote last:\n{lines}")
        return error

    def condemn(self, error: DeviceError) -> None:
        """See `BaseSession.condemn`. The process is killed, and NVML is not asked."""
        self._fail(error, judged=False)

    def _fail(self, error: DeviceError, *, judged: bool = True) -> DeviceError:
        """End the context with this failure, and kill its process; a later failure changes nothing. Returns the first one.

        `judged`: whether `_known` has NVML judge a poison. It does not if the session ends.
        """
        if self._failure is None:
            self._failure = error
            self._peer.kill(judged and not self._ended and isinstance(error, ContextPoisoned))
            self._answer_rebuild()
        return self._failure

    def _broken(self, frame: wire.Broken) -> DeviceError:
        error = wire.context_error(frame)
        if isinstance(error, OutOfMemory) and self._lacks:  # a stream's, which was returned already
            self._lacks -= 1
            return error
        if isinstance(error, OutOfMemory) and not self._rebuilding:
            return self._fail(self._unexpected(frame))
        return self._fail(self._of_rebuild(error))

    def _add_steps(self, made: list[TokenChunk | RequestFailed]) -> None:
        """Add the items of later steps that have been read. A failure among them is raised by the next `receive`."""
        more = TURN
        with suppress(DeviceError):  # `_fail` has kept it
            while more and len(made) < ENOUGH and not self._kept and (frame := self._parse()) is not None:
                more -= 1
                if isinstance(frame, wire.Step):
                    made += self._read_step(frame)
                else:
                    self._kept = frame

    def _read_step(self, step: wire.Step) -> list[TokenChunk | RequestFailed]:
        """The items of open streams; to have made one is progress.

        An item of a dropped stream is late until the process has confirmed the drop, and is ignored. An item of any other
        stream violates the protocol.
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
            raise self._fail(ProtocolError(f"{self._peer.name} sent an empty step"))
        return made

    def _unpacked(self, data: wire.Packed) -> Any:
        try:
            return wire.unpacked(data)
        except ProtocolError as error:
            raise self._fail(error) from error.__cause__

    def _note_streams(self, step: wire.Step) -> None:
        """Note the streams that have had their first item. Drops that were sent before they began must be confirmed by now."""
        named = {chunk.stream for chunk in step.chunks} | {failed.stream for failed in step.failed}
        self._new -= named
        self._untaken -= named
        if self._leaving and max(named, default=-1) >= next(iter(self._leaving.values())):
            number = next(iter(self._leaving))
            raise self._fail(ProtocolError(f"{self._peer.name} did not drop stream {number} when asked to"))

    def _dropped(self, number: int) -> None:
        """The process has confirmed a drop. That is progress: its present step may have included the dropped stream."""
        if number not in self._leaving:
            raise self._fail(
                ProtocolError(f"{self._peer.name} dropped stream {number} without being asked to")
            )
        del self._leaving[number]
        self._forget_new(number)
        self._progress = trio.current_time()

    def _forget_new(self, number: int) -> None:
        self._new.discard(number)
        self._untaken.discard(number)

    def _check_leaving(self, number: int) -> None:
        """An item of a stream that is not open must be late, not invented."""
        if number not in self._leaving:
            raise self._fail(ProtocolError(f"{self._peer.name} named stream {number}, which is not open"))

    def _forget(self, number: int) -> None:
        del self._streams[self._names.pop(number)]

    def _answer_rebuild(self) -> None:
        if self._rebuilding:
            self._rebuilding = False
            self._progress = trio.current_time()
            self._rebuilt.set()

    def _unexpected(self, frame: wire.FromChild) -> ProtocolError:
        return ProtocolError(f"{self._peer.name} sent an unexpected {type(frame).__name__} frame")


async def _taken(reserve: Reserve, incarnation: int) -> Connection:
    """A process that waits for its `Start`. Its output is logged under the name of our task, which is the path of a leaf."""
    try:
        peer = await reserve.take()
    except OSError as error:
        raise LoadFailed(f"the context process could not be started: {error}") from error
    peer.output.who = f"{trio.lowlevel.current_task().name}[{incarnation}]"
    return peer


def _import_path(module: str) -> tuple[str, ...]:
    """`sys.path` with absolute entries, for a process that may start in another folder.

    A relative entry, such as that of `python -c`, is resolved when a runner of this module is first opened, so that an
    `os.chdir` does not change where the next incarnation imports from. An entry that cannot be resolved, or that no file can have as
    its name, is left out.
    """
    paths = (_absolute(entry, module) for entry in sys.path if isinstance(entry, str))
    return tuple(path for path in paths if path is not None)


def _absolute(entry: str, module: str) -> str | None:
    # The folder has been deleted, or the entry cannot be passed to a process.
    with suppress(OSError, ValueError):
        found = entry if Path(entry).is_absolute() else _resolved(entry, module)
        if b"\0" not in os.fsencode(found):
            return found
    return None


@functools.cache
def _resolved(entry: str, _module: str) -> str:
    return str(Path(entry).absolute())


def _begin_data(number: int, batch: ExecuteBatch, accepted: Sequence[int], confirm: bool) -> bytes:
    if type(batch) is not ExecuteBatch:
        raise BadRequest(f"to a process only an ExecuteBatch itself can be sent, got {brief(batch)}")
    try:
        return wire.encode(wire.begin(number, batch, accepted, confirm=confirm))
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise BadRequest(f"the request {brief(batch.request_id)} cannot be sent: {text_of(error)}") from error
