"""The studies of effective spectra, small: rows come out, relations hold, and a wrong law or sample misses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from recipes.studies import (
    spectra_blocks,
    spectra_dynamics,
    spectra_full,
    spectra_heads,
    spectra_measured,
    spectra_rank,
    spectra_samples,
    spectra_threshold,
    spectra_transitions,
)
from recipes.studies.base import Findings, StudyError


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


def drawn(findings: Findings) -> bool:
    """Every picture can be drawn."""
    from recipes.drawing import svg

    return all(svg(p.draw, width=p.width, height=p.height, rows=p.rows) for p in findings.pictures)


def test_blocks_agree_and_another_snr_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    study = spectra_blocks.SpectraBlocks(dimension=300, draws=2)
    findings = study.run(quiet)
    assert len(findings.rows) >= 50 and drawn(findings)
    assert len([what for what in missed(findings) if "KS" in what]) <= 1 and len(missed(findings)) <= 8
    right = spectra_samples.features
    monkeypatch.setattr(spectra_samples, "features", lambda s, count, g: right(replace(s, snr=0.9 * s.snr), count, g))
    assert len(missed(study.run(quiet))) >= 15


def test_in_as_many_dimensions_as_weights_and_means_there_is_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    head = spectra_samples.random_head(4, 2, generator)
    setting = spectra_samples.Setting(spectra_samples.orthonormal(4, 2), head, (0.5, 0.5), 2.0)
    for block in (0, "full"):
        shares = spectra_samples.sampled(setting, 50, "hessian", block, 3, generator).overlaps
        torch.testing.assert_close(shares, torch.ones(3, dtype=torch.float64))


def test_full_matrices_agree_and_half_the_weights_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two classes, whose matrix Dyson equation is solved fast."""
    monkeypatch.setattr(spectra_full, "PROPORTIONS", (0.6, 0.4))
    study = spectra_full.SpectraFull(dimension=250, draws=2)
    findings = study.run(quiet)
    assert len(missed(findings)) <= 3 and not [what for what in missed(findings) if "KS" in what]
    right = spectra_samples._weights
    monkeypatch.setattr(spectra_samples, "_weights", lambda *given: 0.5 * right(*given))
    assert len(missed(study.run(quiet))) >= 5


def test_the_threshold_is_where_the_closed_form_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    study = spectra_threshold.SpectraThreshold(dimension=200, draws=2, snrs=(0.5, 4.0, 8.0))
    findings = study.run(quiet)
    assert not [what for what in missed(findings) if "root" in what or "critical" in what]
    assert len(missed(findings)) <= 1 and drawn(findings)
    right = spectra_threshold.effective_spectrum
    monkeypatch.setattr(spectra_threshold, "effective_spectrum", lambda g, p, snr, ratio: right(g, p, snr, 1.1 * ratio))
    assert len(missed(study.run(quiet))) >= 3


def test_transitions_are_the_documents_but_for_its_unknown_start(monkeypatch: pytest.MonkeyPatch) -> None:
    study = spectra_transitions.SpectraTransitions(dimension=150, draws=2, times=(0.0, 6.0))
    findings = study.run(quiet)
    documented = [what for what in missed(findings) if "sampled" not in what]
    assert documented == [f"T4c: information, first time with {count}" for count in ("one", "none")]
    assert drawn(findings)
    dynamics = spectra_transitions._trained(torch.eye(4), (0.5, 0.5), 10.0, every=10)
    wrong = spectra_transitions.spectral_transitions(dynamics, 5.0)
    rows = spectra_transitions._ratios(spectra_transitions.Paths(*[wrong] * 4))
    assert len([row for row in rows if row.holds is False]) >= 8


