"""The metrics of device workers, in virtual time."""

from collections import Counter
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("prometheus_client", reason="needs trio-supervise[prometheus]")

from prometheus_client.parser import text_string_to_metric_families

from runners.errors import (
    Backpressure,
    BadRequest,
    ContentFiltered,
    ContextDied,
    ContextLost,
    InferenceError,
    OutOfMemory,
    PoisonRequest,
    RateLimited,
    RunnerError,
    Timeout,
    WorkerDown,
    WorkerStopping,
)
from runners.hosts.inline import InlineHost
from runners.models.scripted import Fault, Scripted
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker
from runners.worker.meter import OUTCOMES, outcome_of
from runners.worker.metrics import WorkerMetrics
from supervise import Backoff, Child, Decider, Limit, Pool, Stop, Supervisor, open_tree
from supervise.operate.observers import Observers
from supervise.sinks.prometheus import PrometheusSink
from supervise.testing import idle, run_virtual

STEP = 0.25
"""Seconds for a token; a power of two, so that sums of times are exact."""


def batch(name, **options):
    return ExecuteBatch(name, f"go on, {name}", sampling=Sampling(seed=7, max_tokens=100), **options)


def worker(*faults, name="llm", tokens=8, streams=2, **options):
    runner = Scripted(tokens, delay=STEP, streams=streams, faults=faults)
    hosts = {} if "hosts" in options else {"host": InlineHost()}
    return device_worker(name, runner, **{"backoff": None, **hosts, **options})


def scraped(sink):
    """The samples of the workers: the name without `runners_`, and the values of the labels, to the value."""
    families = text_string_to_metric_families(sink.expose()[0].decode())
    return {
        (sample.name.removeprefix("runners_"), *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("runners_")
    }


def outcomes(found, path="app/llm"):
    """How many requests have ended, by how."""
    return {
        key[1 if key[2] == path else 2]: int(value)
        for key, value in found.items()
        if key[0] == "requests_total" and path in key and value
    }


def measured(spec, use, **options):
    """Run `use(tree)` in a tree whose metrics are attached; what a scrape shows at its end."""
    tree = Supervisor("app", [spec, Child("other", idle)], **options)

    async def main():
        sink = PrometheusSink(tree)
        async with open_tree(tree, sinks=[sink]) as t:
            sink.attach(t)
            await use(t)
            return scraped(sink)

    return run_virtual(main)


async def consume(ref, request, *, form="stream"):
    """Send a request and take the whole answer."""
    if form == "call":
        await ref.call(request)
        return
    async with getattr(ref, form)(request) as chunks:
        async for _ in chunks:
            pass


# --- exact figures


def test_times_and_tokens_have_exact_figures():
    """D6: Two streams at once, and a third that waits for a place for eight steps."""
    spec = worker()

    async def use(t):
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(consume, t[spec], batch(name))
                await trio.testing.wait_all_tasks_blocked()

    found = measured(spec, use)
    assert outcomes(found) == {"complete": 3}
    assert found["tokens_total", "app/llm"] == 24
    assert found["replayed_tokens_total", "app/llm"] == 0
    assert found["queue_wait_seconds_count", "app/llm"] == 3
    waited = found["queue_wait_seconds_sum", "app/llm"]
    assert found["first_chunk_seconds_count", "app/llm"] == 3
    assert found["first_chunk_seconds_sum", "app/llm"] > waited >= 8 * STEP
    assert found["gap_seconds_count", "app/llm"] == 3 * 7
    assert found["gap_seconds_sum", "app/llm"] == pytest.approx(found["gap_seconds_count", "app/llm"] * STEP)


def test_a_gap_over_the_death_of_a_context_includes_the_outage():
    """D6: The caller waits for the backoff and for one step; what it had is replayed, and its request begins only once."""
    outage = 16.0
    spec = worker(
        Fault("poison", at_token=3, incarnation=1), backoff=Backoff(initial=outage, factor=1, jitter=0)
    )

    async def use(t):
        await consume(t[spec], batch("a"))

    found = measured(spec, use)
    assert outcomes(found) == {"complete": 1}
    assert (found["tokens_total", "app/llm"], found["replayed_tokens_total", "app/llm"]) == (8, 3)
    assert found["queue_wait_seconds_count", "app/llm"] == 1
    assert found["first_chunk_seconds_count", "app/llm"] == 1
    assert found["gap_seconds_count", "app/llm"] == 7
    assert found["gap_seconds_bucket", "10.0", "app/llm"] == 6
    assert found["gap_seconds_bucket", "30.0", "app/llm"] == 7
    assert outage < found["gap_seconds_sum", "app/llm"] < outage + 9 * STEP


def test_requests_that_come_while_a_worker_takes_another_shape_wait_and_are_counted():
    """D13, R38: One context drains, and one of another name is to come. Its address is that of the worker already."""
    spec, single = worker(hosts=[InlineHost()], drain=60), worker(drain=60)

    async def use(t):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume, t["app/llm"], batch("begun"))
            await trio.sleep(2 * STEP)
            nursery.start_soon(t.adopt, Supervisor("app", [single, Child("other", idle)]))
            await trio.sleep(2 * STEP)
            await consume(t["app/llm"], batch("comes"))

    assert outcomes(measured(spec, use)) == {"complete": 2}


