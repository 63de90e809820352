"""What a runner declares has an effect: rate limits, retryable errors, prices (D14)."""

import gc
from collections import Counter
from contextlib import suppress
from itertools import pairwise

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from runners import InlineHost, device_worker
from runners.errors import (
    Backpressure,
    BadRequest,
    ContextDied,
    NetworkError,
    RateLimited,
    ServerError,
    Unauthorized,
    WorkerStopping,
)
from runners.types import (
    ExecuteBatch,
    FinishReason,
    Price,
    RateLimits,
    RunnerInfo,
    Sampling,
    TokenChunk,
    TokenUsage,
)
from runners.worker.rates import FREE_RETRIES, Rates, RetryBudget, retry_delay
from runners.worker.serving import _Serving
from supervise import Supervisor, open_tree
from supervise.testing import run_virtual


@attrs.frozen
class Server:
    """An async runner whose requests take a second each. It notes when they began, and raises what is to come first."""

    limits: RateLimits | None = None
    price: Price = attrs.field(factory=Price)
    errors: dict = attrs.field(factory=dict)
    after: int = 0
    usage: TokenUsage | None = None
    began: list = attrs.field(factory=list)
    tries: Counter = attrs.field(factory=Counter)

    def build(self, start):
        return self

    @property
    def info(self):
        return RunnerInfo(
            streams=64, can_continue=True, transport="network", limits=self.limits, price=self.price
        )

    def continue_from(self, batch, accepted):
        return self.execute(batch)

    async def execute(self, batch):
        name = batch.request_id
        self.began.append((trio.current_time(), name))
        self.tries[name] += 1
        for index in range(self.after):
            yield TokenChunk(request_id=name, index=index, token_ids=(index,), text="x")
        if self.tries[name] <= len(self.errors.get(name, ())):
            raise self.errors[name][self.tries[name] - 1]
        await trio.sleep(1)
        yield TokenChunk(
            request_id=name,
            index=self.after,
            token_ids=(7,),
            text="y",
            finish_reason=FinishReason.STOP,
            usage=self.usage,
        )

    def rebuild(self, cause):
        """It has no session."""

    def close(self):
        """It holds nothing."""


def request(name, most=10, prompt=""):
    return ExecuteBatch(name, prompt, sampling=Sampling(max_tokens=most, seed=1))


def serve(server, scene, *, several=0, **options):
    async def main():
        hosts = {"hosts": [InlineHost()] * several} if several else {"host": InlineHost()}
        worker = device_worker("api", server, **hosts, **options)
        with trio.fail_after(10_000):
            async with open_tree(worker, sinks=[]) as tree:
                await scene(tree[worker])

    run_virtual(main)


async def all_of(worker, requests):
    answers = {}

    async def ask(batch):
        answers[batch.request_id] = await worker.call(batch)

    async with trio.open_nursery() as nursery:
        for batch in requests:
            nursery.start_soon(ask, batch)
            await trio.testing.wait_all_tasks_blocked()
    return answers


# --- rate limits


@pytest.mark.parametrize("several", [0, 3])
def test_no_more_requests_begin_in_a_minute_than_the_server_takes(several):
    """D14: The others wait in the queue; contexts of one worker share the limit."""
    server = Server(RateLimits(requests=3))

    async def scene(worker):
        began = trio.current_time()
        await all_of(worker, [request(f"{number}") for number in range(8)])
        times = [round(at - began) for at, _ in server.began]
        assert times == [0, 0, 0, 60, 60, 60, 120, 120]
        assert len({name for _, name in server.began}) == 8
        if not several:  # within one turn of the loop, streams begin in any order
            minutes = ["".join(sorted(name for _, name in server.began[i : i + 3])) for i in (0, 3, 6)]
            assert minutes == ["012", "345", "67"]

    serve(server, scene, several=several)


def test_no_more_tokens_are_asked_for_in_a_minute_than_the_server_takes():
    """D14: As they are estimated, prompt and answer; a request that alone is too large is refused at once."""
    server = Server(RateLimits(tokens=100))

    async def scene(worker):
        began = trio.current_time()
        with pytest.raises(
            BadRequest, match="request 'huge' may take 101 tokens, and its server takes 100 a minute"
        ):
            await worker.call(request("huge", most=100))
        await all_of(worker, [request(f"{most}", most - 1) for most in (60, 30, 20, 80, 10)])
        times = {name: round(at - began) for at, name in server.began}
        assert times == {"60": 0, "30": 0, "20": 60, "80": 60, "10": 120}

    serve(server, scene)


