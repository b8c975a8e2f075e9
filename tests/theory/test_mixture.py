"""Closed-form Fisher matrices of the symmetric mixture: FF-17 of the design."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fisheropt.theory.mixture import fisher_coefficients, fisher_matrix, sample, score
from fisheropt.theory.moments import second_moment

TABLE = {
    0.25: (0.1115, 0.0589),
    0.5: (0.3433, 0.2041),
    1.0: (0.7339, 0.5504),
    1.5: (0.9158, 0.8028),
    2.0: (0.9783, 0.9314),
    3.0: (0.9992, 0.9958),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def log_density(mean: Tensor, x: Tensor) -> Tensor:
    """Up to a constant, from the definition."""
    signs = torch.tensor([[1.0], [-1.0]], dtype=mean.dtype)
    squares = (x[:, None, :] - signs * mean).square().sum(-1)
    return torch.logsumexp(-squares / 2, 1)


@pytest.mark.parametrize("radius", TABLE)
def test_table(radius: float) -> None:
    """FF-17, by quadrature."""
    assert fisher_coefficients(radius) == pytest.approx(TABLE[radius], abs=5e-5)


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0])
def test_samples(radius: float) -> None:
    """FF-17, against 1e6 samples: Gamma is the second moment of the score, whose mean is zero."""
    mean = radius * torch.tensor([0.6, 0.8], dtype=torch.float64)
    scores = score(mean, sample(mean, 1_000_000, generator(17)))
    assert float(scores.mean(0).norm()) < 0.003
    # Two standard errors of the largest entry: its scores have a kurtosis of about 3.
    torch.testing.assert_close(second_moment(scores), fisher_matrix(mean), rtol=0, atol=0.003)


@given(st.floats(0.0, 3.0), st.integers(1, 4), st.integers(0, 10**6))
def test_score_is_the_gradient(radius: float, d: int, seed: int) -> None:
    direction = torch.randn(d, generator=generator(seed), dtype=torch.float64)
    mean = (radius * direction / direction.norm()).requires_grad_()
    x = sample(mean.detach(), 5, generator(seed + 1))
    rows = [torch.autograd.grad(log_density(mean, point[None]).sum(), mean)[0] for point in x]
    torch.testing.assert_close(score(mean.detach(), x), torch.stack(rows))


@given(st.floats(0.001, 8.0))
def test_information_lies_between_its_limits(radius: float) -> None:
    """0 < b <= a <= 1: labels would give I, and their loss costs most across the means when they overlap."""
    along, across = fisher_coefficients(radius)
    assert 0 < across <= along + 1e-12 <= 1 + 1e-9


def test_small_radius() -> None:
    """The expansions a ~ 2 r^2 and b ~ r^2."""
    along, across = fisher_coefficients(1e-3)
    assert (along / 2e-6, across / 1e-6) == pytest.approx((1, 1), abs=1e-4)
    assert fisher_coefficients(0.0) == (0.0, 0.0)
    assert not fisher_matrix(torch.zeros(3)).any()


def test_matrix() -> None:
    mean = torch.tensor([0.0, 3.0, 4.0], dtype=torch.float64) / 5
    along, across = fisher_coefficients(1.0)
    values, vectors = torch.linalg.eigh(fisher_matrix(mean))
    assert values.tolist() == pytest.approx([across, across, along])
    assert abs(float(vectors[:, 2] @ mean)) == pytest.approx(1)
    assert fisher_matrix(mean.float()).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fisher_coefficients(-1.0), "not negative"),
        (lambda: fisher_coefficients(math.inf), "finite"),
        (lambda: fisher_matrix(torch.ones(2, 2)), r"vector \[d\], got shape \(2, 2\)"),
        (lambda: fisher_matrix(torch.ones(2, dtype=torch.long)), "floating-point"),
        (lambda: score(torch.tensor([math.nan]), torch.ones(3, 1)), "finite"),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