def test_convictions_are_counted():
    """D6: A request in whose hands two contexts die, the second alone with it, has the outcome `poison`; others complete."""
    spec = worker(Fault("poison", "a", 2))

    async def use(t):
        with pytest.raises(PoisonRequest):
            await consume(t[spec], batch("a"))
        await consume(t[spec], batch("b"))

    assert outcomes(measured(spec, use)) == {"poison": 1, "complete": 1}


def test_places_are_those_of_the_contexts_that_serve():
    """D12: The sum over the contexts of a worker; a context that restarts has none."""
    spec = worker(
        Fault("poison", "p"),
        hosts=[InlineHost(), InlineHost()],
        streams=3,
        backoff=Backoff(initial=60, factor=1, jitter=0),
    )
    seen = []

    async def main():
        sink = PrometheusSink(tree)
        async with open_tree(tree, sinks=[sink]) as t, trio.open_nursery() as nursery:
            sink.attach(t)

            def look():
                found = scraped(sink)
                seen.append(
                    tuple(
                        found[key] for key in [("places", "app/llm", "open"), ("places", "app/llm", "free")]
                    )
                )

            look()
            for name in "abc":
                nursery.start_soon(consume, t[spec], batch(name))
            await trio.sleep(STEP / 2)
            look()
            await trio.sleep(10 - STEP)
            nursery.start_soon(partial(expects, PoisonRequest, t[spec], batch("p")))
            for _ in range(3):  # it is open in the first context, and then in the second one, which dies too
                await trio.sleep(STEP)
                look()

    tree = Supervisor("app", [spec])
    run_virtual(main)
    assert seen == [(0, 6), (3, 3), (1, 5), (1, 2), (0, 0)]


async def expects(error, ref, request):
    with pytest.raises(error):
        await consume(ref, request)


# --- outcomes

ERRORS = {
    "late": Timeout("x"),
    "invalid": ContentFiltered("x"),
    "poison": PoisonRequest("x"),
    "lost": ContextLost("x", incarnation=1, delivered=1),
    "oom": OutOfMemory("x"),
    "server": RateLimited("x"),
    "full": Backpressure("x"),
    "stopping": WorkerStopping("x"),
    "down": WorkerDown("x"),
    "failed": RunnerError("x"),
}


def expected_outcome(error):
    """The outcome of an error that a caller got."""
    if isinstance(error, BadRequest):
        return "invalid"
    return next(how for how, known in ERRORS.items() if type(known) is type(error))


