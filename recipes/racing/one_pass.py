"""Track one_pass: how near one pass over fresh samples comes to what the samples know."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.problems.readers import Array
from recipes.racing.case import Case
from recipes.racing.entrants import Entrant
from recipes.racing.limits import maximum_likelihood
from recipes.racing.population import KINDS, Population
from recipes.racing.track import Measure, Outcome, Target, Track
from recipes.racing.walks import Loop

LIMIT = "maximum likelihood, offline"


@final
class Stream(Case):
    """Fresh samples of a population, each seen once; the excess loss is in units of tr(H⁻¹G)/2n."""

    likelihood = "bernoulli"
    repeats = False

    def __init__(self, kind: str, n: int, d: int, condition: float, batch: int, seed: int) -> None:
        self.name, self.batch = kind, batch
        self.words = f"{kind.replace('_', ' ')} logistic regression, d = {d}, condition {condition:g}, n = {n}"
        self.law = Population(kind, d, condition, seed=0)
        self.x, self.y = self.law.draw(n, np.random.default_rng((7, seed)))
        self.data = (torch.from_numpy(self.x).float(), torch.from_numpy(self.y).float())

    def model(self, seed: int) -> nn.Module:
        """A linear layer at zero."""
        layer = nn.Linear(self.x.shape[1], 1, bias=False)
        nn.init.zeros_(layer.weight)
        return layer

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0]).squeeze(1), batch[1])

    def value(self, model: nn.Module) -> float:
        (weight,) = model.parameters()
        return self.ratio(weight.detach()[0].double().numpy())

    def ratio(self, w: Array) -> float:
        """(L(w) - L*) 2n / tr(H⁻¹G), about 1 for maximum likelihood."""
        return self.law.excess(w) * 2 * self.samples / self.law.dimension


@final
class OnePass(Track):
    """Excess loss after one pass, of the last iterate and of the mean over the second half."""

    name = "one_pass"
    title = "One pass: statistical efficiency"
    words = (
        "Fresh samples of a logistic regression on Gaussian features, each seen once; the excess loss over the whole "
        "population, which is known exactly, in units of tr(H⁻¹G)/2N: the limit of any estimator is about 1, and the row of "
        "maximum likelihood is the offline estimate from the same samples. Rates are tuned for the last iterate and for the "
        "mean over the second half of the iterates, each for itself."
    )

    def __init__(self, n: int, d: int, condition: float, batch: int) -> None:
        self._sizes = (n, d, condition, batch)
        self._stream = functools.lru_cache(maxsize=8)(self._make)

    @property
    def measures(self) -> Sequence[Measure]:
        asked = (Target(1.10, of=LIMIT),)
        return (
            Measure("last", "excess, last iterate", tuned=True, targets=asked),
            Measure("tail", "excess, tail average", tuned=True, targets=asked),
        )

    @property
    def settings(self) -> dict[str, Any]:
        return dict(zip(("n", "d", "condition", "batch"), self._sizes, strict=True))

    def cases(self) -> Sequence[str]:
        return KINDS

    def describe(self, case: str) -> str:
        stream = self._stream(case, 0)
        return f"{stream.words}, batches of {stream.batch}; tr(H⁻¹G) = {stream.law.dimension:.4g}"

    def run(self, case: str, entrant: Entrant, rate: float, seed: int, best: float | None = None) -> Outcome:
        stream = self._stream(case, seed)
        loop = Loop(stream, entrant.make, rate, seed, planned=stream.steps if entrant.falls else None)
        total, count = np.zeros(self._sizes[1]), 0
        (weight,) = loop.parameters
        while loop.taken < stream.steps:
            loop.advance(1)
            if loop.taken > stream.steps // 2:
                total += weight.detach()[0].numpy()
                count += 1
        return {"last": _finite(loop.value()), "tail": _finite(stream.ratio(total / count)), "seconds": loop.seconds}

    def limits(self, case: str, seed: int) -> dict[str, Outcome]:
        stream = self._stream(case, seed)
        ratio = stream.ratio(maximum_likelihood(stream.x, stream.y))
        return {LIMIT: {"last": ratio, "tail": ratio}}

    def _make(self, kind: str, seed: int) -> Stream:
        return Stream(kind, *self._sizes, seed)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
