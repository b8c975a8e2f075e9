"""Per-sample gradients in the form in which a layer gives them.

Index legend: n sample, t position inside a sample, o output and i input feature, k direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.directions import Directions

_TILE = 1 << 23  # numbers in one temporary [tile, o, i]: 32 MiB of float32


class PerSample(ABC):
    """The gradients hₙ of one parameter, n = 1..N, which are never all formed unless asked for."""

    @property
    @abstractmethod
    def samples(self) -> int:
        """The number of samples N."""

    @abstractmethod
    def to(self, dtype: torch.dtype) -> PerSample:
        """The same in another dtype."""

    @abstractmethod
    def sum(self) -> Tensor:
        """Σₙ hₙ, shaped like the parameter."""

    @abstractmethod
    def square_sum(self) -> Tensor:
        """Σₙ hₙ², elementwise, shaped like the parameter."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """‖hₙ‖², shape [n]."""

    @abstractmethod
    def project(self, directions: Directions) -> Tensor:
        """⟨hₙ, v_k⟩, shape [n, k]."""

    @abstractmethod
    def combine(self, weights: Tensor) -> Tensor:
        """Σₙ wₙₖ hₙ for weights [n, k]: [k, *parameter], one weight gradient a column."""

    @abstractmethod
    def materialise(self) -> Tensor:
        """All hₙ, shape [n, *parameter]: for tests, and where nothing cheaper exists."""


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

    @property
    def samples(self) -> int:
        return self.g.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        return Outer(self.g.to(dtype), self.a.to(dtype))

    def sum(self) -> Tensor:
        return self.g.flatten(0, 1).T @ self.a.flatten(0, 1)

    def square_sum(self) -> Tensor:
        if self.g.shape[1] == 1:
            return self.g[:, 0].square().T @ self.a[:, 0].square()
        tile = max(1, _TILE // (self.g.shape[2] * self.a.shape[2]))
        tiles = zip(self.g.split(tile), self.a.split(tile), strict=True)
        return torch.stack([Outer(g, a).materialise().square().sum(0) for g, a in tiles]).sum(0)

    def squared_norms(self) -> Tensor:
        positions, outputs, inputs = self.g.shape[1], self.g.shape[2], self.a.shape[2]
        if positions == 1:
            return self.g.square().sum((1, 2)) * self.a.square().sum((1, 2))
        if positions * (outputs + inputs) <= outputs * inputs:
            return ((self.g @ self.g.mT) * (self.a @ self.a.mT)).sum((1, 2))
        tile = max(1, _TILE // (outputs * inputs))
        tiles = zip(self.g.split(tile), self.a.split(tile), strict=True)
        return torch.cat([Outer(g, a).materialise().square().sum((1, 2)) for g, a in tiles])

    def project(self, directions: Directions) -> Tensor:
        return directions.of_outer(self.g, self.a)

    def combine(self, weights: Tensor) -> Tensor:
        samples, positions, outputs = self.g.shape
        narrow = min(outputs, self.a.shape[2])
        tile = max(1, _TILE // max(1, samples * positions * narrow))
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


@final
@dataclass(frozen=True)
class Dense(PerSample):
    """hₙ itself: biases, scales, bare parameters, or a microbatch (N = 1).

    Args:
        h: per-sample gradients, [n, *parameter].
    """

    h: Tensor

    @property
    def samples(self) -> int:
        return self.h.shape[0]

    def to(self, dtype: torch.dtype) -> PerSample:
        return Dense(self.h.to(dtype))

    def sum(self) -> Tensor:
        return self.h.sum(0)

    def square_sum(self) -> Tensor:
        return self.h.square().sum(0)

    def squared_norms(self) -> Tensor:
        return self.h.reshape(self.samples, -1).square().sum(1)

    def project(self, directions: Directions) -> Tensor:
        return directions.of_dense(self.h)

    def combine(self, weights: Tensor) -> Tensor:
        return torch.tensordot(weights.to(self.h.dtype), self.h, ([0], [0]))

    def materialise(self) -> Tensor:
        return self.h


def joined(forms: list[PerSample]) -> PerSample:
    """The form of Σ_j hₙⱼ, for a parameter that is used several times: calls are positions of one outer product."""
    if len(forms) == 1:
        return forms[0]
    outer = [form for form in forms if isinstance(form, Outer)]
    if len(outer) == len(forms):
        return Outer(torch.cat([form.g for form in outer], 1), torch.cat([form.a for form in outer], 1))
    return Dense(torch.stack([form.materialise() for form in forms]).sum(0))
