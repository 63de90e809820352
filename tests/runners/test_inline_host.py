"""What `InlineHost` alone does: async runners, virtual time (D10)."""

import time

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from remotes import Log, Remote
from rogues import factory
from sessions import BATCH, INLINE, THREAD, ids, opened, request, rest, until_failure, whole

from runners.errors import (
    BadRequest,
    ContextHung,
    ContextPoisoned,
    DeviceError,
    NetworkError,
    NetworkTimeout,
    RateLimited,
    RunnerError,
    Timeout,
    Unrecoverable,
)
from runners.hosts.inline import InlineHost
from runners.hosts.turns import NOTHING
from runners.models.scripted import Fault, Faulty, Scripted, expected
from runners.types import FinishReason, RunnerInfo, SessionRebuildCause, TokenChunk
from runners.worker import device_worker
from supervise import Limit, open_tree
from supervise.testing import run_virtual


def remote(tokens=5, **options):
    return Remote(tokens, log=Log(), **options)


def in_virtual_time(runner, body, seed=0, host=INLINE):
    """Run `body(session)` over the runner, in virtual time; what it gives."""

    async def main():
        with trio.fail_after(10_000):
            async with host.open(runner) as session:
                return await body(session)

    return run_virtual(main, seed=seed)


def test_a_runner_that_stays_in_this_process_need_not_be_importable():
    """D10: A test may define its own runner; an object that is no runner is refused all the same."""
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
    """A stream is at most a few chunks ahead of its reader, and a slow one gets its turn beside it."""
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
    """R30: It may be waiting for its server, or for room at its reader."""
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


class Lingers:
    """Its streams take a second to end, in which they need it; it records its calls."""

    info = RunnerInfo(streams=2)

    def __init__(self):
        self.told = []

    def build(self, start):
        return self

    async def execute(self, batch):
        try:
            yield TokenChunk(request_id=batch.request_id, index=0, token_ids=(1,))
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            self.told.append("ended")

    async def rebuild(self, cause):
        self.told.append("rebuilt")

    async def close(self):
        self.told.append("closed")


@given(st.integers(0, 2**32))
def test_an_async_stream_has_ended_before_its_runner_is_rebuilt_or_closed(seed):
    """D7, D10, F15: The stream may still have to close its connection, and a runner is asked for one thing at a time."""
    runner = Lingers()

    async def body(session):
        for name in "ab":
            session.begin(request(name))
            await session.receive()
            if name == "a":
                session.drop(name)
                await session.rebuild(SessionRebuildCause.MANUAL)
                assert runner.told == ["ended", "rebuilt"]

    in_virtual_time(runner, body, seed)
    assert runner.told == ["ended", "rebuilt", "ended", "closed"]


@pytest.mark.trio
async def test_a_turn_in_which_the_context_ends_tells_of_nothing_else():
    """D6: nothing is left of it, no lack of memory either, whose request nobody has been told of."""
    faults = (Fault("oom", "a", 2), Fault("unrecoverable", "b", 2))
    async with opened(Scripted(8, faults=faults), INLINE) as session:
        for name in "ab":
            session.begin(request(name))
        items, error = await until_failure(session)
        assert [item.index for item in items] == [0, 0, 1, 1]
        assert type(error) is Unrecoverable


@pytest.mark.parametrize("transport", ["local", "network"])
@given(seed=st.integers(0, 2**32))
def test_a_poison_told_in_ending_at_the_end_is_raised(transport, seed):
    """D4, R23: as a sync stream's is; and a runner on a device that is lost is not closed, a remote one is."""
    runner = Clumsy(ContextPoisoned("at the end"))
    runner.info = RunnerInfo(streams=2, transport=transport)

    async def body(session):
        session.begin(BATCH)
        await session.receive()

    with pytest.raises(ContextPoisoned, match="at the end"):
        in_virtual_time(runner, body, seed)
    assert runner.closed is (transport == "network")


@given(st.integers(0, 2**32))
def test_what_an_async_stream_lacks_in_ending_a_rebuild_cures(seed):
    """D7: a stream is dropped, and has ended, before the session is made anew."""

    async def body(session):
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        await session.rebuild(SessionRebuildCause.MANUAL)
        with trio.move_on_after(5) as silence:
            await session.receive()
        assert silence.cancelled_caught

    in_virtual_time(Clumsy(MemoryError("in ending")), body, seed)


@given(st.integers(0, 2**32))
def test_a_request_that_cannot_be_begun_opens_no_stream(seed):
    """D7: a stream that nobody knows of would be waited for by the next rebuild, for ever."""
    runner = remote(500)

    async def body(session):
        broken = request("r")
        object.__setattr__(broken, "sampling", None)
        session.begin(broken)
        (failed,) = await session.receive()
        assert type(failed.error) is RunnerError
        await session.rebuild(SessionRebuildCause.MANUAL)

    in_virtual_time(runner, body, seed)
    assert runner.log.made == {}


