"""The models that costs are measured on, each with its batch and its loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Subject:
    """A model with its batch; the loss is the mean cross-entropy over labels.

    Args:
        key: of the command line.
        words: what it is, for the table.
        build: makes the model.
        inputs: makes a batch's inputs of the given size.
        classes: of its output.
        batch: samples a step.
        length: labels of a sample where it is a sequence; None for one label.
        large: whether its rows are measured one after the other, as they do not fit into memory together.
    """

    key: str
    words: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    classes: int
    batch: int
    length: int | None = None
    large: bool = False

    def labels(self) -> Tensor:
        """Labels of a batch, drawn evenly."""
        shape = (self.batch,) if self.length is None else (self.batch, self.length)
        return torch.randint(0, self.classes, shape)


@final
class Transformer(nn.Module):
    """Blocks of causal attention and a two-layer perceptron, LayerNorm before each; learned positions, a head of its own."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, t, vocabulary] of the codes x [n, t]."""
        places = torch.arange(x.shape[1], device=x.device).repeat(len(x), 1)  # Opacus wants them contiguous
        h = self.token(x) + self.place(places)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


@final
class Block(nn.Module):
    """h + attention, then + perceptron; the attention is written out, as vmap and jvp do not run through a fused one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """As many vectors as came in, [n, t, width]."""
        q, k, v = self.qkv(self.first(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        later = torch.full((h.shape[1], h.shape[1]), -torch.inf, device=h.device).triu(1)
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + later, -1)
        h = h + self.out((weights @ v).transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.second(h))))


def mlp(inputs: int = 784, width: int = 512) -> nn.Module:
    """784-512-512-10 with ReLU."""
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def cnn(size: int = 28, channels: int = 16, hidden: int = 128) -> nn.Module:
    """Two convolutions 3x3, each with ReLU and 2x2 max-pooling, and two linear layers."""
    first, second = nn.Conv2d(1, channels, 3, padding=1), nn.Conv2d(channels, 2 * channels, 3, padding=1)
    ends = (nn.Linear(2 * channels * (size // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *ends)


def codes(vocabulary: int, length: int) -> Callable[[int], Tensor]:
    """Makes sequences of codes."""
    return lambda n: torch.randint(0, vocabulary, (n, length))


SUBJECTS = {
    "mlp": Subject("mlp", "MLP 784-512-512-10, batch 256", mlp, lambda n: torch.randn(n, 784), 10, 256),
    "cnn": Subject(
        "cnn",
        "CNN: convolutions 1-16 and 16-32 with pooling, linear 1568-128-10; 28x28, batch 128",
        cnn,
        lambda n: torch.randn(n, 1, 28, 28),
        10,
        128,
    ),
    "transformer": Subject(
        "transformer",
        "transformer: 4 blocks, d 128, 4 heads, vocabulary 256, T 64, batch 16",
        lambda: Transformer(256, 64, 128, 4, 4),
        codes(256, 64),
        256,
        16,
        64,
    ),
    "transformer12": Subject(
        "transformer12",
        "transformer: 12 blocks, d 768, 12 heads, vocabulary 32768, T 512, batch 8",
        lambda: Transformer(32768, 512, 768, 12, 12),
        codes(32768, 512),
        32768,
        8,
        512,
        large=True,
    ),
}
"""On a CPU the first three, on a GPU all."""

QUICK = {
    "mlp": Subject("mlp", "MLP 20-16-16-10, batch 16", lambda: mlp(20, 16), lambda n: torch.randn(n, 20), 10, 16),
    "cnn": Subject("cnn", "CNN 8x8, batch 8", lambda: cnn(8, 4, 8), lambda n: torch.randn(n, 1, 8, 8), 10, 8),
    "transformer": Subject(
        "transformer",
        "transformer: 1 block, d 8, T 4, batch 4",
        lambda: Transformer(16, 4, 8, 2, 1),
        codes(16, 4),
        16,
        4,
        4,
    ),
    "transformer12": Subject(
        "transformer12",
        "transformer: 2 blocks, d 8, T 8, batch 2",
        lambda: Transformer(16, 8, 8, 2, 2),
        codes(16, 8),
        16,
        2,
        8,
        large=True,
    ),
}
"""The same in small, to see that all rows run."""
