"""What each key does: a state and a key give the next state, and perhaps a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import evolve

from .rows import ORDERS, View, above
from .screens import KEYS, page_lines, page_room
from .state import Ask, Command, Event, Page, State, Verb, rooms, settled

_ACTIONS: Final = {name: action for key in KEYS for name, action in key.actions.items()}

Next = tuple[State, Command | None]


def press(state: State, key: str, now: float) -> Next:
    """The next state, and a command for the program.

    Args:
        state: the state so far.
        key: a key by its name in urwid; one that has no meaning here changes nothing but the note.
        now: our time, in seconds since 1970.
    """
    if key in ("begin paste", "end paste"):
        return evolve(state, pasting=key == "begin paste"), None
    if state.pasting and not (_is_typed(state) and len(key) == 1):
        return state, None  # What is pasted is a text only: it answers no question, and acts on nothing.
    return _pressed(evolve(state, note=""), key, now)


def _pressed(state: State, key: str, now: float) -> Next:
    if state.typing:
        return settled(_filtering(state, key)), None
    if state.ask is not None:
        return _asking(state, state.ask, key)
    action = _ACTIONS.get(key, "")
    if action in _ANYWHERE:
        return _ANYWHERE[action](state)
    if state.page is not None:
        return _on_page(state, state.page, action, now), None
    state, command = _on_table(state, action)
    return settled(state), command


def _is_typed(state: State) -> bool:
    return state.typing or (state.ask is not None and state.ask.stage == "reason")


def _typed(text: str, key: str) -> str:
    """A line of text after a key."""
    if key == "backspace":
        return text[:-1]
    if key == "ctrl u":
        return ""
    return text + key if len(key) == 1 and key.isprintable() else text


def _filtering(state: State, key: str) -> State:
    if key == "enter":
        return evolve(state, typing=False)
    if key == "esc":
        return evolve(state, typing=False, view=evolve(state.view, match=""))
    return evolve(state, view=evolve(state.view, match=_typed(state.view.match, key)))


def _on_table(state: State, action: str) -> Next:
    if action == "tail":
        return evolve(state, tail=not state.tail), None if state.tail else Command("poll")
    return _chosen(state, action), None


def _chosen(state: State, action: str) -> State:
    view = state.view
    match action:
        case "filter":
            return evolve(state, typing=True)
        case "trouble":
            return evolve(state, view=evolve(view, trouble=not view.trouble))
        case "order":
            return evolve(
                state, view=evolve(view, order=ORDERS[(ORDERS.index(view.order) + 1) % len(ORDERS)])
            )
        case "back":
            return evolve(state, view=evolve(view, match="", trouble=False))
        case "toggle" | "close" | "open":
            return _fold(state, action)
        case _:
            return _moved(state, action)


def _moved(state: State, action: str) -> State:
    shown, room = state.shown, rooms(state)[0]
    steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -len(shown), "end": len(shown)}
    if not shown or action not in steps:
        return state
    at = min(max(0, state.at + steps[action]), len(shown) - 1)
    return evolve(state, selected=shown[at].row["path"])


def _fold(state: State, action: str) -> State:
    """Close or open a supervisor; left at a node that cannot be closed goes to its supervisor, right into an open one."""
    path, view = state.selected, state.view
    children = state.picture.below.get(path, [])
    if (view.order, view.match, view.trouble) != ("tree", "", False):
        return evolve(state, note="only the whole tree, in its order, can be closed and opened")
    closed = path in view.closed
    if children and (action == "toggle" or closed == (action == "open")):
        return evolve(state, view=_with_closed(view, path, not closed))
    if action == "close" and above(path):
        return evolve(state, selected=above(path))
    if action == "open" and children:
        return evolve(state, selected=children[0]["path"])
    return state


def _with_closed(view: View, path: str, closed: bool) -> View:
    return evolve(view, closed=view.closed | {path} if closed else view.closed - {path})


def _open(state: State, kind: str) -> Next:
    """A page on the selected node; from a page on another kind of page, on the same node."""
    path = state.selected if state.page is None or not state.page.path else state.page.path
    if not path:
        return state, None
    if kind == "trace":
        kept = state.traces.get(path)
        text = None if kept is None else traceback(kept)
        return evolve(state, page=Page("trace", path, text)), None if text else Command("trace", path)
    if kind == "stack":
        return evolve(state, page=Page("stack", path)), Command("stack", path)
    return evolve(state, page=Page("details", path)), Command("why", path)


def traceback(event: Event) -> str | None:
    """The traceback in a `Failed` event."""
    exc = event.get("exc")
    return None if exc is None else exc.get("traceback")


def _on_page(state: State, page: Page, action: str, now: float) -> State:
    if action == "back":
        return evolve(state, page=None)
    lines, room = len(page_lines(state, page, now)[1]), page_room(state)
    last = max(0, lines - room)
    steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -lines, "end": lines}
    scroll = min(page.scroll, last) + steps.get(action, 0)
    return evolve(state, page=evolve(page, scroll=min(max(0, scroll), last)))


def _act(state: State, verb: Verb) -> Next:
    """Ask what the act would do, unless none is possible."""
    path = state.selected if state.page is None or not state.page.path else state.page.path
    if state.read_only:
        return evolve(state, note=state.read_only), None
    if state.link.since is not None:
        return evolve(state, note=f"{verb}: there is no connection to the tree"), None
    if not state.picture.status["acts"]:
        why = "read-only: the program allows acts only with its token (SUPERVISE_TOKEN or --token-file)"
        return evolve(state, note=why), None
    return evolve(state, ask=Ask(verb, path)), Command("plan", path, verb)


def _asking(state: State, ask: Ask, key: str) -> Next:
    if key == "esc" or (ask.stage == "confirm" and key in ("n", "N")):
        done = "it goes on" if ask.stage == "act" else "not done"
        return evolve(state, ask=None, note=f"{ask.path}: {ask.verb}: {done}"), None
    if ask.stage == "reason":
        if key != "enter":
            return evolve(state, ask=evolve(ask, reason=_typed(ask.reason, key))), None
        if not ask.reason.strip():
            return state, None
        return evolve(state, ask=evolve(ask, stage="confirm")), None
    if ask.stage == "confirm" and key in ("y", "Y"):
        act = Command("act", ask.path, ask.verb, ask.reason.strip())
        return evolve(state, ask=evolve(ask, stage="act")), act
    return state, None


_ANYWHERE: Final[dict[str, Callable[[State], Next]]] = {
    "quit": lambda state: (state, Command("quit")),
    "help": lambda state: (evolve(state, page=Page("help")), None),
    "details": lambda state: _open(state, "details"),
    "trace": lambda state: _open(state, "trace"),
    "stack": lambda state: _open(state, "stack"),
    "restart": lambda state: _act(state, "restart"),
    "stop": lambda state: _act(state, "stop"),
    "start": lambda state: _act(state, "start"),
}
"""The actions that are the same over the table and on a page, where they concern its node."""
