"""What messages cost as callers, streams and depth grow, and a Ctrl-C at any line (R4, R31)."""

from __future__ import annotations

import gc
import signal
import sys
import weakref

import pytest
import trio

from supervise import (
    CallLost,
    Child,
    ChildStopped,
    Pool,
    Supervisor,
    events,
    open_tree,
)
from supervise._core import forest
from supervise._trio import address, driver, mailbox
from supervise._trio import message as message_module
from supervise.testing import run_virtual

from .scene import Boom, Other, app, forever, quiet
from .talk import Shelf, fail_if_a_task_hangs, grow, steps

# --- what must not be quadratic


@pytest.mark.parametrize(
    "what",
    ["senders leave", "callers leave", "queued leave", "streams leave", "close", "readers leave", "admit"],
)
def test_no_step_is_quadratic_in_the_number_of_waiting_callers(what):
    """R29: Twice as many callers cost about twice the steps, if they leave together and if all get an error at once."""

    def cost(number):
        counted = []

        async def ask(ref, form):
            try:
                if form == "stream":
                    async with ref.stream(0):
                        await trio.sleep_forever()
                else:
                    await getattr(ref, form)(0)
            except ChildStopped:
                pass

        async def body(inbox):
            if what == "readers leave":
                async with trio.open_nursery() as nursery:
                    scopes.append(nursery.cancel_scope)
                    for _ in range(number):
                        nursery.start_soon(inbox.receive)
            await gate.wait()
            while True:
                (await inbox.receive()).reply()

        child = Child("a", body, mailbox=number if what == "queued leave" else 1)
        gate, scopes = trio.Event(), []

        async def scene(tree, seen):
            ref = tree[child]
            form = {"senders leave": "send", "streams leave": "stream"}.get(what, "call")
            queue = ref._mailbox()
            async with trio.open_nursery() as nursery:
                if what == "readers leave":
                    counted.append(steps(scopes[0].cancel))
                    return
                for _ in range(number):
                    nursery.start_soon(ask, ref, form)
                await quiet()
                if what == "close":
                    counted.append(steps(lambda: queue.close(None)))
                    queue.open()
                elif what == "admit":
                    (server,) = queue.servers.values()
                    inbox = server.open_inbox
                    counted.append(steps(lambda: [inbox.receive_nowait().reply() for _ in range(number)]))
                else:
                    counted.append(steps(nursery.cancel_scope.cancel))

        grow(app(child), scene)
        return counted[0]

    few, many = cost(200), cost(800)
    assert few > 200
    assert many < 4.4 * few, (few, many)


# --- growth and depth


def test_a_late_request_to_a_member_that_is_gone_leaves_nothing_behind():
    """R31: Neither `call` nor `ready` nor `ended` nor `status` keeps an address for ever."""
    pool = Pool("pool", Child("m", forever, mailbox=4, restart="temporary"), limit=None)

    async def scene(tree, seen):
        kept = None
        for number in range(20):
            member = await tree[pool].add()
            await member.stop()
            with pytest.raises(ChildStopped):
                await member.call(1)
            with pytest.raises(ChildStopped):
                await member.ready()
            with pytest.raises(ChildStopped):
                member.send_nowait(1)
            with pytest.raises(ChildStopped):
                member.status()
            assert await member.ended() is None
            if number == 5:
                kept = len(tree._driver.addresses)
        assert len(tree._driver.addresses) == kept

    grow(app(pool), scene)


def test_no_answered_message_waits_for_the_garbage_collector():
    """R31: A call and its message refer to each other only while the message is in hand."""

    class Payload:
        pass

    shelf = Shelf()
    left = []

    async def ask(ref):
        payload = Payload()
        left.append(weakref.ref(payload))
        with trio.move_on_after(1):
            try:
                await ref.call(payload)
            except Other:
                pass

    async def scene(tree, seen):
        for end in ("reply", "fail", "requeue", "leave"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, tree[shelf.spec])
                await quiet()
                if end == "fail":
                    shelf.held[-1].fail(Other())
                elif end != "leave":
                    getattr(shelf.held[-1], end)()
                    await quiet()
                if end == "requeue":
                    shelf.held[-1].reply()
            shelf.held.clear()
            assert [payload() for payload in left if payload() is not None] == [], end

    gc.collect()
    gc.disable()
    try:
        grow(app(shelf), scene)
    finally:
        gc.enable()


