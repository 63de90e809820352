"""`runners.http`: OpenAI's API in front of device workers, in virtual time."""

import base64
import json
import struct

import pytest
import trio
from asgi import CHAT, CHATS, EMBEDDINGS, MESSAGES, TEXT, TEXTS, Client, Recording, asked, served, text_of
from starlette.applications import Starlette
from starlette.routing import Mount

from runners import InlineHost, Sampling, device_worker
from runners.http import openai_app
from runners.http.shape import Choice
from runners.models.scripted import Scripted
from runners.types import FinishReason, TokenChunk
from supervise import open_tree
from supervise.testing import run_virtual

# --- answers


def test_a_chat_completion():
    """The whole answer, field by field."""
    seen = []
    answer = asked(Recording(seen), CHATS, CHAT)
    assert answer.status == 200
    made = answer.json()
    assert made.pop("id") == answer.headers["x-request-id"] == seen[0].request_id
    assert type(made.pop("created")) is int
    assert made == {
        "object": "chat.completion",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "ab", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    assert (seen[0].prompt, seen[0].payload) == ("", MESSAGES)


def test_a_stream_of_a_chat_completion():
    """First the role, then the text as it comes, then the reason, in events with one id; each is sent at once."""
    answer = asked(Recording(), CHATS, {**CHAT, "stream": True})
    events = answer.events()
    assert {event["id"] for event in events} == {answer.headers["x-request-id"]}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert all("usage" not in event for event in events)
    assert [(event["choices"][0]["delta"], event["choices"][0]["finish_reason"]) for event in events] == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "a"}, None),
        ({"content": "b"}, None),
        ({}, "stop"),
    ]
    assert [round(time, 1) for time in answer.times] == [0.1, 0.2, 0.2, 0.2]
    assert "content-length" not in answer.headers


@pytest.mark.parametrize("path", [CHATS, TEXTS])
def test_the_usage_of_a_stream(path):
    """It is the last event, without choices, and the field is null in the others, if it is asked for."""
    body = {**(CHAT if path == CHATS else TEXT), "stream": True, "stream_options": {"include_usage": True}}
    *events, last = asked(Recording(), path, body).events()
    assert all(event["usage"] is None for event in events)
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (3, 2)
    assert last["usage"]["total_tokens"] == 5


def test_a_text_completion_whole_and_as_a_stream():
    """Both have the same text."""
    made = asked(Scripted(8), TEXTS, TEXT).json()
    assert made["object"] == "text_completion"
    assert made["id"].startswith("cmpl-")
    assert made["choices"] == [
        {"index": 0, "text": text_of(), "logprobs": None, "finish_reason": "stop"},
    ]
    assert asked(Scripted(8), TEXTS, {**TEXT, "stream": True}).text() == text_of()


@pytest.mark.parametrize("prompt", ["x", [7, 8]])
def test_the_ids_of_a_text_completion(prompt):
    """Those of its tokens with each piece, and those of a prompt of ids with the first event, if they are asked for."""
    body = {**TEXT, "prompt": prompt, "return_token_ids": True}
    whole = asked(Scripted(8), TEXTS, body).json()["choices"][0]
    first, *events = (
        event["choices"][0] for event in asked(Scripted(8), TEXTS, {**body, "stream": True}).events()
    )
    assert (first["text"], first["token_ids"]) == ("", [])
    assert first["prompt_token_ids"] == (None if prompt == "x" else prompt)
    assert [each for event in events for each in event["token_ids"]] == whole["token_ids"]
    assert len(whole["token_ids"]) == 8
    assert "token_ids" not in asked(Scripted(8), TEXTS, TEXT).json()["choices"][0]


