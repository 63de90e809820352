"""What each key of `supervise top` does, without a terminal."""

import re
from pathlib import Path

import pytest

pytest.importorskip("urwid", reason="supervise top needs urwid, which is not installed")

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from supervise.operate.top.cells import length
from supervise.operate.top.keys import press
from supervise.operate.top.rows import STYLES, above
from supervise.operate.top.screens import KEYS, frame
from supervise.operate.top.state import Command, answered, arrived, lost, refused, settled, with_events

from .made import FAILED, GONE, NOW, ROWS, event, many, row, state, status, text

ROOT = Path(__file__).parents[3]


def pressed(state, *keys):
    """The state after keys, and their commands."""
    commands = []
    for key in keys:
        state, command = press(state, key, NOW)
        commands += [command] if command else []
    return state, commands


def after(state, *keys):
    return pressed(state, *keys)[0]


def foot(state):
    return text(frame(settled(state), NOW)).splitlines()[-1]


def test_the_page_in_the_docs_has_the_table_of_keys():
    """One table, in the code; the page shows the same."""
    lines = re.findall(
        r"^\| (.+?) \| (.+?) \|$", (ROOT / "docs" / "operating" / "top.md").read_text(), re.MULTILINE
    )
    assert lines[1:] == [(" ".join(f"`{key}`" for key in key.shown.split()), key.meaning) for key in KEYS]
    names = [name for key in KEYS for name in key.actions]
    assert len(names) == len(set(names))


def test_the_selected_row_stays_on_the_screen():
    """By one, by a screen, to both ends; never past them."""
    base = state(many(1000), size=(80, 20))
    assert after(base, "down", "j").selected == "shop/group-0/worker-0"
    assert after(base, "down", "down", "up").selected == "shop/group-0"
    assert after(base, "k", "up").selected == "shop"
    end = after(base, "end")
    assert end.selected == "shop/group-19/worker-49"
    assert "worker-49" in text(frame(end, NOW))
    assert after(end, "g").first == 0
    paged = after(base, "page down", "page down")
    assert paged.at == 2 * 12
    assert after(paged, "page up", "page up", "page up").selected == "shop"
    smaller = settled(evolve(end, size=(40, 10)))
    assert "worker-49" in text(frame(smaller, NOW))


def test_the_selected_row_is_the_same_node_in_another_order_and_in_the_next_status():
    """If it leaves, the one in its place is selected."""
    base = after(state(), "down", "down", "down", "down")
    assert base.selected == "shop/store/jobs"
    assert after(base, "o").selected == "shop/store/jobs"
    without = [each for each in ROWS if each["path"] != "shop/store/jobs"]
    assert arrived(base, status(without, time=NOW + 1), NOW + 1).selected == "shop/store/log"
    assert arrived(base, status([], time=NOW + 1), NOW + 1).shown == ()
    assert pressed(arrived(base, status([]), NOW), "down", "enter", "t", "s", " ", "left")[0].page is not None


def test_closing_and_opening():
    """Space both; left closes, or goes to the supervisor; right opens, or goes to the first child."""
    base = after(state(), "down", "down")
    assert base.selected == "shop/store"
    closed = after(base, " ")
    assert len(closed.shown) == len(ROWS) - 3
    assert len(after(closed, "right").shown) == len(ROWS)
    assert after(base, "right").selected == "shop/store/cache"
    assert after(base, "right", "left").selected == "shop/store"
    assert after(closed, "left").selected == "shop"
    assert after(base, "!", " ").note.startswith("only the whole tree")


def test_the_filter_is_typed():
    """Every key is a letter then; Enter keeps it, Esc ends it."""
    typed = after(state(), "/", "j", "q", "backspace", "o", "b")
    assert (typed.typing, typed.view.match) == (True, "job")
    assert foot(typed).startswith("/job")
    kept = after(typed, "enter")
    assert (kept.typing, kept.view.match) == (False, "job")
    assert after(typed, "esc").view.match == after(kept, "esc").view.match == ""
    assert after(typed, "ctrl u", "up", "meta x").view.match == ""


