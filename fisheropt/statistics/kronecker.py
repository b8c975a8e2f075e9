"""The Kronecker factors of a parameter's second moment, as the two partial traces that any form of hₙ has.

    L = Σₙ hₙhₙᵀ [o, o],    R = Σₙ hₙᵀhₙ [i, i],    M ≈ L ⊗ R / tr L

For one position hₙ = g aᵀ, so that L weighs ggᵀ by ‖a‖² and R weighs aaᵀ by ‖g‖²: where g and a are independent, these are
E[ggᵀ] and E[aaᵀ] up to a number, and L ⊗ R/tr L is M itself. Unlike aaᵀ alone they are quadratic in hₙ, so that a loss scale
divides out, and a sample's positions and calls are summed before anything is squared.

Reference: martens2015optimizing, morwani2024shampoo
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from fisheropt.directions import Directions
from fisheropt.persample import Convolved, Outer, PerSample, Rows
from fisheropt.persample.base import tile_of
from fisheropt.statistics.base import Covariance, Need, ParameterStatistic, Shape

LONGEST = 2048
"""Ours: a longer side has no factor, as its eigenvectors would cost more than many steps."""


class Factors(NamedTuple):
    """The two factors; None for a side that is too long to have one.

    Attributes:
        left: [o, o], over the first axis.
        right: [i, i], over all other axes.
    """

    left: Tensor | None
    right: Tensor | None


@final
@dataclass(frozen=True)
class Kronecker(ParameterStatistic):
    """The factors L and R of each parameter, its first axis by all others: o² + i² numbers laid end to end.

    `Kronecker().factors(tap.covariance(p).per_sample(), p)` are those of G. A vector has its whole covariance as L.

    Args:
        longest: the longest side that has a factor.

    Reference: martens2015optimizing, morwani2024shampoo
    """

    shape: ClassVar[Shape] = "factors"
    longest: int = LONGEST

    def size(self, parameter: Tensor) -> torch.Size:
        return torch.Size((sum(side * side for side in sides(parameter.shape) if side <= self.longest),))

    def needs(self, along: Directions | None) -> tuple[Need, ...]:
        return (("traces", ()),)

    def of(self, form: PerSample) -> Tensor:
        like = form.sum()
        left, right = sides(like.shape)
        found = partial_traces(form, left <= self.longest, right <= self.longest)
        return torch.cat([like.new_zeros(0), *(factor.flatten() for factor in found if factor is not None)])

    def factors(self, covariance: Covariance, parameter: Tensor) -> Factors:
        """L and R out of a covariance of this statistic.

        Args:
            covariance: as a tap has it for the parameter.
            parameter: whose.
        """
        return self._parted(covariance.value, parameter)

    def standard_error(self, covariance: Covariance, parameter: Tensor) -> Factors:
        """The standard error that entries of L and R have at most, √(2 Lᵢᵢ Lⱼⱼ/dof), as if gradients were Gaussian."""

        def largest(factor: Tensor | None) -> Tensor | None:
            if factor is None:
                return None
            roots = factor.diagonal().clamp_min(0).sqrt()
            return torch.outer(roots, roots) * (2 / covariance.dof) ** 0.5

        return Factors(*(largest(factor) for factor in self.factors(covariance, parameter)))

    def _parted(self, value: Tensor, parameter: Tensor) -> Factors:
        left, right = (side if side <= self.longest else 0 for side in sides(parameter.shape))
        parts = value.split([left * left, right * right])
        return Factors(*(p.unflatten(0, (s, s)) if s else None for p, s in zip(parts, (left, right), strict=True)))


def sides(shape: torch.Size) -> tuple[int, int]:
    """A parameter as a matrix [o, i]: its first axis by all others."""
    return (shape[0], shape[1:].numel()) if shape else (1, 1)


def partial_traces(form: PerSample, left: bool, right: bool) -> Factors:
    """Σₙ hₙhₙᵀ and Σₙ hₙᵀhₙ, each only if asked for.

    Args:
        form: of the per-sample gradients.
        left: whether the first is.
        right: whether the second is.
    """
    way = form.chosen("traces") if isinstance(form, Outer) else ""
    if isinstance(form, Outer) and way == "sides":
        g, a = form.g[:, 0], form.a[:, 0]
        return Factors(
            (g * a.square().sum(1, keepdim=True)).T @ g if left else None,
            (a * g.square().sum(1, keepdim=True)).T @ a if right else None,
        )
    if isinstance(form, Outer) and way == "gram":
        return Factors(_by_gram(form.g, form.a) if left else None, _by_gram(form.a, form.g) if right else None)
    if isinstance(form, Rows) and not left:
        g = form.distinct().g.flatten(0, 1)
        return Factors(None, g.T @ g if right else None)
    found = [(_product(h, 2) if left else None, _product(h, 1) if right else None) for h in tiles(form)]
    return Factors(*(_total(parts) for parts in zip(*found, strict=True)))


def second_moment_in(form: PerSample, left: Tensor | None, right: Tensor | None) -> Tensor:
    """Σₙ (UₗᵀhₙUᵣ)², elementwise: the exact second moments in a Kronecker-structured basis, [o, i].

    Args:
        form: of the per-sample gradients.
        left: Uₗ, [o, o], orthogonal; None leaves the first axis as it is.
        right: Uᵣ, [i, i], of all other axes.

    Reference: george2018fast
    """
    if left is None and right is None:
        return as_matrix(form.square_sum())
    if isinstance(form, Outer) and form.chosen("rotated") == "sides":
        g, a = form.g if left is None else form.g @ left, form.a if right is None else form.a @ right
        return replace(form, g=g, a=a).square_sum()
    if isinstance(form, Rows) and left is None and right is not None:
        return Rows(form.g @ right, form.index, form.size).square_sum()
    return torch.stack([turned(h, left, right).square().sum(0) for h in tiles(form)]).sum(0)


def turned(h: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """UₗᵀhUᵣ of matrices [..., o, i]."""
    h = h if left is None else left.T @ h
    return h if right is None else h @ right


def as_matrix(h: Tensor) -> Tensor:
    """One parameter's tensor as [o, i]."""
    return h.reshape(sides(h.shape))


def tiles(form: PerSample) -> Iterator[Tensor]:
    """All hₙ as matrices, some samples at a time: [m, o, i]."""
    found: Iterable[Tensor]
    if isinstance(form, Outer):
        tile = tile_of(form.g.shape[2] * form.a.shape[2])
        found = (g.mT @ a for g, a in zip(form.g.split(tile), form.a.split(tile), strict=True))
    else:
        found = form.tiles() if isinstance(form, (Convolved, Rows)) else [form.materialise()]
    return (h.reshape(len(h), *sides(h.shape[1:])) for h in found)


def _by_gram(g: Tensor, a: Tensor) -> Tensor:
    """Σₙ gₙᵀ(aₙaₙᵀ)gₙ, [o, o], through the Gram matrices of positions."""
    tile = tile_of(g.shape[1] * max(g.shape[1], g.shape[2]))
    pairs = zip(g.split(tile), a.split(tile), strict=True)
    return torch.stack([((x @ x.mT) @ y).flatten(0, 1).T @ y.flatten(0, 1) for y, x in pairs]).sum(0)


def _product(h: Tensor, axis: int) -> Tensor:
    return torch.tensordot(h, h, ([0, axis], [0, axis]))


def _total(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    held = [part for part in parts if part is not None]
    return torch.stack(held).sum(0) if held else None
