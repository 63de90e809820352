"""What happened in a tree, as lines for a person: when, where, what, and who decided what and why."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .. import events
from .._core.directive import Directive

KEPT = 1_000
"""A story forgets its beginning beyond this many events."""


class Story:
    """A sink that keeps what a story needs."""

    def __init__(self) -> None:
        self.events: deque[events.Event] = deque(maxlen=KEPT)
        self.heard = 0

    def __call__(self, event: events.Event) -> None:
        """Take one event."""
        self.heard += 1
        self.events.append(event)

    def tell(self, *, last: int = 200) -> str:
        """The last lines; the first says how many came before."""
        kept = list(self.events)[-last:]
        left_out = self.heard - len(kept)
        return "\n".join([*([f"… {left_out} events before"] if left_out else []), tell(kept)])


def tell(seen: Iterable[events.Event]) -> str:
    """One line for each event: seconds on Trio's clock, path and incarnation, and what happened."""
    lines = [(f"{event.at:.3f}", f"{event.path} #{event.incarnation}", describe(event)) for event in seen]
    wide = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    return "\n".join(f"{at:>{wide[0]}}  {who:<{wide[1]}}  {what}" for at, who, what in lines)


def describe(event: events.Event) -> str:
    """What happened, in a few words."""
    match event:
        case events.Failed(exc=exc):
            return f"failed: {exc!r}"
        case events.Decided():
            return _decision(event)
        case events.Ready(value=value) | events.Returned(value=value):
            said = "" if value is None else f": {value!r}"
            return f"{_WORDS[type(event)]}{said}"
        case events.Stopping(reason=reason):
            return f"is being stopped ({reason})"
        case events.BackingOff(delay=delay, until=until):
            return f"waits {delay:.3f} s, until {until:.3f}"
        case events.Overdue(seconds=seconds):
            return f"still there {seconds:g} s after it was told to end"
        case events.StopError(exc=exc):
            return f"failed while stopping: {exc!r}"
        case events.SinkFailed(sink=sink, exc=exc):
            return f"sink {sink} failed: {exc!r}"
        case _:
            return _WORDS[type(event)]


_WORDS: dict[type[events.Event], str] = {
    events.Starting: "starts",
    events.Ready: "is ready",
    events.Ignored: "is not needed here",
    events.StartFailed: "did not become ready",
    events.Resumed: "resumed with the resource it had",
    events.Returned: "returned",
    events.Stopped: "has ended",
}


def _decision(event: events.Decided) -> str:
    if event.directive is None:
        return f"→ nothing decided by {event.by}: {_NOBODY.get(event.because, event.because)}"
    why = [f"tag {event.tag!r}"] if event.tag else []
    why += ["its own limit is passed"] if event.because == "limit" else []
    why += [f"instead of {event.instead_of!r}"] if event.instead_of is not None else []
    why += [f"limit of {event.limit} passed"] if event.limit else []
    whom = "nobody above" if event.directive is Directive.Escalate else event.by
    return f"→ {event.directive!r}, decided by {whom}" + (f" ({'; '.join(why)})" if why else "")


_NOBODY = {
    "absorbed": "its group was already being restarted",
    "stop": "it was being stopped",
    "first start": "a first start that fails is not decided",
    "not an Exception": "it is not an Exception",
}
