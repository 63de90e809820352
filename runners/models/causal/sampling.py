"""The choice of the next token: a pure function of the logits, the seed and the position (D6), over numpy.

No function here sorts a whole vocabulary: `top_k` partitions it, and `top_p` counts it into buckets and sorts one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers: TypeAlias = NDArray[Any]

_BLOCK = 1024
"""So many weights are added up one by one; the sums of blocks are added up after that. `cumsum` over a large vocabulary is slow."""

_SHIFT, _BUCKETS = 45, 8192
"""A bucket of `nucleus` holds the weights with the same 7 highest bits of the fraction; the last bucket has all below 2^-64."""

_ONE = np.float64(1.0).view(np.int64)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), computed from seed and position. There is no generator, whose state a new context would lack."""
    digest = blake2b(b"%d:%d" % (seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) * 2.0**-53


def draw(
    logits: ArrayLike,
    temperature: float,
    *,
    seed: int,
    position: int,
    top_k: int | None = None,
    top_p: float = 1.0,
) -> int:
    """The token id at an absolute position, drawn by the inverse CDF over ascending ids. The temperature must be above 0.

    First `top_k` keeps the tokens whose logit is at least the k-th largest: several equal ones there are all kept. Then `top_p`
    keeps the fewest of the most probable tokens whose probabilities reach that sum, of equal ones those with the lowest ids.
    The numbers are 64 bits wide, but numpy's `exp` may differ in the last bit between processors: about one draw in 10^13
    would then give another token.
    """
    values = np.asarray(logits)
    tokens: Numbers | None = None
    if top_k is not None and top_k < len(values):
        tokens = np.flatnonzero(values >= np.partition(values, -top_k)[-top_k])
        values = values[tokens]
    weights = _exponentials(values, temperature)
    if top_p < 1.0:
        kept = nucleus(weights, top_p)
        tokens = kept if tokens is None else tokens[kept]
        weights = weights[kept]
    place = _place(weights, uniform(seed, position))
    return place if tokens is None else int(tokens[place])


def _exponentials(values: Numbers, temperature: float) -> Numbers:
    """The weight of each token; that of the best is 1. In place: more arrays of this size would cost most of the time."""
    weights = values.astype(np.float64)
    weights -= weights.max()
    with np.errstate(over="ignore"):  # a tiny temperature: all but the best become 0
        weights /= temperature
    return np.exp(weights, out=weights)


def _place(weights: Numbers, share: float) -> int:
    """The first index at which the sum of the weights so far exceeds this share of their total."""
    before, first = 0.0, 0
    if len(weights) > _BLOCK:
        ends = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)).cumsum()
        goal = share * float(ends[-1])
        block = _first(ends, goal)
        first, before = block * _BLOCK, float(ends[block - 1]) if block else 0.0
        sums = weights[first : first + _BLOCK].cumsum()
    else:
        sums = weights.cumsum()
        goal = share * float(sums[-1])
    return first + _first(sums, goal - before)


def _first(sums: Numbers, goal: float) -> int:
    """The first index whose sum exceeds the goal, which rounding may have raised to the last sum: then the last with a weight."""
    place, last = int(sums.searchsorted(goal, "right")), float(sums[-1])
    return place if place < len(sums) else int(sums.searchsorted(last, "left"))


def nucleus(weights: Numbers, top_p: float) -> Numbers:
    """The ascending indexes of the fewest largest weights whose sum reaches `top_p` of the total. The largest weight is 1."""
    buckets = _ONE - weights.view(np.int64)
    buckets >>= _SHIFT
    np.minimum(buckets, _BUCKETS - 1, out=buckets)
    sums = np.bincount(buckets, weights).cumsum()
    goal = top_p * float(sums[-1])
    last = min(int(sums.searchsorted(goal, "left")), len(sums) - 1)
    inside: Numbers = np.flatnonzero(buckets == last)
    inside = inside[np.argsort(-weights[inside], kind="stable")]
    before = float(sums[last - 1]) if last else 0.0
    count = int(weights[inside].cumsum().searchsorted(goal - before, "left")) + 1
    kept = buckets < last
    kept[inside[:count]] = True
    return np.flatnonzero(kept)


def penalised(
    logits: Numbers,
    prompt: frozenset[int],
    generated: Mapping[int, int],
    *,
    repetition: float = 1.0,
    frequency: float = 0.0,
    presence: float = 0.0,
) -> Numbers:
    """A copy of the logits with penalties for tokens that were already there.

    Args:
        logits: of one stream.
        prompt: the token ids of the prompt.
        generated: how often each token was generated.
        repetition: divides the positive logits of the tokens of both, and multiplies the negative ones.
        frequency: is subtracted from the logit of a generated token once for each time.
        presence: is subtracted from it once.
    """
    changed = logits.astype(np.float64)
    if repetition != 1.0:
        there = np.fromiter(prompt | generated.keys(), np.int64)
        values = changed[there]
        changed[there] = np.where(values < 0, values * repetition, values / repetition)
    if (frequency or presence) and generated:
        there = np.fromiter(generated.keys(), np.int64)
        times = np.fromiter(generated.values(), np.float64)
        changed[there] -= frequency * times + presence
    return changed


def logprobs(logits: Numbers, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of the model's probability of a token, and the `top` most probable tokens with theirs.

    Tokens that the model rules out are not among these.
    """
    total = float(logits.max()) + float(np.log(_exponentials(logits, 1.0).sum()))
    values = logits.astype(np.float64)
    count = min(top, len(values))
    first: list[int] = []
    if count:
        least = max(float(np.partition(values, -count)[-count]), float(np.finfo(np.float64).min))
        most = np.flatnonzero(values >= least)
        first = most[np.argsort(-values[most], kind="stable")][:count].tolist()
    return float(values[token]) - total, [(each, float(values[each]) - total) for each in first]
