"""Watching a running tree: sinks that come and go, and the stacks of its nodes (R31, R33)."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import ChildStopped, Pool, events, open_tree
from supervise.testing import run_virtual

from .scene import Child, Puppet, Seen, app, grow, puppets, quiet


@given(st.lists(st.sampled_from(["subscribe", "unsubscribe", "fail"]), max_size=12), st.booleans())
def test_a_sink_gets_the_events_from_its_subscription_to_its_end(acts, is_watched):
    """R31: Whether or not the tree has other sinks, which get everything."""
    a, late, expected = Puppet("a"), Seen(), []

    async def main():
        ends = []
        watching = Seen()
        async with open_tree(app(a, limit=None), sinks=[watching] if is_watched else []) as tree:
            for act in acts:
                if act == "subscribe" and not ends:
                    ends.append(tree.subscribe(late))
                elif act == "unsubscribe" and ends:
                    ends.pop()()
                elif act == "fail":
                    if ends:
                        expected.extend(["Failed", "Decided", "Stopped", "Starting", "Ready"])
                    a.fail()
                    await quiet()
            while ends:
                ends.pop()()
        if is_watched:
            kinds = [type(event).__name__ for event in watching if event.path == "app/a"]
            assert kinds.count("Failed") == acts.count("fail")

    run_virtual(main)
    assert [type(event).__name__ for event in late] == expected


def test_a_sink_subscribes_once():
    """R31: Otherwise it would not be clear which of the two ends."""
    sink = Seen()

    async def scene(tree, seen):
        with pytest.raises(ValueError, match="the sink gets the events of this tree already: "):
            tree.subscribe(seen)
        tree.subscribe(sink)()
        end = tree.subscribe(sink)
        end()
        end()
        with pytest.raises(TypeError, match="a sink must be"):
            tree.subscribe(7)

    grow(app(Puppet("a")), scene)
    assert not len(sink)


def test_a_subscribed_sink_that_raises_is_dropped(caplog):
    """R31: This is as for the sinks with which the tree was opened."""

    def broken(event):
        raise ValueError(event.path)

    async def scene(tree, seen):
        tree.subscribe(broken)
        await tree["app/a"].restart()
        assert "ValueError" in repr(seen.the(events.SinkFailed).exc)
        tree.subscribe(broken)

    grow(app(Puppet("a")), scene)
    assert "a sink raised, and gets no further events" in caplog.text


def test_a_sink_may_subscribe_another():
    """R31: That one begins with the next event."""
    second = Seen()

    async def scene(tree, _):
        def first(event):
            if isinstance(event, events.Stopping) and not len(second):
                tree.subscribe(second)

        tree.subscribe(first)
        await tree["app/a"].restart()
        assert [type(event).__name__ for event in second] == ["Stopped", "Starting", "Ready"]

    grow(app(Puppet("a")), scene)


async def sleeps_in_a_task_below():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name="the helper")


def test_the_stack_of_a_node_shows_its_task_and_those_below():
    """R33: A supervisor's shows those of its children too; a node that is down has none."""

    async def scene(tree, _):
        stack = tree["app/s/deep"].stack()
        assert "in sleeps_in_a_task_below" in stack
        assert "\nthe helper\n" in stack
        assert stack.startswith("app/s/deep\n")
        for above in ("app", "app/s"):
            assert stack in tree[above].stack()
        assert "app/b" not in tree["app/s"].stack()
        await tree["app/b"].stop()
        assert tree["app/b"].stack() == ""
        assert "app/m\n" in tree["app/p"].stack() or tree["app/p"].stack().startswith("app/p\n")
        with pytest.raises(ChildStopped):
            gone = tree["app/b"]
            await gone.remove()
            gone.stack()

    (b,) = puppets("b")
    deep = app(Child("deep", sleeps_in_a_task_below), name="s")
    grow(app(deep, b, Pool("p", Child("m", trio.sleep_forever))), scene)
