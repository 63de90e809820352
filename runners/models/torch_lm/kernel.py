"""The forward pass, over a fixed number of rows: what makes logits bitwise the same in every company (D6)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from math import inf, isfinite
from typing import NamedTuple

import torch
from torch import Tensor

from runners.models.torch_lm.model import CharacterModel

# Part of what the bits depend on: never settings. As many rows as streams by default, so a full turn is one pass. Beyond
# 16 they only cost a lone stream more, a prompt gains nothing. Blocks: what a pass reads is bound by memory, so short
# streams should not read what is empty; shorter blocks cost more than they save.
ROWS = 16
BLOCK = 64

_ALL = list(range(ROWS))


class Row(NamedTuple):
    """One token to be fed: at which position of which slot."""

    token: int
    position: int
    slot: int


class Kernel:
    """A model with a cache of keys and values for each slot.

    Every pass has exactly `ROWS` rows. Attention multiplies row by row, head by head and block by block of `BLOCK`
    positions, up to the last block that any row of the pass sees; to a row, the blocks behind its own position add zeros.
    So the same shapes, and the same order of every sum, hold for a token however it came to be fed. There are two kinds of
    pass, which differ only in where they read keys and values:

    - a *turn* has one row for each of `ROWS` consecutive slots, and reads the cache as it lies;
    - a *run* has rows of any slots, consecutive positions of one stream mostly, and reads what it gathers from the cache.

    The cache is a list of blocks: for each group of `ROWS` slots the first block of each slot, then the second of each,
    and so on; the last one is nobody's, where padding is written.
    """

    def __init__(self, model: CharacterModel, slots: int, device: torch.device) -> None:
        shape = model.shape
        self._heads, self._each = shape.heads, shape.width // shape.heads
        self._blocks = -(-shape.context // BLOCK)
        self._model = model.to(device)
        self._device = device
        count = -(-slots // ROWS) * self._blocks * ROWS + self._blocks * ROWS
        self._keys = torch.zeros((shape.layers, count, shape.heads, self._each, BLOCK), device=device)
        self._values = torch.zeros((shape.layers, count, shape.heads, BLOCK, self._each), device=device)
        self._padding = Row(0, 0, -(-slots // ROWS) * ROWS)
        hidden = torch.full((shape.context, self._blocks * BLOCK), -inf, device=device).triu(1)
        self._hidden = hidden[:, None].expand(-1, shape.heads, -1).contiguous()
        self._unseen = torch.full((ROWS * shape.heads, 1, self._blocks * BLOCK), -inf, device=device)

    def logits(self, rows: Sequence[Row]) -> Tensor:
        """Feed the rows, those of one stream in order; the logits behind each of them, on the host.

        Nothing changes but the rows' own places in the cache, so what failed may be fed again.
        """
        torch.set_num_threads(1)  # each time: it holds for one thread, and who calls is the host's choice
        parts = list(_passes(rows))
        made = [self._part(part, rows, turn) for part, turn in parts]
        if len(made) == 1:
            return made[0]
        order = torch.tensor([number for part, _ in parts for number in part])
        return torch.cat(made)[order.argsort()]

    def warm_up(self) -> None:
        """One pass of either kind over nothing but padding."""
        for turn in (0, None):
            self._pass([self._padding] * ROWS, [0], turn)

    def _part(self, part: Sequence[int], rows: Sequence[Row], turn: int | None) -> Tensor:
        """The pass over these of the rows: in a turn each stands where its slot does."""
        padded = [self._padding] * ROWS
        places = range(len(part)) if turn is None else [rows[number].slot - turn for number in part]
        for place, number in zip(places, part, strict=True):
            padded[place] = rows[number]
        return self._pass(padded, places, turn)

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Row], wanted: Sequence[int], turn: int | None) -> Tensor:
        """The logits of the wanted rows. `turn`: slots from this one on are read; None: those of the rows are."""
        blocks = max(row.position for row in rows) // BLOCK + 1
        tokens, positions, written, places = self._numbers(
            [row.token for row in rows],
            [row.position for row in rows],
            [self._where(row.slot, row.position // BLOCK) for row in rows],
            [row.position % BLOCK for row in rows],
        )
        gathered = None
        if turn is None:
            gathered = self._numbers([self._where(row.slot, n) for n in range(blocks) for row in rows])[0]
        begin = 0 if turn is None else self._where(turn, 0)
        unseen = self._unseen[:, :, blocks * BLOCK :]
        hidden = self._by_block(self._hidden.index_select(0, positions), blocks)

        def read(cache: Tensor) -> Tensor:
            """For each block, row and head: keys or values."""
            lying = (
                cache[begin : begin + blocks * ROWS] if gathered is None else cache.index_select(0, gathered)
            )
            return lying.flatten(0, 1)

        def attend(layer: int, inward: Tensor) -> Tensor:
            queries, keys, values = inward.chunk(3, -1)
            self._keys[layer][written, :, :, places] = self._by_head(keys)
            self._values[layer][written, :, places] = self._by_head(values)
            query = self._by_head(queries).expand(blocks, -1, -1, -1).reshape(-1, 1, self._each)
            scores = torch.baddbmm(hidden, query, read(self._keys[layer]), alpha=self._each**-0.5)
            spread = torch.cat([*scores.view(blocks, -1, 1, BLOCK).unbind(), unseen], -1)
            weights = self._by_block(spread.softmax(-1), blocks)
            first, *others = torch.bmm(weights, read(self._values[layer])).view(blocks, ROWS, -1).unbind()
            for other in others:
                first = first + other
            return first

        logits: Tensor = self._model(tokens, positions, attend)
        if list(wanted) != _ALL:
            logits = logits[list(wanted)]
        if not isfinite(float(logits.sum())):
            raise FloatingPointError("the model's logits are not finite: its weights or its cache are broken")
        return logits.cpu()

    def _numbers(self, *columns: Sequence[int]) -> Tensor:
        """Whole numbers, on the device; a list of lists costs `torch.tensor` ten times as much."""
        numbers = array("q")
        for column in columns:
            numbers.extend(column)
        return torch.frombuffer(numbers, dtype=torch.int64).view(len(columns), -1).to(self._device)

    def _where(self, slot: int, block: int) -> int:
        """The number of a slot's block in the cache."""
        return (slot // ROWS * self._blocks + block) * ROWS + slot % ROWS

    def _by_block(self, x: Tensor, blocks: int) -> Tensor:
        """For each row and head a line over all positions: as one line for each block, row and head."""
        return x.view(-1, self._blocks, BLOCK)[:, :blocks].transpose(0, 1).reshape(-1, 1, BLOCK)

    def _by_head(self, x: Tensor) -> Tensor:
        """Rows of vectors as rows of heads of vectors."""
        return x.view(len(x), self._heads, -1)


def _passes(rows: Sequence[Row]) -> Iterator[tuple[Sequence[int], int | None]]:
    """Which rows share a pass, by number; and for a turn its first slot.

    A stream's only row goes into a turn. What remains goes into runs, in order.
    """
    slots = [row.slot for row in rows]
    of_slot = Counter(slots)
    turns: dict[int, list[int]] = {}
    runs: list[int] = []
    for number, slot in enumerate(slots):
        (runs if of_slot[slot] > 1 else turns.setdefault(slot // ROWS * ROWS, [])).append(number)
    for begin in range(0, len(runs), ROWS):
        yield runs[begin : begin + ROWS], None
    for first, part in turns.items():
        yield part, first
