"""Edge, overlaps and error rate of the bulk of a matrix of scores, on sampled spiked matrices."""

import math

import pytest
import torch

from fisheropt.theory.score_bulk import score_bulk

SIZES = {
    "equal": lambda g, n: torch.ones(n, dtype=torch.float64),
    "exponential": lambda g, n: -torch.rand(n, generator=g, dtype=torch.float64).log(),
    "two levels": lambda g, n: 0.1 + 4 * (torch.rand(n, generator=g, dtype=torch.float64) < 0.2).double(),
}


def scores(law, n, d, strengths=(), seed=0):
    """√f y with the first coordinates of y as many times as large as √strength."""
    generator = torch.Generator().manual_seed(seed)
    f = SIZES[law](generator, n)
    y = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y[:, : len(strengths)] *= torch.tensor(strengths, dtype=torch.float64).sqrt()
    return f.sqrt()[:, None] * y


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
def test_equal_sizes_have_marchenko_pasturs_edge(ratio):
    bulk = score_bulk(torch.full((7,), 100.0), 100 * ratio, 100)
    assert bulk.edge == pytest.approx((1 + ratio**-0.5) ** 2, rel=1e-6)
    assert bulk.mean == pytest.approx(1.0)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("excess", [1.5, 3.0, 20.0])
def test_equal_sizes_have_the_spiked_models_closed_form(ratio, excess):
    """Strength a at z = a(1 + γ/(a-1)) with overlap (1 - γ/(a-1)²)/(1 + γ/(a-1)), γ = 1/φ."""
    gamma = 1 / ratio
    a = 1 + excess * gamma**0.5
    found = score_bulk(torch.full((3,), 50.0), 50 * ratio, 50).spike(a * (1 + gamma / (a - 1)))
    assert found.strength == pytest.approx(a, rel=1e-6)
    assert found.overlap == pytest.approx((1 - gamma / (a - 1) ** 2) / (1 + gamma / (a - 1)), rel=1e-6)


@pytest.mark.parametrize("law", SIZES)
@pytest.mark.parametrize(("n", "d", "strengths"), [(1600, 400, (16.0, 8.0)), (600, 600, (60.0, 30.0))])
def test_sampled_spikes_are_where_they_should_be(law, n, d, strengths):
    """Mean of 4 draws: overlaps within .03, strengths within 8 % (their own sampling error is √(2/4n) times 2 to 4)."""
    strength, overlap, seen = torch.zeros(2), torch.zeros(2), torch.zeros(2)
    for seed in range(4):
        s = scores(law, n, d, strengths, seed)
        values, vectors = torch.linalg.eigh(s.T @ s / n)
        bulk = score_bulk(s[:, 2:].square().sum(1), n, d - 2)
        spikes = [bulk.spike(float(values[-1 - j])) for j in range(2)]
        strength += torch.tensor([x.strength for x in spikes]) / 4
        overlap += torch.tensor([x.overlap for x in spikes]) / 4
        seen += vectors[:2, -2:].flip(1).square().sum(0).float() / 4  # two spikes mix in a sample
    assert (overlap - seen).abs().max() <= 0.03
    torch.testing.assert_close(strength, torch.tensor(strengths), rtol=0.08, atol=0)


@pytest.mark.parametrize("law", SIZES)
@pytest.mark.parametrize(("n", "d"), [(400, 100), (150, 150), (80, 320)])
def test_the_bulk_is_rarely_above_its_threshold(law, n, d):
    """At level .05, 60 draws: 9 or more by chance with probability below .004 (binomial)."""
    above = 0
    for seed in range(60):
        s = scores(law, n, d, seed=seed)
        small = s @ s.T if n < d else s.T @ s
        top = float(torch.linalg.eigvalsh(small)[-1]) / n
        above += top > score_bulk(s.square().sum(1), n, d).threshold(0.05)
    assert above < 9


def test_the_edge_is_that_of_the_sample():
    """Within 4 % of the largest of 600 eigenvalues, which lies γd^(-2/3) below it on average."""
    for law in ("equal", "two levels"):
        s = scores(law, 1200, 600)
        bulk = score_bulk(s.square().sum(1), 1200, 600)
        assert float(torch.linalg.eigvalsh(s.T @ s / 1200)[-1]) == pytest.approx(bulk.edge, rel=0.04)


def test_weights_are_repetitions_and_units_are_free():
    """The same sizes twice, or in other units: the same bulk, in those units."""
    sizes = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    plain = score_bulk(sizes, 200, 40, weights=torch.tensor([2.0, 1.0, 3.0]))
    repeated = score_bulk(torch.tensor([1.0, 1.0, 4.0, 9.0, 9.0, 9.0]), 200, 40)
    assert repeated.edge == pytest.approx(plain.edge, rel=1e-9)
    tiny = score_bulk(sizes * 1e-12, 200, 40, weights=torch.tensor([2.0, 1.0, 3.0]))
    z = 3 * plain.edge
    assert tiny.spike(z * 1e-12).overlap == pytest.approx(plain.spike(z).overlap, rel=1e-9)
    assert tiny.spike(z * 1e-12).eigenvalue == pytest.approx(plain.spike(z).eigenvalue * 1e-12, rel=1e-9)


def test_below_the_edge_nothing_is_known():
    bulk = score_bulk(torch.ones(5), 10, 5)
    found = bulk.spike(bulk.edge)
    assert (found.strength, found.overlap) == (1.0, 0.0) and found.eigenvalue == pytest.approx(bulk.mean)
    assert bulk.spike(1.001 * bulk.edge).overlap < 0.2
    assert bulk.spike(1000 * bulk.edge).overlap == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize(
    ("sizes", "count", "dimension", "message"),
    [
        (torch.tensor([1.0, -1.0]), 10, 5, "non-negative"),
        (torch.zeros(3), 10, 5, "not all zero"),
        (torch.tensor([1.0, math.nan]), 10, 5, "finite"),
        (torch.ones(2, 2), 10, 5, r"scores\.square"),
        (torch.ones(2), 0, 5, "count"),
        (torch.ones(2), 10, -1, "dimension"),
    ],
)
def test_bad_input_is_refused(sizes, count, dimension, message):
    with pytest.raises(ValueError, match=message):
        score_bulk(sizes, count, dimension)


def test_an_eigenvalue_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        score_bulk(torch.ones(2), 10, 5).spike(math.nan)
