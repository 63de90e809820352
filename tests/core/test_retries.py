"""Retries: which requests interfere with them, what they are charged, and what is reported of them."""

from __future__ import annotations

import pytest

from supervise import (
    Backoff,
    Child,
    Decider,
    Escalate,
    Limit,
    Restart,
    Resume,
    StartFailed,
    Supervisor,
    events,
)
from supervise._core import effect, shortcut
from supervise._core.forest import Forest
from tests.explore.world import BELOW, POLICY, World, work

from .test_acts import WAIT, asks, decided, ends, exits, orders, resource, states, tree_of, ups, wakes
from .test_machine import Boom, asked_for, child, gone, leaf, machine

GROWING = Backoff(initial=3, factor=2, maximum=99, jitter=0, reset_after=1)


def delays(out):
    return [one.delay for one in out if isinstance(one, events.BackingOff)]


def reasons(out):
    return [(one.path.rpartition("/")[2], one.reason) for one in out if isinstance(one, effect.Cancel)]


def with_two_retries():
    """Both a and b back off, each for a retry of its own: b had been started by hand, and failed, while it waited for a's."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b", backoff=WAIT), strategy="rest_for_one")
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "b")
    asks(tree, "start", "b")
    ups(tree, "b")
    exits(tree, "b")
    ends(tree, "b")
    return tree


def test_a_child_that_waits_for_its_groups_retry_is_not_down_for_good_when_it_is_stopped_by_hand():
    """R13, R28: The child is down already, and the retry starts it again."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), strategy="rest_for_one")
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "b")
    _, out = asks(tree, "stop", "b")
    assert (orders(out), gone(out), child(tree, "b").gone) == (["replied"], [], False)
    assert orders(wakes(tree, 3)) == ["Start a"]
    assert orders(ups(tree, "a")) == ["Start b"]


def test_nothing_is_kept_of_a_child_that_waited_for_a_retry_and_has_left():
    """R13, R25: It was started by hand instead, and the retry of its sibling still waits."""
    tree = with_two_retries()
    a, b = child(tree, "a"), child(tree, "b")
    assert list(machine(tree).retrying) == [a, b]
    asks(tree, "start", "b")
    ups(tree, "b")
    asks(tree, "stop", "b")
    ends(tree, "b")
    asks(tree, "remove", "b")
    assert list(machine(tree).retrying) == [a]


def test_under_one_for_one_a_retry_revives_no_sibling():
    """R13, R28: A sibling that is stopped by hand while the child backs off is down for good at once."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"))
    exits(tree, "a")
    ends(tree, "a")
    asks(tree, "stop", "b")
    assert gone(ends(tree, "b")) == [("app/b", None, False)]


@pytest.mark.parametrize(
    ("strategy", "name", "lost"),
    [
        ("one_for_all", "a", False),
        ("one_for_all", "c", False),
        ("rest_for_one", "a", True),
        ("rest_for_one", "c", False),
    ],
)
def test_a_child_stopped_by_hand_is_down_for_good_unless_a_siblings_retry_starts_it(strategy, name, lost):
    """R13, R28: Under one_for_all the retry of any sibling starts it, under rest_for_one that of a sibling before it."""
    tree = tree_of(leaf("a"), leaf("b", backoff=WAIT), leaf("c"), strategy=strategy)
    exits(tree, "b")
    for other in "bca":
        if states(tree)[other] == "stopping":
            ends(tree, other)
    if states(tree)[name] == "down":
        asks(tree, "start", name)
        ups(tree, name)
    asks(tree, "stop", name)
    assert gone(ends(tree, name)) == [(f"app/{name}", None, False)] * lost
    started = orders(wakes(tree, 3))
    while (
        starting := next((other for other in "abc" if states(tree)[other] == "starting"), None)
    ) is not None:
        started += orders(ups(tree, starting))
    assert (f"Start {name}" in started) is not lost


def test_a_child_condemned_while_its_groups_retry_is_pending_is_down_for_good():
    """R10, R28: The retry skips it."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), strategy="rest_for_one")
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "b")
    asks(tree, "start", "b")
    ups(tree, "b")
    exits(tree, "b", "stop")
    ((path, why, removed),) = gone(ends(tree, "b"))
    assert (path, why.tag, removed) == ("app/b", "stop", False)
    assert orders(wakes(tree, 3)) == ["Start a"]
    assert (orders(ups(tree, "a")), states(tree)) == ([], {"a": "up", "b": "condemned"})


