"""What every host holds to, wherever the runner lives; and what `InlineHost` and `ThreadHost` alone do (D10)."""

import random
import threading
import time
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from remotes import HalfAsync, Log, Remote, Speaks, Told
from rogues import Nested, Raises, Remembers, Yields, factory

from runners.errors import (
    BadRequest,
    ContextHung,
    ContextPoisoned,
    DeviceError,
    LoadFailed,
    NetworkError,
    OutOfMemory,
    RateLimited,
    RunnerError,
    Unrecoverable,
)
from runners.hosts import Host, RequestFailed, Session
from runners.hosts.inline import InlineHost
from runners.hosts.process import ProcessHost
from runners.hosts.thread import ThreadHost
from runners.scripted import Fault, Scripted, expected
from runners.types import ExecuteBatch, FinishReason, RunnerInfo, Sampling, SessionRebuildCause, TokenChunk
from runners.worker import device_worker
from supervise import Limit, TreeFailed, events, open_tree
from supervise.testing import run_virtual

INLINE = InlineHost()
THREAD = ThreadHost(load_timeout=20, chunk_timeout=20)
PROCESS = ProcessHost(load_timeout=20, first_chunk_timeout=20, next_chunk_timeout=20)
HOSTS = {"inline": INLINE, "thread": THREAD, "process": PROCESS}
every_host = pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
PATIENCE = 20.0
BATCH = ExecuteBatch("r", "hello", sampling=Sampling(seed=1))
FOREVER = 10_000


@asynccontextmanager
async def opened(runner, host, **start):
    """A session; afterwards no thread of ours is left."""
    with trio.fail_after(PATIENCE):
        async with host.open(runner, **start) as session:
            yield session
        assert not runners_threads()


def runners_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("runner ")]


def request(name, **options):
    return ExecuteBatch(name, f"go on, {name}", sampling=Sampling(seed=7, max_tokens=1000), **options)


async def whole(session, batch=BATCH, accepted=()):
    """All of one stream."""
    session.begin(batch, accepted)
    return await rest(session, batch.request_id)


async def rest(session, request_id="r"):
    items = []
    while not items or (isinstance(items[-1], TokenChunk) and items[-1].finish_reason is None):
        items += [item for item in await session.receive() if item.request_id == request_id]
    return items


def ids(items):
    return tuple(token for item in items for token in item.token_ids)


async def until_failure(session, kind=DeviceError):
    """Receive until it raises; what came before."""
    items = []
    try:
        while True:
            items += await session.receive()
    except kind as error:
        return items, error


# --- what every host holds to


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
    """Streams are served in turn: none is ever far ahead of another, and what arrives is never empty.

    Several turns may arrive at once.
    """
    async with opened(Scripted(50, streams=3), host) as session:
        for name in "abc":
            session.begin(request(name))
        count = dict.fromkeys("abc", 0)
        while sum(count.values()) < 150:
            items = await session.receive()
            assert items
            for item in items:
                assert item.index == count[item.request_id]
                count[item.request_id] += 1
                assert max(count.values()) - min(count.values()) <= 3


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
                told.append((exc.request_ids, [type(items[-1]) for items in made.values()]))
        *before, failed = made["r"]
        assert isinstance(failed, RequestFailed)
        assert (type(failed.error), ids(before)) == (error, expected(BATCH, 6)[:at])
        assert ids(made["s"]) == expected(request("s"), 6)
        assert [request_ids for request_ids, _ in told] == ([("r",)] if kind == "oom" else [])
        assert all(last[0] is RequestFailed for _, last in told)
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


@every_host
@pytest.mark.parametrize(
    ("what", "message"),
    [("text", "must yield a TokenChunk, got str"), ("nothing", "ended without a finish reason")],
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
    async with opened(Remembers(str(tmp_path), Nested((), {})), host) as session:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.receive)
            await session.rebuild(SessionRebuildCause.MANUAL)
            nursery.cancel_scope.cancel()
        assert (tmp_path / "rebuilt").read_text() == "manual"
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


