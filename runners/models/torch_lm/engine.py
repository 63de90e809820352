"""The model of `TorchLM`, as `causal_runner` takes it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from runners.models.causal import Feed, causal_runner
from runners.models.torch_lm.checkpoint import load
from runners.models.torch_lm.kernel import Kernel, Row
from runners.models.torch_lm.vocabulary import START, Vocabulary
from runners.types import ContinuingRunner


def torch_runner(weights: Path, sha256: str | None, *, streams: int, device: str) -> ContinuingRunner:
    """The runner of `TorchLM`. It is reproducible on the CPU only.

    Raises:
        LoadFailed, WeightsCorrupt: see `TorchLM.build`.
    """
    model = CharacterLM(weights, sha256, streams=streams, device=torch.device(device))
    return causal_runner(model, streams=streams, reproducible=model.device.type == "cpu", runtime="torch")


class CharacterTokenizer:
    """One token is one character; `START` stands before every prompt."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self.decode = vocabulary.decode

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt."""
        return self._vocabulary.encode(START + text)


class CharacterLM:
    """The loaded model. The cache of a stream is a slot of the kernel."""

    end_tokens: frozenset[int] = frozenset()

    def __init__(self, weights: Path, sha256: str | None, *, streams: int, device: torch.device) -> None:
        self.device = device
        self._weights, self._sha256, self._streams = weights, sha256, streams
        self._free = set(range(streams))
        self._load()

    def _load(self) -> None:
        """Load the model and run it once: the first pass in a process is slow, and finds a device that does not work."""
        checkpoint = load(self._weights, self._sha256)
        self.vocabulary_size, self.context_length = (
            len(checkpoint.vocabulary),
            checkpoint.model.shape.context,
        )
        self.tokenizer = CharacterTokenizer(checkpoint.vocabulary)
        self.kernel: Kernel | None = Kernel(checkpoint.model, self._streams, self.device)
        self.kernel.warm_up()

    def reload(self) -> None:
        """Load the weights again, with an empty cache, once the memory of the old ones is free."""
        self.kernel = None
        self._load()

    def new_cache(self) -> int:
        """The lowest free slot: slots that lie together are read in one pass."""
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def free_cache(self, cache: int) -> None:
        """The slot is free."""
        self._free.add(cache)

    def step(self, feeds: Sequence[Feed]) -> Any:
        """The logits after the last token of each feed."""
        assert self.kernel is not None, "it is loaded"
        rows = [
            Row(token, feed.begin + at, feed.cache) for feed in feeds for at, token in enumerate(feed.tokens)
        ]
        logits = self.kernel.logits(rows)
        if len(rows) > len(feeds):
            logits = logits[[end - 1 for end in accumulate(len(feed.tokens) for feed in feeds)]]
        return logits.numpy()
