"""Requests, orders, failures and adoptions that cross in a device worker at drawn ticks, in virtual time (D5–D8, D10, D12–D14, R38).

What must hold (the oracle):

- Each request ends once: whole, left by its caller, or with an error that the plan gives a reason for. Its tokens are the first of
  the text of one runner, each once and in order, and none is of a context after it was reported as poisoned. While everything that
  is ordered leaves time to drain, a request that has begun is lost only to its own deadline or lack of memory (D6, D7, D8, D13).
- Once all is quiet each order has its answer, each request its end if a context is up, and nothing is kept of either (D10). Then a
  new request is answered whole, by the runner of the last replacement (D12, R38). The worker never begins more requests in a
  minute than the server allows (D14).
- The host's sessions are used as their contract says, and all are closed at the end. The events keep to the grammar of a run, and
  each failure among them is one of the worker's own kinds.

A token takes a second, and whatever is done comes some ticks of Trio's loop behind a second or the half of one: before the token is
out, on its way through the worker, or behind it. `CAMPAIGN=100` in the environment tries a hundred times as many plans.
"""

import math
import os
from contextlib import suppress

import attrs
import pytest
import trio
from failing import FailingHost, text
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from runners import device_worker, errors, replace
from runners.models.scripted import Scripted
from runners.types import ExecuteBatch, RateLimits, RunnerInfo, Sampling, SessionRebuildCause, TokenChunk
from runners.worker import Breaker, ContextState, rebuild, report_poison
from runners.worker.group import group_at
from supervise import (
    Backoff,
    ChildStopped,
    Decider,
    Limit,
    Refused,
    StartFailed,
    Stop,
    Supervisor,
    events,
    open_tree,
)
from supervise.errors import LimitExceeded
from supervise.testing import assert_lifecycle, run_virtual

TIMES = int(os.environ.get("CAMPAIGN", "1"))
LONG = 1000.0
"""Seconds that any drain is done in, and that whatever is under way needs until all is quiet."""
DECLARED = 3
"""The version of the runner that the worker is declared with."""
CALM = ["stop worker", "start worker", "restart worker", "rebuild worker", "rebuild inside", "lack", "leave"]
"""What costs a begun stream nothing if there is time to drain (D7, D13); a lack of memory costs its own."""
ANY = [f"{verb} {whom}" for verb in ("stop", "restart", "rebuild") for whom in ("worker", "front", "inside")]
ANY += ["start worker", "start front", "remove front", "repair inside", "poison inside"]
ANY += ["adopt", "move", "change", "change", "replace worker", "replace worker"]
ANY += ["kill", "kill", "lack", "lack", "lie", "leave", "leave"]
"""What may be done, some of it more often. `Play._order` has the meaning of each."""
CHANGES = ({"queue": 50}, {"backoff": Backoff(initial=0.1, jitter=0)}, {"canary": 20.0}, {"drain": 1.0})
"""What an adoption may change."""
ANSWERS = (errors.InferenceError, Refused, StartFailed, ChildStopped, KeyError)
"""What an order may raise."""


@attrs.frozen
class Ask:
    """A request at a moment. `pause`: seconds between two reads. `leaves`: after so many chunks. `fault`: kind, token, and times."""

    at: tuple[float, int]
    form: str = "stream"
    most: int = 4
    on_loss: str = "migrate"
    deadline: float | None = None
    affinity: str = ""
    pause: float = 0.0
    leaves: int | None = None
    fault: tuple[str, int, int] | None = None


@attrs.frozen
class Act:
    """What is done at a moment, so many ticks of Trio's loop behind a second or half of one; `patience`: of who orders it."""

    at: tuple[float, int]
    kind: str
    number: int = 0
    patience: float = math.inf


@attrs.frozen
class Place:
    """Outcomes of the loads and rebuilds of a host, each with its seconds."""

    loads: tuple[tuple[str, float], ...] = ()
    rebuilds: tuple[tuple[str, float], ...] = ()


