"""The study of one pass, small: its rows, its law against a direct sum, and a worse run that fails."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fisheropt.optim import gain
from recipes.problems.synthetic import KINDS
from recipes.studies import metric_one_pass
from recipes.studies.base import StudyError


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def study() -> metric_one_pass.MetricOnePass:
    return metric_one_pass.MetricOnePass(d=4, n=4000, condition=10.0, batch=20, seeds=3)


def test_rows_and_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row.what: row for row in study().run(quiet).rows}
    assert len(rows) == 2 * 5
    for kind in ("well specified", "misspecified"):
        assert 0.1 < float(rows[f"{kind}: maximum likelihood"].seen) < 3
    monkeypatch.setattr(gain, "_RISE", 40)
    worse = {row.what: row for row in study().run(quiet).rows}
    last = [what for what in rows if "last iterate, measured every step" in what]
    assert sum(float(worse[what].seen) for what in last) > sum(float(rows[what].seen) for what in last)
    assert any(worse[what].holds is False for what in last)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_the_law_is_that_of_its_samples(kind: str) -> None:
    """tr(H⁻¹G), the best length and the excess loss, from 400,000 samples in three dimensions."""
    law = metric_one_pass._law(kind)
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((400_000, 3)))
    chance = law.chance(z[:, 0], z[:, 1])
    best = torch.tensor([law.best, 0.0, 0.0], dtype=torch.float64)
    p = (z @ best).sigmoid()
    assert float((z * (p - chance)[:, None]).mean(0).abs().max()) < 4e-3
    hessian = (z * (p * (1 - p))[:, None]).T @ z / len(z)
    noise = (z * (p.square() - 2 * p * chance + chance)[:, None]).T @ z / len(z)
    assert float(torch.linalg.solve(hessian, noise).trace()) == pytest.approx(law.trace(3), rel=0.02)
    step = torch.tensor([0.05, -0.03, 0.04], dtype=torch.float64)
    assert law.excess(best) == pytest.approx(0.0, abs=1e-12)
    assert law.excess(best + step) == pytest.approx(float(step @ hessian @ step) / 2, rel=0.1)


def test_settings_are_checked() -> None:
    with pytest.raises(StudyError, match="write d=50"):
        metric_one_pass.MetricOnePass(d=1)
