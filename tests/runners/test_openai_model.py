"""`OpenAIModel`: what it sends, what it makes of the answers, keys, and streams that move. The good server is our own."""

import json
import math
import os
import re
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hostile_server import BEHAVIOURS, KEY, serving, text
from hypothesis import given
from hypothesis import strategies as st
from stage import until, worker_leaves_nothing  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
from talkers import Talking

import runners
from runners import (
    ExecuteBatch,
    InlineHost,
    OpenAIModel,
    ProcessHost,
    Sampling,
    TorchLM,
    device_worker,
)
from runners.errors import BadRequest, ContextLost, LoadFailed, NetworkError, ServerError, Unauthorized
from runners.models.openai.answer import Answer
from runners.models.openai.events import MAX_EVENT, EventReader
from runners.models.openai.refusal import Redactor
from runners.models.openai.request import asked
from runners.models.scripted import Scripted
from runners.serve import serve
from runners.types import Price, RateLimits, RunnerStart, SessionRebuildCause
from supervise import StartFailed, open_tree

PATIENCE = 120


@asynccontextmanager
async def ours(runner, **options):
    """The URL of our own server over a runner, and its tree."""
    worker = device_worker("model", runner, host=InlineHost())
    async with open_tree(serve({"m": worker}, port=0, **options), sinks=[]) as tree:
        (url,) = await tree["serve/http"].ready()
        yield f"{url}/v1", tree


@asynccontextmanager
async def client(url, *, several=0, **options):
    """A worker over a server."""
    hosts = {"hosts": [InlineHost()] * several} if several else {"host": InlineHost()}
    names = ("retries", "breaker", "backoff", "limit")
    of_worker = {name: options.pop(name) for name in names if name in options}
    worker = device_worker("api", OpenAIModel(url, "m", **options), **hosts, **of_worker)
    async with open_tree(worker, sinks=[]) as tree:
        yield tree["api"]


def request(name="a", prompt="The ", most=40, **options):
    sampling = options.pop("sampling", Sampling(max_tokens=most, temperature=0, seed=1))
    return ExecuteBatch(name, prompt, sampling=sampling, **options)


async def plain(runner, batch):
    """What the runner answers without a server."""
    worker = device_worker("plain", runner, host=InlineHost())
    async with open_tree(worker, sinks=[]) as tree:
        return await tree["plain"].call(batch)


# --- with a server of ours


@pytest.mark.slow
@pytest.mark.trio
async def test_a_model_behind_a_server_answers_as_it_does_here():
    """D11: Text, finish reason and usage are those of the runner behind the server."""
    with trio.fail_after(PATIENCE):
        batches = [
            request(most=40),
            request(most=400),
            request(sampling=Sampling(seed=5)),
            request(prompt="x" * 300),
        ]
        async with ours(TorchLM()) as (url, _), client(url) as worker:
            for batch in batches[:3]:
                here, there = await plain(TorchLM(), batch), await worker.call(batch)
                assert (there.text, there.finish_reason) == (here.text, here.finish_reason)
                assert (there.usage.input, there.usage.output) == (here.usage.input, here.usage.output)
            with pytest.raises(
                runners.errors.ContextLengthExceeded, match="HTTP 400: a prompt may have 255 tokens"
            ):
                await worker.call(batches[3])


@pytest.mark.slow
@pytest.mark.trio
async def test_messages_options_and_log_probabilities_go_both_ways():
    """D11: A chat is sent as one, and its log probabilities have the form that runners agree on."""
    messages = [{"role": "user", "content": "The "}]
    with trio.fail_after(PATIENCE):
        async with ours(Talking()) as (url, _), client(url, chat=True) as worker:
            here = await plain(TorchLM(), request(options={"logprobs": 2}))
            for batch in (
                request(options={"logprobs": 2}),
                request(payload=messages, prompt="", options={"logprobs": 2}),
            ):
                there = await worker.call(batch)
                assert there.text == here.text
                entries = [entry for data in there.data for entry in data["logprobs"]]
                assert entries == [entry for data in here.data for entry in data["logprobs"]]
            with pytest.raises(BadRequest, match="HTTP 400: "):
                await worker.call(request(options={"misspelt": 1}))


