"""The circuit breaker of a worker: a server that fails is asked nothing for a while, and then by few requests at first (D14).

It is closed while the server works, open after some failures in a row, and half-open when its time has passed: then a few
requests, the probes, try the server. One that gets a chunk closes it; one that fails opens it for the whole time again.

A failure is an error of the server: it cannot be reached, ends a stream early, is too slow, or answers with a
status of 500 or more. An error of the request itself (400 to 499, a rate limit too) and a caller who leaves count for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from attrs import define, field, frozen

from runners.checks import above, integer, plain_integer, plain_number

from ..errors import CircuitOpen
from ..protect import protected

State: TypeAlias = Literal["closed", "open", "half-open"]


@frozen(kw_only=True)
class Breaker:
    """When a worker stops to ask a server that fails, for `device_worker(…, breaker=Breaker())`.

    Args:
        failures: after so many in a row, 1 or more, no request begins.
        open_for: seconds until the server is tried again, above 0.
        probes: how many requests try it at once, 1 or more. The others are refused until one of them gets a chunk.

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument is out of range.
    """

    failures: int = field(default=5, converter=plain_integer, validator=integer(1))
    open_for: float = field(default=30.0, converter=plain_number, validator=above(0, finite=True))
    probes: int = field(default=1, converter=plain_integer, validator=integer(1))


@protected
@define(eq=False)
class Circuit:
    """The state of one breaker. The contexts of a worker share it, since they ask one server.

    `on_change` is called with each new state and the moment. `failures`: in a row. `opened`: when it was opened last. `_period`: the
    number of the present state. A request that began in an earlier one counts for nothing: it tells of a server as it was.
    """

    policy: Breaker
    on_change: Callable[[State], object]
    state: State = "closed"
    failures: int = 0
    opened: float = 0.0
    probes: int = 0
    _period: int = 0

    def refuses(self, now: float) -> CircuitOpen | None:
        """The error for a request that may not begin now; None if it may."""
        again = self.opened + self.policy.open_for
        if self.state == "open" and now >= again:
            self._become("half-open")
        if self.state == "open":
            return _refusal(f"it is tried again in {again - now:.3g} s", again - now)
        if self.state == "half-open" and self.probes >= self.policy.probes:
            return _refusal("it is being tried just now", None)
        return None

    def begin(self) -> Ticket:
        """A request begins that is not refused."""
        if self.state == "half-open":
            self.probes += 1
        return Ticket(self, self._period)

    def _become(self, state: State) -> None:
        self.state = state
        self.failures = self.probes = 0
        self._period += 1
        self.on_change(state)

    def open(self, now: float) -> None:
        """Refuse requests from now on."""
        self.opened = now
        self._become("open")


@protected
@define(eq=False)
class Ticket:
    """What becomes of one request counts once, if the breaker is still in the state in which the request began."""

    circuit: Circuit
    period: int

    @property
    def _counts(self) -> bool:
        return self.period == self.circuit._period

    def gave(self) -> None:
        """Its first chunk is there: a server that is being tried works again. The request itself counts on."""
        if self._counts and self.circuit.state == "half-open":
            self.circuit._become("closed")
            self.period = self.circuit._period

    def succeeded(self) -> None:
        """It is complete."""
        self.gave()
        if self._counts:
            self.circuit.failures = 0
        self._end()

    def failed(self, now: float) -> None:
        """The server has failed."""
        circuit = self.circuit
        if self._counts:
            circuit.failures += 1
            if circuit.state == "half-open" or circuit.failures >= circuit.policy.failures:
                circuit.open(now)
        self._end()

    def withdraw(self) -> None:
        """It ended in another way, which counts for nothing; a probe makes room for another one."""
        if self._counts and self.circuit.state == "half-open":
            self.circuit.probes -= 1
        self._end()

    def _end(self) -> None:
        self.period = -1


def _refusal(why: str, retry_after: float | None) -> CircuitOpen:
    return CircuitOpen(f"the server has failed too often, {why}", retry_after=retry_after)
