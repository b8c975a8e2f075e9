"""Row index_nt of hₙ receives gₙₜ: tables that are looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.cost import Ways
from fisheropt.cost import rows as works
from fisheropt.directions import Directions
from fisheropt.persample.base import PerSample, tile_of


@final
@dataclass(frozen=True)
class Rows(PerSample):
    """hₙ has gₙₜ added to row indexₙₜ, and is zero elsewhere.

    A row that a sample looks up several times has a sum of gradients, which is formed before anything is squared.

    Args:
        g: gradients of the rows looked up, [n, t, d]; zero where none is to count.
        index: which rows, [n, t].
        size: the number of rows of the parameter.
    """

    g: Tensor
    index: Tensor
    size: int
    ways: ClassVar[Mapping[str, Ways]] = works.WAYS

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*self.g.shape, self.size)

    @property
    def device(self) -> torch.device:
        return self.g.device

    @property
    def samples(self) -> int:
        return self.g.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        return self if self.g.dtype is dtype else replace(self, g=self.g.to(dtype))

    def sum(self) -> Tensor:
        return self._table(self.g)

    def square_sum(self) -> Tensor:
        distinct = self.distinct()
        return distinct._table(distinct.g.square())

    def squared_norms(self) -> Tensor:
        return self.distinct().g.square().sum((1, 2))

    def project(self, directions: Directions) -> Tensor:
        return directions.of_implicit(self)

    def combine(self, weights: Tensor) -> Tensor:
        columns = weights.to(self.g.dtype).unbind(1)
        return torch.stack([self._table(self.g * w[:, None, None]) for w in columns])

    def materialise(self) -> Tensor:
        empty = self.g.new_zeros(self.samples, self.size, self.g.shape[2])
        return empty.scatter_add(1, self.index[:, :, None].expand_as(self.g), self.g)

    def along_dense(self, basis: Tensor) -> Tensor:
        """⟨hₙ, v_k⟩ by looking the same rows of v_k up, [n, k]."""
        return torch.stack([(v[self.index] * self.g).sum((1, 2)) for v in basis.to(self.g.dtype)], 1)

    def along_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """⟨hₙ, p_k q_kᵀ⟩, [n, k]."""
        return ((self.g @ right.to(self.g.dtype).T) * left.to(self.g.dtype).T[self.index]).sum(1)

    def tiles(self) -> Iterator[Tensor]:
        """All hₙ, some samples at a time."""
        tile = tile_of(self.size * self.g.shape[2])
        for g, index in zip(self.g.split(tile), self.index.split(tile), strict=True):
            yield Rows(g, index, self.size).materialise()

    def distinct(self) -> Rows:
        """The same with every row at most once in a sample, as sums over equal ones; what is left over is zero."""
        index, order = self.index.sort(1)
        begins = torch.zeros_like(index)
        begins[:, 1:] = (index[:, 1:] != index[:, :-1]).to(index.dtype)
        place = begins.cumsum(1)
        g = self.g.gather(1, order[:, :, None].expand_as(self.g))
        g = torch.zeros_like(g).scatter_add(1, place[:, :, None].expand_as(g), g)
        return Rows(g, torch.zeros_like(index).scatter(1, place, index), self.size)

    def _table(self, g: Tensor) -> Tensor:
        """Rows added up over all samples, [size, d]."""
        return g.new_zeros(self.size, g.shape[2]).index_add(0, self.index.flatten(), g.flatten(0, 1))
