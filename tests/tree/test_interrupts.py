"""KeyboardInterrupt and every other exception that is no `Exception`, wherever it comes from. (`tests.ctrl_c` tries every line.)"""

from __future__ import annotations

import dataclasses
import logging
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import outcome
import pytest
import trio

from supervise import Child, Limit, Supervisor, events, open_tree, run_tree, stop_requested
from supervise._trio import leaf
from supervise.errors import TreeFailed
from supervise.testing import assert_lifecycle, run_virtual

from .scene import Boom, Seen, app, quiet


def drains(log, seconds=1.0):
    async def body():
        await stop_requested()
        try:
            await trio.sleep(seconds)
            log.append("drained")
        except trio.Cancelled:
            log.append("cancelled")
            raise

    return Child("drains", body, drain=100)


def interrupted_by(block, *specs, expected=KeyboardInterrupt, **options):
    """Run a tree around a block that ends by something that no decider decides; gives that and what was seen."""
    seen = Seen()

    async def main():
        async with open_tree(app(*specs, **options), sinks=[seen]) as tree:
            await quiet()
            await block(tree)

    with pytest.raises(expected) as raised:
        run_virtual(main)
    assert_lifecycle(seen)
    return raised.value, seen


def test_an_interrupt_while_the_tree_drains_leaves_bare_and_draining_goes_on():
    """R4: The interrupt strikes in `open_tree`'s own lines, and must not come out in a group for that."""
    log = []

    async def block(tree):
        trio.lowlevel.spawn_system_task(interrupt_after, 0.5)

    raised, _ = interrupted_by(block, drains(log))
    assert type(raised) is KeyboardInterrupt
    assert log == ["drained"]


async def interrupt_after(seconds, times=1):
    for _ in range(times):
        await trio.sleep(seconds)
        signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_cancels_the_children_that_drain_and_cuts_all_later_drains():
    """R4: The children still stop in order, and no drain is waited for any more."""
    log = []
    one, two = drains(log, 50), Child("next", drains(log, 50).body, drain=100)

    async def block(tree):
        trio.lowlevel.spawn_system_task(interrupt_after, 1, 2)
        await trio.sleep_forever()

    _, seen = interrupted_by(block, two, one)
    assert log == ["cancelled", "cancelled"]
    assert seen.order().endswith("-drains -next")
    assert seen.the(events.Stopped, "app").at == 2


def test_an_exception_of_the_block_is_the_context_of_an_interrupt_that_came_later():
    """R4, R22: The interrupt leaves bare, and the block's exception is not lost."""
    boom = Boom()

    async def block(tree):
        trio.lowlevel.spawn_system_task(interrupt_after, 0.5)
        raise boom

    raised, _ = interrupted_by(block, drains([]))
    assert raised.__context__ is boom


def test_an_interrupt_of_the_block_is_bare_though_the_tree_fails_too():
    """R4, R22: A group of both exceptions is only for those that a program may want to handle."""

    async def fails():
        await trio.sleep(0.5)
        raise Boom

    async def block(tree):
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    raised, _ = interrupted_by(block, Child("bad", fails), limit=Limit(0))
    assert isinstance(raised.__context__, TreeFailed | trio.Cancelled)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_base_exception_from_an_init_stops_the_tree_in_order(kind, nested):
    """R4: `init=read_config` may call `sys.exit`."""

    def init():
        raise kind

    log = []
    seen = Seen()
    spec = app(drains(log), Supervisor("inner", [], init=init)) if nested else app(init=init)

    async def main():
        async with open_tree(spec, sinks=[seen]):
            raise AssertionError

    with pytest.raises(kind):
        run_virtual(main)
    assert_lifecycle(seen)
    assert log == (["drained"] if nested else [])


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["body", "start", "stopping", "exit", "exit of a restart"])
def test_a_base_exception_is_never_swallowed(kind, where):
    """R4: This rule wins over R23, also if a child is being stopped or its resource is being left."""
    exits = [None, kind("exit")]

    @asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            if where.startswith("exit"):
                raise kind

    async def body(*_):
        if where == "start":
            raise kind
        try:
            await trio.sleep(0.1)
            if where == "body":
                raise kind
            if where == "exit of a restart" and exits:
                exits.pop()
                raise Boom
            await trio.sleep_forever()
        finally:
            if where == "stopping":
                raise kind

    async def block(tree):
        await trio.sleep(1)

    child = Child("bad", body, resource=resource if where.startswith("exit") else None)
    raised, _ = interrupted_by(block, child, expected=kind)
    assert type(raised) is kind


def test_an_interrupt_while_an_injected_failure_comes_out_is_not_replaced_by_it():
    """R4, R27: Any other exception that the body ends with counts as the injected one."""

    async def body():
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    async def block(tree):
        tree["app/bad"].inject(Boom())
        await trio.sleep(1)

    interrupted_by(block, Child("bad", body))


