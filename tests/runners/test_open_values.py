"""Requests and chunks that carry plain data, through every host (D5, D6, D11)."""

import enum
import struct
import sys

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from openers import ODD, Echo, Liar, Texts, Unary, nested
from sessions import INLINE, PROCESS, THREAD

from runners import ExecuteBatch, device_worker, plain
from runners.errors import BadRequest, ContextLost, ProtocolError, RunnerError
from runners.hosts.process import wire
from runners.hosts.process.host import ProcessHost
from runners.plain import plain_data
from runners.types import Sampling, TokenChunk
from runners.worker.record import Record
from supervise import Supervisor, open_tree

HOSTS = pytest.mark.parametrize("host", [INLINE, THREAD, PROCESS], ids=["inline", "thread", "process"])
MANY = Sampling(max_tokens=1000)
ARRAY = {"shape": [2, 3], "dtype": "float64", "data": struct.pack("6d", *range(6))}
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
    | st.binary(max_size=600),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


async def asked(host, runner, batch):
    worker = device_worker("worker", runner, host=host, backoff=None)
    async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
        with trio.fail_after(60):
            return await tree["app/worker"].call(batch)


async def streamed(host, runner, batch):
    worker = device_worker("worker", runner, host=host, backoff=None)
    async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
        with trio.fail_after(60):
            async with tree["app/worker"].stream(batch) as stream:
                return [chunk async for chunk in stream]


@HOSTS
@pytest.mark.trio
async def test_plain_data_comes_back_as_it_went(host):
    """D11: numbers, texts, bytes, nested lists and dicts, and arrays as bytes with shape and type; tuples become lists."""
    payload = [True, -1, 2**64 - 1, 0.5, "ä", b"\0\xff", ARRAY, {"a": [{"b": ()}, None]}]
    done = await asked(host, Echo(each=True), ExecuteBatch("r", payload=payload, options={"top_p": 0.9}))
    assert done.data == (*payload[:-1], {"a": [{"b": []}, None]}, {"options": {"top_p": 0.9}})
    assert (done.text, done.token_ids) == ("", ())


@HOSTS
@pytest.mark.trio
async def test_ten_megabytes_go_in_and_out(host):
    """D11: as bytes and as text, by `call` and by `stream`, beside other data."""
    for long in (b"x" * 10_000_000, "y" * 10_000_000):
        payload = [{"long": long}, 1]
        done = await asked(host, Echo(each=True), ExecuteBatch("r", payload=payload))
        assert done.data == tuple(payload)
        chunks = await streamed(host, Echo(each=True), ExecuteBatch("r", payload=payload))
        assert [chunk.data for chunk in chunks] == [*payload, None]


@HOSTS
@pytest.mark.trio
async def test_a_function_survives_the_loss_of_its_context(host):
    """D6, D11: a request that has not begun is served by the next context."""
    kills = isinstance(host, ProcessHost)
    done = await asked(host, Unary(kills=kills), ExecuteBatch("r", payload={"numbers": [1, 2, 3.5]}))
    assert done.data == ({"sum": 6.5},)


@pytest.mark.trio
async def test_a_begun_stream_without_ids_is_lost_with_its_context():
    """D6: nothing says how it could be continued."""
    runner = Echo(each=True, kills=1)
    with pytest.raises(ContextLost, match="after 2 chunks"):
        await asked(PROCESS, runner, ExecuteBatch("r", payload=["a", "b", "c"]))


@HOSTS
@pytest.mark.trio
async def test_a_stream_may_be_of_text_alone(host):
    """D6, D11: its positions are its chunks."""
    done = await asked(host, Texts(), ExecuteBatch("r"))
    assert (done.text, done.token_ids, done.data) == ("abc", (), ())


@HOSTS
@pytest.mark.trio
async def test_a_stream_has_ids_in_all_its_chunks_or_in_none(host):
    """D5, D6: else it cannot be counted; it fails alone."""
    with pytest.raises(RunnerError, match="must all have token ids, or none: got token ids behind none at 1"):
        await asked(host, Texts(mixed=True), ExecuteBatch("r"))


