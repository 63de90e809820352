"""One supervisor's machine by itself: what it emits, and how it treats reports that come too late."""

from __future__ import annotations

import pytest

from supervise import (
    IGNORE,
    Backoff,
    Child,
    Decider,
    Limit,
    Pool,
    Refused,
    Restart,
    Stop,
    Supervisor,
    events,
)
from supervise._core import effect, shortcut
from supervise._core.forest import Forest
from supervise._core.node import Failure
from supervise.testing.bare import BareLeaf, BareTree
from tests.explore.ways import _reported

STOPS = Decider({"stop": Stop})


async def body(*_):
    """A body."""


class Boom(Exception):
    """A failure with a tag."""

    def __init__(self, tag):
        super().__init__(tag)
        self.tag = tag


class Up(BareLeaf):
    """A leaf that is up at once, and ends when it is asked to."""

    def __init__(self, tree, node):
        super().__init__(tree, node)
        self.up()


class Slow(Up):
    """A leaf that ignores its orders."""

    def asked(self):
        """It goes on."""

    cancel = asked

    def decide(self, verdict):
        """It goes on."""


def leaf(name, **options):
    return Child(name, body, **options)


def opened(spec, part=Up):
    """The tree is up; its events."""
    seen = []
    tree = BareTree(spec, part, seen.append)
    tree.start()
    tree.run()
    return tree, seen


def machine(tree, path=""):
    """That of the root, or of what stands at a path below it."""
    root = tree.forest.root.path
    return tree.forest.machines[f"{root}/{path}" if path else root]


def child(tree, name):
    return machine(tree).children[name]


class Caller:
    """Who waits for an answer."""

    def set(self, got):
        self.got = got


def ask(tree, kind, name=None, **more):
    """A request, and its answer: of a change the node, if it is still there."""
    caller = Caller()
    tree.post(machine(tree), effect.Request(kind, caller, name=name, **more))
    tree.run()
    got = caller.got.unwrap()
    return tree.forest.find(got) if isinstance(got, str) else got


def fail(tree, name, tag="restart", **more):
    node = child(tree, name)
    tree.post(machine(tree), effect.Exited(node.name, node.incarnation, Boom(tag), **more))
    tree.run()


def reasons(seen):
    return [(event.path, event.reason) for event in seen if isinstance(event, events.Stopping)]


def test_the_repr_shows_the_phase_the_act_and_the_inbox():
    """The repr of a machine has its path, phase, act and inbox; that of a node its state and incarnation."""
    tree, _ = opened(Supervisor("app", [leaf("a"), leaf("b")], strategy="one_for_all"), Slow)
    assert repr(machine(tree)) == "<machine 'app' up act=None waiting=0>"
    assert repr(child(tree, "a")) == "<node 'app/a' up incarnation=1>"
    fail(tree, "a")
    fail(tree, "b")
    assert repr(machine(tree)) == "<machine 'app' up act=restart waiting=1>"
    assert repr(child(tree, "a")) == "<node 'app/a' stopping incarnation=1>"
    assert repr(IGNORE) == "IGNORE"


@pytest.mark.parametrize("late", [effect.Up, effect.Exited, effect.Ended])
def test_a_report_of_a_stale_incarnation_changes_nothing(late):
    """R19: It makes no event either, whether the next incarnation has still to start or is up."""
    tree, _ = opened(Supervisor("app", [leaf("a")]), Slow)
    node = child(tree, "a")
    asked_for(tree, effect.Exited("a", 1, Boom("restart")))
    asked_for(tree, effect.Ended("a", 1))
    for state in ("starting", "up"):
        assert asked_for(tree, late("a", 1)) == []
        assert (node.state, node.incarnation, node.alive) == (state, 2, True)
        asked_for(tree, effect.Up("a", 2))


def test_a_supervisor_that_was_stopped_before_its_boot_does_not_boot():
    """R19: Its boot comes too late."""
    forest = Forest(Supervisor("app", [leaf("a")]))
    forest.start(0)
    root = forest.machines["app"]
    forest.handle(root, effect.Stop("a test"), 1)
    assert (root.phase, forest.over) == ("ended", True)
    assert forest.handle(root, effect.Boot(), 2) == []
    assert root.children["a"].state == "down"


