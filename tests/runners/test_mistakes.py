"""Mistakes that device workers make, and that this one does not; `docs/project/device-rules.md` lists them all.

In virtual time, except where a process must die.
"""

import ast
import os
import signal
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen

import runners
from runners.diagnosis.classify import worst
from runners.errors import (
    BadRequest,
    ContextDied,
    ContextHung,
    ContextPoisoned,
    InferenceError,
    LoadFailed,
    OutOfMemory,
    ProtocolError,
    Unrecoverable,
    WorkerDown,
)
from runners.hosts.inline import InlineHost
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Scripted, expected
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker, rebuild, report_poison
from supervise import DEVICE, Child, Decider, Restart, Resume, Stop, Supervisor, events, open_tree
from supervise._core.decide import judge
from supervise.errors import LimitExceeded
from supervise.testing import assert_lifecycle, run_virtual

INLINE = InlineHost()


def batch(name, **options):
    return ExecuteBatch(name, f"go on, {name}", sampling=Sampling(seed=7, max_tokens=100), **options)


class Scene:
    """A worker in a tree, and what happened there."""

    def __init__(self, tree, worker, seen):
        self.tree = tree
        self.worker = worker
        self.seen = seen

    @property
    def context(self):
        (context,) = self.worker.status().children
        return context

    def of(self, kind):
        return [event for event in self.seen if isinstance(event, kind)]

    async def incarnation(self, number):
        """Wait until this incarnation serves."""
        while self.context.incarnation < number:  # noqa: ASYNC110 - a status has no event
            await trio.sleep(0.01)
        assert (await self.worker.ready()).incarnation == number


@asynccontextmanager
async def serving(runner, *, host=INLINE, siblings=(), decider=None, **options):
    """Afterwards all must have lived by the grammar."""
    seen = []
    spec = device_worker("llm", runner, host=host, **options)
    root = Supervisor("app", [spec, *siblings], decider=decider)
    async with open_tree(root, sinks=[seen.append]) as tree:
        yield Scene(tree, tree[spec], seen)
    assert_lifecycle(seen)


async def answer(worker, name):
    """The tokens of a request, and the incarnations that made them; or its error."""
    try:
        async with worker.stream(batch(name)) as chunks:
            got = [chunk async for chunk in chunks]
    except InferenceError as error:
        return error, set()
    return tuple(token for chunk in got for token in chunk.token_ids), {chunk.incarnation for chunk in got}


async def all_answers(worker, names):
    answers = {}

    async def one(name):
        answers[name] = await answer(worker, name)

    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(one, name)
            await trio.testing.wait_all_tasks_blocked()
    return answers


# --- a failure that does not reach the supervisor


@pytest.mark.parametrize(
    "fault",
    [
        Fault("poison", "a", 0, incarnation=1),
        Fault("poison", "a", 5, incarnation=1),
        Fault("poison", incarnation=1, at="rebuild"),
    ],
    ids=["at the start", "in mid-stream", "in a rebuild"],
)
def test_a_poison_reaches_the_supervisor_wherever_it_is_raised(fault):
    """D3: It may be raised anywhere in a stream; the supervisor decides, and the next incarnation answers the same request."""

    async def scene():
        async with serving(Scripted(8, faults=(fault,))) as scene:
            if fault.at == "rebuild":
                with pytest.raises(ContextPoisoned):
                    await rebuild(scene.worker)
            tokens, _ = await answer(scene.worker, "a")
            assert tokens == expected(batch("a"))
            assert scene.context.incarnation == 2
            verdicts = [(type(event.exc), event.directive) for event in scene.of(events.Decided)]
            assert verdicts[-1] == (ContextPoisoned, Restart)

    run_virtual(scene)


@pytest.mark.trio
async def test_a_context_that_dies_while_idle_is_replaced():
    """D10: The parent watches its process; it does not wait for a request to find out."""
    with trio.fail_after(60):
        async with serving(Scripted(), host=ProcessHost(load_timeout=60)) as scene:
            pid = (await scene.worker.ready()).pid
            os.kill(pid, signal.SIGKILL)
            await scene.incarnation(2)
            (failed,) = scene.of(events.Failed)
            assert isinstance(failed.exc, ContextDied)


# --- restarts that are neither bounded nor reported


def test_poisons_that_are_reported_are_charged_like_any_other():
    """D3, R14: Three restarts are allowed; at the fourth report every request gets an error, and nothing starts."""

    async def scene():
        async with serving(Scripted(), decider=Decider({"limit": Stop})) as scene:
            for number in (1, 2, 3):
                report_poison(scene.worker, "says the watchdog", number)
                await scene.incarnation(number + 1)
            report_poison(scene.worker, "says the watchdog", 4)
            assert isinstance(await scene.worker.ended(), LimitExceeded)
            error, _ = await answer(scene.worker, "late")
            assert isinstance(error, WorkerDown)
            assert isinstance(error.__cause__, LimitExceeded)
            assert isinstance(error.__cause__.__cause__, ContextPoisoned)
            assert max(event.incarnation for event in scene.of(events.Starting)) == 4

    run_virtual(scene)


def test_restarts_back_off_are_counted_and_are_reported():
    """D1, R15, R33: The first restart is at once, then come 0.5 s × 2; status and events show each, and the end."""

    async def scene():
        async with serving(Scripted(), decider=Decider({"limit": Stop})) as scene:
            dues = []
            for number in (1, 2, 3, 4):
                report_poison(scene.worker, "again", number)
                await trio.testing.wait_all_tasks_blocked()
                if number < 4:
                    dues.append(scene.context.due)
                    assert scene.worker.status().restarts == number
                    assert isinstance(scene.context.last_failure, ContextPoisoned)
                    await scene.incarnation(number + 1)
            assert [due is None for due in dues] == [True, False, False]
            delays = [event.delay for event in scene.of(events.BackingOff)]
            assert delays == [pytest.approx(0.5, rel=0.11), pytest.approx(1.0, rel=0.11)]
            *_, gave_up = scene.of(events.Decided)
            assert gave_up.directive is Stop
            assert [event.limit for event in scene.of(events.Decided) if event.limit] == ["3 within 60 s"]

    run_virtual(scene)


