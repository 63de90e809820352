"""Runners for tests: `Scripted` computes its tokens by arithmetic, `Faulty` adds faults to any runner.

Both are runner specs, and are sent to the process of a host by name (D2). The faults are real: `kill` is a SIGKILL of the
process in which the runner runs. So a fault that ends or stops a process needs a `ProcessHost`. A runner can log its calls to
a file, which `asked` reads.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, cast, get_args

from attrs import asdict, converters, define, evolve, field, frozen
from attrs.validators import deep_iterable, in_, instance_of, matches_re, optional

from runners.checks import at_least, integer, plain_integer, plain_number
from runners.errors import ContextPoisoned, OutOfMemory, Unrecoverable
from runners.hosts.turns import NOTHING, close
from runners.types import (
    Chunks,
    ContinuingRunner,
    ExecuteBatch,
    FinishReason,
    ModelRunner,
    PreloadingSpec,
    PreparingSpec,
    RunnerInfo,
    RunnerSpec,
    RunnerStart,
    SessionRebuildCause,
    TokenChunk,
    TokenUsage,
)

Kind: TypeAlias = Literal[
    "error", "oom", "poison", "unrecoverable", "kill", "segv", "abort", "exit", "stop", "hang", "slow"
]
Place: TypeAlias = Literal["token", "load", "rebuild", "close"]

_VOCABULARY = 26
_HOUR = 3600.0
_TOO_MUCH = 2**62
"""More bytes than any address space has."""


@frozen
class Fault:
    """One fault, and the place where it strikes. A condition that is None matches everything.

    Args:
        kind: `error` raises an `ArithmeticError`, which no table lists, or with a tag a `TaggedError`; `oom` allocates more
            memory than there is, and raises `OutOfMemory`; `poison` and `unrecoverable` raise `ContextPoisoned` and
            `Unrecoverable`; `kill`, `segv`, `abort` and `exit` end the process, `stop` stops it (SIGSTOP); `hang` never
            returns; `slow` takes `seconds` and continues.
        request_id: only in the stream of this request.
        at_token: in place of the chunk with the token at this absolute position, from 0; None is the first chunk that the
            stream makes in this context.
        incarnation: only in the incarnation with this number, from 1.
        at: `token` (in a stream), `load`, `rebuild` or `close`.
        call: only at the Nth call, counted from 1 in each incarnation: at the Nth stream that begins or continues, or at the
            Nth rebuild.
        model: only in requests for this model.
        moved: True: only in streams that come from another context; False: only in streams that begin in this one.
        tag: of an `error`, such as `net.timeout`.
        seconds: the time that `slow` takes, 0 or more.

    Raises:
        ValueError: a field is out of range, or has no meaning for this `kind` or `at`.
        TypeError: a field has a wrong type.
    """

    kind: Kind = field(validator=in_(get_args(Kind)))
    request_id: str | None = field(default=None, validator=optional(instance_of(str)))
    at_token: int | None = field(
        default=None, converter=converters.optional(plain_integer), validator=optional(integer(0))
    )
    incarnation: int | None = field(
        default=None, converter=converters.optional(plain_integer), validator=optional(integer(1))
    )
    at: Place = field(default="token", kw_only=True, validator=in_(get_args(Place)))
    call: int | None = field(
        default=None,
        kw_only=True,
        converter=converters.optional(plain_integer),
        validator=optional(integer(1)),
    )
    model: str | None = field(default=None, kw_only=True, validator=optional(instance_of(str)))
    moved: bool | None = field(default=None, kw_only=True, validator=optional(instance_of(bool)))
    tag: str | None = field(default=None, kw_only=True, validator=optional(matches_re(r"\w+(\.\w+)*")))
    seconds: float = field(default=0.1, kw_only=True, converter=plain_number, validator=at_least(0))

    def __attrs_post_init__(self) -> None:
        if self.tag is not None and self.kind != "error":
            raise ValueError(f"only an error carries a tag, got {self.tag!r} for kind {self.kind!r}")
        for name in ("request_id", "at_token", "model", "moved"):
            if self.at != "token" and getattr(self, name) is not None:
                raise ValueError(f"only a fault of a stream has {name}, got {self!r}")
        if self.at in ("load", "close") and self.call is not None:
            raise ValueError(f"an incarnation loads and closes once: call must be None, got {self!r}")

    def do(self) -> None:
        """Strike. This returns only after `slow`, and after a `stop` if the process is continued by a signal."""
        if self.kind == "slow":
            time.sleep(self.seconds)
        elif self.tag is not None:
            raise TaggedError(self.tag)
        else:
            _HARMS[self.kind]()

    @property
    def takes_time(self) -> bool:
        """Whether the fault only takes time: `slow` or `hang`."""
        return self.kind in ("slow", "hang")

    async def do_in_trio(self) -> None:
        """Strike in a Trio task. `slow` and `hang` wait on Trio's clock and can be cancelled; other tasks run meanwhile."""
        from trio import sleep, sleep_forever  # noqa: PLC0415 - a context process needs no Trio

        if self.kind == "slow":
            await sleep(self.seconds)
        elif self.kind == "hang":
            await sleep_forever()
        else:
            self.do()

    def means(self, batch: ExecuteBatch, *, moved: bool, call: int) -> bool:
        """Whether it strikes in this stream, which `moved` says comes from another context, and is the Nth `call`."""
        wanted = (self.request_id, self.model, self.moved, self.call)
        found = (batch.request_id, batch.model, moved, call)
        return self.at == "token" and all(w is None or w == f for w, f in zip(wanted, found, strict=True))


