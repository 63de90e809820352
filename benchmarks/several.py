"""Workers over several contexts: what a death, a rolling rebuild and a new runner cost the streams (D12).

`benchmarks.device` runs these, and draws `picture`.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from time import perf_counter

import trio
from attrs import define, field

from benchmarks.svg import FAINT, GRID, INK, Picture
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Scripted, expected, letter
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker, rebuild, replace
from supervise import Ref, Supervisor, open_tree

TOKENS = 240
STRIKE_AT = 20
"""The index of the token at which the context is killed."""
CONTEXTS, STREAMS = 8, 64
"""Of the group that loses one context a second."""
DRAIN = 10.0
"""Seconds that the begun streams of a context get before it gets the new runner."""
DRAWN = 16
"""How many streams the picture has."""


@define
class Seen:
    """What the consumer of one stream saw: its text, and when each token came, in seconds."""

    request: ExecuteBatch
    text: str = ""
    asked: float = 0.0
    times: list[float] = field(factory=list[float])

    @property
    def longest_pause(self) -> float:
        """Milliseconds between two tokens, at most."""
        return max((b - a for a, b in zip(self.times, self.times[1:], strict=False)), default=0.0) * 1000

    @property
    def wait(self) -> float:
        """Milliseconds until the first token."""
        return (self.times[0] - self.asked) * 1000

    async def consume(self, worker: Ref, on_token: Callable[[int], object] = lambda _: None) -> None:
        """Take the whole stream. An error of it is an error of the measurement."""
        self.asked = perf_counter()
        async with worker.stream(self.request) as chunks:
            async for chunk in chunks:
                assert chunk.index == len(self.times), "a token was lost or doubled"
                self.times += [perf_counter()] * len(chunk.token_ids)
                self.text += chunk.text
                on_token(len(self.times))


def _request(name: str, most: int = TOKENS, seed: int = 1) -> ExecuteBatch:
    return ExecuteBatch(name, "The ", sampling=Sampling(max_tokens=most, temperature=0.7, seed=seed))


def _several(runner: TorchLM | Scripted, count: int, device: str = "cpu") -> Supervisor:
    return device_worker("llm", runner, hosts=[ProcessHost(device)] * count, limit=None, backoff=None)


async def _kill_one(worker: Ref, number: int) -> None:
    """Kill the process of a context, if it is up."""
    context = worker.tree[f"{worker.path}/context-{number}/context"]
    if context.status().state == "up":
        os.kill((await context.ready()).pid, signal.SIGKILL)


# --- a death in mid-stream, with another context beside it


async def failover(count: int, device: str = "cpu") -> list[float]:
    """The milliseconds that a stream pauses when its context is killed, and another one continues it. Its text must be whole."""
    gaps: list[float] = []
    worker = _several(TorchLM(), 2, device)
    async with open_tree(worker, sinks=[]) as tree:
        whole = Seen(_request("whole"))
        await whole.consume(tree[worker])
        for turn in range(count):
            seen = Seen(_request(f"{turn}"))
            async with trio.open_nursery() as nursery:
                kill = partial(_at_the_strike, nursery, tree[worker], turn)
                await seen.consume(tree[worker], kill)
            assert seen.text == whole.text
            gaps.append(seen.longest_pause)
            for node in tree[worker].status().children:
                await tree[node.path].ready()
    return gaps


def _at_the_strike(nursery: trio.Nursery, worker: Ref, turn: int, tokens: int) -> None:
    if tokens == STRIKE_AT:
        nursery.start_soon(_kill_busy, worker, turn)


async def _kill_busy(worker: Ref, turn: int) -> None:
    """Kill the context in which the only stream is open."""
    for node in worker.status().children:
        state = await worker.tree[node.path].ready()
        if str(turn) in state._context.open:
            os.kill(state.pid, signal.SIGKILL)


# --- a group that loses one context a second


async def group_under_kills(seconds: float) -> list[float]:
    """The longest pause of each of many streams, in milliseconds, while a random context of eight is killed each second."""
    runner = Scripted(2_000, delay=0.0005, streams=STREAMS)
    worker, pauses = _several(runner, CONTEXTS), list[float]()
    async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
        ends = trio.current_time() + seconds
        nursery.start_soon(_kill_each_second, tree[worker], ends)
        for number in range(STREAMS):
            nursery.start_soon(_stream_until, tree[worker], number, ends, pauses)
    return pauses


async def _kill_each_second(worker: Ref, ends: float) -> None:
    chance = random.Random(CONTEXTS)
    while trio.current_time() < ends:
        await trio.sleep(1)
        await _kill_one(worker, chance.randrange(CONTEXTS))


async def _stream_until(worker: Ref, number: int, ends: float, pauses: list[float]) -> None:
    turn = 0
    while trio.current_time() < ends:
        seen = Seen(_request(f"{number}.{turn}", 2_000, seed=number))
        await seen.consume(worker)
        assert seen.text == "".join(map(letter, expected(seen.request, 2_000)))
        pauses.append(seen.longest_pause)
        turn += 1


async def scripted_failover(count: int) -> list[float]:
    """The pause of streams of the same runner, at the same load, around one death: the floor of the group under kills."""
    runner = Scripted(2_000, delay=0.0005, streams=STREAMS)
    worker, pauses = _several(runner, CONTEXTS), list[float]()
    async with open_tree(worker, sinks=[]) as tree:
        for turn in range(count):
            them = [Seen(_request(f"{turn}.{number}", 2_000, seed=number)) for number in range(STREAMS)]
            async with trio.open_nursery() as nursery:
                for seen in them:
                    nursery.start_soon(seen.consume, tree[worker])
                await trio.sleep(0.5)
                await _kill_one(tree[worker], turn % CONTEXTS)
            pauses.append(max(seen.longest_pause for seen in them))
            for node in tree[worker].status().children:
                await tree[node.path].ready()
    return pauses


# --- orders under load


async def waits_during(order: Callable[[Ref], Awaitable[object]]) -> list[float]:
    """The milliseconds that each request waits for its first token while an order is carried out. None may fail."""
    runner = Scripted(200, delay=0.001, streams=8)
    worker, waits, over = _several(runner, 3), list[float](), trio.Event()
    async with open_tree(worker, sinks=[]) as tree, trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(_request_after_request, tree[worker], number, waits, over)
        await trio.sleep(0.5)
        await order(tree[worker])
        await trio.sleep(0.5)
        over.set()
    return waits


async def _request_after_request(worker: Ref, number: int, waits: list[float], over: trio.Event) -> None:
    turn = 0
    while not over.is_set():
        seen = Seen(_request(f"{number}.{turn}", 200))
        await seen.consume(worker)
        waits.append(seen.wait)
        turn += 1


async def swap(worker: Ref) -> None:
    """Give the worker another runner, of shorter streams."""
    await replace(worker, Scripted(150, delay=0.001, streams=8), drain=DRAIN)


ORDERS: dict[str, Callable[[Ref], Awaitable[object]]] = {"a rolling rebuild": rebuild, "a new runner": swap}


# --- the picture


async def streams_over_a_death(contexts: int) -> tuple[list[Seen], float]:
    """Sixteen streams of the model, and the moment at which one context of the worker is killed."""
    worker, struck = _several(TorchLM(streams=DRAWN), contexts), list[float]()
    them = [Seen(_request(f"{number}", 170, seed=number)) for number in range(DRAWN)]
    async with open_tree(worker, sinks=[]) as tree:
        first = await tree[f"{tree[worker].path}/context-0/context"].ready()

        def strike(tokens: int) -> None:
            """In the consumer of a token, so that no stream goes on while the process is looked for."""
            if tokens >= 2 * STRIKE_AT and not struck and all(seen.times for seen in them):
                os.kill(first.pid, signal.SIGKILL)
                struck.append(perf_counter())

        async with trio.open_nursery() as nursery:
            for seen in them:
                nursery.start_soon(seen.consume, tree[worker], strike)
    return them, struck[0]


WIDTH, LANE, LEFT, TOP = 900, 9, 120, 92


def picture() -> str:
    """The tokens of sixteen streams over time, through the loss of a context, with one context and with two."""
    panels = [(count, *trio.run(streams_over_a_death, count)) for count in (1, 2)]
    end = max(seen.times[-1] - struck for _, them, struck in panels for seen in them)
    begin = min(seen.times[0] - struck for _, them, struck in panels for seen in them)
    height = DRAWN * LANE
    drawn = Picture(WIDTH, TOP + len(panels) * (height + 60), "Sixteen streams, and the loss of a context")
    drawn.text(
        20,
        50,
        "Each mark is a token of the packaged model at its consumer. The red line is a SIGKILL.",
        color=FAINT,
    )

    def place(seconds: float) -> float:
        return LEFT + (seconds - begin) / (end - begin) * (WIDTH - LEFT - 30)

    for number, (count, them, struck) in enumerate(panels):
        top = TOP + number * (height + 60)
        gaps = [seen.longest_pause for seen in them]
        words = "one context, restarted" if count == 1 else f"{count} contexts: the other one goes on"
        longest = f"longest pause {max(gaps):.0f} ms, median {statistics.median(gaps):.0f} ms"
        drawn.text(20, top - 10, f"{words}; {longest}", color=INK, weight=600)
        for lane, seen in enumerate(sorted(them, key=lambda seen: seen.longest_pause)):
            y = top + lane * LANE + LANE / 2
            drawn.line(LEFT, y, WIDTH - 30, y, color=GRID)
            drawn.ticks([place(moment - struck) for moment in seen.times], y, LANE - 3, color="#0969da")
        drawn.line(place(0), top, place(0), top + height, color="#cf222e", width=2)
        for tenths in range(int(begin * 10), int(end * 10) + 1):
            label = f"{tenths / 10:+.1f} s" if tenths else "0"
            drawn.text(place(tenths / 10), top + height + 16, label, color=FAINT, anchor="middle", size=11)
    return str(drawn)
