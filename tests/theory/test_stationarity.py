"""Batch means, and the error rates of the stationarity certificate on a process whose law is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fisheropt.theory.stationarity import (
    batch_means,
    running_product,
    sasa_interval,
    stationarity_certificate,
)


def autoregression(chains: int, steps: int, start: float, lr: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A one-dimensional quadratic of curvature 1 under SGD: A and C [chains, steps], and z of SASA+."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((chains,), start, dtype=torch.float64)
    squared, gradients, z = [], [], []
    for _ in range(steps + 1):
        noise = torch.randn(2, chains, generator=generator, dtype=torch.float64)
        gradient = x + noise[0]
        squared.append(gradient * (x + noise[1]))
        z.append(x * gradient - lr / 2 * gradient.square())
        gradients.append(gradient)
        x = x - lr * gradient
    path = torch.stack(gradients, 1)
    return torch.stack(squared, 1)[:, :-1], path[:, :-1] * path[:, 1:], torch.stack(z, 1)[:, :-1]


def test_batch_means_are_honest_about_correlation() -> None:
    """95 % intervals of the mean of an AR(1) of correlation .8 cover between 90 and 98 % over 400 series of 600."""
    generator, covered = torch.Generator().manual_seed(0), 0
    x = torch.randn(400, generator=generator, dtype=torch.float64) / (1 - 0.64) ** 0.5
    series = []
    for _ in range(600):
        x = 0.8 * x + torch.randn(400, generator=generator, dtype=torch.float64)
        series.append(x)
    for values in torch.stack(series, 1):
        mean, error = batch_means(values)
        covered += abs(mean) < 2.262 * error
    assert 0.90 <= covered / 400 <= 0.98


def test_the_certificate_is_given_at_stationarity_and_hardly_ever_before() -> None:
    """At stationarity A + C = 0, which a history of 1500 steps shows; far from it no history passes."""
    stationary, far = autoregression(100, 1500, 0.0, 0.3, 1), autoregression(300, 60, 30.0, 0.02, 2)
    given = sum(stationarity_certificate(a, c, 0.3).stationary for a, c in zip(*stationary[:2], strict=True))
    assert given > 50
    wrong = sum(stationarity_certificate(a, c, 0.02).stationary for a, c in zip(*far[:2], strict=True))
    assert wrong == 0


def test_the_error_rate_at_the_border_is_the_stated_one() -> None:
    """Where A + C is exactly half of A, one test of 5 % passes in at most 8 % of 1000 histories."""
    generator = torch.Generator().manual_seed(3)
    a = 1 + torch.randn(1000, 200, generator=generator, dtype=torch.float64)
    c = -0.5 + torch.randn(1000, 200, generator=generator, dtype=torch.float64)
    passed = sum(stationarity_certificate(x, y, 0.1).stationary for x, y in zip(a, c, strict=True))
    assert 20 <= passed <= 80


def test_the_decrease_is_predicted() -> None:
    """(eta/2)(A + C) is the mean decrease of the loss a step; averaged over 1000 chains within four errors."""
    lr, steps = 0.1, 60
    a, c, _ = autoregression(1000, steps, 4.0, lr, 4)
    half = steps // 2
    found = torch.tensor([stationarity_certificate(x, y, lr).decrease for x, y in zip(a, c, strict=True)])
    keep = (1 - lr) ** 2
    excess = [0.5 * 16.0]
    for _ in range(steps):
        excess.append(keep * excess[-1] + 0.5 * lr**2)
    expected = (excess[half] - excess[steps]) / (steps - half)
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / 1000**0.5


def test_pflug_fires_before_stationarity_and_sasa_depends_on_the_origin() -> None:
    """The loss still falls when the running product has turned: its excess is over 1.5 times the floor in the median."""
    lr = 0.3
    _, c, z = autoregression(200, 300, 6.0, lr, 5)
    turned = torch.stack([running_product(x) < 0 for x in c]).int().argmax(1)
    assert 0 < int(turned.median()) < 200
    inside = sum(low <= 0 <= high for low, high in (sasa_interval(x[100:]) for x in z))
    assert inside > 170
    shifted = z[:, 100:] + 5 * (z[:, 100:].mean() + 0.2)
    assert sum(low <= 0 <= high for low, high in map(sasa_interval, shifted)) < inside


def test_short_histories_are_refused() -> None:
    with pytest.raises(ValueError, match="60 steps or more"):
        stationarity_certificate(torch.ones(59), torch.ones(59), 0.1)
    with pytest.raises(ValueError, match="make no 10 batches"):
        batch_means(torch.ones(9))