class TaggedError(Exception):
    """The exception of a `Fault` with a tag."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"a scripted error, tagged {tag}")
        self.tag = tag


@frozen
class Asked:
    """One call of a runner, from its log.

    Args:
        what: `load`, `execute`, `continue`, `rebuild` or `close`.
        incarnation: the number of the context.
        request_id: of the stream; None if the call concerns none.
        accepted: the number of accepted tokens of a stream that continues.
        cause: of a rebuild; otherwise None.
    """

    what: str
    incarnation: int
    request_id: str | None = None
    accepted: int = 0
    cause: str | None = None


def asked(log: str | Path) -> list[Asked]:
    """All calls of the runners with this log, in order; an empty list if there is no such file."""
    file = Path(log)
    return [Asked(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


_Faults: TypeAlias = tuple[Fault, ...]
_are_faults = deep_iterable(instance_of(Fault), instance_of(tuple))


@frozen(kw_only=True)
class Scripted:
    """A runner whose token at a position depends only on seed, position and prompt; see `token` and `expected`.

    So a stream that has moved equals one that has not (D6). Each token is one of 26 letters, and each chunk has one token. Stop
    strings are ignored. If it is built in a Trio task, as an `InlineHost` does, its delays and those of the faults `slow` and
    `hang` use Trio's clock, also in virtual time. Otherwise it blocks its thread.

    Args:
        tokens: the length of a stream; the request's `max_tokens` may cut it.
        delay: seconds for a token.
        load_delay: seconds for loading.
        streams: how many streams it serves at once.
        can_continue: whether it declares that streams may move to it (`RunnerInfo.can_continue`).
        faults: the faults that strike in it.
        log: the path of a file to which it appends its calls, see `asked`.

    Raises:
        ValueError: a number is out of range.
        TypeError: a field has a wrong type.
    """

    tokens: int = field(default=8, kw_only=False, converter=plain_integer, validator=integer(0))
    delay: float = field(default=0.0, converter=plain_number, validator=at_least(0))
    load_delay: float = field(default=0.0, converter=plain_number, validator=at_least(0))
    streams: int = field(default=4, converter=plain_integer, validator=integer(1))
    can_continue: bool = True
    faults: _Faults = field(default=(), converter=tuple[Fault, ...], validator=_are_faults)
    log: str | None = field(default=None, validator=optional(instance_of(str)))

    def build(self, start: RunnerStart) -> ModelRunner:
        """Build the runner. In a Trio task the result must be awaited if loading takes time."""
        return _watched(self._build, self.faults, self.log, start)

    def _build(self) -> ModelRunner:
        runner = cast(
            "ModelRunner", _AsyncScriptedRunner(self) if _in_trio() and self.delay else _ScriptedRunner(self)
        )
        if self.load_delay and _in_trio():
            return cast("ModelRunner", _Awaitable(partial(_later, self.load_delay, runner)))
        _sleep(self.load_delay)
        return runner


@frozen
class Faulty:
    """A spec of any runner with faults.

    Args:
        inner: the spec of the runner that does the work.
        faults: the faults that strike in it.
        log: the path of a file to which it appends its calls, see `asked`.

    Raises:
        TypeError: `inner` is no runner spec, or a fault is no `Fault`.
    """

    inner: RunnerSpec = field(validator=instance_of(RunnerSpec))  # type: ignore[type-abstract]
    faults: _Faults = field(default=(), converter=tuple[Fault, ...], validator=_are_faults)
    log: str | None = field(default=None, kw_only=True, validator=optional(instance_of(str)))

    def build(self, start: RunnerStart) -> ModelRunner:
        """Build the inner runner, with the faults around it."""
        return _watched(lambda: self.inner.build(start), self.faults, self.log, start)

    def preload(self) -> None:
        """Call `preload` of the inner spec, if it has one. No fault strikes here."""
        if isinstance(self.inner, PreloadingSpec):
            self.inner.preload()

    def prepare(self, device: str) -> Faulty:
        """Call `prepare` of the inner spec, if it has one. No fault strikes before `build`."""
        return (
            evolve(self, inner=self.inner.prepare(device)) if isinstance(self.inner, PreparingSpec) else self
        )


def token(seed: int | None, position: int, prompt: str) -> int:
    """The token id, from 0 to 25, that `Scripted` makes at an absolute position."""
    digest = hashlib.blake2b(f"{seed} {position} {prompt}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % _VOCABULARY


def letter(token_id: int) -> str:
    """The text of a token id: a letter from a to z."""
    return chr(ord("a") + token_id)


def expected(batch: ExecuteBatch, tokens: int = 8) -> tuple[int, ...]:
    """All token ids with which `Scripted(tokens)` answers a request."""
    length = min(tokens, batch.sampling.max_tokens)
    return tuple(token(batch.sampling.seed, position, batch.prompt) for position in range(length))


class _ScriptedRunner:
    """The runner of `Scripted`."""

    def __init__(self, spec: Scripted) -> None:
        self._spec = spec
        self.info = RunnerInfo(
            streams=spec.streams, reproducible=True, can_continue=spec.can_continue, runtime="scripted"
        )

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        """Begin a stream."""
        return self.continue_from(batch, ())

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Iterator[TokenChunk]:
        """Continue a stream after its accepted tokens."""
        for chunk in self._chunks(batch, accepted):
            _sleep(self._spec.delay)
            yield chunk

    def _chunks(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Iterator[TokenChunk]:
        answer = expected(batch, self._spec.tokens)
        finish = FinishReason.LENGTH if len(answer) == batch.sampling.max_tokens else FinishReason.STOP
        usage = TokenUsage(input=len(batch.prompt), output=len(answer), replayed=len(accepted))
        for index in range(len(accepted), max(len(answer), len(accepted) + 1)):
            ids = answer[index : index + 1]
            text = "".join(map(letter, ids))
            chunk = TokenChunk(request_id=batch.request_id, index=index, token_ids=ids, text=text)
            last = index >= len(answer) - 1
            yield evolve(chunk, finish_reason=finish, usage=usage) if last else chunk

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """Do nothing, since a scripted runner keeps no session."""

    def close(self) -> None:
        """Do nothing: no resource is held."""


class _AsyncScriptedRunner(_ScriptedRunner):
    """The runner of `Scripted` in a Trio task: its streams wait on Trio's clock."""

    async def continue_from(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: ExecuteBatch, accepted: Sequence[int]
    ) -> AsyncIterator[TokenChunk]:
        """Continue a stream after its accepted tokens."""
        from trio import sleep  # noqa: PLC0415 - a context process needs no Trio

        for chunk in self._chunks(batch, accepted):
            await sleep(self._spec.delay)
            yield chunk


