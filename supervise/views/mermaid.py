"""A tree as a Mermaid flowchart, which many web pages and editors draw: pure functions.

Children are in start order. Supervisors are boxes, pools have double sides, leaves are round; the arrow to a
supervisor's front is thick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from .._core.node import State
from .._core.spec import Spec, Supervisor
from .._core.status import Status
from . import words

_Node = TypeVar("_Node")
_SHAPES = {"child": '("{}")', "supervisor": '["{}"]', "pool": '[["{}"]]'}
_HARMLESS = frozenset(" ,.:()_-·'/")
_COLOURS: dict[State, str] = {
    "down": "#e0e0e0",
    "starting": "#fff2b3",
    "up": "#d3f0d3",
    "failed": "#f7c6c6",
    "stopping": "#fff2b3",
    "releasing": "#fff2b3",
    "restarting": "#ffd9a8",
    "condemned": "#f7c6c6",
}


def declared(spec: Spec) -> str:
    """The declared tree as a flowchart, each node with the options that differ from the defaults."""

    def box(node: words.Declared) -> str:
        return _box(type(node.spec).__name__.lower(), node.label, node.facts())

    def arrow(parent: words.Declared, child: words.Declared) -> str:
        front = isinstance(parent.spec, Supervisor) and parent.spec.front == child.spec.name
        return "==>" if front else "-.->" if child.role == "member" else "-->"

    return _chart(_drawn(words.Declared(spec), words.Declared.below, box, arrow))


def running(status: Status, now: float) -> str:
    """The running tree as a flowchart, each node in the colour of its state.

    Args:
        status: from `tree.status()`.
        now: `trio.current_time()`, for the remaining seconds of a backoff.
    """

    def box(node: Status) -> str:
        return f"{_box(node.kind, words.name(node), _standing(node, now))}:::{node.state}"

    seen: dict[State, None] = dict.fromkeys(node.state for node in status.walk())
    colours = [f"classDef {state} fill:{_COLOURS[state]},color:#222" for state in seen]
    return _chart([*_drawn(status, words.children, box, lambda _parent, _child: "-->"), *colours])


def _standing(status: Status, now: float) -> list[str]:
    facts = [words.state(status, now), f"incarnation {status.incarnation}"]
    facts += [f"restarts {words.restarts(status)}"] if status.restarts else []
    facts += [f"waiting {status.mailbox}"] if status.mailbox else []
    return [*facts, *filter(None, [words.failure(status)])]


def _drawn(
    root: _Node,
    below: Callable[[_Node], Sequence[_Node]],
    box: Callable[[_Node], str],
    arrow: Callable[[_Node, _Node], str],
) -> Iterator[str]:
    """The lines of a chart: each node with the arrow that leads to it."""
    yield f"n0{box(root)}"
    waiting, count = [(0, root)], 0
    while waiting:
        number, node = waiting.pop()
        branch: list[tuple[int, _Node]] = []
        for child in below(node):
            count += 1
            branch.append((count, child))
            yield f"n{number} {arrow(node, child)} n{count}{box(child)}"
        waiting += reversed(branch)


def _chart(lines: Iterator[str] | Sequence[str]) -> str:
    return "flowchart TD\n" + "".join(f"    {line}\n" for line in lines)


def _box(kind: str, label: str, facts: Sequence[str]) -> str:
    text = "<br/>".join([f"<b>{_safe(label)}</b>", *map(_safe, facts)])
    return _SHAPES[kind].format(text)


def _safe(text: str) -> str:
    """The text with every character but letters, digits and a few signs as an entity, so that Mermaid reads none as syntax."""
    return "".join(char if char.isalnum() or char in _HARMLESS else f"#{ord(char)};" for char in text)
