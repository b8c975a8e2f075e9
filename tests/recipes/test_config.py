"""The configuration tree: every file composes, says all that its constructor takes, and the help tells the truth."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, MissingConfigException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from fisheropt import AdaptiveBatchSampler
from recipes import schedules
from recipes.assemble import build_optimizer
from recipes.problems.logistic import Logistic
from recipes.schema import TrainConfig
from recipes.trackers import Tracker
from tests.recipes.harness import CONF, configure

FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.glob("*/*.yaml"))
OPTIMIZERS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
SCHEDULES = sorted(path.stem for path in (CONF / "schedule").glob("*.yaml"))
TRACKERS = sorted(path.stem for path in (CONF / "tracker").glob("*.yaml"))


@pytest.fixture(scope="module")
def problem() -> Logistic:
    return Logistic("iris")


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file: Path) -> None:
    if file.parent.name == "launcher":
        pytest.importorskip(f"hydra_plugins.hydra_{file.name}_launcher", reason="the extra launchers is not installed")
    cfg, choices = configure(f"{file.parent}={file.name}")
    assert choices[str(file.parent)] == file.name
    assert set(cfg) == set(TrainConfig.__dataclass_fields__)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_file_lists_what_its_constructor_takes(name: str) -> None:
    """A value that is not the constructor's default says so in its line, and no other line does."""
    text = (CONF / "optimizer" / f"{name}.yaml").read_text()
    given: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[assignment]
    marked = set(re.findall(r"^(\w+): .*# ours; the constructor's is ", text, flags=re.MULTILINE))
    parameters = inspect.signature(get_object(given.pop("_target_"))).parameters
    assert given.pop("_partial_") is True
    assert given.pop("_convert_") == "all"
    defaults = {key: parameter.default for key, parameter in list(parameters.items())[1:]}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()}
    assert list(given) == list(plain)
    assert {key for key in given if given[key] != plain[key]} == marked


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_steps(name: str, problem: Logistic) -> None:
    cfg, _ = configure(f"optimizer={name}")
    sampler = AdaptiveBatchSampler(problem.train, 30)
    optimizer = build_optimizer(cfg.optimizer, problem, sampler, cfg.epochs)
    before = [p.detach().clone() for p in problem.model.parameters()]
    problem.loss(problem.model, problem.train[next(iter(sampler))]).backward()
    optimizer.step()
    optimizer.zero_grad()
    assert any(not torch.equal(p, b) for p, b in zip(problem.model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_starts_at_the_learning_rate_and_never_leaves_it_upwards(name: str) -> None:
    cfg, _ = configure(f"schedule={name}")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = instantiate(cfg.schedule)(optimizer, 40)
    optimizer.step()
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(45):
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == 0.3
    assert all(0 <= later <= earlier for earlier, later in zip(rates, rates[1:], strict=False))


def test_schedules_are_their_formulas() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    factors = {
        "cosine": schedules.cosine(optimizer, 40, final=0.2),
        "linear": schedules.linear(optimizer, 40, final=0.2),
        "inverse_time": schedules.inverse_time(optimizer, 40, fraction=0.25),
        "step": schedules.step(optimizer, 40),
        "warm": schedules.linear(optimizer, 40, warmup=4),
    }
    at = {name: schedule.lr_lambdas[0] for name, schedule in factors.items()}
    assert at["cosine"](20) == pytest.approx(0.6)
    assert at["linear"](20) == pytest.approx(0.6)
    assert at["inverse_time"](10) == 0.5
    assert [at["step"](t) for t in (19, 20, 29, 30)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert [at["warm"](t) for t in (0, 3, 4, 22, 40)] == pytest.approx([0.25, 1, 1, 0.5, 0])


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_is_one(name: str) -> None:
    cfg, _ = configure(f"tracker={name}")
    assert isinstance(instantiate(cfg.tracker), Tracker)


def test_ours_see_the_model_and_what_auto_stands_for(problem: Logistic) -> None:
    sampler = AdaptiveBatchSampler(problem.train, 30)
    cfg, _ = configure("optimizer=adaptive_batch")
    optimizer = build_optimizer(cfg.optimizer, problem, sampler, cfg.epochs)
    problem.loss(problem.model, problem.train[next(iter(sampler))]).backward()
    optimizer.step()
    assert optimizer.report().as_dict()["groups"][0]["unit"] == "sample"
    assert cfg.optimizer.likelihood == "auto"


def test_a_misspelt_key_or_name_is_an_error_that_helps() -> None:
    with pytest.raises(ConfigCompositionException, match="Could not override 'epoch'") as caught:
        configure("epoch=3")
    assert "Key 'epoch' not in 'TrainConfig'" in str(caught.value.__cause__)
    with pytest.raises(MissingConfigException, match=r"(?s)optimizer/fisher_flor.*Available options.*fisher_floor"):
        configure("optimizer=fisher_flor")
    with pytest.raises(ConfigCompositionException) as caught:
        configure("optimizer.lrr=1")
    assert "Key 'lrr' is not in struct" in str(caught.value.__cause__)


def help_template() -> str:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", return_hydra_config=True)
    template: str = cfg.hydra.help.template
    return template


def test_the_help_names_every_key() -> None:
    keys = {key for key in TrainConfig.__dataclass_fields__ if not (CONF / key).is_dir()}
    assert keys == set(re.findall(r"^  (\w+)  +\S", help_template(), flags=re.MULTILINE))


def test_the_commands_of_the_help_compose() -> None:
    commands = re.findall(r"(?:python|torchrun \S+ \d+) recipes/train\.py(.*)", help_template())
    assert len(commands) == 7
    for command in commands:
        words = [word for word in shlex.split(command.replace("<time>", "time")) if word != "-m"]
        configure(*(word.split(",")[0] for word in words))


def test_runs_started_together_have_directories_of_their_own() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        folders = {compose("train", return_hydra_config=True).hydra.run.dir for _ in range(3)}
    assert len(folders) == 3
    assert all(re.fullmatch(r"logs/train/runs/[\d-]+_[\d-]+-\d{6}_\d+", folder) for folder in folders)
