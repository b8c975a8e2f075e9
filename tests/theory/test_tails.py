"""Tails and quantiles against SciPy's."""

from __future__ import annotations

import pytest

from fisheropt.theory.tails import chi2_tail, two_sided_quantile, two_sided_tail


@pytest.mark.parametrize("dof", [1, 2, 3.5, 17, 400, 1e5])
def test_tails_are_those_of_scipy(dof: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for t in (1e-3, 0.3, 1.0, 2.5, 12.0):
        assert two_sided_tail(t, dof) == pytest.approx(2 * stats.t.sf(t, dof), rel=1e-10)
        assert two_sided_tail(-t) == pytest.approx(2 * stats.norm.sf(t), rel=1e-12)
        assert chi2_tail(t, dof) == pytest.approx(stats.chi2.sf(t, dof), rel=1e-10)
    for level in (0.05, 0.5, 0.95, 0.999):
        assert two_sided_quantile(level, dof) == pytest.approx(stats.t.ppf((1 + level) / 2, dof), rel=1e-10)