def test_a_root_that_is_stopped_while_it_starts_does_not_come_up():
    """R19: A last child that is up at the same time does not bring it back."""
    forest = Forest(Supervisor("app", [leaf("a")]))
    forest.start(0)
    root = forest.machines["app"]
    forest.handle(root, effect.Boot(), 0)
    forest.handle(root, effect.Stop("a test"), 1)
    forest.handle(root, effect.Up("a", 1), 1)
    assert (forest.root.state, root.phase, root.children["a"].state) == ("stopping", "ending", "stopping")
    forest.handle(root, effect.Ended("a", 1), 2)
    assert (forest.root.state, forest.root.alive, forest.root.gone, forest.over) == (
        "down",
        False,
        True,
        True,
    )


def test_without_a_sink_no_event_is_made():
    """R31: Nor is the stack of an overdue child looked up. The orders are the same as with a sink."""
    spec = Supervisor("app", [leaf("a", grace=1)])
    forest = Forest(spec)
    forest.ledger.listening = False
    out = forest.start(0)
    root = forest.machines["app"]
    out += forest.handle(root, effect.Boot(), 0)
    out += forest.handle(root, effect.Up("a", 1), 0)
    out += forest.handle(root, effect.Stop("a test"), 0)
    out += forest.handle(root, effect.Wake(), 1)
    kinds = [type(one).__name__ for one in out if not isinstance(one, effect.WakeAt)]
    assert kinds == ["Start", "Start", "Rise", "Cancel"]
    assert root.children["a"].waited == 1


@pytest.mark.parametrize(
    ("options", "act", "expected"),
    [
        ({}, lambda tree: ask(tree, "stop", "a"), [("app/a", "'app/a' was asked to stop")]),
        (
            {"strategy": "one_for_all"},
            lambda tree: fail(tree, "a"),
            [("app/b", "one_for_all: sibling 'app/a' failed")],
        ),
        (
            {"strategy": "rest_for_one"},
            lambda tree: fail(tree, "a"),
            [("app/b", "rest_for_one: sibling 'app/a' failed")],
        ),
        (
            {"limit": Limit(0, within=2), "on_limit": "shutdown"},
            lambda tree: fail(tree, "a"),
            [("app/b", "'app' passed its limit of 0 within 2 s")],
        ),
        (
            {"limit": Limit(0, within=2)},
            lambda tree: fail(tree, "a"),
            [("app/b", "'app' passed its limit")],
        ),
        (
            {},
            lambda tree: tree.post(machine(tree), effect.Stop("a test wants it")) or tree.run(),
            [("app", "a test wants it"), ("app/b", "a test wants it"), ("app/a", "a test wants it")],
        ),
    ],
    ids=["by hand", "one_for_all", "rest_for_one", "shutdown", "limit", "from above"],
)
def test_a_child_that_is_stopped_gets_the_reason(options, act, expected):
    """R36: The reason is in the event and in the order to cancel."""
    tree, seen = opened(Supervisor("app", [leaf("a"), leaf("b")], **options))
    act(tree)
    assert reasons(seen) == expected


@pytest.mark.parametrize(
    ("kind", "name", "reason", "message"),
    [
        ("stop", "x", "not_found", "'app' has no child 'x'"),
        ("start", "x", "not_found", "'app' has no child 'x'"),
        ("remove", "x", "not_found", "'app' has no child 'x'"),
        ("remove", None, "not_found", "'app' has no child None"),
        ("start", "a", "running", "'app/a' is running"),
        ("remove", "a", "running", "'app/a' is running"),
    ],
)
def test_a_request_that_cannot_be_carried_out_is_refused_with_the_reason(kind, name, reason, message):
    """R25: The caller gets the refusal, and nothing has changed."""
    tree, seen = opened(Supervisor("app", [leaf("a")]))
    before = len(seen)
    with pytest.raises(Refused) as refused:
        ask(tree, kind, name)
    assert (refused.value.reason, str(refused.value)) == (reason, message)
    assert len(seen) == before


def test_a_name_that_is_taken_is_refused():
    """R25: `running` where its bearer is, else `duplicate`."""
    tree, _ = opened(Supervisor("app", [leaf("a")]))
    with pytest.raises(Refused, match=r"^'app' already has a child 'a' \(up\)$") as refused:
        ask(tree, "add", spec=leaf("a"))
    assert refused.value.reason == "running"
    ask(tree, "stop", "a")
    with pytest.raises(Refused, match=r"^'app' already has a child 'a' \(down\)$") as refused:
        ask(tree, "add", spec=leaf("a"))
    assert refused.value.reason == "duplicate"


