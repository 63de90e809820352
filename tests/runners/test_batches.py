"""Requests that wait together are computed together: a runner that batches gets full batches from every host."""

import os
import signal

import pytest
import trio
import trio.testing
from contexts import (
    nothing_left,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
    until,
)
from sessions import PATIENCE, PROCESS, every_host, ids, opened, rest

from benchmarks.batching import Batching, mean_batch
from runners import device_worker
from runners.errors import ContextDied, ContextPoisoned
from runners.models.scripted import Scripted, asked, expected
from runners.types import ExecuteBatch
from supervise import open_tree

FULL = 60 / 64
ROUNDS = 5


async def sizes_of(host, places, callers, rounds):
    """The size of the step of each request, if so many callers send so many requests, one after the other."""
    sizes = []
    worker = device_worker("batching", Batching(places), host=host)

    async def call(tree, name):
        for number in range(rounds):
            done = await tree[worker].call(ExecuteBatch(f"{name}.{number}"))
            sizes.append(done.data[0])

    with trio.fail_after(PATIENCE):
        async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
            for name in range(callers):
                nursery.start_soon(call, tree, name)
    return sizes


@every_host
@pytest.mark.parametrize("places", [64, 50])
@pytest.mark.parametrize("waiting", [True, False], ids=["waiting", "coming back"])
def test_requests_that_wait_make_full_batches(host, places, waiting):
    """D10: All that have a place are in one step, from the queue, and when their callers come back with the next ones."""
    callers, rounds = (ROUNDS * places, 1) if waiting else (places, ROUNDS)
    sizes = trio.run(sizes_of, host, places, callers, rounds)
    assert len(sizes) == ROUNDS * places
    assert mean_batch(sizes) >= FULL * places


@every_host
@pytest.mark.trio
async def test_what_several_tasks_begin_in_one_turn_of_the_loop_is_one_step(host):
    """Whichever of them begins first, and however the reader waits."""
    items = []
    async with opened(Batching(64), host) as session, trio.open_nursery() as nursery:
        nursery.start_soon(receive_all, session, 40, items)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(40):
            nursery.start_soon(begin, session, ExecuteBatch(f"{number}"))
    assert [item.data for item in items] == [40] * 40


async def begin(session, batch):
    session.begin(batch)


async def receive_all(session, count, items):
    while len(items) < count:
        items += await session.receive()


@pytest.mark.trio
async def test_a_stream_that_is_dropped_in_the_turn_of_its_begin_never_reaches_the_process(tmp_path):
    """Its place is free at once, for a stream of the same name too, and no deadline counts for it."""
    log = str(tmp_path / "log")
    async with opened(Scripted(2, streams=1, log=log), PROCESS) as session:
        for _ in range(3):
            session.begin(ExecuteBatch("again", "not this"))
            session.drop("again")
        session.begin(ExecuteBatch("again", "this"))
        assert ids(await rest(session, "again")) == expected(ExecuteBatch("again", "this"), 2)
        assert not session._leaving
        assert session._time_limit()[0] == float("inf")
    assert [ask.request_id for ask in asked(log) if ask.what == "execute"] == ["again"]


@pytest.mark.trio
async def test_a_drop_of_another_stream_goes_out_before_the_begins_of_its_turn():
    """The process then has a place for what begins; and it is not asked to drop what it has never got."""
    async with opened(Scripted(1000, streams=2), PROCESS) as session:
        session.begin(ExecuteBatch("old", "x"))
        await session.receive()
        session.begin(ExecuteBatch("new", "y"))
        session.drop("old")
        session.begin(ExecuteBatch("third", "z"))
        items = []
        while not {"new", "third"} <= {item.request_id for item in items}:
            items += await session.receive()
        assert "old" not in {item.request_id for item in items}
        while session._leaving:
            await session.receive()


@pytest.mark.trio
@pytest.mark.parametrize("how", ["killed", "condemned"])
async def test_a_session_that_fails_before_its_begins_are_sent_raises_the_failure(how):
    """What was begun has no other answer, and can be dropped."""
    kind = ContextDied if how == "killed" else ContextPoisoned
    with pytest.raises(kind):
        async with opened(Scripted(2), PROCESS) as session:
            session.begin(ExecuteBatch("one", "x"))
            if how == "killed":
                os.kill(session.pid, signal.SIGKILL)
                await until(lambda: session._peer.dead)
            else:
                session.condemn(ContextPoisoned("found from outside"))
            session.begin(ExecuteBatch("two", "x"))
            with pytest.raises(kind):
                await session.receive()
            for name in ("one", "two", "never"):
                session.drop(name)
            with pytest.raises(kind):
                await session.receive()
            await session.receive()


@pytest.mark.trio
async def test_a_session_that_ends_before_its_begins_are_sent_closes_its_runner(tmp_path):
    """As if they had never been begun."""
    log, sent = str(tmp_path / "log"), []
    async with opened(Scripted(2, log=log), PROCESS) as session:
        session._peer.send_marked = sent.append
        session.begin(ExecuteBatch("one", "x"))
    await trio.testing.wait_all_tasks_blocked()
    assert not sent
    assert [ask.what for ask in asked(log)] == ["load", "close"]