def test_several_prompts_are_several_choices():
    """Each is a request of its own; the usage is that of all."""
    prompts = [f"prompt {number}" for number in range(40)]
    made = asked(Scripted(8, delay=0.1, streams=3), TEXTS, {**TEXT, "prompt": prompts}).json()
    assert [choice["index"] for choice in made["choices"]] == list(range(40))
    assert [choice["text"] for choice in made["choices"]] == list(map(text_of, prompts))
    assert made["usage"]["completion_tokens"] == 320
    events = asked(Scripted(8, delay=0.1), TEXTS, {**TEXT, "prompt": prompts[:2], "stream": True}).events()
    texts = {0: "", 1: ""}
    for event in events:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == {0: text_of(prompts[0]), 1: text_of(prompts[1])}
    assert len({event["id"] for event in events}) == 1


@pytest.mark.parametrize(
    ("prompt", "requests"),
    [
        ("x", [("x", None)]),
        ([1, 2], [("", [1, 2])]),
        (["x", "y"], [("x", None), ("y", None)]),
        ([[1, 2], [3]], [("", [1, 2]), ("", [3])]),
        (["x", [3]], [("x", None), ("", [3])]),
    ],
)
def test_prompts_are_texts_or_token_ids(prompt, requests):
    """One or several of either."""
    seen = []
    assert asked(Recording(seen), TEXTS, {**TEXT, "prompt": prompt}).status == 200
    assert [(batch.prompt, batch.payload) for batch in sorted(seen, key=lambda b: b.request_id)] == requests
    assert len({batch.request_id for batch in seen}) == len(requests)


FULL = {
    **CHAT,
    "max_completion_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 40,
    "frequency_penalty": 0.1,
    "presence_penalty": -0.2,
    "repetition_penalty": 1.1,
    "stop": ["x", "y"],
    "seed": 7,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
    "logprobs": True,
    "top_logprobs": 1,
}


def test_what_a_client_asks_reaches_the_runner():
    """All of the sampling; what only some runners have goes as an option."""
    seen = []
    assert asked(Recording(seen, logprobs=True), CHATS, FULL, timeout=60).status == 200
    assert seen[0].sampling == Sampling(max_tokens=5, temperature=0.5, seed=7, stop=("x", "y"))
    assert seen[0].options == {
        "top_p": 0.9,
        "top_k": 40,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.2,
        "repetition_penalty": 1.1,
        "tools": FULL["tools"],
        "logprobs": 1,
    }
    assert (seen[0].model, seen[0].deadline) == ("m", 60)


def test_what_changes_nothing_reaches_no_runner():
    """Clients send such values unasked, and not every runner has these options; a null counts as absent."""
    seen = []
    neutral = {
        "top_p": 1,
        "top_k": -1,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
    nothing = {"n": 1, "logit_bias": {}, "response_format": {"type": "text"}, "stop": None, "functions": []}
    beside = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "tool_choice": "none",
    }
    body = {
        **CHAT,
        **neutral,
        **nothing,
        **beside,
        "tools": FULL["tools"],
        "temperature": None,
        "max_tokens": None,
    }
    assert asked(Recording(seen), CHATS, body, timeout=None, max_tokens=99).status == 200
    assert seen[0].options is None
    assert seen[0].sampling == Sampling(max_tokens=99, temperature=1.0, seed=1)
    assert seen[0].deadline is None


def test_the_limit_of_a_text_completion_that_names_none_is_16():
    """As in OpenAI's API."""
    seen = []
    asked(Recording(seen), TEXTS, {"model": "m", "prompt": "", "stop": "x", "seed": -3})
    assert seen[0].sampling.max_tokens == 16
    assert seen[0].sampling.stop == ("x",)
    assert seen[0].sampling.seed == 2**63 - 3


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_probabilities_of_a_chat(stream):
    """Each token with its alternatives; minus infinity, which JSON does not have, is the number that others use for it."""
    body = {**CHAT, "logprobs": True, "top_logprobs": 2, "stream": stream}
    answer = asked(Recording(logprobs=True), CHATS, body)
    if stream:
        made = [event["choices"][0]["logprobs"] for event in answer.events()]
        content = [entry for logprobs in made if logprobs for entry in logprobs["content"]]
    else:
        content = answer.json()["choices"][0]["logprobs"]["content"]
    other = {"token": "é", "logprob": -9999.0, "bytes": [0xC3, 0xA9]}
    assert content == [
        {**token, "top_logprobs": [token, other]}
        for token in ({"token": name, "logprob": -0.5, "bytes": [ord(name)]} for name in "ab")
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_probabilities_of_a_text(stream):
    """The offsets count over all events."""
    answer = asked(Recording(logprobs=True), TEXTS, {**TEXT, "logprobs": 2, "stream": stream})
    events = answer.events() if stream else [answer.json()]
    made = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for event in events:
        for name, values in event["choices"][0]["logprobs"].items():
            made[name] += values
    assert made == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "é": -9999.0}, {"b": -0.5, "é": -9999.0}],
        "text_offset": [0, 1],
    }


