"""Seeing it: events, the grammar, status, and Trio's own task tree (R31–R33, R35)."""

from __future__ import annotations

import inspect
import logging
import re
from pathlib import Path

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildStopped,
    Decider,
    Escalate,
    Limit,
    Pool,
    Refused,
    Restart,
    Resume,
    StartFailed,
    Status,
    Stop,
    Supervisor,
    TreeFailed,
    events,
    open_tree,
)
from supervise._trio.tree import onlookers
from supervise.sinks.log import LoggingSink
from supervise.sinks.queue import QueueSink
from supervise.testing import assert_lifecycle, lifecycle, run_virtual

from .scene import Boom, Kit, Other, Puppet, Seen, app, forever, grow, puppets, quiet

# --- events


def test_events_are_a_closed_set_of_frozen_values():
    """R31: Each event has a time, a path and an incarnation, and the fields of its kind."""
    kinds = [
        kind for kind in vars(events).values() if inspect.isclass(kind) and issubclass(kind, events.Event)
    ]
    assert len(kinds) == 18
    for kind in kinds:
        assert {"at", "path", "incarnation"} <= {field.name for field in attrs.fields(kind)}
    event = events.Stopped(at=0.0, path="app", incarnation=1)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.at = 1.0


def test_events_carry_time_path_and_incarnation():
    """R31: Times are those of Trio's clock, and incarnations count from 1."""
    a = Puppet("a", 0, 2)

    async def scene(tree, seen):
        await trio.sleep(3)
        a.fail()
        await trio.sleep(3)

    seen = grow(app(a), scene)
    assert [(e.incarnation, e.at - seen.events[0].at) for e in seen.of(events.Ready, "app/a")] == [
        (1, 0),
        (2, 5),
    ]


def test_every_sink_gets_everything_in_the_same_order():
    """R31: Any number of sinks get the events in order, also if a sink calls the tree."""
    a, b = puppets("ab")
    sinks = [Seen(), Seen()]
    trees = []

    def meddle(event):
        if isinstance(event, events.Failed):
            trees[0]._driver.stop("meddled")

    async def main():
        async with open_tree(app(a, b), sinks=[sinks[0], meddle, sinks[1]]) as tree:
            trees.append(tree)
            await quiet()
            a.fail()
            await tree.root.ended()

    run_virtual(main)
    assert sinks[0].events == sinks[1].events
    assert_lifecycle(sinks[0])


def test_a_sink_that_raises_is_reported_once_and_dropped(caplog):
    """R31: Such a sink never harms the tree; the other sinks get the report after the event on which it failed."""
    a = Puppet("a")
    before, after = Seen(), Seen()
    calls = []

    def bad(event):
        calls.append(event)
        raise Boom("sink")

    async def main():
        async with open_tree(app(a), sinks=[before, bad, after]):
            await quiet()
            a.fail()
            await quiet()
            assert a.lives == 2

    with caplog.at_level(logging.ERROR, "supervise"):
        run_virtual(main)
    assert len(calls) == 1
    assert len(caplog.records) == 1
    assert before.events == after.events
    failed = before.the(events.SinkFailed)
    assert before.events.index(failed) == 1
    assert isinstance(failed.exc, Boom)
    assert_lifecycle(before)


def test_sinks_that_raise_at_one_event_are_reported_once_each(caplog):
    """R31: The report about one of them is not an event for the others, which are dropped too."""
    seen = Seen()

    def bad(number):
        def sink(event):
            raise Boom(number)

        return sink

    async def main():
        async with open_tree(app(Child("a", trio.sleep_forever)), sinks=[bad(1), bad(2), seen, bad(3)]):
            await quiet()

    with caplog.at_level(logging.ERROR, "supervise"):
        run_virtual(main)
    assert [str(failed.exc) for failed in seen.of(events.SinkFailed)] == ["1", "2", "3"]
    assert len(caplog.records) == 3
    assert_lifecycle(seen)


def test_equal_sinks_are_not_the_same_sink():
    """R31: The sink that raised is dropped, and no other that compares equal to it."""

    class Equal(Seen):
        __hash__ = None

        def __eq__(self, other):
            return True

    class Bad(Equal):
        def __call__(self, event):
            raise Boom

    good = Equal()

    async def main():
        async with open_tree(app(Puppet("a")), sinks=[good, Bad()]):
            await quiet()

    run_virtual(main)
    assert_lifecycle(good)
    assert len(good) > 3


