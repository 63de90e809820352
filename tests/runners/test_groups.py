"""A worker over several contexts (D12). See `test_chaos` for what happens to such a worker under load."""

import sys
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from stage import (
    HOST,
    PUPPET,
    Caller,
    Stage,
    all_of,
    batch,
    callers,
    strike,
    until,
    worker_leaves_nothing,  # noqa: F401 - The import makes this autouse fixture apply to the tests of this file.
)

from runners import replace
from runners.errors import (
    ContextDied,
    ContextLost,
    ContextPoisoned,
    InferenceError,
    OutOfMemory,
    PoisonRequest,
    Unrecoverable,
    WorkerDown,
    WorkerStopping,
)
from runners.hosts.inline import InlineHost
from runners.models.scripted import Fault, Scripted
from runners.types import SessionRebuildCause
from runners.worker import device_worker, rebuild, report_poison
from supervise import Backoff, Limit, Refused, StartFailed, Supervisor, open_tree
from supervise.errors import LimitExceeded
from supervise.testing import assert_lifecycle, run_virtual

pytestmark = pytest.mark.filterwarnings("error")


class Scene:
    """A tree with a worker over several contexts."""

    def __init__(self, tree, hosts):
        self.tree = tree
        self.worker = tree["app/llm"]
        self.hosts = hosts

    def ref(self, number):
        """The context."""
        return self.tree[f"app/llm/context-{number}/context"]

    def above(self, number):
        """Its supervisor, at whose address it answers."""
        return self.tree[f"app/llm/context-{number}"]

    def state(self, number):
        return self.ref(number).status().state

    def nodes(self):
        return [(node.path, node.state) for node in self.worker.status().children]

    async def acts(self, *numbers):
        """The present sessions of these contexts on a stage, after all of them have settled."""
        await trio.testing.wait_all_tasks_blocked()
        return [self.hosts[number].acts[-1] for number in numbers]


@asynccontextmanager
async def serving(runner=PUPPET, *, hosts, patience=30, **options):
    """A worker that restarts at once, under a root; afterwards the proof that all lived by the grammar."""
    seen = []
    spec = device_worker("llm", runner, hosts=hosts, **{"backoff": None, **options})
    with trio.fail_after(patience):
        async with open_tree(Supervisor("app", [spec]), sinks=[seen.append]) as tree:
            yield Scene(tree, hosts)
    assert_lifecycle(seen)


async def asks(nursery, worker, names, **options):
    """Callers that have entered in this order."""
    them = callers(names, **options)
    for caller in them:
        await nursery.start(caller.run, worker)
        await trio.testing.wait_all_tasks_blocked()
    return them


# --- one queue


@pytest.mark.trio
async def test_each_context_is_a_child_with_a_host_of_its_own():
    """D12: The address is the worker's; every context has one of its own, and its state names it."""
    async with serving(Scripted(8), hosts=[InlineHost("cpu"), InlineHost("cpu:1")]) as scene:
        assert scene.nodes() == [("app/llm/context-0", "up"), ("app/llm/context-1", "up")]
        states = [await scene.above(number).ready() for number in range(2)]
        assert [(state.path, state.incarnation) for state in states] == [
            ("app/llm/context-0/context", 1),
            ("app/llm/context-1/context", 1),
        ]
        them = callers("abc")
        await all_of(scene.worker, them)
        for caller in them:
            caller.assert_whole(8)


@pytest.mark.parametrize(
    ("waiting", "each"), [(9, [3, 3, 3]), (6, [2, 2, 2]), (4, [2, 1, 1]), (11, [3, 3, 3])]
)
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.trio
async def test_a_burst_is_spread_evenly(waiting, each, at_once, autojump_clock):
    """D12: Every context gets its share, however many places it has free."""
    hosts = [Stage(streams=3) for _ in range(3)]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        for caller in callers([f"{number}" for number in range(waiting)]):
            nursery.start_soon(caller.run, scene.worker)
            if not at_once:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        acts = await scene.acts(0, 1, 2)
        assert sorted((len(act.open) for act in acts), reverse=True) == each
        assert scene.worker.status().mailbox == max(0, waiting - 9)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_requests_with_one_affinity_go_to_one_context_while_it_has_room(autojump_clock):
    """D12, R37: The next one goes to another context, which has the affinity from then on."""
    hosts = [Stage(streams=2) for _ in range(3)]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        for name in ("k0", "x0", "k1", "k2", "k3"):
            request = batch(name, affinity="k" if name.startswith("k") else "")
            nursery.start_soon(Caller(request).run, scene.worker)
            await trio.testing.wait_all_tasks_blocked()
        acts = await scene.acts(0, 1, 2)
        assert [sorted(act.open) for act in acts] == [["k0", "k1"], ["x0"], ["k2", "k3"]]
        nursery.cancel_scope.cancel()


