"""What one supervisor's machine does about one thing at a time, step by step: the orders that it gives, in their order."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Refused,
    Restart,
    Resume,
    Rule,
    Stop,
    Supervisor,
    events,
)
from supervise._core import effect, shortcut
from supervise._core.forest import Forest

from .test_machine import Boom, Caller, Slow, asked_for, body, child, gone, leaf, machine, opened

POLICY = Decider({"stop": Stop, "resume": Resume, "escalate": Escalate})
WAIT = Backoff(initial=3, factor=1, maximum=3, jitter=0)


@asynccontextmanager
async def resource():
    """A resource."""
    yield


def exits(tree, name, tag="restart", **more):
    node = child(tree, name)
    return asked_for(tree, effect.Exited(node.name, node.incarnation, Boom(tag), **more))


def ends(tree, name, **more):
    node = child(tree, name)
    return asked_for(tree, effect.Ended(node.name, node.incarnation, **more))


def ups(tree, name):
    node = child(tree, name)
    return asked_for(tree, effect.Up(node.name, node.incarnation))


def wakes(tree, now):
    tree.now = now
    return asked_for(tree, effect.Wake())


def asks(tree, kind, name=None, **more):
    caller = Caller()
    return caller, asked_for(tree, effect.Request(kind, caller, name=name, **more))


def orders(out):
    """What is ordered, and answered, in order."""
    found = []
    for one in out:
        if isinstance(one, effect.Reply):
            found.append("refused" if one.error else "replied")
        elif isinstance(one, effect.Start | effect.Ask | effect.Cancel | effect.Release | effect.Resume):
            found.append(f"{type(one).__name__} {one.path.rpartition('/')[2]}")
    return found


def decided(out):
    """By whom, what, why and instead of what."""
    return [
        (one.by, one.directive, one.because, one.instead_of, one.limit)
        for one in out
        if isinstance(one, events.Decided)
    ]


def states(tree):
    return {name: node.state for name, node in machine(tree).children.items()}


def tree_of(*children, **options):
    tree, _ = opened(Supervisor("app", children, **{"decider": POLICY, **options}), Slow)
    return tree


def test_a_second_stop_does_not_begin_the_end_again():
    """R19: It may change how the supervisor ends, but the stop in progress goes on."""
    tree = tree_of(leaf("a"), leaf("b"))
    assert orders(asked_for(tree, effect.Stop("one"))) == ["Cancel b"]
    act = machine(tree).act
    exc = Boom("two")
    assert asked_for(tree, effect.Stop("two", returned=True, exc=exc)) == []
    assert (machine(tree).act is act, act.returned, act.failure.exc, act.failure.path) == (
        True,
        True,
        exc,
        "app",
    )
    assert orders(ends(tree, "b")) == ["Cancel a"]


def test_resume_enters_the_body_again_and_nothing_else():
    """R8: This holds if the child has a resource to keep, and its body was up."""
    tree = tree_of(leaf("a", resource=resource), leaf("b"), strategy="one_for_all")
    out = exits(tree, "a", "resume", resumable=True)
    assert (orders(out), out[-1]) == (["Resume a"], effect.Resume("app/a", 1))
    assert decided(out) == [("app", Resume, "table", None, None)]
    assert (states(tree)["a"], machine(tree).restarts(0), child(tree, "a").failure) == ("up", 1, None)
    exits(tree, "a", "resume", resumable=True, progressed=True)
    assert machine(tree).restarts(0) == 1


def test_resume_of_a_failure_that_cannot_be_resumed_becomes_a_restart_and_is_reported_so():
    """R8: A Resume that becomes a Restart is charged like any other Restart."""
    tree = tree_of(leaf("a"))
    out = exits(tree, "a", "resume")
    assert decided(out) == [("app", Restart, "table", Resume, None)]
    assert (orders(out), machine(tree).restarts(0)) == (["Release a"], 1)
    assert orders(ends(tree, "a")) == ["Start a"]


def test_a_temporary_child_is_stopped_instead_of_restarted():
    """R7: A temporary child whose verdict is Restart is stopped, and leaves the tree."""
    tree = tree_of(leaf("a", restart="temporary"), leaf("b"))
    node = child(tree, "a")
    out = exits(tree, "a")
    assert decided(out) == [("app", Stop, "table", Restart, None)]
    assert gone(ends(tree, "a"))[0][2]
    assert (states(tree), node.state) == ({"b": "up"}, "down")


@pytest.mark.parametrize("backoff", [None, WAIT])
def test_a_group_restart_drops_temporary_siblings(backoff):
    """R13: This holds with a backoff too, and in whatever state those siblings are."""
    tree = tree_of(
        leaf("a", restart="temporary"), leaf("b", backoff=backoff), leaf("c"), strategy="one_for_all"
    )
    assert orders(exits(tree, "b")) == ["Release b"]
    assert orders(ends(tree, "b")) == ["Cancel c"]
    assert orders(ends(tree, "c")) == ["Cancel a"]
    out = ends(tree, "a")
    assert gone(out) == [("app/a", None, True)]
    assert orders(out) == ([] if backoff else ["Start b"])
    assert states(tree)["b"] == ("restarting" if backoff else "starting")
    out = wakes(tree, 3) if backoff else []
    assert orders(out) == (["Start b"] if backoff else [])
    assert orders(ups(tree, "b")) == ["Start c"]
    ups(tree, "c")
    assert states(tree) == {"b": "up", "c": "up"}
    assert machine(tree).restarts(0) == 1


def test_a_child_that_backs_off_is_restarted_by_hand_at_once():
    """R15, R25: The caller gets its reply when the child is up, and nothing is charged."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"))
    exits(tree, "a")
    (backing,) = (one for one in ends(tree, "a") if isinstance(one, events.BackingOff))
    assert (backing.delay, backing.until, child(tree, "a").due) == (3, 3, 3)
    caller, out = asks(tree, "start", "a")
    assert (orders(out), machine(tree).restarts(0)) == (["Start a"], 1)
    assert wakes(tree, 3) == []
    out = ups(tree, "a")
    assert orders(out) == ["replied"]
    assert [(one.token, one.value) for one in out if isinstance(one, effect.Reply)] == [(caller, "app/a")]