def test_a_slow_sink_goes_behind_a_bounded_queue():
    """R31: The tree does not wait for it, and events that find no room are counted."""
    a = Puppet("a")
    slow, seen, read = QueueSink(3), Seen(), []

    async def reader():
        async for event in slow:
            await trio.sleep(10)
            read.append(event)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            async with open_tree(app(a), sinks=[slow, seen]):
                for _ in range(3):
                    await quiet()
                    a.fail()
            slow.close()

    run_virtual(main)
    assert slow.dropped > 0
    assert len(read) + slow.dropped == len(seen)
    assert read[0] is seen.events[0]
    with pytest.raises(ValueError, match="size must be an integer >= 1, got 0"):
        QueueSink(0)


def test_without_a_sink_no_event_is_made():
    """R31: `sinks=[]` reports nothing, and costs nothing."""
    a = Puppet("a")

    async def main():
        onlookers.set(())  # the pytest plugin may listen
        async with open_tree(app(a), sinks=[]) as tree:
            await quiet()
            assert not tree._driver.forest.ledger.listening
            a.fail()
            await quiet()
            assert a.lives == 2

    run_virtual(main)


def test_the_default_sink_logs_a_line_for_each_decision(caplog):
    """R31: The level follows from the directive."""
    a = Puppet("a")

    async def main():
        async with open_tree(app(a, decider=Decider({Other: Stop}))):
            await quiet()
            a.fail()
            await quiet()
            a.fail(Other())
            await quiet()

    with caplog.at_level(logging.INFO, "supervise"):
        run_virtual(main)
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "app/a #1 failed: Boom: a → Restart, decided by 'app'" in caplog.records[0].getMessage()


def test_the_logging_sink_takes_any_logger(caplog):
    """R31: It is a sink like any other."""
    logger = logging.getLogger("mine")
    sink = LoggingSink(logger)
    sink(events.StopError(at=0.0, path="app/a", incarnation=1, exc=Boom("x")))
    assert caplog.records[0].name == "mine"


async def collect(event):
    """No sink: it would have to be awaited."""


@pytest.mark.parametrize(
    ("sinks", "expected"),
    [
        ([collect], "a sink must be a plain function, and collect is an async function: it is not awaited"),
        ([5], "a sink must be a function, got 5"),
        (
            [lambda: None],
            "a sink is called as <lambda>(event), but it is <lambda>(): too many positional arguments",
        ),
        (print, "sinks must be a list of functions, got <built-in function print>"),
    ],
)
def test_an_object_that_is_no_sink_is_refused(sinks, expected):
    """R31: It is refused when the tree is opened, in one line, before anything starts."""

    async def main():
        with pytest.raises(TypeError) as raised:
            async with open_tree(Supervisor("app", []), sinks=sinks):
                pass
        assert str(raised.value).startswith(expected)

    run_virtual(main)


# --- the grammar


def test_each_failed_has_exactly_one_decided():
    """R32: The `Decided` names the directive and its decider, or the reason why no decider was asked."""
    a, b, c = Puppet("a", resource=Kit()), Puppet("b"), Puppet("c", stubborn=1)

    async def scene(tree, seen):
        with tree._driver.held():
            a.fail()
            await quiet()
            b.fail()
            await quiet()
        await trio.sleep(2)
        b.fail(Other())
        await quiet()

    seen = grow(app(a, b, c, strategy="one_for_all", decider=Decider({Other: Stop})), scene)
    for failed in seen.of(events.Failed):
        after = seen.events[seen.events.index(failed) + 1 :]
        decided = next(e for e in after if e.path == failed.path)
        assert isinstance(decided, events.Decided)
    assert {decided.because for decided in seen.of(events.Decided)} == {"table", "absorbed"}


def life(*kinds, path="app", incarnation=1):
    details = {
        events.Failed: {"exc": Boom()},
        events.Decided: {"directive": Restart, "by": "app", "exc": Boom()},
        events.Stopping: {"reason": "why"},
        events.Overdue: {"seconds": 5.0},
        events.StopError: {"exc": Boom()},
        events.BackingOff: {"delay": 1.0, "until": 1.0},
        events.StartOverdue: {"seconds": 30.0},
    }
    return [kind(at=0.0, path=path, incarnation=incarnation, **details.get(kind, {})) for kind in kinds]


