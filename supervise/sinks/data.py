"""Events as plain data, in one versioned schema: for files, streams and other programs (R31)."""

from __future__ import annotations

from typing import Any

import attrs

from .._core._brief import brief, brief_text, class_name
from .._core._check import is_a
from .._core.directive import Directive
from ..events import KINDS, Event, Failed, StopError
from .tracebacks import trace

VERSION = 1
"""Of the schema. It changes when a field changes its meaning or leaves; further fields may come at any time."""

MOST = 10_000
"""Characters of a traceback or a stack: of a longer one the end is kept, which says where it happened."""

_OWN_FIELDS = {
    kind: [field.name for field in attrs.fields(kind) if field.name not in attrs.fields_dict(Event)]
    for kind in KINDS
}


def as_data(event: Event, *, number: int, time: float) -> dict[str, Any]:
    """An event as a dict of strings, numbers, None and one dict for an exception, which `json.dumps` writes as it is.

    Its first keys are those of every event: `v` (the version of the schema), `time` (seconds since 1970), `at` (seconds on Trio's
    clock), `seq` (the number), `kind` (the name of its class), `path` and `incarnation`. The others are the fields of its
    class, with the names of directives, and texts in place of objects of the program. An exception is a dict of `type`, `text`
    and, in `Failed` and `StopError`, `traceback`.

    Args:
        event: of a tree.
        number: counts the events that one reader gets, from 1: a gap means that some are missing.
        time: when it happened, in seconds since 1970; an event itself has only the time of Trio's clock, which begins anywhere.
    """
    data = {
        "v": VERSION,
        "time": time,
        "at": event.at,
        "seq": number,
        "kind": type(event).__name__,
        "path": event.path,
        "incarnation": event.incarnation,
    }
    for name in _OWN_FIELDS[type(event)]:
        data[name] = _plain(event, name)
    return data


def _plain(event: Event, name: str) -> Any:
    value: Any = getattr(event, name)
    if value is None:
        return None
    # It may be any object of the program, also a number that JSON does not have, so only its text is given.
    if name == "value":
        return brief(value)
    if is_a(value, BaseException):
        return _exception(value, traced=is_a(event, (Failed, StopError)))
    if is_a(value, Directive):
        return value.name
    return value[-MOST:] if type(value) is str else value


def _exception(exc: BaseException, *, traced: bool) -> dict[str, str]:
    data = {"type": class_name(type(exc)), "text": brief_text(exc)}
    return {**data, "traceback": trace(exc)[-MOST:]} if traced else data
