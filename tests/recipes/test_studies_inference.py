"""The study of coverage, small: rows come out, relations hold, a fault makes a row fail."""

from __future__ import annotations

import pytest
import torch

from recipes.studies import inference_coverage
from recipes.studies.base import StudyError


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def study() -> inference_coverage.InferenceCoverage:
    return inference_coverage.InferenceCoverage(d=3, sets=200, passes=10, lengths=(50,), batches=10)


def test_rows_and_relations(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = study().run(quiet)
    seen = {row.what: row for row in findings.rows}
    assert len(seen) == 3 * 5 + 4
    assert float(seen["heteroscedastic linear: H⁻¹/n"].seen) < 0.88 < float(seen["heteroscedastic linear: HC3"].seen)
    shares = [float(seen[f"overdispersed Poisson: {name}"].seen) for name in ("HC0", "HC2", "HC3")]
    assert shares == sorted(shares)
    assert all(row.error is not None for row in findings.rows)
    assert "rms error" in seen["one pass, n = 150: Newton step, HC3"].remark

    monkeypatch.setattr(inference_coverage, "covered", lambda sets, theta, _: torch.full((len(theta),), 0.9))
    broken = {row.what for row in study().run(quiet).rows if row.holds is False}
    assert {f"{name}: HC3" for name in inference_coverage.KINDS} <= broken


def test_settings_are_checked() -> None:
    with pytest.raises(StudyError, match="write d=8"):
        inference_coverage.InferenceCoverage(d=1)
