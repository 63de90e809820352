"""Bugs that a machine like this one could well have, each put into it for a while."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import frozen

from supervise._core import acting, judging, machine
from supervise._core.acting import Acting
from supervise._core.judging import Judging
from supervise._core.machine import Machine

MODULES = {Acting: acting, Judging: judging, Machine: machine}


@frozen
class Bug:
    """`right` reads `wrong` in one method. `family` and `group` say which exploration finds it; none: the corpora do."""

    name: str
    cls: type
    method: str
    right: str
    wrong: str
    family: str = ""
    group: int = 0

    @contextmanager
    def planted(self) -> Iterator[None]:
        original = getattr(self.cls, self.method)
        source = textwrap.dedent(inspect.getsource(original))
        assert source.count(self.right) == 1, f"{self.name}: the machine has changed, plant it anew"
        made = {}
        exec(source.replace(self.right, self.wrong), vars(MODULES[self.cls]), made)
        _replace(self.cls, self.method, original, made[self.method])
        try:
            yield
        finally:
            _replace(self.cls, self.method, made[self.method], original)


def _replace(cls, name, old, new):
    """In the class, and in the tables that dispatch to it."""
    setattr(cls, name, new)
    for table in (machine._TAKE, machine._SERVE, machine._REQUEST, machine._DUE, machine._FINISH):
        table.update({key: new for key, value in table.items() if value is old})


BUGS = [
    Bug("a group stops in start order", Machine, "_advance", "act.stops.pop()", "act.stops.pop(0)", "one", 42),
    Bug("a stop does not wait for who leaves", Acting, "_begin_end", "2 if node.leaving else ", "", "requests", 12),
    Bug("a restart is free", Judging, "_charge", "self.window.charge(self._clock())", "True", "one", 0),
    Bug("a retry is free", Machine, "_take_retry", "not node.charged and", "node.charged and", "one", 0),
    Bug(
        "a report that crosses with a stop is dropped", Machine, "_on_exited",
        'node.state == "stopping" or node.timed_out', "node.timed_out", "one", 0,
    ),
    Bug(
        "a stop forgets who waits for the act", Acting, "_abandon",
        "if self.act is not None:", "if self.act is None and self.inbox:", "requests", 0,
    ),
    Bug(
        "what has no resource is resumed", Judging, "_final",
        "not node.failure.resumable", "node.failure.starting", "directives", 0,
    ),
    Bug(
        "an earlier timer is not asked for", Acting, "_arm",
        "self._timers[0][1] == self._ticket", "len(self._timers) == 1", "timers", 0,
    ),
    Bug(
        "nobody hears that the retry is off", Machine, "_cancel_retry",
        'self._down(other, "down", None)', "pass", "requests", 0,
    ),
    Bug("void items are served", Machine, "_serve", "elif item.holds():", "else:", "one", 60),
    Bug(
        "a group does not wait for who leaves", Judging, "_begin",
        'self.spec.strategy == "one_for_one" and ', "", "directives", 6,
    ),
    Bug("the short way is open to the busy", Judging, "restart_at_once", "self.act is not None or ", "", "three", 0),
    Bug("the short way costs nothing", Judging, "restart_at_once", " or not self._charge_both(node, now)", "", "one", 0),
    Bug(
        "the short way keeps what waits void", Judging, "up_at_once",
        " or self.inbox or", " or", "requests", 24,
    ),
    Bug(
        "the short way spares the leaf's own limit", Judging, "_charge_both",
        "return own is None or own.charge(now)", "return True", "pools", 0,
    ),
    Bug("the wait of a verdict is forgotten", Judging, "_apply", "node.undecided = False", "pass", "one", 0),
    Bug("a retry jumps the queue", Machine, "_finish_retry", "inbox.append", "inbox.appendleft"),
    Bug("rest_for_one spares itself", Judging, "_group", "return [node, *", "return [*"),
    Bug("all_significant takes any", Machine, "_finish_over", 'mode == "all_significant"', "False"),
]  # fmt: skip
