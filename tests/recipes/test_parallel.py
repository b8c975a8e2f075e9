"""Runs on two gloo ranks are those of one process, and leave behind what one process leaves."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from recipes import checkpoint, settings, train
from recipes.assemble import Parts, assemble
from recipes.journal import Journal
from recipes.parallel import Replicated, Sharded
from recipes.problems.logistic import Logistic
from recipes.schema import ConfigError
from tests.ranked import WORLD, assert_ranks_agree, verdicts, whole
from tests.recipes.harness import comparable, configure, resume

CHECKS: dict[str, Callable[[int], None]] = {}
FOLDER = "FISHEROPT_TEST_PARALLEL"
DATA = ("problem.data=synthetic", "problem.d=4", "problem.n=61", "problem.dtype=float64", "problem.cache_dir=null")
SMALL = (*DATA, "epochs=2", "batch_size=8", "log_every=1", "evaluate_every=3", "report=false")
"""Binary, so that random signs of a measured output are not drawn; the last batch of an epoch has 3 + 2 samples."""
CPU = "parallel.device=cpu"
WAITED: list[float] = []
RUNS = {
    "sgd": ("optimizer=sgd",),
    "momentum": ("optimizer=momentum", "schedule=cosine"),
    "fisher_floor": ("optimizer=fisher_floor", "optimizer.every=2"),
    "godambe": ("optimizer=godambe", "optimizer.every=2"),
    "adaptive_batch": ("optimizer=adaptive_batch", "optimizer.every=1"),
    "mixture": ("optimizer=momentum", "problem=mixture", "problem.data=synthetic", "problem.n=61", "problem.k=3"),
}


class Stop(Exception):
    """Ends a run between two steps, on all ranks."""


def check(function: Callable[[int], None]) -> Callable[[int], None]:
    CHECKS[function.__name__] = function
    return function


def words(name: str) -> tuple[str, ...]:
    """The overrides of a run by its name."""
    common = SMALL[len(DATA) :] if name == "mixture" else SMALL
    return (*common, *RUNS[name], *(("problem.dtype=float64", "problem.cache_dir=null") if name == "mixture" else ()))


def shared() -> Path:
    return Path(os.environ[FOLDER])


def started_by_torchrun(rank: int) -> None:
    """What torchrun would say to this process."""
    said = {"RANK": rank, "WORLD_SIZE": WORLD, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": WORLD}
    os.environ |= {key: str(value) for key, value in said.items()} | {"TORCHELASTIC_RUN_ID": "test"}


def launch(rank: int, folder: Path, *overrides: str) -> tuple[dict[str, Any], Parts]:
    """A new run as one of two ranks, of which the second has a folder that does not exist."""
    started_by_torchrun(rank)
    folder.mkdir(parents=True, exist_ok=True)
    cfg, choices = configure(*overrides)
    frozen = settings.start(cfg, None if rank else folder, choices, overrides)
    WAITED.clear()
    with kept() as parts, patched(train, "sleep", WAITED.append):
        result = train.run(frozen, Path("nowhere") if rank else folder)
    return result, parts[0]


@contextmanager
def kept() -> Iterator[list[Parts]]:
    """The parts of the runs within, for a look at their models."""
    found, original = [], train.measured

    def measured(parts: Parts, journal: Journal, optimum: float | None) -> dict[str, Any]:
        found.append(parts)
        return original(parts, journal, optimum)

    train.measured = measured
    try:
        yield found
    finally:
        train.measured = original


@contextmanager
def patched(owner: object, name: str, value: Callable[..., Any]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, value)
        yield


def stopping(at: int) -> Callable[[Journal, torch.Tensor], None]:
    """Journal.after_step, which writes a checkpoint after the step and stops."""
    after_step = Journal.after_step

    def stopped(self: Journal, loss: torch.Tensor) -> None:
        after_step(self, loss)
        if self.step == at:
            self.checkpoint()
            raise Stop

    return stopped


def close(found: Any, expected: Any, where: str = "") -> None:
    """Numbers to rounding; what is said of ranks themselves is left out, and what is nothing but rounding too."""
    if isinstance(expected, dict):
        for key in expected:
            if "between_ranks" not in key and key not in {"processes", "overrides", "overhead"}:
                close(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            close(*pair, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9), f"{where}: {found} and not {expected}"
    else:
        assert found == expected, where


def as_one_process(way: str, name: str, rank: int, *, pooled: bool = False) -> None:
    """The run of the parent, to rounding; the same parameters on both ranks; and one folder.

    Args:
        way: choice of the group parallel.
        name: of the run.
        rank: of this process.
        pooled: whether the optimizer measures within ranks, and so sees other numbers than one process does.
    """
    folder = shared() / f"{way} {name}"
    result, parts = launch(rank, folder, *words(name), f"parallel={way}", CPU)
    assert result["train_loss"] == parts.parallel.told(result["train_loss"])
    parameters = list(parts.problem.model.parameters())
    for p in parameters:
        assert_ranks_agree(whole(p).detach())
    if way == "ddp":
        assert isinstance(parts.model, DistributedDataParallel) and parts.model.module is parts.problem.model
    assert all(isinstance(p, DTensor) == (way == "fsdp2") for p in parameters)
    assert not Path("nowhere").exists()
    if pooled:
        assert parts.parallel.gathered(parts.sampler.state_dict()) == [parts.sampler.state_dict()] * WORLD
    elif rank == 0:
        expected, lines = comparable(shared() / name)
        found, written = comparable(folder)
        close(found, expected)
        close(written, lines)
        assert (found["processes"], expected["processes"]) == (WORLD, 1)
        state = checkpoint.load(folder / "checkpoints", state_identity(parts))[0]
        assert state is not None
        one = checkpoint.load(shared() / name / "checkpoints", state_identity(parts))[0]
        assert one is not None
        for key, value in one["model"].items():
            torch.testing.assert_close(state["model"][key], value, rtol=1e-7, atol=1e-9)


def state_identity(parts: Parts) -> dict[str, Any]:
    return checkpoint.identity(parts.problem.name, parts.optimizer, parts.problem.model, parts.samples)


for _way, _names in {
    "ddp": ("sgd", "fisher_floor", "adaptive_batch"),
    "fsdp2": ("momentum", "godambe", "adaptive_batch", "mixture"),
}.items():
    for _name in _names:
        pooled = (_way, _name) == ("ddp", "adaptive_batch")
        CHECKS[f"{_way} {_name}"] = partial(as_one_process, _way, _name, pooled=pooled)


def stop_and_resume(way: str, name: str, rank: int) -> None:
    """Bit for bit what the run without a stop has left; of each rank's generators too."""
    loss = Logistic.loss

    def noisy(self: Logistic, model: torch.nn.Module, batch: Sequence[torch.Tensor]) -> torch.Tensor:
        return loss(self, model, batch) * (1 + torch.rand(()) + random.random())

    overrides = (*words(name), f"parallel={way}", CPU, "checkpoint_seconds=1e9")
    unbroken, broken = (shared() / f"{way} {name} {kind}" for kind in ("unbroken", "broken"))
    with patched(Logistic, "loss", noisy):
        launch(rank, unbroken, *overrides)
        with patched(Journal, "after_step", stopping(7)), pytest.raises(Stop):
            launch(rank, broken, *overrides)
        resume(broken)
    torch.distributed.barrier()
    result, lines = comparable(broken)
    expected, without = comparable(unbroken)
    assert (result, lines) == (expected, without)


