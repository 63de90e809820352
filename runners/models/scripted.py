"""Runners that do as told: `Scripted` makes tokens out of arithmetic, `Faulty` does harm to any runner.

Both are plain values and travel to a host's process by name. The harm is real: a kill is a SIGKILL of the process the
runner is in, so a fault that ends or stops a process wants a host with a process of its own. What a runner was asked can
be written to a file, and read with `asked`.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias, cast, get_args

from attrs import asdict, define, evolve, field, frozen
from attrs.validators import deep_iterable, ge, in_, instance_of, matches_re, optional

from runners.errors import ContextPoisoned, OutOfMemory, Unrecoverable
from runners.hosts.turns import close
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
"""Bytes that no address space has."""


@frozen
class Fault:
    """One harm and where it strikes. What is None matches everything.

    Args:
        kind: `error` raises what no table knows; `oom` asks for memory that is not there; `poison` and `unrecoverable`
            raise the error of that name; `kill`, `segv`, `abort` and `exit` end the process, `stop` stops it (SIGSTOP);
            `hang` makes no progress any more; `slow` takes `seconds` and goes on.
        request_id: only in this request's stream.
        at_token: instead of the chunk that holds the token at this absolute position; None is the first chunk.
        incarnation: only in this one.
        at: `token`, or while loading, rebuilding or closing.
        call: only the Nth time, counted from 1 in each incarnation: the Nth stream that it is asked to begin or to go on
            with, or the Nth rebuild.
        model: only in requests for this model.
        moved: only in streams that have come from another context, or, if False, in those that begin here.
        tag: what an `error` carries, such as `net.timeout`.
        seconds: that `slow` takes.
    """

    kind: Kind = field(validator=in_(get_args(Kind)))
    request_id: str | None = field(default=None, validator=optional(instance_of(str)))
    at_token: int | None = field(default=None, validator=optional([instance_of(int), ge(0)]))
    incarnation: int | None = field(default=None, validator=optional([instance_of(int), ge(1)]))
    at: Place = field(default="token", kw_only=True, validator=in_(get_args(Place)))
    call: int | None = field(default=None, kw_only=True, validator=optional([instance_of(int), ge(1)]))
    model: str | None = field(default=None, kw_only=True, validator=optional(instance_of(str)))
    moved: bool | None = field(default=None, kw_only=True, validator=optional(instance_of(bool)))
    tag: str | None = field(default=None, kw_only=True, validator=optional(matches_re(r"\w+(\.\w+)*")))
    seconds: float = field(default=0.1, kw_only=True, validator=ge(0))

    def __attrs_post_init__(self) -> None:
        if self.tag is not None and self.kind != "error":
            raise ValueError(f"only an error carries a tag, got {self.tag!r} for kind {self.kind!r}")
        for name in ("request_id", "at_token", "model", "moved"):
            if self.at != "token" and getattr(self, name) is not None:
                raise ValueError(f"only a fault of a stream has {name}, got {self!r}")
        if self.at in ("load", "close") and self.call is not None:
            raise ValueError(f"an incarnation loads and closes once: call must be None, got {self!r}")

    def do(self) -> None:
        """Do the harm; returns after `slow`, and after a `stop` that somebody continues."""
        if self.kind == "slow":
            time.sleep(self.seconds)
        elif self.tag is not None:
            raise TaggedError(self.tag)
        else:
            _HARMS[self.kind]()

    @property
    def takes_time(self) -> bool:
        """Whether it is nothing but time that it takes."""
        return self.kind in ("slow", "hang")

    async def do_in_trio(self) -> None:
        """Do the harm in a Trio task, whose clock counts then: other tasks go on, and it can be cancelled."""
        from trio import sleep, sleep_forever  # noqa: PLC0415 - a context process needs no Trio

        if self.kind == "slow":
            await sleep(self.seconds)
        elif self.kind == "hang":
            await sleep_forever()
        else:
            self.do()

    def means(self, batch: ExecuteBatch, *, moved: bool, call: int) -> bool:
        """Whether it is for this stream."""
        wanted = (self.request_id, self.model, self.moved, self.call)
        found = (batch.request_id, batch.model, moved, call)
        return self.at == "token" and all(w is None or w == f for w, f in zip(wanted, found, strict=True))


class TaggedError(Exception):
    """What a `Fault` with a tag raises."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"a scripted error, tagged {tag}")
        self.tag = tag


