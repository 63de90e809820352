"""What both ends of a process say to each other: typed frames behind a length. Pure: no socket, no Trio.

A frame is four bytes of length, big endian, then one msgpack array that a closed set of structs describes. The parent
sends `Hello`, `Start`, `Begin`, `Drop`, `Rebuild`, `Shutdown`; the child `Ready`, `Taken`, `Step`, `Dropped`, `Rebuilt`,
`Closed`, `Broken`. What the child says is only ever data: nothing in it names code, and an error that is not in the tables here becomes one
that is.

With a fork server each datagram is one such array, without a length: `Preload` and `Fork` to it, `Preloaded`,
`NotPreloaded`, `Forked` and `Exited` from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeAlias, TypeVar, cast

import msgspec

from runners import errors
from runners.brief import MAX_TEXT, attribute, is_a, quoted, sendable, text_of, trace_of
from runners.diagnosis.classify import by_tag, code_of
from runners.errors import ContextPoisoned, InferenceError, OutOfMemory, ProtocolError, RunnerError
from runners.hosts.turns import MAX_TOKENS
from runners.types import (
    ExecuteBatch,
    FinishReason,
    Price,
    RateLimits,
    RunnerInfo,
    Sampling,
    TokenChunk,
    TokenUsage,
    Transport,
)

PROTOCOL = 2
"""The number of this protocol. It grows with each change after which a process of an older version would not be understood."""

MAX_FRAME = 16 * 2**20
"""Bytes of the longest frame, without its length."""

LONG = 2**18
"""Bytes of the longest step that may be of several streams; a longer one is of one alone, or reading it takes too long."""
MAX_ITEMS = 4096
"""Streams that one step may be of."""

MAX_REST = 2**16
"""Bytes of a chunk's data without its long texts and bytes: reading more pieces would hold up the parent's loop."""

_LENGTH = 4
_LONG_ITEM = 256
_BYTES, _TEXT = 1, 2  # codes of references
_ERROR_TEXT = 8 * MAX_TEXT

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=_ERROR_TEXT)]
Tokens: TypeAlias = Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_TOKENS)]


class _Part(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """An array in a frame, where no other kind can stand."""


class _Frame(_Part, frozen=True, tag=str.lower):
    """An array whose first item is the name of the frame."""


class Surroundings(_Part, frozen=True):
    """What a forked process must adopt, since its fork server may have other surroundings than the parent has now."""

    environment: list[tuple[bytes, bytes | None]]
    folder: bytes | None
    umask: int | None


class Hello(_Frame, frozen=True):
    """The first word: what to load.

    `ahead`: the start may be long in coming, so what holds no device may be done before it.
    """

    runner: Any
    device: str
    ahead: bool
    today: Surroundings | None = None


class Start(_Frame, frozen=True):
    """The second: load it now, as this incarnation."""

    incarnation: int
    cause: str | None


class Packed(_Part, frozen=True):
    """A chunk's plain data (D11). Its long texts and bytes stand apart: to read them takes no time, however long they are.

    So what a process sends cannot hold up the parent's loop: the rest, which is read piece by piece, is short.
    """

    rest: Annotated[bytes, msgspec.Meta(max_length=MAX_REST)]
    apart: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_ITEMS)]


class Begin(_Frame, frozen=True):
    """Begin stream number `stream`; numbers are never used twice in one incarnation.

    `confirm`: whether the child sends `Taken` before anything is done for it.
    """

    stream: Count
    request_id: str
    prompt: str
    model: str
    max_tokens: int
    temperature: float
    seed: int | None
    stop: tuple[str, ...]
    accepted: tuple[int, ...]
    deadline: float | None
    payload: Any = None
    options: dict[str, Any] | None = None
    confirm: bool = False

    def batch(self) -> ExecuteBatch:
        """The request as the runner gets it; its deadline is seconds from when it was sent."""
        sampling = Sampling(
            max_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed, stop=self.stop
        )
        return ExecuteBatch(
            self.request_id,
            self.prompt,
            payload=self.payload,
            options=self.options,
            sampling=sampling,
            model=self.model,
            deadline=self.deadline,
        )


class Drop(_Frame, frozen=True):
    """End this stream early; answered by `Dropped`, though it may have ended by itself."""

    stream: Count


class Rebuild(_Frame, frozen=True):
    """Make the session anew; answered by `Rebuilt` or `Broken`."""

    cause: str


class Shutdown(_Frame, frozen=True):
    """Close the runner and end."""


class Ready(_Frame, frozen=True):
    """The runner is loaded; what it declares."""

    streams: Annotated[int, msgspec.Meta(ge=1)]
    reproducible: bool
    can_continue: bool
    runtime: str
    transport: Transport
    limits: tuple[int | None, int | None] | None
    price: tuple[float, float]

    def info(self) -> RunnerInfo:
        """As the worker sees it.

        Raises:
            ProtocolError: there is no such limit or price.
        """
        try:
            return self._info()
        except ValueError as error:
            raise ProtocolError(f"not what a runner can declare: {error}") from error

    def _info(self) -> RunnerInfo:
        return RunnerInfo(
            streams=self.streams,
            reproducible=self.reproducible,
            can_continue=self.can_continue,
            runtime=self.runtime,
            transport=self.transport,
            limits=self.limits and RateLimits(requests=self.limits[0], tokens=self.limits[1]),
            price=Price(input=self.price[0], output=self.price[1]),
        )


class Chunk(_Part, frozen=True):
    """A `TokenChunk` of a stream; request and incarnation are known to the parent, and so is which index is next."""

    stream: int
    index: int
    token_ids: Tokens
    text: str
    finish: FinishReason | None
    usage: TokenUsage | None
    data: Packed | None = None


class Error(_Part, frozen=True):
    """An exception as data: the name of a class, its text, the device's own code, a traceback to read.

    `retry_after`: of an error that has it.
    """

    name: Text
    text: Text
    code: int | None
    trace: Text
    retry_after: float | None = None


class Failed(_Part, frozen=True):
    """A stream ended by its own error."""

    stream: int
    error: Error


class Step(_Frame, frozen=True):
    """Everything one step made, at most one of either for a stream, and never nothing. It is also the sign of progress."""

    chunks: Annotated[list[Chunk], msgspec.Meta(max_length=MAX_ITEMS)]
    failed: Annotated[list[Failed], msgspec.Meta(max_length=MAX_ITEMS)]


class LongStep(Step, frozen=True, tag="step"):
    """One of more than `LONG` bytes."""

    chunks: Annotated[list[Chunk], msgspec.Meta(max_length=1)]
    failed: Annotated[list[Failed], msgspec.Meta(max_length=1)]


class Taken(_Frame, frozen=True):
    """The child has read the `Begin` of this stream, and does nothing for it before it sends this."""

    stream: Count


class Dropped(_Frame, frozen=True):
    """This stream is over; there is no more of it."""

    stream: Count


class Rebuilt(_Frame, frozen=True):
    """The session was made anew."""


class Closed(_Frame, frozen=True):
    """The runner was closed, and the process ends."""


class Broken(_Frame, frozen=True):
    """The context has failed; unless memory ran out, this is the last word."""

    error: Error
    request_ids: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_ITEMS)]


class Preload(_Frame, frozen=True):
    """To a fork server: what its children will load."""

    runner: Any


class Preloaded(_Frame, frozen=True):
    """It is ready to fork."""


class NotPreloaded(_Frame, frozen=True):
    """It is not, and ends."""

    reason: str


class Fork(_Frame, frozen=True):
    """Make a context process; with it come its connection, its standard output and its standard error."""

    number: Count


class Forked(_Frame, frozen=True):
    """The answer; with it comes the pidfd."""

    number: Count
    pid: Count


class Exited(_Frame, frozen=True):
    """A child has ended and is reaped: `status` is its exit status, or the signal that killed it; None if it is lost."""

    number: Count
    killed: bool
    status: Count | None


FromParent: TypeAlias = Hello | Start | Begin | Drop | Rebuild | Shutdown
FromChild: TypeAlias = Ready | Taken | Step | Dropped | Rebuilt | Closed | Broken
LongFromChild: TypeAlias = Ready | Taken | LongStep | Dropped | Rebuilt | Closed | Broken
ToServer: TypeAlias = Preload | Fork
FromServer: TypeAlias = Preloaded | NotPreloaded | Forked | Exited
Frame = TypeVar("Frame")


def begin(stream: int, batch: ExecuteBatch, accepted: Sequence[int], *, confirm: bool = False) -> Begin:
    """The frame that begins a stream; a deadline must be in seconds from now.

    Raises:
        ValueError: its request id is so long that a failure could not name it.
    """
    if len(batch.request_id) > _ERROR_TEXT:
        raise ValueError(
            f"a request id must have at most {_ERROR_TEXT} characters, got {len(batch.request_id)}"
        )
    sampling = batch.sampling
    return Begin(
        stream,
        batch.request_id,
        batch.prompt,
        batch.model,
        sampling.max_tokens,
        sampling.temperature,
        sampling.seed,
        sampling.stop,
        tuple(accepted),
        batch.deadline,
        batch.payload,
        batch.options,
        confirm,
    )


def chunk(stream: int, made: TokenChunk) -> Chunk:
    """The frame of a chunk.

    Raises:
        ValueError: its data is too long, or no data that can be sent; so for TypeError.
    """
    data = None if made.data is None else packed(made.data)
    return Chunk(stream, made.index, made.token_ids, made.text, made.finish_reason, made.usage, data)


def packed(data: Any) -> Packed:
    """Plain data, with its long texts and bytes apart.

    Raises:
        ValueError: the rest has more than `MAX_REST` bytes, more than `MAX_ITEMS` stand apart, or a text is not Unicode.
    """
    apart: list[bytes] = []
    rest = _encoder.encode(_without_long(data, apart))
    if len(rest) > MAX_REST or len(apart) > MAX_ITEMS:
        raise ValueError(
            f"a chunk's data must have at most {MAX_REST} bytes besides at most {MAX_ITEMS} long texts and bytes, "
            f"got {len(rest)} and {len(apart)}; send an array as its bytes, shape and type"
        )
    return Packed(rest, tuple(apart))


def _without_long(data: Any, apart: list[bytes]) -> Any:
    """The data with a reference for each long text and bytes, which are added to `apart`."""
    kind = cast("type[object]", type(data))
    if kind is list:
        return [_without_long(item, apart) for item in data]
    if kind is dict:
        return {key: _without_long(item, apart) for key, item in data.items()}
    if kind in (bytes, str) and len(data) >= _LONG_ITEM:
        apart.append(data if kind is bytes else data.encode())
        return msgspec.msgpack.Ext(_BYTES if kind is bytes else _TEXT, (len(apart) - 1).to_bytes(2, "big"))
    return data


def unpacked(data: Packed) -> Any:
    """The plain data that a process has sent.

    Raises:
        ProtocolError: it is none.
    """

    def resolve(code: int, number: memoryview) -> Any:
        item = data.apart[int.from_bytes(number, "big")]
        return item if code == _BYTES else item.decode()

    try:
        return msgspec.msgpack.decode(data.rest, ext_hook=resolve)
    except (ValueError, IndexError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"not plain data: {error}") from error


def ready(info: RunnerInfo) -> Ready:
    """The frame that ends a load."""
    limits = None if info.limits is None else (info.limits.requests, info.limits.tokens)
    price = (info.price.input, info.price.output)
    return Ready(
        info.streams, info.reproducible, info.can_continue, info.runtime, info.transport, limits, price
    )


_encoder = msgspec.msgpack.Encoder()
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)
_to_server: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)


def encode(frame: FromParent | FromChild) -> bytes:
    """The frame's bytes, length first.

    Raises:
        ValueError: it is longer than `MAX_FRAME`, or than `LONG` and of several streams, or a text in it is not Unicode.
        TypeError: something in it is not of its declared type.
        OverflowError: a number in it has more than 64 bits.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise ValueError(f"a frame must have at most {MAX_FRAME} bytes, got {len(body)}")
    if type(frame) is Step and (len(body) > LONG or len(frame.chunks) > MAX_ITEMS):
        items = len(frame.chunks) + len(frame.failed)
        if items > 1:
            raise ValueError(
                f"a step of several streams must have at most {MAX_ITEMS} items and {LONG} bytes, "
                f"got {items} and {len(body)}"
            )
    return len(body).to_bytes(_LENGTH, "big") + body


