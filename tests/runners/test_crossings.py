"""Stops, drains, rebuilds, poisons, deaths, a lack of memory and callers that leave, crossing at drawn ticks (D6, D7, D8, D13).

Virtual time, and a schedule that follows from a seed. A token takes a second, and whatever is done comes some ticks of Trio's
loop behind a second: before the token is out, on its way through the worker, or behind it. `CAMPAIGN=20` in the environment
tries twenty times as many.
"""

import os
from collections import Counter, deque
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage import Caller, batch, serving

from runners.errors import (
    ContextDied,
    ContextLost,
    ContextPoisoned,
    InferenceError,
    OutOfMemory,
    PoisonRequest,
    RebuildSuperseded,
    SessionRebuild,
    Timeout,
    WorkerDown,
    WorkerStopping,
)
from runners.hosts import RequestFailed
from runners.hosts.inline import InlineHost
from runners.models.scripted import Scripted, expected
from runners.types import SessionRebuildCause
from runners.worker import ContextState, rebuild, report_poison
from supervise import Refused, events
from supervise.testing import run_virtual

TOKENS = 4
TIMES = int(os.environ.get("CAMPAIGN", "1"))
LONG = 1000.0
"""Seconds that any drain is done in."""
CALM = {"stop", "start", "restart", "rebuild", "leave", "lack"}
"""What costs a begun stream nothing if there is time to drain (D7, D13); a lack of memory costs its own."""


class Session:
    """A session of an `InlineHost` that may be killed, and whose requests may lack memory."""

    def __init__(self, inner, begun):
        self._inner = inner
        self._begun = begun
        self._told = deque()
        self._dead = None
        self._open = set()
        self._scope = trio.CancelScope()

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def begin(self, request, accepted=(), *, confirm=False):
        if self._dead is None:
            self._inner.begin(request, accepted, confirm=confirm)
            self._begun[request.request_id] += 1
            self._open.add(request.request_id)

    def drop(self, name):
        self._open.discard(name)
        self._inner.drop(name)

    def dies(self):
        self._dead = ContextDied("killed")
        self._scope.cancel("killed")

    def lacks_memory(self, name):
        if name in self._open:
            self._open.discard(name)
            self._inner.drop(name)
            error = OutOfMemory(name)
            error.request_ids = (name,)
            self._told += [[RequestFailed(name, OutOfMemory(name))], error]
            self._scope.cancel("memory ran out")

    async def receive(self):
        while self._dead is None:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._told:
                told = self._told.popleft()
                if isinstance(told, Exception):
                    raise told
                if told[0].request_id in self._begun:
                    return told
            with trio.CancelScope() as self._scope:
                return self._of_open(await self._inner.receive())
        raise self._dead

    def _of_open(self, items):
        for item in items:
            if getattr(item, "finish_reason", None) is not None:
                self._open.discard(item.request_id)
        return items

    async def rebuild(self, cause):
        await trio.sleep(0.5)
        if self._dead is not None:
            raise self._dead
        await self._inner.rebuild(cause)


class Host:
    """An `InlineHost` of such sessions."""

    def __init__(self):
        self._inner = InlineHost()
        self.begun = Counter()
        self.session = None

    def check(self, runner):
        self._inner.check(runner)

    @asynccontextmanager
    async def open(self, runner, **options):
        async with self._inner.open(runner, **options) as inner:
            assert self.session is None
            self.session = Session(inner, self.begun)
            try:
                yield self.session
            finally:
                self.session = None


class Asker(Caller):
    """A caller that notes when each chunk came, and that may leave."""

    def __init__(self, request):
        super().__init__(request, lambda chunk: self.came.append((trio.current_time(), chunk.incarnation)))
        self.came = []

    async def ask(self, worker, form):
        if form == "stream":
            await self.run(worker)
            return
        with self.scope:
            try:
                self.ids = (await worker.call(self.request)).token_ids
            except InferenceError as error:
                self.error = error
            finally:
                self.over.set()