# --- in the Trio task


def remote(tokens=5, **options):
    return Remote(tokens, log=Log(), **options)


def in_virtual_time(runner, body, seed=0, host=INLINE):
    """Run `body(session)` over the runner, in virtual time; what it gives."""

    async def main():
        async with host.open(runner) as session:
            return await body(session)

    return run_virtual(main, seed=seed)


def test_a_runner_need_not_be_importable_where_it_does_not_travel():
    """D10: for a test's own runner; what is no runner is refused all the same."""
    with pytest.raises(ValueError, match="importable by name"):
        THREAD.open(factory())
    INLINE.open(factory())
    device_worker("llm", factory(), host=INLINE)
    with pytest.raises(ValueError, match="importable by name"):
        device_worker("llm", factory(), host=THREAD)
    for nonsense in (Scripted, 3, lambda start: None):
        with pytest.raises(TypeError, match="must be a value with a build method"):
            INLINE.open(nonsense)
        with pytest.raises(TypeError, match="must be a value with a build method"):
            device_worker("llm", nonsense, host=INLINE)


@given(st.integers(0, 2**32), st.lists(st.floats(0.01, 10), min_size=1, max_size=8))
def test_async_streams_run_side_by_side(seed, delays):
    """An async runner's streams wait for their own server only; each gets its tokens in time, whatever the others do."""
    names = [str(number) for number in range(len(delays))]
    runner = remote(delays=dict(zip(names, delays, strict=True)))

    async def serve(session):
        ends = {}
        for name in names:
            session.begin(request(name))
        tokens = {name: [] for name in names}
        while len(ends) < len(names):
            for item in await session.receive():
                tokens[item.request_id] += item.token_ids
                if item.finish_reason:
                    ends[item.request_id] = trio.current_time()
        return ends, tokens, trio.current_time()

    async def main():
        start = trio.current_time()
        async with INLINE.open(runner) as session:
            ends, tokens, _ = await serve(session)
        for name, delay in zip(names, delays, strict=True):
            assert ends[name] - start == pytest.approx(5 * delay)
            assert tuple(tokens[name]) == expected(request(name), 5)

    run_virtual(main, seed=seed)


@given(st.integers(0, 2**32))
def test_a_fast_stream_waits_for_its_reader(seed):
    """A stream is at most a few chunks ahead of who reads it, and a slow one gets its turn beside it."""
    runner = remote(500, delays={"fast": 0.001, "slow": 1.0})

    async def body(session):
        for name in ("fast", "slow"):
            session.begin(request(name))
        await trio.sleep(3.5)
        assert runner.log.made == {"fast": 8, "slow": 3}
        first = [await session.receive() for _ in range(3)]
        assert [[item.request_id for item in items] for items in first] == [["fast", "slow"]] * 3
        await trio.sleep(0.5)
        assert runner.log.made["fast"] == 11

    in_virtual_time(runner, body, seed)


@given(st.integers(0, 2**32))
def test_a_dropped_async_stream_is_cancelled_and_cleans_up(seed):
    """R30: in the middle of a wait for its server, or held up by its reader."""
    runner = remote(500, delays={"waits": 1000.0, "held up": 0.001})

    async def body(session):
        for name in ("waits", "held up"):
            session.begin(request(name))
        await trio.sleep(1)
        for name in ("waits", "held up"):
            session.drop(name)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(runner.log.events) == ["held up closed", "waits closed"]
        session.begin(request("waits"))

    in_virtual_time(runner, body, seed)
    assert sorted(runner.log.events) == ["closed", "held up closed", "waits closed", "waits closed"]


class Clumsy:
    """Its streams fail in ending."""

    info = RunnerInfo(streams=2)

    def __init__(self, error):
        self.error = error

    def build(self, start):
        return self

    async def execute(self, batch):
        try:
            yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,))
            await trio.sleep_forever()
        finally:
            raise self.error

    def rebuild(self, cause):
        pass

    def close(self):
        pass


