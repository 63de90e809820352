"""Random callers, random bodies, random ends, random schedules: what holds of every mailbox (R20, R28–R30).

`CAMPAIGN=20` in the environment runs twenty times as many.
"""

from __future__ import annotations

import os

import attrs
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervise import (
    Backoff,
    CallLost,
    Child,
    ChildStopped,
    Decider,
    Mailbox,
    MailboxFull,
    Refused,
    Resume,
    StreamMessage,
    open_tree,
)
from supervise.testing import run_virtual

from .scene import Boom, Kit, Other, Seen, app, quiet

TIMES = int(os.environ.get("CAMPAIGN", "1"))
HORIZON = 50.0
ACTS = ("reply", "reply", "reply", "hold", "fail", "requeue", "boom", "other", "keep", "elsewhere")
MOMENTS = st.integers(0, 40).map(lambda eighths: eighths / 8)


@attrs.frozen
class Asks:
    """A sender: how it sends, what the body does with the message, and when the sender gives up waiting."""

    at: float
    form: str
    act: str
    on_loss: str | None
    patience: float
    items: int


@attrs.frozen
class Scenario:
    """One child, or several that share a mailbox, their senders, and what happens to the children meanwhile."""

    size: int
    sharing: int
    readers: int
    drain: float
    backoff: float
    loop: bool
    asks: list[Asks]
    ends: list[tuple[float, str]]


def asks():
    return st.builds(
        Asks,
        at=MOMENTS,
        form=st.sampled_from(["call", "call", "stream", "send", "nowait"]),
        act=st.sampled_from(ACTS),
        on_loss=st.sampled_from([None, "fail", "requeue"]),
        patience=st.sampled_from([0.0, 0.25, 1.0, 3.0, HORIZON]),
        items=st.integers(0, 5),
    )


SCENARIOS = st.builds(
    Scenario,
    size=st.integers(1, 3),
    sharing=st.sampled_from([0, 0, 1, 2, 3]),
    readers=st.integers(1, 3),
    drain=st.sampled_from([0.0, 2.0]),
    backoff=st.sampled_from([0.0, 1.0]),
    loop=st.booleans(),
    asks=st.lists(asks(), max_size=14),
    ends=st.lists(st.tuples(MOMENTS, st.sampled_from(["inject", "resume", "stop", "restart"])), max_size=4),
)


