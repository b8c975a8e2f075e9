"""Effective dimensions, compatibility, lower bounds, and which noise drives a trajectory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fisheropt.theory.lyapunov import stationary_covariance
from fisheropt.theory.noise_model import noise_model_test
from fisheropt.theory.rates import (
    compatibility,
    effective_dimensions,
    ridge_dimension,
    sandwich_risk,
    stationarity_samples,
    van_trees_bound,
)
from tests.theory.test_lyapunov import pair


def test_well_specified_models_have_the_obvious_values() -> None:
    H, _ = pair(6, 0)
    dimensions = effective_dimensions(H, H)
    assert dimensions.tic == pytest.approx(6)
    assert dimensions.whitened == pytest.approx(6)
    assert compatibility(H, H).kappa == pytest.approx(1)
    assert sandwich_risk(H, H, 100) == pytest.approx(6 / 200)
    assert 1 <= dimensions.stable <= dimensions.participation <= 6
    assert ridge_dimension(torch.eye(4), 1.0) == pytest.approx(2)


def test_reparametrisation_changes_neither_tic_nor_kappa() -> None:
    H, G = pair(5, 1)
    T, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    T = T * torch.linspace(0.1, 3, 5, dtype=torch.float64)
    before, after = effective_dimensions(H, G), effective_dimensions(T.T @ H @ T, T.T @ G @ T)
    assert after.tic == pytest.approx(before.tic)
    assert after.whitened == pytest.approx(before.whitened)
    assert compatibility(T.T @ H @ T, T.T @ G @ T).kappa == pytest.approx(compatibility(H, G).kappa)
    assert abs(after.stable - before.stable) > 0.1


def test_compatibility_is_a_pair_of_loewner_bounds() -> None:
    H, G = pair(5, 3)
    bounds = compatibility(H, G)
    for gap in (H - bounds.mu * G, bounds.L * G - H):
        assert float(torch.linalg.eigvalsh(gap)[0]) == pytest.approx(0, abs=1e-10)
    with pytest.raises(ValueError, match="noise in a direction where H has no curvature"):
        compatibility(torch.diag(torch.tensor([1.0, 0.0])), torch.eye(2))


def test_no_estimator_is_below_van_trees() -> None:
    """The posterior mean of a Gaussian mean under the cosine prior, by quadrature over the posterior; 400 draws."""
    generator, n, radius = torch.Generator().manual_seed(0), 4, 1.0
    grid = torch.linspace(-radius, radius, 2001, dtype=torch.float64)
    prior = torch.cos(math.pi * grid / 2).square()
    theta = grid[torch.multinomial(prior, 20000, replacement=True, generator=generator)]
    means = theta + torch.randn(20000, generator=generator, dtype=torch.float64) / n**0.5
    posterior = prior * (-0.5 * n * (means[:, None] - grid).square()).exp()
    estimate = (posterior * grid).sum(1) / posterior.sum(1)
    risk = float((estimate - theta).square().mean())
    bound = van_trees_bound(torch.eye(1), n, radius)
    assert bound <= risk * 1.03
    assert bound >= 0.8 * risk
    assert van_trees_bound(torch.eye(1), 10**6, radius) == pytest.approx(1e-6, rel=1e-4)


def test_growing_batches_need_neither_kappa_nor_log() -> None:
    H, G = pair(4, 4)
    growing, constant = stationarity_samples(H, G, 1e-4, 1.0)
    assert growing == pytest.approx(effective_dimensions(H, G).tic * (1e4 - 1))
    assert constant > growing


def trajectory(H: Tensor, G: Tensor, lr: float, b: int, steps: int, seed: int) -> Tensor:
    """A quadratic's SGD with Gaussian gradient noise, 20 chains."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(G) / b**0.5
    theta, path = torch.zeros(20, len(H), dtype=torch.float64), []
    for _ in range(steps):
        noise = torch.randn(20, len(H), generator=generator, dtype=torch.float64) @ root.T
        theta = theta - lr * (theta @ H + noise)
        path.append(theta)
    return torch.stack(path)


def test_the_trajectory_tells_the_noise_models_apart() -> None:
    """The right one errs like chance, which the resolution predicts; the wrong ones several times that."""
    H, G = torch.diag(torch.tensor([1.0, 0.3, 0.1], dtype=torch.float64)), torch.eye(3, dtype=torch.float64)
    found = noise_model_test(trajectory(H, G, 0.5, 4, 4000, 0), H, G, 0.5, 4, F=H)
    assert found.gradient < 2 * found.resolution
    assert found.resolution < 0.12
    assert min(found.fisher, found.scalar) > 3 * found.resolution or found.fisher > 5 * found.resolution
    swapped = noise_model_test(trajectory(H, H, 0.5, 4, 4000, 1), H, G, 0.5, 4, F=H)
    assert swapped.fisher < 2 * swapped.resolution
    assert swapped.gradient > 5 * swapped.resolution
    assert "independent draws" in str(found)
    with pytest.raises(ValueError, match="six relaxation times"):
        noise_model_test(torch.zeros(20, 3), H, G, 0.5, 4)


def test_one_temperature_fails_as_predicted() -> None:
    """SN-X3: the error of the best multiple of H^-1 for Sigma = (tau/2) I, kappa = 10, 30, 100, 1000."""
    for kappa, expected in ((10, 0.572), (30, 0.699), (100, 0.778), (1000, 0.853)):
        h = torch.logspace(0, math.log10(kappa), 10, dtype=torch.float64)
        inverse = torch.diag(1 / h)
        law = stationary_covariance(torch.diag(h), torch.diag(h), 1e-5, 1, method="continuous")
        best = inverse * ((law * inverse).sum() / inverse.square().sum())
        assert float((law - best).norm() / law.norm()) == pytest.approx(expected, abs=5e-4)