def test_a_child_that_backs_off_is_stopped_by_hand_for_good():
    """R13, R25: A stop by hand cancels the retry; the child's group stays down, and its members are reported as down for good."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), strategy="rest_for_one")
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "b")
    assert states(tree) == {"a": "restarting", "b": "down"}
    _, out = asks(tree, "stop", "a")
    assert sorted(gone(out)) == [("app/a", None, False), ("app/b", None, False)]
    assert orders(out) == ["replied"]
    assert wakes(tree, 3) == []
    assert states(tree) == {"a": "down", "b": "down"}


def test_a_child_whose_retry_is_queued_cannot_be_restarted_by_hand():
    """R25: The request is refused, because the child is restarting."""
    tree = tree_of(leaf("a"), leaf("b"))
    exits(tree, "a")
    ends(tree, "a")
    exits(tree, "a")
    caller = Caller()
    machine(tree).inbox.append(effect.Request("start", caller, name="a"))
    out = ends(tree, "a")
    (reply,) = (one for one in out if isinstance(one, effect.Reply))
    assert (reply.token, str(reply.error)) == (caller, "'app/a' is restarting")
    assert isinstance(reply.error, Refused)
    assert orders(out) == ["refused", "Start a"]


def test_a_member_that_is_condemned_in_a_restart_is_skipped():
    """R13: The group restart goes on with the next member, and that one's own failure is judged like any other."""
    tree = tree_of(leaf("a"), leaf("b"), leaf("c"), strategy="rest_for_one", limit=Limit(9, within=9))
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "c")
    ends(tree, "b")
    assert states(tree) == {"a": "starting", "b": "down", "c": "down"}
    assert orders(exits(tree, "a", "stop")) == ["Release a"]
    assert orders(ends(tree, "a")) == ["Start b"]
    assert orders(exits(tree, "b", "stop")) == ["Release b"]
    assert orders(ends(tree, "b")) == ["Start c"]
    ups(tree, "c")
    assert states(tree) == {"a": "condemned", "b": "condemned", "c": "up"}
    assert machine(tree).restarts(0) == 1


