"""Directions as products of one vector for each side of a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from fisheropt.directions.base import Directions, Implicit
from fisheropt.kernels import on_cuda, rank_one_project


@final
@dataclass(frozen=True)
class RankOneDirections(Directions):
    """k matrices p_k q_kᵀ: the only kind that is nearly free to contract with, as no hₙ is formed.

    A parameter of more axes is a matrix of its first axis by all others.

    Args:
        left: p, [k, o].
        right: q, [k, i].
    """

    left: Tensor
    right: Tensor
    kind: ClassVar[str] = "rank_one"

    @property
    def count(self) -> int:
        return self.left.shape[0]

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        if on_cuda(g, a, self.left, self.right):
            return rank_one_project(g, a, self.left.to(g.dtype), self.right.to(a.dtype))
        return ((g @ self.left.to(g.dtype).T) * (a @ self.right.to(a.dtype).T)).sum(1)

    def of_dense(self, h: Tensor) -> Tensor:
        if self.right.shape[1] <= h.shape[0]:  # of a bias, the k matrices are smaller than k products for each sample
            basis = (self.left[:, :, None] * self.right[:, None]).flatten(1)
            return h.reshape(h.shape[0], -1) @ basis.to(h.dtype).T
        matrices = h.reshape(h.shape[0], self.left.shape[1], -1)
        return ((matrices @ self.right.to(h.dtype).T) * self.left.to(h.dtype).T).sum(1)

    def of_implicit(self, form: Implicit) -> Tensor:
        return form.along_rank_one(self.left, self.right)

    def combine(self, coefficients: Tensor) -> Tensor:
        return (self.left * coefficients.to(self.left.dtype)[:, None]).T @ self.right
