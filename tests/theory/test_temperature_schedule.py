"""Schedules of the temperature on a quadratic: exact steps, optimality, and the cost of a short horizon."""

from __future__ import annotations

import math

import pytest
import torch

from fisheropt.theory.temperature_schedule import Quadratic


def problem(kappa: float, points: int = 300) -> Quadratic:
    h = torch.logspace(0, -math.log10(kappa), 20, dtype=torch.float64)
    return Quadratic(h, h, h / 2, 1000 * kappa, points)


def test_steps_are_exact() -> None:
    """Half steps compose, and the derivative at zero is the equation's."""
    q = problem(10)
    once = q.advance(q.start, 0.01, 40.0)
    torch.testing.assert_close(q.advance(q.advance(q.start, 0.01, 15.0), 0.01, 25.0), once)
    rate = (q.advance(q.start, 0.01, 1e-6) - q.start) / 1e-6
    expected = 0.01 * (-2 * q.h * q.start + 0.01 * q.h * q.g / 2)
    torch.testing.assert_close(rate, expected, rtol=1e-5, atol=1e-10)
    constant = torch.tensor([0.003], dtype=torch.float64)
    torch.testing.assert_close(q.scheduled(constant.expand(q.points, 1)), q.constant(constant))


def test_without_conditioning_the_greedy_rule_is_efficient() -> None:
    q = problem(1)
    for rule in (q.greedy, q.fisher, q.lagged):
        assert q.ruled(rule)[0] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(("kappa", "best", "lag", "greedy"), [(10, 1.31, 1.33, 3), (100, 1.86, 1.97, 50)])
def test_the_table_of_schedules(kappa: float, best: float, lag: float, greedy: float) -> None:
    """AB-R8."""
    q = problem(kappa, 400)
    assert q.best()[0] == pytest.approx(best, rel=0.05)
    assert q.ruled(q.lagged)[0] == pytest.approx(lag, rel=0.05)
    assert q.ruled(q.greedy)[0] >= greedy


def test_nothing_nearby_beats_the_best() -> None:
    q = problem(30)
    lowest, tau = q.best()
    generator = torch.Generator().manual_seed(0)
    bends = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    x = torch.linspace(0, 1, q.points, dtype=torch.float64)[:, None]
    wiggles = sum(bends[k] * torch.cos(math.pi * k * x) for k in range(3))
    trials = tau[:, None] * torch.exp(0.2 * wiggles)
    assert float(q.scheduled(trials).min()) > 0.99 * lowest
    assert lowest <= float(q.scheduled(tau)) + 1e-12


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="three vectors of one length and h > 0"):
        Quadratic(torch.ones(2), torch.ones(3), torch.ones(2), 10)
