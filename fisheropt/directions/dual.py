"""Directions as sums over the samples of an earlier batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.directions.base import Directions, Implicit
from fisheropt.directions.dense import DenseDirections

_NUMBERS = 1 << 23  # in one matrix of inner products between positions


@final
@dataclass(frozen=True)
class DualDirections(Directions):
    """k matrices v_k = Σ_m c_mk h'_m in the span of an earlier batch's gradients, of which only the factors are held.

    With h'_m = Σₛ g'_ms a'_msᵀ the products ⟨hₙ, v_k⟩ are those of the features and of the output gradients, and no vector
    of the parameter's size is formed: at one position a sample, ⟨hₙ, v_k⟩ = Σ_m (gₙᵀg'_m)(aₙᵀa'_m) c_mk. It holds
    m(o + i + k) numbers in place of k·o·i. Exact for a batch's own eigenvectors, which lie in that span.

    Args:
        g: gradients of the layer's outputs on the earlier batch, [m, s, o].
        a: its inputs, [m, s, i].
        coefficients: c, [m, k].
    """

    g: Tensor
    a: Tensor
    coefficients: Tensor

    @property
    def count(self) -> int:
        return self.coefficients.shape[1]

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        samples, positions, outputs, inputs = *g.shape, a.shape[2]
        held, places = self.g.shape[:2]
        crossed = samples * positions * held * places * (outputs + inputs)
        formed = (self.count * (held * places + samples) + samples * positions) * outputs * inputs
        if crossed > formed:
            dense, tile = self.dense(g.dtype), max(1, _NUMBERS // (outputs * inputs))
            return torch.cat([dense.of_dense(x.mT @ y) for x, y in zip(g.split(tile), a.split(tile), strict=True)])
        tile = max(1, _NUMBERS // (positions * held * places))
        weights = self.coefficients.to(g.dtype)
        return torch.cat([self._crossed(x, y) @ weights for x, y in zip(g.split(tile), a.split(tile), strict=True)])

    def of_dense(self, h: Tensor) -> Tensor:
        samples, held = h.shape[0], self.g.shape[0] * self.g.shape[1]
        if samples * held > self.count * (samples + held):
            return self.dense(h.dtype).of_dense(h)
        matrices = h.reshape(samples, self.g.shape[2], -1)
        met = torch.einsum("noi,msi,mso->nm", matrices, self.a.to(h.dtype), self.g.to(h.dtype))
        return met @ self.coefficients.to(h.dtype)

    def of_implicit(self, form: Implicit) -> Tensor:
        return form.along_dense(self.dense().basis)

    def combine(self, coefficients: Tensor) -> Tensor:
        return self._sum(self.coefficients @ coefficients.to(self.coefficients.dtype))

    def dense(self, dtype: torch.dtype | None = None) -> DenseDirections:
        """The same as k matrices.

        Args:
            dtype: of theirs; as held if left out.
        """
        g, a, weights = (x.to(dtype or self.g.dtype) for x in (self.g, self.a, self.coefficients))
        places, outputs = g.shape[1:]
        if places * self.count > places + self.count:
            tile = max(1, _NUMBERS // (outputs * a.shape[2]))
            parts = zip(weights.split(tile), g.split(tile), a.split(tile), strict=True)
            return DenseDirections(torch.stack([torch.tensordot(w, x.mT @ y, ([0], [0])) for w, x, y in parts]).sum(0))
        scaled = torch.einsum("mk,mso->msko", weights, g).flatten(0, 1).flatten(1)
        return DenseDirections((scaled.T @ a.flatten(0, 1)).unflatten(0, (self.count, outputs)))

    def _crossed(self, g: Tensor, a: Tensor) -> Tensor:
        """⟨hₙ, h'_m⟩, [n, m]."""
        outputs = g.flatten(0, 1) @ self.g.to(g.dtype).flatten(0, 1).T
        products = outputs * (a.flatten(0, 1) @ self.a.to(a.dtype).flatten(0, 1).T)
        if len(products) == len(g) and products.shape[1] == len(self.g):
            return products
        return products.unflatten(0, g.shape[:2]).unflatten(2, self.g.shape[:2]).sum((1, 3))

    def _sum(self, weights: Tensor) -> Tensor:
        """Σ_m w_m h'_m, [o, i]."""
        g = self.g * weights.to(self.g.dtype)[:, None, None]
        return g.flatten(0, 1).T @ self.a.flatten(0, 1)
