"""What `status()` says of the past of a node, and what a caller gives as the reason of a request (R25, R33)."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Child,
    Decider,
    Escalate,
    Pool,
    Refused,
    Restart,
    Resume,
    StartFailed,
    TreeFailed,
    events,
    open_tree,
)
from supervise._core.status import Decision
from supervise.testing import run_virtual

from .scene import Boom, Kit, Puppet, app, forever, grow, quiet
from .test_seeing import trees


@pytest.mark.parametrize("listening", [True, False])
def test_a_status_says_since_when_and_how_often(listening):
    """R33: Since when the state holds, when the node became ready, its restarts and failures, and the last decision."""
    slow = Puppet("slow", 2, 0, 4, resource=Kit(), backoff=Backoff(initial=8, jitter=0))
    quick = Puppet("quick")

    async def main():
        async with open_tree(app(slow, quick), sinks=[print] if listening else []) as tree:
            begun = trio.current_time() - 2
            shown = tree.status()
            assert (shown.since, shown.ready_at) == (begun + 2, begun + 2)
            assert (shown.children[0].since, shown.children[0].ready_at) == (begun + 2, begun + 2)
            assert (shown.children[0].restarts_total, shown.children[0].failures_total) == (0, 0)
            assert shown.children[0].decision is None
            await trio.sleep(1)
            slow.fail()
            quick.fail()
            await quiet()
            first, second = tree.status().children
            assert (first.state, first.since, first.ready_at) == ("restarting", begun + 3, begun + 2)
            assert (first.restarts_total, first.failures_total) == (0, 1)
            assert first.decision == second.decision == Decision(begun + 3, Restart, None, "app", "table")
            assert (second.state, second.since, second.ready_at) == ("up", begun + 3, begun + 3)
            assert (second.restarts_total, second.failures_total) == (1, 1)
            await trio.sleep(8)
            slow.fail()
            await trio.sleep(17)
            first = tree.status().children[0]
            assert (first.state, first.since, first.ready_at) == ("starting", begun + 27, None)
            assert (first.restarts_total, first.failures_total) == (2, 2)
            await tree["app/quick"].stop()
            second = tree.status().children[1]
            assert (second.state, second.since, second.ready_at) == (
                "down",
                begun + 31,
                begun + 3,
            )  # it waits for the start

    run_virtual(main)


def test_a_decision_from_above_is_that_of_the_leaf_that_failed():
    """R11, R33: It names the supervisor that decided, the tag, and the directive; one that no decider gave says why."""
    a = Puppet("a", resource=Kit())
    inner = app(a, Puppet("b"), name="in", decider=Decider({"net": Escalate}))
    tree = app(inner, decider=Decider({"net": Resume}))

    class Net(Exception):
        tag = "net.gone"

    async def scene(tree, seen):
        a.fail(Net())
        await quiet()
        assert tree["app/in/a"].status().decision == Decision(
            trio.current_time(), Resume, "net.gone", "app", "table"
        )
        assert tree["app/in"].status().decision is None
        await tree["app/in/b"].stop()
        with pytest.raises(StartFailed):
            await tree["app/in"].add(Puppet("c", Boom()).spec)

    grow(tree, scene)


def test_the_numbers_outlive_a_restart_of_the_supervisor():
    """R9, R33: Restarts and failures count since the tree opened, also of a child that left the tree and came back."""
    a = Puppet("a", *[0] * 9)
    inner = app(a, name="in", decider=Decider({"out": Escalate}))
    pool = Pool("pool", Child("m", forever))

    class Out(Exception):
        tag = "out"

    async def scene(tree, seen):
        a.fail()
        await quiet()
        a.fail(Out())
        await quiet()
        shown = tree["app/in/a"].status()
        assert (shown.incarnation, shown.restarts_total, shown.failures_total) == (3, 2, 2)
        assert shown.decision == Decision(trio.current_time(), Restart, "out", "app", "table")
        assert (tree["app/in"].status().restarts_total, tree["app/in"].status().failures_total) == (1, 0)
        first = await tree["app/pool"].add()
        await first.stop()
        named = await tree["app/pool"].add(name="m-1")
        assert (named.status().incarnation, named.status().restarts_total) == (2, 0)

    grow(app(inner, pool), scene)


ACTS = st.sampled_from(["boom", "return", "stop", "start", "restart", "wait"])


@given(trees(), st.integers(0, 2**32), st.lists(st.tuples(ACTS, st.integers(0, 20)), max_size=8))
def test_since_changes_exactly_when_the_state_does(grown, seed, acts):
    """R33: Whatever happens to a tree, a new state has a new time, and a state that lasts keeps its time."""
    spec, leaves = grown
    known = {}
    looked = -1.0

    def look(tree):
        nonlocal looked
        now = trio.current_time()
        for status in tree.status().walk():
            which = status.path, status.incarnation
            state, since = known.get(which, (status.state, status.since))
            assert looked <= status.since <= now if status.state != state else since <= status.since <= now
            if status.since != since:
                assert status.since >= looked
            if status.state == "up":
                assert status.ready_at is not None
                assert status.ready_at <= status.since
            known[which] = status.state, status.since
        looked = now

    async def ask(ref, what):
        try:
            await getattr(ref, what)()
        except (Refused, StartFailed):
            pass

    async def scene(tree, seen):
        paths = [status.path for status in tree.status().walk()][1:]
        unsubscribe = tree.subscribe(lambda _: look(tree))
        async with trio.open_nursery() as nursery:
            for act, number in acts:
                if act in ("stop", "start", "restart"):
                    nursery.start_soon(ask, tree[paths[number % len(paths)]], act)
                elif act == "wait":
                    await trio.sleep(1)
                else:
                    leaf = leaves[number % len(leaves)]
                    leaf.finish() if act == "return" else leaf.fail()
            await trio.sleep(1)
        unsubscribe()

    try:
        grow(spec, scene, seed=seed)
    except (StartFailed, TreeFailed):
        pass


def test_a_request_has_the_reason_of_its_caller():
    """R25: The events that follow from a request show the reason; so an operator is named in every sink."""
    a, b, pool = Puppet("a"), Puppet("b"), Pool("pool", Child("m", forever))

    async def scene(tree, seen):
        await tree["app/a"].stop(reason="ann: too loud")
        await tree["app/a"].start(reason="ann: quiet now")
        await tree["app/a"].restart(reason="ann: new settings")
        await tree["app/b"].restart()
        await tree["app/pool"].add(reason="ann: more of them")
        await tree["app"].stop(reason="ann: good night")

    seen = grow(app(a, b, pool, strategy="rest_for_one"), scene)
    said = [
        (event.path, event.reason) for event in seen if isinstance(event, events.Starting | events.Stopping)
    ]
    again = "'app/a' was asked to restart: ann: new settings"
    assert said[4:] == [
        ("app/a", "'app/a' was asked to stop: ann: too loud"),
        ("app/a", "'app/a' was asked to start: ann: quiet now"),
        *[(f"app/{name}", again) for name in ("pool", "b", "a", "a", "b", "pool")],
        ("app/pool", "'app/b' was asked to restart"),
        ("app/b", "'app/b' was asked to restart"),
        ("app/b", "'app/b' was asked to restart"),
        ("app/pool", "'app/b' was asked to restart"),
        ("app/pool/m-1", "ann: more of them"),
        ("app", "'app' was asked to stop: ann: good night"),
        *[
            (path, "'app' was asked to stop: ann: good night")
            for path in ("app/pool", "app/pool/m-1", "app/b", "app/a")
        ],
    ]
    assert [reason for _, reason in said[:4]] == [None] * 4


@pytest.mark.parametrize("verb", ["stop", "start", "restart", "add"])
def test_a_reason_is_a_text_and_shown_in_part_if_it_is_long(verb):
    """R25: Another type is refused with one line; a text without end does not fill the log."""

    async def scene(tree, seen):
        ref = tree["app"] if verb == "add" else tree["app/a"]
        arguments = [Child("new", forever)] if verb == "add" else []
        with pytest.raises(TypeError, match=r"^reason must be a str or None, got 7$"):
            await getattr(ref, verb)(*arguments, reason=7)
        if verb == "start":
            await ref.stop()
        await getattr(ref, verb)(*arguments, reason="x" * 100_000)

    seen = grow(app(Puppet("a")), scene)
    long = [event for event in seen if "xxx" in (getattr(event, "reason", None) or "")]
    assert long
    assert all(len(event.reason) < 600 for event in long)