class Parser(Generic[Frame]):
    """Bytes in, frames out. Holds at most one frame and what was fed last.

    After a `ProtocolError` it is of no more use.

    Args:
        decoder: of a frame's bytes.
        long: of one that has more than `LONG`; None is the same.
        max_frame: bytes of the longest frame.
    """

    def __init__(
        self,
        decoder: msgspec.msgpack.Decoder[Frame],
        *,
        long: msgspec.msgpack.Decoder[Any] | None = None,
        max_frame: int = MAX_FRAME,
    ) -> None:
        self._decoder = decoder
        self._long = long or decoder
        self._max_frame = max_frame
        self._bytes = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what came. Take frames with `next` until there is none, then feed again."""
        self._bytes += data

    def next(self) -> Frame | None:
        """The next whole frame; None if more bytes are needed.

        Raises:
            ProtocolError: what came is no frame.
        """
        if len(self._bytes) < _LENGTH:
            return None
        end = _LENGTH + self._length()
        if len(self._bytes) < end:
            return None
        body = bytes(self._bytes[_LENGTH:end])
        del self._bytes[:end]
        return self._decode(body)

    def _length(self) -> int:
        length = int.from_bytes(self._bytes[:_LENGTH], "big")
        if length > self._max_frame:
            raise ProtocolError(f"a frame must have at most {self._max_frame} bytes, got one of {length}")
        return length

    def _decode(self, body: bytes) -> Frame:
        try:
            return (self._decoder if len(body) <= LONG else self._long).decode(body)
        except (ValueError, RecursionError, MemoryError) as error:
            raise ProtocolError(f"not a frame: {error}") from error


def from_parent() -> Parser[FromParent]:
    """A parser for the child's end."""
    return Parser(msgspec.msgpack.Decoder(FromParent))


