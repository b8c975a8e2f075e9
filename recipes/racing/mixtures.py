"""Track mixtures: maximum likelihood of Gaussian mixtures, until f - f* is small."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from recipes.problems import em
from recipes.problems.errors import DataError
from recipes.problems.mixture import Mixture
from recipes.racing.case import Case
from recipes.racing.limits import expectation_maximisation
from recipes.racing.to_target import COARSE, FINE, ToTarget, reached
from recipes.racing.track import Measure, Outcome, Target
from recipes.racing.walks import Point

CASES = {
    "mixture_2_near": (2, 1.5),
    "mixture_2_far": (2, 3.0),
    "mixture_3_near": (3, 1.5),
    "mixture_3_far": (3, 3.0),
}
STARTS = 2  # of EM for f*; on these four mixtures 20 starts all end in one place


@final
class Clusters(Case):
    """Samples of k normal components, fitted with weights, means and diagonal covariances from k samples as means."""

    likelihood = None

    def __init__(self, name: str, n: int, d: int, batch: int, cache_dir: str | None) -> None:
        self._k, self._separation = CASES[name]
        self._drawn = {"data": "synthetic", "k": self._k, "n": n, "d": d, "separation": self._separation}
        self.problem = Mixture(**self._drawn, cache_dir=cache_dir)
        self.name, self.batch = name, batch
        self.words = self.problem.describe()
        self.data = self.problem.train.tensors
        self._x = Mixture(**self._drawn, dtype="float64").train.tensors[0]
        self._squares = self._x.square()

    def model(self, seed: int) -> nn.Module:
        """The means begin at k samples, drawn by the seed; EM begins there too."""
        return Mixture(**self._drawn, start_seed=seed).model

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return -model(batch[0]).mean()

    @torch.no_grad()
    def value(self, model: nn.Module) -> float:
        """f in float64 by matrix products."""
        logits, means, scales = (p.double() for p in model.parameters())
        precision = torch.exp(-2.0 * scales)
        quadratic = self._squares @ precision.T - 2.0 * self._x @ (means * precision).T + (means**2 * precision).sum(1)
        weights = torch.log_softmax(torch.cat([logits, logits.new_zeros(1)]), 0)
        normal = 0.5 * self._x.shape[1] * math.log(2.0 * math.pi)
        return normal - float(torch.logsumexp(weights - scales.sum(1) - 0.5 * quadratic, 1).mean())

    def limit(self, seed: int) -> Iterator[Point]:
        """EM's points from the start of that seed."""
        return expectation_maximisation(self._x.numpy(), self._k, seed)

    def optimum(self) -> float | None:
        """The best of STARTS runs of EM, by the cache of the recipes."""
        key = hashlib.sha256(f"{self.problem.fingerprint()} starts={STARTS}".encode()).hexdigest()
        return self.problem.cache.fetch(f"{self.problem.name}-race", key, self._solve)

    def _solve(self) -> float | None:
        fit = em.best_fit(self._x.numpy(), self._k, full=False, starts=STARTS, seed=0)
        return None if fit is None else fit.loss


@final
class Mixtures(ToTarget):
    """Passes and seconds to f - f* ≤ 1e-4 and 1e-6."""

    name = "mixtures"
    title = "Mixtures: passes to the maximum of the likelihood"
    words = (
        "k normal components in d dimensions, fitted with free weights, means and diagonal covariances, all entrants and EM "
        f"from the same k samples as means; f* is the best of {STARTS} runs of EM to the last digit. Near is a separation of "
        "1.5 standard deviations, far of 3. Measured as for the convex sets; for EM a pass is an iteration."
    )

    def __init__(self, n: int, d: int, batch: int, cap: float, cache_dir: str | None) -> None:
        super().__init__(cap)
        self._sizes = {"n": n, "d": d, "batch": batch}
        self._cache_dir = cache_dir
        self._built = functools.lru_cache(self._make)

    @property
    def measures(self) -> Sequence[Measure]:
        return (
            Measure("epochs", f"passes to {COARSE:g}", tuned=True, targets=(Target(6.0),)),
            Measure("seconds", f"seconds to {COARSE:g}", targets=(Target(0.5, of="peer"),)),
            Measure("fine_epochs", f"passes to {FINE:g}"),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings | self._sizes

    def cases(self) -> Sequence[str]:
        return tuple(CASES)

    def describe(self, case: str) -> str:
        return f"{self.case(case).words}; f* = {self.optimum(case):.12g}"

    def case(self, name: str) -> Clusters:
        return self._built(name)

    def optimum(self, name: str) -> float:
        best = self.case(name).optimum()
        if best is None:
            raise DataError(f"{name}: every start of EM collapsed, so that there is no f*; leave it out of sets=")
        return best

    def limits(self, case: str, seed: int) -> dict[str, Outcome]:
        points = self.case(case).limit(seed)
        return {"EM": reached(points, self.optimum(case), math.inf, FINE)}

    def _make(self, name: str) -> Clusters:
        return Clusters(name, **self._sizes, cache_dir=self._cache_dir)
