"""The noise trace of a parameter: φ(h) = ‖h‖²."""

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
class Trace(ParameterStatistic):
    """tr G of each parameter, from the norms ‖hₙ‖², which need no per-sample gradient."""

    shape: ClassVar[Shape] = "trace"

    def size(self, parameter: Tensor) -> torch.Size:
        return torch.Size(())

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return (("norms", ()),)

    def of(self, form: PerSample) -> Tensor:
        return form.squared_norms().sum()

    def of_and_sum(self, form: PerSample) -> tuple[Tensor, Tensor]:
        return form.trace_and_sum()