def test_orders_trouble_and_the_tail():
    """`o` comes round; the tail asks at once when it is shown again."""
    assert [after(state(), *"o" * count).view.order for count in (1, 2, 3, 4, 5)] == [
        "trouble first", "restarts", "mailbox", "since", "tree",
    ]  # fmt: skip
    assert after(state(), "!").view.trouble
    assert not after(state(), "!", "!").view.trouble
    hidden, commands = pressed(state(), "e")
    assert (hidden.tail, commands) == (False, [])
    assert pressed(hidden, "e")[1] == [Command("poll")]


def test_pages_of_a_node():
    """Each asks for its text; an answer that nothing waits for is dropped; the keys work from page to page."""
    opened, commands = pressed(state(), "down", "enter")
    assert commands == [Command("why", "shop/feed")]
    assert "…" in text(frame(opened, NOW))
    assert "It is up." in text(frame(answered(opened, commands[0], "It is up."), NOW))
    stack, commands = pressed(opened, "s")
    assert commands == [Command("stack", "shop/feed")]
    assert answered(stack, Command("why", "shop/feed"), "late") is stack
    assert "404" in text(frame(refused(stack, commands[0], "404"), NOW))
    assert after(stack, "esc").page is None
    assert pressed(state(), "q")[1] == pressed(stack, "q")[1] == [Command("quit")]


def test_the_traceback_is_that_of_a_kept_event():
    """Else the events of the program are searched."""
    base = after(state(), "down")
    assert pressed(base, "t")[1] == [Command("trace", "shop/feed")]
    kept = with_events(base, [event(11, "Failed", exc=FAILED)], 11)
    shown, commands = pressed(kept, "t")
    assert commands == []
    assert 'File "feed.py", line 3' in text(frame(shown, NOW))


def test_a_page_scrolls_and_stops_at_its_ends():
    """Also after a size that shows more of it."""
    base = state(size=(40, 10))
    end = after(base, "?", "end")
    assert end.page.scroll == len(KEYS) - 7
    assert after(end, "down", "down").page.scroll == end.page.scroll
    assert after(end, "up").page.scroll == end.page.scroll - 1
    assert after(end, "g", "up").page.scroll == 0
    assert after(evolve(end, size=(40, 14)), "up").page.scroll == len(KEYS) - 11 - 1
    assert after(evolve(end, size=(80, 50)), "up").page.scroll == 0


STEPS = [{"do": "stop", "path": "shop/feed"}, {"do": "start", "path": "shop/feed"}]


@pytest.mark.parametrize(("key", "verb"), [("r", "restart"), ("x", "stop"), ("u", "start")])
def test_an_act_shows_its_steps_asks_for_a_reason_and_then_for_a_yes(key, verb):
    """Nothing is done before the yes; a reason is needed."""
    asked, commands = pressed(state(), "down", key)
    plan = Command("plan", "shop/feed", verb)
    assert commands == [plan]
    asked = answered(asked, plan, STEPS)
    assert "  start  shop/feed" in text(frame(asked, NOW))
    assert foot(asked).startswith("reason: ")
    assert pressed(asked, "enter")[0].ask.stage == "reason"
    named = after(asked, "d", "q", " ", "y", "enter")
    assert foot(named) == f"{verb} shop/feed, 2 steps?  y / n"
    assert pressed(named, "z", "enter", "q")[1] == []
    for no in ("n", "esc"):
        left, commands = pressed(named, no)
        assert (left.ask, commands) == (None, [])
        assert left.note == f"shop/feed: {verb}: not done"
    doing, commands = pressed(named, "y")
    act = Command("act", "shop/feed", verb, "dq y")
    assert commands == [act]
    assert foot(doing).startswith(f"{verb} …")
    assert answered(doing, act, STEPS).note == f"shop/feed: {verb} is done"
    assert refused(doing, act, "it is gone").note == "shop/feed: not done: it is gone"
    assert refused(doing, act, "it is gone").ask is None
    away = after(doing, "esc")
    assert away.note == f"shop/feed: {verb}: it goes on"
    assert answered(away, act, STEPS).note == f"shop/feed: {verb} is done"


