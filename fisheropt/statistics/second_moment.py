"""The diagonal of a parameter's noise covariance: φ(h) = h²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.persample import PerSample
from fisheropt.statistics.base import Need, ParameterStatistic, Shape


@final
@dataclass(frozen=True)
class SecondMoment(ParameterStatistic):
    """diag G of each parameter, shaped like it."""

    shape: ClassVar[Shape] = "diagonal"

    def size(self, parameter: Tensor) -> torch.Size:
        return parameter.shape

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return (("square_sum", ()),)

    def of(self, form: PerSample) -> Tensor:
        return form.square_sum()

    def of_and_sum(self, form: PerSample) -> tuple[Tensor, Tensor]:
        return form.squares_and_sum()