@attrs.frozen
class Plan:
    """What is asked and done, and the worker: of one context under `host`, or several under `hosts`."""

    asks: tuple[Ask, ...]
    acts: tuple[Act, ...] = ()
    places: tuple[Place, ...] = (Place(),)
    several: bool = False
    streams: int = 2
    can_continue: bool = True
    limits: RateLimits | None = None
    drain: float = LONG
    worker_limit: Limit | None = None
    options: dict = attrs.field(factory=dict)
    seed: int = 0

    @property
    def kinds(self):
        return {act.kind for act in self.acts}

    @property
    def is_calm(self):
        """Whether nothing is done that costs a begun stream anything but memory of its own."""
        lacks = sum(act.kind == "lack" for act in self.acts)
        fails = any(ask.fault for ask in self.asks) or any(place != Place() for place in self.places)
        fails = fails or self.options.get("limit") is not None
        return self.drain == LONG and self.kinds <= set(CALM) and lacks <= 1 and not fails


@attrs.define
class Order:
    """What was done. `state`: of the context before; `at`: when it was answered."""

    act: Act
    state: str
    result: object = None
    at: float | None = None


class Asker:
    """The caller of one request."""

    def __init__(self, name, ask):
        self.name, self.ask, self.ids, self.came, self.end = name, ask, (), [], "left"
        self.over, self.scope = trio.Event(), trio.CancelScope()
        options = {"on_loss": ask.on_loss, "deadline": ask.deadline, "affinity": ask.affinity}
        self.request = ExecuteBatch(name, sampling=Sampling(max_tokens=ask.most, seed=1), **options)

    async def run(self, worker):
        assert not self.over.is_set()
        try:
            with self.scope:
                if self.ask.form == "call":
                    self.ids, self.end = (await worker.call(self.request)).token_ids, "whole"
                else:
                    async with getattr(worker, self.ask.form)(self.request) as chunks:
                        await self._read(chunks)
        except errors.InferenceError as error:
            self.end = error
        finally:
            self.over.set()

    async def _read(self, chunks):
        async for chunk in chunks:
            assert self.end != "whole"
            assert (chunk.request_id, chunk.index) == (self.name, len(self.ids))
            self.ids += chunk.token_ids
            self.came.append((trio.current_time(), chunk.incarnation))
            if chunk.finish_reason is not None:
                self.end = "whole"
            elif self.ask.leaves == len(self.ids):
                return
            await trio.sleep(self.ask.pause)
        assert self.end == "whole"


