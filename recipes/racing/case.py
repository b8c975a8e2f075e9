"""What is raced on: data in memory, a model, a loss, and an exact evaluation that no entrant pays for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn


class Case(ABC):
    """One data set with one model.

    Attributes:
        name: short, as in the tables and after `sets=`.
        words: data and model in a line.
        likelihood: of the model's output, by the name that fisheropt knows it by; None for a density.
        data: tensors with one row a sample.
        batch: samples a step.
        ridge: λ of (λ/2)‖θ‖², whose gradient the loop adds; 0 for none.
        planned: steps over which the learning rate falls to 0; None leaves it as it is.
        repeats: whether samples come again in a later pass; in a single one none does.
        sequences: whether a sample is a sequence, over whose positions the loss is a mean too.
    """

    name: str
    words: str
    likelihood: str | None
    data: tuple[Tensor, ...]
    batch: int
    ridge: float = 0.0
    planned: int | None = None
    repeats: ClassVar[bool] = True
    sequences: bool = False

    @abstractmethod
    def model(self, seed: int) -> nn.Module:
        """A fresh model; all entrants get the same for a seed."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The mean loss of a batch, without the ridge."""

    @abstractmethod
    def value(self, model: nn.Module) -> float:
        """What is to be small, from the parameters alone: hooks of an optimizer see nothing of it."""

    @property
    def samples(self) -> int:
        """n."""
        return len(self.data[0])

    @property
    def steps(self) -> int:
        """Batches in one pass; the last may be short."""
        return -(-self.samples // self.batch)

    def order(self, seed: int) -> Iterator[tuple[Tensor, ...]]:
        """Batches without end: each pass is a new permutation, gathered at once and cut without copying."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            permutation = torch.randperm(self.samples, generator=generator)
            parts = [tensor[permutation].split(self.batch) for tensor in self.data]
            yield from zip(*parts, strict=True)
