"""This project. The restart storm has a sink; the other works have none, since the floors report no events either."""

from __future__ import annotations

import gc
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from benchmarks.adapters.trio_floor import Group, Victim, timed_calls, timed_sends
from benchmarks.work import Arrivals, Boom, Memory, Result, Storm, now, percentiles
from supervise import Child, Decider, Escalate, Inbox, Limit, Supervisor, Tree, TreeFailed, open_tree
from supervise.events import Event, Sink

MANY = Limit(10**9, within=1)
"""The limit that Erlang has in its storm too: it is charged, and never passed."""
TURNS = 50


@asynccontextmanager
async def running(
    children: Sequence[Child], *, sinks: Sequence[Sink] = (), **options: Any
) -> AsyncGenerator[Tree, None]:
    """A running tree with one supervisor over these children."""
    async with open_tree(Supervisor("app", children, **{"limit": MANY, **options}), sinks=sinks) as tree:
        yield tree


def start_stop(n: int) -> Result:
    """Children start and stop in order, each ready, or ended, before the next. The declaration is timed separately."""
    return trio.run(_start_stop, n)


async def _start_stop(n: int) -> Result:
    everyone = trio.Event()
    arrivals = Arrivals(n, everyone.set)

    async def idle() -> None:
        arrivals.up()
        await trio.sleep_forever()

    memory, begin = Memory(), now()
    children = [Child(str(number), idle) for number in range(n)]
    declared = now()
    async with running(children):
        await everyone.wait()
        up = now()
        kilobytes = memory.per_child(n)
        stop = now()
    return {
        "declare_s": declared - begin,
        "start_s": up - declared,
        "stop_s": now() - stop,
        "kb_per_child": kilobytes,
    }


def start_tuned(few: int, many: int) -> Result:
    """How much more a child costs among many, with the collector set as docs/project/performance.md recommends."""
    gc.set_threshold(50_000, 20, 100)
    small, large = start_stop(few), start_stop(many)
    return {
        f"{what}_growth": (large[f"{what}_s"] / many) / (small[f"{what}_s"] / few)
        for what in ("start", "stop")
    }


def storm(n: int) -> Result:
    """Restarts of one leaf, with a sink that counts events."""
    return trio.run(_storm, n)


async def _storm(n: int) -> Result:
    over = trio.Event()
    storm = Storm(n, over.set)
    seen = 0

    async def child() -> None:
        if storm.hit():
            raise Boom
        await trio.sleep_forever()

    def sink(_: Event) -> None:
        nonlocal seen
        seen += 1

    async with running([Child("leaf", child)], sinks=[sink]):
        await over.wait()
    assert seen >= 4 * n
    return storm.result()


def latency(siblings: int, n: int) -> Result:
    """Crashes of the last of many children."""
    return trio.run(_latency, siblings, n)


async def _latency(siblings: int, n: int) -> Result:
    over = trio.Event()
    victim = Victim(n, over.set)
    others = [Child(str(number), trio.sleep_forever) for number in range(siblings)]
    async with running([*others, Child("victim", victim.body)]):
        await over.wait()
    return percentiles(victim.seconds)


def group(n: int) -> Result:
    """A one_for_all restart: the others stop in reverse, one by one, then all start in order, each ready before the next."""
    return trio.run(_group, n)


async def _group(n: int) -> Result:
    group = Group(n)
    children = [Child(str(number), body) for number, body in enumerate(group.bodies(n))]
    async with running(children, strategy="one_for_all"):
        return await group.measure()


def call(n: int, callers: int) -> Result:
    """Calls to a mailbox that outlives incarnations."""
    return trio.run(_call, n, callers)