def from_child() -> Parser[FromChild]:
    """A parser for the parent's end."""
    return Parser(msgspec.msgpack.Decoder(FromChild), long=msgspec.msgpack.Decoder(LongFromChild))


def datagram(frame: ToServer | FromServer) -> bytes:
    """The frame's bytes for a socket that keeps datagrams apart."""
    return _encoder.encode(frame)


def from_server(data: bytes) -> FromServer:
    """A datagram of a fork server, decoded.

    Raises:
        ProtocolError: it is no frame.
    """
    try:
        return _from_server.decode(data)
    except ValueError as error:
        raise ProtocolError(f"not a frame: {error}") from error


def to_server(data: bytes) -> ToServer:
    """A datagram of the fork server's parent, decoded."""
    return _to_server.decode(data)


_REQUEST_ERRORS: dict[str, type[InferenceError]] = {
    cls.__name__: cls
    for cls in (
        errors.BadRequest,
        errors.ContextLengthExceeded,
        errors.ContentFiltered,
        errors.Timeout,
        errors.Backpressure,
        errors.NetworkError,
        errors.NetworkTimeout,
        errors.ServerError,
        errors.RateLimited,
        errors.Unauthorized,
        errors.Forbidden,
        OutOfMemory,
        RunnerError,
    )
}
_CONTEXT_ERRORS: dict[str, type[errors.DeviceError]] = {
    cls.__name__: cls
    for cls in (
        errors.DeviceError,
        ContextPoisoned,
        OutOfMemory,
        errors.Unrecoverable,
        errors.WeightsCorrupt,
        errors.LoadFailed,
    )
}