def test_a_start_that_fails_in_a_restart_is_tried_again_after_the_waiting_items():
    """R13, R14: Each retry is one charge, and one too many passes the limit."""
    tree = tree_of(leaf("a"), leaf("b"), limit=Limit(2, within=9), on_limit="shutdown")
    exits(tree, "a")
    ends(tree, "a")
    out = exits(tree, "a")
    assert (decided(out)[0][1:3], machine(tree).restarts(0)) == ((Restart, "table"), 1)
    assert orders(ends(tree, "a")) == ["Start a"]
    assert machine(tree).restarts(0) == 2
    exits(tree, "a")
    assert orders(ends(tree, "a")) == ["Cancel b"]
    assert (states(tree)["a"], machine(tree).phase, machine(tree).act.returned) == ("down", "ending", True)


def test_a_child_that_another_act_has_started_does_not_come_up_by_the_fast_path():
    """R19: When a caller's start has started the child, the general path must report it up, because that act waits for it."""
    tree = tree_of(leaf("a"), leaf("b"))
    node = child(tree, "a")
    assert shortcut.restart_at_once(machine(tree), node, Boom("f"), 0)
    assert shortcut.up_at_once(machine(tree), node, 0)
    asks(tree, "stop", "a")
    ends(tree, "a")
    _, out = asks(tree, "start", "a")
    assert orders(out) == ["Start a"]
    assert shortcut.up_at_once(machine(tree), node, 1) is None
    assert orders(ups(tree, "a")) == ["replied"]


def test_a_status_has_all_fields_of_a_node():
    """R33: The machine makes it in its turn, from the state of that moment."""
    tree = tree_of(leaf("a", limit=Limit(2, within=5)), leaf("b", backoff=WAIT))
    exits(tree, "a")
    ends(tree, "a")
    ups(tree, "a")
    exits(tree, "b")
    ends(tree, "b")
    _, (reply,) = asks(tree, "status")
    root, a, b = reply.value.walk()
    assert (root.path, root.kind, root.state, root.incarnation, root.restarts) == (
        "app",
        "supervisor",
        "up",
        1,
        2,
    )
    assert (a.path, a.kind, a.state, a.incarnation, a.restarts, str(a.last_failure)) == (
        "app/a", "child", "up", 2, 1, "restart"
    )  # fmt: skip
    assert (b.state, b.restarts, b.due, b.mailbox, a.due) == ("restarting", 0, 3, None, None)
    assert root.children == (a, b)


def test_a_root_that_is_ignored_or_fails_emits_every_event_itself():
    """R16, R17: The root emits the events that its supervisor would emit, if it had one."""
    for boot, kinds in (
        (effect.Boot(ignored=True), ["Ignored", "Returned", "Stopped"]),
        (effect.Boot(Boom("b")), ["StartFailed", "Failed", "Decided", "Stopped"]),
    ):
        forest = Forest(Supervisor("app", [Child("a", body)], init=lambda: IGNORE))
        forest.start(1)
        out = forest.handle(forest.machines["app"], boot, 2)
        emitted = [one for one in out if isinstance(one, events.Event)]
        assert [type(one).__name__ for one in emitted] == kinds
        assert {(one.at, one.path, one.incarnation) for one in emitted} == {(2, "app", 1)}
        assert [type(one).__name__ for one in out[len(emitted) :]] == ["Gone", "Rise"]
        assert (forest.over, forest.root.state, forest.root.gone) == (True, "down", True)
        shown = forest.status(3)
        failed = len(kinds) > 3
        assert (shown.since, shown.ready_at, shown.failures_total) == (2, None, failed)
        assert (shown.decision is not None and shown.decision.because == "first start") is failed


def test_a_leafs_own_limit_is_charged_beside_its_supervisors():
    """R14: Passing it is another failure, for which the default is Stop."""
    tree = tree_of(leaf("a", limit=Limit(1, within=5)), leaf("b"))
    exits(tree, "a")
    ends(tree, "a")
    ups(tree, "a")
    out = exits(tree, "a")
    assert decided(out) == [("app", Stop, "limit", None, None)]
    ends(tree, "a")
    assert (states(tree), machine(tree).restarts(0)) == ({"a": "condemned", "b": "up"}, 1)