E = events
GOOD = [
    [E.Starting, E.Ready, E.Stopping, E.Stopped],
    [E.Starting, E.Ready, E.Failed, E.Decided, E.Resumed, E.Failed, E.Decided, E.Stopped, E.BackingOff],
    [E.Starting, E.Ready, E.Returned, E.Stopped],
    [E.Starting, E.Ready, E.Stopping, E.Overdue, E.Overdue, E.StopError, E.Stopped],
    [E.Starting, E.Ready, E.Stopping, E.StopError, E.Overdue, E.StopError, E.Stopped],
    [E.Starting, E.Ignored, E.Returned, E.Stopped],
    [E.Starting, E.StartFailed, E.Failed, E.Decided, E.Stopped],
    [E.Starting, E.Overdue, E.StartFailed, E.Failed, E.Decided, E.Stopped],
    [E.Starting, E.Stopping, E.Stopped],
]
BAD = [
    [E.Ready, E.Stopping, E.Stopped],
    [E.Starting, E.Ready],
    [E.Starting, E.Ready, E.Failed, E.Stopped],
    [E.Starting, E.Ready, E.Decided, E.Stopped],
    [E.Starting, E.Ready, E.Failed, E.Decided, E.Decided, E.Stopped],
    [E.Starting, E.Ready, E.Failed, E.Resumed, E.Stopped],
    [E.Starting, E.Ready, E.Stopping, E.StopError, E.StopError, E.StopError, E.Stopped],
    [E.Starting, E.Ready, E.Stopped, E.Ready],
    [E.Starting, E.StartFailed, E.Ready, E.Stopped],
    [E.Starting, E.Ready, E.BackingOff, E.Stopped],
    [E.BackingOff],
]


@pytest.mark.parametrize("kinds", GOOD)
def test_lifecycles_that_follow_the_grammar(kinds):
    """R32: `assert_lifecycle` accepts these."""
    assert_lifecycle([*life(*kinds), *life(E.Starting, E.Ready, E.Stopping, E.Stopped, incarnation=2)])


@pytest.mark.parametrize("kinds", BAD)
def test_lifecycles_that_break_the_grammar(kinds):
    """R32: `assert_lifecycle` refuses these, and names the path."""
    with pytest.raises(AssertionError, match="'app'"):
        assert_lifecycle(life(*kinds))


def test_the_grammar_in_the_docs_is_the_one_that_is_checked():
    """R32: The docstring of `supervise.events` and docs/project/rules.md show it with the names of events."""
    letters = {kind.__name__: letter for kind, letter in lifecycle._LETTERS.items()}
    rules = Path(__file__).parents[2] / "docs" / "project" / "rules.md"
    for text in (events.__doc__, rules.read_text()):
        shown = re.search(r"^ +Starting StartOverdue\*$.*?^ +Stopped$", text, re.MULTILINE | re.DOTALL)
        word = re.sub(r"[A-Z]\w+", lambda name: letters[name[0]], shown[0])
        assert "".join(word.split()) == lifecycle._LIFE.pattern


def test_incarnations_must_go_up():
    """R32: Incarnations come one after the other, each with a number of its own."""
    whole = [E.Starting, E.Ready, E.Stopping, E.Stopped]
    with pytest.raises(AssertionError, match="incarnation 1 after 2"):
        assert_lifecycle([*life(*whole, incarnation=2), *life(*whole)])
    with pytest.raises(AssertionError, match="one life, but incarnations"):
        assert_lifecycle([*life(*whole[:2]), *life(*whole[2:], incarnation=2)])
    assert_lifecycle(life(E.Starting, E.Ready), closed=False)


def test_the_root_follows_the_grammar_too():
    """R32: If a leaf below it fails it, it stops; if its limit was passed, it has failed and decided."""
    for options, kinds in (
        ({"decider": Decider({Boom: Escalate})}, "Starting Ready Stopping Stopped"),
        ({"limit": Limit(0)}, "Starting Ready Failed Decided Stopped"),
    ):
        a, seen = Puppet("a", stubborn=1), Seen()

        async def scene(tree, seen, a=a):
            a.fail()
            await trio.sleep_forever()

        with pytest.raises(TreeFailed):
            grow(app(a, Puppet("b", stubborn=1), **options), scene, seen=seen)
        assert seen.kinds("app") == kinds


def test_a_stop_that_overtakes_a_passed_limit_leaves_no_failure_undecided():
    """R32: The limit's failure is the supervisor's own only when the child that passed it is gone."""
    a = Puppet("a", resource=Kit(slow_exit=3))
    inner = Supervisor("s", [a.spec], limit=Limit(0))

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(1)
        await tree[inner].stop()

    seen = grow(app(inner), scene)
    assert seen.kinds("app/s") == "Starting Ready Stopping Stopped"
    assert seen.the(events.Decided).limit == "0 within 5 s"


DIRECTIVES = st.sampled_from([Resume, Restart, Stop])
STRATEGIES = st.sampled_from(["one_for_one", "one_for_all", "rest_for_one"])


