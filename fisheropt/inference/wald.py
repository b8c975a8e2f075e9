"""The Wald test of linear restrictions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.theory.tails import chi2_tail

_RANK = 1e-10


@final
@dataclass(frozen=True)
class Wald:
    """The outcome of a Wald test of Rθ = v.

    Args:
        statistic: (Rθ̂ - v)ᵀ (R V Rᵀ)⁺ (Rθ̂ - v), χ² where the restrictions hold.
        dof: the rank of R V Rᵀ, below the number of rows where some say the same.
        p_value: P(χ² > statistic).
    """

    statistic: float
    dof: int
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"Wald test: χ²({self.dof}) = {self.statistic:.4g}, p = {self.p_value:.3g}"


def wald_test(difference: Tensor, covariance: Tensor, call: str) -> Wald:
    """The test of a difference Rθ̂ - v [q] with covariance R V Rᵀ [q, q].

    Raises:
        ValueError: where the data say nothing about the restrictions, or these contradict each other.

    Reference: wald1943tests
    """
    scale = covariance.diagonal()
    free = scale > 0
    if not bool(free.any()):
        raise ValueError(f"{call}: the data do not identify what is restricted, so there is nothing to test")
    unit = torch.where(free, scale, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(unit[:, None] * covariance * unit)
    kept = values > _RANK * values[-1]
    part = vectors.mT @ (unit * difference)
    if float(part[~kept].square().sum()) > 1e-12 * max(1.0, float(part.square().sum())):
        raise ValueError(
            f"{call}: the restrictions contradict each other, or fix a value that the data do not identify; "
            f"take the rows out that repeat others"
        )
    statistic = float((part[kept].square() / values[kept]).sum())
    dof = int(kept.sum())
    return Wald(statistic, dof, chi2_tail(statistic, dof))