def test_embeddings_in_both_encodings():
    """One for each input, in their order; base64 is of little-endian floats of 32 bits."""
    runner = Recording(data=lambda number: [number, 0.5])
    made = asked(runner, EMBEDDINGS, {"model": "m", "input": ["x", "xyz"], "user": "me"}).json()
    assert [(item["index"], item["embedding"]) for item in made["data"]] == [(0, [1.0, 0.5]), (1, [3.0, 0.5])]
    assert (made["object"], made["model"]) == ("list", "m")
    assert made["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    body = {"model": "m", "input": [7, 8], "encoding_format": "base64"}
    (item,) = asked(runner, EMBEDDINGS, body).json()["data"]
    assert struct.unpack("<2f", base64.b64decode(item["embedding"])) == (7.0, 0.5)


def test_an_embedding_may_come_before_the_last_chunk():
    """D11: A runner may end a stream with a chunk that has no data."""
    choice = Choice(is_text=False)
    choice.add(TokenChunk(request_id="r", index=0, data=[0.5]))
    choice.add(TokenChunk(request_id="r", index=1, finish_reason=FinishReason.STOP))
    assert choice.data == [0.5]


@pytest.mark.parametrize("number", [1e39, -1e308])
def test_an_embedding_outside_the_range_of_float32_is_one_clear_error(number):
    """In base64 alone: JSON has larger ones."""
    body = {"model": "m", "input": "x", "encoding_format": "base64"}
    answer = asked(Recording(data=[0.5, number]), EMBEDDINGS, body)
    assert (answer.status, answer.error["code"]) == (500, "runner_error")
    assert "must have numbers in the range of float32, got " in answer.error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(CHATS, CHAT), (TEXTS, TEXT)])
@pytest.mark.parametrize("data", [[0.5], {"label": "calm"}, "text"])
def test_a_model_that_answers_with_data_gives_no_empty_completion(path, body, stream, data):
    """D8: A completion is a text; what else a runner gives is not passed over."""
    answer = asked(Recording(data=lambda number: data), path, {**body, "stream": stream})
    assert (answer.status, answer.error["code"]) == (500, "runner_error")
    assert answer.error["message"].startswith("the model must answer a completion with text, got data: ")


def scored(token="a", logprob=-0.5, top=()):
    return {"token": token, "logprob": logprob, "top": list(top)}


@pytest.mark.parametrize("path", [CHATS, TEXTS])
@pytest.mark.parametrize(
    "entries",
    [3, {}, [3], [{"token": "x"}], [scored(token=1)], [scored(logprob=float("nan"))], [scored(top=[{}])]],
)
def test_malformed_log_probabilities_are_an_error_of_the_runner(path, entries):
    """Also behind the first event, and whether or not they were asked for."""
    body = {**(CHAT if path == CHATS else TEXT), "logprobs": 1 if path == TEXTS else True}
    runner = Recording(data={"logprobs": entries})
    answer = asked(runner, path, body)
    assert (answer.status, answer.error["code"]) == (500, "runner_error")
    assert answer.error["message"].startswith("logprobs must be a list of dicts with a token, ")
    assert asked(runner, path, CHAT if path == CHATS else TEXT).status == 500


