"""The adapter of functions over a batch."""

import time

import pytest
import trio
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from runners import ExecuteBatch, InlineHost, ProcessHost, ThreadHost, device_worker
from runners.errors import BadRequest, ContextPoisoned, OutOfMemory, RunnerError
from runners.hosts.turns import NOTHING
from runners.models.batched import batched_runner
from runners.models.scripted import Fault, Faulty
from runners.types import FinishReason, ModelRunner, RunnerStart, TokenUsage
from supervise import open_tree

START = RunnerStart(incarnation=1)


def doubled(calls=None, harm=None):
    def function(inputs):
        if calls is not None:
            calls.append(list(inputs))
        if harm:
            harm(inputs)
        return [2 * each for each in inputs]

    return function


def request(name, payload=None, **more):
    return ExecuteBatch(f"{name}", payload=payload, **more)


def outcome(stream):
    """What a host gets of the stream, which it asks until there is something."""
    try:
        while (chunk := next(stream)) is NOTHING:
            pass
    except Exception as error:
        return error
    assert chunk.finish_reason is FinishReason.STOP
    assert next(stream, None) is None
    return chunk.data


def outcomes(runner, inputs):
    streams = [runner.execute(request(number, each)) for number, each in enumerate(inputs)]
    return [outcome(stream) for stream in streams]


# ---- batches --------------------------------------------------------------------------------------------------------


def test_one_turn_is_one_batch_of_at_most_its_size():
    """The first `next` of a turn computes for all; what is over comes with the next one that has no answer."""
    calls = []
    runner = batched_runner(doubled(calls), size=3, window_ms=0, streams=8)
    assert isinstance(runner, ModelRunner)
    assert (runner.info.streams, runner.info.can_continue) == (8, False)
    assert outcomes(runner, [1, 2, 3, 4]) == [2, 4, 6, 8]
    assert calls == [[1, 2, 3], [4]]
    assert not runner.places
    assert batched_runner(doubled(), size=5).info.streams == 5


def test_a_batch_waits_for_its_window_but_not_for_more_than_it_can_hold():
    """Until then a stream has nothing, and the host may begin others; a full batch is computed at once."""
    calls = []
    runner = batched_runner(doubled(calls), size=2, window_ms=50)
    first = runner.execute(request("a", 1))
    began = time.monotonic()
    assert next(first) is NOTHING
    second = runner.execute(request("b", 2))
    assert (outcome(first), outcome(second), calls) == (2, 4, [[1, 2]])
    alone = runner.execute(request("c", 3))
    while next(alone) is NOTHING:
        assert not calls[1:]
    assert time.monotonic() - began > 0.05
    assert calls == [[1, 2], [3]]
    few = batched_runner(doubled(calls), size=2, window_ms=60_000, streams=1)
    assert next(few.execute(request("d", 4))).data == 8  # no other stream can come


def test_the_oldest_stream_waits_once_in_a_turn(monkeypatch):
    """A turn of many streams takes no longer than one of one."""
    naps = []
    monkeypatch.setattr("runners.models.batched.time.sleep", naps.append)
    runner = batched_runner(doubled(), size=9, window_ms=10_000)
    streams = [runner.execute(request(number, 1)) for number in range(8)]
    assert [next(stream) for stream in streams] == [NOTHING] * 8
    assert len(naps) == 1


def test_a_closed_stream_leaves_its_place_and_the_batch():
    """Also one that is closed before it began."""
    calls = []
    runner = batched_runner(doubled(calls), size=2, window_ms=0)
    gone, other = runner.execute(request("a", 1)), runner.execute(request("b", 2))
    with pytest.raises(RuntimeError, match=r"^at most 2 streams may be open, 'c' is one more$"):
        runner.execute(request("c", 3))
    gone.close()
    assert (outcome(other), list(gone), calls) == (4, [], [[2]])
    runner.close()
    assert str(outcome(runner.execute(request("d", 1)))) == "the runner is closed"


class Tensor:
    def tolist(self):
        return [0.5, 1.0]


def test_the_data_is_plain_and_the_usage_is_counted():
    """D11: Arrays and tensors become lists, wherever they stand."""
    runner = batched_runner(
        lambda inputs: [{"vectors": (Tensor(), 1)}] * len(inputs), window_ms=0, count_tokens=len
    )
    (chunk,) = runner.execute(ExecuteBatch("a", "four"))
    assert chunk.data == {"vectors": [[0.5, 1.0], 1]}
    assert chunk.usage == TokenUsage(input=4)


