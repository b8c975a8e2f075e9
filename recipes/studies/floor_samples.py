"""What the studies of the floor draw: scores whose Fisher matrix is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fisheropt.theory import mixture
from recipes.studies.draws import normal

FAMILIES = ("gaussian", "student", "logistic", "mixture")
_FREEDOM = 5
_GRID = 12.0


def extremes(d: int, n: int, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """‖Γₙ - I‖ and λ_min(Γₙ) of n isotropic Gaussian scores in d dimensions, [draws] each."""
    values = torch.empty(draws, d, dtype=torch.float64)
    for row in values:
        scores = normal(n, d, generator=generator)
        row.copy_(torch.linalg.eigvalsh(scores.T @ scores / n))
    return (values - 1).abs().amax(1), values[:, 0]


def standard_scores(family: str, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Scores [data sets, n, k] with Γ = I: Gaussian, Student with 5 degrees of freedom, logistic, mixture (r = 1)."""
    draws, n, k = shape
    z = normal(*shape, generator=generator)
    if family == "gaussian":
        return z
    if family == "student":
        chi = normal(draws, n, k, _FREEDOM, generator=generator).square().sum(-1)
        return z * (_FREEDOM / chi).sqrt() * math.sqrt(1 - 2 / _FREEDOM)
    uniform = torch.rand(draws, n, generator=generator, dtype=torch.float64)
    if family == "logistic":
        p = torch.sigmoid(z[..., 0])
        scores, (along, across) = ((uniform < p).double() - p)[..., None] * z, _logistic_information()
    else:
        mean = torch.eye(k, dtype=torch.float64)[0]
        x = z + ((uniform < 0.5).double() * 2 - 1)[..., None] * mean
        scores = mixture.score(mean, x.reshape(-1, k)).reshape(shape)
        along, across = mixture.fisher_coefficients(1.0)
    scale = torch.full((k,), across, dtype=torch.float64)
    scale[0] = along
    return scores / scale.sqrt()


def _logistic_information() -> tuple[float, float]:
    """E p(1-p) x² along θ and E p(1-p) across it, |θ| = 1 and x ~ N(0, I), by the trapezoidal rule."""
    x = torch.arange(-_GRID, _GRID, 1 / 64, dtype=torch.float64)
    p = torch.sigmoid(x)
    density = torch.softmax(-(x**2) / 2, 0) * p * (1 - p)
    return float(density @ x**2), float(density.sum())


def crossing(xs: Sequence[float], ys: Sequence[float], level: float) -> float:
    """Where the broken line through the points first rises to `level`; NaN where it never does."""
    points = list(zip(xs, ys, strict=True))
    for (x, y), (right, above) in zip(points, points[1:], strict=False):
        if y < level <= above:
            return x + (level - y) / (above - y) * (right - x)
    return math.nan
