"""What only shows in a whole tree, found without starting it."""

from __future__ import annotations

from collections.abc import Iterator

from .._core.spec import Child, Pool, Spec, Supervisor, placed_twice, walk


def problems(tree: object) -> tuple[list[str], list[str]]:
    """Errors, and warnings, one line each."""
    assert isinstance(tree, Supervisor | Pool)
    return list(placed_twice(tree)), [line for path, spec in walk(tree) for line in _warnings(path, spec)]


def _warnings(path: str, spec: Spec) -> Iterator[str]:
    """A limit that can never trip, because starts and backoffs take longer than its window (R14)."""
    children: tuple[Spec, ...] = (spec,) if isinstance(spec, Child) else spec.children
    limit = spec.limit
    if limit is None or limit.of_ready_time or limit.restarts == 0:
        return
    for child in children:
        if child.backoff is not None:
            shortest = _shortest(child, limit.restarts + 1)
            if shortest >= limit.within:
                yield (
                    f"the limit of {path!r} ({limit}) can never trip by {child.name!r}: "
                    f"{limit.restarts + 1} restarts take at least {shortest:.3g} s of backoff"
                )


def _shortest(child: Spec, restarts: int) -> float:
    """The least time from the first of so many restarts to the last: the backoffs between them."""
    backoff = child.backoff
    assert backoff is not None
    delay, total = min(backoff.initial, backoff.maximum), 0.0
    for number in range(restarts):
        if number >= backoff.immediate:
            total += delay * (1 - backoff.jitter) if number else 0.0
            delay = min(delay * backoff.factor, backoff.maximum)
    return total