class Play:
    """A worker under a plan. `seen`: its events; `reports`: when which incarnation was reported as poisoned."""

    def __init__(self, plan):
        self.plan, self.seen, self.orders, self.reports = plan, [], [], []
        info = RunnerInfo(streams=plan.streams, can_continue=plan.can_continue, limits=plan.limits)
        self.faults = {str(n): list(ask.fault) for n, ask in enumerate(plan.asks) if ask.fault}
        self.hosts = [
            FailingHost(info, list(place.loads), list(place.rebuilds), self.faults) for place in plan.places
        ]
        self.askers = [Asker(str(number), ask) for number, ask in enumerate(plan.asks)]
        self.versions = {DECLARED}
        run_virtual(self._main, seed=plan.seed)
        self._check()

    def _root(self, version=DECLARED, hosts=None, **changed):
        options = {"drain": self.plan.drain, **self.plan.options, **changed}
        if self.plan.several:
            options |= {"hosts": hosts or self.hosts, "worker_limit": self.plan.worker_limit}
        else:
            options["host"] = self.hosts[0]
        worker = device_worker("llm", Scripted(version), **options)
        return Supervisor("app", [worker], limit=None, decider=Decider(default=Stop))

    async def _main(self):
        async with trio.open_nursery() as outside:
            async with open_tree(self._root(), sinks=[self.seen.append]) as self.tree:
                self.worker = self.tree["app/llm"]
                for asker in self.askers:
                    outside.start_soon(self._at, asker.ask.at, asker.run, self.worker)
                for act in self.plan.acts:
                    outside.start_soon(self._at, act.at, self._do, act)
                await self._quiet()
            with trio.move_on_after(1):
                await self._all_over()
            assert not self._waiting(), "a request outlives its worker"
            outside.cancel_scope.cancel()

    async def _at(self, moment, act, *args):
        await trio.sleep_until(moment[0])
        for _ in range(moment[1]):
            await trio.lowlevel.checkpoint()
        await act(*args)

    # --- what is done

    async def _do(self, act):
        order = Order(act, self._state())
        self.orders.append(order)
        try:
            with trio.move_on_after(act.patience) as scope:
                order.result = await self._order(*act.kind.split(), number=act.number)
            if scope.cancelled_caught:
                order.result = "left"
        except ANSWERS as error:
            order.result = error
        except ExceptionGroup as error:  # of an adoption
            order.result = error
            assert error.split(ANSWERS)[1] is None, error
        order.at = trio.current_time()

    def _ref(self, whom, number):
        """The worker; a context as it is declared; or, of several, the context in that supervisor."""
        if whom == "worker" or not self.plan.several:
            return self.tree["app/llm" if whom == "worker" else "app/llm/context"]
        front = f"app/llm/context-{number % len(self.hosts)}"
        return self.tree[front if whom == "front" else front + "/context"]

    def _state(self):
        with suppress(*ANSWERS):
            return self._ref("inside", 0).status().state
        return "down"

    async def _order(self, verb, whom="", *, number):
        ref, session = whom and self._ref(whom, number), self.hosts[number % len(self.hosts)].session
        match verb:
            case "stop" | "start" | "restart":
                await getattr(ref, verb)()
            case "remove" if self.plan.several:
                await ref.stop()
                await ref.remove()
            case "rebuild":
                return await rebuild(ref)
            case "repair":
                self._is_poisoned(ref)
                return await rebuild(ref, SessionRebuildCause.CONTEXT_POISONED)
            case "poison":
                report_poison(ref, "says the operator", ref.status().incarnation)
                self._is_poisoned(ref)
            case "replace" if self.plan.several:
                await self._replace(DECLARED + number % 3, number * 2 % 5)
            case "adopt":
                await self.tree.adopt(self._root(**CHANGES[number % len(CHANGES)]))
            case "move":
                await self.tree.adopt(self._root(hosts=(self.hosts + self.hosts[:1] * 3)[: 1 + number % 4]))
            case "change":
                await self.tree.adopt(self._root(DECLARED + number % 3))
            case "leave":
                self.askers[number % len(self.askers)].scope.cancel()
            case "lack" if session is not None:
                session.lacks_memory(list(session.open)[: 1 + number % 2])
            case "lie" if session is not None and session.open:
                session.gives([TokenChunk(request_id=next(iter(session.open)), index=999, token_ids=(1,))])
            case "kill" if session is not None:
                session.dies(
                    (errors.ContextDied, errors.ContextHung, errors.Unrecoverable)[number % 3]("struck")
                )
        return None

    def _is_poisoned(self, ref):
        node = ref.status()
        if node.state in {"up", "failed", "stopping"} and not self.plan.several:
            self.reports.append((trio.current_time(), node.incarnation))

    async def _replace(self, version, drain):
        self.versions.add(version)
        try:
            await replace(self.worker, Scripted(version), drain=drain)
        except RuntimeError as error:
            assert "another replacement" in str(error)
        else:
            self.versions = {version}

    # --- what must hold

    def _waiting(self):
        return [asker.name for asker in self.askers if not asker.over.is_set()]

    async def _all_over(self):
        for asker in self.askers:
            await asker.over.wait()

    async def _quiet(self):
        await trio.sleep(30)
        for host in self.hosts:
            host.loads.clear()
            host.rebuilds.clear()
        with trio.move_on_after(LONG):
            await self._all_over()
        await trio.sleep(100 + 1 / 64)  # when nothing else happens
        assert not [order for order in self.orders if order.at is None]
        if not self._is_up():
            for whom, number in [("worker", 0), *(("front", number) for number in range(len(self.hosts)))]:
                with suppress(*ANSWERS):  # R37: once a context is started by hand, all go on
                    await self._ref(whom, number).start()
            with trio.move_on_after(LONG):
                await self._all_over()
        if not self._is_up():
            assert not self._waiting() or self.worker.status().state == "up"
            return
        assert not self._waiting(), "a request hangs"
        self._keeps_nothing()
        self.faults.clear()
        with trio.fail_after(LONG):
            request = ExecuteBatch("fresh", sampling=Sampling(max_tokens=3, seed=1))
            fresh = (await self.worker.call(request)).token_ids
        version = fresh[0] % 10
        assert fresh == text("fresh", version, 3)
        assert version in self.versions or "change" in self.plan.kinds, "a replacement is undone"

    def _is_up(self):
        status = self.worker.status()
        return status.state == "up" and any(
            node.kind == "child" and node.state == "up" for node in status.walk()
        )

    def _keeps_nothing(self):
        group = group_at(self.tree, "app/llm")
        for context in group.contexts.values():
            assert not any((context.open, context.retries, context.held, context._staying, context._last))
            assert (context.waiting, context.under_way) == (None, None)
            assert set(context.session.open) == ({"canary"} if context.canary_open else set())
        assert not group.loss.streams
        assert not group.replacing
        assert group.circuit is None or not group.circuit.probes
        assert group.rates._tokens == sum(begun.tokens for begun in group.rates._begun)
        assert "spare" not in str([node.path for node in self.worker.status().walk()])

    def of(self, kind):
        return [each for each in self.seen if isinstance(each, kind)]

    def _check(self):
        assert_lifecycle(self.seen)
        assert not any(session.ended is False for host in self.hosts for session in host.sessions)
        for failed in self.of(events.Failed | events.StopError):
            assert isinstance(failed.exc, errors.InferenceError | LimitExceeded | StartFailed), repr(
                failed.exc
            )
        for asker in self.askers:
            self._check_end(asker)
            for at, incarnation in self.reports:
                late = [when for when, which in asker.came if when > at and which == incarnation]
                assert not late or asker.ask.pause, (
                    f"reported at {at} as poisoned, it went on with {asker.name}"
                )
        for order in self.orders:
            if type(order.result) is errors.WorkerDown and not self.plan.several:
                assert order.result.__cause__ or order.state in {"down", "condemned"}, order
        self._check_limits()

    def _check_end(self, asker):
        ask, end, kinds = asker.ask, asker.end, self.plan.kinds
        if asker.ids:
            assert asker.ids == text(asker.name, asker.ids[0] % 10, ask.most)[: len(asker.ids)]
        if not isinstance(end, Exception):
            assert end == "whole" or asker.scope.cancel_called or ask.leaves is not None
            assert end == "left" or len(asker.ids) == ask.most
            return
        fault = ask.fault[0] if ask.fault else None
        begun = any(name == asker.name for host in self.hosts for _, name in host.begun)
        reasons = {
            errors.Timeout: ask.deadline is not None,
            errors.Backpressure: ask.form.endswith("nowait"),
            errors.CircuitOpen: self.plan.options.get("breaker") is not None,
            errors.NetworkError: fault in {"network", "limited"},
            errors.BadRequest: fault == "bad",
            errors.RunnerError: fault == "broken",
            errors.OutOfMemory: "lack" in kinds or fault == "lacks memory",
            errors.ContextLost: ask.on_loss == "fail"
            or not self.plan.can_continue
            or bool(kinds & {"replace worker", "change"}),
            errors.WorkerStopping: not begun,
            errors.WorkerDown: True,
            errors.PoisonRequest: True,
        }
        kind = next((kind for kind in reasons if isinstance(end, kind)), None)
        assert kind is not None and reasons[kind], f"{asker.name}: {end!r}"  # noqa: PT018 - The message is that of both.
        assert not (begun and self.plan.is_calm) or kind in {errors.Timeout, errors.OutOfMemory}, (
            f"{asker.name} is lost: {end!r}"
        )

    def _check_limits(self):
        most = self.plan.limits and self.plan.limits.requests
        if most is None or "change" in self.plan.kinds:
            return
        firsts, known = [], set()
        for at, name in sorted(begun for host in self.hosts for begun in host.begun):
            if name == "canary" or name not in known:
                firsts.append(at)
            known.add(name)
        for number, at in enumerate(firsts[most:]):
            assert at >= firsts[number] + 60 - 1e-6, (
                f"{most + 1} requests began within a minute of {firsts[number]}"
            )


