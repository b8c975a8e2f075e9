"""The noise covariance in k directions: φ(h) = Uᵀh (Uᵀh)ᵀ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.statistics.base import JointStatistic


@final
@dataclass(frozen=True)
class Projection(JointStatistic):
    """UᵀGU, [k, k]; the coordinates ⟨hₙ, v_k⟩ are summed over parameters before they are squared.

    Args:
        along: the part of the k directions in each parameter, by the parameter's name; a parameter left out has none.

    Raises:
        ValueError: for directions of an unknown parameter, or parts of different numbers of directions.
    """

    along: Mapping[str, Directions]

    def __post_init__(self) -> None:
        if len({d.count for d in self.along.values()}) != 1:
            numbers = {name: d.count for name, d in self.along.items()}
            raise ValueError(f"Projection needs the same number of directions in every parameter, found {numbers}")

    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        unknown = [name for name in self.along if name not in parameters]
        if unknown:
            raise ValueError(f"directions are given for {unknown}; the parameters are {list(parameters)}")
        return dict(self.along)

    def rank(self, parameters: dict[str, Tensor]) -> int:
        return next(iter(self.along.values())).count
