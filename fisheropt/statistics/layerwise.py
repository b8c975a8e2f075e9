"""Second moments of every parameter by itself, each in a basis of its own, of the loss's backward and of the likelihood's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fisheropt.directions import Directions, Implicit
from fisheropt.persample import Convolved, Rows
from fisheropt.statistics.base import JointStatistic, Need
from fisheropt.statistics.kronecker import sides


@final
@dataclass(frozen=True)
class Eigenbasis(Directions):
    """A basis Uₗ ⊗ Uᵣ of one parameter, in which second moments are taken, and its part in one direction of all parameters.

    Args:
        left: Uₗ of the first axis, [o, o]; None leaves the axis as it is.
        right: Uᵣ of all other axes, [i, i].
        left_factor: whether the factor Σₙ hₙhₙᵀ is to be measured too.
        right_factor: whether Σₙ hₙᵀhₙ is.
        along: the part in the direction, shaped like the parameter; None has none.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    left_factor: bool = False
    right_factor: bool = False
    along: Tensor | None = None

    @property
    def count(self) -> int:
        return 1

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        if self.along is None:
            return g.new_zeros(len(g), 1)
        return ((a @ self.along.to(a).T) * g).sum((1, 2))[:, None]

    def of_dense(self, h: Tensor) -> Tensor:
        if self.along is None:
            return h.new_zeros(len(h), 1)
        return h.reshape(len(h), -1) @ self.along.to(h).reshape(-1, 1)

    def of_implicit(self, form: Implicit) -> Tensor:
        assert isinstance(form, (Convolved, Rows))
        if self.along is None:
            return form.g.new_zeros(len(form.g), 1)
        return form.along_dense(self.along[None])

    def combine(self, coefficients: Tensor) -> Tensor:
        return coefficients.new_zeros(1) if self.along is None else coefficients[0] * self.along


@final
@dataclass(frozen=True)
class Layerwise(JointStatistic):
    """Σₙ (UₗᵀhₙUᵣ)² and Σₙ hₙ of each parameter and, where a basis asks for them, the Kronecker factors.

    A joint statistic though second moments are not summed over parameters: so calls and tied weights are complete before
    they are squared, and the likelihood's backward is measured too. The one direction of all parameters tells what the
    separation into parameters leaves out. Bases are the identity, and the direction zero, until `tap.aim` names others.

    Args:
        longest: the longest side of a parameter that has a factor; 0 for none.
    """

    longest: int = 0

    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        return {name: Eigenbasis(None, None, *self.factored(p)) for name, p in parameters.items()}

    def factored(self, parameter: Tensor) -> tuple[bool, bool]:
        """Whether the first axis of a parameter has a factor, and whether all others together have."""
        left, right = sides(parameter.shape)
        return 1 < left <= self.longest, 1 < right <= self.longest

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        factors = isinstance(along, Eigenbasis) and (along.left_factor or along.right_factor)
        return (("dense", (1,)), ("square_sum", ()), *((("traces", ()), ("rotated", ())) if factors else ()))

    def rank(self, parameters: dict[str, Tensor]) -> int:
        return 1
