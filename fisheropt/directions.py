"""Directions in the space of one parameter, typed by what they cost to contract with.

A group's k directions v₁..v_k live in the product of its parameters' spaces; an object here is the part of all k of
them in one parameter. Index legend: n sample, t position, o output, i input, k direction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor
from torch.nn.functional import pad


class Implicit(Protocol):
    """Per-sample gradients that are contracted without being formed, or formed a few samples at a time."""

    def along_dense(self, basis: Tensor) -> Tensor:
        """⟨hₙ, v_k⟩ for v [k, *parameter]: [n, k]."""
        ...

    def along_rank_one(self, left: Tensor, right: Tensor) -> Tensor:
        """⟨hₙ, p_k q_kᵀ⟩ for p [k, o] and q [k, i]: [n, k]."""
        ...

    def tiles(self) -> Iterator[Tensor]:
        """All hₙ, some samples at a time."""
        ...


class Directions(ABC):
    """k vectors in the space of one parameter."""

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of directions k."""

    @abstractmethod
    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        """⟨Σₜ gₙₜ aₙₜᵀ, v_k⟩ for g [n, t, o] and a [n, t, i]: [n, k]."""

    @abstractmethod
    def of_dense(self, h: Tensor) -> Tensor:
        """⟨hₙ, v_k⟩ for h [n, *parameter]: [n, k]."""

    @abstractmethod
    def of_implicit(self, form: Implicit) -> Tensor:
        """⟨hₙ, v_k⟩ for gradients that are not formed at once: [n, k]."""

    @abstractmethod
    def combine(self, coefficients: Tensor) -> Tensor:
        """Σ_k c_k v_k for coefficients [k], with as many entries as the parameter, to be reshaped like it."""


@final
@dataclass(frozen=True)
class DenseDirections(Directions):
    """k tensors of the parameter's shape.

    Args:
        basis: [k, *parameter].
    """

    basis: Tensor

    @property
    def count(self) -> int:
        return self.basis.shape[0]

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        positions, count = g.shape[1], self.basis.shape[0]
        basis = self.basis.to(g.dtype)
        if positions * count > positions + count:  # the work of forming hₙ is repaid by k contractions
            return (g.mT @ a).flatten(1) @ basis.flatten(1).T
        return torch.einsum("ntko,nto->nk", torch.einsum("nti,koi->ntko", a, basis), g)

    def of_dense(self, h: Tensor) -> Tensor:
        return h.reshape(h.shape[0], -1) @ self.basis.to(h.dtype).reshape(self.basis.shape[0], -1).T

    def of_implicit(self, form: Implicit) -> Tensor:
        return form.along_dense(self.basis)

    def combine(self, coefficients: Tensor) -> Tensor:
        return torch.tensordot(coefficients.to(self.basis.dtype), self.basis, 1)


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

    @property
    def count(self) -> int:
        return self.left.shape[0]

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        return ((g @ self.left.to(g.dtype).T) * (a @ self.right.to(a.dtype).T)).sum(1)

    def of_dense(self, h: Tensor) -> Tensor:
        matrices = h.reshape(h.shape[0], self.left.shape[1], -1)
        return ((matrices @ self.right.to(h.dtype).T) * self.left.to(h.dtype).T).sum(1)

    def of_implicit(self, form: Implicit) -> Tensor:
        return form.along_rank_one(self.left, self.right)

    def combine(self, coefficients: Tensor) -> Tensor:
        return (self.left * coefficients.to(self.left.dtype)[:, None]).T @ self.right


@final
@dataclass(frozen=True)
class Coordinates(Directions):
    """The unit vectors of a group's flattened space: entry j of this parameter is coordinate `start` + j.

    Args:
        start: where this parameter begins in the flattened space.
        shape: the parameter's shape.
        size: the dimension of the flattened space.
    """

    start: int
    shape: torch.Size
    size: int

    @property
    def count(self) -> int:
        return self.size

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        return self.of_dense(g.mT @ a)

    def of_dense(self, h: Tensor) -> Tensor:
        flat = h.reshape(h.shape[0], -1)
        return pad(flat, (self.start, self.size - self.start - flat.shape[1]))

    def of_implicit(self, form: Implicit) -> Tensor:
        return torch.cat([self.of_dense(h) for h in form.tiles()])

    def combine(self, coefficients: Tensor) -> Tensor:
        return coefficients[self.start : self.start + self.shape.numel()]