def test_a_sink_that_exits_the_program_stops_the_tree_in_order():
    """R4, R31: The exit does not count as a failure of the sink."""
    log = []

    def sink(event):
        if isinstance(event, events.Ready) and event.path == "app":
            sys.exit(3)

    seen = Seen()

    async def main():
        async with open_tree(app(drains(log)), sinks=[sink, seen]):
            await trio.sleep_forever()

    with pytest.raises(SystemExit) as raised:
        run_virtual(main)
    assert raised.value.code == 3
    assert log == ["drained"]
    assert_lifecycle(seen)


def test_the_childs_code_is_interrupted_where_it_is_and_ours_is_not():
    """R4: Body, resource and init run unprotected; a sink and the framework's own lines do not."""
    seen = []

    def note(where):
        seen.append((where, trio.lowlevel.currently_ki_protected()))

    class Resource:
        def __init__(self):
            note("make")

        async def __aenter__(self):
            note("enter")

        async def __aexit__(self, *_):
            note("exit")

    async def body(_):
        note("body")

    async def plain():
        note("a body without a resource")

    child = Child("a", body, resource=Resource, restart="transient")
    other = Child("b", plain, restart="transient")

    async def main():
        async with open_tree(app(child, other, init=lambda: note("init")), sinks=[lambda _: note("sink")]):
            note("block")

    run_virtual(main)
    assert set(seen) == {
        ("init", False),
        ("make", False),
        ("enter", False),
        ("body", False),
        ("a body without a resource", False),
        ("exit", False),
        ("block", False),
        ("sink", True),
    }


def test_a_block_is_entered_once():
    """`open_tree` gives one tree for one block."""

    async def main():
        opening = open_tree(app(Child("a", trio.sleep_forever)), sinks=[])
        async with opening:
            pass
        with pytest.raises(RuntimeError, match="entered once"):
            async with opening:
                pass

    run_virtual(main)


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
def test_nothing_is_started_again_after_an_interrupt_in_the_exit_of_a_resource(strategy):
    """R4: The restart for which the resource was left is cancelled, because the whole tree stops."""

    @asynccontextmanager
    async def resource():
        try:
            yield
        finally:
            await trio.sleep(0.1)
            raise KeyboardInterrupt

    async def body(_):
        await trio.sleep(0.1)
        raise Boom

    async def block(tree):
        await trio.sleep(1)

    _, seen = interrupted_by(
        block,
        drains([]),
        Child("bad", body, resource=resource),
        Child("other", trio.sleep_forever),
        strategy=strategy,
    )
    assert len(seen.of(events.Starting)) == 4


def test_the_first_base_exception_is_the_one_that_leaves():
    """R4: A clean-up that calls `sys.exit` with another status, while the tree stops for the first, changes nothing."""

    async def first():
        await trio.sleep(1)
        raise SystemExit(3)

    async def second():
        try:
            await trio.sleep_forever()
        finally:
            raise SystemExit(4)

    async def main():
        async with open_tree(app(Child("second", second), Child("first", first)), sinks=[]):
            await trio.sleep_forever()

    with pytest.raises(SystemExit) as raised:
        run_virtual(main)
    assert raised.value.code == 3


@dataclasses.dataclass(frozen=True)
class FrozenExit(SystemExit):
    """No attribute of it can be set."""


class UnreadableExit(SystemExit):
    """It knows of no cause and no context."""

    @property
    def __cause__(self):
        raise RuntimeError

    @property
    def __context__(self):
        raise RuntimeError


@pytest.mark.parametrize("kind", [FrozenExit, UnreadableExit])
@pytest.mark.parametrize("where", ["body", "init"])
def test_a_base_exception_leaves_though_it_refuses_attributes(kind, where):
    """R4: The block's exception becomes its context, as Python would do it; an exception that refuses that must not make the tree hang."""

    def init():
        raise kind

    async def fails():
        await trio.sleep(0.1)
        raise kind

    log, left = [], []

    async def main():
        # What catches it is no context manager of contextlib: such a one sets a traceback, which it refuses.
        try:
            async with open_tree(app(drains(log)), sinks=[]) as tree:
                late = Supervisor("late", [], init=init) if where == "init" else Child("late", fails)
                await tree.root.add(late)
                await trio.sleep(1)
        except kind as exc:
            left.append(type(exc))

    run_virtual(main)
    assert (left, log) == ([kind], ["drained"])


class TagExits(Exception):
    @property
    def tag(self):
        raise SystemExit(3)


def test_an_exception_whose_tag_exits_the_program_stops_the_tree_in_order():
    """R4, R5: This holds also for a failure that the fast path would have restarted."""

    async def fails():
        await trio.sleep(0.1)
        raise TagExits

    async def block(tree):
        await trio.sleep(1)

    log = []
    interrupted_by(block, drains(log), Child("bad", fails), expected=SystemExit)
    assert log == ["drained"]


