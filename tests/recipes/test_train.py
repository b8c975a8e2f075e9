"""What a run promises: torch's own loop, an exact result, and after a stop the same bits as without."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from fisheropt import AdaptiveBatchSampler
from recipes import train
from recipes.assemble import assemble
from recipes.checkpoint import CheckpointError
from recipes.journal import Diverged, Journal
from recipes.problems.logistic import Logistic
from recipes.record import KEYS, BusyError, claim
from recipes.schema import ConfigError
from tests.recipes.harness import ROOT, SMALL, comparable, configure, launch, resume

OURS = ("fisher_floor", "godambe", "adaptive_batch")
BASELINES = ("sgd", "momentum", "adam", "aggmo", "shampoo")


class Stop(Exception):
    """Ends a run between two steps."""


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, *, checkpoint: bool) -> None:
    after_step = Journal.after_step

    def stopping(self: Journal, loss: torch.Tensor) -> None:
        after_step(self, loss)
        if self.step == step:
            if checkpoint:
                self.checkpoint()
            raise Stop

    monkeypatch.setattr(Journal, "after_step", stopping)


@pytest.mark.parametrize("optimizer", [*OURS, *BASELINES])
def test_a_run_leaves_a_whole_record(tmp_path: Path, optimizer: str) -> None:
    returned = launch(tmp_path, f"optimizer={optimizer}", "optimizer.lr=0.01")
    result, lines = comparable(tmp_path)
    assert tuple(result) == tuple(key for key in KEYS if key != "seconds")
    assert (result["status"], result["error"], result["optimizer"], result["problem"]) == (
        "finished",
        None,
        optimizer,
        "logistic",
    )
    assert result["samples"] == 3 * result["train_samples"] == lines[-1]["train/samples"]
    assert result["train_loss"] == returned["train_loss"] == lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert result["suboptimality"] == result["train_loss"] - result["optimum"] > 0
    assert result["relative_suboptimality"] == result["suboptimality"] / result["optimum"]
    assert [line["train/step"] for line in lines] == sorted({line["train/step"] for line in lines})
    assert (result["report"] is not None) == bool(result["noise"]) == (optimizer in OURS)
    assert OmegaConf.load(tmp_path / "config.yaml").run.names.optimizer == optimizer


def test_the_loop_is_the_one_a_reader_would_write(tmp_path: Path) -> None:
    launch(tmp_path, "optimizer=momentum", "seed=7", "schedule=cosine")
    problem = Logistic("wine")
    sampler = AdaptiveBatchSampler(problem.train, 16, seed=7)
    opt = torch.optim.SGD(problem.model.parameters(), lr=0.02, momentum=0.9)
    total = 3 * len(problem.train) // 16
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, total)
    for _ in range(3):
        for indices in sampler:
            problem.loss(problem.model, problem.train[indices]).backward()
            opt.step()
            opt.zero_grad()
            while schedule.last_epoch < sampler.samples_seen // 16:
                schedule.step()
    result, _ = comparable(tmp_path)
    assert result["train_loss"] == pytest.approx(problem.train_loss(problem.model), rel=1e-6)


@pytest.mark.parametrize("overrides", [("seed=1",), ("optimizer=adam",), ("optimizer=fisher_floor", "batch_size=20")])
def test_the_same_run_twice_is_the_same(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    for name in "ab":
        launch(tmp_path / name, *overrides)
    assert comparable(tmp_path / "a") == comparable(tmp_path / "b")


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    first, second = (launch(tmp_path / str(seed), "optimizer=sgd", f"seed={seed}") for seed in (0, 1))
    assert first["train_loss"] != second["train_loss"]


@pytest.mark.parametrize("step", [1, 10, 19])
@pytest.mark.parametrize("optimizer", [*OURS, *BASELINES])
def test_resuming_changes_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, step: int) -> None:
    overrides = (f"optimizer={optimizer}", "optimizer.lr=0.01", "schedule=inverse_time")
    launch(tmp_path / "whole", *overrides)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, step, checkpoint=True)
        launch(tmp_path / "stopped", *overrides)
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["status"] == "failed"
    resume(tmp_path / "stopped")
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


def test_random_draws_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Logistic.loss

    def noisy(self: Logistic, model: torch.nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return loss(self, model, batch) * (1 + torch.rand(()) + random.random())

    monkeypatch.setattr(Logistic, "loss", noisy)
    launch(tmp_path / "whole", "optimizer=sgd")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 12, checkpoint=True)
        launch(tmp_path / "stopped", "optimizer=sgd")
    resume(tmp_path / "stopped")
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


def test_lines_after_the_checkpoint_are_not_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(tmp_path / "whole", "optimizer=sgd")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 17, checkpoint=False)
        launch(tmp_path / "stopped", "optimizer=sgd", "checkpoint_every=7")
    half = (tmp_path / "stopped" / "metrics.jsonl").open("a")
    half.write('{"train/step": 1')
    half.close()
    resume(tmp_path / "stopped")
    assert comparable(tmp_path / "stopped")[1] == comparable(tmp_path / "whole")[1]


def test_a_run_stopped_before_its_first_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path / "whole", "optimizer=adam")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(patch, 5, checkpoint=False)
        launch(tmp_path / "stopped", "optimizer=adam")
    resume(tmp_path / "stopped")
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "optimizer._target_",
            "torch.optim.NAdam",
            r"optimizer torch\.optim\.adam\.Adam, but this run has .*nadam\.NAdam",
        ),
        ("problem.data", "iris", "problem logistic-wine, but this run has problem logistic-iris"),
        ("problem.test_fraction", 0.5, "samples 142, but this run has samples 89"),
        ("problem.intercept", False, r"another model: bias is \[3\] there and absent here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    launch(tmp_path, "optimizer=adam")
    settings = OmegaConf.load(tmp_path / "config.yaml")
    settings.optimizer = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.001}
    OmegaConf.update(settings, key, value)
    OmegaConf.save(settings, tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match=message):
        resume(tmp_path)


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path) -> None:
    launch(tmp_path, "optimizer=sgd")
    with pytest.raises(ConfigError, match=r"so epochs=9 optimizer=adam cannot be given; write resume=\S+ alone"):
        resume(tmp_path, "epochs=9", "optimizer=adam")
    resume(tmp_path, "tracker=none")
    with pytest.raises(ConfigError, match=r"no config\.yaml in it, so it is no directory of a run"):
        resume(tmp_path / "nowhere")


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    launch(tmp_path, "optimizer=sgd")
    with claim(tmp_path), pytest.raises(BusyError, match="another process is training this run"):
        resume(tmp_path)
    resume(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=0", r"batch_size=0: .* write batch_size=1"),
        ("batch_size=500", r"batch_size=500: .* at most the 142 of the training data; write batch_size=142"),
        ("epochs=-1", r"epochs=-1: write the number of passes"),
        ("log_every=0", r"log_every=0: write a whole number from 1, or log_every=null"),
        ("checkpoint_every=-3", r"checkpoint_every=-3: write"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_recorded(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        launch(tmp_path, override)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed"
    assert result["error"].startswith("ConfigError: ")


def test_divergence_is_a_failure_that_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"the run diverged with lr 1e\+30\. Lower it, for instance optimizer\.lr=0\.1"):
        launch(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", "report=true")
    assert "The run failed." in (tmp_path / "report.html").read_text()


def test_no_epochs_only_evaluate(tmp_path: Path) -> None:
    result = launch(tmp_path, "optimizer=sgd", "epochs=0")
    assert (result["steps"], result["samples"], result["status"]) == (0, 0, "finished")


def test_the_schedule_goes_by_samples_and_not_by_steps(tmp_path: Path) -> None:
    rates = {}
    for batch in (16, 71):
        cfg, _ = configure(*SMALL, "optimizer=sgd", "schedule=linear", "problem.test_fraction=0.2")
        parts = assemble(cfg)
        journal = Journal(parts, cfg, tmp_path, None, ())
        parts.sampler.batch_size = batch
        train.train(parts, journal)
        rates[batch] = parts.optimizer.param_groups[0]["lr"], parts.schedule.last_epoch
        journal.close()
    assert rates[16] == rates[71] == (pytest.approx(0.0, abs=1e-12), 3 * 142 // 16)


FORKS = """
import json, os, sys
from recipes import schema, train
from recipes.problems import logistic
schema.register()
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        sys.argv = ["train.py", *json.loads(line)]
        try:
            train.main()
        finally:
            sys.stdout.flush()
            os._exit(sys.exc_info()[0] is not None)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class CommandLine:
    """Runs of the command line, one at a time, as forks of a process that has the imports behind it."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output.txt"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", FORKS], cwd=folder, env=environment, **pipes)

    def begin(self, *arguments: str) -> int:
        """Start a run; its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> tuple[int, str]:
        """Exit code and output of the run, once it is over."""
        return self._answer(), self._output.read_text()

    def _answer(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path_factory.mktemp("forks"))
    with line.process:
        yield line


