"""Defects that supervision libraries have had, each with a test that this one has it not."""

from __future__ import annotations

import contextvars
import sys
import traceback

import pytest
import trio

from supervise import (
    Backoff,
    CallLost,
    Child,
    Decider,
    Escalate,
    Limit,
    Pool,
    Restart,
    StartFailed,
    Supervisor,
    TreeFailed,
    errors,
    events,
    open_tree,
    stop_requested,
)
from supervise.testing import run_virtual

from .scene import Boom, Kit, Other, Puppet, Seen, app, forever, grow, puppets, quiet


async def echo(inbox):
    """Replies after the seconds that it is sent; raises an exception that it is sent."""
    async for message in inbox:
        if isinstance(message.value, BaseException):
            raise message.value
        await trio.sleep(message.value)
        message.reply(message.value)


def test_a_temporary_child_that_crashes_takes_no_sibling_with_it():
    """R7: Neither its siblings nor its supervisor end, nor in a pool the other members."""
    a, b = Puppet("a", restart="temporary"), Puppet("b")
    pool = Pool("pool", Child("m", forever, restart="temporary"))

    async def scene(tree, seen):
        first, second = await tree[pool].add(), await tree[pool].add()
        a.fail()
        first.inject(Boom())
        await quiet()
        assert (b.lives, b.running) == (1, 1)
        assert [child.path for child in tree[pool].status().children] == [second.path]

    grow(app(a, b, pool), scene)


def test_a_caller_that_gives_up_does_not_kill_the_server():
    """R30: The late reply is dropped, and the server keeps its state."""
    child = Child("server", echo, mailbox=4)

    async def scene(tree, seen):
        with trio.move_on_after(1):
            await tree[child].call(5)
        await trio.sleep(10)
        assert await tree[child].call(0) == 0
        assert tree[child].status().incarnation == 1

    grow(app(child), scene)


def test_a_call_to_a_server_that_crashes_while_serving_it_does_not_hang():
    """R30: The caller gets an error at once, with the crash as its cause."""
    child = Child("server", echo, mailbox=4)
    boom = Boom()

    async def scene(tree, seen):
        with pytest.raises(CallLost) as raised:
            await tree[child].call(boom)
        assert raised.value.__cause__ is boom
        assert trio.current_time() == 0

    grow(app(child), scene)


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_child_is_not_restarted(fatal):
    """R4: Neither an interrupt nor a cancellation is answered by a restart."""
    a = Puppet("a")

    async def scene(tree, seen):
        a.fail(fatal())
        await trio.sleep_forever()

    with pytest.raises(fatal):
        grow(app(a), scene)
    assert a.lives == 1


def test_an_exception_raised_during_shutdown_is_not_lost():
    """R23: It is reported in an event, with the original exception and its traceback."""

    async def messy():
        try:
            await trio.sleep_forever()
        finally:
            raise Boom("on the way out")

    error = grow(app(Child("a", messy))).the(events.StopError)
    assert "messy" in [frame.name for frame in traceback.extract_tb(error.exc.__traceback__)]


def test_a_deep_tree_that_fails_raises_one_typed_error_not_nested_groups():
    """R22: A tree that gives up raises one bare, typed error, however deep it is; the earlier failures are its causes."""
    a = Puppet("a")
    spec = Supervisor("s", [a.spec], limit=Limit(0))
    for _ in range(4):
        spec = Supervisor("s", [spec], limit=Limit(0))

    async def scene(tree, seen):
        a.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed) as raised:
        grow(app(spec, limit=Limit(0)), scene)
    exc, causes = raised.value, []
    while exc.__cause__ is not None:
        exc = exc.__cause__
        causes.append(type(exc))
    assert causes == [errors.LimitExceeded] * 6 + [Boom]


def test_a_body_whose_start_raises_reports_that_error_and_no_other():
    """R16: An error of the framework's own must not hide it."""
    boom = Boom("init")
    with pytest.raises(StartFailed) as raised:
        grow(app(Puppet("a", boom)))
    assert raised.value.__cause__ is boom


