"""Check that memory is flat over restarts, group restarts, and members that come and go (R31).

    python -m benchmarks.memory

makes 100,000 restarts of a leaf, 1,000 of a group of 100, 10,000 of a supervisor whose children have an hour to start, and adds
10,000 members of each kind: leaves, supervisors of two leaves, and failing leaves with chosen names.

For each it prints the memory that Python has allocated at ten points, the slope over them, and whether that is flat: less than
one byte a start. Exit status 1 if one is not.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence

import trio
from attrs import define, field

from supervise import Child, Inbox, Limit, Pool, Supervisor, open_tree
from supervise.testing import idle, nothing, run_virtual

POINTS = 10
BYTES_PER_START = 1.0
"""A list entry has 8 bytes, the smallest object 32: with less than one byte for each started child nothing is kept."""
BREATH = 64 * 1024
"""Bytes by which a run may always grow: heaps of timers fill and are swept."""
GROUP = 100


@define
class Meter:
    """Counts down turns, each of which starts `starts` children, and notes the memory at ten of them."""

    turns: int
    starts: int = 1
    left: int = field(init=False)
    points: list[int] = field(factory=list[int])
    over: trio.Event = field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.left = self.turns

    def turn(self) -> bool:
        """Count one turn. Returns False after the last."""
        self.left -= 1
        if self.left % (self.turns // POINTS) == 0:
            gc.collect()
            self.points.append(tracemalloc.get_traced_memory()[0])
        return self.left > 0

    def flat(self) -> bool:
        """Whether the memory grows by less than one small object for every few starts."""
        starts = self.turns * self.starts
        return self.slope() * starts < max(BREATH, BYTES_PER_START * starts)

    def slope(self) -> float:
        """Bytes per child started, by least squares over all points but the first, which fills caches."""
        ys = self.points[1:]
        mean_x, mean_y = (len(ys) - 1) / 2, sum(ys) / len(ys)
        above = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(ys))
        return above / sum((x - mean_x) ** 2 for x in range(len(ys))) / (self.turns // POINTS) / self.starts


def _failing(meter: Meter) -> Callable[[], Awaitable[None]]:
    """A body that fails at once until the meter has run out."""

    async def body() -> None:
        await trio.lowlevel.checkpoint()
        if not meter.turn():
            meter.over.set()
            await trio.sleep_forever()
        raise ValueError("the next one, please")

    return body


async def _until_over(tree: Supervisor, meter: Meter) -> None:
    async with open_tree(tree, sinks=[lambda _: None]):
        await meter.over.wait()


def leaf(turns: int) -> Meter:
    """Restarts of one leaf."""
    meter = Meter(turns)
    run_virtual(_until_over, Supervisor("app", [Child("leaf", _failing(meter))], limit=None), meter, seed=0)
    return meter


def group(turns: int) -> Meter:
    """Restarts of a group."""
    meter = Meter(turns, starts=GROUP)
    others = [Child(str(number), trio.sleep_forever) for number in range(GROUP - 1)]
    spec = Supervisor("app", [Child("first", _failing(meter)), *others], strategy="one_for_all", limit=None)
    run_virtual(_until_over, spec, meter, seed=0)
    return meter


def members(turns: int) -> Meter:
    """Members added to a pool, which answer one call and end."""
    meter = Meter(turns)
    pool = Pool("pool", Child("member", _answer_once, mailbox=1, restart="temporary"))
    run_virtual(_come_and_go, pool, meter, seed=0)
    return meter


def nested(turns: int) -> Meter:
    """Restarts of a supervisor, one of whose children has long timeouts: a timer must not keep an ended machine."""
    meter = Meter(turns, starts=3)
    slow = Child("slow", idle, resource=nothing, start_timeout=3600, drain=3600, grace=3600)
    inner = Supervisor("inner", [slow, Child("first", _failing(meter))], limit=Limit(0, within=1))
    run_virtual(_until_over, Supervisor("app", [inner], limit=None), meter, seed=0)
    return meter


def supervisors(turns: int) -> Meter:
    """Members that are supervisors, and are added and stopped: nothing is kept of the paths below them."""
    meter = Meter(turns, starts=3)
    member = Supervisor(
        "member", [Child("a", trio.sleep_forever), Child("b", trio.sleep_forever)], restart="temporary"
    )
    run_virtual(_start_and_stop, Pool("pool", member), meter, None, seed=0)
    return meter


def named(turns: int) -> Meter:
    """Members with chosen names that fail: neither their names nor their failures are kept for ever."""
    meter = Meter(turns)
    pool = Pool("pool", Child("member", _fail_with_much, mailbox=1, restart="temporary"))
    run_virtual(_start_and_stop, pool, meter, "n{}".format, seed=0)
    return meter


async def _fail_with_much(inbox: Inbox) -> None:
    much = bytearray(10_000)
    await inbox.receive()
    raise ValueError(len(much))


async def _start_and_stop(pool: Pool, meter: Meter, name: Callable[[int], str] | None) -> None:
    async with open_tree(Supervisor("app", [pool]), sinks=[]) as tree:
        more = True
        while more:
            ref = await tree[pool].add(name=None if name is None else name(meter.left))
            if name is None:
                await ref.stop()
            else:
                await ref.send(None)
                await ref.ended()
            more = meter.turn()


async def _answer_once(inbox: Inbox) -> None:
    (await inbox.receive()).reply()


async def _come_and_go(pool: Pool, meter: Meter) -> None:
    async with open_tree(Supervisor("app", [pool]), sinks=[]) as tree:
        more = True
        while more:
            ref = await tree[pool].add()
            await ref.call(None)
            await ref.ended()
            more = meter.turn()


def measure(question: Callable[[int], Meter], turns: int) -> Meter:
    """Run one question with allocations traced."""
    tracemalloc.start(1)
    try:
        return question(turns)
    finally:
        tracemalloc.stop()


QUESTIONS = [
    (leaf, 100_000), (group, 1_000), (nested, 10_000), (members, 10_000), (supervisors, 10_000), (named, 10_000),
]  # fmt: skip


def main(questions: Sequence[tuple[Callable[[int], Meter], int]]) -> int:
    """Print a line for each question. Returns 1 if the memory of one is not flat."""
    status = 0
    for question, turns in questions:
        meter = measure(question, turns)
        status |= not meter.flat()
        kilobytes = " ".join(f"{point / 1024:.0f}" for point in meter.points)
        verdict = "flat" if meter.flat() else "NOT FLAT"
        print(
            f"{question.__name__} x {turns}: {kilobytes} kB; {meter.slope():.3f} bytes a start; {verdict}",
            flush=True,
        )
    return status


if __name__ == "__main__":
    sys.exit(main(QUESTIONS))