@pytest.mark.trio
async def test_a_stream_with_ids_moves_to_another_context_wherever_it_is():
    """D6: Its tokens are those of an undisturbed one."""
    batch = request(prompt="", payload=[10, 20, 30], most=30)
    with trio.fail_after(PATIENCE):
        whole = await plain(TorchLM(), batch)
        async with (
            ours(TorchLM()) as (url, _),
            client(url, token_ids=True, backoff=None, limit=None) as worker,
        ):
            for cut in (1, 7, 20):
                async with worker.stream(batch) as chunks:
                    got = [await anext(chunks) for _ in range(cut)]
                    runners.report_poison(worker, "a test", got[0].incarnation)
                    got += [chunk async for chunk in chunks]
                assert len({chunk.incarnation for chunk in got}) == 2
                assert [each for chunk in got for each in chunk.token_ids] == list(whole.token_ids)
                assert "".join(chunk.text for chunk in got) == whole.text
                usage = got[-1].usage
                assert (usage.input, usage.output) == (whole.usage.input, 30)
                assert usage.replayed >= cut


@pytest.mark.trio
async def test_a_stream_without_ids_is_lost_with_its_context():
    """D6: A text that is split into tokens anew may go on otherwise."""
    with trio.fail_after(PATIENCE):
        async with ours(TorchLM()) as (url, _), client(url, backoff=None) as worker:
            with pytest.raises(ContextLost):
                async with worker.stream(request(most=200)) as chunks:
                    await anext(chunks)
                    runners.report_poison(worker, "a test", 1)
                    async for _ in chunks:
                        pass


@pytest.mark.trio
async def test_a_server_that_gives_the_ids_of_a_prompt_lets_a_text_move():
    """D6: They are asked for with one token, since the context that had them is gone."""
    sent = []

    async def answer(peer):
        sent.append(peer.body)
        prompt = peer.body["prompt"]
        known = [1, 2] if prompt == "go" else prompt
        await peer.begin()
        for position in range(len(known) - 2, min(5, len(known) - 2 + peer.body["max_tokens"])):
            last = "length" if position == 4 else None
            first = {"prompt_token_ids": known} if position == len(known) - 2 else {}
            await peer.event(text(f"{position}", last, token_ids=[position], **first))
            if position == 2 and prompt == "go" and peer.body["max_tokens"] > 1:
                await peer.closes()
        await peer.end()

    with trio.fail_after(PATIENCE):
        async with (
            serving(answer) as (url, _),
            client(url, token_ids=True, backoff=None) as worker,
            worker.stream(request(prompt="go", most=5)) as chunks,
        ):
            got = [await anext(chunks) for _ in range(3)]
            runners.report_poison(worker, "a test", 1)
            got += [chunk async for chunk in chunks]
    assert "".join(chunk.text for chunk in got) == "01234"
    assert [body["prompt"] for body in sent] == ["go", "go", [1, 2, 0, 1, 2]]
    assert [body["max_tokens"] for body in sent] == [5, 1, 2]


# --- keys


@pytest.mark.trio
async def test_a_key_that_has_changed_is_read_once_for_all_streams(monkeypatch):
    """D7: The first 401 makes a new session, of many at once; a key that is still wrong is an error of the request."""
    made = []
    new = runners.models.openai.runner._OpenAIRunner._new_session
    monkeypatch.setattr(
        "runners.models.openai.runner._OpenAIRunner._new_session", lambda self: made.append(1) or new(self)
    )
    monkeypatch.setenv("MODEL_KEY", "old-key-0123456789")
    with trio.fail_after(PATIENCE):
        async with (
            ours(Scripted(6), token="new-key-0123456789") as (url, _),
            client(url, key_env="MODEL_KEY") as worker,
        ):
            with pytest.raises(Unauthorized, match=r"^HTTP 401$"):
                await worker.call(request())
            assert len(made) == 2
            os.environ["MODEL_KEY"] = "new-key-0123456789"
            async with trio.open_nursery() as nursery:
                for name in "abcdefgh":
                    nursery.start_soon(worker.call, request(name))
            assert len(made) == 3
            del os.environ["MODEL_KEY"]
            assert (await worker.call(request())).usage.output == 6  # the session has its key


@pytest.mark.trio
async def test_a_rebuild_lets_open_streams_finish_with_the_old_session():
    """D7: The old connections are closed by the last stream that uses them."""
    go = trio.Event()

    async def answer(peer):
        await peer.begin()
        await peer.event(text("one"))
        await go.wait()
        await peer.event(text(" two", "stop"))
        await peer.end()

    with trio.fail_after(PATIENCE):
        async with serving(answer) as (url, _):
            runner = OpenAIModel(url, "m").build(RunnerStart(incarnation=1))
            old = runner._session
            chunks = runner.execute(request())
            first = await anext(chunks)
            await runner.rebuild(SessionRebuildCause.MANUAL)
            assert runner._session is not old
            assert not old.client.is_closed
            go.set()
            assert first.text + "".join([chunk.text async for chunk in chunks]) == "one two"
            assert old.client.is_closed
            await runner.close()
            assert runner._session.client.is_closed