def test_what_waits_for_the_limit_can_leave_and_be_refused():
    """D13, D14: It has not begun: its place in the queue is free, and a worker that drains refuses it."""
    server = Server(RateLimits(requests=1))

    async def scene(worker):
        await worker.call(request("first"))
        with trio.move_on_after(5):
            await worker.call(request("leaves"))
        assert worker.status().children[0].mailbox == 0
        async with trio.open_nursery() as nursery:

            async def refused():
                with pytest.raises(WorkerStopping):
                    await worker.call(request("refused"))

            nursery.start_soon(refused)
            await trio.sleep(5)
            nursery.start_soon(worker.stop)
        assert [name for _, name in server.began] == ["first"]

    async def main():
        worker = device_worker("api", server, host=InlineHost(), drain=20)
        async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
            await scene(tree[worker])

    run_virtual(main)


@pytest.mark.parametrize("several", [0, 3])
def test_a_request_that_leaves_holds_back_no_smaller_one_behind_it(several):
    """D14: The limit counts for the request that is next."""
    server = Server(RateLimits(tokens=100))

    async def scene(worker):
        began = trio.current_time()
        await worker.call(request("first", most=89))
        async with trio.open_nursery() as others, trio.open_nursery() as nursery:
            nursery.start_soon(worker.call, request("large", most=59))
            await trio.testing.wait_all_tasks_blocked()
            others.start_soon(worker.call, request("small", most=4))
            await trio.sleep(5)
            nursery.cancel_scope.cancel()
        assert [(name, round(at - began)) for at, name in server.began] == [("first", 0), ("small", 6)]

    serve(server, scene, several=several)


@given(
    requests=st.integers(1, 5) | st.none(),
    tokens=st.integers(10, 30) | st.none(),
    asks=st.lists(
        st.tuples(st.integers(0, 15) | st.just(100), st.integers(1, 10), st.integers(0, 30) | st.none()),
        max_size=30,
    ),
    data=st.data(),
)
def test_no_minute_has_more_than_the_limits_and_none_waits_too_long(requests, tokens, asks, data):
    """D14: Over any minute, with the usage of what is complete; and a request begins as soon as the limits allow it."""
    limits, rates, now = RateLimits(requests=requests, tokens=tokens), Rates(), 0.0
    noted = []

    def fits(at, size):
        last = [each.tokens for each in noted if at - 60 < each.at <= at]
        few = requests is None or len(last) < requests
        return few and (tokens is None or sum(last) + size <= tokens)

    for pause, size, used in asks:
        now += pause
        at = rates.next_time(limits, size, now)
        assert at == min(
            moment
            for moment in [now, *(each.at + 60 for each in noted)]
            if moment >= now and fits(moment, size)
        )
        rates.next_time(limits, size, at)
        noted.append(rates.note(size, at))
        assert all(each.at > at - 60 for each in rates._begun)
        if used is not None:  # one of them is complete, perhaps long after its minute
            rates.settle(data.draw(st.sampled_from(noted)), used)
        now = at


def test_the_usage_of_a_complete_request_takes_the_place_of_its_estimate():
    """D14: What took less than it might have lets another one begin earlier, and what took more a later one."""
    server = Server(RateLimits(tokens=100), usage=TokenUsage(input=3))

    async def scene(worker):
        began = trio.current_time()
        await all_of(worker, [request(f"{number}", 89) for number in range(4)])
        assert [round(at - began) for at, _ in server.began] == [0, 1, 2, 60]

    serve(server, scene)
    greedy = Server(RateLimits(tokens=100), usage=TokenUsage(input=150))

    async def later(worker):
        began = trio.current_time()
        await worker.call(request("a", 9))
        await worker.call(request("b", 9))
        assert [round(at - began) for at, _ in greedy.began] == [0, 60]

    serve(greedy, later)


# --- retries


@pytest.mark.parametrize("several", [0, 2])
def test_a_retryable_error_of_the_server_is_tried_again(several):
    """D14: As often as the worker allows; other requests go on meanwhile."""
    server = Server(errors={"a": [ServerError("503"), NetworkError("reset")]})

    async def scene(worker):
        began = trio.current_time()
        answers = await all_of(worker, [request("a"), request("b")])
        assert set(answers) == {"a", "b"}
        assert server.tries == {"a": 3, "b": 1}
        (_, second, third) = [at - began for at, name in server.began if name == "a"]
        assert 0.25 <= second <= 0.5
        assert 0.5 <= third - second <= 1.0

    serve(server, scene, several=several, retries=2)


def test_a_server_that_says_when_is_left_alone_until_then():
    """D14: No request of this worker begins before."""
    server = Server(errors={"a": [RateLimited("429", retry_after=30.0)]})

    async def scene(worker):
        began = trio.current_time()
        await all_of(worker, [request("a"), request("b")])
        await worker.call(request("c"))
        times = {name: round(at - began) for at, name in server.began}
        assert times["a"] == 30
        assert times["c"] >= 30

    serve(server, scene, retries=1)