class Crossing:
    """One worker, what is done to it, and what is known of it afterwards."""

    def __init__(self, askers, acts, *, streams, drain, seed, canary=None, deadline=None):
        self.acts, self.streams, self.drain, self.canary = acts, streams, drain, canary
        self.askers = [
            (moment, form, Asker(batch(str(number), on_loss=on_loss, deadline=None if number else deadline)))
            for number, (moment, form, on_loss) in enumerate(askers)
        ]
        self.host = Host()
        self.orders = []
        self.reports = []
        self.scene = None
        run_virtual(self._main, seed=seed)

    async def _main(self):
        runner = Scripted(TOKENS, delay=1.0, streams=self.streams)
        options = {"limit": None, "drain": self.drain, "canary": self.canary, "patience": 100 * LONG}
        async with trio.open_nursery() as outside:
            async with serving(runner, host=self.host, **options) as self.scene:
                for moment, form, asker in self.askers:
                    outside.start_soon(self._at, moment, asker.ask, self.scene.worker, form)
                for moment, kind, number in self.acts:
                    outside.start_soon(self._at, moment, getattr(self, kind), number)
                await trio.sleep(LONG / 10)
            self.ended = trio.current_time()
            with trio.move_on_after(1) as scope:
                for _, _, asker in self.askers:
                    await asker.over.wait()
            outside.cancel_scope.cancel()
        assert not scope.cancelled_caught, "a stream hangs"

    async def _at(self, moment, act, *args):
        second, ticks = moment
        await trio.sleep_until(second)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        await act(*args)

    async def stop(self, _):
        await self.scene.worker.stop()

    async def restart(self, _):
        with suppress(Refused):
            await self.scene.worker.restart()

    async def start(self, _):
        with suppress(Refused):
            await self.scene.worker.start()

    @property
    def _context(self):
        """The context as it stands: its state and its incarnation; it need not be there."""
        nodes = self.scene.worker.status().walk()
        return next(((node.state, node.incarnation) for node in nodes if node.kind == "child"), ("down", 0))

    async def rebuild(self, _, cause=SessionRebuildCause.MANUAL):
        state, incarnation = self._context
        if cause is SessionRebuildCause.CONTEXT_POISONED:
            self._is_poisoned(state, incarnation)
        try:
            result = await rebuild(self.scene.worker, cause)
        except InferenceError as error:
            result = error
        self.orders.append((state, result, trio.current_time()))

    async def replace(self, number):
        await self.rebuild(number, SessionRebuildCause.CONTEXT_POISONED)

    async def poison(self, _):
        state, incarnation = self._context
        report_poison(self.scene.worker, "says the operator", incarnation)
        self._is_poisoned(state, incarnation)

    def _is_poisoned(self, state, incarnation):
        if state in {"up", "failed", "stopping"}:
            self.reports.append((trio.current_time(), incarnation))

    async def kill(self, _):
        if self.host.session is not None:
            self.host.session.dies()

    async def lack(self, number):
        if self.host.session is not None:
            self.host.session.lacks_memory(str(number % len(self.askers)))

    async def leave(self, number):
        self.askers[number % len(self.askers)][2].scope.cancel()

    # --- what must hold

    def check(self):
        """D6, D7, D8, D13."""
        for _, _, asker in self.askers:
            self._check_end(asker)
        self._check_orders()
        self._check_reports()
        failures = [
            event.exc for event in self.scene.seen if isinstance(event, events.Failed | events.StopError)
        ]
        assert all(
            isinstance(failure, ContextPoisoned | OutOfMemory | SessionRebuild) for failure in failures
        )

    @property
    def is_calm(self):
        kinds = [kind for _, kind, _ in self.acts]
        return self.drain == LONG and CALM.issuperset(kinds) and kinds.count("lack") <= 1

    def _check_end(self, asker):
        whole = expected(asker.request, TOKENS)
        assert asker.ids == whole[: len(asker.ids)]
        begun = self.host.begun[asker.request.request_id]
        if asker.error is None:
            assert asker.ids == whole or asker.scope.cancelled_caught or asker.scope.cancel_called
            return
        kinds = {kind for _, kind, _ in self.acts}
        assert isinstance(
            asker.error, ContextLost | OutOfMemory | PoisonRequest | Timeout | WorkerDown | WorkerStopping
        )
        if type(asker.error) is Timeout:
            assert asker.request.deadline is not None
            return
        if type(asker.error) is WorkerStopping:
            assert not begun
        if type(asker.error) is OutOfMemory:
            assert "lack" in kinds
        if begun and self.is_calm:
            assert type(asker.error) is OutOfMemory, f"{asker.request.request_id} is lost: {asker.error!r}"

    def _check_orders(self):
        assert len(self.orders) == sum(kind in {"rebuild", "replace"} for _, kind, _ in self.acts)
        for state, result, _ in self.orders:
            assert isinstance(
                result,
                ContextState
                | RebuildSuperseded
                | WorkerStopping
                | WorkerDown
                | ContextDied
                | ContextPoisoned,
            ), result
            if type(result) is WorkerDown and result.__cause__ is None:
                assert state in {"down", "condemned"}, f"it was {state} when a rebuild was ordered"

    def _check_reports(self):
        """D3, D13: what is known to be poisoned serves no longer."""
        for at, incarnation in self.reports:
            for _, _, asker in self.askers:
                late = [when for when, which in asker.came if when > at and which == incarnation]
                assert not late, f"reported at {at} as poisoned, it went on with {asker.request.request_id}"


