"""`OpenAIModel` against a server that does everything wrong: the right error, in time, with bounded memory and without secrets."""

import gc
import logging
import traceback
import tracemalloc
import warnings
from contextlib import aclosing, asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from hostile_server import BEHAVIOURS, KEY, serving
from stage import worker_leaves_nothing  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.

from runners import ExecuteBatch, InlineHost, OpenAIModel, Sampling, device_worker
from runners.errors import (
    BadRequest,
    ContextLengthExceeded,
    Forbidden,
    InferenceError,
    NetworkError,
    NetworkTimeout,
    RateLimited,
    ServerError,
    Unauthorized,
)
from runners.models.openai import runner as runner_module
from runners.types import RunnerStart
from supervise import open_tree

SLOW = 60
"""Seconds that a busy machine may take for what takes none."""
FIRST = NEXT = 0.3
"""Of those that are to pass one of these deadlines; the others have as long as a busy machine may take."""

STATUSES = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: BadRequest,
    408: NetworkError,
    413: BadRequest,
    422: BadRequest,
    425: NetworkError,
    429: RateLimited,
    500: ServerError,
    502: ServerError,
    503: ServerError,
    529: ServerError,
}
ENDS = {
    "refuses_with_html": ServerError,
    "refuses_without_end": NetworkError,
    "refuses_with_an_endless_body": BadRequest,
    "refuses_with_a_body_that_stalls": BadRequest,
    "refuses_with_a_body_that_is_cut": BadRequest,
    "refuses_a_long_context": ContextLengthExceeded,
    "refuses_without_credit": Forbidden,
    "refuses_with_nonsense_as_its_time": RateLimited,
    "reports_an_error": ServerError,
    "reports_an_error_behind_the_end": ServerError,
    "reports_a_named_error": ServerError,
    "reports_a_limit": RateLimited,
    "comments": NetworkTimeout,
    "comments_without_a_pause": NetworkTimeout,
    "says_nothing": NetworkTimeout,
    "says_nothing_behind_its_head": NetworkTimeout,
    "sends_roles": NetworkTimeout,
    "stalls": NetworkTimeout,
}
ENDS |= {f"refuses_{status}": kind for status, kind in STATUSES.items()}
GOOD = {name for name in BEHAVIOURS if name.startswith(("is_", "comes_", "keeps_"))}
ENDLESS = {
    name
    for name in BEHAVIOURS
    if "endless" in name or name in ("comments_without_a_pause", "sends_roles", "sends_tokens_for_ever")
}


def request(name="a", most=20, **options):
    return ExecuteBatch(name, "go on", sampling=Sampling(max_tokens=most, seed=2**62 + 5), **options)


@asynccontextmanager
async def asking(answer, monkeypatch, **options):
    """The worker, and what its server got."""
    monkeypatch.setenv("HOSTILE_KEY", KEY)
    times = {"first_chunk_timeout": SLOW, "next_chunk_timeout": SLOW}
    async with serving(answer) as (url, peers):
        spec = OpenAIModel(url, "m", key_env="HOSTILE_KEY", **{**times, **options})
        async with open_tree(device_worker("api", spec, host=InlineHost()), sinks=[]) as tree:
            yield tree["api"], peers


def texts(error):
    """All that may be printed of an error, and what hangs on it."""
    found, rest = [], [error]
    while rest:
        each = rest.pop()
        found += [str(each), repr(each), repr(vars(each)), *map(str, each.args)]
        rest += [other for other in (each.__cause__, each.__context__) if other is not None]
    return [*found, *traceback.format_exception(error)]


@pytest.mark.parametrize("name", sorted(BEHAVIOURS.keys() - GOOD))
@pytest.mark.trio
async def test_whatever_a_server_does_its_request_ends_as_it_should(name, monkeypatch, caplog):
    """D5: The error has the type of what happened, and comes in time; nothing that the server says gives the key away."""
    monkeypatch.setattr(runner_module, "_REFUSAL_SECONDS", 0.3)
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, logger="runners")
    if name in ENDLESS:
        tracemalloc.start()
    try:
        with trio.fail_after(SLOW):
            short = name in ENDLESS or ENDS.get(name) is NetworkTimeout
            times = {"first_chunk_timeout": FIRST, "next_chunk_timeout": NEXT} if short else {}
            async with asking(BEHAVIOURS[name], monkeypatch, **times) as (worker, peers):
                while not peers:  # on a busy machine a short time may be over before the server is asked
                    with pytest.raises(InferenceError) as raised:
                        await worker.call(request())
                assert worker.status().children[0].incarnation == 1
        if name in ENDLESS:
            assert tracemalloc.get_traced_memory()[1] < 60 * 2**20
    finally:
        tracemalloc.stop()
    error = raised.value
    # An endless answer meets its limit of size, or on a busy machine that of time.
    too_slow = name in ENDLESS and type(error) is NetworkTimeout
    assert too_slow or type(error) is ENDS.get(name, NetworkError), texts(error)
    assert len(peers) == (2 if name == "refuses_401" else 1)
    for said in [*texts(error), caplog.text]:
        assert not any(KEY[at : at + 8] in said for at in range(len(KEY) - 8)), said
    assert len(str(error)) < 600


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.trio
async def test_a_finish_reason_makes_an_answer_whole(name, monkeypatch):
    """D5: With or without `[DONE]`, however it is cut into pieces, and whatever comes behind it but an error."""
    with trio.fail_after(SLOW):
        async with asking(BEHAVIOURS[name], monkeypatch) as (worker, peers):
            done = await worker.call(request())
    assert (done.text, done.finish_reason, done.token_ids) == ("one two three", "length", ())
    assert (done.usage.input, done.usage.output) == (3, 20)  # not the number of pieces
    assert peers[0].body == {
        "model": "m",
        "prompt": "go on",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 20,
        "temperature": 1.0,
        "seed": 5,
    }
    assert f"authorization: bearer {KEY}" in peers[0].head.decode().lower()