def test_a_verdict_from_above_applies_to_the_failed_child_below():
    """R11: After Resume the suspended leaf goes on; any other verdict arrives as a stop. Meanwhile the supervisor serves nothing else."""
    inner = Supervisor("x", [leaf("a", resource=resource), leaf("b")], decider=Decider(default=Escalate))
    tree = tree_of(inner)
    below = machine(tree, "x")
    a = below.children["a"]
    out = tree.forest.handle(
        below, effect.Exited(a.name, 1, Boom("resume"), resumable=True, progressed=True), 0
    )
    assert (orders(out), below.act, a.state) == (["Resume a"], None, "up")
    assert decided(out) == [("app", Resume, "table", None, None)]
    out = tree.forest.handle(below, effect.Exited(a.name, 1, Boom("stop"), resumable=True), 0)
    assert orders(out) == ["Cancel b"]
    assert child(tree, "x").state == "stopping"


def test_a_condemned_child_is_skipped_by_a_group_restart():
    """R10: A condemned child stays down until a caller starts it by hand; a child that is merely down is revived."""
    tree = tree_of(leaf("a"), leaf("b"), leaf("c"), strategy="one_for_all")
    exits(tree, "a", "stop")
    ends(tree, "a")
    asks(tree, "stop", "b")
    ends(tree, "b")
    assert states(tree) == {"a": "condemned", "b": "down", "c": "up"}
    exits(tree, "c")
    assert orders(ends(tree, "c")) == ["Start b"]
    assert orders(ups(tree, "b")) == ["Start c"]
    ups(tree, "c")
    _, out = asks(tree, "start", "a")
    assert orders(out) == ["Start a"]
    assert (child(tree, "a").gone, states(tree)["a"]) == (False, "starting")


def test_a_start_by_hand_that_fails_leaves_the_child_down_for_good():
    """R25: The caller gets the failure; nothing is decided or charged."""
    tree = tree_of(leaf("a"), leaf("b"))
    asks(tree, "stop", "a")
    ends(tree, "a")
    caller, _ = asks(tree, "start", "a")
    out = exits(tree, "a")
    assert (decided(out), orders(out)) == ([("app", None, "first start", None, None)], ["Release a"])
    out = ends(tree, "a")
    (reply,) = (one for one in out if isinstance(one, effect.Reply))
    assert (reply.token, str(reply.error), str(reply.error.__cause__)) == (
        caller,
        "'app/a' failed to start: Boom('restart')",
        "restart",
    )
    assert [(path, str(why), removed) for path, why, removed in gone(out)] == [("app/a", "restart", False)]
    assert (states(tree)["a"], machine(tree).restarts(0), machine(tree).act) == ("down", 0, None)


def test_a_start_by_hand_that_is_ignored_is_answered():
    """R17, R25: The child is down, and the caller gets no error."""
    tree = tree_of(leaf("a"), leaf("b"))
    asks(tree, "stop", "a")
    ends(tree, "a")
    asks(tree, "start", "a")
    out = ends(tree, "a", ignored=True)
    assert (orders(out), gone(out), states(tree)["a"]) == (["replied"], [("app/a", None, False)], "down")
    emitted = [type(one).__name__ for one in out if isinstance(one, events.Event)]
    assert emitted == ["Ignored", "Returned", "Stopped"]


def test_every_event_has_the_time_and_the_incarnation():
    """R31: This holds for the nodes below and for the root, also if no decider decides."""

    class Halt(BaseException):
        pass

    inner = Supervisor("x", [leaf("c")])
    tree, seen = opened(Supervisor("app", [leaf("a"), inner]), Slow)
    tree.now = 7
    out = asked_for(tree, effect.Exited("a", 1, Halt()))
    out += tree.forest.handle(machine(tree, "x"), effect.Ended("c", 1), 7)
    out += ends(tree, "a")
    emitted = [(type(one).__name__, one.path) for one in out if isinstance(one, events.Event)]
    assert emitted == [
        ("Failed", "app/a"),
        ("Decided", "app/a"),
        ("Stopping", "app"),
        ("Stopping", "app/x"),
        ("Stopping", "app/x/c"),
        ("Stopped", "app/x/c"),
        ("Stopped", "app/x"),
        ("Stopped", "app/a"),
        ("Stopped", "app"),
    ]
    assert {(one.at, one.incarnation) for one in out if isinstance(one, events.Event)} == {(7, 1)}
    stops = [one.reason for one in out if isinstance(one, events.Stopping)]
    assert stops == ["'app' reported a failure that is not an Exception"] * 3
    assert {(event.at, event.incarnation) for event in seen} == {(0, 1)}


