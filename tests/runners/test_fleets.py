"""A worker whose contexts are on several machines, of which one is lost as a whole (D6, D12)."""

from itertools import pairwise

import pytest
import trio
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nodes import Member, Node
from stage import (
    Caller,
    Stage,
    batch,
    callers,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)
from test_groups import asks, serving

from runners.errors import ContextDied, ContextLost, PoisonRequest, RunnerError, Timeout
from runners.hosts import RequestFailed
from runners.models.scripted import Fault, Scripted
from runners.worker import rebuild, replace
from runners.worker.group import Group
from runners.worker.record import Record
from supervise import Backoff
from supervise.testing import run_virtual

pytestmark = pytest.mark.filterwarnings("error")

TOKENS, STEP, PREFILL = 12, 0.5, 3.0
LAGS = st.sampled_from([0.0, 0.001, 0.01, 0.3, 2.0])
MEMBERS = st.lists(st.lists(LAGS, min_size=1, max_size=4), min_size=2, max_size=3)


def members(nodes, lags):
    """A host for each context; `lags` has for each node how late the loss of each is noticed."""
    return [Member(node, lag) for node, each in zip(nodes, lags, strict=True) for lag in each]


async def streamed(runner, lags, them, lost, at):
    """Run all callers, and lose one node in the meantime; returns its hosts and the others."""
    nodes = [Node() for _ in lags]
    hosts = members(nodes, lags)
    async with serving(runner, hosts=hosts, limit=None, patience=1e6) as scene:
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            await trio.sleep(at)
            nodes[lost].fail()
        nodes[lost].repair()
    return [host for host in hosts if host.node is nodes[lost]], [
        host for host in hosts if host.node is not nodes[lost]
    ]


