"""A parameter's Kronecker factors, their eigenbasis, and the second moments in it, in the parameter's state.

Second moments of the old basis go into the new one as if M were diagonal in the old one, m ← (W∘W)m for overlaps W, which
keeps their sum; before there was a basis they are what the factors alone say, the product of the factors' eigenvalues.

Reference: martens2015optimizing, george2018fast
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor

from fisheropt.optim.metrics.basis import dtype
from fisheropt.optim.metrics.structure import State
from fisheropt.statistics.kronecker import as_matrix, sides, turned
from fisheropt.statistics.layerwise import Eigenbasis

MOMENTS, NOISE, STEP = "moments", "noise", "direction"
SIDES = ("left", "right")


@final
class Held:
    """What the state of one parameter has: tensors only, of a structure that never changes.

    Args:
        state: of the optimizer.
        parameter: whose.
        factored: which of its sides have a factor.
        noise: whether the second moments of G are kept beside those of M.
    """

    def __init__(self, state: State, parameter: Tensor, factored: tuple[bool, bool], noise: bool) -> None:
        self.state, self.parameter = state, parameter
        self.factored = dict(zip(SIDES, factored, strict=True))
        self.keys = (MOMENTS, NOISE) if noise else (MOMENTS,)

    @property
    def own(self) -> dict[str, Any]:
        """The parameter's own state."""
        held: dict[str, Any] = self.state[self.parameter]
        return held

    def start(self) -> None:
        """Give the state its tensors, where it lacks them."""
        p = self.parameter.detach()
        for key in (*self.keys, STEP):
            self.own.setdefault(key, p.new_zeros(p.shape, dtype=dtype(p)))
        for side, length in zip(SIDES, sides(p.shape), strict=True):
            for name in ("factor", "basis") if self.factored[side] else ():
                self.own.setdefault(f"{side}_{name}", p.new_zeros(length, length, dtype=dtype(p)))

    def basis(self, turned_already: bool) -> Eigenbasis:
        """In which the next reading is taken."""
        # looking must not make state, by whose absence DCP knows a fresh optimizer
        own = self.state.get(self.parameter, {})
        left, right = (own.get(f"{side}_basis") if turned_already else None for side in SIDES)
        return Eigenbasis(left, right, self.factored["left"], self.factored["right"], own.get(STEP))

    def add(self, key: str, value: Tensor | None, share: float) -> None:
        """Take a reading into a running mean, with the share that it has of all weights."""
        if value is not None and key in self.own:
            held = self.own[key]
            held.lerp_(value.reshape(held.shape).to(held), share)

    def shorten(self, factor: float) -> None:
        """Scale the steps that momentum has added up."""
        held = self.own.get("momentum_buffer")
        if isinstance(held, Tensor) and held.requires_grad:  # of differentiable=True
            self.own["momentum_buffer"] = held * factor
        elif isinstance(held, Tensor):
            held.mul_(factor)  # in place, where a step that is not finite is undone

    def turn(self, found: dict[str, tuple[Tensor, Tensor]], first: bool) -> None:
        """Take new bases over, and the moments into them.

        Args:
            found: eigenvalues and eigenvectors of the factors, by side.
            first: whether there was no basis before.
        """
        moments = as_matrix(self.own[MOMENTS])
        total = moments.sum().clamp_min(torch.finfo(moments.dtype).tiny)
        if first:
            left = found["left"][0].clamp_min(0) if "left" in found else moments.sum(1)
            right = found["right"][0].clamp_min(0) if "right" in found else moments.sum(0)
            weight = (left.sum() * right.sum()).clamp_min(torch.finfo(moments.dtype).tiny)
            product = torch.outer(left, right) * (total / weight)
            for key in self.keys[1:]:
                self.own[key] = (product * (self.own[key].sum() / total)).reshape(self.parameter.shape)
            self.own[MOMENTS] = product.reshape(self.parameter.shape)
        else:
            overlaps = {side: (self.own[f"{side}_basis"].T @ vectors).square() for side, (_, vectors) in found.items()}
            for key in self.keys:
                spread = turned(as_matrix(self.own[key]), overlaps.get("left"), overlaps.get("right"))
                self.own[key] = spread.reshape(self.parameter.shape)
        for side, (_, vectors) in found.items():
            self.own[f"{side}_basis"] = vectors


def turn(held: Iterable[Held], first: bool) -> None:
    """Renew all bases from the factors: one call a size for all factors of that size.

    Args:
        held: of all parameters.
        first: whether there was no basis before.
    """
    parts = list(held)
    found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
    sized: dict[tuple[int, torch.dtype, torch.device], list[tuple[int, str]]] = {}
    for i, part in enumerate(parts):
        for side in SIDES:
            factor = part.own.get(f"{side}_factor")
            if factor is not None:
                sized.setdefault((len(factor), factor.dtype, factor.device), []).append((i, side))
    for places in sized.values():
        factors = torch.stack([parts[i].own[f"{side}_factor"] for i, side in places])
        scales = factors.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(factors.dtype).tiny)
        values, vectors = torch.linalg.eigh(factors / scales[:, None, None])
        found.update(zip(places, zip(values, vectors.contiguous(), strict=True), strict=True))
    for i, part in enumerate(parts):
        own = {side: found[i, side] for side in SIDES if (i, side) in found}
        if own:
            part.turn(own, first)