def test_an_escalation_names_each_supervisor_that_decided_and_its_directive():
    """R11: Each supervisor on the way up passes the failure on; a root that escalates fails the tree."""
    inner = Supervisor("x", [leaf("a")], decider=Decider(default=Escalate))
    tree = tree_of(inner, leaf("b"))
    below = machine(tree, "x")
    out = tree.forest.handle(below, effect.Exited("a", 1, Boom("escalate")), 3)
    assert decided(out) == [("app", Escalate, "table", None, None)]
    (fail,) = (one for one in out if isinstance(one, effect.Fail))
    assert str(fail.exc) == "escalate"
    assert (str(tree.forest.root.why), tree.forest.root.state) == ("escalate", "stopping")
    assert orders(out) == ["Cancel b"]


def test_a_condemned_child_that_is_stopped_by_hand_stays_condemned():
    """R10, R25: There is nothing to stop, and the caller gets a reply that says so."""
    tree = tree_of(leaf("a"), leaf("b"))
    exits(tree, "a", "stop")
    ends(tree, "a")
    _, out = asks(tree, "stop", "a")
    assert (orders(out), gone(out), states(tree)["a"]) == (["replied"], [], "condemned")


def test_a_supervisor_that_has_ended_is_not_stopped_again():
    """R19, R23: The stop decides the failure of that supervisor, which could not be judged before."""
    inner = Supervisor("x", [leaf("c")])
    tree = tree_of(leaf("a"), leaf("b"), inner)
    asks(tree, "stop", "a")
    exc = Boom("restart")
    tree.forest.handle(machine(tree, "x"), effect.Stop("x fails", exc=exc), 0)
    below = machine(tree, "x")
    tree.forest.handle(below, effect.Ended("c", 1), 0)
    assert (states(tree)["x"], child(tree, "x").alive) == ("failed", False)
    out = asked_for(tree, effect.Stop("a test"))
    assert decided(out) == []
    out = ends(tree, "a")
    assert decided(out) == [("app", None, "stop", None, None)]
    assert [event.path for event in out if isinstance(event, events.Stopped)] == ["app/a", "app/x"]
    assert orders(out) == ["Cancel b"]


def testready_time_goes_on_once_a_restart_has_come_to_an_end():
    """R14: It ends when the child is up, condemned, ignored, or stopped by hand while it waited."""
    for end in ("up", "stop", "ignored", "by hand"):
        limit = Limit(5, within=99, of_ready_time=True)
        tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), limit=limit)
        clock = machine(tree).ready_time
        tree.now = 2
        exits(tree, "a")
        ends(tree, "a")
        assert clock.at(4) == 2
        tree.now = 5
        if end == "by hand":
            asks(tree, "stop", "a")
        else:
            wakes(tree, 5)
        if end == "up":
            ups(tree, "a")
        elif end == "ignored":
            ends(tree, "a", ignored=True)
        elif end == "stop":
            exits(tree, "a", "stop")
            ends(tree, "a")
        assert (clock.at(9), child(tree, "a").restart_in_progress) == (6, False), end


def test_a_valid_timer_outlives_the_void_ones():
    """R20: This holds however often another child's timer is set anew."""
    tree = tree_of(leaf("a"), leaf("b", grace=50))
    root = machine(tree)
    root.out = []
    root._arm(child(tree, "b"), "grace", 50)
    for number in range(300):
        root._arm(child(tree, "a"), "grace", 100 + number)
    assert child(tree, "b").timer in [ticket for _, ticket, _ in root.timers._heap]
    assert [one.at for one in root.out] == [50]
    due = [at for at, ticket, node in root.timers._heap if node.timer == ticket]
    assert sorted(due) == [50, 399]


@pytest.mark.parametrize("backoff", [None, WAIT])
def test_a_sibling_that_fails_too_is_absorbed_by_the_group_restart(backoff):
    """R13, R19: That failure is not judged and not charged; a temporary child leaves the tree because of it."""
    tree = tree_of(
        leaf("a", backoff=backoff), leaf("b", restart="temporary"), leaf("c"), strategy="one_for_all"
    )
    exits(tree, "a")
    node = child(tree, "b")
    exc = Boom("restart")
    assert decided(asked_for(tree, effect.Exited(node.name, 1, exc))) == []
    assert node.undecided
    ends(tree, "a")
    out = ends(tree, "c")
    assert (decided(out), node.undecided) == ([("app", None, "absorbed", None, None)], False)
    assert orders(out) == ["Release b"]
    assert gone(ends(tree, "b")) == [("app/b", exc, True)]
    assert machine(tree).restarts(0) == 1


