"""Train a problem with an optimizer: python recipes/train.py optimizer=fisher_floor problem=logistic."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fisheropt
from fisheropt import monitor
from recipes import observe, report, schema, settings
from recipes.assemble import Parts, assemble
from recipes.journal import Journal
from recipes.progress import progress
from recipes.record import claim, read_result, write_result
from recipes.studies.conduct import conduct
from recipes.trackers import Tracker

log = logging.getLogger("recipes.train")


def train(parts: Parts, journal: Journal) -> None:
    """The loop: the same for every optimizer; all that is not training is in the journal."""
    problem, model, optimizer = parts.problem, parts.problem.model, parts.optimizer
    while parts.sampler.epoch < parts.epochs:
        for batch in parts.loader:
            loss = problem.loss(model, batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            journal.after_step(loss)


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """One run, new or resumed, from its settings to result.json and report.html in `folder`."""
    with claim(folder):
        return claimed(cfg, folder)


def claimed(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The run, in a folder that no other process writes to."""
    known = {"status": "running", **about(cfg)}
    write_result(folder, known)
    result = known | {"status": "failed"}
    trackers: list[Tracker] = []
    try:
        trackers.append(instantiate(cfg.tracker))
        found = studied(cfg, folder, trackers) if cfg.get("study") else outcome(cfg, folder, trackers)
        result = known | {"status": "finished"} | found
    except KeyboardInterrupt:
        result["error"] = f"interrupted; resume={folder} goes on from the last checkpoint"
        raise
    except BaseException as error:
        result["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        conclude(cfg, folder, result, trackers)
    return result


def studied(cfg: DictConfig, folder: Path, trackers: Sequence[Tracker]) -> dict[str, Any]:
    """Conduct a study; trackers see its result when they close."""
    for tracker in trackers:
        tracker.open(folder, cfg)
    return conduct(cfg, folder)


def outcome(cfg: DictConfig, folder: Path, trackers: list[Tracker]) -> dict[str, Any]:
    """Train, and say how it came out."""
    parts = assemble(cfg)
    optimum = parts.problem.optimum
    log.info("%s", parts.problem.describe())
    trackers.append(progress())
    journal = Journal(parts, cfg, folder, optimum, trackers)
    try:
        for tracker in trackers:
            tracker.open(folder, cfg)
        journal.start()
        train(parts, journal)
        journal.checkpoint()
    finally:
        journal.close()
    return measured(parts, journal, optimum)


def measured(parts: Parts, journal: Journal, optimum: float | None) -> dict[str, Any]:
    """The numbers of result.json; killing and resuming the run changes `seconds` and nothing else."""
    problem = parts.problem
    loss = problem.train_loss(problem.model)
    return {
        "data": problem.name,
        "steps": journal.step,
        "samples": parts.sampler.samples_seen,
        "seconds": journal.seconds,
        "train_loss": loss,
        "train_samples": parts.samples,
        "optimum": optimum,
        **observe.above(loss, optimum),
        "test_loss": problem.test_loss(problem.model),
        "test_samples": None if problem.test is None else len(problem.test),
        "accuracy": problem.accuracy(problem.model),
        "information_min": observe.smallest_information(problem),
        "report": observe.full_report(parts.optimizer),
        "noise": monitor.record(parts.optimizer),
    }


def conclude(cfg: DictConfig, folder: Path, result: dict[str, Any], trackers: Sequence[Tracker]) -> None:
    """Write the result and the report, then let the trackers go."""
    write_result(folder, result)
    page = report.write(folder) if cfg.report else None
    for tracker in trackers:
        tracker.close(folder, result)
    log.info("%s: %s", result["status"], result["error"] if result.get("error") else report.sentence(result))
    if page is not None:
        log.info("report: %s", page)


def about(cfg: DictConfig) -> dict[str, Any]:
    """What is known of the result before training."""
    return {
        "optimizer": None if cfg.get("study") else cfg.run.names.optimizer,
        "problem": None if cfg.get("study") else cfg.run.names.problem,
        "experiment": cfg.run.names.get("experiment"),
        "seed": cfg.seed,
        "epochs": cfg.epochs,
        "overrides": list(cfg.run.overrides),
        "versions": {
            "fisheropt": fisheropt.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().parents[1] / "conf"), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run by Hydra; the value, for sweepers, is the training loss at the end."""
    composed = HydraConfig.get()
    overrides = list(composed.overrides.task)
    if cfg.resume is not None:
        folder = Path(cfg.resume)
        return resumed(settings.reopen(folder, cfg.tracker, overrides), folder)
    folder = Path(composed.runtime.output_dir)
    sweep = Path(composed.sweep.dir).name if composed.mode == RunMode.MULTIRUN else None
    frozen = settings.start(cfg, folder, composed.runtime.choices, overrides, sweep)
    return loss_of(run(frozen, folder))


def resumed(cfg: DictConfig, folder: Path) -> float | None:
    """Go on with a run, unless it is finished."""
    result = read_result(folder)
    if result is not None and result["status"] == "finished":
        log.info("%s is finished already: %s", folder, report.sentence(result))
        return loss_of(result)
    return loss_of(run(cfg, folder))


def loss_of(result: dict[str, Any]) -> float | None:
    """What a sweeper minimises: the training loss, or how many numbers of a study are not as expected."""
    value: float | None = result["missed"] if result.get("findings") else result["train_loss"]
    return value


if __name__ == "__main__":
    schema.register()
    main()
