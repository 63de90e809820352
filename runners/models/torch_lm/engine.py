"""The runner of `TorchLM`: its streams share the steps of one model, and join and leave between steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
from attrs import define, field

from runners.errors import BadRequest, ContextLengthExceeded, InferenceError
from runners.models.torch_lm.checkpoint import load
from runners.models.torch_lm.kernel import Kernel, Row
from runners.models.torch_lm.sampling import draw
from runners.models.torch_lm.transcript import Transcript
from runners.models.torch_lm.vocabulary import START, Vocabulary
from runners.types import ExecuteBatch, RunnerInfo, SessionRebuildCause, TokenChunk, TokenUsage

_MOST_STOPS, _MOST_STOP_CHARACTERS = 64, 4096
"""The limits for one request: each token is compared with all its stop strings, and the other streams wait meanwhile."""


class TorchRunner:
    """The loaded model and its open streams: a `ContinuingRunner`."""

    def __init__(self, weights: Path, sha256: str | None, *, streams: int, device: str) -> None:
        self._weights, self._sha256, self._device = weights, sha256, torch.device(device)
        self._info = RunnerInfo(
            streams=streams, reproducible=self._device.type == "cpu", can_continue=True, runtime="torch"
        )
        self._streams: dict[int, _Stream] = {}
        self._open_session()

    @property
    def info(self) -> RunnerInfo:
        """The declaration of the runner. It is reproducible on the CPU only."""
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
        """
        slot = self._free_slot(batch.request_id)
        try:
            self._streams[slot] = stream = self._admit(batch, list(accepted), slot)
        except InferenceError as error:
            return _refused(error)
        return stream

    def rebuild(self, cause: SessionRebuildCause) -> None:  # noqa: ARG002  the same for every cause
        """Load the weights again, with an empty cache. Open streams continue: the next step feeds all their tokens again."""
        self.close()
        self._open_session()
        for stream in self._streams.values():
            stream.fed = 0

    def close(self) -> None:
        """Release the model and its cache."""
        self._kernel: Kernel | None = None

    def step(self) -> None:
        """Compute the next token of every open stream whose last one has been taken.

        A step that fails leaves the streams as they were: the next one feeds the same rows again.
        """
        if self._kernel is None:
            raise RuntimeError("the runner is closed")
        waiting = [stream for stream in self._streams.values() if stream.ready is None]
        rows = [stream.rows() for stream in waiting]
        logits = self._kernel.logits(list(chain.from_iterable(rows)))
        if len(logits) > len(waiting):
            logits = logits[[end - 1 for end in accumulate(map(len, rows))]]
        best = logits.argmax(-1)  # the first of equals
        for stream, token, values in zip(waiting, _numbers(best), logits.unbind(), strict=True):
            stream.advance(token, values)

    def release(self, slot: int) -> None:
        """Free a stream's place."""
        self._streams.pop(slot, None)

    def _open_session(self) -> None:
        """Load the model and run it once: the first pass in a process is slow, and finds a device that does not work."""
        checkpoint = load(self._weights, self._sha256)
        self.vocabulary, self._context = checkpoint.vocabulary, checkpoint.model.shape.context
        self._kernel = Kernel(checkpoint.model, self._info.streams, self._device)
        self._kernel.warm_up()

    def _free_slot(self, request_id: str) -> int:
        slot = next((slot for slot in range(self._info.streams) if slot not in self._streams), None)
        if slot is None:
            raise RuntimeError(
                f"at most {self._info.streams} streams may be open, {request_id!r} is one more"
            )
        return slot

    def _admit(self, batch: ExecuteBatch, accepted: list[int], slot: int) -> _Stream:
        _check(batch, accepted, self.vocabulary)
        prompt = self.vocabulary.encode(START + batch.prompt)
        if len(prompt) >= self._context:
            most = self._context - len(START) - 1
            raise ContextLengthExceeded(f"a prompt may have {most} characters, got {len(batch.prompt)}")
        limit = min(batch.sampling.max_tokens, self._context - len(prompt))
        return _Stream(self, batch, slot, prompt, accepted, Transcript(limit, batch.sampling.stop))


