"""The studies of temperature, small: plans are equal, detectors come in order, methods are judged by the same loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fisheropt.control import EqualTemperature, LinearDecay
from recipes.studies import batch_conversion, batch_stationarity, batch_wall, batch_wall_runs
from recipes.studies.base import Findings, StudyError
from recipes.studies.batch_conversion import BATCH, LR, plan
from recipes.studies.batch_conversion_network import NoisyDigits
from recipes.studies.batch_stationarity_detectors import Certificate, Controlled, NotPositive, chains
from recipes.studies.batch_wall_problems import Characters, Digits
from recipes.studies.batch_wall_runs import Course, Trial, course, in_turns
from recipes.studies.glm_chains import logistic


def quiet(done: float, words: str) -> None:
    assert 0 <= done <= 1
    assert words


def missed(findings: Findings) -> list[str]:
    return [row.what for row in findings.rows if row.holds is False]


@pytest.mark.parametrize(("epochs", "decayed", "grown"), [(20, 1750, 878), (60, 5250, 2629)])
def test_the_plans_have_the_steps_of_the_document_and_one_temperature(epochs: int, decayed: int, grown: int) -> None:
    budget = 1400 * epochs
    line, batches = plan(LinearDecay(), budget), plan(EqualTemperature(), budget)
    assert (len(line), len(batches)) == (decayed, grown)
    for steps in (line, batches):
        assert sum(size for size, _ in steps) == budget
        seen = 0
        for size, factor in steps[:-1]:
            rounding = 0.5 / size + 1e-12  # whole samples
            assert LR * factor / size == pytest.approx(LR / BATCH * (1 - seen / budget), rel=rounding)
            seen += size


def test_equal_temperature_ends_alike_and_a_schedule_of_another_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    study = batch_conversion.BatchConversion(seeds=4, loops=0, epochs=(5,))
    assert missed(study.run(quiet)) == []
    monkeypatch.setattr(
        batch_conversion, "RULES", batch_conversion.RULES | {"batch schedule": EqualTemperature(_slower)}
    )
    assert "5 epochs: batch schedule less linear decay" in missed(study.run(quiet))


def _slower(spent: float) -> float:
    return 1 - spent / 2


def test_the_loop_of_a_user_follows_the_schedule() -> None:
    rows = batch_conversion.BatchConversion(seeds=2, loops=2, epochs=(2,)).run(quiet).rows
    share = next(row for row in rows if row.what == "2 epochs, AdaptiveBatchSGD: share of the steps")
    assert 0.5 <= float(share.seen) <= 0.65


def test_a_tenth_of_the_labels_is_wrong_and_none_of_the_others() -> None:
    data, again = NoisyDigits(), NoisyDigits()
    assert torch.equal(data.y, again.y)
    assert len(data.x) == 1400
    assert len(data.test_x) == 397


def test_detectors_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_stationarity, "RATES", {0.2: 240})
    findings = batch_stationarity.BatchStationarity(runs=16, chains=60, length=3).run(quiet)
    assert missed(findings) == []
    assert len(findings.pictures) == 1


def test_the_controller_detects_when_its_certificate_does() -> None:
    """Both rest on the same test; the controller's V is a mean over readings, so steps differ, not the order."""
    generator = torch.Generator().manual_seed(0)
    seen = chains(logistic(1000, 4, 3.0, generator), 0.8, 32, 1200, 30, 30, generator).watched
    by_test = torch.tensor([Certificate().first(run) for run in seen])
    by_rule = torch.tensor([Controlled().first(run) for run in seen])
    early = torch.tensor([NotPositive().first(run) for run in seen])
    assert int(by_test.isinf().sum()) <= 9
    assert int(by_rule.isinf().sum()) <= 9
    assert bool((early <= by_test).all())
    assert 0.5 < float(by_test.nanmedian() / by_rule.nanmedian()) < 2


def fake(losses: list[float]) -> Course:
    found = Course()
    for index, loss in enumerate(losses):
        found.note(100 * index, 10 * index, 2.0 * index, float(index), loss)
    return found


