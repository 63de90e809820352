"""How many requests may begin in a minute, if the runner declares limits of its server, and how many may be tried again (D14)."""

from __future__ import annotations

from collections import deque
from random import random

from attrs import define, field

from ..protect import protected
from ..types import RateLimits

_MINUTE = 60.0
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 15.0
_DOUBLINGS = 5
"""After so many the delay is the longest; a thousand more would not fit a float."""

FREE_RETRIES = 10
"""So many requests a minute may be tried again whatever their share is: a worker with few requests needs its retries too."""


@define(eq=False)
class Begun:
    """A request that counts for the limits since `at`, with so many tokens: the estimate, and once it is complete what it took.

    `rates`: where it counts: those of a worker that was declared with another runner since are others (R38). `counts`: whether it is
    among those of the last minute.
    """

    rates: Rates
    at: float
    tokens: int
    counts: bool = True


@protected
@define(eq=False)
class Rates:
    """What has begun in the last minute. All contexts of a worker share it, since they ask one server.

    `paused_until`: before that time the server, by its own word, accepts no request.
    """

    paused_until: float = 0.0
    _begun: deque[Begun] = field(factory=deque[Begun])
    _tokens: int = 0

    def next_time(self, limits: RateLimits, tokens: int, now: float) -> float:
        """The time at which a request that may take so many tokens may begin, if no other one begins first; not before `now`."""
        while self._begun and self._begun[0].at <= now - _MINUTE:
            past = self._begun.popleft()
            past.counts = False
            self._tokens -= past.tokens
        free = max(now, self.paused_until)
        requests, left = len(self._begun), self._tokens
        for begun in self._begun:
            few = limits.requests is None or requests < limits.requests
            small = limits.tokens is None or left + tokens <= limits.tokens
            if few and small:
                break
            requests, left, free = requests - 1, left - begun.tokens, max(free, begun.at + _MINUTE)
        return free

    def note(self, tokens: int, now: float) -> Begun:
        """A request begins, and reserves so many tokens."""
        begun = Begun(self, now, tokens)
        self._begun.append(begun)
        self._tokens += tokens
        return begun

    def settle(self, begun: Begun, tokens: int) -> None:
        """A request is complete, and has taken so many tokens, which count from its beginning on."""
        if begun.counts:
            self._tokens += tokens - begun.tokens
        begun.tokens = tokens


@protected
@define(eq=False)
class RetryBudget:
    """The retries of a worker in the last minute: at most `FREE_RETRIES` and a share of the requests that began in it.

    Without it each request of a server that fails would be sent several times, just when the server can take least.
    """

    _begun: deque[float] = field(factory=deque[float])
    _retried: deque[float] = field(factory=deque[float])

    def note(self, now: float) -> None:
        """A request begins for the first time."""
        self._begun.append(now)
        self._forget(now)

    def take(self, share: float, now: float) -> bool:
        """Whether one more request may be tried again now; if so, it counts."""
        self._forget(now)
        if len(self._retried) + 1 > FREE_RETRIES + share * len(self._begun):
            return False
        self._retried.append(now)
        return True

    def _forget(self, now: float) -> None:
        for times in (self._begun, self._retried):
            while times and times[0] <= now - _MINUTE:
                times.popleft()


def retry_delay(tries: int) -> float:
    """Seconds before a request is tried again that has failed so many times, 1 or more; up to half of them by chance."""
    delay: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(tries - 1, _DOUBLINGS))
    return delay * (1 - random() / 2)  # noqa: S311 - no secret depends on it