@pytest.mark.parametrize(("path", "body"), [(CHATS, CHAT), (TEXTS, TEXT)])
def test_no_log_probabilities_may_be_none(path, body):
    """As a runner that was asked for none may write it."""
    assert asked(Recording(data={"logprobs": None}), path, body).status == 200


@pytest.mark.parametrize("data", [None, "text", [], [float("nan")], ["x"]])
def test_a_model_without_embeddings_is_no_empty_success(data):
    """Neither is one that gives something else."""
    answer = asked(Recording(data=data, letters=1), EMBEDDINGS, {"model": "m", "input": "x"})
    assert (answer.status, answer.error["param"]) == (400, "model")


def test_an_app_that_is_mounted_has_the_same_open_paths():
    """A load balancer asks for the health without a token, below the path of the app; nothing else is open."""
    worker = device_worker("llm", Scripted(), host=InlineHost())

    async def main():
        async with open_tree(worker, sinks=[]) as tree:
            app = openai_app({"m": tree[worker]}, token="secret")
            client = Client(Starlette(routes=[Mount("/llm", app=app), Mount("/health", app=app)]))
            asked_for = ("/llm/health", "/health/health", "/llm/v1/models", "/health/v1/models")
            return [(await client.get(path)).status for path in asked_for]

    assert run_virtual(main) == [200, 200, 401, 401]


def test_models_and_health():
    """A name may have slashes, as those of repositories do."""
    worker = device_worker("llm", Scripted(), host=InlineHost())

    async def main():
        async with open_tree(worker, sinks=[]) as tree:
            client = Client(openai_app({"m": tree[worker], "org/m:1": tree[worker]}, token="secret"))
            entitled = {"authorization": "Bearer secret"}
            found = (await client.get("/v1/models", headers=entitled)).json()
            assert (found["object"], [model["id"] for model in found["data"]]) == ("list", ["m", "org/m:1"])
            one = (await client.get("/v1/models/org/m:1", headers=entitled)).json()
            assert one == found["data"][1]
            assert set(one) == {"id", "object", "created", "owned_by"}
            missing = await client.get("/v1/models/x", headers=entitled)
            assert (missing.status, missing.error["code"]) == (404, "model_not_found")
            assert (await client.get("/v1/models")).status == 401
            health = await client.get("/health")
            assert (health.status, health.json()["workers"]) == (200, {"m": "up", "org/m:1": "up"})

    run_virtual(main)


# --- refusals


