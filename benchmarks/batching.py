"""A runner that computes a step for all of its open streams at once, and answers each with the size of that batch."""

from __future__ import annotations

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
    with_release,
)


@frozen
class Batching:
    """A function: the only chunk of each stream has the number of streams of its step as data.

    Args:
        streams: how many run at once.
    """

    streams: int = 1

    def build(self, start: RunnerStart) -> ModelRunner:  # noqa: ARG002 - a spec must take it, and this runner is the same at every start
        """Make the runner; it loads nothing."""
        return _BatchingRunner(self.streams)


class _BatchingRunner:
    def __init__(self, streams: int) -> None:
        self.info = RunnerInfo(streams=streams, runtime="batching")
        self._open: set[str] = set()  # those without a step yet
        self._sizes: dict[str, int] = {}  # the size of the step that a stream was in

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        name = batch.request_id
        self._open.add(name)
        chunks = with_release(self._chunks(name), lambda: self._open.discard(name))
        assert isinstance(chunks, Iterator)
        return chunks

    def _chunks(self, name: str) -> Iterator[TokenChunk]:
        if name in self._open:
            self._sizes.update(dict.fromkeys(self._open, len(self._open)))
            self._open.clear()
        yield TokenChunk(
            request_id=name, index=0, data=self._sizes.pop(name), finish_reason=FinishReason.STOP
        )

    def rebuild(self, cause: SessionRebuildCause) -> None:
        """Do nothing: the runner has no session."""

    def close(self) -> None:
        """Do nothing: the runner holds nothing."""


def mean_batch(sizes: list[int]) -> float:
    """The mean size of the steps in which requests were answered; `sizes` has that of each request's step."""
    return len(sizes) / sum(1 / size for size in sizes)