def test_the_key_of_an_affinity_is_small():
    """D12, R37: A client may give a text of megabytes with each request, and the mailbox remembers the keys of thousands of requests."""
    key = device_worker("llm", PUPPET, hosts=[Stage()]).mailbox.affinity
    long = "k" * 10**6
    assert sys.getsizeof(key(batch("a", affinity=long))) < 64
    assert key(batch("a", affinity=long)) == key(batch("b", affinity=long)) != key(batch("b", affinity="k"))
    assert key(batch("a")) is None


@pytest.mark.trio
async def test_a_context_that_is_full_counts_for_no_share(autojump_clock):
    """D12: The others share what waits evenly."""
    hosts = [Stage(streams=3) for _ in range(3)]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        await asks(nursery, scene.worker, "abcdefghi")
        first, second, third = await scene.acts(0, 1, 2)
        for act in (second, third):
            for name in list(act.open):
                act.makes(name, last=True)
        await trio.testing.wait_all_tasks_blocked()
        for caller in callers("jklm"):
            nursery.start_soon(caller.run, scene.worker)
        await trio.testing.wait_all_tasks_blocked()
        assert [len(act.open) for act in (first, second, third)] == [3, 2, 2]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_request_ids_differ_in_all_contexts_of_a_worker(autojump_clock):
    """D6, D12: A second request with the id of an open one is refused at once, whichever context takes it: streams may move."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        (again,) = callers("a")
        await again.run(scene.worker)
        assert "request ids in flight must differ, got a second 'a'" in str(again.error)
        first, second = await scene.acts(0, 1)
        assert first.begun + second.begun == ["a"]
        act = first if first.begun else second
        act.makes("a", last=True)
        await a.over.wait()
        assert a.error is None


@pytest.mark.trio
async def test_a_context_that_is_not_there_takes_nothing(autojump_clock):
    """D12: While a context starts, backs off or tries a suspect, the others take the requests."""
    hosts = [Stage(streams=1), Stage(streams=8)]
    async with (
        serving(hosts=hosts, backoff=Backoff(initial=50, jitter=0)) as scene,
        trio.open_nursery() as nursery,
    ):
        (first,) = await scene.acts(0)
        first.fails(ContextDied("killed"))
        await until(lambda: scene.state(0) == "restarting")
        await asks(nursery, scene.worker, "abc")
        (other,) = await scene.acts(1)
        await other.has("a", "b", "c")
        nursery.cancel_scope.cancel()


# --- failover


@pytest.mark.trio
async def test_another_context_continues_the_streams_of_one_that_died(autojump_clock):
    """D6, D12: At once, before the restart, and from the next token; only what was begun there moves."""
    hosts = [Stage(), Stage()]
    async with (
        serving(hosts=hosts, backoff=Backoff(initial=50, jitter=0)) as scene,
        trio.open_nursery() as nursery,
    ):
        a, b = await asks(nursery, scene.worker, "ab")
        first, second = await scene.acts(0, 1)
        await first.has("a")
        await second.has("b")
        first.makes("a")
        second.makes("b")
        await until(lambda: a.chunks and b.chunks)
        before = trio.current_time()
        first.fails(ContextDied("killed"))
        await second.has("b", "a")
        assert trio.current_time() - before < 1
        assert second.open["a"][1] == (0,)
        second.makes("a", index=1, last=True)
        second.makes("b", index=1, last=True)
        await a.over.wait()
        await b.over.wait()
        assert (a.ids, b.ids) == ((0, 1), (0, 1))
        assert [caller.chunks[-1].usage.replayed for caller in (a, b)] == [1, 0]


@pytest.mark.trio
async def test_no_context_waits_for_the_restart_of_another(autojump_clock):
    """D5, D12: While one loads, another that runs out of memory is resumed, and a third that dies begins its restart."""
    hosts = [Stage(), Stage(), Stage()]
    hosts[0].load = hosts[2].load = 50.0
    async with serving(hosts=hosts, patience=1000) as scene, trio.open_nursery() as nursery:
        _, b = await asks(nursery, scene.worker, "ab")
        first, second, third = await scene.acts(0, 1, 2)
        first.makes("a", last=True)
        before = trio.current_time()
        first.fails(ContextDied("killed"))
        await until(lambda: scene.state(0) == "starting")
        third.fails(ContextDied("killed too"))
        second.runs_out_of_memory("b")
        await b.over.wait()
        await until(lambda: scene.state(1) == "up" and scene.state(2) == "starting")
        assert trio.current_time() - before < 1
        await scene.ref(2).ready()
        await scene.ref(0).ready()
        assert trio.current_time() - before < 51
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_suspect_blocks_only_the_context_that_tries_it(autojump_clock):
    """D6, D12: Beside it no further request begins there; a second death convicts it, and the others go on."""
    hosts = [Stage(), Stage(), Stage()]
    async with (
        serving(hosts=hosts, backoff=Backoff(initial=50, jitter=0)) as scene,
        trio.open_nursery() as nursery,
    ):
        (a,) = await asks(nursery, scene.worker, "a")
        (first,) = await scene.acts(0)
        first.fails(ContextDied("killed"))
        await trio.testing.wait_all_tasks_blocked()
        trying, other = sorted(await scene.acts(1, 2), key=lambda act: "a" not in act.open)
        assert list(trying.open) == ["a"]
        await asks(nursery, scene.worker, "bc")
        assert (list(trying.open), list(other.open)) == (["a"], ["b", "c"])
        trying.fails(ContextDied("killed too"))
        await a.over.wait()
        assert type(a.error) is PoisonRequest
        assert list(other.open) == ["b", "c"]
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_stream_that_may_not_move_is_lost_with_its_own_context_alone(autojump_clock):
    """D6, D12: It gets ContextLost; a stream of another context does not notice."""
    hosts = [Stage(can_continue=False), Stage(can_continue=False)]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        a, b = await asks(nursery, scene.worker, "ab")
        first, second = await scene.acts(0, 1)
        first.makes("a")
        second.makes("b")
        await until(lambda: a.chunks and b.chunks)
        first.fails(ContextPoisoned("poisoned"))
        await a.over.wait()
        assert type(a.error) is ContextLost
        second.makes("b", index=1, last=True)
        await b.over.wait()
        assert b.error is None


@pytest.mark.trio
async def test_out_of_memory_moves_no_stream_to_another_context(autojump_clock):
    """D5, D12: The other streams of that context continue in its session, though its sibling has room."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        a, _, c, _ = await asks(nursery, scene.worker, "abcd")
        first, second = await scene.acts(0, 1)
        first.makes("a")
        first.makes("c")
        await until(lambda: a.chunks and c.chunks)
        first.runs_out_of_memory("c")
        await c.over.wait()
        assert type(c.error) is OutOfMemory
        await trio.testing.wait_all_tasks_blocked()
        assert (list(first.open), first.begun, list(second.open)) == (["a"], ["a", "c"], ["b", "d"])
        first.makes("a", index=1, last=True)
        await a.over.wait()
        assert a.ids == (0, 1)
        nursery.cancel_scope.cancel()


