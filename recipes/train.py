"""Train a problem with an optimizer: python recipes/train.py optimizer=fisher_floor problem=logistic."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from time import sleep
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
from recipes import observe, report, schema, settings, torchrun
from recipes.assemble import Parts, assemble
from recipes.journal import Journal
from recipes.parallel import Alone, Parallel
from recipes.progress import progress
from recipes.record import RESULT, claim, read_result, write_result
from recipes.studies.conduct import conduct
from recipes.trackers import Tracker

log = logging.getLogger("recipes.train")

GRACE = 10.0  # seconds


def train(parts: Parts, journal: Journal) -> None:
    """The loop: the same for every optimizer; all that is not training is in the journal."""
    problem, model, optimizer = parts.problem, parts.model, parts.optimizer
    while parts.sampler.epoch < parts.epochs:
        for batch in parts.loader:
            loss, shared = parts.parallel.pooled(problem.loss(model, batch), len(batch[0]))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            journal.after_step(shared)


def run(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """One run, new or resumed, from its settings to result.json and report.html in `folder`.

    Of several processes the first alone writes; the others need the folder of a resumed run only.
    """
    words = [f"resume={folder}"] if (folder / RESULT).exists() else list(cfg.run.overrides)
    rank, _ = torchrun.place()
    if rank:
        return followed(cfg, folder, words)
    with claim(folder):
        return claimed(cfg, folder, words)


def followed(cfg: DictConfig, folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """The run in a process that is not the first, and writes nothing.

    Torchrun ends all processes once one of them has failed: the first is left time to write down what happened.
    """
    try:
        return work(cfg, folder, words, [])
    except Exception:
        sleep(GRACE)
        raise


def claimed(cfg: DictConfig, folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """The run, in a folder that no other process writes to."""
    known = {"status": "running", **about(cfg)}
    write_result(folder, known)
    result = known | {"status": "failed"}
    trackers: list[Tracker] = []
    try:
        trackers.append(instantiate(cfg.tracker))
        result = known | {"status": "finished"} | work(cfg, folder, words, trackers)
    except KeyboardInterrupt:
        result["error"] = f"interrupted; resume={folder} goes on from the last checkpoint"
        raise
    except BaseException as error:
        result["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        conclude(cfg, folder, result, trackers)
    return result


def work(cfg: DictConfig, folder: Path, words: Sequence[str], trackers: list[Tracker]) -> dict[str, Any]:
    """What the run is for, together with its other processes where it has some."""
    parallel: Parallel = instantiate(cfg.parallel) if cfg.get("parallel") else Alone()  # older runs have no such key
    if not cfg.get("study"):
        with parallel.joined(words):
            return outcome(cfg, folder, parallel, trackers)
    if not isinstance(parallel, Alone):
        alone = " ".join(word for word in words if not word.startswith("parallel"))
        raise schema.ConfigError(f"{' '.join(words)}: a study is one process; write python recipes/train.py {alone}")
    with parallel.joined(words):
        return studied(cfg, folder, trackers)


def studied(cfg: DictConfig, folder: Path, trackers: Sequence[Tracker]) -> dict[str, Any]:
    """Conduct a study; trackers see its result when they close."""
    for tracker in trackers:
        tracker.open(folder, cfg)
    return conduct(cfg, folder)


def outcome(cfg: DictConfig, folder: Path, parallel: Parallel, trackers: list[Tracker]) -> dict[str, Any]:
    """Train, and say how it came out."""
    parts = assemble(cfg, parallel)
    optimum = parallel.told(parts.problem.optimum if parallel.first else None)
    if parallel.first:
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
        "processes": torchrun.place()[1],
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
    rank, _ = torchrun.place()
    frozen = settings.start(cfg, None if rank else folder, composed.runtime.choices, overrides, sweep)
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
    sys.argv = torchrun.command_line(sys.argv)
    main()
