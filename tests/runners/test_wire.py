"""What both ends of a process say to each other."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners import errors
from runners.hosts.process import wire
from runners.hosts.turns import ours
from runners.types import (
    ExecuteBatch,
    FinishReason,
    Price,
    RateLimits,
    RunnerInfo,
    Sampling,
    TokenUsage,
)

text = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**63 - 1)
ids = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(tuple)
prices = st.floats(-1, 1e6)
wire_errors = st.builds(wire.Error, text, text, st.none() | counts, text, st.none() | st.floats(0, 1e9))
usages = st.builds(
    TokenUsage,
    **dict.fromkeys(["input", "output", "replayed", "reasoning", "cached"], st.integers(0, 2**53)),
)
chunks = st.builds(
    wire.Chunk,
    counts,
    counts,
    ids,
    text,
    st.none() | st.sampled_from(FinishReason),
    st.none() | usages,
)
failures = st.builds(wire.Failed, counts, wire_errors)
from_child = st.one_of(
    st.builds(
        wire.Ready,
        st.integers(1, 1000),
        st.booleans(),
        st.booleans(),
        text,
        st.sampled_from(["local", "network"]),
        st.none() | st.tuples(st.none() | counts, st.none() | counts),
        st.tuples(prices, prices),
    ),
    st.builds(wire.Step, st.lists(chunks, max_size=4), st.lists(failures, max_size=4)),
    st.just(wire.Rebuilt()),
    st.builds(wire.Dropped, counts),
    st.builds(wire.Broken, wire_errors, st.lists(text, max_size=3).map(tuple)),
)


def drain(parser):
    frames = []
    while (frame := parser.next()) is not None:
        frames.append(frame)
    return frames


def pieces(data, cuts):
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    starts = [0, *ends]
    return [data[a:b] for a, b in zip(starts, ends, strict=False)]


@given(st.lists(from_child, max_size=5), st.lists(st.integers(0, 500), max_size=10))
def test_frames_arrive_as_sent_however_the_bytes_are_cut(frames, cuts):
    """A parser gives the frames that were encoded, whatever the pieces."""
    parser, got = wire.from_child(), []
    for piece in pieces(b"".join(map(wire.encode, frames)), cuts):
        parser.feed(piece)
        got += drain(parser)
    assert got == frames


def feed_anything(data, cuts):
    parser = wire.from_child()
    try:
        for piece in pieces(data, cuts):
            parser.feed(piece)
            drain(parser)
    except errors.ProtocolError:
        pass


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes_give_frames_or_a_protocol_error(data, cuts):
    """D10: whatever a process sends is frames or a ProtocolError, nothing else."""
    feed_anything(data, cuts)


@given(st.binary(max_size=300))
def test_any_body_gives_a_frame_or_a_protocol_error(body):
    """D10: likewise behind an honest length."""
    feed_anything(len(body).to_bytes(4, "big") + body, [])


@given(from_child, st.data())
def test_a_damaged_frame_gives_frames_or_a_protocol_error(frame, data):
    """D10: likewise for frames with a byte changed."""
    raw = bytearray(wire.encode(frame))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    feed_anything(bytes(raw), [])


@given(st.binary(max_size=100))
def test_any_datagram_of_a_fork_server_is_a_frame_or_a_protocol_error(data):
    """D10: likewise for the process that makes the processes."""
    try:
        frame = wire.from_server(data)
    except errors.ProtocolError:
        return
    assert wire.from_server(wire.datagram(frame)) == frame


@pytest.mark.parametrize(
    "frame",
    [wire.Preloaded(), wire.NotPreloaded("why"), wire.Forked(1, 2), wire.Exited(1, killed=True, status=9)],
)
def test_what_a_fork_server_says_arrives(frame):
    """Each of its words."""
    assert wire.from_server(wire.datagram(frame)) == frame


NASTY = {
    "empty": b"",
    "nested": b"\x91" * 1_000_000,
    "nested in a frame": b"\x92\xa4step" + b"\x91" * 1_000_000,
    "a list of four billion": b"\x92\xa4step\xdd\xff\xff\xff\xff",
    "ids of four billion": b"\x92\xa4step\x91\x97\xa5chunk\x00\x00\xdd\xff\xff\xff\xff",
    "text of four gigabytes": b"\x95\xa5ready\x01\xc2\xc2\xdb\xff\xff\xff\xff",
    "not UTF-8": b"\x95\xa5ready\x01\xc2\xc2\xa2\xff\xfe",
    "no streams": msgspec.msgpack.encode(["ready", 0, False, False, "x", "local", None, [0.0, 0.0]]),
    "a stream below zero": msgspec.msgpack.encode(["step", [["chunk", -1, 0, [], "", None, None]]]),
    "an unknown finish": msgspec.msgpack.encode(["step", [["chunk", 0, 0, [], "", "weary", None]]]),
    "a frame too long by one item": msgspec.msgpack.encode(["rebuilt", 1]),
    "a frame of the other end": msgspec.msgpack.encode(["shutdown"]),
    "an unknown frame": msgspec.msgpack.encode(["exec", "import os"]),
    "a map": msgspec.msgpack.encode({"type": "ready"}),
    "an extension": msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"x")),
    "a tail": msgspec.msgpack.encode(["rebuilt"]) + b"\x00",
}


@pytest.mark.parametrize("body", NASTY.values(), ids=NASTY)
def test_what_is_no_frame_is_a_protocol_error(body):
    """D10: the parser refuses what no struct describes, without allocating what it claims."""
    parser = wire.from_child()
    parser.feed(len(body).to_bytes(4, "big") + body)
    with pytest.raises(errors.ProtocolError, match="not a frame"):
        parser.next()


def test_a_frame_that_is_too_long_is_refused_by_its_length():
    """D10: memory is bounded: the length alone refuses a frame, before its bytes are collected."""
    parser = wire.from_child()
    parser.feed((wire.MAX_FRAME + 1).to_bytes(4, "big"))
    with pytest.raises(errors.ProtocolError, match="at most 16777216 bytes, got one of 16777217"):
        parser.next()


def test_a_frame_that_is_too_long_is_not_sent():
    """Both ends keep the bound."""
    with pytest.raises(ValueError, match="at most 16777216 bytes"):
        wire.encode(wire.Rebuild("x" * wire.MAX_FRAME))


@pytest.mark.parametrize(("items", "allowed"), [(1, True), (2, False)])
def test_a_long_step_is_of_one_stream_alone(items, allowed):
    """D10: reading a longer one of several would hold up the loop."""
    chunk = wire.Chunk(0, 0, (1,), "x" * wire.LONG, None, None)
    body = msgspec.msgpack.encode(wire.Step([chunk] * items, []))
    parser = wire.from_child()
    parser.feed(len(body).to_bytes(4, "big") + body)
    if allowed:
        assert parser.next().chunks == [chunk]
    else:
        with pytest.raises(errors.ProtocolError, match="not a frame"):
            parser.next()


SHORT = wire.Chunk(0, 0, (1,), "", None, None)


@pytest.mark.parametrize(
    ("step", "allowed"),
    [
        (wire.Step([SHORT] * wire.MAX_ITEMS, []), True),
        (wire.Step([SHORT] * (wire.MAX_ITEMS + 1), []), False),
        (wire.Step([wire.Chunk(0, 0, (1,) * wire.MAX_TOKENS, "", None, None)], []), True),
        (wire.Step([wire.Chunk(0, 0, (1,) * (wire.MAX_TOKENS + 1), "", None, None)], []), False),
        (wire.Step([wire.Chunk(0, 0, (), "", None, None, wire.Packed(b"x" * wire.MAX_REST, ()))], []), True),
        (
            wire.Step(
                [wire.Chunk(0, 0, (), "", None, None, wire.Packed(b"x" * (wire.MAX_REST + 1), ()))], []
            ),
            False,
        ),
    ],
    ids=["streams", "a stream more", "tokens", "a token more", "data", "a byte of data more"],
)
def test_a_step_has_at_most_so_much_that_is_read_piece_by_piece(step, allowed):
    """D10: reading more would hold up the parent's loop."""
    body = msgspec.msgpack.encode(step)
    parser = wire.from_child()
    parser.feed(len(body).to_bytes(4, "big") + body)
    if allowed:
        assert parser.next() == step
    else:
        with pytest.raises(errors.ProtocolError, match="not a frame"):
            parser.next()


