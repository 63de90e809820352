"""Real SIGINTs at random moments, to processes that are busy in the library."""

from __future__ import annotations

import gc
import itertools
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio
import trio.lowlevel

from benchmarks.progress import tracked
from runners import ExecuteBatch, device_worker, rebuild
from runners.errors import ContextDied, RebuildSuperseded
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Scripted
from supervise import Child, Decider, Limit, Pool, Resume, Supervisor, current_child, stop_requested
from supervise.errors import CallLost, ChildStopped, Refused

from .devices import Silence, left, there
from .programs import Boom, fails
from .talking import Talking
from .verdict import Program, Scene, judge

PATIENCE = 120.0
"""Seconds after which a program that was interrupted hangs."""

LATEST = 0.04
"""Seconds within which it is interrupted."""
LATEST_DEVICE = 1.2
"""Likewise one that starts processes."""

BUSY: dict[str, Program] = {}
BUSY_DEVICES: dict[str, Program] = {}


def busy(fn: Program) -> Program:
    """Have it interrupted. It has to go on until it is."""
    BUSY[fn.__name__] = fn
    return fn


def busy_device(fn: Program) -> Program:
    """Likewise; it has processes."""
    BUSY_DEVICES[fn.__name__] = fn
    return fn


class Kept:
    """A resource that counts; nothing interrupts it between its count and its caller."""

    def __init__(self, scene: Scene, name: str) -> None:
        self._lives = scene.lives
        self._name = name

    @trio.lowlevel.enable_ki_protection
    async def __aenter__(self) -> None:
        await trio.lowlevel.checkpoint()
        self._lives[self._name] = self._lives.get(self._name, 0) + 1

    @trio.lowlevel.enable_ki_protection
    async def __aexit__(self, *_: object) -> None:
        self._lives[self._name] -= 1
        await trio.lowlevel.checkpoint()


def drained(name: str) -> Child:
    """A child that drains for a moment."""

    async def body() -> None:
        await stop_requested()
        await trio.sleep(0.001)

    return Child(name, body, drain=30)


async def replies(inbox: Any) -> None:
    """Reply to each message with its value."""
    async for message in inbox:
        message.reply(message.value)


@busy
async def crashes(scene: Scene) -> None:
    """Crash loops of two children."""
    children = [drained("steady"), fails(scene, "a", 10**9), fails(scene, "b", 10**9)]
    async with scene.tree(Supervisor("app", children, limit=None)):
        await trio.sleep_forever()


@busy
async def calls(scene: Scene) -> None:
    """Calls, as fast as it goes."""
    async with scene.tree(
        Supervisor("app", [drained("steady"), Child("server", replies, mailbox=4)])
    ) as tree:
        while True:
            await tree["app/server"].call(1)


@busy
async def callers(scene: Scene) -> None:
    """Several callers in children, with one that gives up again and again."""

    async def client() -> None:
        while True:
            try:
                await current_child().tree["app/server"].call(1)
            except ChildStopped:
                await trio.sleep_forever()

    async def hasty() -> None:
        while True:
            with trio.move_on_after(0.0001):
                await client()

    children = [drained("steady"), Child("server", replies, mailbox=1)]
    children += [Child(f"client-{number}", client) for number in range(4)]
    async with scene.tree(Supervisor("app", [*children, Child("hasty", hasty)])):
        await trio.sleep_forever()


@busy
async def streams(scene: Scene) -> None:
    """Streams with a small buffer."""

    async def server(inbox: Any) -> None:
        async for message in inbox:
            for item in range(5):
                await message.send(item)
            message.reply()

    async with scene.tree(Supervisor("app", [drained("steady"), Child("server", server, mailbox=4)])) as tree:
        while True:
            async with tree["app/server"].stream(1, buffer=2) as stream:
                async for _ in stream:
                    pass


@busy
async def churn(scene: Scene) -> None:
    """Members of a pool come and go."""
    members = Pool("members", Child("member", trio.sleep, restart="transient"))
    async with scene.tree(Supervisor("app", [drained("steady"), members], limit=None)) as tree:
        while True:
            await tree["app/members"].add(0)


@busy
async def requests(scene: Scene) -> None:
    """A child is stopped and started again, another is added and removed."""
    async with scene.tree(Supervisor("app", [drained("steady"), drained("other")])) as tree:
        while True:
            await tree["app/other"].stop()
            await tree["app/other"].restart()
            added = await tree.root.add(Child("added", trio.sleep_forever))
            await added.stop()
            await added.remove()


@busy
async def resources(scene: Scene) -> None:
    """Restarts and Resumes with a resource."""
    left = [0]

    async def body(_: object) -> None:
        left[0] += 1
        await trio.lowlevel.checkpoint()
        raise Boom if left[0] % 3 else LookupError

    decider = Decider({LookupError: Resume})
    kept = Child("kept", body, resource=lambda: Kept(scene, "kept"), decider=decider)
    async with scene.tree(Supervisor("app", [drained("steady"), kept], limit=None)):
        await trio.sleep_forever()


