"""A request's own deadline: it ends in time, typed, and frees its place. In virtual time, over an InlineHost."""

from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from remotes import Log, Remote

from runners.errors import ContextPoisoned, Timeout
from runners.hosts.inline import InlineHost
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Scripted, expected
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker
from supervise import open_tree
from supervise.testing import run_virtual


def request(name, seconds=None):
    batch = ExecuteBatch(name, f"go on, {name}", sampling=Sampling(seed=7, max_tokens=1000))
    return batch if seconds is None else attrs.evolve(batch, deadline=trio.current_time() + seconds)


@asynccontextmanager
async def serving(runner):
    spec = device_worker("llm", runner, host=InlineHost(), backoff=None)
    async with open_tree(spec, sinks=[]) as tree:
        yield tree[spec]


async def ask(worker, batch, outcomes):
    """Its tokens or its Timeout, and how long that took."""
    before = trio.current_time()
    try:
        end = (await worker.call(batch)).token_ids
    except Timeout as error:
        end = error
    outcomes[batch.request_id] = end, trio.current_time() - before


@given(st.integers(0, 2**32), st.lists(st.none() | st.floats(0.05, 1.0), min_size=1, max_size=8))
def test_each_request_ends_by_its_deadline_and_not_before(seed, deadlines):
    """D8: Each ends at its end or at its deadline, whichever comes first, and none disturbs another."""
    runner = Remote(log=Log())

    async def main():
        outcomes = {}
        async with serving(runner) as worker, trio.open_nursery() as nursery:
            for number, seconds in enumerate(deadlines):
                nursery.start_soon(ask, worker, request(f"{number}", seconds), outcomes)
        for number, seconds in enumerate(deadlines):
            end, took = outcomes[f"{number}"]
            if seconds is None or seconds > 0.51:
                assert end == expected(request(f"{number}"), 5)
                assert took == pytest.approx(0.5)
            elif seconds < 0.49:
                assert type(end) is Timeout
                assert took == pytest.approx(seconds)
                assert runner.log.events.count(f"{number} closed") == 1

    run_virtual(main, seed=seed)


@given(st.integers(0, 2**32))
def test_a_late_stream_frees_its_place_and_a_late_one_in_the_queue_never_begins(seed):
    """R30: The next one begins at once. A request that waited too long gets its error in time, and costs the runner nothing."""
    runner = Remote(streams=1, log=Log())

    async def main():
        outcomes = {}
        async with serving(runner) as worker, trio.open_nursery() as nursery:
            for name, seconds in (("first", 0.3), ("late", 0.1), ("last", None)):
                nursery.start_soon(ask, worker, request(name, seconds), outcomes)
                await trio.testing.wait_all_tasks_blocked()
        assert {name: (type(end), pytest.approx(took)) for name, (end, took) in outcomes.items()} == {
            "first": (Timeout, 0.3),
            "late": (Timeout, 0.1),
            "last": (tuple, 0.8),
        }
        assert "late" not in runner.log.made

    run_virtual(main, seed=seed)


def test_a_request_whose_deadline_has_passed_gets_its_error_at_once():
    """D8: The error is typed, and no step is made."""

    async def main():
        outcomes, runner = {}, Remote(log=Log())
        async with serving(runner) as worker:
            await ask(worker, request("r", -1), outcomes)
        assert type(outcomes["r"][0]) is Timeout
        assert outcomes["r"][1] == 0
        assert runner.log.made == {}

    run_virtual(main)


def test_a_deadline_holds_over_incarnations():
    """D6: The deadline belongs to the request: a poison in between does not put it off, and the chunks that came stay."""
    chunks = []

    async def main():
        before = trio.current_time()
        faulty = Remote(20, log=Log(), fails={"r": ContextPoisoned("the server lost its device")})
        async with serving(faulty) as worker:
            with pytest.raises(Timeout, match="deadline"):
                async with worker.stream(request("r", 0.75)) as stream:
                    async for chunk in stream:
                        chunks.append(chunk)  # noqa: PERF401 - what came before the error counts
        assert trio.current_time() - before == pytest.approx(0.75)

    run_virtual(main)
    assert {chunk.incarnation for chunk in chunks} == {1, 2}
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == expected(request("r"), 20)[:6]


@pytest.mark.trio
async def test_a_deadline_reaches_a_process():
    """D8, D10: With a real process the place of the late stream serves the next."""
    outcomes = {}
    host = ProcessHost(load_timeout=60)
    spec = device_worker("llm", Scripted(10_000, delay=0.001, streams=1), host=host)
    with trio.fail_after(60):
        async with open_tree(spec, sinks=[]) as tree:
            await tree[spec].ready()
            await ask(tree[spec], request("r", 0.1), outcomes)
            assert type(outcomes["r"][0]) is Timeout
            async with tree[spec].stream(request("s")) as stream:
                assert (await anext(stream)).index == 0