for _way, _name in (("ddp", "fisher_floor"), ("fsdp2", "momentum")):
    CHECKS[f"{_way} {_name} stopped"] = partial(stop_and_resume, _way, _name)


@check
def ranks_draw_apart_and_their_parts_make_the_batch(rank: int) -> None:
    started_by_torchrun(rank)
    cfg, _ = configure(*SMALL, "optimizer=sgd", "parallel=ddp", CPU)
    parallel = Replicated("cpu")
    parts = assemble(cfg, parallel)
    one, two = parallel.gathered(float(torch.rand(())))
    assert one != two
    pieces = parallel.gathered([list(piece) for piece in parts.sampler])
    batches = [sum(both, []) for both in zip(*pieces, strict=True)]
    assert [len(batch) for batch in batches] == [8] * 7 + [5]
    assert sorted(sum(batches, [])) == list(range(61))
    loss, shared_loss = parallel.pooled(torch.tensor(1.0 + rank, requires_grad=True), 3 - rank)
    assert float(shared_loss) == pytest.approx((3 * 1 + 2 * 2) / 5)
    assert float(loss) == pytest.approx((2 * 3 / 5, 2 * 2 * 2 / 5)[rank])


@check
def the_first_clock_decides(rank: int) -> None:
    """A rank whose clock is ahead neither writes a checkpoint nor waits for one."""
    for ahead, due in ((1, False), (0, True)):
        started_by_torchrun(rank)
        cfg, _ = configure(*SMALL, "optimizer=sgd", "parallel=ddp", CPU, "checkpoint_seconds=1000")
        folder = shared() / f"clock {ahead}"
        folder.mkdir(exist_ok=True)
        parts = assemble(cfg, Replicated("cpu"))
        journal = Journal(parts, cfg, folder, None, ())
        if rank == ahead:
            journal._saved = -1e9
        journal.after_step(torch.zeros(()))
        torch.distributed.barrier()
        assert (folder / "checkpoints").exists() == due
        journal.close()


