"""`runners.http`: the errors of a worker, and clients that leave, in virtual time."""

import json

import pytest
import trio
from asgi import CHAT, CHATS, TEXT, TEXTS, Recording, asked, served, text_of
from hypothesis import given
from hypothesis import strategies as st

from runners.brief import attribute
from runners.errors import (
    BadRequest,
    ContentFiltered,
    ContextLengthExceeded,
    Forbidden,
    InferenceError,
    NetworkError,
    OutOfMemory,
    PoisonRequest,
    RateLimited,
)
from runners.models.scripted import Fault, Scripted
from supervise import Limit

# --- errors of a worker


class Guarded(PoisonRequest):
    @property
    def is_retryable(self):
        raise RuntimeError("not yours")


class Bare(RateLimited):
    """A class whose constructor does not call ours, so that it has no `retry_after`."""

    def __init__(self, text):
        Exception.__init__(self, text)


ERRORS = [
    (BadRequest("no such option"), 400, None),
    (ContextLengthExceeded("too long"), 400, "context_length_exceeded"),
    (ContentFiltered("no"), 400, "content_filter"),
    (RateLimited("slowly", retry_after=2.5), 429, "rate_limit_exceeded"),
    (RateLimited("slowly"), 429, "rate_limit_exceeded"),
    (RateLimited("a header as it came", retry_after="7"), 429, "rate_limit_exceeded"),
    (RateLimited("never", retry_after=10**400), 429, "rate_limit_exceeded"),
    (Bare("slowly"), 429, "rate_limit_exceeded"),
    (Guarded("twice"), 500, "poison_request"),
    (NetworkError("unreachable"), 502, "upstream_error"),
    (Forbidden("no"), 502, "upstream_error"),
    (OutOfMemory("too large"), 503, "device_error"),
    (PoisonRequest("twice"), 500, "poison_request"),
    (InferenceError("other"), 500, None),
    (ArithmeticError("no table has it"), 500, "runner_error"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_an_error_before_the_first_chunk_has_its_status(error, status, code, stream):
    """A stream begins with its first chunk. The header tells OpenAI's clients what is not to be sent again."""
    answer = asked(Recording(error=error), CHATS, {**CHAT, "stream": stream})
    assert (answer.status, answer.error["code"]) == (status, code)
    assert str(error) in answer.error["message"]
    assert (answer.error["type"] == "invalid_request_error") == (status == 400)
    again = answer.headers.get("retry-after")
    assert again == {429: "3" if attribute(error, "retry_after") == 2.5 else "1", 503: "5"}.get(status)
    refused = status >= 400 and again is None and not attribute(error, "is_retryable")
    assert (answer.headers.get("x-should-retry") == "false") == refused


@pytest.mark.parametrize("path", [f"{CHATS}/", "/v1/models/", "/health/", "/v1"])
def test_a_path_that_is_none_is_not_redirected(path):
    """A redirect would name the host that the client has written into its request."""
    answer = asked(Scripted(3), path, CHAT)
    assert answer.status in (404, 405)
    assert "location" not in answer.headers
    assert answer.error["message"]


def test_an_error_in_a_begun_stream_is_its_last_event():
    """Then the stream ends without the event that ends a complete answer."""
    answer = asked(Recording(error=ArithmeticError("oh"), at=1), CHATS, {**CHAT, "stream": True})
    assert answer.status == 200
    role, text, last = map(json.loads, answer.data())
    assert text["choices"][0]["delta"] == {"content": "a"}
    assert last["error"]["code"] == "runner_error"
    whole = asked(Recording(error=ArithmeticError("oh"), at=1), CHATS, CHAT)
    assert (whole.status, whole.error["code"]) == (500, "runner_error")
    assert role["id"] == text["id"]


def test_one_error_ends_all_choices():
    """The others are cancelled."""
    body = {**TEXT, "prompt": ["a", "b", "c"], "stream": True}
    *_, last = asked(Recording(error=BadRequest("no"), at=1, letters=5), TEXTS, body).data()
    assert json.loads(last)["error"]["message"] == "no"
    whole = asked(Recording(error=BadRequest("no"), at=1, letters=5), TEXTS, {**TEXT, "prompt": ["a", "b"]})
    assert whole.status == 400


@pytest.mark.parametrize("stream", [False, True])
def test_the_first_error_of_one_choice_does_not_wait_for_the_others(stream):
    """They are cancelled, and their places are free."""

    async def use(client, worker):
        body = {**TEXT, "prompt": ["a", "b", "c"], "max_tokens": 900, "stream": stream}
        answer = await client.post(TEXTS, body)
        assert (answer.status, trio.current_time() < 5) == (200 if stream else 500, True)
        await trio.sleep(2)
        assert (await client.post(TEXTS, {**TEXT, "prompt": ["x"] * 3})).status == 200
        return trio.current_time()

    fault = Fault("error", call=2, at_token=1)
    assert served(Scripted(1000, delay=1, streams=3, faults=(fault,)), use) < 30


@given(
    schedule=st.random_module(), inputs=st.integers(1, 6), queue=st.integers(1, 3), streams=st.integers(1, 3)
)
def test_several_inputs_of_one_client_do_not_crowd_each_other_out(schedule, inputs, queue, streams):
    """The first one is admitted, or refused; the others wait for room."""
    runner = Scripted(2, delay=0.1, streams=streams)
    answer = asked(runner, TEXTS, {**TEXT, "prompt": ["x"] * inputs}, queue=queue)
    assert (answer.status, len(answer.json()["choices"])) == (200, inputs)


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429(stream):
    """With the time after which a client may try again; a place that is free serves the next."""

    async def use(client, worker):
        answers = []

        async def ask(delay):
            await trio.sleep(delay)
            answers.append(await client.post(TEXTS, {**TEXT, "stream": stream}))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(ask, number / 100)
        assert worker.status().children[0].mailbox == 0
        return answers

    answers = served(Scripted(8, delay=1, streams=1), use, queue=1)
    assert [answer.status for answer in answers] == [429, 429, 200, 200]  # in the order of their ends
    for answer in answers:
        if answer.status == 429:
            assert answer.error["code"] == "rate_limit_exceeded"
            assert answer.headers["retry-after"] == "1"


def test_many_inputs_of_one_client_do_not_fill_the_queue():
    """The first is refused if the queue is full; the others wait for their turn, at most 32 at once."""
    most = 0

    async def use(client, worker):
        async def watch():
            nonlocal most
            while True:
                most = max(most, worker.status().children[0].mailbox)
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            answer = await client.post(TEXTS, {**TEXT, "prompt": ["x"] * 100})
            nursery.cancel_scope.cancel()
        return answer.status

    assert served(Scripted(2, delay=0.1, streams=2), use, queue=40) == 200
    assert 20 <= most <= 32


def test_a_worker_that_is_down_is_503():
    """`/health` tells which; the cause stands in the error."""

    async def use(client, worker):
        first = await client.post(TEXTS, TEXT)
        later = [await client.post(TEXTS, {**TEXT, "stream": stream}) for stream in (False, True)]
        health = await client.get("/health")
        assert (health.status, health.json()["status"]) == (503, "unavailable")
        assert health.json()["workers"] == {"m": "condemned"}
        return [first, *later]

    for answer in served(Scripted(faults=(Fault("unrecoverable", at_token=0),)), use):
        assert (answer.status, answer.error["code"]) == (503, "worker_down")
        assert answer.headers["retry-after"] == "5"


def test_a_worker_that_is_being_stopped_is_503():
    """What has begun is finished."""

    async def use(client, worker):
        answers = {}

        async def ask(name, delay):
            await trio.sleep(delay)
            answers[name] = await client.post(TEXTS, {**TEXT, "stream": True})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "begun", 0)
            nursery.start_soon(ask, "late", 2)
            await trio.sleep(1)
            nursery.start_soon(worker.stop)
            await trio.sleep(0.1)
            assert (await client.get("/health")).json()["workers"] == {"m": "stopping"}
        assert answers["begun"].text() == text_of()
        assert (answers["late"].status, answers["late"].error["code"]) == (503, "worker_stopping")
        assert answers["late"].headers["retry-after"] == "5"
        assert (await client.post(TEXTS, TEXT)).error["code"] == "worker_down"
        assert (await client.get("/health")).json()["workers"] == {"m": "down"}

    served(Scripted(8, delay=1), use, drain=30)


def test_a_lost_context():
    """D6: 503 as long as nothing was sent to the client, else the last event."""
    runner = Scripted(8, delay=0.1, can_continue=False, faults=(Fault("poison", at_token=3),))
    whole = asked(runner, TEXTS, TEXT)
    assert (whole.status, whole.error["code"], whole.headers["retry-after"]) == (503, "context_lost", "5")
    *events, last = map(json.loads, asked(runner, TEXTS, {**TEXT, "stream": True}).data())
    assert len(events) == 3
    assert last["error"]["code"] == "context_lost"


def test_a_stream_that_moves_costs_its_client_nothing():
    """D6: The client sees one stream."""
    runner = Scripted(8, delay=0.1, faults=(Fault("poison", at_token=3, incarnation=1),))
    assert asked(runner, TEXTS, {**TEXT, "stream": True}).text() == text_of()


def test_a_time_limit():
    """The limit becomes the deadline of the request: 504, or the last event."""

    async def use(client, _):
        whole = await client.post(TEXTS, TEXT)
        assert (whole.status, whole.error["code"], trio.current_time()) == (
            504,
            "timeout",
            pytest.approx(3.5, abs=0.1),
        )
        return await client.post(TEXTS, {**TEXT, "stream": True})

    *events, last = map(json.loads, served(Scripted(8, delay=1), use, timeout=3.5).data())
    assert len(events) == 3
    assert last["error"]["code"] == "timeout"


def test_past_its_limit_a_worker_is_down():
    """A policy of the tree decides that; the app reports it."""

    async def use(client, _):
        return [(await client.post(TEXTS, {**TEXT, "stream": True})).status for _ in range(3)]

    poisoned = Scripted(8, can_continue=False, faults=(Fault("poison"),))
    assert served(poisoned, use, limit=Limit(1, within=60)) == [500, 503, 503]


def test_a_bug_is_500_in_the_same_shape(monkeypatch):
    """And is raised to the server, which logs it."""
    monkeypatch.setattr("runners.http.shape.Chat.whole", lambda *_: 1 / 0)

    async def use(client, _):
        sent, sent_in = [], []

        async def send(message):
            sent.append(message)

        async def receive():
            if sent_in:
                await trio.sleep_forever()
            sent_in.append(True)
            return {"type": "http.request", "body": json.dumps(CHAT).encode()}

        scope = {
            "type": "http",
            "method": "POST",
            "path": CHATS,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        with pytest.raises(ZeroDivisionError):
            await client.app(scope, receive, send)
        return sent

    start, body = served(Recording(), use)
    assert start["status"] == 500
    assert json.loads(body["body"])["error"]["type"] == "server_error"


# --- clients that leave


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_a_client_that_leaves_frees_its_place_at_once(stream, several):
    """F18: In mid-stream, and while it waits for the whole answer."""

    async def use(client, _):
        leave = trio.Event()
        prompt = ["a", "b", "c"] if several else "hello"
        async with trio.open_nursery() as nursery:
            body = {**TEXT, "stream": stream, "prompt": prompt, "max_tokens": 1000}
            nursery.start_soon(lambda: client.post(TEXTS, body, leave=leave))
            await trio.sleep(10.5)
            leave.set()
        before = trio.current_time()
        assert before < 11
        answer = await client.post(TEXTS, TEXT)
        assert trio.current_time() - before == pytest.approx(16, abs=0.1)
        return answer.json()["choices"][0]["text"]

    assert served(Scripted(1000, delay=1, streams=1), use) == text_of(tokens=16)


def test_a_client_that_leaves_the_queue_is_withdrawn():
    """It never gets to the runner."""

    async def use(client, worker):
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.post, TEXTS, TEXT)
            await trio.sleep(0.5)
            nursery.start_soon(lambda: client.post(TEXTS, TEXT, leave=leave))
            await trio.sleep(1)
            assert worker.status().children[0].mailbox == 1
            leave.set()
            await trio.sleep(0.5)
            assert worker.status().children[0].mailbox == 0

    served(Scripted(8, delay=1, streams=1), use)


def test_a_client_that_leaves_before_its_body_has_come():
    """Nothing is asked of the worker."""
    seen = []

    async def use(client, _):
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.post(TEXTS, TEXT, leave=leave, piece=5, pause=1))
            await trio.sleep(3)
            leave.set()
        return trio.current_time()

    assert served(Recording(seen), use) < 10
    assert seen == []


