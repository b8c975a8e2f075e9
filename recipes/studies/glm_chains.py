"""Generalised linear models on a fixed data set, and many chains of SGD on it side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

_SOLVER_STEPS = 50


@final
@dataclass(frozen=True)
class Glm:
    """Data and link: "logistic" or "poisson".

    Args:
        x: features [n, d].
        y: responses [n].
        link: canonical link of the model.
    """

    x: Tensor
    y: Tensor
    link: Literal["logistic", "poisson"]

    def mean(self, predictor: Tensor) -> Tensor:
        """E y at a linear predictor; its derivative, the model's variance, is `variance`."""
        return predictor.sigmoid() if self.link == "logistic" else predictor.exp()

    def variance(self, predictor: Tensor) -> Tensor:
        """Variance of y by the model."""
        mean = self.mean(predictor)
        return mean * (1 - mean) if self.link == "logistic" else mean

    def scores(self, theta: Tensor) -> Tensor:
        """Gradients of the samples' losses [n, d]."""
        return (self.mean(self.x @ theta) - self.y)[:, None] * self.x

    def curvature(self, theta: Tensor) -> Tensor:
        """H [d, d], which is also the model's Fisher information F on these features."""
        return (self.x * self.variance(self.x @ theta)[:, None]).T @ self.x / len(self.x)

    def covariance(self, theta: Tensor) -> Tensor:
        """S [d, d], the covariance of the samples' gradients that divides by n - 1."""
        return torch.cov(self.scores(theta).T)

    def optimum(self) -> Tensor:
        """Newton's method to rounding."""
        theta = torch.zeros(self.x.shape[1], dtype=torch.float64)
        for _ in range(_SOLVER_STEPS):
            theta = theta - torch.linalg.solve(self.curvature(theta), self.scores(theta).mean(0))
        return theta

    def gradients(self, theta: Tensor, chosen: Tensor) -> Tensor:
        """Mean gradients [c, d] of the batches `chosen` [c, b] at the chains' parameters [c, d]."""
        x, y = self.x[chosen], self.y[chosen]
        residuals = self.mean((x @ theta[:, :, None])[..., 0]) - y
        return (residuals[:, None] @ x)[:, 0] / chosen.shape[1]


def logistic(n: int, d: int, condition: float, generator: torch.Generator) -> Glm:
    """Well specified, with feature variances log-spaced over `condition`."""
    x = 1.6 * _features(n, d, condition, generator)
    theta = torch.randn(d, generator=generator, dtype=torch.float64)
    theta = theta / (x @ theta).std()
    return Glm(x, torch.bernoulli((x @ theta).sigmoid(), generator=generator), "logistic")


def inflated_poisson(n: int, d: int, generator: torch.Generator) -> Glm:
    """Counts with too many zeros, the more the larger the first feature: of the right mean, but overdispersed."""
    x = _features(n, d, 3.0, generator) / 2
    theta = 0.5 * torch.randn(d, generator=generator, dtype=torch.float64)
    dispersion = 2 + 4 * x[:, 0].abs()
    kept = torch.rand(n, generator=generator, dtype=torch.float64) < 1 / (1 + dispersion)
    return Glm(x, torch.poisson((x @ theta).exp() * (1 + dispersion), generator=generator) * kept, "poisson")


def _features(n: int, d: int, condition: float, generator: torch.Generator) -> Tensor:
    scales = torch.logspace(0, 0.5, d, base=1 / condition, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) * scales


def batches(n: int, b: int, chains: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches drawn with replacement, [chains, b] each, for ever."""
    while True:
        yield torch.randint(n, (chains, b), generator=generator)


def epochs(n: int, b: int, chains: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Disjoint batches of shuffled epochs, [chains, b] each, for ever; every chain has an order of its own."""
    while True:
        order = torch.argsort(torch.rand(chains, n, generator=generator), dim=1)
        yield from order.split(b, dim=1)


def descend(
    model: Glm,
    theta: Tensor,
    drawn: Iterator[Tensor],
    lr: float,
    steps: int,
    see: Callable[[int, Tensor, Tensor], None],
) -> Tensor:
    """SGD of all chains; `see` gets the step, the parameters before it and the gradients [c, d]."""
    for step in range(steps):
        gradients = model.gradients(theta, next(drawn))
        see(step, theta, gradients)
        theta = theta - lr * gradients
    return theta


def stationary(
    model: Glm, drawn: Iterator[Tensor], lr: float, chains: int, burn: int, steps: int, every: int = 1
) -> Tensor:
    """Empirical covariance [d, d] of the chains around the optimum, at each `every`-th step after `burn`."""
    centre = model.optimum()
    total, seen = torch.zeros(len(centre), len(centre), dtype=torch.float64), 0

    def see(step: int, theta: Tensor, _: Tensor) -> None:
        nonlocal total, seen
        if step >= burn and (step - burn) % every == 0:
            total = total + (theta - centre).T @ (theta - centre)
            seen += len(theta)

    descend(model, centre.expand(chains, -1).clone(), drawn, lr, burn + steps, see)
    return total / seen


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error of a matrix."""
    return float((found - expected).norm() / expected.norm())