def _some(*values):
    """The first value is the usual one."""
    return st.sampled_from([values[0], *values])


_moments = st.tuples(st.integers(0, 24).map(lambda half: half / 2), st.integers(0, 10))
_asks = st.builds(
    Ask,
    at=_moments,
    form=_some("stream", "call", "stream_nowait"),
    most=st.sampled_from([1, 3, 6]),
    on_loss=_some("migrate", "fail"),
    deadline=_some(None, None, None, None, 3.0, 5.5),
    affinity=_some("", "x", "y"),
    pause=_some(0.0, 0.0, 3.0, 40.0),
    leaves=_some(None, 1, 2),
    fault=_some(None, None, None)
    | st.tuples(
        st.sampled_from(["dies", "lacks memory", "network", "limited", "bad", "broken"]),
        st.integers(0, 2),
        st.integers(1, 4),
    ),
)
_places = st.builds(
    Place,
    loads=st.lists(st.tuples(_some("good", "good", "fails"), _some(0.0, 2.0, 5.0)), max_size=5).map(
        lambda loads: (("good", 0.0), *loads)
    ),
    rebuilds=st.lists(
        st.tuples(_some("good", "lacks memory", "dies"), st.sampled_from([0.0, 1.0, 3.0])), max_size=4
    ).map(tuple),
)
_options = st.fixed_dictionaries(
    {
        "queue": _some(1024, 1, 2),
        "retries": st.sampled_from([0, 2]),
        "breaker": _some(None, Breaker(failures=1, open_for=4), Breaker(failures=2, open_for=5, probes=2)),
        "canary": _some(None, 1.5),
        "limit": st.sampled_from([None, Limit(2, within=60, of_ready_time=True)]),
        "backoff": st.sampled_from([None, Backoff(initial=1, jitter=0)]),
    }
)


