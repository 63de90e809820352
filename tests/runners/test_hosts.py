"""What every host holds to, wherever the runner lives (D10)."""

import random
from functools import partial

import attrs
import pytest
import trio
import trio.testing
from remotes import Speaks, Told
from rogues import FailsAgain, Holds, LacksInEnding, Nested, OnePlace, Raises, Remembers, Yields
from seats import Seats
from sessions import (
    BATCH,
    FOREVER,
    INLINE,
    PATIENCE,
    PROCESS,
    THREAD,
    every_host,
    ids,
    opened,
    request,
    runners_threads,
    until_failure,
    whole,
)

from runners.errors import (
    ContextPoisoned,
    DeviceError,
    LoadFailed,
    OutOfMemory,
    RateLimited,
    RunnerError,
    Unrecoverable,
)
from runners.hosts import Host, RequestFailed, Session
from runners.models.scripted import Fault, Scripted, expected
from runners.types import ExecuteBatch, FinishReason, Sampling, SessionRebuildCause
from runners.worker import device_worker, rebuild
from supervise import DEVICE, Decider, Resume, TreeFailed, events, open_tree


@every_host
@pytest.mark.trio
async def test_a_stream_arrives_whole_and_stamped(host):
    """D6: chunks carry request, index and incarnation; the last one says why it is."""
    assert isinstance(host, Host)
    async with opened(Scripted(5), host, incarnation=7) as session:
        assert isinstance(session, Session)
        items = await whole(session)
        assert ids(items) == expected(BATCH, 5)
        assert [item.index for item in items] == [0, 1, 2, 3, 4]
        assert {item.incarnation for item in items} == {7} == {session.incarnation}
        assert items[-1].finish_reason is FinishReason.STOP
        assert (session.info.streams, session.info.runtime, session.info.can_continue) == (
            4,
            "scripted",
            True,
        )
        assert "loaded" in repr(session)
    assert "ended" in repr(session)


@every_host
@pytest.mark.trio
async def test_a_turn_takes_one_chunk_of_each_stream(host):
    """Once all have begun, each gets a chunk before any gets the next; what arrives is never empty.

    Several turns may arrive at once, and a stream may have made some before the next has begun.
    """
    async with opened(Scripted(FOREVER, streams=3), host) as session:
        for name in "abc":
            session.begin(request(name))
        served, count = [], dict.fromkeys("abc", 0)
        while min(count.values()) < 50:
            items = await session.receive()
            assert items
            for item in items:
                assert item.index == count[item.request_id]
                count[item.request_id] += 1
                served.append(item.request_id)
        together = served[served.index("c") + 1 :]
        assert all(
            set(turn) == set("abc") for turn in zip(together, together[1:], together[2:], strict=False)
        )


@every_host
@pytest.mark.trio
async def test_a_stream_goes_on_behind_what_was_accepted(host):
    """D6: a new incarnation goes on where the old one was."""
    async with opened(Scripted(6), host, incarnation=2) as session:
        assert ids(await whole(session, accepted=expected(BATCH, 6)[:4])) == expected(BATCH, 6)[4:]


@every_host
@pytest.mark.trio
async def test_a_dropped_stream_says_nothing_more_and_its_place_and_id_are_free(host):
    """R30: a drop frees the place at once; what was under way of the dropped stream does not show up."""
    async with opened(Scripted(FOREVER, streams=1), host) as session:
        for _ in range(20):
            session.begin(BATCH)
            assert (await session.receive())[0].index == 0
            session.drop("r")
            session.drop("r")


@every_host
@pytest.mark.trio
async def test_misuse_is_told_at_once(host):
    """A second stream of the same name, one too many, tokens for a runner that cannot continue, use after the end."""
    async with opened(Scripted(FOREVER, streams=2, can_continue=False), host) as session:
        session.begin(BATCH)
        with pytest.raises(ValueError, match="must differ, got a second 'r'"):
            session.begin(BATCH)
        with pytest.raises(ValueError, match="cannot continue a begun stream, got 2 accepted"):
            session.begin(request("s"), [1, 2])
        session.begin(request("t"))
        with pytest.raises(RuntimeError, match="serves 2 streams at once, got one more: 'u'"):
            session.begin(request("u"))
    with pytest.raises(trio.ClosedResourceError):
        session.begin(BATCH)
    with pytest.raises(trio.ClosedResourceError):
        session.drop("r")
    with pytest.raises(trio.ClosedResourceError):
        await session.receive()
    with pytest.raises(trio.ClosedResourceError):
        await session.rebuild(SessionRebuildCause.MANUAL)