# --- limits


@pytest.mark.trio
async def test_a_context_past_its_limit_is_stopped_and_the_others_serve(autojump_clock):
    """D12, R14: The limit is each context's; when the last context is down, every caller gets WorkerDown with the cause."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts, limit=Limit(1, within=60)) as scene, trio.open_nursery() as nursery:
        for _ in range(2):
            (act,) = await scene.acts(0)
            act.fails(ContextDied("killed"))
            await trio.testing.wait_all_tasks_blocked()
        assert scene.nodes() == [("app/llm/context-0", "condemned"), ("app/llm/context-1", "up")]
        (a,) = await asks(nursery, scene.worker, "a")
        (act,) = await scene.acts(1)
        await act.has("a")
        act.fails(Unrecoverable("the device fell off the bus"))
        await a.over.wait()
        later = Caller(batch("later"))
        await later.run(scene.worker)
        for caller in (a, later):
            assert type(caller.error) is WorkerDown
            assert type(caller.error.__cause__) is Unrecoverable
        with pytest.raises(WorkerDown):
            await rebuild(scene.worker)
        with pytest.raises(WorkerDown):
            await replace(scene.worker, PUPPET)
        await scene.above(0).start()
        (again,) = await asks(nursery, scene.worker, "b")
        (act,) = await scene.acts(0)
        act.makes("b", last=True)
        await again.over.wait()
        assert again.error is None


@pytest.mark.trio
async def test_a_failure_of_one_context_never_stops_the_others(autojump_clock):
    """D12: A load that fails is tried again, and what no decider knows stops that context alone."""
    runner = Scripted(3, faults=(Fault("error", at="load", incarnation=2),))
    hosts = [InlineHost(), InlineHost()]
    async with serving(runner, hosts=hosts) as scene, trio.open_nursery() as nursery:
        scene.ref(0).inject(ContextPoisoned("poisoned"))
        await until(lambda: scene.ref(0).status().incarnation == 3)
        scene.ref(0).inject(ZeroDivisionError())
        await until(lambda: scene.nodes()[0] == ("app/llm/context-0", "condemned"))
        (a,) = await asks(nursery, scene.worker, "a")
        await a.over.wait()
        a.assert_whole(3)
        assert scene.worker.status().incarnation == 1


@pytest.mark.trio
async def test_the_worker_may_have_a_limit_above_those_of_its_contexts(autojump_clock):
    """D12, R14: A context past its own limit is started once more; passing the limit above is a failure of the worker."""
    hosts = [Stage(), Stage()]
    limits = {"limit": Limit(1, within=60), "worker_limit": Limit(1, within=60)}
    async with serving(hosts=hosts, **limits) as scene:
        for deaths in range(4):
            assert scene.worker.status().incarnation == 1
            assert scene.above(0).status().incarnation == 1 + deaths // 2
            (act,) = await scene.acts(0)
            act.fails(ContextDied("killed"))
            await trio.testing.wait_all_tasks_blocked()
        assert isinstance(scene.worker.status().last_failure, LimitExceeded)
        assert (scene.worker.status().incarnation, scene.state(0), scene.state(1)) == (2, "up", "up")


# --- stopping


@pytest.mark.trio
async def test_all_contexts_drain_at_the_same_time(autojump_clock):
    """D13, D12: They are stopped one after the other, but begun streams get their seconds once, and nothing new begins."""
    hosts = [Stage() for _ in range(4)]
    async with serving(hosts=hosts, drain=10) as scene, trio.open_nursery() as nursery:
        them = await asks(nursery, scene.worker, "abcd")
        for act, caller in zip(await scene.acts(0, 1, 2, 3), them, strict=True):
            act.makes(caller.request.request_id)
        await until(lambda: all(caller.chunks for caller in them))
        began = trio.current_time()
        nursery.start_soon(scene.worker.stop)
        await trio.testing.wait_all_tasks_blocked()
        (late,) = callers("e")
        await late.run(scene.worker)
        assert type(late.error) is WorkerStopping
        await trio.sleep(5)
        (act,) = await scene.acts(0)
        act.makes("a", index=1, last=True)
        await them[0].over.wait()
        assert them[0].error is None
        for caller in them[1:]:
            await caller.over.wait()
            assert type(caller.error) in (WorkerDown, ContextLost)
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)


@pytest.mark.trio
async def test_all_contexts_drain_at_the_same_time_though_one_drains_already(autojump_clock):
    """D13, D12: The tree asks the others only when that one has ended (R12)."""
    hosts = [Stage(), Stage()]

    async def stop(context):
        with suppress(Refused):  # the stop of the worker overtakes it
            await context.stop()

    async with serving(hosts=hosts, drain=20) as scene, trio.open_nursery() as nursery:
        them = await asks(nursery, scene.worker, "ab")
        began = trio.current_time()
        nursery.start_soon(stop, scene.above(1))
        await trio.sleep(5)
        nursery.start_soon(scene.worker.stop)
        await trio.sleep(1)
        (late,) = callers("e")
        await late.run(scene.worker)
        assert type(late.error) is WorkerStopping
        for caller in them:
            await caller.over.wait()
    assert trio.current_time() - began == pytest.approx(25, abs=0.2)


@pytest.mark.trio
async def test_a_drained_worker_ends_with_its_last_stream_and_serves_again(autojump_clock):
    """D13, D12: A stream that its context loses meanwhile is continued by another one, though that has nothing left to do."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts, drain=100) as scene, trio.open_nursery() as nursery:
        a, b = await asks(nursery, scene.worker, "ab")
        first, second = await scene.acts(0, 1)
        first.makes("a")
        second.makes("b")
        await until(lambda: a.chunks and b.chunks)
        began = trio.current_time()
        nursery.start_soon(scene.worker.stop)
        await trio.sleep(1)
        first.makes("a", index=1, last=True)
        await a.over.wait()
        second.fails(ContextDied("killed"))
        await first.has("a", "b")
        first.makes("b", index=1, last=True)
        await b.over.wait()
        assert (a.ids, b.ids) == ((0, 1), (0, 1))
        await until(lambda: scene.worker.status().state == "down")
        assert trio.current_time() - began < 3
        await scene.worker.start()
        (again,) = await asks(nursery, scene.worker, "c")
        for act in await scene.acts(0, 1):
            if "c" in act.open:
                act.makes("c", last=True)
        await again.over.wait()
        assert again.error is None


