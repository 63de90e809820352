"""What can be said of a declared tree without starting it: its errors, and the options that cannot do what they are for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from functools import partial
from math import ceil, inf, isfinite, log
from types import CoroutineType
from typing import Any, cast

from attrs import frozen

from .._core._call import beneath
from .._core.decide import AKKA, DEVICE, Decider, Rule
from .._core.directive import Escalate, Resume, Stop
from .._core.limit import Limit
from .._core.spec import SHARED, Child, Pool, Spec, Supervisor, placed_twice
from .._trio.ref import refuse_no_mailbox
from .places import Place


@frozen
class Finding:
    """One line of a report.

    Args:
        code: its row in the table of `codes`.
        text: what is wrong, and what to do.
        path: of the node, if it is known.
        spec: of the node; None for what a constructor has refused.
        place: of the statement that is wrong, if it is not the declaration of the node.
    """

    code: str
    text: str
    path: str | None = None
    spec: Spec | None = None
    place: Place | None = None


@frozen
class Node:
    """A spec at its place in the tree: the template of a pool is a node of it, with the path `pool/*`."""

    path: str
    spec: Spec
    above: tuple[Spec, ...]
    """Its ancestors, the root first."""

    def says(self, code: str, text: str) -> Finding:
        """A finding about this node."""
        return Finding(code, text, self.path, self.spec)

    def deciders(self) -> Iterator[Decider]:
        """The layers of all deciders that judge a failure of this node."""
        for spec in (*self.above, self.spec):
            if spec.decider is not None:
                yield from spec.decider.layers()


def nodes(tree: Spec) -> Iterator[Node]:
    """All nodes of a tree, parents first, in start order."""
    waiting = [Node(tree.name, tree, ())]
    while waiting:
        node = waiting.pop()
        yield node
        above = (*node.above, node.spec)
        waiting += [
            Node(f"{node.path}/{'*' if isinstance(node.spec, Pool) else child.name}", child, above)
            for child in reversed(below(node.spec))
        ]


def below(spec: Spec) -> tuple[Spec, ...]:
    """The children of a node; of a pool, its template."""
    if isinstance(spec, Child):
        return ()
    return (spec.template,) if isinstance(spec, Pool) else spec.children


def errors(tree: Supervisor | Pool) -> Iterator[tuple[Spec, str]]:
    """Why the tree would not be started, besides what constructors refuse."""
    yield from placed_twice(tree)
    if tree.misfit is not None:
        yield tree, tree.misfit
    try:
        refuse_no_mailbox(tree)
    except ValueError as problem:
        yield tree, str(problem)


def warnings(tree: Supervisor | Pool) -> Iterator[Finding]:
    """The parts of a tree that cannot do what they are declared for."""
    every = list(nodes(tree))
    yield from _of_the_root(every)
    tags = {rule.tag for node in every for layer in _own(node) for rule in layer.rules}
    keys = {key for node in every for layer in _own(node) for key in layer.table if isinstance(key, str)}
    for node in every:
        yield from _void_limit(node)
        yield from _never_restarted(node)
        yield from _endless_restarts(node)
        yield from _backoff(node)
        yield from _unserved(node)
        yield from _never_shut_down(node)
        yield from _decider(node, tags, keys)
        if isinstance(node.spec, Child):
            yield from _arguments(node, node.spec)


# --- the root


def _of_the_root(every: list[Node]) -> Iterator[Finding]:
    root = every[0]
    if root.spec.backoff is not None:
        yield root.says(
            "SUP216",
            f"the backoff of the root {root.path!r} has no effect, for the root is never restarted; give it to the children",
        )
    if all(isinstance(node.spec, Supervisor) for node in every):
        yield root.says("SUP402", f"{root.path!r} has no child; declare one, as in Child('name', function)")
    stop = _longest_stop(every)
    if stop > _PATIENCE:
        yield root.says(
            "SUP215",
            f"a stop of {root.path!r} may take {stop:g} s, the sum of the drains of its children; systemd kills a service "
            f"after {_PATIENCE} s, unless its TimeoutStopSec is longer: shorten the drains",
        )


_PATIENCE = 90


def _longest_stop(every: list[Node]) -> float:
    """The sum of the drains, where one child is stopped after another; those of one mailbox, or pool, drain together (R37)."""
    longest: dict[Spec, float] = {}
    for spec in (node.spec for node in reversed(every)):  # children before their parents: a tree may be deep
        if isinstance(spec, Child):
            longest[spec] = spec.drain
        else:
            shared = max((longest[child] for child in below(spec) if child.mailbox is SHARED), default=0.0)
            longest[spec] = shared + sum(
                longest[child] for child in below(spec) if child.mailbox is not SHARED
            )
    return longest[every[0].spec]


# --- limits and backoffs


def _void_limit(node: Node) -> Iterator[Finding]:
    """A limit that can never be passed, because starts and backoffs take longer than its window (R14)."""
    spec, path = node.spec, node.path
    limit = spec.limit
    if limit is None or limit.of_ready_time or limit.restarts == 0:
        return
    for child in (spec,) if isinstance(spec, Child) else below(spec):
        if child.backoff is not None and child.restart != "temporary":
            shortest = _shortest(child, limit.restarts + 1)
            if shortest >= limit.within:
                within = ceil(2 * shortest) if isfinite(shortest) else "…"
                yield node.says(
                    "SUP201",
                    f"the limit of {path!r} ({limit}) can never trip by {child.name!r}: "
                    f"{limit.restarts + 1} restarts take at least {shortest:.3g} s of backoff; "
                    f"give {path!r} a longer window, such as limit=Limit({limit.restarts}, within={within}), "
                    "or write limit=None if it is to be restarted for ever",
                )


def _shortest(child: Spec, restarts: int) -> float:
    """The least time from the first of `restarts` restarts to the last: the sum of the backoffs between them."""
    backoff = child.backoff
    assert backoff is not None
    first, factor = float(min(backoff.initial, backoff.maximum)), float(backoff.factor)
    waits = max(0, restarts - backoff.immediate)
    if not waits or not first or backoff.jitter == 1:
        return 0.0
    # A series rather than a loop, for a limit may allow a thousand million restarts.
    growing = ceil(min(waits, log(backoff.maximum / first) / log(factor))) if factor > 1 else 0
    try:
        total = first * (factor**growing - 1) / (factor - 1) if growing else 0.0
    except OverflowError:
        return inf
    if waits > growing:
        total += (waits - growing) * (backoff.maximum if growing else first)
    if not backoff.immediate:  # the time begins with the first restart
        total -= first
    return total * (1 - backoff.jitter)


def _never_restarted(node: Node) -> Iterator[Finding]:
    """A limit or backoff where no child is ever restarted (R7)."""
    spec, path = node.spec, node.path
    if isinstance(spec, Child):
        named = [name for name in ("limit", "backoff") if getattr(spec, name) is not None]
        if spec.restart == "temporary" and named:
            has, them = ("has", "it") if len(named) == 1 else ("have", "them")
            yield node.says(
                "SUP202",
                f"the {' and the '.join(named)} of {path!r} {has} no effect, for a temporary child is never restarted; "
                f"leave {them} out, or write restart='transient'",
            )
        return
    its = below(spec)
    if (
        its
        and spec.limit not in (None, Limit(3, within=5))
        and all(child.restart == "temporary" for child in its)
    ):
        yield node.says(
            "SUP203",
            f"the limit of {path!r} ({spec.limit}) can never trip, for all its children are temporary, "
            "and never restarted; leave it out",
        )


def _endless_restarts(node: Node) -> Iterator[Finding]:
    """A leaf that nothing holds back: neither a limit nor a backoff, and no decider that stops it."""
    leaf = node.spec
    if (
        not isinstance(leaf, Child)
        or leaf.restart == "temporary"
        or leaf.backoff is not None
        or not node.above
    ):
        return
    above = node.above[-1]
    limits = [leaf.limit, above.limit, above.member_limit if isinstance(above, Pool) else None]
    if any(limit is not None for limit in limits):
        yield node.says(
            "SUP401",
            f"{node.path!r} is restarted without a wait, so that a failure of some milliseconds passes its limit; "
            "give it backoff=Backoff()",
        )
    elif not any(_answer_to_all(layer) in (Stop, Escalate) for layer in node.deciders()):
        yield node.says(
            "SUP211",
            f"{node.path!r} is restarted at once and for ever, for it has no backoff, and {above.name!r} has no limit; "
            "give it backoff=Backoff()",
        )


def _answer_to_all(layer: Decider) -> object:
    return next((layer.table[cls] for cls in (Exception, BaseException) if cls in layer.table), layer.default)


def _backoff(node: Node) -> Iterator[Finding]:
    backoff = node.spec.backoff
    if backoff is None:
        return
    if 0 in (backoff.initial, backoff.maximum) and (backoff.initial or backoff.maximum):
        yield node.says(
            "SUP212",
            f"the backoff of {node.path!r} never waits, for initial={backoff.initial:g} and maximum={backoff.maximum:g}; "
            "make both more than 0, or leave the backoff out",
        )
    elif backoff.maximum < backoff.initial:
        yield node.says(
            "SUP212",
            f"the backoff of {node.path!r} never waits for its initial {backoff.initial:g} s, for its maximum is "
            f"{backoff.maximum:g} s; make the maximum longer",
        )


# --- mailboxes and shutdown


def _unserved(node: Node) -> Iterator[Finding]:
    its = below(node.spec)
    if node.spec.mailbox is None or not its or any(child.mailbox is SHARED for child in its):
        return  # a leaf serves its own mailbox
    yield node.says(
        "SUP209",
        f"no child of {node.path!r} takes messages from its mailbox; give one mailbox='shared', or write front=… "
        "in place of the mailbox",
    )


def _never_shut_down(node: Node) -> Iterator[Finding]:
    spec = node.spec
    its = below(spec)
    if isinstance(spec, Child) or spec.auto_shutdown == "never" or not its:
        return
    if not any(child.significant for child in its):
        yield node.says(
            "SUP210",
            f"{node.path!r} has auto_shutdown={spec.auto_shutdown!r}, but no significant child; give the child whose end "
            "should end it significant=True",
        )


# --- deciders


def _own(node: Node) -> Iterator[Decider]:
    """The layers of a node's own decider."""
    if node.spec.decider is not None:
        yield from node.spec.decider.layers()