@every_host
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(("kind", "error"), [("error", RunnerError), ("oom", OutOfMemory)])
@pytest.mark.trio
async def test_a_requests_own_error_concerns_nobody_else(host, kind, error, at):
    """D5: it ends that stream, typed; the others and the context go on. Out of memory is told, once, right after."""
    async with opened(Scripted(6, faults=(Fault(kind, "r", at),)), host) as session:
        for batch in (BATCH, request("s")):
            session.begin(batch)
        made, told = {"r": [], "s": []}, []
        while not (made["s"] and made["s"][-1].finish_reason):
            try:
                for item in await session.receive():
                    made[item.request_id].append(item)
            except OutOfMemory as exc:
                told.append((exc.request_ids, type(made["r"][-1])))
        *before, failed = made["r"]
        assert isinstance(failed, RequestFailed)
        assert (type(failed.error), ids(before)) == (error, expected(BATCH, 6)[:at])
        assert ids(made["s"]) == expected(request("s"), 6)
        assert [request_ids for request_ids, _ in told] == ([("r",)] if kind == "oom" else [])
        assert all(last is RequestFailed for _, last in told)
        assert ids(await whole(session, request("next"))) == expected(request("next"), 6)


@every_host
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize(("kind", "error"), [("poison", ContextPoisoned), ("unrecoverable", Unrecoverable)])
@pytest.mark.trio
async def test_the_end_of_a_context_is_final(host, kind, error, at):
    """D6, D10: it names the request, and is raised again; nothing comes behind it. A thread cannot clear a poison."""
    async with opened(Scripted(6, faults=(Fault(kind, "r", at),)), host) as session:
        session.begin(BATCH)
        items, found = await until_failure(session)
        assert ids(items) == expected(BATCH, 6)[:at]
        assert found.request_ids == ("r",)
        if host is THREAD and kind == "poison":
            assert type(found) is DeviceError
            assert str(found) == "process isolation off: cannot clear a poisoned context: a scripted poison"
            assert type(found.__cause__) is ContextPoisoned
        else:
            assert type(found) is error
        session.begin(request("late"))
        session.drop("late")
        assert await until_failure(session) == ([], found)


WRONG = ["mute", "list", "half", "true", "ended", "used"]


@every_host
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("text", "must yield a TokenChunk, got str"),
        ("nothing", "ended without a finish reason"),
        *((what, "must have the types that TokenChunk declares") for what in WRONG),
    ],
)
@pytest.mark.trio
async def test_a_stream_of_nonsense_fails_alone(host, what, message):
    """D8: nothing looks like an empty success."""
    async with opened(Yields(what), host) as session:
        for name in "rs":
            (failed,) = await whole(session, request(name))
            assert type(failed.error) is RunnerError
            assert message in str(failed.error)


@every_host
@pytest.mark.trio
async def test_whose_a_chunk_is_the_host_knows(host):
    """D8: a stream whose chunks bear another request's name is not lost, and nobody else gets them."""
    async with opened(Yields("another's"), host) as session:
        session.begin(request("other"))
        items = await whole(session, request("mine"))
        assert {item.request_id for item in items} == {"mine"}
        assert ids(items) == (1, 2)


@every_host
@pytest.mark.trio
async def test_a_stream_of_nonsense_frees_its_place(host):
    """D5: as any other that ends."""
    async with opened(Holds(), host) as session:
        (failed,) = await whole(session)
        assert "must yield a TokenChunk, got str" in str(failed.error)
        assert ids(await whole(session)) == (1, 2)


@every_host
@pytest.mark.trio
async def test_a_stream_that_has_ended_is_closed(host):
    """D6: its place is free for the next one, however the runner frees it."""
    async with opened(OnePlace(), host) as session:
        for _ in range(2):
            assert ids(await whole(session)) == (0, 1)


@every_host
@pytest.mark.trio
async def test_streams_are_closed_before_their_runner(host):
    """D10: leaving closes what is open, in this order, or the runner would say that it could not close."""
    async with opened(OnePlace(10**6), host) as session:
        session.begin(ExecuteBatch("r", "", sampling=Sampling(max_tokens=10**6)))
        await session.receive()


@every_host
@pytest.mark.trio
async def test_a_stream_that_has_failed_is_not_asked_again(host):
    """D5: memory ran out once, and is told of once to the request and once to the context."""
    async with opened(FailsAgain(), host) as session:
        session.begin(BATCH)
        (failed,) = await session.receive()
        assert type(failed.error) is OutOfMemory
        with pytest.raises(OutOfMemory):
            await session.receive()
        with trio.move_on_after(0.3) as scope:
            await session.receive()
        assert scope.cancelled_caught


