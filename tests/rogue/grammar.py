"""What a rogue context sends: acts of a script, drawn by Hypothesis.

A script mixes what a context should say with every frame that the protocol knows, at the wrong time, of the wrong stream,
with wrong fields, twice, cut, too long, or without end; and with bytes that are no frame at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from attrs import frozen
from hypothesis import strategies as st

from runners.hosts.process import wire
from runners.types import FinishReason, TokenUsage


@frozen
class Honest:
    """As a context should: `step` is a chunk for every open stream, `finish` their last, `answer` what it was asked."""

    what: Literal["step", "finish", "answer"]


@frozen
class Chunk:
    """A chunk in a step of its own: of the request of that name, or of the stream that is `stream`th from the newest;
    `ahead` of the one that is next."""

    stream: int | str
    ahead: int
    ids: int
    text: int
    last: bool


@frozen
class Bytes:
    """These, as they are."""

    data: bytes


@frozen
class Cut:
    """The beginning of a long frame."""

    length: int
    sent: int


@frozen
class Many:
    """An act so many times, 0 is without end."""

    act: Honest | Chunk | Bytes
    times: int


@frozen
class Waits:
    """Says nothing for so many seconds."""

    seconds: float


Act = Honest | Chunk | Bytes | Cut | Many | Waits


@frozen
class Script:
    """All that a context does.

    Args:
        loads: it begins by saying that it is loaded, as it should.
        at_once: it does not wait for a request before it acts.
        acts: what it says then.
        ends: how it goes on: it says nothing more, closes its connection, dies, or is well from then on.
        incarnations: so many contexts, one after the other, behave like this; those behind them are well.
        rebuilds: an operator orders so many rebuilds meanwhile.
        leaves: one caller leaves after so many chunks.
    """

    loads: bool
    at_once: bool
    acts: tuple[Act, ...]
    ends: Literal["silent", "closed", "dead", "well"]
    incarnations: int
    rebuilds: int
    leaves: int


def packed(frame: Any) -> bytes:
    """A frame's bytes, whatever the limits are."""
    body = msgspec.msgpack.encode(frame)
    return len(body).to_bytes(4, "big") + body


def _frames(*frames: Any) -> Iterator[bytes]:
    return map(packed, frames)


numbers = st.integers(-2, 9) | st.sampled_from([2**31, 2**63 - 1, -(2**63), 2**64 - 1])
names = st.sampled_from(
    [
        "OutOfMemory",
        "RunnerError",
        "ContextPoisoned",
        "Unrecoverable",
        "LoadFailed",
        "BadRequest",
        "os.system",
        "",
    ]
)
texts = st.sampled_from(["", "x", "\n" * 20, "é" * 300, "x" * 200_000])
errors = st.builds(
    wire.Error, names, texts, st.none() | numbers, texts, st.none() | st.floats(allow_nan=False)
)
usages = st.none() | st.builds(TokenUsage, input=st.integers(0, 9), output=st.integers(0, 9))
chunks = st.builds(
    wire.Chunk,
    numbers,
    numbers,
    st.lists(numbers, max_size=3).map(tuple) | st.just((1,) * 70_000),
    texts,
    st.none() | st.sampled_from(FinishReason),
    usages,
)
failed = st.builds(wire.Failed, numbers, errors)
steps = st.builds(wire.Step, st.lists(chunks, max_size=3), st.lists(failed, max_size=2)) | st.sampled_from(
    [
        wire.Step([], []),
        wire.Step([wire.Chunk(0, 0, (1,), "", None, None)] * 5000, []),
        wire.Step([wire.Chunk(0, 0, (1,), "x" * 200_000, None, None)] * 3, []),
        wire.Step([], [wire.Failed(0, wire.Error("RunnerError", "x" * 2**18, None, ""))] * 3),
    ]
)
known = (
    steps
    | st.builds(wire.Taken, numbers.filter(lambda n: n >= 0))
    | st.builds(wire.Dropped, numbers.filter(lambda n: n >= 0))
    | st.just(wire.Rebuilt())
    | st.just(wire.Closed())
    | st.builds(wire.Broken, errors, st.lists(st.sampled_from(["a", "b", "?"]), max_size=2).map(tuple))
    | st.builds(
        wire.Ready,
        st.integers(1, 3),
        st.booleans(),
        st.booleans(),
        texts,
        st.sampled_from(["local", "network"]),
        st.none() | st.just((1, None)),
        st.just((0.0, 1.0)),
    )
    | st.sampled_from([wire.Start(1, None), wire.Drop(0), wire.Rebuild("manual"), wire.Shutdown()])
    | st.sampled_from([wire.Preloaded(), wire.Exited(1, True, 9), wire.Forked(1, 1)])
)
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)
heads = st.sampled_from(["step", "dropped", "rebuilt", "closed", "broken", "ready", "hello", "?"])
wrong = st.builds(lambda head, rest: packed([head, *rest]), heads, st.lists(plain, max_size=4)) | plain.map(
    packed
)
mangled = st.builds(
    lambda data, at, byte: data[: at % len(data)] + bytes([byte]) + data[at % len(data) + 1 :],
    known.map(packed),
    st.integers(0, 200),
    st.integers(0, 255),
)
said = st.builds(
    Bytes,
    known.map(packed)
    | wrong
    | mangled
    | st.binary(max_size=40)
    | known.map(packed).map(lambda data: data[:-1]),
)
honest = st.builds(Honest, st.sampled_from(["step", "finish", "answer"]))
told = st.builds(
    Chunk,
    st.integers(-1, 4) | st.sampled_from(["a", "leaves", "late"]),
    st.sampled_from([0, 0, 0, -1, 1]),
    st.sampled_from([1, 1, 0, 2, 99]),
    st.sampled_from([0, 1, 300_000]),
    st.booleans(),
)
cuts = st.builds(
    Cut, st.sampled_from([10, 2**20, wire.MAX_FRAME, wire.MAX_FRAME + 1, 2**32 - 1]), st.integers(0, 2**18)
)
waits = st.builds(Waits, st.sampled_from([0.0, 0.1, 1.9, 2.5, 20.0]))
acts = (
    honest | told | said | cuts | waits | st.builds(Many, honest | told | said, st.sampled_from([2, 100, 0]))
)
scripts = st.builds(
    Script,
    loads=st.sampled_from([True, True, True, False]),
    at_once=st.sampled_from([False, False, False, True]),
    acts=st.lists(acts, max_size=8).map(tuple),
    ends=st.sampled_from(["silent", "closed", "dead", "well"]),
    incarnations=st.integers(1, 2),
    rebuilds=st.integers(0, 2),
    leaves=st.integers(0, 3),
)
