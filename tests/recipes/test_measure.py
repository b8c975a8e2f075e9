"""The cost table: every optimizer has a row, SGD is 1 by construction, and a refusal is shown with its reason."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes import measure


def test_every_optimizer_has_a_row_and_sgd_is_one() -> None:
    rows = list(measure.measure(measure.SUBJECTS["head"], 2, torch.device("cpu")))
    assert {row["optimizer"] for row in rows} == set(measure.OPTIMIZERS)
    ratios = {row["optimizer"]: row["ratio"] for row in rows if "ratio" in row}
    assert ratios["SGD"]["median"] == 1.0
    assert all(ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in ratios.values())


def test_a_refusal_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    coupled = measure.Subject(
        lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), lambda n: torch.randn(n, 4), 3, 8
    )
    rows = [{"model": "m", **row} for row in measure.measure(coupled, 1, torch.device("cpu"))]
    refused = [row for row in rows if "refused" in row]
    assert any("couples the samples" in row["refused"] for row in refused)
    assert "refused: " in measure.table(rows, "here")


def test_the_command_leaves_a_table_and_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure.py", "--models=head", "--rounds=1", f"--folder={tmp_path}"])
    monkeypatch.setattr(measure, "OPTIMIZERS", {"SGD": measure.OPTIMIZERS["SGD"]})
    threads = torch.get_num_threads()
    measure.main()
    torch.set_num_threads(threads)
    assert json.loads((tmp_path / "result.json").read_text())["rows"][0]["optimizer"] == "SGD"
    assert "| head | SGD |" in (tmp_path / "table.md").read_text()
    assert str(tmp_path / "table.md") in capsys.readouterr().out


@pytest.mark.parametrize("name", list(measure.SUBJECTS))
def test_models_take_their_batches(name: str) -> None:
    subject = measure.SUBJECTS[name]
    assert subject.build()(subject.inputs(2)).shape == (2, subject.classes)