def test_a_child_that_backs_off_can_neither_be_removed_nor_added_again():
    """R25: Both requests are refused, because it is restarting."""
    tree, _ = opened(Supervisor("app", [leaf("a", backoff=Backoff(initial=3, jitter=0))]))
    node = child(tree, "a")
    for item in (effect.Exited(node.name, 1, Boom("restart")), effect.Ended(node.name, 1)):
        tree.forest.handle(machine(tree), item, 0)
    assert (node.state, node.phase, node.due) == ("restarting", "backoff", 3)
    caller = Caller()
    (reply,) = tree.forest.handle(machine(tree), effect.Request("remove", caller, name="a"), 1)
    assert (reply.error.reason, str(reply.error)) == ("restarting", "'app/a' is restarting")
    (reply,) = tree.forest.handle(machine(tree), effect.Request("add", caller, spec=leaf("a")), 1)
    assert (reply.error.reason, str(reply.error)) == (
        "duplicate",
        "'app' already has a child 'a' (restarting)",
    )


def test_a_pool_refuses_the_requests_that_pools_do_not_have():
    """R26: Its members are not restarted or removed by hand; and it may be full."""
    tree, _ = opened(Pool("app", leaf("m"), maximum=2))
    first = ask(tree, "add")
    second = ask(tree, "add", "n")
    assert (first.name, second.name, first.generated_name, second.generated_name) == ("m-1", "n", True, False)
    for kind, reason, message in (
        ("start", "pool", "members of pool 'app' are not started by hand"),
        ("remove", "pool", "members of pool 'app' leave it when they end"),
        ("add", "full", "pool 'app' is full (2)"),
    ):
        with pytest.raises(Refused) as refused:
            ask(tree, kind, "m-1" if kind != "add" else None)
        assert (refused.value.reason, str(refused.value)) == (reason, message)
    ask(tree, "stop", "m-1")
    assert (ask(tree, "add").name, list(machine(tree).children)) == ("m-2", ["n", "m-2"])


def test_a_request_to_a_supervisor_that_is_stopping_is_refused():
    """R19: The refusal comes at once, also for the requests that were waiting."""
    tree, _ = opened(Supervisor("app", [leaf("a")]), Slow)
    waiting, late = Caller(), Caller()
    tree.forest.handle(machine(tree), effect.Request("stop", Caller(), name="a"), 0)
    tree.forest.handle(machine(tree), effect.Request("stop", waiting, name="a"), 0)
    out = tree.forest.handle(machine(tree), effect.Stop("a test"), 0)
    out += tree.forest.handle(machine(tree), effect.Request("stop", late, name="a"), 0)
    errors = [(one.token, one.error.reason, str(one.error)) for one in out if isinstance(one, effect.Reply)]
    assert [error[1:] for error in errors] == [("stopping", "supervisor 'app' is stopping")] * 3
    assert [error[0] for error in errors[1:]] == [waiting, late]


def test_a_member_without_an_init_takes_no_arguments():
    """R26: A template that is a supervisor passes them to its `init`."""
    pool = Pool("p", Supervisor("s", [leaf("a")]))
    assert pool.member("x", ()).name == "x"
    assert pool.member("x", ()).init is None
    with pytest.raises(
        TypeError, match=r"^pool 'p': a member without an init takes no arguments, got \(1,\)$"
    ):
        pool.member("x", (1,))


