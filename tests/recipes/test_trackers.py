"""Trackers: each job its own W&B run, nothing outside the run's directory, and errors that say what to install."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from recipes import progress, trackers
from tests.recipes.harness import launch

LINE: dict[str, Any] = {
    "train/step": 30,
    "train/samples": 480,
    "train/epoch": 1.5,
    "train/lr": 0.1,
    "train/batch_size": 16,
    "train/loss": 0.25,
    "train/relative_suboptimality": 0.5,
    "test/accuracy": None,
    "spectrum": {"eigenvalues": [0.5, 2.0], "lambda_star": 0.1, "status": "ABOVE"},
}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The W&B runs that a test starts, offline; the environment is put back afterwards."""
    wandb = pytest.importorskip("wandb")
    for key in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(key, "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    started: list[Any] = []
    init = wandb.init

    def spied(**arguments: Any) -> Any:
        started.append(init(**arguments))
        return started[-1]

    monkeypatch.setattr(wandb, "init", spied)
    return started


def test_two_jobs_of_one_process_are_two_wandb_runs(tmp_path: Path, runs: list[Any]) -> None:
    for seed in (0, 1):
        launch(tmp_path / str(seed), "optimizer=sgd", "tracker=wandb", "tracker.group=sweep", f"seed={seed}")
    assert len({run.id for run in runs}) == 2
    assert [run.config["seed"] for run in runs] == [0, 1]
    assert {run.group for run in runs} == {"sweep"}
    for seed in (0, 1):
        (log,) = (tmp_path / str(seed)).glob("wandb/offline-run-*/run-*.wandb")
        assert all(word in log.read_bytes() for word in (b"train/loss", b"relative_suboptimality"))


def test_a_wandb_run_left_open_is_not_taken_over(tmp_path: Path, runs: list[Any]) -> None:
    left_open = sys.modules["wandb"].init(mode="offline", dir=tmp_path, project="other")
    launch(tmp_path / "run", "optimizer=sgd", "epochs=1", "tracker=wandb")
    assert runs[-1].id != left_open.id
    assert runs[-1].config["epochs"] == 1


def test_a_failed_job_does_not_leave_its_wandb_run_open(tmp_path: Path, runs: list[Any]) -> None:
    with pytest.raises(FloatingPointError):
        launch(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", "tracker=wandb")
    assert sys.modules["wandb"].run is None
    assert len(runs) == 1


def test_going_online_in_vain_ends_offline_with_one_line(
    tmp_path: Path, runs: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = sys.modules["wandb"]
    init = wandb.init

    def unreachable(**arguments: Any) -> Any:
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no such host\nmore")
        return init(**arguments)

    monkeypatch.setattr(wandb, "init", unreachable)
    monkeypatch.setenv("WANDB_MODE", "online")
    with caplog.at_level("INFO", logger="recipes.trackers"):
        launch(tmp_path, "optimizer=sgd", "epochs=1", "tracker=wandb")
    assert [r.getMessage() for r in caplog.records if "failed" in r.getMessage()][0] == (
        "wandb: online failed (no such host)"
    )
    assert runs[0].offline
    with pytest.raises(wandb.errors.CommError):
        launch(tmp_path / "asked", "optimizer=sgd", "tracker=wandb", "tracker.mode=online")


@pytest.mark.parametrize(
    ("tracker", "module", "message"),
    [
        (trackers.WandB(), "wandb", "wandb is not installed. Run `pip install wandb`"),
        (trackers.TensorBoard(), "torch.utils.tensorboard", "Run `pip install tensorboard`"),
    ],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: trackers.Tracker, module: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=message):
        tracker.open(tmp_path, None)  # type: ignore[arg-type]
    tracker.close(tmp_path, {"status": "failed"})


def test_scalars_are_flat_numbers() -> None:
    found = trackers.scalars({**LINE, "flag": True, "word": "x"})
    assert found["spectrum/eigenvalue_1"] == 0.5
    assert found["spectrum/eigenvalue_2"] == 2.0
    assert found["spectrum/lambda_star"] == 0.1
    assert not {"flag", "word", "spectrum", "test/accuracy", "spectrum/status"} & set(found)


def test_the_panel_draws_the_spectrum_against_its_thresholds() -> None:
    spectrum = LINE["spectrum"] | {"eigenvalues": [0.0, 1.0, 10.0], "floor": 0.01}
    drawn = trackers.panel([LINE, {"train/epoch": 2.0}, LINE | {"train/epoch": 3.0, "spectrum": spectrum}])
    assert drawn is not None
    epochs, series = drawn
    assert epochs == [1.5, 3.0] and series["largest"][1] == 1.0 and series["smallest"][1] is None
    assert series["Λ*"] == [-1.0, -1.0] and series["τ"] == [None, -2.0]
    assert trackers.panel([{"train/epoch": 2.0}]) is None
    assert trackers.scalars(LINE)["spectrum/identified_above"] == pytest.approx(0.3)


def test_the_summary_is_the_result_without_its_nested_parts() -> None:
    result = {"status": "failed", "accuracy": None, "train_loss": 0.5, "report": {"a": 1}, "overrides": ["x"]}
    assert trackers.summary(result) == {"status": "failed", "train_loss": 0.5}


def test_plain_lines_come_about_ten_times_a_run(caplog: pytest.LogCaptureFixture) -> None:
    lines = progress.Lines()
    lines.open(Path(), type("Settings", (), {"epochs": 5}))  # type: ignore[arg-type]
    with caplog.at_level("INFO", logger="recipes.progress"):
        for step in range(501):
            lines.log({**LINE, "train/step": step, "train/epoch": step / 100})
    assert len(caplog.records) == 11
    assert caplog.records[0].getMessage() == (
        "epoch   0.0/5  step      0  loss 0.25  (f-f*)/f* 5.00e-01  lr 0.1  batch 16"
    )


def test_the_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert isinstance(progress.progress(), progress.Lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    bar = progress.progress()
    assert isinstance(bar, progress.Bar)
    bar.open(tmp_path, type("Settings", (), {"epochs": 5}))  # type: ignore[arg-type]
    bar.log(LINE)
    bar.close(tmp_path, {"status": "finished"})