@st.composite
def trees(draw, depth=2):
    """A small tree of puppets, and the puppets."""
    leaves = []

    def grown(name, depth):
        children = []
        for letter in "abc"[: draw(st.integers(1, 3))]:
            if depth and draw(st.booleans()):
                children.append(grown(letter, depth - 1))
            else:
                leaves.append(leaf(letter))
                children.append(leaves[-1].spec)
        options = {
            "strategy": draw(STRATEGIES),
            "limit": draw(st.sampled_from([None, Limit(1, within=5)])),
            "on_limit": draw(st.sampled_from(["escalate", "shutdown"])),
            "restart": draw(st.sampled_from(["permanent", "transient", "temporary"])),
        }
        table = {Boom: draw(DIRECTIVES), Other: draw(st.sampled_from([Restart, Escalate])), "limit": Restart}
        return Supervisor(name, children, decider=Decider(table), **options)

    def leaf(letter):
        return Puppet(
            letter,
            *draw(st.lists(st.sampled_from([0, 0, 0.5]), max_size=1)),
            *draw(st.lists(st.sampled_from([0, 0.5, Boom("start")]), max_size=2)),
            stubborn=draw(st.sampled_from([0, 0, 1])),
            resource=draw(st.sampled_from([None, Kit(), Kit(slow_exit=7), Kit(fail_exit=1)])),
            start_timeout=draw(st.sampled_from([None, 0.3])),
            restart=draw(st.sampled_from(["permanent", "permanent", "transient", "temporary"])),
            backoff=draw(st.sampled_from([None, Backoff(initial=0.3)])),
        )

    return grown("app", depth), leaves


@pytest.mark.slow
@given(trees(), st.integers(0, 2**32), st.data())
def test_the_lifecycles_of_random_trees_follow_the_grammar(grown, seed, data):
    """R20, R32: Under random failures, stops and restarts the grammar holds, and no two incarnations overlap."""
    spec, leaves = grown
    acts = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["boom", "other", "return", "stop", "restart", "wait"]), st.integers(0, 20)
            ),
            max_size=8,
        )
    )

    async def ask(ref, what):
        try:
            await getattr(ref, what)()
        except (Refused, StartFailed):
            pass

    async def scene(tree, seen):
        paths = [status.path for status in tree.status().walk()][1:]
        async with trio.open_nursery() as nursery:
            for act, number in acts:
                leaf = leaves[number % len(leaves)]
                if act in ("stop", "restart"):
                    nursery.start_soon(ask, tree[paths[number % len(paths)]], act)
                elif act == "wait":
                    await trio.sleep(1)
                else:
                    leaf.finish() if act == "return" else leaf.fail(Boom() if act == "boom" else Other())
            await trio.sleep(1)

    seen = Seen()
    try:
        grow(spec, scene, seen=seen, seed=seed)
    except (StartFailed, TreeFailed):
        pass
    assert all(leaf.running == 0 for leaf in leaves)


# --- status


def test_a_status_is_a_frozen_picture_of_the_tree():
    """R33: It has state, incarnation, restarts in the window, last failure, due time of a backoff, and mailbox depth."""
    a = Puppet("a", backoff=Backoff(initial=5, jitter=0))
    b = Puppet("b", mailbox=9)
    pool = Pool("pool", Child("m", forever))

    async def scene(tree, seen):
        boom = Boom()
        a.fail(boom)
        tree[b.spec].send_nowait(1)
        tree[b.spec].send_nowait(2)
        await tree[pool].add()
        status = tree.status()
        assert (status.kind, status.state, status.incarnation, status.restarts) == ("supervisor", "up", 1, 1)
        first, second, third = status.children
        assert (first.state, first.due, first.last_failure) == ("restarting", trio.current_time() + 5, boom)
        assert (second.kind, second.state, second.mailbox, second.due) == ("child", "up", 2, None)
        assert (third.kind, first.mailbox) == ("pool", None)
        assert [s.path for s in status.walk()] == ["app", "app/a", "app/b", "app/pool", "app/pool/m-1"]
        assert tree[b.spec].status() == second
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            status.state = "down"
        await trio.sleep(6)
        assert tree.status().restarts == 0
        assert isinstance(status, Status)

    grow(app(a, b, pool), scene)


