"""The forward pass over a fixed number of rows, so that logits are bitwise the same whatever other streams are open (D6)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from runners.models.torch_lm.model import CharacterModel

# The bits of the logits depend on both numbers, so they are not settings. There are as many rows as streams by default, so that
# a full turn is one pass. More than 16 rows only cost a single stream more, and prompts gain nothing. Blocks exist because a
# pass is bound by memory: short streams should not read an empty cache. Shorter blocks cost more than they save.
ROWS = 16
BLOCK = 64

_ALL = list(range(ROWS))


class Row(NamedTuple):
    """One token to be fed, with its position and the slot of its stream."""

    token: int
    position: int
    slot: int


class Kernel:
    """A model with a cache of keys and values for each slot.

    Every pass has exactly `ROWS` rows. Attention multiplies row by row, head by head and block by block of `BLOCK`
    positions, up to the last block that any row of the pass sees. For a row, the blocks after its own position add zeros.
    So a token is always computed with the same shapes and the same order of every sum. There are two kinds of pass, which
    differ only in where they read keys and values:

    - a *turn* has one row for each of `ROWS` consecutive slots, and reads a slice of the cache;
    - a *run* has rows of any slots, mostly consecutive positions of one stream, and gathers the blocks that it reads.

    The cache is a list of blocks: for each group of `ROWS` slots the first block of each slot, then the second of each, and
    so on. The last group belongs to no stream; padding is written there.
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
        """Feed the rows, those of one stream in order; returns the logits after each, in host memory: (rows, vocabulary).

        Only the rows' own places in the cache change, so rows that failed may be fed again.
        """
        torch.set_num_threads(1)  # at each call: it holds for one thread, and a host may call from any
        parts = list(_passes(rows))
        made = [self._part(part, rows, turn) for part, turn in parts]
        if len(made) == 1:
            return made[0]
        order = torch.tensor([number for part, _ in parts for number in part])
        return torch.cat(made)[order.argsort()]

    def warm_up(self) -> None:
        """One pass of each kind, over padding only."""
        for turn in (0, None):
            self._pass([self._padding] * ROWS, [0], turn)

    def _part(self, part: Sequence[int], rows: Sequence[Row], turn: int | None) -> Tensor:
        """The pass over some of the rows, given by number. In a turn the place of a row is that of its slot."""
        padded = [self._padding] * ROWS
        places = range(len(part)) if turn is None else [rows[number].slot - turn for number in part]
        for place, number in zip(places, part, strict=True):
            padded[place] = rows[number]
        return self._pass(padded, places, turn)

    @torch.inference_mode()
    def _pass(self, rows: Sequence[Row], wanted: Sequence[int], turn: int | None) -> Tensor:
        """The logits of the wanted rows. `turn`: the first of the slots to read; None: read the slots of the rows."""
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
            """The keys or values for each block, row and head."""
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
        return logits.cpu()

    def _numbers(self, *columns: Sequence[int]) -> Tensor:
        """Integers as a tensor on the device. `torch.tensor` takes ten times as long for a list of lists."""
        numbers = array("q")
        for column in columns:
            numbers.extend(column)
        return torch.frombuffer(numbers, dtype=torch.int64).view(len(columns), -1).to(self._device)

    def _where(self, slot: int, block: int) -> int:
        """The number of a slot's block in the cache."""
        return (slot // ROWS * self._blocks + block) * ROWS + slot % ROWS

    def _by_block(self, x: Tensor, blocks: int) -> Tensor:
        """From one line over all positions for each row and head, make one line for each block, row and head."""
        return x.view(-1, self._blocks, BLOCK)[:, :blocks].transpose(0, 1).reshape(-1, 1, BLOCK)

    def _by_head(self, x: Tensor) -> Tensor:
        """Rows of vectors as rows of heads of vectors."""
        return x.view(len(x), self._heads, -1)


def _passes(rows: Sequence[Row]) -> Iterator[tuple[Sequence[int], int | None]]:
    """The rows of each pass, by number, and for a turn its first slot, for a run None.

    The row of a stream that has only one goes into a turn. The others go into runs, in order.
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
