"""Quadrature for standard Gaussian vectors: lattices in up to three dimensions, scrambled Sobol points above.

The trapezoidal rule of spacing h integrates a Gaussian times a function analytic in a strip of half-width a
with an error of order exp(-2 pi a / h); for softmax weights a is pi over the standard deviation of the
logits.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_SPACING = {1: 1 / 32, 2: 1 / 4, 3: 1 / 2}
_RADIUS = {1: 8.5, 2: 8.0, 3: 6.5}
_SOBOL_LOG2 = 13


class Rule(NamedTuple):
    """Points [n, r] and weights [n] (summing to one) with E h(g) ~ sum_i weights_i h(points_i)."""

    points: Tensor
    weights: Tensor


def _lattice(dimension: int, spacing: float, radius: float) -> Rule:
    reach = math.floor(radius / spacing)
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64) * spacing
    points = torch.cartesian_prod(*[axis] * dimension).reshape(-1, dimension)
    squares = points.square().sum(1)
    inside = squares <= radius**2
    return Rule(points[inside], torch.softmax(-squares[inside] / 2, 0))


def _sobol(dimension: int, log2_count: int, seed: int) -> Rule:
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=seed)
    uniform = engine.draw(2**log2_count, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    half = torch.special.ndtri(uniform)
    points = torch.cat((half, -half))
    return Rule(points, torch.full((len(points),), 1 / len(points), dtype=torch.float64))


def gaussian_rule(dimension: int, *, coarsen: float = 1.0, seed: int = 0) -> Rule:
    """Quadrature rule for N(0, I_r).

    Args:
        dimension: r, the number of Gaussian coordinates; 0 gives the one point of a constant.
        coarsen: Factor on the lattice spacing; with Sobol points the count is divided by its square.
        seed: Seed of the scrambling; unused by the lattices.
    """
    if dimension == 0:
        return Rule(torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    if dimension in _SPACING:
        return _lattice(dimension, _SPACING[dimension] * coarsen, _RADIUS[dimension])
    return _sobol(dimension, max(6, _SOBOL_LOG2 - round(2 * math.log2(coarsen))), seed)


def resolving_factor(dimension: int, spread: float) -> float:
    """The `coarsen` at which softmax of logits of standard deviation `spread` is integrated to about 1e-5."""
    return 1.6 / (max(spread, 1e-300) * _SPACING[dimension])