async def _call(n: int, callers: int) -> Result:
    async def server(inbox: Inbox) -> None:
        state = 0
        async for message in inbox:
            state += message.value
            message.reply(state)

    child = Child("server", server, mailbox=1024)
    async with running([child]) as tree:
        ref = tree[child]

        async def caller() -> None:
            for _ in range(n // callers):
                await ref.call(1)

        return await timed_calls(n, callers, caller)


def send(n: int) -> Result:
    """Messages that the body takes one by one."""
    return trio.run(_send, n, _take_one_by_one)


def send_many(n: int) -> Result:
    """Messages that the body takes up to 64 at a time."""
    return trio.run(_send, n, _take_many)


Taker = Callable[[Inbox, int, trio.Event], Any]


async def _take_one_by_one(inbox: Inbox, n: int, done: trio.Event) -> None:
    state = 0
    async for message in inbox:
        state += message.value
        if state == n:
            done.set()


async def _take_many(inbox: Inbox, n: int, done: trio.Event) -> None:
    state = 0
    while True:
        for message in await inbox.receive_many(64):
            state += message.value
        if state == n:
            done.set()


async def _send(n: int, take: Taker) -> Result:
    done = trio.Event()

    async def server(inbox: Inbox) -> None:
        await take(inbox, n, done)

    child = Child("server", server, mailbox=n)
    async with running([child]) as tree:
        return await timed_sends(n, tree[child].send_nowait, done)


def resume(n: int) -> Result:
    """Checkpoints in a child, in one that owns a resource, and in a bare task, in turns; the fastest turn of each.

    `frames`: frames of this project above the body; `overhead`: the extra cost of a checkpoint against the bare task, in percent.
    """
    bare, plain, owning = _Fastest(), _Fastest(), _Fastest()
    for _ in range(TURNS):
        bare.note(*trio.run(_checkpoints, n // TURNS))
        plain.note(*trio.run(_checkpoints_in_child, n // TURNS, None))
        owning.note(*trio.run(_checkpoints_in_child, n // TURNS, _resource))
    return {
        "frames": plain.frames,
        "overhead": 100 * (plain.seconds / bare.seconds - 1),
        "frames_owning": owning.frames,
        "overhead_owning": 100 * (owning.seconds / bare.seconds - 1),
    }


class _Fastest:
    def __init__(self) -> None:
        self.seconds = float("inf")
        self.frames = 0

    def note(self, seconds: float, frames: int) -> None:
        self.seconds = min(self.seconds, seconds)
        self.frames = frames


async def _checkpoints(n: int) -> tuple[float, int]:
    """The seconds that the checkpoints take, and the frames of this project above this one."""
    begin = now()
    for _ in range(n):
        await trio.lowlevel.checkpoint()
    return now() - begin, _frames_of_ours()


def _frames_of_ours() -> int:
    frames, frame = 0, inspect.currentframe()
    while frame is not None:
        frames += frame.f_globals["__name__"].startswith("supervise.")
        frame = frame.f_back
    return frames


async def _checkpoints_in_child(n: int, resource: Any) -> tuple[float, int]:
    result: list[tuple[float, int]] = []
    over = trio.Event()

    async def body(*_: object) -> None:
        result.append(await _checkpoints(n))
        over.set()
        await trio.sleep_forever()

    async with running([Child("child", body, resource=resource)]):
        await over.wait()
    return result[0]


@asynccontextmanager
async def _resource() -> AsyncGenerator[None, None]:
    yield


def deep(depth: int) -> Result:
    """Every supervisor escalates: the failure goes up, then everything stops in order."""
    return trio.run(_deep, depth, {"decider": Decider(default=Escalate)})


def deep_limit(depth: int) -> Result:
    """No supervisor allows a restart, as in Erlang: each level ends before the one above is informed."""
    return trio.run(_deep, depth, {"limit": Limit(0)})


async def _deep(depth: int, options: dict[str, Any]) -> Result:
    trigger = trio.Event()
    crashed = 0.0

    async def leaf() -> None:
        nonlocal crashed
        await trigger.wait()
        crashed = now()
        raise Boom

    spec: Child | Supervisor = Child("leaf", leaf)
    for level in range(depth):
        spec = Supervisor(f"level-{level}", [spec], **options)
    try:
        async with open_tree(Supervisor("app", [spec], **options), sinks=[]):
            trigger.set()
            await trio.sleep_forever()
    except TreeFailed:
        return {"s": now() - crashed}
    raise AssertionError("the tree outlived its failure")
