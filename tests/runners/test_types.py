"""The values that go into a runner and come out of it."""

import pickle
from collections.abc import AsyncIterator, Iterator
from typing import get_overloads, get_type_hints

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from runners import errors
from runners.errors import InferenceError
from runners.hosts.packing import pack, unpack
from runners.types import (
    ExecuteBatch,
    FinishReason,
    Price,
    RateLimits,
    RunnerInfo,
    Sampling,
    TokenChunk,
    TokenUsage,
    WeightsFile,
    WeightsRepository,
    token_chunk,
    with_release,
)

counts = st.integers(0, 2**40)
usages = st.builds(
    TokenUsage, **dict.fromkeys(["input", "output", "replayed", "reasoning", "cached"], counts)
)


@given(usages, usages)
def test_usage_adds_up(one, other):
    """Every count by itself, and nothing plus something is that."""
    both = one + other
    for field in attrs.fields(TokenUsage):
        assert getattr(both, field.name) == getattr(one, field.name) + getattr(other, field.name)
    assert one + TokenUsage() == one


def test_a_sum_of_usage_has_an_end():
    """A runner may report as many tokens as a request may have, for each of several requests of one client."""
    most = TokenUsage(input=2**53, output=1, cost=0.5)
    assert most + most == TokenUsage(input=2**53, output=2, cost=1.0)


@given(
    st.fixed_dictionaries(
        {"request_id": st.text(), "index": counts},
        optional={
            "token_ids": st.lists(counts).map(tuple),
            "text": st.text(),
            "finish_reason": st.none() | st.sampled_from(FinishReason),
            "usage": st.none() | usages,
            "incarnation": counts,
        },
    )
)
def test_a_chunk_made_fast_is_a_chunk(fields):
    """In nothing can it be told from one made by its class."""
    fast, slow = token_chunk(**fields), TokenChunk(**fields)
    assert (fast, hash(fast), repr(fast)) == (slow, hash(slow), repr(slow))
    assert type(fast) is TokenChunk
    assert pickle.loads(pickle.dumps(fast)) == fast
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        fast.index = 5


@pytest.mark.parametrize(
    ("payload", "tokens"),
    [
        ([5] * 100, 100),
        ([{"role": "user", "content": "x" * 400}], 107),
        ("x" * 400, 100),
        (b"x" * 400, 100),
        ([], 2),
        (None, 1),
    ],
)
def test_the_tokens_of_a_payload_are_estimated(payload, tokens):
    """D14: Otherwise a chat would count as one token, whatever the limit of its server is."""
    assert ExecuteBatch("r", payload=payload).estimated_input == tokens


@given(st.text(), st.integers(1, 10**6), st.floats(0, 100), st.floats(0, 100))
def test_a_cost_is_estimated_from_what_a_request_may_take(prompt, most, dear, dearer):
    """As much answer as it allows; a runner that names no price costs nothing."""
    batch = ExecuteBatch("r", prompt, sampling=Sampling(max_tokens=most))
    assert batch.estimated_tokens == batch.estimated_input + most
    assert batch.estimated_input == max(1, len(prompt) // 4)
    info = RunnerInfo(price=Price(input=dear, output=dearer))
    assert info.estimated_cost(batch) == pytest.approx((batch.estimated_input * dear + most * dearer) / 1e6)
    assert RunnerInfo().estimated_cost(batch) == 0


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), -0.1, 10**400])
def test_a_temperature_must_be_finite_and_not_below_0(wrong):
    """An infinite one would draw from nothing."""
    with pytest.raises(
        ValueError, match=r"^temperature must be a finite number >= 0( and <= 1\.79769e\+308)?, got "
    ):
        Sampling(temperature=wrong)


@pytest.mark.parametrize("wrong", [True, "0.5", b"1", None])
def test_a_temperature_must_be_a_number(wrong):
    """What can only be read as one is none."""
    with pytest.raises(TypeError, match=r"^temperature must be a finite number >= 0, got "):
        Sampling(temperature=wrong)


