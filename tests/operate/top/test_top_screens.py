"""What `supervise top` draws, without a terminal."""

import re
from pathlib import Path

import pytest

pytest.importorskip("urwid", reason="supervise top needs urwid, which is not installed")

from attrs import evolve

from supervise.operate.top.cells import cells, length, placed, wrapped
from supervise.operate.top.rows import View, duration
from supervise.operate.top.screens import frame
from supervise.operate.top.state import Ask, Link, Page, arrived, settled, with_events
from supervise.operate.top.terminal import PALETTE, Picture

from .made import FAILED, GONE, HOSTILE, NOW, ROWS, event, many, row, state, status, text

AT_80 = """\
shop  not ready  10 nodes  3 up  1 failed  1 condemned  1 restarting…  connected
node          state           since    #  restarts  waiting  last failure
shop          up                 2h    1       1/3
├─ feed       up                 2h    1                  3
├─ store      up                 1m    2       3/3
│  ├─ cache   releasing          1m    1                     ConnectionError: t…
│  ├─ jobs    restart in 29s     1m    4               1234  ConnectionError: t…
│  └─ log     failed             1m    1                     ConnectionError: t…
├─ mailer     starting           3s    1
├─ printer    stopping           1s    1
├─ poller     condemned          4d    1                     ConnectionError: t…
└─ migrate    down               1h    1

1/10          ? help   / filter   ! trouble   o order   e events   Enter details"""
JOBS_AT_120 = (
    "│  ├─ jobs    restart in 29s     1m    4               1234          "
    "ConnectionError: the server does not answer"
)
JOBS_AT_200 = f"{JOBS_AT_120:149}Restart for 'db.gone', by shop/store, 12s ago"


def screen(state, now=NOW):
    return text(frame(settled(state), now))


def test_the_screen_at_80_columns():
    """Every state, restarts of those allowed, the time until a start, messages that wait."""
    assert screen(state(size=(80, 14), tail=False)) == AT_80


def test_restarts_have_the_colour_of_a_failure_when_all_are_spent():
    """The next one would pass the limit."""
    spans = [span for line in frame(state(selected="shop/feed"), NOW) for span in line]
    assert ("busy", "     1/3") in spans
    assert ("bad", "     3/3") in spans


@pytest.mark.parametrize(("width", "line"), [(120, JOBS_AT_120), (200, JOBS_AT_200)])
def test_a_wider_screen_has_more_columns_and_longer_texts(width, line):
    """The rate from 90 columns on; the decision where there is much room."""
    lines = screen(state(size=(width, 14), tail=False)).splitlines()
    assert lines[6] == line
    assert {len(each) for each in lines[:1]} == {width}
    assert ("decision" in lines[1]) is (width == 200)


@pytest.mark.parametrize("rows", [ROWS, many(1000), [], [row(f"shop/{name}") for name in HOSTILE]])
def test_no_screen_is_larger_than_the_terminal(rows):
    """At any size, on every page, with names that control terminals or take two cells a letter."""
    rows = [row("shop", parent=True), *rows] if rows and rows[0]["path"] != "shop" else rows
    rows = [{**each, **GONE} for each in rows]
    asks = [Ask("restart", "shop/\x1b[2J", stage, [{"do": "stop", "path": "shop"}] * 99, "日" * 99)
            for stage in ("plan", "reason", "confirm", "act")]  # fmt: skip
    pages = [
        Page("help"),
        *(Page(kind, "shop", "日\x1b[2J " * 200) for kind in ("details", "trace", "stack")),
    ]
    for size in [(0, 0), (1, 1), (7, 3), (40, 10), (80, 24), (200, 50)]:
        base = with_events(state(rows, size=size), [event(11, path="shop/\x1b[2J", text="日\x07" * 90)], 11)
        others = [evolve(base, ask=ask) for ask in asks] + [evolve(base, page=page) for page in pages]
        others += [evolve(base, typing=True, view=View(match="日")), evolve(base, link=Link(NOW, "x" * 300))]
        others += [evolve(base, note="日" * 200), evolve(base, tail=False)]
        for each in [base, *others]:
            lines = frame(settled(each), NOW)
            assert len(lines) == size[1]
            assert max(map(length, lines), default=0) <= size[0]
            assert text(lines).replace("\n", "").isprintable()
            assert {style for line in lines for style, _ in line} <= {"", *(name for name, *_ in PALETTE)}


