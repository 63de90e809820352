"""From events to lanes: what a timeline says of each instant is what the tree itself says, and no file breaks it."""

import json
from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest
import trio
from hypothesis import given, note, settings
from hypothesis import strategies as st

from supervise import Backoff, Child, Decider, Limit, Restart, Rule, Supervisor, errors, open_tree
from supervise._core.spec import walk
from supervise.sinks.data import as_data
from supervise.testing import Delay, Fail, FaultPlan, Injected, Script, fault_plans, run_virtual, trees
from supervise.testing.children import idle, nothing
from supervise.views.timeline import Failure, Lane, Segment, State, leading, timelines

BEGAN = 1_796_000_000.25
ALLOWED = {
    "up": {"up"},
    "starting": {"starting"},
    "failed": {"failed", "releasing"},  # a group's turn to be stopped may come after the decision
    "stopping": {"stopping", "releasing", "down"},  # or it has returned; or it has ended, as below
    "releasing": {"releasing", "down"},  # it has ended, and its supervisor has not yet come to that
    "restarting": {"backing off", "down"},  # a retry may be queued without a backoff
    "condemned": {"down"},
    "down": {"down"},
}


def recorded(tree, *, until=30.0, look_every=None, restart=None, seed=0):
    """The events of a run as data, and what `status()` was at times at which nothing else happens."""
    data, seen = [], []

    def sink(event):
        data.append(as_data(event, number=len(data) + 1, time=BEGAN + event.at))

    async def look(t):
        await trio.sleep(0.0371)
        while True:
            seen.append((trio.current_time(), {node.path: node.state for node in t.status().walk()}))
            await trio.sleep(look_every)

    async def operate(t):
        at, path = restart
        await trio.sleep(at)
        with trio.CancelScope(deadline=trio.current_time() + 50):
            try:
                await t[path].restart()
            except errors.SuperviseError:
                pass

    async def main():
        async with trio.open_nursery() as nursery:
            try:
                with trio.move_on_after(until):
                    async with open_tree(tree, sinks=[sink]) as t:
                        if look_every:
                            nursery.start_soon(look, t)
                        if restart:
                            nursery.start_soon(operate, t)
                        await trio.sleep_forever()
            except errors.SuperviseError:
                pass
            nursery.cancel_scope.cancel()

    run_virtual(main, seed=seed)
    return data, seen


SLOW = Script(leave=Delay(1.75), stop=Delay(1.25), body=Fail(Injected("x"), after=1.0), start=Delay(0.75))
TROUBLED = Supervisor(
    "app",
    [
        Child("a", idle, resource=nothing, backoff=Backoff(initial=2, factor=1, jitter=0)),
        Supervisor(
            "b",
            [Child("c", idle, resource=nothing), Child("d", idle)],
            strategy="one_for_all",
            limit=Limit(2, within=30),
        ),
    ],
    limit=None,
)
PLAN = FaultPlan(
    {
        "app/a": [SLOW] * 20,
        "app/b/c": [SLOW] * 20,
        "app/b/d": [Script(stop=Delay(1.25), body=Fail(Injected("x"), after=1.5))] * 20,
    }
)


class Run:
    def __init__(self, data, seen):
        self.data, self.seen = data, seen

    def __repr__(self):
        return "<a run>"


@st.composite
def runs(draw):
    """A drawn tree, or one in which every state lasts, with drawn faults, and perhaps a restart by an operator."""
    tree = draw(st.just(TROUBLED) | trees(max_size=8))
    plan = draw(fault_plans(tree, max_size=8))
    paths = [path for path, _ in walk(tree) if "(" not in path]
    restart = draw(
        st.none() | st.tuples(st.integers(0, 80).map(lambda eighths: eighths / 8), st.sampled_from(paths))
    )
    seed = draw(st.integers(0, 2**32 - 1))
    note(f"{tree!r}\n{plan!r}\n{restart=} {seed=}")
    return Run(*recorded(plan.over(tree), until=20.0, look_every=0.5113, restart=restart, seed=seed))


