"""A runner that prints while it loads and streams; a context process imports this module, so it imports no more than it must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve, field, frozen

from runners.models.scripted import Scripted
from runners.types import ExecuteBatch, ModelRunner, RunnerStart, SessionRebuildCause, TokenChunk

PREPARED = "is prepared"


@frozen
class Talking:
    """`Scripted`, with a line of output for whatever it does."""

    inner: Scripted
    prepared: bool = field(default=False, kw_only=True)

    def prepare(self, device: str) -> Talking:
        """Say so, on a standby."""
        print(PREPARED, flush=True)
        return evolve(self, prepared=True)

    def build(self, start: RunnerStart) -> ModelRunner:
        """Load it."""
        print(f"loads incarnation {start.incarnation}", flush=True)
        return _Talker(self.inner.build(start))


class _Talker:
    def __init__(self, inner: ModelRunner) -> None:
        self._inner = inner
        self.info = inner.info

    def execute(self, batch: ExecuteBatch) -> Iterator[TokenChunk]:
        return self._told(self._inner.execute(batch))

    def continue_from(self, batch: ExecuteBatch, accepted: Sequence[int]) -> Iterator[TokenChunk]:
        return self._told(self._inner.continue_from(batch, accepted))  # type: ignore[attr-defined]

    def _told(self, chunks: Iterator[TokenChunk]) -> Iterator[TokenChunk]:
        for chunk in chunks:
            print(f"{chunk.request_id} {chunk.index}", flush=True)
            yield chunk

    def rebuild(self, cause: SessionRebuildCause) -> None:
        print(f"rebuilds for {cause}", flush=True)

    def close(self) -> None:
        print("closes", flush=True)
