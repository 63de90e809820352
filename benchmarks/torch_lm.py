"""Measure the gain of sharing the steps of one model. The floor is the fastest single stream, without padding or sharing.

    python -m benchmarks.torch_lm           16 streams of `TorchLM` against a plain loop with a cache, both greedy

The plain loop feeds one token at a time and attends only to existing positions, as one would write it for a single stream; it
would not be reproducible with several. Rounds of both alternate; the median of the ratios within a round counts. Exit status 1
below five times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from operator import truediv

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from runners.models.causal.sampling import draw
from runners.models.torch_lm import PACKAGED, PACKAGED_SHA256, TorchLM
from runners.models.torch_lm.checkpoint import Checkpoint, load
from runners.models.torch_lm.vocabulary import START
from runners.types import ExecuteBatch, ModelRunner, RunnerStart, Sampling

STREAMS = 16
TOKENS = 100
PROMPT = "The import statement"
ENOUGH = 5.0


class Plain:
    """One stream, as fast as plain PyTorch makes it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model, self._vocabulary = checkpoint.model, checkpoint.vocabulary
        shape = self._model.shape
        size = (shape.layers, 2, shape.heads, shape.context, shape.width // shape.heads)
        self._cache = torch.zeros(size)

    @torch.inference_mode()
    def run(self, temperature: float) -> str:
        """Write `TOKENS` tokens."""
        fed, tokens, text = 0, self._vocabulary.encode(START + PROMPT), ""
        for position in range(TOKENS):
            logits = self._model(
                torch.tensor(tokens), torch.arange(fed, fed + len(tokens)), self._attend(fed)
            )
            fed += len(tokens)
            if temperature:
                token = draw(logits[-1].numpy(), temperature, seed=7, position=position)
            else:
                token = int(logits[-1].argmax())
            text += self._vocabulary.decode([token])
            tokens = [token]
        return text

    def _attend(self, fed: int) -> Callable[[int, Tensor], Tensor]:
        def attend(layer: int, inward: Tensor) -> Tensor:
            end = fed + len(inward)
            queries, *rest = inward.view(len(inward), 3, self._model.shape.heads, -1).permute(1, 2, 0, 3)
            for cache, new in zip(self._cache[layer], rest, strict=True):
                cache[:, fed:end] = new
            keys, values = self._cache[layer, :, :, :end]
            seen = F.scaled_dot_product_attention(queries, keys, values, is_causal=len(inward) > 1)
            return seen.transpose(0, 1).flatten(1)

        return attend


def together(runner: ModelRunner, temperature: float, streams: int) -> list[str]:
    """The texts of `streams` streams, taken one chunk of each in turn, as a host does."""
    sampling = Sampling(max_tokens=TOKENS, temperature=temperature, seed=7)
    opened = [iter(runner.execute(ExecuteBatch(str(n), PROMPT, sampling=sampling))) for n in range(streams)]
    turns = [[next(stream).text for stream in opened] for _ in range(TOKENS)]
    return ["".join(texts) for texts in zip(*turns, strict=True)]


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measure(rounds: int, temperature: float) -> dict[str, float]:
    """Tokens per second of both, and their ratio within a round as `times`; medians over the rounds."""
    torch.set_num_threads(1)
    plain = Plain(load(PACKAGED, PACKAGED_SHA256))
    runner = TorchLM(streams=STREAMS).build(RunnerStart(incarnation=1))
    if not temperature:
        assert set(together(runner, 0, STREAMS)) == {plain.run(0)}, "both must write the same"
    single, shared = [], []
    for _ in range(rounds):
        single.append(TOKENS / _seconds(lambda: plain.run(temperature)))
        shared.append(STREAMS * TOKENS / _seconds(lambda: together(runner, temperature, STREAMS)))
    return {
        "temperature": temperature,
        "single": round(statistics.median(single)),
        "best_single": round(max(single)),
        "batched": round(statistics.median(shared)),
        "best_batched": round(max(shared)),
        "times": round(statistics.median(map(truediv, shared, single)), 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_lm")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args(argv)
    result = measure(arguments.rounds, arguments.temperature)
    print(
        f"one stream, plain: {result['single']} tokens/s; {STREAMS} streams together: {result['batched']} tokens/s; "
        f"{result['times']} times"
    )
    print(json.dumps(result))
    return 0 if result["times"] >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
