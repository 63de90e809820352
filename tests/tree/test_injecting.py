"""Failures that are injected into running leaves (R27)."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from supervise import (
    Child,
    Decider,
    Refused,
    Restart,
    Resume,
    Stop,
    Supervisor,
    events,
    open_tree,
    stop_requested,
)
from supervise.testing import run_virtual

from .scene import Boom, Kit, Other, Puppet, app, grow, quiet


def not_there():
    return pytest.raises(Refused, check=lambda exc: exc.reason == "not_found")


@pytest.mark.parametrize("kit", [None, Kit])
def test_an_injected_failure_counts_as_the_bodys_own(kit):
    """R27: The body is cancelled, and whatever it ends with, the failure is the one injected, with its tag."""
    resource = kit and kit()

    class Tagged(Boom):
        tag = "my.tag"

    async def body(*_):
        lives.append(1)
        try:
            await trio.sleep_forever()
        finally:
            if len(lives) == 1:
                raise Other("its own")

    lives, it = [], Tagged("mine")
    child = Child("a", body, resource=resource)

    async def scene(tree, seen):
        tree[child].inject(it)
        await quiet()
        assert len(lives) == 2

    seen = grow(app(child, decider=Decider({"my": Restart}, default=Stop)), scene)
    assert seen.the(events.Failed).exc is it
    assert seen.the(events.Decided).tag == "my.tag"
    if resource is not None:
        assert resource.saw[0] is it


def test_a_body_that_swallows_its_cancellation_has_failed_all_the_same():
    """R27: The injected failure counts however the body ends, also if it returns."""

    async def body():
        lives.append(1)
        with trio.CancelScope() as scope:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                scope.cancel()

    lives = []
    child = Child("a", body, restart="transient")

    async def scene(tree, seen):
        tree[child].inject(Boom())
        await quiet()
        assert len(lives) == 2

    grow(app(child), scene)


def test_an_injected_failure_may_be_resumed():
    """R27: A child with a resource is resumed as if its body had raised the failure."""
    kit = Kit()
    a = Puppet("a", resource=kit)

    async def scene(tree, seen):
        tree[a.spec].inject(Boom())
        await quiet()
        assert (a.lives, a.running, kit.entered) == (2, 1, 1)

    grow(app(a, decider=Decider({Boom: Resume})), scene)


def test_a_failure_injected_just_after_a_resume_is_not_lost():
    """R27: This holds also if the body has not been entered again yet."""
    a = Puppet("a", resource=Kit())
    trees = []

    def meddle(event):
        if isinstance(event, events.Resumed):
            trees[0][a.spec].inject(Other())

    async def main():
        async with open_tree(app(a, decider=Decider({Boom: Resume})), sinks=[meddle]) as tree:
            trees.append(tree)
            await quiet()
            a.fail()
            await quiet()
            assert tree[a.spec].status().incarnation == 2

    run_virtual(main)


def test_only_a_running_leaf_can_be_made_to_fail():
    """R27: Injection into any other node is refused."""
    a = Puppet("a", stubborn=1)
    inner = Supervisor("s", [])

    async def scene(tree, seen):
        tree[a.spec].inject(Boom())
        with not_there():
            tree[a.spec].inject(Other())
        await trio.sleep(2)
        await tree[a.spec].stop()
        with not_there():
            tree[a.spec].inject(Boom())
        with not_there():
            tree[inner].inject(Boom())
        with pytest.raises(TypeError, match="inject takes an Exception"):
            tree[a.spec].inject(KeyboardInterrupt())

    grow(app(a, inner), scene)


@pytest.mark.parametrize("kit", [None, Kit])
def test_a_child_that_drains_can_be_made_to_fail(kit):
    """R27, R23: Its body is still running, and ends with that failure at once; it is reported as an error of the stop, and is not judged."""

    async def body(*_):
        await trio.sleep_forever()

    child, it = Child("a", body, resource=kit and kit(), drain=60), Boom("mine")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree[child].stop)
            await quiet()
            assert tree[child].status().state == "stopping"
            tree[child].inject(it)
            with not_there():
                tree[child].inject(Other())
        assert trio.current_time() < 1
        assert tree[child].status().state == "down"

    seen = grow(app(child), scene)
    assert seen.the(events.StopError).exc is it
    assert not seen.of(events.Decided)


def test_a_failure_injected_while_a_drained_child_leaves_its_resource_is_not_lost():
    """R27, R23: The exit of the resource goes on."""

    async def body(_):
        await stop_requested()

    child, it = Child("a", body, resource=Kit(slow_exit=1), drain=5), Boom("mine")

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree[child].stop)
            await trio.sleep(0.5)
            tree[child].inject(it)
        assert trio.current_time() == 1

    seen = grow(app(child), scene)
    assert seen.the(events.StopError).exc is it


def test_an_injected_failure_is_the_context_of_what_the_exit_of_the_resource_raises():
    """R27, R23: neither of the two is lost."""

    @asynccontextmanager
    async def resource():
        yield
        await trio.sleep(1)
        raise Other("exit")

    async def body(_):
        await stop_requested()

    child, it = Child("a", body, resource=resource, drain=5), Boom("mine")

    async def scene(tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree[child].stop)
            await trio.sleep(0.5)
            tree[child].inject(it)

    error = grow(app(child), scene).the(events.StopError).exc
    assert (type(error), error.__context__) == (Other, it)


def test_a_failure_injected_into_a_suspended_child_counts_if_the_child_is_resumed():
    """R27: The child's first failure waits for a busy supervisor. A child without a resource is never resumed."""
    a, b = Puppet("a", resource=Kit()), Puppet("b")
    slow = Puppet("slow", 3)
    decider = Decider({Boom: Resume, Other: Restart})

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.add, slow.spec)
            await quiet()
            for puppet in (a, b):
                puppet.fail()
            await quiet()
            tree[a.spec].inject(Other())
            with not_there():
                tree[b.spec].inject(Other())
        await quiet()

    seen = grow(app(a, b, decider=decider), scene)
    decided = [
        (type(event.exc), event.directive) for event in seen.of(events.Decided) if event.path == "app/a"
    ]
    assert decided == [(Boom, Resume), (Other, Restart)]


def test_a_child_that_has_ended_is_not_running_for_a_sink_either():
    """R27: What a sink injects at the `Stopped` event of the child would be lost, and so it is refused."""
    trees, refused = [], []
    drains = Child("drains", stop_requested, drain=1)

    def meddle(event):
        if isinstance(event, events.Stopped) and event.path == "app/drains":
            try:
                trees[0][drains].inject(Boom())
            except Refused as exc:
                refused.append(exc)

    async def scene(tree, seen):
        trees.append(tree)
        tree.subscribe(meddle)
        await tree[drains].restart()
        await quiet()
        assert not seen.of(events.Failed)

    grow(app(drains), scene)
    assert len(refused) == 2