def _in_trio() -> bool:
    """Whether this code runs in a Trio task. Does not import Trio."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


@frozen
class _Awaitable:
    """An awaitable that calls a coroutine function when it is awaited.

    A `KeyboardInterrupt` may be raised after a runner's function has returned and before its result is awaited. A coroutine that
    is dropped then would warn that it was never awaited; this object does not.
    """

    start: Callable[[], Coroutine[Any, Any, Any]]

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.start().__await__()


async def _later(seconds: float, runner: ModelRunner) -> ModelRunner:
    from trio import sleep  # noqa: PLC0415 - as above

    await sleep(seconds)
    return runner


def _sleep(seconds: float) -> None:
    """Sleep, unless the time is 0: even `time.sleep(0)` takes longer than a token."""
    if seconds:
        time.sleep(seconds)


class _WatchedRunner:
    """A runner, the faults of its incarnation, and its log."""

    def __init__(self, inner: ModelRunner, faults: _Faults, log: _Log) -> None:
        self._inner = inner
        self._faults = faults
        self._log = log
        self._calls = Counter[str]()
        self.info = inner.info

    def execute(self, batch: ExecuteBatch) -> Chunks:
        """The inner stream, up to a fault."""
        self._log("execute", request_id=batch.request_id)
        return self._harmed(batch, self._inner.execute(batch), moved=False)

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Chunks:
        """The inner stream, up to a fault."""
        self._log("continue", request_id=batch.request_id, accepted=len(accepted))
        inner = cast("ContinuingRunner", self._inner)
        return self._harmed(batch, inner.continue_from(batch, accepted), moved=True)

    def rebuild(self, cause: SessionRebuildCause) -> Awaitable[None] | None:
        """The inner rebuild, unless a fault raises."""
        self._log("rebuild", cause=cause.value)
        faults = _striking(self._faults, "rebuild", self._count("rebuild"))
        return _behind(faults, lambda: self._inner.rebuild(cause))

    def close(self) -> Awaitable[None] | None:
        """The inner close, unless a fault raises."""
        self._log("close")
        return _behind(_striking(self._faults, "close"), self._inner.close)

    def _count(self, what: str) -> int:
        self._calls[what] += 1
        return self._calls[what]

    def _harmed(self, batch: ExecuteBatch, chunks: Chunks, *, moved: bool) -> Chunks:
        call = self._count("stream")
        faults = [fault for fault in self._faults if fault.means(batch, moved=moved, call=call)]
        if not faults:
            return chunks
        if isinstance(chunks, AsyncIterator):
            return _HarmedAsync(chunks, faults)
        if _in_trio() and any(fault.takes_time for fault in faults):
            return _HarmedAsync(_Waitable(chunks), faults)
        return _Harmed(chunks, faults)


@define(eq=False)
class _Harmed(Iterator[TokenChunk]):
    """A stream with its faults. It is no generator, because a generator that is closed before its first `next` runs no code."""

    chunks: Iterator[TokenChunk]
    left: list[Fault]

    def __next__(self) -> TokenChunk:
        try:
            chunk = next(self.chunks)
            if chunk is NOTHING:
                return chunk
            for fault in _taken(self.left, chunk):
                fault.do()
        except BaseException:
            self.close()
            raise
        return chunk

    def close(self) -> None:
        """Free the inner stream's place."""
        close(self.chunks)