@pytest.mark.trio
async def test_a_context_that_is_stopped_alone_leaves_the_queue_to_the_others(autojump_clock):
    """D13, D12: Its begun streams finish, and no request is refused."""
    hosts = [Stage(streams=1), Stage(streams=1)]
    async with serving(hosts=hosts, drain=10) as scene, trio.open_nursery() as nursery:
        a, b, c = await asks(nursery, scene.worker, "abc")
        first, second = await scene.acts(0, 1)
        nursery.start_soon(scene.above(0).stop)
        await trio.sleep(1)
        assert scene.state(0) == "stopping"
        first.makes("a", last=True)
        await until(lambda: scene.nodes()[0] == ("app/llm/context-0", "down"))
        second.makes("b", last=True)
        await second.has("b", "c")
        second.makes("c", last=True)
        for caller in (a, b, c):
            await caller.over.wait()
            assert caller.error is None


@pytest.mark.trio
async def test_a_context_that_is_stopped_while_the_others_restart_refuses_nothing(autojump_clock):
    """D13, D12: What waits is served when they are back, though for a while no context serves."""
    hosts = [Stage(streams=1), Stage(streams=1)]
    hosts[1].load = 20.0
    async with serving(hosts=hosts, drain=10) as scene, trio.open_nursery() as nursery:
        (a,) = await asks(nursery, scene.worker, "a")
        first, second = await scene.acts(0, 1)
        second.fails(ContextDied("killed"))
        (b,) = await asks(nursery, scene.worker, "b")
        nursery.start_soon(scene.above(0).stop)
        await trio.sleep(1)
        first.makes("a", last=True)
        await until(lambda: scene.nodes()[0] == ("app/llm/context-0", "down"))
        await scene.ref(1).ready()
        (again,) = await scene.acts(1)
        again.makes("b", last=True)
        for caller in (a, b):
            await caller.over.wait()
            assert caller.error is None


