"""How many requests may begin in a minute, if the runner declares limits of its server (D14)."""

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


@protected
@define(eq=False)
class Rates:
    """What has begun in the last minute. All contexts of a worker share it, since they ask one server.

    `paused_until`: before that time the server, by its own word, accepts no request.
    """

    paused_until: float = 0.0
    _begun: deque[tuple[float, int]] = field(factory=deque[tuple[float, int]])
    _tokens: int = 0

    def next_time(self, limits: RateLimits, tokens: int, now: float) -> float:
        """The time at which a request that may take so many tokens may begin, if no other one begins first; not before `now`."""
        while self._begun and self._begun[0][0] <= now - _MINUTE:
            self._tokens -= self._begun.popleft()[1]
        free = max(now, self.paused_until)
        requests, left = len(self._begun), self._tokens
        for at, taken in self._begun:
            few = limits.requests is None or requests < limits.requests
            small = limits.tokens is None or left + tokens <= limits.tokens
            if few and small:
                break
            requests, left, free = requests - 1, left - taken, max(free, at + _MINUTE)
        return free

    def note(self, tokens: int, now: float) -> None:
        """A request begins."""
        self._begun.append((now, tokens))
        self._tokens += tokens


def retry_delay(tries: int) -> float:
    """Seconds before a request is tried again that has failed so many times, 1 or more; up to half of them by chance."""
    delay: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(tries - 1, _DOUBLINGS))
    return delay * (1 - random() / 2)  # noqa: S311 - no secret depends on it