MOMENTS = st.tuples(st.integers(0, 6), st.integers(0, 10))
KINDS = ("stop", "start", "restart", "rebuild", "replace", "poison", "kill", "lack", "leave")


def acts(*kinds, most=5):
    return st.lists(st.tuples(MOMENTS, st.sampled_from(kinds), st.integers(0, 4)), min_size=1, max_size=most)


ASKERS = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 3), st.integers(0, 10)),
        st.sampled_from(["stream", "stream", "call"]),
        st.sampled_from(["migrate", "migrate", "fail"]),
    ),
    min_size=1,
    max_size=4,
)
SEARCH = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


TWO = [((0, 0), "stream", "migrate")] * 2


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("kind", ["rebuild", "lack"])
def test_a_stop_a_few_ticks_after_a_resume_began_costs_no_stream(kind, ticks):
    """D13, D7, D5: The body has ended for a new session, or for lack of memory, and no supervisor resumes it any more."""
    for seed in range(8):
        crossing = Crossing(
            TWO, [((2, 0), kind, 0), ((2, ticks), "stop", 0)], streams=2, drain=LONG, seed=seed
        )
        crossing.check()
        assert not crossing.scene.of(events.StopError)
        assert all(at == 2 for _, result, at in crossing.orders if type(result) is WorkerStopping)


@pytest.mark.parametrize("ticks", range(4))
def test_a_rebuild_waits_for_a_stream_whose_first_chunk_is_on_its_way(ticks):
    """D7: The chunk passes through the worker at a moment when no stream that may not move is open yet."""
    for seed in range(12):
        stays = [((0, 0), "stream", "fail")]
        Crossing(stays, [((1, ticks), "rebuild", 0)], streams=2, drain=LONG, seed=seed).check()


@pytest.mark.parametrize("drain", [0.0, LONG])
@pytest.mark.parametrize("ticks", range(12))
@pytest.mark.parametrize("kind", ["rebuild", "replace"])
def test_a_rebuild_that_meets_the_stop_is_answered_with_the_stop(kind, ticks, drain):
    """D7: The error names the stop, and not a worker that is down; this holds before, at and after the stop."""
    for seed in range(4):
        acts = [((2, 4), kind, 0), ((2, ticks), "stop", 0)]
        crossing = Crossing(TWO, acts, streams=2, drain=drain, seed=seed)
        crossing.check()
        ((state, result, _),) = crossing.orders
        assert state == "down" or type(result) in {ContextState, WorkerStopping}


@pytest.mark.parametrize("ticks", range(10))
@pytest.mark.parametrize("kind", ["replace", "poison"])
def test_a_poison_that_is_reported_as_the_stop_comes_counts(kind, ticks):
    """D3, D13: Whichever of them is first, nothing more is made in the poisoned session."""
    for seed in range(4):
        acts = [((2, 4), kind, 0), ((2, ticks), "stop", 0)]
        crossing = Crossing(TWO, acts, streams=2, drain=LONG, seed=seed)
        crossing.check()
        for _, _, asker in crossing.askers:
            assert type(asker.error) is WorkerDown or asker.came[-1][1] == 2


@pytest.mark.parametrize("ticks", range(6))
def test_a_rebuild_does_not_supersede_an_order_that_reports_a_poison(ticks):
    """D7: Whichever is ordered first, the poisoned context is replaced."""
    for seed in range(8):
        acts = [((2, 3), "replace", 0), ((2, ticks), "rebuild", 0)]
        crossing = Crossing(TWO, acts, streams=2, drain=0.0, seed=seed)
        crossing.check()
        assert len(crossing.scene.of(events.Ready)) == 4


OPTIONS = st.fixed_dictionaries(
    {
        "streams": st.integers(1, 3),
        "canary": st.sampled_from([None, None, 0.5]),
        "deadline": st.sampled_from([None, None, 2.0, 3.5]),
        "seed": st.integers(0, 2**32 - 1),
    }
)


@pytest.mark.slow
@settings(SEARCH, max_examples=300 * TIMES)
@given(ASKERS, acts(*KINDS), st.sampled_from([0.0, 1.5, LONG]), OPTIONS)
def test_whatever_crosses_every_stream_ends_as_it_should(askers, acts, drain, options):
    """D6, D7, D8: Each stream ends whole, with a typed error, or as cancelled; no token comes twice, and no caller hangs."""
    Crossing(askers, acts, drain=drain, **options).check()


@pytest.mark.slow
@settings(SEARCH, max_examples=300 * TIMES)
@given(ASKERS, acts(*sorted(CALM)), OPTIONS)
def test_a_stop_with_time_to_drain_costs_no_begun_stream(askers, acts, options):
    """D13: This holds whatever else was ordered in the moment before it, or after."""
    Crossing(askers, acts, drain=LONG, **options).check()
