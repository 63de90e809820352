"""A runner whose tokens take as long as they are told, and are made of nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

from attrs import frozen

from runners.types import (
    ExecuteBatch,
    FinishReason,
    ModelRunner,
    RunnerInfo,
    RunnerStart,
    SessionRebuildCause,
    TokenChunk,
    TokenUsage,
    token_chunk,
)


@frozen
class Paced:
    """Streams of as many tokens as are asked for.

    Args:
        streams: at once.
        pace: seconds of computing that a token takes.
    """

    streams: int = 1
    pace: float = 0.0

    def build(self, start: RunnerStart) -> ModelRunner:  # noqa: ARG002 - it is the same everywhere
        """There is nothing to load."""
        return _PacedRunner(self)


class _PacedRunner:
    def __init__(self, spec: Paced) -> None:
        self._pace = spec.pace
        self.info = RunnerInfo(streams=spec.streams, runtime="paced")

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        name, last = batch.request_id, batch.sampling.max_tokens - 1
        for index in range(last):
            _compute(self._pace)
            yield token_chunk(request_id=name, index=index, token_ids=(7,), text="x")
        usage = TokenUsage(output=last + 1)
        yield TokenChunk(
            request_id=name, index=last, token_ids=(7,), finish_reason=FinishReason.LENGTH, usage=usage
        )

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """There is no session."""

    def close(self) -> None:
        """Nothing is held."""


def _compute(seconds: float) -> None:
    """Be busy: a sleep would take as long as the kernel likes."""
    if seconds:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
