"""The study of directions, small: its rows come out, and a tracker that does not track makes the claim fail."""

from __future__ import annotations

import pytest
import torch

from fisheropt.optim import tracking
from recipes.studies import floor_direction_runs as runs
from recipes.studies.base import StudyError
from recipes.studies.floor_directions import CHOICES, FloorDirections

SMALL = {"seeds": 2, "steps": 200, "network_steps": 4, "dimension": 14}


def test_small_runs_hold_and_show_every_choice():
    findings = FloorDirections(**SMALL).run(lambda done, words: None)
    (claim,) = [
        row for row in findings.rows if row.what.startswith("logistic") and row.what.endswith("beyond no floor")
    ]
    assert claim.holds
    for words in CHOICES.values():
        assert any(words in row.what for row in findings.rows)
    assert len(findings.pictures) == 3


def test_directions_that_stay_as_drawn_keep_no_more_than_random_ones(monkeypatch):
    """Deliberate fault: the directions never change, so that nothing is claimed rightly of them."""
    bench = runs.logistic(14, 200)
    followed = [runs.train(bench, "tracked", seed).smallest for seed in range(2)]
    monkeypatch.setattr(tracking, "due", lambda group: False)
    frozen = [runs.train(bench, "tracked", seed).smallest for seed in range(2)]
    assert sum(followed) / 2 > sum(frozen) / 2 + 0.3


def test_the_true_fisher_matrix_is_that_of_the_definition():
    bench = runs.logistic(12, 1)
    data = bench.data(0)
    torch.nn.init.normal_(data.model.weight)
    p = data.model(data.x).detach().sigmoid()
    torch.testing.assert_close(
        runs.information(bench, data.model, data.x), (data.x * p * (1 - p)).T @ data.x / len(data.x)
    )


@pytest.mark.parametrize("setting", [{"seeds": 1}, {"dimension": 6}])
def test_bad_settings_say_what_to_write(setting):
    with pytest.raises(StudyError, match="write"):
        FloorDirections(**setting)
