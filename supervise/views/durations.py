"""How long a start took, and each recovery: from a timeline to rows, and to text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from attrs import asdict, evolve, frozen

from . import words
from .text import columns
from .timeline import Failure, Lane, Timeline, leading


@frozen
class Start:
    """The first start of one node.

    Args:
        path: of the node.
        at: when it began, in seconds since the root's start.
        took: seconds until it was ready; else until its start was over, or until the end of the events.
        own: the part of `took` in which it waited for no node below it.
        outcome: `failed`, `stopped` or `not needed` (R17) if it was never ready; `starting` if its start is not over.
        waits_for: the path of the node whose readiness it awaited, if an overdue start reported that.
    """

    path: str
    at: float
    took: float
    own: float
    outcome: Literal["ready", "failed", "stopped", "not needed", "starting"]
    waits_for: str | None = None


_OUTCOMES: dict[str, Literal["ready", "failed", "stopped", "not needed"]] = {
    "up": "ready",
    "failed": "failed",
    "stopping": "stopped",
    "down": "stopped",
    "releasing": "not needed",
}


def starts(timeline: Timeline) -> list[Start]:
    """The nodes whose readiness that of the first lane waited for, parents first, in start order; none if its start is missing.

    A supervisor starts one child after the other, each when the one before is ready, so all of these nodes are on the critical
    path of the start.
    """
    rows: dict[str, tuple[Lane, Start]] = {}
    for lane in timeline.lanes:
        start = _start(lane, timeline.lanes[0])
        above = rows.get(lane.path.rpartition("/")[0])
        if start is not None and (lane is timeline.lanes[0] or (above is not None and _within(lane, *above))):
            rows[lane.path] = lane, start
    own = {path: start.took for path, (_, start) in rows.items()}
    for path, (_, start) in rows.items():
        above_path = path.rpartition("/")[0]
        if above_path in own:
            own[above_path] -= start.took
    return [evolve(start, own=max(0.0, own[path])) for path, (_, start) in rows.items()]


def _within(lane: Lane, above: Lane, start: Start) -> bool:
    """Whether this node was started by the start of the one above it, and not added later."""
    first, whole = lane.segments[0], above.segments[0]
    return first.start <= whole.end and (first.end <= whole.end or start.outcome != "ready")


def _start(lane: Lane, root: Lane) -> Start | None:
    if not lane.segments or not root.segments:
        return None
    first = lane.segments[0]
    if (first.state, first.incarnation) != ("starting", 1):
        return None
    outcome = _OUTCOMES.get(lane.segments[1].state, "ready") if lane.segments[1:] else "starting"
    awaited = [note.waits_for for note in lane.notes if first.start <= note.at <= first.end]
    took = first.end - first.start
    return Start(lane.path, first.start - root.segments[0].start, took, took, outcome, *awaited[-1:])


def startup(timeline: Timeline, *, most: int | None = None) -> str:
    """The start as text: `@` when the start of a node began, `+` how long it took, and the part that it took itself.

    Args:
        timeline: of a run, or of a part of its tree.
        most: how many nodes are shown, those that took longest; None shows all.
    """
    rows = starts(timeline)
    name = timeline.lanes[0].path
    if not rows:
        return f"the start of {name} is not among these events\n"
    known = {row.path: row for row in rows}
    lanes = [lane for lane in timeline.lanes if lane.path in known]
    slowest = sorted(lanes, key=lambda lane: -known[lane.path].own)
    shown = lanes if most is None else leading(lanes, slowest, most)
    whole = rows[0].took
    table = [("node", "began", "took", "itself", "")]
    for lead, lane in _tree(shown):
        row = known[lane.path]
        share = f"{row.own / whole:.0%}" if whole else ""
        facts = [row.outcome] * (row.outcome != "ready") + [f"waited for {row.waits_for}"] * (
            row.waits_for is not None
        )
        table.append((lead + lane.name, f"@{row.at:.3f} s", f"+{row.took:.3f} s", share, "; ".join(facts)))
    verb = {"ready": "was ready after", "starting": "is not ready after"}.get(
        rows[0].outcome, "did not become ready in"
    )
    text = f"{name} {verb} {whole:.3f} s\n\n{columns(table)}"
    rest = [row for row in rows if row.path not in {lane.path for lane in shown}]
    if rest:
        text += (
            f"\n{len(rest)} more nodes took {sum(row.own for row in rest):.3f} s together; --all shows them\n"
        )
    return text


def _tree(lanes: Sequence[Lane]) -> list[tuple[str, Lane]]:
    """The lanes with the lines before them."""
    below: dict[str, list[Lane]] = {}
    for lane in lanes:
        below.setdefault(lane.path.rpartition("/")[0], []).append(lane)
    return list(words.branches(lanes[0], lambda lane: below.get(lane.path, [])))


def recoveries(timeline: Timeline) -> list[tuple[Lane, Failure]]:
    """All failures, in order."""
    rows = [(lane, failure) for lane in timeline.lanes for failure in lane.failures]
    return sorted(rows, key=lambda row: row[1].at)


def recovery(timeline: Timeline) -> str:
    """The failures as a table, and how long it took until their nodes were ready again."""
    rows = recoveries(timeline)
    if not rows:
        return "no failures\n"
    table = [("at", "node", "failure", "tag", "directive", "ready again")]
    for lane, failure in rows:
        table.append(
            (
                f"{failure.at:.3f} s",
                f"{lane.path} #{failure.incarnation}",
                failure.error,
                failure.tag or "",
                failure.directive or "",
                _again(lane, failure),
            )
        )
    gaps = [gap for _, failure in rows if (gap := failure.gap) is not None]
    count = f"{len(rows)} failure{'s' * (len(rows) > 1)}"
    if not gaps:
        return f"{columns(table)}\n{count}, none recovered\n"
    lost = f", {len(rows) - len(gaps)} not recovered" if len(gaps) < len(rows) else ""
    times = f"median {median(gaps):.3f} s, longest {max(gaps):.3f} s"
    return f"{columns(table)}\n{count}, {len(gaps)} recovered{lost}; until ready again: {times}\n"


def _again(lane: Lane, failure: Failure) -> str:
    """After how many seconds it was ready again; else its state at the end."""
    if failure.gap is not None:
        return f"after {failure.gap:.3f} s"
    return "not started again" if lane.state == "down" else f"no, it is {lane.state}"


def startup_data(timeline: Timeline) -> list[dict[str, Any]]:
    """The rows of `startup` as data: the fields of `Start`."""
    return [asdict(start) for start in starts(timeline)]


def recovery_data(timeline: Timeline) -> list[dict[str, Any]]:
    """The rows of `recovery` as data: the fields of `Failure`, and `path`, `gap`, and the `state` of the node at the end."""
    return [
        {"path": lane.path, **asdict(failure), "gap": failure.gap, "state": lane.state}
        for lane, failure in recoveries(timeline)
    ]
