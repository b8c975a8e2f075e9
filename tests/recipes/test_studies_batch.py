"""The studies of batch-size rules, small: rows come out, laws hold, a wrong rule misses."""

from __future__ import annotations

import pytest

from fisheropt.control import CABS, GOF, Fixed, NormTest
from recipes.studies import batch_laws, batch_linear, batch_logistic, batch_one_pass
from recipes.studies.base import Findings, StudyError
from recipes.studies.batch_simulation import Linear, one_pass


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


def test_laws_hold_and_another_threshold_breaks_them(monkeypatch: pytest.MonkeyPatch) -> None:
    study = batch_laws.BatchLaws(draws=3000)
    assert missed(study.run(quiet)) == []
    monkeypatch.setattr(batch_laws, "NormTest", lambda theta=None: NormTest(theta and theta**2))
    monkeypatch.setattr(batch_laws, "CABS", lambda: CABS(scale=1.01))
    assert missed(study.run(quiet)) == [
        "R4: growth of the norm test without signal",
        "CABS: b over η tr G/L*, A = 1",
        "CABS: b over η tr G/L*, A = 0",
    ]
    monkeypatch.setattr(batch_laws, "LinearDecay", Fixed)
    assert "largest error of η/b in linear decay" in missed(study.run(quiet))


def test_a_rule_with_the_wrong_constant_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_linear, "SETTINGS", ((0.3, 24),))
    monkeypatch.setattr(batch_linear, "OTHER", {})
    monkeypatch.setattr(batch_linear, "RULES", {"GO-F": GOF(), "norm test, θ = 1 - η": NormTest()})
    monkeypatch.setattr(batch_linear, "KNOWN", {name: (known[1],) for name, known in batch_linear.KNOWN.items()})
    assert missed(batch_linear.BatchLinear(seeds=12, slow_seeds=2).run(quiet)) == []
    monkeypatch.setattr(batch_linear, "RULES", {"GO-F": NormTest(0.2), "norm test, θ = 1 - η": NormTest()})
    assert missed(batch_linear.BatchLinear(seeds=12, slow_seeds=2).run(quiet)) == ["excess of GO-F, η = 0.3"]


def test_go_f_beats_its_baselines_in_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_logistic, "RATES", (0.5,))
    findings = batch_logistic.BatchLogistic(seeds=4, baseline_seeds=2).run(quiet)
    seen = {row.what: float(row.seen) for row in findings.rows}
    for model in batch_logistic.MODELS:
        assert seen[f"{model}, η = 0.5: excess of GO-F"] < seen[f"{model}, η = 0.5: excess of noise scale"]
        assert seen[f"{model}, η = 0.5: steps of GO-F"] <= 60
    assert len(findings.pictures) == 2


def test_the_optimizer_is_near_the_limit_and_without_a_controller_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_one_pass, "RATES", (0.5,))
    study = batch_one_pass.BatchOnePass(seeds=4, samples=8000)
    assert missed(study.run(quiet)) == []
    given = batch_one_pass.AdaptiveBatchSGD
    monkeypatch.setattr(batch_one_pass, "AdaptiveBatchSGD", lambda *a, **k: given(*a, **k, controller="fixed"))
    assert len(missed(study.run(quiet))) == 4


def test_one_pass_uses_every_sample_and_is_reproducible() -> None:
    problem = Linear(width=4, samples=2000)
    assert one_pass(problem, GOF(), 0.3, 24, 1) == one_pass(problem, GOF(), 0.3, 24, 1)
    assert one_pass(problem, GOF(), 0.3, 24, 1) != one_pass(problem, GOF(), 0.3, 24, 2)


def test_settings_are_checked() -> None:
    for make in (lambda: batch_linear.BatchLinear(seeds=1), lambda: batch_logistic.BatchLogistic(baseline_seeds=1)):
        with pytest.raises(StudyError, match="a standard error needs two"):
            make()
