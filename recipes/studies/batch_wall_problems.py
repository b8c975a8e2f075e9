"""Two small problems for wall times: a convolutional network on noisy digits and a character transformer."""

from __future__ import annotations

import lzma
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.studies.batch_conversion_network import NoisyDigits

TEXT = "tinyshakespeare.txt.xz"
CONTEXT, WIDTH, HEADS = 24, 32, 2
SYMBOLS = 27


class Problem(ABC):
    """Samples, a model to be trained on them, and the grid on which every method is tuned."""

    name: ClassVar[str]
    sizes: ClassVar[tuple[int, ...]]
    rates: ClassVar[tuple[float, ...]]
    epochs: ClassVar[int]
    weight_decay: ClassVar[float]
    stride: ClassVar[int]
    x: Tensor
    y: Tensor

    @abstractmethod
    def build(self) -> nn.Module:
        """A new model, by the global generator."""

    @abstractmethod
    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Mean over samples."""

    @property
    def budget(self) -> int:
        """Samples to be trained on in all."""
        return self.epochs * len(self.x)

    def whole(self, model: nn.Module) -> float:
        """What is minimised: the mean loss over each `stride`-th sample of the training set and (λ/2)|θ|²."""
        inputs, targets = self.x[:: self.stride], self.y[:: self.stride]
        with torch.no_grad():
            parts = zip(inputs.split(512), targets.split(512), strict=True)
            mean = sum(float(self.loss(model, x, y)) * len(x) for x, y in parts) / len(inputs)
            return mean + self.weight_decay / 2 * sum(float(p.square().sum()) for p in model.parameters())


@final
class Digits(Problem):
    """Two convolutions and a head on 1400 images of 8 x 8, a tenth with wrong labels; 9930 parameters."""

    name = "CNN"
    sizes = (16, 48)
    rates = (0.2, 0.4, 0.8)
    epochs = 12
    weight_decay = 1e-3
    stride = 1

    def __init__(self) -> None:
        data = NoisyDigits()
        self.x, self.y = data.x.reshape(-1, 1, 8, 8), data.y

    def build(self) -> nn.Module:
        """Conv 16, conv 32 of stride 2, linear."""
        convolutions = (nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*convolutions, nn.Linear(512, 10))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(model(x), y)


@final
class Characters(Problem):
    """Two blocks of self-attention that predict the next of 24 characters; a sample is a sequence.

    Args:
        folder: with tinyshakespeare.txt.xz; where it is missing the text is a Markov chain's.
        sequences: samples, which do not overlap.
    """

    name = "transformer"
    sizes = (8, 24)
    rates = (0.5, 1.0, 2.0)
    epochs = 3
    weight_decay = 0.0
    stride = 4

    def __init__(self, folder: Path, sequences: int = 2000) -> None:
        file = folder / TEXT
        symbols = _letters(file) if file.is_file() else _markov(sequences * (CONTEXT + 1))
        self.source = "tiny Shakespeare" if file.is_file() else "a Markov chain"
        self.symbols = int(symbols.max()) + 1
        rows = symbols[: sequences * (CONTEXT + 1)].view(-1, CONTEXT + 1)
        self.x, self.y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def build(self) -> nn.Module:
        """Embedding, two blocks, norm, head."""
        return Transformer(self.symbols)

    def loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy a character."""
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


@final
class Transformer(nn.Module):
    """Pre-norm blocks with learned positions."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, WIDTH)
        self.place = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, symbols)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, t, symbols]."""
        places = torch.arange(CONTEXT, device=x.device).expand_as(x)
        logits: Tensor = self.head(self.norm(self.blocks(self.embed(x) + self.place(places))))
        return logits


@final
class Block(nn.Module):
    """Causal self-attention and a network of one hidden layer, each added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, width] to the same."""
        q, k, v = self.qkv(self.before(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.between(x))))


def _letters(file: Path) -> Tensor:
    """The text in small letters and blanks, as numbers below 27."""
    with lzma.open(file, "rt") as text:
        codes = torch.tensor(list(text.read().lower().encode("ascii", "replace")))
    letters = (codes >= 97) & (codes <= 122)
    return torch.where(letters, codes - 96, 0)


def _markov(length: int) -> Tensor:
    """A text of 27 symbols, each drawn by the two before it."""
    generator = torch.Generator().manual_seed(0)
    table = (3 * torch.randn(SYMBOLS, SYMBOLS, SYMBOLS, generator=generator)).softmax(2)
    uniform, cumulated, found = torch.rand(length, generator=generator).tolist(), table.cumsum(2), [0, 0]
    for value in uniform:
        row = cumulated[found[-2], found[-1]]
        found.append(min(int(torch.searchsorted(row, value)), SYMBOLS - 1))
    return torch.tensor(found[2:])