# ---- errors ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["good", "bad", "wrong"]), min_size=1, max_size=8), st.integers(1, 8))
def test_a_bad_input_fails_alone(inputs, size):
    """D5: Whether the function raises for the batch, or has an exception in the place of the result."""

    def function(batch):
        if "bad" in batch:
            raise ValueError("bad")
        return [KeyError("wrong") if each == "wrong" else each for each in batch]

    runner = batched_runner(function, size=size, window_ms=0, streams=8)
    kinds = [type(found) if isinstance(found, Exception) else found for found in outcomes(runner, inputs)]
    assert kinds == [{"bad": ValueError, "wrong": KeyError}.get(each, each) for each in inputs]
    assert not runner.places


class Tagged(Exception):
    tag = "device.poisoned"


KINDS = pytest.mark.parametrize("kind", [MemoryError, OutOfMemory, ContextPoisoned, Tagged])


@KINDS
def test_a_device_error_that_is_raised_is_neither_tried_again_nor_the_error_of_a_neighbour(kind):
    """D4: By class, tag or code; it is raised as it is, and the others are computed in the next batch (D5)."""
    calls = []

    def function(inputs):
        calls.append(list(inputs))
        if len(calls) > 1:
            return inputs
        raise kind("the device")

    found = outcomes(batched_runner(function, window_ms=0), [1, 2, 3])
    assert (type(found[0]), found[1:]) == (kind, [2, 3])
    assert calls == [[1, 2, 3], [2, 3]]


@KINDS
def test_a_device_error_in_the_place_of_a_result_is_that_of_its_own_request(kind):
    """D5: The stream of the request raises it, the others keep their results, and nothing is computed twice."""
    calls = []

    def function(inputs):
        calls.append(list(inputs))
        return [kind("the device") if each == 2 else each for each in inputs]

    found = outcomes(batched_runner(function, window_ms=0), [1, 2, 3])
    assert (found[0], type(found[1]), found[2]) == (1, kind, 3)
    assert calls == [[1, 2, 3]]


def test_torchs_own_classes_are_device_errors_too():
    """D4: The code of an accelerator error, and torch's lack of memory."""
    torch = pytest.importorskip("torch")
    calls = []

    def function(inputs):
        calls.append(inputs)
        raise torch.OutOfMemoryError("no room")

    found = outcomes(batched_runner(function, window_ms=0), [1, 2])
    assert [type(each) for each in found] == [torch.OutOfMemoryError] * 2
    assert calls == [[1, 2], [2]]


def test_a_function_that_returns_too_few_results_fails_its_requests_with_one_line():
    """D5: It is not known which one is missing, so each input is tried alone."""
    found = outcomes(batched_runner(lambda inputs: inputs[1:], window_ms=0), [1, 2])
    assert [str(each) for each in found] == [
        "a function over a batch must return a result for each of 1, got 0"
    ] * 2
    assert {type(each) for each in found} == {RunnerError}


def test_a_request_that_makes_no_sense_is_refused_alone():
    """D5: It has a prompt and a payload, or options."""
    runner = batched_runner(doubled(), window_ms=0)
    both, options = ExecuteBatch("a", "b", payload=1), request("c", 1, options={"top_k": 1})
    found = [outcome(runner.execute(batch)) for batch in (both, options)]
    assert {type(each) for each in found} == {BadRequest}
    assert [str(each) for each in found] == [
        "a request must have a prompt or a payload, got both: 'b'",
        "this runner knows no options, got 'top_k'",
    ]


class Scalar:
    """As an array or a tensor without a dimension."""

    shape = ()

    def __len__(self):
        raise TypeError("len() of unsized object")

    __getitem__ = __iter__ = __len__


@pytest.mark.parametrize(
    "results", [{"label": "calm"}, "ab", b"ab", {1, 2}, None, 3, Scalar(), iter("ab"), {"a": 1}.keys()]
)
def test_results_must_have_an_order_and_a_length(results):
    """D8: A dict of two keys is not two results, and a text of two characters neither."""
    found = outcomes(batched_runner(lambda inputs: results, window_ms=0), [1, 2])
    assert {type(each) for each in found} == {RunnerError}
    assert str(found[0]).startswith(
        "a function over a batch must return a list, a tuple or an array of results, got "
    )


def test_results_may_be_an_array():
    """One row for each input."""
    numpy = pytest.importorskip("numpy")
    runner = batched_runner(lambda inputs: numpy.ones((len(inputs), 2)), window_ms=0)
    assert outcomes(runner, [1, 2]) == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("place", ["raised", "returned", "raised by a result"])