@pytest.mark.slow
@given(
    schedule=st.random_module(),
    clients=st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 60))), max_size=8
    ),
    poison=st.one_of(st.none(), st.integers(0, 7)),
)
def test_clients_that_stay_get_all_and_those_that_leave_hold_nothing(schedule, clients, poison):
    """D6, F18: Clients come and leave at any time, while the context is replaced; the worker is idle at the end."""
    faults = () if poison is None else (Fault("poison", at_token=poison, incarnation=1),)
    answers = {}

    async def use(client, worker):
        async def ask(number, stream, come, stay):
            await trio.sleep(come / 10)
            leave = trio.Event()
            async with trio.open_nursery() as nursery:
                if stay is not None:

                    async def depart():
                        await trio.sleep(stay / 10)
                        leave.set()

                    nursery.start_soon(depart)
                body = {**TEXT, "prompt": f"client {number}", "stream": stream}
                answer = await client.post(TEXTS, body, leave=leave)
                nursery.cancel_scope.cancel()
            if answer.whole:
                answers[number] = answer.text() if stream else answer.json()["choices"][0]["text"]
            else:
                assert leave.is_set()

        async with trio.open_nursery() as nursery:
            for number, (stream, come, stay) in enumerate(clients):
                nursery.start_soon(ask, number, stream, come, stay)
        before = trio.current_time()
        last = await client.post(TEXTS, TEXT)
        assert last.json()["choices"][0]["text"] == text_of()
        assert trio.current_time() - before < 1.0

    served(Scripted(8, delay=0.1, streams=2, faults=faults), use, limit=None)
    assert answers == {number: text_of(f"client {number}") for number in answers}
    assert set(answers) >= {number for number, (_, _, stay) in enumerate(clients) if stay is None}
