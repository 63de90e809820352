"""Children that leave a cancel scope or a nursery open, as a body does that leaves a loop over an async generator which yields in one."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from supervise import Child, Decider, Restart, Stop, Supervisor, current_child, events, open_tree
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Kit, Puppet, Seen, app, forever, grow, quiet

RESOURCES = pytest.mark.parametrize("resource", [None, Kit], ids=["without a resource", "with a resource"])


async def ticks(deadline):
    """A generator that a child must not use without closing it."""
    with trio.CancelScope(deadline=deadline):
        while True:
            yield
            await trio.sleep(1)


@RESOURCES
@pytest.mark.parametrize("alone", [False, True], ids=["restarted", "stopped"])
def test_a_child_that_leaves_a_scope_open_fails_alone_and_its_next_incarnation_is_not_in_it(resource, alone):
    """R9: The failure is Trio's own error with that of the body as its context, and no sibling notices."""
    kept, deadlines, boom = [], [], Boom()

    async def body(*_):
        deadlines.append(trio.current_effective_deadline())
        if not kept:
            kept.append(ticks(trio.current_time() + 5))
            async for _ in kept[0]:
                raise boom
        await trio.sleep_forever()

    made = None if resource is None else resource()
    child = Child("child", body, resource=made, decider=Decider({RuntimeError: Stop if alone else Restart}))
    sibling = Puppet("sibling")

    async def scene(tree, seen):
        await trio.sleep(10)
        failed = seen.the(events.Failed).exc
        assert "Cancel scope stack corrupted" in str(failed)
        assert "app/child" in str(failed)
        assert failed.__context__ is boom
        assert (sibling.lives, sibling.running) == (1, 1)
        assert deadlines == [math.inf] * (1 if alone else 2)
        assert tree[child].status().state == ("condemned" if alone else "up")
        assert made is None or (made.entered, made.left) == ((1, 1) if alone else (2, 1))

    grow(app(sibling, child), scene)


@RESOURCES
def test_the_tasks_of_a_nursery_that_a_child_leaves_open_end_before_its_next_incarnation_starts(resource):
    """R9: Trio alone would end the nursery of the supervisor, and all siblings with it, when the child's task ends."""
    there, ended, stack = [], [], AsyncExitStack()

    async def lingers():
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            ended.append(True)

    async def body(*_):
        there.append(len(ended))
        if len(there) == 1:
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(lingers)
            await trio.sleep(1)
            raise Boom
        await trio.sleep_forever()

    child = Child("child", body, resource=None if resource is None else Kit())
    sibling = Puppet("sibling")

    async def scene(tree, seen):
        await trio.sleep(3)
        assert there == [0, 1]
        assert seen.at(events.Failed) == [2]
        await tree[child].stop()
        assert (sibling.lives, sibling.running) == (1, 1)

    grow(app(sibling, child), scene)


def test_the_late_exit_of_a_nursery_that_a_child_has_left_open_does_not_hurt_its_next_incarnation():
    """R9: Trio takes the exit for that of the latest nursery of the task in which the nursery was opened."""
    stack, enough = AsyncExitStack(), trio.Event()

    async def body():
        if current_child().incarnation == 1:
            await stack.enter_async_context(trio.open_nursery())
            raise Boom
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enough.wait)

    child = Child("child", body, restart="transient")

    async def scene(tree, seen):
        with pytest.raises(IndexError):
            await stack.aclose()
        enough.set()
        await quiet()
        seen.the(events.Failed)
        seen.the(events.Returned)

    grow(app(child), scene)


@RESOURCES
def test_what_a_child_has_open_when_it_is_stopped_is_an_error_of_its_stop(resource):
    """R23: The stop goes on, in order, and does not count as a defect of the framework (R24)."""
    kept = [ticks(math.inf)]

    async def body(*_):
        async for _ in kept[0]:
            await trio.sleep_forever()

    made = None if resource is None else resource()
    seen = grow(app(Child("a", forever), Child("b", body, resource=made), Child("c", forever)))
    assert "Cancel scope stack corrupted" in str(seen.the(events.StopError, "app/b").exc)
    assert seen.order() == "+a +b +c -c -b -a"
    assert made is None or made.left == 1


def test_a_resource_that_leaves_a_scope_open_fails_as_it_is_left():
    """R9: What was left open does not hold the next incarnation."""
    kept, deadlines = [], []

    @asynccontextmanager
    async def resource():
        deadlines.append(trio.current_effective_deadline())
        kept.append(ticks(trio.current_time() + 5))
        await anext(kept[-1])
        yield

    puppet = Puppet("puppet", resource=resource)

    async def scene(tree, seen):
        puppet.fail()
        await trio.sleep(1)
        assert "Cancel scope stack corrupted" in str(seen.the(events.StopError).exc)
        assert deadlines == [math.inf] * 2
        assert puppet.running == 1

    grow(app(puppet), scene)


@RESOURCES
def test_an_exception_that_is_no_failure_leaves_the_tree_though_a_scope_is_open(resource):
    """R4: Trio's error does not take the place of a SystemExit."""
    kept, lives = [ticks(math.inf)], []

    async def body(*_):
        lives.append(True)
        async for _ in kept[0]:
            raise SystemExit(3)

    child = Child("child", body, resource=None if resource is None else Kit())
    with pytest.raises(SystemExit) as raised:
        grow(app(child), forever)
    assert raised.value.code == 3
    assert len(lives) == 1


@pytest.mark.parametrize("above", ["app", "app/below"])
def test_a_task_that_a_child_starts_in_the_nursery_of_its_supervisor_ends_with_that(above):
    """R35: The tree would wait for it, without an event that says so."""
    left = []

    async def lingers():
        try:
            await trio.sleep(100)
        finally:
            left.append(trio.current_time())

    async def body():
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.start_soon(lingers)
        await trio.sleep_forever()

    child = Child("child", body)
    spec = app(child) if above == "app" else app(Supervisor("below", [child]))

    async def scene(tree, seen):
        await trio.sleep(1)
        assert not left
        if above != "app":
            await tree[above].restart()
            await trio.sleep(1)
            assert left == [seen.events[0].at + 1]

    seen = grow(spec, scene)
    assert left[-1] == seen.events[-1].at


def test_a_block_that_is_left_in_another_task_that_is_cancelled_stops_the_tree_in_order():
    """R21: So does Trio with an async generator that was not closed, in which the block stands."""
    seen, left = Seen(), []

    async def leave(opened):
        with trio.CancelScope() as scope, pytest.raises(RuntimeError, match="Cancel scope stack corrupted"):
            scope.cancel()
            await opened.__aexit__(None, None, None)
        left.append(True)

    async def main():
        opened = open_tree(app(Child("a", forever), Child("b", forever)), sinks=[seen])
        await opened.__aenter__()
        trio.lowlevel.spawn_system_task(leave, opened)
        await quiet()

    run_virtual(main)
    assert left
    assert seen.order() == "+a +b -b -a"
    assert_lifecycle(seen)
