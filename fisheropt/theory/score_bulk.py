"""The bulk of a matrix of scores, M = (1/n) Σ sₙsₙᵀ: where it ends, and what an eigenvalue beyond its end is worth.

With bulk scores sₙ = √fₙ yₙ, yₙ isotropic in d dimensions, fₙ = ‖sₙ‖²/d is all that the spectrum depends on (φ = n/d):

    z(S) = -1/S + φ E[f/(φ + S f)]

An eigenvector along which scores are √a times as large appears at the z with z = a φ E[f/(φ + S f)] = F(z), where its
share of the sample's eigenvector is |r|² = 1/(1 - F'(z)). Read backwards, a measured z gives a and |r|² without a fit.

Reference: silverstein1995analysis, benarous2025local
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.theory.arguments import checked_positive
from fisheropt.theory.informative import tracy_widom_quantile
from fisheropt.theory.mixture_nodes import Nodes
from fisheropt.theory.outliers import Edge, right_edge
from fisheropt.theory.root_finding import bracketed_root
from fisheropt.theory.silverstein import Silverstein


@final
@dataclass(frozen=True)
class Spike:
    """What a measured eigenvalue says of the direction behind it.

    Attributes:
        strength: a, the variance of the scores along the direction over that of a bulk direction; 1 below the edge.
        overlap: |r|², the squared cosine between the sample's eigenvector and the direction; 0 below the edge.
        eigenvalue: |r|² z + (1 - |r|²) bulk mean, what the matrix of the population has along the sample's eigenvector.
    """

    strength: float
    overlap: float
    eigenvalue: float


@final
@dataclass(frozen=True)
class ScoreBulk:
    """The bulk of a matrix of scores in the limit of many dimensions.

    Attributes:
        edge: its right end.
        scale: γ, by which the largest bulk eigenvalue is edge + γ d^(-2/3) TW₁.
        mean: the mean eigenvalue E f.
        dimension: d.
    """

    edge: float
    scale: float
    mean: float
    dimension: float
    _law: Silverstein
    _end: Edge
    _unit: float

    def threshold(self, level: float = 0.01) -> float:
        """What the largest bulk eigenvalue exceeds with probability `level`.

        Args:
            level: the probability of a false outlier.
        """
        width = self.scale * self.dimension ** (-2 / 3)
        return self.edge + max(0.0, width * tracy_widom_quantile(1 - level))

    def spike(self, eigenvalue: float) -> Spike:
        """Strength and overlap behind an eigenvalue z of the matrix.

        Args:
            eigenvalue: z; at or below the edge nothing is known but that the overlap vanishes.
        """
        if not math.isfinite(eigenvalue):
            raise ValueError(f"ScoreBulk.spike({eigenvalue!r}): the eigenvalue must be a finite number")
        if eigenvalue <= self.edge * (1 + 1e-9):
            return Spike(1.0, 0.0, self.mean)
        point = self._law.at(self._transform(eigenvalue / self._unit))
        strength = point.z / float(point.moment)
        overlap = 1 / (1 - strength * float(point.moment_slope) / point.slope)
        return Spike(strength, overlap, overlap * eigenvalue + (1 - overlap) * self.mean)

    def _transform(self, z: float) -> float:
        """S(z) right of the bulk: beyond -1/(2z) the curve is above 2z, as it is above -1/S everywhere."""
        return bracketed_root(lambda s: self._law.at(s).z - z, self._end.s, -0.5 / z)


def score_bulk(squared_norms: Tensor, count: float, dimension: float, *, weights: Tensor | None = None) -> ScoreBulk:
    """The bulk that scores of these sizes have by themselves, without any direction that stands out.

    Args:
        squared_norms: ‖s‖² [m] of a sample of the scores, without their parts along outliers.
        count: n, the number of scores that M is the mean of, or the effective one.
        dimension: d, the number of directions that the bulk has; for an anisotropic one tr(Σ)²/tr(Σ²).
        weights: how often each size occurs, [m]; all alike if left out.

    Returns:
        The bulk.

    Raises:
        ValueError: for sizes that are negative, not finite, or all zero, and for n or d that are not positive.
    """
    call = f"score_bulk(squared_norms, count={count!r}, dimension={dimension!r})"
    n, d = checked_positive(count, "count", call), checked_positive(dimension, "dimension", call)
    sizes = squared_norms.detach().to(torch.float64)
    shares = torch.ones_like(sizes) if weights is None else weights.detach().to(torch.float64)
    if sizes.ndim != 1 or shares.shape != sizes.shape:
        raise ValueError(
            f"{call}: `squared_norms` and `weights` must be vectors of one length, got shapes {tuple(sizes.shape)} and "
            f"{tuple(shares.shape)}; write scores.square().sum(1)"
        )
    held = shares > 0
    sizes, shares = sizes[held], shares[held]
    if not len(sizes) or not bool(sizes.isfinite().all()) or float(sizes.min()) < 0 or float(sizes.max()) == 0:
        raise ValueError(f"{call}: `squared_norms` must be finite, non-negative and not all zero, found {sizes[:5]}...")
    unit = float(sizes.max()) / d
    law = _law(sizes / d / unit, shares / shares.sum(), n / d)
    end = right_edge(law)
    return ScoreBulk(end.z * unit, end.scale * unit, law.mean * unit, d, law, end, unit)


def _law(f: Tensor, weights: Tensor, ratio: float) -> Silverstein:
    """The law of weights f, with one direction whose moment is φ E[f/(φ + S f)]."""
    none = torch.zeros(len(f), 0, dtype=torch.float64)
    labels = torch.zeros(len(f), dtype=torch.long)
    one, point = torch.ones(len(f), 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    return Silverstein(Nodes(weights, labels, none, one, point), f, 1.0, ratio)
