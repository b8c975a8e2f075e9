"""The typed root of the configuration, and the names that conf/train.yaml uses for a run's directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

SETTINGS = "config.yaml"


@dataclass
class TrainConfig:
    """Root of conf/train.yaml: a misspelt key is an error, the five groups stay free for `_target_`.

    Intervals are counted on the *sample clock*, which ticks once every `batch_size` samples: with a constant
    batch that is a step, with a growing one it is still the same amount of data.

    Attributes:
        problem: what is trained; one file of conf/problem.
        optimizer: what trains it; one file of conf/optimizer.
        schedule: learning rate over the run; one file of conf/schedule.
        tracker: who else gets the metrics; one file of conf/tracker.
        parallel: how several processes share the work; one file of conf/parallel.
        seed: of the initial parameters, the order of the data and dropout.
        epochs: passes over the training data.
        batch_size: samples a step; where an adaptive batch starts.
        min_batch_size: smallest adaptive batch; of one sample no noise can be measured.
        max_batch_size: largest adaptive batch; None for the whole training set.
        log_every: ticks between lines of metrics.jsonl; None for about 200 lines a run.
        evaluate_every: ticks between evaluations on all data; None for about 50 a run.
        checkpoint_every: steps between checkpoints; None leaves it to `checkpoint_seconds`.
        checkpoint_seconds: seconds between checkpoints.
        threads: torch's threads; None for torch's own choice. One is fastest on small problems.
        report: whether the run ends with report.html.
        resume: directory of a run to go on with, by its own configuration.
        tags: words to find the run by.
        study: an experiment that trains nothing of the above, or many things; set by files of conf/experiment.
    """

    problem: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = MISSING
    tracker: Any = MISSING
    parallel: Any = MISSING
    seed: int = 0
    epochs: int = 30
    batch_size: int = 32
    min_batch_size: int = 2
    max_batch_size: int | None = None
    log_every: int | None = None
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float = 30.0
    threads: int | None = 1
    report: bool = True
    resume: str | None = None
    tags: list[str] = field(default_factory=list)
    study: Any = None


class ConfigError(ValueError):
    """A setting that cannot work; the message says what was given and what to write instead."""


def register() -> None:
    """Tell Hydra the schema and the resolvers; before `hydra.main` runs, and harmless to repeat.

    Importing this module does it as well: the processes of a launcher unpickle the job, which imports it, and compose by
    themselves. The number that tells runs apart is asked for once, in the process that launches them.
    """
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    OmegaConf.register_new_resolver("pid", os.getpid, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("run_dir", _run_dir, replace=True)
    OmegaConf.register_new_resolver("unless_resumed", _unless_resumed, replace=True)


def check(cfg: Any, samples: int, ranks: int = 1) -> None:
    """Refuse settings that no run can have, given the numbers of training samples and of processes."""
    if not 1 <= cfg.batch_size <= samples:
        raise ConfigError(
            f"batch_size={cfg.batch_size}: a batch has at least 1 sample and at most the {samples} of the "
            f"training data; write batch_size={min(max(cfg.batch_size, 1), samples)}."
        )
    least = min(size for size in (cfg.batch_size, cfg.max_batch_size) if size is not None)
    if least < ranks > 1:
        name = "batch_size" if cfg.batch_size == least else "max_batch_size"
        raise ConfigError(
            f"{name}={least}: a batch is that of all {ranks} processes, which need a sample each; write {name}={ranks} or "
            "more, or start fewer processes."
        )
    if cfg.epochs < 0:
        raise ConfigError(
            f"epochs={cfg.epochs}: write the number of passes over the data, for instance epochs=30 (0 only "
            "evaluates the start)."
        )
    for name in ("log_every", "evaluate_every", "checkpoint_every", "threads"):
        if cfg[name] is not None and cfg[name] < 1:
            raise ConfigError(f"{name}={cfg[name]}: write a whole number from 1, or {name}=null for the default.")


def is_run(folder: Path) -> bool:
    """Whether a run was started in the folder."""
    return (folder / SETTINGS).is_file()


def _run_dir(resume: str | None, new: str) -> str:
    """Directory of the run: `new`, or the one to resume; that of a misspelt one is not made."""
    return resume if resume is not None and is_run(Path(resume)) else new


def _unless_resumed(resume: str | None, value: str) -> str | None:
    """Keep Hydra from writing the new command line over the record of the old run."""
    return value if resume is None else None


register()
