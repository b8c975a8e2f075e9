"""The symmetric mixture 1/2 N(mu, I) + 1/2 N(-mu, I) with parameter mu: score, Fisher matrix, samples.

With r = |mu| and P the projection on mu, Gamma = a P + b (I - P). Both eigenvalues vanish with r (a ~ 2 r^2,
b ~ r^2): the components merge and mu is not identified.
"""

import torch
from torch import Tensor

from fisheropt.theory.quadrature import gaussian_rule

__all__ = ["fisher_coefficients", "fisher_matrix", "sample", "score"]


def fisher_coefficients(radius: float) -> tuple[float, float]:
    """Values a = E[(g + r)^2 tanh^2(r (g + r))] - r^2 along mu, b = E tanh^2(r (g + r)) across, g ~ N(0, 1).

    By the trapezoidal rule, which is exact to rounding for r up to about 20.

    Args:
        radius: r = |mu|, not negative.
    """
    if not 0 <= radius < float("inf"):
        raise ValueError(f"fisher_coefficients({radius!r}): the radius |mu| must be finite and not negative")
    points, weights = gaussian_rule(1)
    shifted = points[:, 0] + radius
    squares = torch.tanh(radius * shifted).square()
    along = weights @ (shifted.square() * squares) - radius**2
    return float(along), float(weights @ squares)


def _checked_mean(mean: Tensor, call: str) -> Tensor:
    if mean.ndim != 1 or not mean.is_floating_point() or not bool(mean.isfinite().all()):
        raise ValueError(
            f"{call}: `mean` must be a finite floating-point vector [d], got shape {tuple(mean.shape)} of {mean.dtype}"
        )
    return mean


def fisher_matrix(mean: Tensor) -> Tensor:
    """Gamma = a P + b (I - P), [d, d], in the dtype and on the device of mu.

    Args:
        mean: mu [d].
    """
    radius = float(_checked_mean(mean, "fisher_matrix").double().norm())
    along, across = fisher_coefficients(radius)
    unit = mean / radius if radius > 0 else mean
    identity = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    return across * identity + (along - across) * torch.outer(unit, unit)


def score(mean: Tensor, x: Tensor) -> Tensor:
    """Score x tanh(<mu, x>) - mu, the gradient of the log-density at each row of x, [n, d].

    Args:
        mean: mu [d].
        x: Points [n, d].
    """
    return x * torch.tanh(x @ _checked_mean(mean, "score"))[:, None] - mean


def sample(mean: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draws n points [n, d] of the mixture, on the generator's device.

    Args:
        mean: mu [d].
        n: Points.
        generator: Of the components and of the noise.
    """
    centre = _checked_mean(mean, "sample").to(generator.device)
    signs = torch.randint(2, (n, 1), generator=generator, device=generator.device) * 2 - 1
    noise = torch.randn(n, len(mean), generator=generator, device=generator.device, dtype=mean.dtype)
    return signs * centre + noise
