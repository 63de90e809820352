"""User code that misbehaves in unexpected places: it harms neither the tree nor other children."""

from __future__ import annotations

import contextvars
import dataclasses
import logging
import sys
from contextlib import asynccontextmanager

import pytest
import trio

from supervise import (
    IGNORE,
    Child,
    Decider,
    Limit,
    Mailbox,
    Pool,
    Refused,
    Resume,
    Rule,
    Stop,
    Supervisor,
    current_child,
    events,
    open_tree,
    stop_requested,
)
from supervise.errors import ChildStopped, StartFailed, TreeFailed
from supervise.sinks.tracebacks import trace
from supervise.testing import assert_lifecycle, echo, run_virtual

from .scene import Boom, Puppet, Seen, app, grow, nothing, quiet


def test_a_body_that_cannot_be_called_fails_its_start():
    """R17: The body is called before the child counts as ready, so no block is entered, and no Ref given, for a child that never ran."""

    def fails(*_):
        raise Boom

    def gives_nothing(*_):
        return None

    async def generates(*_):
        yield

    for body, cause in ((fails, Boom), (gives_nothing, TypeError), (generates, TypeError)):
        for resource in (None, nothing):
            seen = Seen()
            arguments = {"resource": resource} if resource else {}
            spec = Child("bad", trio.sleep_forever if resource is None else trio.sleep, **arguments)
            object.__setattr__(spec, "body", body)  # past the check that would refuse it when declared

            async def main(spec=spec, seen=seen):
                async with open_tree(app(spec), sinks=[seen]):
                    raise AssertionError

            with pytest.raises(StartFailed) as raised:
                run_virtual(main)
            assert type(raised.value.__cause__) is cause
            assert not seen.of(events.Ready)
            assert_lifecycle(seen)


def deep(depth):
    group = ExceptionGroup("bottom", [Boom()])
    for _ in range(depth):
        group = ExceptionGroup("above", [group])
    return group


class Unsplittable(ExceptionGroup):
    def derive(self, excs):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "make", [lambda: deep(3000), lambda: Unsplittable("x", [Boom(), Boom()])], ids=["deep", "derive"]
)
def test_a_group_that_cannot_be_split_is_a_failure_like_any_other(make):
    """R3: With or without a Cancelled in it, such a group blocks nothing."""

    async def body(*_):
        raise make()

    for resource in (None, nothing):
        child = Child("bad", body, resource=resource)

        async def scene(tree, seen):
            await trio.sleep_forever()

        with pytest.raises(TreeFailed):
            grow(app(child, limit=Limit(1)), scene)


class Lying(BaseExceptionGroup):
    def split(self, _):
        return self, None


@pytest.mark.parametrize("resource", [None, nothing])
def test_a_group_that_claims_to_be_nothing_but_cancelled_hides_no_exit(resource):
    """R4: What is in a group is not asked of its class."""

    async def body(*_):
        await stop_requested()
        raise Lying("x", [SystemExit(3)])

    with pytest.raises(Lying):
        grow(app(Child("bad", body, resource=resource, drain=1)))


def test_a_group_of_cancelled_and_another_that_cannot_be_split_is_a_failure_too():
    """R3: A group that cannot be split counts whole."""

    async def body():
        try:
            with trio.CancelScope() as scope:
                scope.cancel()
                try:
                    await trio.sleep_forever()
                except trio.Cancelled as cancelled:
                    caught = cancelled
                    raise
        finally:
            raise BaseExceptionGroup("both", [Unsplittable("x", [Boom()]), caught])

    async def scene(tree, seen):
        await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup):
        grow(app(Child("bad", body), limit=Limit(1)), scene)