def state_at(lane, time):
    """The state of a node at an instant; None before its first event. At most one segment has it."""
    found = [segment.state for segment in lane.segments if segment.start <= time < segment.end]
    assert len(found) <= 1
    return found[0] if found else None


def agrees(timeline, data, seen):
    """Every instant from a node's first start to the end belongs to one segment, whose state is that which `status()` had."""
    lanes = {lane.path: lane for lane in timeline.lanes}
    assert timeline.whole
    assert (timeline.began, timeline.end) == (data[0]["time"], data[-1]["at"] - data[0]["at"])
    for lane in lanes.values():
        first = next(each for each in data if each["path"] == lane.path)
        assert first["kind"] == "Starting"
        assert lane.segments[0].start == first["at"] - data[0]["at"]
        assert lane.segments[-1].end == timeline.end
        for one, other in pairwise(lane.segments):
            assert one.end == other.start
            assert one.start <= one.end
            assert (one.state, one.incarnation) != (other.state, other.incarnation)
    for time, states in seen:
        at = time - data[0]["at"]
        for path, state in states.items() if at < timeline.end else ():
            shown = state_at(lanes[path], at) if path in lanes else None
            waits = (
                {"up"} if state == "failed" and lanes[path].parent else set()
            )  # for the verdict on a failure below it
            not_yet = {None} if state == "down" else set()
            assert shown in ALLOWED[state] | waits | not_yet, (path, at, state)


@pytest.mark.slow
@settings(max_examples=80)
@given(runs())
def test_a_timeline_agrees_with_the_status_of_the_tree(run):
    """Whatever happens to a tree."""
    data, seen = run.data, run.seen
    [timeline] = timelines(data)
    agrees(timeline, data, seen)


def test_every_state_agrees_with_the_status_of_the_tree():
    """The same for a run in which each state lasts for a while."""
    data, seen = recorded(PLAN.over(TROUBLED), until=40, look_every=0.2113)
    [timeline] = timelines(data)
    agrees(timeline, data, seen)
    lasting = {s.state for lane in timeline.lanes for s in lane.segments if s.end > s.start}
    assert lasting == set(get_args(State))


def test_a_backoff_that_is_over_before_its_supervisor_ends_is_followed_by_one_segment():
    """The node is down from then on, until the root has been restarted."""
    plan = FaultPlan({"app/a": [Script(body=Fail(Injected("x")))], "app/b/c": [Script(stop=Delay(2.125))]})
    data, seen = recorded(plan.over(TROUBLED), until=20, look_every=0.5113, restart=(0.5, "app"))
    [timeline] = timelines(data)
    agrees(timeline, data, seen)


@settings(max_examples=30)
@given(runs(), st.data())
def test_a_part_of_the_events_gives_the_same_picture_of_its_part(run, draw):
    """A file that begins in the middle of a run, as a renamed one does, claims nothing that the whole does not say."""
    data = run.data
    cut = draw.draw(st.integers(0, len(data) - 1))
    [whole], [part] = timelines(data), timelines(data[cut:])
    lanes = {lane.path: lane for lane in whole.lanes}
    offset = data[cut]["at"] - data[0]["at"]
    assert part.whole == (cut == 0)
    for lane in part.lanes:
        for segment in lane.segments:
            if segment.end - segment.start > 1e-6:
                middle = (segment.start + segment.end) / 2 + offset
                assert state_at(lanes[lane.path], middle) == segment.state
        known = [(f.at, f.error, f.directive) for f in lanes[lane.path].failures]
        assert [pytest.approx(f.at + offset) for f in lane.failures] == [
            at for at, *_ in known[len(known) - len(lane.failures) :]
        ]


@settings(max_examples=30)
@given(runs())
def test_failures_have_their_decisions_and_recoveries(run):
    """Each `Failed` is one failure; it is over at the next `Ready` or `Resumed` of its node."""
    data = run.data
    [timeline] = timelines(data)
    for lane in timeline.lanes:
        its = [each for each in data if each["path"] == lane.path]
        failed = [number for number, each in enumerate(its) if each["kind"] == "Failed"]
        assert len(failed) == len(lane.failures)
        for number, failure in zip(failed, lane.failures, strict=True):
            decided = next(each for each in its[number:] if each["kind"] == "Decided")
            again = next((each["at"] for each in its[number:] if each["kind"] in ("Ready", "Resumed")), None)
            assert failure.at == its[number]["at"] - data[0]["at"]
            assert (failure.directive, failure.tag, failure.by) == (
                decided["directive"],
                decided["tag"],
                decided["by"],
            )
            assert failure.again == (None if again is None else again - data[0]["at"])


