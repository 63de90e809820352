"""A fleet of eight contexts on three machines loses one of them under 64 streams (D6, D12, D16).

    python -m benchmarks.fleet                  all processes of a machine are killed at once, then a machine's link is cut
    python -m benchmarks.fleet --loss kill      only the first
    python -m benchmarks.fleet --apart          prefills of one context take place one after the other, not together
    python -m benchmarks.fleet --torch          the packaged model instead of one that sleeps
    python -m benchmarks.fleet --rounds 5       five rounds of each

Each machine is an `sshd` of our own, for the cut in a network namespace of its own. The gap of a stream is its longest time between
two tokens, of which the second came after the loss. It is compared with two measurements of the same round: the detection, from the
loss to the failure of the last context there, and one prefill alone, the wait for the first token of a request while no other one
runs. The exit status is 1 if a token is lost, doubled or wrong, or if the longest gap is more than the detection and three prefills;
that limit does not hold for `--apart`, where a context has several prefills to do, nor for `--torch`, where the cores decide. It is 2
if `sshd` is not installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import trio
from attrs import define, field, frozen

from benchmarks import loopback, namespaces
from benchmarks.loopback import Server, below
from benchmarks.prefilling import Prefilling, letters
from runners.errors import InferenceError
from runners.hosts.remote.ssh import SshHost
from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, RunnerSpec, RunnerStart, Sampling
from runners.worker import device_worker
from supervise import Ref, events, open_tree

MEMBERS = (3, 3, 2)
"""How many contexts each machine has; the first one is lost."""
STREAMS, PLACES = 64, 16
PROMPT, TOKENS, STRIKE_AT = 300, 60, 15
LEASE = 2.0
MOST = 3
"""Prefills beyond the detection."""


@frozen
class Node:
    """A machine, and what loses it."""

    server: Server
    lose: Callable[[], object]

    def member(self) -> SshHost:
        """A host for one context there."""
        return self.server.host(lease=LEASE)


@contextmanager
def killed() -> Generator[list[Node]]:
    """Machines that are lost when all of their processes are killed."""
    with ExitStack() as stack:
        nodes = list[Node]()
        for _ in MEMBERS:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(loopback.serving(Path(folder)))
            nodes.append(Node(server, partial(_kill, server)))
        yield nodes


def _kill(server: Server) -> None:
    assert server.process is not None
    for pid in (server.process.pid, *below(server.process.pid)):
        with suppress(ProcessLookupError):  # one of them may end with another
            os.kill(pid, signal.SIGKILL)


@contextmanager
def cut() -> Generator[list[Node]]:
    """Machines that are lost when their link is cut."""
    with namespaces.network(len(MEMBERS)) as spaces, ExitStack() as stack:
        nodes = list[Node]()
        for space in spaces:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            server = stack.enter_context(
                loopback.serving(Path(folder), address=space.address, port=2222, inside=space.inside)
            )
            nodes.append(Node(server, space.cut))
        yield nodes


LOSSES = {"kill": killed, "cut": cut}


# --- what the streams see


@define
class Seen:
    """What the consumer of one stream has got: its text, the time of each token, and what was not the next one."""

    request: ExecuteBatch
    whole: str
    text: str = ""
    times: list[float] = field(factory=list[float])
    moved: bool = False
    lost: int = 0
    doubled: int = 0

    async def consume(self, worker: Ref) -> None:
        """Take the whole stream. One that ends with an error has lost the rest of its tokens."""
        with suppress(InferenceError):
            async with worker.stream(self.request) as chunks:
                async for chunk in chunks:
                    self.lost += max(0, chunk.index - len(self.times))
                    self.doubled += max(0, len(self.times) - chunk.index)
                    self.times += [perf_counter()] * len(chunk.token_ids)
                    self.text += chunk.text
                    self.moved |= chunk.usage is not None and chunk.usage.replayed > 0
        self.lost += max(0, TOKENS - len(self.times))

    def gap(self, struck: float) -> float:
        """Its longest time between two tokens, in seconds, if the second came after this moment."""
        return max(b - a for a, b in pairwise(self.times) if b > struck)


@frozen
class Round:
    """The seconds of one round, and how many tokens were not as they should be."""

    detection: float
    prefill: float
    gap: float
    median_gap: float
    others_gap: float
    lost: int
    doubled: int
    wrong: int

    @property
    def prefills(self) -> float:
        """The longest gap beyond the detection, in prefills."""
        return (self.gap - self.detection) / self.prefill

    @property
    def is_whole(self) -> bool:
        """Whether each token came once, and was the right one."""
        return not (self.lost or self.doubled or self.wrong)


def _requests(*, torch: bool) -> Iterator[Seen]:
    runner = TorchLM(streams=1).build(RunnerStart(incarnation=1)) if torch else None
    for number in range(STREAMS):
        prompt = f"{number:0{PROMPT}}" if runner is None else "The "
        sampling = Sampling(max_tokens=TOKENS, temperature=0.0 if runner is None else 0.8, seed=number)
        request = ExecuteBatch(f"{number}", prompt, sampling=sampling)
        if runner is None:
            whole = letters(prompt, TOKENS)
        else:
            whole = "".join(chunk.text for chunk in runner.execute(request))
        yield Seen(request, whole)


async def _round(nodes: Sequence[Node], runner: RunnerSpec, them: Sequence[Seen]) -> Round:
    """The first of these machines is lost when every stream has some tokens."""
    failed = defaultdict[str, list[float]](list)

    def note(event: events.Event) -> None:
        if isinstance(event, events.Failed) and event.path.endswith("/context"):
            failed[event.path].append(perf_counter())
            print(f"{event.path}: {event.exc}", file=sys.stderr)

    hosts = [node.member() for node, count in zip(nodes, MEMBERS, strict=True) for _ in range(count)]
    worker = device_worker("llm", runner, hosts=hosts, limit=None)
    async with open_tree(worker, sinks=[note]) as tree:
        for node in tree[worker].status().children:
            await tree[node.path].ready()
        prefill = statistics.median([await _alone(tree[worker], them[0].request, n) for n in range(3)])
        async with trio.open_nursery() as nursery:
            for seen in them:
                nursery.start_soon(seen.consume, tree[worker])
            while min(len(seen.times) for seen in them) < STRIKE_AT:  # noqa: ASYNC110 - An Event would cost time in the consumers, which are measured.
                await trio.sleep(0.005)
            struck = perf_counter()
            nodes[0].lose()
    noticed = [
        next(moment for moment in failed[f"llm/context-{number}/context"] if moment > struck)
        for number in range(MEMBERS[0])
    ]
    moved = [seen.gap(struck) for seen in them if seen.moved]
    others = [seen.gap(struck) for seen in them if not seen.moved]
    return Round(
        detection=max(noticed) - struck,
        prefill=prefill,
        gap=max(*moved, *others),
        median_gap=statistics.median(moved),
        others_gap=max(others),
        lost=sum(seen.lost for seen in them),
        doubled=sum(seen.doubled for seen in them),
        wrong=sum(seen.text != seen.whole for seen in them),
    )


async def _alone(worker: Ref, like: ExecuteBatch, number: int) -> float:
    """The seconds until the first token of a request that is alone."""
    request = ExecuteBatch(f"alone {number}", like.prompt, sampling=Sampling(max_tokens=1))
    began = perf_counter()
    await worker.call(request)
    return perf_counter() - began


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("--loss", choices=tuple(LOSSES))
    parser.add_argument("--rounds", type=int, default=3)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--apart", action="store_true")
    kinds.add_argument("--torch", action="store_true")
    options = parser.parse_args(arguments)
    if why := loopback.missing():
        print(why, file=sys.stderr)
        return 2
    runner: RunnerSpec = (
        TorchLM(streams=PLACES) if options.torch else Prefilling(streams=PLACES, together=not options.apart)
    )
    good = True
    for loss in [options.loss] if options.loss else LOSSES:
        if loss == "cut" and (why := namespaces.missing()):
            print(f"cut: {why}", file=sys.stderr)
            continue
        rounds = [_one(loss, runner, torch=options.torch) for _ in range(options.rounds)]
        good &= all(each.is_whole for each in rounds)
        if not (options.apart or options.torch):
            good &= all(each.prefills <= MOST for each in rounds)
        _report(loss, rounds)
    return 0 if good else 1


def _one(loss: str, runner: RunnerSpec, *, torch: bool) -> Round:
    with LOSSES[loss]() as nodes:
        return trio.run(_round, nodes, runner, list(_requests(torch=torch)))


def _report(loss: str, rounds: Sequence[Round]) -> None:
    worst = max(rounds, key=lambda each: each.prefills)
    left = sum(MEMBERS[1:])
    print(
        f"{loss}: {len(rounds)} rounds, {STREAMS} streams, {MEMBERS[0]} of {sum(MEMBERS)} contexts lost, {left} left"
    )
    for name, value in (
        ("detection, ms", statistics.median(1e3 * each.detection for each in rounds)),
        ("one prefill alone, ms", statistics.median(1e3 * each.prefill for each in rounds)),
        ("longest gap, ms", statistics.median(1e3 * each.gap for each in rounds)),
        ("median gap of the streams there, ms", statistics.median(1e3 * each.median_gap for each in rounds)),
        ("longest gap of the others, ms", statistics.median(1e3 * each.others_gap for each in rounds)),
    ):
        print(f"  {name:46} {value:10,.0f}")
    print(f"  {'longest gap beyond the detection, prefills':46} {worst.prefills:10.2f}   (the worst round)")
    wrong = {what: sum(getattr(each, what) for each in rounds) for what in ("lost", "doubled", "wrong")}
    print(f"  {'tokens lost, doubled; texts wrong':46} {', '.join(map(str, wrong.values())):>10}")
    print(
        json.dumps(
            {
                "loss": loss,
                "load": os.getloadavg()[0],
                **wrong,
                "rounds": [
                    {
                        "detection": round(each.detection, 3),
                        "prefill": round(each.prefill, 3),
                        "gap": round(each.gap, 3),
                        "median": round(each.median_gap, 3),
                        "others": round(each.others_gap, 3),
                    }
                    for each in rounds
                ],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
