"""Whether the error of one stream is a failure of its server: in virtual time, with engines that stall, fail and recover (D9, D17)."""

import math
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from runners import InlineHost, with_release
from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    NetworkError,
    NetworkTimeout,
    RateLimited,
    RunnerError,
    ServerError,
)
from runners.hosts import RequestFailed
from runners.hosts.owned import DYING, OwnedRunner
from runners.types import CANARY, ExecuteBatch, FinishReason, RunnerInfo, Sampling, TokenChunk
from supervise.testing import run_virtual

PATIENCE = 3.0
"""Seconds that a stream waits for a token."""


INFO = RunnerInfo(streams=32, can_continue=True, transport="network")


@attrs.define
class Engine:
    """A server, its runner spec and its runner at once.

    `gaps`: by request, the seconds before each token. `errors`: by request, what is raised instead of its third token. `stalls`: when
    it begins to give nothing. `canary`: an exception that a question for one token gets, or the seconds before the answer.
    """

    gaps: dict = attrs.field(factory=dict)
    errors: dict = attrs.field(factory=dict)
    stalls: float = math.inf
    canary: object = 0.1
    ends: float = math.inf
    asked: list = attrs.field(factory=list)
    last: float = -math.inf
    open: int = 0
    name: str = "engine 'e'"
    info: RunnerInfo = INFO

    # --- the server

    @property
    def runs(self):
        return trio.current_time() < self.ends

    async def ended(self):
        await trio.sleep_until(self.ends)

    async def judged(self, error):
        return error

    # --- the runner

    def build(self, start):
        return self

    def execute(self, batch):
        self.open += 1
        return with_release(self.chunks(batch), self.leave)

    def leave(self):
        self.open -= 1

    async def chunks(self, batch):
        name = batch.request_id
        if name == CANARY.request_id:
            self.asked.append(trio.current_time())
            gaps = [self.canary if isinstance(self.canary, float) else 0.1]
            error = None if isinstance(self.canary, float) else self.canary
        else:
            gaps, error = self.gaps[name], None
        for index, gap in enumerate(gaps):
            await self.token(gap)
            if error is not None or (index == 2 and name in self.errors):
                raise error or self.errors[name]
            self.last = trio.current_time()
            finish = FinishReason.LENGTH if index == len(gaps) - 1 else None
            yield TokenChunk(request_id=name, index=index, token_ids=(index,), finish_reason=finish)

    async def token(self, gap):
        """A runner waits `PATIENCE` for a token."""
        due = trio.current_time() + gap
        with trio.move_on_after(PATIENCE):
            await trio.sleep_until(due if due < self.stalls else math.inf)
            return
        raise NetworkTimeout("no token in time")

    def rebuild(self, cause):
        pass

    def close(self):
        assert self.open == 0


@asynccontextmanager
async def opened(engine):
    owned = OwnedRunner(engine, engine)
    owned.works = True
    async with InlineHost().open(owned) as session:
        yield session


def request(name, most=1000):
    return ExecuteBatch(name, "x", sampling=Sampling(max_tokens=most, seed=1))


async def outcomes(session, names):
    """How each stream ends: True, or its error. The failure of the context is raised."""
    found, left = {}, set(names)
    for name in names:
        session.begin(request(name))
    while left:
        for item in await session.receive():
            if isinstance(item, RequestFailed):
                found[item.request_id] = item.error
            elif item.finish_reason is not None:
                found[item.request_id] = True
            else:
                continue
            left.remove(item.request_id)
    return found


GAPS = st.lists(st.floats(0.01, PATIENCE - 0.2), min_size=1, max_size=12)
STREAMS = st.dictionaries(st.sampled_from("abcdefgh"), GAPS, min_size=1, max_size=8)


@given(st.integers(0, 2**32), STREAMS, st.floats(0.0, 10.0))
def test_an_engine_that_stalls_is_hung_and_no_request_pays_for_it(seed, gaps, stalls):
    """D9, D17: However many streams wait, the context fails within their patience of its last token, and none of them gets an error."""
    engine = Engine(gaps, stalls=stalls)
    over = all(sum(each) < stalls for each in gaps.values())

    async def main():
        begun = trio.current_time()
        engine.stalls += begun
        if over:
            async with opened(engine) as session:
                assert set((await outcomes(session, gaps)).values()) == {True}
            return
        with pytest.raises(ContextHung, match="engine 'e' has given no token for 3 s"):
            async with opened(engine) as session:
                await outcomes(session, gaps)
        took = trio.current_time() - begun
        assert took <= max(engine.last - begun, 0) + PATIENCE + 1e-6
        assert engine.asked == []

    run_virtual(main, seed=seed)


@pytest.mark.slow
@given(st.integers(0, 2**32), STREAMS, st.floats(0.2, PATIENCE - 0.1))
def test_a_stream_that_is_late_beside_one_that_goes_on_fails_alone(seed, gaps, beat):
    """D9, D17: A token of another stream shows that the engine works, so the late one gets its own error; nothing is asked."""
    gaps = {**gaps, "late": [0.1, math.inf], "busy": [beat] * math.ceil(2 * PATIENCE / beat + 2)}
    engine = Engine(gaps)

    async def main():
        async with opened(engine) as session:
            found = await outcomes(session, gaps)
        assert type(found.pop("late")) is NetworkTimeout
        assert set(found.values()) == {True}
        assert engine.asked == []

    run_virtual(main, seed=seed)


SYMPTOMS = st.sampled_from(
    [NetworkError("lost"), ServerError("HTTP 500"), ConnectionResetError("reset"), ServerError("in an event")]
)


