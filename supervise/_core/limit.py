"""How often a child may be restarted, and how soon: the sliding window (R14) and the backoff (R15)."""

from __future__ import annotations

from collections import deque

from attrs import field, frozen

from ._brief import brief
from ._check import check_number, plain, refuse
from ._code import Code
from ._value import Value


@frozen(repr=False, eq=False)
class Limit(Code, Value):
    """At most `restarts` restarts within `within` seconds; the next one passes the limit (R14).

    A restart exactly `within` seconds ago does not count.

    Args:
        restarts: how many are allowed; 0 allows none.
        within: length of the sliding window in seconds, more than 0; may be `inf`.
        of_ready_time: the window does not count the seconds in which a restart is in progress, so that slow starts cannot
            hide a crash loop.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
    """

    restarts: int = field(default=3, converter=plain)
    within: float = field(default=5.0, kw_only=True, converter=plain)
    of_ready_time: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_number("restarts", self.restarts, least=0, kind=int)
        check_number("within", self.within, least=0, more=True)
        if type(self.of_ready_time) is not bool:
            refuse(TypeError(f"of_ready_time must be a bool, got {brief(self.of_ready_time)}"))

    def __str__(self) -> str:
        return f"{self.restarts} within {self.within:g} s"


class Window:
    """The charges of one limit; a charge takes constant time, however many are kept."""

    __slots__ = ("_charged", "_limit")

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._charged: deque[float] = deque(maxlen=limit.restarts)

    def charge(self, now: float) -> bool:
        """Count one more at `now`. Returns False, and counts nothing, if the limit allows no more."""
        allowed = self.allows(now)
        if allowed:
            self._charged.append(now)
        return allowed

    def allows(self, now: float) -> bool:
        """Whether the limit allows one more at `now`."""
        charged, limit = self._charged, self._limit
        return len(charged) < limit.restarts or (limit.restarts > 0 and now - charged[0] >= limit.within)

    def count(self, now: float) -> int:
        """How many charges still count at `now`."""
        charged, within = self._charged, self._limit.within
        while charged and now - charged[0] >= within:
            charged.popleft()
        return len(charged)


class ReadyTime:
    """The seconds in which no restart is in progress (R14)."""

    __slots__ = ("_held", "_lost", "_since")

    def __init__(self) -> None:
        self._held = 0
        self._since = 0.0
        self._lost = 0.0

    def hold(self, now: float, *, in_progress: bool) -> None:
        """A restart begins (`in_progress`) or ends at `now`."""
        if in_progress and self._held == 0:
            self._since = now
        self._held += 1 if in_progress else -1
        if self._held == 0:
            self._lost += now - self._since

    def at(self, now: float) -> float:
        """The ready time at `now`."""
        return (self._since if self._held else now) - self._lost


@frozen(repr=False, eq=False, kw_only=True)
class Backoff(Code, Value):
    """How long to wait before a restart: `initial * factor**n`, capped at `maximum`, jittered (R15).

    Args:
        initial: the first delay in seconds; 0 or more.
        factor: each delay is this many times the one before; 1 or more.
        maximum: the cap of a delay in seconds, before its jitter; may be `inf`.
        jitter: the share by which a delay may be shorter or longer, from 0 to 1; 0.1 is ±10 %.
        reset_after: seconds that the child must run before the series begins anew; None is twice the last delay, at least
            10 s.
        immediate: how many restarts are made at once before the series begins.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
    """

    initial: float = field(default=0.1, converter=plain)
    factor: float = field(default=2.0, converter=plain)
    maximum: float = field(default=30.0, converter=plain)
    jitter: float = field(default=0.1, converter=plain)
    reset_after: float | None = field(default=None, converter=plain)
    immediate: int = field(default=0, converter=plain)

    def __attrs_post_init__(self) -> None:
        check_number("initial", self.initial, least=0, finite=True)
        check_number("factor", self.factor, least=1, finite=True)
        check_number("maximum", self.maximum, least=0)
        right = check_number("jitter", self.jitter, least=0)
        check_number("immediate", self.immediate, least=0, kind=int)
        if self.reset_after is not None:
            check_number("reset_after", self.reset_after, least=0)
        if right and self.jitter > 1:
            refuse(ValueError(f"jitter must be <= 1, got {brief(self.jitter)}"))

    @property
    def longest(self) -> float:
        """The longest delay that is possible, jitter included, in seconds."""
        return self.maximum * (1 + self.jitter)


class Delays:
    """The backoff series of one child, and how far it has got."""

    __slots__ = ("_backoff", "_last", "_next", "_taken")

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._reset()

    def _reset(self) -> None:
        self._taken = 0
        self._next = float(min(self._backoff.initial, self._backoff.maximum))
        self._last = 0.0

    @property
    def attempt(self) -> int:
        """The number of the last delay in its series, from 1."""
        return self._taken

    def next(self, quiet: float, u: float) -> float:
        """The next delay in seconds, after `quiet` seconds without a failure; `u` in [0, 1) is the random number for the jitter."""
        backoff = self._backoff
        reset_after = max(10.0, 2 * self._last) if backoff.reset_after is None else backoff.reset_after
        if quiet >= reset_after:
            self._reset()
        self._taken += 1
        if self._taken <= backoff.immediate:
            return 0.0
        self._last = self._next * (1 + backoff.jitter * (2 * u - 1))
        self._next = min(self._next * backoff.factor, backoff.maximum)
        return self._last
