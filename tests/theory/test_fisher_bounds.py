"""Certificates, smoothing, conditioning, angles, sharp constants: FF-4, 5, 9 to 11, 13 to 16 and 18."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fisheropt.theory import asymptotics
from fisheropt.theory.angles import davis_kahan_sine, floor_bracket, subspace_sine
from fisheropt.theory.certificate import certify_floor_cholesky, lanczos_lower_bound, lanczos_resolution
from fisheropt.theory.conditioning import damped_whitening, preconditioning_constants
from fisheropt.theory.floor import anchor_strengths, soft_minimum
from fisheropt.theory.moments import second_moment
from fisheropt.theory.smoothing import drift_bias, effective_sample_size, shrink
from fisheropt.theory.whitening import whitened_eigenvalues
from tests.theory.score_families import moments, normal, operator_norms, random_psd


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smallest(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[0])


@given(st.integers(1, 30), st.integers(0, 10**6), st.floats(1e-8, 1e8))
def test_cholesky_certifies_exactly_the_floors_that_hold(k: int, seed: int, scale: float) -> None:
    """Granted at every tau <= lambda_min, refused beyond the stated resolution, which is that of rounding."""
    matrix = scale * random_psd(k, generator(seed), floor=0.01)
    floor = smallest(matrix)
    granted = certify_floor_cholesky(matrix, floor * (1 - 1e-9))
    assert granted and granted.certified and granted.probability == 1
    assert granted.resolution < 1e-11 * float(matrix.trace())
    assert granted.lower_bound == pytest.approx(granted.tau - granted.resolution, abs=granted.resolution)
    refused = certify_floor_cholesky(matrix, floor * (1 + 1e-9) + 2 * granted.resolution)
    assert not refused and refused.lower_bound == -math.inf
    assert "not certified" in str(refused) and "not" not in str(granted)


@pytest.mark.parametrize("tau", [0.0, 1 / 3, 1e-12, 1e12])
def test_cholesky_certifies_a_floor_met_with_equality(tau: float) -> None:
    """Rounding must not refuse a matrix that was lifted to the floor exactly, nor grant what is beyond it."""
    matrix = torch.diag(torch.tensor([tau, 3 * tau + 1.0, tau], dtype=torch.float64))
    granted = certify_floor_cholesky(matrix, tau)
    assert granted and not certify_floor_cholesky(matrix, tau + granted.resolution)


@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(0.01, 10.0))
def test_anchor_adds_exactly_what_is_missing(k: int, seed: int, tau: float) -> None:
    """R9: data plus anchor reach the floor and are certified; strong directions are left as they are."""
    matrix = random_psd(k, generator(seed))
    values, vectors = torch.linalg.eigh(matrix)
    strengths = anchor_strengths(values, tau)
    anchored = matrix + (vectors * strengths) @ vectors.T
    torch.testing.assert_close(torch.linalg.eigvalsh(anchored), values.clamp(min=tau), rtol=1e-9, atol=1e-9)
    assert certify_floor_cholesky(anchored, tau)
    assert bool((strengths[values >= tau] == 0).all())


@pytest.mark.parametrize("steps", [10, 20, 40, 80])
def test_lanczos_bound_covers(steps: int) -> None:
    """FF-9: d = 200; never above lambda_min, and below it by eps / (1 - eps) lambda_max at most."""
    source, delta = generator(steps), 0.05
    spectrum = torch.cat((torch.tensor([0.02]), torch.linspace(0.05, 1, 199))).double()
    eps = lanczos_resolution(200, delta, steps)
    slacks = []
    for _ in range(40):
        bound = lanczos_lower_bound(lambda v: spectrum * v, 200, 1.0, delta=delta, steps=steps, generator=source)
        slacks.append(0.02 - bound.value)
        assert bound.certify(bound.value - 1e-9) and not bound.certify(bound.value + 1e-9)
    assert sum(slack < 0 for slack in slacks) / 40 <= delta
    assert max(slacks) <= eps / (1 - eps)
    assert sum(slacks) / 40 == pytest.approx(eps, rel=0.5)
    assert (bound.probability, bound.steps, bound.resolution) == (0.95, steps, pytest.approx(eps))


def test_lanczos_resolution() -> None:
    """FF-10."""
    assert lanczos_resolution(10**6, 1e-3, 100) == pytest.approx(0.0052, abs=1e-4)


def test_lanczos_stops_in_an_invariant_subspace() -> None:
    bound = lanczos_lower_bound(lambda v: 2 * v, 30, 2.0, steps=30)
    assert bound.value == pytest.approx(2.0, abs=1e-12)


def test_rayleigh_quotient_never_certifies() -> None:
    """A Rayleigh quotient bounds lambda_min from above, Lanczos and Cholesky from below."""
    source = generator(2)
    for _ in range(50):
        matrix = random_psd(20, source, floor=0.1)
        vector = normal(20, generator=source)
        quotient = float(vector @ matrix @ vector / vector.square().sum())
        product = matrix.matmul
        bound = lanczos_lower_bound(product, 20, float(matrix.trace()), steps=20, generator=source)
        assert bound.value <= smallest(matrix) <= quotient
        assert not certify_floor_cholesky(matrix, quotient)


def test_sharp_constants() -> None:
    """FF-4."""
    ratio = asymptotics.threshold_ratio
    found = [ratio(), asymptotics.eigenvalue_ratio(), ratio(0.5), ratio(0.1)]
    assert found == pytest.approx([19.798, 11.657, 71.78, 1639.8], rel=1e-3)


def test_constants_solve_their_equations() -> None:
    for condition in (0.1, 0.5, 1.0):
        g = 1 / asymptotics.threshold_ratio(condition)
        assert 2 * asymptotics.fluctuation_limit(g) == pytest.approx(condition, rel=1e-12)
    assert asymptotics.smallest_eigenvalue_limit(1 / asymptotics.eigenvalue_ratio(0.3)) == pytest.approx(0.3)
    assert asymptotics.smallest_eigenvalue_limit(2.0) == 0


def test_limits_against_samples() -> None:
    source, d, n = generator(4), 300, 3000
    moment = second_moment(normal(n, d, generator=source))
    error = float(operator_norms(moment - torch.eye(d, dtype=torch.float64)))
    assert error == pytest.approx(asymptotics.fluctuation_limit(d / n), rel=0.05)
    assert smallest(moment) == pytest.approx(asymptotics.smallest_eigenvalue_limit(d / n), rel=0.05)
    a, b = normal(1000, 200, generator=source), normal(1600, 200, generator=source)
    values = whitened_eigenvalues(a, b)
    assert values is not None
    edges = asymptotics.whitened_limits(200 / 1000, 200 / 1600)
    assert (float(values[0]), float(values[-1])) == pytest.approx(edges, rel=0.05)


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_weak_direction_is_not_drowned(ratio: int) -> None:
    """FF-5: lambda_min(Gamma_n) / rho does not depend on rho, although rho is far below 2 Lambda*."""
    d, found = 30, []
    for rho in (0.1, 1e-2, 1e-4):
        root = torch.ones(d, dtype=torch.float64)
        root[0] = math.sqrt(rho)
        scores = normal(40, ratio * d, d, generator=generator(ratio)) * root
        found.append(float(torch.linalg.eigvalsh(moments(scores))[:, 0].mean()) / rho)
    limit = asymptotics.weak_direction_limit(1 / ratio)
    assert limit == 1 - 1 / ratio
    assert found == pytest.approx([limit] * 3, abs=0.1)
    assert found[1] == pytest.approx(found[2], abs=0.02)


@pytest.mark.parametrize(("batch", "expected"), [(32, 0.254), (128, 0.126), (512, 0.061)])
def test_minibatch_rayleigh(batch: int, expected: float) -> None:
    """FF-16: the relative standard deviation in one fixed direction is free of d."""
    scores = normal(4000, batch, generator=generator(batch))
    quotients = scores.square().mean(1)
    measured = float(quotients.std() / quotients.mean())
    predicted = asymptotics.rayleigh_relative_sd(batch)
    assert measured == pytest.approx(predicted, rel=0.05)
    assert predicted == pytest.approx(expected, rel=0.05)


def test_separability() -> None:
    """FF-18, and exactly one half at n = 2 d."""
    found = [asymptotics.separability_probability(n, 20) for n in (30, 35, 40, 45, 50, 60)]
    assert found == pytest.approx([0.969, 0.804, 0.5, 0.226, 0.076, 0.004], abs=5e-4)
    assert all(asymptotics.separability_probability(2 * d, d) == 0.5 for d in range(1, 200))
    assert asymptotics.separability_probability(5, 5) == 1.0


def test_preconditioning() -> None:
    """FF-11 (R12): 1000 random cases of both bounds, of sufficiency and of its converse."""
    source, reached = generator(11), 0
    for _ in range(1000):
        truth, k = random_psd(4, source, floor=1.0), 4
        matrix = normal(k, k, generator=source) + 2 * torch.eye(k, dtype=torch.float64)
        noise = normal(k, k, generator=source)
        noise = 0.01 * (noise + noise.T)
        constants = preconditioning_constants(matrix)
        level, level_p = float(operator_norms(noise)), float(operator_norms(matrix.T @ noise @ matrix))
        floor, floor_p = smallest(truth), smallest(matrix.T @ truth @ matrix)
        assert floor_p >= constants.weakest * floor * (1 - 1e-9)
        assert level_p <= constants.strongest * level * (1 + 1e-9)
        if floor > constants.sufficient_eigenvalue(level):
            reached += 1
            assert floor_p > 2 * level_p
        if floor_p > constants.sufficient_eigenvalue(level_p):
            assert floor > 2 * level
    assert reached > 100


@given(st.integers(0, 10**6), st.floats(0.01, 10.0))
def test_damped_whitening(seed: int, damping: float) -> None:
    matrix = random_psd(5, generator(seed))
    values, vectors = torch.linalg.eigh(matrix)
    whitener = (vectors * (values + damping).rsqrt()) @ vectors.T
    damped = damped_whitening(values, damping)
    torch.testing.assert_close(torch.linalg.eigvalsh(whitener @ matrix @ whitener), damped)
    assert bool(((damped >= 0.5) == (values >= damping)).all())


@pytest.mark.parametrize(("decay", "steps"), [(0.9, 80), (0.5, 40), (0.9, 6)])
def test_effective_sample_size(decay: float, steps: int) -> None:
    """FF-13: the average errs like so many fresh samples, within 4 per cent, and at its start."""
    source, batch, k, draws = generator(13), 8, 3, 3000
    average = torch.zeros(draws, k, k, dtype=torch.float64)
    for _ in range(steps):
        average = decay * average + (1 - decay) * moments(normal(draws, batch, k, generator=source))
    average = average / (1 - decay**steps)
    identity = torch.eye(k, dtype=torch.float64)
    measured = float((average - identity).square().sum((1, 2)).mean().sqrt())
    count = effective_sample_size(batch, decay, steps)
    assert measured == pytest.approx(math.sqrt((k**2 + k) / count), rel=0.04)


@given(st.floats(0.0, 0.99), st.integers(1, 50), st.floats(-5, 5))
def test_drift_bias_is_exact(decay: float, steps: int, drift: float) -> None:
    """FF-13, and the long-run values."""
    average = 0.0
    for step in range(steps):
        average = decay * average + (1 - decay) * drift * step
    lag = drift * (steps - 1) - average / (1 - decay**steps)
    assert drift_bias(drift, decay, steps) == pytest.approx(lag, rel=1e-9, abs=1e-9)
    assert drift_bias(drift, decay) == pytest.approx(drift * decay / (1 - decay), abs=1e-12)
    assert effective_sample_size(8, decay) == pytest.approx(8 * (1 + decay) / (1 - decay))
    assert effective_sample_size(8, decay, 1) == pytest.approx(8)


def test_averages_and_shrinkage_keep_the_floor() -> None:
    """FF-14 (R13): 300 cases."""
    source = generator(14)
    for _ in range(300):
        matrices = [random_psd(5, source) for _ in range(4)]
        mean = torch.stack(matrices).mean(0)
        assert smallest(mean) >= sum(smallest(matrix) for matrix in matrices) / 4 - 1e-12
        weight, tau = torch.rand(2, generator=source, dtype=torch.float64).tolist()
        assert smallest(shrink(matrices[0], weight, tau)) >= weight * tau - 1e-12


def tilted_basis(vectors: Tensor, k: int, size: float, source: torch.Generator) -> Tensor:
    """Orthonormal [d, k] near the k first columns of `vectors`."""
    return torch.linalg.qr(vectors[:, :k] + size * normal(len(vectors), k, generator=source))[0]


def test_angle_bounds() -> None:
    """FF-15 (R14): 2000 cases; at a mean sine of .15 the bound keeps .80 of lambda_min, a cruder one .26."""
    source, d, k = generator(15), 12, 2
    sines, kept, crude = [], [], []
    for _ in range(2000):
        spectrum = 1 + 16 * torch.rand(d, generator=source, dtype=torch.float64)
        spectrum[0], spectrum[-1] = 1.0, 17.0
        vectors = torch.linalg.qr(normal(d, d, generator=source))[0]
        basis = tilted_basis(vectors, k, 0.0478, source)
        sine = subspace_sine(vectors[:, 0], basis)
        monitored = smallest(basis.T @ (vectors * spectrum) @ vectors.T @ basis)
        lower, upper = floor_bracket(monitored, sine, 17.0)
        assert lower <= 1 + 1e-9 and upper >= 1 - 1e-9
        sines.append(sine)
        kept.append(lower)
        crude.append(max(math.sqrt(monitored) - sine * math.sqrt(17.0), 0.0) ** 2)
    means = [sum(values) / 2000 for values in (sines, kept, crude)]
    assert means == pytest.approx([0.15, 0.80, 0.26], abs=0.05)


def test_davis_kahan() -> None:
    """FF-15 (R14): the angle from the perturbed spectrum is an upper bound, and is void when it must be."""
    source, useful = generator(16), 0
    for _ in range(300):
        spectrum = torch.tensor([1.0, 1.5, 5.0, 6.0, 9.0], dtype=torch.float64)
        vectors = torch.linalg.qr(normal(5, 5, generator=source))[0]
        noise = normal(5, 5, generator=source)
        noise = 0.3 * (noise + noise.T)
        values, found = torch.linalg.eigh((vectors * spectrum) @ vectors.T + noise)
        bound = davis_kahan_sine(values, 2, float(operator_norms(noise)))
        assert subspace_sine(vectors[:, 0], found[:, :2]) <= bound + 1e-12
        useful += bound < 0.9
    assert useful > 100
    assert davis_kahan_sine(torch.tensor([1.0, 1.1, 5.0]), 1, 1.0) == 1.0
    assert floor_bracket(0.5, 1.0, 2.0) == (0.0, 0.5)


@given(st.integers(1, 8), st.integers(0, 10**6), st.floats(0.1, 100.0))
def test_soft_minimum(k: int, seed: int, sharpness: float) -> None:
    """R10: in [lambda_min - ln(k) / kappa, lambda_min]; its gradient is a density matrix, also at ties."""
    matrix = random_psd(k, generator(seed))
    value = float(soft_minimum(matrix, sharpness))
    assert smallest(matrix) - math.log(k) / sharpness - 1e-9 <= value <= smallest(matrix) + 1e-9
    identity = torch.eye(k, dtype=torch.float64)
    assert float(soft_minimum(identity, sharpness)) == pytest.approx(1 - math.log(k) / sharpness)
    for point in (matrix, identity):
        point = point.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(soft_minimum(point, sharpness), point)
        assert float(gradient.trace()) == pytest.approx(1, abs=1e-9)
        assert smallest((gradient + gradient.T) / 2) >= -1e-9


def test_soft_minimum_obeys_the_envelope_theorem() -> None:
    """R10: its gradient is v v^T for a simple lowest eigenvalue, and the finite difference of lambda_min."""
    matrix = random_psd(4, generator(3)).requires_grad_()
    (gradient,) = torch.autograd.grad(soft_minimum(matrix, 1e4), matrix)
    vector = torch.linalg.eigh(matrix.detach())[1][:, 0]
    torch.testing.assert_close(gradient, torch.outer(vector, vector), rtol=0, atol=1e-9)
    step = normal(4, 4, generator=generator(4))
    step = 1e-6 * (step + step.T)
    difference = smallest(matrix.detach() + step) - smallest(matrix.detach() - step)
    assert float((gradient * step).sum() * 2) == pytest.approx(difference, rel=1e-7)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: certify_floor_cholesky(torch.ones(2, 3), 0.1), "must be square"),
        (lambda: certify_floor_cholesky(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), 0.1), "must be symmetric"),
        (lambda: certify_floor_cholesky(torch.full((2, 2), math.nan), 0.1), "not finite"),
        (lambda: certify_floor_cholesky(torch.eye(2), math.nan), "`tau` must be finite"),
        (lambda: lanczos_lower_bound(lambda v: v, 1000, 1.0, steps=2), r"write steps=\d+"),
        (lambda: lanczos_lower_bound(lambda v: 5 * v, 60, 1.0), "no upper bound"),
        (lambda: lanczos_lower_bound(lambda v: v, 60, 0.0), "`lambda_max`"),
        (lambda: lanczos_resolution(0, 0.05, 10), "at least 1"),
        (lambda: effective_sample_size(8, 1.0), r"write decay=0\.9"),
        (lambda: effective_sample_size(0, 0.9), "`batch` must be"),
        (lambda: drift_bias(1.0, 0.9, 0), "`steps` counts"),
        (lambda: shrink(torch.eye(2), 1.5, 1.0), "`weight` must lie"),
        (lambda: soft_minimum(torch.eye(2), 0.0), "`sharpness`"),
        (lambda: preconditioning_constants(torch.ones(2, 2)), "is singular"),
        (lambda: damped_whitening(torch.ones(2), 0.0), "`damping`"),
        (lambda: floor_bracket(1.0, 1.5, 2.0), "`sine` must lie"),
        (lambda: floor_bracket(3.0, 0.5, 2.0), "0 <= subspace_floor"),
        (lambda: davis_kahan_sine(torch.ones(3), 3, 0.1), "1 <= k < 3"),
        (lambda: davis_kahan_sine(torch.ones(3), 1, math.nan), "`error` is a norm"),
        (lambda: asymptotics.fluctuation_limit(0.0), "`ratio` must be"),
        (lambda: asymptotics.whitened_limits(1.0, 0.5), "more samples than directions"),
        (lambda: asymptotics.threshold_ratio(1.5), "lambda_min / lambda_max"),
        (lambda: asymptotics.eigenvalue_ratio(1.0), "`level` must lie"),
        (lambda: asymptotics.rayleigh_relative_sd(32, 0.5), "kurtosis is at least 1"),
        (lambda: asymptotics.separability_probability(0, 1), "n >= 1"),
    ],
)
def test_errors_say_what_was_found(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
