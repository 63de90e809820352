"""Runners that do as told: `Scripted` makes tokens out of arithmetic, `Faulty` does harm to any runner.

Both are plain values and travel to a host's process by name. The harm is real: a kill is a SIGKILL of the process the
runner is in, so anything but `poison`, `error`, `oom` and `unrecoverable` wants a host with a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NoReturn, TypeAlias, cast, get_args

from attrs import evolve, field, frozen
from attrs.validators import deep_iterable, ge, in_, instance_of, optional

from runners.errors import ContextPoisoned, OutOfMemory, Unrecoverable
from runners.types import (
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

Kind: TypeAlias = Literal["error", "oom", "poison", "unrecoverable", "kill", "segv", "exit", "hang"]
Place: TypeAlias = Literal["token", "load", "rebuild", "close"]

_VOCABULARY = 26
_HOUR = 3600.0


@frozen
class Fault:
    """One harm and where it strikes. What is None matches everything.

    Args:
        kind: `error` raises what no table knows; `oom`, `poison` and `unrecoverable` raise the error of that name;
            `kill`, `segv` and `exit` end the process; `hang` makes no progress any more.
        request_id: only in this request's stream.
        at_token: instead of the chunk that holds the token at this absolute position; None is the first chunk.
        incarnation: only in this one.
        at: `token`, or while loading, rebuilding or closing.
    """

    kind: Kind = field(validator=in_(get_args(Kind)))
    request_id: str | None = field(default=None, validator=optional(instance_of(str)))
    at_token: int | None = field(default=None, validator=optional([instance_of(int), ge(0)]))
    incarnation: int | None = field(default=None, validator=optional([instance_of(int), ge(1)]))
    at: Place = field(default="token", kw_only=True, validator=in_(get_args(Place)))

    def do(self) -> NoReturn:
        """Do the harm."""
        _HARMS[self.kind]()
        raise AssertionError(f"a fault of kind {self.kind!r} did no harm")


_Faults: TypeAlias = tuple[Fault, ...]
_are_faults = deep_iterable(instance_of(Fault), instance_of(tuple))


@frozen(kw_only=True)
class Scripted:
    """A runner whose token at a position is a function of (seed, position, prompt) alone.

    So a stream that moved equals one that did not. Each token is a letter and a chunk. Stop strings are not its business.

    Args:
        tokens: how long a stream is by itself; the request's `max_tokens` may cut it.
        delay: seconds that a token takes.
        load_delay: seconds that loading takes.
        streams: how many it serves at once.
        can_continue: declares it; then its streams may move.
        faults: the harm it comes to.
    """

    tokens: int = field(default=8, kw_only=False, validator=[instance_of(int), ge(0)])
    delay: float = field(default=0.0, validator=ge(0))
    load_delay: float = field(default=0.0, validator=ge(0))
    streams: int = field(default=4, validator=[instance_of(int), ge(1)])
    can_continue: bool = True
    faults: _Faults = field(default=(), converter=tuple[Fault, ...], validator=_are_faults)

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load it."""
        _sleep(self.load_delay)
        return _harm(lambda: _ScriptedRunner(self), self.faults, start)


@frozen
class Faulty:
    """Any runner, come to harm.

    Args:
        inner: makes the runner that does the work.
        faults: the harm.
    """

    inner: RunnerSpec = field(validator=instance_of(RunnerSpec))  # type: ignore[type-abstract]
    faults: _Faults = field(default=(), converter=tuple[Fault, ...], validator=_are_faults)

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load the inner runner."""
        return _harm(lambda: self.inner.build(start), self.faults, start)

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
        answer = expected(batch, self._spec.tokens)
        finish = FinishReason.LENGTH if len(answer) == batch.sampling.max_tokens else FinishReason.STOP
        usage = TokenUsage(input=len(batch.prompt), output=len(answer), replayed=len(accepted))
        for index in range(len(accepted), max(len(answer), len(accepted) + 1)):
            _sleep(self._spec.delay)
            ids = answer[index : index + 1]
            text = "".join(map(letter, ids))
            chunk = TokenChunk(request_id=batch.request_id, index=index, token_ids=ids, text=text)
            last = index >= len(answer) - 1
            yield evolve(chunk, finish_reason=finish, usage=usage) if last else chunk

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """There is no session."""

    def close(self) -> None:
        """Nothing is held."""


def _sleep(seconds: float) -> None:
    """Not at all for none: even `sleep(0)` costs more than a token."""
    if seconds:
        time.sleep(seconds)


class _FaultyRunner:
    """A runner, and the faults of its incarnation."""

    def __init__(self, inner: ModelRunner, faults: _Faults) -> None:
        self._inner = inner
        self._faults = faults
        self.info = inner.info

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        """The inner stream, up to a fault."""
        return self._harmed(batch.request_id, cast("Iterator[TokenChunk]", self._inner.execute(batch)))

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Iterator[TokenChunk]:
        """Likewise."""
        inner = cast("ContinuingRunner", self._inner)
        return self._harmed(
            batch.request_id, cast("Iterator[TokenChunk]", inner.continue_from(batch, accepted))
        )

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """The inner rebuild, unless there is a fault."""
        _strike(self._faults, "rebuild")
        self._inner.rebuild(cause)

    def close(self) -> None:
        """The inner close, unless there is a fault."""
        _strike(self._faults, "close")
        self._inner.close()

    def _harmed(self, request_id: str, chunks: Iterator[TokenChunk]) -> Iterator[TokenChunk]:
        faults = [f for f in self._faults if f.at == "token" and f.request_id in (None, request_id)]
        try:
            for chunk in chunks:
                for fault in faults:
                    if _struck(fault, chunk):
                        fault.do()
                yield chunk
        finally:
            close: Callable[[], None] = getattr(chunks, "close", lambda: None)
            close()


def _harm(build: Callable[[], ModelRunner], faults: _Faults, start: RunnerStart) -> ModelRunner:
    """A runner with those of the faults that are meant for this incarnation."""
    ours = tuple(fault for fault in faults if fault.incarnation in (None, start.incarnation))
    _strike(ours, "load")
    runner = build()
    return _FaultyRunner(runner, ours) if ours else runner


def _strike(faults: _Faults, at: Place) -> None:
    for fault in faults:
        if fault.at == at:
            fault.do()


def _struck(fault: Fault, chunk: TokenChunk) -> bool:
    """Whether the chunk is the one that a fault replaces."""
    return fault.at_token is None or chunk.index <= fault.at_token < chunk.index + len(chunk.token_ids)


def _raise(error: Exception) -> NoReturn:
    raise error


def _hang() -> None:
    while True:
        time.sleep(_HOUR)


_HARMS: dict[str, Callable[[], object]] = {
    "error": lambda: _raise(ArithmeticError("a scripted error")),
    "oom": lambda: _raise(OutOfMemory("a scripted lack of memory")),
    "poison": lambda: _raise(ContextPoisoned("a scripted poison")),
    "unrecoverable": lambda: _raise(Unrecoverable("a scripted broken device")),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segv": lambda: ctypes.string_at(0),
    "exit": lambda: os._exit(3),
    "hang": _hang,
}