@given(st.none() | st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_deadline_is_told_on_the_clock_of_who_is_told(deadline, ahead):
    """The moment stays; without one the request stays as it is. A long payload is not copied for it."""
    batch = ExecuteBatch("r", "", payload=[1], deadline=deadline)
    told = batch.on_clock(ahead)
    assert told.deadline == (None if deadline is None else deadline + ahead)
    assert attrs.evolve(told, deadline=deadline) == batch
    assert told.payload is batch.payload


@pytest.mark.parametrize(
    "source", [None, WeightsFile("w", sha256="0" * 64), WeightsRepository("a/b", revision="c")]
)
def test_a_weight_source_travels(source):
    """D2: it may stand in a runner spec."""
    assert unpack(pack(Holder(source))) == Holder(source)


@attrs.frozen
class Holder:
    weights: object


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: WeightsFile(3),
        lambda: WeightsFile("w", sha256="0x"),
        lambda: WeightsRepository(None),
        lambda: RateLimits(requests=0),
        lambda: RateLimits(tokens=1.5),
        lambda: Price(input=-1),
        lambda: Price(output=float("inf")),
        lambda: TokenUsage(input=2**53 + 1),
        lambda: RunnerInfo(transport="pigeon"),
        lambda: RunnerInfo(limits=3),
        lambda: ExecuteBatch("r", "", deadline="soon"),
        lambda: ExecuteBatch("r", "", deadline=True),
        lambda: ExecuteBatch("r", "", deadline=float("nan")),
        lambda: ExecuteBatch("r", "", deadline=10**400),
        lambda: Sampling(max_tokens=True),
        lambda: Sampling(max_tokens=0),
        lambda: Sampling(seed=False),
        lambda: Sampling(stop="###"),
        lambda: Sampling(stop=("#", 1)),
        lambda: TokenUsage(output=1.5),
        lambda: TokenUsage(input=-1),
    ],
)
def test_nonsense_is_refused(wrong):
    """A constructor refuses what cannot be meant."""
    with pytest.raises((TypeError, ValueError)):
        wrong()


FAMILY = sorted(
    (cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, InferenceError)),
    key=lambda cls: cls.__name__,
)


@pytest.mark.parametrize("cls", FAMILY, ids=lambda cls: cls.__name__)
def test_every_error_is_of_the_family_and_explains_itself(cls):
    """One base class catches them all; each says what it is, and whether to try again."""
    assert cls.__doc__
    assert isinstance(cls.is_retryable, bool)
    assert cls.code is None
    assert cls.tag is None or cls.tag.partition(".")[0] in {"device", "request", "net"}


def test_what_is_worth_another_try():
    """The same request may succeed: the server, the network or the device was at fault, not what was asked."""
    asked_wrongly = {"BadRequest", "ContextLengthExceeded", "ContentFiltered", "Unauthorized", "Forbidden"}
    for cls in FAMILY:
        if cls.tag is not None and not issubclass(cls, errors.Unrecoverable):
            assert cls.is_retryable is (cls.__name__ not in asked_wrongly), cls


def generator(log, chunks=3):
    try:
        yield from range(chunks)
    finally:
        log.append("closed")


def test_a_stream_with_a_release_is_of_the_kind_that_it_was():
    """A type checker accepts `execute` of a sync runner that promises an iterator, and of an async one likewise."""
    kinds = [get_type_hints(overloaded) for overloaded in get_overloads(with_release)]
    assert [hints["chunks"] for hints in kinds] == [Iterator[TokenChunk], AsyncIterator[TokenChunk]]
    assert all(hints["return"] == hints["chunks"] for hints in kinds)


@pytest.mark.parametrize("taken", [0, 1, 3, 9])
def test_what_a_stream_holds_is_released_once_however_it_ends(taken):
    """D5: closed before it has begun, in the middle, or at its end; a generator's own `finally` would miss the first."""
    log = []
    stream = with_release(generator(log), lambda: log.append("released"))
    for _ in range(taken):
        next(stream, None)
    stream.close()
    stream.close()
    assert log == ([] if taken == 0 else ["closed"]) + ["released"]


def test_what_a_stream_holds_is_released_when_it_or_its_end_raises():
    """D5: whatever is raised is raised, and the place is free."""
    log = []
    stream = with_release(map(int, ["1", "x"]), lambda: log.append("released"))
    assert next(stream) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        next(stream)
    assert log == ["released"]

    class Clings:
        def __next__(self):
            return 1

        __iter__ = None

        def close(self):
            raise ArithmeticError

    stream = with_release(Clings(), lambda: log.append("again"))
    with pytest.raises(ArithmeticError):
        stream.close()
    assert log == ["released", "again"]


@pytest.mark.parametrize("taken", [0, 1, 3, 9])
def test_so_it_is_of_an_async_stream(taken):
    """D5: likewise."""
    log = []

    async def chunks():
        for index in generator(log):
            yield index

    async def main():
        stream = with_release(chunks(), lambda: log.append("released"))
        for _ in range(taken):
            await anext(stream, None)
        await stream.aclose()
        await stream.aclose()

    trio.run(main)
    assert log.count("released") == 1
