"""Who else is told what a run measures: nobody, W&B or TensorBoard, behind three methods.

The lines of metrics.jsonl are the record, written by every run; a tracker gets the same lines.
"""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from omegaconf import DictConfig, OmegaConf

from recipes.record import read_metrics

log = logging.getLogger(__name__)

Line = Mapping[str, Any]

PATIENCE = 20.0  # seconds for W&B to answer, in place of its 90


class Tracker(ABC):
    """Receives the lines of one session of one run."""

    @abstractmethod
    def open(self, folder: Path, settings: DictConfig) -> None:
        """A run, or a resumed one, begins in `folder`."""

    @abstractmethod
    def log(self, line: Line) -> None:
        """A line was written to metrics.jsonl."""

    @abstractmethod
    def close(self, folder: Path, result: Line) -> None:
        """The run ended; `result["status"]` says how. Always called after `open`."""


@final
class Nothing(Tracker):
    """Leaves it at the record in the run's directory."""

    def open(self, folder: Path, settings: DictConfig) -> None:
        """Do nothing."""

    def log(self, line: Line) -> None:
        """Do nothing."""

    def close(self, folder: Path, result: Line) -> None:
        """Do nothing."""


@final
class WandB(Tracker):
    """Weights & Biases: online when logged in, offline otherwise; all its files stay in the run's directory.

    Every line is logged as one dict without `step=`, because W&B drops, without an error, what arrives out of
    order; the axes are the metrics train/step and train/samples.

    Args:
        project: W&B project.
        mode: "auto", "online", "offline" or "disabled"; the environment's WANDB_MODE decides "auto" first.
        group: W&B group; None for the sweep's directory in a multirun.
    """

    def __init__(self, project: str = "fisheropt", mode: str = "auto", group: str | None = None) -> None:
        self._project = project
        self._mode = mode
        self._group = group
        self._run: Any = None

    def open(self, folder: Path, settings: DictConfig) -> None:
        """Start a W&B run of its own, also where an earlier job of the process left one open."""
        wandb = _import_wandb(folder)
        values = OmegaConf.to_container(settings, resolve=True)
        names = [settings.run.names.experiment] if settings.get("study") else _trained(settings)
        common: dict[str, Any] = {
            "project": self._project,
            "dir": folder,
            "config": values,
            "group": self._group or settings.run.sweep,
            "name": "-".join([*names, str(settings.seed)]),
            "tags": [*names, *settings.tags],
            "reinit": "finish_previous",
            "settings": wandb.Settings(silent=True, console="off", init_timeout=PATIENCE),
        }
        self._run = self._start(wandb, common)
        self._run.define_metric("train/step")
        self._run.define_metric("train/samples")
        self._run.define_metric("*", step_metric="train/step")

    def _start(self, wandb: Any, common: dict[str, Any]) -> Any:
        """Start as asked; in mode "auto" a failure to go online is one line, and the run is kept offline."""
        mode = _mode(wandb) if self._mode == "auto" else self._mode
        try:
            run = wandb.init(mode=mode, **common)
        except wandb.Error as error:
            if self._mode != "auto" or mode != "online":
                raise
            log.info("wandb: online failed (%s)", str(error).splitlines()[0])
            run = wandb.init(mode="offline", **common)
        if run.offline:
            log.info("wandb: offline; send it later by `wandb sync %s`", Path(run.dir).parent)
        return run

    def log(self, line: Line) -> None:
        """Send the numbers of the line, the eigenvalues one by one."""
        self._run.log(scalars(line))

    def close(self, folder: Path, result: Line) -> None:
        """Fill in the summary, attach the report's page and finish."""
        if self._run is None:
            return
        import wandb

        drawn = panel(read_metrics(folder))
        if drawn is not None:
            epochs, series = drawn
            chart = wandb.plot.line_series(
                epochs, list(series.values()), list(series), "Fisher spectrum, log10 against Λ* and τ", "epoch"
            )
            self._run.log({"fisher_spectrum": chart})
        page = folder / "report.html"
        if page.exists():
            self._run.log({"report": wandb.Html(page.read_text(), inject=False)})
        self._run.summary.update(summary(result))
        self._run.finish(exit_code=0 if result["status"] == "finished" else 1)


@final
class TensorBoard(Tracker):
    """TensorBoard event files in the run's directory."""

    def __init__(self) -> None:
        self._writer: Any = None

    def open(self, folder: Path, settings: DictConfig) -> None:
        """Start an event file."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tracker=tensorboard: tensorboard is not installed. Run `pip install tensorboard`, or leave "
                "the tracker out: metrics.jsonl and report.html are written in any case."
            ) from error
        self._writer = SummaryWriter(folder / "tensorboard")

    def log(self, line: Line) -> None:
        """Write the numbers of the line, by samples seen: an adaptive batch changes the meaning of a step."""
        for key, value in scalars(line).items():
            self._writer.add_scalar(key, value, line["train/samples"])

    def close(self, folder: Path, result: Line) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()


def _trained(settings: DictConfig) -> list[str]:
    return [settings.run.names.optimizer, settings.run.names.problem]


def scalars(line: Line) -> dict[str, float]:
    """The numbers of a line; the eigenvalues one by one as spectrum/eigenvalue_1, ..."""
    numbers = {key: value for key, value in line.items() if _is_number(value)}
    spectrum: Line = line.get("spectrum", {})
    for key, value in spectrum.items():
        if _is_number(value):
            numbers[f"spectrum/{key}"] = value
    for i, value in enumerate(spectrum.get("eigenvalues", ()), start=1):
        numbers[f"spectrum/eigenvalue_{i}"] = value
    if _is_number(spectrum.get("lambda_star")):
        numbers["spectrum/identified_above"] = 3 * spectrum["lambda_star"]
    return numbers


def panel(lines: Sequence[Line]) -> tuple[list[float], dict[str, list[float | None]]] | None:
    """Epochs, and log10 of the smallest, median and largest eigenvalue, Λ*, 3Λ* and τ; None where none were measured."""
    measured = [line for line in lines if line.get("spectrum", {}).get("eigenvalues")]
    if not measured:
        return None
    series: dict[str, list[float | None]] = {}
    for line in measured:
        spectrum = line["spectrum"]
        values, star = sorted(spectrum["eigenvalues"]), spectrum.get("lambda_star")
        named = {"smallest": values[0], "median": values[len(values) // 2], "largest": values[-1], "Λ*": star}
        named |= {"3Λ*": None if star is None else 3 * star, "τ": spectrum.get("floor")}
        for name, value in named.items():
            series.setdefault(name, []).append(math.log10(value) if value is not None and value > 0 else None)
    return [line["train/epoch"] for line in measured], series


def summary(result: Line) -> dict[str, Any]:
    """The result's numbers and words, without its nested parts."""
    return {key: value for key, value in result.items() if value is not None and not isinstance(value, dict | list)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mode(wandb: Any) -> str:
    """What WANDB_MODE says, else online when a key is there, else offline."""
    return os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False, verify=False) else "offline")


def _import_wandb(folder: Path) -> Any:
    """W&B with all its folders in the run's directory."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "tracker=wandb: wandb is not installed. Run `pip install wandb`, or leave the tracker out: "
            "metrics.jsonl and report.html are written in any case."
        ) from error
    for kind in ("CACHE", "DATA", "ARTIFACT"):
        os.environ[f"WANDB_{kind}_DIR"] = str(folder / "wandb" / kind.lower())
    return wandb
