"""What a runner is, and what goes in and comes out of it. Plain frozen values: nothing here imports torch or Trio."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from copy import copy
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias, cast, get_args, overload, runtime_checkable

from attrs import Attribute, asdict, converters, evolve, field, frozen
from attrs.validators import in_, instance_of, matches_re, optional

from .brief import brief, exact, is_a
from .checks import at_least, integer, is_text, plain_integer, plain_number, plain_text
from .plain import are_integers, is_encodable, plain_data, size_of

OnLoss: TypeAlias = Literal["migrate", "fail"]
Transport: TypeAlias = Literal["local", "network"]

_CHARACTERS_A_TOKEN = 4
_A_MILLION = 1_000_000
_MOST_TOKENS = 2**53
"""In one request: a float, such as a price, counts them exactly."""


def _moment(value: float | None) -> float | None:
    """A converter."""
    if value is None:
        return None
    if not is_a(value, int, float) or is_a(value, bool):
        raise TypeError(f"deadline must be a number of seconds, got {brief(value)}")
    try:
        moment = float(value)
    except OverflowError:
        moment = math.nan
    if math.isnan(moment):
        raise ValueError(f"deadline must be a number of seconds, got {brief(value)}")
    return moment


def _strings(value: Iterable[str]) -> tuple[str, ...]:
    """A converter; one string is not some strings, though its characters are."""
    strings = tuple(value)
    if is_a(value, str) or not all(is_a(string, str) for string in strings):
        raise TypeError(f"stop must be a tuple of strings, got {brief(value)}")
    plain = tuple(map(exact, strings))
    if not all(map(is_encodable, plain)):
        raise ValueError(f"stop must be texts that UTF-8 can encode, got {brief(plain)}")
    return plain


class FinishReason(StrEnum):
    """Why a stream ended by itself. A failure is an exception, never a finish reason."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class SessionRebuildCause(StrEnum):
    """Why a runner's session is made anew (D7)."""

    CONTEXT_POISONED = "context_poisoned"
    REMOTE_AUTH_FAILURE = "remote_auth_failure"
    REMOTE_CONFIG_CHANGE = "remote_config_change"
    MANUAL = "manual"


