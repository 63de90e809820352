"""The engine loop of a context process: single-threaded, so that what it counts as progress is progress (D9)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias, TypeVar

from attrs import frozen

from runners.brief import quoted
from runners.diagnosis.classify import classify
from runners.diagnosis.probe import DeviceProbe
from runners.errors import LoadFailed, OutOfMemory
from runners.hosts import wire
from runners.hosts.spec import unpack
from runners.hosts.surroundings import adopt
from runners.hosts.title import entitle
from runners.hosts.turns import Position, checked, close, execute, info_of, made_by, sync_only, sync_runner
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
"""What `Link.send` raises of a frame that cannot be said. Nothing of it has been sent then."""
Frame = TypeVar("Frame")
Judge: TypeAlias = Callable[[Exception], Exception]


def serve(connection: socket.socket) -> int:
    """Load, serve until told to shut down, and say what exit status that makes."""
    link = Link(connection)
    try:
        hello = _expect(wire.Hello, link)
        judge = partial(classify, probe=DeviceProbe(hello.device))
        Engine(_load(hello, link, judge), link, judge).run()
    except _ContextFailed as failed:
        link.send(failed.frame)
        return 70
    except EOFError:  # the parent is gone, and prctl's signal is on its way
        pass
    return 0


class Link:
    """The child's end of the connection; it blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._parser = wire.from_parent()

    def send(self, *frames: wire.FromChild) -> None:
        """Say these, at once.

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
        """What the parent has said by now; at least one frame if `wait`.

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


class _ContextFailed(Exception):
    """The context is over: say this, and nothing more."""

    def __init__(self, error: BaseException, *request_ids: str) -> None:
        super().__init__()
        self.frame = wire.Broken(wire.error_data(error), request_ids)


def _load(hello: wire.Hello, link: Link, judge: Judge) -> ModelRunner:
    """Make the runner that the first two frames name, and say so."""
    if hello.today is not None:
        adopt(hello.today)
    try:
        spec = _prepared(unpack(hello.runner), hello)
        told = _expect(wire.Start, link)
        entitle("context")
        start = RunnerStart(incarnation=told.incarnation, device=hello.device, cause=told.cause)
        runner = sync_runner(spec.build(start))
        link.send(wire.ready(info_of(runner)))
    except EOFError:
        raise
    except Exception as error:
        raise _ContextFailed(_load_error(error, judge)) from error
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


def _load_error(error: Exception, judge: Judge) -> Exception:
    """What a failed load or rebuild is called: its own name if it has one among the device's."""
    found = judge(error)
    if wire.concerns_context(found):
        return found
    failed = LoadFailed(quoted(error))
    failed.__cause__ = error
    return failed


@frozen
class _Stream:
    position: Position
    chunks: Iterator[TokenChunk]

    def close(self) -> None:
        """Free its place in the runner."""
        close(self.chunks)


class Engine:
    """A loaded runner and its open streams. A step takes one chunk of each, and they travel together."""

    def __init__(self, runner: ModelRunner, link: Link, judge: Judge) -> None:
        self._runner = runner
        self._link = link
        self._judge = judge
        self._streams: dict[int, _Stream] = {}
        self._oom: list[wire.Broken] = []

    def run(self) -> None:
        """Serve until told to shut down."""
        while True:
            for frame in self._link.frames(wait=not self._streams):
                if isinstance(frame, wire.Shutdown):
                    return self._close()
                self._obey(frame)
            if self._streams:
                self._step()

    def _close(self) -> None:
        """The end, as asked for; whether the runner took it well is the last word."""
        self._drop_all()
        try:
            self._runner.close()
        except Exception as error:
            raise _ContextFailed(error) from error
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
        try:
            batch = frame.batch().on_clock(time.monotonic())
            chunks = sync_only(execute(self._runner, batch, frame.accepted))
        except Exception as error:  # noqa: BLE001 - whatever a runner raises is judged in one place
            self._tell(wire.Step([], [self._fail(frame.stream, frame.request_id, error)]))
        else:
            self._streams[frame.stream] = _Stream(Position.of(batch, frame.accepted), chunks)

    def _step(self) -> None:
        """Tell the next chunk of each stream, or the error that ends it."""
        step = wire.Step([], [])
        for number, stream in tuple(self._streams.items()):
            try:
                step.chunks.append(self._next(number, stream))
            except Exception as error:  # noqa: BLE001 - a runner may raise anything, and _fail judges it
                step.failed.append(self._fail(number, stream.position.request_id, error))
        self._tell(step)

    def _next(self, number: int, stream: _Stream) -> wire.Chunk:
        chunk = checked(stream.position, made_by(stream.chunks), stream.close)
        if chunk.finish_reason is not None:
            del self._streams[number]
            stream.close()
        return wire.chunk(number, chunk)

    def _fail(self, number: int, request_id: str, error: Exception) -> wire.Failed:
        """End a stream by its error, or the context if the error is the context's."""
        self._streams.pop(number, None)
        error = self._judge(error)
        data = wire.error_data(error)
        if data.name == OutOfMemory.__name__:
            self._oom.append(wire.Broken(data, (request_id,)))
        elif wire.concerns_context(error):
            raise _ContextFailed(error, request_id) from error
        return wire.Failed(number, data)

    def _tell(self, step: wire.Step) -> None:
        """Send a step, and behind it that memory ran out in it."""
        try:
            self._link.send(step, *self._oom)
        except _UNSENDABLE:
            self._tell_apart(step)
        self._oom.clear()

    def _tell_apart(self, step: wire.Step) -> None:
        """Likewise in a frame for each stream, and instead of a chunk that cannot be sent that its stream has failed."""
        for chunk in step.chunks:
            try:
                self._link.send(wire.Step([chunk], []))
            except _UNSENDABLE as error:
                worse = self._closed_early(chunk.stream)
                step.failed.append(worse or wire.Failed(chunk.stream, wire.error_data(error)))
        self._link.send(*(wire.Step([], [failed]) for failed in step.failed), *self._oom)

    def _drop(self, number: int) -> None:
        """End a stream early; the parent may not know yet that it has ended."""
        if failed := self._closed_early(number):
            self._tell(wire.Step([], [failed]))

    def _closed_early(self, number: int) -> wire.Failed | None:
        """Close a stream, if it is open still; how that failed, if it did."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            try:
                stream.close()
            except Exception as error:  # noqa: BLE001 - a runner may raise anything, and _fail judges it
                return self._fail(number, stream.position.request_id, error)
        return None

    def _drop_all(self) -> None:
        for number in tuple(self._streams):
            self._drop(number)

    def _rebuild(self, cause: SessionRebuildCause) -> None:
        self._drop_all()
        try:
            self._runner.rebuild(cause)
        except Exception as error:
            raise _ContextFailed(_load_error(error, self._judge)) from error
        self._link.send(wire.Rebuilt())
