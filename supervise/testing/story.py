"""The events of a tree as lines for a reader: time, node, event, and for a decision its author and reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .. import events
from .._core._brief import brief
from .._core.directive import Directive

KEPT = 1_000
"""A story keeps at most so many events, the last ones."""


class Story:
    """A sink that keeps the last events."""

    def __init__(self) -> None:
        self.events: deque[events.Event] = deque(maxlen=KEPT)
        self.count = 0

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        self.count += 1
        self.events.append(event)

    def tell(self, *, last: int = 200) -> str:
        """The lines of the last events; if earlier ones are left out, the first line has their number."""
        kept = list(self.events)[-last:]
        left_out = self.count - len(kept)
        return "\n".join([*([f"… {left_out} events before"] if left_out else []), tell(kept)])


def tell(seen: Iterable[events.Event]) -> str:
    """One line for each event: seconds on Trio's clock, path and incarnation, and the event in words."""
    lines = [(f"{event.at:.3f}", f"{event.path} #{event.incarnation}", describe(event)) for event in seen]
    wide = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    return "\n".join(f"{at:>{wide[0]}}  {who:<{wide[1]}}  {what}" for at, who, what in lines)


def describe(event: events.Event) -> str:
    """The event in a few words."""
    return _WORDS[type(event)](event)


def _decision(event: events.Decided) -> str:
    if event.directive is None:
        return f"→ no decision by {event.by}: {_UNDECIDED.get(event.because, event.because)}"
    why = [f"tag {event.tag!r}"] if event.tag else []
    why += ["its own limit is passed"] if event.because == "limit" else []
    why += [f"instead of {event.instead_of!r}"] if event.instead_of is not None else []
    why += [f"limit of {event.limit} passed"] if event.limit else []
    why += [f"a decider raised {brief(event.exc)}"] if event.because == "raised" else []
    why += [f"applies to {event.applied_to}"] if event.applied_to is not None else []
    whom = "no supervisor above" if event.directive is Directive.Escalate else f"decided by {event.by}"
    return f"→ {event.directive!r}, {whom}" + (f" ({'; '.join(why)})" if why else "")


_UNDECIDED = {
    "absorbed": "its group was already being restarted",
    "stop": "it was being stopped",
    "first start": "a first start that fails is not decided",
    "not an Exception": "it is not an Exception",
}


def _with_value(words: str) -> Callable[[Any], str]:
    return lambda event: words if event.value is None else f"{words}: {brief(event.value)}"


_WORDS: dict[type[events.Event], Callable[[Any], str]] = {
    events.Starting: lambda _: "starts",
    events.StartOverdue: lambda event: (
        f"has been starting for {event.seconds:g} s"
        + (f", waiting for {event.waits_for}" if event.waits_for else "")
    ),
    events.Ready: _with_value("is ready"),
    events.Ignored: lambda _: "is not needed here",
    events.StartFailed: lambda _: "did not become ready",
    events.Failed: lambda event: f"failed: {brief(event.exc)}",
    events.Decided: _decision,
    events.Resumed: lambda _: "resumed with its resource",
    events.Returned: _with_value("returned"),
    events.Stopping: lambda event: f"is being stopped ({event.reason})",
    events.Overdue: lambda event: f"has not ended {event.seconds:g} s after it was ordered to",
    events.StopError: lambda event: f"failed while stopping: {brief(event.exc)}",
    events.Stopped: lambda _: "has ended",
    events.BackingOff: lambda event: f"waits {event.delay:.3f} s, until {event.until:.3f}",
    events.SinkFailed: lambda event: f"sink {event.sink} failed: {brief(event.exc)}",
}