@given(st.integers(0, 2**32))
def test_a_stream_that_cannot_begin_during_a_rebuild_is_told(seed):
    """D7, D8: the rebuild waits for one that was dropped; what failed in ending is forgotten, this one is not."""

    async def body(session):
        session.begin(request("a"))
        await session.receive()
        session.drop("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.rebuild, SessionRebuildCause.MANUAL)
            await trio.sleep(0.5)
            broken = request("r")
            object.__setattr__(broken, "sampling", None)
            session.begin(broken)
        (failed,) = await session.receive()
        assert type(failed.error) is RunnerError

    in_virtual_time(Lingers(), body, seed)


class Clumsy:
    """Its streams fail in ending."""

    info = RunnerInfo(streams=2)
    closed = False

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
        self.closed = True


@given(st.integers(0, 2**32))
def test_a_poison_that_a_dropped_stream_raises_in_ending_counts(seed):
    """D6: No caller is left for a dropped stream's own error, but a poison is the context's."""

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
        (TimeoutError("slow"), NetworkTimeout),
        (trio.TooSlowError(), NetworkTimeout),
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
def test_a_network_runners_errors_are_errors_of_the_request(raised, kind):
    """D5: Trouble of the connection is typed, and a server's text says nothing about a device of ours."""
    runner = remote(fails={"r": raised})

    async def body(session):
        session.begin(request("s"))
        *before, failed = await whole(session)
        assert len(before) == 2
        assert type(failed.error) is kind
        return await rest(session, "s")

    assert ids(in_virtual_time(runner, body))[-1] == expected(request("s"), 5)[-1]


class Foreign(Exception):
    """Somebody else's, who has tagged it."""

    tag = "device.poisoned"


@pytest.mark.parametrize("transport", ["local", "network"])
@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (ContextPoisoned("told"), ContextPoisoned),
        (ExceptionGroup("deeper", [ContextPoisoned("told")]), ContextPoisoned),
        (Foreign("told"), DeviceError),
    ],
)
def test_a_poison_told_in_a_group_is_told_by_the_runner(told, kind, transport):
    """D4, D10: a nursery of the runner's has made the group; it is gone with the runner as one that comes bare is."""
    group = ExceptionGroup("of a nursery", [ValueError("beside it"), told])
    runner = remote(fails={"r": group}, transport=transport)

    async def body(session):
        session.begin(BATCH)
        return await until_failure(session)

    _, error = in_virtual_time(runner, body)
    assert type(error) is kind
    assert "told" in str(error)


def test_a_local_runners_text_is_judged():
    """D4, D10: A poison that is named in the device's own words is real: nothing in this process clears it."""
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
    """An iterator that cannot be closed is left as it is."""
    runner = Clumsy(None)
    last = TokenChunk(request_id="r", index=0, token_ids=(1,), finish_reason=FinishReason.STOP)
    runner.execute = lambda batch: ByHand(last)
    assert ids(in_virtual_time(runner, whole)) == (1,)


def test_an_async_stream_must_wait_until_it_has_a_chunk():
    """D5: `NOTHING` is for sync streams, which are polled; of an async one it is an error, and not a stream without an end."""
    runner = Clumsy(None)

    async def nothing(batch):
        yield NOTHING

    runner.execute = nothing
    (lost,) = in_virtual_time(runner, whole)
    assert (type(lost.error), str(lost.error)) == (
        RunnerError,
        "an async stream must wait until it has a chunk, got NOTHING",
    )


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
    """D6: It is judged as an async one is; and a runner that cannot do what it declares fails that request."""
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
    """D7: They run one at a time; a rebuild that the end of the session overtakes gets an error that says so."""
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


def test_a_cancelled_body_closes_an_async_runner():
    """R13, D10: Closing has all of its time."""
    runner = remote(close_delay=2)

    async def body(_):
        with trio.CancelScope() as scope:
            async with INLINE.open(runner):
                scope.cancel()
                await trio.sleep_forever()

    in_virtual_time(remote(), body)
    assert runner.log.events == ["closed"]


class Closes:
    """A sync runner that records which of its streams were closed."""

    info = RunnerInfo(streams=4)

    def __init__(self):
        self.closed = []

    def build(self, _):
        return self

    def execute(self, batch):
        try:
            for index in range(9):
                yield TokenChunk(request_id=batch.request_id, index=index, token_ids=(1,))
        finally:
            self.closed.append(batch.request_id)

    def rebuild(self, _):
        pass

    def close(self):
        pass


