"""The studies of the Fisher metric, small: rows come out, relations hold, a fault makes one fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fisheropt import likelihoods
from fisheropt.theory import envelopes, simplex
from recipes.studies import metric_core, metric_cost, metric_network, metric_networks, metric_probes
from recipes.studies.base import Findings, StudyError


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


def core() -> metric_core.MetricCore:
    return metric_core.MetricCore(classes=(2, 5), concentrations=(0.5, 1.0), draws=40)


def test_the_core_has_no_violation_and_a_wrong_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def strict(findings: Findings) -> list[str]:
        return [what for what in missed(findings) if "share" not in what]

    findings = core().run(quiet)
    assert strict(findings) == [] and len(findings.rows) > 20
    monkeypatch.setattr(envelopes, "upper_error", lambda p: p.norm(dim=-1))
    monkeypatch.setattr(simplex, "core_trace", lambda p: 1 - p.norm(dim=-1))
    assert {
        "NF-1: largest violation, error of the upper side, |p|²",
        "NF-1: largest violation, sum of the eigenvalues",
    } <= set(strict(core().run(quiet)))


def test_networks_lie_between_their_bounds() -> None:
    study = metric_network.MetricNetwork(points=24, epochs=8, hidden=8)
    findings = study.run(quiet)
    wrong = [what for what in missed(findings) if "B7" not in what]
    assert wrong == [] and len(findings.pictures) == 1

    def squared(likelihood: likelihoods.Categorical, logits: Tensor, signs: Tensor) -> Tensor:
        return logits.softmax(-1) * signs

    right = likelihoods.upper_factor.dispatch(likelihoods.Categorical)
    likelihoods.upper_factor.register(likelihoods.Categorical)(squared)
    try:
        assert any("B1" in what for what in missed(study.run(quiet)))
    finally:
        likelihoods.upper_factor.register(likelihoods.Categorical)(right)


def test_probes_are_unbiased_and_a_wrong_weight_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    study = metric_probes.MetricProbes(probes=600, points=16, epochs=10, hidden=8)
    strict = {what for what in missed(study.run(quiet)) if "share" not in what}
    assert strict == set()
    monkeypatch.setattr(metric_probes, "Categorical", metric_probes.WeightP)
    broken = set(missed(study.run(quiet)))
    assert {
        "B3, rademacher: trace over the exact one",
        "B6: largest difference of the three forms, same signs",
    } <= broken


def test_a_probe_costs_about_a_backward() -> None:
    rows = metric_cost.MetricCost(probes=(1,), repeats=5, width=64, batch=64).run(quiet).rows
    assert len(rows) == 2 and float(rows[1].seen) > 1


def test_the_dense_rows_are_those_of_the_network() -> None:
    case = metric_networks.case(4, 0, 6, seed=0, hidden=5)
    logits = case.model(case.x)
    (by_hand,) = torch.autograd.grad(logits[2, 1], [case.model[4].weight])
    part = case.weights()["4.weight"]
    torch.testing.assert_close(case.jacobian()[2, 1, part], by_hand.flatten())
    assert case.rows().shape == (24, 20 * 5 + 5 + 25 + 5 + 20 + 4)


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in (
        lambda: metric_core.MetricCore(classes=(1,)),
        lambda: metric_network.MetricNetwork(points=1),
        lambda: metric_probes.MetricProbes(probes=3),
        lambda: metric_cost.MetricCost(probes=()),
    ):
        with pytest.raises(StudyError, match="write"):
            wrong()
