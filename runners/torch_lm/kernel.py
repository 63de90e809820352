"""The forward pass, over a fixed number of rows: what makes logits bitwise the same in every company (D6)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from runners.torch_lm.model import CharacterModel

# Part of what the bits depend on: never a setting. As many as streams by default, so a full turn is one pass. On one
# busy core a pass of 1, 8, 16, 32, 64 rows takes 0.6, 0.9, 1.5, 2.9, 6.5 ms: beyond 16 it only costs a lone stream more,
# a prompt gains nothing.
ROWS = 16


class Row(NamedTuple):
    """One token to be fed: at which position of which slot."""

    token: int
    position: int
    slot: int


class Kernel:
    """A model with a cache of keys and values for each slot, and a scratch slot for padding.

    Every pass has exactly `ROWS` rows, each of which attends over the full length of its slot, masked behind its own
    position. A decode step is one row for each stream; a prompt or a replay is consecutive positions of one stream.
    So the same shapes, and the same order of every sum, hold for a token however it came to be fed.
    """

    def __init__(self, model: CharacterModel, slots: int, device: torch.device) -> None:
        shape = model.shape
        each = (shape.heads, shape.context, shape.width // shape.heads)
        self._model = model.to(device)
        self._device = device
        self._padding = Row(0, 0, slots)
        self._cache = torch.zeros((2, shape.layers, slots + 1, *each), device=device)
        self._gathered = torch.zeros((2, ROWS, *each), device=device)  # kept: fresh memory costs a pass 1 ms

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Feed the rows, those of one stream in order; the logits behind each of them, on the host.

        Nothing changes but the rows' own places in the cache, so what failed may be fed again.
        """
        torch.set_num_threads(1)  # each time: it holds for one thread, and who calls is the host's choice
        remaining = iter(rows)
        return torch.cat([self._pass(part) for part in iter(lambda: list(islice(remaining, ROWS)), [])])

    def warm_up(self) -> None:
        """One pass over nothing but padding."""
        self.logits([self._padding])

    @torch.inference_mode()
    def _pass(self, rows: list[Row]) -> Tensor:
        padded = rows + [self._padding] * (ROWS - len(rows))
        tokens, positions, slots = torch.tensor(padded, device=self._device).unbind(1)
        context = torch.arange(self._model.shape.context, device=self._device)
        seen = (context <= positions[:, None])[:, None, None, :]

        def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            caches = self._cache[:, layer]
            for cache, new, gathered in zip(caches, (keys, values), self._gathered, strict=True):
                cache[slots, :, positions] = self._by_head(new)
                torch.index_select(cache, 0, slots, out=gathered)
            query, (every_key, every_value) = self._by_head(queries)[:, :, None], self._gathered
            return F.scaled_dot_product_attention(query, every_key, every_value, seen).flatten(1)

        logits: Tensor = self._model(tokens, positions, attend)[: len(rows)]
        if not logits.isfinite().all():
            raise FloatingPointError("the model's logits are not finite: its weights or its cache are broken")
        return logits.cpu()

    def _by_head(self, x: Tensor) -> Tensor:
        """Rows of vectors as rows of heads of vectors."""
        return x.view(len(x), self._model.shape.heads, -1)