@given(st.integers(0, 2**32))
def test_a_poison_told_in_ending_is_heard(seed):
    """D6: a dropped stream's own error is nobody's any more, but a context's is the context's."""

    async def body(session):
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        return await until_failure(session)

    items, error = in_virtual_time(Clumsy(ContextPoisoned("at the end")), body, seed)
    assert (items, str(error), error.request_ids) == ([], "at the end", ("r",))

    async def other(session):
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        with trio.move_on_after(5):
            await session.receive()
        session.begin(BATCH)
        return await session.receive()

    assert len(in_virtual_time(Clumsy(BadRequest("at the end")), other, seed)) == 1


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ConnectionResetError("reset by peer"), NetworkError),
        (TimeoutError("slow"), NetworkError),
        (trio.TooSlowError(), NetworkError),
        (trio.BrokenResourceError("gone"), NetworkError),
        (RateLimited("later", retry_after=3.0), RateLimited),
        (ExceptionGroup("a nursery's", [RateLimited("later", retry_after=3.0)]), RateLimited),
        (
            ExceptionGroup("a nursery's", [ConnectionResetError(), ExceptionGroup("", [ValueError()])]),
            NetworkError,
        ),
        (RuntimeError("the server says: CUDA error: device-side assert triggered"), RunnerError),
        (ZeroDivisionError("mine"), RunnerError),
    ],
)
def test_a_network_runners_errors_are_its_requests(raised, kind):
    """D5: the connection's trouble is typed, and what a server's text speaks of is no device of ours."""
    runner = remote(fails={"r": raised})

    async def body(session):
        session.begin(request("s"))
        *before, failed = await whole(session)
        assert len(before) == 2
        assert type(failed.error) is kind
        return await rest(session, "s")

    assert ids(in_virtual_time(runner, body))[-1] == expected(request("s"), 5)[-1]


def test_a_local_runners_text_is_judged():
    """D4, D10: found in the device's own words it is real: nothing in this process clears it."""
    runner = remote(fails={"r": RuntimeError("CUDA error: device-side assert triggered")}, transport="local")

    async def body(session):
        session.begin(BATCH)
        return await until_failure(session)

    items, error = in_virtual_time(runner, body)
    assert (len(items), type(error), error.code, error.request_ids) == (2, DeviceError, 710, ("r",))
    assert "process isolation off: cannot clear a poisoned context: RuntimeError: CUDA error" in str(error)


class ByHand:
    """An async iterator that is no generator, of one chunk."""

    def __init__(self, chunk):
        self.left = [chunk]

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.sleep(1)
        return self.left.pop()


def test_an_async_iterator_need_not_be_a_generator():
    """What cannot be closed is left to itself."""
    runner = Clumsy(None)
    last = TokenChunk(request_id="r", index=0, token_ids=(1,), finish_reason=FinishReason.STOP)
    runner.execute = lambda batch: ByHand(last)
    assert ids(in_virtual_time(runner, whole)) == (1,)


@attrs.frozen
class Liar:
    """Declares that it can continue, and cannot; ends its streams with an error of its own."""

    def build(self, start):
        return _Liar(None)


class _Liar(Clumsy):
    info = RunnerInfo(streams=2, can_continue=True)

    def execute(self, batch):
        try:
            yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,))
        finally:
            raise ContextPoisoned("in ending")


@pytest.mark.parametrize("host", [INLINE, THREAD], ids=["inline", "thread"])
@pytest.mark.trio
async def test_a_sync_stream_that_fails_in_ending_is_judged(host):
    """D6: as an async one is; and a runner that cannot do what it declares fails that request."""
    async with opened(Liar(), host) as session:
        (failed,) = await whole(session, request("s"), (1,))
        assert "TypeError: the runner cannot continue a begun stream" in str(failed.error)
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        _, error = await until_failure(session)
        assert "in ending" in str(error)
        assert isinstance(error, ContextPoisoned) is (host is INLINE)


