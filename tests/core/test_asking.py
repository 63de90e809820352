"""What goes up and comes down again: a supervisor that asks for a verdict, and its last report."""

from __future__ import annotations

from supervise import Decider, Escalate, Limit, Restart, Resume, Rule, Supervisor, events
from supervise._core import effect
from supervise._core.forest import Forest

from .test_acts import asks, decided, ends, exits, resource, states, tree_of, wakes
from .test_machine import Boom, asked_for, leaf, machine

UPWARDS = Decider(default=Escalate)


def reasons(out):
    return [(one.path.rpartition("/")[2], one.reason) for one in out if isinstance(one, effect.Cancel)]


def below(tree, item, now=0.0, **more):
    """What the tree makes of an input to the machine of `x`."""
    return tree.forest.handle(machine(tree, "x"), item, now, **more)


def test_a_supervisor_that_asks_for_a_verdict_waits_with_its_failed_child_suspended():
    """R11, R19: Until the verdict comes, all other requests wait."""
    inner = Supervisor("x", [leaf("c"), leaf("d")], decider=UPWARDS)
    tree = tree_of(inner, leaf("a"))
    asks(tree, "stop", "a")
    x = machine(tree, "x")
    c = x.children["c"]
    (_, rise) = x.handle(effect.Exited(c.name, 1, Boom("restart")), 0)
    assert (rise.path, rise.report.child, rise.report.risen.origin) == ("app/x", "x", "app/x/c")
    assert (x.act.kind, x.act.pending, c.awaited, c.state) == ("ask", 1, True, "failed")
    below(tree, effect.Request("status", object()))
    assert repr(x) == "<machine 'app/x' up act=ask waiting=1>"


def test_a_supervisor_that_passed_its_limit_escalates_and_only_a_stop_answers():
    """R8, R11, R14: A Resume from above is ignored, because there is nothing to resume."""
    inner = Supervisor("x", [leaf("c"), leaf("d")], limit=Limit(0, within=5))
    tree = tree_of(inner, leaf("a"), leaf("b"), decider=Decider({"limit": Escalate}))
    asks(tree, "stop", "a")
    x = machine(tree, "x")
    below(tree, effect.Exited("c", 1, Boom("restart")))
    (rise,) = (one for one in below(tree, effect.Ended("c", 1)) if isinstance(one, effect.Rise))
    assert (rise.path, rise.report.child, rise.report.risen.tag) == ("app/x", "x", "limit")
    below(tree, effect.Request("status", object()))
    assert x.act.pending == 1
    for _ in range(2):
        assert repr(x) == "<machine 'app/x' up act=ask waiting=1>"
        assert below(tree, effect.Verdict(Resume)) == []
    out = ends(tree, "a")
    assert reasons(out) == [("b", "'app' failed: 'app/x' escalated")]


def test_a_root_that_passed_its_limit_escalates():
    """R11, R14: Its `Decided` says Escalate, because the root has no supervisor above."""
    tree = tree_of(leaf("a"), limit=Limit(0, within=5))
    exits(tree, "a")
    assert decided(ends(tree, "a")) == [("app", Escalate, "table", None, None)]


def test_a_supervisor_that_returns_though_it_should_not_is_named_as_the_origin():
    """R7, R11: The failure is that supervisor's own, and its end is reported."""
    inner = Supervisor("x", [leaf("c")])
    tree = tree_of(inner, leaf("a"), decider=Decider({"returned": Escalate}))
    below(tree, effect.Stop("x is done", returned=True))
    out = below(tree, effect.Ended("c", 1))
    assert reasons(out) == [("a", "'app' failed: 'app/x' escalated")]


def test_a_supervisor_that_is_stopped_with_a_failure_fails_above_as_itself():
    """R11, R32: The supervisor above decides the failure of the incarnation that was stopped."""
    tree = tree_of(Supervisor("x", [leaf("c")]))
    exc = Boom("restart")
    for life in (1, 2):
        below(tree, effect.Stop("x fails", exc=exc))
        out = below(tree, effect.Ended("c", life))
        (verdict,) = (one for one in out if isinstance(one, events.Decided))
        assert (verdict.path, verdict.incarnation, verdict.by, verdict.exc) == ("app/x", life, "app", exc)
        below(tree, effect.Boot())
        below(tree, effect.Up("c", life + 1))


def test_a_supervisor_that_has_ended_is_reported_as_stopped_when_the_limit_is_passed():
    """R14, R32: Its `Stopped` comes before the failure of the supervisor above, because nothing of it is left to stop."""
    tree = tree_of(Supervisor("x", [leaf("c")]), leaf("a"), limit=Limit(0, within=5))
    below(tree, effect.Stop("x is done", returned=True))
    out = below(tree, effect.Ended("c", 1))
    emitted = [(type(one).__name__, one.path) for one in out if isinstance(one, events.Event)]
    assert emitted[2:6] == [
        ("Decided", "app/x"), ("Stopped", "app/x"), ("Failed", "app"), ("Decided", "app")
    ]  # fmt: skip
    assert states(tree)["x"] == "down"