def test_a_plan_that_is_refused_ends_the_act():
    """The line has the reason."""
    asked, (plan,) = pressed(state(), "r")
    ended = refused(asked, plan, "'shop' is not running")
    assert (ended.ask, ended.note) == (None, "shop: not done: 'shop' is not running")
    assert answered(after(asked, "esc"), plan, STEPS).ask is None


@pytest.mark.parametrize("key", "rxu")
def test_no_act_where_none_is_possible(key):
    """One line has the reason: a choice, the program's own, or the connection."""
    base = state(read_only="read-only: started with --read-only")
    assert foot(after(base, key)) == "read-only: started with --read-only"
    closed = arrived(state(), status(acts=False), NOW)
    assert "SUPERVISE_TOKEN" in foot(after(closed, key))
    assert "no connection" in foot(after(lost(state(), "gone", NOW), key))
    for each in (base, closed, lost(state(), "gone", NOW)):
        assert pressed(each, key)[1] == []


def test_what_is_pasted_is_a_text_only():
    """A pasted `x`, a line and a `y` must not stop a node."""
    paste = ["begin paste", "x", "enter", "q", "enter", "y", "end paste"]
    assert pressed(state(), *paste)[1] == []
    asked = answered(after(state(), "x"), Command("plan", "shop", "stop"), STEPS)
    pasted, commands = pressed(asked, *paste)
    assert (pasted.ask.stage, pasted.ask.reason, commands) == ("reason", "xqy", [])
    assert after(state(), "/", *paste, "enter").view.match == "xqy"


NAMES = st.sampled_from(["shop", "shop/a", "shop/b", "shop/b/c", "shop/b/d", "shop/日本"])
KEY = st.sampled_from(
    [*(name for key in KEYS for name in key.actions), "a", "y", "n", "backspace", "日", "f5"]
)


@st.composite
def statuses(draw):
    """Any part of a tree, with its root, in any states and with the fields that may be None."""
    paths = sorted(
        {"shop", *draw(st.sets(NAMES))} - (set() if draw(st.booleans()) else {"shop/b/c", "shop/b/d"})
    )
    there = [path for path in paths if not above(path) or above(path) in paths]
    rows = [
        row(
            path,
            draw(st.sampled_from(list(STYLES))),
            parent=path in ("shop", "shop/b"),
            restarts=draw(st.integers(0, 4)),
            mailbox=draw(st.none() | st.integers(0, 10**9)),
            since=draw(st.none() | st.floats(NOW - 1e9, NOW)),
            due=draw(st.none() | st.floats(NOW, NOW + 1e6)),
            **draw(st.sampled_from([GONE, {}])),
        )
        for path in there
    ]
    return status(
        rows if draw(st.integers(0, 20)) else [], seq=draw(st.integers(0, 99)), acts=draw(st.booleans())
    )


@given(
    st.lists(KEY | statuses() | st.integers(1, 99) | st.just(None), max_size=40),
    st.tuples(st.integers(1, 150), st.integers(1, 30)),
)
def test_no_keys_and_answers_break_the_screen(steps, size):
    """In any order: keys, statuses, events up to a number, and a connection that is lost; every question may be answered or refused."""
    base = state(size=size)
    for step in steps:
        if isinstance(step, str):
            base, command = press(base, step, NOW)
            if command is not None and command.do not in ("quit", "poll"):
                answer = STEPS if command.do in ("plan", "act") else "text\n" * 40
                base = (
                    refused(base, command, "no")
                    if len(base.events) % 3 == 2
                    else answered(base, command, answer)
                )
        elif isinstance(step, int):
            base = with_events(base, [event(step, "Failed", exc=FAILED)], max(step, base.seen))
        else:
            base = lost(base, "gone", NOW) if step is None else arrived(base, step, NOW)
        lines = frame(settled(base), NOW)
        assert len(lines) == size[1]
        assert max(map(length, lines)) <= size[0]
        assert base.page is None or base.ask is None or base.ask.path
        shown = [entry.row["path"] for entry in base.shown]
        assert settled(base).selected in shown or not shown