def test_a_child_that_is_starting_is_cancelled_and_not_asked_to_stop():
    """R20: A child that is not up has nothing to drain."""
    tree = tree_of(leaf("a", drain=2), leaf("b", drain=2))
    exits(tree, "a")
    ends(tree, "a")
    assert states(tree) == {"a": "starting", "b": "up"}
    assert orders(asked_for(tree, effect.Stop("a test"))) == ["Ask b"]
    out = ends(tree, "b")
    assert orders(out) == ["Cancel a"]
    assert [one.reason for one in out if isinstance(one, effect.Cancel)] == ["a test"]


def test_after_an_add_that_fails_the_address_gives_the_failure_of_the_start():
    """R25, R28: The child has left the tree, and the reason is the failure of its start."""
    tree = tree_of(leaf("a"))
    _, out = asks(tree, "add", spec=leaf("n"))
    assert (orders(out), list(states(tree))) == (["Start n"], ["a", "n"])
    node, exc = child(tree, "n"), Boom("f")
    assert decided(asked_for(tree, effect.Exited(node.name, 1, exc))) == [
        ("app", None, "first start", None, None)
    ]
    out = asked_for(tree, effect.Ended(node.name, 1))
    assert gone(out) == [("app/n", exc, True)]
    assert (orders(out), list(states(tree)), machine(tree).act) == (["refused"], ["a"], None)


def test_a_supervisor_that_gives_up_has_not_returned():
    """R11, R14: Its last report is that it is gone, with the failure."""
    tree = tree_of(leaf("a"), leaf("b"), limit=Limit(0, within=5))
    exits(tree, "a")
    out = ends(tree, "a")
    assert (tree.forest.root.state, orders(out)) == ("failed", ["Cancel b"])
    out += ends(tree, "b")
    emitted = [type(one).__name__ for one in out if isinstance(one, events.Event)]
    assert emitted == ["Stopped", "Failed", "Decided", "Stopping", "Stopped", "Stopped"]
    (why,) = (why for path, why, _ in gone(out) if path == "app")
    assert (str(why), str(why.__cause__)) == ("'app' passed its limit of 0 within 5 s", "restart")
    assert tree.forest.root.last_failure is why


def test_a_tag_from_below_goes_up_with_the_failure():
    """R11: The rule that gave the tag belongs to a decider further down."""
    rule = Rule(KeyError, "db")
    inner = Supervisor("x", [leaf("a"), leaf("b")], decider=Decider({"db": Escalate}, rules=[rule]))
    tree = tree_of(inner, decider=Decider({"db": Stop}))
    below = machine(tree, "x")
    out = tree.forest.handle(below, effect.Exited("a", 1, KeyError("k")), 0)
    assert decided(out) == [("app", Stop, "table", None, None)]
    assert [one.tag for one in out if isinstance(one, events.Decided)] == ["db"]


def test_a_failure_that_a_stop_overtakes_is_decided_by_the_stop():
    """R19: Its leaf is released when its turn in the stop comes."""
    tree = tree_of(leaf("a"), leaf("b"))
    asked_for(tree, effect.Stop("a test"))
    out = exits(tree, "a")
    assert (decided(out), orders(out)) == ([("app", None, "stop", None, None)], [])
    assert orders(ends(tree, "b")) == ["Release a"]


def test_the_value_that_a_child_returned_is_in_its_event():
    """R7, R18: The child is done. If it was significant, its supervisor is done too, and counts as returned."""
    tree = tree_of(
        leaf("a", restart="transient", significant=True), leaf("b"), auto_shutdown="any_significant"
    )
    out = asked_for(tree, effect.Exited("a", 1, value=7))
    assert [(one.path, one.value) for one in out if isinstance(one, events.Returned)] == [("app/a", 7)]
    assert orders(out) == ["Release a"]
    assert orders(ends(tree, "a")) == ["Cancel b"]
    out = ends(tree, "b")
    emitted = [(type(one).__name__, one.path) for one in out if isinstance(one, events.Event)]
    assert emitted == [("Stopped", "app/b"), ("Returned", "app"), ("Stopped", "app")]


