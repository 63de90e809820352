"""The choice of a token, against a slow and plain reference."""

from collections import Counter
from fractions import Fraction
from math import exp, log

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from runners.models.causal.sampling import _first, draw, logprobs, nucleus, penalised, uniform

np = pytest.importorskip("numpy")

# Few different values, so that equal ones are common.
values = st.one_of(st.integers(-6, 6).map(float), st.floats(-30, 30, width=32))
logits = st.lists(values, min_size=1, max_size=40)
NEAR = 1e-9
"""Where a sum is nearer to a limit than this, rounding decides, and the reference may decide otherwise."""


def reference(logits, temperature, seed, position, top_k, top_p):
    """The token, by sorting and adding up, in plain Python."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if top_k is not None and top_k < len(order):
        least = logits[order[top_k - 1]]
        order = [token for token in order if logits[token] >= least]
    best = max(logits)
    weights = {token: exp((logits[token] - best) / temperature) for token in order}
    total = sum(weights.values())
    order.sort(key=lambda token: (-weights[token], token))  # logits may differ where the weights do not
    if top_p < 1:
        kept, so_far = [], 0.0
        for token in order:
            kept.append(token)
            so_far += weights[token] / total
            assume(abs(so_far - top_p) > NEAR)
            if so_far >= top_p:
                break
        order = kept
        total = sum(weights[token] for token in order)
    so_far, share = 0.0, uniform(seed, position)
    for token in sorted(order):
        so_far += weights[token] / total
        assume(abs(so_far - share) > NEAR)
        if so_far > share:
            return token
    raise AssertionError


@given(
    logits=logits,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    seed=st.integers(0, 2**64),
    position=st.integers(0, 10**6),
    top_k=st.sampled_from([None, 1, 2, 5, 39, 100]),
    top_p=st.sampled_from([1.0, 1e-9, 0.31, 0.77, 0.999]),
)
def test_a_draw_is_that_of_the_plain_reference(logits, temperature, seed, position, top_k, top_p):
    """D6: Temperature, then top-k, then top-p, then the inverse CDF; equal logits are kept or left out by rule."""
    expected = reference(logits, temperature, seed, position, top_k, top_p)
    for kind in (np.float32, np.float64):
        given_ = np.array(logits, kind)
        assume(given_.tolist() == logits)
        got = draw(given_, temperature, seed=seed, position=position, top_k=top_k, top_p=top_p)
        assert got == expected


@given(
    seed=st.integers(0, 2**64),
    scale=st.sampled_from([0.0, 0.1, 3.0]),
    top_p=st.sampled_from([1.0, 0.5, 0.95]),
)
def test_a_draw_of_a_large_vocabulary_is_that_of_the_reference(seed, scale, top_p):
    """The weights are added up in blocks, and the nucleus is found in buckets: more tokens than a block has."""
    logits = (np.random.default_rng(seed).normal(size=5000) * scale).astype(np.float32)
    expected = reference(logits.tolist(), 0.8, seed, 3, None, top_p)
    assert draw(logits, 0.8, seed=seed, position=3, top_p=top_p) == expected


@given(
    st.lists(st.integers(1, 2**20), min_size=1, max_size=50),
    st.integers(1, 99).map(lambda percent: Fraction(percent, 100)),
)
def test_the_nucleus_is_the_fewest_largest_whose_sum_reaches_the_share(numbers, share):
    """Of equal ones those with the lowest index; here all sums are exact."""
    most = max(numbers)
    assume(most & (most - 1) == 0 or most == numbers[0])
    numbers = [*numbers, 2**20]
    kept = nucleus(np.array(numbers) / 2**20, float(share)).tolist()
    goal = float(share) * sum(numbers) / 2**20
    order = sorted(range(len(numbers)), key=lambda at: (-numbers[at], at))
    assert kept == sorted(order[: len(kept)])
    sums = [sum(numbers[at] for at in order[:count]) / 2**20 for count in (len(kept) - 1, len(kept))]
    assert sums[0] < goal <= sums[1]


@pytest.mark.parametrize("share", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize("size", [6, 3000])
def test_a_token_without_a_weight_is_never_drawn(monkeypatch, share, size):
    """Neither the first ones at a share of 0, nor the last ones at the largest share."""
    monkeypatch.setattr("runners.models.causal.sampling.uniform", lambda seed, position: share)
    logits = np.full(size, -np.inf)
    logits[size // 3 : size // 2] = 0.1
    expected = size // 2 - 1 if share else size // 3
    assert draw(logits, 1.0, seed=1, position=1) == expected


def test_a_goal_that_rounding_has_raised_to_the_total_is_the_last_token_with_a_weight():
    """The sums of blocks are rounded in another order than the sums within one."""
    assert _first(np.array([1.0, 2.0, 3.0, 3.0]), 3.0) == 2


@given(
    logits=logits,
    prompt=st.frozensets(st.integers(0, 9)),
    generated=st.lists(st.integers(0, 9)),
    repetition=st.sampled_from([1.0, 0.5, 1.7]),
    frequency=st.sampled_from([0.0, -0.3, 2.0]),
    presence=st.sampled_from([0.0, -1.0, 0.4]),
)
def test_penalties_are_those_of_the_plain_reference(
    logits, prompt, generated, repetition, frequency, presence
):
    """Repetition divides or multiplies for prompt and answer, as Hugging Face has it; the others subtract, as OpenAI has it."""
    logits = [*logits, *[1.5, -1.5] * 5]
    count = Counter(generated)
    expected = []
    for token, value in enumerate(logits):
        factor = repetition if token in prompt or token in count else 1.0
        there = value * factor if value < 0 else value / factor
        expected.append(there - frequency * count[token] - presence * (token in count))
    before = np.array(logits, np.float32)
    got = penalised(before, prompt, count, repetition=repetition, frequency=frequency, presence=presence)
    assert got.tolist() == pytest.approx(expected)
    assert before.tolist() == logits


@given(logits=logits, data=st.data(), top=st.integers(0, 20))
def test_logprobs_are_those_of_the_softmax(logits, data, top):
    """The top ones come in order, of equal ones the lowest id first."""
    token = data.draw(st.integers(0, len(logits) - 1))
    own, found = logprobs(np.array(logits, np.float32), token, top)
    total = log(sum(map(exp, logits)))
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:top]
    assert own == pytest.approx(logits[token] - total)
    assert [token for token, _ in found] == order
    assert [value for _, value in found] == pytest.approx([logits[token] - total for token in order])
