"""The short form of the search for a schedule in which a worker breaks a rule about its server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.types import RateLimits
from runners.worker import Breaker

from .play import Answer, Ask, Schedule, play, schedules


@pytest.mark.slow
@settings(max_examples=200)
@given(schedule=schedules, seed=st.integers(0, 2**32))
def test_whatever_a_server_does_its_worker_keeps_the_rules(schedule, seed):
    """D14: The breaker, the rate limits, what the server said about its next moment, and the budget of retries."""
    play(schedule, seed=seed)


def test_the_rules_meet_a_worker_that_does_all_of_it():
    """Retries, limits, refusals and a recovery occur in one schedule, so that the checks have something to check."""
    down, good = Answer("down", first=0.25), Answer("good")
    asks = [Ask(0.5, 4, None, (down, down, good))] * 12 + [Ask(40.0, 4, None, (good,))] * 6
    schedule = Schedule(tuple(asks), Breaker(failures=3, open_for=2), RateLimits(requests=30), 3, 0.1)
    seen = play(schedule)
    assert seen.ends["open"]
    assert seen.ends["answered"] >= 6
    assert max(seen.tries.values()) > 1