@frozen(kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        max_tokens: at most this many tokens are generated, counted from the first one ever accepted.
        temperature: a finite number, 0 or more; 0 is greedy.
        seed: None lets the worker draw one at admission; it then stays with the request (D6).
        stop: the text ends before the first of these strings.
    """

    max_tokens: int = field(default=128, converter=plain_integer, validator=integer(1))
    temperature: float = field(default=1.0, converter=plain_number, validator=at_least(0, finite=True))
    seed: int | None = field(
        default=None, converter=converters.optional(plain_integer), validator=optional(integer(0))
    )
    stop: tuple[str, ...] = field(default=(), converter=_strings)


def _on_loss(value: OnLoss) -> OnLoss:
    """A converter."""
    return cast("OnLoss", plain_text(value))


def _is_on_loss(_: object, attribute: Attribute[Any], value: object) -> None:
    """A validator."""
    if type(value) is not str or value not in get_args(OnLoss):
        raise ValueError(f"{attribute.name} must be one of {get_args(OnLoss)}, got {brief(value)}")


def _is_sampling(_: object, attribute: Attribute[Any], value: object) -> None:
    """A validator. One of a class of its own may say anything of its fields, and would lose them on its way."""
    if type(value) is not Sampling:
        raise TypeError(f"{attribute.name} must be a Sampling, got {brief(value)}")


def _payload(value: object) -> Any:
    """A converter."""
    return None if value is None else plain_data("payload", value)


def _options(value: object) -> dict[str, Any] | None:
    """A converter."""
    if value is not None and not is_a(value, dict):
        raise TypeError(f"options must be a dict, got {brief(value)}")
    return None if value is None else plain_data("options", value)


@frozen
class ExecuteBatch:
    """One logical request. Batching across requests is the runner's own business.

    Args:
        request_id: names the request in chunks, errors and events; unique among those in flight.
        prompt: the text to continue, if the runner continues texts.
        payload: any plain data instead of a prompt, or beside it: token ids, chat messages, numbers, bytes (D11). It is copied,
            and what cannot travel is refused here.
        options: plain data that only the runner interprets, such as penalties or a schema.
        sampling: how its tokens are chosen, and how many.
        model: for a runner that has several.
        on_loss: what becomes of the stream, once begun, when its context is lost: `migrate` goes on in the next one if
            the runner can continue, `fail` ends with `ContextLost` (D6).
        deadline: when it ends with `Timeout` if it has not ended yet, on Trio's clock; None is never. A runner sees it on
            its own clock: Trio's if it is async, else `time.monotonic()`.
        affinity: requests with the same text, such as those of one conversation, go to the context that took the last one of them, if it
            has room, since its runner may have the beginning of the prompt in its cache (D12). The empty text prefers no context.
    """

    request_id: str = field(converter=plain_text, validator=is_text)
    prompt: str = field(default="", converter=plain_text, validator=is_text)
    payload: Any = field(default=None, kw_only=True, converter=_payload, hash=False)  # pyright: ignore[reportUnknownVariableType] - attrs' stubs make it partly unknown
    options: dict[str, Any] | None = field(default=None, kw_only=True, converter=_options, hash=False)
    sampling: Sampling = field(factory=Sampling, kw_only=True, validator=_is_sampling)
    model: str = field(default="", kw_only=True, converter=plain_text, validator=is_text)
    on_loss: OnLoss = field(default="migrate", kw_only=True, converter=_on_loss, validator=_is_on_loss)
    deadline: float | None = field(
        default=None, kw_only=True, converter=_moment, validator=optional(instance_of(float))
    )
    affinity: str = field(default="", kw_only=True, converter=plain_text, validator=is_text)

    def with_seed(self, seed: int) -> ExecuteBatch:
        """The same request with its seed settled."""
        return evolve(self, sampling=evolve(self.sampling, seed=seed))

    def on_clock(self, ahead: float) -> ExecuteBatch:
        """The same request for a process or task whose clock is `ahead` of this one by so many seconds."""
        if self.deadline is None:
            return self
        made = copy(self)  # `evolve` would convert all fields anew, and a payload may have a million items
        object.__setattr__(made, "deadline", self.deadline + ahead)
        return made

    @property
    def estimated_tokens(self) -> int:
        """About how many it will take, prompt and answer, at four characters a token: for rate limits and costs."""
        return self.estimated_input + self.sampling.max_tokens

    @property
    def estimated_input(self) -> int:
        """About how many tokens prompt and payload have, at least 1: each of a list of ids, or a quarter of the characters."""
        payload: Any = self.payload
        if are_integers(payload):
            return len(payload)
        characters = len(self.prompt) + (0 if payload is None else size_of(payload))
        return max(1, characters // _CHARACTERS_A_TOKEN)


CANARY = ExecuteBatch("canary", "Hello", sampling=Sampling(max_tokens=1, temperature=0, seed=0))
"""A request for one token. It shows whether an idle context still answers (D9), and whether an engine works (D17).

An error of the request itself is an answer too. The prompt is not empty, because some servers refuse an empty one before they compute
anything.
"""


@frozen(kw_only=True)
class TokenUsage:
    """Tokens of one request, or of several added up.

    Args:
        input: once, however often the request moved (D6).
        output: as accepted.
        replayed: accepted ones that were fed to a later context.
        reasoning: of the output, what is not shown.
        cached: of the input, what the runner had in store.
        cost: US dollars, by the prices that the runner declares; the worker fills it in (D14).
    """

    input: int = field(default=0, converter=plain_integer, validator=integer(0, _MOST_TOKENS))
    output: int = field(default=0, converter=plain_integer, validator=integer(0, _MOST_TOKENS))
    replayed: int = field(default=0, converter=plain_integer, validator=integer(0, _MOST_TOKENS))
    reasoning: int = field(default=0, converter=plain_integer, validator=integer(0, _MOST_TOKENS))
    cached: int = field(default=0, converter=plain_integer, validator=integer(0, _MOST_TOKENS))
    cost: float = field(default=0.0, converter=plain_number, validator=at_least(0))

    def __add__(self, other: TokenUsage) -> TokenUsage:
        """Both together; a sum of tokens beyond 2**53 is 2**53."""
        counts = {
            key: min(value + getattr(other, key), _MOST_TOKENS)
            for key, value in asdict(self).items()
            if key != "cost"
        }
        return TokenUsage(**counts, cost=self.cost + other.cost)


class _Draft:
    """A `TokenChunk` whose fields can still be set."""

    __slots__ = (
        "__weakref__",
        "data",
        "finish_reason",
        "incarnation",
        "index",
        "request_id",
        "text",
        "token_ids",
        "usage",
    )


@frozen(kw_only=True)
class TokenChunk(_Draft):
    """A piece of one stream: some consecutive tokens, or text or plain data without ids.

    A stream counts positions (D6): its tokens, or, if it has no ids, its chunks. A runner makes instances of this very class: no
    host passes on what a subclass adds.

    Args:
        request_id: of the request that it belongs to.
        index: absolute position of the first token, or of the chunk, counted from 0.
        token_ids: the tokens themselves; empty in a stream without ids, and in a last chunk that adds none.
        text: what may be shown now; can lag behind `token_ids` while a stop string is being matched.
        finish_reason: set in the last chunk, and only there.
        usage: the tokens of the whole request, in the last chunk; the worker counts what the runner does not.
        data: plain data (D11); to another process at most 64 KiB of it travel besides its long texts and bytes.
        incarnation: the context that made it; the host fills it in.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: TokenUsage | None = None
    incarnation: int = 0
    data: Any = field(default=None, hash=False)


def token_chunk(  # noqa: PLR0917 - by position is the fastest
    request_id: str,
    index: int,
    token_ids: tuple[int, ...] = (),
    text: str = "",
    finish_reason: FinishReason | None = None,
    usage: TokenUsage | None = None,
    incarnation: int = 0,
    data: Any = None,
) -> TokenChunk:
    """The same as `TokenChunk(…)`, in a third of the time, for a host or a runner that makes many thousands a second.

    Its arguments `request_id`, `index`, `token_ids`, `text`, `finish_reason`, `usage`, `incarnation` and `data` are those of the
    class, and may be given by position.

    A frozen class sets each of its fields by a call; a draft's are simply set, and then it is given the class.
    """
    made: Any = _Draft()
    made.request_id = request_id
    made.index = index
    made.token_ids = token_ids
    made.text = text
    made.finish_reason = finish_reason
    made.usage = usage
    made.incarnation = incarnation
    made.data = data
    made.__class__ = TokenChunk
    chunk: TokenChunk = made
    return chunk


def positions_without_ids(chunk: TokenChunk) -> int:
    """How many positions a chunk without token ids counts (D6): one if it carries something, none if it is the last."""
    return int(chunk.finish_reason is None and (chunk.text != "" or chunk.data is not None))


@frozen(kw_only=True)
class Completion:
    """A whole stream, for a caller that waits for all of it.

    Args:
        request_id: of the request that it answers.
        text: of all chunks, one behind the other.
        token_ids: of all chunks.
        finish_reason: why it ended.
        usage: the tokens that it took.
        data: of the chunks that carry any, in their order.
    """

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: TokenUsage
    data: tuple[Any, ...] = field(default=(), hash=False)


@frozen(kw_only=True)
class RunnerStart:
    """What a runner spec gets when a context is made.

    Args:
        incarnation: of the context, counted from 1.
        device: as torch names it: `cpu`, `cuda:0`.
        cause: the failure that made this start necessary, in one line; None at the first.
    """

    incarnation: int
    device: str = "cpu"
    cause: str | None = None


@frozen
class WeightsFile:
    """Weights in a file of this machine.

    Args:
        path: of the file.
        sha256: what it must have, in hexadecimal; None trusts it.
    """

    path: str = field(validator=instance_of(str))
    sha256: str | None = field(default=None, kw_only=True, validator=optional(matches_re(r"[0-9a-f]{64}")))


@frozen
class WeightsRepository:
    """Weights in a repository that the runner knows how to ask.

    Args:
        name: of the repository.
        revision: a commit, so that every incarnation loads the same; None is whatever is newest.
    """

    name: str = field(validator=instance_of(str))
    revision: str | None = field(default=None, kw_only=True, validator=optional(instance_of(str)))


WeightSource: TypeAlias = WeightsFile | WeightsRepository | None
"""Where the weights of a runner spec come from; None leaves that to the runner. Plain data, since it travels (D2)."""


@frozen(kw_only=True)
class RateLimits:
    """How much a server takes in a minute: so many `requests`, and so many `tokens`; None is any amount."""

    requests: int | None = field(
        default=None, converter=converters.optional(plain_integer), validator=optional(integer(1))
    )
    tokens: int | None = field(
        default=None, converter=converters.optional(plain_integer), validator=optional(integer(1))
    )


@frozen(kw_only=True)
class Price:
    """US dollars for a million tokens: of the `input`, and of the `output`."""

    input: float = field(default=0.0, converter=plain_number, validator=at_least(0, finite=True))
    output: float = field(default=0.0, converter=plain_number, validator=at_least(0, finite=True))

    def of(self, usage: TokenUsage) -> float:
        """What the tokens of this `usage` cost."""
        return (usage.input * self.input + usage.output * self.output) / _A_MILLION


@frozen(kw_only=True)
class RunnerInfo:
    """What a loaded runner declares.

    Args:
        streams: how many streams it serves at once; 1 means exclusive.
        reproducible: its logits are bitwise the same whatever the batch, slot and replay (D6).
        can_continue: it has `continue_from`, so that a begun stream may migrate.
        runtime: what computes (`torch`, `scripted`, …).
        transport: `local` computes in this process, `network` asks a server: its errors are never a device's.
        limits: what its server takes; None for a runner that has none.
        price: what its tokens cost.
    """

    streams: int = field(default=1, converter=plain_integer, validator=integer(1))
    reproducible: bool = field(default=False, validator=instance_of(bool))
    can_continue: bool = field(default=False, validator=instance_of(bool))
    runtime: str = field(default="custom", converter=plain_text, validator=is_text)
    transport: Transport = field(default="local", validator=in_(get_args(Transport)))
    limits: RateLimits | None = field(default=None, validator=optional(instance_of(RateLimits)))
    price: Price = field(factory=Price, validator=instance_of(Price))

    def estimated_cost(self, batch: ExecuteBatch) -> float:
        """US dollars that a request may cost, if its answer is as long as it may be."""
        return self.price.of(TokenUsage(input=batch.estimated_input, output=batch.sampling.max_tokens))


Chunks: TypeAlias = Iterator[TokenChunk] | AsyncIterator[TokenChunk]
"""A stream as a runner makes it: of an iterator each `next` may block, of an async one each `anext` waits in Trio."""


@overload
def with_release(chunks: Iterator[TokenChunk], release: Callable[[], object]) -> Iterator[TokenChunk]: ...


@overload
def with_release(
    chunks: AsyncIterator[TokenChunk], release: Callable[[], object]
) -> AsyncIterator[TokenChunk]: ...


def with_release(chunks: Chunks, release: Callable[[], object]) -> Chunks:
    """A stream with something to give back when it is over: `release()` is called once, however it ends.

    It may end by itself, by an exception, or by being closed, also before its first chunk, when a generator's own
    `finally` would not run. The chunks, sync or async, are closed first, if they can be.
    """
    return (
        _AsyncReleasing(chunks, release) if isinstance(chunks, AsyncIterator) else _Releasing(chunks, release)
    )


class _Releasing(Iterator[TokenChunk]):
    def __init__(self, chunks: Iterator[TokenChunk], release: Callable[[], object]) -> None:
        self._chunks = chunks
        self._release: Callable[[], object] | None = release

    def __next__(self) -> TokenChunk:
        try:
            return next(self._chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give it back, unless that is done."""
        release, self._release = self._release, None
        if release is not None:
            try:
                getattr(self._chunks, "close", lambda: None)()
            finally:
                release()


class _AsyncReleasing(AsyncIterator[TokenChunk]):
    def __init__(self, chunks: AsyncIterator[TokenChunk], release: Callable[[], object]) -> None:
        self._chunks = chunks
        self._release: Callable[[], object] | None = release

    async def __anext__(self) -> TokenChunk:
        try:
            return await anext(self._chunks)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """See `_Releasing.close`."""
        release, self._release = self._release, None
        if release is not None:
            close: Callable[[], Awaitable[object]] | None = getattr(self._chunks, "aclose", None)
            try:
                if close is not None:
                    await close()
            finally:
                release()


@runtime_checkable
class ModelRunner(Protocol):
    """One loaded model, on a device or behind a network. Its methods are called one at a time.

    Two kinds by one protocol. A *sync* runner (torch) gives iterators and lives in one thread, which it may block; a host
    that serves several streams takes one chunk from each in turn: a runner that batches computes one step for all of its
    open streams at the first `next` of a turn. An *async* runner (a network) gives async iterators, which run side by
    side in the Trio loop, so it needs an `InlineHost`; its `rebuild` and `close` may be async too.

    Closing an iterator early frees its place at once; an async one is cancelled first. A generator that is closed before
    its first `next` runs none of its code, its `finally` neither. So one whose place is taken in `execute` itself, before
    it is iterated, must not give that place back in the generator: `with_release(chunks, release)` does so however the
    stream ends.

    A chunk must be the next: its `index` is the number of positions before it, it has tokens, text or data unless it is the
    last, and the stream has no more positions than the request's `max_tokens`. A stream has ids in all of its chunks but the
    last, or in none. Otherwise that request fails with `RunnerError`. An exception from an iterator
    is that request's own error, too, unless its tag or its class makes it the context's (D4).
    """

    @property
    def info(self) -> RunnerInfo:
        """What it declares; constant."""
        ...

    def execute(self, batch: ExecuteBatch) -> Chunks:
        """Begin the stream of the request `batch`, whose seed is settled by then."""
        ...

    def rebuild(self, cause: SessionRebuildCause) -> Awaitable[None] | None:
        """Make the session anew on the same device, for this `cause`. Never called for a poisoned context."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Release the device's memory. Called once, and never after a poison."""
        ...


@runtime_checkable
class ContinuingRunner(ModelRunner, Protocol):
    """A runner whose streams can move to another context, if they have token ids: a begun stream without ids is lost."""

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Chunks:
        """Go on with `batch` behind `accepted`, all token ids accepted so far, those held back for a stop string too.

        `execute(b)` is `continue_from(b, ())`. If `accepted` already satisfies an end, the first chunk has the finish reason.
        Text that `accepted` has already released is not repeated.
        """
        ...


@runtime_checkable
class RunnerSpec(Protocol):
    """A frozen attrs value, importable by its class's name, from which a host makes a runner (D2).

    Its fields are plain data (None, bool, int, float, str, and tuples, lists or dicts of these, or nested specs),
    its module imports no torch, `build` may.
    """

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load the runner, with what `start` says of its context: once per incarnation, in the host's process.

        For an `InlineHost` alone it may be async.
        """
        ...


@runtime_checkable
class PreloadingSpec(RunnerSpec, Protocol):
    """A runner spec that prepares a process from which context processes are forked, and inherit."""

    def preload(self) -> None:
        """Do once what each `build` would do again: import, construct, run once. In a process that only ever forks.

        It must leave one thread, and must not touch the device: neither survives a fork. What it raises is logged, and
        contexts are then started cold.
        """
        ...


@runtime_checkable
class PreparingSpec(RunnerSpec, Protocol):
    """A runner spec, part of whose `build` can be done before the device is free."""

    def prepare(self, device: str) -> RunnerSpec:
        """Do as much of `build` as holds nothing of this `device`: the standby's work.

        Gives what does the rest: its `build` is called in the same process once the context before has ended.
        """
        ...