# --- rebuild, report_poison


@pytest.mark.trio
async def test_the_contexts_are_rebuilt_one_after_the_other(autojump_clock):
    """D7, D12: Meanwhile the other one continues the streams; a context that is down is left out."""
    hosts = [Stage(), Stage(), Stage()]
    async with serving(hosts=hosts) as scene, trio.open_nursery() as nursery:
        await scene.above(2).stop()
        (a,) = await asks(nursery, scene.worker, "a")
        first, second = await scene.acts(0, 1)
        first.makes("a")
        await until(lambda: a.chunks)
        states = []

        async def order():
            states.append(await rebuild(scene.worker))

        nursery.start_soon(order)
        await first.is_asked_to_rebuild()
        await second.has("a")
        assert (second.open["a"][1], second.rebuilds) == ((0,), [])
        first.is_rebuilt()
        await second.is_asked_to_rebuild()
        await first.has("a", "a")
        second.is_rebuilt()
        first.makes("a", index=1, last=True)
        await a.over.wait()
        await until(lambda: states)
        assert (states[0].path, a.ids) == ("app/llm/context-1/context", (0, 1))


@pytest.mark.trio
async def test_a_rolling_rebuild_waits_for_a_context_that_is_just_replaced(autojump_clock):
    """D7, D12: Its session is new; the rebuild goes on with the next context."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts, backoff=Backoff(initial=5, jitter=0)) as scene:
        (first,) = await scene.acts(0)
        first.fails(ContextDied("killed"))
        await until(lambda: scene.state(0) == "restarting")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rebuild, scene.worker)
            (second,) = await scene.acts(1)
            await second.is_asked_to_rebuild()
            assert scene.ref(0).status().incarnation == 2
            second.is_rebuilt()


@pytest.mark.trio
async def test_a_poison_is_reported_to_one_context(autojump_clock):
    """D3, D12: The worker's address names none of several."""
    hosts = [Stage(), Stage()]
    async with serving(hosts=hosts) as scene:
        with pytest.raises(
            ValueError,
            match="report the poison of one of them: 'app/llm/context-0/context', 'app/llm/context-1/context'",
        ):
            report_poison(scene.worker, "garbage", 1)
        report_poison(scene.ref(1), "garbage", 1)
        await until(lambda: scene.ref(1).status().incarnation == 2)
        await rebuild(scene.ref(0), SessionRebuildCause.CONTEXT_POISONED)
        assert [scene.ref(number).status().incarnation for number in range(2)] == [2, 2]


