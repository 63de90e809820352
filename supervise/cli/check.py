"""Errors and warnings about a whole tree, found without starting it."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, isfinite

from .._core.decide import Decider
from .._core.directive import Resume
from .._core.limit import Limit
from .._core.spec import Child, Pool, Spec, Supervisor, placed_twice, walk


def errors(tree: Supervisor | Pool) -> list[str]:
    """The errors of a tree, one line each."""
    return [*placed_twice(tree), *([] if tree.misfit is None else [tree.misfit])]


def warnings(tree: Supervisor | Pool) -> list[str]:
    """The parts of a tree that are allowed but certainly not meant, one line each."""
    return [line for path, spec in walk(tree) for line in _warnings(path, spec)]


def _warnings(path: str, spec: Spec) -> Iterator[str]:
    """The options of one node without effect, or with an unexpected one; each line says how to change it."""
    yield from _void_limit(path, spec)
    yield from _never_restarted(path, spec)
    if spec.decider is not None and _resumes(spec.decider) and not any(map(_keeps, _leaves(spec))):
        yield (
            f"the decider of {path!r} answers Resume, but no child there has a resource to keep: Resume becomes Restart (R8); "
            "write Restart, or give the child a resource"
        )


def _void_limit(path: str, spec: Spec) -> Iterator[str]:
    """A limit that can never trip, because starts and backoffs take longer than its window (R14)."""
    children: tuple[Spec, ...] = (spec,) if isinstance(spec, Child) else spec.children
    limit = spec.limit
    if limit is None or limit.of_ready_time or limit.restarts == 0:
        return
    for child in children:
        if child.backoff is not None and child.restart != "temporary":
            shortest = _shortest(child, limit.restarts + 1)
            if shortest >= limit.within:
                within = ceil(2 * shortest) if isfinite(shortest) else "…"
                yield (
                    f"the limit of {path!r} ({limit}) can never trip by {child.name!r}: "
                    f"{limit.restarts + 1} restarts take at least {shortest:.3g} s of backoff; "
                    f"give {path!r} a longer window, such as limit=Limit({limit.restarts}, within={within}), "
                    "or write limit=None if it is to be restarted for ever"
                )


def _never_restarted(path: str, spec: Spec) -> Iterator[str]:
    """A limit or backoff where no child is ever restarted (R7)."""
    if isinstance(spec, Child):
        named = [name for name in ("limit", "backoff") if getattr(spec, name) is not None]
        if spec.restart == "temporary" and named:
            yield (
                f"the {' and the '.join(named)} of {path!r} have no effect, for a temporary child is never restarted; "
                "leave them out, or write restart='transient'"
            )
        return
    below = (spec.template,) if isinstance(spec, Pool) else spec.children
    if (
        below
        and spec.limit not in (None, Limit(3, within=5))
        and all(its.restart == "temporary" for its in below)
    ):
        yield (
            f"the limit of {path!r} ({spec.limit}) can never trip, for all its children are temporary, "
            "and never restarted; leave it out"
        )


def _resumes(decider: Decider) -> bool:
    return any(Resume in layer.table.values() or layer.default is Resume for layer in decider.layers())


def _leaves(spec: Spec) -> Iterator[Child]:
    """All leaves at and below a spec, including those in the templates of pools."""
    for _, node in walk(spec):
        if isinstance(node, Child):
            yield node
        elif isinstance(node, Pool):
            yield from _leaves(node.template)


def _keeps(child: Child) -> bool:
    return child.resource is not None


def _shortest(child: Spec, restarts: int) -> float:
    """The least time from the first of `restarts` restarts to the last: the sum of the backoffs between them."""
    backoff = child.backoff
    assert backoff is not None
    delay, total = min(backoff.initial, backoff.maximum), 0.0
    for number in range(backoff.immediate, restarts):
        total += delay * (1 - backoff.jitter) if number else 0.0
        longer = min(delay * backoff.factor, backoff.maximum)
        if longer == delay:  # so are all that follow, which may be a million
            return total + (restarts - number - 1) * delay * (1 - backoff.jitter)
        delay = longer
    return total