def test_a_stop_iteration_does_not_end_a_stream_without_a_word(place):
    """D5: It is an error of the runner, with its text."""

    class Stopping:
        def tolist(self):
            raise StopIteration("no more")

    def function(inputs):
        if place == "raised":
            raise StopIteration("no more")
        return [StopIteration("no more") if place == "returned" else Stopping(), 5]

    found, other = outcomes(batched_runner(function, window_ms=0), [1, 2])
    assert type(other) is RunnerError if place == "raised" else other == 5
    assert type(found) is RunnerError
    assert "StopIteration: no more" in str(found)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, r"^size must be >= 1, got 0$"),
        ({"window_ms": -1}, r"^window_ms must be a finite number >= 0, got -1$"),
        ({"streams": 0}, "streams must be >= 1, got 0"),
        ({"size": 2.5}, r"^size must be an integer, got 2\.5$"),
        ({"size": "3"}, r"^size must be an integer, got '3'$"),
        ({"size": True}, r"^size must be an integer, got True$"),
        ({"window_ms": "3"}, r"^window_ms must be a number, got '3'$"),
        ({"window_ms": float("nan")}, r"^window_ms must be a finite number >= 0, got nan$"),
        ({"window_ms": 10**400}, r"^window_ms must be a finite number >= 0, got 1000"),
        ({"count_tokens": 5}, r"^count_tokens must be callable or None, got 5$"),
        ({"function": 3}, r"^a function over a batch must be callable, got 3$"),
    ],
)
def test_the_adapter_refuses_nonsense(wrong, message):
    """One line that names the argument, what is allowed and what came."""
    with pytest.raises((ValueError, TypeError), match=message):
        batched_runner(**{"function": doubled(), **wrong})


def test_a_fault_around_a_function_waits_for_a_chunk():
    """What a stream gives while it waits is no chunk, and has no position at which a fault could strike."""
    runner = Faulty(Sizes(20.0), (Fault("error", "a", at_token=5), Fault("error", "b"))).build(START)
    assert outcome(runner.execute(request("a", 1))) == 1
    stream = runner.execute(request("b", 1))
    assert next(stream) is NOTHING
    assert type(outcome(stream)) is ArithmeticError


# ---- in a host ------------------------------------------------------------------------------------------------------


@frozen
class Sizes:
    """Answers each input with the size of its batch."""

    window_ms: float = 300.0

    def build(self, start):
        return batched_runner(
            lambda inputs: [len(inputs)] * len(inputs), size=6, window_ms=self.window_ms, streams=9
        )


@pytest.mark.trio
@pytest.mark.parametrize(
    "host", [InlineHost(), ThreadHost(), ProcessHost("cpu", start="spawn")], ids=lambda h: type(h).__name__
)
async def test_a_window_gathers_requests_that_come_one_after_the_other(host):
    """The host begins requests while the first one waits; the batch is full before its window is over."""
    worker = device_worker("sizes", Sizes(60_000.0), host=host)
    found = []

    async def ask(name):
        found.extend((await tree[worker].call(request(name, 1))).data)

    async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
        for name in range(6):
            nursery.start_soon(ask, name)
            await trio.sleep(0.005)
    assert found == [6] * 6


@pytest.mark.trio
@pytest.mark.parametrize("host", [InlineHost(), ThreadHost()], ids=lambda host: type(host).__name__)
async def test_a_request_that_stays_alone_is_computed_after_its_window(host):
    """A host asks again although nothing else happens."""
    worker = device_worker("sizes", Sizes(20.0), host=host)
    async with open_tree(worker, sinks=[]) as tree:
        with trio.fail_after(30):
            assert (await tree[worker].call(request("a", 1))).data == (1,)


@pytest.mark.slow
@pytest.mark.trio
async def test_requests_in_front_of_a_killed_context_are_computed_by_the_next():
    """D6: A request without a chunk has not begun: the process is really killed, and nothing is lost."""
    spec = Faulty(Sizes(), (Fault("kill", "1", incarnation=1),))
    worker = device_worker("sizes", spec, host=ProcessHost("cpu"), backoff=None)
    found = {}

    async def ask(name):
        found[name] = (await tree[worker].call(request(name, 1))).data

    async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
        for name in range(3):
            nursery.start_soon(ask, name)
    assert found.keys() == {0, 1, 2}
    assert all(sizes for sizes in found.values())