def test_dropping_a_sync_stream_runs_no_code_of_the_runner():
    """D10: The drop may happen inside of Trio, when a caller is cancelled; the next reader closes the stream."""
    runner = Closes()

    async def body(session):
        session.begin(BATCH)
        await session.receive()
        session.drop("r")
        assert runner.closed == []
        with trio.move_on_after(1):
            await session.receive()
        assert runner.closed == ["r"]

    in_virtual_time(runner, body)


def test_a_runner_that_does_not_close_is_reported():
    """R23: Leaving waits for `close_timeout`, and no longer."""

    async def body(session):
        pass

    with pytest.raises(ContextHung, match="not closed within 2 s"):
        in_virtual_time(remote(close_delay=60), body, host=InlineHost(close_timeout=2))


def test_sys_exit_in_an_async_runner_leaves_as_itself():
    """R4: An exception that is no `Exception` is not judged."""

    async def body(session):
        session.begin(BATCH)
        await until_failure(session)

    with pytest.raises(SystemExit):
        in_virtual_time(remote(fails={"r": SystemExit(5)}), body)


def test_sys_exit_in_a_step_leaves_a_worker_as_itself():
    """R4: It leaves through the worker and its tree unchanged."""

    async def main():
        spec = device_worker("llm", remote(fails={"r": SystemExit(5)}), host=INLINE)
        async with open_tree(spec, sinks=[]) as tree:
            await tree[spec].call(BATCH)

    with pytest.raises(SystemExit):
        run_virtual(main)


def test_faults_strike_in_an_async_runner_too():
    """Each fault strikes once, at its place; streams without a fault are as before, and rebuild and close work too."""
    runner = remote()
    faults = (Fault("error", "b", 2, tag="net.timeout"), Fault("slow", at="rebuild", seconds=0))

    async def body(session):
        made = {name: await whole(session, request(name)) for name in "ab"}
        await session.rebuild(SessionRebuildCause.REMOTE_AUTH_FAILURE)
        return made

    made = in_virtual_time(Faulty(runner, faults), body)
    assert ids(made["a"]) == expected(request("a"), 5)
    assert ids(made["b"][:-1]) == expected(request("b"), 5)[:2]
    assert "a scripted error, tagged net.timeout" in str(made["b"][-1].error)
    assert runner.log.events == ["a closed", "b closed", "rebuilt for remote_auth_failure", "closed"]


def test_a_workers_restart_takes_no_time_in_virtual_time():
    """D1, R15: A worker over an InlineHost is tested for hours: three poisons, with their backoffs."""
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


@pytest.mark.parametrize(
    ("spec", "seconds"),
    [
        (Scripted(6, delay=600), 3600),
        (Scripted(6, load_delay=3600), 3600),
        (Scripted(6, delay=100, load_delay=3000), 3600),
        (Scripted(6, faults=(Fault("slow", at_token=3, seconds=3600),)), 3600),
        (Scripted(6, faults=(Fault("slow", at="load", seconds=3600),)), 3600),
        (Scripted(6, faults=(Fault("slow", at="close", seconds=2),)), 2),
        (Faulty(Scripted(6, load_delay=3600), (Fault("slow", at="load", seconds=400),)), 4000),
        (Faulty(Scripted(6, delay=600), (Fault("slow", "r", 2, seconds=400),)), 4000),
    ],
)
def test_a_scripted_runner_waits_on_trios_clock(spec, seconds):
    """D10: If it is built in a Trio task, an hour takes no time, and its streams are the same as elsewhere."""

    async def main():
        before, real = trio.current_time(), time.monotonic()
        async with INLINE.open(spec) as session:
            items = await whole(session)
        assert ids(items) == expected(BATCH, 6)
        assert time.monotonic() - real < 60
        return trio.current_time() - before

    assert run_virtual(main) == pytest.approx(seconds)


def test_a_scripted_hang_can_be_left():
    """D10: On Trio's clock a stream that hangs harms only its own request, which has its deadline."""
    spec = device_worker("llm", Scripted(6, faults=(Fault("hang", "hangs", 3),)), host=INLINE)

    async def main():
        async with open_tree(spec, sinks=[]) as tree:
            with pytest.raises(Timeout):
                await tree[spec].call(request("hangs", deadline=trio.current_time() + 3600))
            return (await tree[spec].call(BATCH)).token_ids

    assert run_virtual(main) == expected(BATCH, 6)


def test_a_rebuild_of_a_scripted_runner_waits_on_trios_clock():
    """D7, D10: It waits as its streams do."""

    async def body(session):
        before = trio.current_time()
        await session.rebuild(SessionRebuildCause.MANUAL)
        return trio.current_time() - before

    runner = Scripted(faults=(Fault("slow", at="rebuild", seconds=3600),))
    assert in_virtual_time(runner, body) == pytest.approx(3600)
