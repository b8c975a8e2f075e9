"""What a problem offers to the training script, the reports and the tests."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import TensorDataset

from recipes.problems.cache import OptimumCache
from recipes.problems.errors import DataError

DTYPES = {"float32": torch.float32, "float64": torch.float64}
FISHER_LIMIT = 500


class Problem(ABC):
    """A model with its data, the objective of a mini-batch, and exact evaluations on all the data.

    Training sees data and model in the problem's dtype; `train_loss`, `test_loss`, `accuracy`, `fisher` and
    `optimum` work in float64 on the data as they were read, so that no `train_loss` is below the `optimum`.
    They read the parameters only: a wrapped, compiled, sharded or hooked model is as good as a plain one.

    Attributes:
        name: short name for logs, part of a checkpoint's identity.
        model: fresh; the same whenever the same problem is built, whatever the global generators hold.
        likelihood: "bernoulli", "categorical", or None for a density, which has no output head.
        train: training data; batches are `(x, y)`, or `(x,)` for a density.
        test: test data of the same form, or None.
        cache: where the optimum is kept.
    """

    name: str
    model: nn.Module
    likelihood: str | None
    train: TensorDataset
    test: TensorDataset | None
    cache: OptimumCache

    @abstractmethod
    def loss(self, model: nn.Module, batch: Sequence[Tensor]) -> Tensor:
        """The objective on a batch of `train`, differentiable: what the training loop calls `backward` on."""

    @abstractmethod
    def train_loss(self, model: nn.Module) -> float:
        """The objective on all of `train`."""

    @abstractmethod
    def test_loss(self, model: nn.Module) -> float | None:
        """The mean log loss on `test`, without any penalty; None if there is no test set."""

    @abstractmethod
    def accuracy(self, model: nn.Module) -> float | None:
        """The share of `test` classified rightly; None for a density, or if there is no test set."""

    @abstractmethod
    def fisher(self, model: nn.Module) -> Tensor | None:
        """Ascending eigenvalues of the Fisher matrix on `train`; None above FISHER_LIMIT parameters."""

    @abstractmethod
    def describe(self) -> str:
        """Data, model and objective in a line."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that the optimum depends on."""

    @abstractmethod
    def solve(self) -> float | None:
        """Compute the optimum."""

    @functools.cached_property
    def optimum(self) -> float | None:
        """f*, the smallest value of `train_loss`, from the cache if it is there; None if none was found."""
        return self.cache.fetch(self.name, self.fingerprint(), self.solve)


def parameters64(model: nn.Module, like: nn.Module) -> list[Tensor]:
    """The model's parameters, whole, in float64 on the CPU; they must have the shapes of `like`'s."""
    found = [_whole(p).detach().to("cpu", torch.float64) for p in model.parameters()]
    shapes, wanted = [tuple(p.shape) for p in found], [tuple(p.shape) for p in like.parameters()]
    if shapes != wanted:
        raise ValueError(
            f"the model's parameters have the shapes {shapes}, and the problem evaluates {wanted}.\n"
            "Pass problem.model, or a copy or wrapper of it."
        )
    return found


def penalised(model: nn.Module) -> list[Tensor]:
    """The weights, which a ridge applies to; biases are left free."""
    return [_whole(p) for p in model.parameters() if p.ndim > 1]


def dtype_of(name: str) -> torch.dtype:
    """The torch dtype called `name`."""
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r}: write problem.dtype=float32 or problem.dtype=float64.")
    return DTYPES[name]


def require(holds: bool, given: str, cure: str) -> None:
    """Refuse an argument: what was given, and what to write instead."""
    if not holds:
        raise DataError(f"{given}: write {cure}.")


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