@pytest.mark.parametrize("of_ready_time", [True, False])
@pytest.mark.parametrize("own", [None, Limit(2, within=8)])
@pytest.mark.parametrize("listening", [True, False])
def test_a_plain_restart_by_the_fast_path_is_charged_and_reported_as_by_the_general_path(
    of_ready_time, own, listening
):
    """R14: Both limits, ready time and the events agree; past a limit the fast path is closed."""
    limit = Limit(3, within=10, of_ready_time=of_ready_time)

    def forest():
        names = Decider({"restart": Restart})
        made = Forest(Supervisor("app", [leaf("a", limit=own), leaf("b")], limit=limit, decider=names))
        made.ledger.listening = listening
        made.start(0)
        node = made.machines["app"].children["a"]
        made.handle(made.machines["app"], effect.Boot(), 0)
        made.handle(made.machines["app"], effect.Up(node.name, 1), 0)
        made.handle(made.machines["app"], effect.Up("b", 1), 0)
        return made, made.machines["app"], node

    (_, root, node), (long, other, twin) = forest(), forest()
    exc = Boom("restart")
    for now in (1, 4, 8, 11, 13):
        emitted = shortcut.restart_at_once(root, node, exc, now)
        effects = long.handle(other, effect.Exited(twin.name, twin.incarnation, exc), now)
        if emitted is None:
            break
        effects += long.handle(other, effect.Ended(twin.name, twin.incarnation), now)
        assert emitted == [one for one in effects if isinstance(one, events.Event)]
        assert root.restarts(now) == other.restarts(now)
        up = effect.Up(twin.name, twin.incarnation)
        assert shortcut.up_at_once(root, node, now + 2) == [
            one for one in long.handle(other, up, now + 2) if isinstance(one, events.Event)
        ]
        assert _reported(node) == _reported(twin)
        assert (node.awaited, root.act) == (twin.awaited, other.act) == (False, None)
    assert now == (8 if own else 11 if of_ready_time else 13)
    decided = [one for one in effects if isinstance(one, events.Decided)]
    assert [one.limit is not None or one.because == "limit" for one in decided] == [True] * listening


def asked_for(tree, item):
    """What the root's machine makes of one input."""
    return tree.forest.handle(machine(tree), item, tree.now)


def test_a_return_that_crosses_with_a_stop_is_no_error():
    """R23: The leaf is released, and no event is emitted."""
    tree, _ = opened(Supervisor("app", [leaf("a")]), Slow)
    node = child(tree, "a")
    asked_for(tree, effect.Stop("a test"))
    (release,) = asked_for(tree, effect.Exited(node.name, 1))
    assert release == effect.Release(node.path, 1)


def test_a_failure_that_crosses_with_a_stop_is_reported_and_not_judged():
    """R19, R23: A leaf's failure becomes a `StopError`. A supervisor's own gets a `Decided` that names the stop; one from below it gets none here."""
    inner = Supervisor("x", [leaf("b")])
    tree, _ = opened(Supervisor("app", [leaf("a"), inner]), Slow)
    a, x = child(tree, "a"), child(tree, "x")
    asked_for(tree, effect.Stop("a test"))
    below = Failure(Boom("f"), "app/x/b", 1, "app/x/b")
    own = Failure(Boom("limit"), "app/x", 1, "app/x", "limit")
    assert machine(tree).handle(effect.Exited(x.name, 1, risen=below), 1) == []
    (decided,) = machine(tree).handle(effect.Exited(x.name, 1, risen=own), 1)
    assert (decided.path, decided.directive, decided.because) == ("app/x", None, "stop")
    assert (decided.by, decided.tag, decided.exc) == ("app", "limit", own.exc)
    assert a.state == "up"


def test_a_failure_that_a_leaf_reports_twice_counts_once():
    """R19: The leaf is already suspended with that failure."""
    tree, _ = opened(Supervisor("app", [leaf("a"), leaf("b")], strategy="one_for_all"), Slow)
    b = child(tree, "b")
    fail(tree, "a")
    asked_for(tree, effect.Request("status", Caller()))
    assert [child(tree, name).state for name in "ab"] == ["stopping", "up"]
    asked_for(tree, effect.Exited(b.name, 1, Boom("f")))
    assert b.state == "failed"
    assert asked_for(tree, effect.Exited(b.name, 1, Boom("f"))) == []
    assert len(machine(tree).inbox) == 2


def gone(out):
    """Who is down for good, why, and whether it has left the tree."""
    return [(one.path, one.why, one.removed) for one in out if isinstance(one, effect.Gone)]


