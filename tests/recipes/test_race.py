"""The race: equal budgets, seeds apart, cells that stay, tables that tell losses, and cases that are what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from recipes import race
from recipes.problems.newton import minimise
from recipes.racing import entrants as field
from recipes.racing import verdicts
from recipes.racing.entrants import Entrant, entrants
from recipes.racing.epochs import Epochs
from recipes.racing.heats import TUNING, heat
from recipes.racing.limits import maximum_likelihood
from recipes.racing.mixtures import Mixtures
from recipes.racing.networks import Networks
from recipes.racing.population import Population
from recipes.racing.to_target import COARSE, reached
from recipes.racing.track import Measure, Outcome, Target, Track
from recipes.racing.walks import Loop, Point
from recipes.schema import ConfigError
from tests.recipes.harness import CONF


def configure(*overrides: str) -> DictConfig:
    race.OmegaConf.register_new_resolver("race_dir", race.directory, replace=True)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("race", [*overrides, "cache_dir=null", "data_dir=nowhere"])


@final
class Toy(Track):
    """An entrant's cost is how far its rate is from 1, times what its name says, plus a little for the seed."""

    name = "toy"
    title = "Toy"
    words = "Nothing is trained."
    champion = "mine"
    measures = (Measure("cost", "cost", tuned=True, targets=(Target(0.1, of="peer"), Target(1.5))),)
    settings: ClassVar[dict[str, Any]] = {"size": 1}
    runs: ClassVar[list[tuple[str, float, int]]] = []
    factor: ClassVar[dict[str, float]] = {}

    def cases(self) -> Sequence[str]:
        return ("only",)

    def describe(self, case: str) -> str:
        return "one case"

    def run(self, case: str, entrant: Entrant, rate: float, seed: int, best: float | None = None) -> Outcome:
        self.runs.append((entrant.name, rate, seed))
        return {"cost": self.factor[entrant.name] * (1 + abs(math.log(rate)) + 0.01 * (seed % 7))}


MINE = Entrant("mine", "ours", field.sgd, 0.1, 10.0)
THEIRS = Entrant("theirs", "peer", field.sgd, 0.1, 10.0)
ABSENT = Entrant("absent", "peer", field.sgd, 0.1, 10.0, package="no_such_package")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.setitem(race.MAKE, "toy", lambda cfg, sizes: Toy())
    monkeypatch.setattr(Toy, "runs", [])
    monkeypatch.setattr(Toy, "factor", {"mine": 2.0, "theirs": 1.0})
    return configure("tracks=[toy]", "seeds=3", "trials=5", "tuning_seeds=2", "+sizes.toy={}")


def test_budgets_are_equal_and_seeds_apart(toy: DictConfig, tmp_path: Path) -> None:
    race.race(toy, tmp_path, [MINE, THEIRS])
    for name in ("mine", "theirs"):
        trials = [(rate, seed) for who, rate, seed in Toy.runs if who == name and seed >= TUNING]
        counted = [(rate, seed) for who, rate, seed in Toy.runs if who == name and seed < TUNING]
        assert len({rate for rate, _ in trials}) == 5
        assert len(trials) == 10
        assert [seed for _, seed in counted] == [0, 1, 2]
        assert all(rate == pytest.approx(1.0) for rate, _ in counted), "the best rate of the grid"


def test_every_entrant_that_is_tuned_has_the_same_trials() -> None:
    grids = {entrant.name: entrant.grid(7) for entrant in entrants() if entrant.tuned}
    assert {len(set(grid)) for grid in grids.values()} == {7}
    for entrant in entrants():
        grid = sorted(entrant.grid(7))
        if entrant.tuned:
            assert (grid[0], grid[-1]) == (pytest.approx(entrant.low), pytest.approx(entrant.high))
            assert np.allclose(np.diff(np.log(grid)), np.log(entrant.high / entrant.low) / 6)
        else:
            assert grid == [entrant.high]
            assert entrant.kind == "ours"


def test_an_interrupted_race_goes_on(toy: DictConfig, tmp_path: Path) -> None:
    race.race(toy, tmp_path, [MINE, THEIRS])
    Toy.runs.clear()
    race.race(toy, tmp_path, [MINE, THEIRS])
    assert Toy.runs == []
    next((tmp_path / "cells").glob("*--mine.json")).unlink()
    race.race(toy, tmp_path, [MINE, THEIRS])
    assert {who for who, _, _ in Toy.runs} == {"mine"}
    Toy.runs.clear()
    toy.again = ["theirs"]
    race.race(toy, tmp_path, [MINE, THEIRS])
    assert {who for who, _, _ in Toy.runs} == {"theirs"}
    Toy.runs.clear()
    toy.again, toy.seeds = [], 4
    race.race(toy, tmp_path, [MINE, THEIRS])
    assert {who for who, _, _ in Toy.runs} == {"mine", "theirs"}, "made with other settings"