def test_time_to_a_loss_is_interpolated_and_infinite_beyond_the_end() -> None:
    found = fake([2.0, 1.0, 0.5, 0.75])
    assert found.until(0.75, "process") == pytest.approx(1.5)
    assert found.until(0.75, "samples") == pytest.approx(150)
    assert found.until(2.0, "steps") == 0
    assert found.until(0.4, "wall") == math.inf
    assert fake([1.0, math.nan]).end == math.inf


def test_intervals_cover_what_is_never_reached() -> None:
    middle, low, high = batch_wall.middle_interval([0.5, 0.6, math.inf, 0.7, 0.55])
    assert (middle, low) == (0.6, 0.5)
    assert high == math.inf


@pytest.mark.parametrize("make", [Digits, lambda: Characters(Path("missing"), sequences=64)])
def test_every_method_trains_each_problem_to_the_end(make: Callable[[], Digits | Characters]) -> None:
    problem = make()
    problem.x, problem.y = problem.x[:64], problem.y[:64]
    for name, method in batch_wall_runs.METHODS.items():
        found = Course()
        in_turns([course(problem, method, Trial(8, 0.1), 0, found)])
        assert found.samples[-1] == problem.budget, name
        assert found.end < found.loss[0], name
        assert found.process == sorted(found.process), name


def test_rows_say_gain_and_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is the fixed batch itself takes the same steps; one at a tenth of the step size never arrives."""
    slow = batch_wall_runs.fixed
    methods = {
        "fixed": slow,
        "same": slow,
        "slow": lambda model, sampler, problem, lr: slow(model, sampler, problem, lr / 10),
    }
    monkeypatch.setattr(batch_wall, "METHODS", methods)
    problem = Digits()
    problem.x, problem.y = problem.x[:80], problem.y[:80]
    found: batch_wall.Courses = {name: [] for name in methods}
    for seed in range(2):
        batch_wall._take_turns(problem, dict.fromkeys(methods, Trial(16, 0.2)), seed, found)
    rows = {row.what: row for row in batch_wall._rows(problem, dict.fromkeys(methods, Trial(16, 0.2)), found)}
    assert float(rows["CNN, same: steps over that of the fixed batch"].seen) == 1
    assert rows["CNN, slow: steps over that of the fixed batch"].seen == "never"
    assert "loss" in rows["CNN, slow: steps over that of the fixed batch"].remark


def test_the_fixed_batch_is_tuned_to_its_loss_and_the_others_to_the_time_they_need_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fixed: one start of b = 8 is lowest by luck, b = 4 on average. The other ends lowest at b = 4, and is sooner at 8."""
    losses = {("fixed", 4): [1.0, 0.5], ("fixed", 8): [0.1, 2.0], ("other", 4): [0.2, 0.2], ("other", 8): [0.4, 0.4]}
    seconds = {("fixed", 4): 2, ("fixed", 8): 2, ("other", 4): 8, ("other", 8): 1}

    def told(problem: object, method: str, trial: Trial, seed: int, found: Course) -> Iterator[None]:
        key = (method, trial.batch_size)
        found.note(0, 0, 0.0, 0.0, 3.0)
        found.note(1, 1, 1.0, seconds[key], losses[key][seed - batch_wall.TUNING_SEED])
        yield

    monkeypatch.setattr(batch_wall, "METHODS", {"fixed": "fixed", "other": "other"})
    monkeypatch.setattr(batch_wall, "course", told)
    monkeypatch.setattr(Digits, "sizes", (4, 8))
    monkeypatch.setattr(Digits, "rates", (0.1,))
    assert batch_wall.tuned(Digits()) == {"fixed": Trial(4, 0.1), "other": Trial(8, 0.1)}


def test_settings_are_checked() -> None:
    for make in (
        lambda: batch_conversion.BatchConversion(seeds=1),
        lambda: batch_stationarity.BatchStationarity(runs=10, chains=5),
        lambda: batch_wall.BatchWall(seeds=1),
    ):
        with pytest.raises(StudyError, match="write"):
            make()
