"""Runs of the training script in this process, small enough for a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from recipes import schema, settings, train

ROOT = Path(train.__file__).resolve().parents[1]
CONF = ROOT / "conf"
SMALL = ("problem.data=wine", "epochs=3", "batch_size=16", "log_every=2", "evaluate_every=4", "report=false")


def configure(*overrides: str) -> tuple[DictConfig, dict[str, str]]:
    """The configuration as the task function gets it, and the names of the chosen files."""
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    choices = {key: str(value) for key, value in cfg.hydra.runtime.choices.items()}
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg, choices


def launch(folder: Path, *overrides: str) -> dict[str, Any]:
    """A new small run in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg, choices = configure(*SMALL, *overrides)
    return train.run(settings.start(cfg, folder, choices, overrides), folder)


def resume(folder: Path, *overrides: str) -> dict[str, Any]:
    """Go on with the run in `folder`."""
    cfg, _ = configure(*overrides)
    return train.run(settings.reopen(folder, cfg.tracker, [f"resume={folder}", *overrides]), folder)


def comparable(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """result.json and metrics.jsonl without the wall-clock time, which alone differs between equal runs."""
    result = json.loads((folder / "result.json").read_text())
    assert result.pop("seconds") > 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("time/seconds") >= 0
    return result, lines
