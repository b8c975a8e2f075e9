"""Stationary laws: against enumeration, against dense Lyapunov solves, and against simulated SGD."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fisheropt.theory.lyapunov import (
    batch_size_for_floor,
    lr_for_floor,
    noise_floor,
    reshuffled_mean,
    stationary_covariance,
    temperature,
)


def pair(d: int, seed: int) -> tuple[Tensor, Tensor]:
    """A curvature and a covariance that do not commute."""
    generator = torch.Generator().manual_seed(seed)
    h, g = (torch.randn(d, 2 * d, generator=generator, dtype=torch.float64) for _ in range(2))
    return h @ h.T / (2 * d), g @ g.T / (2 * d)


def dense(A: Tensor, Q: Tensor) -> Tensor:
    """X - A X A^T = Q by one linear system."""
    size = len(A)
    identity = torch.eye(size * size, dtype=torch.float64)
    return torch.linalg.solve(identity - torch.kron(A, A), Q.reshape(-1)).reshape(size, size)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 99), st.floats(0.05, 0.95), st.sampled_from([0.0, 0.5, 0.9]), st.booleans())
def test_independent_batches_solve_the_full_recursion(
    d: int, seed: int, share: float, beta: float, newton: bool
) -> None:
    """Also with momentum and a preconditioner, against the recursion of the whole state."""
    H, G = pair(d, seed)
    P = torch.linalg.inv(H + 0.1 * torch.eye(d, dtype=torch.float64)) if newton else torch.eye(d, dtype=torch.float64)
    lr = share * 2 / float(torch.linalg.eigvals(P @ H).real.max())
    identity = torch.eye(d, dtype=torch.float64)
    A = torch.cat((torch.cat((identity - lr * P @ H, -lr * beta * P), 1), torch.cat((H, beta * identity), 1)))
    B = torch.cat((-lr * P, identity))
    expected = dense(A, B @ (G / 7) @ B.T)[:d, :d]
    found = stationary_covariance(H, G, lr, 7, precond=P if newton else None, momentum=beta)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def permuted(H: Tensor, noises: Tensor, lr: float, beta: float) -> Tensor:
    """E of the covariance of the state after each batch of an epoch, [m, 2d, 2d], over all orders, at stationarity."""
    d, m = len(H), len(noises)
    identity = torch.eye(d, dtype=torch.float64)
    A = torch.cat((torch.cat((identity - lr * H, -lr * beta * identity), 1), torch.cat((H, beta * identity), 1)))
    B = torch.cat((-lr * identity, identity))
    orders = list(itertools.permutations(range(m)))
    added = torch.zeros(len(orders), m + 1, 2 * d, dtype=torch.float64)
    for row, order in enumerate(orders):
        for k, index in enumerate(order):
            added[row, k + 1] = A @ added[row, k] + B @ noises[index]
    spread = torch.einsum("rki,rkj->kij", added, added) / len(orders)
    state = dense(torch.linalg.matrix_power(A, m), spread[-1])
    powers = [torch.linalg.matrix_power(A, k) for k in range(1, m + 1)]
    return torch.stack([power @ state @ power.T + spread[k] for k, power in enumerate(powers, start=1)])


@pytest.mark.parametrize("beta", [0.0, 0.6])
def test_reshuffling_is_exact_over_all_orders(beta: float) -> None:
    """Every order of an epoch of five batches of one sample, enumerated."""
    H, _ = pair(3, 1)
    noises = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noises -= noises.mean(0)
    S, states = noises.T @ noises / 4, permuted(H, noises, 0.4, beta)
    end = stationary_covariance(H, S, 0.4, 1, n=5, momentum=beta, sampling="reshuffle")
    torch.testing.assert_close(end, states[-1, :3, :3], rtol=1e-10, atol=1e-12)
    mean = reshuffled_mean(H, S, 0.4, 1, 5, momentum=beta)
    torch.testing.assert_close(mean, states[:, :3, :3].mean(0), rtol=1e-10, atol=1e-12)


def test_a_shuffled_loader_is_quieter_by_the_known_factors() -> None:
    """SN-3.2.6: for slow modes about (eta m h)^2/12 of independent batches at an epoch's end, eta m h/3 on average."""
    H, G = torch.tensor([[1e-3]], dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    lr, m = 0.5, 64
    x = lr * m * 1e-3
    free = float(stationary_covariance(H, G, lr, 8))
    end = float(stationary_covariance(H, G, lr, 8, n=8 * m, sampling="reshuffle")) / free
    assert end == pytest.approx(x**2 / 12, rel=0.05)
    assert float(reshuffled_mean(H, G, lr, 8, 8 * m)) / free == pytest.approx(x / 3, rel=0.05)
    fast = torch.tensor([[1.9]], dtype=torch.float64)
    settled = float(stationary_covariance(fast, G, lr, 8, n=8 * m, sampling="reshuffle"))
    without = float(stationary_covariance(fast, G, lr, 8, n=8 * m, sampling="without"))
    assert settled == pytest.approx(without * m / (m - 1), rel=0.03)


def test_closed_forms() -> None:
    H, G = pair(4, 3)
    newton = stationary_covariance(H, G, 0.3, 16, precond=torch.linalg.inv(H))
    sandwich = torch.linalg.inv(H) @ G @ torch.linalg.inv(H)
    torch.testing.assert_close(newton, 0.3 / 16 / (2 - 0.3) * sandwich)
    flat = stationary_covariance(H, H, 0.1, 4, method="continuous")
    torch.testing.assert_close(flat, 0.1 / 8 * torch.eye(4, dtype=torch.float64))
    h, beta, lr = torch.linalg.eigvalsh(H), 0.8, 0.2
    heavy = torch.linalg.eigvalsh(stationary_covariance(H, H, lr, 4, momentum=beta))
    expected = lr / 4 * (1 + beta) / ((1 - beta) * (2 * (1 + beta) - lr * h))
    torch.testing.assert_close(heavy, expected.sort().values)


def test_the_floor_and_its_inverses() -> None:
    H, G = pair(5, 4)
    tau = temperature(1e-4, 8)
    small = noise_floor(H, stationary_covariance(H, G, 1e-4, 8))
    assert small == pytest.approx(tau / 4 * float(G.trace()), rel=1e-3)
    size = batch_size_for_floor(H, G, 0.2, 1e-3)
    assert noise_floor(H, stationary_covariance(H, G, 0.2, size)) == pytest.approx(1e-3)
    lr = lr_for_floor(H, G, 32, 1e-3)
    assert noise_floor(H, stationary_covariance(H, G, lr, 32)) == pytest.approx(1e-3)
    assert temperature(0.1, 5, momentum=0.5, n=10) == pytest.approx(0.02)


def test_gauge_directions_need_a_projector_and_do_not_move() -> None:
    """A softmax: adding one vector to all classes changes nothing."""
    H, G = pair(4, 5)
    gauge = torch.eye(3, dtype=torch.float64) - torch.full((3, 3), 1 / 3, dtype=torch.float64)
    project = torch.kron(gauge, torch.eye(4, dtype=torch.float64))
    full_h, full_g = torch.kron(gauge, H), torch.kron(gauge, G)
    with pytest.raises(ValueError, match=r"4 of 12 directions have no curvature.*project="):
        stationary_covariance(full_h, full_g, 0.1, 2)
    found = stationary_covariance(full_h, full_g, 0.1, 2, project=project)
    torch.testing.assert_close(found, torch.kron(gauge, stationary_covariance(H, G, 0.1, 2)))


def test_simulated_sgd_agrees() -> None:
    """SN-X5's kind: a reshuffled least-squares run; 400 epochs from stationarity, 30 chains, about 5 % error."""
    generator = torch.Generator().manual_seed(0)
    H, n, b, lr = torch.diag(torch.tensor([1.0, 0.2], dtype=torch.float64)), 64, 8, 0.1
    noises = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    noises -= noises.mean(0)
    S = noises.T @ noises / (n - 1)
    theta, seen = torch.zeros(60, 2, dtype=torch.float64), []
    for epoch in range(250):
        order = torch.argsort(torch.rand(60, n, generator=generator), dim=1).reshape(60, n // b, b)
        for k in range(n // b):
            theta = theta - lr * (theta @ H + noises[order[:, k]].mean(1))
        if epoch >= 20:
            seen.append(theta)
    ends = torch.cat(seen)
    found = ends.T @ ends / len(ends)
    expected = stationary_covariance(H, S, lr, b, n=n, sampling="reshuffle")
    assert float((found - expected).norm() / expected.norm()) < 0.06
    independent = stationary_covariance(H, S, lr, b)
    assert float(independent.trace() / expected.trace()) > 3


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("lr=9 diverges; the largest stable step size is", {"lr": 9.0}),
        ("needs two or more whole batches an epoch", {"n": 20, "sampling": "reshuffle"}),
        ("write n=len", {"sampling": "without"}),
        ("must be positive definite", {"precond": -torch.eye(2)}),
        ("no continuous limit", {"n": 16, "sampling": "reshuffle", "method": "continuous"}),
        (r"momentum=1\.0 must lie", {"momentum": 1.0}),
    ],
)
def test_what_does_not_fit_is_refused(words: str, keys: dict[str, object]) -> None:
    H, G = pair(2, 0)
    given_keys: dict[str, object] = {"lr": 0.1} | keys
    with pytest.raises(ValueError, match=words):
        stationary_covariance(H, G, given_keys.pop("lr"), 8, **given_keys)  # type: ignore[arg-type]
