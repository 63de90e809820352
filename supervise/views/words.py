"""The order of the lines and the words on them, shared by all pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, TypeVar

from attrs import frozen

from .._core._brief import class_name, failure_line, printable, shortened
from .._core._call import name_of
from .._core._code import Code
from .._core.decide import AKKA, DEVICE, OTP, Decider
from .._core.limit import Backoff, Limit
from .._core.spec import Child, Mailbox, Pool, Spec
from .._core.status import Status

_Node = TypeVar("_Node")
_BENEATH = {"": "", "├─ ": "│  ", "└─ ": "   "}


def branches(root: _Node, below: Callable[[_Node], Sequence[_Node]]) -> Iterator[tuple[str, _Node]]:
    """Every node with the lines drawn before it, parents first, in start order."""
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
    """A spec and its role: `root`, `child`, or `member` for the template of a pool."""

    spec: Spec
    role: str = "root"

    @property
    def label(self) -> str:
        """Its name; a pool names its members when they are added."""
        return "(member)" if self.role == "member" else printable(self.spec.name)

    def below(self) -> list[Declared]:
        """Its children; for a pool the pattern of its members."""
        if isinstance(self.spec, Child):
            return []
        if isinstance(self.spec, Pool):
            return [Declared(self.spec.pattern(), "member")]
        return [Declared(child, "child") for child in self.spec.children]

    def facts(self) -> list[str]:
        """The options that differ from the defaults, and the restart type, strategy and limit."""
        spec = self.spec
        facts: list[str] = [] if self.role == "root" else [spec.restart]
        facts += ["significant"] * spec.significant
        facts += _of_child(spec) if isinstance(spec, Child) else _of_supervisor(spec)
        return facts + _of_all(spec)


def _of_child(child: Child) -> list[str]:
    facts = [f"body {_called(child.body)}"]
    if child.limit is not None and child.restart != "temporary":  # what is never restarted passes no limit
        facts.append(_limit(child.limit))
    if child.resource is not None:
        facts.append(f"resource {_called(child.resource)}")
    if child.mailbox is not None:
        facts.append(_mailbox(child.mailbox))
    if child.drain > 0:
        facts.append(f"drain {child.drain:g} s")
    if child.grace != _GRACE:
        facts.append(f"grace {child.grace:g} s")
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
    if spec.mailbox is not None:
        facts.append(_mailbox(spec.mailbox))
    if spec.front is not None:
        facts.append(f"front {printable(spec.front)}")
    if spec.init is not None:
        facts.append(f"init {_called(spec.init)}")
    return facts


def _mailbox(mailbox: Mailbox | Literal["shared"]) -> str:
    if not isinstance(mailbox, Mailbox):
        return "shared mailbox"
    return f"mailbox {mailbox.size}" + (", requeue" if mailbox.on_loss == "requeue" else "")


def _of_all(spec: Spec) -> list[str]:
    facts: list[str] = []
    if spec.start_timeout is not None:
        facts.append(f"start_timeout {spec.start_timeout:g} s")
    if spec.backoff is not None:
        facts.append(_backoff(spec.backoff))
    if spec.decider is not None:
        facts.append(f"decider {_decider(spec.decider)}")
    return facts


_GRACE: Final = 5
_LONGEST: Final = 60
"""Characters of the longest text of a value."""
_ENTRIES: Final = 5
"""How many entries of a decider are shown."""
_PRESETS: Final = {"OTP": OTP, "AKKA": AKKA, "DEVICE": DEVICE}


def _called(function: object) -> str:
    """The name of a function in the program; for a `partial` that of its function; a value that prints as code has its own text."""
    return printable(shortened(str(function), _LONGEST) if isinstance(function, Code) else name_of(function))


def _backoff(backoff: Backoff) -> str:
    immediate = f", {backoff.immediate} at once" if backoff.immediate else ""
    return f"backoff {backoff.initial:g} s × {backoff.factor:g} up to {backoff.maximum:g} s{immediate}"


def _decider(decider: Decider) -> str:
    """The table of a decider, layer by layer; a preset by its name."""
    return ", over ".join(map(_layer, decider.layers()))


def _layer(layer: Decider) -> str:
    for name, preset in _PRESETS.items():
        if (layer.table, layer.default, layer.rules) == (preset.table, preset.default, preset.rules):
            return name
    entries = [f"{_key(key)} → {directive!r}" for key, directive in layer.table.items()]
    shown = entries[:_ENTRIES] + [f"{len(entries) - _ENTRIES} more"] * (len(entries) > _ENTRIES)
    shown += [f"else {layer.default!r}"] * (layer.default is not None)
    shown += [f"{len(layer.rules)} rule{'s' * (len(layer.rules) > 1)}"] * bool(layer.rules)
    return ", ".join(shown) or "empty"


def _key(key: str | type[BaseException]) -> str:
    return printable(key) if isinstance(key, str) else class_name(key)


def _limit(limit: Limit | None) -> str:
    if limit is None:
        return "no limit"
    return f"limit {limit}" + (" of ready time" if limit.of_ready_time else "")


def name(status: Status) -> str:
    """The last part of its path."""
    return printable(status.path.rpartition("/")[2])


def children(status: Status) -> Sequence[Status]:
    """The children of a node."""
    return status.children


def state(status: Status, now: float) -> str:
    """Its state, with the remaining seconds of a backoff."""
    if status.due is None:
        return status.state
    return f"{status.state} in {max(0.0, status.due - now):.1f} s"


def restarts(status: Status) -> str:
    """The restarts that its limit counts, and how many it allows; empty if it counts none."""
    if not status.restarts:
        return ""
    return str(status.restarts) if status.limit is None else f"{status.restarts}/{status.limit.restarts}"


def failure(status: Status) -> str:
    """Its last failure in one line; empty if there is none."""
    exc = status.last_failure
    return "" if exc is None else failure_line(exc)