@pytest.mark.slow
@given(st.integers(0, 2**32), st.lists(SYMPTOMS, min_size=1, max_size=8), st.floats(0.01, PATIENCE - 0.1))
def test_an_engine_that_still_gives_a_token_keeps_its_context(seed, symptoms, canary):
    """D17: The error stays that of its request, and of streams that fail at once one asks for all."""
    gaps = {f"{number}": [0.1] * 3 for number in range(len(symptoms))} | {"sound": [0.2] * 12}
    errors = {f"{number}": error for number, error in enumerate(symptoms)}
    engine = Engine(gaps, errors, canary=canary)

    async def main():
        async with opened(engine) as session:
            found = await outcomes(session, gaps)
        assert found.pop("sound") is True
        assert all(isinstance(error, NetworkError) for error in found.values())
        assert len(engine.asked) == 1

    run_virtual(main, seed=seed)


@pytest.mark.parametrize(
    ("canary", "failure", "seconds", "text"),
    [
        (ServerError("HTTP 500"), ContextDied, 0.1, "has failed: lost; and then for one token: HTTP 500"),
        (ConnectionRefusedError("no"), ContextDied, 0.1, "one token: ConnectionRefusedError: no"),
        (math.inf, ContextHung, PATIENCE, "has failed: lost; and then for one token: no token in time"),
    ],
)
def test_an_engine_that_gives_no_token_has_failed(canary, failure, seconds, text):
    """D17: The failure names both, and comes when the question is answered, or has waited as long as any request."""
    engine = Engine({"a": [0.1] * 3}, {"a": NetworkError("lost")}, canary=canary)

    async def main():
        begun = trio.current_time()
        with pytest.raises(failure, match=text):
            async with opened(engine) as session:
                await outcomes(session, engine.gaps)
        assert trio.current_time() - begun == pytest.approx(0.3 + DYING + seconds)

    run_virtual(main)


@pytest.mark.parametrize(
    "canary", [RateLimited("HTTP 429"), BadRequest("HTTP 400"), RuntimeError("a mistake")]
)
def test_an_error_of_the_question_itself_is_an_answer(canary):
    """D9, D17: The engine works, as for a canary."""
    engine = Engine({"a": [0.1] * 3, "b": [0.1] * 30}, {"a": NetworkError("lost")}, canary=canary)

    async def main():
        async with opened(engine) as session:
            found = await outcomes(session, engine.gaps)
        assert (str(found["a"]), found["b"]) == ("lost", True)
        assert len(engine.asked) == 1

    run_virtual(main)


def test_a_question_that_is_late_beside_streams_that_go_on_shows_nothing():
    """D9: An engine that is busy with others is not hung, although it has no token for the question in time."""
    engine = Engine({"a": [0.1] * 3, "b": [0.5] * 30}, {"a": NetworkError("lost")}, canary=math.inf)

    async def main():
        async with opened(engine) as session:
            found = await outcomes(session, engine.gaps)
        assert (str(found["a"]), found["b"]) == ("lost", True)

    run_virtual(main)


@pytest.mark.parametrize(
    "error", [RateLimited("HTTP 429"), BadRequest("HTTP 400"), RuntimeError("a mistake")]
)
def test_an_error_of_the_request_asks_nothing(error):
    """D5: Such an error does not concern the engine."""
    engine = Engine({"a": [0.1] * 3}, {"a": error})

    async def main():
        async with opened(engine) as session:
            found = await outcomes(session, engine.gaps)
        assert type(found["a"]) is (RunnerError if type(error) is RuntimeError else type(error))
        assert engine.asked == []

    run_virtual(main)


@pytest.mark.parametrize("ends", [0.4, 0.3 + DYING - 0.01])
def test_the_end_of_the_engine_comes_before_that_of_its_connections(ends):
    """D17: If it ends just after its connections have broken, the stream leaves the failure to the host."""
    engine = Engine({"a": [0.1] * 3}, {"a": NetworkError("lost")})

    async def main():
        engine.ends = trio.current_time() + ends
        with trio.move_on_after(60) as waiting:
            async with opened(engine) as session:
                await outcomes(session, engine.gaps)
        assert waiting.cancelled_caught
        assert engine.asked == []

    run_virtual(main)


@given(st.integers(0, 2**32), STREAMS, st.floats(0.0, 8.0))
def test_streams_that_are_dropped_leave_nothing(seed, gaps, after):
    """D10: Wherever their streams are, the runner's own are closed before it is; `Engine.close` looks."""
    errors = {name: ServerError("HTTP 500") for name in list(gaps)[::2]}
    engine = Engine(gaps, errors, stalls=5.0, canary=1.0)

    async def main():
        engine.stalls += trio.current_time()
        try:
            async with opened(engine) as session:
                with trio.move_on_after(after):
                    await outcomes(session, gaps)
        except (ContextHung, ContextDied):
            pass
        assert engine.open == 0

    run_virtual(main, seed=seed)


def test_a_stream_that_waits_for_its_reader_is_closed_with_the_runners_own():
    """D10: It is suspended between two chunks, so nothing but closing it ends the runner's own stream."""
    engine = Engine({"a": [0.01] * 50})

    async def main():
        async with opened(engine) as session:
            session.begin(request("a"))
            await trio.sleep(5)
            assert engine.open == 1
            session.drop("a")
            await trio.testing.wait_all_tasks_blocked()
            assert engine.open == 0

    run_virtual(main)


def test_only_a_runner_that_asks_a_server_will_do():
    """D17: Another runner has no server whose end could be noticed."""

    async def main():
        engine = Engine({}, info=RunnerInfo())
        with pytest.raises(Exception, match="needs a runner that asks a server"):
            async with opened(engine):
                pass

    run_virtual(main)