DEPTH = 5_000


def test_a_mailbox_may_be_at_any_depth():
    """R29: An address is made without recursion, and without a step for each level above it that is known."""

    async def main():
        made = driver.Driver(Supervisor("app", [], limit=None), [])
        path = "app" + "/s" * DEPTH + "/x"
        made._keep(address.Address(path))
        assert len(made.addresses) == DEPTH + 2
        assert steps(lambda: made._keep(address.Address(f"{path}2"))) < 30

    trio.run(main)


# --- a Ctrl-C


class Interrupt:
    """Sends SIGINT at the so-manieth line that is carried out in the code under test, while the block runs."""

    FILES = (mailbox.__file__, message_module.__file__, address.__file__, driver.__file__, forest.__file__)
    NAMES = (
        "Address",
        "Answer",
        "address",
        "_keep",
        "mailbox_of",
        "gone",
        "_changed",
        "_gone",
        "_left",
    )

    def __init__(self, at):
        self.at, self.lines, self.armed = at, 0, True

    def __call__(self, frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename in self.FILES:
            parts = code.co_qualname.split(".")
            if code.co_filename in (mailbox.__file__, message_module.__file__) or set(parts) & set(
                self.NAMES
            ):
                return self._line
        return None

    def _line(self, frame, event, _):
        if event == "line" and self.armed:
            self.lines += 1
            if self.lines == self.at:
                self.armed = False
                signal.raise_signal(signal.SIGINT)
        return self._line


async def talk(tree, interrupt):
    """A bit of everything; what is in the background goes on for ever."""
    echo, busy = tree["app/echo"], tree["app/busy"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy.call, "held")
        nursery.start_soon(busy.send, "waits for room")
        assert await echo.call(1) == 1
        await echo.ready()
        async with echo.lease():
            await echo.send(2)
        async with echo.stream(3, buffer=1) as stream:
            assert [item async for item in stream] == [0, 1, 2]
        async with echo.stream(3, buffer=1) as stream:
            await anext(stream)
        with trio.move_on_after(1):
            await busy.call("leaves")
        with pytest.raises(CallLost):
            await echo.call("boom")
        added = await tree.root.add(Child("added", forever, mailbox=1))
        await added.stop()
        await added.ended()
        with pytest.raises(ChildStopped):
            await added.call(1)
        interrupt.armed = False
        nursery.cancel_scope.cancel()


async def _echo(inbox):
    async for message in inbox:
        if message.value == "boom":
            raise Boom
        if hasattr(message, "send"):
            for number in range(3):
                await message.send(number)
        message.reply(message.value)


async def _busy(inbox):
    await inbox.receive()
    await trio.sleep_forever()


def interrupted(at):
    """What the program comes to if a SIGINT comes at that line; whether it came, and what had started and stopped."""
    interrupt, seen = Interrupt(at), []

    async def main():
        trio.lowlevel.spawn_system_task(fail_if_a_task_hangs)
        spec = Supervisor(
            "app", [Child("echo", _echo, mailbox=1), Child("busy", _busy, mailbox=1)], limit=None
        )
        async with open_tree(spec, sinks=[seen.append]) as tree:
            await talk(tree, interrupt)

    before = sys.gettrace()
    raised = None
    sys.settrace(interrupt)
    try:
        run_virtual(main, seed=1)
    except BaseException as exc:
        raised = exc
    finally:
        sys.settrace(before)
    return interrupt, raised, seen


@pytest.mark.slow
def test_a_ctrl_c_at_any_line_of_a_mailbox_leaves_bare_and_no_task_hangs():
    """R4, R29: This holds under plain `trio.run`, at every line of messages, calls, streams, inboxes and addresses."""
    first, raised, _ = interrupted(-1)
    assert raised is None
    assert first.lines > 300
    for at in range(1, first.lines + 1):
        interrupt, raised, seen = interrupted(at)
        assert interrupt.lines >= at, at
        if isinstance(raised, BaseExceptionGroup):  # by the nursery of `talk`, none of ours
            (raised,) = raised.exceptions
        assert type(raised) is KeyboardInterrupt, (at, raised)
        started = [event.path for event in seen if isinstance(event, events.Starting)]
        stopped = [event.path for event in seen if isinstance(event, events.Stopped)]
        assert sorted(started) == sorted(stopped), at
        assert stopped[-1] == "app"
