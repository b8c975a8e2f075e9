"""The floor as a penalty (FF-20, R13), rates above the threshold (FF-19), and samples that a direction needs."""

import math

import pytest
import torch

from fisheropt.theory.convergence import contraction, sgd_error_bound
from fisheropt.theory.identification import samples_to_identify
from fisheropt.theory.levels import gaussian_level
from fisheropt.theory.penalty import PSI, averaged_floor, guaranteed_floor, penalty_force
from tests.theory.score_families import random_psd

NAMES = sorted(PSI)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def penalty(matrix, tau, weight, psi):
    """a ψ(1 - λ/τ), written out."""
    values = torch.linalg.eigvalsh(matrix)
    kappa = 10 * max(1.0, math.log(len(values))) / tau
    smallest = -torch.logsumexp(-kappa * values, 0) / kappa if psi == "softmin" else values[0]
    shortfall = (1 - smallest / tau).clamp_min(0)
    return weight * (shortfall.square() if psi == "squared" else shortfall)


@pytest.mark.parametrize("psi", NAMES)
def test_a_low_objective_keeps_the_guaranteed_floor(psi):
    """R8 at random numbers: whatever λ and L are, F ≤ F(θ_f) + ε implies the bound; a hinge attains it."""
    draws = torch.rand(500, 5, generator=generator(0), dtype=torch.float64).tolist()
    for smallest, loss, reference, weight, tau in draws:
        weight, tau = 3 * weight + 0.01, tau + 0.01
        objective = loss + weight * PSI[psi].charge(1 - smallest / tau)
        eps = max(0.0, objective - reference)
        bound = guaranteed_floor(tau, reference - loss + eps, weight, psi)
        assert smallest >= bound - 1e-12
        if psi == "hinge" and smallest < tau and objective >= reference:
            assert smallest == pytest.approx(bound, abs=1e-12)
        assert guaranteed_floor(tau, reference - loss + eps, weight, psi, level=0.1) == pytest.approx(bound - 0.1)


@pytest.mark.parametrize("psi", NAMES)
def test_force_is_minus_the_derivative_of_the_penalty(psi):
    for seed in range(20):
        source = generator(seed)
        matrix = random_psd(4, source)
        tau = float(torch.linalg.eigvalsh(matrix)[1])
        change = torch.randn(4, 4, generator=source, dtype=torch.float64)
        change = change + change.T
        step = 1e-6 * float(matrix.diagonal().mean())
        found = penalty(matrix + step * change, tau, 1.7, psi) - penalty(matrix - step * change, tau, 1.7, psi)
        expected = -(penalty_force(matrix, tau, 1.7, PSI[psi]) * change).sum()
        torch.testing.assert_close(found / (2 * step), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("psi", NAMES)
def test_nothing_pulls_above_the_floor(psi):
    matrix = torch.diag(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))
    assert not penalty_force(matrix, 1.0, 5.0, PSI[psi]).any()
    assert PSI[psi].charge(-0.5) == 0


def test_the_soft_minimum_lies_a_tenth_of_tau_below_at_most_and_lifts_ties_together():
    for seed in range(50):
        values = torch.rand(6, generator=generator(seed), dtype=torch.float64).sort().values
        soft = float(PSI["softmin"].smallest(values, 0.3))
        assert float(values[0]) - 0.03 - 1e-12 <= soft <= float(values[0])
    force = penalty_force(torch.eye(3, dtype=torch.float64), 2.0, 1.0, PSI["softmin"])
    torch.testing.assert_close(force, torch.eye(3, dtype=torch.float64) / 6)


def test_parameter_smoothing_never_hides_a_floor():
    """R13: λ_min of the average is never below the average of λ_min; 300 logistic models, no violation."""
    for seed in range(300):
        source = generator(seed)
        x = torch.randn(20, 3, generator=source, dtype=torch.float64)
        theta = torch.randn(3, generator=source, dtype=torch.float64)
        noise = torch.randn(8, 3, generator=source, dtype=torch.float64)
        p = (x @ (theta + 0.7 * noise).T).sigmoid()
        smoothed, pointwise, error = averaged_floor(torch.einsum("nm,ni,nj->mij", p * (1 - p), x, x) / 20)
        assert smoothed >= pointwise - 1e-12 and error > 0


@pytest.mark.parametrize("batch", [1, 8])
def test_sgd_stays_below_its_bound_on_a_quadratic(batch):
    """FF-19: ten dimensions, the mean over 2000 chains; its own error is 2 %, the bound's slack a factor of two."""
    source = generator(batch)
    curvature = torch.linspace(0.2, 2.0, 10, dtype=torch.float64)
    lr, scale = 0.3, torch.full((10,), 0.05, dtype=torch.float64)
    scale[0] = 1.0  # along the weakest direction the bound is exact but for a factor of 2 - ημ
    variance = float(scale.square().sum())
    error = torch.full((2000, 10), 1.5, dtype=torch.float64)
    start = float(error[0].square().sum())
    for steps in range(1, 121):
        noise = torch.randn(2000, 10, generator=source, dtype=torch.float64) * scale / batch**0.5
        error = error - lr * (curvature * error + noise)
        found = float(error.square().sum(1).mean())
        bound = sgd_error_bound(lr, 0.2, 2.0, steps, start=start, variance=variance, batch=batch)
        assert found <= bound
    assert found > 0.4 * bound, "the bound is not vacuous"


def test_gradient_descent_contracts_at_the_stated_rate():
    curvature = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)
    error = torch.ones(3, dtype=torch.float64)
    for _ in range(200):
        before, error = error, error - 0.45 * curvature * error
    assert float(error.norm() / before.norm()) == pytest.approx(contraction(0.45, 0.3, 2.0), abs=1e-9)
    with pytest.raises(ValueError, match="write lr=0.5 or less"):
        contraction(0.6, 0.3, 2.0)


def test_samples_to_identify_is_the_least_number():
    for ratio in (1.0, 0.3, 1e-2, 1e-5):
        for k in (1, 9):
            n = samples_to_identify(2 * ratio, 2.0, k, 0.05)
            assert 3 * gaussian_level(2.0, k, n, 0.05).value < 2 * ratio
            assert 3 * gaussian_level(2.0, k, n - 1, 0.05).value >= 2 * ratio


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guaranteed_floor(0.0, 0.1, 1.0), "`tau` must be a positive"),
        (lambda: guaranteed_floor(1.0, math.inf, 1.0), "`gap` must be finite"),
        (lambda: guaranteed_floor(1.0, 0.1, 1.0, "cubed"), "write one of"),
        (lambda: averaged_floor(torch.eye(3)), "m >= 2 draws"),
        (lambda: samples_to_identify(3.0, 2.0, 4), "eigenvalue <= largest"),
        (lambda: samples_to_identify(0.0, 2.0, 4), "`eigenvalue` must be a positive"),
        (lambda: sgd_error_bound(0.1, 0.2, 2.0, 3, start=-1.0, variance=1.0), "not negative"),
    ],
)
def test_bad_numbers_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
