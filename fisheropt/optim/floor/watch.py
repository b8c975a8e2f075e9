"""The directions of a group at work: coordinates along them, vectors made of them, information in them.

V is what the tap contracts with, K = VᵀV. All of the floor's matrices are in the orthonormal directions Q = V K^(-1/2), so
that what is added in k numbers is what is added to the curvature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.optim.critical.layers import Placed
from fisheropt.optim.floor.exact import Exact
from fisheropt.optim.group import Group
from fisheropt.optim.tracking import watched
from fisheropt.persample import Dense
from fisheropt.taps import Tap
from fisheropt.taps.reduce import ranks, reduce_sum
from fisheropt.taps.shards import laid_out, part_of, total

_DEPENDENT = 1e-6  # of the largest eigenvalue of K
_ORTHONORMAL = 1e-5  # in the precision of float32 parameters


@final
class Watch:
    """A group's directions, orthonormal, and the model's information in them.

    Args:
        tap: of the group.
        frame: K^(-1/2), [k, k].
        exact: where the information can be computed at any parameters; None where it is only measured.
    """

    def __init__(self, tap: Tap, frame: Tensor, exact: Exact | None) -> None:
        along = watched(tap)
        self.along = {id(tap.parameters[name]): (tap.parameters[name], d) for name, d in along.items()}
        self.frame = frame
        self.exact = exact

    def coordinates(self, vectors: Mapping[int, Tensor] | None = None) -> Tensor:
        """Qᵀθ, [k]; of other vectors in place of the parameters, by identity, where one is missing it is zero."""
        shares = [
            Dense(laid_out(p if vectors is None else vectors[i]).unsqueeze(0)).project(d)[0].double()
            for i, (p, d) in self.along.items()
            if vectors is None or i in vectors
        ]
        return self.frame @ total(torch.stack(shares).sum(0), (p for p, _ in self.along.values()))

    def add(self, coefficients: Tensor, parameters: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
        """The gradients plus Q c."""
        c = self.frame @ coefficients
        return [
            g + part_of(self.along[id(p)][1].combine(c).to(g.dtype), g) if id(p) in self.along else g
            for p, g in zip(parameters, grads, strict=True)
        ]

    @property
    def ready(self) -> bool:
        """Whether the inputs of this step's forwards are at hand."""
        return self.exact is not None and bool(self.exact.batch.seen)

    def information(self, inputs: Any = None) -> Tensor:
        """The model Fisher information in Q at the present parameters, [k, k].

        Args:
            inputs: of the model; those of the step's forwards if left out.
        """
        assert self.exact is not None
        return self.exact.information(self._vectors(torch.eye(len(self.frame)).to(self.frame)), inputs).detach()

    def gradient(self, rows: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        """∇ Σᵢ cᵢᵀQᵀFQcᵢ on the step's samples, one pass of jvp and reverse mode for each row c and forward.

        Args:
            rows: [r, k].
            parameters: to differentiate by.
        """
        assert self.exact is not None
        vectors = self._vectors(rows)
        total = [torch.zeros_like(p) for p in parameters]
        for forward, share in self.exact.shares():
            with torch.enable_grad():
                found = torch.autograd.grad(self.exact.of(forward, vectors).trace(), parameters, allow_unused=True)
            total = [t if g is None else t + share * g for t, g in zip(total, found, strict=True)]
        return [reduce_sum(g) / ranks() for g in total] if self.exact.parallel else total

    def _vectors(self, rows: Tensor) -> dict[int, Tensor]:
        """Qcᵢ, a tensor [r, *parameter] for each parameter by identity."""
        rows = rows @ self.frame
        return {
            i: torch.stack([d.combine(c.to(p.device)).reshape(p.shape) for c in rows]).to(p)
            for i, (p, d) in self.along.items()
        }


def full_precision(group: Group) -> torch.autocast:
    """Autocast off, where a step is taken inside of it: coordinates are products of matrices too."""
    return torch.autocast(group["frame"].device.type, enabled=False)


def frame(tap: Tap, like: Tensor) -> Tensor:
    """K^(-1/2), [k, k], a row of K at a time.

    Args:
        tap: whose directions V are meant.
        like: of the wanted shape, type and device.
    """
    gram, identity = torch.zeros_like(like), torch.eye(len(like)).to(like)
    for place, (row, unit) in enumerate(zip(gram, identity, strict=True)):
        for name, d in watched(tap).items():
            if isinstance(d, Placed) and not d.start <= place < d.start + d.inner.count:
                continue
            p = tap.parameters[name]
            row += Dense(d.combine(unit.to(p.device)).reshape(1, *p.shape)).project(d)[0].to(row)
    if float((gram - identity).abs().max()) < _ORTHONORMAL:
        return identity
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    if float(values[0]) < _DEPENDENT * float(values[-1]):
        raise ValueError(f"the {len(like)} directions are linearly dependent; leave out those that the others span")
    return (vectors * values.rsqrt()) @ vectors.T