def search(plan):
    """Play it, and note what came out for `--hypothesis-show-statistics`."""
    for asker in Play(plan).askers:
        event(asker.end if isinstance(asker.end, str) else type(asker.end).__name__)


def _without_fault(ask):
    return attrs.evolve(ask, fault=None)


def _plans(kinds, places, drains, asks=_asks, **fixed):
    acts = st.builds(
        Act,
        at=_moments,
        kind=st.sampled_from(kinds),
        number=st.integers(0, 5),
        patience=_some(math.inf, math.inf, 0.7, 2.6),
    )
    return st.booleans().flatmap(
        lambda several: st.builds(
            Plan,
            asks=st.lists(asks, min_size=1, max_size=8).map(tuple),
            acts=st.lists(acts, max_size=7).map(tuple),
            places=st.lists(places, min_size=1, max_size=3 if several else 1).map(tuple),
            several=st.just(several),
            streams=st.integers(1, 3),
            can_continue=_some(True, False),
            limits=_some(
                None, RateLimits(requests=2), RateLimits(requests=3, tokens=30), RateLimits(tokens=12)
            ),
            drain=st.sampled_from(drains),
            worker_limit=_some(None, Limit(2, within=60)),
            options=_options.map(lambda options: options | fixed),
            seed=st.integers(0, 2**32 - 1),
        )
    )