@pytest.mark.parametrize("how", ERRORS)
def test_each_kind_of_error_has_its_outcome(how):
    """D5: The list is closed: an error of an unknown class is `failed`."""
    assert outcome_of(batch("a"), ERRORS[how], 0.0) == how
    assert set(ERRORS) | {"complete", "left"} == set(OUTCOMES)
    assert outcome_of(batch("a"), ZeroDivisionError(), 0.0) == "failed"


async def ask(ref, begins, form, name, leaves, deadline, seen):
    """Send a request at its time, and note how it ends for its caller."""
    await trio.sleep(begins * STEP)
    due = None if deadline is None else trio.current_time() + deadline * STEP + STEP / 3
    on_loss = "fail" if name in ("g", "h") else "migrate"
    request = "no request" if name is None else batch(name, deadline=due, on_loss=on_loss)
    with trio.move_on_after(float("inf") if leaves is None else leaves * STEP + STEP / 5) as scope:
        try:
            await consume(ref, request, form=form)
        except InferenceError as error:
            seen.append(expected_outcome(error))
        else:
            seen.append("complete")
    if scope.cancelled_caught:
        seen.append("left")


few = st.none() | st.integers(0, 20)
asked = st.tuples(
    st.integers(0, 30),
    st.sampled_from(["stream", "stream_nowait", "call"]),
    st.sampled_from([*"abcdefgh", None]),
    few,
    few,
)
faults = st.builds(
    Fault,
    st.sampled_from(["poison", "oom", "error", "unrecoverable"]),
    st.none() | st.sampled_from("abcdefgh"),
    st.integers(0, 6),
    st.integers(1, 3),
)


@pytest.mark.slow
@given(
    st.lists(asked, max_size=20),
    st.lists(faults, max_size=4),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from([None, 10, 20]),
    st.random_module(),
)
def test_every_request_has_the_outcome_that_its_caller_sees(plan, some, contexts, is_slow, stops, schedule):
    """D6, D8: Through deaths of contexts, retries, deadlines, callers that leave, a full queue, and the end of the worker."""
    spec = worker(
        *some,
        hosts=[InlineHost() for _ in range(contexts)],
        queue=2,
        limit=Limit(2, within=60),
        backoff=Backoff(initial=2, factor=1, jitter=0) if is_slow else None,
        drain=0.0 if is_slow else 2.0,
    )
    seen = []

    async def use(t):
        with trio.move_on_after(50.1):
            async with trio.open_nursery() as nursery:
                for each in plan:
                    nursery.start_soon(partial(ask, t[spec], *each, seen))
                if stops is not None:
                    await trio.sleep(stops * STEP + STEP / 7)
                    await t[spec].stop()
        seen.extend(["left"] * (len(plan) - len(seen)))

    found = measured(spec, use, decider=Decider(default=Stop))
    assert outcomes(found) == Counter(seen)
    assert sum(outcomes(found).values()) == len(plan)


# --- what is measured, and from when


def test_requests_are_counted_from_attach_on_and_once():
    """R31: A sink that is attached later measures workers that serve already; to attach it again changes nothing."""
    spec = worker()
    tree = Supervisor("app", [spec])

    async def main():
        sink = PrometheusSink(tree)
        async with open_tree(tree, sinks=[]) as t:
            await consume(t[spec], batch("before"))
            assert "tokens_total" not in {key[0] for key in scraped(sink)}
            async with t[spec].stream(batch("meanwhile")) as chunks:
                await anext(chunks)
                sink.attach(t)
                sink.attach(t)
                async for _ in chunks:
                    pass
            await consume(t[spec], batch("after"))
            return scraped(sink)

    found = run_virtual(main)
    assert outcomes(found) == {"complete": 2}
    assert found["tokens_total", "app/llm"] == 7 + 8
    assert found["first_chunk_seconds_count", "app/llm"] == 1
    assert found["gap_seconds_count", "app/llm"] == 6 + 7