@given(
    st.text(),
    st.text(),
    st.integers(1, 2**31),
    st.none() | counts,
    st.lists(text).map(tuple),
    ids,
    st.none() | st.floats(-1e9, 1e9),
)
def test_a_request_travels_whole(request_id, prompt, most, seed, stop, accepted, deadline):
    """D2: the runner gets the request that the caller made, or the sender is told."""
    sampling = Sampling(max_tokens=most, temperature=0.5, seed=seed, stop=stop)
    batch = ExecuteBatch(request_id, prompt, sampling=sampling, model="m", deadline=deadline)
    try:
        data = wire.encode(wire.begin(7, batch, accepted))
    except UnicodeEncodeError:
        return
    parser = wire.from_parent()
    parser.feed(data)
    frame = parser.next()
    assert frame.batch() == batch
    assert frame.accepted == accepted


@pytest.mark.parametrize("limits", [None, RateLimits(), RateLimits(requests=60, tokens=90_000)])
def test_what_a_runner_declares_travels_whole(limits):
    """D2: the parent sees what the loaded runner said of itself."""
    info = RunnerInfo(
        streams=3,
        reproducible=True,
        can_continue=True,
        runtime="x",
        transport="network",
        limits=limits,
        price=Price(input=1.5, output=6),
    )
    assert wire.ready(info).info() == info