def test_the_reply_to_a_request_is_the_node():
    """R25: This holds for stop, start, remove and add. A name is free once its child has left the tree, and not before."""
    tree = tree_of(leaf("a"), leaf("b"))
    asks(tree, "stop", "a")
    values = [one.value for one in ends(tree, "a") if isinstance(one, effect.Reply)]
    asks(tree, "start", "a")
    values += [one.value for one in ups(tree, "a") if isinstance(one, effect.Reply)]
    exits(tree, "a", "stop")
    ends(tree, "a")
    _, (reply,) = asks(tree, "add", spec=leaf("a"))
    assert (reply.error.reason, states(tree)["a"]) == ("duplicate", "condemned")
    values += [one.value for one in asks(tree, "remove", "a")[1] if isinstance(one, effect.Reply)]
    assert values == ["app/a"] * 3


def test_a_verdict_that_passes_the_limit_keeps_its_other_fields():
    """R8, R14: Here a Resume had become a Restart, and that was one restart too many."""
    tree = tree_of(leaf("a"), leaf("b"), limit=Limit(0, within=5))
    assert decided(exits(tree, "a", "resume"))[0] == ("app", Restart, "table", Resume, "0 within 5 s")


def test_an_earlier_siblings_failure_widens_the_group_and_the_wait():
    """R15: The wait is the longer of the two, and there is one retry."""
    short, long = (Backoff(initial=it, factor=1, maximum=it, jitter=0) for it in (1, 5))
    tree = tree_of(leaf("a", backoff=short), leaf("b", backoff=long), strategy="rest_for_one")
    exits(tree, "b")
    ends(tree, "b")
    tree.now = 2
    exits(tree, "a")
    out = ends(tree, "a")
    (backing,) = (one for one in out if isinstance(one, events.BackingOff))
    assert (backing.path, backing.delay, backing.until) == ("app/a", 3, 5)
    assert states(tree) == {"a": "restarting", "b": "down"}
    assert orders(wakes(tree, 5)) == ["Start a"]
    assert orders(ups(tree, "a")) == ["Start b"]


def test_the_children_of_a_supervisor_that_is_restarted_are_stopped_with_the_reason():
    """R11, R36: The reason names the strategy of the supervisor above."""
    for strategy, why in (("one_for_one", "'app/x' failed"), ("one_for_all", "sibling 'app/x' failed")):
        inner = Supervisor("x", [leaf("a"), leaf("b")], decider=Decider(default=Escalate))
        tree = tree_of(inner, strategy=strategy)
        below = machine(tree, "x")
        out = tree.forest.handle(below, effect.Exited("a", 1, Boom("restart")), 0)
        assert [one.reason for one in out if isinstance(one, events.Stopping)] == [f"{strategy}: {why}"]


def test_a_start_that_is_late_in_a_restart_is_charged_as_its_retry():
    """R14, R17: It is charged once for the decision, and once for the retry."""
    tree = tree_of(leaf("a", start_timeout=2), leaf("b"))
    exits(tree, "a")
    ends(tree, "a")
    wakes(tree, tree.now + 2)
    out = ends(tree, "a")
    assert [type(one).__name__ for one in out if isinstance(one, events.Event)][:3] == [
        "StartFailed",
        "Failed",
        "Decided",
    ]
    assert (states(tree)["a"], machine(tree).restarts(tree.now)) == ("starting", 2)


def test_nothing_is_started_after_a_base_exception():
    """R4: Not even the rest of a group that was being restarted is started."""
    tree = tree_of(leaf("a"), leaf("b"), strategy="one_for_all")
    exits(tree, "a")
    ends(tree, "a")
    out = ends(tree, "b", error=SystemExit(3))
    assert not any(isinstance(one, effect.Start) for one in out)
    assert states(tree) == {"a": "down", "b": "down"}


def test_a_limit_of_ready_time_counts_by_that_clock():
    """R14, R33: The count in a status uses that clock too."""
    tree = tree_of(leaf("a"), limit=Limit(5, within=10, of_ready_time=True))
    exits(tree, "a")
    ends(tree, "a")
    tree.now = 8  # the start took that long
    ups(tree, "a")
    assert [machine(tree).restarts(now) for now in (8, 12, 17.5, 18)] == [1, 1, 1, 0]
