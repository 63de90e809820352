"""A worker in a tree, callers that hold it to its rules, and a host whose sessions a test controls."""

import gc
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from runners.errors import InferenceError, OutOfMemory
from runners.hosts import RequestFailed
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Fault, Scripted, expected, letter
from runners.types import ExecuteBatch, FinishReason, RunnerInfo, Sampling, TokenChunk
from runners.worker import device_worker
from supervise import DEVICE, Child, Decider, Escalate, Supervisor, events, open_tree
from supervise.testing import assert_lifecycle

HOST = ProcessHost(load_timeout=20, first_chunk_timeout=20, next_chunk_timeout=20)
PATIENCE = 60.0
LOOK = 0.002
"""Seconds between two looks at a condition that has no event."""
FOREVER = Scripted(5_000, delay=0.002)


def batch(name, *, most=100_000, seed=7, **options):
    return ExecuteBatch(name, f"go on, {name}", sampling=Sampling(seed=seed, max_tokens=most), **options)


def kill(pid):
    os.kill(pid, signal.SIGKILL)


async def strike(ref):
    """Kill the process of a context once no request is on trial there, which would be tried no third time (D6). Returns its state."""
    while (state := await ref.ready())._context._tries():  # noqa: ASYNC110 - The end of a trial has no event.
        await trio.sleep(LOOK)
    kill(state.pid)
    return state


async def until(condition):
    while not condition():  # noqa: ASYNC110 - the condition has no event
        await trio.sleep(LOOK)


def children():
    """The pids of our children, zombies too."""
    return {
        int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()
    }


def descriptors():
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.fixture(autouse=True)
def worker_leaves_nothing():
    """D10: no test leaves a process or a descriptor. One of an earlier test may end meanwhile, as garbage does."""
    before = children(), descriptors()
    yield
    gc.collect()
    assert not children() - before[0]
    assert not descriptors() - before[1]


class Scene:
    """A tree with a worker in it, and what happened there."""

    def __init__(self, tree, worker, seen):
        self.tree = tree
        self.worker = worker
        self.seen = seen

    @property
    def context(self):
        return next(node for node in self.worker.status().walk() if node.kind == "child")

    def of(self, kind):
        return [event for event in self.seen if isinstance(event, kind)]

    def decisions(self):
        return [(type(event.exc), event.directive) for event in self.of(events.Decided)]

    async def incarnation(self, number):
        """The state of the context, once it is this incarnation."""
        await until(lambda: self.context.incarnation >= number)
        state = await self.worker.ready()
        assert state.incarnation == number
        return state


@asynccontextmanager
async def serving(
    runner, *, host=HOST, above=None, siblings=(), strategy="one_for_one", patience=None, **options
):
    """A worker that restarts at once, under a root; afterwards the proof that all lived by the grammar.

    Without a process nothing takes long, and a wait for what does not come ends soon.
    """
    if patience is None:
        patience = PATIENCE / 2 if isinstance(host, Stage) else PATIENCE
    seen = []
    spec = device_worker("llm", runner, host=host, **{"backoff": None, **options})
    root = Supervisor("app", [spec, *siblings], decider=above, strategy=strategy)
    with trio.fail_after(patience):
        async with open_tree(root, sinks=[seen.append]) as tree:
            yield Scene(tree, tree[spec], seen)
    assert_lifecycle(seen)


class Caller:
    """Consumes a stream and holds it to D6 and D8: each token once, in order, and an end with its reason."""

    def __init__(self, request, on_chunk=lambda _: None):
        self.request = request
        self.chunks = []
        self.ids = ()
        self.error = None
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self._on_chunk = on_chunk

    @property
    def text(self):
        return "".join(chunk.text for chunk in self.chunks)

    async def run(self, worker, *, task_status=trio.TASK_STATUS_IGNORED, **options):
        with self.scope:
            try:
                async with worker.stream(self.request, **options) as chunks:
                    task_status.started()
                    async for chunk in chunks:
                        self._take(chunk)
            except InferenceError as error:
                self.error = error
            else:
                assert self.chunks[-1].finish_reason is not None
            finally:
                self.over.set()

    def _take(self, chunk):
        assert not self.chunks or self.chunks[-1].finish_reason is None
        assert (chunk.request_id, chunk.index) == (self.request.request_id, len(self.ids))
        self.chunks.append(chunk)
        self.ids += chunk.token_ids
        self._on_chunk(chunk)

    def incarnations(self):
        return {chunk.incarnation for chunk in self.chunks}

    def assert_whole(self, tokens=8):
        assert self.error is None
        assert self.ids == expected(self.request, tokens)
        assert self.text == "".join(map(letter, self.ids))


