"""Whether `TorchLM` is reproducible on this device: shown or refuted, and reported (D6)."""

import random

import pytest
from device import DEVICE, needs_device

from runners.models.torch_lm import TorchLM
from runners.types import ExecuteBatch, RunnerStart, Sampling

pytestmark = needs_device

REQUESTS = [
    ExecuteBatch(f"{n}", prompt, sampling=Sampling(seed=n, max_tokens=80, temperature=temperature))
    for n, (prompt, temperature) in enumerate(
        (prompt, temperature)
        for prompt in ("The import", "A class", "def ", "Every object has", "")
        for temperature in (0.0, 0.7, 1.0)
    )
]


@pytest.fixture(scope="module")
def runner():
    runner = TorchLM().build(RunnerStart(incarnation=1, device=DEVICE))
    yield runner
    runner.close()


def alone(runner, batch, accepted=()):
    """All tokens of one stream that shares no step with another."""
    return [token for chunk in runner.continue_from(batch, accepted) for token in chunk.token_ids]


def together(runner, batches):
    """All tokens of streams that begin one after the other and share their steps."""
    made, streams = {batch.request_id: [] for batch in batches}, {}
    waiting = list(batches)
    while waiting or streams:
        if waiting:
            batch = waiting.pop()
            streams[batch.request_id] = runner.execute(batch)
        for name, stream in list(streams.items()):
            chunk = next(stream)
            made[name] += chunk.token_ids
            if chunk.finish_reason:
                del streams[name]
    return made


def moved(runner, batch, tokens, seed):
    """The same stream, cut at a random place and gone on with."""
    cut = random.Random(seed).randrange(len(tokens))
    return tokens[:cut] + alone(runner, batch, tokens[:cut])


def test_reproducible_is_shown_or_refuted(runner, record_property):
    """D6: Other streams, the slot and a replay change no token; if they do, the runner must not declare itself reproducible."""
    import torch

    reference = {batch.request_id: alone(runner, batch) for batch in REQUESTS}
    runs = {
        f"together {seed}": together(runner, random.Random(seed).sample(REQUESTS, 15)) for seed in range(4)
    }
    for seed in range(4):
        runs[f"moved {seed}"] = {
            batch.request_id: moved(runner, batch, reference[batch.request_id], seed) for batch in REQUESTS
        }
    refuted = sorted(name for name, run in runs.items() if run != reference)
    record_property("device", torch.cuda.get_device_name(DEVICE))
    record_property("torch", torch.__version__)
    record_property("reproducible", "shown" if not refuted else f"refuted by {', '.join(refuted)}")
    print(
        f"\n{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}: refuted by {refuted or 'nothing'}"
    )
    assert all(len(tokens) == 80 for run in runs.values() for tokens in run.values())
    assert not (runner.info.reproducible and refuted)


def test_logits_are_the_same_bits_whatever_other_streams_run_beside(runner):
    """D6: Sampled tokens hide small differences; if the logits of a padded pass differ, the runner may not declare itself reproducible."""
    import torch

    from runners.models.torch_lm.kernel import ROWS, Row

    kernel = runner.model.kernel
    row = [Row(3, 0, 0)]
    reference = kernel.logits(row)[0]
    crowd = [
        kernel.logits([*row, *(Row(n % 5 + 1, 0, n) for n in range(1, size))])[0] for size in range(2, ROWS)
    ]
    same = all(torch.equal(reference, logits) for logits in crowd)
    assert all(torch.allclose(reference, logits, atol=1e-3) for logits in crowd)
    assert same or not runner.info.reproducible
