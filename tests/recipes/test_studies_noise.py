"""The studies of SGD's noise, small: rows come out, relations hold, a wrong law misses."""

from __future__ import annotations

import pytest
import torch

from fisheropt.theory import lyapunov
from recipes.studies import noise_identities, noise_products, noise_reshuffle, noise_stationary
from recipes.studies.base import Findings
from recipes.studies.glm_chains import epochs, inflated_poisson, logistic


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


def test_identities_hold_to_rounding_and_not_for_a_wrong_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    study = noise_identities.NoiseIdentities()
    assert missed(study.run(quiet)) == []
    monkeypatch.setattr(torch, "cov", lambda x: x @ x.T / x.shape[1])
    assert len(missed(study.run(quiet))) >= 1


def test_the_discrete_law_holds_and_the_wrong_noise_does_not() -> None:
    """At this size chance alone moves the simulated covariance by some per cent."""
    findings = noise_stationary.NoiseStationary(chains=150, steps=1200).run(quiet)
    seen = {row.what: float(row.seen) for row in findings.rows}
    for b in (64, 256):
        assert seen[f"X2: error of the discrete law, b = {b}"] < 0.08
        assert seen[f"X2: error of the continuous equation, b = {b}"] > 0.1
    assert set(missed(findings)) <= {f"X2: error of the discrete law, b = {b}" for b in (64, 256)}


def test_reshuffling_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    study = noise_reshuffle.NoiseReshuffle(chains=60, passes=40)
    monkeypatch.setattr(noise_reshuffle, "RATES", (0.1, 0.2))
    wide = [row for row in study.run(quiet).rows if abs(float(row.seen) / float(row.expected or 0) - 1) > 0.15]
    assert wide == []
    monkeypatch.setattr(
        noise_reshuffle, "stationary_covariance", lambda H, S, lr, b, **_: lyapunov.stationary_covariance(H, S, lr, b)
    )
    assert len(missed(study.run(quiet))) >= 2


def test_products_sum_to_zero_at_stationarity() -> None:
    rows = noise_products.NoiseProducts(chains=200, steps=600).run(quiet).rows
    assert float(rows[0].seen) < 0.1
    assert float(rows[1].seen) > 0 > float(rows[2].seen)


def test_an_epoch_sees_every_sample_once() -> None:
    drawn = epochs(12, 4, 3, torch.Generator().manual_seed(0))
    seen = torch.cat([next(drawn) for _ in range(3)], dim=1)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(12).expand(3, -1))


@pytest.mark.parametrize("make", [lambda g: logistic(500, 4, 5.0, g), lambda g: inflated_poisson(500, 4, g)])
def test_optima_are_stationary_and_h_is_the_derivative(make: object) -> None:
    model = make(torch.Generator().manual_seed(1))  # type: ignore[operator]
    theta = model.optimum()
    assert float(model.scores(theta).mean(0).norm()) < 1e-12
    jacobian = torch.autograd.functional.jacobian(lambda t: model.scores(t).mean(0), theta)
    torch.testing.assert_close(jacobian, model.curvature(theta))