def test_the_page_in_the_docs_shows_a_real_screen():
    """But for the events below it, whose times are local."""
    page = (Path(__file__).parents[3] / "docs" / "operating" / "top.md").read_text()
    shown = page.partition("```text\n")[2].partition("```")[0].splitlines()
    more = {"shop/feed": 30, "shop/store/jobs": 5}
    before = [{**each, "handled": each["handled"] and each["handled"] - more[each["path"]]} for each in ROWS]
    base = evolve(state(before, size=(120, 16), selected="shop/feed"), samples=())
    base = arrived(base, status(before, time=NOW - 2), NOW - 2)
    lines = screen(arrived(base, status(), NOW)).splitlines()
    assert (
        shown[:12] == lines[:2] + screen(evolve(arrived(base, status(), NOW), tail=False)).splitlines()[2:12]
    )
    assert shown[-1] == lines[-1]


def test_columns_keep_their_place_beside_wide_and_combining_letters():
    """A cell is measured, not counted in characters."""
    rows = [row("shop", parent=True), *(row(f"shop/{name}") for name in HOSTILE)]
    lines = screen(state(rows, size=(100, 16), tail=False)).splitlines()[1:10]
    assert {cells(line.partition(" up ")[0]) for line in lines[1:]} == {
        cells(lines[0].partition(" state ")[0])
    }
    assert r"├─ \x1b[31mred\x07" in lines[2]
    assert "…" in lines[8]


def test_the_order_of_the_rows():
    """The tree as it is, or lists of paths: the worst first, by restarts, by mailbox, the newest state first."""

    def order(name):
        lines = screen(state(view=View(order=name), size=(80, 20), tail=False)).splitlines()[2:12]
        return [line.split()[0].removeprefix("shop/") for line in lines]

    assert order("trouble first")[:3] == ["store/log", "poller", "store/jobs"]
    assert order("trouble first")[-3:] == ["store", "shop", "feed"]
    assert order("restarts")[:2] == ["store", "shop"]
    assert order("mailbox")[:2] == ["store/jobs", "feed"]
    assert order("since")[:2] == ["printer", "mailer"]


def test_a_filter_keeps_the_supervisors_of_what_it_finds():
    """In the order of the tree; the other orders list only what was found. It ignores case, and what is closed."""
    found = state(view=View(match="JOB", closed=frozenset({"shop/store"})), tail=False, size=(80, 10))
    assert "store" in screen(found).splitlines()[3]
    assert "jobs" in screen(found).splitlines()[4]
    assert screen(found).splitlines()[5] == ""
    flat = screen(evolve(found, view=evolve(found.view, order="restarts"))).splitlines()
    assert flat[2].startswith("shop/store/jobs  ")
    assert flat[3] == ""
    assert "filter 'JOB'" in flat[-1]
    assert screen(evolve(found, view=View(match="nothing"))).splitlines()[2] == "no such node"


def test_only_trouble():
    """What is not up, or has restarts that still count; not a child that is down because it has finished."""
    shown = screen(state(view=View(trouble=True), tail=False, size=(80, 20)))
    assert "mailer" in shown
    assert "store" in shown
    assert "feed" not in shown
    assert "migrate" not in shown
    assert "nothing is in trouble" in screen(state([row("shop", parent=True)], view=View(trouble=True)))


def test_a_closed_supervisor_shows_how_many_nodes_it_hides():
    """Its own row stays."""
    shown = screen(state(view=View(closed=frozenset({"shop/store"})), tail=False))
    assert "├─ store +3 " in shown
    assert "jobs" not in shown


def test_the_head_says_how_the_tree_and_the_connection_are():
    """Ready or not, counts by state, events per second, who may act; and since when there is no connection."""
    assert screen(state(size=(180, 24))).splitlines()[0].endswith("pid 4711  connected")
    assert "read-only  connected" in screen(state(size=(180, 24), read_only="x"))
    down = [row("shop", "starting", parent=True)]
    assert screen(state(down)).startswith("shop  not ready  1 node  1 starting  waits for shop  ")
    assert screen(state([row("shop", parent=True)])).startswith("shop  ready  1 node  1 up  ")
    assert "waits for shop/mailer and 1 more" in screen(state(size=(180, 24)))
    lost = screen(state(link=Link(NOW - 4, "no such file"))).splitlines()
    assert lost[0].endswith("reconnecting, 4s")
    assert lost[-1] == "the last picture, no such file"