@given(st.integers(0, 2**32))
def test_an_async_rebuild_and_close_are_awaited(seed):
    """D7: and one at a time; what leaving overtakes is told so."""
    runner = remote()

    async def body(session):
        with pytest.raises(RuntimeError, match="under way"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.rebuild, SessionRebuildCause.REMOTE_AUTH_FAILURE)
                await trio.sleep(0.5)
                try:
                    await session.rebuild(SessionRebuildCause.MANUAL)
                except RuntimeError as error:
                    caught = error
            raise caught
        assert runner.log.events == ["rebuilt for remote_auth_failure"]

    in_virtual_time(runner, body, seed)
    assert runner.log.events == ["rebuilt for remote_auth_failure", "closed"]

    async def main():
        async with trio.open_nursery() as nursery, INLINE.open(remote()) as session:
            nursery.start_soon(overtaken, session)
            await trio.sleep(0.5)

    async def overtaken(session):
        with pytest.raises(trio.ClosedResourceError):
            await session.rebuild(SessionRebuildCause.MANUAL)

    run_virtual(main, seed=seed)


def test_a_runner_that_does_not_close_is_told():
    """R23: leaving waits for `close_timeout`, no longer."""

    async def body(session):
        pass

    with pytest.raises(ContextHung, match="not closed within 2 s"):
        in_virtual_time(remote(close_delay=60), body, host=InlineHost(close_timeout=2))


def test_sys_exit_in_an_async_runner_leaves_as_itself():
    """R4: what is no Exception is nobody's to judge."""

    async def body(session):
        session.begin(BATCH)
        await until_failure(session)

    with pytest.raises(SystemExit):
        in_virtual_time(remote(fails={"r": SystemExit(5)}), body)


@attrs.frozen
class Clip:
    """A request that is no text."""

    request_id: str
    samples: bytes


@attrs.frozen(kw_only=True)
class Sound(TokenChunk):
    """A chunk that is no text."""

    samples: bytes


class Echo(Clumsy):
    """Plays back what it gets."""

    def execute(self, batch):
        for index, sample in enumerate(batch.samples):
            last = FinishReason.STOP if index == len(batch.samples) - 1 else None
            yield Sound(
                request_id=batch.request_id,
                index=index,
                token_ids=(0,),
                finish_reason=last,
                samples=bytes([sample]),
            )


def test_a_host_knows_of_a_request_its_id_and_of_a_chunk_its_place():
    """What else they carry is between caller and runner."""
    items = in_virtual_time(Echo(None), lambda session: whole(session, Clip("r", b"abc")))
    assert b"".join(item.samples for item in items) == b"abc"
    assert {item.incarnation for item in items} == {1}


def test_a_workers_restart_takes_no_time_in_virtual_time():
    """D1, R15: a worker over an InlineHost is tested by the hour: three poisons, backoffs and all."""
    faults = tuple(Fault("poison", "r", n, n) for n in (1, 2, 3))

    async def main():
        spec = device_worker("llm", Scripted(6, faults=faults), host=INLINE, limit=Limit(3, within=60))
        async with open_tree(spec, sinks=[]) as tree:
            before = trio.current_time()
            completion = await tree[spec].call(BATCH)
            assert (await tree[spec].ready()).incarnation == 4
            return completion.token_ids, trio.current_time() - before

    tokens, seconds = run_virtual(main)
    assert tokens == expected(BATCH, 6)
    assert seconds == pytest.approx(0.5 + 1.0, rel=0.25)


# --- in a thread


@pytest.mark.trio
async def test_the_loop_goes_on_while_a_thread_computes():
    """D10: loading and steps hold up nobody."""
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await trio.sleep(0.005)
            ticks += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        async with opened(Scripted(4, delay=0.05, load_delay=0.2), THREAD) as session:
            assert ids(await whole(session)) == expected(BATCH, 4)
        nursery.cancel_scope.cancel()
    assert ticks > 5


@pytest.mark.trio
async def test_a_thread_does_not_run_ahead_of_its_reader(monkeypatch):
    """Each stream's chunks in hand are bounded: the thread waits while nobody reads."""
    async with opened(Scripted(FOREVER), THREAD) as session:
        session.begin(BATCH)
        await session.receive()
        await trio.sleep(0.05)
        assert len(session._reports) <= 2