@pytest.mark.parametrize(
    ("path", "change", "param"),
    [
        (CHATS, {"temprature": 1}, "temprature"),
        (CHATS, {"n": 2}, "n"),
        (CHATS, {"n": True}, "n"),
        (CHATS, {"model": None}, "model"),
        (CHATS, {"model": 3}, "model"),
        (CHATS, {"messages": []}, "messages"),
        (CHATS, {"messages": [{"content": "x"}]}, "messages[0]"),
        (CHATS, {"messages": ["x"]}, "messages[0]"),
        (CHATS, {"max_tokens": 0}, "max_tokens"),
        (CHATS, {"max_tokens": 2.5}, "max_tokens"),
        (CHATS, {"max_tokens": 2**40}, "max_tokens"),
        (CHATS, {"max_tokens": 3, "max_completion_tokens": 3}, "max_tokens"),
        (CHATS, {"temperature": 3}, "temperature"),
        (CHATS, {"temperature": "hot"}, "temperature"),
        (CHATS, {"top_p": 2}, "top_p"),
        (CHATS, {"seed": 2**64}, "seed"),
        (CHATS, {"stop": 3}, "stop"),
        (CHATS, {"stop": ["x", 3]}, "stop"),
        (CHATS, {"stream": "yes"}, "stream"),
        (CHATS, {"stream_options": {"usage": True}}, "stream_options"),
        (CHATS, {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (CHATS, {"top_logprobs": 2}, "top_logprobs"),
        (CHATS, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHATS, {"tools": {}}, "tools"),
        (CHATS, {"tool_choice": "required"}, "tool_choice"),
        (CHATS, {"response_format": {"type": "json_object"}}, "response_format"),
        (TEXTS, {"prompt": None}, "prompt"),
        (TEXTS, {"prompt": []}, "prompt"),
        (TEXTS, {"prompt": [1, -1]}, "prompt"),
        (TEXTS, {"prompt": [[]]}, "prompt"),
        (TEXTS, {"prompt": ["x"] * 2049}, "prompt"),
        (TEXTS, {"echo": True}, "echo"),
        (TEXTS, {"best_of": 2}, "best_of"),
        (TEXTS, {"logprobs": True}, "logprobs"),
    ],
)
def test_a_bad_field_is_named(path, change, param):
    """The error names the field, what is allowed and what came; nothing reaches the worker."""
    seen = []
    answer = asked(Recording(seen), path, {**(CHAT if path == CHATS else TEXT), **change})
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert answer.error["param"] == param
    assert param in answer.error["message"]
    assert seen == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b"\xff", b'{"model": NaN}', b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}"],
)
def test_a_body_that_is_no_json_object_is_refused(body):
    """Whatever it is."""
    answer = asked(Recording(), CHATS, body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize(("key", "affinity"), [("talk-7", "talk-7"), (None, "")])
def test_the_prompt_cache_key_is_the_affinity_of_a_request(key, affinity):
    """D12: Of a chat and of a text."""
    seen = []
    for kind, body in ((CHATS, CHAT), (TEXTS, TEXT)):
        assert asked(Recording(seen), kind, {**body, "prompt_cache_key": key}).status == 200
    assert [each.affinity for each in seen] == [affinity] * 2


def test_a_prompt_cache_key_is_a_text():
    """Anything else is refused with its name."""
    answer = asked(Recording(), CHATS, {**CHAT, "prompt_cache_key": 7})
    assert (answer.status, answer.error["param"]) == (400, "prompt_cache_key")


def test_a_payload_that_cannot_travel_is_the_clients_error():
    """A message that is nested too deeply, and an integer of more than 64 bits."""
    deep = "x"
    for _ in range(80):
        deep = [deep]
    for content in (deep, 2**70):
        answer = asked(Recording(), CHATS, {**CHAT, "messages": [{"role": "user", "content": content}]})
        assert answer.status == 400


@pytest.mark.parametrize("many", [[[]] * 70_000, [{}] * 70_000, [[[]] * 300] * 300])
def test_a_body_of_too_many_lists_and_objects_is_refused(many):
    """Nothing else is served while they are looked at."""
    answer = asked(Recording(), CHATS, {**CHAT, "metadata": many})
    assert (answer.status, answer.error["message"]) == (
        400,
        "the body may have 65536 lists and objects, and has more",
    )
    assert asked(Recording(), CHATS, {**CHAT, "metadata": many[:100]}).status == 200


@pytest.mark.parametrize("field", ["model", "prompt"])
def test_half_a_character_is_refused(field):
    """D11: JSON can have one, UTF-8 cannot; the answer quotes it in ASCII."""
    answer = asked(Recording(), TEXTS, {**TEXT, field: "\ud800"})
    assert answer.status == 400
    assert answer.error["message"] == rf"{field} must be a text that UTF-8 can encode, got '\ud800'"


def test_half_a_character_in_a_stop_string_is_refused():
    """D11."""
    answer = asked(Recording(), TEXTS, {**TEXT, "stop": ["a", "\ud800"]})
    assert (answer.status, answer.error["param"]) == (400, "stop")


@pytest.mark.parametrize("path", ["/v1/nothing", TEXTS])
def test_a_query_may_be_any_bytes(path):
    """A server passes them on as they came; nothing here reads them."""

    async def use(client, _):
        return await client.get(path, query=b"\xff")

    answer = served(Recording(), use)
    assert answer.status in (404, 405)
    assert answer.error["message"].endswith(f": GET {path}")


def test_what_is_no_route_and_what_is_no_json():
    """OpenAI's shape, also for the errors of the framework."""

    async def use(client, _):
        found = [
            await client.post("/v1/nothing", {}),
            await client.get(CHATS),
            await client.post(CHATS, CHAT, headers={"content-type": "text/plain"}),
            await client.post(CHATS, CHAT, headers={}),
            await client.post(CHATS, CHAT, headers={"content-type": "Application/JSON; charset=utf-8"}),
        ]
        return [(answer.status, None if answer.status == 200 else answer.error["type"]) for answer in found]

    invalid = "invalid_request_error"
    assert served(Recording(), use) == [
        (404, invalid),
        (405, invalid),
        (415, invalid),
        (415, invalid),
        (200, None),
    ]


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer wrong", "Bearer secre", "Basic secret", "secret", "Bearer é"]
)
def test_without_the_token_nothing_is_served(header):
    """Nor does a client learn which paths there are."""

    async def use(client, _):
        for path, body in ((CHATS, CHAT), ("/v1/nothing", {}), ("/health/x", {})):
            headers = {"content-type": "application/json", **({"authorization": header} if header else {})}
            answer = await client.post(path, body, headers=headers)
            assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        entitled = {"content-type": "application/json", "authorization": "bearer  secret"}
        assert (await client.post(CHATS, CHAT, headers=entitled)).status == 200

    seen = []
    served(Recording(seen), use, token="secret")
    assert len(seen) == 1


