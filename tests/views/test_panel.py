"""The picture that a terminal shows: pure functions over a `Status`."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from supervise import Status
from supervise.views.panel import Rates, fitting, panel


def leaf(path, state="up", **more):
    return Status(path=path, kind="child", state=state, incarnation=1, **more)


def parent(path, *children, **more):
    return Status(path=path, kind="supervisor", state="up", incarnation=1, children=children, **more)


def drawn(status, *, rates=None, events=(), width=100, height=30, now=0.0):
    lines = panel(status, now, rates or {}, events, width=width, height=height)
    return ["".join(text for text, _ in line).rstrip() for line in lines]


TREE = parent(
    "app",
    leaf("app/feed", state="restarting", due=2.5, last_failure=OSError("gone")),
    parent("app/llm", leaf("app/llm/context", mailbox=3, handled=9), restarts=2),
    leaf("app/last", state="condemned", last_failure=ValueError()),
)

SHOWN = """\
node           state         #  restarts  waiting    per s  last failure
app            up            1
├─ feed        restarting    1                              starts in 1.5 s · OSError: gone
├─ llm         up            1         2
│  └─ context  up            1                  3      812
└─ last        condemned     1                              ValueError
────────────────────────────────────────────────────────────────────────────────────────────────────
    1.0  something happened
    2.0  and more"""


def test_each_node_has_a_line_and_the_last_events_stand_beneath():
    """R33: A line has state, incarnation, restarts that count, waiting messages, the rate, the end of a backoff, and the last failure."""
    events = ["    1.0  something happened", "    2.0  and more"]
    assert drawn(TREE, rates={"app/llm/context": 812.3}, events=events, now=1.0) == SHOWN.split("\n")


def test_in_a_narrow_terminal_columns_are_left_out_from_the_right():
    """Names are cut before a column is left out."""
    assert [drawn(TREE, width=width)[0].split() for width in (60, 40, 20)] == [
        ["node", "state", "#", "restarts", "waiting", "per", "s"],
        ["node", "state", "#", "restarts"],
        ["node"],
    ]
    long = parent("app", leaf("app/" + "a" * 50))
    assert "a" * 10 + "…" in drawn(long, width=40)[2]


def test_the_rate_has_two_digits_at_least():
    """Small rates are not rounded to nothing."""
    shown = {
        rate: drawn(leaf("a", mailbox=0), rates={"a": rate})[1].split()[-1]
        for rate in (0.0, 0.51, 9.87, 10.2)
    }
    assert shown == {0.0: "0", 0.51: "0.5", 9.87: "9.9", 10.2: "10"}


def wide(count):
    groups = [
        parent(f"app/g{group}", *[leaf(f"app/g{group}/{number}") for number in range(count)])
        for group in range(3)
    ]
    return parent("app", *groups)


def test_without_room_for_all_nodes_those_in_trouble_come_first():
    """Then come the upper nodes, and the nodes that are left out are counted."""
    bad = leaf("app/g9/bad", state="failed")
    tree = parent("app", *wide(20).children, parent("app/g9", leaf("app/g9/1"), bad))
    lines = [re.split(r" +(?:up|failed|state) ", line)[0] for line in drawn(tree, height=14)]
    assert lines == [
        "node",
        "app",
        "├─ g0",
        "│  └─ 0",
        "├─ g1",
        "├─ g2",
        "└─ g9",
        "   └─ bad",
        "… and 60 more",
    ]
    troubled = parent("app", *[leaf(f"app/{number}", state="down") for number in range(40)])
    assert drawn(troubled, height=14)[-1] == "… and 34 more, 34 of them in trouble"


@settings(deadline=None)
@given(st.data())
def test_the_nodes_that_fit_form_a_tree_within_the_room(data):
    """There are as many nodes as fit, and none without those above it."""
    paths, nodes = ["app"], []
    for number in range(data.draw(st.integers(0, 12))):
        paths.append(f"{data.draw(st.sampled_from(paths))}/{number}")
    for path in reversed(paths):
        below = [node for node in nodes if node.path.rpartition("/")[0] == path]
        state = data.draw(st.sampled_from(["up", "down", "failed"]))
        nodes.append(Status(path=path, kind="supervisor", state=state, incarnation=1, children=tuple(below)))
    room = data.draw(st.integers(1, 14))
    shown = fitting(nodes[-1], room)
    assert len(shown) <= room
    assert len(shown) == len(paths) or len(shown) == room or all("/" in path for path in set(paths) - shown)
    assert all(path.rpartition("/")[0] in {*shown, ""} for path in shown)


@settings(deadline=None)
@given(
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    name=st.text(min_size=1).filter(lambda name: "/" not in name),
    text=st.text(),
    count=st.integers(0, 30),
)
def test_the_picture_stays_on_the_terminal(width, height, name, text, count):
    """Whatever the names and failures: no line is too wide, no character moves the cursor, and there is an end."""
    tree = parent("app", *wide(count).children, leaf(f"app/{name}", last_failure=ValueError(text), mailbox=1))
    lines = drawn(tree, events=["x" * 300] * 9, width=width, height=height)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)
    assert len(lines) < max(height, 10)


def test_a_rate_counts_the_messages_handled_between_two_pictures():
    """It is taken over the last two seconds; a new mailbox began at zero, and one that began anew never gives a negative rate."""
    rates = Rates()

    def take(now, **handled):
        return rates.take(
            parent("app", *[leaf(f"app/{name}", handled=n) for name, n in handled.items()]), now
        )

    assert take(0.0, a=10) == {"app/a": 0.0}
    assert take(0.5, a=20) == {"app/a": 20.0}
    assert take(2.0, a=20, b=4) == {"app/a": 5.0, "app/b": 2.0}
    assert take(2.5, a=20, b=4) == {"app/a": 0.0, "app/b": 2.0}
    assert take(4.0, a=2) == {"app/a": 0.0}


@pytest.mark.parametrize("handled", [None, 0])
def test_a_node_without_a_mailbox_has_no_rate(handled):
    """Its rate is empty, not zero."""
    rates = Rates().take(leaf("a", handled=handled), 0.0)
    assert rates == ({} if handled is None else {"a": 0.0})