def test_a_key_that_is_not_there_fails_the_load_without_its_value(monkeypatch):
    """D2: What is wrong is the environment of this program."""
    monkeypatch.delenv("MODEL_KEY", raising=False)
    spec = OpenAIModel("https://example.org/v1", key_env="MODEL_KEY")
    with pytest.raises(LoadFailed, match="the environment variable MODEL_KEY must have the key"):
        spec.build(RunnerStart(incarnation=1))
    monkeypatch.setenv("MODEL_KEY", "sk secret\tword")
    with pytest.raises(LoadFailed) as raised:
        spec.build(RunnerStart(incarnation=1))
    assert "secret" not in str(raised.value)


@given(
    key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40),
    before=st.text(max_size=20),
    behind=st.text(max_size=20),
    data=st.data(),
)
def test_no_part_of_a_key_is_left_in_a_text(key, before, behind, data):
    """Neither the whole key nor eight characters of it, wherever in the text."""
    begin = data.draw(st.integers(0, max(0, len(key) - 8)))
    part = key[begin:]
    shown = Redactor((key,))(before + part + behind)
    width = min(8, len(key))
    left = "".join(shown.split("***"))
    assert not any(key[at : at + width] in left for at in range(len(key) - width + 1)) or width < 4


# --- retries and the breaker, with a real server


@pytest.mark.slow
@pytest.mark.trio
async def test_a_request_is_sent_again_before_its_first_chunk_alone():
    """D14: What has been given cannot be taken back."""
    answers = ["refuses_503", "hangs_up", "is_good", "cuts_the_stream", "is_good"]
    order = iter(answers)

    async def answer(peer):
        await BEHAVIOURS[next(order)](peer)

    with trio.fail_after(PATIENCE):
        async with serving(answer) as (url, peers), client(url, retries=2) as worker:
            assert (await worker.call(request())).text == "one two three"
            assert len(peers) == 3
            with pytest.raises(NetworkError):
                await worker.call(request())
            assert len(peers) == 4


@pytest.mark.trio
async def test_the_breaker_keeps_requests_from_a_server_that_fails():
    """D14: As the worker does it for any server."""
    with trio.fail_after(PATIENCE):
        breaker = runners.worker.Breaker(failures=2, open_for=60)
        async with serving(BEHAVIOURS["refuses_503"]) as (url, peers), client(url, breaker=breaker) as worker:
            for expected in (ServerError, ServerError, runners.errors.CircuitOpen):
                with pytest.raises(expected):
                    await worker.call(request())
            assert len(peers) == 2
        async with serving(BEHAVIOURS["refuses_400"]) as (url, peers), client(url, breaker=breaker) as worker:
            for _ in range(5):
                with pytest.raises(BadRequest):
                    await worker.call(request())


# --- requests


def body(spec=None, **options):
    return asked(spec or OpenAIModel("http://x/v1", "m"), ExecuteBatch("a", **options)).body


def test_a_request_becomes_the_body_that_a_server_expects():
    """D11: Fields have their names of the API, and options are passed on."""
    sampling = Sampling(max_tokens=7, temperature=0.5, seed=2**62 + 2**31 + 3, stop=("x",))
    made = body(prompt="go", sampling=sampling, options={"top_p": 0.9, "logprobs": 2})
    assert made == {
        "model": "m",
        "prompt": "go",
        "max_tokens": 7,
        "temperature": 0.5,
        "seed": 3,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "top_p": 0.9,
        "logprobs": 2,
    }
    spec = OpenAIModel(
        "http://x/v1",
        chat=True,
        length_field="max_completion_tokens",
        include_usage=False,
        extra={"top_k": 3, "top_p": 1},
    )
    made = body(spec, prompt="go", model="other", options={"top_p": 0.9, "logprobs": 2})
    assert made == {
        "model": "other",
        "messages": [{"role": "user", "content": "go"}],
        "max_completion_tokens": 128,
        "temperature": 1.0,
        "stream": True,
        "top_k": 3,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 2,
    }


