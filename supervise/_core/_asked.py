"""The reason of the events that a request causes (R25). Its words are here alone, since sinks know a request by them."""

from __future__ import annotations

ASKED = "was asked to"


def asked(path: str, verb: str, reason: str | None = None) -> str:
    """Why the node at this path is started or stopped by a request, with the reason of its caller."""
    return f"{path!r} {ASKED} {verb}" + ("" if reason is None else f": {reason}")


def is_asked(reason: str | None, path: str, verb: str = "") -> bool:
    """Whether this is the reason of a request with this verb, or with any, for the node at this path."""
    return reason is not None and reason.startswith(asked(path, verb))
