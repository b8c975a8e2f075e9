"""Linear classification: what logistic regression on any data has in common."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from recipes.problems.base import FISHER_LIMIT, Problem, dtype_of, parameters64, penalised, require
from recipes.problems.cache import OptimumCache
from recipes.problems.newton import minimise
from recipes.problems.readers import Array
from recipes.problems.softmax import SoftmaxObjective, tally


@final
@dataclass(frozen=True)
class Samples:
    """Features [n, d], classes [n] counted from 0, and the same of a test set where there is one."""

    x: Array
    y: Array
    classes: int
    test: tuple[Array, Array] | None
    origin: str


class Classification(Problem):
    r"""Mean log loss of a linear model plus a ridge on its weights.

    $f(w, b) = -\frac1n \sum_i \log p_{y_i}(W x_i + b) + \frac{\lambda}{2} \lVert W \rVert^2$

    The intercept b, where there is one, is not penalised. Two classes have one logit, more have one each.
    """

    def __init__(
        self,
        name: str,
        samples: Samples,
        *,
        l2: float | None,
        intercept: bool,
        dtype: str,
        cache_dir: str | None,
    ) -> None:
        """Build model, data sets and the float64 objective; `l2=None` is 1/n."""
        n, d = samples.x.shape
        self.l2 = 1.0 / n if l2 is None else l2
        require(self.l2 >= 0, f"l2={l2}", f"problem.l2={1 / n:.3g} (that is 1/n, the default), or 0 for no ridge")
        self.name = name
        self.classes = samples.classes
        self.intercept = intercept
        self.cache = OptimumCache(cache_dir)
        self.likelihood = "bernoulli" if self.classes == 2 else "categorical"
        self.model = _zeros(d, 1 if self.classes == 2 else self.classes, intercept, dtype_of(dtype))
        self.train = self._dataset(samples.x, samples.y, dtype_of(dtype))
        self.test = None if samples.test is None else self._dataset(*samples.test, dtype_of(dtype))
        self._objective = self._exact(samples.x, samples.y)
        self._test_objective = None if samples.test is None else self._exact(*samples.test)
        self._origin = samples.origin

    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """Mean log loss of the batch plus (l2 / 2) |W|²."""
        x, y = batch
        if self.likelihood == "bernoulli":
            fit = F.binary_cross_entropy_with_logits(model(x).squeeze(-1), y)
        else:
            fit = F.cross_entropy(model(x), y)
        for weight in penalised(model):
            fit = fit + 0.5 * self.l2 * weight.square().sum()
        return fit

    def train_loss(self, model: nn.Module) -> float:
        """The objective f on all of `train`."""
        return self._objective.value(self._weights(model))

    def test_loss(self, model: nn.Module) -> float | None:
        """The mean log loss on `test`, without the ridge; None if there is no test set."""
        return None if self._test_objective is None else self._test_objective.log_loss(self._weights(model))

    def accuracy(self, model: nn.Module) -> float | None:
        """The share of `test` classified rightly; None if there is no test set."""
        return None if self._test_objective is None else self._test_objective.accuracy(self._weights(model))

    def fisher(self, model: nn.Module) -> Tensor | None:
        """The model Fisher's, without the ridge; for C > 2 classes one is 0 for every weight of one class."""
        w = self._weights(model)
        return torch.linalg.eigvalsh(self._objective.information(w)) if w.numel() <= FISHER_LIMIT else None

    def describe(self) -> str:
        """Data, model and objective in a line."""
        n, d = self.train.tensors[0].shape
        test = "no test set" if self.test is None else f"{len(self.test)} test samples"
        bias = " and an intercept (not penalised)" if self.intercept else ""
        return (
            f"{self.name} ({self._origin}): {n} samples, {test}, {self.classes} classes, {d} features{bias}, "
            f"l2 = {self.l2:.6g}"
        )

    def fingerprint(self) -> str:
        """A hash of the data, l2 and the intercept."""
        key = f"{self._objective.data.digest()} l2={self.l2!r} intercept={self.intercept}"
        return hashlib.sha256(key.encode()).hexdigest()

    def solve(self) -> float | None:
        """The minimum by Newton's method; without a ridge, 0 on separable data, where no w attains it."""
        found = minimise(self._objective)
        if self.l2 == 0.0 and self._objective.separates(found.w):
            return 0.0
        if found.gradient_norm > 1e-8:
            warnings.warn(
                f"{self.name}: no optimum, as Newton's method stopped at a gradient of norm "
                f"{found.gradient_norm:.1e}; write problem.standardise=true, or raise problem.l2",
                stacklevel=2,
            )
            return None
        return found.value

    def _dataset(self, x: Array, y: Array, dtype: torch.dtype) -> TensorDataset:
        labels = torch.from_numpy(y)
        return TensorDataset(torch.from_numpy(x).to(dtype), labels.to(dtype) if self.classes == 2 else labels.long())

    def _exact(self, x: Array, y: Array) -> SoftmaxObjective:
        data = tally(x, y, self.classes, intercept=self.intercept)
        return SoftmaxObjective(data, self.l2, intercept=self.intercept)

    def _weights(self, model: nn.Module) -> Tensor:
        """Weights and intercept side by side, [K, d]."""
        weight, *bias = parameters64(model, self.model)
        return torch.cat([weight, *(b[:, None] for b in bias)], 1)


def _zeros(features: int, outputs: int, intercept: bool, dtype: torch.dtype) -> nn.Linear:
    """A linear layer at zero, built without drawing from the global generator."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, features, outputs, bias=intercept, dtype=dtype)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