def test_a_temporary_child_that_was_asked_to_restart_is_started_with_the_retry_of_its_group():
    """R7, R13, R25: It was stopped by hand to be started again, and a sibling that fails to start does not change that."""
    tree = tree_of(
        leaf("a"), leaf("b", restart="temporary"), strategy="one_for_all", limit=Limit(9, within=9)
    )
    asks(tree, "restart", "b")
    ends(tree, "b")
    assert orders(ends(tree, "a")) == ["Start a"]
    exits(tree, "a")
    assert orders(ends(tree, "a")) == ["Start a"]
    assert (orders(ups(tree, "a")), states(tree)) == (["Start b"], {"a": "up", "b": "starting"})


def test_ready_time_passes_while_a_child_starts_that_was_asked_for():
    """R14: A start counts as a restart only behind a failure."""
    tree = tree_of(leaf("a"), limit=Limit(9, within=99, of_ready_time=True))
    asks(tree, "stop", "a")
    ends(tree, "a")
    tree.now = 5
    asks(tree, "start", "a")
    tree.now = 20
    ups(tree, "a")
    assert machine(tree).ready_time.at(30) == 30


@pytest.mark.parametrize("failed", ["a", "b"])
def test_ready_time_stands_still_until_the_whole_group_is_up_again(failed):
    """R13, R14: This holds whichever child of the group has failed; a slow sibling after it must not hide a crash loop."""
    limit = Limit(9, within=99, of_ready_time=True)
    tree = tree_of(leaf("a"), leaf("b"), strategy="one_for_all", limit=limit)
    tree.now = 5
    exits(tree, failed)
    ends(tree, "b" if failed == "a" else "a")
    ends(tree, failed)
    tree.now = 8
    ups(tree, "a")
    tree.now = 20
    ups(tree, "b")
    assert machine(tree).ready_time.at(30) == 15


def test_ready_time_stands_still_for_a_sibling_that_fails_to_start_with_its_group():
    """R13, R14: The clock stands still from the start of that sibling on, although the child whose failure restarted the group is up."""
    limit = Limit(9, within=99, of_ready_time=True)
    tree = tree_of(leaf("a"), leaf("b"), strategy="one_for_all", limit=limit)
    exits(tree, "a")
    ends(tree, "b")
    ends(tree, "a")
    ups(tree, "a")
    tree.now = 5
    exits(tree, "b")
    ends(tree, "b")
    assert machine(tree).ready_time.at(8) == 0


def test_a_condemned_child_stays_condemned_when_its_groups_retry_is_cancelled():
    """R10, R13: The other members of the group are down for good, together with the one that was stopped by hand."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), leaf("c"), strategy="rest_for_one")
    exits(tree, "b", "stop")
    ends(tree, "b")
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "c")
    _, out = asks(tree, "stop", "a")
    assert sorted(gone(out)) == [("app/a", None, False), ("app/c", None, False)]
    assert states(tree) == {"a": "down", "b": "condemned", "c": "down"}


def test_a_child_with_a_retry_of_its_own_keeps_it_when_its_groups_retry_is_cancelled():
    """R13, R25: The child had been started by hand in the meantime, and has failed since."""
    tree = with_two_retries()
    assert states(tree) == {"a": "restarting", "b": "restarting"}
    _, out = asks(tree, "stop", "a")
    assert (gone(out), states(tree)) == ([("app/a", None, False)], {"a": "down", "b": "restarting"})
    assert orders(wakes(tree, 3)) == ["Start b"]


def test_a_retry_of_a_childs_own_is_cancelled_when_its_group_is_restarted():
    """R13, R14, R15: The retry is cancelled at once, and the clock of ready time no longer stands still for it."""
    limit = Limit(9, within=99, of_ready_time=True)
    tree = tree_of(leaf("a"), leaf("b", backoff=WAIT), strategy="rest_for_one", limit=limit)
    exits(tree, "b")
    ends(tree, "b")
    assert (states(tree)["b"], child(tree, "b").restart_in_progress) == ("restarting", True)
    tree.now = 1
    assert orders(exits(tree, "a")) == ["Release a"]
    assert (states(tree)["b"], child(tree, "b").restart_in_progress) == ("down", False)


def test_a_member_that_fails_to_start_after_another_was_condemned_is_tried_again():
    """R13, R14: It is judged like the one before it, and its retry is charged."""
    tree = tree_of(leaf("a"), leaf("b"), strategy="rest_for_one")
    exits(tree, "a")
    ends(tree, "a")
    ends(tree, "b")
    exits(tree, "a", "stop")
    assert orders(ends(tree, "a")) == ["Start b"]
    assert decided(exits(tree, "b")) == [("app", Restart, "table", None, None)]
    assert orders(ends(tree, "b")) == ["Start b"]
    assert (states(tree), machine(tree).restarts(0)) == ({"a": "condemned", "b": "starting"}, 2)


def test_a_restart_by_hand_does_not_wait_for_a_backoff():
    """R15, R25: Neither for the child's own backoff nor for one in its group."""
    tree = with_two_retries()
    _, out = asks(tree, "start", "a")
    assert orders(out) == ["Start a"]
    assert orders(ups(tree, "a")) == ["Start b"]
    assert orders(ups(tree, "b")) == ["replied"]