@pytest.mark.parametrize(
    ("limits", "price"), [((0, None), (0, 0)), (None, (-1, 0)), (None, (0, float("nan")))]
)
def test_what_no_runner_can_declare_is_a_protocol_error(limits, price):
    """D10: whatever a process sends."""
    with pytest.raises(errors.ProtocolError, match="not what a runner can declare"):
        wire.Ready(1, False, False, "x", "local", limits, price).info()


@pytest.mark.parametrize(
    "cls",
    [
        errors.BadRequest,
        errors.ContentFiltered,
        errors.ContextLengthExceeded,
        errors.Timeout,
        errors.NetworkError,
        errors.ServerError,
        errors.RateLimited,
        errors.Unauthorized,
        errors.Forbidden,
        errors.RunnerError,
        errors.OutOfMemory,
    ],
)
def test_a_requests_error_keeps_its_class_and_code(cls):
    """D5: the caller catches in the parent what the runner raised in its process."""
    error = cls("why")
    error.code = 429
    got = wire.request_error(wire.error_data(error))
    assert (type(got), str(got), got.code) == (cls, "why", 429)


@pytest.mark.parametrize(
    ("code", "got"),
    [(-(2**63), -(2**63)), (2**64 - 1, 2**64 - 1), (2**64, None), (True, None), ("700", None)],
)
def test_a_code_that_no_device_has_is_none(code, got):
    """D10: an error is told whatever stands in it."""
    error = errors.DeviceError("why")
    error.code = code
    parser = wire.from_child()
    parser.feed(wire.encode(wire.Broken(wire.error_data(error), ())))
    assert parser.next().error.code == got


@pytest.mark.parametrize(
    ("told", "got"),
    [(None, None), (3, 3.0), (0.5, 0.5), (2**70, 2.0**70), (10**400, None), (True, None), ("soon", None)],
)
def test_when_to_come_again_travels(told, got):
    """D5: in seconds, if it was said; nonsense is nothing."""
    data = wire.error_data(errors.RateLimited("slow down", retry_after=told))
    parser = wire.from_child()
    parser.feed(wire.encode(wire.Step([], [wire.Failed(0, data)])))
    (failed,) = parser.next().failed
    assert wire.request_error(failed.error).retry_after == got


@given(wire_errors)
def test_an_unknown_error_is_a_runner_error(data):
    """D10: an error names a class from a closed table; any other name is a RunnerError with its text."""
    error = wire.request_error(data)
    assert type(error).__module__ == "runners.errors"
    assert str(error) == data.text


@pytest.mark.parametrize("name", ["Exception", "os.system", "ContextLost", "RunnerError", "WorkerDown", ""])
def test_an_unknown_failure_of_a_context_is_a_poison(name):
    """D10: for a context, what the table does not have is ContextPoisoned."""
    error = wire.context_error(wire.Broken(wire.Error(name, "why", 700, "trace"), ("r",)))
    assert type(error) is errors.ContextPoisoned
    assert (str(error), error.code, error.request_ids) == ("why", 700, ("r",))
    assert error.__notes__ == ["in the context process:\ntrace"]


class Subclass(errors.WeightsCorrupt):
    pass


class OutOfMemory(Exception):
    pass


class Tagged(Exception):
    def __init__(self, tag):
        self.tag = tag


class Own(errors.DeviceError):
    tag = "device.oom.mine"


class Mute(Exception):
    def __str__(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "name", "concerns"),
    [
        (errors.BadRequest("x"), "BadRequest", False),
        (errors.ContextDied("x"), "ContextPoisoned", True),
        (Subclass("x"), "WeightsCorrupt", True),
        (errors.OutOfMemory("x"), "OutOfMemory", True),
        (Tagged("device.poisoned.ecc"), "ContextPoisoned", True),
        (Tagged("device.oom"), "OutOfMemory", True),
        (Tagged("device.who.knows"), "DeviceError", True),
        (errors.DeviceError("x"), "DeviceError", True),
        (Own("x"), "OutOfMemory", True),
        (Tagged("devices.who.knows"), "RunnerError", False),
        (Tagged(3), "RunnerError", False),
        (OutOfMemory("a namesake"), "RunnerError", False),
        (ValueError("\ud800"), "RunnerError", False),
        (Mute(), "RunnerError", False),
    ],
)
def test_an_exception_becomes_the_nearest_class_of_the_table(error, name, concerns):
    """D3: a subclass travels as its base, a foreign exception by its tag, anything else as RunnerError."""
    data = wire.error_data(error)
    assert data.name == name
    assert isinstance(ours(error), errors.DeviceError) is concerns
    wire.encode(wire.Failed(0, data))
