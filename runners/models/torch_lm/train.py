"""Trains the model of this package, on the documentation that is part of CPython.

    python -m runners.models.torch_lm.train [--steps N] [--seed S] [--out FILE]

The same seed, machine, Python and torch give the same file, byte for byte. With others the bytes differ, because the text and
the arithmetic differ a little. The last line of the output is the SHA-256 to pin.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from runners.models.torch_lm import PACKAGED
from runners.models.torch_lm.checkpoint import Checkpoint, save
from runners.models.torch_lm.model import CharacterModel, Shape
from runners.models.torch_lm.vocabulary import Vocabulary

VOCABULARY = Vocabulary()
SHAPE = Shape(vocabulary=len(VOCABULARY), context=256, width=96, heads=4, layers=2)
BATCH = 24
RATE = 3e-3
WARM_UP = 100
REPORT_EVERY = 100


def text() -> tuple[str, str]:
    """The text to train on, and the text to measure on: every tenth topic. Tables are left out, because they are too easy."""
    pages = [_prose(topics[name]) for name in sorted(topics)]
    held_out = pages[::10]
    return "\n\n".join(page for page in pages if page not in held_out), "\n\n".join(held_out)


def _prose(page: str) -> str:
    return "\n".join(line for line in page.splitlines() if not line.lstrip().startswith(("+-", "+=", "|")))


def initialised(shape: Shape) -> CharacterModel:
    """An initialised model: norms are 1, and weights that add to the residual stream are small."""
    model = CharacterModel(shape)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.ones_(weight)
        else:
            residual = name.endswith(("outward", "down"))
            torch.nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.layers) if residual else 0.02)
    return model


def loss(model: CharacterModel, windows: Tensor) -> Tensor:
    """The loss in nats a character, over windows of shape (batch, context + 1)."""
    tokens, targets = windows[:, :-1], windows[:, 1:]
    logits = model(tokens, torch.arange(SHAPE.context), _causal)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _causal(_: int, inward: Tensor) -> Tensor:
    q, k, v = (x.view(*x.shape[:2], SHAPE.heads, -1).transpose(1, 2) for x in inward.chunk(3, dim=-1))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


@torch.inference_mode()
def measured(model: CharacterModel, tokens: Tensor) -> float:
    """The loss over the whole of a text, window by window."""
    windows = tokens.unfold(0, SHAPE.context + 1, SHAPE.context)
    parts = [windows[first : first + BATCH] for first in range(0, len(windows), BATCH)]
    return sum(float(loss(model, part)) * len(part) for part in parts) / len(windows)


def train(model: CharacterModel, tokens: Tensor, steps: int) -> Iterator[tuple[int, float]]:
    """Train in place; yields the number of every step and the loss before it."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    norms = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)
    )
    windows = tokens.unfold(0, SHAPE.context + 1, 1)
    for step in range(steps):
        now = loss(model, windows[torch.randint(len(windows), (BATCH,))])
        optimizer.zero_grad()
        now.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]  # torch leaves its closure untyped
        schedule.step()
        yield step, now.item()


def shown(steps: Iterator[tuple[int, float]], total: int) -> Iterator[tuple[int, float]]:
    """The steps, with their progress on standard error if that is a terminal and rich is installed (extra `live`)."""
    if not sys.stderr.isatty() or find_spec("rich") is None:
        yield from steps
        return
    from rich.console import Console  # noqa: PLC0415 - Rich is an extra, and training works without it.
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn  # noqa: PLC0415 - Rich is an extra, and training works without it.

    columns = [*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()]
    to_terminal = sys.stdout.isatty()  # otherwise rich would write to the terminal what goes to a file
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=to_terminal
    ) as line:
        yield from line.track(steps, total=total, description="training")


def settle(seed: int) -> None:
    """Make the training depend on the seed alone. The number of threads is set for this process, because sums depend on it."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]  # torch leaves it untyped
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(mode=True)


def main() -> None:
    """Train, report, write the file, and print its SHA-256."""
    parser = argparse.ArgumentParser(
        prog="python -m runners.models.torch_lm.train", description="Train the character model."
    )
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    options = parser.parse_args()
    settle(options.seed)
    learn, check = (torch.tensor(VOCABULARY.encode(part)) for part in text())
    model = initialised(SHAPE)
    for step, now in shown(train(model, learn, options.steps), options.steps):
        if step % REPORT_EVERY == 0 or step == options.steps - 1:
            print(f"step {step}: train {now:.3f}, val {measured(model, check):.3f} nats/char", flush=True)  # noqa: T201
    print("sha256", save(Checkpoint(model, VOCABULARY), options.out))  # noqa: T201  a script's own output


if __name__ == "__main__":
    main()