def test_a_verdict_that_no_act_waits_for_changes_nothing():
    """R11: Such a verdict may come when every child is up, or during another act."""
    tree = tree_of(leaf("a"), leaf("b"))
    assert asked_for(tree, effect.Verdict(Resume)) == []
    asks(tree, "stop", "a")
    act = machine(tree).act
    assert asked_for(tree, effect.Verdict(Resume)) == []
    assert (machine(tree).act, states(tree)) == (act, {"a": "stopping", "b": "up"})


def test_an_exception_from_a_broken_decider_cannot_be_resumed():
    """R5, R8: It is another failure than the one with which the leaf was suspended."""

    def broken(_):
        raise Boom("resume")

    inner = Supervisor(
        "x", [leaf("c", resource=resource)], decider=Decider(rules=[Rule(Boom, "t", when=broken)])
    )
    tree = tree_of(inner)
    exc = Boom("restart")
    del exc.tag
    out = below(tree, effect.Exited("c", 1, exc, resumable=True))
    assert decided(out) == [("app", Restart, "table", Resume, None)]


def test_the_stops_after_an_escalation_have_the_time_of_the_failure():
    """R31: This holds on every level that the failure passes on its way up."""
    tree = tree_of(Supervisor("x", [leaf("c")], decider=UPWARDS), leaf("a"))
    out = below(tree, effect.Exited("c", 1, Boom("escalate")), 3)
    stops = [(one.path, one.at) for one in out if isinstance(one, events.Stopping)]
    assert stops == [("app", 3), ("app/a", 3)]


def test_a_child_is_ready_with_its_value():
    """R17: The value is in the event too."""
    tree = tree_of(leaf("a"))
    exits(tree, "a")
    ends(tree, "a")
    out = asked_for(tree, effect.Up("a", 2, 7))
    assert [one.value for one in out if isinstance(one, events.Ready)] == [7]


def test_a_tree_that_has_not_begun_is_down():
    """R33: Its incarnation is 0 before it boots."""
    forest = Forest(Supervisor("app", [leaf("a")]))
    root = forest.status(0)
    assert (root.state, root.incarnation, [it.incarnation for it in root.children]) == ("down", 0, [0])
    assert forest.over is False
    forest.start(0)
    forest.handle(forest.machines["app"], effect.Boot(), 0)
    assert repr(forest.machines["app"]) == "<machine 'app' booting act=boot waiting=0>"


def test_a_root_that_could_not_start_reports_the_cause():
    """R16, R33: The cause is in its events, in its status and in its `Gone`."""
    forest = Forest(Supervisor("app", [leaf("a")]))
    forest.start(0)
    exc = Boom("b")
    out = forest.handle(forest.machines["app"], effect.Boot(exc), 1)
    assert [one.exc for one in out if isinstance(one, events.Failed)] == [exc]
    assert [one.why for one in out if isinstance(one, effect.Gone)] == [exc]
    assert forest.status(2).last_failure is exc


def test_a_root_that_shuts_down_returns():
    """R14, R18: It returns once its children have ended, and at that time."""
    tree = tree_of(leaf("a"))
    asked_for(tree, effect.Stop("it is done", returned=True))
    tree.now = 4
    out = ends(tree, "a")
    assert [(one.path, one.at) for one in out if isinstance(one, events.Returned)] == [("app", 4)]


def test_without_grace_a_child_is_overdue_at_once_and_every_second_at_most():
    """R20: The intervals between the reports double from there."""
    tree = tree_of(leaf("a", grace=0))
    asked_for(tree, effect.Stop("a test"))
    emitted = []
    for now in (0, 1, 2, 3, 7):
        emitted += [(now, one.seconds) for one in wakes(tree, now) if isinstance(one, effect.ReportOverdue)]
    assert emitted == [(0, 0), (1, 1), (3, 3), (7, 7)]


def test_a_supervisor_without_a_limit_counts_no_restarts():
    """R14, R33: Its status shows 0."""
    tree = tree_of(leaf("a"), limit=None)
    exits(tree, "a")
    assert tree.status().restarts == 0


def test_a_condemned_child_counts_as_ended_for_auto_shutdown():
    """R10, R18: When the last significant child ends, its supervisor ends too."""
    options = {"restart": "transient", "significant": True}
    tree = tree_of(leaf("a", **options), leaf("b", **options), auto_shutdown="all_significant")
    exits(tree, "a", "stop")
    ends(tree, "a")
    assert (machine(tree).phase, states(tree)["a"]) == ("up", "condemned")
    asked_for(tree, effect.Exited("b", 1))
    ends(tree, "b")
    assert tree.forest.over
