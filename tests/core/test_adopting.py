"""A supervisor's machine takes another declaration: what it answers, counts and starts, one step at a time (R38)."""

from __future__ import annotations

import pytest

from supervise import Limit, Refused, Supervisor
from supervise._core.decide import ROOT
from supervise._core.node import Memory, Node, Tombstone

from .test_acts import POLICY, WAIT, asks, ends, exits, orders, states, tree_of, ups, wakes
from .test_machine import leaf, machine


def app(*children, **options):
    return Supervisor("app", children, **{"decider": POLICY, **options})


def test_the_answer_is_the_path_of_the_supervisor():
    """R25, R38."""
    _, (reply,) = asks(tree_of(leaf("a")), "adopt", spec=app(leaf("a"), leaf("b")))
    assert (reply.value, reply.error) == ("app", None)


def test_it_is_refused_while_a_child_that_leaves_is_there():
    """R38: Its stop and its removal are requests of their own, and come first."""
    tree = tree_of(leaf("a"), leaf("b"))
    _, (reply,) = asks(tree, "adopt", spec=app(leaf("a")))
    with pytest.raises(Refused, match=r"^'app/b' is still in the tree$") as caught:
        raise reply.error
    assert (caught.value.reason, states(tree)) == ("running", {"a": "up", "b": "up"})


def test_a_child_that_leaves_need_not_fit_into_the_new_declaration():
    """R20, R38: Only one that was added at run time stays, so that it has to."""
    tree = tree_of(
        leaf("a"), leaf("b", restart="transient", significant=True), auto_shutdown="any_significant"
    )
    machine(tree).check_added(app(leaf("a")))
    asks(tree, "add", spec=leaf("c", restart="transient", significant=True))
    with pytest.raises(ValueError, match="'c'"):
        machine(tree).check_added(app(leaf("a")))


def test_ready_time_of_another_limit_stands_still_while_a_restart_is_in_progress():
    """R14, R38: The restart of `a` began under the earlier limit, at 0 s, and ends at 5 s; the new limit counts from 1 s on."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"))
    exits(tree, "a")
    ends(tree, "a")
    tree.now = 1
    limit = Limit(9, within=99, of_ready_time=True)
    asks(tree, "adopt", spec=app(leaf("a", backoff=WAIT), leaf("b"), limit=limit))
    wakes(tree, 3)
    tree.now = 5
    ups(tree, "a")
    assert machine(tree).ready_time.at(10) == 10 - (5 - 1)


def test_of_those_that_left_the_group_of_a_retry_the_first_is_started_with_its_own_group():
    """R13, R38: `b` and `c` stand before `a`, whose retry would start neither. That of `b` starts all, with the backoff of `a`."""
    children = [leaf("b"), leaf("c"), leaf("a", backoff=WAIT)]
    tree = tree_of(*children, strategy="one_for_all")
    exits(tree, "a")
    for name in "acb":
        ends(tree, name)
    assert states(tree) == {"b": "down", "c": "down", "a": "restarting"}
    _, out = asks(tree, "adopt", spec=app(*children, strategy="rest_for_one"))
    assert (orders(out), states(tree)) == (["replied"], {"b": "restarting", "c": "down", "a": "down"})
    assert orders(wakes(tree, 3)) == ["Start b"]
    assert orders(ups(tree, "b")) == ["Start c"]


def test_without_groups_nothing_is_kept_about_retries():
    """R13, R38: `b` starts by itself, and the retry of `a` goes on."""
    children = [leaf("a", backoff=WAIT), leaf("b")]
    tree = tree_of(*children, strategy="one_for_all")
    exits(tree, "a")
    for name in "ba":
        ends(tree, name)
    _, out = asks(tree, "adopt", spec=app(*children))
    assert (orders(out), states(tree)) == (["replied", "Start b"], {"a": "restarting", "b": "starting"})
    assert machine(tree).retrying == {}


def test_what_is_remembered_of_a_child_that_leaves_the_declaration_is_kept():
    """R9, R38: Its incarnation goes on when a child of its name is added later."""
    memory, past = Memory(), Node(leaf("a"), "app/a", ROOT)
    past.incarnation = 7
    memory.declared["a"] = tombstone = Tombstone(past, None)
    assert memory.take_out(app(leaf("b"))) == ["a"]
    assert (memory.declared, memory.left) == ({}, {"a": tombstone})
    added = Node(leaf("a"), "app/a", ROOT)
    memory.recall(added)
    assert added.incarnation == 7


def test_a_child_that_has_left_meanwhile_is_not_started_with_its_new_code():
    """R25, R38."""
    _, (reply,) = asks(tree_of(leaf("a")), "renew", "b")
    assert (str(reply.error), reply.error.reason) == ("'app' has no child 'b'", "not_found")
