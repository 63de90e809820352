"""The runner of `causal_runner`: its streams share the steps of one model, and join and leave between steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, TypeAlias, cast

import numpy as np
from attrs import define, field

from runners.brief import brief
from runners.diagnosis.classify import concerns_device
from runners.errors import InferenceError, RunnerError
from runners.hosts.turns import NOTHING
from runners.models.causal.model import CausalModel, Feed, ReloadingModel
from runners.models.causal.request import Request
from runners.models.causal.sampling import Numbers, draw, logprobs, penalised
from runners.models.causal.text import Detokenizer, Transcript
from runners.types import ExecuteBatch, RunnerInfo, SessionRebuildCause, TokenChunk, TokenUsage, token_chunk

_PROMPT_END = 8
"""So many tokens of the prompt are decoded with the first generated ones, so that the text continues that of the prompt."""

_NO_CACHE = object()

_Row: TypeAlias = Numbers | Exception
"""The logits after a feed, or the error with which it failed."""


class CausalRunner:
    """A causal model and its open streams: a `ContinuingRunner`. See `causal_runner`."""

    def __init__(
        self, model: CausalModel, *, streams: int, reproducible: bool, runtime: str, prefill: int | None
    ) -> None:
        if prefill is not None and type(prefill) is not int:
            raise TypeError(f"prefill must be an integer or None, got {brief(prefill)}")
        if prefill is not None and prefill < 1:
            raise ValueError(f"prefill must be >= 1, got {prefill}")
        self.model: CausalModel | None = model
        self.prefill = prefill
        self._info = RunnerInfo(
            streams=streams, reproducible=reproducible, can_continue=True, runtime=runtime
        )
        self._streams: dict[_Stream, None] = {}  # in the order in which they began

    @property
    def info(self) -> RunnerInfo:
        """The declaration of the runner."""
        return self._info

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        """Begin a stream. An error of the request itself is raised by the first `next`.

        Raises:
            RuntimeError: as many streams are open as it declares.
        """
        return self.continue_from(batch, ())

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Iterator[TokenChunk]:
        """Continue a stream after its accepted tokens. An error of the request itself is raised by the first `next`.

        Raises:
            RuntimeError: as many streams are open as it declares.
            Exception: the tokenizer refuses the request, or there is no memory for a cache.
        """
        if len(self._streams) >= self._info.streams:
            raise RuntimeError(
                f"at most {self._info.streams} streams may be open, {batch.request_id!r} is one more"
            )
        model = self._loaded()
        try:
            request = Request.of(batch, accepted, model)
        except InferenceError as error:
            return _refused(error)
        stream = _Stream(self, batch.request_id, request, list(accepted), _transcript(request, model))
        stream.cache = model.new_cache()
        self._streams[stream] = None
        return stream

    def rebuild(self, cause: SessionRebuildCause) -> None:  # noqa: ARG002  the same for every cause
        """Make all caches anew, of a `ReloadingModel` also the model. Open streams continue: their tokens are fed again."""
        model = self._loaded()
        for stream in self._streams:
            stream.forget(model)
        if isinstance(model, ReloadingModel):
            model.reload()
        for stream in self._streams:
            stream.cache = model.new_cache()

    def close(self) -> None:
        """Release the model."""
        self.model = None

    def step(self) -> None:
        """Feed every open stream whose last chunk has been taken; those of which all tokens are fed get their next one.

        A step that fails leaves the streams as they were: the next one feeds the same tokens again (D5).
        """
        model = self._loaded()
        waiting = [stream for stream in self._streams if stream.ready is None]
        feeds = [stream.feed() for stream in waiting]
        rows = _rows(model, feeds)
        for stream, feed, row, best in zip(waiting, feeds, rows, _best(rows), strict=True):
            stream.advance(feed, row, best)

    def release(self, stream: _Stream) -> None:
        """Free a stream's place."""
        if self._streams.pop(stream, stream) is None and self.model is not None:
            stream.forget(self.model)

    def _loaded(self) -> CausalModel:
        if self.model is None:
            raise RuntimeError("the runner is closed")
        return self.model