def test_that_a_child_is_down_for_good_is_reported_once_with_the_reason():
    """R10, R28: A condemned child, or one that left, has its failure as the reason; one stopped by hand has none."""
    spec = Supervisor(
        "app", [leaf("a"), leaf("b", restart="temporary"), leaf("c")], decider=Decider(default=Stop)
    )
    tree, _ = opened(spec)
    exc, out = Boom("f"), []
    for name in "ab":
        node = child(tree, name)
        out += asked_for(tree, effect.Exited(node.name, 1, exc)) + asked_for(tree, effect.Ended(node.name, 1))
    out += asked_for(tree, effect.Request("stop", Caller(), name="c"))
    out += asked_for(tree, effect.Ended("c", 1))
    out += asked_for(tree, effect.Request("stop", Caller(), name="c"))
    out += asked_for(tree, effect.Request("remove", Caller(), name="c"))
    assert gone(out) == [
        ("app/a", exc, False), ("app/b", exc, True), ("app/c", None, False), ("app/c", None, True)
    ]  # fmt: skip
    assert (child(tree, "a").gone, child(tree, "a").why) == (True, exc)
    left = tree.forest.root.memory.left
    assert {name: (past.why, past.incarnation) for name, past in left.items()} == {
        "b": (exc, 1),
        "c": (None, 1),
    }


def test_a_name_that_comes_back_continues_its_incarnation_numbers():
    """R9: Incarnation numbers of a path never go back while the tree exists."""
    tree, seen = opened(Supervisor("app", [leaf("a")]))
    ask(tree, "stop", "a")
    ask(tree, "remove", "a")
    node = ask(tree, "add", spec=leaf("a"))
    assert (node.incarnation, node.path) == (2, "app/a")
    memory = tree.forest.root.memory
    assert (memory.left, memory.declared) == ({}, {})
    assert [
        event.incarnation for event in seen if event.path == "app/a" and isinstance(event, events.Ready)
    ] == [1, 2]


def test_a_name_like_those_that_a_pool_gives_begins_with_its_first_incarnation():
    """R9, R26: The pool has not given that name yet."""
    tree, _ = opened(Pool("app", leaf("m")))
    assert ask(tree, "add", "m-7").incarnation == 1


def test_names_that_a_pool_has_given_are_not_remembered():
    """R26: A name that the pool gave never comes back; a name that a caller asked for may."""
    tree, _ = opened(Pool("app", leaf("m")))
    for name in (None, "n"):
        node = ask(tree, "add", name)
        ask(tree, "stop", node.name)
    memory = tree.forest.root.memory
    assert [(name, past.incarnation) for name, past in memory.left.items()] == [("n", 1)]
    assert memory.members == 1


def test_only_the_last_names_that_left_are_remembered_and_no_incarnation_number_goes_back():
    """R9, R31: Memory is flat over any number of names. A name that comes back after it was forgotten starts above all forgotten numbers."""
    tree, _ = opened(Supervisor("app", [leaf("a")], limit=None))
    ask(tree, "add", spec=leaf("n"))
    for life in (1, 2, 3):
        node = child(tree, "n")
        tree.post(machine(tree), effect.Exited(node.name, life, Boom("restart")))
        tree.run()
    for name in ("n", *(f"x{number}" for number in range(70))):
        if name != "n":
            ask(tree, "add", spec=leaf(name))
        ask(tree, "stop", name)
        ask(tree, "remove", name)
    memory = tree.forest.root.memory
    assert (len(memory.left), memory.floor) == (64, 4)
    assert ask(tree, "add", spec=leaf("n")).incarnation == 5


def test_a_supervisor_that_ends_remembers_the_incarnation_numbers_of_its_children():
    """R9, R25: Declared children are remembered by their paths; added ones are lost."""
    inner = Supervisor("x", [leaf("a")])
    tree, _ = opened(Supervisor("app", [inner]))
    below = machine(tree, "x")
    added = Caller()
    tree.post(below, effect.Request("add", added, spec=leaf("b")))
    tree.run()
    out = tree.forest.handle(below, effect.Stop("x fails", exc=Boom("x")), 0)
    for name in "ba":
        out += tree.forest.handle(below, effect.Ended(name, 1), 0)
    assert ("app/x/b", None, True) in gone(out)
    node = child(tree, "x")
    assert [(name, past.why) for name, past in node.memory.left.items()] == [("b", None)]
    fresh = machine(tree, "x")
    assert (list(fresh.children), fresh.children["a"].incarnation) == (["a"], 1)
    assert (below.phase, below.timers._heap, fresh.phase) == ("ended", [], "opening")
    assert (below.incarnation, fresh.incarnation) == (1, 2)
    tree.run()


