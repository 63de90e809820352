"""The picture of a timeline: it has what it needs, it fits, and it stays small whatever happened."""

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from supervise.views.lanes import Scale, bars, clusters, seconds, zone_of
from supervise.views.svg_timeline import draw
from supervise.views.timeline import Failure, Lane, Note, Segment, Timeline

SVG = "{http://www.w3.org/2000/svg}"
BEGAN = 1_796_000_000.0
ERROR = 'OSError: <&> "it\'s" gone'


def crashing(path, times, end, **more):
    """A node that fails and is up again at once, so many times."""
    step = end / times
    segments = [Segment("up", step * n, step * (n + 1), n + 1) for n in range(times)]
    failures = [
        Failure(step * n, n, ERROR, tag="a.tag", directive="Restart", by="app", again=step * n)
        for n in range(1, times)
    ]
    return Lane(path, tuple(segments), tuple(failures), **more)


def quiet(path, end=100.0, **more):
    return Lane(path, (Segment("up", 0.0, end, 1),), **more)


def run(*lanes, end=100.0, whole=True):
    return Timeline(BEGAN, end, whole, lanes)


def many(troubled=()):
    """A thousand nodes."""
    groups = [quiet(f"app/g{g}", parent=True) for g in range(20)]
    lanes = [quiet("app", parent=True)]
    for group in groups:
        names = [f"{group.path}/n{n}" for n in range(49)]
        lanes += [group, *(crashing(name, 4, 100.0) if name in troubled else quiet(name) for name in names)]
    return run(*lanes)


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_file_needs_nothing_from_elsewhere():
    """No script, no font, no link; and both colour schemes, over a card of its own."""
    svg = draw(run(quiet("app", parent=True), crashing("app/a", 5, 100.0)))
    assert not re.search(r"script|@import|@font-face|url\(|href|<image|foreignObject", svg)
    assert svg.count("http") == 1
    assert "@media (prefers-color-scheme: dark)" in svg
    root = ET.fromstring(svg)
    used = {name for element in root.iter() for name in (element.get("class") or "").split()}
    light, dark = svg.partition("@media")[::2]
    assert all(f".{name}{{" in light for name in used)
    assert all(f".{name}{{" in dark for name in used - {"name"} if not re.fullmatch(r"s\d+", name))


@pytest.mark.parametrize("width", [300, 400, 1000, 1400])
@pytest.mark.parametrize("lanes", [5, 1000])
def test_everything_is_within_the_picture(width, lanes):
    """Also with few pixels, and with names that have no room."""
    deep = "/".join(["app", *["supervisor-with-a-name"] * 9])
    ways = [quiet(deep[: match.start()], parent=True) for match in re.finditer("/|$", deep)]
    drawn = many(["app/g7/n3"]) if lanes > 5 else run(*ways, crashing(f"{deep}/{'x' * 80}", 12, 100.0))
    root = ET.fromstring(draw(drawn, width=width, facts=["run 3 of 12"]))
    height = float(root.get("height"))
    assert root.get("width") == str(width)
    for element in root.iter():
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        assert 0 <= x <= width
        assert 0 <= y <= height
        if element.tag == f"{SVG}text":
            size = int(re.search(r"s(\d+)", element.get("class"))[1])
            wide = 0.58 * size * len(element.text)
            left = {None: x, "middle": x - wide / 2, "end": x - wide}[element.get("text-anchor")]
            assert left >= -1
            assert left + wide <= width + 1, element.text
        if element.tag == f"{SVG}rect":
            assert x + float(element.get("width")) <= width + 1.1
            assert float(element.get("width")) > 0


def test_texts_beside_marks_do_not_cross():
    """Of neighbouring failures each text ends before the next mark."""
    failures = tuple(
        Failure(at, 1, "OSError: x", directive="Restart", again=at + 1) for at in (10, 12, 15, 30, 34, 60, 99)
    )
    root = ET.fromstring(draw(run(Lane("app", (Segment("up", 0.0, 100.0, 1),), failures))))
    labels = [each for each in root.iter(f"{SVG}text") if "trouble" in each.get("class")]
    spans = []
    for label in labels:
        x, wide = float(label.get("x")), 0.6 * 11 * len(label.text)
        spans.append((x - wide, x) if label.get("text-anchor") else (x, x + wide))
    marks = [
        float(re.match(r"M(\S+)", each.get("d"))[1]) + 4
        for each in root.iter(f"{SVG}path")
        if each.find(f"{SVG}title") is not None
    ]
    assert len(marks) == 7
    assert all(not left < mark < right for left, right in spans for mark in marks)
    assert "OSError → Restart · 1 s" in [label.text for label in labels]


def test_of_many_nodes_those_in_trouble_come_first():
    """With the ones above them; a line says how many are left out, and how many of those failed."""
    troubled = ["app/g7/n3", "app/g19/n48"]
    shown = texts(draw(many(troubled), most=40))
    assert {"app", "g7", "n3", "g19", "n48"} <= set(shown)
    assert "961 more nodes are left out, none of them failed; --all draws every node" in shown
    shown = texts(draw(many([*troubled, *(f"app/g0/n{n}" for n in range(45))]), most=10))
    assert "991 more nodes are left out, 39 of them failed; --all draws every node" in shown
    assert texts(draw(many(), most=None)).count("n48") == 20
    assert (
        texts(draw(many(), most=1000))[-1]
        == "1 more node is left out, none of them failed; --all draws every node"
    )


