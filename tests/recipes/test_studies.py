"""Studies as runs: what they leave behind, what a reader sees, and that a number out of its interval is not hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from omegaconf import open_dict

from recipes import document, report, settings, train
from recipes.studies.base import Finding, Findings, Picture, Study, StudyError, Tell
from tests.recipes.harness import configure
from tests.recipes.test_report import assert_self_contained


@final
class Coin(Study):
    """Throws of a fair coin."""

    title: ClassVar[str] = "A fair coin"
    question: ClassVar[str] = "Is the share of heads one half?"
    reference: ClassVar[str] = "folklore"

    def __init__(self, throws: int = 400, fair: float = 0.5, seed: int = 0) -> None:
        if throws < 1:
            raise StudyError(f"throws={throws}: write a whole number from 1.")
        self.throws, self.fair, self.seed = throws, fair, seed

    def run(self, tell: Tell) -> Findings:
        """Throw."""
        generator = torch.Generator().manual_seed(self.seed)
        heads = float((torch.rand(self.throws, generator=generator) < self.fair).double().mean())
        tell(1.0, "thrown")
        error = 0.5 / self.throws**0.5
        row = Finding.near("share of heads", heads, 0.5, absolute=4 * error, error=error, remark="a | b")
        words = Finding.told("side", "head")
        return Findings((row, words), (Picture("Heads", "One point.", lambda axes: axes.plot([0, 1], [heads, heads])),))


def conduct(folder: Path, **keys: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    cfg, choices = configure()
    with open_dict(cfg):
        cfg.study = {"_target_": f"{__name__}.Coin", **keys}
    return train.run(settings.start(cfg, folder, choices | {"experiment": "coin"}, ["experiment=coin"]), folder)


def test_a_study_is_a_run_with_a_page(tmp_path: Path) -> None:
    result = conduct(tmp_path)
    assert (result["status"], result["held"], result["missed"]) == ("finished", 1, 0)
    assert result["optimizer"] is None
    assert json.loads((tmp_path / "result.json").read_text())["findings"]["rows"][0]["holds"] is True
    page = assert_self_contained(tmp_path / "report.html")
    for words in ("A fair coin", "Is the share of heads one half?", "1 of 1 numbers as expected", "holds"):
        assert words in page.text
    assert page.tags.count("svg") == 1


def test_a_number_out_of_its_interval_is_said(tmp_path: Path) -> None:
    result = conduct(tmp_path, fair=0.9)
    assert result["missed"] == 1
    assert "0 of 1 numbers as expected; not: share of heads" in report.sentence(result)
    assert "missed" in assert_self_contained(tmp_path / "report.html").text


def test_equal_seeds_give_equal_findings(tmp_path: Path) -> None:
    first, again, other = conduct(tmp_path / "a"), conduct(tmp_path / "b"), conduct(tmp_path / "c", seed=1)
    assert first["findings"] == again["findings"]
    assert first["findings"] != other["findings"]


def test_a_bad_setting_fails_the_run_with_its_message(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="throws=0: write a whole number"):
        conduct(tmp_path, throws=0)
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert "throws=0" in assert_self_contained(tmp_path / "report.html").text


def test_the_documentation_gets_the_table_and_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "figures").mkdir()
    conduct(tmp_path / "run")
    table = document.document(tmp_path / "run", tmp_path / "docs").read_text()
    assert "| share of heads |" in table
    assert r"a \| b" in table
    assert "✓" in table
    figure = (tmp_path / "docs" / "figures" / "coin-1.svg").read_text()
    assert figure.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    with pytest.raises(FileNotFoundError, match="holds no finished study"):
        document.document(tmp_path / "docs", tmp_path / "docs")


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (Finding.near("x", 1.04, 1.0, relative=0.04), True),
        (Finding.near("x", 1.05, 1.0, relative=0.04), False),
        (Finding.near("x", -1.05, -1.0, absolute=0.1), True),
        (Finding.between("x", 3.0, None, 2.0), False),
        (Finding.between("x", float("nan"), 0.0, 2.0), False),
        (Finding.told("x", 3.0, expected=1.0), None),
    ],
)
def test_what_holds(row: Finding, holds: bool | None) -> None:
    assert row.holds is holds
