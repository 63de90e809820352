"""A program that `benchmarks.chaos` stops, continues and interrupts: `python -m benchmarks.interrupted SEED`.

It keeps four streams busy on a process host with a standby, compares each with the fault-free one, and prints a line when it is
up. When it is interrupted it ends in order, and prints its counters as one line of JSON.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import trio

from runners.errors import InferenceError
from runners.hosts.process.host import ProcessHost
from runners.models.scripted import Scripted, expected
from runners.types import ExecuteBatch, Sampling
from runners.worker import device_worker
from supervise import Limit, Ref, Supervisor, events, open_tree

TOKENS = 40


async def _call(worker: Ref, name: str, chance: random.Random, seen: Counter[str]) -> None:
    for number in range(sys.maxsize):
        sampling = Sampling(max_tokens=TOKENS, seed=chance.getrandbits(32))
        request = ExecuteBatch(f"{name} {number}", "go on", sampling=sampling)
        try:
            answer = await worker.call(request)
        except InferenceError as error:
            seen[type(error).__name__] += 1
        else:
            seen["completed" if answer.token_ids == expected(request, TOKENS) else "wrong"] += 1


async def _run(seed: int, seen: Counter[str]) -> None:
    def count(event: events.Event) -> None:
        if isinstance(event, events.Failed):
            seen[f"failed: {type(event.exc).__name__}"] += 1

    chance = random.Random(seed)
    host = ProcessHost(standby=1, first_chunk_timeout=2, next_chunk_timeout=1)
    limit = Limit(1000, within=60)
    worker = device_worker("llm", Scripted(TOKENS, delay=0.002), host=host, limit=limit, backoff=None)
    async with (
        open_tree(Supervisor("app", [worker], limit=limit), sinks=[count]) as tree,
        trio.open_nursery() as nursery,
    ):
        print("up", flush=True)
        for name in "abcd":
            nursery.start_soon(_call, tree[worker], name, chance, seen)


def main() -> None:
    """Run the program."""
    seen = Counter[str]()
    try:
        trio.run(_run, int(sys.argv[1]), seen)
    except* KeyboardInterrupt:
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
