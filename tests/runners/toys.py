"""A deterministic causal model without torch, and tokenizers of every awkward kind, for the tests of `causal_runner`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import define, field, frozen

from runners.models.causal import causal_runner


class Bytes:
    """One token is one byte; bytes that are no UTF-8 become U+FFFD, as byte-level BPE has them."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


class Chat(Bytes):
    def chat(self, messages, tools):
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return self.encode(f"{text}{tools or ''}<assistant>")


@frozen
class Pieces:
    """Each token is some bytes, in any cut."""

    pieces: Sequence[bytes]

    def decode(self, tokens):
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


class Sentences:
    """As sentencepiece with byte fallback: words begin with `▁`, the first space is dropped, and a run of bytes that is
    no UTF-8 as a whole becomes one U+FFFD for each byte."""

    def decode(self, tokens):
        """A token is a byte, or some text; None is a special one without a text."""
        text, run = "", b""
        for token in [*(token for token in tokens if token is not None), ""]:
            if isinstance(token, int):
                run += bytes([token])
                continue
            if run:
                try:
                    text += run.decode()
                except UnicodeDecodeError:
                    text += "\ufffd" * len(run)
                run = b""
            text += token.replace("▁", " ")
        return text.removeprefix(" ")


@define(eq=False)
class Toy:
    """The logits are a function of all tokens of the stream, which its cache is to hold; so a wrong cache gives other tokens."""

    vocabulary_size: int = 258
    context_length: int = 200
    end_tokens: frozenset[int] = frozenset({257})
    tokenizer: Any = field(factory=Chat)
    caches: int = 0
    steps: list[list[int]] = field(factory=list)
    fail: Any = None

    def new_cache(self):
        self.caches += 1
        return []

    def free_cache(self, cache):
        self.caches -= 1

    def step(self, feeds):
        self.steps.append([len(feed.tokens) for feed in feeds])
        rows = []
        for feed in feeds:
            assert feed.begin <= len(feed.cache), "a token is missing"
            del feed.cache[feed.begin :]
            feed.cache.extend(feed.tokens)
            if self.fail:
                self.fail(feed)
            rows.append(self.logits(feed.cache))
        return np.stack(rows)

    def logits(self, tokens):
        noise = np.random.default_rng(abs(hash(tuple(tokens[-12:]))) % 2**32)
        logits = noise.normal(size=self.vocabulary_size) * 3
        logits[97:105] += 6  # mostly letters, so that texts and stop strings mean something
        return logits.astype(np.float32)


def runner_of(model=None, **options):
    return causal_runner(model or Toy(), **{"streams": 4, "reproducible": True, **options})
