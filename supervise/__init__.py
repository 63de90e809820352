"""Erlang-style supervision trees for Trio.

`_core/` makes every decision and is pure; `_trio/` carries the decisions out. `events` is the closed set of events,
`errors` has the errors that a caller may catch, `testing` provides virtual time and faults as data, `sinks` receive events,
`views` draw trees, `programs` has external programs as leaves, and `cli` is the command. All public names are here or in these
modules. A name is imported at its first use, because the pytest plugin lies in this package too and must cost a session without a
tree nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, events
    from ._core.decide import AKKA, DEVICE, OTP, Decider, Rule
    from ._core.directive import Directive, Escalate, Restart, Resume, Stop
    from ._core.limit import Backoff, Limit
    from ._core.spec import IGNORE, Child, Mailbox, Pool, Supervisor
    from ._core.status import Status
    from ._trio.child import CurrentChild, current_child, stop_requested
    from ._trio.mailbox import Inbox
    from ._trio.message import Message, Stream, StreamMessage
    from ._trio.ref import Ref
    from ._trio.run import run_tree
    from ._trio.tree import Tree, open_tree
    from .errors import (
        CallLost,
        ChildRestarted,
        ChildStopped,
        MailboxFull,
        Refused,
        StartFailed,
        SuperviseError,
        TreeFailed,
    )

_HOMES = {
    "_core.decide": ("AKKA", "DEVICE", "OTP", "Decider", "Rule"),
    "_core.directive": ("Directive", "Escalate", "Restart", "Resume", "Stop"),
    "_core.limit": ("Backoff", "Limit"),
    "_core.status": ("Status",),
    "_core.spec": ("IGNORE", "Child", "Mailbox", "Pool", "Supervisor"),
    "_trio.child": ("CurrentChild", "current_child", "stop_requested"),
    "_trio.mailbox": ("Inbox",),
    "_trio.message": ("Message", "Stream", "StreamMessage"),
    "_trio.run": ("run_tree",),
    "_trio.ref": ("Ref",),
    "_trio.tree": ("Tree", "open_tree"),
    "errors": (
        "CallLost",
        "ChildRestarted",
        "ChildStopped",
        "MailboxFull",
        "Refused",
        "StartFailed",
        "SuperviseError",
        "TreeFailed",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AKKA",
    "DEVICE",
    "IGNORE",
    "OTP",
    "Backoff",
    "CallLost",
    "Child",
    "ChildRestarted",
    "ChildStopped",
    "CurrentChild",
    "Decider",
    "Directive",
    "Escalate",
    "Inbox",
    "Limit",
    "Mailbox",
    "MailboxFull",
    "Message",
    "Pool",
    "Ref",
    "Refused",
    "Restart",
    "Resume",
    "Rule",
    "StartFailed",
    "Status",
    "Stop",
    "Stream",
    "StreamMessage",
    "SuperviseError",
    "Supervisor",
    "Tree",
    "TreeFailed",
    "current_child",
    "errors",
    "events",
    "open_tree",
    "run_tree",
    "stop_requested",
]


def __getattr__(name: str) -> Any:
    if name in ("errors", "events"):
        return import_module(f".{name}", __name__)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
