"""The restart in one step: when it is not open, and how it goes together with the general path."""

from __future__ import annotations

from math import inf

import pytest

from supervise import Child, Restart
from supervise._core import shortcut
from supervise._core.decide import ROOT
from supervise._core.node import Node

from .test_acts import asks, decided, exits, orders, tree_of, ups
from .test_machine import Boom, child, leaf, machine


def test_a_temporary_child_never_takes_the_fast_path():
    """R7: A temporary child is not restarted."""
    tree = tree_of(leaf("a", restart="temporary"))
    assert shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0) is None


def test_a_leaf_takes_the_fast_path_only_if_its_supervisor_restarts_it_alone():
    """R13: The code that makes the node says so; without it the fast path is closed."""
    nodes = [Node(leaf("a"), "app/a", ROOT), Node(leaf("a"), "app/a", ROOT, has_no_group=True)]
    assert [node.fast_path for node in nodes] == [False, True]


@pytest.mark.parametrize(("warning", "watched"), [(5, True), (inf, False)])
def test_a_leaf_with_a_start_warning_or_timeout_never_takes_the_fast_path(warning, watched):
    """R17: With an infinite `start_warning` and no timeout, nothing of its start is ever due."""

    async def started(*, task_status):
        """A body that takes `task_status`."""

    tree = tree_of(Child("a", started, start_warning=warning))
    emitted = shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0)
    assert (emitted is None) is watched


def test_a_restart_begun_by_the_fast_path_can_end_on_the_general_path():
    """R19: The requests that waited in the meantime are served then."""
    tree = tree_of(leaf("a"))
    assert shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0)
    _, out = asks(tree, "status")
    assert orders(out) == []
    assert orders(ups(tree, "a")) == ["replied"]
    assert machine(tree).act is None
    assert shortcut.restart_at_once(machine(tree), child(tree, "a"), Boom("restart"), 0)
    assert decided(exits(tree, "a")) == [("app", Restart, "table", None, None)]