def test_a_status_shows_what_was_declared():
    """R33: The limit beside the restarts that it counts, the strategy, the restart type, and the path of the front."""
    a = Puppet("a", restart="transient", limit=Limit(7))
    inner = app(Puppet("b"), name="s", strategy="rest_for_one", front="b", limit=None)
    pool = Pool("pool", Child("m", forever, restart="temporary"), member_limit=Limit(2))

    async def scene(tree, seen):
        await tree[pool].add()
        shown = {
            status.path: (status.limit, status.strategy, status.restart, status.front)
            for status in tree.status().walk()
        }
        assert shown == {
            "app": (Limit(3, within=5), "one_for_one", "permanent", None),
            "app/a": (Limit(7), None, "transient", None),
            "app/s": (None, "rest_for_one", "permanent", "app/s/b"),
            "app/s/b": (None, None, "permanent", None),
            "app/pool": (None, None, "permanent", None),
            "app/pool/m-1": (Limit(2), None, "temporary", None),
        }

    grow(app(a, inner, pool), scene)


def test_a_status_counts_the_messages_that_a_mailbox_has_handled():
    """R33: Each message counts once, also when it comes back, and so does each item of a stream; the count is kept over restarts."""

    async def body(inbox):
        async for message in inbox:
            if message.value == "again" and message.memo is None:
                message.memo = "seen"
                message.requeue()
            elif message.value == "items":
                message.send_nowait(1)
                message.send_nowait(2)
                message.reply()
            elif message.value == "fail":
                raise Boom
            else:
                message.reply()

    spec = Child("a", body, mailbox=8)
    plain = Child("b", forever)

    async def scene(tree, seen):
        assert [tree[node].status().handled for node in (spec, plain)] == [0, None]
        await tree[spec].call("plain")
        await tree[spec].call("again")
        assert tree[spec].status().handled == 2
        async with tree[spec].stream("items") as items:
            assert [item async for item in items] == [1, 2]
        assert tree[spec].status().handled == 5
        with pytest.raises(CallLost):
            await tree[spec].call("fail")
        await tree[spec].send("one way")
        await trio.sleep(1)
        assert (tree[spec].status().handled, tree[spec].status().incarnation) == (7, 2)

    grow(Supervisor("app", [spec, plain]), scene)


def test_a_status_is_given_at_once_and_never_queued():
    """R33: This holds also while the supervisor is busy."""
    slow = Puppet("slow", 0, 10)

    async def scene(tree, seen):
        slow.fail()
        await quiet()
        assert tree.status().children[0].state == "starting"
        assert trio.current_time() == 0

    grow(app(slow), scene)


def test_a_status_of_a_node_that_has_left_is_an_error():
    """R33: A node that is not in the tree has none."""
    a = Puppet("a", restart="temporary")

    async def scene(tree, seen):
        ref = tree[a.spec]
        a.finish()
        await quiet()
        with pytest.raises(ChildStopped):
            ref.status()

    grow(app(a), scene)


def test_a_deep_tree_works():
    """R33: Start, status, escalation and stop of 500 levels work, because nothing recurses over the depth of a tree."""
    a = Puppet("a")
    spec = Supervisor("s", [a.spec], decider=Decider(default=Escalate))
    for _ in range(500):
        spec = Supervisor("s", [spec])

    async def scene(tree, seen):
        assert len(list(tree.status().walk())) == 503
        a.fail()
        await trio.sleep(1)
        assert a.lives == 2

    grow(app(spec, decider=Decider({Boom: Restart})), scene)


# --- Trio's task tree


def test_trios_own_task_tree_is_the_declared_tree():
    """R35: Every running supervisor owns a nursery, in a task of its own, that holds its children's tasks."""
    spec = app(Puppet("a"), Supervisor("s", [Puppet("b").spec, Supervisor("t", [Puppet("c").spec])]))

    def names(task):
        return {child.name: names(child) for nursery in task.child_nurseries for child in nursery.child_tasks}

    async def scene(tree, seen):
        (nursery,) = trio.lowlevel.current_task().child_nurseries
        (top,) = [task for task in nursery.child_tasks if task.name == "app (tree)"]
        found = names(top)
        del found["app (timers)"]
        assert found == {"app": {"app/a": {}, "app/s": {"app/s/b": {}, "app/s/t": {"app/s/t/c": {}}}}}

    grow(spec, scene)


def test_task_names_stay_right_over_restarts():
    """R35: A restart in the same task, or in a new one, has the same path as its name."""
    a, b = puppets("ab")

    async def scene(tree, seen):
        a.fail()
        b.fail()
        await quiet()
        tasks = [tree._driver.leaves[path]._task for path in ("app/a", "app/b")]
        assert [task.name for task in tasks] == ["app/a", "app/b"]

    grow(app(a, b, strategy="rest_for_one"), scene)