def test_only_what_can_move_asks_for_ids():
    """D6: A chat has none, and a stop string might lie across the cut."""
    spec = OpenAIModel("http://x/v1", "m", token_ids=True)
    assert body(spec, payload=[1, 2])["return_token_ids"]
    assert "return_token_ids" not in body(spec, prompt="x", sampling=Sampling(stop=("y",)))
    assert "return_token_ids" not in body(spec, payload=[{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prompt": "x", "payload": [1]}, "must have a prompt or a payload, got both: 'x'"),
        ({"payload": {"a": 1}}, "payload must be a list of token ids or of messages, got {'a': 1}"),
        ({"payload": []}, "payload must be a list of token ids or of messages"),
        ({"options": {"stream": False, "seed": 1}}, "what a request has fields for, got seed, stream"),
        ({"options": {"n": 2}}, "must ask for one answer, got n of 2"),
        ({"options": {"bytes": b"x"}}, "must be values that JSON has"),
        ({"options": {"number": math.inf}}, "must be values that JSON has"),
    ],
)
def test_what_a_server_cannot_be_asked_is_refused_here(options, says):
    """D5: Nothing is sent."""
    with pytest.raises(BadRequest, match=re.escape(says)):
        body(**options)


# --- the spec


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"url": "example.org"}, ValueError, "url must be like https://example.org/v1, got 'example.org'"),
        (
            {"url": "https://me:secret@x/v1"},
            ValueError,
            "url must have no user and no password: name the variable",
        ),
        ({"url": "https://x/v1?a=b"}, ValueError, "url must be like"),
        ({"url": 3}, TypeError, "url must be a str, got 3"),
        ({"key_env": "sk-live-secret"}, ValueError, "key_env"),
        ({"streams": 0}, ValueError, "streams must be >= 1, got 0"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout must be a finite number > 0, got 0"),
        (
            {"first_chunk_timeout": math.inf},
            ValueError,
            "first_chunk_timeout must be a finite number > 0, got inf",
        ),
        ({"next_chunk_timeout": "1"}, TypeError, "next_chunk_timeout must be a finite number > 0, got '1'"),
        ({"length_field": "n"}, ValueError, "length_field"),
        ({"trust_env": 1}, TypeError, "trust_env"),
        ({"extra": [1]}, TypeError, "extra must be a dict, got"),
        (
            {"headers": {"x": "a\nb"}},
            TypeError,
            "headers must be a dict of names and values in printable ASCII",
        ),
        ({"limits": 3}, TypeError, "limits"),
    ],
)
def test_a_spec_refuses_what_makes_no_sense(options, kind, says):
    """D2: When it is declared."""
    with pytest.raises(kind, match=re.escape(says)) as raised:
        OpenAIModel(**{"url": "https://x/v1", **options})
    assert "secret" not in str(raised.value) or "key_env" in options


def test_a_spec_declares_what_it_has_and_shows_no_header():
    """D14: Limits and prices are the spec's; it continues only with ids, and is never reproducible."""
    limits, price = RateLimits(requests=5), Price(input=1)
    spec = OpenAIModel("http://x/v1", limits=limits, price=price, token_ids=True, headers={"api-key": KEY})
    info = spec.build(RunnerStart(incarnation=1)).info
    assert (info.streams, info.transport, info.limits, info.price) == (64, "network", limits, price)
    assert (info.can_continue, info.reproducible) == (True, False)
    assert KEY not in repr(spec)
    assert spec == attrs.evolve(spec)
    assert hash(spec) == hash(attrs.evolve(spec))


def test_another_host_refuses_an_async_runner():
    """D10: It lives in the loop."""

    async def main():
        worker = device_worker("api", OpenAIModel("http://x/v1"), host=ProcessHost("cpu"))
        async with open_tree(worker, sinks=[]) as tree:
            await tree["api"].ready()

    with pytest.raises(StartFailed, match="an async runner needs an InlineHost"):
        trio.run(main)


# --- events, without a server