def test_a_restart_by_hand_takes_no_step_of_the_backoff():
    """R15: The next failure waits as long as it would without the restart by hand."""
    tree = tree_of(leaf("a", backoff=GROWING))
    exits(tree, "a")
    assert delays(ends(tree, "a")) == [3]
    asks(tree, "start", "a")
    ups(tree, "a")
    exits(tree, "a")
    assert delays(ends(tree, "a")) == [6]


def test_a_failed_start_does_not_count_as_a_quiet_time():
    """R15: This holds however short a quiet time would begin the series anew."""
    tree = tree_of(leaf("a", backoff=GROWING), limit=Limit(9, within=99))
    exits(tree, "a")
    assert delays(ends(tree, "a")) == [3]
    wakes(tree, 3)
    exits(tree, "a")
    assert delays(ends(tree, "a")) == [6]


def test_a_restart_by_hand_that_fails_is_reported_to_its_caller():
    """R16, R25: The failure is also judged, because the child was being restarted."""
    tree = tree_of(leaf("a", backoff=WAIT))
    exits(tree, "a")
    ends(tree, "a")
    caller, _ = asks(tree, "start", "a")
    node, exc = child(tree, "a"), Boom("restart")
    out = asked_for(tree, effect.Exited(node.name, 2, exc))
    (reply,) = (one for one in out if isinstance(one, effect.Reply))
    assert (reply.token, type(reply.error), reply.error.__cause__) == (caller, StartFailed, exc)
    assert delays(ends(tree, "a")) == [3]


def test_a_start_that_fails_under_one_for_all_stops_the_others_before_it_waits():
    """R13, R36: This holds however short the wait is, and the siblings get the reason."""
    short = Backoff(initial=0.5, factor=1, jitter=0)
    tree = tree_of(leaf("a"), leaf("b", backoff=short), strategy="one_for_all")
    exits(tree, "b")
    ends(tree, "b")
    ends(tree, "a")
    assert orders(wakes(tree, 0.5)) == ["Start a"]
    assert orders(ups(tree, "a")) == ["Start b"]
    assert orders(exits(tree, "b")) == ["Release b"]
    out = ends(tree, "b")
    assert reasons(out) == [("a", "one_for_all: sibling 'app/b' failed")]
    assert delays(ends(tree, "a")) == [0.5]