@given(
    lags=MEMBERS,
    lost=st.integers(0, 2),
    at=st.floats(0, 6),
    streams=st.integers(1, 4),
    requests=st.integers(1, 24),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_the_loss_of_a_machine_costs_no_stream(lags, lost, at, streams, requests, seed):
    """D6, D12: Though its contexts are noticed to be dead one after the other, and streams move to those that are not yet."""
    them = callers([f"{number}" for number in range(requests)])
    runner = Scripted(TOKENS, streams=streams, delay=STEP)
    run_virtual(lambda: streamed(runner, lags, them, lost % len(lags), at), seed=seed)
    for caller in them:
        caller.assert_whole(TOKENS)


@given(lags=st.lists(st.sampled_from([0.0, 0.01, 0.1]), min_size=2, max_size=3), seed=st.integers(0, 2**32))
@example(lags=[0.0, 0.01, 0.1], seed=0)
@settings(max_examples=10, deadline=None)
def test_after_the_loss_of_a_machine_no_stream_waits_for_another(lags, seed):
    """D6, D12: The longest gap is the detection and one prefill, however many streams were there; they are spread evenly."""
    seen = {}
    them = [
        Caller(
            batch(f"{number}"),
            lambda chunk: seen.setdefault(chunk.request_id, []).append(trio.current_time()),
        )
        for number in range(64)
    ]
    slow = Fault("slow", moved=True, seconds=PREFILL)
    runner = Scripted(TOKENS, streams=16, delay=STEP, faults=(slow,))
    everywhere = [lags, [0.0] * 3, [0.0] * (5 - len(lags))]
    _, others = run_virtual(lambda: streamed(runner, everywhere, them, 0, 1.75), seed=seed)
    for caller in them:
        caller.assert_whole(TOKENS)
    gaps = [max(b - a for a, b in pairwise(times)) for times in seen.values()]
    assert max(gaps) <= STEP + max(lags) + PREFILL + STEP + 0.001
    begun = [len(host.begun) for host in others]
    assert max(begun) - min(begun) <= 2


@pytest.mark.slow
@given(
    lags=MEMBERS,
    guilty=st.sets(st.integers(0, 11), max_size=2),
    streams=st.integers(1, 4),
    at=st.integers(0, TOKENS - 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_a_request_that_kills_contexts_is_found_in_a_fleet(lags, guilty, streams, at, seed):
    """D6, D12: It alone fails; and no context has two suspects on trial at once."""
    them = callers([f"{number}" for number in range(12)])
    faults = tuple(Fault("poison", f"{number}", at) for number in guilty)
    hosts = members([Node() for _ in lags], lags)

    async def main():
        runner = Scripted(TOKENS, streams=streams, delay=STEP, faults=faults)
        async with (
            serving(runner, hosts=hosts, limit=None, patience=1e6) as scene,
            trio.open_nursery() as nursery,
        ):
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)

    run_virtual(main, seed=seed)
    for number, caller in enumerate(them):
        if number in guilty:
            assert type(caller.error) is PoisonRequest
        else:
            caller.assert_whole(TOKENS)
    if len(guilty) == 1:
        assert max(host.most_on_trial for host in hosts) <= 1


@pytest.mark.trio
async def test_a_suspect_is_not_convicted_by_a_context_that_had_not_taken_it(autojump_clock):
    """D6: That context was dead, or hung, before the suspect came; then it is tried in the next one."""
    host = Stage()
    async with serving(hosts=[host]) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        host.acts[0].fails(ContextDied("killed"))
        second = await host.act(2)
        await second.has("a")
        second.takes = False
        second.fails(ContextDied("killed too"))
        third = await host.act(3)
        await third.has("a")
        assert not a.over.is_set()
        third.fails(ContextDied("killed too"))
        await a.over.wait()
        assert type(a.error) is PoisonRequest
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_streams_of_contexts_that_die_together_come_back_together(autojump_clock):
    """D6, D12: After the first death one suspect is tried; after the second, in which it was not, the others need no trial."""
    hosts = [Stage(), Stage(), Stage()]
    backoff = Backoff(initial=50, jitter=0)
    async with serving(hosts=hosts, backoff=backoff) as scene, trio.open_nursery() as nursery:
        await asks(nursery, scene.worker, "abcdef")
        first, second, third = await scene.acts(0, 1, 2)
        second.takes = False
        first.fails(ContextDied("killed"))
        await until(lambda: len(third.open) == 3)
        await trio.testing.wait_all_tasks_blocked()
        assert (len(second.open), len(third.open)) == (3, 3)  # each has a suspect on trial
        assert sorted(second.confirms + third.confirms) == ["a", "d"]
        second.fails(ContextDied("killed too"))
        await until(lambda: len(third.open) == 4)  # all of its places
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_later_death_is_judged_alone(autojump_clock):
    """D6: Once the streams of a death have made a step, the next death has suspects again."""
    hosts = [Stage(), Stage(), Stage()]
    backoff = Backoff(initial=50, jitter=0)
    async with serving(hosts=hosts, backoff=backoff) as scene, trio.open_nursery() as nursery:
        a, *_ = await asks(nursery, scene.worker, "abcde")
        first, second, third = await scene.acts(0, 1, 2)
        assert (list(first.open), list(second.open), list(third.open)) == (["a", "d"], ["b", "e"], ["c"])
        first.fails(ContextDied("killed"))
        for name in "ad":
            await until(lambda name=name: name in {**second.open, **third.open})
            (there,) = [act for act in (second, third) if name in act.open]
            there.makes(name)
        await until(lambda: a.chunks)
        await trio.testing.wait_all_tasks_blocked()
        before = len(third.open)
        second.fails(ContextDied("killed too"))
        await until(lambda: len(third.open) > before)
        await trio.testing.wait_all_tasks_blocked()
        assert len(third.open) == before + 1
        nursery.cancel_scope.cancel()


def test_a_stream_that_has_ended_is_no_part_of_a_loss():
    """D6: Neither one whose caller has left in the queue, nor one that has made a step, joins a later death."""
    group = Group()
    records = [Record(batch(name)) for name in "ab"]
    loss = group.dies(is_apart=True)
    for record in records:
        loss.add(record)
    assert all(record.suspect for record in records)
    assert group.dies(is_apart=True) is loss
    assert not any(record.suspect for record in records)
    records[0].left()
    records[1].settle()
    assert group.dies(is_apart=True) is not loss


@pytest.mark.parametrize("ends", ["refused", "failed"])
@pytest.mark.trio
async def test_a_stream_that_ends_in_the_next_context_is_no_part_of_a_loss(ends, autojump_clock):
    """D6: It is refused there, because it cannot be continued, or fails by itself before its first step."""
    hosts = [Stage(), Stage(can_continue=ends == "failed")]
    backoff = Backoff(initial=50, jitter=0)
    async with serving(hosts=hosts, backoff=backoff) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        first, second = await scene.acts(0, 1)
        group = (await scene.above(1).ready())._context.group
        first.makes("a")
        await until(lambda: a.chunks)
        first.fails(ContextDied("killed"))
        if ends == "failed":
            await until(lambda: "a" in second.open)
            assert group.loss.streams
            del second.open["a"]
            second.fails([RequestFailed("a", RunnerError("x"))])
        await a.over.wait()
        assert type(a.error) is (RunnerError if ends == "failed" else ContextLost)
        assert not group.loss.streams


@pytest.mark.trio
async def test_a_worker_that_was_down_remembers_no_loss(autojump_clock):
    """D6: Its streams have ended with it; after the next death there are suspects."""
    host = Stage()
    async with serving(hosts=[host]) as scene, trio.open_nursery() as nursery:
        for name in "ab":  # without a caller, who would leave
            scene.worker.send_nowait(batch(name))
        first = await host.act(1)
        await first.has("a", "b")
        first.fails(ContextDied("killed"))
        await (await host.act(2)).has("a")
        await scene.worker.stop()
        await scene.worker.start()
        await asks(nursery, scene.worker, "cd")
        (await host.act(3)).fails(ContextDied("killed"))
        await (await host.act(4)).has("c")
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_deadline_in_the_queue_ends_a_stream_for_its_loss_too(autojump_clock):
    """D6, D8: No later death is joined with one whose streams are all over."""
    hosts = [Stage(streams=1), Stage(streams=1)]
    backoff = Backoff(initial=500, jitter=0, immediate=0)
    async with serving(hosts=hosts, backoff=backoff, patience=3000) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a", deadline=trio.current_time() + 10)
        await asks(nursery, scene.worker, "b")
        first, second = await scene.acts(0, 1)
        group = (await scene.above(1).ready())._context.group
        assert (list(first.open), list(second.open)) == (["a"], ["b"])
        first.fails(ContextDied("killed"))
        await until(lambda: group.loss.streams)
        await a.over.wait()
        assert type(a.error) is Timeout
        assert not group.loss.streams
        nursery.cancel_scope.cancel()


# --- one member


@pytest.mark.trio
async def test_a_member_that_is_drained_gets_nothing_new_and_its_streams_go_on(autojump_clock):
    """D12, D13: Those that end within the time end there; a longer one moves to another context, and continues there."""
    hosts = members([Node(), Node()], [[0.0], [0.0]])
    runner = Scripted(TOKENS, streams=4, delay=STEP)
    async with (
        serving(runner, hosts=hosts, drain=3.2, patience=1000) as scene,
        trio.open_nursery() as nursery,
    ):
        early = await asks(nursery, scene.worker, "ab")
        await trio.sleep(4)
        late = await asks(nursery, scene.worker, "cd")
        await trio.sleep(0.75)
        began = trio.current_time()
        nursery.start_soon(scene.above(0).stop)
        await trio.sleep(0.1)
        before = list(hosts[0].begun)
        more = await asks(nursery, scene.worker, "ef")
        await until(lambda: scene.nodes()[0] == ("app/llm/context-0", "down"))
        assert trio.current_time() - began == pytest.approx(3.2, abs=0.1)
        for caller in (*early, *late, *more):
            await caller.over.wait()
            caller.assert_whole(TOKENS)
        assert hosts[0].begun == before == ["a", "c"]
        assert hosts[1].begun == ["b", "d", "e", "f", "c"]


@pytest.mark.parametrize("order", ["rebuild", "replace"])
@pytest.mark.trio
async def test_orders_leave_out_the_contexts_of_a_lost_machine_once_they_are_stopped(order, autojump_clock):
    """D7, D12: Until then they wait for these, and the others serve; those that come back have the new runner."""
    nodes = [Node(), Node(), Node()]
    hosts = members(nodes, [[0.0, 0.0], [0.0], [0.0]])
    old, new = (Scripted(tokens, streams=4, delay=STEP) for tokens in (4, 6))
    async with serving(old, hosts=hosts, limit=None, patience=1000) as scene:
        nodes[0].fail()
        await until(lambda: scene.state(0) == scene.state(1) == "starting")
        done = trio.Event()

        async def carried_out():
            await (rebuild(scene.worker) if order == "rebuild" else replace(scene.worker, new))
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(carried_out)
            await trio.sleep(100)
            assert not done.is_set()
            async with trio.open_nursery() as asking:
                them = await asks(asking, scene.worker, "abcd")
            assert [caller.error for caller in them] == [None] * 4
            for number in range(2):
                await scene.above(number).stop()
        nodes[0].repair()
        for number in range(2):
            await scene.above(number).start()
        runner = new if order == "replace" else old
        for number in range(4):
            assert (await scene.above(number).ready())._context.runner == runner