def _decider(node: Node, tags: set[str], keys: set[str]) -> Iterator[Finding]:
    """Entries and rules of one decider that are never used (R1–R4, R8)."""
    path = node.path
    for layer in _own(node):
        if any(layer.table == known.table for known in (AKKA, DEVICE)):
            continue
        if layer.default is not None and not {Exception, BaseException}.isdisjoint(layer.table):
            yield node.says(
                "SUP205",
                f"the default of the decider of {path!r} is never used, for its entry for Exception answers all others; "
                "keep one of them",
            )
        named = [*layer.table, *(cls for rule in layer.rules for cls in rule.exceptions)]
        for cls in dict.fromkeys(key for key in named if not isinstance(key, str) and _is_interrupt(key)):
            yield node.says(
                "SUP206",
                f"the decider of {path!r} names {cls.__name__}, which is never decided: the tree stops in order; leave it out",
            )
        yield from _rules(node, layer.rules)
        for key in layer.table:
            near = _misspelt(key, tags, keys) if isinstance(key, str) else None
            if near is not None:
                yield node.says(
                    "SUP208",
                    f"the decider of {path!r} has an entry for the tag {key!r}, but the rule gives {near!r}, for which there is "
                    "no entry; write one of them in both places",
                )
    resumes = any(Resume in layer.table.values() or layer.default is Resume for layer in _own(node))
    if resumes and not any(_keeps(each.spec) for each in nodes(node.spec)):
        yield node.says(
            "SUP204",
            f"the decider of {path!r} answers Resume, but no child there has a resource to keep: Resume becomes Restart "
            "(R8); write Restart, or give the child a resource",
        )