def test_a_loss_is_told_as_a_loss_and_a_miss_as_a_miss(toy: DictConfig, tmp_path: Path) -> None:
    page = race.race(toy, tmp_path, [MINE, THEIRS, ABSENT]).read_text()
    assert "**0 wins, 0 ties, 1 losses** of 1 comparisons; 0 of 2 targets met." in page
    (line,) = [line for line in page.splitlines() if line.startswith("| toy: only |")]
    assert "**loss**" in line
    assert "**missed**" in line
    assert "theirs: 1.01 (1 to 1.02)" in line, "the median with its interval"
    assert "2.02 (2 to 2.04)" in line
    assert "| absent | not installed |" in page
    order = [line.split("|")[1].strip() for line in page.split("### only")[1].splitlines() if line.startswith("|")]
    assert order[2:] == ["theirs", "**mine**", "absent"]
    Toy.factor["mine"] = 0.05
    toy.again = ["mine"]
    page = race.race(toy, tmp_path, [MINE, THEIRS]).read_text()
    assert "**1 wins, 0 ties, 0 losses** of 1 comparisons; 2 of 2 targets met." in page


def test_a_case_that_is_not_finished_is_not_judged(toy: DictConfig, tmp_path: Path) -> None:
    toy.entrants = ["mine"]
    page = race.race(toy, tmp_path, [MINE, THEIRS]).read_text()
    assert "0 wins, 0 ties, 0 losses** of 0 comparisons" in page
    assert "Not finished, and not counted: toy: only." in page
    assert "| theirs | not run |" in page


def test_verdicts() -> None:
    assert verdicts.verdict(verdicts.ratio([1, 1.1, 0.9], [2, 2.1, 2.2])) == "win"
    assert verdicts.verdict(verdicts.ratio([2, 2.1, 2.2], [1, 1.1, 0.9])) == "loss"
    assert verdicts.verdict(verdicts.ratio([1, 2, 3], [2, 1, 3])) == "tie"
    assert verdicts.verdict(verdicts.ratio([1.0] * 3, [math.inf] * 3)) == "win"
    assert verdicts.verdict(verdicts.ratio([math.inf] * 3, [1.0] * 3)) == "loss"
    assert verdicts.ratio([math.inf] * 3, [math.inf] * 3) is None
    partly = verdicts.spread([1.0, 2.0, math.inf])
    assert (partly.median, partly.low, partly.high, partly.reached) == (2.0, 1.0, math.inf, 2)


def test_a_target_beside_a_peer_that_never_came_is_not_judged() -> None:
    measure = Toy.measures[0]
    ours, theirs = (
        {"entrant": kind, "kind": kind, "values": {"cost": values}}
        for kind, values in (("ours", [1.0] * 3), ("peer", [math.inf] * 3))
    )
    assert [words for words, _, _ in verdicts.standing([ours, theirs], ours, measure, "only").targets] == ["≤ 1.5"]


def test_a_word_alone_is_not_taken_letter_by_letter() -> None:
    assert race.chosen([MINE, THEIRS], "peers") == [THEIRS]
    assert race.chosen([MINE, THEIRS], ["ours"]) == [MINE]


def test_the_bootstrap_interval_covers_the_median_about_as_often_as_it_says() -> None:
    """Of nine normal numbers; 1000 trials, the standard error of the share is .008."""
    rng = np.random.default_rng(0)
    spreads = [verdicts.spread(rng.standard_normal(9)) for _ in range(1000)]
    assert 0.90 < np.mean([found.low <= 0 <= found.high for found in spreads]) < 0.99


def test_a_target_is_reached_at_the_first_point_below_it() -> None:
    points = [
        Point(passes, 10 * passes, 1 + gap) for passes, gap in ((1, 1.0), (2, 9e-5), (3, 2e-4), (4, 9e-7), (5, 0.0))
    ]
    found = reached(points, 1.0, 30.0, 1e-6)
    assert (found["epochs"], found["seconds"], found["fine_epochs"]) == (2, 20, 4)
    assert reached(points, 1.0, 1.5, 1e-6)["epochs"] is None, "beyond the cap"
    assert reached([Point(1, 1, math.nan), points[1]], 1.0, 30.0, 1e-6)["epochs"] is None, "left for good"


def test_a_name_that_there_is_not_is_refused(toy: DictConfig, tmp_path: Path) -> None:
    toy.entrants = ["them"]
    with pytest.raises(ConfigError, match=r"write entrants=\[theirs\]"):
        race.race(toy, tmp_path, [MINE, THEIRS])
    toy.entrants, toy.sets = None, ["onyl"]
    with pytest.raises(ConfigError, match=r"write sets=\[only\]"):
        race.race(toy, tmp_path, [MINE, THEIRS])


