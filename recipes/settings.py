"""A run's own configuration: written once when the run starts, read back when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from recipes.files import write_whole
from recipes.schema import SETTINGS, ConfigError, is_run

NAMED = ("optimizer", "problem", "schedule", "tracker", "experiment")


def start(
    cfg: DictConfig,
    folder: Path | None,
    choices: Mapping[str, str | None],
    overrides: Sequence[str] = (),
    sweep: str | None = None,
) -> DictConfig:
    """Freeze the configuration, with the names of the files and the words that made it, into config.yaml of `folder`.

    A process of several that is not the first has no folder.
    """
    values = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    values["run"] = {
        "names": {name: choices[name] for name in NAMED},
        "overrides": list(overrides),
        "sweep": sweep,
    }
    settings = OmegaConf.create(values)
    if folder is not None:
        write_whole(folder / SETTINGS, OmegaConf.to_yaml(settings))
    return settings


def reopen(folder: Path, tracker: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration of the run in `folder`; of the new command line only the tracker counts."""
    if not is_run(folder):
        raise ConfigError(
            f"resume={folder}: there is no {SETTINGS} in it, so it is no directory of a run; write the path "
            "that the run printed, for instance resume=logs/train/runs/<time>."
        )
    given = {override.lstrip("+~").split("=")[0]: override for override in overrides}
    tracked = [key for key in given if key.split(".")[0] == "tracker"]
    refused = [given[key] for key in given if key != "resume" and key not in tracked]
    if refused:
        raise ConfigError(
            f"resume={folder}: a resumed run keeps its own configuration, so {' '.join(refused)} cannot be "
            f"given; write resume={folder} alone (a tracker may be added), or start a new run."
        )
    settings = cast(DictConfig, OmegaConf.load(folder / SETTINGS))
    if tracked:
        settings.tracker = tracker
    return settings