def testready_time_goes_on_once_a_member_that_was_restarting_has_left():
    """R14: The member is condemned in its restart, and its pool keeps nothing of it."""
    tree, _ = opened(Pool("app", leaf("m"), limit=Limit(3, within=9, of_ready_time=True), decider=STOPS))
    node = ask(tree, "add")
    root = machine(tree)
    for item in (effect.Exited(node.name, 1, Boom("restart")), effect.Ended(node.name, 1)):
        tree.forest.handle(root, item, 1)
    assert (node.state, node.restart_in_progress, root.ready_time.at(2)) == ("starting", True, 1)
    for item in (effect.Exited(node.name, 2, Boom("stop")), effect.Ended(node.name, 2)):
        tree.forest.handle(root, item, 3)
    assert (list(root.children), node.restart_in_progress, root.ready_time.at(5)) == ([], False, 3)


def test_removing_a_child_that_has_left_does_not_remove_its_successor():
    """R25: The name may belong to a new child by then."""
    tree, _ = opened(Supervisor("app", [leaf("a")]))
    old = child(tree, "a")
    ask(tree, "stop", "a")
    ask(tree, "remove", "a")
    ask(tree, "add", spec=leaf("a"))
    machine(tree)._remove(old, None)
    assert child(tree, "a").state == "up"


def test_a_child_that_is_down_for_good_keeps_its_first_reason():
    """R28: `Gone` is emitted once, however often the machine reports the child as down."""
    tree, _ = opened(Supervisor("app", [leaf("a")]))
    node, why = child(tree, "a"), Boom("why")
    root = machine(tree)
    root.out = []
    root._stay_down(node, "condemned", why)
    root._stay_down(node, "down", None)
    assert gone(root.out) == [("app/a", why, False)]
    assert (node.state, node.why) == ("down", why)


def test_a_root_that_is_stopping_is_not_up_again():
    """R19: A late `Up` from its machine changes nothing."""
    tree, _ = opened(Supervisor("app", [leaf("a")]), Slow)
    asked_for(tree, effect.Stop("a test"))
    assert tree.forest._report(effect.Up(tree.forest.root.name, 1), 1) == []
    assert tree.forest.root.state == "stopping"


def test_a_child_does_not_come_up_by_the_fast_path_while_a_request_waits():
    """R19: Nor does a child that was not restarted by the fast path."""
    tree, _ = opened(Supervisor("app", [leaf("a")]), Slow)
    node = child(tree, "a")
    assert shortcut.up_at_once(machine(tree), node, 0) is None
    assert shortcut.restart_at_once(machine(tree), node, Boom("f"), 0)
    asked_for(tree, effect.Request("status", Caller()))
    assert shortcut.restart_at_once(machine(tree), node, Boom("f"), 1) is None
    assert shortcut.up_at_once(machine(tree), node, 1) is None
    assert (node.state, node.incarnation, len(machine(tree).inbox)) == ("starting", 2, 1)


@pytest.mark.parametrize("order", ["restart", "stop"])
def test_a_bare_tree_starts_no_supervisor_that_has_ended_in_the_same_step(order):
    """R19: An `add` waits at a supervisor that boots, and an order to end it above; the last child is ignored, and both are served."""

    class Ignored(BareLeaf):
        """A leaf that ends before it is ready, when it is called."""

    seen = []
    tree = BareTree(Supervisor("app", [Supervisor("s", [leaf("a")])]), Ignored, seen.append)
    tree.start()
    tree.run()
    new = Supervisor("new", [], start_timeout=9)
    tree.post(machine(tree, "s"), effect.Request("add", None, spec=new))
    tree.post(machine(tree), effect.Request(order, None, name="s"))
    tree.run()
    tree.leaves["app/s/a"].ended(ignored=True)
    tree.run()
    life = [type(event) for event in seen if event.path == "app/s/new"]
    assert life == [events.Starting, events.Stopping, events.Stopped]
    assert child(tree, "s").state == ("starting" if order == "restart" else "down")


def test_a_decision_about_a_node_that_has_left_is_reported_though_no_status_keeps_it():
    """R31, R33: Its supervisor has ended meanwhile, as after a start that failed."""
    tree, _ = opened(Supervisor("app", [leaf("a")]), Slow)
    root = machine(tree)
    root._decided(Failure(Boom("stop"), "app/s/x", 1, "app/s/x", "stop"), Stop)
    (decided,) = [one for one in root.out if isinstance(one, events.Decided)]
    assert (decided.path, decided.directive, decided.tag) == ("app/s/x", Stop, "stop")
    assert [status.decision for status in tree.forest.status(tree.now).walk()] == [None, None]