@given(st.lists(st.integers(0, 40)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_however_their_bytes_come(cuts, end):
    """Line ends of all three kinds, in pieces of any size."""
    lines = [
        ": comment",
        "data: a",
        "data:b",
        "id: 3",
        "",
        "event: error",
        "data: ä",
        "",
        "retry: 1",
        "",
        "data",
    ]
    data = end.join([*lines, "", "data: not complete"]).encode()
    reader, made, at = EventReader(), [], 0
    for cut in [*cuts, len(data)]:
        made += reader.feed(data[at : at + cut])
        at += cut
    made += reader.feed(data[at:])
    assert [(event.name, event.data) for event in made] == [
        ("message", "a\nb"),
        ("error", "ä"),
        ("message", ""),
    ]


def test_a_body_may_begin_with_a_byte_order_mark():
    """The first event counts as well. Elsewhere a mark is a character as any other."""
    events = EventReader().feed("\ufeffdata: a\n\n\ufeffdata: b\n\ndata: \ufeffc\n\n".encode())
    assert [event.data for event in events] == ["a", "\ufeffc"]


@pytest.mark.parametrize("line", [b"x" * 1000, b"data: x\n" * 100])
def test_an_event_without_end_is_bounded(line):
    """D5: It is an error when it is too long, and what comes complete may go on for ever."""
    reader = EventReader()
    with pytest.raises(NetworkError, match=f"an event of more than {MAX_EVENT} bytes"):
        for _ in range(2 * MAX_EVENT // len(line)):
            assert not list(reader.feed(line))
    reader = EventReader()
    for _ in range(3 * MAX_EVENT // 1000):
        assert not list(reader.feed(b": comment" * 100 + b"\n"))
        assert len(list(reader.feed(b"data: x\n\n"))) == 1


def answer_of(events, *, most=10, is_chat=False, counts_ids=False):
    answer = Answer("a", most, is_chat, counts_ids, Redactor(()))
    made = [answer.take(json.dumps(event)) for event in events]
    return [chunk for chunk in made if chunk is not None], answer


def delta(**fields):
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def test_what_a_chat_gives_besides_text_is_data():
    """D11: Parts of tool calls and reasoning, as they come; a role and nulls are nothing."""
    call = [{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{"}}]
    events = [
        delta(role="assistant", content=""),
        delta(content=None, reasoning_content="hm"),
        delta(content="x", refusal=None),
        delta(tool_calls=call),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    chunks, answer = answer_of(events, is_chat=True)
    assert [(chunk.index, chunk.text, chunk.data) for chunk in chunks] == [
        (0, "", {"delta": {"reasoning_content": "hm"}}),
        (1, "x", None),
        (2, "", {"delta": {"tool_calls": call}}),
    ]
    assert (answer.last().index, answer.last().finish_reason) == (3, "tool_calls")


def test_more_pieces_than_tokens_come_with_the_end():
    """D6: A stream has no more positions than the request has tokens, and no text is lost."""
    chunks, answer = answer_of([text("a"), text("b"), text("c"), text("d", "stop")], most=2)
    assert [chunk.text for chunk in chunks] == ["a", "b"]
    assert answer.last().text == "cd"


def test_what_comes_behind_the_finish_reason_is_no_text():
    """D6: It would belong to no token of the answer."""
    chunks, answer = answer_of([text("a"), text("b", "stop"), text("c"), text("d", "length")])
    assert [chunk.text for chunk in chunks] == ["a"]
    assert (answer.last().text, answer.last().finish_reason) == ("b", "stop")


def test_half_a_character_and_another_choice_do_no_harm():
    """D5: JSON can escape a lone surrogate, which no UTF-8 has."""
    event = {"choices": [{"index": 1, "text": "no"}, {"index": 0, "text": "\ud83d"}]}
    chunks, _ = answer_of([event])
    assert chunks[0].text == "�"


@pytest.mark.parametrize(
    "usage", [3, {"prompt_tokens": -1, "completion_tokens": 2**60}, {"prompt_tokens": "x"}]
)
def test_a_usage_that_is_none_counts_nothing(usage):
    """D5: The answer is whole all the same."""
    _, answer = answer_of([text("a", "stop"), {"choices": [], "usage": usage}])
    last = answer.last()
    assert last.usage is None or (last.usage.input, last.usage.output) == (0, 0)


@pytest.mark.parametrize(
    "events",
    [
        [text("a", token_ids=["x"])],
        [text("a", token_ids=[-1])],
        [text("abc", token_ids=[1, 2, 3])],
        [text("a", token_ids=[1, 2]), text("b", "stop", token_ids=[3])],
    ],
)
def test_ids_that_are_none_or_too_many_are_an_error_of_the_server(events):
    """D5: They would be taken for tokens."""
    with pytest.raises(NetworkError):
        answer_of(events, most=2, counts_ids=True)


def test_a_text_whose_ids_come_later_waits_for_them():
    """D6: A chunk without ids in a stream of ids would be refused by the host."""
    events = [text("a"), text("b", token_ids=[1]), text("", token_ids=[2]), text("c", "stop", token_ids=[])]
    chunks, answer = answer_of(events, counts_ids=True)
    assert [(chunk.text, chunk.token_ids) for chunk in chunks] == [("ab", (1,)), ("", (2,))]
    assert (answer.last().text, answer.last().index) == ("c", 2)