ODDITIES = [(host, odd) for host in (INLINE, THREAD) for odd in ("object", "set", "int", "key", "deep")]
ODDITIES += [(PROCESS, odd) for odd in ODD if odd != "lies"]


@pytest.mark.parametrize(("host", "odd"), ODDITIES)
@pytest.mark.trio
async def test_a_chunk_whose_data_cannot_travel_fails_its_request_alone(host, odd):
    """D5, D11: in one line that says what is wrong, and the context goes on. Only to a process is long data too long."""
    worker = device_worker("worker", Echo(data=odd), host=host, backoff=None)
    async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
        with pytest.raises(RunnerError, match=r"a chunk's data|surrogates"):
            await tree["app/worker"].call(ExecuteBatch("r", payload=1))
        assert tree["app/worker/context"].status().incarnation == 1


@HOSTS
@pytest.mark.trio
async def test_the_methods_of_a_runners_dict_are_not_called(host):
    """D5: a class of its own may do anything."""
    done = await asked(host, Echo(data="lies"), ExecuteBatch("r", payload=1))
    assert done.data == ({"a": 1},)


class Colour(enum.IntEnum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (
            object(),
            TypeError,
            "payload must be plain data (None, bool, int, float, str, bytes, and lists and dicts of these), got <object",
        ),
        ({"a": [1, {2}]}, TypeError, "payload['a'][1] must be plain data"),
        ({"a": {1: 2}}, TypeError, "payload['a'] must have keys that are str, got 1"),
        ([2**64], ValueError, "payload[0] must be an integer of at most 64 bits, got 18446744073709551616"),
        (nested(100), ValueError, " is nested more than 64 deep"),
        (["x", "\ud800"], ValueError, r"payload[1] must be a text that UTF-8 can encode, got '\ud800'"),
        ([{"\ud800": 1}], ValueError, r"payload[0] must have keys that UTF-8 can encode, got '\ud800'"),
    ],
)
def test_a_payload_that_cannot_travel_is_refused_at_the_caller(value, kind, text):
    """D11: one line with the place of it, and what is allowed."""
    with pytest.raises(kind) as refused:
        ExecuteBatch("r", payload=value)
    assert text in str(refused.value)
    with pytest.raises(TypeError, match="options must be a dict, got"):
        ExecuteBatch("r", options=[1])


def doubled(kind, times):
    """A value that has the same one twice in it, and so on: few lists or dicts, and more items than any memory holds."""
    made = [0]
    for _ in range(times):
        made = [made, made] if kind is list else {"a": made, "b": made}
    return made


@pytest.mark.parametrize("value", [doubled(list, 60), doubled(dict, 60), [[0] * 100] * 100])
def test_what_stands_in_many_places_counts_in_each(value, monkeypatch):
    """D11: It is copied for each, and would take all time and memory."""
    monkeypatch.setattr(plain, "MAX_ITEMS", 1000)
    with pytest.raises(
        ValueError,
        match=r"^payload must have at most .* lists and dicts, with 1000 items together, got more$",
    ):
        ExecuteBatch("r", payload=value)
    assert ExecuteBatch("r", payload=[[0] * 99] * 10).payload == [[0] * 99] * 10


@pytest.mark.parametrize("small", [[], {}, [1], {"a": 1}])
def test_a_payload_has_no_more_lists_than_the_loop_can_look_into(small, monkeypatch):
    """D11: To look into a million of them would hold up the event loop for seconds."""
    monkeypatch.setattr(plain, "MAX_LISTS", 100)
    assert ExecuteBatch("r", payload=[small] * 99).payload == [small] * 99
    with pytest.raises(
        ValueError, match=r"^payload must have at most 100 lists and dicts, with .* got more$"
    ):
        ExecuteBatch("r", payload=[small] * 100)


@pytest.mark.parametrize(
    ("texts", "is_right"),
    [(["a", "b"], True), (["a", "é"], True), (["a", "\ud800"], False), (["a", 1], True)],
)
def test_each_text_of_a_list_is_looked_at(texts, is_right):
    """D11: Also behind many that are ASCII."""
    if is_right:
        assert ExecuteBatch("r", payload=texts).payload == texts
    else:
        with pytest.raises(ValueError, match=r"^payload\[1\] must be a text that UTF-8 can encode"):
            ExecuteBatch("r", payload=texts)


