"""A runner whose tokens have no meaning, and take a given time."""

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
    """Streams with as many tokens as the request asks for.

    Args:
        streams: how many run at once.
        pace: the seconds of computing for a token.
    """

    streams: int = 1
    pace: float = 0.0

    def build(self, start: RunnerStart) -> ModelRunner:  # noqa: ARG002 - a spec must take it, and this runner is the same at every start
        """Make the runner; it loads nothing."""
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
        """Do nothing: the runner has no session."""

    def close(self) -> None:
        """Do nothing: the runner holds nothing."""


def _compute(seconds: float) -> None:
    """Compute for so many seconds; a sleep could take longer."""
    if seconds:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
