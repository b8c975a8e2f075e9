"""Where the jobs of a multirun run: side by side on this machine, or on a cluster."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from recipes import schema

CONF = Path(schema.__file__).resolve().parents[1] / "conf"
PLUGINS = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit": "hydra_plugins.hydra_submitit_launcher"}


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def installed(name: str) -> None:
    pytest.importorskip(PLUGINS[name], reason="the extra launchers is not installed")


def test_jobs_run_in_turn_unless_told_otherwise() -> None:
    assert composed().hydra.launcher._target_.endswith("BasicLauncher")


def test_joblib_takes_as_many_processes_as_there_are_cores() -> None:
    installed("joblib")
    launcher = composed("launcher=joblib").hydra.launcher
    assert launcher._target_.endswith("JoblibLauncher") and launcher.n_jobs == -1
    assert composed("launcher=joblib", "hydra.launcher.n_jobs=2").hydra.launcher.n_jobs == 2


def test_submitit_goes_to_slurm_or_stays_here() -> None:
    installed("submitit")
    cluster = composed("launcher=submitit", "hydra.launcher.partition=main").hydra.launcher
    assert cluster._target_.endswith("SlurmLauncher") and cluster.partition == "main"
    here = composed("launcher=submitit", "hydra/launcher=submitit_local").hydra.launcher
    assert here._target_.endswith("LocalLauncher")
    assert cluster.cpus_per_task == here.cpus_per_task == 1


def test_a_launcher_changes_nothing_of_the_run() -> None:
    for name in PLUGINS:
        installed(name)
        with_it, without = (OmegaConf.to_container(composed(*words)) for words in ((f"launcher={name}",), ()))
        assert isinstance(with_it, dict) and isinstance(without, dict)
        del with_it["hydra"], without["hydra"]
        assert with_it == without


def test_every_process_of_a_launcher_has_the_same_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def number() -> int:
        asked.append(len(asked))
        return asked[-1]

    monkeypatch.setattr("os.getpid", number)
    schema.register()
    config = OmegaConf.create({"first": "${pid:}", "second": "${pid:}"})
    assert config.first == config.second == 0
    monkeypatch.undo()
    schema.register()


def test_importing_the_schema_is_enough_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    OmegaConf.clear_resolver("run_dir")
    importlib.reload(schema)
    assert OmegaConf.create({"folder": "${run_dir:null,here}"}).folder == "here"
