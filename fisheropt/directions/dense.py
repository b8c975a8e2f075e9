"""Directions as tensors of the parameter's shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from fisheropt.directions.base import Directions, Implicit


@final
@dataclass(frozen=True)
class DenseDirections(Directions):
    """k tensors of the parameter's shape.

    Args:
        basis: [k, *parameter].
    """

    basis: Tensor
    kind: ClassVar[str] = "dense"

    @property
    def count(self) -> int:
        return self.basis.shape[0]

    def of_outer(self, g: Tensor, a: Tensor) -> Tensor:
        return torch.einsum("ntko,nto->nk", torch.einsum("nti,koi->ntko", a, self.basis.to(g.dtype)), g)

    def of_dense(self, h: Tensor) -> Tensor:
        return h.reshape(h.shape[0], -1) @ self.basis.to(h.dtype).reshape(self.basis.shape[0], -1).T

    def of_implicit(self, form: Implicit) -> Tensor:
        return form.along_dense(self.basis)

    def combine(self, coefficients: Tensor) -> Tensor:
        return torch.tensordot(coefficients.to(self.basis.dtype), self.basis, 1)
