"""The gradients of a parameter that is used several times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.cost import Ways
from fisheropt.cost import tied as works
from fisheropt.directions import Directions
from fisheropt.persample.base import PerSample, tile_of
from fisheropt.persample.dense import Dense
from fisheropt.persample.outer import Outer
from fisheropt.persample.rows import Rows


def joined(forms: list[PerSample]) -> PerSample:
    """The form of Σ_j hₙⱼ: calls are positions of one outer product, or of one look-up."""
    if len(forms) == 1:
        return forms[0]
    outer = [form for form in forms if isinstance(form, Outer)]
    rows = [form for form in forms if isinstance(form, Rows)]
    if len(outer) + len(rows) < len(forms):
        return Dense(torch.stack([form.materialise() for form in forms]).sum(0))
    if not outer:
        return _rows(rows)
    return Tied(_rows(rows), _outer(outer)) if rows else _outer(outer)


def _outer(forms: list[Outer]) -> Outer:
    g, a = torch.cat([form.g for form in forms], 1), torch.cat([form.a for form in forms], 1)
    return replace(forms[0], g=g, a=a)


def _rows(forms: list[Rows]) -> Rows:
    g, index = torch.cat([form.g for form in forms], 1), torch.cat([form.index for form in forms], 1)
    return replace(forms[0], g=g, index=index)


@final
@dataclass(frozen=True)
class Tied(PerSample):
    """The sum of both, for a table that embeds and un-embeds; their cross terms need only the rows looked up.

    Args:
        rows: of the embedding.
        outer: of the output layer.
    """

    rows: Rows
    outer: Outer
    ways: ClassVar[Mapping[str, Ways]] = works.WAYS

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*self.outer.sizes, self.rows.index.shape[1])

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def samples(self) -> int:
        return self.rows.samples

    def to(self, dtype: torch.dtype) -> PerSample:
        rows, outer = self.rows, self.outer
        rows, outer = replace(rows, g=rows.g.to(dtype)), replace(outer, g=outer.g.to(dtype), a=outer.a.to(dtype))
        return replace(self, rows=rows, outer=outer)

    def sum(self) -> Tensor:
        return self.rows.sum() + self.outer.sum()

    def square_sum(self) -> Tensor:
        rows = self.rows.distinct()
        cross = Rows(2 * rows.g * self._met(rows), rows.index, rows.size)
        return self.rows.square_sum() + self.outer.square_sum() + cross.sum()

    def squared_norms(self) -> Tensor:
        cross = (self.rows.g * self._met(self.rows)).sum((1, 2))
        return self.rows.squared_norms() + self.outer.squared_norms() + 2 * cross

    def project(self, directions: Directions) -> Tensor:
        return self.rows.project(directions) + self.outer.project(directions)

    def combine(self, weights: Tensor) -> Tensor:
        return self.rows.combine(weights) + self.outer.combine(weights)

    def materialise(self) -> Tensor:
        return self.rows.materialise() + self.outer.materialise()

    def _met(self, rows: Rows) -> Tensor:
        """The rows of the outer product at the places that were looked up, [n, t, d]."""
        positions = self.outer.g.shape[1]
        tile = tile_of(positions * rows.index.shape[1])
        parts = zip(self.outer.g.split(tile), self.outer.a.split(tile), rows.index.split(tile), strict=True)
        return torch.cat([g.gather(2, index[:, None].expand(-1, positions, -1)).mT @ a for g, a, index in parts])
