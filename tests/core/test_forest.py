"""What the forest answers of a path: which node stands there, and whether it is down for good (R29)."""

from __future__ import annotations

import pytest
from attrs import evolve

from supervise import Child, Limit, Supervisor, events
from supervise._core import effect
from supervise._core.forest import Forest
from supervise._core.node import Memory
from supervise._core.status import no_traffic

from .test_acts import POLICY, WAIT, asks, exits, tree_of
from .test_machine import Boom, Caller, Slow, asked_for, body, child, leaf, machine, opened


def gone(tree, path):
    """Whether it is down for good, and why."""
    there, why = tree.forest.gone(path, ended=False, failure=None)
    return there, why and why.tag


def below(tree, name, item):
    """What the machine of a supervisor makes of one input."""
    tree.forest.handle(machine(tree, name), item, tree.now)


def exits_below(tree, supervisor, name, tag):
    """A leaf of that supervisor fails and has ended."""
    node = machine(tree, supervisor).children[name]
    below(tree, supervisor, effect.Exited(node.name, node.incarnation, Boom(tag)))
    below(tree, supervisor, effect.Ended(node.name, node.incarnation))


def grown(backoff=None):
    """A leaf `a` and a supervisor `s` in one group; of those below `s`, `x` is condemned, and `t` has left."""
    s = Supervisor("s", [leaf("x"), leaf("y"), leaf("t", restart="temporary")], decider=POLICY)
    tree = tree_of(leaf("a", backoff=backoff), s, strategy="one_for_all")
    exits_below(tree, "s", "x", "stop")
    exits_below(tree, "s", "t", "restart")
    return tree


def test_a_node_is_found_by_its_path_and_by_no_other():
    """Nothing stands under another root, under a leaf, or below a supervisor that is down."""
    tree = grown()
    assert tree.forest.find("app/s/x").path == "app/s/x"
    assert [tree.forest.find(path) for path in ("other", "app/a/x", "app/s/t", "app/s/z")] == [None] * 4


def test_below_a_running_supervisor_a_condemned_or_departed_child_is_gone_with_its_reason():
    """R29: A path that never existed is gone without a reason."""
    tree = grown()
    answers = [gone(tree, f"app/s/{name}") for name in ("x", "y", "t", "z")]
    assert answers == [(True, "stop"), (False, None), (True, "restart"), (True, None)]


@pytest.mark.parametrize("backoff", [None, WAIT])
def test_below_a_supervisor_that_is_about_to_start_again_only_its_declaration_counts(backoff):
    """R29: A declared child that is condemned or has left will start again, though its supervisor has still to stop."""
    tree = grown(backoff=backoff)
    exits(tree, "a")
    assert child(tree, "s").alive
    assert machine(tree).act.kind == ("retry" if backoff else "restart")
    answers = [gone(tree, f"app/s/{name}")[0] for name in ("x", "y", "t", "z")]
    assert answers == [False, False, False, True]
    assert gone(tree, "app/s/x/deeper") == (True, None)


def test_a_child_that_its_supervisor_has_already_started_again_counts_as_it_is():
    """R29: Its siblings may still have to start."""
    tree = tree_of(leaf("a"), Supervisor("s", [leaf("x")], decider=POLICY), leaf("b"), strategy="one_for_all")
    root = machine(tree)
    exits(tree, "a")
    for name in ("a", "b", "s"):
        if name == "s":
            node = machine(tree, "s").children["x"]
            below(tree, "s", effect.Ended(node.name, node.incarnation))
        else:
            asked_for(tree, effect.Ended(name, child(tree, name).incarnation))
    asked_for(tree, effect.Up("a", 2))
    below(tree, "s", effect.Boot())
    below(tree, "s", effect.Up("x", machine(tree, "s").children["x"].incarnation))
    assert (root.act.kind, child(tree, "b").state, child(tree, "s").state) == ("restart", "starting", "up")
    exits_below(tree, "s", "x", "stop")
    assert gone(tree, "app/s/x") == (True, "stop")


def test_the_reason_of_a_child_that_left_is_kept_over_restarts_above_it():
    """R29: This holds also two levels below a supervisor that is down; a child that the spec declares will come again."""
    inner = Supervisor("s", [leaf("y"), leaf("t", restart="temporary")], decider=POLICY)
    tree = tree_of(leaf("a"), Supervisor("m", [inner]), strategy="one_for_all")
    exits_below(tree, "m/s", "t", "restart")
    asks(tree, "stop", "m")
    y = machine(tree, "m/s").children["y"]
    below(tree, "m/s", effect.Ended(y.name, y.incarnation))
    assert not child(tree, "m").alive
    assert [gone(tree, f"app/m/s/{name}") for name in ("t", "y", "z")] == [
        (True, "restart"),
        (True, None),
        (True, None),
    ]
    asks(tree, "start", "m")
    assert [gone(tree, f"app/m/s/{name}")[0] for name in ("y", "t", "z")] == [False, False, True]


def test_below_a_supervisor_that_never_started_every_path_is_gone_with_the_trees_reason():
    """R29: No other reason is remembered there."""
    spec = Supervisor("app", [leaf("a"), Supervisor("s", [leaf("x")])])
    forest = Forest(spec)
    forest.start(0)
    root = forest.machines["app"]
    exc = Boom("start")
    for item in (effect.Boot(), effect.Exited("a", 1, exc), effect.Ended("a", 1)):
        forest.handle(root, item, 0)
    assert forest.over
    for path in ("app/s", "app/s/x", "app/s/x/deeper"):
        assert forest.gone(path, ended=True, failure=exc) == (True, exc)