def test_the_limit_is_the_supervisors_not_each_childs():
    """R14: Five children together may restart as often as one."""
    children = puppets("abcde")

    async def scene(tree, seen):
        for child in children:
            child.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        grow(app(*children, limit=Limit(3, within=5)), scene)
    assert sum(child.lives - 1 for child in children) == 3


def test_the_window_forgets():
    """R14: Restarts in slow succession never add up."""
    a = Puppet("a")

    async def scene(tree, seen):
        for _ in range(100):
            a.fail()
            await trio.sleep(3)
        assert a.lives == 101

    grow(app(a, limit=Limit(2, within=5)), scene)


def test_a_supervisor_is_ready_when_its_children_are():
    """R17: A supervisor is not ready before any of its children has run."""
    seen = grow(app(Supervisor("s", [Puppet("a", 2).spec, Puppet("b", 3).spec]), Puppet("after")))
    assert seen.at(events.Ready, "app/s") == seen.at(events.Starting, "app/after") == [5]


def test_sending_does_not_wait_for_a_busy_server():
    """R29: A mailbox has room for messages while the server is busy."""
    child = Child("server", echo, mailbox=4)

    async def scene(tree, seen):
        for _ in range(4):
            await tree[child].send(10)
        assert trio.current_time() == 0

    grow(app(child), scene)


def test_a_child_that_returns_at_once_cannot_spin():
    """R7, R14: Its returns are charged to the limit."""

    async def body():
        lives.append(1)

    lives = []
    with pytest.raises(TreeFailed):
        grow(app(Child("a", body)), forever)
    assert len(lives) == 4


def test_restart_types_hold_for_declared_children():
    """R7: A temporary child, and a transient one that returned, are not restarted."""
    a, b = Puppet("a", restart="temporary"), Puppet("b", restart="transient")

    async def scene(tree, seen):
        a.finish()
        b.finish()
        await quiet()

    grow(app(a, b), scene)
    assert (a.lives, b.lives) == (1, 1)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_group_restart_is_charged_once_not_once_per_sibling(strategy):
    """R14: Five children, one crash and the default limit: the tree goes on."""
    children = puppets("abcde")

    async def scene(tree, seen):
        children[0].fail()
        await quiet()
        assert [child.running for child in children] == [1] * 5
        assert tree.status().restarts == 1

    grow(app(*children, strategy=strategy), scene)


def calls_during(scene, *children, **options):
    """How many calls of our functions a scene takes: work, measured without a clock."""
    counted = [0]

    def count(frame, kind, _):
        counted[0] += kind == "call" and "supervise" in frame.f_code.co_filename

    async def watched(tree, seen):
        sys.setprofile(count)
        try:
            await scene(tree, seen)
            await quiet()
        finally:
            sys.setprofile(None)

    grow(app(*children, **options), watched)
    return counted[0]


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all"])
def test_a_restart_takes_linear_work(strategy):
    """R13: With eight times the children a group restart takes eight times the work, and that of one child alone no more than before."""

    def work(number):
        async def scene(tree, seen):
            tree["app/c0"].inject(Boom())

        return calls_during(scene, *(Child(f"c{n}", forever) for n in range(number)), strategy=strategy)

    few, many = work(50), work(400)
    assert many <= (9 * few if strategy == "one_for_all" else few + 10)


def test_a_child_whose_start_fails_on_a_restart_is_not_lost():
    """R16: The start is tried again until the limit is passed."""
    a = Puppet("a", 0, Boom("once"), Boom("twice"))

    async def scene(tree, seen):
        a.fail()
        await quiet()
        assert (a.lives, a.running) == (4, 1)

    grow(app(a), scene)


def test_a_child_that_dies_at_once_does_not_break_its_supervisors_start():
    """R11: The child becomes ready, fails, and is restarted."""

    async def body():
        lives.append(1)
        if len(lives) == 1:
            raise Boom
        await trio.sleep_forever()

    lives = []
    seen = grow(app(Child("a", body), Puppet("b")))
    assert len(lives) == 2
    assert seen.the(events.Decided).directive is Restart


