"""The command lines of several processes: those of the documentation run, and what cannot run says what to write."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from omegaconf import OmegaConf

from recipes import torchrun
from recipes.parallel import Replicated
from recipes.schema import ConfigError
from tests.recipes.harness import ROOT, configure, launch, resume

QUICK = ("problem.data=iris", "epochs=2", "batch_size=15", "checkpoint_every=6", "report=false", "parallel.device=cpu")
PATIENCE = 120  # seconds, on a busy machine


def said_by_torchrun(patch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    said = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
    for key, value in said.items():
        patch.setenv(key, str(value))
    patch.setenv("TORCHELASTIC_RUN_ID", "test")


def documented() -> list[list[str]]:
    """The words of every line of the page that starts several processes."""
    page = (ROOT / "docs" / "recipes.md").read_text()
    return [shlex.split(line.replace("<time>", "time")) for line in re.findall(r"^torchrun .*", page, re.MULTILINE)]


def test_documented_lines_compose() -> None:
    lines = documented()
    assert len(lines) == 3
    for line in lines:
        assert line[3] == torchrun.SCRIPT
        configure(*line[4:])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first line of the documentation has been run, with less to do."""
    folder = tmp_path_factory.mktemp("torchrun")
    (line, *_) = documented()
    words = [str(ROOT / word) if word == torchrun.SCRIPT else word for word in line[1:]]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *words, *QUICK, "optimizer=momentum"]
    command = [word for word in command if word != "optimizer=fisher_floor"]
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout)
    return folder


def run_of(folder: Path) -> Path:
    (found,) = (folder / "logs" / "train" / "runs").iterdir()
    return found


def test_a_line_of_the_documentation_leaves_one_run(finished: Path) -> None:
    run = run_of(finished)
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["processes"], result["samples"]) == ("finished", 2, 2 * result["train_samples"])
    assert {path.name for path in finished.iterdir()} == {"logs", ".cache", "said.txt"}
    assert len((finished / "said.txt").read_text().split("finished:")) == 2
    wanted = {"config.yaml", "metrics.jsonl", "result.json", "checkpoints", "train.log", ".hydra", ".claim"}
    assert {path.name for path in run.iterdir()} == wanted


def test_another_number_of_processes_goes_on(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the checkpoint before the last, to the same end as that of two but for rounding."""
    run = run_of(finished)
    before = json.loads((run / "result.json").read_text())
    sorted((run / "checkpoints").iterdir())[-1].unlink()
    said_by_torchrun(monkeypatch, 0, 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    after = resume(run)
    assert not dist.is_initialized()
    assert "the checkpoint is of 2 processes and this run has 1" in caplog.text
    assert json.loads((run / "result.json").read_text())["processes"] == 1
    for key in ("train_loss", "test_loss", "steps", "samples"):
        assert after[key] == pytest.approx(before[key], rel=1e-5)


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_several_processes_need_torchrun(tmp_path: Path, way: str) -> None:
    message = rf"write torchrun --nproc-per-node 2 recipes/train\.py seed=3 parallel={way}$"
    with pytest.raises(ConfigError, match=message):
        launch(tmp_path, "seed=3", f"parallel={way}")
    assert "ConfigError" in json.loads((tmp_path / "result.json").read_text())["error"]
    with pytest.raises(ConfigError, match=rf"write torchrun --nproc-per-node 2 recipes/train\.py resume={tmp_path}$"):
        resume(tmp_path)


def test_torchrun_needs_to_know_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said_by_torchrun(monkeypatch, 0, 4)
    together = r"write torchrun --nproc-per-node 4 recipes/train\.py parallel=ddp seed=3"
    with pytest.raises(ConfigError, match=rf"{together}, or python recipes/train\.py seed=3$"):
        launch(tmp_path, "seed=3")
    with pytest.raises(ConfigError, match=rf"whole run; write python recipes/train\.py resume={tmp_path}$"):
        resume(tmp_path)


def test_a_run_of_before_there_was_the_choice_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    launch(tmp_path, "optimizer=sgd")
    path = sorted((tmp_path / "checkpoints").iterdir())[-1]
    state = torch.load(path, weights_only=True)
    torch.save(state | {"random": state["random"][0]}, path)
    old = OmegaConf.load(tmp_path / "config.yaml")
    del old["parallel"]
    OmegaConf.save(old, tmp_path / "config.yaml")
    assert resume(tmp_path)["status"] == "finished"
    assert "resumed at step" in caplog.text and "draws anew" not in caplog.text


def test_only_the_first_makes_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train.py", "parallel=ddp", "hydra.run.dir=mine"]
    assert torchrun.command_line(words) == words
    said_by_torchrun(monkeypatch, 0, 2)
    assert torchrun.command_line(words) == words
    said_by_torchrun(monkeypatch, 1, 2)
    aside = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
    assert torchrun.command_line(words) == [*words, *aside]
    with pytest.raises(
        ConfigError, match=r"do torchrun --nproc-per-node 2 recipes/train\.py parallel=ddp seed=\$seed; done"
    ):
        torchrun.command_line(["train.py", "-m", "seed=0,1"])


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.device=tpu: .* write parallel\.device=cpu"):
        Replicated("tpu")
