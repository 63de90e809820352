"""The keys and values of all streams of a `TransformersLM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

_SHORTEST = 256
"""Positions that a cache has room for at first."""


class SlotCache(Cache):  # type: ignore[misc, unused-ignore]  # transformers may be absent where types are checked
    """For each layer, keys and values by slot, head and position: those of a position stand at its place.

    So streams of any lengths join and leave without a copy of the others. `begin` says which rows the next pass has. A pass
    that fails has changed only places that are fed again.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.clear()

    def clear(self) -> None:
        """Release the memory."""
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, slots: Sequence[int], positions: Tensor, device: torch.device) -> None:
        """The next pass has these rows: ascending slots, and for each slot the positions that it feeds.

        Raises:
            torch.OutOfMemoryError: the memory does not suffice. What the cache holds is as it was.
        """
        self._length = int(positions.max()) + 1
        self._rows = slots[-1] + 1
        first = slots[0]
        lie_together = self._rows - first == len(slots)
        self._read = slice(first, self._rows) if lie_together else torch.tensor(slots, device=device)
        self._written = (torch.tensor(slots, device=device)[:, None], positions.to(device))
        for layer, (keys, values) in self._stores.items():
            self._stores[layer] = self._roomy(keys), self._roomy(values)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store the keys and values of this pass; returns all that its rows may see."""
        if layer_idx not in self._stores:
            self._stores[layer_idx] = self._roomy(key_states[:0, :, :0]), self._roomy(value_states[:0, :, :0])
        found: list[Tensor] = []
        for store, new in zip(self._stores[layer_idx], (key_states, value_states), strict=True):
            slots, positions = self._written
            store[slots, :, positions] = new.transpose(1, 2)
            found.append(store[self._read][:, :, : self._length])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - the same for each
        """The positions before this pass differ from row to row, so each pass gives them itself."""
        return 0

    def _roomy(self, store: Tensor) -> Tensor:
        """A store with room for the rows and positions of this pass: itself, or a larger one with what it holds."""
        rows, heads, length, width = store.shape
        if rows >= self._rows and length >= self._length:
            return store
        size = (
            max(rows, _power(self._rows)),
            heads,
            max(length, _SHORTEST, _power(self._length)),
            width,
        )
        larger = store.new_zeros(size)
        larger[:rows, :, :length] = store
        return larger


def _power(number: int) -> int:
    """The number, rounded up to a power of two."""
    return int(2 ** (number - 1).bit_length())