@pytest.mark.parametrize("kind", ["well_specified", "misspecified"])
def test_the_population_is_what_its_samples_show(kind: str) -> None:
    """Loss, optimum and tr(H⁻¹G) from 400 000 samples, within four standard errors."""
    law = Population(kind, 4, 10.0, seed=1)
    x, y = law.draw(400_000, np.random.default_rng(2))
    w = maximum_likelihood(x, y)
    assert 0 <= law.excess(w) * 2 * len(x) / law.dimension < 4
    other = w + 0.1 * np.ones(4)
    losses = np.logaddexp(0, x @ other) - y * (x @ other) - np.logaddexp(0, x @ w) + y * (x @ w)
    assert abs(losses.mean() - law.excess(other)) < 4 * losses.std() / len(x) ** 0.5 + 2 * law.excess(w)
    p = 1 / (1 + np.exp(-(x @ w)))
    curvature, noise = (x.T * (p * (1 - p))) @ x, (x.T * (p - y) ** 2) @ x
    assert np.trace(np.linalg.solve(curvature, noise)) == pytest.approx(law.dimension, rel=0.02)


def test_evaluations_are_those_of_the_recipes() -> None:
    regression = Epochs(64, 3.0, 200, "nowhere", None).case("breast_cancer")
    model = regression.model(0)
    torch.nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    assert regression.value(model) == pytest.approx(regression.problem.train_loss(model), abs=1e-7)
    assert minimise(regression.problem._objective).value == pytest.approx(regression.problem.optimum)
    clusters = Mixtures(300, 3, 64, 3.0, None).case("mixture_3_near")
    mixture = clusters.model(5)
    assert clusters.value(mixture) == pytest.approx(clusters.problem.train_loss(mixture), rel=1e-9)


def test_the_limit_rows_reach_the_optimum() -> None:
    track = Epochs(64, 3.0, 200, "nowhere", None)
    found = track.limits("breast_cancer", 0)
    assert found["scikit-learn, newton-cholesky"]["fine_epochs"] is not None
    assert len(found) == 4
    again = track.limits("breast_cancer", 1)
    assert {name: outcome["epochs"] for name, outcome in again.items()} == {n: o["epochs"] for n, o in found.items()}
    mixtures = Mixtures(300, 3, 64, 3.0, None)
    gaps = [mixtures.limits("mixture_2_far", seed)["EM"]["gap"] for seed in range(6)]
    assert -1e-9 < min(gaps) <= 1e-6, "some start ends where the best of the reference's ended, and none below"


def test_the_ridge_is_in_the_gradient_of_every_entrant() -> None:
    """Adding it in the loop and giving it to our weight decay rest at the same place."""
    track = Epochs(200, 200.0, 200, "nowhere", None)
    case, optimum = track.case("breast_cancer"), track.optimum("breast_cancer")
    loop = Loop(case, field.adagrad, 0.5, 0)
    loop.advance(800)
    assert loop.value() - optimum < COARSE
    loop = Loop(case, field.godambe, 1.0, 0)
    loop.advance(400)
    assert -1e-8 < loop.value() - optimum < COARSE, "Newton stops at a gradient of 1e-8"


def test_networks_are_timed_to_the_best_peer() -> None:
    track = Networks(64, 8, 8, 1.0, 10, "nowhere")
    curves = {"a": [(0.5, 1.0, 3.0), (1.0, 2.0, 1.0)], "b": [(0.5, 2.0, 0.5), (1.0, 4.0, 0.4)]}
    outcomes = {name: {"final": [{"final": curve[-1][2], "curve": curve}]} for name, curve in curves.items()}
    outcomes["failed"] = {"final": [{"failed": "RuntimeError: no"}]}
    track.complete(outcomes, ["a", "failed"])
    assert outcomes["a"]["final"][0]["share"] == outcomes["a"]["final"][0]["time"] == 1.0
    assert (outcomes["b"]["final"][0]["share"], outcomes["b"]["final"][0]["time"]) == (0.5, 1.0)


def test_every_track_runs_with_every_entrant_that_is_installed(tmp_path: Path) -> None:
    """Stand-ins, as there is no data; each in its smallest form."""
    cfg = configure("quick=true", "seeds=2", "trials=1", "docs=false")
    cfg.quick_sizes.mixtures.cap = cfg.quick_sizes.epochs.cap = 1
    cfg.sets = ["misspecified", "breast_cancer", "mixture_2_far", "chain"]
    few = [entrant for entrant in entrants() if entrant.name in ("SGD", "SGD, averaged", "Muon", "LBFGS", "GodambeSGD")]
    page = race.race(cfg, tmp_path, few).read_text()
    assert "breast_cancer" in page
    cells = json.loads((tmp_path / "race.json").read_text())["cells"]
    assert {cell["track"] for cell in cells} == {"one_pass", "epochs", "mixtures", "networks"}
    assert [cell for cell in cells if "failed" in json.dumps(cell)] == []


def test_an_entrant_that_breaks_has_reached_nothing() -> None:
    class Broken(Toy):
        def run(self, *arguments: Any, **options: Any) -> Outcome:
            raise RuntimeError("not finite\nmore")

    cell = heat(Broken(), "only", THEIRS, 2, 1, 2)
    assert cell["outcomes"]["cost"] == [{"failed": "RuntimeError: not finite"}] * 2