def callers(names, on_chunk=lambda _: None, **options):
    return [Caller(batch(name, **options), on_chunk) for name in names]


async def all_of(worker, them):
    """Run callers, which enter in this order, to their ends."""
    async with trio.open_nursery() as nursery:
        for caller in them:
            await nursery.start(caller.run, worker)


# --- a host without a process


class Act:
    """A session that makes what the test gives it, and holds the worker to the contract of `Session`."""

    pid = None

    def __init__(self, incarnation, cause, info):
        self.incarnation = incarnation
        self.cause = cause
        self.info = info
        self.begun = []
        self.dropped = []
        self.open = {}
        self.ended = False
        self.confirms = []  # the streams for which it was to confirm that
        self.takes = True  # whether it confirms a stream as soon as it begins
        self.rebuilds = []
        self.rebuilt = trio.Event()
        self.rebuild_error = None
        self._give, self._take = trio.open_memory_channel(1000)

    def begin(self, request, accepted=(), *, confirm=False):
        assert not self.ended
        assert request.request_id not in self.open
        assert len(self.open) < self.info.streams
        assert self.info.can_continue or not accepted
        self.begun.append(request.request_id)
        if confirm:
            self.confirms.append(request.request_id)
        self.open[request.request_id] = (request, tuple(accepted))

    def has_taken(self, request_id):
        return self.takes

    def drop(self, request_id):
        assert not self.ended
        self.dropped.append(request_id)
        self.open.pop(request_id, None)

    async def receive(self):
        made = await self._take.receive()
        if isinstance(made, Exception):
            raise made
        return made

    async def rebuild(self, cause):
        """Waits until the test sets the outcome."""
        assert not self.ended
        assert not self.open
        self.rebuilds.append(cause)
        await self.rebuilt.wait()
        self.rebuilt = trio.Event()
        if self.rebuild_error is not None:
            raise self.rebuild_error

    def is_rebuilt(self, error=None):
        """An error is the failure of the context, too."""
        self.rebuild_error = error
        self.rebuilt.set()
        if error is not None:
            self.fails(error)

    async def is_asked_to_rebuild(self, count=1):
        await until(lambda: len(self.rebuilds) == count)

    def fails(self, error):
        self._give.send_nowait(error)

    def runs_out_of_memory(self, *names):
        """In one step, for these."""
        for name in names:
            self.open.pop(name)
        self.fails([RequestFailed(name, OutOfMemory(name)) for name in names])
        for name in names:
            error = OutOfMemory(name)
            error.request_ids = (name,)
            self.fails(error)

    def makes(self, name, *, index=0, incarnation=None, last=False):
        """One chunk."""
        assert name in self.open
        if last:
            del self.open[name]
        chunk = TokenChunk(
            request_id=name,
            index=index,
            token_ids=(index,),
            text=letter(index),
            finish_reason=FinishReason.STOP if last else None,
            incarnation=incarnation or self.incarnation,
        )
        self.fails([chunk])

    async def has(self, *names):
        """Wait until these have begun, and see that no more do."""
        await until(lambda: len(self.begun) >= len(names))
        await trio.testing.wait_all_tasks_blocked()
        assert self.begun == list(names)


class Stage:
    """A `Host` of such sessions."""

    def __init__(self, streams=4, *, can_continue=True):
        self.acts = []
        self.load = 0.0  # seconds that every load but the first takes
        self._info = RunnerInfo(streams=streams, can_continue=can_continue)

    @asynccontextmanager
    async def open(self, runner, *, incarnation=1, cause=None):
        if self.load and incarnation > 1:
            await trio.sleep(self.load)
        act = Act(incarnation, cause, self._info)
        self.acts.append(act)
        yield act
        act.ended = True

    async def act(self, number):
        await until(lambda: len(self.acts) >= number)
        return self.acts[number - 1]


PUPPET = Scripted()


def loads_fail(kind, *incarnations):
    """Killed at token 3 of the first incarnation; then loads fail."""
    return (
        Fault("kill", at_token=3, incarnation=1),
        *(Fault(kind, incarnation=n, at="load") for n in incarnations),
    )


@asynccontextmanager
async def undecided(scene, act, error):
    """Inside the block the context has failed, and the supervisor that is to decide is busy."""
    gate = trio.Event()

    async def start(*, task_status):
        await gate.wait()
        task_status.started()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.tree.root.add, Child("slow", start))
        await trio.testing.wait_all_tasks_blocked()
        error(act)
        await until(lambda: scene.context.state == "failed")
        yield
        gate.set()


UP = {"decider": Decider(default=Escalate), "above": DEVICE}
