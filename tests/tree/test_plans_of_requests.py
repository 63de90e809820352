"""`Ref.plan`: what a request would do, by the rules, without doing it (R25)."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    Backoff,
    Child,
    Pool,
    Refused,
    StartFailed,
    TreeFailed,
    events,
    open_tree,
)
from supervise._core.rehearsal import Step
from supervise.testing import run_virtual
from supervise.testing.replay import recording

from .scene import Kit, Puppet, app, forever, grow, puppets, quiet
from .test_seeing import trees


def steps(text):
    """`-a +a`: stop `app/a`, start it."""
    signs = {"-": "stop", "+": "start"}
    return [Step(signs[word[0]], f"app/{word[1:]}" if word[1:] else "app") for word in text.split()]


@pytest.mark.parametrize(
    ("strategy", "verb", "expected"),
    [
        ("one_for_one", "restart", "-b +b"),
        ("rest_for_one", "restart", "-c -b +b +c"),
        ("one_for_all", "restart", "-c -b -a +a +b +c"),
        ("one_for_all", "stop", "-b"),
    ],
)
def test_a_plan_has_the_steps_of_the_group_in_order(strategy, verb, expected):
    """R12, R13, R25: Stops in reverse, then starts, as the strategy names them; and nothing happens to the tree."""

    async def scene(tree, seen):
        before, status = len(seen), tree.status()
        assert tree["app/b"].plan(verb) == steps(expected)
        assert len(seen) == before
        assert tree.status() == status

    grow(app(*puppets("abc"), strategy=strategy), scene)


def test_a_plan_goes_through_supervisors_and_reaches_the_root():
    """R12, R25: A supervisor is stopped after its children and started before them; stopping the root ends everything."""
    inner = app(*puppets("xy"), name="in")

    async def scene(tree, seen):
        assert tree["app/in"].plan("restart") == steps("-in/y -in/x -in +in +in/x +in/y")
        assert tree["app"].plan("stop") == steps("-in/y -in/x -in -a -")
        assert tree["app"].plan("restart") == steps("-in/y -in/x -in -a - + +a +in +in/x +in/y")
        assert await added(tree) == steps("-pool/m-2 -pool/m-1 -pool +pool")

    async def added(tree):
        pool = await tree["app"].add(Pool("pool", Child("m", forever)))
        await pool.add()
        await pool.add()
        plan = pool.plan("restart")
        await pool.stop()
        await pool.remove()
        return plan

    grow(app(*puppets("a"), inner), scene)


def test_what_is_under_way_is_played_first():
    """R19, R25: The request would wait for it, and its steps are not those of the request."""
    slow = Puppet("slow", 0, 5, stubborn=3, resource=Kit(slow_exit=3))
    waits = Puppet("waits", backoff=Backoff(initial=9))

    async def scene(tree, seen):
        slow.fail()
        waits.fail()
        await quiet()
        assert tree["app/slow"].plan("restart") == steps("-slow +slow")
        assert tree["app/waits"].plan("start") == steps("+waits")
        assert tree["app/waits"].plan("restart") == steps("+waits")
        with pytest.raises(Refused, match="'app/slow' is running"):
            tree["app/slow"].plan("start")

    grow(app(slow, waits), scene)


@pytest.mark.parametrize("seed", range(6))
def test_a_start_that_is_under_way_is_played_first(seed):
    """R19, R25: A child that hangs in its start, and a supervisor whose task has not begun."""
    hangs = Puppet("hangs", "hang")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app"].add, app(*puppets("x"), name="in"))
            while len(tree.status().children) < 2:
                await trio.lowlevel.checkpoint()
            assert tree["app/a"].plan("restart") == steps("-a +a")
            await quiet()
            nursery.start_soon(tree["app/in"].add, hangs.spec)
            await quiet()
            assert tree["app/in/x"].plan("restart") == steps("-in/x +in/x")
            nursery.cancel_scope.cancel()

    grow(app(*puppets("a")), scene, seed=seed)


def test_a_plan_is_refused_as_its_request_would_be():
    """R25: With the same words; a verb that does not exist names the three that do."""

    async def scene(tree, seen):
        for verb, path in (("start", "app/a"), ("start", "app"), ("restart", "app/pool/m-1")):
            with pytest.raises(Refused) as planned:
                tree[path].plan(verb)
            with pytest.raises(Refused) as asked:
                await getattr(tree[path], verb)()
            assert (str(planned.value), planned.value.reason) == (str(asked.value), asked.value.reason)
        with pytest.raises(ValueError, match="verb must be 'stop', 'start' or 'restart', got 'kill'"):
            tree["app/a"].plan("kill")

    async def main(tree, seen):
        await tree["app/pool"].add()
        await scene(tree, seen)

    grow(app(*puppets("a"), Pool("pool", Child("m", forever))), main)


def test_a_plan_leaves_a_recorded_tree_alone(tmp_path):
    """The log of a tree has what happened to it, and nothing of what was rehearsed."""

    log = tmp_path / "log"

    async def main():
        async with open_tree(app(*puppets("ab"), strategy="one_for_all"), sinks=[]) as tree:
            before = log.read_text()
            assert tree["app/a"].plan("restart") == steps("-b -a +a +b")
            assert log.read_text() == before
            assert [status.incarnation for status in tree.status().walk()] == [1, 1, 1]

    with recording(log):
        run_virtual(main)


ACTS = st.sampled_from(["boom", "stop", "restart", "wait"])


@given(
    trees(), st.integers(0, 2**32), st.lists(st.tuples(ACTS, st.integers(0, 20)), max_size=6), st.integers(0, 20),
    st.sampled_from(["stop", "start", "restart"]),
)  # fmt: skip
def test_a_request_does_what_its_plan_says(grown, seed, acts, number, verb):
    """R25: In a tree at rest, whatever has happened to it, unless a child fails to start."""
    spec, leaves = grown

    async def ask(ref, what):
        try:
            await getattr(ref, what)()
        except (Refused, StartFailed):
            pass

    async def scene(tree, seen):
        paths = [status.path for status in tree.status().walk()][1:]
        for act, which in acts:
            if act in ("stop", "restart"):
                await ask(tree[paths[which % len(paths)]], act)
            elif act == "boom":
                leaves[which % len(leaves)].fail()
            await trio.sleep(100)
        for leaf in leaves:
            leaf.script.clear()
        before = len(seen)
        try:
            planned = tree[paths[number % len(paths)]].plan(verb)
        except Refused as planned_refusal:
            with pytest.raises(Refused) as refused:
                await getattr(tree[paths[number % len(paths)]], verb)()
            assert str(refused.value) == str(planned_refusal)
            return
        try:
            await getattr(tree[paths[number % len(paths)]], verb)()
        except StartFailed:
            return
        signs = {events.Starting: "start", events.Stopped: "stop"}
        done = [Step(signs[type(one)], one.path) for one in seen.events[before:] if type(one) in signs]
        if not any(isinstance(one, events.Failed) for one in seen.events[before:]):
            assert done == planned

    try:
        grow(spec, scene, seed=seed)
    except (StartFailed, TreeFailed):
        pass
