"""Plays a schedule of requests against a server whose answers are prescribed, in virtual time, and checks what the worker did.

The rules are written down here a second time, from what the server and the callers see alone: nothing is read from the worker.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import attrs
import trio
from hypothesis import strategies as st

from runners import InlineHost, device_worker
from runners.errors import BadRequest, CircuitOpen, InferenceError, NetworkError, RateLimited, ServerError
from runners.types import (
    ExecuteBatch,
    FinishReason,
    RateLimits,
    RunnerInfo,
    Sampling,
    TokenChunk,
    TokenUsage,
    with_release,
)
from runners.worker import Breaker
from supervise import open_tree
from supervise.testing import run_virtual

MINUTE = 60.0
ROUNDING = 1e-6
FREE = 10
STREAMS = 4


@attrs.frozen
class Answer:
    """What the server does with one try: `kind` after `first` seconds, its first chunk, if any, and `rest` more seconds."""

    kind: str
    first: float = 1.0
    rest: float = 1.0
    used: int = 5


@attrs.frozen
class Ask:
    """A request `pause` seconds after the one before; its caller leaves after `patience` seconds."""

    pause: float
    most: int
    patience: float | None
    answers: tuple[Answer, ...]


@attrs.frozen
class Schedule:
    """Requests, and the worker that they are sent to."""

    asks: tuple[Ask, ...]
    breaker: Breaker | None
    limits: RateLimits | None
    retries: int
    budget: float | None


ERRORS = {
    "down": ("bad", ServerError("down")),
    "refused": ("refused", BadRequest("not this one")),
    "limited": ("limited", RateLimited("slow down", retry_after=7.0)),
}
"""The answers without a chunk: what they are to the breaker, and the error."""


def offset(number: int) -> float:
    """A small time of its own for each event: of two in one moment, worker and server may see either first."""
    return (number * 0.6180339887498949) % 1 / 100


_seconds = st.sampled_from([0.25, 1.0, 1.0, 3.0, 20.0])
_answers = st.builds(
    Answer,
    kind=st.sampled_from(["good", "good", "down", "down", "down", "cut", "refused", "limited"]),
    first=_seconds,
    rest=_seconds,
    used=st.sampled_from([1, 5, 30]),
)
_asks = st.builds(
    Ask,
    pause=st.sampled_from([0.0, 0.0, 0.5, 5.0, 40.0]),
    most=st.sampled_from([4, 9, 29]),
    patience=st.sampled_from([None, None, None, 0.5, 10.0]),
    answers=st.lists(_answers, min_size=1, max_size=4).map(tuple),
)
schedules = st.builds(
    Schedule,
    asks=st.lists(_asks, max_size=40).map(tuple),
    breaker=st.none()
    | st.builds(
        Breaker,
        failures=st.integers(1, 3),
        open_for=st.sampled_from([2.0, 15.0]),
        probes=st.integers(1, 2),
    ),
    limits=st.none()
    | st.builds(
        RateLimits, requests=st.none() | st.integers(1, 9), tokens=st.none() | st.sampled_from([40, 100])
    ),
    retries=st.integers(0, 3),
    budget=st.sampled_from([None, 0.0, 0.1, 1.0]),
)


@attrs.define
class Seen:
    """What the server and the callers saw: `(moment, what, request)` in their order, and what each request took."""

    events: list[tuple[float, str, str]] = attrs.field(factory=list)
    estimates: dict[str, int] = attrs.field(factory=dict)
    tries: Counter[str] = attrs.field(factory=Counter)
    ends: Counter[str] = attrs.field(factory=Counter)
    used: dict[int, tuple[float, int]] = attrs.field(factory=dict)

    def note(self, what: str, name: str) -> None:
        self.events.append((trio.current_time(), what, name))


@attrs.frozen
class Server:
    """The runner: it plays the answers of each request, the last one again and again."""

    schedule: Schedule
    seen: Seen

    def build(self, start):
        return self

    @property
    def info(self):
        return RunnerInfo(streams=STREAMS, transport="network", limits=self.schedule.limits)

    def execute(self, batch):
        name, seen = batch.request_id, self.seen
        answers = self.schedule.asks[int(name)].answers
        answer = answers[min(seen.tries[name], len(answers) - 1)]
        seen.tries[name] += 1
        end, number = ["left"], len(seen.events)
        seen.note("begin", name)
        return with_release(self._chunks(name, answer, number, end), lambda: seen.note(end[0], name))

    async def _chunks(self, name, answer, number, end):
        seen = self.seen
        await trio.sleep(answer.first + offset(number))
        if answer.kind in ERRORS:
            end[0], error = ERRORS[answer.kind]
            raise error
        seen.note("chunk", name)
        yield TokenChunk(request_id=name, index=0, text="x")
        await trio.sleep(answer.rest + offset(number) / 3)
        if answer.kind == "cut":
            end[0] = "bad"
            raise NetworkError("cut")
        end[0] = "good"
        seen.used[number] = trio.current_time(), answer.used
        usage = TokenUsage(input=0, output=answer.used)
        yield TokenChunk(request_id=name, index=1, finish_reason=FinishReason.STOP, usage=usage)

    def rebuild(self, cause):
        """It has no session."""

    def close(self):
        """It holds nothing."""


def play(schedule: Schedule, seed: int = 0) -> Seen:
    """Run the schedule and check it.

    Raises:
        AssertionError: a rule does not hold.
    """
    seen = Seen()

    async def ask(worker, number, each):
        name = str(number)
        batch = ExecuteBatch(name, sampling=Sampling(max_tokens=each.most, seed=1))
        seen.estimates[name] = batch.estimated_tokens
        end = "left"
        patience = float("inf") if each.patience is None else each.patience + offset(number) / 5
        with trio.move_on_after(patience):
            try:
                await worker.call(batch)
                end = "answered"
            except CircuitOpen:
                end = "open"
                seen.note("open", name)
            except InferenceError as error:
                end = type(error).__name__
        seen.ends[end] += 1

    async def main():
        worker = device_worker(
            "api",
            Server(schedule, seen),
            host=InlineHost(),
            retries=schedule.retries,
            retry_budget=schedule.budget,
            breaker=schedule.breaker,
        )
        with trio.fail_after(100_000):
            async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
                for number, each in enumerate(schedule.asks):
                    await trio.sleep(each.pause + offset(number) / 7)
                    nursery.start_soon(ask, tree[worker], number, each)

    run_virtual(main, seed=seed)
    assert sum(seen.ends.values()) == len(schedule.asks)
    check_limits(schedule, seen)
    check_retries(schedule, seen)
    check_breaker(schedule, seen)
    return seen


def check_limits(schedule: Schedule, seen: Seen) -> None:
    """No minute has more requests or tokens than the server takes, and none begins before the moment that it named."""
    begun = [(at, number, name) for number, (at, what, name) in enumerate(seen.events) if what == "begin"]
    for at, number, name in begun:
        before = [event for event in seen.events[:number] if event[1] == "limited"]
        assert all(at >= limited + 7.0 - ROUNDING for limited, _, _ in before), (at, name)
        if schedule.limits is None:
            continue
        last = [(n, other) for when, n, other in begun if at - MINUTE + ROUNDING < when and n < number]
        if schedule.limits.requests is not None:
            assert len(last) < schedule.limits.requests, (at, name)
        if schedule.limits.tokens is not None:
            taken = sum(_tokens(seen, n, other, at) for n, other in last)
            assert taken + seen.estimates[name] <= schedule.limits.tokens, (at, name)


def _tokens(seen: Seen, number: int, name: str, now: float) -> int:
    """Of a request that has begun: what it took if that is known by now, else its estimate."""
    at, used = seen.used.get(number, (now + 1, 0))
    return used if at <= now else seen.estimates[name]


def check_retries(schedule: Schedule, seen: Seen) -> None:
    """No request is sent more often than the worker allows, and in no minute more of them than their budget.

    A retry counts in the moment in which its try before has failed.
    """
    assert all(tries <= schedule.retries + 1 for tries in seen.tries.values())
    if schedule.budget is None:
        return
    first, again, known = [], [], set()
    failed: dict[str, float] = {}
    for at, what, name in seen.events:
        if what in ("bad", "limited"):
            failed[name] = at
        elif what == "begin":
            (again if name in known else first).append(failed[name] if name in known else at)
            known.add(name)
    for at in again:
        retried = sum(at - MINUTE + ROUNDING < when <= at for when in again)
        begun = sum(at - MINUTE - ROUNDING < when <= at for when in first)
        assert retried <= FREE + schedule.budget * begun


def check_breaker(schedule: Schedule, seen: Seen) -> None:
    """A plain second breaker, which gets the same events, and allows and refuses the same requests."""
    policy = schedule.breaker
    if policy is None:
        assert not seen.ends["open"]
        return
    state, since, period, failures = "closed", 0.0, 0, 0
    began: dict[str, int] = {}
    trying: set[str] = set()

    def become(new, at):
        nonlocal state, since, period, failures
        state, since, period, failures = new, at, period + 1, 0
        trying.clear()

    for at, what, name in seen.events:
        if what in ("begin", "open") and state == "open" and at >= since + policy.open_for - ROUNDING:
            become("half-open", at)
        if what == "begin":
            assert state != "open", (at, name)
            assert state == "closed" or len(trying) < policy.probes, (at, name)
            began[name] = period
            if state == "half-open":
                trying.add(name)
        elif what == "open":
            assert state == "open" or (state == "half-open" and len(trying) >= policy.probes), (at, name)
        elif began[name] == period:
            trying.discard(name)
            if what in ("chunk", "good") and state == "half-open":
                become("closed", at)
                began[name] = period
            elif what == "good":
                failures = 0
            elif what == "bad":
                failures += 1
                if state == "half-open" or failures >= policy.failures:
                    become("open", at)
    assert all(earlier[0] <= later[0] for earlier, later in pairwise(seen.events))