def test_a_supervisor_that_is_done_while_a_start_fails_ends():
    """R18, R19: It stops no other child, and its end is served in its turn."""
    inner = Supervisor("x", [leaf("c")], restart="transient", significant=True)
    tree = tree_of(inner, leaf("a", backoff=WAIT), strategy="one_for_all", auto_shutdown="any_significant")
    exits(tree, "a")
    ends(tree, "a")
    below = machine(tree, "x")
    tree.forest.handle(below, effect.Ended("c", 1), 0)
    wakes(tree, 3)
    below = machine(tree, "x")
    tree.forest.handle(below, effect.Boot(), 3)
    assert orders(tree.forest.handle(below, effect.Up("c", 2), 3)) == ["Start a"]
    tree.forest.handle(below, effect.Stop("x is done", returned=True), 3)
    tree.forest.handle(below, effect.Ended("c", 2), 3)
    assert states(tree) == {"x": "stopping", "a": "starting"}
    exits(tree, "a")
    assert machine(tree).phase == "up"
    out = ends(tree, "a")
    assert (machine(tree).phase, tree.forest.over) == ("ended", True)
    assert [one.path for one in out if isinstance(one, events.Returned)] == ["app"]


def test_the_retry_of_a_start_that_was_late_waits_its_turn():
    """R13, R17: The retry is served after the requests that came in the meantime."""
    tree = tree_of(leaf("a", start_timeout=2), leaf("b"))
    exits(tree, "a")
    ends(tree, "a")
    asks(tree, "status")
    assert orders(wakes(tree, tree.now + 2)) == ["Cancel a"]
    assert orders(ends(tree, "a")) == ["replied", "Start a"]


def test_a_first_start_that_is_late_names_the_child():
    """R16, R17: The siblings that are stopped for it get the name, and so does the caller that opened the tree."""
    forest = Forest(Supervisor("app", [leaf("a"), leaf("b", start_timeout=2)]))
    forest.start(0)
    root = forest.machines["app"]
    a, b = root.children.values()
    for item in (effect.Boot(), effect.Up(a.name, 1)):
        forest.handle(root, item, 0)
    assert reasons(forest.handle(root, effect.Wake(), 2)) == [("b", "'app/b': start_timeout of 2 s passed")]
    assert reasons(forest.handle(root, effect.Ended(b.name, 1), 2)) == [("a", "'app/b' failed to start")]
    (rise,) = (one for one in forest.handle(root, effect.Ended(a.name, 1), 3) if isinstance(one, effect.Rise))
    assert (rise.report.failure.path, str(rise.report.failure.exc)) == (
        "app/b",
        "'app/b' was not ready within 2 s",
    )


def test_a_retry_too_many_is_caused_by_the_last_failure():
    """R14: The cause is the failure of the start that was to be tried again."""
    tree = tree_of(leaf("a"), leaf("b"), limit=Limit(1, within=9))
    exits(tree, "a")
    ends(tree, "a")
    exc = Boom("restart")
    asked_for(tree, effect.Exited("a", 2, exc))
    (fail,) = (one for one in ends(tree, "a") if isinstance(one, effect.Fail))
    assert (str(fail.exc), fail.exc.__cause__) == ("'app' passed its limit of 1 within 9 s", exc)


def test_a_child_whose_retry_passes_the_limit_is_down():
    """R14, R33: It is down already while its supervisor still waits for a sibling that is ending, and ready time goes on."""
    limit = Limit(1, within=9, of_ready_time=True)
    tree = tree_of(leaf("a"), leaf("b", restart="transient"), leaf("c"), limit=limit, on_limit="shutdown")
    exits(tree, "a")
    ends(tree, "a")
    tree.now = 1
    exits(tree, "a")
    asks(tree, "stop", "c")
    assert orders(ends(tree, "a")) == ["Cancel c"]
    assert states(tree)["a"] == "restarting"
    asked_for(tree, effect.Exited("b", 1))
    tree.now = 4
    assert orders(ends(tree, "c")) == ["replied"]
    assert (machine(tree).phase, states(tree)) == (
        "ending",
        {"a": "down", "b": "stopping", "c": "down"},
    )
    assert (child(tree, "a").restart_in_progress, machine(tree).ready_time.at(6)) == (False, 2)


def test_testready_time_stands_still_on_the_fast_path_too():
    """R14: The clock stands still from the failure until the child is up again."""
    tree = tree_of(leaf("a"), limit=Limit(5, within=99, of_ready_time=True))
    node, clock = child(tree, "a"), machine(tree).ready_time
    shortcut.restart_at_once(machine(tree), node, Boom("restart"), 2)
    assert (node.restart_in_progress, clock.at(4)) == (True, 2)
    shortcut.up_at_once(machine(tree), node, 5)
    assert (node.restart_in_progress, clock.at(9)) == (False, 6)


