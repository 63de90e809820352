"""The nodes of one `GET /status`, in the order and selection that a user chose, as rows of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal, NotRequired, TypedDict

from attrs import Factory, field, frozen

from ..._core._brief import printable
from ...views import words
from .cells import Line, Span, cells, placed


class Exc(TypedDict):
    """An exception; it has its traceback only in the event `Failed`."""

    type: str
    text: str
    traceback: NotRequired[str]


class Decision(TypedDict):
    """The last decision on a failure of a node."""

    directive: str | None
    tag: str | None
    by: str
    because: str
    at: float


class Row(TypedDict):
    """A node, as `GET /status` describes it. All times are seconds since 1970."""

    path: str
    kind: str
    state: str
    incarnation: int
    restarts: int
    limit: str | None
    allowed: int | None
    failure: Exc | None
    due: float | None
    mailbox: int | None
    handled: int | None
    restart: str
    strategy: str | None
    front: str | None
    since: float | None
    ready_at: float | None
    restarts_total: int
    failures_total: int
    decision: Decision | None


class Waiting(TypedDict):
    """A node for which a tree that is not ready waits."""

    path: str
    state: str
    why: str


class Status(TypedDict):
    """The answer of `GET /status`."""

    time: float
    seq: int
    name: str
    pid: int
    acts: bool
    waits_for: list[Waiting]
    nodes: list[Row]


Order = Literal["tree", "trouble first", "restarts", "mailbox", "since"]
ORDERS: Final[tuple[Order, ...]] = ("tree", "trouble first", "restarts", "mailbox", "since")
_SEVERITY: Final = ("failed", "condemned", "restarting", "releasing", "stopping", "starting", "down", "up")
"""The states, the worst first."""
STYLES: Final = {
    "up": "well",
    "down": "faint",
    "starting": "busy",
    "stopping": "busy",
    "releasing": "busy",
    "restarting": "busy",
    "failed": "bad",
    "condemned": "bad",
}


def above(path: str) -> str:
    """The path of its supervisor; empty for the root."""
    return path.rpartition("/")[0]


def troubled(row: Row) -> bool:
    """Whether a node is not as it should be: it is on its way, failed, counts restarts, or is permanent and down."""
    if row["restarts"]:
        return True
    return row["state"] != "up" and not (row["state"] == "down" and row["restart"] != "permanent")


@frozen(eq=False)
class Picture:
    """A status, and what follows from it once for all that is drawn of it."""

    status: Status
    rates: Mapping[str, float] = field(factory=dict[str, float])
    rows: dict[str, Row] = Factory(
        lambda self: {row["path"]: row for row in self.status["nodes"]}, takes_self=True
    )
    below: dict[str, list[Row]] = Factory(lambda self: _below(self.status["nodes"]), takes_self=True)
    trouble: frozenset[str] = Factory(
        lambda self: frozenset(row["path"] for row in self.status["nodes"] if troubled(row)), takes_self=True
    )

    def counts(self) -> list[tuple[str, int]]:
        """How many nodes are in each state that occurs: `up` first, then the worst."""
        counted = Counter(row["state"] for row in self.status["nodes"])
        order = ["up", *_SEVERITY[:-1]]
        return [(state, counted[state]) for state in order if counted[state]]


def _below(rows: Sequence[Row]) -> dict[str, list[Row]]:
    children: dict[str, list[Row]] = {}
    for row in rows:
        children.setdefault(above(row["path"]), []).append(row)
    return children


@frozen
class View:
    """Which nodes are shown, and in which order.

    Args:
        order: `tree` is the only one that shows the tree; the others are lists of paths.
        match: a text that their paths contain, in any case; their supervisors are shown too in the order of the tree.
        trouble: only the nodes that are not as they should be.
        closed: paths of supervisors whose nodes are not shown; without effect while nodes are selected in another way.
    """

    order: Order = "tree"
    match: str = ""
    trouble: bool = False
    closed: frozenset[str] = frozenset()


@frozen(eq=False)
class Entry:
    """A row of the table: `label` is the name with the lines of the tree, or the path; `hidden` is the number of nodes below."""

    row: Row
    label: str
    hidden: int = 0


@lru_cache(maxsize=4)
def entries(picture: Picture, view: View) -> tuple[Entry, ...]:
    """The rows of the table."""
    rows = picture.status["nodes"]
    match = view.match.casefold()
    chosen = [
        row
        for row in rows
        if match in row["path"].casefold() and (not view.trouble or row["path"] in picture.trouble)
    ]
    if view.order != "tree":
        return tuple(Entry(row, printable(row["path"])) for row in sorted(chosen, key=_KEYS[view.order]))
    if not chosen:
        return ()
    if len(chosen) == len(rows):
        return tuple(_tree(picture, picture.rows.keys(), view.closed))
    shown: set[str] = set()
    for row in chosen:
        path = row["path"]
        while path and path not in shown:
            shown.add(path)
            path = above(path)
    return tuple(_tree(picture, shown, frozenset()))


def _tree(picture: Picture, shown: set[str] | object, closed: frozenset[str]) -> Sequence[Entry]:
    def below(row: Row) -> list[Row]:
        if row["path"] in closed:
            return []
        return [each for each in picture.below.get(row["path"], ()) if each["path"] in shown]  # type: ignore[operator]

    root = picture.status["nodes"][0]
    found: list[Entry] = []
    for lead, row in words.branches(root, below):
        name = printable(row["path"].rpartition("/")[2])
        hidden = _size(picture, row["path"]) if row["path"] in closed else 0
        found.append(Entry(row, f"{lead}{name}" + (f" +{hidden}" if hidden else ""), hidden))
    return found


def _size(picture: Picture, path: str) -> int:
    """How many nodes are below a node."""
    count, waiting = 0, [path]
    while waiting:
        children = picture.below.get(waiting.pop(), [])
        count += len(children)
        waiting.extend(row["path"] for row in children)
    return count


_KEYS: Final[dict[Order, Callable[[Row], tuple[float, ...]]]] = {
    "trouble first": lambda row: (_severity(row), row["state"] == "up" and -row["restarts"]),
    "restarts": lambda row: (-row["restarts"], -row["restarts_total"]),
    "mailbox": lambda row: (-1 if row["mailbox"] is None else -row["mailbox"] - 2,),
    "since": lambda row: (-(row["since"] or 0),),
}


def _severity(row: Row) -> int:
    return _SEVERITY.index(row["state"]) if row["state"] in _SEVERITY else 0


# What stands in a cell.


def duration(seconds: float) -> str:
    """A time of any length in at most four characters, such as `42s`, `12m`, `30h` or `12d`."""
    whole = int(max(0.0, seconds))
    for unit, size, most in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if whole < size * most:
            return f"{whole // size}{unit}"
    return f"{whole // 86400}d"


def state(row: Row, now: float) -> str:
    """The state of a node, or the time until its next start."""
    return row["state"] if row["due"] is None else f"restart in {duration(row['due'] - now)}"


def since(row: Row, now: float) -> str:
    """For how long it has been in its state; empty before its first start."""
    return "" if row["since"] is None else duration(now - row["since"])


def restarts(row: Row) -> str:
    """The restarts that its limit counts, of those that it allows; empty where nothing was restarted."""
    if not row["restarts"]:
        return ""
    return str(row["restarts"]) if row["allowed"] is None else f"{row['restarts']}/{row['allowed']}"


def failure(row: Row) -> str:
    """The last failure in one line."""
    exc = row["failure"]
    return "" if exc is None else printable(f"{exc['type']}: {exc['text']}").removesuffix(": ")


def decision(row: Row, now: float) -> str:
    """The last decision in one line."""
    last = row["decision"]
    if last is None:
        return ""
    ago = f", {duration(now - last['at'])} ago"
    if last["directive"] is None:
        return printable(f"not decided: {last['because']}") + ago
    because = "" if last["because"] == "table" else f" ({last['because']})"
    tag = f" for '{last['tag']}'" if last["tag"] else ""
    return printable(f"{last['directive']}{tag}{because}, by {last['by']}") + ago


def waiting(row: Row) -> str:
    """How many messages wait; empty where there is no mailbox."""
    return "" if row["mailbox"] is None else str(row["mailbox"])


def per_second(rate: float | None) -> str:
    """A rate with two digits at least."""
    if rate is None:
        return ""
    return f"{rate:.1f}" if 0 < rate < 9.95 else f"{rate:.0f}"  # noqa: PLR2004 - A rate from here on has two digits without a fraction.


# The table.


@frozen
class Column:
    """A column of the table.

    Args:
        title: the word above it.
        cell: gives the style and the text for a node.
        align: `<` for texts, `>` for numbers.
        least: its width; 0 for a column that takes what is left.
    """

    title: str
    cell: Callable[[Picture, Entry, float], Span]
    align: str = "<"
    least: int = 0


def _calm(row: Row) -> str:
    """The style of what was: it stands back once the node is up again."""
    return "faint" if row["state"] == "up" else ""


def _counted(row: Row) -> Span:
    spent = row["allowed"] is not None and row["restarts"] >= row["allowed"]
    return "bad" if spent else "busy", restarts(row)


_NODE = Column("node", lambda _, entry, __: ("", entry.label))
_STATE = Column(
    "state",
    lambda _, entry, now: (STYLES.get(entry.row["state"], ""), state(entry.row, now)),
    least=len("restart in 99s"),
)
_SINCE = Column("since", lambda _, entry, now: ("", since(entry.row, now)), ">", 5)
_NUMBER = Column("#", lambda _, entry, __: ("", str(entry.row["incarnation"] or "")), ">", 3)
_RESTARTS = Column("restarts", lambda _, entry, __: _counted(entry.row), ">", 8)
_WAITING = Column("waiting", lambda _, entry, __: ("", waiting(entry.row)), ">", 7)
_RATE = Column(
    "per s", lambda picture, entry, _: ("", per_second(picture.rates.get(entry.row["path"]))), ">", 6
)
_FAILURE = Column("last failure", lambda _, entry, __: (_calm(entry.row), failure(entry.row)))
_DECISION = Column("decision", lambda _, entry, now: (_calm(entry.row), decision(entry.row, now)))
_GAP: Final = 2
_LEAST: Final = 12
"""The least useful width of a name or a failure."""
_DECISION_FROM: Final = 70
"""The width left over from which a decision is shown beside the failure."""


def table(
    picture: Picture,
    shown: Sequence[Entry],
    *,
    first: int,
    room: int,
    selected: str,
    now: float,
    width: int,
) -> list[Line]:
    """The titles, and the rows from number `first` on for which there is room."""
    columns = _columns(picture, shown, width)
    lines = [_joined([("title", placed(column.title, size, column.align)) for column, size in columns])]
    for entry in shown[first : first + room]:
        spans = [(*column.cell(picture, entry, now), size, column.align) for column, size in columns]
        line = _joined([(style, placed(text, size, align)) for style, text, size, align in spans])
        if entry.row["path"] == selected:
            line = [("selected", placed("".join(text for _, text in line), width))]
        lines.append(line)
    return lines


def _joined(spans: Line) -> Line:
    line: Line = []
    for span in spans:
        line += [("", " " * _GAP), span] if line else [span]
    return line


def _columns(picture: Picture, shown: Sequence[Entry], width: int) -> list[tuple[Column, int]]:
    """The columns for which there is room, with their widths. The less important ones are left out first."""
    boxes = any(row["mailbox"] is not None for row in picture.status["nodes"])
    name = max([_LEAST, *(cells(entry.label) for entry in shown)])
    name = min(name, max(_LEAST, width * 2 // 5))
    rest = width - name
    kept: list[Column] = []
    for column, spare in [
        *((column, 0) for column in (_STATE, _RESTARTS, _SINCE, _NUMBER)),
        *((column, _GAP + _LEAST) for column in (_WAITING, _RATE) if boxes),
    ]:
        if rest >= _GAP + column.least + spare:
            kept.append(column)
            rest -= _GAP + column.least
    order = [_STATE, _SINCE, _NUMBER, _RESTARTS, _WAITING, _RATE]
    columns = [(_NODE, name), *((column, column.least) for column in order if column in kept)]
    if rest >= _GAP + _LEAST:
        rest -= _GAP
        decided = (rest - _GAP) * 2 // 5 if rest >= _DECISION_FROM else 0
        columns.append((_FAILURE, rest - (decided + _GAP if decided else 0)))
        columns += [(_DECISION, decided)] if decided else []
    else:
        columns[0] = (_NODE, name + rest)
    return columns