@define(eq=False)
class _HarmedAsync(AsyncIterator[TokenChunk]):
    """The async stream with its faults. Its reader closes it, however it ends."""

    chunks: AsyncIterator[TokenChunk]
    left: list[Fault]

    async def __anext__(self) -> TokenChunk:
        chunk = await anext(self.chunks)
        for fault in _taken(self.left, chunk):
            await fault.do_in_trio()
        return chunk

    async def aclose(self) -> None:
        """Free the inner stream's place, if it can be closed."""
        close_it: Callable[[], Awaitable[None]] | None = getattr(self.chunks, "aclose", None)
        if close_it is not None:
            await close_it()


@define(eq=False)
class _Waitable(AsyncIterator[TokenChunk]):
    """A sync stream as an async iterator."""

    chunks: Iterator[TokenChunk]

    async def __anext__(self) -> TokenChunk:
        from trio.lowlevel import checkpoint  # noqa: PLC0415 - a context process needs no Trio

        for chunk in self.chunks:
            if chunk is not NOTHING:
                return chunk
            await checkpoint()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Free its place."""
        close(self.chunks)


@frozen
class _Log:
    """Appends the calls of a runner to a file, if there is one."""

    file: str | None
    incarnation: int

    def __call__(self, what: str, **details: str | int) -> None:
        if self.file is not None:
            line = json.dumps(asdict(Asked(what, self.incarnation, **details)))  # type: ignore[arg-type]  # as Asked says
            with Path(self.file).open("a") as file:
                file.write(line + "\n")


def _watched(
    build: Callable[[], ModelRunner], faults: _Faults, log: str | None, start: RunnerStart
) -> ModelRunner:
    """Build a runner, with the faults of this incarnation and a log around it."""
    ours = tuple(fault for fault in faults if fault.incarnation in (None, start.incarnation))
    calls = _Log(log, start.incarnation)
    calls("load")

    def watch(runner: ModelRunner) -> ModelRunner:
        return _WatchedRunner(runner, ours, calls) if ours or log else runner

    async def build_in_trio(waits: list[Fault]) -> ModelRunner:
        for fault in waits:
            await fault.do_in_trio()
        found: Any = build()
        return watch(await found if inspect.isawaitable(found) else found)

    waits = _striking(ours, "load")
    if _in_trio() and any(fault.takes_time for fault in waits):
        return cast("ModelRunner", _Awaitable(partial(build_in_trio, waits)))
    for fault in waits:
        fault.do()
    runner: Any = build()
    if inspect.isawaitable(runner):
        return cast("ModelRunner", _Awaitable(partial(_then, runner, watch)))
    return watch(runner)


async def _then(runner: Awaitable[ModelRunner], watch: Callable[[ModelRunner], ModelRunner]) -> ModelRunner:
    return watch(await runner)


def _behind(faults: list[Fault], act: Callable[[], Awaitable[None] | None]) -> Awaitable[None] | None:
    """Strike with the faults, and then call `act`, unless a fault raises."""
    if _in_trio() and any(fault.takes_time for fault in faults):
        return _Awaitable(partial(_behind_in_trio, faults, act))
    for fault in faults:
        fault.do()
    return act()


async def _behind_in_trio(faults: list[Fault], act: Callable[[], Awaitable[None] | None]) -> None:
    for fault in faults:
        await fault.do_in_trio()
    done = act()
    if inspect.isawaitable(done):
        await done


def _striking(faults: _Faults, at: Place, call: int = 1) -> list[Fault]:
    return [fault for fault in faults if fault.at == at and fault.call in (None, call)]


def _taken(left: list[Fault], chunk: TokenChunk) -> Iterator[Fault]:
    """The faults that strike at this chunk; each is removed from `left`, and so strikes once."""
    for fault in [fault for fault in left if _strikes_at(fault, chunk)]:
        left.remove(fault)
        yield fault


def _strikes_at(fault: Fault, chunk: TokenChunk) -> bool:
    """Whether the fault strikes in place of this chunk."""
    return fault.at_token is None or chunk.index <= fault.at_token < chunk.index + len(chunk.token_ids)


def _raise(error: Exception) -> NoReturn:
    raise error


def _allocate_too_much() -> NoReturn:
    """Allocate memory that the system does not have."""
    try:
        bytearray(_TOO_MUCH)
    except MemoryError as error:
        raise OutOfMemory(f"the system refused {_TOO_MUCH:,} bytes") from error
    raise AssertionError(f"the system gave {_TOO_MUCH:,} bytes")


def _hang() -> None:
    while True:
        time.sleep(_HOUR)


_HARMS: dict[str, Callable[[], object]] = {
    "error": lambda: _raise(ArithmeticError("a scripted error")),
    "oom": _allocate_too_much,
    "poison": lambda: _raise(ContextPoisoned("a scripted poison")),
    "unrecoverable": lambda: _raise(Unrecoverable("a scripted broken device")),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _hang,
}
