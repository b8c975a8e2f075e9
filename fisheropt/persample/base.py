"""What every form of per-sample gradients offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fisheropt.directions import Directions

TILE = 1 << 23  # numbers in one temporary of several samples: 32 MiB of float32


class PerSample(ABC):
    """The gradients hₙ of one parameter, n = 1..N, which are never all formed unless asked for."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """The number of samples N."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> PerSample:
        """The same in another dtype."""

    @abstractmethod
    def sum(self) -> Tensor:
        """Σₙ hₙ, shaped like the parameter."""

    @abstractmethod
    def square_sum(self) -> Tensor:
        """Σₙ hₙ², elementwise, shaped like the parameter."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """‖hₙ‖², shape [n]."""

    @abstractmethod
    def project(self, directions: Directions) -> Tensor:
        """⟨hₙ, v_k⟩, shape [n, k]."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """Σₙ wₙₖ hₙ for weights [n, k]: [k, *parameter], one weight gradient a column."""

    @abstractmethod
    def materialise(self) -> Tensor:
        """All hₙ, shape [n, *parameter]: for tests, and where nothing cheaper exists."""


def tile_of(numbers: int) -> int:
    """How many samples of so many numbers each go into one temporary."""
    return max(1, TILE // max(1, numbers))
