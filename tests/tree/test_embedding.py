"""Trees inside other programs, and inside each other."""

import asyncio

import pytest
import trio

from supervise import Child, Decider, Limit, Restart, Stop, Supervisor, TreeFailed, current_child, open_tree
from supervise.events import Decided, Stopped
from supervise.testing import assert_lifecycle, run_virtual


async def echo(inbox):
    async for message in inbox:
        message.reply((current_child().path, message.value))


def declare(name):
    return Supervisor(name, [Child("echo", echo, mailbox=8)])


def test_two_trees_in_one_program_are_two_trees():
    """R21: One tree's failure concerns its own block alone."""

    async def bad():
        raise ValueError("left goes down")

    async def main():
        async with open_tree(declare("right"), sinks=[]) as right:
            left = Supervisor("left", [Child("bad", bad)], limit=Limit(0))
            try:
                async with open_tree(left, sinks=[]) as _:
                    await trio.sleep_forever()
            except TreeFailed:
                return await right["right/echo"].call(1)

    assert run_virtual(main, seed=0) == ("right/echo", 1)


def nest(inner):
    async def subsystem(*, task_status):
        async with open_tree(inner, sinks=[]) as tree:
            task_status.started(tree)
            await tree.root.ended()

    return subsystem


def test_an_inner_trees_failure_is_its_childs_failure():
    """R11, R22: The `TreeFailed` of a tree in a child is decided by the outer tree."""
    starts = []

    async def bad():
        starts.append(current_child().incarnation)
        await trio.sleep(1)
        raise ValueError

    inner = Supervisor("inner", [Child("bad", bad)], limit=Limit(0))
    seen = []

    async def main():
        decider = Decider({TreeFailed: Restart})
        outer = Supervisor("outer", [Child("sub", nest(inner))], decider=decider, limit=Limit(2, within=100))
        try:
            async with open_tree(outer, sinks=[seen.append]):
                await trio.sleep_forever()
        except TreeFailed as failed:
            return failed

    failed = run_virtual(main, seed=1)
    assert isinstance(failed.__cause__.__cause__, TreeFailed)
    assert starts == [1, 1, 1]
    assert [e.directive for e in seen if isinstance(e, Decided) and e.path == "outer/sub"] == [Restart] * 3
    assert_lifecycle(seen)


def test_stopping_the_outer_tree_stops_the_inner_one_in_order_first():
    """R12, R21: An inner tree stops in reverse before the child that holds it has ended."""
    order = []

    async def child(name):
        try:
            await trio.sleep_forever()
        finally:
            order.append(name)

    inner = Supervisor("inner", [Child(n, child, args=(n,)) for n in "abc"])

    async def main():
        outer = Supervisor("outer", [Child("first", child, args=("first",)), Child("sub", nest(inner))])
        async with open_tree(
            outer, sinks=[lambda e: order.append(e.path) if isinstance(e, Stopped) else None]
        ):
            pass

    run_virtual(main, seed=2)
    assert order == ["c", "b", "a", "outer/sub", "first", "outer/first", "outer"]


def test_an_inner_tree_may_be_condemned():
    """R10: Stop for a `TreeFailed` keeps the child down, and the outer tree up."""

    async def bad():
        await trio.sleep(1)
        raise ValueError

    inner = Supervisor("inner", [Child("bad", bad)], limit=Limit(0))

    async def main():
        outer = Supervisor(
            "outer", [Child("sub", nest(inner)), *declare("x").children], decider=Decider({TreeFailed: Stop})
        )
        async with open_tree(outer, sinks=[]) as tree:
            await tree["outer/sub"].ended()
            return tree["outer/sub"].status().state, await tree["outer/echo"].call(1)

    assert run_virtual(main, seed=3) == ("condemned", ("outer/echo", 1))


def test_threads_call_by_from_thread():
    """A Ref works from a thread by `trio.from_thread.run`."""

    async def main():
        async with open_tree(declare("app"), sinks=[]) as tree:
            ref = tree["app/echo"]
            return await trio.to_thread.run_sync(lambda: trio.from_thread.run(ref.call, 5))

    assert trio.run(main) == ("app/echo", 5)


def test_a_tree_runs_in_guest_mode():
    """A tree asks nothing of Trio's run loop that guest mode does not give."""

    async def guest():
        async with open_tree(declare("guest"), sinks=[]) as tree:
            return await tree["guest/echo"].call(7)

    async def host():
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=done.set_result
        )
        return (await done).unwrap()

    assert asyncio.run(host()) == ("guest/echo", 7)


def test_a_tree_that_is_opened_in_a_coroutine_of_asyncio_gets_one_line():
    """The line says what is needed. That of Trio says only that it must be called from an async context."""

    async def host():
        async with open_tree(declare("app"), sinks=[]):
            raise AssertionError

    with pytest.raises(RuntimeError, match=r"^open_tree needs a Trio task: .* can run Trio as its guest$"):
        asyncio.run(host())