def test_a_failed_start_leaves_no_child_running():
    """R16: The children that had started are stopped, in reverse."""
    a, b = puppets("ab")
    with pytest.raises(StartFailed):
        grow(app(a, b, Puppet("c", Boom())))
    assert (a.running, b.running) == (0, 0)


def test_a_stopped_supervisor_runs_the_clean_up_of_its_children():
    """R12: A stop waits, and every child's own exit code runs."""
    kits = [Kit(slow_exit=1) for _ in range(3)]
    inner = Supervisor("s", [Child(f"c{n}", forever, resource=kit) for n, kit in enumerate(kits)])

    async def scene(tree, seen):
        await tree[inner].stop()
        assert [kit.left for kit in kits] == [1, 1, 1]
        assert trio.current_time() == 3

    grow(app(inner), scene)


def test_a_thousand_slow_starts_have_no_common_deadline():
    """R17: A start has no time limit, unless its child declares one."""
    pool = [Puppet(f"c{n}", 1) for n in range(1000)]
    seen = grow(app(*pool))
    assert seen.at(events.Ready, "app") == [1000]


def test_a_crashing_child_is_not_restarted_for_ever_and_not_in_silence(caplog):
    """R14, R31: There is a limit by default, and each decision is logged by default."""

    async def crash():
        raise Boom

    async def main():
        async with open_tree(app(Child("a", crash))):
            await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        run_virtual(main)
    assert len([record for record in caplog.records if "failed: Boom" in record.getMessage()]) >= 4


def test_no_child_outlives_its_supervisor():
    """R12: This holds if the supervisor is cancelled, restarted with its group or stopped by hand."""
    a, b = Puppet("a"), Puppet("b", stubborn=2)
    inner = Supervisor("s", [b.spec])

    async def scene(tree, seen):
        for _ in range(3):
            a.fail()
            await trio.sleep(3)
            assert b.running == 1
        await tree[inner].stop()
        assert b.running == 0

    grow(app(a, inner, strategy="one_for_all"), scene)


def test_adding_and_stopping_many_children_takes_linear_work():
    """R25: The eight-hundredth child costs no more than the hundredth."""

    def work(number):
        async def scene(tree, seen):
            for n in range(number):
                await tree.root.add(Child(f"c{n}", forever))
            for n in range(number):
                await tree[f"app/c{n}"].stop()

        return calls_during(scene)

    assert work(800) <= 9 * work(100)


def test_a_timeout_of_receive_does_not_take_a_message_with_it():
    """R30: A body that gives up waiting has not consumed a message that arrives at that moment."""
    taken = []

    async def body(inbox):
        while True:
            with trio.move_on_after(1):
                message = await inbox.receive()
                taken.append(message.value)
                message.reply()

    child = Child("a", body, mailbox=4)

    async def scene(tree, seen):
        for number in range(5):
            await trio.sleep_until(number)
            await tree[child].call(number)

    for seed in range(5):
        taken.clear()
        grow(app(child), scene, seed=seed)
        assert taken == [0, 1, 2, 3, 4]


def test_a_crash_while_another_child_starts_is_served_as_soon_as_that_is_done():
    """R19: There is no polling and no lost wake-up."""
    a, slow = Puppet("a"), Puppet("slow", 0, 5)

    async def scene(tree, seen):
        slow.fail()
        await trio.sleep(1)
        a.fail()
        await trio.sleep(10)

    seen = grow(app(a, slow), scene)
    assert seen.of(events.Starting, "app/a")[1].at - seen.events[0].at == 5


def test_children_given_to_the_constructor_are_watched_like_added_ones():
    """R25: Both are restarted at once."""
    a, b = puppets("ab")

    async def scene(tree, seen):
        await tree.root.add(b.spec)
        for puppet in (a, b):
            puppet.fail()
            await quiet()
            assert puppet.lives == 2
        assert trio.current_time() == 0

    grow(app(a), scene)


def test_passing_the_limit_neither_exits_the_process_nor_leaves_siblings_behind():
    """R14: The supervisor's children stop, in order, and the failure escalates."""
    a, b = puppets("ab")
    seen = Seen()

    async def scene(tree, seen):
        a.fail()
        await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        grow(app(a, b, limit=Limit(0)), scene, seen=seen)
    assert seen.order() == "+a +b -a -b"
    assert b.running == 0


