"""A small decoder-only transformer over characters, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from attrs import field, frozen
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  torch's own name for it

from runners.checks import integer, plain_integer

Attend: TypeAlias = Callable[[int, Tensor], Tensor]
"""`attend(layer, inward)`: the attention of a layer, which differs between training and serving.

`inward` is the concatenation of query, key and value for each position: shape (..., 3 × width). The result has (..., width).
"""

_size = field(kw_only=True, converter=plain_integer, validator=integer(1))


@frozen
class Shape:
    """The sizes of a model. `context`, the greatest number of tokens, is the same in training and in use."""

    vocabulary: int = _size
    context: int = _size
    width: int = _size
    heads: int = _size
    layers: int = _size

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads ({self.heads}), got {self.width}")


class CharacterModel(nn.Module):
    """Token and learned position embeddings, pre-norm blocks, and the token embedding again as the head.

    The parameters are uninitialised, because a file or the training script sets them. So a model is made quickly, and without
    torch's global random generator.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = _weight(shape.vocabulary, shape.width)
        self.positions = _weight(shape.context, shape.width)
        self.blocks = nn.ModuleList(_Block(shape.width) for _ in range(shape.layers))
        self.norm = _weight(shape.width)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The logits of the next token after each of `tokens`: shape (*tokens.shape, vocabulary). `positions` are broadcast."""
        x = torch.embedding(self.tokens, tokens) + torch.embedding(self.positions, positions)
        for layer, block in enumerate(self.blocks):
            x = block(layer, x, attend)
        return F.linear(_normal(x, self.norm), self.tokens)


class _Block(nn.Module):
    """Attention, then a feed-forward layer; each has a norm before it, and is added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = _weight(width)
        self.inward = _weight(3 * width, width)
        self.outward = _weight(width, width)
        self.feed_norm = _weight(width)
        self.up = _weight(4 * width, width)
        self.down = _weight(width, 4 * width)

    def forward(self, layer: int, x: Tensor, attend: Attend) -> Tensor:
        inward = F.linear(_normal(x, self.attention_norm), self.inward)
        x = x + F.linear(attend(layer, inward), self.outward)
        return x + F.linear(F.gelu(F.linear(_normal(x, self.feed_norm), self.up)), self.down)


def _weight(*size: int) -> nn.Parameter:
    """An uninitialised parameter."""
    return nn.Parameter(torch.empty(size))


def _normal(x: Tensor, weight: Tensor) -> Tensor:
    """Layer norm without a bias."""
    return torch.layer_norm(x, weight.shape, weight)