@pytest.mark.parametrize("at", ["token", "load", "rebuild"])
@pytest.mark.trio
async def test_a_thread_that_hangs_cannot_be_stopped_and_says_so(at, monkeypatch):
    """D9, D10: it escalates, and its device is not used again: leaving is Unrecoverable while the thread is there."""
    release = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda seconds: release.wait(PATIENCE) and sys_exit())
    short = 20.0 if at == "token" else 1.0
    host = ThreadHost("cuda:1", load_timeout=short, chunk_timeout=0.2, close_timeout=0.1)

    def sys_exit():
        raise SystemExit

    async def use():
        async with host.open(Scripted(faults=(Fault("hang", at=at),))) as session:
            if at == "rebuild":
                with pytest.raises(
                    DeviceError, match=r"cannot stop a runner that rebuilt no session within 1 s"
                ):
                    await session.rebuild(SessionRebuildCause.MANUAL)
            else:
                session.begin(BATCH)
            _, error = await until_failure(session)
            assert type(error) is DeviceError
            assert "process isolation off: cannot stop a runner that " in str(error)

    with pytest.raises(Unrecoverable, match=r"has not ended within 0.1 s: it may still hold cuda:1") as left:
        await use()
    if at == "load":
        assert "loaded no runner within 1 s" in str(left.value.__context__)
    release.set()
    for thread in runners_threads():
        thread.join(PATIENCE)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.trio
async def test_a_threads_deadline_holds_for_who_waits_already_while_a_stream_is_open(dropped):
    """D9: somebody sits in `receive` before a stream begins, and still when it is dropped."""
    failures = []

    async def reads(session):
        failures.append((await until_failure(session))[1])

    host = ThreadHost(chunk_timeout=0.2)
    async with opened(Scripted(3, delay=0.6), host) as session, trio.open_nursery() as nursery:
        nursery.start_soon(reads, session)
        await trio.testing.wait_all_tasks_blocked()
        session.begin(BATCH)
        if dropped:
            await trio.testing.wait_all_tasks_blocked()
            session.drop("r")
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert [type(error) for error in failures] == ([] if dropped else [DeviceError])


@pytest.mark.trio
async def test_sys_exit_in_a_thread_ends_the_context_alone():
    """D10: it is told, and escalates: nobody knows in what state it left."""
    async with opened(Raises("sys.exit"), THREAD) as session:
        session.begin(BATCH)
        _, error = await until_failure(session)
        assert type(error) is DeviceError
        assert str(error) == "the runner's thread was ended by SystemExit: 5"


@pytest.mark.parametrize("host", [INLINE, THREAD], ids=["inline", "thread"])
@pytest.mark.trio
async def test_what_closing_raises_is_raised_where_the_session_is_left(host):
    """R23: in this process nothing hides it."""
    with pytest.raises(ArithmeticError):
        async with host.open(Scripted(faults=(Fault("error", at="close"),))):
            pass
    assert not runners_threads()


@pytest.mark.parametrize("host", [THREAD, PROCESS], ids=["thread", "process"])
@pytest.mark.trio
async def test_an_async_runner_is_refused_where_there_is_no_loop_for_it(host):
    """One protocol, and one clear line where a runner is at the wrong place."""
    with pytest.raises(LoadFailed, match="TypeError: an async runner needs an InlineHost"):
        async with host.open(Remote(transport="local")):
            raise AssertionError
    async with opened(HalfAsync(), host) as session:
        (failed,) = await whole(session)
        assert "TypeError: a runner with async streams needs an InlineHost" in str(failed.error)


@pytest.mark.parametrize("name", ["load_timeout", "chunk_timeout", "close_timeout"])
def test_a_deadline_is_positive(name):
    """A constructor refuses nonsense."""
    with pytest.raises(ValueError, match=name):
        ThreadHost(**{name: 0})