def test_who_is_still_down_comes_before_who_failed_more_often():
    """The one thing that a reader must not miss."""
    lost = Lane(
        "app/z",
        (Segment("up", 0.0, 90.0, 1), Segment("backing off", 90.0, 100.0, 1)),
        (Failure(90.0, 1, "E"),),
    )
    shown = texts(
        draw(
            run(quiet("app", parent=True), *(crashing(f"app/n{n}", 50, 100.0) for n in range(50)), lost),
            most=2,
        )
    )
    assert shown.count("z") == 1
    assert "n0" not in shown


@pytest.mark.slow
def test_a_crash_loop_stays_a_small_picture():
    """However many segments and failures there are, a lane has at most so many elements as it has pixels."""
    svg = draw(run(crashing("app", 50_000, 3600.0), end=3600.0), width=1000)
    assert svg.count("<rect") < 1100
    assert svg.count("<path") < 180
    assert len(svg) < 600_000


@given(
    st.lists(st.tuples(st.floats(0, 10), st.sampled_from(["up", "failed", "down", "starting"])), min_size=1),
    st.integers(10, 60),
)
@example([(1.1, "up"), (0.0, "failed")] * 40, 44)  # each change begins where a bar must have a pixel
def test_bars_follow_one_another_without_gaps(changes, width):
    """From the first event to the end; each shows the worst of what lies within it."""
    ends = [0.0]
    for took, _ in changes:
        ends.append(ends[-1] + took)
    assume(ends[-1] > 1e-3)
    lane = Lane("app", tuple(Segment(state, ends[n], ends[n + 1], n) for n, (_, state) in enumerate(changes)))
    scale = Scale(BEGAN, 0.0, ends[-1], 5.0, 5.0 + width, zone_of(BEGAN))
    drawn = list(bars(scale, lane))
    assert drawn[0].x == 5.0
    for one, other in pairwise(drawn):
        assert one.x + one.width == pytest.approx(other.x)
        assert one.width >= 1 - 1e-9
    assert len(drawn) <= width + 1
    assert 5.0 + width - 1e-6 <= drawn[-1].x + drawn[-1].width <= 5.0 + width + 1.1
    failed = any(segment.state == "failed" for segment in lane.segments)
    assert failed == any(bar.state == "failed" for bar in drawn)


def test_close_failures_have_one_mark():
    """Its text counts them, and its tooltip lists the last ones."""
    lane = crashing("app", 1000, 100.0)
    found = list(clusters(Scale(BEGAN, 0.0, 100.0, 0.0, 1000.0, zone_of(BEGAN)), lane))
    assert sum(len(each.failures) for each in found) == 999
    assert next(found[0].texts(lane)) == f"{len(found[0].failures)} × a.tag → Restart · 0 ms"
    assert found[0].title(lane).splitlines()[0] == f"{len(found[0].failures) - 5} failures before"
    assert (
        found[0]
        .title(lane)
        .splitlines()[-1]
        .endswith('OSError: <&> "it\'s" gone [a.tag] → Restart by app; ready again after 0 ms')
    )


def test_a_window_shows_only_its_time():
    """Failures outside of it are neither drawn nor counted."""
    lane = crashing("app", 10, 100.0)
    root = ET.fromstring(draw(run(lane), start=15.0, end=35.0))
    assert len([each for each in root.iter(f"{SVG}path") if each.find(f"{SVG}title") is not None]) == 2
    assert any("2 failures" in text for text in texts(draw(run(lane), start=15.0, end=35.0)))


def test_what_is_missing_is_stated():
    """A run that begins in the middle, one that had not ended, a lane without events, a note."""
    noted = Lane("app/a", (Segment("up", 50.0, 100.0, 3),), notes=(Note(60.0, 3, "has not ended 5 s"),))
    svg = draw(run(Lane("app", parent=True), noted, whole=False))
    facts = " ".join(texts(svg))
    assert "earlier events are missing" in facts
    assert "had not ended at the last event" in facts
    assert "app/a #3 has not ended 5 s" in svg
    ended = Lane("app", (Segment("down", 0.0, 1.0, 1),))
    assert "had not ended" not in " ".join(texts(draw(run(ended, end=1.0))))


@pytest.mark.parametrize("end", [0.0, 1e-6, 0.02, 1.0, 59.0, 3600.0, 1e5, 1e7, 3e9])
def test_any_length_of_time_has_an_axis(end):
    """From a microsecond to a century: some ticks, at increasing places."""
    scale = Scale(BEGAN, 0.0, max(end, 1e-3), 100.0, 900.0, zone_of(BEGAN))
    ticks = scale.ticks()
    assert end < 0.02 or 2 <= len(ticks) <= 10
    assert [x for x, _ in ticks] == sorted({x for x, _ in ticks})
    assert draw(run(quiet("app", end), end=end))


@pytest.mark.parametrize(
    ("time", "text"),
    [(0, "0 ms"), (0.0004, "0.4 ms"), (0.0094, "9.4 ms"), (0.0099, "10 ms"), (0.82, "820 ms"), (0.9996, "1 s"), (1.234, "1.23 s"), (59.4, "59.4 s"), (59.99, "60 s"), (60.2, "1 min 0 s"), (3599.7, "1 h 0 min"), (19000, "5 h 16 min")],
)  # fmt: skip
def test_seconds_in_the_unit_that_people_read(time, text):
    """Three digits are enough."""
    assert seconds(time) == text