class Run:
    """One tree, and what was taken, sent and answered."""

    def __init__(self, scenario):
        self.scenario = scenario
        self.taken = []  # the number of each message, each time that it is taken
        self.items = self.got = 0
        self.results = {}
        self.elsewhere = None
        mailbox = Mailbox(scenario.size)
        options = {"limit": None, "decider": Decider({Other: Resume})}
        self.children = [self._child(name, "shared") for name in "abc"[: scenario.sharing]]
        if self.children:
            self.spec = self.node = app(*self.children, mailbox=mailbox, **options)
        else:
            self.node = self._child("a", mailbox)
            self.children = [self.node]
            self.spec = app(self.node, **options)

    # --- the child

    def _child(self, name, mailbox):
        backoff = self.scenario.backoff
        delay = Backoff(initial=backoff, jitter=0) if backoff else None
        options = {"drain": self.scenario.drain, "backoff": delay, "resource": Kit()}
        return Child(name, self._body, mailbox=mailbox, **options)

    async def _body(self, _, inbox):
        async with trio.open_nursery() as nursery:
            for _ in range(self.scenario.readers):
                nursery.start_soon(self._read, inbox)

    async def _read(self, inbox):
        if self.scenario.loop:
            async for message in inbox:
                self._note(message)
                await self._serve(message)
        while not self.scenario.loop:
            messages = await inbox.receive_many(2)
            for message in messages:
                self._note(message)
            for message in messages:
                await self._serve(message)

    def _note(self, message):
        self.taken.append(message.value[0])

    async def _serve(self, message):
        number, ask = message.value
        seen, message.memo = message.memo, message.memo or 1
        if isinstance(message, StreamMessage):
            await self._send(message, ask)
        if ask.act == "hold":
            await trio.sleep(1)
        elif ask.act == "requeue" and seen is None and not message.left:
            message.requeue()
            return
        elif ask.act == "fail":
            message.fail(Other(number))
            return
        elif ask.act in ("boom", "other") and seen is None:
            raise Boom if ask.act == "boom" else Other
        elif ask.act == "keep":
            await trio.sleep(5)
        elif ask.act == "elsewhere" and seen is None:
            self.elsewhere.start_soon(self._answer_late, message, number)
            await trio.sleep(3)
            return
        if not message.left:
            message.reply(number)

    async def _answer_late(self, message, number):
        """A task that no incarnation owns: it may come too late, and then it can do nothing."""
        await trio.sleep(2)
        try:
            message.reply(number)
        except RuntimeError as refused:
            assert "is not in hand" in str(refused)

    async def _send(self, message, ask):
        while message.memo <= ask.items:
            if message.left:
                return
            await message.send(message.memo)
            self.items += 1
            message.memo += 1
            if message.memo == 3:
                await trio.sleep(0.5)

    # --- the senders

    async def _ask(self, ref, number, ask):
        await trio.sleep(ask.at)
        got = []
        with trio.move_on_after(ask.patience):
            try:
                self.results[number] = await self._exchange(ref, number, ask, got)
            except (CallLost, ChildStopped, MailboxFull, Other) as error:
                self.results[number] = error
        self.results.setdefault(number, "left")
        assert got == list(range(1, len(got) + 1)), "an item was lost, doubled or moved"
        if ask.form == "stream" and self.results[number] == "over":
            assert len(got) == ask.items
        if isinstance(self.results[number], Other):
            assert self.results[number].args == (number,), "another caller's answer"

    async def _exchange(self, ref, number, ask, got):
        value = number, ask
        if ask.form == "call":
            answer = await ref.call(value, on_loss=ask.on_loss)
            assert answer == number, "another caller's answer"
            return answer
        if ask.form == "send":
            await ref.send(value, on_loss=ask.on_loss)
            return "sent"
        if ask.form == "nowait":
            ref.send_nowait(value, on_loss=ask.on_loss)
            return "sent"
        async with ref.stream(value, on_loss=ask.on_loss, buffer=2) as stream:
            async for item in stream:
                got.append(item)
                self.got += 1
                if ask.patience == 1.0 and item == 2:
                    return "left early"
        return "over"

    # --- what happens to it

    async def _end(self, ref, at, how):
        await trio.sleep(at)
        try:
            if how == "inject":
                ref.inject(Boom())
            elif how == "resume":
                ref.inject(Other())
            elif how == "restart":
                await ref.restart()
            else:
                await ref.stop()
                await trio.sleep(0.5)
                await ref.start()
        except Refused:
            pass

    async def main(self):
        trio.lowlevel.spawn_system_task(fail_if_a_task_hangs)
        seen = Seen()
        async with trio.open_nursery() as self.elsewhere:
            async with open_tree(self.spec, sinks=[seen]) as tree:
                ref = tree[self.node]
                queue = ref._mailbox()
                async with trio.open_nursery() as nursery:
                    for number, ask in enumerate(self.scenario.asks):
                        nursery.start_soon(self._ask, ref, number, ask)
                    for number, (at, how) in enumerate(self.scenario.ends):
                        child = self.children[number % len(self.children)]
                        nursery.start_soon(self._end, tree[child], at, how)
                await trio.sleep(HORIZON)
                await quiet()
                self.check(ref, queue)
            assert not queue.readers
            assert not queue.shared or (not queue.promised and not any(queue._kept.values()))
            assert not queue.servers

    def check(self, ref, queue):
        """What holds when no task waits any more and all messages were served."""
        asks = self.scenario.asks
        assert len(self.results) == len(asks), "a caller got no answer"
        status = ref.status()
        assert status.state == "up"
        assert status.mailbox == len(queue) == 0
        assert not queue._putters
        assert not queue.shared or (not queue.promised and not any(queue._kept.values()))
        held = [message for server in queue.servers.values() for message in server.open_inbox.held]
        assert not held or any(ask.form in ("send", "nowait") for ask in asks)
        first = list(dict.fromkeys(self.taken))
        items = status.handled - len(first)
        assert self.got <= items <= self.items, (
            "not counted once"
        )  # a message whose sender had just left does not count
        for number, ask in enumerate(asks):
            times = self.taken.count(number)
            again = ask.act == "requeue" or ask.on_loss == "requeue"
            assert again or times <= 1, "served twice"
            if self.results[number] == "sent":
                assert times >= 1 or self.scenario.ends, "a message was lost"
            if isinstance(self.results[number], int) or self.results[number] == "over":
                assert times >= 1
        self._check_order(first)

    def _check_order(self, first):
        """Senders that came at different moments, and only waited, are served in the order in which they came."""
        calm = not self.scenario.ends and all(ask.act in ("reply", "hold") for ask in self.scenario.asks)
        if calm:
            moments = [self.scenario.asks[number].at for number in first]
            assert moments == sorted(moments), "not first come, first served"


async def fail_if_a_task_hangs():
    await trio.sleep(80_000)
    raise AssertionError("a task hangs")


@settings(
    max_examples=150 * TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.random_module(), SCENARIOS)
def test_whatever_happens_every_caller_gets_one_answer_and_no_message_is_lost_or_doubled(schedule, scenario):
    """R29, R30, R37: Every caller gets one answer, and its own; items come in order; the counts are exact; nothing stays behind."""
    run_virtual(Run(scenario).main)


@settings(
    max_examples=50 * TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.random_module(), SCENARIOS)
def test_without_faults_messages_are_served_in_the_order_in_which_they_came(schedule, scenario):
    """R29: A sender that waited for room, or left in the meantime, changes nothing for the others."""
    calm = [attrs.evolve(ask, act="hold" if ask.act == "keep" else "reply") for ask in scenario.asks]
    run_virtual(Run(attrs.evolve(scenario, asks=calm, ends=[])).main)