def test_without_a_random_number_there_is_no_jitter():
    """R15: This holds for all machines of a tree, and for one by itself."""
    jittery = Backoff(initial=4, maximum=4, jitter=0.5)
    tree = tree_of(leaf("a", backoff=jittery), leaf("b", backoff=jittery))
    exits(tree, "a")
    assert delays(ends(tree, "a")) == [4]
    b = child(tree, "b")
    machine(tree).handle(effect.Exited(b.name, 1, Boom("restart")), 0)
    assert delays(machine(tree).handle(effect.Ended(b.name, 1), 0)) == [4]


def test_the_random_number_goes_up_with_the_failure():
    """R15: The supervisor that decides needs it for the jitter of its own child's backoff."""
    jittery = Backoff(initial=4, maximum=4, jitter=0.5)
    inner = Supervisor("x", [leaf("c")], backoff=jittery, decider=Decider(default=Escalate))
    tree = tree_of(inner)
    below = machine(tree, "x")
    c = below.children["c"]
    tree.forest.handle(below, effect.Exited(c.name, 1, Boom("restart")), 0, 0.75)
    assert delays(tree.forest.handle(below, effect.Ended(c.name, 1), 0)) == [5]


def test_a_leafs_own_limit_counts_every_charged_verdict():
    """R8, R14: A Resume without progress and a Restart count; a Resume with progress and a Stop do not."""

    tree = tree_of(leaf("a", resource=resource, limit=Limit(5, within=99)), limit=Limit(9, within=99))
    window = child(tree, "a").window
    counts = []
    for progressed in (True, False):
        out = exits(tree, "a", "resume", resumable=True, progressed=progressed)
        assert decided(out) == [("app", Resume, "table", None, None)]
        counts.append(window.count(0))
    exits(tree, "a", progressed=True)
    counts.append(window.count(0))
    ends(tree, "a")
    ups(tree, "a")
    exits(tree, "a", "stop")
    counts.append(window.count(0))
    assert counts == [0, 1, 2, 2]


def test_a_limit_that_a_retry_passes_is_caused_by_the_failure_that_was_passed_up():
    """R14: A supervisor waits for its retry, and the failure in its start was that of a child of its own."""
    once = Limit(1, within=float("inf"))
    below = Supervisor(
        "x", [Child("a", work), Child("b", work)], decider=BELOW, strategy="one_for_all", limit=once
    )
    world = World(Supervisor("app", [Child("a", work), below], decider=POLICY, limit=once))
    world.play(
        ("boot", "app", "up"),
        ("up", "app/a"),
        ("boot", "app/x", "up"),
        ("up", "app/x/a"),
        ("return", "app/x/a"),
        ("up", "app/x/b"),
        ("end", "app/x/a"),
        ("end", "app/x/b"),
        ("fail", "app/x/a", "up.restart"),
        ("return", "app/a"),
        ("end", "app/x/a"),
        ("end", "app/a"),
        ("up", "app/a"),
    )
    why = world.forest.root.why
    assert (str(why), repr(why.__cause__)) == (
        "'app' passed its limit of 1 within inf s",
        "Boom('up.restart')",
    )


def test_a_limit_that_a_supervisor_passes_while_it_runs_is_charged_above_when_it_is_decided():
    """R14: The supervisor's failure is no failed start, whose retry would be charged instead."""
    never = Limit(0, within=9)
    world = World(Supervisor("app", [Supervisor("x", [Child("a", work)], limit=never)], limit=never))
    world.play(("boot", "app", "up"), ("boot", "app/x", "up"), ("up", "app/x/a"))
    world.emitted = []
    world.play(("fail", "app/x/a", "restart"), ("end", "app/x/a"))
    found = [
        (one.by, one.path, one.directive, one.limit)
        for one in world.emitted
        if isinstance(one, events.Decided)
    ]
    assert found == [
        ("app/x", "app/x/a", Restart, "0 within 9 s"),
        ("app", "app/x", Restart, "0 within 9 s"),
        ("app", "app", Escalate, None),
    ]