def wait_for_checkpoints(folder: Path, run: int, more: int) -> None:
    """Until the run has started (more = 0), or has written so many checkpoints in this session."""
    seen = {path.name for path in (folder / "checkpoints").glob("step-*.pt")}
    new: set[str] = set()
    while len(new) < more or not (folder / "config.yaml").exists():
        os.kill(run, 0)
        new |= {path.name for path in (folder / "checkpoints").glob("step-*.pt")} - seen
        time.sleep(0.001)


@pytest.mark.parametrize(("optimizer", "epochs", "every"), [("fisher_floor", 20, 2), ("adaptive_batch", 20, 2)])
def test_killed_five_times_the_result_is_the_same(
    tmp_path: Path, command_line: CommandLine, optimizer: str, epochs: int, every: int
) -> None:
    settings = (*SMALL, f"epochs={epochs}", f"optimizer={optimizer}", f"checkpoint_every={every}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command_line.begin(*settings, f"hydra.run.dir={whole}")
    assert command_line.end()[0] == 0
    draw = random.Random(0)
    arguments = [*settings, f"hydra.run.dir={killed}"]
    for kill in range(5):
        run = command_line.begin(*arguments)
        wait_for_checkpoints(killed, run, draw.randrange(1, 4) if kill else 0)
        time.sleep(draw.uniform(0, 0.01))
        os.kill(run, signal.SIGKILL)
        assert command_line.end()[0] == -signal.SIGKILL, "the run ended before it could be killed"
        arguments = [f"resume={killed}"]
    command_line.begin(*arguments)
    code, output = command_line.end()
    assert code == 0
    assert "resumed at step" in output
    assert comparable(killed) == comparable(whole)
    command_line.begin(*arguments)
    code, output = command_line.end()
    assert code == 0
    assert "is finished already" in output