def test_the_members_of_a_pool_are_measured_together():
    """R31: The labels follow from the declaration; a worker that is added has that of its supervisor's added nodes."""
    pool = Pool("pool", worker(name="member"))
    added = worker(name="added")
    tree = Supervisor("app", [pool])

    async def main():
        sink = PrometheusSink(tree)
        async with open_tree(tree, sinks=[sink]) as t:
            sink.attach(t)
            for ref in [await t[pool].add(), await t[pool].add(), await t.root.add(added)]:
                await consume(ref, batch("a"))
            return scraped(sink)

    found = run_virtual(main)
    assert outcomes(found, "app/pool/*") == {"complete": 2}
    assert outcomes(found, "app/*") == {"complete": 1}
    assert found["places", "app/pool/*", "free"] == 4
    assert {key[1] for key in found if key[0] == "tokens_total"} == {"app/pool/*", "app/*"}


def test_workers_that_no_tree_declares_are_included_by_hand():
    """R31: One line, before `attach`; a tree without workers has no family of theirs."""
    tree = Supervisor("app", [Child("other", idle)])
    added = worker(name="added")

    async def main(sink):
        async with open_tree(tree, sinks=[sink]) as t:
            sink.attach(t)
            await consume(await t.root.add(added), batch("a"))
            return scraped(sink)

    assert run_virtual(main, PrometheusSink(tree)) == {}
    sink = PrometheusSink(tree)
    sink.include(WorkerMetrics)
    assert outcomes(run_virtual(main, sink), "app/*") == {"complete": 1}


def test_two_sinks_measure_the_same_worker():
    """R31: As of a program that has its own sink, and is operated too."""
    spec = worker()
    tree = Supervisor("app", [spec])

    async def main():
        sink, observers = PrometheusSink(tree), Observers.of(tree)
        async with open_tree(tree, sinks=[sink, *observers.sinks]) as t:
            sink.attach(t)
            observers.attach(t)
            await consume(t[spec], batch("a"))
            return scraped(sink), scraped(observers.metrics)

    one, other = run_virtual(main)
    assert outcomes(one) == outcomes(other) == {"complete": 1}


@pytest.mark.parametrize("changed", [{"queue": 3}, {"tokens": 6}])
def test_a_worker_that_is_declared_anew_counts_each_request_once(changed):
    """R38: Also behind the next restart of its context, which takes the new declaration."""
    spec, other = worker(), Child("other", idle)

    async def use(t):
        await consume(t[spec], batch("a"))
        await t.adopt(Supervisor("app", [worker(**changed), other]))
        t["app/llm/context"].inject(ContextDied("killed"))
        await trio.testing.wait_all_tasks_blocked()
        await consume(t["app/llm"], batch("b"))

    assert outcomes(measured(spec, use)) == {"complete": 2}


@pytest.mark.parametrize("streams", [1, 2])
def test_requests_that_wait_at_the_queue_of_an_earlier_declaration_are_counted(streams):
    """R38, D8: A worker of several contexts becomes one of a single context, which has a queue of its own; with the same runner or another."""
    spec, other = worker(streams=1, hosts=[InlineHost()]), Child("other", idle)

    async def use(t):
        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(ends_with, t, name)
            await trio.sleep(1.5 * STEP)
            await t.adopt(Supervisor("app", [worker(streams=streams), other]))

    async def ends_with(t, name):
        with pytest.raises(WorkerDown):
            await consume(t["app/llm"], batch(name))

    assert outcomes(measured(spec, use)) == {"down": 3}


def test_a_worker_without_metrics_notes_no_time():
    """Nothing but one question for each delivery is added to a worker that is not measured."""
    from runners.worker import record

    spec, records = worker(), []
    tree = Supervisor("app", [spec])

    async def main():
        async with open_tree(tree, sinks=[]) as t:
            await consume(t[spec], batch("a"))

    admitted = record.Record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            record, "Record", lambda *args, **more: records.append(admitted(*args, **more)) or records[-1]
        )
        run_virtual(main)
    assert [(each.chunks, each.last_at) for each in records] == [(8, None)]
