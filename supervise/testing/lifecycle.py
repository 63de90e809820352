"""Checks the grammar of events (R32)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .. import events

_LETTERS: Mapping[type[events.Event], str] = {
    events.Starting: "s",
    events.StartOverdue: "w",
    events.Ready: "r",
    events.Ignored: "i",
    events.StartFailed: "x",
    events.Failed: "f",
    events.Decided: "d",
    events.Resumed: "u",
    events.Returned: "t",
    events.Stopping: "p",
    events.Overdue: "o",
    events.StopError: "e",
    events.Stopped: "z",
}
_LIFE = re.compile(r"sw*(r(fdu)*(fd|t|p)?|it|o*(eo*)?(xfd|p))?o*(fd)?o*(eo*)?e?z")
"""`o*(eo*)?` before `xfd`: a start past its timeout may be overdue before it fails or is stopped. `(fd)?`: a failure while its
supervisor is already stopping is decided by that stop. `(eo*)?e?`: the body's failure crossed with a stop, and then its
resource may hang and fail as well."""


def assert_lifecycle(seen: Iterable[events.Event], *, closed: bool = True) -> None:
    """Check that the events of every incarnation follow the grammar of `supervise.events`, one incarnation after the other (R32).

    Args:
        seen: all events of one tree, in order.
        closed: whether the tree has ended, so that every incarnation must be complete.

    Raises:
        AssertionError: it names the path, the incarnation and its events.
    """
    lives: dict[str, list[list[events.Event]]] = {}
    for event in seen:
        if isinstance(event, events.SinkFailed | events.Adopting | events.Adopted):
            continue
        _note(lives.setdefault(event.path, []), event)
    for path, its in lives.items():
        _check_path(path, its, closed=closed)


def _note(lives: list[list[events.Event]], event: events.Event) -> None:
    if isinstance(event, events.BackingOff):
        assert lives, f"{event.path!r} backs off before it ever started"
        last = lives[-1][-1]
        assert isinstance(last, events.Stopped), f"{event.path!r} #{event.incarnation} backs off after {last}"
        return
    if isinstance(event, events.Starting):
        lives.append([])
    assert lives, f"{event.path!r}: {event} before it ever started"
    lives[-1].append(event)


def _check_path(path: str, lives: list[list[events.Event]], *, closed: bool) -> None:
    last = 0
    for number, life in enumerate(lives):
        incarnations = {event.incarnation for event in life}
        assert len(incarnations) == 1, f"{path!r}: one life, but incarnations {sorted(incarnations)}"
        assert life[0].incarnation > last, f"{path!r}: incarnation {life[0].incarnation} after {last}"
        last = life[0].incarnation
        if closed or number < len(lives) - 1:
            word = "".join(_LETTERS[type(event)] for event in life)
            if not _LIFE.fullmatch(word):
                story = "\n  ".join(map(str, life))
                raise AssertionError(f"{path!r} #{last} did not live by the grammar:\n  {story}")