def test_the_ode_follows_sgd_and_its_cold_twin_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    study = spectra_dynamics.SpectraDynamics(dimension=120, runs=3)
    monkeypatch.setattr(spectra_dynamics, "CASES", tuple(c._replace(error=0.12) for c in spectra_dynamics.CASES))
    findings = study.run(quiet)
    assert [what for what in missed(findings) if "T5" in what] == []
    assert drawn(findings)
    case = spectra_dynamics.CASES[1]
    setting = spectra_samples.Setting(means := spectra_samples.orthonormal(120, 3), means, (0.4, 0.35, 0.25), 4.0)
    run = study._descend(setting, case, torch.Generator().manual_seed(0))
    wrong = spectra_dynamics._compared(case, spectra_dynamics._law(setting, case._replace(c_delta=0.0)), run)
    assert len([row for row in wrong if row.holds is False]) == 3


def two_classes(dimension: int, ratio: float, generator: torch.Generator) -> spectra_heads.Head:
    means = spectra_samples.orthonormal(dimension, 2)
    setting = spectra_samples.Setting(means, means, (0.6, 0.4), 8.0)
    inputs, labels = spectra_samples.features(setting, round(ratio * dimension), generator)
    noise = torch.eye(dimension, dtype=torch.float64) / setting.snr
    return spectra_heads.Head("mixture, linear", means.T, torch.zeros(2).double(), inputs, labels, means.T, noise)


def test_measured_spectra_agree_where_the_theory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two classes throughout, and exact spectra: both are fast."""
    monkeypatch.setattr(spectra_heads, "DIGITS", (3, 8))
    monkeypatch.setattr(spectra_measured, "DRAWS", 10)
    monkeypatch.setattr(spectra_measured, "of_mixture", two_classes)
    right = spectra_measured.measured_spectrum
    monkeypatch.setattr(spectra_measured, "measured_spectrum", lambda m, **given: right(m, **given | {"exact": True}))
    study = spectra_measured.SpectraMeasured(dimension=200, width=10)
    findings = study.run(quiet)
    assert drawn(findings)
    assert not [what for what in missed(findings) if "model Fisher" in what]
    assert {"mixture", "digits"} < {row.what.split(",")[0] for row in findings.rows}
    case = study._case(two_classes(200, 3.0, torch.Generator().manual_seed(0)), "hessian")
    wrong = replace(case, effective=replace(case.effective, edge=0.5 * case.effective.edge))
    assert [row.holds for row in spectra_measured._required(wrong)].count(False) >= 2


def test_whitening_keeps_the_logits() -> None:
    head = spectra_heads.of_digits(0, torch.Generator().manual_seed(0))
    white = head.whitened()
    torch.testing.assert_close(white.features @ white.weights.T, head.features @ head.weights.T)
    torch.testing.assert_close(white.means @ white.weights.T, head.means @ head.weights.T)


def test_ranks_are_compared_on_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """With SGD in place of every method all paired differences are zero, and nothing is better than another."""
    sgd = spectra_rank.METHODS[spectra_rank.SGD]._replace(rates=(1.0, 2.0))
    study = spectra_rank.SpectraRank(dimension=10, samples=512, seeds=3)
    with monkeypatch.context() as patch:
        patch.setattr(spectra_rank, "METHODS", dict.fromkeys(spectra_rank.METHODS, sgd))
        same = [row for row in study.run(quiet).rows if "minus" in row.what]
    assert len(same) == 21 and all(row.seen == 0 and "undecided" in row.remark for row in same)
    for rank in ("edge", 2):
        excess, kept = study._pass(spectra_rank._lowrank(rank), 0.05, spectra_rank._setting(10, 3.0), 0)
        assert 0 < excess < 2 and kept >= 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spectra_blocks.SpectraBlocks(dimension=3), "dimension=800"),
        (lambda: spectra_full.SpectraFull(draws=0), "draws=3"),
        (lambda: spectra_threshold.SpectraThreshold(snrs=(2.0, 1.0)), "snrs="),
        (lambda: spectra_transitions.SpectraTransitions(times=(0.0, 30.0)), "times from 0"),
        (lambda: spectra_dynamics.SpectraDynamics(runs=1), "runs=24"),
        (lambda: spectra_measured.SpectraMeasured(width=100), "width=40"),
        (lambda: spectra_rank.SpectraRank(samples=10), "samples=6000"),
    ],
)
def test_settings_that_teach(make: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make()