@pytest.mark.parametrize(
    ("error", "after", "tries"),
    [(ServerError("503"), 0, 3), (ServerError("503"), 1, 1), (Unauthorized("401"), 0, 1)],
)
def test_an_error_is_not_tried_again_for_ever(error, after, tries):
    """D14: Neither past the allowed number, nor once something was given, nor if the same request cannot succeed."""
    server = Server(errors={"a": [error] * 9}, after=after)

    async def scene(worker):
        with pytest.raises(type(error)):
            await worker.call(request("a"))
        assert server.tries["a"] == tries

    serve(server, scene, retries=2)


def test_without_retries_the_caller_gets_the_first_error():
    """D14: The default."""
    server = Server(errors={"a": [ServerError("503")]})

    async def scene(worker):
        with pytest.raises(ServerError):
            await worker.call(request("a"))
        assert server.tries["a"] == 1

    serve(server, scene)


def test_retries_are_a_share_of_the_requests():
    """D14: Ten in a minute, and beyond them a tenth of the requests that began in it; the others get their error."""
    server = Server(errors={f"{number}": [ServerError("503")] * 99 for number in range(50)})

    async def scene(worker):
        failed = 0

        async def ask(number):
            nonlocal failed
            with suppress(ServerError):
                await worker.call(request(f"{number}"))
                raise AssertionError
            failed += 1

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(ask, number)
        assert failed == 50
        assert len(server.began) == 50 + 10 + 5
        await trio.sleep(61)
        server.began.clear()
        await ask(1)
        assert len(server.began) == 1 + 3

    serve(server, scene, retries=3)


@given(
    share=st.sampled_from([0, 0.1, 0.5, 2]),
    steps=st.lists(st.tuples(st.sampled_from([0, 0.5, 7, 70]), st.booleans()), max_size=150),
)
def test_no_minute_has_more_retries_than_its_budget(share, steps):
    """D14: Over any minute; and a retry is refused only if it would be one too many."""
    budget, now, begun, retried = RetryBudget(), 0.0, [], []
    for pause, retries in steps:
        now += pause
        if not retries:
            budget.note(now)
            begun.append(now)
            continue
        allowed = FREE_RETRIES + share * sum(at > now - 60 for at in begun)
        fits = sum(at > now - 60 for at in retried) + 1 <= allowed
        assert budget.take(share, now) is fits
        retried += [now] * fits


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf"), True, "0.1"])
def test_a_retry_budget_that_is_no_share_is_refused(share):
    """D14: When the worker is declared."""
    with pytest.raises(
        ValueError, match="device worker 'api': retry_budget must be a share >= 0 or None, got "
    ):
        device_worker("api", Server(), host=InlineHost(), retries=1, retry_budget=share)


@pytest.mark.parametrize("retries", [-1, 1.5, True, None])
def test_a_number_of_retries_that_is_none_is_refused(retries):
    """D14: When the worker is declared."""
    with pytest.raises(ValueError, match="device worker 'api': retries must be an integer >= 0, got "):
        device_worker("api", Server(), host=InlineHost(), retries=retries)


# --- prices


def test_the_price_of_an_answer_is_in_its_usage():
    """D14: US dollars for its input and output; what a runner writes there itself does not count."""
    usage = TokenUsage(input=1_000_000, output=9, cost=99.0)
    server = Server(price=Price(input=2.0, output=500_000.0), usage=usage)

    async def scene(worker):
        completion = await worker.call(request("a"))
        assert completion.usage.cost == 2.5
        assert (completion.usage + completion.usage).cost == 5.0

    serve(server, scene)


# --- odd errors, and ends


class Busy(RateLimited):
    """A class whose constructor does not call ours, so that it has no `retry_after`."""

    def __init__(self, text):
        Exception.__init__(self, text)


class Guarded(RateLimited):
    @property
    def is_retryable(self):
        raise RuntimeError("not yours")

    @property
    def retry_after(self):
        raise RuntimeError("not yours")

    @retry_after.setter
    def retry_after(self, _):
        """Ours sets it."""


class Number(float):
    def __gt__(self, other):
        raise RuntimeError("not comparable")

    __lt__ = __gt__


@pytest.mark.parametrize("error", [Busy("x"), Guarded("x"), RateLimited("x", retry_after=Number(1))])
@pytest.mark.parametrize("retries", [0, 2])
def test_an_odd_error_of_a_server_fails_its_request_alone(error, retries):
    """D5, D14: The context and every other stream go on."""
    server = Server(errors={"bad": [error] * 9})

    async def scene(worker):
        with pytest.raises(RateLimited):
            await worker.call(request("bad"))
        await worker.call(request("good"))
        assert worker.status().children[0].incarnation == 1

    serve(server, scene, retries=retries)