def test_a_defect_in_a_leafs_own_lines_stops_every_child_in_order(monkeypatch):
    """R24: The defect does not leave through the nursery, which would cancel all siblings at once."""
    from supervise._trio.leaf import Leaf

    defect = RuntimeError("a defect")

    async def over(*_, **__):
        raise defect

    async def fails():
        await trio.sleep(1)
        raise Boom

    seen = Seen()

    async def main():
        async with open_tree(
            app(Child("a", fails, backoff=None, restart="temporary"), Child("b", trio.sleep_forever)),
            sinks=[seen],
        ):
            monkeypatch.setattr(Leaf, "_over", over)
            await trio.sleep_forever()

    with pytest.raises(RuntimeError) as raised:
        run_virtual(main)
    assert raised.value is defect


def test_resume_lets_others_run():
    """R8: A thousand bad messages in a row do not keep the event loop from other tasks."""

    async def bad(_, inbox):
        async for _message in inbox:
            raise Boom

    spec = app(Child("bad", bad, resource=nothing, mailbox=1000, decider=Decider({Boom: Resume})))

    async def scene(tree, seen):
        for _ in range(1000):
            tree["app/bad"].send_nowait(None)
        turns = 0
        while tree["app/bad"].status().mailbox:
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns > 500

    grow(spec, scene)


def test_a_resume_that_goes_on_for_ever_can_be_stopped():
    """R8: A body that fails at once, without a limit, yields to the tasks that stop it."""

    async def body(_):
        raise Boom

    async def main():
        spec = app(Child("bad", body, resource=nothing, decider=Decider({Boom: Resume})), limit=None)
        async with open_tree(spec, sinks=[]):
            await trio.lowlevel.checkpoint()

    run_virtual(main)


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")

    def __call__(self, event):
        raise Boom


class Raises(logging.Handler):
    def emit(self, record):
        raise Boom

    handle = emit


@pytest.mark.parametrize("sinks", [None, [Unprintable()]])
def test_neither_a_sink_nor_a_log_that_raises_hurts_the_tree(sinks, capsys):
    """R31: A log handler or filter that raises does no more harm than the failing sink that was being logged."""
    logger = logging.getLogger("supervise")
    handler = Raises()
    logger.addHandler(handler)
    try:

        async def main():
            left = [Boom()]

            async def fails():
                if left:
                    raise left.pop()
                await trio.sleep_forever()

            async with open_tree(app(Child("bad", fails)), sinks=sinks) as tree:
                await quiet()
                assert tree.status().children[0].incarnation == 2

        run_virtual(main)
    finally:
        logger.removeHandler(handler)
    assert "a sink raised, and gets no further events" in capsys.readouterr().err


class Unreadable(Exception):
    """No attribute of it can be read."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


def unreadable(*_):
    raise Unreadable


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """No attribute of it can be set."""

    text: str


def test_a_sink_whose_exception_cannot_be_printed_does_no_harm(capsys):
    """R31: Only the log needs the traceback of such an exception."""
    seen = Seen()

    async def main():
        async with open_tree(app(Child("a", trio.sleep_forever)), sinks=[unreadable, seen]):
            await quiet()

    run_virtual(main)
    assert len(seen.of(events.SinkFailed)) == 1
    assert "a sink raised" in capsys.readouterr().err


def test_a_predicate_whose_exception_refuses_attributes_means_escalate():
    """R5: If the failure cannot be chained to that exception, the verdict is Escalate all the same."""

    async def fails():
        raise Boom

    decider = Decider(rules=[Rule(Boom, "boom", when=unreadable)])
    seen = Seen()
    with pytest.raises(TreeFailed):
        grow(app(Child("bad", fails), decider=decider), trio_forever, seen=seen)
    assert seen.of(events.Decided)[0].because == "raised"


async def trio_forever(*_):
    await trio.sleep_forever()


def test_callers_get_an_error_though_the_mailboxs_own_exception_is_frozen():
    """R29: A frozen dataclass refuses the assignment of a cause; the refusal must not break the tree in the middle of its work."""

    async def fails(inbox):
        await trio.sleep(1)
        raise Boom

    spec = Child("a", fails, mailbox=Mailbox(stopped=Frozen), decider=Decider(default=Stop))

    async def scene(tree, seen):
        for _ in range(2):  # one that waits, and one that comes too late
            with pytest.raises(Frozen) as raised:
                await tree["app/a"].call(1)
            assert type(raised.value.__cause__) is Boom

    grow(app(spec), scene)


def test_callers_get_child_stopped_if_the_mailboxs_own_exception_cannot_be_made():
    """R24, R29: This holds even if making the exception raises a `BaseException` in the middle of the tree's work."""

    class Exits(Exception):
        def __init__(self, text):
            raise SystemExit(text)

    async def fails(inbox):
        await trio.sleep(1)
        raise Boom

    spec = Child("a", fails, mailbox=Mailbox(stopped=Exits), decider=Decider(default=Stop))

    async def scene(tree, seen):
        for _ in range(2):  # one that waits, and one that comes too late
            with pytest.raises(ChildStopped) as raised:
                await tree["app/a"].call(1)
            assert "Exits could not be made" in raised.value.__notes__[0]

    grow(app(spec), scene)


