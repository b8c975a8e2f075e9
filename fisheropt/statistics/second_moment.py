"""The diagonal of a parameter's noise covariance: φ(h) = h²."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.persample import PerSample
from fisheropt.statistics.base import ParameterStatistic, Shape


@final
@dataclass(frozen=True)
class SecondMoment(ParameterStatistic):
    """diag G of each parameter, shaped like it."""

    shape: ClassVar[Shape] = "diagonal"

    def size(self, parameter: Tensor) -> torch.Size:
        return parameter.shape

    def of(self, form: PerSample) -> Tensor:
        return form.square_sum()
