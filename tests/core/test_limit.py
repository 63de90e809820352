"""Windows and backoffs by themselves (R14, R15)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervise import Backoff, Limit
from supervise._core.limit import Delays, ReadyTime, Window


def test_exactly_as_many_restarts_as_the_limit_are_allowed():
    """R14: The next one is too many, and is not counted."""
    window = Window(Limit(2, within=10))
    assert [window.charge(at) for at in (0, 1, 2, 9)] == [True, True, False, False]
    assert window.count(9) == 2


def test_a_restart_exactly_within_seconds_ago_no_longer_counts():
    """R14: The window is half open."""
    window = Window(Limit(1, within=10))
    assert window.charge(0)
    assert not window.charge(9.999)
    assert window.charge(10)
    assert window.count(19.999) == 1
    assert window.count(20) == 0


def test_a_limit_of_none_allows_none():
    """R14: `Limit(0)` is one too many at once, for ever."""
    window = Window(Limit(0))
    assert not any(window.charge(at) for at in (0, 100, 10_000))
    assert window.count(0) == 0


def test_an_infinite_window_forgets_nothing():
    """R14: Three restarts are allowed, and the fourth never is."""
    window = Window(Limit(3, within=math.inf))
    assert [window.charge(10.0**n) for n in range(5)] == [True, True, True, False, False]


def test_a_window_keeps_no_more_than_its_limit():
    """R14: It takes constant time and bounded memory, however many restarts come."""
    window = Window(Limit(100, within=1))
    for at in range(10_000):
        window.charge(at / 50)
    assert len(window._charged) <= 100


def delays(backoff, number, quiet=0.0, u=0.5):
    series = Delays(backoff)
    return [series.next(quiet, u) for _ in range(number)]


def test_a_series_grows_and_is_capped():
    """R15: `initial * factor**n`, capped, without overflow however long it gets."""
    assert delays(Backoff(initial=1, factor=3, maximum=20), 5) == [1, 3, 9, 20, 20]
    assert delays(Backoff(initial=1, factor=1e300), 100)[-1] == 30
    assert delays(Backoff(initial=0), 3) == [0, 0, 0]
    assert delays(Backoff(initial=60, maximum=7), 2) == [7, 7]


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1))
def test_jitter_stays_within_its_share(u, jitter):
    """R15: It is around the delay, by at most its share; without jitter the delay is exact."""
    (delay,) = delays(Backoff(initial=10, maximum=10, jitter=jitter), 1, u=u)
    assert (
        10 * (1 - jitter)
        <= delay
        <= 10 * (1 + jitter)
        <= Backoff(initial=10, jitter=jitter, maximum=10).longest + 1e-9
    )


def test_a_quiet_time_begins_the_series_anew():
    """R15: By default the quiet time is twice the last delay, and at least ten seconds."""
    series = Delays(Backoff(initial=4, jitter=0))
    assert [series.next(quiet, 0.5) for quiet in (0, 0, 9.9, 31.9, 60)] == [4, 8, 16, 30, 4]
    series = Delays(Backoff(initial=4, jitter=0, reset_after=1))
    assert [series.next(quiet, 0.5) for quiet in (0, 0.5, 1)] == [4, 8, 4]


def test_some_restarts_may_be_immediate():
    """R15: After a quiet time they are immediate again."""
    series = Delays(Backoff(initial=4, jitter=0, immediate=2))
    assert [series.next(quiet, 0.5) for quiet in (0, 0, 0, 0, 100)] == [0, 0, 4, 8, 0]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Limit(-1), ValueError, "restarts must be >= 0, got -1"),
        (lambda: Limit(1.5), TypeError, "restarts must be an integer, got 1.5"),
        (lambda: Limit(True), TypeError, "restarts must be an integer, got True"),
        (lambda: Limit(1, within=0), ValueError, "within must be > 0, got 0"),
        (lambda: Limit(1, within=-3), ValueError, "within must be > 0, got -3"),
        (lambda: Limit(1, within=math.nan), ValueError, "within must be > 0, got nan"),
        (lambda: Limit(1, within="5"), TypeError, "within must be a number, got '5'"),
        (lambda: Limit(1, of_ready_time=1), TypeError, "of_ready_time must be a bool, got 1"),
        (lambda: Backoff(initial=-1), ValueError, "initial must be >= 0, got -1"),
        (lambda: Backoff(factor=0.5), ValueError, "factor must be >= 1, got 0.5"),
        (lambda: Backoff(maximum=None), TypeError, "maximum must be a number, got None"),
        (lambda: Backoff(jitter=2), ValueError, "jitter must be <= 1, got 2"),
        (lambda: Backoff(reset_after=-1), ValueError, "reset_after must be >= 0, got -1"),
        (lambda: Backoff(immediate=-1), ValueError, "immediate must be >= 0, got -1"),
        (lambda: Backoff(immediate=0.5), TypeError, "immediate must be an integer, got 0.5"),
    ],
)
def test_nonsense_is_refused_at_once(make, kind, message):
    """R14, R15: One clear error that names the thing, says what is allowed, and shows what came."""
    with pytest.raises(kind) as raised:
        make()
    assert str(raised.value) == message


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=12), st.integers(0, 9))
def testready_time_is_the_time_in_which_nothing_is_held(steps, last):
    """R14: This holds however the restarts overlap; while one is in progress the clock stands still."""
    clock, now, held, ready = ReadyTime(), 0, 0, 0
    assert clock.at(0) == 0
    for wait, begins in steps:
        now, ready = now + wait, ready + (0 if held else wait)
        assert clock.at(now) == ready
        if begins or held:
            held += 1 if begins else -1
            clock.hold(now, in_progress=begins)
        assert clock.at(now) == ready
    assert clock.at(now + last) == ready + (0 if held else last)


def test_a_maximum_may_be_less_than_a_second():
    """R15: It may also be zero."""
    assert Backoff(initial=0.5, maximum=0.5, jitter=0).longest == 0.5
    assert Delays(Backoff(maximum=0)).next(0, 0.5) == 0


def test_jitter_may_be_all_of_the_delay():
    """R15: `u` near 1 is the longest, 0 is none at all."""
    backoff = Backoff(initial=4, jitter=1)
    assert (delays(backoff, 1, u=0), delays(backoff, 1, u=0.5), delays(backoff, 1, u=1)) == ([0], [4], [8])
    assert delays(Backoff(initial=4, jitter=0.5), 1, u=0.75) == [5]


def test_without_a_quiet_time_of_its_own_a_series_is_reset_after_ten_seconds():
    """R15: Or it is reset after twice the last delay, if that is more."""
    for quiet, second in ((9.99, 2), (10, 1)):
        series = Delays(Backoff(initial=1, jitter=0))
        assert (series.next(0, 0.5), series.next(quiet, 0.5)) == (1, second)
    for quiet, second in ((39.9, 30), (40, 20)):
        series = Delays(Backoff(initial=20, jitter=0))
        assert (series.next(0, 0.5), series.next(quiet, 0.5)) == (20, second)


@pytest.mark.parametrize("field", ["initial", "factor"])
def test_a_backoff_grows_by_finite_steps(field):
    """R15: Only its maximum may be infinite."""
    with pytest.raises(ValueError, match=f"{field} must be finite, got inf"):
        Backoff(**{field: float("inf")})
