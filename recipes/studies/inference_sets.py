"""Many misspecified data sets side by side, and the maximum likelihood fit of each, by Newton's method in a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fisheropt.theory.sandwich import (
    Correction,
    correction_factor,
    leverage_adjusted,
    restricted_inverse,
    sandwich_covariance,
    score_noise,
)
from fisheropt.theory.tails import two_sided_quantile

_SOLVER_STEPS = 20
_SOLVED = 1e-12
_STEEPNESS = 6.0
_NODES = 4001


@final
@dataclass(frozen=True)
class Sets:
    """Data sets of one kind.

    Args:
        x: features [sets, n, d], the first of them one.
        y: responses [sets, n].
        truth: the parameters [d] that fit best in the population.
        mean: of the fitted model, at a linear predictor.
        variance: of the fitted model, its derivative.
        likelihood: name of the fitted model.
    """

    x: Tensor
    y: Tensor
    truth: Tensor
    mean: Callable[[Tensor], Tensor]
    variance: Callable[[Tensor], Tensor]
    likelihood: str

    def fits(self) -> Tensor:
        """Estimates [sets, d]."""
        theta = self.x.new_zeros(len(self.x), self.x.shape[-1])
        for _ in range(_SOLVER_STEPS):
            score = self.scores(theta).mean(-2)
            if float(score.abs().max()) < _SOLVED:
                break
            theta = theta - (restricted_inverse(self.curvature(theta)) @ score[..., None])[..., 0]
        return theta

    def scores(self, theta: Tensor) -> Tensor:
        """Gradients of the samples' losses [sets, n, d]."""
        return (self.mean(self._predictor(theta)) - self.y)[..., None] * self.x

    def roots(self, theta: Tensor) -> Tensor:
        """Roots of the samples' information [sets, n, 1, d]."""
        return (self.variance(self._predictor(theta)).sqrt()[..., None] * self.x)[..., None, :]

    def curvature(self, theta: Tensor) -> Tensor:
        """H [sets, d, d]."""
        weighted = self.variance(self._predictor(theta))[..., None] * self.x
        return self.x.mT @ weighted / self.x.shape[-2]

    def _predictor(self, theta: Tensor) -> Tensor:
        return (self.x @ theta[..., None])[..., 0]


def covered(sets: Sets, theta: Tensor, correction: Correction | None, level: float = 0.95) -> Tensor:
    """Share of the d intervals of each set [sets] that hold the truth; None takes H⁻¹/n, as if the model were true."""
    n, d = sets.x.shape[-2:]
    H = sets.curvature(theta)
    covariance = restricted_inverse(H) / n
    if correction is not None:
        scores = leverage_adjusted(sets.scores(theta), sets.roots(theta), covariance, correction)
        covariance = correction_factor(correction, n, d) * sandwich_covariance(H, score_noise(scores), n)
    errors = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    return ((theta - sets.truth).abs() <= two_sided_quantile(level) * errors).double().mean(-1)


def heteroscedastic(count: int, n: int, d: int, generator: torch.Generator) -> Sets:
    """A linear model of the right mean, whose noise grows with the first feature."""
    x, beta = _design(count, n, d, generator)
    noise = torch.randn(x.shape[:-1], generator=generator, dtype=x.dtype) * (0.5 + x[..., 1].abs())
    return Sets(x, x @ beta + noise, beta, lambda eta: eta, torch.ones_like, "gaussian")


def overdispersed(count: int, n: int, d: int, generator: torch.Generator) -> Sets:
    """Counts of variance λ + λ²/2 fitted by a Poisson regression."""
    x, beta = _design(count, n, d, generator)
    uniform = torch.rand(2, *x.shape[:-1], generator=generator, dtype=x.dtype)
    rate = (x @ beta).exp() * -(1 - uniform).log().mean(0)
    return Sets(x, torch.poisson(rate, generator=generator), beta, torch.exp, torch.exp, "poisson")


def wrong_link(count: int, n: int, d: int, generator: torch.Generator) -> Sets:
    """Labels with a Cauchy link, steep and heavy in its tails, fitted by a logistic regression.

    With normal features the best parameters are along the true slopes, so two numbers determine them, by quadrature.
    """
    x, beta = _design(count, n, d, generator)
    y = torch.rand(x.shape[:-1], generator=generator, dtype=x.dtype) < _cauchy(x @ beta)
    slope = beta[1:].norm()
    t = torch.linspace(-8, 8, _NODES, dtype=x.dtype)
    weight = (-t.square() / 2).exp() / (-t.square() / 2).exp().sum()
    line = torch.stack((torch.ones_like(t), t), 1)
    best = x.new_zeros(2)
    for _ in range(50):
        p = (line @ best).sigmoid()
        curvature = (line * (weight * p * (1 - p))[:, None]).mT @ line
        best = best - torch.linalg.solve(curvature, line.mT @ (weight * (p - _cauchy(beta[0] + slope * t))))
    truth = torch.cat((best[:1], best[1] * beta[1:] / slope))
    return Sets(x, y.to(x.dtype), truth, torch.sigmoid, lambda eta: eta.sigmoid() * (-eta).sigmoid(), "bernoulli")


KINDS: dict[str, Callable[[int, int, int, torch.Generator], Sets]] = {
    "heteroscedastic linear": heteroscedastic,
    "overdispersed Poisson": overdispersed,
    "logistic, wrong link": wrong_link,
}


def _cauchy(eta: Tensor) -> Tensor:
    return 0.5 + (_STEEPNESS * eta).atan() / math.pi


def _design(count: int, n: int, d: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, n, d, generator=generator, dtype=torch.float64)
    x[..., 0] = 1
    return x, torch.linspace(0.2, 1, d, dtype=torch.float64) / d**0.5