def test_the_last_events_are_below_the_table():
    """With their times and texts in one line; failures and decisions have a colour."""
    made = [event(11), event(12, "Failed", text="failed: ConnectionError: x\nmore", exc=FAILED)]
    lines = frame(with_events(state(), made, 12), NOW)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d  shop/feed #2  failed: ConnectionError: x", text(lines).splitlines()[19]
    )
    assert lines[19][-1] == ("bad", "failed: ConnectionError: x")
    assert lines[18][-1] == ("", "is ready again")


def test_the_details_of_a_node():
    """All that the status has of it, why it is so, and its own events."""
    base = with_events(state(size=(100, 40)), [event(11), event(12, path="shop/store/jobs")], 12)
    page = screen(evolve(base, page=Page("details", "shop/store/jobs", "It waits for its next start.")))
    assert "state     restarting, for 1m; it starts in 29s" in page
    assert "mailbox   1234 waiting, 7 handled, 0 per second" in page
    assert "failure   ConnectionError: the server does not answer" in page
    assert "decision  Restart for 'db.gone', by shop/store, 12s ago" in page
    assert "why\nIt waits for its next start." in page
    assert page.count("is ready again") == 1
    many = with_events(base, [event(number) for number in range(13, 40)], 39)
    assert screen(evolve(many, page=Page("details", "shop/feed"))).count("is ready again") == 20
    assert "limit     3 within 5 s; it counts 3 restarts now" in screen(
        evolve(base, page=Page("details", "shop/store"))
    )
    assert "not in the tree any more" in screen(evolve(base, page=Page("details", "shop/gone")))


def test_a_node_that_never_started_has_no_times():
    """So it is before the supervisor before it is up."""
    rows = [
        row("shop", "starting", parent=True),
        row("shop/feed", "down", since=None, ready_at=None, incarnation=0),
    ]
    base = state(rows, selected="shop/feed")
    assert screen(base).splitlines()[3].split() == ["└─", "feed", "down"]
    assert screen(state(rows, view=View(order="since"))).splitlines()[2].startswith("shop  ")
    assert "state     down\n" in screen(evolve(base, page=Page("details", "shop/feed", "")))


def test_a_long_page_shows_where_one_is():
    """A place past its end shows the end."""
    page = Page("stack", "shop/feed", "\n".join(f"line {number}" for number in range(100)), scroll=1000)
    lines = screen(state(page=page)).splitlines()
    assert lines[1] == "shop/feed  stack  80–100 of 100"
    assert lines[-2] == "line 99"


def test_an_act_shows_its_steps_before_it_asks():
    """As many as there is room for."""
    steps = [{"do": "stop", "path": f"shop/{number}"} for number in range(50)]
    shown = screen(state(ask=Ask("restart", "shop/feed", "confirm", steps, "because"))).splitlines()
    assert shown[1:3] == ["restart shop/feed", "  stop   shop/0"]
    assert "  … and 32 more steps" in shown
    assert "reason  because" in shown
    assert shown[-1] == "restart shop/feed, 50 steps?  y / n"


def test_durations_take_four_characters():
    """One unit is enough for a table, and it does not flicker."""
    times = [-5, 0, 99.9, 100, 5999, 6000, 172_799, 172_800, 8e8]
    assert [duration(each) for each in times] == ["0s", "0s", "99s", "1m", "99m", "1h", "47h", "2d", "9259d"]


def test_a_text_is_cut_and_broken_by_cells():
    """Half of a wide letter is never drawn."""
    assert placed("日本語", 4) == "日… "
    assert placed("日本語", 7, ">") == " 日本語"
    assert placed("abc", 0) == ""
    assert list(wrapped("one two three\n    four five", 9)) == ["one two", "three", "    four", "    five"]
    assert list(wrapped("日本語日本語", 5)) == ["日本", "語日", "本語"]


def test_urwid_takes_every_line_as_it_is():
    """A canvas refuses a line that is too wide: the measure is the same."""
    rows = [row("shop", parent=True), *(row(f"shop/{name}", **GONE) for name in HOSTILE)]
    for size in [(40, 10), (80, 24), (200, 50)]:
        lines = frame(state(rows, size=size), NOW)
        canvas = Picture(lambda _, lines=lines: lines, print).render(size)
        assert (canvas.cols(), canvas.rows()) == size


def test_a_status_that_becomes_empty_is_drawn():
    """The tree may end while it is watched."""
    assert "0 nodes" in screen(state([]))
    assert status([])["nodes"] == []
