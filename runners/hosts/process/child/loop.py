"""The loop of a context process. It has one thread, so a step that hangs cannot look like progress (D9)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

from runners.brief import attribute
from runners.diagnosis.classify import classify
from runners.diagnosis.probe import DeviceProbe
from runners.errors import ContextPoisoned, InferenceError, OutOfMemory
from runners.hosts.packing import unpack
from runners.hosts.process import wire
from runners.hosts.process.child.status import FAILED, SETTLED
from runners.hosts.process.child.title import entitle
from runners.hosts.process.surroundings import adopt
from runners.hosts.turns import (
    Item,
    Judge,
    Turns,
    close_error,
    in_turn,
    info_of,
    load_error,
    ours,
    sync_runner,
)
from runners.plain import is_encodable
from runners.types import (
    ModelRunner,
    PreparingSpec,
    RunnerSpec,
    RunnerStart,
    SessionRebuildCause,
    TokenChunk,
)

_READ = 65_536
_UNSENDABLE = (ValueError, TypeError, OverflowError, MemoryError)
"""The errors of `Link.send` for a frame that cannot be sent. Nothing of it has been sent then."""
Frame = TypeVar("Frame")


def serve(connection: socket.socket) -> int:
    """Load and serve until asked to shut down. Returns the exit status."""
    link = Link(connection)
    try:
        hello = _expect(wire.Hello, link)
        probe = DeviceProbe(hello.device)

        def judge(error: Exception) -> InferenceError:
            return ours(classify(error, probe))

        Engine(_load(hello, link, judge), link, judge).run()
    except InferenceError as error:
        link.send(_broken(error))
        return FAILED if isinstance(error, (ContextPoisoned, OutOfMemory)) else SETTLED
    except EOFError:  # the parent is gone, and prctl's signal is on its way
        pass
    return 0


class Link:
    """The child's end of the connection; it blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._parser = wire.from_parent()

    def send(self, *frames: wire.FromChild) -> None:
        """Send these frames at once.

        Raises:
            ValueError: see `wire.encode`; so for TypeError and OverflowError. Then nothing was sent.
            EOFError: the parent is gone.
        """
        data = b"".join([wire.encode(frame) for frame in frames])
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise EOFError from error

    def frames(self, *, wait: bool) -> Iterator[wire.FromParent]:
        """The frames that the parent has sent so far; at least one if `wait`.

        Raises:
            EOFError: the parent is gone.
        """
        while True:
            while (frame := self._parser.next()) is not None:
                wait = False
                yield frame
            if not self._read(wait=wait):
                return

    def _read(self, *, wait: bool) -> bool:
        """Whether anything came."""
        try:
            data = self._socket.recv(_READ, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError as error:
            raise EOFError from error
        if not data:
            raise EOFError
        self._parser.feed(data)
        return True


def _load(hello: wire.Hello, link: Link, judge: Judge) -> ModelRunner:
    """Make the runner that the first two frames name, and report what it declares."""
    if hello.today is not None:
        adopt(hello.today)
    try:
        spec = _prepared(unpack(hello.runner), hello)
        begin = _expect(wire.Start, link)
        entitle("context")
        start = RunnerStart(incarnation=begin.incarnation, device=hello.device, cause=begin.cause)
        runner = sync_runner(spec.build(start))
        link.send(wire.ready(info_of(runner)))
    except EOFError:
        raise
    except Exception as error:
        raise load_error(error, judge) from error
    return runner


def _prepared(spec: RunnerSpec, hello: wire.Hello) -> RunnerSpec:
    """The spec, with as much done ahead as it allows, where there is time for it."""
    if hello.ahead and isinstance(spec, PreparingSpec):
        return spec.prepare(hello.device)
    return spec


def _expect(kind: type[Frame], link: Link) -> Frame:
    """The next frame, which is of this kind."""
    frame = next(link.frames(wait=True))
    if not isinstance(frame, kind):
        raise TypeError(f"a {kind.__name__} frame must come next, got {type(frame).__name__}")
    return frame


class Engine:
    """A loaded runner behind a link: what the parent asks for is done between two turns, and each turn is one step."""

    def __init__(self, runner: ModelRunner, link: Link, judge: Judge) -> None:
        self._turns = Turns(runner, judge)
        self._link = link
        self._judge = judge

    def run(self) -> None:
        """Serve until asked to shut down.

        Raises:
            InferenceError: the context is over.
        """
        turns = self._turns
        while True:
            for frame in self._link.frames(wait=turns.idle):
                if isinstance(frame, wire.Shutdown):
                    return self._close()
                self._obey(frame)
            if not turns.idle:
                self._send(turns.turn())

    def _close(self) -> None:
        """Close the runner. The last frame is `Closed`, or the error of closing."""
        self._drop(*self._turns.open)
        try:
            self._turns.runner.close()
        except Exception as error:
            raise close_error(error) from error
        self._link.send(wire.Closed())

    def _obey(self, frame: wire.FromParent) -> None:
        match frame:
            case wire.Begin():
                self._begin(frame)
            case wire.Drop(stream=number):
                self._drop(number)
                self._link.send(wire.Dropped(number))
            case wire.Rebuild(cause=cause):
                self._rebuild(SessionRebuildCause(cause))
            case _:
                raise TypeError(f"a loaded context takes no {type(frame).__name__} frame")

    def _begin(self, frame: wire.Begin) -> None:
        if frame.confirm:
            self._link.send(wire.Taken(frame.stream))
        try:
            batch = frame.batch().on_clock(time.monotonic())
        except Exception as error:  # noqa: BLE001 - a batch that was changed behind its validators is its own request's error
            self._turns.fail(frame.stream, frame.request_id, error)
        else:
            self._turns.begin(frame.stream, batch, frame.accepted, in_turn)

    def _drop(self, *numbers: int) -> None:
        """End streams early. What fails in that is sent at once: nothing may come of a stream behind its `Dropped`."""
        for number in numbers:
            self._turns.drop(number)
        self._send(self._turns.early())

    def _rebuild(self, cause: SessionRebuildCause) -> None:
        self._drop(*self._turns.open)
        try:
            self._turns.runner.rebuild(cause)
        except Exception as error:
            raise load_error(error, self._judge) from error
        self._link.send(wire.Rebuilt())

    def _send(self, items: Sequence[Item]) -> None:
        """Send what a turn made as one step, and behind it that memory ran out in it."""
        if not items:
            return
        step = wire.Step([], [])
        for number, made in items:
            if type(made) is not TokenChunk:
                step.failed.append(wire.Failed(number, wire.error_data(cast("InferenceError", made))))
                continue
            try:
                step.chunks.append(wire.chunk(number, made))
            except _UNSENDABLE as error:
                step.failed.append(self._unsendable(number, error))
        try:
            self._link.send(step)
        except _UNSENDABLE:
            self._send_apart(step)
        if self._turns.failures:
            self._link.send(*map(_broken, self._turns.failures))
            self._turns.failures.clear()

    def _send_apart(self, step: wire.Step) -> None:
        """Send a frame for each stream, and instead of a chunk that cannot be sent that its stream has failed."""
        for chunk in step.chunks:
            try:
                self._link.send(wire.Step([chunk], []))
            except _UNSENDABLE as error:
                step.failed.append(self._unsendable(chunk.stream, error))
        self._link.send(*(wire.Step([], [failed]) for failed in step.failed))

    def _unsendable(self, number: int, error: Exception) -> wire.Failed:
        """A stream ends, because its chunk cannot be sent; if it cannot be closed either, by that error."""
        self._turns.drop(number)
        unclosed = self._turns.early()
        return wire.Failed(number, wire.error_data(unclosed[0][1] if unclosed else error))


def _broken(error: InferenceError) -> wire.Broken:
    given = cast("tuple[object, ...]", attribute(error, "request_ids"))
    is_plain = type(given) is tuple and all(type(name) is str and is_encodable(name) for name in given)
    names = cast("tuple[str, ...]", given) if is_plain else ()
    return wire.Broken(wire.error_data(error), names)
