"""The root is restarted by hand: the whole tree stops in order and starts again, in the same block (R25)."""

from __future__ import annotations

import subprocess
import sys

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from supervise import (
    IGNORE,
    Child,
    Pool,
    Refused,
    StartFailed,
    Supervisor,
    TreeFailed,
    current_child,
    events,
)
from supervise._trio.tree import opening
from supervise.testing import run_virtual

from .scene import Boom, Puppet, Seen, app, forever, grow, puppets, quiet
from .test_seeing import trees


def test_it_stops_and_starts_everything_in_order():
    """R12, R25: With its reason; the incarnation of every node goes up, and no limit is charged."""
    a, b = puppets("ab")
    pool = Pool("pool", Child("m", forever))

    async def scene(tree, seen):
        await tree["app/pool"].add()
        await tree["app"].add(Puppet("extra").spec)
        before = len(seen)
        await tree.root.restart(reason="ann: new month")
        assert seen.order(since=before) == "-extra -pool/m-1 -pool -b -a +a +b +pool"
        assert seen.kinds("app", since=before) == "Stopping Stopped Starting Ready"
        reasons = {one.reason for one in seen.events[before:] if isinstance(one, events.Stopping)}
        assert reasons == {"'app' was asked to restart: ann: new month"}
        assert seen.of(events.Starting, "app")[-1].reason == "'app' was asked to restart: ann: new month"
        status = tree.status()
        assert [(one.path, one.incarnation, one.restarts) for one in status.walk()] == [
            ("app", 2, 0), ("app/a", 2, 0), ("app/b", 2, 0), ("app/pool", 2, 0),
        ]  # fmt: skip
        assert (status.restarts_total, status.state) == (1, "up")
        await tree.root.restart()
        assert tree.status().incarnation == 3
        a.fail()
        await quiet()
        assert tree["app/a"].status().incarnation == 4

    seen = grow(app(a, b, pool), scene)
    assert seen.kinds("app").endswith("Ready Stopping Stopped")


def test_addresses_and_messages_outlive_it():
    """R28, R29: Callers wait meanwhile, and a lease ends with its incarnation."""

    async def echo(inbox):
        async for message in inbox:
            message.reply(message.value)

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.root.restart)
            await trio.lowlevel.checkpoint()
            assert await tree["app/echo"].call(7) == 7
        assert tree["app/echo"].status().incarnation == 2
        assert await tree["app"].ready() is None

    grow(Supervisor("app", [Child("echo", echo, mailbox=4), Puppet("slow", stubborn=3).spec]), scene)


def test_a_start_that_fails_then_ends_the_tree():
    """R16, R25: The root has no supervisor that could try once more; the caller and the block get the error."""
    a = Puppet("a", 0, Boom("second"))
    got = []

    async def scene(tree, seen):
        with pytest.raises(StartFailed) as failed:
            await tree.root.restart()
        got.append(failed.value)
        await trio.sleep_forever()

    with pytest.raises(StartFailed, match="'app/a' failed to start"):
        grow(app(a), scene)
    assert [error.path for error in got] == ["app/a"]


def test_a_root_that_is_not_needed_any_more_ends_normally():
    """R17, R25: Its `init` is called again, and may return IGNORE."""
    answers = [None, IGNORE]

    async def scene(tree, seen):
        await tree.root.restart()
        assert await tree.root.ended() is None

    seen = grow(app(Puppet("a"), init=lambda: answers.pop(0)), scene)
    assert seen.kinds("app").endswith("Starting Ignored Returned Stopped")


