"""Variances of probe estimates against simulation, each within its sampling error (NF-5 to NF-8, NF-15)."""

import math

import pytest
import torch

from fisheropt.theory import estimator_quality as quality

DRAWS = 200_000


def rows():
    torch.manual_seed(3)
    return torch.randn(12, 4, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)


def probes(kind, count, draws=DRAWS):
    if kind == "gaussian":
        return torch.randn(draws, count, dtype=torch.float64)
    return torch.randint(0, 2, (draws, count), dtype=torch.float64) * 2 - 1


KINDS = [("rademacher", quality.RADEMACHER), ("gaussian", quality.GAUSSIAN)]


@pytest.mark.parametrize(("kind", "kurtosis"), KINDS)
def test_variances_are_those_of_simulated_probes(kind, kurtosis):
    """NF-5: within four standard errors, of entries, of the trace and of the whole matrix."""
    a = rows()
    g, F = probes(kind, len(a)) @ a, a.T @ a
    found = {
        "entries": (g[:, :, None] * g[:, None, :] - F).square(),
        "trace": (g.square().sum(1) - F.trace()).square(),
        "matrix": (g[:, :, None] * g[:, None, :] - F).square().sum((1, 2)),
    }
    expected = {
        "entries": quality.entry_variance(a, kurtosis=kurtosis),
        "trace": quality.trace_variance(a, kurtosis=kurtosis),
        "matrix": quality.matrix_error(a, kurtosis=kurtosis),
    }
    for name, draws in found.items():
        error = draws.std(0) / math.sqrt(DRAWS)
        assert bool(((draws.mean(0) - expected[name]).abs() <= 4 * error).all()), name


@pytest.mark.parametrize(("kind", "kurtosis"), KINDS)
def test_no_diagonal_entry_passes_the_bound(kind, kurtosis):
    a = rows()
    cv = quality.diagonal_cv(a, kurtosis=kurtosis)
    torch.testing.assert_close(cv, quality.entry_variance(a, kurtosis=kurtosis).diagonal().sqrt() / a.square().sum(0))
    assert float(cv.max()) <= quality.diagonal_cv_bound(rows=len(a), kurtosis=kurtosis) + 1e-12 <= math.sqrt(2) + 1e-12
    equal = torch.ones(12, 2, dtype=torch.float64)
    assert float(quality.diagonal_cv(equal).max()) == pytest.approx(quality.diagonal_cv_bound(rows=12), rel=1e-12)


def test_probes_divide_every_variance():
    a = rows()
    for of in (quality.entry_variance, quality.trace_variance, quality.matrix_error):
        torch.testing.assert_close(of(a, probes=8), of(a) / 8)
    assert quality.diagonal_cv_bound(8) == pytest.approx(0.5)


def test_trace_is_easier_than_entries():
    a = rows()
    F = a.T @ a
    effective = float(F.trace().square() / F.square().sum())
    cv = float(quality.trace_variance(a, kurtosis=3.0).sqrt() / F.trace())
    assert cv == pytest.approx(quality.trace_cv_bound(effective), rel=1e-12)
    assert quality.trace_cv_bound(effective, 4) == pytest.approx(cv / 2)


def test_probes_needed_is_the_inverse_of_the_bound():
    assert [quality.probes_needed(e) for e in (math.sqrt(2), 1.0, 0.1)] == [1, 2, 200]
    assert quality.probes_needed(0.1, effective_rank=10) == 20
    for target in (0.03, 0.2, 0.7):
        m = quality.probes_needed(target)
        assert quality.diagonal_cv_bound(m) <= target < quality.diagonal_cv_bound(max(m - 1, 0.5))


@pytest.mark.parametrize(("decay", "expected"), [(0.9, 0.324), (0.99, 0.0998)])
def test_averages_over_updates_are_as_precise_as_said(decay, expected):
    """NF-6, simulated in the stationary state."""
    assert quality.ema_cv(math.sqrt(2), decay) == pytest.approx(expected, abs=1e-3)
    state, values = torch.ones(40_000, dtype=torch.float64), torch.empty(0)
    for _ in range(round(6 / (1 - decay))):
        values = torch.randn(40_000).double().square()
        state = decay * state + (1 - decay) * values
    assert float(state.std() / state.mean()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("m", [4, 8, 20])
def test_inverses_are_too_large(m):
    """NF-7; at M = 4 the inverse has no variance, so its mean is known to some per cent."""
    torch.manual_seed(m)
    chi = torch.randn(1_000_000, m).square().mean(1)
    assert float((1 / chi).mean()) == pytest.approx(quality.inverse_bias(m), rel=0.03 if m == 4 else 0.01)
    assert float(chi.median()) == pytest.approx(quality.median_ratio(m), abs=3e-3)


def test_one_probe_is_never_to_be_divided_by():
    assert quality.inverse_bias(1) == quality.inverse_bias(2) == math.inf
    assert quality.median_ratio(1) == pytest.approx(0.455, abs=1e-3)
    assert "no finite mean" in quality.skew_warning(1) and "2 times too large" in quality.skew_warning(4)
    assert quality.skew_warning(20) == ""


@pytest.mark.parametrize("decay", [0.0, 0.02, 0.1])
def test_spectral_error_of_sketches(decay):
    """NF-8: between the two sizes, of which the document's factor 1.4 is one between; a flat spectrum has the upper."""
    torch.manual_seed(0)
    values = torch.exp(-decay * torch.arange(60, dtype=torch.float64))
    for m in (8, 32, 128, 512):
        g = torch.randn(10, m, 60, dtype=torch.float64) * values.sqrt()
        error = float(torch.linalg.matrix_norm(g.mT @ g / m - values.diag(), 2).mean())
        low, high = quality.spectral_error(1.0, float(values.sum()), m)
        assert low < error < 1.05 * high
        assert decay > 0 or error > 0.8 * high


@pytest.mark.parametrize(("p", "expected"), [(0.5, 0.0), (0.9, 2.667), (0.99, 9.849)])
def test_one_label_has_no_bound(p, expected):
    """NF-15, and the definition: (e_y - p)² is q²/pq with probability p."""
    q = 1 - p
    mean, square = p * q, p * q**4 + q * p**4
    assert float(quality.label_cv(torch.tensor(p, dtype=torch.float64))) == pytest.approx(expected, abs=1e-3)
    assert expected == pytest.approx(math.sqrt(max(0.0, square - mean**2)) / mean, abs=1e-3)


def test_numbers_outside_their_range_are_refused():
    with pytest.raises(ValueError, match=r"probes_needed\(0"):
        quality.probes_needed(0)
    with pytest.raises(ValueError, match=r"write decay=0.99"):
        quality.ema_cv(1.0, 1.0)
    with pytest.raises(ValueError, match="must be a positive"):
        quality.diagonal_cv_bound(0)
