"""What the pictures have in common: the order of the lines, and the words on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from attrs import frozen

from .._core._brief import printable
from .._core.limit import Limit
from .._core.node import Status
from .._core.spec import Child, Pool, Spec

_Node = TypeVar("_Node")
_BENEATH = {"": "", "├─ ": "│  ", "└─ ": "   "}


def branches(root: _Node, below: Callable[[_Node], Sequence[_Node]]) -> Iterator[tuple[str, _Node]]:
    """Every node behind the lines that lead to it, parents first, in start order."""
    waiting = [("", "", root)]
    while waiting:
        stem, lead, node = waiting.pop()
        yield stem + lead, node
        stem += _BENEATH[lead]
        lead = "└─ "
        for child in reversed(below(node)):
            waiting.append((stem, lead, child))
            lead = "├─ "


@frozen(eq=False)
class Declared:
    """A spec and where it stands. `role`: `root`, `child`, or `member` for a pool's template."""

    spec: Spec
    role: str = "root"

    @property
    def label(self) -> str:
        """Its name; a pool names its members when they are added."""
        return "(member)" if self.role == "member" else printable(self.spec.name)

    def below(self) -> list[Declared]:
        """Its children; of a pool, what each member is like."""
        if isinstance(self.spec, Child):
            return []
        if isinstance(self.spec, Pool):
            return [Declared(self.spec.pattern(), "member")]
        return [Declared(child, "child") for child in self.spec.children]

    def facts(self) -> list[str]:
        """What an operator wants to know of it; what is as usual goes without saying."""
        spec = self.spec
        facts: list[str] = [] if self.role == "root" else [spec.restart]
        facts += ["significant"] * spec.significant
        facts += _of_child(spec) if isinstance(spec, Child) else _of_supervisor(spec)
        return facts


def _of_child(child: Child) -> list[str]:
    facts: list[str] = []
    if child.limit is not None:
        facts.append(_limit(child.limit))
    if child.resource is not None:
        name = child.resource.__name__ if inspect.isfunction(child.resource) else ""
        facts.append(f"resource {printable(name)}".rstrip())
    if child.mailbox is not None:
        facts.append(f"mailbox {child.mailbox.size}")
    return facts


def _of_supervisor(spec: Spec) -> list[str]:
    assert not isinstance(spec, Child)
    facts: list[str] = []
    if isinstance(spec, Pool):
        facts.append("pool" if spec.maximum is None else f"pool of at most {spec.maximum}")
    else:
        facts.append(spec.strategy)
    facts.append(_limit(spec.limit) + (", then shutdown" if spec.on_limit == "shutdown" else ""))
    if spec.auto_shutdown != "never":
        facts.append(f"auto_shutdown {spec.auto_shutdown}")
    if spec.front is not None:
        facts.append(f"front {printable(spec.front)}")
    return facts


def _limit(limit: Limit | None) -> str:
    if limit is None:
        return "no limit"
    return f"limit {limit}" + (" of ready time" if limit.of_ready_time else "")


def name(status: Status) -> str:
    """The last part of its path."""
    return printable(status.path.rpartition("/")[2])


def children(status: Status) -> Sequence[Status]:
    """Those below it."""
    return status.children


def state(status: Status, now: float) -> str:
    """Its state, and how long a backoff still takes."""
    if status.due is None:
        return status.state
    return f"{status.state} in {max(0.0, status.due - now):.1f} s"


def failure(status: Status) -> str:
    """Its last failure, in a line."""
    exc = status.last_failure
    return "" if exc is None else printable(f"{type(exc).__name__}: {exc}").removesuffix(": ")
