"""The draw of the next token: a pure function of the logits, the seed and the position (D6)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from math import exp


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), computed from seed and position. There is no generator, whose state a new context would lack."""
    digest = blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(logits: Sequence[float], temperature: float, *, seed: int, position: int) -> int:
    """The token id at an absolute position, drawn by the inverse CDF. The temperature must be above 0."""
    best = max(logits)
    cumulative = list(accumulate(map(exp, [(logit - best) / temperature for logit in logits])))
    token = bisect_right(cumulative, uniform(seed, position) * cumulative[-1])
    return min(token, len(logits) - 1)  # the product may round up to the total