@pytest.mark.parametrize(
    "wrong",
    [
        {"request_id": "\ud800"},
        {"prompt": "\ud800"},
        {"model": "\ud800"},
        {"sampling": {"stop": ["x", "\ud800"]}},
    ],
)
def test_half_a_character_is_refused_at_the_caller(wrong):
    """D11: Otherwise it would depend on the host whether the request can be sent."""
    with pytest.raises(ValueError, match=r"must be (a text|texts) that UTF-8 can encode, got"):
        ExecuteBatch(**{"request_id": "r", **wrong, "sampling": Sampling(**wrong.get("sampling", {}))})


@HOSTS
@pytest.mark.trio
async def test_half_a_character_in_a_chunk_fails_its_request(host):
    """D11: This is the same under every host."""
    with pytest.raises(RunnerError, match="a chunk's text must be one that UTF-8 can encode"):
        await asked(host, Texts("a\ud800"), ExecuteBatch("r"))


@pytest.mark.parametrize("numbers", [[7], [0.5, None, True]])
def test_a_long_list_of_numbers_takes_no_step_for_each(numbers):
    """D11: Otherwise a million token ids would hold the loop of the parent."""

    calls = []
    for value in (numbers, numbers * 10_000):
        made = []
        sys.setprofile(lambda _frame, event, _arg, made=made: made.append(event))
        try:
            plain_data("it", value)
        finally:
            sys.setprofile(None)
        calls.append(len(made))
    assert calls[0] == calls[1]


def test_a_payload_is_copied():
    """D11: the caller may change its own; numbers and texts of other classes become plain ones."""
    mine = {"list": [1], "colour": Colour.RED, "lies": Liar(b=2)}
    batch = ExecuteBatch("r", payload=mine)
    mine["list"].append(2)
    assert batch.payload == {"list": [1], "colour": 1, "lies": {"b": 2}}
    assert type(batch.payload["colour"]) is int
    assert hash(batch) == hash(attrs.evolve(batch))


@given(PLAIN)
def test_any_plain_data_is_packed_and_unpacked(data):
    """D11: whatever stands apart on its way."""
    data = plain_data("it", data)
    assert wire.unpacked(wire.packed(data)) == data


@given(st.binary(max_size=50), st.lists(st.binary(max_size=9), max_size=3))
def test_any_bytes_are_plain_data_or_a_protocol_error(rest, apart):
    """D10: what a process sends is believed nothing."""
    try:
        wire.unpacked(wire.Packed(rest, tuple(apart)))
    except ProtocolError:
        pass


@pytest.mark.trio
async def test_a_request_that_is_too_long_is_refused_at_the_caller():
    """D11: a frame has at most 16 MiB."""
    with pytest.raises(BadRequest, match="a frame must have at most 16777216 bytes"):
        await asked(PROCESS, Echo(), ExecuteBatch("r", payload=b"x" * 17_000_000))


@pytest.mark.trio
async def test_more_chunks_than_positions_are_refused():
    """D5: `max_tokens` bounds a stream without ids, too."""
    batch = ExecuteBatch("r", payload=[1, 2, 3], sampling=Sampling(max_tokens=2))
    with pytest.raises(RunnerError, match="must go on with position 2, of at most 2: got 1 from 2"):
        await asked(INLINE, Echo(each=True), batch)
    assert (await asked(INLINE, Echo(each=True), attrs.evolve(batch, sampling=MANY))).data == (1, 2, 3)


@pytest.mark.parametrize("ids", [[(1,), ()], [(), (1,)]])
def test_a_stream_with_chunks_of_both_kinds_is_a_protocol_error(ids):
    """D6: A context process checks this for each runner, and the parent does not rely on it."""
    chunks = [TokenChunk(request_id="r", index=at, text="x", token_ids=ids[at]) for at in range(2)]
    wrong = Record(ExecuteBatch("r")).accept(chunks, 0)
    assert type(wrong) is ProtocolError
    assert "position 1 of at most 128 " in str(wrong)
    assert len(chunks) == 1