@every_host
@pytest.mark.parametrize(
    ("what", "kind", "code"),
    [
        ("subclass", ContextPoisoned, 700),
        ("device.poisoned.ecc", ContextPoisoned, None),
        ("device.unrecoverable", Unrecoverable, None),
        ("device.who.knows", DeviceError, None),
    ],
)
@pytest.mark.trio
async def test_a_tag_decides_whose_error_it_is(host, what, kind, code):
    """D3: what is tagged `device.` is the context's, of the nearest known class, with the device's code."""
    async with opened(Raises(what), host) as session:
        session.begin(BATCH)
        _, error = await until_failure(session)
        clears = host is PROCESS or (host is INLINE and what == "subclass")  # its runner says so itself
        assert isinstance(error, kind if clears or kind is not ContextPoisoned else DeviceError)
        assert isinstance(error, ContextPoisoned) is (clears and kind is ContextPoisoned)
        assert error.code == code


@every_host
@pytest.mark.trio
async def test_a_request_that_came_too_early_is_told_when_to_come_again(host):
    """D5: an error keeps its class, its code, and what else it has to say, through any host."""
    async with opened(Raises("429"), host) as session:
        *_, failed = await whole(session)
        assert isinstance(failed.error, RateLimited)
        assert (failed.error.code, failed.error.retry_after) == (429, 2.5)
        assert failed.error.is_retryable


@every_host
@pytest.mark.parametrize(
    ("text", "kind", "code"),
    [
        ("CUDA error: device-side assert triggered", ContextPoisoned, 710),
        ("CUDA error: out of memory", OutOfMemory, 2),
        ("No CUDA GPUs are available", Unrecoverable, None),
        ("size mismatch", RunnerError, None),
    ],
)
@pytest.mark.trio
async def test_what_a_runner_raises_is_judged_where_it_lives(host, text, kind, code):
    """D4: every host classifies; a poison found in the device's words is cleared by no host but a process."""
    async with opened(Speaks(text), host) as session:
        session.begin(BATCH)
        items, error = [], None
        while len(items) < 3 and error is None:
            try:
                items += await session.receive()
            except DeviceError as exc:
                error = exc
        if kind in (OutOfMemory, RunnerError):
            error = items[2].error
        assert ids(items[:2]) == (1, 1)
        assert type(error) is (DeviceError if kind is ContextPoisoned and host is not PROCESS else kind)
        assert error.code == code
        assert text in str(error)


@every_host
@pytest.mark.trio
async def test_a_failed_rebuild_is_judged_too(host):
    """D4, D7: what the device says while a session is made anew."""
    async with (
        opened(Speaks("CUDA error: an illegal memory access was encountered"), host) as session,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(until_failure, session)
        with pytest.raises(
            ContextPoisoned if host is PROCESS else DeviceError, match="illegal memory access"
        ):
            await session.rebuild(SessionRebuildCause.MANUAL)


@every_host
@pytest.mark.trio
async def test_a_deadline_reaches_the_runner_on_its_own_clock(host):
    """An async runner lives by Trio's clock, one in a thread or a process by its machine's."""
    async with opened(Told(trio=host is INLINE), host) as session:
        (chunk,) = await whole(session, request("a", deadline=trio.current_time() + 30))
        assert 29 < float(chunk.text) <= 30
        (chunk,) = await whole(session, request("b"))
        assert chunk.text == "None"


@every_host
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("error", LoadFailed),
        ("poison", ContextPoisoned),
        ("oom", OutOfMemory),
        ("unrecoverable", Unrecoverable),
    ],
)
@pytest.mark.trio
async def test_a_load_that_fails_is_told_typed(host, kind, error):
    """D2: a failed load is a failure of the context like any other, and leaves nothing."""
    with pytest.raises(DeviceError) as failed:
        async with host.open(Scripted(faults=(Fault(kind, at="load"),))):
            raise AssertionError
    assert type(failed.value) is (DeviceError if host is THREAD and kind == "poison" else error)
    assert not runners_threads()


@every_host
@pytest.mark.trio
async def test_the_start_reaches_the_runner_and_leaving_closes_it(host, tmp_path):
    """D2: device, incarnation and cause are told; a normal end closes the runner, even with a stream open."""
    host = attrs.evolve(host, device="cuda:3")
    async with opened(
        Remembers(str(tmp_path), Nested((), {})), host, incarnation=4, cause="it died"
    ) as session:
        assert "incarnation=4, device='cuda:3', cause='it died'" in (tmp_path / "loaded").read_text()
        session.begin(BATCH)
        await session.receive()
        assert not (tmp_path / "closed").exists()
    assert (tmp_path / "closed").exists()


