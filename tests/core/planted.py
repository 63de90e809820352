"""Bugs that a machine like this one could well have, each put into it for a while."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from attrs import frozen

from supervise._core import machine, shortcut, verdict
from supervise._core.machine import Machine
from supervise._core.timers import Timers


@frozen
class Bug:
    """`right` reads `wrong` in one function. `family` and `group` say which exploration finds it; none: the corpora do."""

    name: str
    owner: type | ModuleType
    function: str
    right: str
    wrong: str
    family: str = ""
    group: int = 0

    @contextmanager
    def planted(self) -> Iterator[None]:
        original = getattr(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.right) == 1, f"{self.name}: the machine has changed, plant it anew"
        made = {}
        exec(source.replace(self.right, self.wrong), original.__globals__, made)
        _replace(self.owner, self.function, original, made[self.function])
        try:
            yield
        finally:
            _replace(self.owner, self.function, made[self.function], original)


def _replace(owner, name, old, new):
    """In the class or module, and in the tables that dispatch to it."""
    setattr(owner, name, new)
    for table in (
        machine._ON_INPUT,
        machine._SERVE_ITEM,
        machine._SERVE_REQUEST,
        machine._ON_TIMEOUT,
        machine._FINISH,
    ):
        table.update({key: new for key, value in table.items() if value is old})


BUGS = [
    Bug("a group stops in start order", Machine, "_advance", "act.stops.pop()", "act.stops.pop(0)", "one", 42),
    Bug("a stop does not wait for a child that leaves its resource", Machine, "_begin_end", "2 if node.leaving else ", "", "requests", 12),
    Bug("a restart is not charged", Machine, "charge", "self.window.charge(self._clock(now))", "True", "one", 0),
    Bug("a retry is not charged", Machine, "_serve_retry", "not node.retry_charged and", "node.retry_charged and", "one", 0),
    Bug(
        "a report that crosses with a stop is dropped", Machine, "_on_exited",
        'node.state == "stopping" or node.timed_out', "node.timed_out", "one", 0,
    ),
    Bug(
        "a stop does not answer the caller of the act", Machine, "_refuse_waiting",
        "if self.act is not None:", "if self.act is None and self.inbox:", "requests", 0,
    ),
    Bug(
        "a child without a resource is resumed", verdict, "_allowed",
        "not node.failure.resumable", "node.failure.starting", "directives", 0,
    ),
    Bug(
        "an earlier timer is not asked for", Timers, "arm",
        "self._heap[0][1] == self._number", "len(self._heap) == 1", "timers", 0,
    ),
    Bug(
        "the end of a cancelled retry is not reported", Machine, "_cancel_retry_by_hand",
        'self._stay_down(other, "down", None)', "pass", "requests", 29,
    ),
    Bug("void items are served", Machine, "_serve", "elif item.holds():", "else:", "one", 60),
    Bug(
        "a group does not wait for a child that leaves its resource", Machine, "_begin",
        'self.spec.strategy == "one_for_one" and ', "", "directives", 6,
    ),
    Bug(
        "a child whose group changes by an adoption waits for ever", Machine, "_review_retries",
        "self._retry_alone(node)", "pass", "adoptions", 3,
    ),
    Bug(
        "a child that a retry will start after an adoption stays gone", Machine, "_review_retries",
        "_revive(self._group(node))", "pass", "adoptions", 3,
    ),
    Bug(
        "a stop of a new child is not reported", Machine, "_stop_dead",
        'self._stay_down(node, "down", None)', "pass", "adoptions", 2,
    ),
    Bug("an adopted limit goes on with the earlier count", Machine, "_serve_adopt", "self._count_anew()", "pass", "adoptions", 2),
    Bug("the fast path is open while an act is in progress", shortcut, "restart_at_once", "machine.act is not None or ", "", "three", 0),
    Bug("a restart by the fast path is not charged", shortcut, "restart_at_once", " or not _charge_both(machine, node, now)", "", "one", 0),
    Bug(
        "the fast path is open while items wait in the inbox", shortcut, "up_at_once",
        " or machine.inbox:", ":", "requests", 24,
    ),
    Bug(
        "a restart by the fast path is not charged to the leaf's own limit", shortcut, "_charge_both",
        "(own is None or own.charge(now))", "True", "pools", 0,
    ),
    Bug("a verdict leaves its failure undecided", Machine, "_carry_out", "node.undecided = False", "pass", "one", 0),
    Bug("a retry jumps the queue", Machine, "_finish_retry", "inbox.append", "inbox.appendleft"),
    Bug("rest_for_one does not restart the failed child", Machine, "_group", "return [node, *", "return [*"),
    Bug("all_significant ends with the first significant child", Machine, "_weigh_end", 'mode == "all_significant"', "False"),
]  # fmt: skip
