"""The screen as lines of styled text: one pure function of the state, the time and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from attrs import frozen

from ..._core._brief import printable
from .cells import Line, cells, fitted, length, placed, wrapped
from .rows import STYLES, Row, decision, duration, failure, per_second, since, table
from .state import Ask, Event, Page, State, rooms

_BAD: Final = ("Failed", "StartFailed", "StopError", "SinkFailed", "Overdue", "StartOverdue")
_BUSY: Final = ("Decided", "BackingOff", "Stopping")


@frozen
class Key:
    """A line of the help: keys as a reader sees them, their meaning, and the names of urwid with the action of each."""

    shown: str
    meaning: str
    actions: dict[str, str]


KEYS: Final = (
    Key("↑ ↓ k j", "select a node; on a page: scroll", {"up": "up", "k": "up", "down": "down", "j": "down"}),
    Key("PgUp PgDn", "a screen up or down", {"page up": "page up", "page down": "page down"}),
    Key(
        "Home End g G", "the first or the last line", {"home": "home", "g": "home", "end": "end", "G": "end"}
    ),
    Key("Space ← →", "close or open a supervisor", {" ": "toggle", "left": "close", "right": "open"}),
    Key("/", "show only the paths that contain a text", {"/": "filter"}),
    Key("!", "show only what is in trouble", {"!": "trouble"}),
    Key("o", "order: tree, trouble first, restarts, mailbox, since", {"o": "order"}),
    Key("e", "show the last events or hide them", {"e": "tail"}),
    Key("Enter", "details of the node, and why it is in its state", {"enter": "details"}),
    Key("t", "traceback of its last failure", {"t": "trace"}),
    Key("s", "stack of its tasks", {"s": "stack"}),
    Key("r", "restart it", {"r": "restart"}),
    Key("x", "stop it", {"x": "stop"}),
    Key("u", "start it", {"u": "start"}),
    Key("Esc", "back; without a page: end the filter", {"esc": "back"}),
    Key("?", "this help", {"?": "help"}),
    Key("q", "quit", {"q": "quit"}),
)
"""All keys, in the order of the help. `docs/operating/top.md` has the same table."""


def frame(state: State, now: float) -> list[Line]:
    """The whole screen: as many lines as the terminal has, none of them wider.

    Args:
        state: with a selected row on the screen, as `settled` makes it.
        now: our time, in seconds since 1970.
    """
    width, height = state.size
    theirs = now + state.ahead
    lines = [_head(state, now)]
    if state.ask is not None:
        lines += _asked(state.ask, width, height - 2)
    elif state.page is not None:
        lines += _paged(state, state.page, theirs)
    else:
        lines += _tree(state, theirs)
    lines = lines[: max(0, height - 1)]
    lines += [[] for _ in range(height - 1 - len(lines))]
    return [fitted(line, width) for line in [*lines, _foot(state)][:height]]


def _head(state: State, now: float) -> Line:
    """What the tree is and how it is; on the right the connection, and what there is room for."""
    status, width = state.picture.status, state.size[0]
    waits = status["waits_for"]
    ready = ("bad", "not ready") if waits or not status["nodes"] else ("well", "ready")
    left: Line = [
        ("title", printable(status["name"])),
        ("", "  "),
        ready,
        ("", f"  {_some(len(status['nodes']), 'node')}"),
    ]
    for name, count in state.picture.counts():
        left += [("", "  "), (STYLES.get(name, ""), f"{count:,} {name}")]
    if waits:
        more = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
        left.append(("faint", f"  waits for {printable(waits[0]['path'])}{more}"))
    if state.link.since is not None:
        away = duration(now - state.link.since)
        right = [("bad", f"reconnecting, {away}")]
    else:
        right = [("well", "connected")]
        if state.read_only or not status["acts"]:
            right = [("", "read-only  "), *right]
        rate = per_second(state.per_second)
        for text in (f"{rate} events/s" if rate else "", f"pid {status['pid']}"):
            if text and length(left) + length(right) + cells(text) + 4 <= width:
                right = [("faint", f"{text}  "), *right]
    room = width - length(right)
    left = fitted(left, room - 2)
    return [*left, ("", " " * (room - length(left))), *right]


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _tree(state: State, now: float) -> Iterator[Line]:
    room, tail = rooms(state)
    width, shown = state.size[0], state.shown
    yield from table(
        state.picture, shown, first=state.first, room=room, selected=state.selected, now=now, width=width
    )
    empty = room - max(0, min(room, len(shown) - state.first))
    if not shown and empty:
        yield [
            (
                "faint",
                "nothing is in trouble" if state.view.trouble and not state.view.match else "no such node",
            )
        ]
        empty -= 1
    yield from ([] for _ in range(empty))
    if tail:
        yield [("faint", "─" * width)]
        yield from (_event(event, whole=True) for event in state.events[-tail:])


def _event(event: Event, *, whole: bool) -> Line:
    """A line of the tail; without the path on the page of the node."""
    time = datetime.fromtimestamp(event["time"]).astimezone().strftime("%H:%M:%S")
    if not event["kind"]:
        return [("faint", f"{time}  … {event['text']}")]
    style = "bad" if event["kind"] in _BAD else "busy" if event["kind"] in _BUSY else ""
    name = printable(event["path"]) + " " if whole else ""
    text = printable(event["text"].partition("\n")[0])
    return [("faint", f"{time}  "), ("", f"{name}#{event['incarnation']}  "), (style, text)]


def _foot(state: State) -> Line:
    """The line that is typed, what was just done, or what is shown and which keys help."""
    width = state.size[0]
    if state.typing:
        return [
            ("title", "/"),
            ("", state.view.match),
            ("selected", " "),
            ("faint", "  Enter: keep it   Esc: end it"),
        ]
    if state.ask is not None:
        return _prompt(state.ask)
    if state.note:
        return [("note", printable(state.note))]
    if state.link.since is not None:
        return [("faint", f"the last picture, {printable(state.link.why)}")]
    if state.page is not None:
        return [("faint", "Esc back   t traceback   s stack   r restart   x stop   u start   q quit")]
    view = state.view
    what = f"{min(state.at + 1, len(state.shown)):,}/{len(state.shown):,}"
    what += f"   filter '{view.match}'" if view.match else ""
    what += "   only trouble" if view.trouble else ""
    what += f"   order: {view.order}" if view.order != "tree" else ""
    keys = "? help   / filter   ! trouble   o order   e events   Enter details   q quit"
    room = width - cells(what) - 3
    while cells(keys) > room and "   " in keys:
        keys = keys.rpartition("   ")[0]
    return [("", what), ("", " " * max(3, width - cells(what) - cells(keys))), ("faint", keys)]


# Pages.


def _paged(state: State, page: Page, now: float) -> list[Line]:
    """The lines of a page from its place on."""
    room = page_room(state)
    title, lines = page_lines(state, page, now)
    first = min(page.scroll, max(0, len(lines) - room))
    where = f"  {first + 1}–{min(first + room, len(lines))} of {len(lines)}" if len(lines) > room else ""
    return [[*title, ("faint", where)], *lines[first : first + room]]


def page_room(state: State) -> int:
    """The lines of a page that are on the screen."""
    return max(1, state.size[1] - 3)


def page_lines(state: State, page: Page, now: float) -> tuple[Line, list[Line]]:
    """The title and all lines of a page."""
    if page.kind == "help":
        wide = max(cells(key.shown) for key in KEYS)
        return [("title", "keys")], [
            [("title", placed(key.shown, wide)), ("", f"  {key.meaning}")] for key in KEYS
        ]
    row = state.picture.rows.get(page.path)
    title: Line = [("title", printable(page.path))]
    width = state.size[0]
    if page.kind == "details":
        lines = [] if row is None else list(_details(state, row, now, width))
        if row is None:
            lines = [[("bad", "This node is not in the tree any more.")]]
        lines += _section("why", page.text, width) if row is not None else []
        own = [event for event in state.events if event["path"] == page.path]
        lines += (
            [[], [("title", "events")], *(_event(event, whole=False) for event in own[-20:])] if own else []
        )
        return title, lines
    names = {"trace": "traceback of the last failure", "stack": "stack"}
    text = "…" if page.text is None else page.text
    return [*title, ("faint", f"  {names[page.kind]}")], [[("", line)] for line in wrapped(text, width)]


def _section(name: str, text: str | None, width: int) -> list[Line]:
    lines = wrapped("…" if text is None else text, width)
    return [[], [("title", name)], *([("", line)] for line in lines)]


def _details(state: State, row: Row, now: float, width: int) -> Iterator[Line]:
    state_now = ", for ".join(filter(None, [row["state"], since(row, now)]))
    if row["due"] is not None:
        state_now += f"; it starts in {duration(row['due'] - now)}"
    facts = [("state", state_now)]
    if row["ready_at"] is not None:
        facts.append(("ready", f"{duration(now - row['ready_at'])} ago, incarnation {row['incarnation']}"))
    facts.append(("kind", ", ".join(filter(None, [row["kind"], row["restart"], row["strategy"] or ""]))))
    if row["limit"] is not None:
        facts.append(("limit", f"{row['limit']}; it counts {_some(row['restarts'], 'restart')} now"))
    facts.append(
        ("in all", f"{_some(row['failures_total'], 'failure')}, {_some(row['restarts_total'], 'restart')}")
    )
    if row["mailbox"] is not None:
        rate = per_second(state.picture.rates.get(row["path"]))
        facts.append(
            (
                "mailbox",
                f"{row['mailbox']} waiting, {row['handled'] or 0:,} handled, {rate or '0'} per second",
            )
        )
    if row["front"] is not None:
        facts.append(("front", row["front"]))
    facts += [("failure", failure(row))] * bool(row["failure"])
    facts += [("decision", decision(row, now))] * bool(row["decision"])
    for name, text in facts:
        style = STYLES.get(row["state"], "") if name == "state" else ""
        for number, line in enumerate(wrapped(text, max(10, width - 10))):
            yield [("faint", placed("" if number else name, 10)), (style, line)]


# An act.


def _asked(ask: Ask, width: int, room: int) -> Iterator[Line]:
    """What the act would do, and its reason."""
    yield [("title", f"{ask.verb} {printable(ask.path)}")]
    if ask.stage == "plan":
        yield [("faint", "…")]
        return
    room = max(1, room - 3)
    steps = ask.steps if len(ask.steps) <= room else ask.steps[: room - 1]
    if not steps:
        yield [("faint", "does nothing")]
    for step in steps:
        style = "busy" if step["do"] == "stop" else "well"
        yield [("", "  "), (style, placed(step["do"], 7)), ("", printable(step["path"]))]
    if len(steps) < len(ask.steps):
        yield [("faint", f"  … and {len(ask.steps) - len(steps)} more steps")]
    if ask.stage != "reason":
        yield []
        yield [("faint", "reason  "), ("", placed(printable(ask.reason), max(1, width - 8)))]


def _prompt(ask: Ask) -> Line:
    if ask.stage == "plan":
        return [("faint", "asking what this would do   Esc: back")]
    if ask.stage == "reason":
        return [
            ("title", "reason: "),
            ("", printable(ask.reason)),
            ("selected", " "),
            ("faint", "  Enter: go on   Esc: back"),
        ]
    if ask.stage == "confirm":
        return [
            ("title", f"{ask.verb} {printable(ask.path)}, {_some(len(ask.steps), 'step')}?  "),
            ("", "y / n"),
        ]
    return [("faint", f"{ask.verb} …   Esc: back to the tree, the act goes on")]
