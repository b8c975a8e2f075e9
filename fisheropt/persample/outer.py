"""hₙ = Σₜ gₙₜ aₙₜᵀ: weights that multiply features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.persample.base import PerSample, tile_of


@final
@dataclass(frozen=True)
class Outer(PerSample):
    """hₙ = Σₜ gₙₜ aₙₜᵀ, a weight that multiplies features.

    Args:
        g: gradients of the layer's outputs, [n, t, o].
        a: the layer's inputs, [n, t, i].
    """

    g: Tensor
    a: Tensor

    @property
    def samples(self) -> int:
        return self.g.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        return Outer(self.g.to(dtype), self.a.to(dtype))

    def sum(self) -> Tensor:
        return self.g.flatten(0, 1).T @ self.a.flatten(0, 1)

    def square_sum(self) -> Tensor:
        if self.g.shape[1] == 1:
            return self.g[:, 0].square().T @ self.a[:, 0].square()
        tile = tile_of(self.g.shape[2] * self.a.shape[2])
        tiles = zip(self.g.split(tile), self.a.split(tile), strict=True)
        return torch.stack([Outer(g, a).materialise().square().sum(0) for g, a in tiles]).sum(0)

    def squared_norms(self) -> Tensor:
        positions, outputs, inputs = self.g.shape[1], self.g.shape[2], self.a.shape[2]
        if positions == 1:
            length = torch.linalg.vector_norm  # writes no squares out
            return (length(self.g, dim=(1, 2)) * length(self.a, dim=(1, 2))).square()
        if positions * (outputs + inputs) <= outputs * inputs:
            return ((self.g @ self.g.mT) * (self.a @ self.a.mT)).sum((1, 2))
        tile = tile_of(outputs * inputs)
        tiles = zip(self.g.split(tile), self.a.split(tile), strict=True)
        return torch.cat([Outer(g, a).materialise().square().sum((1, 2)) for g, a in tiles])

    def project(self, directions: Directions) -> Tensor:
        return directions.of_outer(self.g, self.a)

    def combine(self, weights: Tensor) -> Tensor:
        samples, positions, outputs = self.g.shape
        narrow = min(outputs, self.a.shape[2])
        tile = tile_of(samples * positions * narrow)
        return torch.cat([self._combine(columns) for columns in weights.to(self.g.dtype).split(tile, 1)])

    def _combine(self, weights: Tensor) -> Tensor:
        """One product of matrices, in which the narrower of g and a is repeated for every column."""
        g, a, repeated = self.g.flatten(0, 1), self.a.flatten(0, 1), weights.repeat_interleave(self.g.shape[1], 0)
        if g.shape[1] <= a.shape[1]:
            weighted = repeated[:, :, None] * g[:, None]
            return (weighted.flatten(1).T @ a).unflatten(0, weighted.shape[1:])
        weighted = repeated[:, :, None] * a[:, None]
        return (weighted.flatten(1).T @ g).unflatten(0, weighted.shape[1:]).mT

    def materialise(self) -> Tensor:
        return self.g.mT @ self.a