@frozen
class Asked:
    """Something that a runner was asked, as its log has it.

    Args:
        what: `load`, `execute`, `continue`, `rebuild` or `close`.
        incarnation: of the context.
        request_id: of a stream.
        accepted: how many tokens a stream that goes on had.
        cause: of a rebuild.
    """

    what: str
    incarnation: int
    request_id: str | None = None
    accepted: int = 0
    cause: str | None = None


def asked(log: str | Path) -> list[Asked]:
    """All that the runners with this log were asked, in order; nothing if there is no such file."""
    file = Path(log)
    return [Asked(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


_Faults: TypeAlias = tuple[Fault, ...]
_are_faults = deep_iterable(instance_of(Fault), instance_of(tuple))


@frozen(kw_only=True)
class Scripted:
    """A runner whose token at a position is a function of (seed, position, prompt) alone.

    So a stream that moved equals one that did not. Each token is a letter and a chunk. Stop strings are not its business.
    Where it is built in a Trio task, in an `InlineHost`, its delays are on Trio's clock, virtual time included; so are those
    of the faults `slow` and `hang`. Anywhere else it sleeps.

    Args:
        tokens: how long a stream is by itself; the request's `max_tokens` may cut it.
        delay: seconds that a token takes.
        load_delay: seconds that loading takes.
        streams: how many it serves at once.
        can_continue: declares it; then its streams may move.
        faults: the harm it comes to.
        log: a file to which it adds what it is asked, see `asked`.
    """

    tokens: int = field(default=8, kw_only=False, validator=[instance_of(int), ge(0)])
    delay: float = field(default=0.0, validator=ge(0))
    load_delay: float = field(default=0.0, validator=ge(0))
    streams: int = field(default=4, validator=[instance_of(int), ge(1)])
    can_continue: bool = True
    faults: _Faults = field(default=(), converter=tuple[Fault, ...], validator=_are_faults)
    log: str | None = field(default=None, validator=optional(instance_of(str)))

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load it; in a Trio task this is to be awaited if it takes time."""
        return _watched(self._build, self.faults, self.log, start)

    def _build(self) -> ModelRunner:
        runner = cast(
            "ModelRunner", _AsyncScriptedRunner(self) if _in_trio() and self.delay else _ScriptedRunner(self)
        )
        if self.load_delay and _in_trio():
            return cast("ModelRunner", _later(self.load_delay, runner))
        _sleep(self.load_delay)
        return runner


@frozen
class Faulty:
    """Any runner, come to harm.

    Args:
        inner: makes the runner that does the work.
        faults: the harm.
        log: a file to which it adds what it is asked, see `asked`.
    """

    inner: RunnerSpec = field(validator=instance_of(RunnerSpec))  # type: ignore[type-abstract]
    faults: _Faults = field(default=(), converter=tuple[Fault, ...], validator=_are_faults)
    log: str | None = field(default=None, kw_only=True, validator=optional(instance_of(str)))

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load the inner runner."""
        return _watched(lambda: self.inner.build(start), self.faults, self.log, start)

    def preload(self) -> None:
        """As the inner spec does; there is no harm in it."""
        if isinstance(self.inner, PreloadingSpec):
            self.inner.preload()

    def prepare(self, device: str) -> Faulty:
        """Likewise; the faults strike at the start."""
        return (
            evolve(self, inner=self.inner.prepare(device)) if isinstance(self.inner, PreparingSpec) else self
        )


def token(seed: int | None, position: int, prompt: str) -> int:
    """The token that `Scripted` makes at an absolute position."""
    digest = hashlib.blake2b(f"{seed} {position} {prompt}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") % _VOCABULARY


def letter(token_id: int) -> str:
    """What a token reads as."""
    return chr(ord("a") + token_id)


def expected(batch: ExecuteBatch, tokens: int = 8) -> tuple[int, ...]:
    """All that `Scripted(tokens)` answers to a request."""
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
        """Go on behind `accepted`."""
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
        """There is no session."""

    def close(self) -> None:
        """Nothing is held."""


class _AsyncScriptedRunner(_ScriptedRunner):
    """The same in a Trio task: its streams wait on Trio's clock."""

    async def continue_from(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: ExecuteBatch, accepted: Sequence[int]
    ) -> AsyncIterator[TokenChunk]:
        """Go on behind `accepted`."""
        from trio import sleep  # noqa: PLC0415 - a context process needs no Trio

        for chunk in self._chunks(batch, accepted):
            await sleep(self._spec.delay)
            yield chunk


def _in_trio() -> bool:
    """Whether this is a Trio task. Where Trio is not loaded there is none."""
    trio = sys.modules.get("trio")
    return trio is not None and trio.lowlevel.in_trio_task()


async def _later(seconds: float, runner: ModelRunner) -> ModelRunner:
    from trio import sleep  # noqa: PLC0415 - as above

    await sleep(seconds)
    return runner


def _sleep(seconds: float) -> None:
    """Not at all for none: even `sleep(0)` costs more than a token."""
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
        """Likewise."""
        self._log("continue", request_id=batch.request_id, accepted=len(accepted))
        inner = cast("ContinuingRunner", self._inner)
        return self._harmed(batch, inner.continue_from(batch, accepted), moved=True)

    def rebuild(self, cause: SessionRebuildCause) -> Awaitable[None] | None:
        """The inner rebuild, unless there is a fault."""
        self._log("rebuild", cause=cause.value)
        faults = _striking(self._faults, "rebuild", self._count("rebuild"))
        return _behind(faults, lambda: self._inner.rebuild(cause))

    def close(self) -> Awaitable[None] | None:
        """The inner close, unless there is a fault."""
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
    """A stream, with the faults that are for it. No generator: one that is closed before it has begun closes nothing."""

    chunks: Iterator[TokenChunk]
    left: list[Fault]

    def __next__(self) -> TokenChunk:
        try:
            chunk = next(self.chunks)
            for fault in _hurting(self.left, chunk):
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
    """Likewise of an async runner. Who reads it closes it, however it ends."""

    chunks: AsyncIterator[TokenChunk]
    left: list[Fault]

    async def __anext__(self) -> TokenChunk:
        chunk = await anext(self.chunks)
        for fault in _hurting(self.left, chunk):
            await fault.do_in_trio()
        return chunk

    async def aclose(self) -> None:
        """Free the inner stream's place, if it knows how to."""
        close_it: Callable[[], Awaitable[None]] | None = getattr(self.chunks, "aclose", None)
        if close_it is not None:
            await close_it()


@define(eq=False)
class _Waitable(AsyncIterator[TokenChunk]):
    """A sync stream where an async one is wanted."""

    chunks: Iterator[TokenChunk]

    async def __anext__(self) -> TokenChunk:
        for chunk in self.chunks:
            return chunk
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Free its place."""
        close(self.chunks)


@frozen
class _Log:
    """Where what a runner is asked is written, if anywhere."""

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
    """A runner with those of the faults that are meant for this incarnation."""
    ours = tuple(fault for fault in faults if fault.incarnation in (None, start.incarnation))
    tell = _Log(log, start.incarnation)
    tell("load")

    def watch(runner: ModelRunner) -> ModelRunner:
        return _WatchedRunner(runner, ours, tell) if ours or log else runner

    async def build_in_trio(waits: list[Fault]) -> ModelRunner:
        for fault in waits:
            await fault.do_in_trio()
        found: Any = build()
        return watch(await found if inspect.isawaitable(found) else found)

    waits = _striking(ours, "load")
    if _in_trio() and any(fault.takes_time for fault in waits):
        return cast("ModelRunner", build_in_trio(waits))
    for fault in waits:
        fault.do()
    runner: Any = build()
    if inspect.isawaitable(runner):
        return cast("ModelRunner", _then(runner, watch))
    return watch(runner)


async def _then(runner: Awaitable[ModelRunner], watch: Callable[[ModelRunner], ModelRunner]) -> ModelRunner:
    return watch(await runner)


def _behind(faults: list[Fault], act: Callable[[], Awaitable[None] | None]) -> Awaitable[None] | None:
    """Do harm, and then something else, unless the harm has ended it."""
    if _in_trio() and any(fault.takes_time for fault in faults):
        return _behind_in_trio(faults, act)
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


def _hurting(left: list[Fault], chunk: TokenChunk) -> Iterator[Fault]:
    """Those of the faults that strike at this chunk, once each."""
    for fault in [fault for fault in left if _struck(fault, chunk)]:
        left.remove(fault)
        yield fault


def _struck(fault: Fault, chunk: TokenChunk) -> bool:
    """Whether the chunk is the one that a fault replaces."""
    return fault.at_token is None or chunk.index <= fault.at_token < chunk.index + len(chunk.token_ids)


def _raise(error: Exception) -> NoReturn:
    raise error


def _ask_too_much() -> NoReturn:
    """Ask the system for memory that it does not have."""
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
    "oom": _ask_too_much,
    "poison": lambda: _raise(ContextPoisoned("a scripted poison")),
    "unrecoverable": lambda: _raise(Unrecoverable("a scripted broken device")),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hang": _hang,
}
