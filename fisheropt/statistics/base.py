"""What every statistic of degree two obeys, and the covariance that comes of it.

A statistic φ maps the gradient hₙ that one sample contributes to `p.grad` to a tensor. It is

1. additive: its reading is Σₙ φ(hₙ), over samples, microbatches and ranks;
2. homogeneous: φ(s·h) = s²·φ(h), so that a loss scale s divides out as s⁻²;
3. centred by measuring the total as if it were one sample.

As hₙ holds whatever the user did to the loss (a mean over c samples, a division by accumulation steps), the sample's own
gradient is gₙ = c·hₙ: the gradients gₙ average to `p.grad`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fisheropt.directions import Directions
from fisheropt.persample import PerSample

Shape = Literal["trace", "diagonal", "matrix", "factors"]
Need = tuple[str, tuple[int, ...]]
"""One of the quantities in `PerSample.ways`, with the sizes of what the gradients are contracted with."""


@dataclass(frozen=True)
class Statistic(ABC):
    """A quantity of degree two in the per-sample gradients.

    Args:
        dtype: of the accumulation; None takes float32, or float64 for float64 parameters.
    """

    dtype: torch.dtype | None = field(default=None, kw_only=True)
    shape: ClassVar[Shape]

    @abstractmethod
    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        """What is contracted of one parameter's gradients.

        Args:
            along: the part of the directions in it; None where the statistic has none.
        """

    def accumulator(self, parameter: Tensor) -> torch.dtype:
        """The dtype in which sums of this parameter's statistic are kept."""
        held = parameter.dtype
        wide = held if held in (torch.float32, torch.float64) else torch.promote_types(held, torch.float32)
        return self.dtype or wide


@dataclass(frozen=True)
class ParameterStatistic(Statistic):
    """A statistic of each parameter by itself."""

    @abstractmethod
    def size(self, parameter: Tensor) -> torch.Size:
        """The shape of φ(h)."""

    @abstractmethod
    def of(self, form: PerSample) -> Tensor:
        """Σₙ φ(hₙ)."""

    def of_and_sum(self, form: PerSample) -> tuple[Tensor, Tensor]:
        """Σₙ φ(hₙ) and Σₙ hₙ, which a form may have together."""
        return self.of(form), form.sum()


@dataclass(frozen=True)
class JointStatistic(Statistic):
    """Uᵀ G U over all parameters of a group together, for k directions U."""

    shape: ClassVar[Shape] = "matrix"

    @abstractmethod
    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        """The part of the k directions in each parameter."""

    @abstractmethod
    def rank(self, parameters: dict[str, Tensor]) -> int:
        """The number of directions k."""

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return () if along is None or not along.kind else ((along.kind, (along.count,)),)


@final
@dataclass(frozen=True)
class Covariance:
    """The covariance of the minibatch gradient, with what its uncertainty depends on.

    Args:
        value: the unbiased estimate, in the statistic's shape.
        batch_size: the number of samples whose mean the minibatch gradient is.
        dof: the degrees of freedom of the estimate.
        shape: what `value` is: the trace, the diagonal, or the matrix.
    """

    value: Tensor
    batch_size: float
    dof: float
    shape: Shape

    def per_sample(self) -> Covariance:
        """The covariance G of one sample's gradient: `batch_size` times that of their mean."""
        return replace(self, value=self.value * self.batch_size, batch_size=1.0)

    def matrix(self) -> Tensor:
        """The covariance matrix, [k, k]."""
        self._need("matrix")
        return self.value

    def diagonal(self) -> Tensor:
        """The variance of each coordinate."""
        self._need("matrix", "diagonal")
        return self.value.diagonal() if self.shape == "matrix" else self.value

    def trace(self) -> Tensor:
        """The sum of the variances, a 0-dim tensor; of variances that are cut among ranks it is a collective."""
        self._need("trace", "diagonal", "matrix")
        if self.shape == "trace":
            return self.value
        total = self.value.trace() if self.shape == "matrix" else self.value.sum()
        return total.full_tensor() if isinstance(total, DTensor) else total

    def standard_error(self) -> Tensor:
        """The standard error of `value`, element by element, as if gradients were Gaussian.

        A variance s² has √(2/dof)·s²; an entry ij of a matrix has √((sᵢᵢsⱼⱼ + sᵢⱼ²)/dof). A trace has at most √(2/dof)
        of itself, the value at one dominant direction.
        """
        self._need("trace", "diagonal", "matrix")
        if self.shape != "matrix":
            return self.value.abs() * (2 / self.dof) ** 0.5
        variances = self.value.diagonal()
        return ((torch.outer(variances, variances) + self.value.square()).clamp_min(0) / self.dof).sqrt()

    def _need(self, *shapes: Shape) -> None:
        if self.shape not in shapes:
            raise TypeError(
                f"this covariance was measured as a {self.shape} only. Observe with Trace() for the trace, SecondMoment() "
                f"for the diagonal, FullCovariance() or Projection(directions) for a matrix; those of Kronecker() are "
                f"taken apart by Kronecker().factors(covariance, parameter), with .standard_error(covariance, parameter)"
            )


@final
@dataclass(frozen=True)
class Moments:
    """Raw sums over the samples of one reading.

    Args:
        second: Σₙ φ(hₙ).
        total: φ(Σₙ hₙ), the same statistic of the total as if it were one sample.
        count: the number of samples c, or of microbatches.
        shape: of the statistic.
    """

    second: Tensor
    total: Tensor
    count: int
    shape: Shape

    @property
    def dof(self) -> int:
        """Degrees of freedom of the covariance, c - 1."""
        return self.count - 1

    def covariance(self) -> Covariance:
        """The covariance of Σₙ hₙ, unbiased: c/(c-1)·(Σₙ φ(hₙ) - φ(Σₙ hₙ)/c).

        Raises:
            ValueError: if fewer than two samples were seen.
        """
        if self.count < 2:
            raise ValueError(
                f"a covariance needs two samples, {self.count} seen. Given parameters, a sample is one backward(): give "
                f"the optimizer the model instead, or run at least two backward() a step"
            )
        value = (self.second - self.total / self.count) * (self.count / (self.count - 1))
        return Covariance(value, self.count, self.dof, self.shape)

    def unscaled(self, scale: float) -> Moments:
        """The same for the loss divided by `scale`."""
        return replace(self, second=self.second / scale**2, total=self.total / scale**2)
