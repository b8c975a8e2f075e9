"""Track epochs: regularised logistic regression on real sets, until f - f* is small."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.problems.classification import Classification, Samples
from recipes.problems.errors import DataError
from recipes.problems.labels import find_classes
from recipes.problems.readers import Array
from recipes.problems.sources import load
from recipes.problems.synthetic import draw
from recipes.racing.case import Case
from recipes.racing.limits import SOLVERS, scikit
from recipes.racing.to_target import COARSE, FINE, HOPELESS, LOOKS, PATIENCE, ToTarget, reached
from recipes.racing.track import Measure, Outcome, Target

SETS = ("mushrooms", "splice", "a9a", "ijcnn1")
STAND_INS = ("breast_cancer", "synthetic")
ITERATIONS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 40, 60, 80, 110, 150, 200)  # tried of a solver
NEWTON = "scikit-learn, newton-cholesky"


@final
class Regression(Case):
    """Mean log loss plus |w|²/2n on two classes, without an intercept, features as stored."""

    likelihood = "bernoulli"

    def __init__(self, name: str, x: Array, y: Array, origin: str, batch: int, cache_dir: str | None) -> None:
        samples = Samples(x, y, 2, None, origin)
        self.problem = Classification(name, samples, l2=None, intercept=False, dtype="float32", cache_dir=cache_dir)
        self.name, self.batch, self.ridge = name, batch, self.problem.l2
        self.words = self.problem.describe()
        self.x, self.y = x, y
        self.data = self.problem.train.tensors
        self._signed = self.data[0] * (2 * self.data[1][:, None] - 1)

    def model(self, seed: int) -> nn.Module:
        """A linear layer at zero."""
        layer = nn.Linear(self.x.shape[1], 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    def value(self, model: nn.Module) -> float:
        """f from logits in float32, summed in float64: right to 1e-9, at a tenth of the cost of the recipes' own."""
        return self.value_at(next(model.parameters()).detach()[0])

    def value_at(self, w: Tensor) -> float:
        """f(w), w of the shape [d]."""
        fit = F.softplus(-(self._signed @ w.float())).double().mean()
        return float(fit + 0.5 * self.ridge * w.double().square().sum())


@final
class Epochs(ToTarget):
    """Passes and seconds to f - f* ≤ 1e-4 and 1e-6."""

    name = "epochs"
    title = "Convex sets: passes and seconds to the optimum"
    words = (
        "Mean log loss plus |w|²/2n, no intercept, features as stored; f* by Newton's method in float64. Passes over the "
        f"data until f - f* ≤ {COARSE:g} and {FINE:g}, looked at {LOOKS} times a pass, and seconds of one core for the "
        f"training alone. Rates are tuned for the first; a trial above {HOPELESS[1]:g} after {HOPELESS[0]:g} passes is given "
        f"up, and a run that reached the first goes on for {PATIENCE:g} passes at most. Full-batch LBFGS counts each "
        "evaluation as a pass. For scikit-learn's solvers a pass is an iteration, and the seconds are those of a fit that "
        "stops there."
    )

    def __init__(self, batch: int, cap: float, largest: int | None, data_dir: str, cache_dir: str | None) -> None:
        super().__init__(cap)
        self._batch, self._largest, self._data_dir, self._cache_dir = batch, largest, data_dir, cache_dir
        self._tried: dict[tuple[str, str], Sequence[int]] = {}
        self._built = functools.lru_cache(self._make)

    @property
    def measures(self) -> Sequence[Measure]:
        newton = Target(3.0, of=NEWTON, on=("a9a", "ijcnn1"))
        return (
            Measure("epochs", f"passes to {COARSE:g}", tuned=True, targets=(Target(3.0),)),
            Measure("seconds", f"seconds to {COARSE:g}", targets=(Target(0.5, of="peer"), newton)),
            Measure("fine_epochs", f"passes to {FINE:g}", targets=(Target(10.0),)),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | {"batch": self._batch, "largest": self._largest}

    def cases(self) -> Sequence[str]:
        """Those of the real sets that are there, else stand-ins."""
        folder = Path(self._data_dir)
        there = tuple(name for name in SETS if any(folder.glob(f"{name}.*")) or (folder / name).exists())
        return there or STAND_INS

    def describe(self, case: str) -> str:
        return f"{self.case(case).words}; f* = {self.optimum(case):.12g}"

    def case(self, name: str) -> Regression:
        return self._built(name)

    def optimum(self, name: str) -> float:
        best = self.case(name).problem.optimum
        if best is None:
            raise DataError(
                f"{name}: no optimum was found, so there is no distance to race over; leave it out of sets="
            )
        return best

    def limits(self, case: str, seed: int) -> dict[str, Outcome]:
        """The solvers draw nothing: after the first seed only the fits that were found are timed again."""
        race, optimum = self.case(case), self.optimum(case)
        found = {}
        for solver in SOLVERS:
            tried = self._tried.get((case, solver), ITERATIONS)
            points = scikit(solver, race.x, race.y, race.value_at, tried, optimum + FINE)
            outcome = reached(points, optimum, math.inf, FINE)
            ends = {outcome["epochs"], outcome["fine_epochs"]} - {None}
            self._tried[case, solver] = sorted(int(end) for end in ends) or [1]
            found[f"scikit-learn, {solver}"] = outcome
        return found

    def _make(self, name: str) -> Regression:
        x, y, origin = self._read(name)
        if self._largest is not None and len(x) > self._largest:
            kept = np.sort(np.random.default_rng(0).permutation(len(x))[: self._largest])
            x, y, origin = x[kept], y[kept], f"{origin}, {self._largest} rows of it"
        return Regression(name, x, y, origin, min(self._batch, len(x)), self._cache_dir)

    def _read(self, name: str) -> tuple[Array, Array, str]:
        if name == "synthetic":
            drawn = draw("misspecified", 5000, 40, 100.0, 0, seed=0)
            return drawn.x, drawn.y, "synthetic, misspecified, condition 100"
        source = load(name, self._data_dir, label=None, context=1, with_test=False)
        classes = find_classes(source.train.y, source.origin)
        x = source.train.x
        x = (x - x.mean(0)) / x.std(0) if source.train.format == "bundled" else x
        return x, classes.encode(source.train.y, source.origin), source.train.format
