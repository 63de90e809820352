"""One timer for each child, and a heap that does not grow with those that are void."""

from __future__ import annotations

import math

from supervise import Child
from supervise._core.decide import ROOT
from supervise._core.node import Node
from supervise._core.timers import Timers


async def body():
    """Never called."""


def node(name="a"):
    return Node(Child(name, body), f"app/{name}", ROOT)


def test_those_that_are_due_come_the_earliest_first_and_in_the_order_of_arming():
    timers, nodes = Timers(), [node(name) for name in "abcd"]
    assert [timers.arm(one, "grace", at) for one, at in zip(nodes, (3, 1, 1, 5), strict=True)] == [
        True, True, False, False,
    ]  # fmt: skip
    assert timers.next() == 1
    assert [one.name for one in timers.due(3)] == ["b", "c", "a"]
    assert timers.next() == 5


def test_a_node_has_one_timer_the_last():
    timers, one = Timers(), node()
    timers.arm(one, "drain", 1)
    timers.arm(one, "grace", 2)
    assert one.phase == "grace"
    assert list(timers.due(1)) == []
    assert list(timers.due(2)) == [one]


def test_a_disarmed_timer_is_never_due_and_asks_for_nothing():
    timers, one = Timers(), node()
    assert (one.timer, one.phase) == (0, "")
    timers.arm(one, "grace", 1)
    timers.disarm(one)
    assert (one.timer, one.phase) == (0, "")
    assert timers.next() is None
    assert list(timers.due(9)) == []


def test_what_is_never_due_is_armed_all_the_same():
    """An infinite grace has a phase, and makes what was before it void."""
    timers, one = Timers(), node()
    timers.arm(one, "drain", 1)
    assert not timers.arm(one, "grace", math.inf)
    assert (one.phase, timers.next()) == ("grace", None)


def test_what_is_armed_while_others_are_due_is_among_them():
    timers, one, other = Timers(), node("a"), node("b")
    timers.arm(one, "grace", 1)
    seen = []
    for due in timers.due(1):
        seen.append(due)
        if due is one:
            timers.arm(other, "grace", 0.5)
    assert seen == [one, other]


def test_void_timers_do_not_accumulate():
    """R31: 300 armings of one child, and of 100 children in turn, of which each but the last is void."""
    for nodes, most in (([node()], 64), ([node(str(n)) for n in range(100)], 200)):
        timers = Timers()
        for round_ in range(300):
            for one in nodes:
                timers.arm(one, "grace", 1e6 + round_)
                assert len(timers._heap) <= most
        assert timers.next() == 1e6 + 299
        assert set(timers.due(2e6)) == set(nodes)
