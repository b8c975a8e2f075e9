"""Lanczos and its quadrature against matrices that are formed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fisheropt.theory.lanczos import LanczosQuadrature, Ritz, lanczos, lanczos_quadrature, probe_generator, ritz


def symmetric(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))[0]
    return basis @ torch.diag(eigenvalues.double()) @ basis.T


SPECTRA = {
    "even": torch.linspace(-1, 1, 60),
    "repeated": torch.tensor([3.0] * 4 + [1.0] * 26 + [0.0] * 30),
    "low rank": torch.cat((torch.tensor([5.0, 5.0, 2.0]), torch.zeros(57))),
    "zero": torch.zeros(60),
    "identity": torch.ones(60),
    "graded": 10.0 ** -torch.arange(60),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("steps", [1, 7, 60, 100])
def test_recursion_and_residuals_hold(name, steps):
    """M Q = Q T + beta q eᵀ: the basis is orthonormal, and the residuals are the true ones."""
    matrix = symmetric(SPECTRA[name])
    for restart in (False, True):
        found = lanczos(lambda v: matrix @ v, 60, steps, restart=restart)
        made = len(found.alpha)
        assert made == min(steps, 60) or (not restart and float(found.beta[-1]) == 0)
        identity = torch.eye(made, dtype=torch.float64)
        assert torch.allclose(found.basis @ found.basis.T, identity, atol=1e-12)
        assert torch.allclose(found.basis @ matrix @ found.basis.T, found.matrix(), atol=1e-11)
        pairs = ritz(found)
        residuals = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
        assert torch.allclose(residuals, pairs.residuals, atol=1e-11)


@pytest.mark.parametrize("name", SPECTRA)
def test_restarts_find_every_eigenvalue_and_its_multiplicity(name):
    matrix = symmetric(SPECTRA[name])
    pairs = ritz(lanczos(lambda v: matrix @ v, 60, 60, restart=True))
    assert torch.allclose(pairs.values, SPECTRA[name].double().sort(descending=True).values, atol=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 30))
def test_ritz_values_lie_below_their_rank_and_near_an_eigenvalue(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    eigenvalues = torch.randn(40, dtype=torch.float64, generator=generator).pow(3).sort(descending=True).values
    matrix = symmetric(eigenvalues, seed)
    pairs = ritz(lanczos(lambda v: matrix @ v, 40, steps, generator=generator, restart=True))
    tiny = 1e-12 * float(eigenvalues.abs().max())
    assert bool((pairs.values <= eigenvalues[:steps] + tiny).all())
    distance = (pairs.values[:, None] - eigenvalues).abs().min(1).values
    assert bool((distance <= pairs.residuals + tiny).all())


def test_a_breakdown_ends_the_recursion():
    matrix = symmetric(SPECTRA["low rank"])
    found = lanczos(lambda v: matrix @ v, 60, 30)
    assert len(found.alpha) == 3 and float(found.beta[-1]) == 0
    expected = torch.tensor([5.0, 2.0, 0.0], dtype=torch.float64)
    assert torch.allclose(ritz(found).values, expected, atol=1e-12)
    assert lanczos(lambda v: matrix @ v, 60, 30, keep=False).basis is None


def test_noise_below_the_scale_is_a_breakdown():
    noise = 1e-16 * symmetric(SPECTRA["even"])
    assert len(lanczos(lambda v: noise @ v, 60, 30).alpha) == 30
    assert len(lanczos(lambda v: noise @ v, 60, 30, scale=1.0).alpha) == 1


@pytest.mark.parametrize("law", ["rademacher", "gaussian"])
def test_quadrature_is_exact_for_polynomials_of_degree_2m_minus_1(law):
    matrix, steps = symmetric(SPECTRA["even"]), 6
    found = lanczos_quadrature(lambda v: matrix @ v, 60, steps, probes=3, law=law)
    draw = torch.randn(3, 60, dtype=torch.float64, generator=probe_generator(0))
    starts = draw.sign() if law == "rademacher" else draw
    starts = starts / starts.norm(dim=1, keepdim=True)
    for degree in range(2 * steps + 2):
        forms = torch.einsum("bi,ij,bj->b", starts, torch.linalg.matrix_power(matrix, degree), starts)
        agree = torch.allclose((found.weights * found.nodes**degree).sum(1), forms, atol=1e-13)
        assert agree == (degree < 2 * steps)


@pytest.mark.parametrize("name", SPECTRA)
def test_exhausted_probes_keep_their_law(name):
    matrix = symmetric(SPECTRA[name])
    found = lanczos_quadrature(lambda v: matrix @ v, 60, 50, probes=4)
    assert torch.allclose(found.weights.sum(1), torch.ones(4, dtype=torch.float64))
    starts = torch.randn(4, 60, dtype=torch.float64, generator=probe_generator(0)).sign()
    forms = torch.einsum("bi,ij,bj->b", starts, matrix, starts) / 60
    assert torch.allclose((found.weights * found.nodes).sum(1), forms, atol=1e-12)


OUTLIERS = torch.cat((torch.linspace(0, 1, 56), torch.tensor([4.0, 4.0, 5.0, 8.0]))).double()


def known_outliers(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return Ritz(values[-4:], torch.zeros(4), vectors[:, -4:])


def scores_of(seeds, power):
    """(estimate - truth) / standard error of tr M^power / d, with 16 probes and known outliers."""
    found = []
    for seed in range(seeds):
        matrix, generator = symmetric(OUTLIERS, seed), probe_generator(seed)
        quadrature = lanczos_quadrature(
            lambda v, m=matrix: m @ v, 60, 4, law="gaussian", generator=generator, known=known_outliers(matrix)
        )
        mean, error = quadrature.mean(quadrature.nodes**power)
        found.append(float((mean - OUTLIERS.pow(power).mean()) / error))
    return torch.tensor(found)


def test_moments_are_within_three_standard_errors_as_often_as_students_law_says():
    """P(|t| > 3) = .0090 for 15 degrees of freedom: of 300, more than 9 leave with probability .001."""
    scores = scores_of(300, 3)
    assert int((scores.abs() > 3).sum()) <= 9
    assert abs(float(scores.mean())) < 0.25 and 0.9 < float(scores.std()) < 1.25


def test_known_pairs_leave_probes_to_the_rest():
    """Their nodes are exact, what is left has far less noise, and the moments are those of the matrix."""
    matrix = symmetric(OUTLIERS, 3)
    with_known = lanczos_quadrature(lambda v: matrix @ v, 60, 20, law="gaussian", known=known_outliers(matrix))
    without = lanczos_quadrature(lambda v: matrix @ v, 60, 20)
    assert torch.allclose(with_known.weights.sum(1), torch.ones(16, dtype=torch.float64))
    assert torch.allclose(with_known.nodes[:, :4], OUTLIERS[-4:].expand(16, -1))
    (mean, error), (_, rough) = (q.mean(q.nodes.square()) for q in (with_known, without))
    assert float(error) < float(rough) / 10
    assert abs(float(mean - OUTLIERS.square().mean())) < 4 * float(error)
    with pytest.raises(ValueError, match="law='gaussian' only"):
        lanczos_quadrature(lambda v: matrix @ v, 60, 20, known=known_outliers(matrix))


def test_one_probe_has_no_standard_error():
    found = LanczosQuadrature(torch.ones(1, 2), torch.full((1, 2), 0.5))
    assert found.mean(found.nodes)[0] == 1 and found.mean(found.nodes)[1] == math.inf


def test_bad_calls_are_refused():
    with pytest.raises(ValueError, match="steps >= 1"):
        lanczos(lambda v: v, 3, 0)
    with pytest.raises(ValueError, match="other than zero"):
        lanczos(lambda v: v, 3, 2, start=torch.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        lanczos(lambda v: v * float("nan"), 3, 2)
    with pytest.raises(ValueError, match="probes >= 1"):
        lanczos_quadrature(lambda v: v, 3, 2, probes=0)
    with pytest.raises(ValueError, match="law="):
        lanczos_quadrature(lambda v: v, 3, 2, law="uniform")
