"""A model that computes nothing and sleeps: the time of a step is that of the most tokens which one of its streams feeds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from zlib import crc32

import numpy as np
from attrs import define, field, frozen

from runners.models.causal import Feed, causal_runner
from runners.types import ContinuingRunner, RunnerStart

_LETTERS = 26
_A = ord("a")
_LONGEST = 100_000


@frozen
class Prefilling:
    """Streams of letters. Each letter depends on all before it, so one that is lost, doubled or swapped changes those behind it.

    Args:
        streams: how many run at once.
        seconds: for each token of a prompt, and of what is replayed.
        pace: the least seconds of a step.
        piece: the most tokens of a stream that one step feeds.
        together: whether the prefills of several streams share a step's time, as where a device is not yet full; else
            one comes after the other, as where one alone fills it.
    """

    streams: int = 16
    seconds: float = 0.002
    pace: float = 0.05
    piece: int = 32
    together: bool = True

    def build(self, start: RunnerStart) -> ContinuingRunner:
        """Make the runner; it loads nothing."""
        del start  # the runner is the same at every start
        return causal_runner(
            _Model(self), streams=self.streams, reproducible=True, runtime="prefilling", prefill=self.piece
        )


def letters(prompt: str, count: int) -> str:
    """The text with which the model continues a prompt."""
    state, text = 0, ""
    for letter in prompt:
        state = _next(state, ord(letter))
    for _ in range(count):
        text += chr(_A + state % _LETTERS)
        state = _next(state, ord(text[-1]))
    return text


def _next(state: int, token: int) -> int:
    return crc32(token.to_bytes(4, "big"), state)


class _Letters:
    """A tokenizer: each character is a token."""

    def encode(self, text: str) -> list[int]:
        """The characters of a text."""
        return list(map(ord, text))

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens."""
        return "".join(map(chr, tokens))


@define(eq=False)
class _Model:
    """See `CausalModel`. A cache is the list of the states after each token, the first of which is that before all."""

    spec: Prefilling
    vocabulary_size: int = _A + _LETTERS
    context_length: int = _LONGEST
    end_tokens: frozenset[int] = frozenset()
    tokenizer: _Letters = field(factory=_Letters)

    def new_cache(self) -> list[int]:
        """An empty one."""
        return [0]

    def free_cache(self, cache: list[int]) -> None:
        """There is nothing to free."""

    def step(self, feeds: Sequence[Feed]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """The letter after each feed, as the only one that is likely."""
        lengths = [len(feed.tokens) for feed in feeds]
        longest = max(lengths) if self.spec.together else sum(length for length in lengths if length > 1)
        time.sleep(max(self.spec.pace, self.spec.seconds * longest))
        logits = np.zeros((len(feeds), self.vocabulary_size), dtype=np.float32)
        for row, feed in zip(logits, feeds, strict=True):
            states: list[int] = feed.cache
            del states[feed.begin + 1 :]
            for token in feed.tokens:
                states.append(_next(states[-1], token))
            row[_A + states[-1] % _LETTERS] = 1
        return logits
