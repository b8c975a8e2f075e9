"""The spectrum of the noise covariance: φ keeps the inner products of all pairs of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fisheropt.directions import Directions, Implicit
from fisheropt.persample import Convolved, Rows
from fisheropt.statistics.base import JointStatistic, Need

LIMIT = 4096
"""Ours: samples between two clears whose layers' inputs and gradients are kept; a matrix of their number squared."""


@final
@dataclass(frozen=True)
class NoDirections(Directions):
    """None at all: what is measured is not a projection."""

    @property
    def count(self) -> int:
        return 0

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        return g.new_zeros(len(g), 0)

    def of_dense(self, h: Tensor) -> Tensor:
        return h.new_zeros(len(h), 0)

    def of_implicit(self, form: Implicit) -> Tensor:
        assert isinstance(form, (Convolved, Rows))
        return form.g.new_zeros(len(form.g), 0)

    def combine(self, coefficients: Tensor) -> Tensor:
        return coefficients.new_zeros(1)


@final
@dataclass(frozen=True)
class Gram(JointStatistic):
    """Kₙₘ = ⟨hₙ, h_m⟩ over all parameters together, whose eigenpairs are those of G: `tap.gram().eigenpairs(16)`.

    The n x n matrix has all that a batch tells about the spectrum of G, whatever the number of parameters. The inputs and
    output gradients of all layers are kept from backward to `tap.clear()`, n(o + i) numbers for each position of a layer, and
    one backward after another adds its samples, so that microbatches have their cross terms. Clear once a step. On several
    ranks the matrix is that of this rank's samples.

    Args:
        limit: the samples that may be kept; a further backward is an error.
    """

    limit: int = LIMIT

    def directions(self, parameters: dict[str, Tensor]) -> dict[str, Directions]:
        return {name: NoDirections() for name in parameters}

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return (("gram", ()),)

    def rank(self, parameters: dict[str, Tensor]) -> int:
        return 0