def test_a_group_restart_that_fails_to_start_a_waiting_child_makes_two_retries_of_one():
    """R13: As in OTP, the older one is tried in its place in the queue, before later items, and charged."""
    spec = Supervisor("app", [leaf("a"), leaf("b")], strategy="rest_for_one", limit=Limit(9), decider=POLICY)
    world = World(spec).play(
        ("boot", "app", "up"),
        ("up", "app/a"),
        ("up", "app/b"),
        ("fail", "app/b", "restart"),
        ("end", "app/b"),
        ("fail", "app/a", "restart"),
        ("fail", "app/b", "restart"),
        ("end", "app/b"),
        ("end", "app/a"),
        ("up", "app/a"),
        ("request", "app", "status", ""),
        ("fail", "app/b", "restart"),
        ("end", "app/b"),
    )
    node = world.tasks["app/b"].node
    assert (node.incarnation, node.state, world.charges["app"], world.asked) == (4, "starting", 3, {1})
    world.play(("up", "app/b"))
    assert (node.state, world.charges["app"], world.asked) == ("up", 3, set())


def test_a_retry_that_still_waits_does_not_cut_a_later_backoff_short():
    """R13, R15: The retry was queued before a group restart included its child, whose start then failed."""
    tree = tree_of(leaf("c"), leaf("a"), leaf("b", backoff=GROWING), strategy="rest_for_one")
    exits(tree, "b")
    ends(tree, "b")
    asks(tree, "stop", "c")
    exits(tree, "a")
    wakes(tree, 3)
    assert [type(item).__name__ for item in machine(tree).inbox] == ["Judge", "Retry"]
    ends(tree, "c")
    assert orders(ends(tree, "a")) == ["Start a"]
    assert orders(ups(tree, "a")) == ["Start b"]
    exits(tree, "b")
    out = ends(tree, "b")
    assert (delays(out), orders(out)) == ([6], [])
    assert orders(wakes(tree, 9)) == ["Start b"]


def test_a_retry_that_takes_its_group_along_lets_ready_time_stand_still():
    """R14: The clock stands still from the failure until all of the group are up again."""
    limit = Limit(5, within=99, of_ready_time=True)
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), strategy="rest_for_one", limit=limit)
    exits(tree, "a")
    ends(tree, "a")
    reasons = [one.reason for one in ends(tree, "b") if isinstance(one, effect.Cancel)]
    assert orders(wakes(tree, 3)) == ["Start a"]
    assert (reasons, child(tree, "a").restart_in_progress, machine(tree).ready_time.at(9)) == ([], True, 0)
    ups(tree, "a")
    assert machine(tree).ready_time.at(9) == 0
    ups(tree, "b")
    assert machine(tree).ready_time.at(9) == 6


def test_the_siblings_that_are_stopped_before_a_backoff_get_the_reason():
    """R12, R13: It is the same text as before a restart without backoff."""
    tree = tree_of(leaf("a", backoff=WAIT), leaf("b"), strategy="one_for_all")
    exits(tree, "a")
    (cancel,) = (one for one in ends(tree, "a") if isinstance(one, effect.Cancel))
    assert (cancel.path.rpartition("/")[2], cancel.reason) == ("b", "one_for_all: sibling 'app/a' failed")


def test_only_a_restart_takes_a_step_of_the_backoff():
    """R15: A Resume does not."""
    growing = Backoff(initial=3, factor=2, maximum=99, jitter=0, reset_after=1000)
    tree = tree_of(leaf("a", backoff=growing, resource=resource))
    exits(tree, "a", "resume", resumable=True, progressed=True)
    assert exits(tree, "a")
    (waits,) = (one for one in ends(tree, "a") if isinstance(one, events.BackingOff))
    assert (waits.delay, waits.attempt) == (3, 1)


def test_a_sibling_without_a_backoff_that_waits_along_makes_its_first_attempt():
    """R13, R15: A group restart waits for the backoff of the child that it takes along."""
    tree = tree_of(leaf("a"), leaf("b", backoff=WAIT), strategy="rest_for_one")
    exits(tree, "b")
    ends(tree, "b")
    exits(tree, "a")
    (waits,) = (one for one in ends(tree, "a") if isinstance(one, events.BackingOff))
    assert (waits.path, waits.delay, waits.attempt) == ("app/a", 3, 1)
