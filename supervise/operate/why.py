"""Why a node is as it is, in sentences: its state, its last failure, who decided what, and what followed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from .._core._asked import ASKED
from .._core._brief import printable

Data = dict[str, Any]

_STATES = {
    "down": "is down",
    "starting": "is starting",
    "up": "is up",
    "failed": "has failed, and waits for the decision",
    "stopping": "is being stopped",
    "releasing": "has failed, and leaves its resource",
    "restarting": "waits for its next start",
    "condemned": "is down: a decision has stopped it, and a restart of its group does not start it",
}


def why(row: Data, events: list[Data], *, time: float) -> str:
    """The story of a node in a few sentences, one on each line, in which no text of the program can control a terminal.

    Args:
        row: of the node, see `rows.Rows`.
        events: those still known of its supervisor and of all nodes below that, as data, in order.
        time: now, in seconds since 1970.
    """
    return "".join([f"{printable(line)}\n" for line in _lines(row, events, time)])


def _lines(row: Data, events: list[Data], time: float) -> Iterator[str]:
    yield _state(row, time)
    own = [event for event in events if event["path"] == row["path"]]
    decided = next((event for event in reversed(own) if event["kind"] == "Decided"), None)
    if decided is not None:
        yield from _decision(decided)
        yield from _consequences(row, decided, events)
    elif row["decision"] is not None:
        yield from _remembered(row)
    else:
        yield from _never_failed(row, own)
    if row["limit"] is not None:
        yield f"Its limit of {row['limit']} counts {row['restarts']} of {row['allowed']} now."
    counts = [("failed", row["failures_total"]), ("was started again", row["restarts_total"])]
    counted = [f"{what} {_times(count)}" for what, count in counts if count]
    if counted:
        yield f"Since the tree opened it {' and '.join(counted)}."


def _state(row: Data, time: float) -> str:
    text = f"{row['path']} {_STATES[row['state']]}"
    if row["since"] is not None:
        text += f", since {clock(row['since'])} ({ago(time - row['since'])})"
    if row["incarnation"]:
        text += f", incarnation {row['incarnation']}"
    if row["due"] is not None:
        text += f"; it starts in {ago(max(0.0, row['due'] - time))}"
    return f"{text}."


def _decision(decided: Data) -> Iterator[str]:
    exc = decided["exc"]
    tag = f", with the tag {decided['tag']!r}" if decided["tag"] else ""
    yield (
        f"At {clock(decided['time'])} incarnation {decided['incarnation']} failed: {exc['type']}: {exc['text']}{tag}."
    )
    yield f"The decision: {decided['text'].removeprefix('→ ')}."


def _remembered(row: Data) -> Iterator[str]:
    """The last decision, of which only the status is left."""
    decision = row["decision"]
    failure = row["failure"]
    what = "" if failure is None else f": {failure['type']}: {failure['text']}"
    yield f"At {clock(decision['at'])} it failed{what}."
    tag = f" for {decision['tag']!r}" if decision["tag"] else ""
    yield f"The decision: {decision['directive'] or 'none'}{tag}, by {decision['by']!r}. Its events are no longer kept."


def _never_failed(row: Data, own: list[Data]) -> Iterator[str]:
    last = next(
        (event for event in reversed(own) if event["kind"] in ("Stopping", "Returned", "Ignored")), None
    )
    started = next(
        (event for event in reversed(own) if event["kind"] == "Starting" and event["reason"]), None
    )
    if last is not None and row["state"] in ("down", "condemned", "stopping"):
        yield f"At {clock(last['time'])} it {last['text']}."
    elif started is not None:
        yield f"At {clock(started['time'])} it started: {started['reason']}."
    if not row["failures_total"]:
        yield "It has not failed since the tree opened."


def _consequences(row: Data, decided: Data, events: list[Data]) -> Iterator[str]:
    """What was stopped and started because of it, until the node was ready again; and what a caller has asked for since."""
    later = [event for event in events if event["seq"] > decided["seq"]]
    own = [event for event in later if event["path"] == row["path"]]
    again = next((event for event in own if event["kind"] in ("Ready", "Resumed")), None)
    if again is not None:
        later = [event for event in later if event["seq"] <= again["seq"]]
    # The reason of a stop names the child whose failure has caused it (R36).
    causes = [repr(path) for path in (row["path"], decided["applied_to"]) if path is not None]
    stopped = _paths(
        event
        for event in later
        if event["kind"] == "Stopping" and any(cause in event["reason"] for cause in causes)
    )
    if stopped:
        yield f"With it were stopped, in this order: {', '.join(stopped)}."
    started = _paths(event for event in later if event["kind"] == "Starting" and event["path"] in stopped)
    if started:
        yield f"Of these were started again, in this order: {', '.join(started)}."
    if again is not None:
        seconds = _seconds(again["time"] - decided["time"])
        yield f"It was ready again at {clock(again['time'])}, {seconds} after the failure."
    for event in [event for event in own if ASKED in (event.get("reason") or "")][-1:]:
        yield f"At {clock(event['time'])} it {event['text']}."


def _paths(events: Iterable[Data]) -> list[str]:
    return list(dict.fromkeys(event["path"] for event in events))


def clock(time: float) -> str:
    """A local time of day, with the date if it is another day."""
    at = datetime.fromtimestamp(time).astimezone()
    today = datetime.now().astimezone().date()
    return (
        at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M:%S")
        + f".{at.microsecond // 1000:03}"
    )


def ago(seconds: float) -> str:
    """A duration for a person, such as `350 ms`, `12.5 s` or `3 hours`."""
    for unit, length in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}s"
    return _seconds(seconds)


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