def _keeps(spec: Spec) -> bool:
    return isinstance(spec, Child) and spec.resource is not None


def _is_interrupt(cls: type[BaseException]) -> bool:
    """Whether no exception of this class is ever an `Exception`, as far as can be known."""
    return issubclass(cls, (KeyboardInterrupt, SystemExit, GeneratorExit)) or (
        cls.__name__ in ("Cancelled", "CancelledError") and not issubclass(cls, Exception)
    )


def _rules(node: Node, rules: tuple[Rule, ...]) -> Iterator[Finding]:
    for number, rule in enumerate(rules):
        for earlier in rules[:number]:
            if rule.exceptions and _covers(earlier, rule):
                name = rule.exceptions[0].__name__
                yield node.says(
                    "SUP207",
                    f"in the decider of {node.path!r} the rule for {name} (tag {rule.tag!r}) never fits, for that for "
                    f"{earlier.exceptions[0].__name__} (tag {earlier.tag!r}) comes first; put the narrower one first",
                )
                break


def _covers(earlier: Rule, later: Rule) -> bool:
    """Whether each exception that the later rule fits is fitted by the earlier one; only group classes fit a group (R3)."""
    return (
        earlier.match is None
        and earlier.when is None
        and all(
            any(
                issubclass(cls, other)
                and issubclass(other, BaseExceptionGroup) == issubclass(cls, BaseExceptionGroup)
                for other in earlier.exceptions
            )
            for cls in later.exceptions
        )
        and earlier.tag != later.tag
    )