_NAMED: frozenset[type] = frozenset((*_REQUEST_ERRORS.values(), *_CONTEXT_ERRORS.values()))


def error_data(error: BaseException) -> Error:
    """An exception as data. One that no table has becomes a `RunnerError` that quotes it."""
    name = _name(error)
    return Error(
        name or RunnerError.__name__,
        sendable(text_of(error) if name else quoted(error)),
        code_of(error),
        sendable(trace_of(error)),
        _seconds(attribute(error, "retry_after")),
    )


def _seconds(value: Any) -> float | None:
    if type(value) is bool or not is_a(value, int, float):
        return None
    try:
        return float(value)
    except Exception:  # noqa: BLE001 - too large, or a class of its own
        return None


def request_error(data: Error) -> InferenceError:
    """The error of one request."""
    error = _REQUEST_ERRORS.get(data.name, RunnerError)(data.text)
    error.code = data.code
    if isinstance(error, errors.RateLimited):
        error.retry_after = data.retry_after
    return _noted(error, data)


def context_error(broken: Broken) -> errors.DeviceError:
    """The error of a whole context."""
    error = _CONTEXT_ERRORS.get(broken.error.name, ContextPoisoned)(broken.error.text)
    error.code = broken.error.code
    error.request_ids = broken.request_ids
    return _noted(error, broken.error)


def closing_error(broken: Broken) -> InferenceError:
    """What became of closing a runner: the context's own error as what it is, as in the other hosts, or any other."""
    name = broken.error.name
    if name in _CONTEXT_ERRORS and name not in _REQUEST_ERRORS:
        return context_error(broken)
    return request_error(broken.error)


Noted = TypeVar("Noted", bound=InferenceError)


def _noted(error: Noted, data: Error) -> Noted:
    """The error with the traceback of the other process as a note."""
    if data.trace:
        error.add_note(f"in the context process:\n{data.trace}")
    return error


def _name(error: BaseException) -> str | None:
    """The nearest class that a table has; failing that, what its tag stands for."""
    for cls in type(error).__mro__:
        if cls is errors.DeviceError:
            break  # its tag is more exact
        if cls in _NAMED:
            return cls.__name__
    kind = by_tag(error)
    return None if kind is None else kind.__name__
