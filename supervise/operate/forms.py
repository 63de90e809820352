"""The form of the answers of the operating app, which a client makes sure of before it gives them to its caller.

Another program may answer at a socket or a port, and so may an older or newer version of this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .._core._check import is_a

Form: TypeAlias = Callable[[Any], bool]
"""Whether a value of JSON has this form."""

_MOST = 1e300
"""No number is greater: with a longer integer no time can be computed."""
_LAST_MOMENT = 1e11
"""Seconds since 1970: a date of a later one, in the year 5138, may be beyond the last one that Python has."""


def text(value: Any) -> bool:
    """A string."""
    return type(value) is str


def number(value: Any) -> bool:
    """A number that is finite."""
    return type(value) in (int, float) and -_MOST < value < _MOST


def _moment(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LAST_MOMENT


def _truth(value: Any) -> bool:
    return type(value) is bool


def _path(value: Any) -> bool:
    return type(value) is str and bool(value)


def _or_none(form: Form) -> Form:
    return lambda value: value is None or form(value)


def of(**fields: Form) -> Form:
    """A dict with at least these fields."""
    items = list(fields.items())

    def form(value: Any) -> bool:
        if not is_a(value, dict):
            return False
        found: dict[str, Any] = value
        return all(name in found and its(found[name]) for name, its in items)

    return form


def list_of(its: Form, *, least: int = 0) -> Form:
    """A list of so many at least."""

    def form(value: Any) -> bool:
        if not is_a(value, list):
            return False
        items: list[Any] = value
        return len(items) >= least and all(map(its, items))

    return form


_failure = of(type=text, text=text)
_row = of(
    path=_path,
    kind=text,
    state=text,
    incarnation=number,
    restarts=number,
    limit=_or_none(text),
    allowed=_or_none(number),
    failure=_or_none(_failure),
    due=_or_none(number),
    mailbox=_or_none(number),
    handled=_or_none(number),
    restart=text,
    strategy=_or_none(text),
    front=_or_none(text),
    since=_or_none(number),
    ready_at=_or_none(number),
    restarts_total=number,
    failures_total=number,
    decision=_or_none(of(directive=_or_none(text), tag=_or_none(text), by=text, because=text, at=number)),
)
status = of(
    time=number,
    seq=number,
    name=text,
    pid=number,
    acts=_truth,
    waits_for=list_of(of(path=text)),
    nodes=list_of(_row, least=1),
)
steps = of(steps=list_of(of(do=text, path=text)))
changes = of(changes=list_of(of(text=text)))
missed = of(missed=number)
_event = of(seq=number, time=_moment, kind=text, path=text, incarnation=number, text=text)


def event(value: Any) -> bool:
    """An event, with an exception in those of a failure. A client itself says `Missed` in place of events."""
    if not _event(value) or value["kind"] == "Missed":
        return False
    exc = value.get("exc")
    return exc is None or (_failure(exc) and text(exc.get("traceback", "")))
