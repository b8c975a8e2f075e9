"""Fitted models and their data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def features(n: int, d: int, seed: int) -> Tensor:
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.linspace(0.5, 1.5, d, dtype=torch.float64)


def responses(x: Tensor, likelihood: str, seed: int) -> Tensor:
    """Of a false model: a curved predictor, counts too spread, noise that grows."""
    generator = torch.Generator().manual_seed(seed)
    eta = 0.4 * x[:, :1] - 0.3 * x[:, 1:2] + 0.2 * x[:, :1].square() - 0.2
    uniform = torch.rand(eta.shape, generator=generator, dtype=torch.float64)
    if likelihood == "bernoulli":
        return (uniform < eta.sigmoid()).double()
    if likelihood == "poisson":
        return torch.poisson(eta.exp() * -uniform.log(), generator=generator)
    return eta + (0.5 + x[:, :1].abs()) * torch.randn(eta.shape, generator=generator, dtype=torch.float64)


def linear(weights: Tensor) -> nn.Linear:
    """A linear model with these weights [d + 1], the bias last."""
    model = nn.Linear(len(weights) - 1, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(weights[None, :-1])
        model.bias.copy_(weights[-1:])
    return model


def fitted(model: nn.Module, x: Any, y: torch.Tensor, loss: Any, steps: int = 60) -> nn.Module:
    """At the optimum to rounding, by LBFGS."""
    opt = torch.optim.LBFGS(
        model.parameters(), max_iter=steps, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        opt.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return float(value.detach())

    for _ in range(5):
        opt.step(closure)
    return model