def _misspelt(key: str, tags: set[str], keys: set[str]) -> str | None:
    """A rule's tag that no entry answers and that this entry, which no rule's tag reaches, is nearly equal to."""
    if any(f"{tag}.".startswith(f"{key}.") for tag in tags):
        return None
    unanswered = [tag for tag in tags if not any(f"{tag}.".startswith(f"{one}.") for one in keys)]
    return next((tag for tag in sorted(unanswered) if _nearly(key, tag)), None)


def _nearly(one: str, other: str) -> bool:
    """Whether two tags differ as by a slip: not by a number, which is meant."""
    letters = str.maketrans("", "", "0123456789")
    if one.translate(letters) == other.translate(letters):
        return False
    return SequenceMatcher(None, one.lower(), other.lower()).ratio() >= _NEAR


_NEAR = 0.85


# --- the arguments of bodies


def _arguments(node: Node, leaf: Child) -> Iterator[Finding]:
    given = [("body", argument) for argument in (*leaf.args, *_bound(leaf.body))]
    given += [("resource", argument) for argument in _bound(leaf.resource)]
    for what, argument in given:
        if type(argument) is CoroutineType:
            argument.close()  # otherwise Python warns that it was never awaited
            yield node.says(
                "SUP214",
                f"an argument of the {what} of {node.path!r} is the coroutine {argument.__qualname__}(…), which can be awaited "
                "in one incarnation only; give the function, and call it in the body",
            )
    if leaf.resource is not None and leaf.mailbox is not None and _first_name(leaf.body) == "inbox":
        yield node.says(
            "SUP213",
            f"the body of {node.path!r} gets its resource as 'inbox', for it is called as body(resource, inbox, …); "
            "change the order of its parameters",
        )


def _bound(function: object) -> tuple[object, ...]:
    """The arguments that a partial binds."""
    if type(function) is not partial:
        return ()
    bound = cast("partial[object]", function)
    return (*bound.args, *bound.keywords.values())


def _first_name(body: Callable[..., Any]) -> str | None:
    """The name of the first parameter that a call fills by position."""
    try:
        parameters = inspect.signature(beneath(body), follow_wrapped=False).parameters.values()
    except Exception:  # noqa: BLE001 - Some have no signature, and a user's object may raise anything.
        return None
    first = next(iter(parameters), None)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return first.name if first is not None and first.kind in positional else None
