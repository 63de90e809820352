"""What a supervisor's machine does when a caller asks for a stop, a start or a restart, and while a start takes long."""

from __future__ import annotations

from supervise import Limit
from supervise._core import effect

from .test_acts import WAIT, asks, ends, exits, orders, resource, states, tree_of, ups, wakes
from .test_machine import asked_for, child, leaf, machine


def test_a_restart_by_hand_gives_the_reason_and_stops_the_clock_of_ready_time():
    """R14, R25: The clock stands still until the group is up again, also if the group was backing off; the siblings in the group get the reason too."""
    for waits in (False, True):
        tree = tree_of(
            leaf("a", backoff=WAIT),
            leaf("b"),
            strategy="rest_for_one",
            limit=Limit(5, within=99, of_ready_time=True),
        )
        clock = machine(tree).ready_time
        if waits:
            exits(tree, "a")
            ends(tree, "a")
            ends(tree, "b")
            assert clock.at(9) == 0
        caller, out = asks(tree, "restart", "a")
        reasons = [one.reason for one in out if isinstance(one, effect.Cancel)]
        if not waits:
            out = ends(tree, "b")
            reasons += [one.reason for one in out if isinstance(one, effect.Cancel)]
            out = ends(tree, "a")
        assert orders(out) == ["Start a"]
        assert reasons == ["'app/a' was asked to restart"] * (0 if waits else 2)
        assert (clock.at(9), child(tree, "a").restart_in_progress) == (0, True)
        ups(tree, "a")
        assert clock.at(9) == 0
        assert orders(ups(tree, "b")) == ["replied"]
        assert clock.at(9) == 9
        assert caller is not None


def test_a_restart_of_a_child_that_is_down_is_a_start():
    """R25: If it fails, the caller gets the failure, and nothing is judged."""
    tree = tree_of(leaf("a"), leaf("b"), strategy="one_for_all")
    asks(tree, "stop", "a")
    ends(tree, "a")
    caller, out = asks(tree, "restart", "a")
    assert orders(out) == ["Start a"]
    exits(tree, "a")
    assert (orders(ends(tree, "a")), states(tree)) == (["refused"], {"a": "down", "b": "up"})
    assert caller is not None


def test_a_start_is_reported_before_it_is_too_late():
    """R17: `start_warning` comes before `start_timeout`."""
    tree = tree_of(leaf("a", resource=resource, start_timeout=5, start_warning=1))
    asks(tree, "stop", "a")
    ends(tree, "a")
    asks(tree, "start", "a")
    since = tree.now
    out = wakes(tree, since + 1)
    assert any(isinstance(one, effect.ReportOverdue) and one.starting for one in out)
    assert orders(out) == []
    assert orders(wakes(tree, since + 3)) == []
    assert orders(wakes(tree, since + 5)) == ["Cancel a"]


def test_a_stop_by_hand_cancels_the_restart_of_a_child_that_leaves_its_resource():
    """R9: The act that was to begin once the child had ended does not begin."""
    tree = tree_of(leaf("a", resource=resource), leaf("b"))
    exits(tree, "a")
    assert states(tree)["a"] == "releasing"
    asks(tree, "stop", "a")
    assert machine(tree).releasing == {}
    assert orders(ends(tree, "a")) == ["replied"]
    assert states(tree)["a"] == "down"


def test_a_stop_of_a_child_that_is_being_condemned_is_answered_with_the_node():
    """R10, R25: The child is condemned all the same."""
    tree = tree_of(leaf("a", resource=resource), leaf("b"))
    exits(tree, "a", "stop")
    asks(tree, "stop", "a")
    (reply,) = (one for one in ends(tree, "a") if isinstance(one, effect.Reply))
    assert reply.value == "app/a"
    assert states(tree)["a"] == "condemned"


def test_a_start_with_infinite_times_asks_for_no_wake():
    """R17: Nothing of such a start is ever due."""
    tree = tree_of(leaf("a", resource=resource, start_timeout=float("inf"), start_warning=float("inf")))
    asks(tree, "stop", "a")
    ends(tree, "a")
    _, out = asks(tree, "start", "a")
    assert orders(out) == ["Start a"]
    assert not any(isinstance(one, effect.WakeAt) for one in out)


def test_a_start_that_takes_long_is_not_reported_without_a_sink():
    """R17, R31: It is cancelled at its timeout all the same."""
    tree = tree_of(leaf("a", resource=resource, start_timeout=5, start_warning=1))
    asks(tree, "stop", "a")
    ends(tree, "a")
    tree.forest.ledger.listening = False
    asks(tree, "start", "a")
    since = tree.now
    out = wakes(tree, since + 1)
    assert not any(isinstance(one, effect.ReportOverdue) for one in out)
    assert orders(wakes(tree, since + 5)) == ["Cancel a"]


def test_an_inbox_is_at_most_twice_as_long_as_its_waiting_requests():
    """R25, R31: Withdrawn requests are dropped once there are as many of them as of the others."""
    tree = tree_of(leaf("a"))
    root = machine(tree)
    asks(tree, "stop", "a")
    for _ in range(100):
        asks(tree, "status")
    longest = 0
    for _ in range(1000):
        request = effect.Request("status", None)
        asked_for(tree, request)
        longest = max(longest, len(root.inbox))
        asked_for(tree, effect.Withdraw(request))
    assert longest == 201
    assert orders(ends(tree, "a")) == ["replied"] * 101
