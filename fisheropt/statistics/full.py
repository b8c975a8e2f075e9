"""The whole noise covariance of a group with few parameters: φ(h) = hhᵀ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fisheropt.directions import Coordinates, Directions
from fisheropt.statistics.base import JointStatistic


@final
@dataclass(frozen=True)
class FullCovariance(JointStatistic):
    """G, [d, d], over the parameters flattened and laid end to end: d² numbers, n·d of scratch."""

    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        size, start = self.rank(parameters), 0
        coordinates: dict[str, Directions] = {}
        for name, parameter in parameters.items():
            coordinates[name] = Coordinates(start, parameter.shape, size)
            start += parameter.numel()
        return coordinates

    def rank(self, parameters: dict[str, Tensor]) -> int:
        return sum(parameter.numel() for parameter in parameters.values())