async def gone():
    await trio.sleep(1)
    raise ConnectionError("gone")


def small(seconds=3.25):
    """The events of a small run."""
    feed = Child("feed", gone, backoff=Backoff(initial=0.5, factor=1, jitter=0))
    tree = Supervisor(
        "app",
        [feed, Child("other", trio.sleep_forever)],
        decider=Decider({"net": Restart}, rules=[Rule(ConnectionError, "net")]),
    )
    return recorded(tree, until=seconds)[0]


def test_a_lane_by_hand():
    """A failure, its backoff, and the next incarnation."""
    [timeline] = timelines(small())
    app, feed, other = timeline.lanes
    moved = [
        (s.state, round(s.start, 6), round(s.end, 6), s.incarnation, s.why)
        for s in feed.segments
        if s.end - s.start > 1e-6
    ]
    assert moved == [
        ("up", 0.0, 1.0, 1, ""),
        ("backing off", 1.0, 1.5, 1, "attempt 1"),
        ("up", 1.5, 2.5, 2, ""),
        ("backing off", 2.5, 3.0, 2, "attempt 2"),
        ("up", 3.0, 3.25, 3, ""),
    ]
    assert feed.failures == (
        Failure(1.0, 1, "ConnectionError: gone", tag="net", directive="Restart", by="app", again=1.5),
        Failure(2.5, 2, "ConnectionError: gone", tag="net", directive="Restart", by="app", again=3.0),
    )
    assert (feed.failures[0].gap, feed.depth, feed.name, app.parent, other.state) == (
        0.5,
        1,
        "feed",
        True,
        "down",
    )
    assert next(s.why for s in feed.segments if s.state == "stopping").startswith("the block")
    assert timeline.ended


def test_a_backoff_ends_with_the_supervisor():
    """A stop during a backoff has no event of that node: it is down as soon as its supervisor is."""
    [timeline] = timelines(small(2.75))
    assert [(s.state, s.start, s.end) for s in timeline.lanes[1].segments[-2:]] == [
        ("backing off", 2.5, 2.75),
        ("down", 2.75, 2.75),
    ]


def test_several_runs_of_several_trees():
    """Each root has its own runs; one begins with its first start, or where the numbers begin again."""
    one = small()
    other = [{**each, "path": each["path"].replace("app", "web")} for each in small(1.75)]
    mixed = [
        event for pair in zip(one, [*other, *[None] * len(one)], strict=False) for event in pair if event
    ]
    found = timelines([*mixed, *one, *one[5:]])
    assert [(run.lanes[0].path, round(run.end, 6), run.whole) for run in found] == [
        ("app", 3.25, True),
        ("web", 1.75, True),
        ("app", 3.25, True),
        ("app", 3.25, False),
    ]


