"""Erlang-style supervision trees for Trio.

`_core/` decides and is pure; `_trio/` carries it out. `events` is the closed set of what can happen, `errors` what a
caller may catch, `testing` gives virtual time and faults as data, `sinks` are places for events to go, `cli` is the
command. Everything that is public stands here, in `supervise.events`, `supervise.errors` or `supervise.testing`.
"""

from __future__ import annotations

from ._core.decide import AKKA, DEVICE, OTP, Decider, Rule
from ._core.directive import Directive, Escalate, Restart, Resume, Stop
from ._core.limit import Backoff, Limit
from ._core.node import Status
from ._core.spec import IGNORE, Child, Mailbox, Pool, Supervisor
from ._trio.leaf import current_child, stop_requested
from ._trio.mailbox import Inbox, Message, Stream, StreamMessage
from ._trio.run import run_tree
from ._trio.tree import Ref, Tree, open_tree
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
    "open_tree",
    "run_tree",
    "stop_requested",
]
