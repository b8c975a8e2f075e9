"""hₙ itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.persample.base import PerSample


@final
@dataclass(frozen=True)
class Dense(PerSample):
    """hₙ itself: biases, scales, bare parameters, or a microbatch (N = 1).

    Args:
        h: per-sample gradients, [n, *parameter].
    """

    h: Tensor

    @property
    def samples(self) -> int:
        return self.h.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        return Dense(self.h.to(dtype))

    def sum(self) -> Tensor:
        return self.h.sum(0)

    def square_sum(self) -> Tensor:
        return self.h.square().sum(0)

    def squared_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.h.reshape(self.samples, -1), dim=1).square()

    def project(self, directions: Directions) -> Tensor:
        return directions.of_dense(self.h)

    def combine(self, weights: Tensor) -> Tensor:
        return torch.tensordot(weights.to(self.h.dtype), self.h, ([0], [0]))

    def materialise(self) -> Tensor:
        return self.h
