"""The pages: self-contained, complete for every kind of run, honest about what is not known."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes import figures, pages, report, sweep
from recipes.medians import median_interval
from tests.recipes.harness import ROOT, SMALL, launch


class Page(HTMLParser):
    """What a browser would fetch, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        local = ("#", "data:")
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset") and not (value or "").startswith(local):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_self_contained(path: Path) -> Page:
    text = path.read_text()
    assert not re.search(r"https?://|@import|url\((?!['\"]?#)", text)
    page = Page(path)
    assert "script" not in page.tags
    return page


@pytest.fixture(scope="module")
def floor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of fisher_floor with its report."""
    folder: Path = tmp_path_factory.mktemp("floor")
    launch(folder, "optimizer=fisher_floor", "report=true")
    return folder


def test_the_report_is_self_contained_and_complete(floor: Path) -> None:
    page = assert_self_contained(floor / "report.html")
    assert page.fetched == []
    titles = ["Loss", "Distance to the optimum", "Fisher spectrum", "Spectrum with the floor", "Spectrum at the end"]
    titles += ["Signal and noise of a step", "Temperature and batch size", "Test accuracy"]
    assert page.tags.count("svg") == len(titles)
    assert all(title in page.text for title in titles)
    result = json.loads((floor / "result.json").read_text())
    assert result["report"]["verdict"] in page.text
    assert all(advice in page.text for advice in result["report"]["advice"])
    assert "data: wine" in page.text
    assert len(result["report"]["groups"][0]["eigenvalues"]) == page.text.count("above Λ*") + page.text.count(
        "below Λ*"
    )


def test_every_number_of_the_noise_has_its_uncertainty(floor: Path) -> None:
    result = json.loads((floor / "result.json").read_text())
    group = result["report"]["groups"][0]
    rows = report.outcome_rows(result) + report.noise_rows(result, group)
    assert all(sure for _, _, sure in rows)
    shown = {name: value for name, value, _ in rows}
    assert "±" in shown["noise per sample, tr G"]
    assert "±" in shown["test accuracy"]
    assert all("±" in value for _, value, _, _ in report.eigenvalue_rows(group))


def test_a_baseline_says_that_it_has_no_noise_record(tmp_path: Path) -> None:
    launch(tmp_path, "optimizer=sgd", "report=true")
    page = assert_self_contained(tmp_path / "report.html")
    assert "This optimizer keeps no record of the gradient noise" in page.text
    assert "Fisher spectrum" not in page.text.replace("Fisher spectrum, its threshold", "")
    assert page.tags.count("svg") == 4


def test_the_report_can_be_written_anew_and_is_the_same(floor: Path) -> None:
    before = (floor / "report.html").read_text()
    assert report.write(floor) == floor / "report.html"
    assert (floor / "report.html").read_text() == before


def test_what_a_run_says_is_text_and_not_markup(floor: Path, tmp_path: Path) -> None:
    result = json.loads((floor / "result.json").read_text()) | {"error": "<script>alert(1)</script>"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    (tmp_path / "config.yaml").write_text("tags: ['<img src=x>']")
    page = assert_self_contained(report.write(tmp_path))
    assert "<script>alert(1)</script>" in page.text
    assert page.fetched == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no result\.json, so it is no directory of a run"):
        report.write(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no run under it"):
        sweep.write(tmp_path)


def test_every_picture_survives_little_and_awkward_data() -> None:
    line = {"train/epoch": 0.0, "train/batch_loss": None, "train/loss": -1.0, "train/temperature": 0.0}
    line |= {"train/batch_size": 1, "test/accuracy": 0.5, "test/loss": None, "train/relative_suboptimality": 0.0}
    spectrum = {"eigenvalues": [0.0, -1e-9], "effective_eigenvalues": [0.0, 0.0], "lambda_star": 0.0, "floor": 0.0}
    spectrum |= {"noise_trace": 0.0, "signal": -1.0, "effective_dimension": 0.0}
    lines: list[dict[str, Any]] = [line | {"spectrum": spectrum}]
    drawn = [
        figures.loss(lines, None),
        figures.suboptimality(lines),
        figures.spectrum(lines, "eigenvalues"),
        figures.spectrum(lines, "effective_eigenvalues"),
        figures.final_spectrum(spectrum),
        figures.temperature(lines),
        figures.signal_and_noise(lines),
        figures.dimension(lines),
        figures.accuracy(lines),
    ]
    assert all(picture is None or picture.startswith("<svg") for picture in drawn)


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.352123, 0.0114, "0.352 ± 0.011"),
        (1.69e-6, 1e-7, "(1.69 ± 0.10)·10⁻⁶"),
        (-0.0028, 0.0076, "-0.0028 ± 0.0076"),
        (123456.0, 2000.0, "(1.235 ± 0.020)·10⁵"),
        (12.3, None, "12.3"),
        (None, 1.0, "–"),
    ],
)
def test_numbers_are_rounded_to_their_error(value: float | None, error: float | None, shown: str) -> None:
    assert pages.with_error(value, error) == shown


@pytest.mark.parametrize(("n", "coverage"), [(1, 0.0), (2, 0.5), (3, 0.75), (5, 0.9375), (6, 0.96875)])
def test_the_range_of_few_seeds_states_its_coverage(n: int, coverage: float) -> None:
    found = median_interval([float(i) for i in range(n)])
    assert found is not None
    assert (found.low, found.high, found.seeds, found.coverage) == (0, n - 1, n, coverage)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_the_interval_holds_the_median_and_its_coverage(values: list[float]) -> None:
    found = median_interval(values)
    assert found is not None
    assert found.low <= found.median <= found.high
    assert found.coverage >= 0.95 or (found.low, found.high) == (min(values), max(values))


def test_the_coverage_is_what_it_says() -> None:
    """3000 samples of nine exponentials: the interval covers the median ln 2 as often as stated, within four errors."""
    import numpy as np

    draws = np.random.default_rng(0).exponential(size=(3000, 9))
    intervals = [median_interval(list(row)) for row in draws]
    stated = intervals[0].coverage  # type: ignore[union-attr]
    covered = sum(i.low <= np.log(2) <= i.high for i in intervals if i is not None) / len(intervals)
    assert abs(covered - stated) < 4 * (stated * (1 - stated) / len(intervals)) ** 0.5


def test_a_sweep_is_aggregated_although_a_job_failed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "recipes" / "train.py"), "-m", *SMALL, "optimizer=sgd,momentum"]
    command += ["optimizer.lr=0.05,1e30", "seed=0,1", "epochs=1", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "sweep: sweep/sweep.html" in done.stdout
    content = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [row["run"] for row in content["runs"]] == [str(i) for i in range(8)]
    assert [row["status"] for row in content["runs"]] == ["finished", "finished", "failed", "failed"] * 2
    names = {(s["name"], s["failed"]) for s in content["settings"]}
    good, bad = "optimizer.lr=0.05", "optimizer.lr=1e+30"
    assert names == {(f"{o} {lr}", 2 * (lr == bad)) for o in ("sgd", "momentum") for lr in (good, bad)}
    medians = [s["medians"]["train_loss"] for s in content["settings"]]
    assert [m and (m["seeds"], m["coverage"]) for m in medians] == [(2, 0.5), (2, 0.5), None, None]
    assert medians[0]["median"] <= medians[1]["median"]
    with (tmp_path / "sweep" / "sweep.csv").open() as file:
        assert [row["error"][:8] for row in csv.DictReader(file)] == ["", "", "Diverged", "Diverged"] * 2
    page = assert_self_contained(tmp_path / "sweep" / "sweep.html")
    assert "2 failed" in page.text
    assert not (tmp_path / "outputs").exists()
    assert sweep.write(tmp_path / "sweep") == tmp_path / "sweep" / "sweep.html"
