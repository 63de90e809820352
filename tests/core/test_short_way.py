"""The restart in one step: when it is not open, and how it goes together with the general path."""

from __future__ import annotations

from supervise import Restart
from supervise._core import shortcut

from .test_acts import asks, decided, exits, orders, tree_of, ups
from .test_machine import Boom, child, leaf, machine


def test_a_temporary_child_never_goes_the_short_way():
    """R7: it is not restarted."""
    tree = tree_of(leaf("a", restart="temporary"))
    assert shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0) is None


def test_a_restart_that_went_the_short_way_can_end_the_long_one():
    """R19: what has waited meanwhile is served then."""
    tree = tree_of(leaf("a"))
    assert shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0)
    _, out = asks(tree, "status")
    assert orders(out) == []
    assert orders(ups(tree, "a")) == ["replied"]
    assert machine(tree).act is None
    assert shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0)
    assert decided(exits(tree, "a")) == [("app", Restart, "table", None, None)]
