"""Logistic regression without intercept in batches of data sets: draws, Fisher matrix, descent with and without a floor.

Index legend: s data sets; n samples; d features. The loss is canonical, so its Hessian is the model Fisher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.problems.synthetic import linearly_separable
from recipes.studies.arguments import require
from recipes.studies.draws import normal

REFUSED = 1000
NEWTON = 60


@final
@dataclass(frozen=True)
class Data:
    """Features x [s, n, d] and labels y [s, n] of s data sets."""

    x: Tensor
    y: Tensor

    def logits(self, theta: Tensor) -> Tensor:
        """⟨x, θ⟩, [s, n], at θ [s, d]."""
        return (self.x @ theta[..., None])[..., 0]

    def loss(self, theta: Tensor) -> Tensor:
        """Mean log loss, [s]."""
        z = self.logits(theta)
        return (F.softplus(z) - self.y * z).mean(1)

    def gradient(self, theta: Tensor) -> Tensor:
        """Its gradient, [s, d]."""
        return self._mean(torch.sigmoid(self.logits(theta)) - self.y)

    def fisher(self, theta: Tensor) -> Tensor:
        """Γₙ = (1/n) Σ p(1-p) xxᵀ, [s, d, d]."""
        weights = self._weights(theta)
        return self.x.mT @ (weights[..., None] * self.x) / self.x.shape[1]

    def lifting(self, theta: Tensor, direction: Tensor) -> Tensor:
        """Gradient of vᵀΓₙv with v [s, d] held, which is that of λ_min at its eigenvector, [s, d]."""
        z = self.logits(theta)
        return self._mean(self.logits(direction).square() * self._weights(theta) * (1 - 2 * torch.sigmoid(z)))

    def steepest(self) -> Tensor:
        """L = λ_max(xᵀx/n)/4, the largest curvature anywhere, [s]."""
        largest: Tensor = torch.linalg.eigvalsh(self.x.mT @ self.x)[:, -1]
        return largest / (4 * self.x.shape[1])

    def _weights(self, theta: Tensor) -> Tensor:
        p = torch.sigmoid(self.logits(theta))
        return p * (1 - p)

    def _mean(self, weights: Tensor) -> Tensor:
        return (self.x.mT @ weights[..., None])[..., 0] / self.x.shape[1]


def draw(
    count: int, n: int, d: int, generator: torch.Generator, *, strength: float = 0.0, separable: bool | None = None
) -> Data:
    """Draw x ~ N(0, I) and labels of the model with |θ| = `strength`; with `separable`, only such data sets.

    Reference: cover1965geometrical
    """
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(REFUSED * count):
        theta = F.normalize(normal(d, generator=generator), dim=0) * strength
        x = normal(n, d, generator=generator)
        y = (torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(x @ theta)).double()
        if separable is None or linearly_separable(x.numpy(), y.numpy()) is separable:
            found.append((x, y))
        if len(found) == count:
            break
    words = "separable" if separable else "not separable"
    require(len(found) == count, f"n={n}, d={d}: {len(found)} of {count} data sets were {words}", "another n/d")
    x, y = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Data(x, y)


def maximum_likelihood(data: Data) -> Tensor:
    """θ̂ [s, d] by Newton's method, for data that are not separable."""
    theta = data.x.new_zeros(data.x.shape[0], data.x.shape[2])
    for _ in range(NEWTON):
        step = torch.linalg.solve(data.fisher(theta), data.gradient(theta))
        theta = theta - step * (2 / step.norm(dim=1, keepdim=True)).clamp(max=1)
    return theta


@final
@dataclass(frozen=True)
class Penalty:
    """a ψ(1 - λ_min/τ) in one of two shapes.

    Attributes:
        tau: the floor τ, [s].
        weight: a/τ, in units of loss per information.
        squared: ψ(u) = max(u, 0)² in place of max(u, 0).
    """

    tau: Tensor
    weight: float
    squared: bool = False

    def value(self, smallest: Tensor) -> Tensor:
        """The penalty at λ_min [s]."""
        missing = (1 - smallest / self.tau).clamp(min=0)
        return self.weight * self.tau * (missing.square() if self.squared else missing)

    def slope(self, smallest: Tensor) -> Tensor:
        """Minus its derivative with respect to λ_min, [s]."""
        missing = 1 - smallest / self.tau
        return self.weight * (2 * missing.clamp(min=0) if self.squared else (missing > 0).to(missing))


Watch = Callable[[int, Tensor, Tensor], None]


def descend(
    data: Data,
    steps: int,
    lr: Tensor | float,
    *,
    penalty: Penalty | None = None,
    max_norm: float | None = None,
    watch: Watch | None = None,
    every: int = 1,
) -> Tensor:
    """Full-batch descent from θ = 0; returns θ [s, d].

    Args:
        data: of the loss.
        steps: of descent.
        lr: η, one number or one a data set [s, 1].
        penalty: added to the loss, by the gradient of λ_min.
        max_norm: longest gradient, longer ones are clipped.
        watch: gets step, θ and λ_min(Γₙ), every `every` steps and at the end.
        every: steps between two looks.
    """
    theta = data.x.new_zeros(data.x.shape[0], data.x.shape[2])
    for step in range(steps + 1):
        look = watch is not None and (step % every == 0 or step == steps)
        gradient = data.gradient(theta)
        if penalty is not None or look:
            values, vectors = torch.linalg.eigh(data.fisher(theta))
            if watch is not None and look:
                watch(step, theta, values[:, 0])
            if penalty is not None:
                gradient -= penalty.slope(values[:, 0])[:, None] * data.lifting(theta, vectors[..., 0])
        if max_norm is not None:
            gradient *= (max_norm / gradient.norm(dim=1, keepdim=True)).clamp(max=1)
        if step < steps:
            theta = theta - lr * gradient
    return theta