def test_tree_failed_is_bare_though_the_block_had_a_nursery_and_was_cancelled_from_outside():
    """R22: A group of nothing but Cancelled does not count as an exception of the block."""

    async def fails():
        await trio.sleep(1)
        raise Boom

    async def block(outer):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                await trio.sleep_forever()
            finally:
                outer.cancel()
                with trio.CancelScope(shield=True):
                    await trio.sleep(2)

    async def main():
        with trio.CancelScope() as outer:
            async with open_tree(app(Child("bad", fails), limit=Limit(0)), sinks=[]):
                await block(outer)

    with pytest.raises(TreeFailed):
        run_virtual(main)


def test_whether_a_task_is_inside_a_child_is_read_from_the_nurseries():
    """R25: A task that a child or a sink has started in a nursery outside of the child may wait for the child's end."""
    done = []

    async def main():
        async with trio.open_nursery() as outside:

            async def stops(tree):
                await tree["app/a"].stop()
                done.append("stopped")

            async def body():
                outside.start_soon(stops, current_child().tree)
                await trio.sleep_forever()

            async with open_tree(app(Child("a", body)), sinks=[]) as tree:
                await tree["app/a"].ended()

    run_virtual(main)
    assert done == ["stopped"]


def test_a_task_below_a_child_is_inside_it():
    """R25: This holds however many nurseries are between them."""
    raised = []

    async def body():
        async def stops():
            with pytest.raises(RuntimeError, match="would wait for ever") as caught:
                await current_child().tree["app/a"].stop()
            raised.append(caught.value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stops)
            await trio.sleep_forever()

    grow(app(Child("a", body)))
    assert raised


@pytest.mark.parametrize("shielded", [False, True])
def test_a_request_of_a_child_to_the_supervisor_that_stops_it_is_refused(shielded):
    """R25: In its drain or its clean-up the child would wait for the end of that stop, or for ever."""
    refused = []

    async def asks(tree):
        try:
            await tree["app"].add(Child("new", trio.sleep_forever))
        except Refused as exc:
            refused.append(exc.reason)

    async def body():
        tree = current_child().tree
        try:
            await stop_requested()
            if not shielded:
                await asks(tree)
        finally:
            if shielded:
                with trio.CancelScope(shield=True):
                    await asks(tree)

    async def scene(tree, seen):
        await tree["app/a"].stop()
        assert trio.current_time() < 1

    grow(app(Child("a", body, drain=0 if shielded else 60)), scene)
    assert refused == ["stopping"]


def test_a_stale_task_status_does_not_make_the_next_incarnation_ready():
    """R19: A task status that leaked from an ignored incarnation belongs to that incarnation."""
    leaked = []

    async def body(*, task_status):
        if not leaked:
            leaked.append(task_status)
            return IGNORE
        await trio.sleep(5)
        task_status.started("right")
        return await trio.sleep_forever()

    async def scene(tree, seen):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree["app/a"].start)
            await quiet()
            leaked[0].started("stale")
            await quiet()
            assert tree["app/a"].status().state == "starting"
            assert await tree["app/a"].ready() == "right"

    grow(app(Child("a", body)), scene)