@define(eq=False)
class _Stream(Iterator[TokenChunk]):
    """One open stream, which its host iterates and closes.

    Args:
        prompt: the token ids of the prompt, after that of `START`.
        accepted: the ids of all tokens generated so far, in this context or an earlier one.
        fed: how many tokens of the prompt and the accepted ones are in the cache.
        ready: a chunk that is computed, but not taken yet.
    """

    runner: TorchRunner = field(repr=False)
    batch: ExecuteBatch
    slot: int
    prompt: list[int]
    accepted: list[int]
    transcript: Transcript
    replayed: int = field(init=False)
    fed: int = field(default=0, init=False)
    ready: TokenChunk | None = field(default=None, init=False)
    closed: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.replayed = len(self.accepted)
        for character in self.runner.vocabulary.decode(self.accepted):
            self.transcript.add(character)
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
        if chunk.finish_reason:
            self.close()
        return chunk

    def close(self) -> None:
        """Free its place and end the iterator. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self.runner.release(self.slot)

    def rows(self) -> list[Row]:
        """The rows of the tokens that are not in the cache: at first all of them, then the newest one."""
        newest = len(self.prompt) + len(self.accepted) - 1
        if self.accepted and self.fed == newest:
            return [Row(self.accepted[-1], newest, self.slot)]
        tokens = [*self.prompt, *self.accepted]
        return [Row(tokens[at], at, self.slot) for at in range(self.fed, newest + 1)]

    def advance(self, best: int, logits: torch.Tensor) -> None:
        """Append the best token, or a drawn one if the request has a temperature."""
        sampling, position, token = self.batch.sampling, len(self.accepted), best
        if sampling.temperature:
            token = draw(_numbers(logits), sampling.temperature, seed=sampling.seed or 0, position=position)
        self.fed = len(self.prompt) + position
        self.accepted.append(token)
        self.ready = self._chunk((token,), self.transcript.add(self.runner.vocabulary.characters[token]))

    def _take(self) -> TokenChunk:
        if self.ready is None:
            self.runner.step()
        chunk, self.ready = self.ready, None
        assert chunk is not None, "a step advances every stream that waits for one"
        return chunk

    def _chunk(self, tokens: tuple[int, ...], text: str) -> TokenChunk:
        """A chunk of the newest tokens; the last one has the finish reason and the usage."""
        finish, output = self.transcript.finish, len(self.accepted)
        usage = TokenUsage(input=len(self.prompt), output=output, replayed=self.replayed) if finish else None
        return TokenChunk(
            request_id=self.batch.request_id,
            index=output - len(tokens),
            token_ids=tokens,
            text=text,
            finish_reason=finish,
            usage=usage,
        )


def _numbers(row: torch.Tensor) -> list[Any]:
    return row.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]  # torch declares a bare list


def _refused(error: InferenceError) -> Iterator[TokenChunk]:
    """A stream whose first `next` raises the error of the request."""
    raise error
    yield


def _check(batch: ExecuteBatch, accepted: Sequence[int], vocabulary: Vocabulary) -> None:
    """Refuse a request that has no meaning, or would fail on the device."""
    if "" in batch.sampling.stop:
        raise BadRequest(f"a stop string must not be empty, got {batch.sampling.stop!r}")
    if len(batch.sampling.stop) > _MOST_STOPS or sum(map(len, batch.sampling.stop)) > _MOST_STOP_CHARACTERS:
        raise BadRequest(
            f"at most {_MOST_STOPS} stop strings of {_MOST_STOP_CHARACTERS} characters in all may be asked for, "
            f"got {len(batch.sampling.stop)} of {sum(map(len, batch.sampling.stop))}"
        )
    if batch.sampling.temperature and batch.sampling.seed is None:
        raise BadRequest("a request with a temperature above 0 needs a seed, got None")
    foreign = [token for token in accepted if not 0 <= token < len(vocabulary)]
    if foreign:
        raise BadRequest(f"accepted token ids must be from 0 to {len(vocabulary) - 1}, got {foreign[0]}")