def test_a_thousand_restarts_leave_one_child_under_one_name():
    """R31: Incarnations are counted, not collected: neither children, nor addresses, nor names grow."""

    async def scene():
        async with serving(Scripted(), limit=None, backoff=None) as scene:
            await scene.incarnation(1)
            before = scene.context.path, len(scene.tree._driver.addresses)
            for number in range(1, 1001):
                report_poison(scene.worker, "again", number)
                await scene.incarnation(number + 1)
            assert (scene.context.path, len(scene.tree._driver.addresses)) == before
            kinds = Counter(type(event) for event in scene.seen if event.path == scene.context.path)
            assert (kinds[events.Starting], kinds[events.Stopped]) == (1001, 1000)

    run_virtual(scene)


# --- requests that wait for what is not there


@frozen
class Slow:
    """A host whose second load takes long."""

    seconds: float

    @asynccontextmanager
    async def open(self, runner, *, incarnation=1, cause=None):
        await trio.sleep(self.seconds * (incarnation > 1))
        async with INLINE.open(runner, incarnation=incarnation, cause=cause) as session:
            yield session


def test_a_long_load_delays_no_other_task():
    """D6, R33: Meanwhile the address takes requests, the status is answered, siblings are served, and a stop works."""

    async def echo(inbox):
        async for message in inbox:
            message.reply(message.value)

    sibling = Child("echo", echo, mailbox=8)

    async def scene():
        async with serving(Scripted(), host=Slow(100), siblings=[sibling]) as scene:
            report_poison(scene.worker, "go", 1)
            async with trio.open_nursery() as nursery:
                answers = []
                nursery.start_soon(lambda: keep(answers, scene.worker))
                await trio.sleep(1)
                assert (scene.context.state, scene.context.mailbox) == ("starting", 1)
                assert await scene.tree[sibling].call("hello") == "hello"
                assert trio.current_time() - began(scene) < 2
            assert answers == [(expected(batch("a")), {2})]
            report_poison(scene.worker, "go", 2)
            await trio.sleep(1)
            stopping = trio.current_time()
            await scene.worker.stop()
            assert trio.current_time() == stopping

    async def keep(answers, worker):
        answers.append(await answer(worker, "a"))

    def began(scene):
        return scene.of(events.Failed)[0].at

    run_virtual(scene)


def test_after_a_poison_no_request_meets_the_old_runner():
    """D6: Requests that waited are served by the next incarnation alone, and streams that had begun go on there."""

    async def scene():
        async with serving(Scripted(8, streams=1, faults=(Fault("poison", "a", 5, incarnation=1),))) as scene:
            answers = await all_answers(scene.worker, "abcd")
            assert answers == {
                "a": (expected(batch("a")), {1, 2}),
                **{name: (expected(batch(name)), {2}) for name in "bcd"},
            }

    run_virtual(scene)


# --- a policy by text, and more than one of it

WORDS = "Unrecoverable: CUDA error: an illegal memory access; OutOfMemory; ContextPoisoned; cudaErrorECCUncorrectable"


@pytest.mark.parametrize(
    ("error", "directive"), [(OutOfMemory, Resume), (ContextPoisoned, Restart), (Unrecoverable, Stop)]
)
def test_no_text_decides(error, directive):
    """D3: A verdict follows from a class and its tag; the text of a driver or of a prompt changes none."""
    assert judge(DEVICE, error(WORDS)).directive is directive
    assert judge(DEVICE, error("")).directive is directive


def test_a_prompt_that_quotes_errors_decides_nothing():
    """D5: The error of a request quotes the request, and no verdict follows from that text."""

    async def scene():
        async with serving(Scripted()) as scene:
            with pytest.raises(BadRequest, match="ExecuteBatch, got 'Unrecoverable"):
                await scene.worker.call(WORDS)
            tokens, _ = await answer(scene.worker, WORDS)
            assert tokens == expected(batch(WORDS))
            assert scene.of(events.Failed) == []

    run_virtual(scene)


DEVICE_ERRORS = (
    ContextPoisoned,
    ContextDied,
    ContextHung,
    ProtocolError,
    OutOfMemory,
    Unrecoverable,
    LoadFailed,
)


def test_there_is_one_table():
    """D3: `DEVICE` is the policy of every worker, and no other module maps a device's tags to directives."""
    assert device_worker("llm", Scripted()).decider is DEVICE
    tables = [
        node
        for file in Path(runners.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Decider"
    ]
    assert not {"device.poisoned", "device.oom", "device.unrecoverable"} & {
        constant.value
        for table in tables
        for constant in ast.walk(table)
        if isinstance(constant, ast.Constant)
    }


@pytest.mark.parametrize("one", DEVICE_ERRORS)
@pytest.mark.parametrize("other", DEVICE_ERRORS)
def test_the_worst_of_several_errors_is_the_one_with_the_most_severe_directive(one, other):
    """D3, R3: A host ranks the errors of one step in the order of the table."""
    group = ExceptionGroup("of one step", [one("x"), other("y")])
    assert judge(DEVICE, worst(group, lambda error: error)).directive == max(
        judge(DEVICE, member).directive for member in group.exceptions
    )
