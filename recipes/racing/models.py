"""The networks of the race: small, and of layers that every entrant serves in part at least."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mlp(inputs: int, classes: int) -> nn.Module:
    """One hidden layer of 64."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, classes))


def cnn(size: int, classes: int) -> nn.Module:
    """Convolutions of stride 2 until four pixels or fewer are left a side, then a head; images come as rows of pixels."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, size, size))]
    channels, side = 1, size
    while side > 4:
        wider = 16 if channels == 1 else 32
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), nn.ReLU()]
        channels, side = wider, (side + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side**2, classes))


@final
class Transformer(nn.Module):
    """Blocks of causal self-attention and a two-layer perceptron, normalised before each; the next character's logits."""

    def __init__(self, characters: int, context: int, width: int = 48, heads: int = 4, depth: int = 1) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, t, characters] of the codes x [n, t]."""
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        h = self.token(x) + self.place(places)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@final
class Block(nn.Module):
    """h + attention, then + perceptron."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """As many vectors as came in, [n, t, width]."""
        q, k, v = self.qkv(self.first(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.second(h))))
