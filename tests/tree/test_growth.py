"""No step is quadratic in how deep or wide a tree is, or in how many callers wait: counted in calls, never in seconds (R31)."""

from __future__ import annotations

import sys

import pytest
import trio

from benchmarks.costs import HOME
from supervise import IGNORE, Child, Decider, Escalate, Pool, Supervisor, TreeFailed, open_tree
from supervise.testing import idle, run_virtual

from .scene import quiet

FEW = 60
LINEAR = 2.3
"""Twice as much of everything may take so many times the calls: a quadratic step takes four times as many."""


def calls(program, size):
    """How many calls of this project's functions a program of this size makes."""
    count = 0

    def profile(frame, event, _):
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(HOME)

    sys.setprofile(profile)
    try:
        program(size)
    finally:
        sys.setprofile(None)
    return count


def lines(program, *args):
    """How many lines of this project's functions a program runs: a loop within one function counts too."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename.startswith(HOME) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        program(*args)
    finally:
        sys.settrace(before)
    return count


async def boom():
    await trio.sleep(1)
    raise ValueError


async def slow(task_status):
    await trio.sleep(10)
    task_status.started()
    await trio.sleep_forever()


async def echo(inbox):
    async for message in inbox:
        await trio.sleep(1)
        message.reply()


async def never(inbox):
    async for _ in inbox:
        pass


def within(spec, scene):
    """Run a tree around a scene."""

    async def main():
        async with open_tree(spec, sinks=[]) as tree, trio.open_nursery() as nursery:
            await scene(tree, nursery)
            nursery.cancel_scope.cancel()

    run_virtual(main, seed=0)


def chain(size, *children, **options):
    """A supervisor in a supervisor, and so on, and the path of the last one."""
    inner = Supervisor("s", children, **options)
    for _ in range(size - 1):
        inner = Supervisor("s", [inner], **options)
    return inner, "/".join(["s"] * size)


def a_deep_tree(size):
    spec, path = chain(size, Child("echo", echo, mailbox=2))

    async def scene(tree, _):
        await tree[f"{path}/echo"].call(1)
        assert len(list(tree.status().walk())) == size + 1
        await tree[f"{path}/echo"].restart()

    within(spec, scene)


def a_failure_that_goes_all_the_way_up(size):
    spec, _ = chain(size, Child("boom", boom), decider=Decider(default=Escalate))

    async def scene(tree, _):
        await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        within(spec, scene)


def a_wide_tree(size):
    async def scene(tree, _):
        await trio.sleep(3.5)
        assert len(tree.status().children) == size + 1

    children = [*(Child(str(number), idle) for number in range(size)), Child("boom", boom)]
    within(Supervisor("app", children, strategy="one_for_all", limit=None), scene)


def a_pool_that_comes_and_goes(size):
    async def scene(tree, _):
        refs = [await tree.root.add() for _ in range(size)]
        for ref in refs[: size // 2]:
            await ref.stop()

    within(Pool("app", Child("m", idle)), scene)


def many_requests_that_are_withdrawn(size):
    async def scene(tree, nursery):
        for number in range(size):
            nursery.start_soon(tree.root.add, Child(f"x{number}", slow))
        await quiet()

    within(Supervisor("app", [Child("a", idle)]), scene)


def many_who_wait_for_a_start(size):
    spec = Supervisor("app", [Child("a", idle)])

    async def scene(tree, nursery):
        async with trio.open_nursery() as asking:
            asking.start_soon(tree.root.add, Child("late", slow))
            await quiet()
            for _ in range(size):
                nursery.start_soon(tree["app/late"].ready)
                nursery.start_soon(tree["app/late"].ended)
            await quiet()

    within(spec, scene)


def many_leases(size):
    async def hold(ref):
        async with ref.lease():
            await trio.sleep_forever()

    async def scene(tree, nursery):
        for _ in range(size):
            nursery.start_soon(hold, tree["app/a"])
        await quiet()

    within(Supervisor("app", [Child("a", idle)]), scene)


def many_callers_that_leave(size):
    async def scene(tree, nursery):
        for _ in range(size):
            nursery.start_soon(tree["app/a"].call, 1)
            nursery.start_soon(tree["app/a"].send, 1)
        await quiet()

    within(Supervisor("app", [Child("a", echo, mailbox=4)]), scene)


def many_callers_that_are_told(size):
    async def ask(ref):
        with pytest.raises(Exception, match=r"ended with|down for good"):
            await ref.call(1)

    async def scene(tree, nursery):
        for _ in range(size):
            nursery.start_soon(ask, tree["app/a"])
        await quiet()
        await tree["app/a"].stop()
        await quiet()

    within(Supervisor("app", [Child("a", never, mailbox=2 * size)]), scene)


def many_streams(size):
    async def ask(ref):
        async with ref.stream(1) as items:
            async for _ in items:
                pass

    async def scene(tree, nursery):
        for _ in range(size):
            nursery.start_soon(ask, tree["app/a"])
        await quiet()

    within(Supervisor("app", [Child("a", never, mailbox=4)]), scene)


def a_mailbox_whose_children_end(size):
    async def ends(_inbox, after):
        await trio.sleep(after)

    async def scene(tree, _):
        await trio.sleep(size)
        assert {child.state for child in tree.status().children} == {"down"}

    children = [
        Child(str(number), ends, args=(number,), mailbox="shared", restart="transient")
        for number in range(size)
    ]
    within(Supervisor("app", children, mailbox=4), scene)


def a_mailbox_whose_children_are_stopped(size):
    async def scene(tree, _):
        tree["app"]._mailbox()
        await quiet()

    children = [Child(str(number), never, mailbox="shared") for number in range(size)]
    within(Supervisor("app", children, mailbox=4), scene)


@pytest.mark.parametrize(
    "program",
    [
        a_deep_tree, a_failure_that_goes_all_the_way_up, a_wide_tree, a_pool_that_comes_and_goes,
        many_requests_that_are_withdrawn, many_who_wait_for_a_start, many_leases, many_callers_that_leave,
        many_callers_that_are_told, many_streams, a_mailbox_whose_children_end,
        a_mailbox_whose_children_are_stopped,
    ],
    ids=lambda program: program.__name__,
)  # fmt: skip
def test_work_grows_linearly_with_what_grows(program):
    """R31: Whatever grows, no step looks at all of it for each of it."""
    calls(program, 4)  # whatever is done once only
    assert calls(program, 2 * FEW) <= LINEAR * calls(program, FEW)


async def not_needed(task_status):
    return IGNORE


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_children_that_end_together_look_at_no_sibling(strategy):
    """R13, R31: Whether a retry of a sibling will start a child again is known without a look at every sibling."""

    def boots(size):
        children = [Child(f"c{number}", not_needed) for number in range(size)]
        within(Supervisor("app", children, strategy=strategy), lambda *_: quiet())

    lines(boots, 4)
    assert lines(boots, 2 * FEW) <= LINEAR * lines(boots, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("program", [a_deep_tree, a_failure_that_goes_all_the_way_up])
def test_no_tree_is_too_deep(program):
    """R11, R12, R33: A tree of five thousand levels starts, escalates and stops, because nothing recurses over its depth."""
    program(5_000)