@check
def optimizers_refuse_in_their_own_words(rank: int) -> None:
    overrides = (*SMALL, "optimizer=godambe", "optimizer.structure=lowrank", "parallel=fsdp2", CPU)
    with pytest.raises(TypeError, match=r"(?s)sharded by fully_shard.*structure='full'"):
        launch(rank, shared() / "refused", *overrides)
    assert len(WAITED) == rank
    if rank == 0:
        result = json.loads((shared() / "refused" / "result.json").read_text())
        assert (result["status"], result["processes"]) == ("failed", WORLD)


@check
def a_study_is_the_work_of_one_process(rank: int) -> None:
    with pytest.raises(ConfigError, match=r"write python recipes/train\.py experiment=spectra_blocks$"):
        launch(rank, shared() / "study", "experiment=spectra_blocks", "parallel=ddp", CPU)


@check
def a_batch_has_a_sample_for_every_rank(rank: int) -> None:
    for least in ("batch_size=1", "max_batch_size=1"):
        with pytest.raises(ConfigError, match=f"{least}: .* all 2 processes.*; write {least[:-1]}2 or more"):
            launch(rank, shared() / "least", *SMALL, least, "parallel=ddp", CPU)


@check
def the_state_in_parts_is_whole_in_the_checkpoint(rank: int) -> None:
    """And is cut again over whoever is there."""
    started_by_torchrun(rank)
    cfg, _ = configure(*SMALL, "optimizer=momentum", "problem.data=iris", "parallel=fsdp2", CPU)
    parallel = Sharded("cpu")
    parts = assemble(cfg, parallel)
    batch = next(iter(parts.loader))
    parts.problem.loss(parts.model, batch).backward()
    parts.optimizer.step()
    state = parts.optimizer.state_dict()
    saved = parallel.saved(state)
    flat = saved["state"][0]["momentum_buffer"]
    assert not any(isinstance(value, DTensor) for value in flat.values())
    again = parallel.restored(saved)["state"][0]["momentum_buffer"]
    mine = state["state"][0]["momentum_buffer"]
    assert again.placements == mine.placements and torch.equal(again.to_local(), mine.to_local())


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("parallel")
    for name in RUNS:
        cfg, choices = configure(*words(name))
        (folder / name).mkdir()
        train.run(settings.start(cfg, folder / name, choices, words(name)), folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield verdicts(request)


@pytest.mark.parametrize("name", CHECKS)
def test_two_ranks(name: str, found: dict[str, str]) -> None:
    assert not found[name], found[name]