@define(eq=False)
class _Stream(Iterator[TokenChunk]):
    """One open stream, which its host iterates and closes.

    Args:
        accepted: the ids of all tokens generated so far, in this context or an earlier one.
        cache: the model's, or `_NO_CACHE`.
        fed: how many tokens of the prompt and the accepted ones are in the cache.
        asked: how many of them were there when it was last asked for a chunk.
        ready: a chunk that is computed but not taken yet, or the error of this stream.
        generated: how often each token was generated, if there is a penalty.
    """

    runner: CausalRunner = field(repr=False)
    request_id: str
    request: Request
    accepted: list[int]
    transcript: Transcript
    replayed: int = field(init=False)
    generated: Counter[int] = field(factory=Counter[int], init=False)
    prompted: frozenset[int] = field(init=False)
    plain: bool = field(init=False)
    penalises: bool = field(init=False)
    logprobs: int | None = field(init=False)
    cache: Any = field(default=_NO_CACHE, init=False)
    fed: int = field(default=0, init=False)
    asked: int = field(default=0, init=False)
    ready: TokenChunk | Exception | None = field(default=None, init=False)
    closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        options = self.request.options
        self.replayed = len(self.accepted)
        self.prompted = frozenset(self.request.prompt if options.repetition_penalty != 1.0 else ())
        self.penalises, self.logprobs = options.penalises, options.logprobs
        self.plain = not self.request.sampling.temperature and not self.penalises
        if self.penalises:
            self.generated.update(self.accepted)
        for token in self.accepted:
            self.transcript.add(token)
        if self.transcript.finish:
            self.ready = self._chunk((), "")

    def __next__(self) -> TokenChunk:
        if self.closed:
            raise StopIteration
        try:
            chunk = self._take()
        except BaseException:
            self.close()
            raise
        if chunk is None:
            return cast("TokenChunk", NOTHING)
        if chunk.finish_reason:
            self.close()
        return chunk

    def close(self) -> None:
        """Free its place and end the iterator. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self.runner.release(self)

    def forget(self, model: CausalModel) -> None:
        """Free its cache: what it holds is to be fed again."""
        cache, self.cache = self.cache, _NO_CACHE
        self.fed = self.asked = 0
        if cache is not _NO_CACHE:
            model.free_cache(cache)

    def feed(self) -> Feed:
        """The tokens that are not in the cache: at first all of them or a piece, then the newest one."""
        prompt, begin = self.request.prompt, self.fed
        if begin >= len(prompt):
            tokens: Sequence[int] = self.accepted[begin - len(prompt) :]
        else:
            tokens = (*prompt[begin:], *self.accepted)
        return Feed(self.cache, begin, tokens[: self.runner.prefill])

    def advance(self, feed: Feed, row: _Row, best: int) -> None:
        """The tokens are fed. If they are all, choose the next one; what that raises is this stream's own error."""
        if isinstance(row, Exception):
            self.ready = row
            return
        self.fed = feed.begin + len(feed.tokens)
        if self.fed == len(self.request.prompt) + len(self.accepted):
            try:
                self._append(row, best)
            except Exception as error:  # noqa: BLE001 - the other streams of the step go on; its own `next` raises it
                self.ready = error

    def _append(self, row: Numbers, best: int) -> None:
        """Append the best token, or a drawn one if the request has a temperature."""
        if best < 0:
            raise FloatingPointError("the model's logits are not finite: its weights or its cache are broken")
        token = best if self.plain else self._chosen(row)
        data = None if self.logprobs is None else self._logprobs(row, token, self.logprobs)
        self.accepted.append(token)
        if self.penalises:
            self.generated[token] += 1
        self.ready = self._chunk((token,), self.transcript.add(token), data)

    def _chosen(self, row: Numbers) -> int:
        options, sampling = self.request.options, self.request.sampling
        if self.penalises:
            row = penalised(
                row,
                self.prompted,
                self.generated,
                repetition=options.repetition_penalty,
                frequency=options.frequency_penalty,
                presence=options.presence_penalty,
            )
        if not sampling.temperature:
            return int(row.argmax())  # the first of equals
        return draw(
            row,
            sampling.temperature,
            seed=sampling.seed or 0,
            position=len(self.accepted),
            top_k=options.top_k,
            top_p=options.top_p,
        )

    def _logprobs(self, row: Numbers, token: int, count: int) -> dict[str, Any]:
        own, top = logprobs(row, token, count)
        decode = self.transcript.text.decode
        found = [{"token": decode([each]), "logprob": value} for each, value in top]
        return {"logprobs": [{"token": decode([token]), "logprob": own, "top": found}]}

    def _take(self) -> TokenChunk | None:
        """The next chunk; None after a step that fed it a piece of its prompt, so that the other streams go on between the pieces."""
        if self.ready is None and self.fed == self.asked:
            self.runner.step()
        self.asked = self.fed
        chunk, self.ready = self.ready, None
        if isinstance(chunk, Exception):
            raise chunk
        return chunk

    def _chunk(self, tokens: tuple[int, ...], text: str, data: Any = None) -> TokenChunk:
        """A chunk of the newest tokens; the last one has the finish reason and the usage."""
        finish, output = self.transcript.finish, len(self.accepted)
        usage = None
        if finish:
            usage = TokenUsage(input=len(self.request.prompt), output=output, replayed=self.replayed)
        return token_chunk(self.request_id, output - len(tokens), tokens, text, finish, usage, data=data)


def _transcript(request: Request, model: CausalModel) -> Transcript:
    before = () if request.is_chat else request.prompt[-_PROMPT_END:]
    text = Detokenizer(model.tokenizer.decode, list(before))
    return Transcript(text, request.limit, model.end_tokens, request.sampling.stop)


def _rows(model: CausalModel, feeds: list[Feed]) -> Numbers | list[_Row]:
    """The logits after each feed. If one alone fails in a step of several, it has its error in its place (D5).

    Raises:
        Exception: it concerns the device or memory, or there is only one feed.
    """
    try:
        return _logits(model, feeds)
    except Exception as error:
        if len(feeds) == 1 or concerns_device(error):
            raise
    return [_row(model, feed) for feed in feeds]


def _best(rows: Numbers | list[_Row]) -> list[int]:
    """The best token of each row, the first of equals; -1 if the largest number is not finite."""
    if isinstance(rows, list):
        return [-1 if isinstance(row, Exception) else _best(row[None])[0] for row in rows]
    best: list[int] = rows.argmax(axis=1).tolist()
    largest = rows.max(axis=1)  # NaN if any number is
    if np.isfinite(largest).all():
        return best
    return [token if isfinite(value) else -1 for token, value in zip(best, largest, strict=True)]


def _row(model: CausalModel, feed: Feed) -> _Row:
    try:
        row: Numbers = _logits(model, [feed])[0]
    except Exception as error:
        if concerns_device(error):
            raise
        return error
    return np.array(row)  # the next step may overwrite it


def _logits(model: CausalModel, feeds: list[Feed]) -> Numbers:
    logits = np.asarray(model.step(feeds))
    if logits.shape != (len(feeds), model.vocabulary_size):
        raise RunnerError(
            f"a step must give the logits {(len(feeds), model.vocabulary_size)}, got the shape {logits.shape}"
        )
    return logits


def _refused(error: InferenceError) -> Iterator[TokenChunk]:
    """A stream whose first `next` raises the error of the request."""
    raise error
    yield
