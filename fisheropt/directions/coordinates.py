"""Unit vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from fisheropt.directions.base import Directions, Implicit


@final
@dataclass(frozen=True)
class Coordinates(Directions):
    """The unit vectors of a group's flattened space: entry j of this parameter is coordinate `start` + j.

    Args:
        start: where this parameter begins in the flattened space.
        shape: the parameter's shape.
        size: the dimension of the flattened space.
    """

    start: int
    shape: torch.Size
    size: int
    kind: ClassVar[str] = "coordinates"

    @property
    def count(self) -> int:
        return self.size

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        return self.of_dense(g.mT @ a)

    def of_dense(self, h: Tensor) -> Tensor:
        flat = h.reshape(h.shape[0], self.shape.numel())
        return pad(flat, (self.start, self.size - self.start - flat.shape[1]))

    def of_implicit(self, form: Implicit) -> Tensor:
        return torch.cat([self.of_dense(h) for h in form.tiles()])

    def combine(self, coefficients: Tensor) -> Tensor:
        return coefficients[self.start : self.start + self.shape.numel()]