@pytest.mark.parametrize("where", ["block", "child"])
def test_an_interrupt_that_a_nursery_wraps_counts_as_one(where):
    """R4: The next interrupt counts as the second."""

    async def raises():
        await trio.sleep(0.5)
        raise KeyboardInterrupt

    async def wraps(*_):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raises)

    async def block(tree):
        trio.lowlevel.spawn_system_task(interrupt_after, 1, 2)
        if where == "block":
            await wraps()
        await trio.sleep_forever()

    log = []
    specs = [drains(log, 50)] + ([Child("bad", wraps)] if where == "child" else [])
    _, seen = interrupted_by(block, *specs, expected=BaseExceptionGroup)
    assert log == ["cancelled"]
    assert seen.the(events.Stopped, "app").at == 1


class Exits(logging.Handler):
    def emit(self, record):
        raise SystemExit(3)


def test_a_log_that_exits_the_program_stops_the_tree_in_order(monkeypatch):
    """R4, R31: This holds also while the log reports a sink that raised."""
    monkeypatch.setattr(logging.getLogger("supervise"), "handlers", [Exits()])

    def sink(event):
        if event.path == "app" and type(event) is events.Ready:
            raise Boom

    seen, log = Seen(), []

    async def main():
        async with open_tree(app(drains(log)), sinks=[sink, seen]):
            await trio.sleep_forever()

    with pytest.raises(SystemExit):
        run_virtual(main)
    assert log == ["drained"]
    assert_lifecycle(seen)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_watch_that_exits_the_program_stops_the_tree_in_order(wrapped, late):
    """R4: A watch counts as a sink does; an exception that it raises after the end of the tree leaves too."""
    log = []

    async def exits():
        try:
            await trio.sleep(60 if late else 0.05)
        finally:
            raise SystemExit(3)

    async def watch(tree):
        if wrapped:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exits)
        else:
            await exits()

    async def once():
        await trio.sleep(0.1)

    ends = Child("once", once, restart="transient", significant=True)
    spec = app(drains(log, 0.1), ends, auto_shutdown="any_significant")
    with pytest.raises(BaseExceptionGroup if wrapped else SystemExit) as raised:
        run_tree(spec, sinks=[], watch=watch)
    assert type(raised.value if not wrapped else raised.value.exceptions[0]) is SystemExit
    assert not wrapped or len(raised.value.exceptions) == 1
    assert log == ["drained"]


@pytest.mark.parametrize(("does", "status"), [("raise SystemExit(3)", 3), ("await tree.root.stop()", 0)])
def test_a_watch_may_end_the_tree_before_it_has_begun(does, status):
    """R4, R20: The tree begins and stops in order. Trio decides whose task runs first, so it is tried ten times."""
    program = f"""
import trio
from supervise import Child, Supervisor, run_tree

async def watch(tree):
    {does}

for _ in range(10):
    seen, status = [], 0
    try:
        run_tree(Supervisor("app", [Child("a", trio.sleep_forever)]), sinks=[seen.append], watch=watch)
    except SystemExit as exit:
        status = exit.code
    print(status, *[type(event).__name__ for event in seen if event.path == "app"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [f"{status} Starting Stopping Stopped"] * 10


def test_a_watch_whose_nursery_fails_as_it_is_cancelled_does_no_harm(caplog):
    """`Cancelled` is dropped from its group, and the rest is an exception like any other."""

    async def watch(tree):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                raise Boom

    ends = Child("once", trio.lowlevel.checkpoint, restart="transient", significant=True)
    run_tree(app(ends, auto_shutdown="any_significant"), sinks=[], watch=watch)
    assert "the function given as watch failed" in caplog.text


def test_an_interrupt_in_the_task_of_an_adoption_stops_the_tree_in_order(monkeypatch):
    """R4, R38: That task belongs to the tree, so the interrupt must not be raised there."""
    log, acapture = [], outcome.acapture

    async def interrupted(*args):
        result = await acapture(*args)
        signal.raise_signal(signal.SIGINT)
        return result

    async def block(tree):
        monkeypatch.setattr(outcome, "acapture", interrupted)
        await tree.adopt(app(drains(log), Child("b", trio.sleep_forever)))
        await trio.sleep_forever()

    _, seen = interrupted_by(block, drains(log))
    assert log == ["drained"]
    assert seen.order() == "+drains +b -b -drains"


def test_an_interrupt_before_the_first_line_of_a_resources_exit_does_not_skip_the_exit(monkeypatch):
    """R4: The interrupt is raised once the resource has been left."""
    left = []

    class Resource:
        async def __aenter__(self):
            pass

        async def __aexit__(self, *_):
            await trio.sleep(0.1)
            left.append(True)

    unprotected, times = leaf._unprotected_result, []

    async def interrupted(function):
        times.append(function)
        if len(times) == 2:  # the first one enters
            raise KeyboardInterrupt
        return await unprotected(function)

    monkeypatch.setattr(leaf, "_unprotected_result", interrupted)

    async def fails(_):
        await trio.sleep(0.1)
        raise Boom

    async def block(tree):
        await trio.sleep(1)

    interrupted_by(block, Child("a", fails, resource=Resource))
    assert left == [True]