@pytest.mark.trio
async def test_a_connection_that_is_refused_is_an_error_of_the_network():
    """D5: The text says so."""
    spec = OpenAIModel("http://127.0.0.1:1/v1", "m")
    with trio.fail_after(SLOW):
        async with open_tree(device_worker("api", spec, host=InlineHost()), sinks=[]) as tree:
            with pytest.raises(NetworkError, match="ConnectError"):
                await tree["api"].call(request())


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.trio
async def test_an_error_of_the_key_has_no_text_of_the_server(status, monkeypatch):
    """It may quote the key in any form."""
    with trio.fail_after(SLOW):
        async with asking(BEHAVIOURS[f"refuses_{status}"], monkeypatch) as (worker, _):
            with pytest.raises(InferenceError) as raised:
                await worker.call(request())
    assert (str(raised.value), raised.value.code) == (f"HTTP {status}", status)


@pytest.mark.trio
async def test_the_body_of_a_refusal_is_read_no_further_than_it_is_looked_at(monkeypatch):
    """Its size bounds it before its time does."""
    sizes = []
    refusal = runner_module.refusal
    monkeypatch.setattr(
        runner_module,
        "refusal",
        lambda status, body, *rest, **of: sizes.append(len(body)) or refusal(status, body, *rest, **of),
    )
    monkeypatch.setattr(runner_module, "_REFUSAL_SECONDS", 10 * SLOW)
    with trio.fail_after(SLOW):
        async with asking(BEHAVIOURS["refuses_with_an_endless_body"], monkeypatch) as (worker, _):
            with pytest.raises(BadRequest):
                await worker.call(request())
    assert sizes == [4096]


@pytest.mark.parametrize(
    "name", ["sends_an_endless_line", "refuses_with_an_endless_body", "reports_an_error", "sends_no_json"]
)
@pytest.mark.trio
async def test_a_body_that_is_left_leaves_no_open_generator(name):
    """Trio would warn of each when it is collected, at some other time."""
    with trio.fail_after(SLOW):
        async with serving(BEHAVIOURS[name]) as (url, _):
            runner = OpenAIModel(url, "m").build(RunnerStart(incarnation=1))
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                with suppress(InferenceError):
                    async with aclosing(runner.execute(request())) as chunks:
                        async for _ in chunks:
                            pass
                gc.collect()
                await trio.testing.wait_all_tasks_blocked()
            await runner.close()
    assert [str(warning.message) for warning in seen] == []


@pytest.mark.trio
async def test_a_caller_who_leaves_closes_the_connection(monkeypatch):
    """D10: The server learns of it, and stops to compute."""
    closed = trio.Event()

    async def stream(peer):
        await BEHAVIOURS["stalls"](peer)
        closed.set()

    with trio.fail_after(SLOW):
        async with asking(stream, monkeypatch, next_chunk_timeout=SLOW) as (worker, _):
            async with worker.stream(request()) as chunks:
                await anext(chunks)
            await closed.wait()


@pytest.mark.slow
@pytest.mark.trio
async def test_a_slow_reader_is_no_slow_server(monkeypatch):
    """D9: The deadline counts the time in which the server is waited for."""
    good = BEHAVIOURS["is_good"]
    with trio.fail_after(SLOW):
        async with (
            asking(good, monkeypatch, next_chunk_timeout=NEXT) as (worker, _),
            worker.stream(request()) as chunks,
        ):
            await trio.sleep(3 * NEXT)
            assert "".join([chunk.text async for chunk in chunks]) == "one two three"


@pytest.mark.trio
async def test_done_may_be_enough_for_a_server_without_finish_reasons(monkeypatch):
    """It is an option, since a gateway may add it to a stream that was cut."""
    with trio.fail_after(SLOW):
        async with asking(BEHAVIOURS["ends_early_with_done"], monkeypatch, done_is_enough=True) as (
            worker,
            _,
        ):
            assert (await worker.call(request())).text == "one"
        async with asking(BEHAVIOURS["ends_early"], monkeypatch, done_is_enough=True) as (worker, _):
            with pytest.raises(NetworkError, match="without a finish reason"):
                await worker.call(request())