@pytest.mark.parametrize("two", [["Bearer secret", "Bearer x"], ["Bearer x", "Bearer secret"]])
def test_of_two_tokens_none_counts(two):
    """A server in front of this one may look at the other."""

    async def use(client, _):
        headers = {"content-type": "application/json", "authorization": two}
        return await client.post(CHATS, CHAT, headers=headers)

    assert served(Recording(), use, token="secret").status == 401


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(declared):
    """Its length may be declared or not. What comes of it is taken, or a server would wait for ever."""
    body = json.dumps({**TEXT, "prompt": "x" * 100_000}).encode()

    def use(most):
        async def ask(client, _):
            length = {"content-length": str(len(body))} if declared else {}
            return await client.post(TEXTS, body, headers={"content-type": "application/json", **length})

        return served(Scripted(), ask, max_body=most)

    answer = use(len(body) - 1)
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert use(len(body)).status == 200


@pytest.mark.parametrize("path", [TEXTS, "/v1/nothing", "/health"])
def test_a_body_that_is_not_asked_for_is_taken(path):
    """A server would otherwise keep what the app does not take, and wait for ever."""

    async def use(client, _):
        wrong = await client.post(path, b"x" * 100_000, headers={})
        unentitled = await client.post(path, b"x" * 100_000)
        return wrong.status, unentitled.status

    for token in (None, "secret"):
        assert all(status in (401, 404, 405, 415, 400) for status in served(Scripted(), use, token=token))


def test_a_body_that_does_not_come():
    """It gets 408, and holds nothing."""

    async def use(client, _):
        answer = await client.post(TEXTS, TEXT, piece=1, pause=10)
        return answer.status, trio.current_time()

    status, time = served(Scripted(), use)
    assert status == 408
    assert 60 <= time < 80


@pytest.mark.parametrize(
    "options",
    [
        {"token": ""},
        {"token": "a b"},
        {"token": "é"},
        {"token": 3},
        {"max_body": 0},
        {"timeout": 0},
        {"max_tokens": 0},
    ],
)
def test_wrong_arguments_of_the_app_are_refused(options):
    """The error names the argument; a token is not quoted."""

    async def use(_, worker):
        (name,) = options
        with pytest.raises(ValueError, match=name):
            openai_app({"m": worker}, **options)
        with pytest.raises(TypeError, match="workers"):
            openai_app({})
        with pytest.raises(TypeError, match="workers"):
            openai_app({"m": "app/llm"})

    served(Scripted(), use)