def test_a_child_that_returned_is_not_reported_as_running():
    """R33: Its state in the status is another."""
    a = Puppet("a", restart="transient")

    async def scene(tree, seen):
        a.finish()
        await quiet()
        assert tree[a.spec].status().state == "down"

    grow(app(a), scene)


def test_the_stop_order_is_not_the_start_order():
    """R12: Children stop in the reverse order, one after the other."""
    assert grow(app(*puppets("abcd"))).order() == "+a +b +c +d -d -c -b -a"


def test_a_shutdown_has_time_to_drain_per_child():
    """R20: Each child declares its own drain time."""

    def draining(seconds):
        async def body():
            await stop_requested()
            await trio.sleep(seconds)
            drained.append(seconds)

        return body

    drained = []
    grow(
        app(
            Child("a", draining(3), drain=5),
            Child("b", draining(30), drain=5),
            Child("c", draining(1), drain=5),
        )
    )
    assert drained == [1, 3]


def test_a_message_is_handled_once():
    """R30: A handler that crashes is not run again with the same message, unless its sender asked for that."""
    handled = []

    async def body(inbox):
        async for message in inbox:
            handled.append(message.value)
            raise Boom

    child = Child("a", body, mailbox=4)

    async def scene(tree, seen):
        await tree[child].send("once")
        await quiet()
        assert handled == ["once"]

    grow(app(child), scene)


def test_a_failed_start_gives_no_address_that_looks_alive():
    """R25: `add` raises, and the tree has no such node."""

    async def scene(tree, seen):
        with pytest.raises(StartFailed):
            await tree.root.add(Puppet("new", Boom()).spec)
        with pytest.raises(KeyError):
            tree["app/new"]

    grow(app(Puppet("a")), scene)


def test_two_trees_share_nothing():
    """R4: An interrupt or a failure in one tree does not reach the other; there is no global registry."""
    a, b = puppets("ab")

    async def main():
        async with open_tree(app(a), sinks=[]) as first:
            try:
                async with open_tree(app(b, decider=Decider({Boom: Escalate})), sinks=[]):
                    b.fail()
                    await trio.sleep_forever()
            except TreeFailed:
                pass
            assert first.status().state == "up"
            assert a.running == 1

    run_virtual(main)


def test_a_tree_closes_cleanly_from_its_block():
    """R21: Leaving the block early, by any way, raises nothing of the framework's own."""
    for leave in (lambda: None, lambda: (_ for _ in ()).throw(Other())):

        async def scene(tree, seen, leave=leave):
            leave()

        try:
            grow(app(Puppet("a")), scene)
        except Other:
            pass


def test_a_backoff_is_bounded_and_jittered():
    """R15: A child that fails for ever does not hammer the service that it needs, and does not retry in step with other children."""
    a = Puppet("a", 0, *[Boom("down")] * 30, backoff=Backoff(initial=1, maximum=8))

    async def scene(tree, seen):
        a.fail()
        await trio.sleep(120)

    delays = [event.delay for event in grow(app(a, limit=None), scene).of(events.BackingOff)]
    assert 14 < len(delays) < 24
    assert max(delays) <= 8 * 1.1
    assert len(set(delays)) == len(delays)


def test_context_variables_of_one_incarnation_do_not_leak_into_the_next():
    """R9: Nor are exceptions of earlier incarnations chained to later ones."""
    variable = contextvars.ContextVar("variable", default=0)
    found, contexts = [], []

    async def body():
        found.append(variable.get())
        variable.set(1)
        raise Boom(len(found))

    def look(event):
        if isinstance(event, events.Failed):
            contexts.append(event.exc.__context__)

    async def main():
        async with open_tree(app(Child("a", body)), sinks=[look]):
            await trio.sleep_forever()

    with pytest.raises(TreeFailed):
        run_virtual(main)
    assert found == [0, 0, 0, 0]
    assert set(contexts) == {None}