@pytest.mark.parametrize(
    "how", ["stop", "leave", "interrupt", "a base exception", "one of a child", "restart"]
)
def test_whatever_stops_the_tree_meanwhile_wins(how):
    """R4, R25: The caller is refused, and nothing is started again."""
    slow = Puppet("slow", stubborn=5)
    refused = []

    async def leaves_badly():
        try:
            await trio.sleep_forever()
        finally:
            if how == "one of a child":
                raise SystemExit(4)

    async def restart(tree):
        try:
            await tree.root.restart()
        except Refused as error:
            refused.append((error.reason, trio.current_time()))

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(restart, tree)
            await trio.sleep(1)
            if how == "stop":
                await tree.root.stop()
            elif how == "interrupt":
                raise KeyboardInterrupt
            elif how == "a base exception":
                tree._driver.stop_for(SystemExit(3), "a test")
                await trio.sleep_forever()
            elif how == "one of a child":
                await trio.sleep_forever()
            elif how == "restart":
                await restart(tree)
                nursery.cancel_scope.cancel()
            else:
                nursery.cancel_scope.cancel()

    expected = {
        "interrupt": KeyboardInterrupt,
        "a base exception": SystemExit,
        "one of a child": SystemExit,
    }.get(how)
    seen = Seen()
    if expected is None:
        seen = grow(app(Child("a", leaves_badly), slow), scene)
        if how == "restart":
            assert [reason for reason, _ in refused] == ["stopping"]
        assert seen.kinds("app").count("Starting") == 1
        if how == "stop":
            assert refused == [("stopping", 1)]
    else:
        with pytest.raises((expected, BaseExceptionGroup)):
            grow(app(Child("a", leaves_badly), slow), scene, seen=seen)
        assert seen.kinds("app").count("Starting") == 1


def test_a_child_cannot_wait_for_the_restart_of_what_it_is_in():
    """R25: It would wait for its own end."""

    async def body():
        with pytest.raises(RuntimeError, match="would wait for ever, for its own end"):
            await current_child().tree.root.restart()
        await trio.sleep_forever()

    grow(Supervisor("app", [Child("a", body)]))


def test_a_root_that_starts_or_has_ended_is_refused():
    """R25: As every request is then."""
    a = Puppet("a", 5)

    async def main():
        async with trio.open_nursery() as nursery:
            opened = []

            async def early():
                await trio.sleep(1)
                with pytest.raises(Refused, match="'app' is starting"):
                    await opened[0].root.restart()

            nursery.start_soon(early)
            async with opening(app(a), [], opened.append) as tree:
                pass
            with pytest.raises(Refused):
                await tree.root.restart()

    run_virtual(main)


@pytest.mark.slow
def test_a_hard_exit_does_not_take_a_restart_for_the_end():
    """R20, R25: Its time counts from the stop of the program; a restart that is over leaves no alarm behind."""
    program = """
import os, signal, trio
from supervise import Child, Supervisor, run_tree

async def watch(tree):
    await tree.root.ready()
    await tree.root.restart()
    await trio.sleep(1.5)
    print(tree.status().incarnation, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

run_tree(Supervisor("app", [Child("a", trio.sleep_forever)]), sinks=[], hard_exit_after=1, watch=watch)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


ACTS = st.sampled_from(["boom", "restart", "root", "root", "wait", "stop"])


@given(
    trees(), st.integers(0, 2**32), st.lists(st.tuples(ACTS, st.integers(0, 20)), max_size=8), st.booleans()
)
def test_under_random_failures_every_restart_of_the_root_is_answered(grown, seed, acts, end_by_stop):
    """R25, R32: Whatever crosses it, the grammar holds, the caller gets an answer, and the tree can still be stopped."""
    spec, leaves = grown
    asked, answered = 0, 0

    async def ask(ref, what):
        nonlocal asked, answered
        asked += 1
        try:
            await getattr(ref, what)()
        except (Refused, StartFailed):
            pass
        answered += 1

    async def scene(tree, seen):
        paths = [status.path for status in tree.status().walk()][1:]
        async with trio.open_nursery() as nursery:
            for act, number in acts:
                if act == "root":
                    nursery.start_soon(ask, tree.root, "restart")
                elif act in ("stop", "restart"):
                    nursery.start_soon(ask, tree[paths[number % len(paths)]], act)
                elif act == "wait":
                    await trio.sleep(1)
                else:
                    leaves[number % len(leaves)].fail()
            await trio.sleep(1)
            if end_by_stop:
                nursery.start_soon(ask, tree.root, "stop")
        assert asked == answered

    try:
        seen = grow(spec, scene, seed=seed)
    except (StartFailed, TreeFailed):
        return
    assert seen.kinds("app").count("Starting") == seen.kinds("app").count("Stopped")
    assert all(leaf.running == 0 for leaf in leaves)