@every_host
@pytest.mark.trio
async def test_a_runner_whose_context_is_in_trouble_is_not_closed(host, tmp_path):
    """D4, D10: whoever found it out; closing would use a device that is lost."""
    with pytest.raises(ContextPoisoned, match="from outside"):
        async with opened(Remembers(str(tmp_path), Nested((), {})), host):
            raise ContextPoisoned("from outside")
    assert not (tmp_path / "closed").exists()


@every_host
@pytest.mark.trio
async def test_leaving_by_cancellation_closes_the_runner(host, tmp_path):
    """R21: so does the end of a cancelled user: the context is sound."""
    with trio.CancelScope() as scope:
        async with host.open(Remembers(str(tmp_path), Nested((), {}))) as session:
            scope.cancel()
            await session.receive()
    assert scope.cancelled_caught
    assert (tmp_path / "closed").exists()


@every_host
@pytest.mark.trio
async def test_what_leaves_a_body_leaves_it_bare(host):
    """R22: no nursery of a host's wraps a failure, and its identity stays."""
    mine = KeyError("mine")
    with pytest.raises(KeyError) as raised:
        async with host.open(Scripted()):
            raise mine
    assert raised.value is mine
    with pytest.raises(ExceptionGroup) as group:
        async with host.open(Scripted()):
            raise ExceptionGroup("mine", [mine])
    assert group.value.exceptions == (mine,)


@every_host
@pytest.mark.trio
async def test_cancelling_receive_loses_nothing(host):
    """A cancelled receive takes nothing away."""
    async with opened(Scripted(40, streams=1), host) as session:
        session.begin(BATCH)
        items = []
        while not (items and items[-1].finish_reason):
            with trio.CancelScope() as scope:
                if len(items) % 2:
                    scope.cancel()
                    items += await session.receive()
            with trio.move_on_after(0.0007):
                items += await session.receive()
        assert ids(items) == expected(BATCH, 40)


@every_host
@pytest.mark.trio
async def test_a_rebuild_is_answered(host, tmp_path):
    """D7: a rebuild is done in the same incarnation, while receive goes on; afterwards all is as before."""
    causes = (SessionRebuildCause.MANUAL, *[SessionRebuildCause.REMOTE_AUTH_FAILURE] * 2)
    async with opened(Remembers(str(tmp_path), Nested((), {})), host) as session:
        for cause in causes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.receive)
                await session.rebuild(cause)
                nursery.cancel_scope.cancel()
            assert (tmp_path / "rebuilt").read_text() == cause
            assert ids(await whole(session)) == (1, 2)


@every_host
@pytest.mark.parametrize(("kind", "error"), [("error", LoadFailed), ("unrecoverable", Unrecoverable)])
@pytest.mark.trio
async def test_a_rebuild_that_fails_is_told_to_both(host, kind, error):
    """D2, D7: it is a failure of the context like any other, and the answer to who asked."""
    runner = Scripted(faults=(Fault(kind, at="rebuild"),))
    async with opened(runner, host) as session, trio.open_nursery() as nursery:
        nursery.start_soon(until_failure, session, error)
        for _ in range(2):
            with pytest.raises(error) as failed:
                await session.rebuild(SessionRebuildCause.MANUAL)
            assert type(failed.value.__cause__) is error


@every_host
@pytest.mark.trio
async def test_a_rebuild_is_the_cure_of_what_lacked_in_dropping_for_it(host):
    """D5, D7: nobody is told afterwards that memory ran out, and the worker is not charged for it again."""
    told = []

    async def reads(session):
        while True:
            try:
                await session.receive()
            except OutOfMemory:
                told.append("lack")

    async with opened(LacksInEnding(), host) as session, trio.open_nursery() as nursery:
        session.begin(BATCH)
        await session.receive()
        nursery.start_soon(reads, session)
        await trio.sleep(0.01)
        session.drop("r")
        await session.rebuild(SessionRebuildCause.MANUAL)
        told.append("rebuilt")
        await trio.sleep(0.05)
        assert told[-1] == "rebuilt"
        nursery.cancel_scope.cancel()


@every_host
@pytest.mark.trio
async def test_a_rebuild_that_is_given_up_ends_its_context(host):
    """D7: nobody knows how far the runner has come, and nothing is served by it: it is told to the reader, at once and finally."""
    runner = Scripted(8, delay=0.001, faults=(Fault("slow", at="rebuild", seconds=0.9),))
    async with opened(runner, host) as session:
        with trio.move_on_after(0.05) as scope:
            await session.rebuild(SessionRebuildCause.MANUAL)
        assert scope.cancelled_caught
        session.begin(BATCH)
        for ask in (session.receive, partial(session.rebuild, SessionRebuildCause.MANUAL), session.receive):
            with pytest.raises(ContextPoisoned, match="given up before it was done: its session is in an un"):
                await ask()


