"""hₙ = Σₜ gₙₜ aₙₜᵀ: weights that multiply features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.cost import Ways
from fisheropt.cost import outer as works
from fisheropt.directions import DenseDirections, Directions
from fisheropt.kernels import on_cuda, outer_project, outer_square_sum
from fisheropt.persample.base import PerSample, beside_sum, inner, lengths, squares_beside_sum, tile_of


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
    ways: ClassVar[Mapping[str, Ways]] = works.WAYS

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*self.g.shape[:2], self.g.shape[2], self.a.shape[2])

    @property
    def device(self) -> torch.device:
        return self.g.device

    @property
    def samples(self) -> int:
        return self.g.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        if self.g.dtype is dtype and self.a.dtype is dtype:
            return self
        return replace(self, g=self.g.to(dtype), a=self.a.to(dtype))

    def sum(self) -> Tensor:
        g, a = (x.reshape(-1, x.shape[2]) for x in (self.g, self.a))  # flatten has no rule for batched gradients
        return g.T @ a

    def square_sum(self) -> Tensor:
        if self.chosen("square_sum") == "sides":
            return self.g[:, 0].square().T @ self.a[:, 0].square()
        if on_cuda(self.g, self.a):
            return outer_square_sum(self.g, self.a)[1]
        return reduce(torch.add, (h.square().sum(0) for h in self.tiles()))

    def squares_and_sum(self) -> tuple[Tensor, Tensor]:
        if self.chosen("square_sum") == "sides":
            return self.square_sum(), self.sum()
        if on_cuda(self.g, self.a):
            total, squares, _ = outer_square_sum(self.g, self.a)
            return squares, total
        return squares_beside_sum(self.tiles())

    def squared_norms(self) -> Tensor:
        return self._norms(self.chosen("norms"))

    def trace_and_sum(self) -> tuple[Tensor, Tensor]:
        way = self.chosen("norms_and_sum")
        if way == "gram":
            return inner(self.g @ self.g.mT, self.a @ self.a.mT), self.sum()
        if way != "formed":
            length = torch.linalg.vector_norm
            both = length(self.g, dim=(1, 2)) * length(self.a, dim=(1, 2))
            return torch.dot(both, both), self.sum()
        if on_cuda(self.g, self.a):
            total, _, norms = outer_square_sum(self.g, self.a)
            return norms.sum(), total
        found, total = beside_sum(self.tiles(), lambda h: inner(h, h))
        return found[0] if len(found) == 1 else torch.stack(found).sum(), total

    def _norms(self, way: str) -> Tensor:
        if way == "sides":
            length = torch.linalg.vector_norm  # writes no squares out
            return (length(self.g, dim=(1, 2)) * length(self.a, dim=(1, 2))).square()
        if way == "gram":
            return ((self.g @ self.g.mT) * (self.a @ self.a.mT)).sum((1, 2))
        if on_cuda(self.g, self.a):
            return outer_square_sum(self.g, self.a)[2]
        return torch.cat([lengths(h) for h in self.tiles()])

    def project(self, directions: Directions) -> Tensor:
        if directions.kind in self.ways and self.chosen(directions.kind, directions.count) == "formed":
            if isinstance(directions, DenseDirections) and on_cuda(self.g, self.a, directions.basis):
                return self._along(directions)[0]
            return torch.cat([directions.of_dense(h) for h in self.tiles()])
        return directions.of_outer(self.g, self.a)

    def project_and_sum(self, directions: Directions) -> tuple[Tensor, Tensor]:
        quantity = f"{directions.kind}_and_sum"
        if quantity not in self.ways or self.chosen(quantity, directions.count) != "formed":
            return self.project(directions), self.sum()
        if isinstance(directions, DenseDirections) and on_cuda(self.g, self.a, directions.basis):
            return self._along(directions)
        found, total = beside_sum(self.tiles(), directions.of_dense)
        return torch.cat(found), total

    def _along(self, directions: DenseDirections) -> tuple[Tensor, Tensor]:
        """⟨hₙ, v_k⟩ and Σₙ hₙ by a kernel that writes no hₙ out."""
        shape = (directions.count, self.g.shape[2], self.a.shape[2])
        total, coordinates = outer_project(self.g, self.a, directions.basis.to(self.g.dtype).reshape(shape))
        return coordinates, total

    def combine(self, weights: Tensor) -> Tensor:
        samples, positions, outputs = self.g.shape
        if self.chosen("combine", weights.shape[1]) == "formed":
            parts = weights.to(self.g.dtype).split(self.tile(outputs * self.a.shape[2]))
            tiles = zip(parts, self.tiles(), strict=True)
            return reduce(torch.add, (torch.tensordot(w, h, ([0], [0])) for w, h in tiles))
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

    def tiles(self) -> Iterator[Tensor]:
        """All hₙ, some samples at a time."""
        tile = self.tile(self.g.shape[2] * self.a.shape[2])
        return (torch.bmm(g.mT, a) for g, a in zip(self.g.split(tile), self.a.split(tile), strict=True))
