"""A Fisher matrix known by a few rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class LowRank:
    """V diag(λ) Vᵀ [P, P] with orthonormal columns V.

    Coordinates are the parameters end to end, each in its own order.

    Attributes:
        eigenvalues: λ [k], descending.
        vectors: V [P, k].
        parameters: their names, in the order of the coordinates.
    """

    eigenvalues: Tensor
    vectors: Tensor = field(repr=False)
    parameters: tuple[str, ...]

    def times(self, v: Tensor) -> Tensor:
        """V diag(λ) Vᵀ v of a vector [P] or of columns [P, m]."""
        return self.vectors @ _scaled(self.eigenvalues, self.vectors.T @ v)

    def solve(self, v: Tensor, damping: float) -> Tensor:
        """(V diag(λ) Vᵀ + ρ)⁻¹ v by Woodbury, = v/ρ - V diag(λ/(λ + ρ)) Vᵀ v/ρ.

        Args:
            v: [P], or columns [P, m].
            damping: ρ, above zero.

        Raises:
            ValueError: for a damping of zero or less.
        """
        if not 0 < damping < float("inf"):
            raise ValueError(
                f"low_rank.solve(v, damping={damping!r}): the matrix is singular; write damping=1e-3, above 0"
            )
        share = self.eigenvalues / (self.eigenvalues + damping)
        return (v - self.vectors @ _scaled(share, self.vectors.T @ v)) / damping


def leading(rows: Tensor, rank: int, parameters: tuple[str, ...]) -> LowRank:
    """The k leading pairs of RᵀR.

    Args:
        rows: R [m, P].
        rank: k, at most min(m, P).
        parameters: names of the coordinates.
    """
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    return LowRank(singular[:rank].square(), vectors[:rank].T, parameters)


def _scaled(weights: Tensor, v: Tensor) -> Tensor:
    return weights * v if v.ndim == 1 else weights[:, None] * v