def test_a_stale_task_status_does_not_cut_a_quick_restart_short():
    """R19: The fast path looks at the node alone, so the incarnation of a report must be checked before."""
    leaked = []

    async def body(*, task_status):
        leaked.append(task_status)
        if len(leaked) == 1:
            return IGNORE
        await trio.sleep(5 if len(leaked) == 3 else 0)
        task_status.started()
        await trio.sleep(1)
        if len(leaked) == 2:
            raise Boom
        return await trio.sleep_forever()

    async def scene(tree, seen):
        await tree["app/a"].start()
        await trio.sleep(2)
        assert (len(leaked), tree["app/a"].status().state) == (3, "starting")
        leaked[0].started()
        await quiet()
        assert tree["app/a"].status().state == "starting"
        await trio.sleep(5)
        assert tree["app/a"].status().state == "up"

    grow(app(Child("a", body, start_warning=float("inf"))), scene)


def test_a_verdict_is_waited_for_each_time():
    """R8, R19: A failure after a Resume waits for its own verdict, while its supervisor is busy."""
    entries = []

    async def body(_):
        entries.append(trio.current_time())
        await trio.sleep(1)
        if len(entries) < 3:
            raise Boom
        await trio.sleep_forever()

    async def slow(task_status):
        await trio.sleep(10)
        task_status.started()
        await trio.sleep_forever()

    async def scene(tree, seen):
        await trio.sleep(1.5)
        await tree.root.add(Child("slow", slow))
        await trio.sleep(5)

    grow(app(Child("a", body, resource=nothing), decider=Decider({Boom: Resume})), scene)
    assert entries == [0, 1, 11.5]


def test_a_context_variable_of_an_equal_value_does_not_leak_into_the_next_incarnation():
    """R9: True is not 1, and one empty list is not another, though they compare equal."""
    flag = contextvars.ContextVar("flag")
    box = contextvars.ContextVar("box")
    outer = []
    flag.set(1)
    box.set(outer)
    seen = []

    async def body():
        seen.append((type(flag.get()), box.get() is outer))
        await trio.lowlevel.checkpoint()
        flag.set(True)
        box.set([])
        if len(seen) < 3:
            raise Boom
        await trio.sleep_forever()

    grow(app(Child("a", body)))
    assert seen == [(int, True)] * 3


def test_a_body_that_swallows_an_injected_failure_can_be_injected_again():
    """R27: Another injection is refused while the first has its `grace` to come out; after that the first is the context of the second."""
    swallowed = []

    async def body():
        while True:
            try:
                await trio.sleep_forever()
            except trio.Cancelled:
                swallowed.append(1)
                with trio.CancelScope(shield=True):
                    await trio.sleep(20)
                if len(swallowed) > 1:
                    raise

    first, second = Boom("first"), Boom("second")

    async def scene(tree, seen):
        ref = tree["app/a"]
        ref.inject(first)
        await trio.sleep(1)
        with pytest.raises(Refused, match="failing"):
            ref.inject(Boom())
        await trio.sleep(5)
        ref.inject(second)
        await trio.sleep(60)
        assert seen.the(events.Failed, "app/a").exc is second
        assert second.__context__ is first

    grow(app(Child("a", body)), scene)


def test_the_address_of_a_node_far_down_takes_no_recursion():
    """R28: An address is found at any depth."""
    depth = 1500

    async def replies(inbox):
        async for message in inbox:
            message.reply(message.value)

    spec = Child("leaf", replies, mailbox=1)
    for number in range(depth):
        spec = Supervisor(f"s{number}", [spec])
    path = "/".join([f"s{number}" for number in reversed(range(depth))] + ["leaf"])

    async def main():
        async with open_tree(spec, sinks=[]) as tree:
            assert await tree[path].call(1) == 1

    run_virtual(main)