def test_the_delays_of_retries_grow_to_the_longest_and_no_further():
    """D14: A server may be away for days."""
    assert all(7.5 <= retry_delay(tries) <= 15 for tries in (6, 1_028, 1_000_000))


def test_a_caller_that_leaves_takes_its_retry_along():
    """D13, D14: Its id and its place are free at once, and a drain does not wait for it."""
    server = Server(errors={"a": [NetworkError("x")] * 5})

    async def main():
        worker = device_worker("api", server, host=InlineHost(), retries=9, drain=30)
        async with open_tree(Supervisor("app", [worker]), sinks=[]) as tree:
            with trio.move_on_after(0.1):
                await tree[worker].call(request("a"))
            server.errors.clear()
            await tree[worker].call(request("a"))
            server.errors["b"] = [NetworkError("x")] * 5
            with trio.move_on_after(0.1):
                await tree[worker].call(request("b"))
            before = trio.current_time()
            await tree[worker].stop()
            assert trio.current_time() == before

    run_virtual(main)


def test_no_more_requests_wait_for_a_retry_than_the_runner_has_places():
    """D6, D14: The others wait in the queue, which is bounded."""

    class Down(Server):
        @property
        def info(self):
            return RunnerInfo(streams=2, can_continue=True, transport="network")

        async def execute(self, batch):
            self.began.append(batch.request_id)
            raise NetworkError("down")
            yield

    server = Down()

    async def scene(worker):
        for number in range(100):
            with suppress(Backpressure):
                worker.send_nowait(request(f"{number}"))
            await trio.testing.wait_all_tasks_blocked()
        assert len(set(server.began)) <= 4
        with pytest.raises(Backpressure):
            worker.send_nowait(request("one more"))

    serve(server, scene, retries=1000, retry_budget=None, queue=5)


def test_a_death_of_the_context_brings_no_retry_forward():
    """D14: Each begins at its time, in the next context."""
    server = Server(errors={name: [NetworkError("x")] * 4 for name in "abc"})

    async def main():
        worker = device_worker(
            "api", server, host=InlineHost(), retries=9, retry_budget=None, backoff=None, limit=None
        )
        async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(tree[worker].call, request(name))
            for _ in range(200):
                await trio.sleep(0.1)
                if max(server.tries.values()) <= 4:  # none is being served, which a death would disturb
                    tree["api/context"].inject(ContextDied("killed"))
                    await tree["api/context"].ready()
        for name in "abc":
            times = [at for at, other in server.began if other == name]
            # A stream that has begun comes back at once; only what has failed waits.
            gaps = [later - at for at, later in pairwise(times[:4])]
            assert all(gap >= 0.25 * 2**number for number, gap in enumerate(gaps)), (name, gaps)

    run_virtual(main)


def test_a_request_that_is_refused_counts_for_no_limit():
    """D14: It does not reach the server."""
    server = Server(RateLimits(requests=1))

    async def scene(worker):
        before = trio.current_time()
        for _ in range(3):
            with pytest.raises(BadRequest):
                await worker.call("rubbish")
        await worker.call(request("good"))
        assert trio.current_time() - before == 1

    serve(server, scene)


@pytest.mark.parametrize(
    ("server", "most"),
    [(Server(RateLimits(requests=1)), 2), (Server(errors={"a": [RateLimited("x", retry_after=100)]}), 1)],
)
def test_a_canary_keeps_to_the_limits_and_to_what_the_server_said(server, most):
    """D9, D14: It is a request like any other to the server."""

    async def scene(worker):
        with suppress(RateLimited):
            await worker.call(request("a"))
        await trio.sleep(90)
        assert len(server.began) <= most

    serve(server, scene, canary=5)


def test_canaries_do_not_take_what_a_request_waits_for():
    """D9, D14: Half a minute's canaries leave less of the limit than it needs, and the next canary needs less than it."""
    server = Server(RateLimits(tokens=12))

    async def scene(worker):
        await trio.sleep(90)
        before = trio.current_time()
        await worker.call(request("a"))
        assert trio.current_time() - before < 70

    serve(server, scene, canary=5)


def test_a_held_back_request_keeps_no_context_that_has_ended():
    """R31: It may wait for hours, and contexts die meanwhile."""
    server = Server(RateLimits(requests=1))
    of_other_tests = [each for each in gc.get_objects() if type(each) is _Serving]

    async def scene(worker):
        await worker.call(request("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.call, request("waits"))
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked()
                worker.tree["api/context"].inject(ContextDied("killed"))
                await worker.tree["api/context"].ready()
            gc.collect()
            its = sum(type(each) is _Serving for each in gc.get_objects()) - len(of_other_tests)
            assert its < 3

    serve(server, scene, backoff=None, limit=None)