# --- declaring


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"hosts": []}, ValueError, "hosts must name at least one host, got none"),
        ({"hosts": [HOST, "cuda:1"]}, TypeError, "host must be a value with an open method, got 'cuda:1'"),
        ({"hosts": HOST}, TypeError, "hosts must be a list of hosts, got ProcessHost"),
        ({"hosts": [HOST], "host": HOST}, TypeError, "give either host or hosts, got both"),
    ],
)
def test_hosts_that_are_none_are_refused_when_declared(options, kind, says):
    """D12: In one line that names the worker."""
    with pytest.raises(kind, match=says) as caught:
        device_worker("llm", PUPPET, **options)
    assert "'llm'" in str(caught.value)


# --- whatever happens


@pytest.mark.slow
@given(
    contexts=st.integers(1, 4),
    streams=st.integers(1, 3),
    ends=st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sampled_from(["die", "stop", "rebuild", "replace", "oom"]),
            st.integers(0, 3),
        ),
        max_size=6,
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_every_stream_is_whole(contexts, streams, ends, seed):
    """D6, D12: Contexts that die, are stopped and started, rebuilt and replaced lose, double and change no token."""
    them = callers([f"request-{number}" for number in range(8)])

    async def main():
        hosts = [InlineHost() for _ in range(contexts)]
        runner = Scripted(12, streams=streams, delay=0.5)
        async with (
            serving(runner, hosts=hosts, limit=None, patience=1e6) as scene,
            trio.open_nursery() as nursery,
        ):
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            for at, end, number in ends:
                nursery.start_soon(happens, scene, at / 2, end, number % contexts, runner)

    run_virtual(main, seed=seed)
    deaths = sum(end in ("die", "oom") for _, end, _ in ends)
    for caller in them:
        if caller.error is None:
            caller.assert_whole(12)
        else:  # in two contexts that failed before they had made a step of it
            assert type(caller.error) is PoisonRequest
            assert deaths > 1


async def happens(scene, at, end, number, runner):
    """One thing that happens to one context, or to the worker. An order may be refused; the streams are what this is about."""
    await trio.sleep(at)
    ref = scene.ref(number)
    with suppress(Refused, StartFailed, InferenceError, RuntimeError):
        match end:
            case "die":
                ref.inject(ContextPoisoned("reported"))
            case "oom":
                ref.inject(OutOfMemory("reported"))
            case "stop" if number:  # the first always comes back by itself, or all would be down for good
                await scene.above(number).stop()
                await trio.sleep(1)
                await scene.above(number).start()
            case "rebuild":
                await rebuild(scene.worker)
            case "replace":
                await replace(scene.worker, evolve(runner), drain=3)


# --- with real processes


@pytest.mark.slow
@pytest.mark.trio
async def test_streams_are_whole_while_contexts_are_killed():
    """D6, D12: Three processes, killed in turn with SIGKILL; a stream misses no token and waits for no restart."""
    runner = Scripted(400, streams=8, delay=0.002)
    async with serving(runner, hosts=[HOST, HOST, HOST], limit=None, patience=120) as scene:
        them = callers([f"request-{number}" for number in range(12)])
        async with trio.open_nursery() as nursery:
            for caller in them:
                nursery.start_soon(caller.run, scene.worker)
            for number in (0, 1, 2, 1):
                await trio.sleep(0.2)
                await strike(scene.ref(number))
        for caller in them:
            caller.assert_whole(400)