def test_a_resource_that_asks_for_the_inbox_gets_an_error_that_says_when_it_comes():
    """R29: The error must not say that the mailbox is missing: it is declared, and only the moment is wrong."""
    results = []

    @asynccontextmanager
    async def resource():
        with pytest.raises(RuntimeError, match="has no inbox before its body is called") as raised:
            assert current_child().inbox
        results.append(str(raised.value))
        yield

    grow(app(Child("a", echo, resource=resource, mailbox=1)))
    assert results == ["child 'app/a' has no inbox before its body is called: a resource has none"]


@pytest.mark.parametrize("asks", ["restart", "stop", "add", "inject", "open a tree"])
def test_a_child_that_makes_requests_in_endless_recursion_fails_alone(asks):
    """R24: The RecursionError is the child's own failure, and no other task is left waiting for its requests."""
    other, pool = Puppet("other"), Pool("pool", Child("m", trio_forever))

    async def ask(tree):
        if asks == "restart":
            await tree["app/other"].restart()
        elif asks == "add":
            await tree["app/pool"].add()
        elif asks == "inject":
            tree["app/other"].inject(Boom())
            await trio.sleep(0.1)
        elif asks == "open a tree":
            async with open_tree(app(Child("c", trio_forever)), sinks=[]):
                await ask(tree)
        elif asks == "stop":
            await tree["app/other"].stop()
            await tree["app/other"].start()
        await ask(tree)

    async def calls():
        await ask(current_child().tree)

    async def scene(tree, seen):
        await trio.sleep(200)
        assert isinstance(seen.of(events.Failed, "app/calls")[0].exc, RecursionError)
        with trio.fail_after(1):
            await tree["app/other"].restart()
        assert other.running == 1

    spec = Child("calls", calls, restart="temporary")
    grow(app(other, pool, spec, limit=None), scene)


def test_a_child_that_calls_started_at_the_end_of_the_stack_has_started_or_failed():
    """R17, R24: At whatever depth it calls `started`, the start succeeds, or fails with its own RecursionError."""

    async def expected(deeper, task_status):
        if deeper:
            await expected(deeper - 1, task_status)
        else:
            task_status.started()

    async def body(depth, task_status):
        await expected(depth, task_status)
        await trio.sleep_forever()

    async def main(depth):
        with trio.fail_after(1):
            try:
                async with open_tree(app(Child("a", body, args=(depth,))), sinks=[]):
                    ends.add("ready")
            except StartFailed as exc:
                ends.add(type(exc.__cause__).__name__)

    ends = set()
    limit = sys.getrecursionlimit()
    for depth in range(limit - 700, limit, 20):
        run_virtual(main, depth)
    assert ends == {"ready", "RecursionError"}


@pytest.mark.parametrize("problem", [RuntimeError("no source"), SystemExit(3)])
def test_a_stack_is_shown_whatever_the_loader_of_a_module_raises(problem):
    """R17, R20: Python asks the loader of a child's module for the lines of its stack, in a report of the tree and at `Ref.stack`."""

    class Loader:
        def get_source(self, name):
            raise problem

    source = "async def body(*, task_status):\n    task_status.started()\n    await hang()\ndef fails():\n    hang.nothing\n"
    names = {"hang": hangs_for_a_minute, "__name__": "odd", "__loader__": Loader()}
    exec(compile(source, f"/nowhere/{type(problem).__name__}.py", "exec"), names)
    seen = Seen()

    async def main():
        async with open_tree(app(Child("odd", names["body"], grace=1)), sinks=[seen]) as tree:
            assert "(the stack cannot be shown: " in tree["app/odd"].stack()

    with pytest.raises(AttributeError) as raised:
        names["fails"]()
    assert trace(raised.value).startswith("(the traceback of AttributeError(")
    run_virtual(main)
    assert seen.of(events.Overdue)[0].stack.startswith("(the stack cannot be shown: ")
    assert len(seen.of(events.Stopped)) == 2


async def hangs_for_a_minute():
    with trio.CancelScope(shield=True):
        await trio.sleep(60)