SEARCH = settings(max_examples=150 * TIMES, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@settings(SEARCH)
@given(_plans(ANY, _places, [0.0, 3.0, LONG]))
def test_whatever_crosses_every_request_ends_as_it_should_and_nothing_is_kept(plan):
    """D5, D6, D7, D8, D10, D12, D14, R38: The oracle above."""
    search(plan)


@pytest.mark.slow
@settings(SEARCH)
@given(_plans(CALM, st.just(Place()), [LONG], _asks.map(_without_fault), limit=None))
def test_what_leaves_time_to_drain_costs_no_begun_request(plan):
    """D13, D7: This holds whatever else was ordered in the moment before it, or after."""
    assert plan.is_calm or [act.kind for act in plan.acts].count("lack") > 1
    search(plan)


# --- crossings that once failed


def crossing(*acts, asks=(Ask((0.0, 0)), Ask((0.0, 0))), **plan):
    return Play(Plan(asks, tuple(Act(at, kind) for at, kind in acts), **plan))


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("kind", ["rebuild worker", "lack"])
def test_a_stop_a_few_ticks_after_a_resume_began_costs_no_stream(kind, ticks):
    """D13, D7, D5: The body has ended for a new session, or for lack of memory, and no supervisor resumes it any more."""
    for seed in range(8):
        play = crossing(((2, 0), kind), ((2, ticks), "stop worker"), seed=seed)
        assert not play.of(events.StopError)
        assert all(order.at == 2 for order in play.orders if type(order.result) is errors.WorkerStopping)


@pytest.mark.parametrize("ticks", range(4))
def test_a_rebuild_waits_for_a_stream_whose_first_chunk_is_on_its_way(ticks):
    """D7: The chunk passes through the worker at a moment when no stream that may not move is open yet."""
    for seed in range(12):
        crossing(((1, ticks), "rebuild worker"), asks=(Ask((0, 0), on_loss="fail"),), seed=seed)


@pytest.mark.parametrize("drain", [0.0, LONG])
@pytest.mark.parametrize("ticks", range(12))
@pytest.mark.parametrize("kind", ["rebuild worker", "repair inside"])
def test_a_rebuild_that_meets_the_stop_is_answered_with_the_stop(kind, ticks, drain):
    """D7: The error names the stop, and not a worker that is down; this holds before, at and after the stop."""
    for seed in range(4):
        play = crossing(((2, 4), kind), ((2, ticks), "stop worker"), drain=drain, seed=seed)
        (order,) = [order for order in play.orders if order.act.kind == kind]
        assert order.state == "down" or type(order.result) in {ContextState, errors.WorkerStopping}


@pytest.mark.parametrize("ticks", range(10))
@pytest.mark.parametrize("kind", ["repair inside", "poison inside"])
def test_a_poison_that_is_reported_as_the_stop_comes_counts(kind, ticks):
    """D3, D13: Whichever of them is first, nothing more is made in the poisoned session."""
    for seed in range(4):
        play = crossing(((2, 4), kind), ((2, ticks), "stop worker"), seed=seed)
        for asker in play.askers:
            assert type(asker.end) is errors.WorkerDown or asker.came[-1][1] == 2


@pytest.mark.parametrize("ticks", range(6))
def test_a_rebuild_does_not_supersede_an_order_that_reports_a_poison(ticks):
    """D7: Whichever is ordered first, the poisoned context is replaced."""
    for seed in range(8):
        play = crossing(((2, 3), "repair inside"), ((2, ticks), "rebuild worker"), drain=0.0, seed=seed)
        assert len(play.of(events.Ready)) == 4


@pytest.mark.parametrize("ticks", range(3))
def test_a_context_that_drains_does_not_wait_for_a_request_that_another_has_refused(ticks):
    """D13: The request comes with the stop; a drain takes no longer than the begun streams."""
    for seed in range(30):
        asks = (Ask((0.0, 0)), Ask((0.0, 0)), Ask((2.0, ticks)))
        play = crossing(((2.0, 0), "stop worker"), asks=asks, places=(Place(),) * 3, several=True, seed=seed)
        assert play.orders[0].at < 6.1


@pytest.mark.parametrize("ticks", range(8))
def test_a_stop_as_a_context_is_resumed_costs_no_stream_of_a_worker_of_several(ticks):
    """D13, D7: The context does not take itself for the only one that is being stopped, which leaves its streams to the others."""
    for seed in range(8):
        acts = ((2.0, 0), "rebuild worker"), ((2.5, ticks), "stop worker")
        asks = Ask((0.0, 0)), Ask((1.0, 0))
        play = crossing(*acts, asks=asks, limits=RateLimits(requests=1), several=True, seed=seed)
        assert play.askers[0].end == "whole"


@pytest.mark.parametrize("ticks", range(4))
def test_a_context_that_drains_does_not_wait_for_a_request_whose_caller_has_left(ticks):
    """D13: Its caller is cancelled in the moment of the stop, as soon as it has sent it."""
    for seed in range(20):
        acts = ((3.5, 0), "leave"), ((4.0, ticks), "stop worker")
        play = crossing(*acts, asks=(Ask((4.0, 4 + ticks), form="stream_nowait"),), seed=seed)
        assert play.orders[1].at < 4.1
