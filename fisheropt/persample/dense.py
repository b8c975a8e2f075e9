"""hₙ itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.cost import Ways
from fisheropt.cost import dense as works
from fisheropt.directions import Directions
from fisheropt.persample.base import PerSample, inner


@final
@dataclass(frozen=True)
class Dense(PerSample):
    """hₙ itself: biases, scales, bare parameters, or a microbatch (N = 1).

    Args:
        h: per-sample gradients, [n, *parameter].
    """

    h: Tensor
    ways: ClassVar[Mapping[str, Ways]] = works.WAYS

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.samples, self.h.shape[1:].numel()

    @property
    def device(self) -> torch.device:
        return self.h.device

    @property
    def samples(self) -> int:
        return self.h.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        return self if self.h.dtype is dtype else replace(self, h=self.h.to(dtype))

    def sum(self) -> Tensor:
        return self.h.sum(0)

    def square_sum(self) -> Tensor:
        return self.h.square().sum(0)

    def squared_norms(self) -> Tensor:
        return torch.linalg.vector_norm(self.h.reshape(self.samples, self.h.shape[1:].numel()), dim=1).square()

    def trace_and_sum(self) -> tuple[Tensor, Tensor]:
        return inner(self.h, self.h), self.sum()

    def project(self, directions: Directions) -> Tensor:
        return directions.of_dense(self.h)

    def combine(self, weights: Tensor) -> Tensor:
        return torch.tensordot(weights.to(self.h.dtype), self.h, ([0], [0]))

    def materialise(self) -> Tensor:
        return self.h
