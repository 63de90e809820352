"""How a declaration differs from what runs, node by node (R38)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs
from attrs import frozen

from ._same import unless_shared, why_other
from .spec import SHARED, Child, Mailbox, Pool, Spec, Supervisor

_STRUCTURE = ("name", "children", "origin")
_CODE = ("body", "resource", "args")
_Both = tuple[str, Spec | None, Spec | None, tuple[str, str]]
"""A path; the earlier and the later spec there; and by both declarations the path of the supervisor whose mailbox a child there would
share, empty if none has one."""


@frozen
class Change:
    """One difference between a running tree and a declaration.

    Args:
        kind: `added`, `removed` or `changed`.
        path: of the node; of a whole branch that is added or removed, only its top is named.
        options: of a changed node: the names of its options that differ.
        why: of a changed node: for each of them, what differs.
        restarts: whether the node is restarted for it. A node that is not takes its new options without.
    """

    kind: Literal["added", "removed", "changed"]
    path: str
    options: tuple[str, ...] = ()
    why: tuple[str, ...] = ()
    restarts: bool = False

    def __str__(self) -> str:
        sign = {"added": "+", "removed": "-", "changed": "~"}[self.kind]
        if self.kind != "changed":
            return f"{sign} {self.path} {self.kind}"
        how = "restarts" if self.restarts else "takes it at once"
        return f"{sign} {self.path} {how}: {'; '.join(self.why)}"


Specs = Callable[[str], Spec | None]


def changes(
    before: Supervisor | Pool, after: Supervisor | Pool, in_force: Specs, started_with: Specs
) -> list[Change]:
    """All differences, in the order of the tree; those that are removed stand behind their siblings.

    Args:
        before: the declaration that the tree has.
        after: the one that it is to have.
        in_force: gives the spec of the node at a path, if it is in the tree; otherwise that in `before` counts.
        started_with: gives the spec with whose code the leaf at a path runs, if it runs; otherwise that in force counts.
    """
    return list(_walk(before, after, in_force, started_with))


def _walk(before: Spec, after: Spec, in_force: Specs, started_with: Specs) -> Iterator[Change]:
    waiting: list[_Both] = [(after.name, before, after, ("", ""))]
    while waiting:
        path, old, new, owners = waiting.pop()
        old = in_force(path) or old
        if new is None:
            yield Change("removed", path)
        elif old is None:
            yield Change("added", path)
        elif type(old) is not type(new):
            why = f"it is a {type(new).__name__} instead of a {type(old).__name__}"
            yield Change("changed", path, why=(why,), restarts=True)
        else:
            yield from changed(path, old, started_with(path) or old, new, owners)
            if not isinstance(old, Child) and not isinstance(new, Child):
                there = {child.name: child for child in old.children}
                owners = _owner(old, path, owners[0]), _owner(new, path, owners[1])
                below: list[_Both] = [
                    (f"{path}/{child.name}", there.pop(child.name, None), child, owners)
                    for child in new.children
                ]
                below += [(f"{path}/{name}", child, None, owners) for name, child in there.items()]
                waiting += reversed(below)


def _owner(spec: Spec, path: str, above: str) -> str:
    """The path of the supervisor whose mailbox the children of this one share (R37)."""
    return path if isinstance(spec.mailbox, Mailbox) else above


def changed(
    path: str, old: Spec, started: Spec, new: Spec, owners: tuple[str, str] = ("", "")
) -> Iterator[Change]:
    """How one node differs, if it does.

    Args:
        path: its path.
        old: the declaration that it has.
        started: the spec with whose code it runs.
        new: the declaration that it is to have.
        owners: the supervisors whose mailbox it shares, if it shares one, by both declarations.
    """
    options: list[str] = []
    why: list[str] = []
    restarts = False
    for name in [each.name for each in attrs.fields(type(new)) if each.init and each.name not in _STRUCTURE]:
        has, gets = getattr(started if name in _CODE else old, name), getattr(new, name)
        if name == "args" and len(has) == len(gets):
            gets = tuple(map(unless_shared, has, gets))
        reason = why_other(name, has, gets, classes=name in _CODE)
        if reason is not None:
            options.append(name)
            why.append(reason if reason.startswith(name) else f"{name}, since {reason}")
            restarts = (
                restarts or name in _CODE or (isinstance(new, Child) and _is_other_mailbox(name, has, gets))
            )
    if isinstance(new, Child) and new.mailbox is old.mailbox is SHARED and owners[0] != owners[1]:
        options.append("mailbox")
        why.append(f"mailbox, since it is that of {owners[1]!r} and was that of {owners[0]!r}")
        restarts = True
    if options:
        yield Change("changed", path, tuple(options), tuple(why), restarts)


def _is_other_mailbox(name: str, old: Any, new: Any) -> bool:
    """Whether the child has to get its messages from elsewhere, or none any more; another size alone needs no restart."""
    return name == "mailbox" and not (isinstance(old, Mailbox) and isinstance(new, Mailbox))