EVENT = small(0.5)[0]
WRONG = [
    None,
    7,
    [],
    {},
    "Starting",
    {**EVENT, "v": None},
    {**EVENT, "v": "1"},
    {**EVENT, "kind": 7},
    {**EVENT, "path": ""},
    {**EVENT, "path": "app//a"},
    {**EVENT, "path": None},
    {**EVENT, "incarnation": "1"},
    {**EVENT, "at": "now"},
    {**EVENT, "at": float("nan")},
    {**EVENT, "at": 1e300},
    {**EVENT, "at": True},
    {**EVENT, "time": -1},
    {**EVENT, "time": 10**400},
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_what_is_no_event_is_counted_and_left_out(wrong):
    """The others are taken as if it were not there."""
    left_out = Counter()
    data = small()
    assert timelines([data[0], wrong, *data[1:]], left_out) == timelines(data)
    assert left_out == {"that are no events": 1}


def test_other_versions_and_kinds_are_named():
    """A version may mean other things; log records are expected among events."""
    left_out = Counter()
    odd = [{**EVENT, "v": 2}, {**EVENT, "kind": "Moved\n"}, {"v": 1, "time": 1.0, "kind": "Log", "text": "x"}]
    assert timelines([*odd, *odd], left_out) == []
    assert left_out == {
        "of version 2, where this program knows version 1": 2,
        r"of the unknown kind 'Moved\\n'": 2,
    }


def test_fields_of_other_types_cost_only_their_texts():
    """Of an event whose further fields are not what they should be, its kind still counts."""
    data = [
        {key: each[key] for key in ("v", "time", "at", "seq", "kind", "path", "incarnation")}
        for each in small()
    ]
    [bare], [full] = timelines(data), timelines(small())
    assert [len(lane.failures) for lane in bare.lanes] == [len(lane.failures) for lane in full.lanes]
    assert bare.lanes[1].failures[0] == Failure(1.0, 1, "an unknown failure", again=1.5)
    odd = [
        {**each, "exc": {"type": 3}, "tag": [], "directive": {}, "by": 1, "reason": 1, "attempt": "x"}
        for each in data
    ]
    assert timelines(odd)[0].lanes[1].failures[0].error == "Exception"
    kinds = ["Overdue", "StartOverdue", "StopError", "SinkFailed"]
    [noted] = timelines(
        [EVENT, *({**EVENT, "seq": 2 + n, "kind": kind, "seconds": "x"} for n, kind in enumerate(kinds))]
    )
    assert [note.text for note in noted.lanes[0].notes] == [
        "has not ended long after it was ordered to",
        "has been starting for long",
        "failed while it was stopped: an unknown failure",
        "the sink None failed: an unknown failure",
    ]


def test_names_cannot_control_what_shows_them():
    """A path with control characters or half a character is shown escaped."""
    data = [json.loads(json.dumps(each).replace("feed", r"f\ud800\u001b")) for each in small()]
    assert timelines(data)[0].lanes[1].path == r"app/f\ud800\x1b"


PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(lambda names: "/".join(["app", *names]))


@given(st.sets(PATHS), st.lists(st.integers(0, 200)), st.integers(1, 30))
def test_the_leading_lanes_come_with_those_above_them(paths, wanted, most):
    """Never more than asked for; each with all above it; the first wanted ones, if those are few enough."""
    whole = sorted(
        {
            "app",
            *(
                path[:end]
                for path in paths
                for end in [*(i for i, c in enumerate(path) if c == "/"), len(path)]
            ),
        }
    )
    lanes = [Lane(path) for path in whole]
    first = [lanes[number % len(lanes)] for number in wanted]
    shown = [lane.path for lane in leading(lanes, first, most)]
    assert len(shown) == min(most, len(lanes))
    assert shown == [path for path in whole if path in shown]
    assert all(path == "app" or path.rpartition("/")[0] in shown for path in shown)
    if first and first[0].depth < most:
        assert first[0].path in shown


def test_a_part_of_the_tree():
    """`below` keeps a node and those below it, and no node whose name merely begins so."""
    lanes = tuple(map(Lane, ("app", "app/a", "app/a/x", "app/ab")))
    [timeline] = timelines(small())
    [whole] = [type(timeline)(0.0, 1.0, True, lanes)]
    assert [lane.path for lane in whole.below("app/a").lanes] == ["app/a", "app/a/x"]
    assert whole.below("app/b").lanes == ()


@pytest.mark.slow
def test_the_work_for_an_event_does_not_grow():
    """Neither with the number of lanes nor with that of events before it: otherwise this takes minutes."""
    life = [{**EVENT, "kind": kind} for kind in ("Starting", "Ready", "Failed", "Decided", "Stopped")]
    data = [EVENT] + [
        {**each, "path": f"app/n{number % 1000}", "seq": None, "incarnation": number}
        for number in range(20_000)
        for each in life
    ]
    [timeline] = timelines(data)
    assert sum(len(lane.failures) for lane in timeline.lanes) == 20_000
    assert all(isinstance(s, Segment) for s in timeline.lanes[1].segments)