def test_the_first_base_exception_is_the_reason_of_the_root():
    """R4: Exceptions that come out while the tree stops do not replace it."""
    tree, _ = opened(Supervisor("app", [leaf("a"), leaf("b")]), Slow)
    first, second = SystemExit(1), SystemExit(2)
    for name, exc in (("a", first), ("b", second)):
        node = child(tree, name)
        asked_for(tree, effect.Exited(node.name, 1, exc))
    out = []
    for name in ("b", "a"):
        out += asked_for(tree, effect.Ended(name, 1, second if name == "b" else None))
    assert [one.why for one in out if isinstance(one, effect.Gone)][-1] is first


def test_a_name_that_leaves_again_is_the_last_to_be_forgotten():
    """R9: The names that left are remembered in the order in which each left last."""
    memory = Memory()
    forest = Forest(Supervisor("app", [Child("a", body), Child("b", body)]))
    a, b = forest.machines["app"].children.values()
    for node in (a, b, a):
        memory.leave(node, None)
    assert list(memory.left) == ["b", "a"]


def test_an_added_child_that_left_is_gone_with_its_reason_while_its_supervisor_starts_again():
    """R29: It will not start again, because an added child is lost when its supervisor restarts."""
    tree = grown()
    below(tree, "s", effect.Request("add", Caller(), spec=leaf("added", restart="temporary")))
    below(tree, "s", effect.Up("added", 1))
    exits_below(tree, "s", "added", "restart")
    exits(tree, "a")
    assert gone(tree, "app/s/added") == (True, "restart")


@pytest.mark.parametrize("backoff", [None, WAIT])
def test_below_a_supervisor_outside_of_the_group_a_condemned_child_is_gone(backoff):
    """R13, R29: Under rest_for_one the children before the one that failed do not start again."""
    s = Supervisor("s", [leaf("x")], decider=POLICY)
    tree = tree_of(s, leaf("a", backoff=backoff), leaf("b"), strategy="rest_for_one")
    exits_below(tree, "s", "x", "stop")
    exits(tree, "a")
    assert machine(tree).act.kind == ("retry" if backoff else "restart")
    assert gone(tree, "app/s/x") == (True, "stop")


def test_while_its_supervisor_boots_a_condemned_child_is_gone():
    """R29: The first start of a sibling is no restart of the group."""
    s = Supervisor("s", [leaf("x")], decider=POLICY)
    forest = Forest(Supervisor("app", [s, leaf("b")], strategy="one_for_all"))
    root = forest.machines["app"]
    forest.start(0)
    forest.handle(root, effect.Boot(), 0)
    inner = forest.machines["app/s"]
    x = inner.children["x"]
    forest.handle(inner, effect.Boot(), 0)
    forest.handle(inner, effect.Up(x.name, 1), 0)
    exc = Boom("stop")
    forest.handle(inner, effect.Exited(x.name, 1, exc), 0)
    forest.handle(inner, effect.Ended(x.name, 1), 0)
    assert root.act.kind == "boot"
    assert forest.gone("app/s/x", ended=False, failure=None) == (True, exc)


def test_while_a_sibling_is_condemned_the_others_count_as_they_are():
    """R10, R29: The verdict Stop restarts no sibling."""
    tree = grown()
    exits(tree, "a", "stop")
    assert machine(tree).act.kind == "condemn"
    assert gone(tree, "app/s/x") == (True, "stop")


def glanced(tree):
    """The values that tell whether a node's status has changed, and that status."""
    return [(values, make()) for values, make in tree.forest.glances(tree.now, no_traffic)]


def test_glances_give_the_status_of_each_node_without_its_children():
    """R33: Parents first, in start order, with what limits have counted."""
    tree = tree_of(Supervisor("s", [leaf("x", limit=Limit(3))], decider=POLICY), leaf("b"))
    exits_below(tree, "s", "x", "restart")
    found = [status for _, status in glanced(tree)]
    assert found == [evolve(status, children=()) for status in tree.forest.status(tree.now).walk()]
    assert [status.path for status in found] == ["app", "app/s", "app/s/x", "app/b"]


@pytest.mark.parametrize("change", ["fails", "adopts"])
def test_a_glance_has_other_values_if_the_status_is_another(change):
    """R33, R38: Also if only the declaration of a node is another one."""
    tree = tree_of(leaf("a"), leaf("b"))
    before = dict(zip("rab", glanced(tree), strict=True))
    if change == "fails":
        exits(tree, "b")
    else:
        spec = Supervisor("app", [leaf("a"), leaf("b", restart="transient")], decider=POLICY)
        asks(tree, "adopt", spec=spec)
    after = dict(zip("rab", glanced(tree), strict=True))
    assert before["b"][1] != after["b"][1]
    assert before["b"][0] != after["b"][0]


def test_a_root_that_is_restarted_starts_when_its_end_is_over():
    """R25, R33: Its event and its status have the time."""
    tree = tree_of(leaf("a"))
    asks(tree, "restart root")
    tree.now = 5
    node = child(tree, "a")
    out = tree.forest.handle(machine(tree), effect.Ended(node.name, node.incarnation), tree.now)
    assert [(one.at, one.incarnation) for one in out if isinstance(one, events.Starting)] == [(5, 2)]
    assert tree.forest.status(5).since == 5
