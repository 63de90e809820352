"""The events of a tree as lines for a reader: time, node, event, and for a decision its author and reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from .. import events

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

    def transcript(self, *, last: int = 200) -> str:
        """The lines of the last events; if earlier ones are left out, the first line has their number."""
        kept = list(self.events)[-last:]
        left_out = self.count - len(kept)
        return "\n".join([*([f"… {left_out} events before"] if left_out else []), transcript(kept)])


def transcript(seen: Iterable[events.Event]) -> str:
    """The events `seen` as text, a line for each: seconds on Trio's clock, path and incarnation, and the event in words."""
    lines = [
        (f"{event.at:.3f}", f"{event.path} #{event.incarnation}", events.describe(event)) for event in seen
    ]
    wide = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    return "\n".join(f"{at:>{wide[0]}}  {who:<{wide[1]}}  {what}" for at, who, what in lines)