class Suspected(ContextPoisoned):
    """What the decider of the next test resumes."""

    tag = "device.poisoned.suspected"


@every_host
@pytest.mark.trio
async def test_a_worker_whose_rebuild_is_given_up_serves_from_a_fresh_context(host):
    """D7: a decider that resumes a poison leaves the body of a rebuild, and nobody hangs."""
    seen = []
    runner = Scripted(8, delay=0.001, faults=(Fault("slow", at="rebuild", seconds=0.9, incarnation=1),))
    mine = Decider({"device.poisoned.suspected": Resume}).over(DEVICE)
    worker = device_worker("llm", runner, host=host, decider=mine)
    async with open_tree(worker, sinks=[seen.append]) as tree:
        with trio.fail_after(PATIENCE):

            async def orders():
                with pytest.raises(ContextPoisoned, match="given up before it was done"):
                    await rebuild(tree[worker])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(orders)
                await trio.sleep(0.1)
                tree[worker].inject(Suspected("by somebody"))
            assert (await tree[worker].call(BATCH)).token_ids == expected(BATCH, 8)
            assert (await tree[worker].ready()).incarnation == 2
    decided = [event for event in seen if isinstance(event, events.Decided)]
    assert [type(event.exc) for event in decided[-2:]] == [Suspected, ContextPoisoned]
    assert "given up before it was done" in str(decided[-1].exc)


@every_host
@pytest.mark.trio
async def test_a_rebuild_is_refused_where_it_makes_no_sense(host):
    """D7: never for a poison, never under open streams."""
    async with opened(Scripted(FOREVER), host) as session:
        with pytest.raises(ValueError, match="open a new incarnation"):
            await session.rebuild(SessionRebuildCause.CONTEXT_POISONED)
        session.begin(BATCH)
        with pytest.raises(RuntimeError, match="all streams dropped, got 1 open"):
            await session.rebuild(SessionRebuildCause.MANUAL)


@every_host
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.trio
async def test_no_token_is_lost_or_doubled_whatever_comes_and_goes(host, seed):
    """D6, D8: streams begin, continue and are dropped at random; each gets exactly its own tokens, and an end."""
    chance = random.Random(seed)
    async with opened(Scripted(9, streams=4), host) as session:
        got, ended, number = {}, set(), 0
        while len(ended) < 60:
            if len(got) < 4 and chance.random() < 0.7:
                number += 1
                batch, done = request(str(number)), chance.randrange(4)
                got[batch.request_id] = (batch, list(expected(batch, 9)[:done]))
                session.begin(batch, expected(batch, 9)[:done])
            if got and chance.random() < 0.1:
                name = chance.choice(list(got))
                session.drop(name)
                del got[name]
            if not got:
                continue
            for item in await session.receive():
                batch, tokens = got[item.request_id]
                assert item.index == len(tokens)
                tokens.extend(item.token_ids)
                if item.finish_reason:
                    assert tuple(tokens) == expected(batch, 9)
                    ended.add(item.request_id)
                    del got[item.request_id]


@every_host
@pytest.mark.trio
async def test_a_worker_serves_over_it(host):
    """D1, D6: the worker knows of its host only the protocol; what cannot be cleared escalates, what can restarts."""
    runner = Scripted(6, faults=(Fault("poison", "r", 3, 1),))
    spec = device_worker("llm", runner, host=host, backoff=None)
    seen = []
    try:
        with trio.fail_after(PATIENCE):
            async with open_tree(spec, sinks=[seen.append]) as tree:
                completion = await tree[spec].call(BATCH)
                assert completion.token_ids == expected(BATCH, 6)
                assert (await tree[spec].ready()).incarnation == 2
    except TreeFailed as failed:
        assert host is THREAD
        assert "process isolation off" in str(failed.__cause__)
    else:
        assert host is not THREAD
    (decided,) = [event for event in seen if isinstance(event, events.Decided)]
    assert decided.tag == ("device" if host is THREAD else "device.poisoned")


@every_host
def test_a_stream_that_fails_is_closed_and_frees_its_place(host):
    """D5: the hosts close it, for it may be an object that keeps its place until then."""

    async def main():
        async with opened(Seats(), host) as session:
            for number in range(5):
                session.begin(request(f"r{number}"), ())
                (item,) = await session.receive()
                assert f"r{number} is bad" in str(item.error)

    trio.run(main)