@busy
async def groups(scene: Scene) -> None:
    """Groups of nested supervisors restart, limits are passed."""
    inner = Supervisor("inner", [fails(scene, "x", 10**9), drained("y")], limit=Limit(2))
    other = Supervisor("other", [drained("p"), fails(scene, "q", 10**9)], strategy="one_for_all", limit=None)
    async with scene.tree(Supervisor("app", [drained("steady"), inner, other], limit=None)):
        await trio.sleep_forever()


@busy
async def losses(scene: Scene) -> None:
    """A server that dies with messages in hand; one message is put back each time."""

    async def server(inbox: Any) -> None:
        async for message in inbox:
            if message.value == "die":
                raise Boom
            message.reply(message.value)

    spec = Supervisor("app", [drained("steady"), Child("server", server, mailbox=4)], limit=None)
    async with scene.tree(spec) as tree:
        while True:
            try:
                await tree["app/server"].call("die")
            except CallLost:
                pass


@busy
async def trees(scene: Scene) -> None:
    """Trees are opened and left again."""
    while True:
        async with scene.tree(Supervisor("app", [drained("steady"), drained("other")])) as tree:
            try:
                await tree["app/other"].remove()
            except Refused:
                pass
        scene.seen.clear()
        scene.trees.clear()


async def _device(scene: Scene, host: ProcessHost) -> None:
    """A device worker under load whose context is killed again and again."""

    async def calls() -> None:
        for number in itertools.count():
            await ref.call(ExecuteBatch(f"call-{number}", "c", on_loss="migrate"))

    worker = device_worker("worker", Talking(Scripted(8, delay=0.002)), host=host, limit=None, backoff=None)
    async with scene.tree(Supervisor("app", [drained("steady"), worker])) as tree:
        ref = tree["app/worker"]
        await tree.root.add(Child("client", calls))
        for number in itertools.count():
            batch = ExecuteBatch(f"stream-{number}", "s", on_loss="migrate")
            async with ref.stream(batch) as stream:
                async for chunk in stream:
                    if chunk.index == 3 and number % 3 == 0:
                        os.kill((await ref.ready()).pid, signal.SIGKILL)
                        break
            if number % 5 == 4:
                with suppress(RebuildSuperseded, ContextDied):
                    await rebuild(ref)


@busy_device
async def forked_device(scene: Scene) -> None:
    """With a fork server, and one that stands by."""
    await _device(scene, ProcessHost(standby=1))


@busy_device
async def spawned_device(scene: Scene) -> None:
    """Cold."""
    await _device(scene, ProcessHost(start="spawn"))


def work() -> None:
    """A process that runs one program after another, each until it is interrupted; it reads which one from standard input."""
    for line in sys.stdin:
        name, scene, silence, raised = line.strip(), Scene(), Silence(), None
        before = there()
        with silence.kept():
            try:
                trio.run(_begun, (BUSY | BUSY_DEVICES)[name], scene)
            except BaseException as exc:
                raised = exc
            remains = left(before)
            gc.collect()
        wrong = judge(scene, raised) or (silence.broken or None) or remains
        print(repr(wrong) if wrong else "well", flush=True)


async def _begun(program: Program, scene: Scene) -> None:
    """Run it, and only then ask for the interrupt: one that comes while Trio sets itself up leaves Trio's own descriptors open."""
    print("go", flush=True)
    await program(scene)


def campaign(
    times: int,
    *,
    seed: int = 0,
    quiet: bool = False,
    programs: Collection[str] = BUSY,
    latest: float = LATEST,
) -> int:
    """Interrupt one of the programs so many times. Gives how many ended badly."""
    chance, worker = random.Random(seed), None
    ended: Counter[str] = Counter()
    for number in tracked("interrupts", range(times), times):
        name = list(programs)[number % len(programs)]
        worker = worker or _worker()
        verdict = _interrupt(worker, name, chance.random() * latest)
        if verdict != "well":
            print(f"{name}: {verdict}", flush=True)
            worker.kill()
            worker.communicate()
            worker = None
        ended[name] += verdict != "well"
    if worker is not None:
        worker.communicate()
    if not quiet:
        print(f"{times} interrupted at random moments, {ended.total()} ended badly {dict(+ended)}")
    return ended.total()


def devices(times: int, *, seed: int = 0, quiet: bool = False) -> int:
    """Likewise one of those with a device worker."""
    return campaign(times, seed=seed, quiet=quiet, programs=BUSY_DEVICES, latest=LATEST_DEVICE)


def _worker() -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _WORK]
    return subprocess.Popen(
        command,
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )


_WORK = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.ctrl_c.moments import work
work()
"""


def _interrupt(worker: subprocess.Popen[str], name: str, after: float) -> str:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{name}\n")
    said = worker.stdout.readline()
    if said != "go\n":
        return f"said {said!r}"
    time.sleep(after)
    os.kill(worker.pid, 2)
    if not select.select([worker.stdout], [], [], PATIENCE)[0]:
        return "hangs"
    return worker.stdout.readline().strip() or "the process died"