def test_rates_are_of_the_last_seconds():
    """Of events by their numbers, of messages by their counts; none before the second status, or of a new program."""
    base = state()
    assert base.per_second is None
    rows = [{**each, "handled": each["handled"] and each["handled"] + 30} for each in ROWS]
    later = arrived(base, status(rows, time=NOW + 2, seq=30), NOW + 2)
    assert later.per_second == 10
    assert arrived(later, status(rows, time=NOW + 3, seq=33), NOW + 3).per_second == pytest.approx(23 / 3)
    assert arrived(later, status(rows, time=NOW + 4, seq=33), NOW + 4).per_second == 1.5
    assert later.picture.rates == {"shop/feed": 15, "shop/store/jobs": 15}
    for second in range(3, 10):
        later = arrived(later, status(rows, time=NOW + second, seq=30), NOW + second)
    assert later.per_second == 0
    assert arrived(later, status(time=NOW + 20, seq=3), NOW + 20).per_second is None


def test_a_lost_connection_keeps_the_picture_and_says_what_was_missed():
    """How long it was lost, and how many events there were; or that the program was started again."""
    seen = with_events(state(), [event(9)], 10)
    away = lost(lost(seen, "no such file", NOW), "connection refused", NOW + 3)
    assert (away.link.since, away.link.why) == (NOW, "connection refused")
    assert away.picture is not None
    back = arrived(away, status(seq=52, time=NOW + 4), NOW + 4)
    assert back.link.since is None
    assert back.note == "connected again after 4s: 42 events meanwhile"
    assert back.events[-1]["text"] == back.note
    again = arrived(away, status(seq=2, pid=99, time=NOW + 4), NOW + 4)
    assert again.note == "connected again after 4s: the tree has been started again, pid 99"
    assert again.traces == {}
    assert [each["seq"] for each in with_events(again, [event(1), event(2)], 2).events[-2:]] == [1, 2]
    unseen = arrived(state(), status(seq=2, pid=99), NOW)
    assert unseen.note == "the tree has been started again, pid 99"


def test_events_that_were_passed_over_are_counted():
    """At most so many are fetched; a line in the tail counts the others."""
    some = with_events(state(), [event(11)], 11)
    assert [each["seq"] for each in some.events] == [11]
    more = with_events(some, [event(11), event(30), event(31)], 31)
    assert [each["text"] for each in more.events[1:]] == [
        "18 more events",
        "is ready again",
        "is ready again",
    ]
    assert (more.seen, with_events(more, [], 31).events) == (31, more.events)
    assert with_events(more, [], 40).events[-1]["text"] == "9 more events"
    one = with_events(some, [event(13)], 13)
    assert one.events[1]["text"] == "1 more event"
    failed = [event(number, "Failed", path=f"shop/{number}", exc=FAILED) for number in range(12, 300)]
    assert list(with_events(some, failed, 299).traces) == [f"shop/{number}" for number in range(100, 300)]
    full = with_events(some, [event(number) for number in range(12, 2000)], 1999)
    assert len(full.events) == 300


def test_the_clock_of_the_tree_counts():
    """A tree on another machine may be an hour ahead."""
    base = evolve(state(), size=(80, 16))
    ahead = arrived(base, status(time=NOW + 3600), NOW)
    rows = [row("shop", parent=True, since=NOW + 3590)]
    assert " 10s " in text(frame(arrived(ahead, status(rows, time=NOW + 3600), NOW), NOW))
