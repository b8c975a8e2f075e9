"""What torchrun tells a process that it started, and what Hydra is to read there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

import torch
import torch.distributed as dist

from recipes.schema import ConfigError

SCRIPT = "recipes/train.py"


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def place() -> tuple[int, int]:
    """This process' number and how many there are; 0 of 1 without torchrun."""
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if launched() else (0, 1)


def command_line(words: Sequence[str]) -> list[str]:
    """What Hydra is to read: processes but the first are told to make no folder and to log nothing.

    Raises:
        ConfigError: for a multirun, whose jobs would each need a process group.
    """
    if not launched():
        return list(words)
    if {"-m", "--multirun"} & set(words):
        raise ConfigError(
            f"torchrun ... {SCRIPT} {shlex.join(words[1:])}: torchrun starts the processes of one run; write one line for "
            f"each, for instance: for seed in 0 1 2; do torchrun --nproc-per-node {place()[1]} {SCRIPT} parallel=ddp "
            "seed=$seed; done"
        )
    aside = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    return [*words, *(aside if place()[0] else [])]


def own_device(name: str) -> torch.device:
    """This process' own: a GPU by its number on this machine."""
    number, near = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    enough = torch.cuda.device_count() >= near
    if name not in {"auto", "cpu", "cuda"} or (name == "cuda" and not enough):
        raise ConfigError(
            f"parallel.device={name}: this machine has {torch.cuda.device_count()} GPUs for {near} processes; write "
            "parallel.device=cpu, or cuda with a GPU for each process, or auto to have what there is."
        )
    return torch.device("cuda", number) if name != "cpu" and enough else torch.device("cpu")
